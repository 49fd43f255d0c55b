"""Who belongs to a job whose wrapper lives: what descends from us, in the session that keeps the lease.

Where the kernel hands us every orphan of ours, descendants are all there are; elsewhere the grant in their environment tells.
"""

from __future__ import annotations

import os

from maintlock import process, survivors
from maintlock.holder import leaders_of
from maintlock.lease import Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maintlock.lease import Joined
    from maintlock.process import Stat


class Members:
    """The processes of the job that is run under a grant; made before it starts."""

    def __init__(self, grant: Lease | Joined, hold_until: str) -> None:
        self.grant = grant
        self.hold_until = hold_until
        self.is_subreaper = process.become_subreaper()
        self._not_ours = frozenset(_children_before())

    def living(self, main: int, *, proven: bool = False) -> list[Stat]:
        """Return those that keep the lease, or only those proven to; `main` is the pid of the job's main process."""
        found = self.below()
        if not self.is_subreaper and isinstance(self.grant, Lease):
            leaders = leaders_of(self.grant.line, None) | {main}
            known = {stat.pid for stat in found}
            line = self.grant.line
            rest = survivors.look(self.grant.places, line, leaders, exempt=survivors.Exempt())
            carrying = rest.carrying if proven else [*rest.carrying, *rest.loading]
            found += [stat for stat in carrying if stat.pid not in known]
        if self.hold_until == "tree":
            return found
        session = self.grant.line.session_id
        return [stat for stat in found if stat.sid == session]

    def below(self) -> list[Stat]:
        """Return all that descend from us, whether they keep the lease or not."""
        below = process.descendants(process.read_table(), os.getpid(), self._not_ours)
        return [stat for stat in below if not stat.is_dead]


def _children_before() -> list[int]:
    """Return the children that we already had when we became the wrapper (`daemon & exec maintlock-wrap …`)."""
    if not process.may_have_children():
        return []
    return [stat.pid for stat in process.read_table().values() if stat.ppid == os.getpid()]
