from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maintlock import flock, ledger, pending
from maintlock.paths import PENDING_FILES
from tests.clock import Clock

ROOT = Path(pending.__file__).parents[1]
HEAVY_IMPORTS = "json re typing dataclasses pathlib contextlib datetime sqlite3 logging enum".split()


def event(number: int, **fields: object) -> dict[str, object]:
    """Return some event."""
    return {
        "id": f"e{number}",
        "event": "deferred",
        "at": "2026-05-16T19:36:21.072Z",
        "lease": "h",
        "task": "kb",
        **fields,
    }


def ids(directory: Path) -> list[str]:
    """Return the ids of the events that wait."""
    return [found["id"] for found in pending.read(str(directory))]


class Child:
    """A Python process that speaks in lines."""

    def __init__(self, code: str, *arguments: object, **options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def says(self) -> str:
        """Wait for its next line."""
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Send it a line."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Stop it, and wait until it is stopped."""
        self.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def cont(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Close its input, and wait for its exit code."""
        self.process.stdin.close()
        return self.process.wait()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Give `child(code, *arguments)`, whose processes end with the test."""
    children: list[Child] = []

    def start(code: str, *arguments: object) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield start
    for one in children:
        one.process.kill()
        one.process.wait()
        one.process.stdin.close()
        one.process.stdout.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that locks are waited for by: what a busy machine adds to that is nobody's fault."""
    found = Clock()
    monkeypatch.setattr(flock, "time", found)
    return found


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Fill a disk up to some bytes."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return ballast


DRAINER = """
import sys
from maintlock import pending
with pending.locked_for_drain(*sys.argv[1:]) as waiting:
    print("locked", flush=True)
    sys.stdin.readline()
    waiting.truncate()
print("done", flush=True)
"""


def test_read_returns_what_was_appended_in_order(tmp_path: Path) -> None:
    """Events are read back whole and in the order in which they were appended."""
    first, second = event(1, reason='ünï\n"code"\x00'), event(2, seconds=1.5, pid=None)
    assert pending.append(str(tmp_path), [first])
    assert pending.append(str(tmp_path), [second, event(3)])
    assert pending.read(str(tmp_path)) == [first, second, event(3)]


def test_append_of_nothing_leaves_no_file(tmp_path: Path) -> None:
    """To append no events does nothing, successfully."""
    assert pending.append(str(tmp_path), [])
    assert not pending.waiting(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """The pending file and the counter of dropped events have mode 0600."""
    before = os.umask(umask)
    try:
        assert pending.append(str(tmp_path), [event(1)])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / pending.PENDING).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / pending.DROPPED).stat().st_mode) & 0o077 == 0


HOSTILE = [
    b"not json",
    b"[1, 2]",
    b'"text"',
    b"{}",
    b'{"id": 1, "event": "deferred"}',
    b'{"id": "x", "event": null}',
    b'{"id": "x", "event": "deferred", "seconds": NaN}',
    b'{"id": "x", "event": "deferred", "pid": ' + b"9" * 6000 + b"}",
    b'{"id": "x", "event": "deferred", "reason": "' + b"a" * (1 << 20) + b'"}',
    b'{"id": "x", "event": "deferred", "reason": "\xff\xfe"}',
    b"\0" * 100,
    b"[" * 50_000,
    b'{"a":' * 12_000,
    b'{"id": "torn", "event": "defe',
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_lines_are_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    """A line that is no event is skipped by a reader, hides no other line, and is one bad line for the drain."""
    good = json.dumps(event(1)).encode(), json.dumps(event(2)).encode()
    (tmp_path / pending.PENDING).write_bytes(good[0] + b"\n" + line + b"\n\n \n" + good[1] + b"\n")
    assert ids(tmp_path) == ["e1", "e2"]
    with pending.locked_for_drain(str(tmp_path)) as waiting:
        assert [found["id"] for found in waiting.events] == ["e1", "e2"]
        assert waiting.bad_lines == 1


def test_append_after_a_torn_line_starts_a_new_one(tmp_path: Path) -> None:
    """A line that a full disk has torn swallows no later event."""
    (tmp_path / pending.PENDING).write_bytes(b'{"id": "torn", "ev')
    assert pending.append(str(tmp_path), [event(1)])
    assert ids(tmp_path) == ["e1"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "dangling"])
def test_what_is_no_regular_file_is_not_used(tmp_path: Path, kind: str) -> None:
    """A FIFO, directory or symlink in the file's place reads as empty, blocks nobody, and the loss is counted."""
    odd, target = tmp_path / pending.PENDING, tmp_path / "target"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "directory":
        odd.mkdir()
    else:
        if kind == "symlink":
            target.write_text(json.dumps(event(1)) + "\n")
        odd.symlink_to(target)
    assert pending.read(str(tmp_path)) == []
    assert not pending.append(str(tmp_path), [event(1), event(2)])
    assert pending.dropped(str(tmp_path)) == 2
    assert pending.waiting(str(tmp_path))
    with pytest.raises(OSError, match="regular|symbolic|directory|device"):
        pending.locked_for_drain(str(tmp_path))


