from __future__ import annotations

import glob
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from maintlock.orchestrator.inbox import Inbox, Unread, read_times, unread_among
from tests.support import until

NOBODY = 65534


@given(times=st.lists(st.floats(0, 1e10)), since=st.none() | st.floats(0, 1e10))
def test_unread_is_what_changed_since(times: list[float], since: float | None) -> None:
    """Unread are the files that have changed since the last successful run began, all where there was none (R12)."""
    found = unread_among(times, since)
    expected = [at for at in times if since is None or at > since - 0.02]
    assert found == Unread(
        count=len(expected), oldest_at=min(expected, default=0.0), newest_at=max(expected, default=0.0)
    )


def read(inbox: Inbox, since: float | None) -> Unread:
    """Return what an inbox holds, once it has been gone through: after a look that took long it would rest for very long."""

    def look() -> Unread | None:
        inbox._rest_deadline = 0.0
        return inbox.read(since)

    found = until(look)
    assert isinstance(found, Unread)
    return found


def test_files_come_and_go(tmp_path: Path) -> None:
    """A new file is unread until a run that began after it has succeeded; a change makes it unread again (R12)."""
    inbox = Inbox(f"{tmp_path}/in/*.json")
    assert read(inbox, None).count == 0
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text("{}")
    (tmp_path / "in" / "other.txt").write_text("")
    assert read(inbox, None).count == 1
    since = (tmp_path / "in" / "a.json").stat().st_ctime + 1
    assert read(inbox, since).count == 0
    assert read(inbox, since - 2).count == 1


def test_a_time_that_a_program_wrote_is_not_believed(tmp_path: Path) -> None:
    """A file dated into the past is unread all the same, and one dated into the future is not unread for ever (R12)."""
    began = time.time()
    for name, at in (("past", 1.0), ("future", time.time() + 1e6)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (at, at))
    assert read(Inbox(f"{tmp_path}/*"), began - 5).count == 2
    assert read(Inbox(f"{tmp_path}/*"), time.time() + 5).count == 0


def test_a_file_from_before_the_clock_was_set_back(tmp_path: Path) -> None:
    """A file whose time is yet to come counts from when it was first met, so it is read once and not again and again."""
    (tmp_path / "one").write_text("")
    now = [time.time() - 86400]
    inbox = Inbox(f"{tmp_path}/*", lambda: now[0])
    assert read(inbox, now[0] - 100).count == 1
    now[0] += 10
    assert read(inbox, now[0]).count == 0


def test_many_files_do_not_hold_up_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inbox with many files is gone through in the background, and a pass waits for it only briefly."""
    for index in range(2_000):
        os.close(os.open(f"{tmp_path}/{index}", os.O_CREAT))
    go_on = threading.Event()

    def read_slowly(pattern: str) -> Iterator[float]:
        for place, at in enumerate(read_times(pattern)):
            if place == 1_000:
                go_on.wait(60)
            yield at

    monkeypatch.setattr("maintlock.orchestrator.inbox.read_times", read_slowly)
    inbox = Inbox(f"{tmp_path}/*")
    assert inbox.read(None) is None
    go_on.set()
    assert read(inbox, None).count == 2_000


def test_an_answer_to_another_question_is_none(tmp_path: Path) -> None:
    """What was unread before a run is not told as what is unread after it."""
    (tmp_path / "one").write_text("")
    inbox = Inbox(f"{tmp_path}/*")
    assert read(inbox, None).count == 1
    inbox._rest_deadline = time.monotonic() + 1000
    assert inbox.read(time.time() + 1) is None


NAMES = ("a.json", "b.txt", ".hidden.json", "in", "deep", ".dir")
PARTS = ("*", "*.json", "**", "in", "[a-d]*", ".*", "a.json", "?n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    files=st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), max_size=8),
    pattern=st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
)
@example(files=[["a.json"]], pattern=["a.json", "*"])
def test_patterns_are_those_of_glob(tmp_path: Path, files: list[list[str]], pattern: list[str]) -> None:
    """A pattern matches the files that it matches for `glob`; directories are no files, and a file is no inbox."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as place:
        for parts in files:
            path = Path(place, *parts)
            if not any(parent.is_file() for parent in [path, *path.parents]) and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        asked = f"{place}/{'/'.join(pattern)}"
        begin = Path(place, *itertools.takewhile(lambda part: not glob.has_magic(part), pattern[:-1]))
        if any(path.is_file() for path in (begin, *begin.parents)):  # of which glob says nothing
            with pytest.raises(NotADirectoryError):
                list(read_times(asked))
            return
        expected = {path for path in glob.glob(asked, recursive=True) if os.path.isfile(path)}
        assert (len(list(read_times(asked))) > 0) == bool(expected)
        if pattern.count("**") <= 1:
            assert len(list(read_times(asked))) == len(expected)


