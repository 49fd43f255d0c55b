"""Whether everybody uses the same state directory: two of them are two locks (L9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock import tokens
from maintlock.checkup import elsewhere
from maintlock.checkup.facts import DEFAULT
from maintlock.checkup.finding import notice, problem, quoted
from maintlock.naming import named
from maintlock.times import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.elsewhere import Neighbour
    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding


def directories(facts: Facts) -> Iterable[Finding]:
    """Tell who uses another state directory: two of them are two locks (L9)."""
    configured = facts.settings.state_dir
    if configured is not None and facts.settings.path is not None:
        is_local = f"{configured}/".startswith(f"{facts.settings.directory}/")
        where = "project-local" if is_local else "of this project's choice"
        text = f"{facts.settings.path}: state_dir is {where}: whatever does not find this file, such as cron, uses another lock"
        yield notice(text, quoted("sed", "-i.bak", r"/^ *state_dir *=/d", facts.settings.path))
    for neighbour in facts.neighbours.values():
        if neighbour.working or neighbour.pointed or elsewhere.is_recent(neighbour.used_at, facts.now):
            finding = problem if neighbour.working else notice
            here = f"here it is {facts.directory} ({facts.directory_source})"
            yield finding(f"{_told(neighbour, facts)}; {here}: two locks", _mend(neighbour, facts))


def _told(neighbour: Neighbour, facts: Facts) -> str:
    words = [f"{neighbour.path} is another state directory ({neighbour.source})"]
    if neighbour.working:
        words.append(f"in use now by {named(neighbour.working)}")
    pointed = [row for row in neighbour.pointed if row not in neighbour.working]
    if pointed:
        words.append(f"in the environment of {named(pointed)}")
    if neighbour.used_at is not None:
        words.append(f"last used {duration_text(facts.now - neighbour.used_at)} ago")
    return ", ".join(words)


def _mend(neighbour: Neighbour, facts: Facts) -> str:
    """Return a look at it, or whose setting to change; never what ends a job or removes anything: it may be meant so."""
    if neighbour.pointed and not neighbour.working:
        is_default = facts.directory_source == DEFAULT
        return f"unset {tokens.STATE_DIR}" if is_default else quoted("export", f"{tokens.STATE_DIR}={facts.directory}")
    return quoted("maintlock", "status", "--state-dir", neighbour.path)
