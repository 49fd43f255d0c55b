"""Git as a program that ends in time, asks nobody, and whose words can be shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from maintlock import process, redact, signals, tokens
from maintlock.model import record
from maintlock.times import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import IO

    from maintlock.signals import Signals

DEFAULT_TIMEOUT_SECONDS = 120.0
GRACE_SECONDS = 2.0  # git removes its own lock files when it is asked to end
AFTER_KILL_SECONDS = 5.0
MAX_BYTES = 1 << 20
MAX_WORDS = 300
# What would have git work on another repository than the one it is started in, as in a hook (`git rev-parse --local-env-vars`).
ELSEWHERE = frozenset(
    "GIT_DIR GIT_WORK_TREE GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES "
    "GIT_COMMON_DIR GIT_PREFIX GIT_GRAFT_FILE GIT_SHALLOW_FILE GIT_NAMESPACE GIT_CONFIG GIT_INTERNAL_SUPER_PREFIX".split()
)
TRANSLATING = frozenset({"LANGUAGE"})
LOCK_FILE = re.compile(r"'([^\n]+\.lock)': File exists")
MEANT = ("fatal: ", "error: ", "ssh: ")


class GitError(Exception):
    """Git could not be run to its end, or says that it failed; the message is for people."""


@record(frozen=True, kw_only=True)
class Answer:
    """How a git command ended: negative for a signal, as `subprocess` has it."""

    exit_code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What it printed, without the end of the line."""
        return self.out.removesuffix("\n")


class Git:
    """Git in one work tree."""

    def __init__(self, root: str, *, environ: Mapping[str, str], watch: Signals, timeout_seconds: float) -> None:
        self.root = root
        self._environ = environ
        self._watch = watch
        self._timeout_seconds = timeout_seconds

    def has_own_ssh(self) -> bool:
        """Tell whether the user has chosen how git starts ssh."""
        if {"GIT_SSH_COMMAND", "GIT_SSH"} & self._environ.keys():
            return True
        return self.ask("config", "--get", "core.sshCommand").exit_code == 0

    def silence_ssh(self) -> None:
        """Have ssh ask nobody either, unless the user has chosen how it is started."""
        if not self.has_own_ssh():
            self._environ = {**self._environ, "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}

    def output_of(self, *arguments: str) -> str:
        """Return what a command that has to succeed prints, without the end of the line.

        Raises:
            GitError: It failed, or did not end.
            Interrupted: A signal that ends us has come.
        """
        answer = self.ask(*arguments)
        if answer.exit_code != 0:
            raise GitError(f"git {arguments[0]}: {meant(answer.err)}")
        return answer.line

    def ask(self, *arguments: str) -> Answer:
        """Return how a command ended.

        Raises:
            GitError: It could not be started, or did not end in time.
            Interrupted: A signal that ends us has come.
        """
        self._watch.check()
        try:
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                # Files, and no pipes: what a hook leaves running would keep those open.
                exit_code = self._run(arguments, out, err)
                return Answer(exit_code=exit_code, out=_read(out), err=_read(err))
        except FileNotFoundError as error:
            raise GitError(f"{error.filename or 'git'}: {error.strerror}; is git installed, and on PATH?") from None
        except OSError as error:
            raise GitError(f"git cannot be run: {error.strerror}") from None

    def _run(self, arguments: Iterable[str], out: IO[bytes], err: IO[bytes]) -> int:
        arguments = list(arguments)
        child = subprocess.Popen(
            ["git", "-C", self.root, *arguments],
            env=environment(self._environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            process_group=0,  # and no session: it is part of the job
        )
        deadline = time.monotonic() + self._timeout_seconds
        try:
            while not has_ended(child):
                left = deadline - time.monotonic()
                if left <= 0:
                    waited = duration_text(self._timeout_seconds)
                    raise GitError(f"git {arguments[0]}: has not ended within {waited}, and was stopped; see --timeout")
                self._watch.pause(left)
        except BaseException:
            _end_group(child, self._watch)
            raise
        return child.wait()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which git asks nobody and speaks the language that is read here."""
    kept = {name: value for name, value in environ.items() if name not in ELSEWHERE | TRANSLATING}
    refuse = shutil.which("false") or "false"
    return tokens.merged(
        kept,
        {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": refuse,
            "SSH_ASKPASS": refuse,
            "SSH_ASKPASS_REQUIRE": "never",
            "GCM_INTERACTIVE": "never",
            "GIT_EDITOR": refuse,
            "GIT_OPTIONAL_LOCKS": "0",
        },
    )


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Tell whether a child has ended; it is left unreaped, so that its number stays its own."""
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except AttributeError:  # Python before 3.13 on macOS
        stat = process.read_stat(child.pid)
        return stat is None or stat.is_dead


def _end_group(child: subprocess.Popen[bytes], watch: Signals) -> None:
    """End git and its helpers; what even KILL does not end (a disk that hangs) is left to the wrapper, which waits for it."""
    for number, seconds in ((signals.TERM, GRACE_SECONDS), (signals.KILL, AFTER_KILL_SECONDS)):
        with suppress(OSError):
            os.killpg(child.pid, number)
        deadline = time.monotonic() + seconds
        while not has_ended(child) and (left := deadline - time.monotonic()) > 0:
            watch.wait(left)
    child.poll()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return os.fsdecode(file.read(MAX_BYTES))


def meant(err: str) -> str:
    """Return the part of git's words that says what is wrong, as it can be shown."""
    locked = LOCK_FILE.search(err)
    if locked is not None:
        return f"another git is running here, or died here; if none is running any more: rm {shown(locked[1])}"
    lines = [line for line in err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(MEANT)] or lines[-1:]
    return "; ".join(shown(line) for line in said[:3]) or "failed without an error message"


def shown(text: str) -> str:
    """Return text of git's, in one line without secrets and control characters."""
    return redact.printable(" ".join(redact.without_secrets([text.strip()])), MAX_WORDS)
