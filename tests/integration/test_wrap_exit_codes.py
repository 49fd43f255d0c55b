"""Exit codes of `maintlock-wrap`: one table, each row of it seen from outside."""

from __future__ import annotations

import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.headless import Headless, headless_in
from tests.support import MAINTLOCK, WRAP, until

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root: mounts, or gives files to others")
FOREIGN_UID = 4242
FOREIGN_GID = 4242


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Give the path that the job of a test makes, if it runs."""
    return tmp_path / "ran"


def configured(tmp_path: Path, text: str) -> str:
    """Write a configuration file and return its path."""
    path = tmp_path / "maintlock.toml"
    path.write_text(text)
    return str(path)


# The job ran


@pytest.mark.parametrize("code", [0, 1, 64, 124, 255])
def test_the_jobs_own_exit_code(lock: Headless, code: int) -> None:
    """A guarded command leaves with its own exit code, also where that is one of ours (R3)."""
    done = lock.wrap("-t", "x", "--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stderr) == (code, "")
    assert lock.history(event="released", exit_code=code, outcome="failed" if code else "completed")


@pytest.mark.parametrize("name", ["INT", "KILL", "TERM", "SEGV", "PIPE", "RTMIN"])
def test_a_job_that_dies_of_a_signal(lock: Headless, name: str) -> None:
    """A job that dies of signal n without our passing it on has failed, and leaves 128+n (L3)."""
    number = int(getattr(signal, f"SIG{name}"))
    done = lock.wrap("-t", "x", "--", "sh", "-c", f"ulimit -c 0; kill -{number} $$")
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert lock.history(outcome="failed", exit_code=128 + number)
    assert lock.is_free()


def test_a_job_stopped_by_its_maximum_run_time(lock: Headless, tmp_path: Path) -> None:
    """What --max-runtime stops leaves 124 whatever code the job chose, and counts as timed out (L4)."""
    ready = str(tmp_path / "ready")
    job = ("sh", "-c", "trap 'echo left as I chose; exit 0' TERM; touch $0; read x", ready)
    limit = ("--max-runtime", "200ms", "--stop-grace", "1h")
    running = lock.patched(f"begin_limit_at({ready!r})", "-t", "x", *limit, "--", *job, stdin=subprocess.PIPE)
    running.until_line("left as I chose")
    code, _, err = running.end()
    assert code == 124
    assert "x exceeded its maximum run time of 0.2s; stopping it" in err
    assert lock.history(outcome="timed_out", exit_code=124)


def test_a_maximum_run_time_of_a_month(lock: Headless) -> None:
    """A limit of more days than poll(2) can count milliseconds stops nothing early and breaks nothing (L4)."""
    done = lock.wrap("-t", "x", "--max-runtime", "30d", "--stop-grace", "36500d", "--wait", "30d", "--", "echo", "done")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# Deferred


@pytest.mark.parametrize(
    ("options", "environment", "task", "expected"),
    [
        ([], {}, "plain", 0),
        ([], {}, "configured", 33),
        ([], {"MAINTLOCK_DEFER_EXIT_CODE": ""}, "configured", 33),
        ([], {"MAINTLOCK_DEFER_EXIT_CODE": "22"}, "configured", 22),
        (["-E", "11"], {"MAINTLOCK_DEFER_EXIT_CODE": "22"}, "configured", 11),
        (["-E0"], {"MAINTLOCK_DEFER_EXIT_CODE": "22"}, "configured", 0),
        (["--defer-exit-code=255"], {}, "plain", 255),
        ([], {"MAINTLOCK_DEFER_EXIT_CODE": "0"}, "configured", 0),
        (["-w", "50ms"], {}, "configured", 33),
        (["-w", "50ms", "-E", "75"], {}, "plain", 75),
    ],
)
def test_exit_code_of_a_deferral(
    lock: Headless, tmp_path: Path, ran: Path, options: list[str], environment: dict[str, str], task: str, expected: int
) -> None:
    """A deferral or an elapsed wait leaves 0 or what -E, environment or task say, in this order, and runs nothing (R3, L3)."""
    config = configured(tmp_path, "[tasks.configured]\ndefer_exit_code = 33\n")
    lock.hold()
    done = lock.wrap("-t", task, "--config", config, *options, "--", "touch", str(ran), env=lock.env(**environment))
    assert done.returncode == expected
    assert f"{task} deferred due to active heavy-maintenance lease: held by holder" in done.stderr
    assert not ran.exists()


# Usage

USAGE = [
    ([], "no command given"),
    (["-t", "x"], "no command given"),
    (["-t", "x", "--"], "no command given"),
    (["-t", "x", "--", ""], "the command is empty"),
    (["--", "true"], "no task given"),
    (["-t"], "-t needs a value"),
    (["--task"], "--task needs a value"),
    (["-t", "", "--", "true"], "--task '': expected"),
    (["-t", "a/b", "--", "true"], "--task 'a/b': expected"),
    (["-t", "x", "--lease", "a:b", "--", "true"], "--lease 'a:b': expected"),
    (["-t", "x", "--source", "cron", "--", "true"], "--source 'cron': expected one of"),
    (["-t", "x", "-w", "soon", "--", "true"], "--wait 'soon': expected"),
    (["-t", "x", "-w", "-1", "--", "true"], "--wait '-1': expected"),
    (["-t", "x", "-E", "256", "--", "true"], "--defer-exit-code '256': expected"),
    (["-t", "x", "-E", "-1", "--", "true"], "--defer-exit-code '-1': expected"),
    (["-t", "x", "--hold-until", "group", "--", "true"], "--hold-until 'group': expected one of"),
    (["-t", "x", "--max-runtime", "0", "--", "true"], "--max-runtime '0': expected more than 0"),
    (["-t", "x", "--stop-grace", "x", "--", "true"], "--stop-grace 'x': expected"),
    (["-t", "x", "--ttl", "0s", "--", "true"], "--ttl '0s': expected more than 0"),
    (["-t", "x", "--outcome", "", "--", "true"], "--outcome '': expected a path"),
    (["-t", "x", "--state-dir=", "--", "true"], "--state-dir '': expected a path"),
    (["-t", "x", "--log-format", "xml", "--", "true"], "--log-format 'xml': expected one of"),
    (["-t", "x", "--quiet=yes", "--", "true"], "--quiet takes no value"),
    (["-t", "x", "--nowait", "--", "true"], "unknown option --nowait"),
    (["-x", "--", "true"], "unknown option -x"),
    (["-t", "x", "-F", "-o", "--", "true"], "the descriptor that --close takes away"),
    (["-t", "x", "-F", "--outcome", "OUTCOME", "--", "true"], "what --outcome asks for"),
    (["-t", "x", "-F", "--max-runtime", "1s", "--", "true"], "what --max-runtime asks for"),
    (["-t", "x", "-F", "--stop-grace", "1s", "--", "true"], "what --stop-grace asks for"),
    (["-t", "x", "-F", "--hold-until", "tree", "--", "true"], "what --hold-until tree asks for"),
]


def test_usage_errors(lock: Headless, tmp_path: Path) -> None:
    """Each impossible command line leaves 64 with one line that says what is wrong, and opens no lock (R3)."""
    found = lock.wrap_each([arguments for arguments, _ in USAGE], cwd=tmp_path)
    for (arguments, code, err), (_, said) in zip(found, USAGE, strict=True):
        assert (code, said in err) == (64, True), (arguments, err)
        assert err.startswith("maintlock: ") and err.count("\n") == 1, (arguments, err)
    assert not lock.directory.exists()


def test_a_defer_exit_code_in_the_environment_that_is_none(lock: Headless, ran: Path) -> None:
    """An impossible MAINTLOCK_DEFER_EXIT_CODE is a usage error before anything is locked or run (L3)."""
    done = lock.wrap("-t", "x", "--", "touch", str(ran), env=lock.env(MAINTLOCK_DEFER_EXIT_CODE="often\x1b[31m"))
    assert done.returncode == 64
    assert "MAINTLOCK_DEFER_EXIT_CODE='often" in done.stderr and "\x1b" not in done.stderr
    assert not ran.exists()


@pytest.mark.parametrize("until_", ["session", "main"])
def test_exec_goes_with_the_other_leftovers(lock: Headless, until_: str) -> None:
    """With --exec, what needs nobody of ours may be asked for: leftovers of the session, or none (R2)."""
    assert lock.wrap("-t", "x", "-F", "--hold-until", until_, "--", "sh", "-c", "exit 5").returncode == 5


def test_exec_cannot_keep_a_configured_limit(lock: Headless, tmp_path: Path, ran: Path) -> None:
    """A `max_runtime` of the task's is refused with --exec like the option: nobody would be left to keep it (L4)."""
    config = configured(tmp_path, "[tasks.x]\nmax_runtime = '1h'\n[tasks.y]\nstop_grace = '1s'\n")
    done = lock.wrap("-t", "x", "-F", "--config", config, "--", "touch", str(ran))
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    assert "keep the max_runtime of [tasks.x]" in done.stderr and "leave out one of the two" in done.stderr
    assert not ran.exists() and not lock.directory.exists()
    assert lock.wrap("-t", "y", "-F", "--config", config, "--", "touch", str(ran)).returncode == 0


