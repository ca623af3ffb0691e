"""Mutexes that a signal handler's exception cannot leak.

Reentrant only so that a mutex can say whether this thread holds it; a second entry is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


def acquire(mutex: threading.RLock, held: list[bool], *, wait_s: float = -1) -> None:
    """Take a mutex and append to `held` whether that succeeded, as one indivisible step.

    `held.append(mutex.acquire())` would be two calls, and a signal handler that raises between
    them would leave a mutex that nobody knows to be taken. `extend` makes both inside C code.
    """
    held.extend(map(mutex.acquire, (True,), (wait_s,)))


def owned(mutex: threading.RLock) -> bool:
    """Say whether this thread holds it."""
    return owner_asked(mutex)()


def owner_asked(mutex: threading.RLock) -> Callable[[], bool]:
    """Return what says whether this thread holds it, for who asks in every transaction."""
    asked: Callable[[], bool] = mutex._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - the only way
    return asked