def test_a_missing_directory_is_survived(tmp_path: Path) -> None:
    """Without a state directory appending says False, and reading finds nothing."""
    gone = str(tmp_path / "gone")
    assert not pending.append(gone, [event(1)])
    assert (pending.read(gone), pending.dropped(gone), pending.waiting(gone)) == ([], 0, [])


def test_events_that_cannot_be_json_are_dropped(tmp_path: Path) -> None:
    """A programming error in an event costs that event, never the job."""
    assert not pending.append(str(tmp_path), [event(1, reason=object())])
    assert pending.dropped(str(tmp_path)) == 1


def test_long_texts_are_cut_rather_than_dropped(tmp_path: Path) -> None:
    """An event whose texts are too long for a line is kept with shorter ones."""
    assert pending.append(str(tmp_path), [event(1, reason="ü" * (1 << 20))])
    assert pending.read(str(tmp_path)) == [event(1, reason="ü" * pending.MAX_TEXT)]


def test_beyond_its_bound_the_file_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 64 MiB, here less, events are counted as dropped, and what is there can still be read."""
    monkeypatch.setattr(pending, "MAX_BYTES", 1 << 20)
    pending.append(str(tmp_path), [event(1)])
    os.truncate(tmp_path / pending.PENDING, pending.MAX_BYTES + 1)
    assert not pending.append(str(tmp_path), [event(2), event(3)])
    assert pending.dropped(str(tmp_path)) == 2
    assert ids(tmp_path) == ["e1"]


def test_dropped_is_counted_in_place(tmp_path: Path) -> None:
    """The counter keeps its width and its inode, and nonsense in it counts as zero."""
    pending.append(str(tmp_path), [event(1)])
    counter = tmp_path / pending.DROPPED
    inode = counter.stat().st_ino
    for _ in range(3):
        pending.count_dropped(str(tmp_path), 4)
    assert (pending.dropped(str(tmp_path)), counter.stat().st_ino) == (12, inode)
    assert counter.read_bytes() == b"00000000000000000012\n"
    counter.write_bytes(b"-1_000")
    assert pending.dropped(str(tmp_path)) == 0


def test_concurrent_drops_are_all_counted(tmp_path: Path, child: Callable[..., Child]) -> None:
    """Several processes that drop events at once lose none of the count."""
    code = """