def test_a_symlink_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    """A symlink to a directory is entered where a pattern names it, and a loop of them holds nobody up."""
    (tmp_path / "in" / "new").mkdir(parents=True)
    (tmp_path / "in" / "new" / "a.json").touch()
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.json").symlink_to("nowhere")
    (tmp_path / "in" / "self.json").symlink_to("self.json")
    counts = [len(list(read_times(f"{tmp_path}/{pattern}"))) for pattern in ("in/**/*.json", "in/*/new/*.json", "in/*")]
    assert counts == [1, 1, 0]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Give a directory, and no more rights than its owner has: root may read everything."""
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid() != 0:
            yield Path(place)
            return
        os.chown(place, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(place)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("pattern", "unreadable", "mode"),
    [
        ("in/*.json", "in", 0),
        ("in/*.json", "in", 0o600),
        ("**/*.json", "in/sub", 0),
        ("**/*.json", "in/sub", 0o600),
        ("*/sub/*.json", "in/sub", 0o300),
        ("*/sub/*.json", "in", 0o600),
    ],
)
def test_what_may_not_be_read_is_told(unprivileged: Path, pattern: str, unreadable: str, mode: int) -> None:
    """A directory anywhere in an inbox that cannot be listed, or whose files cannot be looked at, is an error and not empty."""
    (unprivileged / "in" / "sub").mkdir(parents=True)
    for place in ("in", "in/sub"):
        (unprivileged / place / "a.json").touch()
    (unprivileged / unreadable).chmod(mode)
    try:
        with pytest.raises(PermissionError):
            list(read_times(f"{unprivileged}/{pattern}"))
    finally:
        (unprivileged / unreadable).chmod(0o700)
    assert list(read_times(f"{unprivileged}/{pattern}"))


@pytest.mark.parametrize("kind", ["loop", "file", "long"])
def test_what_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    """An inbox that cannot be read raises where it is asked for, each time, and no thread dies noisily."""
    if kind == "loop":
        (tmp_path / "in").symlink_to(tmp_path / "in")
    elif kind == "file":
        (tmp_path / "in").write_text("")
    pattern = f"{tmp_path}/{'x' * 300 if kind == 'long' else 'in'}/*"
    inbox = Inbox(pattern)
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            until(lambda: inbox.read(None) is not None)


def test_whatever_goes_wrong_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of any kind inside the reading is the asker's, and the next look may succeed."""
    monkeypatch.setattr("maintlock.orchestrator.inbox.read_times", lambda _: 1 / 0)
    inbox = Inbox(f"{tmp_path}/*")
    with pytest.raises(ZeroDivisionError):
        until(lambda: inbox.read(None) is not None)
    monkeypatch.undo()
    until(lambda: _read_again(inbox))


def _read_again(inbox: Inbox) -> Unread | None:
    try:
        return inbox.read(None)
    except ZeroDivisionError:
        return None


def test_a_dead_disk_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one look hangs, no second one is begun, and what was found before is still the answer."""
    hanging, entered = threading.Event(), []

    def hang(_pattern: str) -> list[float]:
        entered.append(1)
        hanging.wait(20)
        return []

    monkeypatch.setattr("maintlock.orchestrator.inbox.read_times", hang)
    inbox = Inbox("/nowhere/*")
    for _ in range(5):
        assert inbox.read(None, wait_seconds=0.001) is None
        until(lambda: entered, "the thread to run")
    assert len(entered) == 1
    hanging.set()
    until(lambda: inbox.read(None))


def test_a_hidden_directory_is_no_error(tmp_path: Path) -> None:
    """An inbox that does not exist is an empty one, whatever its pattern."""
    assert list(read_times(f"{tmp_path}/no/**/*.json")) == []
    assert list(read_times(f"{tmp_path}/no[a-z]/x")) == []
