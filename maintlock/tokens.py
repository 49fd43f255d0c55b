"""The grant in a job's environment: how a request knows that it is made inside a job.

A token proves nothing by itself (L8): it counts only in the session that it names, and only while the lock's line names
the same grant as unended.
"""

from __future__ import annotations

from maintlock.model import record
from maintlock.names import is_lease_name, is_task_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.model import Line
    from maintlock.paths import Places

HELD = "MAINTLOCK_HELD"
STATE_DIR = "MAINTLOCK_STATE_DIR"
TASK = "MAINTLOCK_TASK"
DESCRIPTOR = "MAINTLOCK_FD"


@record(frozen=True, kw_only=True)
class Token:
    """One grant as `MAINTLOCK_HELD` names it."""

    lease: str
    lease_id: str
    session_id: int

    def __str__(self) -> str:
        return f"{self.lease}:{self.lease_id}:{self.session_id}"


def parsed(held: str) -> list[Token]:
    """Return the grants in a value of `MAINTLOCK_HELD`, outermost first; what is no grant is passed over."""
    found = []
    for word in held.split():
        lease, _, rest = word.partition(":")
        lease_id, _, session = rest.partition(":")
        if (
            is_lease_name(lease)
            and is_lease_name(lease_id)
            and session.isascii()
            and session.isdigit()
            and len(session) < 12
        ):
            found.append(Token(lease=lease, lease_id=lease_id, session_id=int(session)))
    return found


def own(environ: Mapping[str, str], places: Places, session_id: int) -> Token | None:
    """Return the grant of this lease that our environment carries in our session: the innermost, if there are several.

    A token of another state directory is a token of another lock.
    """
    if environ.get(STATE_DIR, places.directory) != places.directory:
        return None
    matching = [token for token in parsed(environ.get(HELD, "")) if token.lease == places.lease]
    return next((token for token in reversed(matching) if token.session_id == session_id), None)


def is_inside(environ: Mapping[str, str], places: Places, session_id: int) -> bool:
    """Tell whether our environment carries a grant of any lease of this state directory in our session."""
    if environ.get(STATE_DIR, places.directory) != places.directory:
        return False
    return any(token.session_id == session_id for token in parsed(environ.get(HELD, "")))


def parent_task(environ: Mapping[str, str]) -> str | None:
    """Return the task that we are inside of, as the environment has it."""
    task = environ.get(TASK, "")
    return task if is_task_name(task) else None


def environment(environ: Mapping[str, str], places: Places, line: Line, *, task: str, fd: int | None) -> dict[str, str]:
    """Return what a job's environment gets: the grant, all grants around it, and the lock's descriptor if it is passed."""
    around = [token for token in parsed(environ.get(HELD, "")) if token.lease_id != line.lease_id]
    ours = Token(lease=places.lease, lease_id=line.lease_id, session_id=line.session_id)
    added = {
        "MAINTLOCK_LEASE": places.lease,
        "MAINTLOCK_LEASE_ID": line.lease_id,
        TASK: task,
        "MAINTLOCK_FENCE": str(line.fence),
        STATE_DIR: places.directory,
        HELD: " ".join(str(token) for token in [*around, ours]),
    }
    return added if fd is None else {**added, DESCRIPTOR: str(fd)}


def merged(environ: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return a job's whole environment: the descriptor that an outer job may have been given is not its own."""
    return {**{name: value for name, value in environ.items() if name != DESCRIPTOR}, **added}