import sys
from maintlock import pending
pending.APPEND_LOCK_SECONDS = 60  # after that it counts without the lock
for _ in range(50): pending.count_dropped(sys.argv[1], 1)
"""
    children = [child(code, tmp_path) for _ in range(4)]
    assert [one.end() for one in children] == [0] * 4
    assert pending.dropped(str(tmp_path)) == 200


def test_a_stopped_drain_delays_an_append_only_briefly_and_loses_nothing(
    tmp_path: Path, child: Callable[..., Child], clock: Clock
) -> None:
    """While a drain is stopped under its lock, events go to the next file, also later, until that one has been drained."""
    pending.append(str(tmp_path), [event(1)])
    drainer = child(DRAINER, tmp_path)
    assert drainer.says() == "locked"
    drainer.stop()
    assert pending.append(str(tmp_path), [event(2)])
    assert 0 < clock.now < 0.35
    assert ids(tmp_path) == ["e1", "e2"]
    drainer.cont()
    drainer.go_on()
    assert drainer.says() == "done"
    assert pending.append(str(tmp_path), [event(3)])
    assert ids(tmp_path) == ["e2", "e3"]
    assert pending.waiting(str(tmp_path)) == [PENDING_FILES[1]]
    with pending.locked_for_drain(str(tmp_path), PENDING_FILES[1]) as waiting:
        waiting.truncate()
    assert pending.append(str(tmp_path), [event(4)])
    assert pending.waiting(str(tmp_path)) == [pending.PENDING]


def drain_every_file(directory: Path, child: Callable[..., Child], *, stopped: int) -> Child:
    """Have each file, with an event in it, locked by a drain, of which the first so many are stopped; return the last drain."""
    for number, name in enumerate(PENDING_FILES):
        assert pending.append(str(directory), [event(number)])
        drainer = child(DRAINER, directory, name)
        assert drainer.says() == "locked"
        if number < stopped:
            drainer.stop()
    return drainer


def test_with_every_file_in_a_stopped_drain_the_loss_is_counted(
    tmp_path: Path, child: Callable[..., Child], clock: Clock
) -> None:
    """When each file is locked by a drain that is stopped, an event is dropped and counted, within a second."""
    drain_every_file(tmp_path, child, stopped=len(PENDING_FILES))
    before = clock.now
    assert not pending.append(str(tmp_path), [event(9)])
    assert 0 < clock.now - before < 0.95
    before = clock.now
    assert not pending.append(str(tmp_path), [event(10)])
    assert clock.now == before  # having waited in vain once is enough
    assert pending.dropped(str(tmp_path)) == 2
    assert ids(tmp_path) == ["e0", "e1", "e2", "e3"]


def test_the_last_file_is_waited_for_longer_than_a_drain_waits_for_the_database(
    tmp_path: Path, child: Callable[..., Child], clock: Clock
) -> None:
    """With no file left to go to, an event has the patience that a drain has under its lock, and is not dropped."""
    drainer = drain_every_file(tmp_path, child, stopped=len(PENDING_FILES) - 1)
    before = clock.now

    def look() -> None:
        if clock.now - before <= ledger.BUSY_SECONDS:
            clock.at_sleep[1] = look
        else:
            drainer.go_on()
            assert drainer.says() == "done"

    clock.at_sleep[1] = look
    assert pending.append(str(tmp_path), [event(9)])
    assert pending.dropped(str(tmp_path)) == 0
    assert ids(tmp_path) == ["e0", "e1", "e2", "e9"]


def test_a_drain_leaves_an_empty_file(tmp_path: Path) -> None:
    """A drain empties the file, and gives its lock back."""
    pending.append(str(tmp_path), [event(1)])
    with pending.locked_for_drain(str(tmp_path)) as waiting:
        waiting.truncate()
    assert not pending.waiting(str(tmp_path))
    with pending.locked_for_drain(str(tmp_path), seconds=0):
        pass


def test_a_second_drain_gives_up_in_time(tmp_path: Path, clock: Clock) -> None:
    """Who cannot have the exclusive lock is told so after the time it gave."""
    pending.append(str(tmp_path), [event(1)])
    with pending.locked_for_drain(str(tmp_path)):
        with pytest.raises(TimeoutError):
            pending.locked_for_drain(str(tmp_path), seconds=0.05)
        assert 0.05 <= clock.now < 0.1


def test_reading_takes_no_lock(tmp_path: Path) -> None:
    """A reader is not held up by a drain, nor a drain by a reader."""
    pending.append(str(tmp_path), [event(1)])
    with pending.locked_for_drain(str(tmp_path)):
        assert ids(tmp_path) == ["e1"]


def test_a_full_disk_tears_no_other_line_and_is_counted(tmp_path: Path, tiny_disk: Path) -> None:
    """On a full disk events are counted as dropped, in place, and those before and after it are whole."""
    directory = str(tiny_disk)
    assert pending.append(directory, [event(1)])
    ballast = fill(tiny_disk)
    many = [event(number) for number in range(100, 200)]
    assert not pending.append(directory, many)
    whole = ids(tiny_disk)
    ballast.unlink()
    assert pending.append(directory, [event(2)])
    assert ids(tiny_disk) == [*whole, "e2"]
    with pending.locked_for_drain(directory) as waiting:
        assert len(whole) - 1 + waiting.bad_lines + pending.dropped(directory) == len(many)
        assert pending.dropped(directory) > 0


def test_closed_standard_descriptors_stay_closed(tmp_path: Path) -> None:
    """With stdin closed no descriptor of ours takes its place, where the job would inherit it."""
    code = f"""
import os, sys
from maintlock import flock, ledger, pending
real = flock.lock_within
def spy(fd, **options):
    assert fd >= 3, fd
    try: os.fstat(0)
    except OSError: return real(fd, **options)
    raise AssertionError("0 is open")
flock.lock_within = spy
ok = pending.append({str(tmp_path)!r}, [dict(id="a", event="deferred")])
sys.exit(0 if ok and len(pending.read({str(tmp_path)!r})) == 1 else 1)
"""
    shell = 'exec "$0" -c "$1" <&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """Appending, reading, draining and failing leave no descriptor open."""
    (tmp_path / "odd" / pending.PENDING).mkdir(parents=True)
    gc.collect()  # what other tests have left to it, or it may be closed just now
    before = set(os.listdir("/dev/fd"))
    for directory in (str(tmp_path), str(tmp_path / "odd")):
        pending.append(directory, [event(1)])
        pending.read(directory)
        pending.dropped(directory)
        try:
            with pending.locked_for_drain(directory):
                pass
        except OSError:
            pass
    assert set(os.listdir("/dev/fd")) == before


def test_without_a_working_flock_events_are_still_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot lock, appending goes on and draining says so."""

    def fails(fd: int, **_: object) -> bool:
        raise flock.UnavailableError("cannot lock")

    monkeypatch.setattr(flock, "lock_within", fails)
    assert pending.append(str(tmp_path), [event(1)])
    assert ids(tmp_path) == ["e1"]
    with pytest.raises(OSError, match="drained"):
        pending.locked_for_drain(str(tmp_path))


def test_importing_it_costs_a_guarded_job_nothing_heavy() -> None:
    """Appending imports none of the modules that a job's start would wait for."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from maintlock import pending
pending.append("/nonexistent", [dict(id="a", event="deferred")])
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY_IMPORTS) & set(done.stdout.split())