# Configuration

CONFIGURATION = [
    ("tasks = 3", "tasks"),
    ("[tasks.x]\nintervall = '3s'", "tasks.x.intervall"),
    ("[tasks.x]\nmax_runtime = 'long'", "tasks.x.max_runtime"),
    ("[tasks.x]\ndefer_exit_code = 999", "tasks.x.defer_exit_code"),
    ("[tasks.'a b']\n", "tasks"),
    ("= 3", "not TOML"),
    ("\x00", "not TOML"),
]


@pytest.mark.parametrize(("text", "named"), CONFIGURATION)
def test_invalid_configuration(lock: Headless, tmp_path: Path, ran: Path, text: str, named: str) -> None:
    """A configuration with a fault leaves 78, names file and key, and runs nothing (R3)."""
    path = configured(tmp_path, text)
    done = lock.wrap("-t", "x", "--", "touch", str(ran), cwd=tmp_path)
    assert done.returncode == 78
    assert path in done.stderr and named in done.stderr
    assert not ran.exists() and not lock.directory.exists()


def test_a_configuration_that_is_not_there(lock: Headless, tmp_path: Path, ran: Path) -> None:
    """A configuration that is named and missing leaves 78; `none` asks for none (R3)."""
    missing = str(tmp_path / "missing.toml")
    for said, environment in ((["--config", missing], {}), ([], {"MAINTLOCK_CONFIG": missing})):
        done = lock.wrap("-t", "x", *said, "--", "touch", str(ran), env=lock.env(**environment))
        assert done.returncode == 78 and missing in done.stderr
    assert not ran.exists()
    configured(tmp_path, "broken")
    assert lock.wrap("-t", "x", "--config", "none", "--", "touch", str(ran), cwd=tmp_path).returncode == 0
    assert ran.exists()


