"""All checks, in the order in which they are told, and how they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.checkup import directories, features, leases, scripts, state, versions
from maintlock.checkup.finding import fine, problem
from maintlock.errors import MaintlockError
from maintlock.model import record, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding


@record(frozen=True, kw_only=True)
class Check:
    """One check: `find` yields what it finds; if that is nothing, `fine` is what is in order."""

    name: str
    fine: str
    find: Callable[[Facts], Iterable[Finding]]


CHECKS = (
    Check(name="configuration", fine="is valid", find=state.configuration),
    Check(name="permissions", fine="the state directory and what is in it are yours alone", find=state.permissions),
    Check(name="filesystem", fine="keeps flock local, and has room", find=state.filesystems),
    Check(name="records", fine="can be read, and belong to this lease and system", find=state.records),
    Check(name="ledger", fine="can be read, and is complete", find=state.ledger),
    Check(name="pending", fine="nothing waits for the ledger", find=state.waiting),
    Check(name="lease", fine="nobody has ever asked for one here", find=state.lease),
    Check(name="lock file", fine="nobody has a lock on an old one", find=state.lock_file),
    Check(name="descriptors", fine="none has leaked out of the job", find=state.descriptors),
    Check(name="processes", fine="no heavy process runs outside the lease", find=state.collisions),
    Check(name="npm scripts", fine="all that look heavy are guarded", find=scripts.scripts),
    Check(name="leases", fine="all heavy tasks are under one", find=leases.leases),
    Check(name="directories", fine="no other state directory is in use", find=directories.directories),
    Check(name="platform", fine="has everything that maintlock uses", find=features.platform),
    Check(name="versions", fine="are all the same", find=versions.versions),
)


def examined(facts: Facts, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return what the checks find; one that fails is a problem of its own, and stops no other."""
    found: list[Finding] = []
    for check in checks:
        told = _made(check, facts) or [fine(check.fine)]
        found += [replace(one, check=check.name) for one in told]
    return found


def _made(check: Check, facts: Facts) -> list[Finding]:
    told: list[Finding] = []
    try:
        told += check.find(facts)
    except MaintlockError as error:
        told.append(problem(f"could not be checked: {error.text}", error.mend or None))
    except Exception as error:  # noqa: BLE001  whatever a check meets, the others are still made
        what = f"could not be checked: {type(error).__name__}: {error}"
        told.append(problem(f"{what}; no command of yours mends that: it is a fault of maintlock, please report it"))
    return told
