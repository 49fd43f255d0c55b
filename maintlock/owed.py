"""What pulls owe: which task has still to run because of them, in a file of the state directory (L15).

Written before a pull changes anything, and cleared only by a run that has succeeded. Several configurations may share a state
directory, so each debt names the one that it is of.
"""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING

from maintlock import events, paths, wholefile
from maintlock.jsontext import encoded_object
from maintlock.model import record, replace
from maintlock.names import is_task_name
from maintlock.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

NAME = "repo-sync.owed"  # JSON, and not called so: a lease of this name would have its sidecar there
SCHEMA = 1
MAX_BYTES = 1 << 20
FIELDS = ("id", "config", "task", "root", "before", "after", "at")


@record(frozen=True, kw_only=True)
class Debt:
    """One root was pulled from `before` to `after`, and `task` of the file `config` has not succeeded since.

    Where an unreadable record has been replaced, `root` and both commits are empty.
    """

    id: str
    config: str
    task: str
    root: str
    before: str
    after: str
    at: str


@record(frozen=True, kw_only=True)
class Reading:
    """What was found: `state` is one of `missing valid bad`; `debts` only where it is valid."""

    state: str
    debts: tuple[Debt, ...] = ()


def new(*, config: str, task: str, root: str = "", before: str = "", after: str = "") -> Debt:
    """Return a debt of this moment."""
    return Debt(
        id=events.new_id(), config=config, task=task, root=root, before=before, after=after, at=rfc3339(time.time())
    )  # fmt: skip


# Pure


def with_debt(debts: Sequence[Debt], debt: Debt) -> list[Debt]:
    """Return the debts with one more; an earlier one of the same pull chain goes up in it, and keeps its beginning."""
    earlier = _earlier(debts, debt)
    if earlier is not None:
        debt = replace(debt, before=earlier.before, at=earlier.at)
    return [*(other for other in debts if other is not earlier), debt]


def without(debts: Sequence[Debt], ids: Collection[str]) -> list[Debt]:
    """Return the debts that are left once those with these ids are paid."""
    return [debt for debt in debts if debt.id not in ids]


def taken_back(debts: Sequence[Debt], debt: Debt, before: Sequence[Debt]) -> list[Debt]:
    """Return the debts as they are without one that was written down for nothing; `before` are those that stood then."""
    if all(other.id != debt.id for other in debts):
        return list(debts)
    earlier = _earlier(before, debt)
    return [*without(debts, {debt.id}), *([] if earlier is None else [earlier])]


def tasks_of(debts: Sequence[Debt], config: str) -> dict[str, set[str]]:
    """Return the ids of what each task of a configuration owes, in the order in which it was incurred."""
    owed: dict[str, set[str]] = {}
    for debt in debts:
        if debt.config == config:
            owed.setdefault(debt.task, set()).add(debt.id)
    return owed


def parsed(content: bytes) -> tuple[Debt, ...] | None:
    """Return the debts in a record, or None where it is none of ours."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("owed"), list):
        return None
    debts = []
    for fields in found["owed"]:
        if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in FIELDS):
            return None
        if not is_task_name(fields["task"]):
            return None
        debts.append(Debt(**{name: fields[name] for name in FIELDS}))
    return tuple(debts)


def encoded(debts: Sequence[Debt]) -> bytes:
    """Return the record."""
    owed = [{name: getattr(debt, name) for name in FIELDS} for debt in debts]
    return encoded_object({"schema": SCHEMA, "owed": owed}).encode("ascii") + b"\n"


def _earlier(debts: Sequence[Debt], debt: Debt) -> Debt | None:
    same = (debt.config, debt.task, debt.root)
    return next((other for other in debts if (other.config, other.task, other.root) == same), None)


# The file


def read(directory: str) -> Reading:
    """Return what is owed, whatever stands in the file's place.

    Raises:
        RefusedError: Somebody else could have written it.
    """
    path = f"{directory}/{NAME}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Reading(state="missing")
    except OSError:
        return Reading(state="bad")
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return Reading(state="bad")
        paths.check_trusted(path, found)
        content = b""
        while len(content) <= MAX_BYTES and (chunk := os.read(fd, MAX_BYTES + 1 - len(content))):
            content += chunk
    except OSError:
        return Reading(state="bad")
    finally:
        os.close(fd)
    debts = None if len(content) > MAX_BYTES else parsed(content)
    return Reading(state="bad") if debts is None else Reading(state="valid", debts=debts)


def write_changed(directory: str, change: Callable[[Sequence[Debt]], Sequence[Debt]]) -> tuple[Debt, ...]:
    """Change what is owed while no other program of ours does; return what was owed before.

    Raises:
        RefusedError: It may not be written, or somebody else could have.
        UnavailableError: It cannot be written.
    """
    path = f"{directory}/{NAME}"
    with wholefile.turn_in(directory):
        before = read(directory).debts
        after = change(before)
        if after:
            wholefile.write(path, encoded(after), mode=0o600)
        else:
            _remove(path)
    return before


def write_debt(directory: str, debt: Debt) -> Callable[[], None]:
    """Write down one more debt, and return what takes it back. Raises what `write_changed` does."""
    before = write_changed(directory, lambda debts: with_debt(debts, debt))

    def write_taken_back() -> None:
        write_changed(directory, lambda debts: taken_back(debts, debt, before))

    return write_taken_back


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise wholefile.failure(path, error) from error
