"""Open the file: every PRAGMA with its reason, and refusals before SQLite touches anything.

Nothing here opens the database file but SQLite: closing any other descriptor of it would drop
SQLite's locks in this process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import sys
from pathlib import Path
from urllib.parse import quote

from sqlqueue_transport import files, forking
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.errors import (
    DatabaseEmpty,
    DatabaseMissing,
    FileReplaced,
    ForeignDatabase,
    SqliteTooOld,
)
from sqlqueue_transport.handles import Handles, replaced_text
from sqlqueue_transport.migrations import adopt, refuse_older, version_of
from sqlqueue_transport.sqlite_errors import not_sqlite_text, translated
from sqlqueue_transport.writer_lock import Pair, read_pair

MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables
# A log that has grown is cut back to this by the checkpoint after which it begins anew.
JOURNAL_SIZE_LIMIT_BYTES = 16 << 20
_LOOK_WAIT_S = 5.0  # for a foreign program that locks readers out: nothing of ours does
_TEXT = functools.partial(str, encoding="utf-8", errors="surrogateescape")


def refuse_old_sqlite() -> None:
    """Raise SqliteTooOld below what the schema needs, naming the way out."""
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        message = (
            f"SQLite {sqlite3.sqlite_version} is too old, 3.37 is needed: use a newer Python, "
            "for example one from python.org, conda or uv, which bring their own SQLite"
        )
        raise SqliteTooOld(message)


def run_directory_of(path: Path) -> Path:
    """Return where the side files of a database lie."""
    return path.with_name(path.name + "-run")


def presence_path_of(path: Path) -> Path:
    """Return where the presence file of a database lies."""
    return run_directory_of(path) / "presence"


def open_writer(path: Path, held: Handles, *, create: bool, timeout_s: float) -> sqlite3.Connection:
    """Open, check, and if need be create or migrate the file; put what is open into `held`.

    Runs under the writer lock. Raises a CannotOpen, and `held` is as it was.
    """
    size = _usable_size(path, create=create)
    if not size and size is not None and not create:
        raise DatabaseEmpty(path)
    if size is None:
        # Side files of a database that was removed would speak of workers it never knew.
        presence_path_of(path).unlink(missing_ok=True)
        files.create_private_file(path)
    identity = _identity_of_our_own(path)
    _refuse_log_of_another(path, identity)
    connection = connect(path, timeout_s)
    try:
        if not create:
            _refuse_empty(connection, path)
        adopt(connection, path)
        _refuse_another(path, identity)
        # The names of database and log must survive a power cut, too.
        files.sync_directory(path.parent)
        companions = _companions_of(path)
        # The log exists once something was read.
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BaseException:
        connection.close()
        raise
    held.log = log
    held.companions = companions
    held.identity = identity
    held.writing = connection
    log_identity = companions.get(Path(f"{path}-wal"))
    if held.lock is not None and identity is not None and log_identity is not None:
        held.lock.pair(Pair(identity, files.born_ns(path), log_identity), SYSTEM_CLOCK.boot())
    return connection


def open_read_only(path: Path, held: Handles, *, timeout_s: float) -> None:
    """Open an existing file of our version so that nothing can be written; put it into `held`.

    Needs no writer lock. SQLite opens the file with O_RDONLY, so the kernel refuses, too. Beside it
    SQLite makes log and shared memory where they are missing, as each reader of a log must; but such
    a connection neither empties the log nor removes it, also when it is the last to close. Raises a
    CannotOpen, SchemaTooOld among them, and `held` is as it was.
    """
    if not _usable_size(path, create=False):
        raise DatabaseEmpty(path)
    identity = _identity_of_our_own(path)
    _refuse_log_of_another(path, identity)
    connection = connect(path, timeout_s, mode="ro")
    try:
        refuse_older(connection, path)
        _refuse_another(path, identity)
        # They stay where they are as long as this connection is open: no other is then the last one.
        companions = _companions_of(path)
    except BaseException:
        connection.close()
        raise
    held.companions = companions
    held.identity = identity
    held.reading = connection


def version_at(path: Path) -> int:
    """Return the schema version of the file at `path`, without migrating it.

    Raises a CannotOpen, SchemaTooNew and DatabaseEmpty among them.
    """
    if not _usable_size(path, create=False):
        raise DatabaseEmpty(path)
    try:
        with contextlib.closing(connect(path, _LOOK_WAIT_S, mode="ro")) as connection:
            found = version_of(connection, path)
    except sqlite3.DatabaseError as error:
        raise translated(error, path) from error
    if not found:
        raise DatabaseEmpty(path)
    return found


def refuse_unsafe(path: Path, *, create: bool) -> None:
    """Raise a CannotOpen for a path that holds no queue, as `files.refuse_unsafe`; changes nothing.

    Raises FileReplaced where the database is missing and its log is not: who only looks must not
    say that there never was one, and that the first publish makes it.
    """
    try:
        files.refuse_unsafe(path, create=create)
    except DatabaseMissing:
        _refuse_remains(path, None)
        raise
    if files.size_of(path) is None:
        _refuse_remains(path, None)


def _refuse_empty(connection: sqlite3.Connection, path: Path) -> None:
    if not version_of(connection, path):
        raise DatabaseEmpty(path)


def _usable_size(path: Path, *, create: bool) -> int | None:
    """Return the size of a file that may be opened, None when there is none; raise a CannotOpen."""
    refuse_unsafe(path, create=create)
    size = files.size_of(path)
    if size == 1:  # SQLite takes it for empty (unixFileSize in os_unix.c) and writes over it
        raise ForeignDatabase(not_sqlite_text(path))
    if not size:
        _refuse_remains(path, size)
    return size


def _identity_of_our_own(path: Path) -> files.FileIdentity | None:
    """Return which file the path leads to; refuse one that a fork brought along open."""
    identity = files.identity_of(path)
    if identity is not None and forking.was_inherited(identity):
        forking.refuse(
            path,
            "the parent had another SQLite connection to the file open while forking; close it "
            "before the fork",
        )
    return identity


def _companions_of(path: Path) -> dict[Path, files.FileIdentity]:
    return {
        name: found
        for name in (Path(f"{path}-wal"), Path(f"{path}-shm"))
        if (found := files.identity_of(name)) is not None
    }


def _refuse_another(path: Path, identity: files.FileIdentity | None) -> None:
    if files.identity_of(path) != identity:
        raise FileReplaced(replaced_text(path, "replaced while it was opened"))


def _refuse_log_of_another(path: Path, identity: files.FileIdentity | None) -> None:
    """Refuse a log that was written for the file which was here before.

    SQLite cannot tell, and would write its pages over those of this one
    (sqlite.org/howtocorrupt.html, 1.4). Where the log is another one, too, both were copied or
    restored together, and fit.
    """
    log = Path(f"{path}-wal")
    log_size = files.size_of(log)
    if not log_size or identity is None:
        return
    pair = read_pair(run_directory_of(path) / "writer.lock", SYSTEM_CLOCK.boot())
    if pair is None or pair.log != files.identity_of(log):
        return
    if pair.database != identity or pair.born_ns != files.born_ns(path):
        message = (
            f"{path} is not the file that its log {log} belongs to: the database was replaced. The log's "
            f"{log_size} bytes hold jobs that were acknowledged. Put the right database back; or, to use "
            f"this one without them, stop all processes of the queue and move {log} and {path}-shm aside "
            "(rename them: they are worth nothing without their database, and it nothing without them)"
        )
        raise FileReplaced(message)


def _refuse_remains(path: Path, size: int | None) -> None:
    """Refuse to start afresh where remains show that there was a queue.

    SQLite would delete the log, and with it jobs that were acknowledged.
    """
    found = "missing" if size is None else "empty"
    log = Path(f"{path}-wal")
    if log_size := files.size_of(log):
        message = (
            f"{path} is {found}, but its log {log} holds {log_size} bytes, jobs that were acknowledged "
            "among them: the database was moved, removed or truncated. Put it back beside the log. To "
            "start afresh, stop all processes of the queue and move aside (rename, remove nothing) "
            f"whatever is there of {path}, {path}-wal and {path}-shm"
        )
        raise FileReplaced(message)
    if size is not None and presence_path_of(path).exists():
        message = (
            f"{path} is empty although it held a queue: it was truncated. Restore a "
            f"backup, or remove {run_directory_of(path)} to start afresh"
        )
        raise FileReplaced(message)


def open_reader(path: Path, held: Handles, *, timeout_s: float) -> None:
    """Open a second connection that cannot write; the caller holds the mutexes of both."""
    connection = connect(path, timeout_s)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    held.reading = connection


def connect(path: Path, timeout_s: float, *, mode: str = "rw") -> sqlite3.Connection:
    """Return a connection that waits `timeout_s` for a foreign lock, with all our settings.

    `mode` is SQLite's: "rw", or "ro" for a descriptor that cannot write.
    """
    connection = sqlite3.connect(
        # Quoted as bytes, because a path need not be valid Unicode.
        f"file:{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        isolation_level=None,  # transactions are ours alone
        check_same_thread=False,  # the mutexes see to that
        timeout=timeout_s,
        cached_statements=256,
    )
    # One text cell that is not UTF-8 must not make its whole table unreadable: it is read
    # with surrogates, and whoever looks at the value refuses that one message.
    connection.text_factory = _TEXT
    try:
        for pragma in (
            "PRAGMA trusted_schema = OFF",  # a foreign trigger must not run code
            "PRAGMA cell_size_check = ON",
            "PRAGMA foreign_keys = ON",
            # NORMAL syncs the log before a checkpoint; below it a checkpoint could write
            # pages whose log was lost. Every connection that writes or checkpoints needs it.
            "PRAGMA synchronous = NORMAL",
            "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the disk
            "PRAGMA checkpoint_fullfsync = ON",
            "PRAGMA temp_store = MEMORY",
            "PRAGMA mmap_size = 0",  # a truncated file would be SIGBUS instead of an error
            "PRAGMA wal_autocheckpoint = 1000",
            f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}",
        ):
            connection.execute(pragma).fetchall()
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # noqa: FBT003
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)  # noqa: FBT003
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DDL, False)  # noqa: FBT003
    except BaseException:
        connection.close()
        raise
    return connection
