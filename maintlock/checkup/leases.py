"""Whether all heavy tasks are under one lease: two leases are two locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock import line as line_file
from maintlock.checkup.finding import notice, problem, to_edit
from maintlock.names import DEFAULT_LEASE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding


def leases(facts: Facts) -> Iterable[Finding]:
    """Tell whether all heavy tasks are under one lease: two leases are two locks."""
    by_lease: dict[str, list[str]] = {}
    for task in facts.settings.tasks.values():
        if task.heavy:
            by_lease.setdefault(task.lease, []).append(task.name)
    if len(by_lease) > 1 and facts.settings.path is not None:
        shown = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in sorted(by_lease.items()))
        text = (
            f"{facts.settings.path}: heavy tasks are spread over several leases, and can run at the same time ({shown})"
        )
        yield problem(text, to_edit(facts.settings.path))
    for name in facts.leases:
        line = line_file.read_path(facts.places(name).lock)
        if line is None:
            continue
        known = facts.settings.tasks.get(line.task)
        expected = known.lease if known is not None and known.heavy else None
        if expected not in {None, name}:
            yield problem(
                f"{line.task} was last started under the {name} lease, and belongs to {expected}; no command of ours mends "
                f"that: take --lease {name} out of whatever starts it"
            )
        elif name != DEFAULT_LEASE and name not in by_lease and known is None:
            yield notice(
                f"the {name} lease is in use too (last by {line.task}): what runs under it can run at the same time as the "
                f"others; if that is not intended, take --lease {name} out of whatever starts it"
            )
