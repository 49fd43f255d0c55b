"""The ledger: SQLite with history, counters, task state, open collisions, and who waits or has joined.

Events reach it through `ledger.pending` only: a drain enters them. Here are the drain and the file: how it is opened, and
what can be wrong with it.
"""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import stat
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from maintlock import book, flock, migrations, pending
from maintlock.entries import as_seconds
from maintlock.errors import EXIT_UNAVAILABLE, MaintlockError
from maintlock.paths import PENDING_FILES
from maintlock.settings import DEFAULT_HISTORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from maintlock.model import Event

DATABASE = "ledger.db"
BESIDE = ("-wal", "-shm", "-journal")
BUSY_SECONDS = 0.5
READ_BUSY_SECONDS = 0.2
DRAIN_SECONDS = 0.75  # for all that a drain waits for; counting what it drops may add 0.2
KNOWN_AT_MOST = 1000  # of what is not asked again
LOOK_SECONDS = 0.02
PRUNE_EVERY_SECONDS = 3600.0
PRUNE_AT_ONCE = 1000  # so that no drain takes long
ALWAYS_KEPT = 1000
# Never the last grant of a lease: its beginning and end may be told once more by the next, however long that takes.
PRUNE = (
    "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at < ?"
    " AND at < (SELECT at FROM events ORDER BY at DESC LIMIT 1 OFFSET ?)"
    " AND (lease_id IS NULL OR lease_id NOT IN (SELECT lease_id FROM leases WHERE lease_id IS NOT NULL"
    " UNION ALL SELECT lease_id FROM open_grants)) ORDER BY at LIMIT ?)"
)
TOLERANT = partial(str, encoding="utf-8", errors="replace")
SQLITE_REASONS = {
    sqlite3.SQLITE_BUSY: "busy: another process keeps it locked",
    sqlite3.SQLITE_LOCKED: "busy: another process keeps it locked",
    sqlite3.SQLITE_FULL: "full: no space left",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: unable to create or read its files",
    sqlite3.SQLITE_IOERR: "input/output error, or no space left",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt: not a database",
    sqlite3.SQLITE_ERROR: "corrupt: not a ledger's tables",
}


class LedgerUnavailable(MaintlockError):  # noqa: N818  history that has to wait is an answer, not an error
    """The ledger cannot be read or written now; what waits for it stays in `ledger.pending`.

    `reason` says why, to people; `kind` is `corrupt`, `older` or `newer` (its schema than ours), or `""` for all else.
    """

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, path: str, reason: str, *, kind: str = "") -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason
        self.kind = kind


# Draining --------------------------------------------------------------------------------------------------------------

_ABANDONED: list[sqlite3.Connection] = []  # a parent's, which a forked child may neither use nor close


def drain(directory: str, *, history_seconds: float | None = None, now: float) -> None:
    """Enter what waits in `ledger.pending` once; see `Ledger.drain`.

    Raises:
        LedgerUnavailable: It cannot be written now.
    """
    with Ledger(directory, history_seconds=history_seconds) as ledger:
        ledger.drain(now=now)


