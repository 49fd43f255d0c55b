"""`maintlock hold`: the lease for long-lived programs in any language, held by a helper beside them.

    client ── stdin ──▶ helper      closes it: the work is done; what it writes before is its exit code
           ◀─ stdout ──             one line: granted, or deferred
           ── --fd N ──             the client's own descriptor of the lock file: both carry the lock then

With `--fd` the death of either frees nothing while the other lives, and a signal to the helper is passed on to the client as
another line: as under the wrapper, the lease ends when the work does. What the client has started under the lease keeps it
beyond the client's end, as the leftovers of a job do.
"""

from __future__ import annotations

import os
import select
import time

from maintlock import flock, parts, process, signals
from maintlock.errors import EXIT_SIGNAL_BASE, Interrupted, LeaseHeld, MaintlockError, UsageError
from maintlock.jsontext import encoded_object
from maintlock.lease import Lease
from maintlock.options import HOLD, exit_code
from maintlock.program import (
    Wish,
    at_edge,
    clear_outcome,
    finish,
    granted,
    print_about,
    read_command_line,
    read_environ,
    write_not_run,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from maintlock.lease import Joined
    from maintlock.model import ProcessIdentity
    from maintlock.options import Options
    from maintlock.voice import Voice

STDIN, STDOUT = 0, 1
LOOK_SECONDS = 0.2
LAST_SIGNAL_SECONDS = 0.05
CHUNK = 512  # POSIX's PIPE_BUF: a pipe that is ready takes that much
MODE = "coprocess"
USAGE = f"{HOLD.name} -t NAME"
UNKNOWN = "unknown"


def main(argv: Sequence[str]) -> int:
    """Run the program, and return its exit code."""
    code = at_edge(lambda voice: _run(argv, voice))
    if signals.Waiter.is_left_behind:  # while the interpreter shuts down, it could not give back what it gets
        os._exit(code)
    return code


def _run(argv: Sequence[str], voice: Voice) -> int:
    said = read_command_line(argv, HOLD, voice)
    if said.help or said.version:
        return print_about(said, HOLD.name)
    client = process.read_identity(os.getppid())
    watch = signals.Signals(voice)
    clear_outcome(said)
    wish, began = None, time.monotonic()
    try:
        _check(said)
        said.command = _command_of(client.pid)
        wish = Wish(said, read_environ(), voice, USAGE)
        grant = _granted(wish, watch)
    except MaintlockError as error:
        is_gone = isinstance(error, Interrupted) and error.number == signals.CLOSED
        if is_gone:
            error.exit_code = 0  # the client does not wait any more
        write_not_run(said, wish, error, voice, waited_seconds=time.monotonic() - began)
        if is_gone:
            return 0
        raise
    grant.record_begin()
    if isinstance(grant, Lease):
        grant.describe_job(client.pid, process.started_at(client))
    code, outcome = _held(grant, wish, client, watch)
    finish(wish, grant, outcome, None if outcome == UNKNOWN else code)
    return code


def _granted(wish: Wish, watch: signals.Signals) -> Lease | Joined:
    """Return the lease; what has become of the request otherwise is told to the client, and raised.

    Only a client that waits may leave: what is decided at once is told also to one whose end of the pipe is closed.
    """
    places = wish.open_places()
    if wish.wait_seconds() is not None:
        watch.end_when_closed(STDIN)
    try:
        grant = granted(wish, places, watch, mode=MODE, lock_fd=wish.said.fd)
    except LeaseHeld as held:
        _try_to_tell(watch, {"event": "deferred", "reason_code": held.reason_code, "holder": held.holder})
        raise
    except UsageError:
        _tell_right_file(watch, wish.said.fd, places.lock)
        raise
    watch.end_when_closed(STDIN)
    return grant


def _held(grant: Lease | Joined, wish: Wish, client: ProcessIdentity, watch: signals.Signals) -> tuple[int, str]:
    """Tell the client, keep the lease until it is done, and return exit code and outcome."""
    number = 0
    try:
        _tell(
            watch,
            {
                "event": "granted",
                "lease": grant.places.lease,
                "lease_id": grant.line.lease_id,
                "fence": grant.line.fence,
                "task": grant.request.task,
                "env": grant.environment(wish.environ),
            },
        )
        while True:
            watch.pause(None)
    except Interrupted as ended:
        number = ended.number
    except OSError as error:
        number = signals.PIPE
        watch.voice.error(
            f"{grant.request.task}: the client does not read the output of maintlock hold: {error.strerror}; releasing the lease"
        )
    ending = _ending(client, watch.heard)
    if number == signals.CLOSED and ending[1] == UNKNOWN:
        number = _last_signal(watch)
    if wish.said.fd is not None and number not in {signals.CLOSED, signals.PIPE}:
        _pass_on(number, client, watch)
    if isinstance(grant, Lease):
        # What comes meanwhile changes nothing: the work is not done.
        parts.wait(grant, lock=lambda fd: _lock(fd, watch), pause=watch.wait)
    return ending if number == signals.CLOSED else (EXIT_SIGNAL_BASE + number, "stopped")


def _ending(client: ProcessIdentity, said: bytes) -> tuple[int, str]:
    """Return how the work of a client that has closed our standard input has ended: as it said, or by whether it lives."""
    try:
        code = exit_code(said.split()[-1].decode())
    except (IndexError, ValueError):  # nothing, or nothing of this kind
        return 0, UNKNOWN if _is_leaving(client) else "completed"
    return code, "completed" if code == 0 else "failed"


def _last_signal(watch: signals.Signals) -> int:
    """Return the signal that is sent to us at the same time as to the client, which may have died of it first."""
    return next((number for number in watch.wait(LAST_SIGNAL_SECONDS) if number in signals.ENDING), signals.CLOSED)


def _is_leaving(client: ProcessIdentity) -> bool:
    """Tell whether a client is dead or on its way there: it closes its files before it stops being there."""
    stat = process.read_stat(client.pid)
    return process.is_alive(client) is False or (stat is not None and stat.is_exiting)


def _pass_on(number: int, client: ProcessIdentity, watch: signals.Signals) -> None:
    """Ask a client that carries the lock too to stop, and wait until it has closed our standard input, or is dead.

    To free the lock at once would let the next job begin while this one still works.
    """
    _try_to_tell(watch, {"event": "stop_requested", "signal": number})
    while process.is_alive(client) is not False and not watch.is_closed:
        watch.wait(LOOK_SECONDS)


def _lock(fd: int, watch: signals.Signals) -> None:
    """Wait for a lock, whatever signals come."""
    waiter = watch.lock_in_thread(fd)
    while not waiter.outcome:
        watch.wait(None)


def _command_of(pid: int) -> list[str]:
    """Return the argument list of a process, as far as it is to be had."""
    content = process.read_bytes(f"{process.PROC}/{pid}/cmdline") or b""
    return [os.fsdecode(word) for word in content.split(b"\0")[:-1]]


def _check(said: Options) -> None:
    """Refuse what a helper beside its client cannot do.

    Raises:
        UsageError: With what to do instead.
    """
    if said.command:
        raise UsageError(
            "hold runs no command, it holds the lease for its caller; to run one: maintlock run -t NAME -- COMMAND"
        )


def _tell_right_file(watch: signals.Signals, fd: int | None, path: str) -> None:
    """Tell a client whose descriptor is not the lock file which file that is."""
    try:
        if fd is not None:
            flock.check_given(fd, path)
    except UsageError:
        _try_to_tell(watch, {"event": "refused", "path": path})


def _try_to_tell(watch: signals.Signals, fields: dict[str, object]) -> None:
    """Write a line to the client, unless it does not listen any more."""
    try:
        _tell(watch, fields)
    except (Interrupted, OSError):
        pass


def _tell(watch: signals.Signals, fields: dict[str, object]) -> None:
    """Write a line to the client; one that does not read can still leave, or be stopped.

    Raises:
        Interrupted: It has left, or we are to stop.
        OSError: It has closed its end.
    """
    content = (encoded_object(fields) + "\n").encode()
    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    while content:
        while not poll.poll(0):
            watch.pause(LOOK_SECONDS)
        content = content[os.write(STDOUT, content[:CHUNK]) :]