# Our own fault

FAULTS = {
    "before": "def broken(*_a, **_k): raise RuntimeError('lost my way\\x1b[31m')\ntake('maintlock.acquisition', 'acquire', broken)",
    "early": "def broken(*_a, **_k): raise ZeroDivisionError('no')\ntake('maintlock.options', 'parse', broken)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_ours(lock: Headless, ran: Path, fault: str) -> None:
    """An error that nobody foresaw leaves 70 with one line and no traceback, and the job is not run (R9)."""
    code, _, err = lock.patched(FAULTS[fault], "-t", "x", "--", "touch", str(ran)).end()
    assert code == 70
    assert "please report it, with the command and what maintlock doctor --json prints" in err
    assert err.startswith("maintlock: internal error: ") and "Traceback" not in err and "\x1b" not in err
    assert err.count("\n") == 1
    assert not ran.exists()


ODD: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "a directory for the database": ("ledger.db", Path.mkdir),
    "a symlink for its log": ("ledger.db-wal", lambda path: path.symlink_to(path.parent.parent / "target")),
    "a FIFO for what waits": ("ledger.pending", os.mkfifo),
    "a symlink for the count": ("ledger.dropped", lambda path: path.symlink_to(path.parent.parent / "target")),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_ledger_stops_no_job(lock: Headless, what: str) -> None:
    """Whatever stands in the place of the ledger, the job runs, nothing is written through it, and readers say so (R6, R18)."""
    name, make = ODD[what]
    lock.directory.mkdir(mode=0o700)
    target = lock.directory.parent / "target"
    target.write_text("theirs")
    make(lock.directory / name)
    for _ in range(2):
        assert lock.wrap("-t", "x", "--", "true").returncode == 0
    assert target.read_text() == "theirs"
    if name == "ledger.dropped":
        return
    assert f"{name}: is not a regular file" in lock.status()["detail"]
    for command, code in (("history", 73), ("health", 2)):
        argv = [MAINTLOCK, command, "--json", "--config", "none"]
        done = subprocess.run(argv, env=lock.env(), capture_output=True, text=True, check=False)
        assert (done.returncode, "is not a regular file" in done.stdout + done.stderr) == (code, True)
        assert command == "history" or json.loads(done.stdout)["status"] == "unknown"


def test_a_fault_of_the_ledger_is_none_of_the_jobs(lock: Headless) -> None:
    """A ledger that breaks in a way nobody foresaw changes neither the job nor its exit code (R6)."""
    patch = (
        "def broken(*_a, **_k): print('drained', flush=True); raise RuntimeError('no')\n"
        "take('maintlock.program', 'SHORT_SECONDS', 0)\ntake('maintlock.ledger', 'drain', broken)"
    )
    code, out, err = lock.patched(patch, "-t", "x", "--", "sh", "-c", "echo ran; exit 7").end()
    assert (code, out, err) == (7, "ran\ndrained\n", "")
    assert lock.is_free()


# Not available here


def in_mount(lock: Headless, mount: str, *arguments: str, directory: Path | None = None) -> tuple[int, str, str]:
    """Run `maintlock-wrap` in a mount namespace of its own, after `mount` (a script in which $D is the state directory)."""
    directory = directory or lock.directory
    directory.mkdir(mode=0o700, exist_ok=True)
    script = f'set -e; D="$1"; shift; {mount}; exec "$@"'
    running = lock.start(
        "-m", "sh", "-c", script, "sh", str(directory), WRAP, *arguments, program=shutil.which("unshare") or "unshare"
    )
    return running.end()


def needs_mounts() -> None:
    """Skip where mounting is not allowed, also not to root (in many containers)."""
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"cannot mount here: {probe.stderr.strip()}")


