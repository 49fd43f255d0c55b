"""Heavy processes outside the lease: what a task's `match` recognises, and no grant covers (R8, L13).

`match` is the base name of a script that an interpreter runs, or of a program. An editor or pager with the same file open
is no heavy process, and neither is whoever waits for the lease, be it a guard with the command in its arguments or the script
itself. A process that has been outside for a moment only may be about to ask, or about to end: it is no collision yet.
"""

from __future__ import annotations

import os
import re
import time
from operator import itemgetter
from typing import TYPE_CHECKING

from maintlock import custody, history, marks, process, survivors
from maintlock import line as line_file
from maintlock.ledger import LedgerUnavailable
from maintlock.model import ProcessIdentity, record, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from maintlock.custody import Custody
    from maintlock.entries import Entry
    from maintlock.model import Line
    from maintlock.paths import Places
    from maintlock.process import Stat
    from maintlock.settings import TaskSettings

INTERPRETERS = frozenset(
    "node nodejs npm npx pnpm yarn bun deno tsx ts-node sh bash dash zsh ksh ash perl ruby php uv pypy pypy3".split()
)
# After these options a program's text follows, and no file's name; short ones may be in a cluster (`bash -lc`, `perl -ne`).
CODE_OF_SHELL = re.compile(
    "-[abefhiklmnprstuvxBCEHPT]*c[abefhiklmnprstuvxBCEHPT]*"
)  # set(1), and what bash has besides
CODE_OF_PYTHON = re.compile("-[A-Za-z]*c")
CODE_OF_NODE = re.compile("-pe?|-e|--print|--eval")
CODE_OF_PERL = re.compile("-[alnpsw]*[eE]")
CODE_OPTIONS = {
    **dict.fromkeys(("node", "nodejs", "bun", "tsx", "ts-node"), CODE_OF_NODE),
    **dict.fromkeys(("perl", "ruby"), CODE_OF_PERL),
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh", "ash"), CODE_OF_SHELL),
}
MANY_PROGRAMS = frozenset({"busybox", "toybox"})  # their names tell nothing, and are followed by that of the program
CODE_WORDS = ("--eval=", "--print=")  # a program's text is in the word itself
OURS = frozenset({"maintlock", "maintlock-wrap", "maintlock-exporter"})
MAX_CMDLINE = 128 * 1024
ASKING = frozenset({"hold", "run"})  # those of `maintlock` that ask for the lease, as `maintlock-wrap` does
LASTING_SECONDS = 2.0  # an interpreter takes a part of that to load a script, or to end
ASKING_SECONDS = 10.0  # after its start a program of ours has asked, however busy the machine is


@record(frozen=True, kw_only=True)
class Outside:
    """One heavy process outside the lease, and the task that it is recognised as; `seconds`: for how long, as far as is known."""

    task: str
    lease: str
    stat: Stat
    seconds: float = 0.0

    @property
    def is_lasting(self) -> bool:
        """Tell whether it is a collision, rather than a process that is about to ask for the lease or about to end."""
        return self.seconds >= LASTING_SECONDS

    def __str__(self) -> str:
        return f"{self.task} (pid {self.stat.pid})"


def is_interpreter(executable: str) -> bool:
    """Tell whether a program's arguments name the program that matters."""
    name = os.path.basename(executable).lstrip("-")
    return name in INTERPRETERS or name.startswith("python")


def base_names(argv: Sequence[str], executable: str = "") -> Iterator[str]:
    """Yield what a process may be the program of: what runs, and each word that an interpreter may take for a script.

    What runs is told by the command line, which says what its starter likes, and by the `executable`, the path of the file.
    """
    if argv and os.path.basename(argv[0]) in MANY_PROGRAMS:
        argv = argv[1:]
    if not argv:
        return
    names = [os.path.basename(path) for path in (argv[0], executable) if path]
    programs = [name for name in dict.fromkeys(names) if name not in MANY_PROGRAMS]
    yield from programs
    interpreter = next(filter(is_interpreter, programs), None)
    if interpreter is None or any(os.path.basename(word) in OURS for word in argv[1:3]):
        return
    code = CODE_OPTIONS.get(interpreter.lstrip("-"), CODE_OF_PYTHON)
    skip_next = False
    for word in argv[1:]:
        if not skip_next and not word.startswith(CODE_WORDS):
            yield os.path.basename(word)
        skip_next = code.fullmatch(word) is not None


