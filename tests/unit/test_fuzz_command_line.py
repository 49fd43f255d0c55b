"""Command lines and environments of any words: what is meant, or an error of ours in one printable line."""

from __future__ import annotations

import contextlib
import io
import math
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintlock import cli, config, options, paths, redact, tokens
from maintlock.command import parsed
from maintlock.errors import MaintlockError, UsageError
from maintlock.program import Wish
from maintlock.voice import Voice

# What a command line can hold: no NUL, and bytes that are no UTF-8 as lone surrogates.
WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10) | st.binary(
    max_size=6
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
SAID = st.sampled_from(
    [*(f"--{name}" for name in options.WITH_VALUE), *(f"--{name}" for name in options.FLAGS)]
    + [f"-{letter}" for letter in options.SHORT]
    + ["--", "10m", "forever", "1e9", "-1", "npm", "kbSync", "--wait=5", "-E9", "-nFo", "x"]
)
LINE = st.lists(SAID | WORD, max_size=8)
OF_COMMANDS = st.sampled_from(
    "--json --watch --exit-code --interval --lease --state-dir --config --task --event --since --limit --help --yes --grace"
    " --after --list --undo --shim --package-json --print -h bash zsh 3 2h deferred kbSync a=b a:b=c -- = x".split()
)
COMMANDS = sorted(cli.COMMANDS)


@given(LINE)
def test_options_are_within_their_bounds(argv: list[str]) -> None:
    """Whatever is said, what is understood of it is a number, a name or a text that can be stored, or a usage error (R3)."""
    said, trouble = options.Options(), ""
    try:
        said = options.parse(argv)
    except UsageError as error:
        trouble = str(error)
        said.command = []
    assert trouble.isprintable() and len(trouble) < 400
    for seconds in (said.max_runtime, said.ttl):
        assert seconds is None or 0 < seconds < math.inf
    assert said.wait is None or said.wait >= 0
    assert said.defer_exit_code is None or 0 <= said.defer_exit_code <= 255
    for text in (said.owner, said.reason):
        (text or "").encode("utf-8")
    assert said.command == argv[len(argv) - len(said.command) :]


@given(st.sampled_from(COMMANDS), st.lists(OF_COMMANDS | WORD, max_size=5))
def test_any_command_line_of_a_subcommand(name: str, argv: list[str]) -> None:
    """Each subcommand understands its words, prints its help, or says in a usage error what it does not understand."""
    command = cli.found(cli.COMMANDS[name][0])
    with contextlib.redirect_stdout(io.StringIO()):
        code = None
        try:
            parsed(name, command, argv)
        except UsageError as error:
            code = error.exit_code
        except SystemExit as end:
            code = end.code
    assert code in {None, 0, 64}


@settings(max_examples=60)
@given(st.lists(WORD | st.sampled_from(["--help", "--version", "status", "no-such", "guard", "-q"]), max_size=1), LINE)
def test_the_edge_of_maintlock(first: list[str], rest: list[str]) -> None:
    """A first word that is no command of ours ends in 0 or 64, and what is said on standard error steers no terminal."""
    if first and first[0] in {*cli.PROGRAMS, *cli.COMMANDS}:
        rest = ["--no-such-option\x1b[31m"]
        first = [name for name in first if name in cli.COMMANDS]
    told: list[str] = []
    with contextlib.redirect_stdout(io.StringIO()), mock.patch("maintlock.voice.write_stderr", told.append):
        code = cli.main([*first, *rest])
    assert code in {0, 64}
    for text in told:
        line = text.removesuffix("\n")
        assert redact.printable(line, 10**6) == line


VALUE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ENVIRON = st.dictionaries(
    st.sampled_from(
        [
            *("MAINTLOCK_DEFER_EXIT_CODE", "MAINTLOCK_HELD", "MAINTLOCK_STATE_DIR", "MAINTLOCK_TASK", "MAINTLOCK_FD"),
            *("npm_lifecycle_event", "npm_execpath", "XDG_STATE_HOME", "HOME", "MAINTLOCK_LEASE_ID"),
        ]
    ),
    VALUE | st.sampled_from(["0", "255", "256", "-1", "١", "heavy-maintenance:ab:1", "a:b:c d:e:9", "~", "/", "none"]),
)


@given(ENVIRON, LINE)
def test_any_environment_is_a_wish_or_an_error_of_ours(environ: dict[str, str], argv: list[str]) -> None:
    """Whatever stands in `MAINTLOCK_*` and npm's variables, a request is made of it, or an error of ours in one line."""
    trouble = ""
    try:
        said = options.parse(argv)
        said.config = "none"
        wish = Wish(said, environ, Voice())
        assert 0 <= wish.defer_exit_code() <= 255
        request = wish.request(mode="supervised")
        assert request.task and request.owner
        request.owner.encode("utf-8")
        directory = paths.state_directory(said.state_dir, environ, None)
        assert os.path.isabs(directory)
        places = paths.Places(directory=directory, lease=wish.lease)
        tokens.innermost(environ, places.directory, 1, lease=places.lease)
    except MaintlockError as error:
        trouble = str(error)
    assert trouble.isprintable()


@settings(max_examples=40)
@given(name=VALUE | WORD)
def test_any_configuration_in_the_environment(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Whatever `MAINTLOCK_CONFIG` names, a file is found, none is, or an error of ours says so in one line."""
    directory: Path = tmp_path_factory.getbasetemp()
    trouble = ""
    try:
        found = config.find(None, {config.VARIABLE: name}, str(directory))
        if found is not None:
            config.load(found)
    except MaintlockError as error:
        trouble = str(error)
    assert trouble.isprintable()