@as_root
@pytest.mark.parametrize("room", ["4k", "8k", "12k"])
def test_disk_full(lock: Headless, ran: Path, room: str) -> None:
    """Where line or sidecar find no room, the job does not run: 73, and a word on how to look (R2, L2)."""
    needs_mounts()
    fill = f"mount -t tmpfs -o size={room},mode=700 none $D; head -c 64k /dev/zero >$D/fill 2>/dev/null || true"
    code, _, err = in_mount(lock, fill, "-t", "x", "--", "touch", str(ran))
    assert code == 73
    assert "No space left on device" in err and "df " in err and err.count("\n") == 1
    assert not ran.exists()


@as_root
def test_disk_full_after_the_line(lock: Headless, ran: Path) -> None:
    """Where the line has room and the sidecar has none, the line is put back and nothing stays held or half written (L2)."""
    needs_mounts()
    fill = (
        "mount -t tmpfs -o size=256k,mode=700 none $D; maintlock-wrap -t first -- true; before=$(cksum <$D/heavy-maintenance.lock);"
        "head -c 1M /dev/zero >$D/fill 2>/dev/null || true; "
        f"code=0; maintlock-wrap -t second -- touch {ran} || code=$?; after=$(cksum <$D/heavy-maintenance.lock);"
        '[ "$before" = "$after" ]; [ ! -e $D/heavy-maintenance.json ]; [ ! -e $D/heavy-maintenance.json.tmp ];'
        'rm $D/fill; echo "code $code"'
    )
    code, out, err = in_mount(lock, fill, "-t", "third", "--", "echo", "third")
    assert (code, out) == (0, "code 73\nthird\n")
    assert "cannot be put on record: No space left on device; the job was not run" in err
    assert not ran.exists()


