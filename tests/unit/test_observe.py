from __future__ import annotations

import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from maintlock import custody, entries, ledger, line, locktable, observe, pending, process, sidecar, tables
from maintlock.errors import RefusedError, UnavailableError
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.paths import Places
from maintlock.report import Status
from maintlock.times import epoch_seconds, rfc3339

NOW = 1_780_000_000.0
LEASE = "heavy-maintenance"
HOSTILE = "\x1b[2J\r\nmaintlock: free\x07 [red]\u202e\udc80"
NO_PROCESS = 4_194_304  # one more than the kernel ever gives


class Here:
    """A state directory whose holder, if any, is the test's own process."""

    def __init__(self, directory: Path) -> None:
        self.places = Places(directory=str(directory), lease=LEASE)
        self.fds: list[int] = []
        self.line = Line(
            fence=7,
            lease_id="a1b2",
            task="kbSync",
            source="cli",
            session_id=os.getsid(0),
            hold_until="session",
            mode="library",
            identity=process.read_identity(os.getpid()),
            started_at=NOW - 190,
        )

    def lock(self) -> int:
        """Take the kernel's lock."""
        fd = os.open(self.places.lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self.fds.append(fd)
        return fd

    def write_line(self, **changes: Any) -> None:
        """Put a grant into the lock file, ours unless changed."""
        self.line = replace(self.line, **changes)
        fd = os.open(self.places.lock, os.O_RDWR | os.O_CREAT, 0o600)
        line.write(fd, self.line)
        os.close(fd)

    def fields(self, **changes: Any) -> dict[str, Any]:
        """Return a sidecar, that of our grant unless changed."""
        identity = self.line.identity
        return {
            "lease": LEASE, "lease_id": self.line.lease_id, "fence": self.line.fence, "task": self.line.task,
            "owner": "alice@laptop", "source": "cli", "reason": "manual", "mode": "library", "pid": identity.pid,
            "pid_started_at": rfc3339(NOW - 200), "pid_start_ticks": identity.start_ticks, "boot_id": identity.boot_id,
            "pid_namespace": identity.pid_namespace, "session_id": self.line.session_id, "hostname": "laptop", "uid": 0,
            "job_pid": None, "job_started_at": None, "command": ["node", "sync.mjs"], "cwd": "/", "waited_seconds": 0.5,
            "acquired_at": rfc3339(NOW - 190), "ttl_seconds": 21600.0, **changes,
        }  # fmt: skip

    def write_sidecar(self, **changes: Any) -> None:
        """Put a sidecar there."""
        sidecar.write(self.places.sidecar, self.fields(**changes))

    def hold(self, **changes: Any) -> None:
        """Hold the lease, on record."""
        self.lock()
        self.write_line()
        self.write_sidecar(**changes)

    def status(self) -> Status:
        """Return what is seen."""
        return observe.read_status(self.places, NOW)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """Give a state directory of the test's own."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    found = Here(directory)
    yield found
    for fd in found.fds:
        os.close(fd)


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the kernel's own view away, as on macOS; psutil stays."""
    monkeypatch.setattr(process, "PROC", "/nonexistent")
    monkeypatch.setattr(process, "_constants", {})
    return


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local time be UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def dead() -> ProcessIdentity:
    """Return a process of this boot that is no more."""
    return replace(process.read_identity(os.getpid()), pid=NO_PROCESS)


def test_nothing_there_is_free_and_stays_nothing(tmp_path: Path) -> None:
    """Where there is no state directory the lease is free, the path is named, and nothing is made (R10, L9)."""
    places = Places(directory=str(tmp_path / "none"), lease=LEASE)
    found = observe.read_status(places, NOW)
    assert found == {
        "lease": LEASE, "state": "free", "backend": "flock", "scope": "user", "path": places.lock, "holder": None,
        "sidecar": "missing", "detail": None, "waiters": [], "nested": [], "collisions": [],
    }  # fmt: skip
    assert observe.read_history(places.directory) == []
    assert list(tmp_path.iterdir()) == []


def test_held_by_a_living_process(here: Here) -> None:
    """A living holder with the lock is held, with all of its sidecar and what is seen of it (R2, R10)."""
    here.hold()
    found = here.status()
    holder = found["holder"]
    assert (found["state"], found["sidecar"], found["detail"]) == ("held", "valid", None)
    assert holder is not None
    assert set(observe.SIDECAR_FIELDS) <= set(holder)
    assert (holder["alive"], holder["stopped"], holder["overdue"], holder["held_seconds"]) == (
        True,
        False,
        False,
        190.0,
    )
    assert os.getpid() in [row["pid"] for row in holder["processes"]]
    assert holder["rss_bytes"] == sum(row["rss_bytes"] or 0 for row in holder["processes"]) > 0
    assert json.loads(json.dumps(found)) == found


def test_overdue_is_told_and_changes_nothing_else(here: Here) -> None:
    """Past its TTL a holder is overdue, and still holds (L1, L4)."""
    here.hold(ttl_seconds=189.9)
    found = here.status()
    assert found["state"] == "held"
    assert found["holder"] is not None
    assert found["holder"]["overdue"] is True


def test_lock_free_after_a_clean_end(here: Here) -> None:
    """A grant whose end stands in the line leaves the lease free."""
    here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    assert (here.status()["state"], here.status()["sidecar"], here.status()["detail"]) == ("free", "missing", None)


def test_sidecar_that_lies_about_is_stale(here: Here) -> None:
    """A sidecar of an ended grant is stale, and nobody is the holder (L12)."""
    here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    here.write_sidecar()
    found = here.status()
    assert (found["state"], found["sidecar"], found["holder"]) == ("free", "stale", None)


def test_dead_holder_leaves_it_free(here: Here) -> None:
    """A recorded holder that is dead and left nothing behind does not hold it until a TTL (L1)."""
    here.write_line(identity=dead())
    here.write_sidecar()
    found = here.status()
    assert (found["state"], found["sidecar"], found["holder"]) == ("free", "stale", None)
    assert "is dead" in str(found["detail"])


def test_recycled_pid_is_not_the_holder(here: Here) -> None:
    """Another process with the holder's pid is not the holder (L1)."""
    own = process.read_identity(os.getpid())
    here.write_line(identity=replace(own, start_ticks=own.start_ticks + 1))
    here.write_sidecar()
    assert (here.status()["state"], here.status()["sidecar"]) == ("free", "stale")


def test_earlier_boot_is_over(here: Here) -> None:
    """A grant from before the last boot is over, whoever has its pid now (L1)."""
    here.write_line(identity=replace(process.read_identity(os.getpid()), boot_id="b" * 36), started_at=1000.0)
    here.write_sidecar(acquired_at=rfc3339(1000.0))
    assert here.status()["state"] == "free"


def test_other_running_kernel_is_unknown(here: Here) -> None:
    """A grant of another boot, given after ours began, is of another running system: nothing is known of it."""
    here.write_line(identity=replace(process.read_identity(os.getpid()), boot_id="b" * 36), started_at=time.time())
    here.write_sidecar(acquired_at=rfc3339(time.time()))
    found = here.status()
    assert (found["state"], found["sidecar"]) == ("unknown", "valid")
    assert found["holder"] is not None
    assert found["holder"]["alive"] is None


def test_other_pid_namespace_is_unknown(here: Here) -> None:
    """A grant of another pid namespace that has not ended cannot be judged from here (L1)."""
    here.write_line(identity=replace(process.read_identity(os.getpid()), pid_namespace="1"))
    here.write_sidecar()
    found = here.status()
    assert (found["state"], found["sidecar"]) == ("unknown", "valid")
    assert "pid namespace" in str(found["detail"])


@pytest.mark.parametrize("damage", ["missing", "malformed", "unreadable", "stale"])
def test_held_without_its_sidecar_is_held(here: Here, damage: str) -> None:
    """A bad or missing sidecar leaves the lease held by an unknown owner, and each cause is told apart (L12)."""
    here.hold()
    path = Path(here.places.sidecar)
    path.unlink()
    if damage == "malformed":
        path.write_text("{")
    elif damage == "unreadable":
        os.mkfifo(path)
    elif damage == "stale":
        here.write_sidecar(lease_id="other", fence=6)
    found = here.status()
    assert (found["state"], found["holder"], found["sidecar"]) == ("held", None, damage)
    assert "unknown owner" in str(found["detail"]) and "kbSync" in str(found["detail"])


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "1"},
        {"pid": True},
        {"pid": -1},
        {"pid": 2**63},
        {"fence": 2**60},
        {"command": "rm"},
        {"command": [1]},
        {"ttl_seconds": 10**400},
        {"ttl_seconds": -1},
        {"task": "a b"},
        {"task": "\x1b[2J"},
        {"lease": "other"},
        {"owner": None},
        {"job_pid": "x"},
    ],
)
def test_wrong_types_are_malformed(here: Here, changes: dict[str, Any]) -> None:
    """A sidecar with a field of another kind is malformed, and the lease held all the same (L12)."""
    here.hold(**changes)
    assert (here.status()["state"], here.status()["sidecar"]) == ("held", "malformed")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"[" * 100_000, b"9" * 10_000, b"\xff\xfe", b'{"schema": 1}', b"x" * 300_000, b"null"],
    ids=["empty", "zeros", "deep", "long number", "no UTF-8", "torn", "huge", "null"],
)
def test_hostile_content_is_malformed(here: Here, content: bytes) -> None:
    """No content of a sidecar stops a reader (L12)."""
    here.hold()
    Path(here.places.sidecar).write_bytes(content)
    assert (here.status()["state"], here.status()["sidecar"]) == ("held", "malformed")


