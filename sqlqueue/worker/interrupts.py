"""Raise an error inside of a running task, from another thread: how limits and cancelling reach it.

There are three ways, by where the task runs. In the **main thread** a signal does it, whose handler
raises: that also ends a sleep or a read. In **another thread** CPython sets an asynchronous
exception, which is raised as soon as that thread executes Python code again: a thread that waits in
C code gets it late. On an **event loop** the task is cancelled, and what its coroutine sees at its
`await` is the error instead of CancelledError.

The rule for all three: an error is raised only while user code runs, and never inside of the store,
which user code may have called. So who raises looks at the stack first, and if the store is on it,
leaves the error to the end of the call into the store (`raise_pending`) or to a later try (`insist`). What looks and raises must be one step. In a signal handler it
is. For another thread we give up Python's lock and take it anew first: whoever has just got it keeps
it for five milliseconds (`sys.getswitchinterval`), and we need microseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlqueue.stopping import handle

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator

__all__ = ["Interrupt", "LoopInterrupt", "ThreadInterrupt", "listen"]

# Celery's choice for its soft limit, too (billiard's SIG_SOFT_TIMEOUT).
_NUMBER: Final = signal.SIGUSR1
# Each is one look. After so many somebody has taken the signal in a way that Python does not see.
_MOST_SIGNALS: Final = 500
_NOT_INSIDE: Final = ("sqlqueue_transport", "kombu")
# They catch whatever the values of others raise, or hold a lock.
_NOT_INSIDE_EITHER: Final = frozenset(
    f"sqlqueue.{name}"
    for name in ("calls", "envelope", "log", "log_file", "plain_json", "progress", "text")
)
_BELOW_USER_CODE: Final = "sqlqueue.execute"


class Interrupt(Protocol):
    """Be the way into one running task. Any thread may throw; each error is raised at most once."""

    @property
    def is_waiting(self) -> bool:
        """Say whether an error waits for the moment at which it can be raised."""

    def throw(self, error: type[BaseException]) -> None:
        """Raise an error of this class in the task, now or when it is possible."""

    def insist(self) -> None:
        """Try again to raise what was not possible before; harmless when there is nothing."""


class ThreadInterrupt:
    """Raise in the thread that enters it: around user code, and nothing else.

    `close`, after the block, ends it: nothing is raised by it once `close` has returned. Until then
    an error may come anywhere, also in `close` itself, which may then be called again.
    """

    def __init__(self) -> None:
        """Prepare; it belongs to the thread that enters it."""
        self._lock = threading.Lock()
        self._thread = 0
        self._is_open = self._is_over = False
        self._pending: type[BaseException] | None = None
        self._was_raised = False
        self._signals = 0

    def __enter__(self) -> None:
        """Begin user code."""
        self._thread = threading.get_ident()
        if self._thread == threading.main_thread().ident:
            global _in_main_thread  # noqa: PLW0603 - a signal handler has no other way to know
            _in_main_thread = self
        self._is_open = True

    def __exit__(self, *_: object) -> None:
        """End user code."""
        self._is_open = False

    def close(self) -> None:
        """Let nothing be raised from now on."""
        with self._lock:
            self._is_open, self._is_over = False, True
            self._pending = None
        if self._was_raised:
            # By now it has come: CPython raises it at the next call at the latest, and this is one.
            # If ever it did not, it would hit the next task, or our own loop.
            _set_asynchronous(self._thread, None)

    def throw(self, error: type[BaseException]) -> None:
        """Raise an error of this class in the task, now or when it is possible."""
        with self._lock:
            if not self._is_over:
                self._pending = error
        self.insist()

    def insist(self) -> None:
        """Try again to raise what was not possible before; harmless when there is nothing."""
        if self._pending is None:
            return
        with self._lock:
            if not self._is_open:
                return
            if self._is_reached_by_signal and self._signals < _MOST_SIGNALS:
                self._signals += 1
                signal.pthread_kill(self._thread, _NUMBER)
                return
            time.sleep(0)  # Python's lock, anew: see above
            if _is_in_store(sys._current_frames().get(self._thread)):  # noqa: SLF001 - documented
                return
            error, self._pending, self._was_raised = self._pending, None, True
            _set_asynchronous(self._thread, error)

    def raise_pending(self) -> None:
        """Raise what waits, in the thread of the task: for user code that has just left the store."""
        if self._pending is None or self._thread != threading.get_ident():
            return
        with self._lock:
            error, self._pending = self._pending if self._is_open else None, None
        if error is not None:
            raise error

    @property
    def is_waiting(self) -> bool:
        """Say whether an error waits for the moment at which it can be raised."""
        return self._pending is not None

    @property
    def _is_reached_by_signal(self) -> bool:
        # A task may have taken the signal for itself.
        return (
            self._thread == threading.main_thread().ident
            and signal.getsignal(_NUMBER) is _on_signal
        )

    def take(self, frame: types.FrameType | None) -> type[BaseException] | None:
        """Return what is to be raised at this point of the main thread, None for nothing."""
        if not self._is_open or _is_in_store(frame):
            return None
        error, self._pending = self._pending, None
        return error


class LoopInterrupt:
    """Raise at an `await` of the coroutine that `steer` runs, on the event loop it runs on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a coroutine of this loop."""
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._is_over = False
        self._pending: type[BaseException] | None = None

    def throw(
        self, error: type[BaseException], *, unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Raise an error of this class at the next await, unless something is so by then.

        A loop that is closed runs nothing.
        """
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._throw, error, unless)

    @property
    def is_waiting(self) -> bool:
        """Say no: a loop gets to it by itself."""
        return False

    def insist(self) -> None:
        """Do nothing."""

    def _throw(self, error: type[BaseException], unless: Callable[[], bool]) -> None:
        if self._is_over or unless():
            return
        self._pending = error
        if self._task is not None:  # or it has not begun, and `steer` will see it
            self._task.cancel()

    async def steer(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine of user code, and raise in it what is thrown."""
        import asyncio  # noqa: PLC0415 - late: few workers run async tasks

        self._task = asyncio.current_task()
        try:
            if self._pending is not None:
                coroutine.close()
                raise self.taken()
            return await _steered(coroutine, self)
        finally:
            self._is_over = True

    def translated(self, error: BaseException) -> BaseException:
        """Return what user code shall see for what asyncio throws into it."""
        import asyncio  # noqa: PLC0415 - late: few workers run async tasks

        if self._pending is None or not isinstance(error, asyncio.CancelledError):
            return error
        return self.taken()

    @property
    def is_pending(self) -> bool:
        """Say whether something was thrown that user code has not seen yet."""
        return self._pending is not None

    def taken(self) -> BaseException:
        """Return what was thrown, for user code to see it now."""
        kind, self._pending = self._pending, None
        if kind is None:  # pragma: no cover - asked for only when there is one
            raise AssertionError
        if self._task is not None and sys.version_info >= (3, 11):
            # Or what is awaited next (a timeout, a task group) takes it for a cancelling of its own.
            self._task.uncancel()
        return _cancelling(kind)()


@types.coroutine
def _steered(
    coroutine: Coroutine[Any, Any, Any], interrupt: LoopInterrupt
) -> Generator[Any, Any, Any]:
    """Drive a coroutine step by step, as `await` does, and put our error in the place of asyncio's."""
    step = functools.partial(coroutine.send, None)
    while True:
        try:
            awaited = step()
        except StopIteration as end:
            return end.value
        try:
            sent = yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever comes belongs to the coroutine
            step = functools.partial(coroutine.throw, interrupt.translated(error))
        else:
            step = functools.partial(coroutine.send, sent)
            if interrupt.is_pending:  # what was awaited has swallowed the cancelling
                step = functools.partial(coroutine.throw, interrupt.taken())


def _cancelling(kind: type[BaseException]) -> type[BaseException]:
    """Return the class of error that is this one and asyncio's CancelledError as well.

    Task groups end their tasks, semaphores give back a permit and locks their turn only for a
    CancelledError. It bears the name of the kind, which is what users and records see.
    """
    if kind not in _both:
        import asyncio  # noqa: PLC0415 - late: few workers run async tasks

        _both[kind] = type(
            kind.__name__, (kind, asyncio.CancelledError), {"__module__": kind.__module__}
        )
    return _both[kind]


_both: dict[type[BaseException], type[BaseException]] = {}
_in_main_thread: ThreadInterrupt | None = None


def listen() -> None:
    """Take the signal by which a task in the main thread is reached. In the main thread."""
    handle(_NUMBER, _on_signal)


def _on_signal(_: int, frame: types.FrameType | None) -> None:
    error = None if _in_main_thread is None else _in_main_thread.take(frame)
    if error is not None:
        raise error


def _is_in_store(frame: types.FrameType | None) -> bool:
    """Say whether user code has called into the store, or into what must not be cut short either."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name == _BELOW_USER_CODE:
            return False
        if isinstance(name, str) and (
            name.partition(".")[0] in _NOT_INSIDE or name in _NOT_INSIDE_EITHER
        ):
            return True
        frame = frame.f_back
    return False


def _set_asynchronous(thread: int, error: type[BaseException] | None) -> None:
    """Raise in a thread as soon as it runs Python code; None takes back what was not raised yet.

    docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