@as_root
@pytest.mark.parametrize("made", ["", "touch $D/heavy-maintenance.lock;"])
def test_read_only_mount(lock: Headless, ran: Path, made: str) -> None:
    """On a read-only filesystem the lease cannot be had: 73, and the job is not run (R2)."""
    needs_mounts()
    mount = f"mount -t tmpfs -o mode=700 none $D; {made} mount -o remount,ro $D"
    code, _, err = in_mount(lock, mount, "-t", "x", "--", "touch", str(ran))
    assert code == 73
    assert "Read-only file system" in err
    assert not ran.exists()


@as_root
def test_a_missing_state_directory_on_a_read_only_mount(lock: Headless, ran: Path, tmp_path: Path) -> None:
    """A state directory that cannot be made leaves 73 (R2)."""
    needs_mounts()
    mount = "mount -t tmpfs -o ro,mode=700 none $D"
    code, _, err = in_mount(
        lock, mount, "-t", "x", "--state-dir", f"{tmp_path}/mount/a/b", "--", "touch", str(ran),
        directory=tmp_path / "mount",
    )  # fmt: skip
    assert code == 73
    assert "Read-only file system" in err
    assert not ran.exists()


@as_root
def test_a_filesystem_that_is_not_known_to_lock_locally(lock: Headless, ran: Path) -> None:
    """On a filesystem of another kind the lease is refused with 73, and the kind is named (R2)."""
    needs_mounts()
    code, _, err = in_mount(lock, "mount -t proc none $D", "-t", "x", "--", "touch", str(ran))
    assert code == 73
    assert "filesystem of type proc" in err and "--allow-network-fs" in err
    assert not ran.exists()


@as_root
def test_a_filesystem_whose_risk_is_accepted(lock: Headless, ran: Path) -> None:
    """--allow-network-fs takes a filesystem that is not known to keep flock local (R2)."""
    if "/dev devtmpfs " not in Path("/proc/mounts").read_text():
        pytest.skip("/dev is no devtmpfs: no other filesystem at hand that is not on the list and can be written")
    directory = Path(tempfile.mkdtemp(prefix="maintlock-test-", dir="/dev"))
    try:
        arguments = ("-t", "x", "--state-dir", str(directory))
        refused = lock.wrap(*arguments, "--", "touch", str(ran))
        assert refused.returncode == 73 and "type devtmpfs" in refused.stderr and not ran.exists()
        assert lock.wrap(*arguments, "--allow-network-fs", "--", "touch", str(ran)).returncode == 0
        assert ran.exists()
    finally:
        shutil.rmtree(directory)