def test_infinity_is_malformed(here: Here) -> None:
    """A number that JSON cannot hold never reaches our own JSON."""
    here.hold()
    path = Path(here.places.sidecar)
    path.write_text(path.read_text().replace("21600.0", "1e999"))
    assert here.status()["sidecar"] == "malformed"


def test_symlinked_sidecar_is_unreadable(here: Here, tmp_path: Path) -> None:
    """A symlink in the sidecar's place is not followed."""
    here.hold()
    (tmp_path / "elsewhere").write_text(json.dumps(here.fields()))
    os.unlink(here.places.sidecar)
    os.symlink(tmp_path / "elsewhere", here.places.sidecar)
    assert here.status()["sidecar"] == "unreadable"


def test_odd_fields_of_a_valid_sidecar(here: Here) -> None:
    """Times that are none and fields that nobody asked for do no harm."""
    here.hold(acquired_at="yesterday", job_started_at={"a": 1}, job_pid=2**62, more=HOSTILE)
    found = here.status()
    holder = found["holder"]
    assert (found["state"], found["sidecar"]) == ("held", "valid")
    assert holder is not None
    assert (holder["held_seconds"], holder["overdue"], holder["job_started_at"]) == (None, False, None)
    assert "more" not in holder


def test_locked_by_somebody_off_the_record(here: Here) -> None:
    """A lock without any record is held, by an unknown owner whose pid is told."""
    here.lock()
    found = here.status()
    assert (found["state"], found["holder"], found["sidecar"]) == ("held", None, "missing")
    assert f"pid {os.getpid()} " in str(found["detail"])


