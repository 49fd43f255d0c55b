"""Heavy processes outside the lease: what a task's `match` recognises, and no grant covers (R8, L13).

`match` is the base name of a script that an interpreter runs, or of a program. An editor or pager with the same file open
is no heavy process, and neither is a guard that still waits with the command in its arguments.
"""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING

from maintlock import custody, process, survivors
from maintlock.model import record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from maintlock.custody import Custody
    from maintlock.model import Line
    from maintlock.paths import Places
    from maintlock.process import Stat
    from maintlock.settings import TaskSettings

INTERPRETERS = frozenset(
    "node nodejs npm npx pnpm yarn bun deno tsx ts-node sh bash dash zsh ksh ash busybox perl ruby php uv pypy pypy3".split()
)
INLINE_CODE = frozenset({"-c", "-e", "-p", "--eval", "--print"})  # what follows is a program's text, not a file's name
OURS = frozenset({"maintlock", "maintlock-wrap", "maintlock-exporter"})
MAX_CMDLINE = 128 * 1024


@record(frozen=True, kw_only=True)
class Outside:
    """One heavy process outside the lease, and the task that it is recognised as."""

    task: str
    lease: str
    stat: Stat

    def __str__(self) -> str:
        return f"{self.task} (pid {self.stat.pid})"


def is_interpreter(executable: str) -> bool:
    """Tell whether a program's arguments name the program that matters."""
    name = os.path.basename(executable).lstrip("-")
    return name in INTERPRETERS or name.startswith("python")


def is_match(argv: Sequence[str], match: str) -> bool:
    """Tell whether a command line is that of the program `match`: run by itself, or by an interpreter."""
    return match in base_names(argv)


def base_names(argv: Sequence[str]) -> Iterator[str]:
    """Yield what a command line may be the program of: what runs, and each word that an interpreter may take for a script."""
    if not argv:
        return
    yield os.path.basename(argv[0])
    if not is_interpreter(argv[0]) or any(os.path.basename(word) in OURS for word in argv[1:3]):
        return
    skip_next = False
    for word in argv[1:]:
        if not skip_next:
            yield os.path.basename(word)
        skip_next = word in INLINE_CODE


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


def matching(argv_of: Mapping[int, Sequence[str]], tasks: Iterable[TaskSettings]) -> dict[int, TaskSettings]:
    """Return which processes are recognised as which task: by `is_match`, and if as several, the one configured last.

    Each name is looked up once, however many tasks there are.
    """
    by_match = {task.match: (place, task) for place, task in enumerate(tasks) if task.heavy and task.match}
    found = {}
    for pid, argv in argv_of.items():
        known = [by_match[name] for name in base_names(argv) if name in by_match]
        if known:
            found[pid] = max(known, key=itemgetter(0))[1]
    return found


def find(tasks: Iterable[TaskSettings], places_of: Callable[[str], Places]) -> list[Outside]:
    """Return the heavy processes of ours that no current grant covers, by pid; of a tree of them, the topmost.

    Everything else is looked at only once a command line matches. A process is on the table before its grant is asked for,
    and still there afterwards: a job that began or ended in between is none that works outside the lease.
    """
    tasks = [task for task in tasks if task.heavy and task.match]
    if not tasks:
        return []
    found = matching({pid: read_argv(pid) for pid in process.read_pids() if _is_our_users(pid)}, tasks)
    if not found:
        return []
    table = {pid: stat for pid, stat in process.read_table().items() if not stat.is_dead}
    looks: dict[str, Custody] = {}
    outside: dict[int, Outside] = {}
    for pid, task in sorted(found.items()):
        places = places_of(task.lease)
        if task.lease not in looks:
            looks[task.lease] = custody.read_custody(places)
        if pid in table and not is_covered(table[pid], table, places, looks[task.lease]) and _is_there(table[pid]):
            outside[pid] = Outside(task=task.name, lease=task.lease, stat=table[pid])
    return [one for one in outside.values() if not _descends(one.stat, table, set(outside))]


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
    environ = process.read_environ(stat)
    return bool(environ) and survivors.carries(environ or b"", places, grant, stat.sid)


def _descends(stat: Stat, table: Mapping[int, Stat], roots: Collection[int | None]) -> bool:
    seen: set[int] = set()
    while stat.ppid in table and stat.ppid not in seen:
        seen.add(stat.ppid)
        stat = table[stat.ppid]
        if stat.pid in roots:
            return True
    return False


def _is_there(stat: Stat) -> bool:
    now = process.read_stat(stat.pid)
    return now is not None and now.start_ticks == stat.start_ticks and not now.is_dead


def _is_our_users(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        return os.stat(f"{process.PROC}/{pid}").st_uid == os.geteuid()
    except OSError:
        return not process.has_proc()


def is_command(argv: Sequence[str], command: Sequence[str]) -> bool:
    """Tell whether a command line is that of `command`, run by itself or through an interpreter's `#!` line."""
    if len(argv) < len(command) or not command:
        return False
    own = list(argv[-len(command) :])
    is_named = os.path.basename(own[0]) == os.path.basename(command[0])
    is_alone = len(argv) == len(command) or (len(argv) == len(command) + 1 and is_interpreter(argv[0]))
    return is_named and is_alone and own[1:] == list(command[1:])
