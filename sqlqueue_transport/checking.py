"""Have SQLite examine a file, in a reader of its own that one can wait for and break off.

SQLite's checks see a broken structure and almost no bit rot inside of values
(sqlite.org/pragma.html#pragma_quick_check). On a large file they take seconds to minutes, so nobody
else of this process waits for the connection they run on.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from sqlqueue_transport.read_only import ReadOnlyDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["complaints", "damage", "ticking"]

_STEPS_A_TICK = 100_000  # of SQLite's virtual machine: some milliseconds


def damage(
    path: Path, *, full: bool = False, tell: Callable[[float | None], None] | None = None
) -> tuple[str, ...]:
    """Return what SQLite complains of in the file at `path`; empty when all is well.

    `full` also compares every index with its table. `tell` is called now and then, in this thread,
    with how much is done; None, because SQLite does not say. What it raises ends the check. Writers
    go on meanwhile, and the log grows for as long as it takes. Raises a CannotOpen, and DiskFault for
    a file too damaged to be examined. A fork in another thread waits for the end.
    """
    database = ReadOnlyDatabase(path)
    tick = None if tell is None else (lambda: tell(None))
    try:
        return tuple(database.read(lambda c: complaints(c, full=full, tick=tick)))
    finally:
        database.close()


def complaints(
    connection: sqlite3.Connection, *, full: bool, tick: Callable[[], object] | None = None
) -> list[str]:
    """Run SQLite's own checks in a transaction of the caller, and return what they complain of."""
    check = "PRAGMA integrity_check" if full else "PRAGMA quick_check"
    with ticking(connection, tick):
        found = [text for (text,) in connection.execute(check).fetchall() if text != "ok"]
        found += [
            f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}"
            for row in connection.execute("PRAGMA foreign_key_check").fetchall()
        ]
    return found


@contextlib.contextmanager
def ticking(connection: sqlite3.Connection, tick: Callable[[], object] | None) -> Iterator[None]:
    """Call `tick` now and then while SQLite works in the block; what it raises leaves the block.

    Also without one a signal is heeded: Python runs signal handlers between two steps of its own,
    and one statement may take minutes.
    """
    raised: list[BaseException] = []

    def on_progress() -> bool:
        try:
            if tick is not None:
                tick()
        except BaseException as error:  # noqa: BLE001 - raised again below: SQLite's binding drops it
            raised.append(error)
        return bool(raised)

    connection.set_progress_handler(on_progress, _STEPS_A_TICK)
    try:
        yield
    except sqlite3.OperationalError as error:
        if raised:
            raise raised[0] from None
        if str(error) == "interrupted":
            # A signal handler raised on entering `on_progress`, before there is a `try`: with ctrl-c
            # that is where it runs. What it raised is lost in the binding.
            raise KeyboardInterrupt from None
        raise
    finally:
        connection.set_progress_handler(None, 0)
