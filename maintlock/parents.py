"""The task that a request is made inside of: by the records of the grant in its environment, never by a name there.

The ledger is asked only where locks and line cannot tell: a nested job must not wait for SQLite.
"""

from __future__ import annotations

import os

from maintlock import holder, locktable, process, tokens
from maintlock import line as line_file
from maintlock.errors import MaintlockError
from maintlock.paths import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def of_environment(environ: Mapping[str, str], directory: str) -> str | None:
    """Return the task of the innermost grant in an environment in our session, None where there is none, or it is not known."""
    token = tokens.innermost(environ, directory, os.getsid(0))
    return None if token is None else of_grant(Places(directory=directory, lease=token.lease), token.lease_id)


def of_grant(places: Places, lease_id: str) -> str | None:
    """Return the task of the nearest wrapper above us that has joined a grant, or else the task that the grant is of."""
    return _joined_above_us(places) or _task_on_record(places, lease_id)


def _joined_above_us(places: Places) -> str | None:
    above = [(stat.pid, stat.start_ticks) for stat in process.ancestors(os.getpid())]
    try:
        rows = locktable.read_rows_on(os.stat(places.nested))
    except OSError:
        return None  # nobody has ever joined
    if rows is not None and not {row.locker for row in rows} & {pid for pid, _ in above}:
        return None
    from maintlock import history

    try:
        present = history.read_snapshot(places.directory, lease=places.lease).present
    except MaintlockError:
        return None
    joined = {(row["pid"], row["start_ticks"]): row["task"] for row in present if row["role"] == "nested"}
    return next((joined[one] for one in above if one in joined), None)


def _task_on_record(places: Places, lease_id: str) -> str | None:
    line = line_file.read_path(places.lock)
    for known in (line, holder.unknown_to(line, holder.read_sidecar(places))):
        if known is not None and known.lease_id == lease_id:
            return known.task
    from maintlock import history

    try:
        return history.task_of_grant(places.directory, lease_id)
    except MaintlockError:
        return None
