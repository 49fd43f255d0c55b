"""Names of leases and tasks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import names

LEASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
TASK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,63}")
NAMELIKE = st.text(alphabet="aZ0_.-:/ ü\n\0", max_size=70) | st.text(max_size=70)


@pytest.mark.parametrize("name", ["a", "_", "0", "heavy-maintenance", "a.lock", "A_b-c.d", "x" * 64])
def test_names_of_leases_and_tasks(name: str) -> None:
    """A lease's name can also name a task."""
    assert names.is_lease_name(name)
    assert names.is_task_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "..", ":a", ":", "a/b", "a b", "a\n", "a\0", "ä", "\u0661", "x" * 65])
def test_what_names_neither(name: str) -> None:
    """A name that could leave its directory, look like an option or break a line names nothing."""
    assert not names.is_lease_name(name)
    assert not names.is_task_name(name)


def test_the_orchestrators_name_is_no_leases() -> None:
    """A lease called `orchestrator` would have the orchestrator's own files; a task may be called so (L11)."""
    assert not names.is_lease_name("orchestrator")
    assert names.is_task_name("orchestrator")


@given(st.from_regex(TASK, fullmatch=True))
def test_every_task_can_have_a_lease_to_itself(task: str) -> None:
    """A task that is not heavy has a lease of its own, which is none of the usual names (L14)."""
    own = names.own_lease(task)
    assert names.is_lease_name(own)
    assert own.endswith(".task")


@pytest.mark.parametrize("name", ["ai:sync-kb", "a:", "a::b"])
def test_only_a_task_may_have_a_colon(name: str) -> None:
    """A task may be called like an npm script with colons, a lease may not."""
    assert names.is_task_name(name)
    assert not names.is_lease_name(name)


@given(NAMELIKE)
def test_names_are_what_the_documented_patterns_match(name: str) -> None:
    """A name is one exactly if the documented regular expression matches the whole of it."""
    assert names.is_lease_name(name) == (LEASE.fullmatch(name) is not None and name != "orchestrator")
    assert names.is_task_name(name) == (TASK.fullmatch(name) is not None)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("ai:sync-kb", "ai:sync-kb"),
        ("build", "build"),
        ("my script", "my-script"),
        ("a/b@c", "a-b-c"),
        ("prüfen", "pr-fen"),
        ("a\nb\0c", "a-b-c"),
        ("@scope", "_-scope"),
        ("-x", "_-x"),
        (":x", "_:x"),
        ("", ""),
        ("x" * 80, "x" * 64),
        ("-" * 80, "_" + "-" * 63),
    ],
)
def test_task_names_from_npm(script: str, expected: str) -> None:
    """What a task's name cannot have becomes `-`; what it cannot begin with gets a `_` before it."""
    assert names.task_from_npm(script) == expected


@given(st.text(min_size=1))
def test_every_npm_script_gives_a_task_name(script: str) -> None:
    """Any script but the empty one has a task name, and a task's name stays as it is."""
    name = names.task_from_npm(script)
    assert names.is_task_name(name)
    assert names.task_from_npm(name) == name


def test_the_default_lease_has_a_lease_name() -> None:
    """The default is a name itself."""
    assert names.is_lease_name(names.DEFAULT_LEASE)