def test_locked_after_a_recorded_end(here: Here) -> None:
    """Who locks the file after the last grant has ended is nobody on record."""
    here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    here.lock()
    assert (here.status()["state"], here.status()["holder"]) == ("held", None)


def test_living_holder_that_lost_the_lock(here: Here) -> None:
    """A living process on record without the kernel's lock does not hold the lease: the kernel decides."""
    here.write_line()
    here.write_sidecar()
    found = here.status()
    assert (found["state"], found["sidecar"]) == ("free", "stale")
    assert "lost the kernel's lock" in str(found["detail"])


@pytest.mark.parametrize("replacement", ["gone", "new", "moved aside"])
def test_lock_file_replaced_under_its_holder(here: Here, replacement: str) -> None:
    """A holder whose lock file was removed or replaced still holds, and the collision is told."""
    here.hold()
    if replacement == "moved aside":
        os.rename(here.places.lock, here.places.lock + ".old")
    else:
        os.unlink(here.places.lock)
    if replacement != "gone":
        Path(here.places.lock).touch(mode=0o600)
    found = here.status()
    assert (found["state"], found["sidecar"]) == ("held", "valid")
    assert [row["kind"] for row in found["collisions"]] == ["lockfile_replaced"]
    assert "kbSync" in str(found["detail"])