class Ledger:
    """The ledger of one state directory, with a connection that is kept between drains; threads may share it.

    `history_seconds` is what our configuration says, None if it says nothing: then what the last one said that did.
    """

    def __init__(self, directory: str, *, history_seconds: float | None = None) -> None:
        self.directory = directory
        self.path = f"{directory}/{DATABASE}"
        self.history_seconds = history_seconds
        self._history_told: float | None = None  # what the ledger was told of it
        self._pruned_at = -math.inf
        self._patience_set = 0.0
        self._opened: tuple[int, int] | None = None
        self._db: sqlite3.Connection | None = None
        self._known = book.Known()
        self._known_version: int | None = None
        self._pid, self._mutex = os.getpid(), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next drain opens another."""
        if self._db is None or self._pid != os.getpid():
            self._close()
            return
        with _kept_in_place(self.directory):
            self._close()

    def _close(self) -> None:
        db, self._db, self._known_version = self._db, None, None
        if db is None:
            return
        if self._pid == os.getpid():
            db.close()
        else:
            _ABANDONED.append(db)

    def drain(self, *, now: float) -> None:
        """Enter what waits in `ledger.pending`, and empty it; costs a few calls of stat where nothing waits.

        `now` is in seconds since the epoch. What is no event, or tells nothing, is counted as dropped. A drain that fails
        has waited for less than a second, and has left the pending events where they are.

        Raises:
            LedgerUnavailable: It is busy, full, read-only, corrupt, of a newer schema, or not ours.
        """
        if self._pid != os.getpid():
            self._close()
            self._pid, self._mutex = os.getpid(), threading.Lock()
        deadline = time.monotonic() + DRAIN_SECONDS
        if not self._mutex.acquire(timeout=BUSY_SECONDS):
            raise LedgerUnavailable(self.path, "busy: another thread is draining")
        name = pending.PENDING
        try:
            for name in pending.waiting(self.directory):
                self._drain(name, now, deadline)
            self._look_after(deadline)
        except OSError as error:
            raise LedgerUnavailable(f"{self.directory}/{name}", _system_reason(error)) from error
        except (sqlite3.Error, UnicodeError) as error:
            raise _database_failure(self.path, error) from error
        finally:
            self._mutex.release()

    def _drain(self, name: str, now: float, deadline: float) -> None:
        left = deadline - time.monotonic()
        with pending.locked_for_drain(self.directory, name, seconds=min(left, pending.DRAIN_LOCK_SECONDS)) as waiting:
            lost = waiting.bad_lines
            if waiting.events:
                try:
                    lost += self._enter(waiting.events, now, deadline)
                except BaseException:
                    self._close()  # which rolls back; the next drain starts afresh
                    raise
            waiting.truncate()
            if lost:
                pending.count_dropped(self.directory, lost)

    def _enter(self, events: Sequence[Event], now: float, deadline: float) -> int:
        """Enter events in one transaction; return how many told nothing."""
        db = self._connected(deadline)
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA data_version").fetchone()  # changes when another connection has written
        if version != self._known_version or len(self._known) > KNOWN_AT_MOST:
            _check_schema(db, self.path)
            self._known, self._known_version = book.Known(), version
        entered = book.Book(db, events, self._known, now)
        entered.write()
        self._prune(db, now)
        db.execute("COMMIT")
        return entered.rejected

    def _look_after(self, deadline: float) -> None:
        """Bring an older database up to date for those who only read, and let it say for how long it is to be kept.

        That is for those who drain it without a configuration that says so. Under the lock of the pending file, like all that
        writes to the database; where somebody has that, the next drain does it.
        """
        told = self.history_seconds
        is_told = told is None or told == self._history_told
        if (self._db is not None and is_told) or _checked(self.path) is None:
            return
        with suppress(FileNotFoundError, TimeoutError), pending.locked_for_drain(self.directory, seconds=LOOK_SECONDS):
            db = self._connected(deadline)
            if told is not None and _meta(db, "history_seconds") != told:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('history_seconds', ?)", (told,))
            self._history_told = told

    def _connected(self, deadline: float) -> sqlite3.Connection:
        """Return the connection that is kept, or a new one where it does not lead to the file in the database's place."""
        patience = max(0.0, min(BUSY_SECONDS, deadline - time.monotonic()))
        found = _checked(self.path)
        if self._db is None or found is None or (found.st_dev, found.st_ino) != self._opened:
            self._close()
            self._db = _open_to_write(self.path, patience)
            found = os.lstat(self.path)
            self._opened = found.st_dev, found.st_ino
            self._history_told = None
        elif patience != self._patience_set:
            self._db.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
        self._patience_set = patience
        return self._db

    def _prune(self, db: sqlite3.Connection, now: float) -> None:
        """Forget what is older than the history, at most once an hour and in small portions; totals stay for ever."""
        if abs(now - self._pruned_at) < PRUNE_EVERY_SECONDS:
            return
        before = _meta(db, "pruned_at")
        if before is not None and abs(now - before) < PRUNE_EVERY_SECONDS:
            self._pruned_at = before
            return
        oldest = now - (self.history_seconds or _meta(db, "history_seconds") or DEFAULT_HISTORY)
        db.execute("DELETE FROM presence WHERE at < ?", (oldest,))
        if db.execute(PRUNE, (oldest, ALWAYS_KEPT - 1, PRUNE_AT_ONCE)).rowcount < PRUNE_AT_ONCE:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('pruned_at', ?)", (now,))


def _meta(db: sqlite3.Connection, name: str) -> float | None:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return as_seconds(row[0]) if row is not None else None


# Opening ---------------------------------------------------------------------------------------------------------------


