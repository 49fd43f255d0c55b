"""What the system says about processes: who is one, who lives, who descends from whom, what is in its environment.

`/proc` is used where there is one and psutil elsewhere (macOS); where neither tells, the answer is "unknown", never a guess.
A process that vanishes while it is looked at is an answer, not an error.
"""

from __future__ import annotations

import os
import sys

from maintlock.model import ProcessIdentity, record
from maintlock.paths import NO_DESCRIPTOR_LEFT

TYPE_CHECKING = False

PROC = "/proc"
PR_SET_CHILD_SUBREAPER = 36
PF_EXITING, PF_KTHREAD = 0x4, 0x200000  # linux/sched.h
_constants: dict[str, str] = {}  # what cannot change while this process lives
_subreapers: dict[int, bool] = {}  # whether we are one, by our pid
_own: dict[int, tuple[ProcessIdentity, float | None]] = {}
AT_ONCE = 1 << 20  # of an environment, whose process may become another program between two reads
MAX_ENVIRON = 8 << 20  # the kernel's own bound is 6 MiB, and 2 MiB by default (execve(2))
_blind = [0]


@record(frozen=True, kw_only=True)
class Stat:
    """One row of the process table. `state` is the kernel's letter: R S D T t Z …; `threads` counts the leader too.

    `flags`, `start_code`, `env_start` and `env_end` are those of proc_pid_stat(5), the last three addresses. They are 0 after a
    process has begun to end, and where there is no `/proc`. While it becomes another program, `start_code` is 0, and the other
    two are 0 or may be equal before the environment is in place.
    """

    pid: int
    name: str
    state: str
    ppid: int
    pgid: int
    sid: int
    threads: int
    start_ticks: int
    flags: int = 0
    start_code: int = 0
    env_start: int = 0
    env_end: int = 0

    @property
    def is_dead(self) -> bool:
        """A zombie works no more, unless other threads of it do."""
        return self.state in "ZXx" and self.threads <= 1

    @property
    def is_stopped(self) -> bool:
        """Stopped by a signal, or by who traces it."""
        return self.state in ("T", "t")

    @property
    def is_exiting(self) -> bool:
        """A process closes its files before it stops being there."""
        return bool(self.flags & PF_EXITING)

    @property
    def has_no_environment(self) -> bool:
        """It was started with an empty one (`env -i`)."""
        return self.start_code > 0 and 0 < self.env_start == self.env_end

    @property
    def is_kernel_thread(self) -> bool:
        """The kernel's own threads are nobody's job, and have no environment; their session is 0."""
        return bool(self.flags & PF_KTHREAD)


def read_text(path: str, limit: int = 65536) -> str | None:
    """Return a small file of the kernel as text, or None where it is not to be had."""
    content = read_bytes(path, limit)
    return None if content is None else content.decode("utf-8", "backslashreplace")


def read_bytes(path: str, limit: int = 65536) -> bytes | None:
    """Return up to `limit` bytes of a file of the kernel, or None where it is not to be had."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        _note_blindness(error)
        return None
    try:
        parts = []
        while limit > 0 and (part := os.read(fd, min(limit, AT_ONCE))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def times_blind() -> int:
    """Return how often something could not be looked at because there was no descriptor left for it.

    Whoever must not take that for "nobody is there" compares the number before and after a look.
    """
    return _blind[0]


def _note_blindness(error: OSError) -> None:
    _blind[0] += error.errno in NO_DESCRIPTOR_LEFT


def has_proc() -> bool:
    """Tell whether the kernel's own view is there."""
    return os.path.exists(f"{PROC}/self/stat")


def boot_id() -> str:
    """Return what tells this boot of the machine from every other, or `""` where the platform does not say."""
    if "boot" not in _constants:
        text = read_text(f"{PROC}/sys/kernel/random/boot_id", 64)
        _constants["boot"] = text.strip() if text else _darwin_boot_id() if sys.platform == "darwin" else ""
    return _constants["boot"]


def _darwin_boot_id() -> str:
    from subprocess import run

    try:
        found = run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, timeout=2, check=False)
    except (OSError, ValueError):
        return ""
    return found.stdout.decode("ascii", "replace").strip()[:36]


def pid_namespace() -> str:
    """Return the number of our pid namespace as text, or `""` where there are none."""
    if "namespace" not in _constants:
        try:
            _constants["namespace"] = os.readlink(f"{PROC}/self/ns/pid").partition("[")[2].rstrip("]")
        except OSError:
            _constants["namespace"] = ""
    return _constants["namespace"]


def booted_at() -> float | None:
    """Return when this machine booted, in seconds since the epoch (suspended time counts), or None."""
    import time

    try:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        pass
    try:
        import psutil

        return float(psutil.boot_time())
    except Exception:  # psutil's platform errors have no common root
        return None


