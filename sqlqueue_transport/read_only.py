"""Look at a queue file without being able to write to it, and without waiting for who writes.

For consoles and whoever else only looks. Writing is refused twice: here, by a clear error before
anything happens, and by the kernel, because SQLite opens the file with O_RDONLY (mode=ro). There is
no writer connection and no writer lock, so a stopped writer does not stop who looks. The file is
never made, migrated, registered in or flushed.

Closing needs no writer lock, either: only a connection that can write copies the log back at its
close, or removes it. Everything else (one read at a time, each in a transaction of its own; the
watch over moved files; closing before forks) is as in `database`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from sqlqueue_transport import opening
from sqlqueue_transport.database import Database
from sqlqueue_transport.errors import ReadOnlyStore
from sqlqueue_transport.sqlite_errors import translated_os_error

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["ReadOnlyDatabase"]


class ReadOnlyDatabase(Database):
    """Run read transactions on one queue file; safe to share between threads.

    Threads take turns: one reads at a time. Raises a `CannotOpen` when the path is refused, and
    `ReadOnlyStore` for whatever would write.
    """

    is_read_only: ClassVar[bool] = True

    def open(self) -> None:
        """Open and check the file now, as the first read would."""
        self.read(lambda _: None)

    def _open_reader(self) -> None:
        with self._write_mutex, self._read_mutex:
            if self._held.reading is not None:
                return
            try:
                self._watch.look()  # a fork closed it: is it still the same file?
                opening.open_read_only(self.path, self._held, timeout_s=self._foreign_wait_s)
            except OSError as error:
                raise translated_os_error(error, self.path) from error

    def _with_writer(self, step: Callable[[sqlite3.Connection], object]) -> NoReturn:
        # Every write, checkpoint and opening for writing of the base comes through here.
        del step
        raise ReadOnlyStore(self.path)
