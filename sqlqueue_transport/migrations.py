"""Make a file ours: its schema when it is new, migrations when it is old, refusal when it is not ours.

Everything here runs under the writer lock, on a connection that `opening` made.
"""

from __future__ import annotations

import functools
import sqlite3
from importlib import resources
from typing import TYPE_CHECKING

from sqlqueue_transport import files
from sqlqueue_transport.errors import (
    CannotOpen,
    DatabaseEmpty,
    ForeignDatabase,
    SchemaChanged,
    SchemaTooNew,
    SchemaTooOld,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# "SQLQ", in the file's header (sqlite.org/pragma.html#pragma_application_id)
APPLICATION_ID = 0x53514C51
SCHEMA_VERSION = 5


def _packaged(name: str) -> str:
    """Return the text of an SQL file of this package."""
    return resources.files("sqlqueue_transport").joinpath(name).read_text("utf-8")


# Migrations by the version they lead to, each read when it is needed; a new file gets schema.sql at
# once. Each runs in one transaction together with the new user_version, under the writer lock,
# after an online backup.
MIGRATIONS: dict[int, Callable[[], str]] = {
    2: functools.partial(_packaged, "schema-2.sql"),
    3: functools.partial(_packaged, "schema-3.sql"),
    4: functools.partial(_packaged, "schema-4.sql"),
    5: functools.partial(_packaged, "schema-5.sql"),
}


def adopt(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure the file is ours and of our version; create or migrate it if need be.

    Raises ForeignDatabase, SchemaTooNew, CannotOpen. If the process dies midway the file is empty,
    whole, or at a version on the way, and opens again.
    """
    version = version_of(connection, path)
    if not version:
        _create_schema(connection, path)
        return
    if version < SCHEMA_VERSION:
        migrate(connection, path, from_version=version)
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("SELECT value FROM meta LIMIT 1").fetchall()


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of a file of ours; 0 for one that is still empty. Changes nothing.

    Raises ForeignDatabase and SchemaTooNew.
    """
    application_id = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application_id == 0 and version == 0 and tables == 0:
        return 0
    if application_id != APPLICATION_ID or version < 1:
        message = (
            f"{path} is another application's SQLite database; give a path of its own to the queue"
        )
        raise ForeignDatabase(message)
    if version > SCHEMA_VERSION:
        message = (
            f"{path} has schema version {version}, this software knows {SCHEMA_VERSION}: "
            "upgrade sqlqueue here, or use the software that wrote the file"
        )
        raise SchemaTooNew(message)
    return version


def refuse_older(connection: sqlite3.Connection, path: Path) -> None:
    """Raise SchemaTooOld for a file that would have to be migrated, DatabaseEmpty for one without tables.

    Also what `version_of` raises.
    """
    version = version_of(connection, path)
    if not version:
        raise DatabaseEmpty(path)
    if version < SCHEMA_VERSION:
        message = (
            f"{path} has schema version {version}, this software reads {SCHEMA_VERSION}; migrate it "
            "first: sqlqueue db migrate"
        )
        raise SchemaTooOld(message)


def _create_schema(connection: sqlite3.Connection, path: Path) -> None:
    # auto_vacuum can only be chosen while the file has no tables.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        message = f"{path}: SQLite cannot use a write-ahead log here (it chose {mode!r})"
        raise CannotOpen(message)
    _run_script(
        connection,
        f"{_packaged('schema.sql')}\nPRAGMA application_id = {APPLICATION_ID};\n"
        f"PRAGMA user_version = {SCHEMA_VERSION};",
    )


def migrate(connection: sqlite3.Connection, path: Path, *, from_version: int) -> None:
    """Bring an older file to SCHEMA_VERSION, after an online backup beside it.

    Runs under the writer lock. Each step commits with its version; if the process dies midway
    the file opens as the version reached.
    """
    versions = range(from_version + 1, SCHEMA_VERSION + 1)
    for version in versions:
        if version not in MIGRATIONS:
            message = f"{path} has schema version {from_version}, which has no way to {version}"
            raise ForeignDatabase(message)
    backup = backup_path_of(path, from_version)
    files.create_private_file(backup)
    copy = sqlite3.connect(backup)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    # The copy is on the disk, but its rollback journal is gone only in memory: found again after a
    # power cut it would empty the backup, beside a file that was migrated.
    files.sync_directory(backup.parent)
    # Or a table that is made anew would take along what refers to its rows (sqlite.org/lang_altertable.html,
    # 7). Cannot be changed inside a transaction.
    connection.execute("PRAGMA foreign_keys = OFF").fetchall()
    try:
        for version in versions:
            _run_script(connection, f"{MIGRATIONS[version]()}\nPRAGMA user_version = {version};")
    finally:
        connection.execute("PRAGMA foreign_keys = ON").fetchall()


def backup_path_of(path: Path, version: int) -> Path:
    """Return where a migration from that version leaves its backup."""
    return path.with_name(f"{path.name}.v{version}.backup")


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    try:
        # executescript commits what is open before it starts, so BEGIN belongs into the script.
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def refuse_migrated(connection: sqlite3.Connection) -> None:
    """Raise SchemaChanged if another process migrated the file; part of every transaction."""
    # Not by `_pragma`: this is asked in every transaction, and 0.7 µs of it are SQLite's.
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        message = (
            f"the file was migrated to schema version {version} while this process had it open "
            f"at {SCHEMA_VERSION}; restart with the newer software"
        )
        raise SchemaChanged(message)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
