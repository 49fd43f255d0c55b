"""The grant in a job's environment: how a request knows that it is made inside a job.

A token proves nothing by itself (L8): it counts only in the session that it names, and only while the lock's line names
the same grant as unended.
"""

from __future__ import annotations

from maintlock.model import record
from maintlock.names import is_lease_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.model import Line
    from maintlock.paths import Places

HELD = "MAINTLOCK_HELD"
STATE_DIR = "MAINTLOCK_STATE_DIR"
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


def of_session(environ: Mapping[str, str], directory: str, session_id: int) -> list[Token]:
    """Return the grants that our environment carries in our session, outermost first.

    A token of another state directory is a token of another lock.
    """
    if environ.get(STATE_DIR, directory) != directory:
        return []
    return [token for token in parsed(environ.get(HELD, "")) if token.session_id == session_id]


def innermost(environ: Mapping[str, str], directory: str, session_id: int, *, lease: str | None = None) -> Token | None:
    """Return the innermost grant, of this lease or of any, that our environment carries in our session."""
    found = of_session(environ, directory, session_id)
    return next((token for token in reversed(found) if lease in {None, token.lease}), None)


def environment(environ: Mapping[str, str], places: Places, line: Line, *, task: str, fd: int | None) -> dict[str, str]:
    """Return what a job's environment gets: the grant, all grants around it, and the lock's descriptor if it is passed."""
    around = [token for token in parsed(environ.get(HELD, "")) if token.lease_id != line.lease_id]
    ours = Token(lease=places.lease, lease_id=line.lease_id, session_id=line.session_id)
    added = {
        "MAINTLOCK_LEASE": places.lease,
        "MAINTLOCK_LEASE_ID": line.lease_id,
        "MAINTLOCK_TASK": task,
        "MAINTLOCK_FENCE": str(line.fence),
        STATE_DIR: places.directory,
        HELD: " ".join(str(token) for token in [*around, ours]),
    }
    return added if fd is None else {**added, DESCRIPTOR: str(fd)}


def merged(environ: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return a job's whole environment: the descriptor that an outer job may have been given is not its own."""
    return {**{name: value for name, value in environ.items() if name != DESCRIPTOR}, **added}
