"""How a process that nobody supervises is told to stop: by SIGTERM or SIGINT, in order, then at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from typing import TYPE_CHECKING, Final

from sqlqueue.forks import give_forks_default_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["stopped_by_signals"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_EXIT_STOPPED: Final = 130


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], object], *, at_once: bool = True) -> Iterator[None]:
    """Call `stop` at the first signal, and end the process with code 130 at the second.

    With `at_once` False the second one says the same as the first: for a process whose supervisor
    is told as well, tells it in turn, and ends it if it takes too long. In the main thread. `stop` runs in a signal handler, between any two steps of the block. What
    the block forks dies of the same signals.
    """
    # Counted by one call of C code: a second signal may come while the first is being handled.
    times = itertools.count(1)

    def on_signal(*_: object) -> None:
        if next(times) > 1 and at_once:
            os._exit(_EXIT_STOPPED)
        stop()

    give_forks_default_signals()
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