def read_argv(pid: int) -> list[str]:
    """Return a process's command line; empty where it has none, or none that we may see."""
    content = process.read_bytes(f"{process.PROC}/{pid}/cmdline", MAX_CMDLINE)
    if content is not None:
        return content.rstrip(b"\0").decode("utf-8", "replace").split("\0") if content else []
    if process.has_proc():
        return []
    try:
        import psutil

        return list(psutil.Process(pid).cmdline())
    except Exception:  # noqa: BLE001  gone, or hidden: psutil's platform errors have no common root
        return []


def read_executable(pid: int) -> str:
    """Return the path of the file that a process executes; empty where it has none, or none that we may see."""
    try:
        return os.readlink(f"{process.PROC}/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def matching(
    argv_of: Mapping[int, Sequence[str]],
    tasks: Iterable[TaskSettings],
    executable_of: Callable[[int], str] = read_executable,
) -> dict[int, TaskSettings]:
    """Return which processes are recognised as which task: by their `base_names`, and if as several, the one configured last.

    Each name is looked up once, however many tasks there are.
    """
    by_match = {task.match: (place, task) for place, task in enumerate(tasks) if task.heavy and task.match}
    found = {}
    for pid, argv in argv_of.items():
        known = [by_match[name] for name in base_names(argv, executable_of(pid)) if name in by_match]
        if known:
            found[pid] = max(known, key=itemgetter(0))[1]
    return found


class Watch:
    """Remembers, over several looks, since when each process has been seen outside the lease."""

    def __init__(self) -> None:
        self._since: dict[str, float] | None = None  # monotonic, by mark; None before the first look

    def timed(self, found: Iterable[Outside], now: float) -> list[Outside]:
        """Return what one look has found, each with how long it has been seen outside; `now` is monotonic.

        At the first look that is what the process and the records tell. Whatever a later look finds that the one before
        did not has only just come outside: it was not there yet, or covered, or waiting.
        """
        before, self._since = self._since, {}
        timed = []
        for one in found:
            since = now - one.seconds
            if before is not None and one.seconds > 0:
                since = before.get(marks.of(one.stat), now)
            self._since[marks.of(one.stat)] = since
            timed.append(replace(one, seconds=now - since))
        return timed


def find(
    tasks: Iterable[TaskSettings], places_of: Callable[[str], Places], watch: Watch | None = None
) -> list[Outside]:
    """Return the heavy processes of ours that collide with the lease: those that no grant covers, and not just for a moment.

    Whoever looks again and again brings the same `watch` each time.
    """
    found = find_uncovered(tasks, places_of)
    return [one for one in (watch or Watch()).timed(found, time.monotonic()) if one.is_lasting]


def find_uncovered(
    tasks: Iterable[TaskSettings], places_of: Callable[[str], Places], present: Iterable[Entry] | None = None
) -> list[Outside]:
    """Return the heavy processes of ours that no current grant covers, by pid; of a tree of them, the topmost.

    Everything else is looked at only once a command line matches. A process is on the table before its grant is asked for,
    and still there afterwards: a job that began or ended in between is none that works outside the lease. `present` are the
    ledger's rows of who waits, if they have been read already.
    """
    tasks = [task for task in tasks if task.heavy and task.match]
    if not tasks:
        return []
    argv_of = {pid: read_argv(pid) for pid in process.read_pids() if pid != os.getpid() and process.is_our_users(pid)}
    found = matching(argv_of, tasks)
    if not found:
        return []
    table = {pid: stat for pid, stat in process.read_table().items() if not stat.is_dead}
    places_by = {task.lease: places_of(task.lease) for task in found.values()}
    if present is None:
        present = _read_present(next(iter(places_by.values())).directory)
    idle = waiting(present, table)  # before the leases: who does not wait any more has got one by then
    looks = {lease: custody.read_custody(places) for lease, places in places_by.items()}
    now = time.time()
    asking = _about_to_ask(argv_of, table, now)
    outside: dict[int, Outside] = {}
    for pid, task in sorted(found.items()):
        if pid not in table or pid in idle:
            continue
        stat, places = table[pid], places_by[task.lease]
        if not is_covered(stat, table, places, looks[task.lease]) and _is_there(stat):
            last = line_file.read_path(places.lock)
            seconds = 0.0 if pid in asking else seconds_outside(_started_at(stat), stat.sid, last, now)
            outside[pid] = Outside(task=task.name, lease=task.lease, stat=stat, seconds=seconds)
    return [one for one in outside.values() if not _descends(one.stat, table, set(outside))]