def started_at(identity: ProcessIdentity) -> float | None:
    """Return when a process of this boot started, in seconds since the epoch, or None where that is not known."""
    if not identity.start_ticks:
        return None
    if not has_proc():
        return identity.start_ticks / 100
    booted = booted_at()
    return None if booted is None else booted + identity.start_ticks / os.sysconf("SC_CLK_TCK")


def parsed_stat(text: str) -> Stat | None:
    """Return one line of proc_pid_stat(5) as a row; the name may hold blanks and parentheses."""
    left, _, right = text.rpartition(")")
    fields = right.split()
    pid, _, name = left.partition(" (")
    try:
        return Stat(
            pid=int(pid),
            name=name,
            state=fields[0],
            ppid=int(fields[1]),
            pgid=int(fields[2]),
            sid=int(fields[3]),
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
            flags=int(fields[6]),
            start_code=int(fields[23]) if len(fields) > 48 else 0,
            env_start=int(fields[47]) if len(fields) > 48 else 0,
            env_end=int(fields[48]) if len(fields) > 48 else 0,
        )
    except (ValueError, IndexError):
        return None


def read_stat(pid: int) -> Stat | None:
    """Return the row of a process, or None where there is no such process, or nothing tells."""
    text = read_text(f"{PROC}/{pid}/stat", 4096)
    if text is not None:
        return parsed_stat(text)
    return None if has_proc() else _psutil_stat(pid)


def _psutil_stat(pid: int) -> Stat | None:
    try:
        import psutil

        process = psutil.Process(pid)
        with process.oneshot():
            return Stat(
                pid=pid,
                name=process.name(),
                state={"zombie": "Z", "stopped": "T", "dead": "X"}.get(process.status(), "S"),
                ppid=process.ppid(),
                pgid=os.getpgid(pid),
                sid=os.getsid(pid),
                threads=1,
                start_ticks=int(process.create_time() * 100),
            )
    except Exception:  # gone, hidden, or a platform where psutil cannot work: nothing is known of it
        return None


def read_pids() -> list[int]:
    """Return all process ids that we can see."""
    try:
        return [int(name) for name in os.listdir(PROC) if name.isdigit()]
    except OSError as error:
        _note_blindness(error)
    try:
        import psutil

        return list(psutil.pids())
    except Exception:  # no process table at all
        return []


def read_table() -> dict[int, Stat]:
    """Return the process table, by pid."""
    rows = [read_stat(pid) for pid in read_pids()]
    return {row.pid: row for row in rows if row is not None}


def read_identity(pid: int) -> ProcessIdentity:
    """Return who a process is (L1). What the platform does not tell stays 0 or empty."""
    stat = read_stat(pid)
    return ProcessIdentity(
        pid=pid,
        start_ticks=stat.start_ticks if stat else 0,
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
    )


def own_identity() -> ProcessIdentity:
    """Return who we are, read once; the child of a fork is somebody else."""
    return _own_facts()[0]


def own_started_at() -> float | None:
    """Return when we started, by the clock as it was when we first looked; see `started_at`."""
    return _own_facts()[1]


def _own_facts() -> tuple[ProcessIdentity, float | None]:
    pid = os.getpid()
    if pid not in _own:
        _own.clear()
        identity = read_identity(pid)
        _own[pid] = identity, started_at(identity)
    return _own[pid]


def is_of_other_boot(identity: ProcessIdentity) -> bool:
    """Tell whether a process belongs to another boot, of this machine or of another one."""
    return bool(identity.boot_id and boot_id()) and identity.boot_id != boot_id()


def is_in_other_namespace(identity: ProcessIdentity) -> bool:
    """Tell whether a process belongs to another pid namespace: what its numbers mean cannot be seen from here."""
    return bool(identity.pid_namespace and pid_namespace()) and identity.pid_namespace != pid_namespace()


def is_alive(identity: ProcessIdentity) -> bool | None:
    """Tell whether exactly this process still lives; None where that cannot be known from here."""
    here = boot_id()
    if is_of_other_boot(identity):
        return False
    if is_in_other_namespace(identity):
        return None
    if identity.pid <= 0:
        return False
    stat = read_stat(identity.pid)
    counts_alike = bool(identity.boot_id) == bool(here)  # without /proc the start is counted in another unit
    if stat is not None and identity.start_ticks and counts_alike:
        return stat.start_ticks == identity.start_ticks and not stat.is_dead
    return None if _exists(identity.pid) else False