@contextmanager
def open_to_read(directory: str) -> Iterator[sqlite3.Connection]:
    """Give a connection inside a read transaction: all that is read through it is of one moment.

    Where there is no database yet it leads to an empty one.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    path = f"{directory}/{DATABASE}"
    for name in PENDING_FILES:
        _read_stat(f"{directory}/{name}")  # what waits there cannot be read either
    try:
        with closing(_connected_to_read(path)) as db:
            yield db
    except (sqlite3.Error, UnicodeError) as error:
        raise _database_failure(path, error) from error


def _connected_to_read(path: str) -> sqlite3.Connection:
    found = _checked(path)
    if found is not None and found.st_size > 0:
        db = _opened_as(path, "ro")
        try:
            db.text_factory = TOLERANT
            db.execute("BEGIN")
            version, newest = _check_schema(db, path), len(migrations.MIGRATIONS)
            if version == newest:
                return db
            if version > 0:
                raise LedgerUnavailable(
                    path, f"has schema {version}; the next drain brings it up to {newest}", kind="older"
                )
        except BaseException as error:
            db.close()
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            _roll_back(path)
            return _connected_to_read(path)
        db.close()
    return _empty()


def _opened_as(path: str, mode: str) -> sqlite3.Connection:
    name = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(f"file:{name}?mode={mode}", uri=True, timeout=READ_BUSY_SECONDS, isolation_level=None)


def _roll_back(path: str) -> None:
    """Take back what somebody who was killed while making the database had begun: a read-only connection cannot."""
    with _kept_in_place(os.path.dirname(path)), closing(_opened_as(path, "rw")) as db:
        migrations.schema_version(db)


@contextmanager
def _kept_in_place(directory: str) -> Iterator[None]:
    """Keep who moves the database under the locks of drains away while a connection is closed, as well as that can be had.

    The last one to close writes the log into its database, and removes the log by its name, which is that of another
    database's log by then, if its own was moved meanwhile. Appending goes on.
    """
    try:
        fd, is_locked = pending.opened_to_append(directory, at_most=pending.APPEND_LOCK_SECONDS)
    except OSError:  # drains are stopped, or the directory is gone
        yield
        return
    try:
        yield
    finally:
        if is_locked:
            flock.unlock(fd)
        os.close(fd)


@contextmanager
def open_nothing() -> Iterator[sqlite3.Connection]:
    """Give a connection to an empty ledger, for what waits while the real one cannot be read."""
    with closing(_empty()) as db:
        yield db


def _empty() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrations.migrate(db)
    return db


def _open_to_write(path: str, busy_seconds: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        if os.lstat(path).st_mode & 0o777 != 0o600:
            os.chmod(path, 0o600)  # SQLite gives -wal and -shm the mode of the database
        db.text_factory = TOLERANT
        if _check_schema(db, path) < len(migrations.MIGRATIONS):
            db.execute("PRAGMA journal_mode = WAL")
            migrations.migrate(db)
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def _check_schema(db: sqlite3.Connection, path: str) -> int:
    """Return the schema's version; a newer one than ours is told."""
    version, newest = migrations.schema_version(db), len(migrations.MIGRATIONS)
    if not 0 <= version <= newest:
        raise LedgerUnavailable(
            path, f"has schema {version}, and this maintlock knows {newest}: upgrade maintlock", kind="newer"
        )
    return version


def _checked(path: str) -> os.stat_result | None:
    """Return what is in the database's place, None for nothing; never through a descriptor.

    Closing one would take SQLite's own locks away from every other connection of this process (fcntl(2)). What is beside it
    is looked at too: SQLite would follow a symlink there, and write.
    """
    for suffix in BESIDE:
        _read_stat(path + suffix)
    found = _read_stat(path)
    if found is not None and found.st_uid != os.geteuid():
        raise LedgerUnavailable(path, f"belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})")
    return found


def _read_stat(path: str) -> os.stat_result | None:
    """Return what a file of the ledger is, None for nothing.

    Raises:
        LedgerUnavailable: It is no regular file, or nobody can tell.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerUnavailable(path, _system_reason(error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise LedgerUnavailable(path, "is not a regular file")
    return found


def _database_failure(path: str, error: sqlite3.Error | UnicodeError) -> LedgerUnavailable:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, UnicodeError):
        code = sqlite3.SQLITE_CORRUPT  # the complaint quotes the database, and is no text
    if code is None:
        return LedgerUnavailable(path, str(error))
    reason = SQLITE_REASONS.get(code & 0xFF, str(error))
    return LedgerUnavailable(path, reason, kind="corrupt" if reason.startswith("corrupt") else "")


def _system_reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "busy: " + (error.strerror or "locked")
    if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EINVAL}:
        return "is not a regular file"
    return (error.strerror or str(error)).lower()