def test_since_when_a_lock_file_may_have_been_replaced(here: Here) -> None:
    """A replacement that nobody has recorded lasts since the new file's last change, or the grant where there is none."""
    here.hold()
    os.unlink(here.places.lock)
    assert [row["since"] for row in here.status()["collisions"]] == [rfc3339(NOW - 190)]
    Path(here.places.lock).touch(mode=0o600)
    changed_at = os.stat(here.places.lock).st_ctime
    for now in (changed_at + 60, changed_at + 120):
        found = observe.read_status(here.places, now)
        assert [row["since"] for row in found["collisions"]] == [rfc3339(max(changed_at, NOW - 190))]
    here.write_line(started_at=changed_at + 30)
    (found,) = observe.read_status(here.places, changed_at + 60)["collisions"]
    assert found["since"] == rfc3339(changed_at + 30), "a file that was there before the grant"


def test_known_collision_is_told_once(here: Here) -> None:
    """A collision that is on record already keeps its own beginning (R10)."""
    here.hold()
    event = {
        "id": "c",
        "event": "collision",
        "at": rfc3339(NOW - 60),
        "lease": LEASE,
        "reason_code": "lockfile_replaced",
    }
    pending.append(here.places.directory, [event])
    os.unlink(here.places.lock)
    assert [row["since"] for row in here.status()["collisions"]] == [rfc3339(NOW - 60)]


def test_neighbouring_lease_is_another(here: Here) -> None:
    """A lock on `heavy-maintenance.lock.lock`, another lease's file, is not taken for a file moved aside."""
    other = Here(Path(here.places.directory))
    other.places = Places(directory=here.places.directory, lease=f"{LEASE}.lock")
    other.lock()
    here.write_line()
    here.write_sidecar()
    assert here.status()["state"] == "free"
    os.close(other.fds[0])


def present(role: str, identity: ProcessIdentity, **fields: object) -> dict[str, object]:
    """Return the event of somebody who waits or has joined."""
    return {
        "id": f"{role}{identity.pid}", "event": "present", "at": rfc3339(NOW - 30), "lease": LEASE, "role": role, "task": "x",
        "reason": HOSTILE, "pid": identity.pid, "start_ticks": identity.start_ticks, "boot_id": identity.boot_id,
        "pid_namespace": identity.pid_namespace, **fields,
    }  # fmt: skip


@pytest.mark.parametrize("ledger_state", ["pending", "entered", "broken"])
def test_presence_counts_by_identity(here: Here, ledger_state: str) -> None:
    """Who waits or has joined is told whether the ledger has it yet or not; who is dead counts for nothing."""
    here.hold()
    own = process.read_identity(os.getpid())
    gone = present("waiting", own, id="gone")
    events = [present("waiting", own), present("nested", own), present("waiting", dead()), gone]
    other = present("waiting", own, id="other", lease="other")
    absent = {"id": "z", "event": "absent", "at": rfc3339(NOW), "lease": LEASE, "of": "gone"}
    pending.append(here.places.directory, [*events, other, absent])
    if ledger_state == "entered":
        ledger.drain(here.places.directory, now=NOW)
    elif ledger_state == "broken":
        Path(here.places.directory, "ledger.db").write_bytes(b"no database" * 1000)
        Path(here.places.directory, "ledger.db").chmod(0o600)
    found = here.status()
    since = rfc3339(NOW - 30)
    assert found["waiters"] == [{"task": "x", "pid": own.pid, "since": since}]
    assert observe.read_waiters(here.places) == found["waiters"]
    assert [(row["pid"], row["started_at"]) for row in found["nested"]] == [(own.pid, since)]
    assert ("ledger cannot be read" in str(found["detail"])) == (ledger_state == "broken")