def seconds_outside(started_at: float | None, session_id: int, last: Line | None, now: float) -> float:
    """Return for how long a process can have worked outside the lease: since it began, or its session had the `last` grant.

    All times are epoch seconds. Where its beginning is not known, nothing speaks against for ever.
    """
    since = float("-inf") if started_at is None else started_at
    if last is not None and last.ended_at is not None and last.session_id == session_id:
        since = max(since, last.ended_at)
    return max(0.0, now - since)


def waiting(present: Iterable[Entry], table: Mapping[int, Stat]) -> set[int]:
    """Return who waits for a lease by the ledger's rows: those processes, and their ancestors and descendants in their sessions."""
    pids = {
        row["pid"] for row in present if row["role"] == "waiting" and process.is_alive(history.identity_of(row)) is True
    }
    return _families(pids, table)


def is_asking(argv: Sequence[str]) -> bool:
    """Tell whether a command line is that of a program of ours that asks for the lease."""
    names = [os.path.basename(word) for word in argv[:3]]
    return "maintlock-wrap" in names or ("maintlock" in names and not ASKING.isdisjoint(argv[1:4]))


def _about_to_ask(argv_of: Mapping[int, Sequence[str]], table: Mapping[int, Stat], now: float) -> set[int]:
    """Return the families of programs of ours that have begun so recently that they may not have asked yet."""
    asking = [pid for pid, argv in argv_of.items() if pid in table and is_asking(argv)]
    return _families([pid for pid in asking if now - (_started_at(table[pid]) or 0.0) < ASKING_SECONDS], table)


def _families(pids: Iterable[int], table: Mapping[int, Stat]) -> set[int]:
    """Return these processes, and their ancestors and descendants in their sessions."""
    found: set[int] = set()
    for stat in [table[pid] for pid in pids if pid in table]:
        family = [stat, *_ancestors(stat, table), *process.descendants(dict(table), stat.pid)]
        found |= {one.pid for one in family if one.sid == stat.sid}
    return found


def _read_present(directory: str) -> list[Entry]:
    try:
        return history.read_states(directory).present
    except LedgerUnavailable:
        return []


def _started_at(stat: Stat) -> float | None:
    return process.started_at(ProcessIdentity(pid=stat.pid, start_ticks=stat.start_ticks, boot_id="", pid_namespace=""))


def is_covered(stat: Stat, table: Mapping[int, Stat], places: Places, found: Custody) -> bool:
    """Tell whether a process is part of the job that has the lease, jobs that have joined it included."""
    grant = found.grant
    if found.state == "free":
        return False
    if grant is None:  # held by somebody who is not on record: any grant of this lease will do
        return _is_marked(stat, places, None)
    job_pid = found.fields.get("job_pid") if found.fields is not None else None
    if stat.pid in {grant.identity.pid, job_pid} or any(stat.pid == member.pid for member in found.members):
        return True
    if grant.hold_until != "tree" and stat.sid != grant.session_id:
        return False
    return _is_marked(stat, places, grant) or _descends(stat, table, {grant.identity.pid, job_pid})


def _is_marked(stat: Stat, places: Places, grant: Line | None) -> bool:
    environ = process.read_environ(stat.pid)
    return bool(environ) and survivors.carries(environ or b"", places, grant, stat.sid)


def _descends(stat: Stat, table: Mapping[int, Stat], roots: Collection[int | None]) -> bool:
    return any(parent.pid in roots for parent in _ancestors(stat, table))


def _ancestors(stat: Stat, table: Mapping[int, Stat]) -> Iterator[Stat]:
    seen: set[int] = set()
    while stat.ppid in table and stat.ppid not in seen:
        seen.add(stat.ppid)
        stat = table[stat.ppid]
        yield stat


def _is_there(stat: Stat) -> bool:
    now = process.read_stat(stat.pid)
    return now is not None and now.start_ticks == stat.start_ticks and not now.is_dead


def is_command(argv: Sequence[str], command: Sequence[str]) -> bool:
    """Tell whether a command line is that of `command`, run by itself or through an interpreter's `#!` line."""
    if len(argv) < len(command) or not command:
        return False
    own = list(argv[-len(command) :])
    is_named = os.path.basename(own[0]) == os.path.basename(command[0])
    is_alone = len(argv) == len(command) or (len(argv) == len(command) + 1 and is_interpreter(argv[0]))
    return is_named and is_alone and own[1:] == list(command[1:])