def is_our_users(pid: int) -> bool:
    """Tell whether a process is of the user whom we work for; where nothing tells, it is."""
    try:
        return os.stat(f"{PROC}/{pid}").st_uid == os.geteuid()
    except OSError:
        return not has_proc()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def ancestors(pid: int) -> list[Stat]:
    """Return the parents of a process, nearest first, as far as they can be seen."""
    found: list[Stat] = []
    seen = {pid}
    stat = read_stat(pid)
    while stat is not None and stat.ppid > 0 and stat.ppid not in seen:
        seen.add(stat.ppid)
        stat = read_stat(stat.ppid)
        if stat is not None:
            found.append(stat)
    return found


def may_have_children() -> bool:
    """Tell whether we have a child, dead or alive; True also where the platform cannot tell (macOS has no waitid(2) in Python)."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except AttributeError:
        pass
    return True


def descendants(table: dict[int, Stat], root: int, without: frozenset[int] = frozenset()) -> list[Stat]:
    """Return all processes below `root` in a table, subtrees of `without` left out, by pid."""
    children: dict[int, list[Stat]] = {}
    for stat in table.values():
        children.setdefault(stat.ppid, []).append(stat)
    found: dict[int, Stat] = {}
    frontier = [root]
    while frontier:
        for child in children.get(frontier.pop(), ()):
            if child.pid not in found and child.pid not in without and child.pid != root:
                found[child.pid] = child
                frontier.append(child.pid)
    return [found[pid] for pid in sorted(found)]


def read_environ(pid: int) -> bytes | None:
    """Return the NUL-separated environment of a process; empty while it executes a program, None if not readable."""
    base = f"{PROC}/{pid}"
    found = read_bytes(f"{base}/environ", MAX_ENVIRON)
    if found:
        return found
    if not has_proc():
        return _psutil_environ(pid)
    stat = read_stat(pid)
    if stat is None or stat.is_dead:
        return b""
    if stat.is_exiting or stat.state in "ZXx":  # the leader ends, its threads work on: they have the environment
        try:
            threads = [f"{base}/task/{tid}" for tid in os.listdir(f"{base}/task") if tid != str(pid)]
        except OSError as error:
            _note_blindness(error)
            return b""
        return next((found for thread in threads if (found := read_bytes(f"{thread}/environ", MAX_ENVIRON))), b"")
    return found


def is_executing(pid: int) -> bool:
    """Tell whether a process is becoming another program, which takes long on a busy disk; without `/proc` it is not known.

    Its new memory has neither arguments nor environment nor code yet. The kernel's own threads have no memory, and what ends
    has given its own back.
    """
    if any(read_bytes(f"{PROC}/{pid}/{name}") != b"" for name in ("environ", "cmdline")):
        return False
    stat = read_stat(pid)
    return stat is not None and not (stat.start_code or stat.is_exiting or stat.is_kernel_thread or stat.state in "ZXx")


def _psutil_environ(pid: int) -> bytes | None:
    try:
        import psutil

        return b"\0".join(f"{key}={value}".encode() for key, value in psutil.Process(pid).environ().items())
    except Exception as error:  # psutil's errors are only importable where psutil is
        return b"" if type(error).__name__ == "NoSuchProcess" else None


def environ_value(environ: bytes, name: bytes) -> bytes:
    """Return the value of one variable in a NUL-separated environment, empty where it has none."""
    return (b"\0" + environ).partition(b"\0" + name + b"=")[2].partition(b"\0")[0]


def send_signal(stat: Stat, number: int) -> bool:
    """Send a signal to exactly this process; False if it is gone, or its pid is another's by now."""
    fd = _open_pidfd(stat.pid)  # from here on it leads to one process only, or to none
    try:
        now = read_stat(stat.pid)
        if now is None or now.start_ticks != stat.start_ticks:
            return False
        if fd is None:
            os.kill(stat.pid, number)
        else:
            from signal import pidfd_send_signal

            pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        if fd is not None:
            os.close(fd)
    return True


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor of a process, pidfd_open(2), None where it is gone, or the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def become_subreaper() -> bool:
    """Have orphaned descendants handed to us instead of to init, prctl(2); False where the kernel has no such thing.

    For the child of a fork that is to be done anew; in the same process, once is enough.
    """
    pid = os.getpid()
    if pid not in _subreapers:
        _subreapers.clear()
        try:
            _subreapers[pid] = _prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
        except (ImportError, OSError, AttributeError):
            _subreapers[pid] = False
    return _subreapers[pid]


def _prctl(option: int, value: int) -> int:
    """Call prctl(2) through `_ctypes`: a guarded job waits for it, and `ctypes` around it takes four times as long."""
    arguments = option, value, 0, 0, 0
    try:
        import _ctypes

        program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None is what the interpreter itself is linked to
        found: int = _ctypes.call_function(_ctypes.dlsym(program, "prctl"), arguments)
    except (ImportError, AttributeError):
        import ctypes

        found = ctypes.CDLL(None).prctl(*arguments)
    return found
