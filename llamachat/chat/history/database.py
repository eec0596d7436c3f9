"""One connection to the file: opened privately, checked, brought up to date; a damaged file is set aside first.

SQLite's own files (`-wal`, `-shm`) belong to the database and go where it goes. A database must never be renamed while
someone has it open (https://www.sqlite.org/howtocorrupt.html), so everyone who has it open shares a lock on a file
beside it, and whoever sets it aside has that lock alone.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from llamachat.chat.history.migrations import APPLICATION_ID, MIGRATIONS, NEW_TABLES, migrate, schema_version
from llamachat.errors import HistoryFailed, HistoryTooNew, describe_os_error

_BUSY_MS = 10_000
_LOCK_S = 3.0
_RETRY_S = 0.02
_SIDE_FILES = ("-wal", "-shm", "-journal")


class Database:
    """A history file, open. All its methods may be called from any thread; one at a time is let in."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises `HistoryFailed` where neither is possible."""
        self.path = path
        self.notices: list[str] = []
        self._turn = threading.RLock()
        self._open_lock = -1
        try:
            _make_private(path)
            self._open_lock = _share(path)
            with explained(path):
                if _find_damage(path):
                    self._set_aside()
                self._connection = _connect(path)
        except OSError as error:
            self._release()
            raise HistoryFailed(path, f"cannot be used ({describe_os_error(error)})", _ELSEWHERE) from error
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Close; what was written is safe already."""
        with self._turn, suppress(sqlite3.Error):
            self._connection.close()
        self._release()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view. Raises `HistoryFailed`."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it ends, or nothing. Raises `HistoryFailed`."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def shrink_log(self) -> None:
        """Empty the write-ahead log, which holds old pages, as far as nobody else is reading."""
        with self._turn, suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn, explained(self.path):
            if self._connection.in_transaction:  # a second signal has kept the last one from rolling back
                self._connection.execute("ROLLBACK")
            try:
                self._connection.execute(begin)
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back itself, as it does on a full disk
                    self._connection.execute("ROLLBACK")
                raise

    def _set_aside(self) -> None:
        if not _lock(self._open_lock, fcntl.LOCK_EX):
            raise HistoryFailed(
                self.path, "is damaged, and another llamachat has it open",
                "Leave the other one; the next start sets the damaged file aside and begins a new one.",
            )  # fmt: skip
        if _find_damage(self.path):  # nobody else was quicker
            aside = _move_away(self.path)
            _make_private(self.path)
            self.notices.append(f"The history was damaged; it was set aside as {aside}, and a new one begins.")
        _lock(self._open_lock, fcntl.LOCK_SH)

    def _release(self) -> None:
        if self._open_lock >= 0:
            os.close(self._open_lock)
            self._open_lock = -1


def _make_private(path: Path) -> None:
    """See to an empty file, if there is none, that only its owner can read; SQLite's own files will be like it.

    The file is never opened when it exists already: closing it would drop the locks this process has on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise HistoryFailed(path, "is not a file", "Move it away.") from None
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _share(path: Path) -> int:
    """The lock of those who have the database open, as a file descriptor."""
    fd = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    if not _lock(fd, fcntl.LOCK_SH):
        os.close(fd)
        raise HistoryFailed(path, "is held by another llamachat", "Try again in a moment.")
    return fd


def _lock(fd: int, kind: int) -> bool:
    """Wait a moment for a lock; a file system without locks gives it at once."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_RETRY_S)
        except OSError:
            return True


def _find_damage(path: Path) -> bool:
    """Whether the file is something else than a history that can be read through, of any version.

    It is read without writing, so that a damaged one stays as it is; a write-ahead log is taken into account.
    """
    if path.stat().st_size == 0:
        return False
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.text_factory = bytes
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return False  # killed before its first version was there
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID or connection.execute("PRAGMA quick_check(1)").fetchall() != [(b"ok",)]:
            return True
        _try_tables(connection)
        return not _has_tables_of(schema_version(connection), tables)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return is_damage(error)
    finally:
        connection.close()


def _try_tables(connection: sqlite3.Connection) -> None:
    """Make the tables anew elsewhere: reading alone, SQLite does not mind columns that a damaged schema lacks."""
    elsewhere = sqlite3.connect(":memory:")
    try:
        for name, statement in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
            if name in _names(NEW_TABLES) and isinstance(statement, bytes):
                elsewhere.execute(statement.decode())
    finally:
        elsewhere.close()


def _has_tables_of(version: int, tables: set[bytes]) -> bool:
    expected = _names(NEW_TABLES[: max(0, version)])
    return version > len(MIGRATIONS) or (version > 0 and tables & _names(NEW_TABLES) == expected)


def _names(versions: Iterable[Iterable[str]]) -> set[bytes]:
    return {name.encode() for names in versions for name in names}


def is_damage(error: BaseException | None) -> bool:
    """Whether an error means that the file is no database, rather than that it cannot be read now.

    SQLITE_CORRUPT and SQLITE_NOTADB have no class of their own, and a message that quotes a damaged schema may be no
    text that Python can read.
    """
    if type(error) in (sqlite3.DatabaseError, UnicodeDecodeError):
        return True
    return any(words in str(error) for words in ("malformed", "no such", "unsupported file format", "not a database"))


def _move_away(path: Path) -> Path:
    """Rename the database and what belongs to it, that first: a log must not meet the next database of this name."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
    aside, n_tries = path.with_name(f"{path.stem}-damaged-{stamp}{path.suffix}"), 1
    while any(os.path.lexists(f"{aside}{side}") for side in ("", *_SIDE_FILES)):
        n_tries += 1
        aside = path.with_name(f"{path.stem}-damaged-{stamp}-{n_tries}{path.suffix}")
    for side in (*_SIDE_FILES, ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{side}", f"{aside}{side}")  # noqa: PTH104  # the names are not paths of pathlib's making
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        if (version := schema_version(connection)) > len(MIGRATIONS):
            raise HistoryTooNew(path, version, len(MIGRATIONS))
        _use_write_ahead_log(connection)
        for pragma in ("foreign_keys = ON", "synchronous = FULL", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side; where the file system cannot, SQLite keeps its rollback journal.

    Two processes that switch over at once are refused without waiting, so this waits.
    """
    deadline = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite refuses becomes `HistoryFailed`."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
        reasons = (why for words, why in _REASONS.items() if words in str(error))
        otherwise = (f"cannot be used ({error or 'out of memory'})", _ELSEWHERE)
        problem, next_step = next(reasons, _DAMAGED if is_damage(error) else otherwise)
        raise HistoryFailed(path, problem, next_step) from error


_ELSEWHERE = "Set LLAMACHAT_HOME to another directory, or chat with --no-save."
_FREE = "Free some space; until then nothing more is saved."
_DAMAGED = ("is damaged", "Start llamachat again: it sets the file aside, and begins a new one.")
_REASONS = {
    "disk is full": ("cannot be written, because the disk is full", _FREE),
    "disk I/O": ("cannot be read or written (the system refuses, or the disk is full)", _FREE),
    "readonly": ("may not be written", _ELSEWHERE),
    "unable to open": ("cannot be opened", _ELSEWHERE),
    "locked": ("is busy: another program has been writing to it for too long", "Try again in a moment."),
}
"""By what SQLite says; its codes are known to Python from 3.11 on."""
