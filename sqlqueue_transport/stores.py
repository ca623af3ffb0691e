"""One open store per file and process, however many Kombu connections use it.

Sharing is not only thrift: presence locks belong to the process and vanish with any descriptor
of their file, and a process that holds two SQLite connections for writing waits for itself.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock
from sqlqueue_transport.errors import DatabaseMissing, FileReplaced, TransportError
from sqlqueue_transport.files import resolved_path
from sqlqueue_transport.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_open: dict[Path, tuple[Store, int]] = {}
_open_read_only: dict[Path, tuple[Store, int]] = {}
# Files that vanished while this process had them open: see `open_store`.
_vanished: set[Path] = set()
# Of files whose time is not the machine's: see `clock_of`.
_clocks: dict[Path, Clock] = {}
_mutex = threading.RLock()


def open_store(
    path: str | os.PathLike[str],
    *,
    create: bool = True,
    busy_timeout_s: float = 30.0,
    read_only: bool = False,
) -> Store:
    """Return this process's store of a file, opening it for the first caller.

    Pair every call with `close_store`. Raises a CannotOpen that says what is wrong. A store that
    can only read is another one than that which can write; a process may have both.

    With `create` a missing file is made, but not one that vanished while this process had it open.
    It was moved, or its disk is not mounted, and may come back: what was published into a new file
    until then would be overwritten.
    """
    where = resolved_path(path)
    stores = _open_read_only if read_only else _open
    with _mutex:
        known = stores.get(where)
        if known is not None:
            store, users = known
            try:
                store.database.look_at_path()
            except FileReplaced:
                # The open one writes into a file nobody else sees; the caller gets the new one.
                stores.pop(where)
                with contextlib.suppress(TransportError):
                    _close(store)
            else:
                stores[where] = (store, users + 1)
                return store
        if create and not read_only and where in _vanished and not os.path.lexists(where):
            message = (
                f"{where} was in use by this process and is gone now; put it back, or start the "
                "process anew to begin with an empty queue"
            )
            raise DatabaseMissing(message)
        clock = _clocks.get(where, SYSTEM_CLOCK)
        store = Store(
            where,
            clock=clock,
            create=create,
            busy_timeout_s=busy_timeout_s,
            read_only=read_only,
        )
        stores[where] = (store, 1)
        _vanished.discard(where)
        return store


def close_store(store: Store) -> None:
    """Give a store back; the last user closes it."""
    stores = _open_read_only if store.database.is_read_only else _open
    with _mutex:
        known = stores.get(store.path)
        if known is None or known[0] is not store:
            return
        users = known[1] - 1
        if users:
            stores[store.path] = (store, users)
            return
        stores.pop(store.path)
        _close(store)


@contextlib.contextmanager
def clock_of(path: str | os.PathLike[str], clock: Clock) -> Iterator[None]:
    """Have this process's store of a file, if opened in the block, tell the time by `clock`.

    For tests of programs, whose time goes as they say. No URL and no option leads here: processes
    that share a file must share its time. Raises TransportError when the file is open already.
    """
    where = resolved_path(path)
    with _mutex:
        if where in _open or where in _open_read_only or where in _clocks:
            message = f"{where} is open in this process; its clock cannot be replaced any more"
            raise TransportError(message)
        _clocks[where] = clock
    try:
        yield
    finally:
        with _mutex:
            del _clocks[where]


def _close(store: Store) -> None:
    if not os.path.lexists(store.path):
        _vanished.add(store.path)
    store.close()


@atexit.register
def _close_all() -> None:
    """Close in order at exit: what is held is released at once instead of by a sweeper."""
    with _mutex:
        for stores in (_open, _open_read_only):
            for store, _ in list(stores.values()):
                with contextlib.suppress(TransportError, OSError):
                    store.close()
            stores.clear()


def _forget_mutex() -> None:
    global _mutex  # noqa: PLW0603 - the fork may have copied it taken
    _mutex = threading.RLock()


os.register_at_fork(after_in_child=_forget_mutex)
