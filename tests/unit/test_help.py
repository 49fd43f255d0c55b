"""`--help`: all subcommands explain themselves in the same form."""

from __future__ import annotations

import re

import pytest

from maintlock.cli import COMMANDS, PROGRAMS, main

OTHER_HEADINGS = re.compile(
    r"^(usage|options|positional arguments|examples?|exit codes|states)\b|^Examples:", re.MULTILINE
)


@pytest.mark.parametrize("name", [*PROGRAMS, *COMMANDS])
def test_help_has_one_form(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each help begins with the usage, has examples, fits into 80 columns, and writes its headings in one way."""
    assert main([name, "--help"]) == 0
    told = capfd.readouterr().out
    assert told.startswith("Usage: maintlock")
    assert "\nExamples\n  " in told
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert OTHER_HEADINGS.findall(told) == []


def test_states_are_explained(capfd: pytest.CaptureFixture[str]) -> None:
    """What a state of a task means stands beside it."""
    main(["tasks", "--help"])
    rows = re.findall(r"^  (\w+)  +\w.+$", capfd.readouterr().out, re.MULTILINE)
    assert {*"running starved failing overdue deferred resting idle".split()} <= set(rows)
