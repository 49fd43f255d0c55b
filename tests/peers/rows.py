"""The rows of the table: which attacks there are, how often each is played, on whom, and what is told of its rounds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.peers import attacks
from tests.peers.attacks import TTL_SECONDS, WAITERS, Round
from tests.peers.lockers import Locker
from tests.peers.scene import LONG


def outcomes(found: Sequence[object]) -> str:
    """Count what came of the rounds; where there are only times, give their median."""
    times = [value for value in found if isinstance(value, float)]
    counts = Counter(value for value in found if isinstance(value, str))
    told = [f"{value} {count}/{len(found)}" for value, count in counts.most_common()]
    return ", ".join([*([f"{median(times):.0f} ms"] if times else []), *told])


def overtakings(found: Sequence[object]) -> str:
    """Return which part of the grants went to the hammerer, and how many have not been served in time."""
    total = sum((value for value in found if isinstance(value, Counter)), Counter[str]())
    percent = 100 * total["hammerer"] / (total["hammerer"] + total["waiter"])
    unserved = f", {total['unserved']} of {WAITERS * len(found)} never served" if total["unserved"] else ""
    return f"{percent:.0f} %{unserved}"


def inversions(found: Sequence[object]) -> str:
    """Return how many pairs of waiters were served in the wrong order."""
    pairs = WAITERS * (WAITERS - 1) // 2 * len(found)
    return f"{100 * sum(value for value in found if isinstance(value, int)) / pairs:.0f} %"


def always(locker: Locker) -> str:
    """Say that an attack applies to every peer."""
    return ""


def needs_npm(locker: Locker) -> str:
    """Say why there is no attack under npm."""
    return "" if shutil.which("npm") else "n/a: no npm here"


def needs_ttl(locker: Locker) -> str:
    """Say why nobody is robbed."""
    return "" if locker.has_ttl else "n/a: no TTL"


def needs_mounts(locker: Locker) -> str:
    """Say why no disk can be filled."""
    trial = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "peers", "/mnt"]
    if os.geteuid() == 0 and subprocess.run(trial, stderr=subprocess.DEVNULL).returncode == 0:
        return ""
    return "n/a: no mounts here"


@dataclass(frozen=True)
class Attack:
    """A row of the table. `inapplicable` says why there is nothing to attack, or is empty."""

    title: str
    play: Round
    rounds: int = 10
    tell: Callable[[Sequence[object]], str] = outcomes
    inapplicable: Callable[[Locker], str] = always
    ttl: float = LONG


ATTACKS = (
    Attack("wrapper killed, its shell job works on", attacks.wrapper_killed),
    Attack("wrapper killed, npm works on", attacks.wrapper_killed_under_npm, 5, inapplicable=needs_npm),
    Attack("wrapper and npm killed, the script works on", attacks.wrapper_and_npm_killed, 5, inapplicable=needs_npm),
    Attack("wrapper and its Python job killed, a child works on", attacks.wrapper_and_parent_killed),
    Attack("the main process has ended, a child works on", attacks.left_behind),
    Attack("…in a session of its own, with the descriptor", attacks.left_session),
    Attack("lock file deleted while held", attacks.lock_file_deleted),
    Attack("lock file replaced by its copy while held", attacks.lock_file_replaced),
    Attack("a stale file found by four at once", attacks.stale_file_of_many, 20),
    Attack("the holder works longer than the TTL", attacks.longer_than_ttl, inapplicable=needs_ttl, ttl=TTL_SECONDS),
    Attack("wrapper and job killed: the next works after", attacks.all_killed),
    Attack("a file from before a reboot, its PID lives", attacks.stale_file),
    Attack("…from PID 1 of a container that is gone", attacks.container_file),
    Attack("…from another running system", attacks.foreign_file),
    Attack("first waiter stopped: the next works after", attacks.stopped_waiter),
    Attack("grants to who only tries while four wait", attacks.hammered, 5, tell=overtakings),
    Attack("waiters served in the wrong order", attacks.order, tell=inversions),
    Attack("a job starts another guarded one, which would wait", attacks.nested_wait, 5),
    Attack("…which would not wait", attacks.nested_try, 5),
    Attack("a daemon with the descriptor, after a normal end", attacks.daemon),
    Attack("…after wrapper and job were killed", attacks.daemon_after_kill),
    Attack("disk full, then room again", attacks.disk_full, 5, inapplicable=needs_mounts),
)