def test_a_network_filesystem_by_the_kernels_own_table(lock: Headless, ran: Path, tmp_path: Path) -> None:
    """A state directory below an NFS mount, as mountinfo tells it, is refused with 73 (R2)."""
    mountinfo = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"
        f"40 22 0:44 / {str(tmp_path).replace(' ', chr(92) + '040')} rw shared:1 - nfs4 server:/export rw,vers=4.2\n"
    )
    patch = (
        "import maintlock.process as process\nreal = process.read_text\n"
        f"table = {mountinfo!r}\n"
        "take('maintlock.process', 'read_text', lambda path, *a: table if path.endswith('/mountinfo') else real(path, *a))"
    )
    code, _, err = lock.patched(patch, "-t", "x", "--", "touch", str(ran)).end()
    assert code == 73
    assert "filesystem of type nfs4" in err
    assert not ran.exists()
    code, _, err = lock.patched(patch, "-t", "x", "--allow-network-fs", "--", "touch", str(ran)).end()
    assert (code, err) == (0, "") and ran.exists()


@pytest.mark.parametrize("kind", ["file in the way", "name too long"])
def test_a_state_directory_that_cannot_be_made(lock: Headless, tmp_path: Path, ran: Path, kind: str) -> None:
    """A state directory for which there is no place leaves 73 and names it (R2)."""
    (tmp_path / "file").write_text("")
    directory = str(tmp_path / "file" / "state") if kind == "file in the way" else str(tmp_path / ("d" * 300))
    done = lock.wrap("-t", "x", "--state-dir", directory, "--", "touch", str(ran))
    assert done.returncode == 73
    assert directory in done.stderr
    assert not ran.exists()


def test_a_kernel_that_cannot_lock(lock: Headless, ran: Path) -> None:
    """A filesystem that answers flock with an error leaves 73 (R2)."""
    patch = (
        "import errno, fcntl\ndef flock(_fd, how):\n"
        "    if how != fcntl.LOCK_UN: raise OSError(errno.ENOLCK, 'No locks available')\n"
        "take('fcntl', 'flock', flock)"
    )
    code, _, err = lock.patched(patch, "-t", "x", "--", "touch", str(ran)).end()
    assert code == 73
    assert "cannot lock: No locks available" in err
    assert not ran.exists()


# Refused for permissions


def _symlinked_directory(lock: Headless) -> str:
    real = lock.directory.parent / "real"
    real.mkdir(mode=0o700)
    lock.directory.symlink_to(real)
    return str(lock.directory)


def _directory_is_a_file(lock: Headless) -> str:
    lock.directory.write_text("")
    return str(lock.directory)


def _made(lock: Headless) -> Path:
    lock.directory.mkdir(mode=0o700)
    return lock.directory / "heavy-maintenance.lock"


def _lock_is_a_symlink(lock: Headless) -> str:
    path = _made(lock)
    path.symlink_to(lock.directory / "elsewhere")
    return str(path)


def _lock_is_a_directory(lock: Headless) -> str:
    path = _made(lock)
    path.mkdir()
    return str(path)


def _lock_is_a_fifo(lock: Headless) -> str:
    path = _made(lock)
    os.mkfifo(path, 0o600)
    return str(path)


def _lock_is_a_socket(lock: Headless) -> str:
    path = _made(lock)
    here = Path.cwd()
    try:  # a socket's path is short
        os.chdir(lock.directory)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)
    return str(path)


def _everybody_may_write_to_the_directory(lock: Headless) -> str:
    _made(lock)
    lock.directory.chmod(0o707)
    return str(lock.directory)


def _everybody_may_write_to(name: str) -> Callable[[Headless], str]:
    def make(lock: Headless) -> str:
        path = _made(lock).with_name(name)
        path.write_text("")
        path.chmod(0o606)
        return str(path)

    return make


