"""The line inside the lock file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import line
from maintlock.model import Line, ProcessIdentity, replace

NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
TASK = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,63}", fullmatch=True)
NUMBER = st.integers(0, 2**53)
MILLISECONDS = st.integers(0, 253_402_300_799_999)
IDENTITY = st.builds(
    ProcessIdentity,
    pid=st.integers(0, 2**22),
    start_ticks=st.integers(0, 2**53),
    boot_id=st.uuids().map(str) | st.just(""),
    pid_namespace=st.integers(1, 2**32).map(str) | st.just(""),
)
LINE = st.builds(
    Line,
    fence=NUMBER,
    lease_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    task=TASK,
    source=st.sampled_from(["npm", "orchestrator", "library", "cli"]),
    session_id=st.integers(0, 2**22),
    hold_until=st.sampled_from(["session", "main", "tree"]),
    mode=st.sampled_from(["supervised", "exec", "library", "coprocess"]),
    identity=IDENTITY,
    started_at=MILLISECONDS.map(lambda ms: ms / 1000),
    group=st.integers(0, 2**22),
    outcome=st.sampled_from(["", "completed", "failed", "timed_out", "stopped", "unknown"]),
    exit_code=st.none() | st.integers(0, 255),
    ended_at=st.none() | MILLISECONDS.map(lambda ms: ms / 1000),
)
EXAMPLE = Line(
    fence=3,
    lease_id="ab" * 16,
    task="ai:sync-kb",
    source="npm",
    session_id=77,
    hold_until="session",
    mode="supervised",
    identity=ProcessIdentity(pid=4242, start_ticks=991, boot_id="b-1", pid_namespace="4026531836"),
    started_at=1779000000.125,
)


def forged(*fields: object) -> bytes:
    """Return a record of any fields with a checksum that is right."""
    body = " ".join(map(str, fields))
    return f"{line.MAGIC} {line.checksum(body)} {body}".encode().ljust(line.WIDTH - 1)[: line.WIDTH - 1] + b"\n"


@given(LINE)
def test_a_line_comes_back_as_it_was_written(written: Line) -> None:
    """Every record that we write has one width below 512 bytes and reads as what it was, times to the millisecond."""
    content = line.encoded(written)
    assert len(content) == line.WIDTH < 512
    assert content.endswith(b"\n") and content.isascii()
    assert line.decoded(content) == written


@given(st.binary(max_size=2 * line.WIDTH))
def test_no_bytes_can_make_a_reader_fail(content: bytes) -> None:
    """Bytes that we did not write read as an empty line."""
    assert line.decoded(content) is None


@given(LINE, st.integers(0, line.WIDTH - 1), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(written: Line, place: int, flip: int) -> None:
    """A record with one byte changed reads as empty, or, where only padding changed, as it was."""
    content = bytearray(line.encoded(written))
    content[place] ^= flip
    assert line.decoded(bytes(content)) in {None, written}


@given(LINE, LINE, st.integers(0, line.WIDTH))
def test_a_torn_line_is_empty(before: Line, after: Line, place: int) -> None:
    """A record that a power cut tore reads as the one before, the one after, or empty; never as a mixture."""
    torn = line.encoded(after)[:place] + line.encoded(before)[place:]
    assert line.decoded(torn) in {None, before, after}


@given(LINE, st.integers(0, line.WIDTH - 1))
def test_a_short_line_is_empty(written: Line, width: int) -> None:
    """A record that the disk had no room for reads as empty."""
    assert line.decoded(line.encoded(written)[:width]) is None


@given(st.lists(st.integers(-(10**60), 10**60) | NAME | st.just("-"), min_size=16, max_size=16))
def test_a_forged_line_cannot_make_a_reader_fail(fields: list[object]) -> None:
    """Fields of any kind under a right checksum read as a whole record or as none, and what reads can be written again."""
    found = line.decoded(forged(*fields))
    assert found is None or line.decoded(line.encoded(found)) == found


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, -1),
        (0, 10**30),
        (0, "-"),
        (1, "a/b"),
        (2, "x;y"),
        (7, -5),
        (8, 10**40),
        (11, 10**300),
        (12, -1),
        (14, "z"),
        (15, -1),
    ],
)
def test_impossible_fields_make_a_line_empty(place: int, value: object) -> None:
    """Numbers and names that we would never write read as an empty line, not as an error."""
    fields = line.encoded(EXAMPLE).decode().split()[2:]
    assert line.decoded(forged(*fields)) == EXAMPLE
    fields[place] = str(value)
    assert line.decoded(forged(*fields)) is None


def test_a_field_that_does_not_fit_is_refused() -> None:
    """A record is never written cut off."""
    with pytest.raises(ValueError, match="too long"):
        line.encoded(replace(EXAMPLE, source="s" * 400))


def test_writing_is_in_place(tmp_path: Path) -> None:
    """The record is rewritten in the file that is there, whose size stays."""
    path = tmp_path / "x.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for fence in (1, 2):
            line.write(fd, replace(EXAMPLE, fence=fence))
            assert line.read(fd) == replace(EXAMPLE, fence=fence)
            assert os.fstat(fd).st_size == line.WIDTH
    finally:
        os.close(fd)
    assert line.read_path(str(path)) == replace(EXAMPLE, fence=2)


def test_a_reader_meets_what_is_no_lock_file(tmp_path: Path) -> None:
    """A missing file, a directory, a symlink and a FIFO read as no record, at once."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_bytes(line.encoded(EXAMPLE))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "directory", "link", "fifo"):
        assert line.read_path(str(tmp_path / name)) is None


def test_a_line_that_fits_only_partly_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk has cut short fails with a reason that can be told."""
    monkeypatch.setattr(os, "pwrite", lambda *_: line.WIDTH - 1)
    with pytest.raises(OSError, match="No space left on device"):
        line.write(0, EXAMPLE)
