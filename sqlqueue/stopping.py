"""The signals of a process: how it is told to stop, that its log was moved, or to show its stacks.

For a process that nobody supervises (a beat, a solo worker) all of it is `stopped_by_signals`; a
supervisor and its children take the parts.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of CPython; it has no stubs
import contextlib
import faulthandler
import itertools
import os
import signal
from typing import TYPE_CHECKING, Final

from sqlqueue import log
from sqlqueue.forks import give_forks_default_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["answer_to_sigquit", "handle", "hangup_ends", "stopped_by_signals"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_EXIT_STOPPED: Final = 130
_STDERR: Final = 2


@contextlib.contextmanager
def stopped_by_signals(
    stop: Callable[[], object],
    *,
    reopened: Callable[[], object] = lambda: None,
    at_once: bool = True,
) -> Iterator[None]:
    """Call `stop` at the first SIGTERM or SIGINT, and end the process with code 130 at the second.

    With `at_once` False the second one says the same as the first: for a process whose supervisor
    is told as well, tells it in turn, and ends it if it takes too long. SIGHUP opens the log anew,
    and calls `reopened`; on a terminal it stops, as SIGTERM does. SIGQUIT writes the stacks of all
    threads to standard error.

    In the main thread. `stop` and `reopened` run in a signal handler, between any two steps of the
    block. What the block forks has the default signals again.
    """
    # Counted by one call of C code: a second signal may come while the first is being handled.
    times = itertools.count(1)
    terminal_is_gone = False

    def on_signal(*_: object) -> None:
        if next(times) > 1 and at_once:
            os._exit(_EXIT_STOPPED)
        stop()

    def on_hangup(*_: object) -> None:
        nonlocal terminal_is_gone
        if not ends:
            log.reopen()
            reopened()
        elif not terminal_is_gone:  # shell and kernel both tell
            terminal_is_gone = True
            stop()

    give_forks_default_signals()
    ends = hangup_ends()
    before = {
        number: signal.signal(number, handler)
        for number, handler in (
            *((number, on_signal) for number in _SIGNALS),
            (signal.SIGHUP, on_hangup),
        )
    }
    quit_before = signal.getsignal(signal.SIGQUIT)
    answer_to_sigquit()
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGQUIT)
        for number, handler in (*before.items(), (signal.SIGQUIT, quit_before)):
            signal.signal(number, handler)


def hangup_ends() -> bool:
    """Say whether SIGHUP would mean that this process's terminal went away, and its log with it.

    Asked at the start: of a terminal that is gone nobody can tell that it was one. Under `nohup`
    the answer is no.
    """
    return log.is_on_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def handle(number: int, handler: Callable[..., object]) -> None:
    """Do what `signal.signal` does, for who does it after every job.

    That one makes an Enum of the handler it returns and of the one it is given, by way of an
    exception: 5.6 µs a signal, and 0.4 without.
    """
    _signal.signal(int(number), handler)


def answer_to_sigquit(descriptor: int = _STDERR) -> None:
    """Let SIGQUIT write the stacks of all threads there, instead of ending this process.

    It works while C code holds Python's lock, and while the main thread is stuck. Call it again
    after user code, which may have taken the signal: there is no moment in which it would kill. In
    the main thread. What is forked from here does not inherit it, see `forks`.
    """
    # faulthandler does not notice when somebody puts a handler over its own. Then it is taken out
    # first; and as it brings back what was there before it, that has to be something harmless,
    # which is also how we know that nobody did.
    if _signal.getsignal(int(signal.SIGQUIT)) != signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        faulthandler.unregister(signal.SIGQUIT)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    faulthandler.register(signal.SIGQUIT, file=descriptor, all_threads=True)
