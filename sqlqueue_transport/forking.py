"""Keep SQLite out of forked children: close before, refuse after what could not be closed.

A child that inherits an open SQLite connection, even one it never touches, shares SQLite's
per-process lock table. Its own new connection then holds no locks; the parent closes, believes
it is the last, deletes the log, and a hundred commits of the child are gone with no error.
So a hook before each fork closes everything. What was left open all the same (by a transaction
that forked, by a connection that is not ours, by a fork of C code that runs no hooks) is seen by
the child in its own descriptors, and such a file is refused there.

Nothing inherited is ever closed in a child: closing a half-used connection writes into the memory
that it shares with the parent. It is abandoned instead.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING, NoReturn, Protocol

from sqlqueue_transport.errors import ForkedStore
from sqlqueue_transport.files import FileIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Forkable(Protocol):
    """Be told around a fork; before in one order, after in the reverse.

    `fork_order` is the order in which the locks are taken everywhere else, lowest first. The
    calls after a fork must bear that the call before it did not happen, or not to its end: a
    signal handler may have raised in it, or the object is younger.
    """

    fork_order: int

    def before_fork(self) -> None:
        """Close what must not be inherited and hold what must not change."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_guarded: weakref.WeakSet[Forkable] = weakref.WeakSet()
_guarded_mutex = threading.RLock()
_one_fork_at_a_time = threading.RLock()
# The files that were open in the parent when this process was forked.
_inherited: frozenset[FileIdentity] = frozenset()
_abandoned: list[object] = []
_pid = os.getpid()


def guard(one: Forkable) -> None:
    """Tell `one` about every fork of this process from now on."""
    with _guarded_mutex:
        _guarded.add(one)


def forget(one: Forkable) -> None:
    """Stop telling `one`."""
    with _guarded_mutex:
        _guarded.discard(one)


def refuse(path: Path, why: str) -> NoReturn:
    """Raise the error a child gets that inherited an unsafe store."""
    message = (
        f"the store of {path} cannot be used in this process: {why}. Nothing was written. Open "
        "the queue after the fork instead"
    )
    raise ForkedStore(message)


def was_inherited(identity: FileIdentity) -> bool:
    """Say whether the parent had this file open, by whatever connection, when it forked us."""
    global _inherited, _pid
    if _pid != os.getpid():
        # Forked by C code, without the hooks: what is open now is the best there is to know.
        _inherited, _pid = _open_files(), os.getpid()
    return identity in _inherited


def abandon(one: object) -> None:
    """Keep an inherited object from ever being closed in this process, not even at its exit."""
    _abandoned.append(one)
    with contextlib.suppress(ImportError, AttributeError):
        import ctypes  # noqa: PLC0415 - needed by hardly anybody

        # The list is emptied when the interpreter ends; a reference nobody owns is not.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _open_files() -> frozenset[FileIdentity]:
    """Return which regular files this process has open; opens none of them."""
    found: set[FileIdentity] = set()
    for descriptor in _descriptors():
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.add(FileIdentity(status.st_dev, status.st_ino))
    return frozenset(found)


def _descriptors() -> Iterable[int]:
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(directory)]  # noqa: PTH208 - numbers
    # No list to be had, for example because no descriptor is left to read it with.
    return range(min(os.sysconf("SC_OPEN_MAX"), 65_536))


def _in_order() -> list[Forkable]:
    with _guarded_mutex:
        return sorted(_guarded, key=lambda one: (one.fork_order, id(one)))


def _before() -> None:
    # One order for everybody, so that two forking threads cannot wait for each other.
    _one_fork_at_a_time.acquire()
    for one in _in_order():
        one.before_fork()


def _after_in_parent() -> None:
    try:
        # An exit stack goes in reverse, and on to the others when one of them raises.
        with contextlib.ExitStack() as all_of_them:
            for one in _in_order():
                all_of_them.callback(one.after_fork_in_parent)
    finally:
        with contextlib.suppress(RuntimeError):  # the hook before was interrupted
            _one_fork_at_a_time.release()


def _after_in_child() -> None:
    global _guarded_mutex, _one_fork_at_a_time, _inherited, _pid
    # Other threads, which do not exist here, may have held them.
    _guarded_mutex, _one_fork_at_a_time = threading.RLock(), threading.RLock()
    _inherited, _pid = _open_files(), os.getpid()
    with contextlib.ExitStack() as all_of_them:
        for one in _in_order():
            all_of_them.callback(one.after_fork_in_child)


os.register_at_fork(
    before=_before,
    after_in_parent=_after_in_parent,
    after_in_child=_after_in_child,
)
