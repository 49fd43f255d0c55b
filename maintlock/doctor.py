"""`maintlock doctor`: what is wrong here, and the command that mends it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import TYPE_CHECKING

from maintlock import paths
from maintlock.checkup.facts import Facts
from maintlock.checkup.table import examined
from maintlock.command import Command, add_places
from maintlock.model import record
from maintlock.redact import printable

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Sequence

    from maintlock.checkup.finding import Finding

MAX_TEXT = 4000
MIN_WIDTH, MAX_WIDTH = 40, 100
WIDTH_FOR_PROGRAMS = 80


@record(frozen=True, kw_only=True)
class Group:
    """How the findings of one level are shown."""

    level: str
    mark: str
    heading: str
    style: str


GROUPS = (
    Group(level="problem", mark="✗", heading="wrong", style="31"),
    Group(level="notice", mark="!", heading="notices", style="33"),
    Group(level="ok", mark="✓", heading="in order", style="32"),
)


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings for programs: one JSON object on one line."""
    rows = [{"check": one.check, "level": one.level, "text": one.text, "mend": one.mend} for one in findings]
    return json.dumps({"ok": is_well(findings), "findings": rows}) + "\n"


def is_well(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing is wrong."""
    return all(one.level != "problem" for one in findings)


def as_text(findings: Sequence[Finding], *, width: int, is_colored: bool) -> str:
    """Return the findings for people, what is wrong first; commands stand on lines of their own, whole."""
    lines: list[str] = []
    for group in GROUPS:
        found = [one for one in findings if one.level == group.level]
        if found:
            mark = f"\x1b[{group.style}m{group.mark}\x1b[0m" if is_colored else group.mark
            lines += [f"{mark} {group.heading}", *[line for one in found for line in _lines(one, width)], ""]
    return "\n".join([*lines, _summary(findings)]) + "\n"


def _lines(finding: Finding, width: int) -> Iterable[str]:
    first = f"  {finding.check}: "
    text = printable(finding.text, MAX_TEXT)
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
    )
    if finding.mend is not None and finding.level != "ok":
        yield f"      → {printable(finding.mend, MAX_TEXT)}"


def _summary(findings: Sequence[Finding]) -> str:
    problems = sum(one.level == "problem" for one in findings)
    notices = sum(one.level == "notice" for one in findings)
    told = "nothing is wrong" if not problems else f"{problems} thing{'' if problems == 1 else 's'} wrong"
    return f"{told}, {notices} notice{'' if notices == 1 else 's'}" if notices else told


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    add_places(parser, lease_help="look at this lease only (all that were used here)")


def _run(said: Namespace) -> int:
    facts = Facts(
        state_dir=said.state_dir,
        config_file=said.config,
        lease=said.lease,
        environ=os.environ,
        cwd=paths.working_directory(),
    )
    findings = examined(facts)
    if said.json:
        sys.stdout.write(as_json(findings))
    else:
        sys.stdout.write(as_text(findings, width=_width(), is_colored=_is_colored()))
    return 0 if is_well(findings) else 1


def _width() -> int:
    try:
        return max(MIN_WIDTH, min(MAX_WIDTH, os.get_terminal_size(sys.stdout.fileno()).columns))
    except (OSError, ValueError):
        return WIDTH_FOR_PROGRAMS


def _is_colored() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"


DOCTOR = Command(
    description="Show what is wrong with the lease, its files and its surroundings, with the command that mends it.",
    epilog="""\
It takes no lock, and creates nothing except SQLite's -shm and -wal files.

Exit codes: 0 nothing is wrong; 1 something is.

Examples
  maintlock doctor
  maintlock doctor --json | jq -r '.findings[].mend | values'
""",
    add_arguments=_arguments,
    run=_run,
)
