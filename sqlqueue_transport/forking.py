"""Keep SQLite out of forked children: close before, refuse after what could not be closed.

A child that inherits an open SQLite connection, even one it never touches, shares SQLite's
per-process lock table. Its own new connection then holds no locks; the parent closes, believes
it is the last, deletes the log, and a hundred commits of the child are gone with no error.
So a hook before each fork closes everything, and a child in which that was not possible, or in
which the hook did not run (forks made by C code), refuses every call.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from sqlqueue_transport.errors import ForkedStore

if TYPE_CHECKING:
    from collections.abc import Iterable


class Forkable(Protocol):
    """Be told around a fork; before in one order, after in the reverse.

    `fork_order` is the order in which the locks are taken everywhere else, lowest first.
    """

    fork_order: int

    def before_fork(self) -> None:
        """Close what must not be inherited and hold what must not change."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_guarded: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []
_one_fork_at_a_time = threading.Lock()


def guard(one: Forkable) -> None:
    """Tell `one` about every fork of this process from now on."""
    _guarded.add(one)


def forget(one: Forkable) -> None:
    """Stop telling `one`."""
    _guarded.discard(one)


def refuse(path: Path, why: str) -> NoReturn:
    """Raise the error a child gets that inherited an unsafe store."""
    message = (
        f"the store of {path} cannot be used in this process: {why}. Nothing was written. Open "
        "the queue after the fork instead"
    )
    raise ForkedStore(message)


def has_open_descriptor(path: Path) -> bool:
    """Say whether this process still has the database file open, by whatever connection."""
    if sys.platform != "linux":  # pragma: no cover - /dev/fd shows no names elsewhere
        return False
    for descriptor in _descriptors():
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if name == str(path):
            return True
    return False


def _descriptors() -> Iterable[str]:
    return os.listdir("/proc/self/fd")


def _before() -> None:
    # One order for everybody, so that two forking threads cannot wait for each other.
    _one_fork_at_a_time.acquire()
    _forking[:] = sorted(_guarded, key=lambda one: (one.fork_order, id(one)))
    for one in _forking:
        one.before_fork()


def _after_in_parent() -> None:
    for one in reversed(_forking):
        one.after_fork_in_parent()
    _forking.clear()
    _one_fork_at_a_time.release()


def _after_in_child() -> None:
    for one in reversed(_forking):
        one.after_fork_in_child()
    _forking.clear()
    _one_fork_at_a_time.release()


os.register_at_fork(
    before=_before,
    after_in_parent=_after_in_parent,
    after_in_child=_after_in_child,
)
