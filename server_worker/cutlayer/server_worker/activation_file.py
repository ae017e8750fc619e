"""The SQLite file of a store: made, found again, judged and removed, by one process at a time.

    <folder>/                                mode 0700
        activations-<store's id>.sqlite      mode 0600, as the -journal that SQLite has beside it while it writes
        .lock                                held while a file is looked for, made or removed

A new store is a new file with a new name, so that no process can take the journal of an old one for its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cutlayer.server_worker.activation_entry import ENTRY_FORMAT

__all__ = ["PAGE_BYTES", "OpenFile", "is_damage", "open_file", "remove_files"]

log = logging.getLogger(__name__)

PAGE_BYTES = 8192
_OPENING_BUSY_S = 5.0  # rather late than without what is there
_PREFIX, _SUFFIX = "activations-", ".sqlite"
_JOURNAL = "-journal"
_APPLICATION_ID = 0x6375746C  # "cutl"
# SQLITE_ERROR: a table is gone. SQLITE_READONLY: the header names a newer version of the format.
_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_READONLY,
)

# One row of `entries` holds all modalities of a sample: it is written and replaced as a whole, in one go.
# An agent that is forgotten loses its name; its rows go bit by bit.
_SCHEMA = """
CREATE TABLE store (id TEXT NOT NULL, run_id TEXT NOT NULL);
CREATE TABLE agents (number INTEGER PRIMARY KEY, name TEXT UNIQUE, touched_at REAL NOT NULL);
CREATE TABLE entries (
    number INTEGER PRIMARY KEY,
    agent INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    visits INTEGER NOT NULL,
    digest BLOB NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (agent, sample)
);
"""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A store's file.

    Attributes:
        path: Where it is.
        id: The store's.
        connection: To it, in autocommit mode.
        inode: Of the file, by which another one in its place is known.
    """

    path: Path
    id: str
    connection: sqlite3.Connection
    inode: int

    @property
    def is_in_place(self) -> bool:
        """Whether it is still what its path leads to."""
        try:
            return self.path.stat().st_ino == self.inode
        except OSError:
            return False


def open_file(
    folder: Path, run_id: str, *, busy_s: float, lock_s: float, may_make: bool, damaged: Path | None = None
) -> OpenFile | None:
    """Open the run's store, and remove whatever else is stored in its folder: other runs' stores and damaged ones.

    Args:
        folder: The store's own.
        run_id: Whose store.
        busy_s: How long a statement waits for other processes.
        lock_s: How long to wait for a process that opens or removes a store.
        may_make: Whether to make one if there is none; otherwise None is returned.
        damaged: A file that was seen to be damaged, whatever it looks like.

    Raises:
        FileNotFoundError: There is no store, nor may there be one.
        OSError: The folder cannot be used.
        sqlite3.Error: The disk or another process's lock is in the way.
    """
    if may_make:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    with _locked(folder, lock_s, may_make=may_make):
        found: OpenFile | None = None
        for path in _files(folder):
            judged = _judge(path, run_id, busy_s) if path != damaged else "it is damaged"
            if isinstance(judged, OpenFile) and found is None:
                found = judged
            else:
                if isinstance(judged, OpenFile):
                    judged.connection.close()
                    judged = "there is another one of the run"
                log.warning("removed the activation store %s: %s; agents send again what was in it", path, judged)
                _remove(path)
        return found or (_make(folder, run_id, busy_s) if may_make else None)


def remove_files(folder: Path, lock_s: float) -> None:
    """Remove all stores in a folder, and the folder if nothing else is in it.

    Raises:
        OSError: The folder cannot be used.
    """
    with suppress(FileNotFoundError):
        with _locked(folder, lock_s, may_make=True):
            for path in _files(folder):
                _remove(path)
            (folder / ".lock").unlink()
        with suppress(OSError):  # not empty
            folder.rmdir()


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged, rather than that the disk or a lock is in the way."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python's own: text that is not UTF-8
        return isinstance(error, sqlite3.OperationalError)
    # A file that was removed while it was open is not damaged: the run has ended.
    return code & 0xFF in _DAMAGE and code != sqlite3.SQLITE_READONLY_DBMOVED


