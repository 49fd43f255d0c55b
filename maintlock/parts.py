"""What a program has started under a lease that it holds itself: as long as any of it works, the lease is kept."""

from __future__ import annotations

import resource
import signal
import time

from maintlock import flock, process, survivors
from maintlock.errors import UnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from maintlock.lease import Lease

LOOK_SECONDS = 0.05


def is_at_work(grant: Lease) -> bool:
    """Tell whether processes work on that carry the grant in its session; also where that cannot be seen just now."""
    try:
        return bool(survivors.find(grant.places, grant.line))
    except UnavailableError:
        return True


def children_reaped() -> int:
    """Return a number that rises with each child of ours that was waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt


def wait(
    grant: Lease,
    *,
    reaped_before: int | None = None,
    lock: Callable[[int], object] = flock.lock,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Return once nothing that was started under the grant works any more, and nobody can join it.

    Where no child was started since `reaped_before`, the process table is not looked through: that takes longer than all the
    rest of a grant. What is still at work may yet start a job that joins, and what has joined may leave something at work: so
    who joins is excluded first, and only for as long as it takes to look. `lock` waits for a lock, `pause` for some seconds.
    """
    while True:
        if not grant.try_exclude_joined():
            lock(grant.nested_fd)
        is_childless = reaped_before is not None and children_reaped() == reaped_before and not _has_children()
        if is_childless or not is_at_work(grant):
            return
        flock.unlock(grant.nested_fd)
        pause(LOOK_SECONDS)


def _has_children() -> bool:
    """Tell whether we may have a child, or may have had one that the kernel has reaped by itself."""
    return signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN or process.may_have_children()
