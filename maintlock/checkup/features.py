"""What this platform lacks, and what that costs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from maintlock import process
from maintlock.checkup.finding import notice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding

INITIAL_PID_NAMESPACE = "4026531836"  # the kernel's own, include/linux/proc_ns.h


def platform(_facts: Facts) -> Iterable[Finding]:
    """Tell what this platform lacks, and what that costs."""
    if not process.has_proc():
        yield notice(
            "there is no /proc: who has a lock is known from its records alone, and unknown without them; survivors of a "
            "killed job are found by psutil, more slowly; other state directories are found by environments alone"
        )
    elif process.read_text(f"{process.PROC}/locks", 1) is None:
        yield notice("/proc/locks cannot be read: a lock whose holder left no record is called unknown")
    if not sys.platform.startswith("linux"):
        yield notice("there is no child subreaper: leftover processes are polled for five times a second")
    if not process.boot_id():
        yield notice(
            "the system provides no boot id: after a restart a recycled pid may be taken for a holder until a request looks"
        )
    namespace = process.pid_namespace()
    if namespace not in {"", INITIAL_PID_NAMESPACE}:
        yield notice(
            "this is a container, with a pid namespace of its own: of jobs outside that share the state directory, the lock "
            "is seen, but neither their processes nor their survivors"
        )
    yield from _psutil()


def _psutil() -> Iterable[Finding]:
    try:
        import psutil

        psutil.Process().name()
    except Exception as error:  # noqa: BLE001  whatever it is, that is the finding
        yield notice(
            f"psutil does not work here ({type(error).__name__}): processes and memory are not shown where there is no /proc"
        )