def test_without_proc_a_living_record_is_believed(here: Here, no_proc: None) -> None:
    """Without the kernel's view, a valid sidecar of a living process is held."""
    here.line = replace(here.line, identity=process.read_identity(os.getpid()))
    here.hold()
    found = here.status()
    assert (found["state"], found["sidecar"]) == ("held", "valid")
    assert found["holder"] is not None
    assert found["holder"]["rss_bytes"] > 0


def test_without_proc_no_lock_file_is_free(here: Here, no_proc: None) -> None:
    """Without the kernel's view, a lock file that does not exist is free."""
    assert here.status()["state"] == "free"


@pytest.mark.parametrize("last", ["ended", "dead"])
def test_without_proc_the_rest_is_unknown(here: Here, no_proc: None, last: str) -> None:
    """Without the kernel's view nothing is probed: what the records do not tell is unknown."""
    if last == "ended":
        here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    else:
        here.write_line(identity=dead())
        here.write_sidecar()
    here.lock()
    found = here.status()
    assert found["state"] == "unknown"
    assert "/proc" in str(found["detail"])


@pytest.mark.parametrize(
    ("last", "expected"), [("held", "held"), ("held, no sidecar", "unknown"), ("ended", "unknown"), ("dead", "unknown")]
)
def test_kernel_that_hides_its_locks(here: Here, monkeypatch: pytest.MonkeyPatch, last: str, expected: str) -> None:
    """Where /proc is there and shows no locks, nobody is called free."""
    here.hold()
    if last != "held":
        os.unlink(here.places.sidecar)
    if last == "ended":
        here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    elif last == "dead":
        here.write_line(identity=dead())
    monkeypatch.setattr(locktable, "read_rows_on", lambda found: None)
    monkeypatch.setattr(locktable, "read_carried", lambda pid, path: [])
    assert here.status()["state"] == expected