REFUSED: Mapping[str, Callable[[Headless], str]] = {
    "a symlinked state directory": _symlinked_directory,
    "a file for a state directory": _directory_is_a_file,
    "a symlinked lock file": _lock_is_a_symlink,
    "a directory for a lock file": _lock_is_a_directory,
    "a FIFO for a lock file": _lock_is_a_fifo,
    "a socket for a lock file": _lock_is_a_socket,
    "a state directory that all may write": _everybody_may_write_to_the_directory,
    **{
        f"{name} that all may write": _everybody_may_write_to(name)
        for name in (
            "heavy-maintenance.lock", "heavy-maintenance.queue", "heavy-maintenance.nested", "heavy-maintenance.json",
            "ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.pending", "ledger.dropped",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(lock: Headless, ran: Path, what: str) -> None:
    """What somebody else could have put there is refused with 77, naming it and the command that mends it (R2)."""
    named = REFUSED[what](lock)
    done = lock.wrap("-t", "x", "--", "touch", str(ran))
    assert done.returncode == 77, done.stderr
    assert named in done.stderr and ("run: " in done.stderr or "use a directory that is yours alone" in done.stderr)
    assert done.stderr.count("\n") == 1
    assert not ran.exists()


@pytest.mark.parametrize(
    "what", ["a symlinked lock file", "ledger.db that all may write", "heavy-maintenance.json that all may write"]
)
def test_the_advice_mends_it(lock: Headless, ran: Path, what: str) -> None:
    """The command that a refusal names makes the next attempt succeed (R2)."""
    REFUSED[what](lock)
    refused = lock.wrap("-t", "x", "--", "touch", str(ran))
    subprocess.run(["sh", "-c", refused.stderr.rpartition("run: ")[2]], check=True)
    assert lock.wrap("-t", "x", "--", "touch", str(ran)).returncode == 0
    assert ran.exists()


@as_root
@pytest.mark.parametrize(
    "name", ["", "heavy-maintenance.lock", "heavy-maintenance.json", "ledger.db", "ledger.pending"]
)
@pytest.mark.parametrize("what", ["owner", "group"])
def test_refused_because_it_is_somebody_elses(lock: Headless, ran: Path, name: str, what: str) -> None:
    """What belongs to somebody else, or may be written by a group that is not the user's own, is refused with 77 (R2)."""
    path = _made(lock).with_name(name) if name else lock.directory
    if name:
        _ = lock.directory.exists() and path.write_text("")
    else:
        _made(lock)
    if what == "owner":
        os.chown(path, FOREIGN_UID, -1)
    else:
        os.chown(path, -1, FOREIGN_GID)
        path.chmod(path.stat().st_mode | stat.S_IWGRP)
    done = lock.wrap("-t", "x", "--", "touch", str(ran))
    assert done.returncode == 77
    assert str(path) in done.stderr
    assert (f"belongs to uid {FOREIGN_UID}" if what == "owner" else f"group {FOREIGN_GID}") in done.stderr
    assert not ran.exists()


def test_a_group_of_the_users_own_may_write(lock: Headless) -> None:
    """Where the user's own group may write, as a umask of 002 makes it, nothing is refused (R2)."""
    assert grp.getgrgid(os.getegid()).gr_gid == os.getegid()
    _made(lock).write_text("")
    for path in (lock.directory, lock.directory / "heavy-maintenance.lock"):
        os.chown(path, -1, os.getegid())
        path.chmod(path.stat().st_mode | stat.S_IWGRP)
    assert lock.wrap("-t", "x", "--", "true").returncode == 0


@pytest.mark.parametrize("how", ["all", "all through a symlink", "group", "owner"])
def test_a_configuration_that_somebody_else_may_write(lock: Headless, tmp_path: Path, ran: Path, how: str) -> None:
    """A configuration, judged at a symlink's target, that others own or may write is refused with 77 (R2)."""
    if how in {"group", "owner"} and not IS_ROOT:
        pytest.skip("needs root: gives files to others")
    real = tmp_path / "real.toml"
    real.write_text("")
    path = tmp_path / "maintlock.toml"
    path.symlink_to(real) if "symlink" in how else real.rename(path)
    target = path.resolve()
    if how == "owner":
        os.chown(target, FOREIGN_UID, -1)
    elif how == "group":
        os.chown(target, -1, FOREIGN_GID)
        target.chmod(0o660)
    else:
        target.chmod(0o646)
    done = lock.wrap("-t", "x", "--", "touch", str(ran), cwd=tmp_path)
    assert done.returncode == 77
    assert str(target) in done.stderr
    assert not ran.exists() and not lock.directory.exists()


# The command


def _not_executable(tmp_path: Path) -> str:
    path = tmp_path / "maintlock-test-script"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o600)
    return str(path)


def _without_its_interpreter(tmp_path: Path) -> str:
    path = tmp_path / "maintlock-test-script"
    path.write_text(f"#!{tmp_path}/no-such-interpreter\n")
    path.chmod(0o700)
    return str(path)


COMMANDS: Mapping[str, tuple[Callable[[Path], str], int]] = {
    "no such name": (lambda _: "maintlock-test-no-such-command", 127),
    "no such path": (lambda at: str(at / "missing"), 127),
    "below a file": (lambda at: f"{_not_executable(at)}/x", 127),
    "a name too long": (lambda _: "x" * 300, 127),
    "a name in the working directory, which is not on PATH": (lambda at: Path(_not_executable(at)).name, 127),
    "not executable": (_not_executable, 126),
    "a directory": (str, 126),
    "an interpreter that is missing": (_without_its_interpreter, 126),
}


@pytest.mark.parametrize(
    ("what", "options"),
    [
        *((what, options) for what in COMMANDS for options in ("", "-F")),
        ("no such name", "-o"),
        ("not executable", "-o"),
    ],
)
def test_a_command_that_cannot_be_started(lock: Headless, tmp_path: Path, what: str, options: str) -> None:
    """A command that is not found leaves 127, one that cannot be executed 126; nothing stays held or on record (R2)."""
    make, expected = COMMANDS[what]
    done = lock.wrap("-t", "x", *options.split(), "--", make(tmp_path), cwd=tmp_path)
    assert done.returncode == expected
    assert ("command not found" if expected == 127 else "cannot be executed") in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (lock.directory / "heavy-maintenance.json").exists()
    assert lock.history(event="released", outcome="failed", exit_code=expected)
    assert lock.is_free()
    assert not lock.history(outcome="lost")


@pytest.mark.parametrize("options", [(), ("-F",)], ids=" ".join)
def test_a_script_without_an_interpreter_line(lock: Headless, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A script that names no interpreter is the shell's, as with every program that uses execvp(3) (R3)."""
    path = tmp_path / "maintlock-test-script"
    path.write_text('echo "$0" "$@"; exit 3\n')
    path.chmod(0o700)
    by_path = lock.wrap("-t", "x", *options, "--", str(path), "a b")
    on_path = lock.wrap(
        "-t", "x", *options, "--", "maintlock-test-script", "a b", env=lock.env(PATH=f"{tmp_path}:/usr/bin:/bin")
    )
    assert (by_path.returncode, by_path.stdout) == (3, f"{path} a b\n")
    assert (on_path.returncode, on_path.stdout) == (3, f"{path} a b\n")


def test_a_command_that_names_itself_in_several_lines(lock: Headless) -> None:
    """A command's name can neither forge a line of ours nor steer the terminal (R9)."""
    done = lock.wrap("-t", "x", "--", "a\nmaintlock: x deferred\x1b[2J")
    assert done.returncode == 127
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr


def test_126_and_127_wait_for_nothing(lock: Headless) -> None:
    """A waiter gets the lease from a request whose command was not found (R4)."""
    holder = lock.hold()
    waiters = [
        lock.start("-t", f"w{n}", "-w", "forever", "--", command, stderr=subprocess.STDOUT)
        for n, command in enumerate(["maintlock-test-no-such-command", "true"])
    ]
    for waiter in waiters:
        waiter.until_line("waits for the heavy-maintenance lease")
    assert holder.popen.stdin is not None
    holder.popen.stdin.close()
    assert sorted(waiter.end()[0] for waiter in waiters) == [0, 127]
    until(lambda: not (lock.directory / "heavy-maintenance.json").exists())
