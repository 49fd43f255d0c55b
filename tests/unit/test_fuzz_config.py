"""Configurations of any content: settings within their bounds, or what is wrong with file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintlock import config, schema
from maintlock.errors import ConfigError
from maintlock.names import is_lease_name, is_task_name

EXAMPLE = b"""\
poll_interval = "3s"
history = "90d"
[lease.heavy-maintenance]
ttl = "6h"
[tasks.kbSync]
command = ["npm", "run", "ai:sync-kb"]
npm_script = "ai:sync-kb"
interval = "30m"
env = { A = "b" }
[repo_sync]
roots = ["../neo"]
then = "kbSync"
[daemons.chroma]
command = ["chroma", "run"]
cooldown = "15s"
"""
LIKELY = st.sampled_from(
    [
        "3s",
        "90d",
        "forever",
        "-1",
        "10m",
        "0",
        "1e9",
        "~",
        "~/x",
        "~root/x",
        "/x",
        "../x",
        "a/b",
        "kbSync",
        "a:b",
        "",
        "\0",
    ]
)
NAMES = st.sampled_from(["kbSync", "backup", "a:b", "heavy-maintenance", "x y", "", "\x1b[31m", "a" * 65]) | st.text(
    max_size=5
)
VALUES = st.recursive(
    LIKELY | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def written(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return {"Infinity": "inf", "-Infinity": "-inf"}.get(json.dumps(value), "nan")
    return json.dumps(value)


def table(known: list[str]) -> st.SearchStrategy[dict[str, object]]:
    """Return tables that have some of the known keys, and now and then another one."""
    return st.dictionaries(st.sampled_from([*known, *known, "unknown"]) | NAMES, VALUES, max_size=4)


DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "state_dir": VALUES, "poll_interval": VALUES, "starved_after": VALUES, "history": VALUES, "odd": VALUES,
        "lease": VALUES | st.dictionaries(NAMES, table([*schema.LEASE]), max_size=2),
        "tasks": VALUES | st.dictionaries(NAMES, table([*schema.TASK]), max_size=3),
        "daemons": VALUES | st.dictionaries(NAMES, table([*schema.DAEMON]), max_size=2),
        "repo_sync": VALUES | table([*schema.REPO_SYNC]),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the place of a configuration."""
    return tmp_path_factory.mktemp("fuzz") / "maintlock.toml"


def check(file: Path, content: bytes) -> None:
    """Load a configuration, which has what it promises, or is refused with one line for each fault."""
    file.write_bytes(content)
    file.chmod(0o600)
    try:
        loaded = config.load(str(file))
    except ConfigError as error:
        lines = str(error).split("\n")
        assert len(lines) <= config.MAX_FAULTS + 1
        for line in lines:
            assert line.startswith(str(file)) and line.isprintable() and len(line) < 1000, line
        return
    assert 0 < loaded.poll_interval < math.inf and 0 <= loaded.starved_after < math.inf
    assert loaded.history is None or 0 < loaded.history < math.inf
    assert all(is_lease_name(name) and found.ttl > 0 for name, found in loaded.leases.items())
    for name, task in loaded.tasks.items():
        assert is_task_name(name) and is_lease_name(task.lease)
        assert task.command is None or (task.command[0] and "\0" not in "".join(task.command))
        assert 0 <= task.interval < math.inf and 0 <= task.rest_seconds < math.inf
        assert task.wait is None or task.wait >= 0
        assert task.defer_exit_code is None or 0 <= task.defer_exit_code <= 255
        assert task.match is None or "/" not in task.match
        assert not [key for key in task.env if key.startswith("MAINTLOCK_")]
    assert all(daemon.command for daemon in loaded.daemons.values())
    assert loaded.repo_sync is None or loaded.repo_sync.then in {None, *loaded.tasks}


@settings(max_examples=150)
@given(DOCUMENT)
def test_any_document_is_settings_or_faults(file: Path, document: dict[str, object]) -> None:
    """Whatever stands under whatever key, settings are within their bounds, or each fault is a line with file and key."""
    content = "\n".join(f"{name} = {written(value)}" for name, value in document.items())
    check(file, content.encode("utf-8", "surrogatepass"))


@given(st.integers(0, len(EXAMPLE)), st.integers(0, 8), st.binary(max_size=8))
def test_any_slip_of_the_keyboard_is_told(file: Path, place: int, gone: int, typed: bytes) -> None:
    """With any bytes of a good configuration replaced, it means something, or says what is wrong with it."""
    check(file, EXAMPLE[:place] + typed + EXAMPLE[place + gone :])


@settings(max_examples=50)
@given(st.binary(max_size=80) | st.text(alphabet="[]{}=\"'.\n #a1\\", max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_faults(file: Path, content: bytes) -> None:
    """Bytes of any kind are no configuration, or one; never an error that is none of ours."""
    check(file, content)