def test_one_empty_read_of_the_table_frees_nobody(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the kernel's table misses once is found by the second read."""
    here.lock()
    answers = [[], [locktable.Row(locker=os.getpid(), device="0:0", inode=1, is_waiting=False)]] * custody.LOOKS
    monkeypatch.setattr(locktable, "read_rows_on", lambda found: answers.pop(0))
    monkeypatch.setattr(locktable, "read_all_carried", lambda path: [])
    assert here.status()["state"] == "held"


def test_records_in_motion_are_looked_at_again(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen between a new grant's line and its sidecar is not believed at once."""
    here.lock()
    here.write_line()
    monkeypatch.setattr(custody.time, "sleep", lambda seconds: here.write_sidecar())
    assert here.status()["sidecar"] == "valid"


@pytest.mark.parametrize("what", ["directory", "lock", "ledger.db"])
def test_what_others_may_write_is_refused(here: Here, what: str) -> None:
    """Nothing is believed that everybody may write."""
    here.hold()
    for name in ("ledger.db", f"{LEASE}.queue"):
        Path(here.places.directory, name).touch(mode=0o600)
    path = {"directory": here.places.directory, "lock": here.places.lock}.get(what, f"{here.places.directory}/{what}")
    os.chmod(path, 0o777)
    with pytest.raises(RefusedError, match="chmod"):
        here.status()


def test_symlinks_are_refused(here: Here, tmp_path: Path) -> None:
    """A state directory or lock file that is a symlink is refused."""
    os.symlink(here.places.directory, tmp_path / "link")
    with pytest.raises(RefusedError):
        observe.read_status(Places(directory=str(tmp_path / "link"), lease=LEASE), NOW)
    os.symlink("/etc/hostname", here.places.lock)
    with pytest.raises(RefusedError):
        here.status()


def test_state_directory_below_a_file(tmp_path: Path) -> None:
    """A state directory that cannot be is an error, not a free lease."""
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError):
        observe.read_status(Places(directory=str(tmp_path / "file" / "state"), lease=LEASE), NOW)


# The kernel's table


def test_rows_of_the_lock_table() -> None:
    """A row names locker, file and whether it waits; everything else in the table is passed over."""
    held = locktable.parsed_row("7: FLOCK  ADVISORY  WRITE 4242 fe:0a:2164872 0 EOF")
    assert held == locktable.Row(locker=4242, device="254:10", inode=2164872, is_waiting=False)
    waiting = locktable.parsed_row("7: -> FLOCK  ADVISORY  WRITE 4243 fe:0a:2164872 0 EOF")
    assert waiting is not None and waiting.is_waiting
    for other in (
        "",
        "1: POSIX  ADVISORY  WRITE 1 fe:00:1 0 EOF",
        "1: FLOCK ADVISORY",
        "1: FLOCK a b c d:e:f 0 EOF",
        "->",
    ):
        assert locktable.parsed_row(other) is None


def test_rows_match_by_device_where_it_agrees(tmp_path: Path) -> None:
    """Inode and device decide; on btrfs, whose device number nobody has mounted, the inode alone."""
    found = os.stat(tmp_path)
    ours = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    row = locktable.Row(locker=1, device=ours, inode=found.st_ino, is_waiting=False)
    foreign = replace(row, device="99:99")
    rows = [row, foreign, replace(row, is_waiting=True), replace(row, inode=found.st_ino + 1)]
    assert locktable.rows_on(rows, found, frozenset({ours, "99:99"})) == [row]
    assert locktable.rows_on(rows, found, frozenset({"99:99"})) == [row, foreign]


def test_descriptors_of_the_dead_are_none(tmp_path: Path) -> None:
    """A process that is gone carries nothing."""
    assert locktable.read_carried(NO_PROCESS, str(tmp_path / "x.lock")) == []


# History that the line implies


def told(here: Here, **wanted: Any) -> list[tuple[str, str | None]]:
    """Return event and outcome of the history."""
    return [(row["event"], row["outcome"]) for row in observe.read_history(here.places.directory, **wanted)]


def test_ended_grant_is_told_although_its_wrapper_died(here: Here) -> None:
    """An end that stands in the line is history, even if its wrapper died before telling the ledger."""
    here.write_line(outcome="failed", exit_code=3, ended_at=NOW - 5)
    rows = observe.read_history(here.places.directory)
    assert [(row["event"], row["outcome"], row["exit_code"]) for row in rows] == [
        ("acquired", None, None),
        ("released", "failed", 3),
    ]
    assert rows[1]["seconds"] == 185.0
    assert "id" not in rows[0]


def test_known_events_are_not_told_twice(here: Here) -> None:
    """What the ledger or its pending events tell is not told again by the line."""
    here.write_line(outcome="completed", exit_code=0, ended_at=NOW - 5)
    for _ in range(2):
        assert told(here) == [("acquired", None), ("released", "completed")]
        pending.append(here.places.directory, observe.read_implied(here.places))


def test_unended_grant_has_begun_and_not_ended(here: Here) -> None:
    """A grant that goes on, or was lost, has its beginning and no invented end."""
    here.hold()
    assert told(here) == [("acquired", None)]
    assert observe.read_history(here.places.directory)[0]["reason"] == "manual"
    here.write_line(identity=dead())
    assert told(here) == [("acquired", None)]


def test_history_of_one_lease(here: Here) -> None:
    """History is that of all leases in the state directory, or of the one asked for."""
    here.write_line()
    assert told(here, lease="other") == []
    assert told(here, lease=LEASE) == [("acquired", None)]
    Path(here.places.directory, "odd name.lock").touch()
    Path(here.places.directory, "orchestrator.lock").touch()
    os.mkfifo(Path(here.places.directory, "fifo.lock"))
    assert told(here) == [("acquired", None)]


# For people


def rendered(shown: RenderableType, width: int = 80) -> str:
    """Return what a terminal without colours shows."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(text.rstrip() for text in capture.get().splitlines())


def example(**changes: Any) -> Any:
    """Return a status with everything in it."""
    at = epoch_seconds("2026-05-16T19:36:21.072Z")
    assert at is not None
    holder = {
        "schema": 1, "lease": LEASE, "lease_id": "a1b2", "fence": 7, "task": "primary-dev-sync", "owner": "alice@laptop",
        "source": "npm", "reason": "manual", "mode": "supervised", "pid": 4242, "acquired_at": rfc3339(at), "ttl_seconds": 21600.0,
        "command": ["npm", "run", "ai:sync-kb", "--", "--token=***", "two words"], "alive": True, "stopped": False,
        "held_seconds": 190.2, "overdue": False, "rss_bytes": 332 * 2**20,
        "processes": [
            {"pid": 4242, "name": "maintlock-wrap", "rss_bytes": 12 * 2**20},
            {"pid": 4250, "name": "node", "rss_bytes": 320 * 2**20},
        ],
    }  # fmt: skip
    return {
        "lease": LEASE, "state": "held", "backend": "flock", "scope": "user", "holder": holder, "sidecar": "valid", "detail": None,
        "path": "/home/alice/.local/state/maintlock/heavy-maintenance.lock",
        "waiters": [{"task": "backup", "pid": 4300, "since": rfc3339(at + 178)}],
        "nested": [{"task": "kbSync", "pid": 4280, "reason": "after pull", "started_at": rfc3339(at + 60)}],
        "collisions": [{"kind": "unleased_process", "detail": "dream runs outside the lease (pid 77)", "since": rfc3339(at)}],
        **changes,
    }  # fmt: skip


def later(seconds: float = 190.2) -> float:
    """Return a moment some seconds after the example's beginning."""
    at = epoch_seconds("2026-05-16T19:36:21.072Z")
    assert at is not None
    return at + seconds


GOLDEN_HELD = """\
╭─ heavy-maintenance · held ───────────────────────────────────────────────────╮
│   held by  primary-dev-sync                                                  │
│     owner  alice@laptop                                                      │
│    reason  manual                                                            │
│       pid  4242 (supervised, from npm)                                       │
│     since  19:36:21, for 3m10s of 6h00m                                      │
│   command  npm run ai:sync-kb -- '--token=***' 'two words'                   │
│ processes     4242 maintlock-wrap     12 MiB                                 │
│               4250 node              320 MiB                                 │
│    memory  332 MiB                                                           │
│   waiting  backup (pid 4300) since 19:39:19, for 12s                         │
│    inside  kbSync (pid 4280, reason after pull) since 19:37:21, for 2m10s    │
│ collision  unleased_process since 19:36:21: dream runs outside the lease     │
│            (pid 77)                                                          │
│ lock file  /home/alice/.local/state/maintlock/heavy-maintenance.lock         │
╰──────────────────────────────────────────────────────────────────────────────╯"""

GOLDEN_ORPHANED = """\
╭─ heavy-maintenance · orphaned ───────────────────────────────────────────────╮
│   held by  primary-dev-sync (dead) (overdue)                                 │
│     owner  alice@laptop                                                      │
│    reason  manual                                                            │
│       pid  4242 (supervised, from npm)                                       │
│     since  05-16 19:36:21, for 1d00h of 6h00m                                │
│   command  npm run ai:sync-kb -- '--token=***' 'two words'                   │
│ processes     4250 node              320 MiB                                 │
│      note  the recorded holder is dead                                       │
│ lock file  /home/alice/.local/state/maintlock/heavy-maintenance.lock         │
╰──────────────────────────────────────────────────────────────────────────────╯"""

GOLDEN_FREE = """\
╭─ heavy-maintenance · free ───────────────────────────────────────────────────╮
│   held by  nobody                                                            │
│ lock file  /home/alice/.local/state/maintlock/heavy-maintenance.lock         │
╰──────────────────────────────────────────────────────────────────────────────╯"""

GOLDEN_UNKNOWN_OWNER = """\
╭─ heavy-maintenance · held ───────────────────────────────────────────────────╮
│      note  held by an unknown owner: its sidecar is malformed                │
│   sidecar  malformed                                                         │
│ lock file  /home/alice/.local/state/maintlock/heavy-maintenance.lock         │
╰──────────────────────────────────────────────────────────────────────────────╯"""


def nobody(**changes: Any) -> Any:
    """Return a status without anybody in it."""
    return example(holder=None, sidecar="missing", waiters=[], nested=[], collisions=[], **changes)


def test_status_for_people(utc: None) -> None:
    """A person sees state, owner, since when, processes, who waits, what runs inside, collisions and the path (R10, L9)."""
    assert rendered(tables.status(example(), later())) == GOLDEN_HELD


def test_orphaned_for_people(utc: None) -> None:
    """An orphaned lease tells that its holder is dead, and what works on."""
    found = example(state="orphaned", detail="the recorded holder is dead", waiters=[], nested=[], collisions=[])
    found["holder"].update(alive=False, overdue=True, held_seconds=86400.5, processes=found["holder"]["processes"][1:])
    assert rendered(tables.status(found, later(86400.5))) == GOLDEN_ORPHANED


def test_free_for_people() -> None:
    """A free lease is three lines and a path."""
    assert rendered(tables.status(nobody(state="free"), later())) == GOLDEN_FREE


def test_unknown_owner_for_people() -> None:
    """A null holder tells which of its causes it has (L12)."""
    found = nobody() | {"sidecar": "malformed", "detail": "held by an unknown owner: its sidecar is malformed"}
    assert rendered(tables.status(found, later())) == GOLDEN_UNKNOWN_OWNER


def test_hostile_words_are_shown_harmless() -> None:
    """Nothing that others have written steers the terminal, forges a line or is taken for markup."""
    found = example(detail=HOSTILE, path=HOSTILE)
    found["holder"].update(
        owner=HOSTILE, reason=HOSTILE, command=[HOSTILE] * 50, mode=HOSTILE, source=HOSTILE, acquired_at=HOSTILE
    )
    found["holder"]["processes"][0]["name"] = HOSTILE
    found["nested"][0].update(reason=HOSTILE, started_at=HOSTILE)
    found["collisions"][0].update(detail=HOSTILE)
    shown = rendered(tables.status(found, later()), width=2000)
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    assert shown.count("\\x1b[2J\\r\\nmaintlock: free\\x07 [red]\\u202e\\udc80") >= 8
    assert len(shown.splitlines()) == 16
    assert max(map(len, rendered(tables.status(found, later())).splitlines())) == 80


def row(event: str, **fields: Any) -> dict[str, Any]:
    """Return one row of history."""
    return {**dict.fromkeys(entries.PUBLIC), "event": event, "at": "2026-05-16T19:36:21.072Z", "lease": LEASE, **fields}


GOLDEN_HISTORY = """\
TIME           EVENT           TASK             BY               TOOK OUTCOME
05-16 19:36:21 acquired        primary-dev-sync npm
05-16 19:36:21 deferred        backup           primary-dev-sy…
05-16 19:36:21 nested_started  kbSync           in primary-dev…
05-16 19:36:21 nested_finished kbSync           in primary-dev…   12s
05-16 19:36:21 released        primary-dev-sync npm             3m10s failed (3)"""


def test_history_for_people(utc: None) -> None:
    """A person sees when, what, which task, by whom or behind whom, how long, and how it ended, in 80 columns."""
    rows = [
        row("acquired", task="primary-dev-sync", source="npm", seconds=0.001),
        row("deferred", task="backup", blocked_by="primary-dev-sync", reason_code="lease-held", seconds=0.0),
        row("nested_started", task="kbSync", parent_task="primary-dev-sync"),
        row("nested_finished", task="kbSync", parent_task="primary-dev-sync", seconds=12.0),
        row("released", task="primary-dev-sync", source="npm", seconds=190.0, outcome="failed", exit_code=3),
    ]
    assert rendered(tables.history(rows)) == GOLDEN_HISTORY


def test_hostile_history_stays_one_line_each() -> None:
    """No event, whoever wrote it, takes more than its line."""
    rows = [row(HOSTILE, task=HOSTILE, blocked_by=HOSTILE, reason_code=HOSTILE, outcome=HOSTILE)] * 3
    for width in (40, 80, 400):
        shown = rendered(tables.history(rows), width)
        assert len(shown.splitlines()) == 4
        assert all(character.isprintable() for character in shown.replace("\n", ""))


def test_empty_history_says_so() -> None:
    """Where nothing has happened, that is what is said."""
    assert rendered(tables.history([])) == "nothing has happened yet"