def _files(folder: Path) -> list[Path]:
    """Paths of the stores here; of one that a killed process has left there may be the journal alone."""
    names = {path.name.removesuffix(_JOURNAL) for path in folder.glob(f"{_PREFIX}*{_SUFFIX}*")}
    return [folder / name for name in sorted(names) if name.endswith(_SUFFIX)]


def _remove(path: Path) -> None:
    # The file first: a journal alone is nobody's, a file without its journal may be torn.
    path.unlink(missing_ok=True)
    path.with_name(path.name + _JOURNAL).unlink(missing_ok=True)


def _judge(path: Path, run_id: str, busy_s: float) -> OpenFile | str:
    """Open a file, or say why it is none of this run's."""
    if not path.exists():
        return "its file is gone"
    connection = _connect(path)
    try:
        if _pragma(connection, "application_id") != _APPLICATION_ID:
            raise _Unfit("it is not an activation store")
        if _pragma(connection, "user_version") != ENTRY_FORMAT:
            raise _Unfit("it is of another format")
        ((store_id, found_run_id),) = connection.execute("SELECT id, run_id FROM store").fetchall()
        if found_run_id != run_id:
            raise _Unfit(f"it belongs to the run {found_run_id}")
        if path.name != f"{_PREFIX}{store_id}{_SUFFIX}":
            raise _Unfit("it has another store's name")
        # Walks the whole index, not the entries: those have checksums.
        connection.execute("SELECT COUNT(*) FROM entries").fetchone()
        _set_up(connection, busy_s)
        return OpenFile(path, store_id, connection, path.stat().st_ino)
    except (_Unfit, ValueError) as error:
        connection.close()
        return str(error)
    except sqlite3.Error as error:
        connection.close()
        if is_damage(error):
            return str(error)
        raise


def _make(folder: Path, run_id: str, busy_s: float) -> OpenFile:
    store_id = secrets.token_hex(8)
    path = folder / f"{_PREFIX}{store_id}{_SUFFIX}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = _connect(path)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        _set_up(connection, busy_s)
        connection.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; {_SCHEMA}")
        connection.execute(f"PRAGMA user_version = {ENTRY_FORMAT}")
        connection.execute("INSERT INTO store VALUES (?, ?)", (store_id, run_id))
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.close()
        _remove(path)
        raise
    return OpenFile(path, store_id, connection, path.stat().st_ino)


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time uses a store, but not always the one that made it.
    return sqlite3.connect(path, timeout=_OPENING_BUSY_S, isolation_level=None, check_same_thread=False)


def _set_up(connection: sqlite3.Connection, busy_s: float) -> None:
    """Choose speed over durability: what a crash of the machine takes is sent again, what it tears is found torn.

    A rollback journal, not a write-ahead log: with two processes that put and two that get without a pause, the log
    grew to 108 MB, as there is no moment at which it can be cut; the journal holds but the pages that one put replaces,
    and a put of 19 MB takes 43 ms instead of 62. Readers do wait for the end of a put, and it for them.
    """
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA busy_timeout = {round(1e3 * busy_s)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


class _Unfit(Exception):
    """A file is not the run's store."""


@contextmanager
def _locked(folder: Path, lock_s: float, *, may_make: bool) -> Iterator[None]:
    """Be the only process that opens or removes a store here.

    Raises:
        FileNotFoundError: There is no such folder, or no lock in it and none may be made.
        TimeoutError: Another process has been at it for `lock_s`.
    """
    path = folder / ".lock"
    deadline = time.monotonic() + lock_s
    while (descriptor := _taken(path, may_make=may_make)) is None:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(descriptor)


def _taken(path: Path, *, may_make: bool) -> int | None:
    """Return the lock's descriptor, or None while another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if may_make else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have removed the file: then a newer one is the lock.
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
