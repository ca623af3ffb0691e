"""Where attempts run: one at a time in the consumer's own thread, or many in threads and on a loop.

A runner takes attempts and hands back what ended. It knows no store: claiming and settling are the
consumer's, which alone starts attempts, so that none starts while a settlement waits.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from sqlqueue.execute import fault_of
from sqlqueue.log import get_logger
from sqlqueue.worker.left_behind import new_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sqlqueue.worker.attempt import Attempt
    from sqlqueue_transport.messages import Outcome

__all__ = ["Ended", "Inline", "Runner", "Threads"]

log = get_logger(__name__)

Ended: TypeAlias = "tuple[Attempt, Outcome]"
_LAST_MOMENT_S: Final = 1.0


class Runner(Protocol):
    """Run up to `places` attempts at once. All calls come from the consumer's thread."""

    places: int

    def start(self, attempt: Attempt) -> None:
        """Run an attempt; may return when it has ended, or at once."""

    def ended(self) -> list[Ended]:
        """Return the attempts that have ended since the last call."""

    @property
    def has_ended(self) -> bool:
        """Say whether there is something for `ended`."""

    def wait(self, timeout_s: float) -> None:
        """Return when there is something for `ended`, or the time is over."""

    def close(self) -> None:
        """End its threads; nothing may be running."""


class Inline:
    """Run each attempt in the consumer's thread, before `start` returns.

    Async functions run one at a time, too, on one event loop that lives as long as the runner: what a
    job leaves behind on it, such as a pool of connections, is there for the next.
    """

    places = 1

    def __init__(self) -> None:
        """Prepare; the loop is made by the first async function."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hides = False  # since a sensitive job ran: it may have left something on the loop
        self._ended: list[Ended] = []

    def start(self, attempt: Attempt) -> None:
        """Run an attempt to its end."""
        if not attempt.is_async:
            self._ended.append((attempt, attempt.run()))
        else:
            if self._loop is None:
                self._loop = new_loop(hides=lambda: self._hides)
            self._run_on(self._loop, attempt)

    def _run_on(self, loop: asyncio.AbstractEventLoop, attempt: Attempt) -> None:
        self._hides = self._hides or attempt.is_sensitive

        async def run() -> None:
            self._ended.append((attempt, await attempt.run_on(loop)))

        task = loop.create_task(run())
        while not task.done():
            try:
                loop.run_until_complete(task)
            except BaseException as error:  # noqa: BLE001 - see `_log_escaped`
                _log_escaped(error, hide=self._hides)

    def ended(self) -> list[Ended]:
        """Return the attempts that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def has_ended(self) -> bool:
        """Say whether there is something for `ended`."""
        return bool(self._ended)

    def wait(self, timeout_s: float) -> None:
        """Return at once: nothing ever runs meanwhile."""

    def close(self) -> None:
        """End the loop, with what jobs have left on it."""
        if self._loop is not None:
            _end_what_is_left(self._loop)
            self._loop.close()
            self._loop = None


class Threads:
    """Run many attempts at once: functions in threads, async functions on one event loop.

    `on_end` is called from another thread whenever an attempt has ended, to wake the consumer.
    """

    def __init__(
        self,
        places: int,
        *,
        on_end: Callable[[], object],
        on_thread_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; threads are made as they are needed.

        `on_thread_end` is called in each thread that has run user code, when it ends.
        """
        self.places = places
        self._on_end = on_end
        self._on_thread_end = on_thread_end
        self._waiting: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._ended: deque[Ended] = deque()
        self._in_threads = 0
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._is_closing = False
        self._hides = False  # as in Inline

    def start(self, attempt: Attempt) -> None:
        """Hand an attempt to a thread, or to the loop, and return."""
        if attempt.is_async:
            self._start_on_loop(attempt)
            return
        self._in_threads += 1
        if len(self._threads) < self._in_threads:
            thread = threading.Thread(
                target=self._serve, name=f"sqlqueue-{len(self._threads) + 1}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._waiting.put(attempt)

    def ended(self) -> list[Ended]:
        """Return the attempts that have ended since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._ended.append(self._came.get_nowait())
        ended = list(self._ended)
        self._ended.clear()
        self._in_threads -= sum(not attempt.is_async for attempt, _ in ended)
        return ended

    @property
    def has_ended(self) -> bool:
        """Say whether there is something for `ended`."""
        return bool(self._ended) or not self._came.empty()

    def wait(self, timeout_s: float) -> None:
        """Return when there is something for `ended`, or the time is over."""
        if not self._ended:
            with contextlib.suppress(queue.Empty):
                self._ended.append(self._came.get(timeout=timeout_s))

    def close(self) -> None:
        """End the threads and the loop; nothing may be running."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._is_closing = True
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop = self._loop_thread = None

    def _serve(self) -> None:
        """Run attempts, until told to end: the life of a thread."""
        try:
            while (attempt := self._waiting.get()) is not None:
                self._came.put((attempt, attempt.run()))
                self._on_end()
        finally:
            self._on_thread_end()

    def _start_on_loop(self, attempt: Attempt) -> None:
        self._hides = self._hides or attempt.is_sensitive
        loop = self._loop
        if loop is None:
            loop = self._loop = new_loop(hides=lambda: self._hides)
            self._loop_thread = threading.Thread(
                target=self._run_loop, args=(loop,), name="sqlqueue-loop", daemon=True
            )
            self._loop_thread.start()
        import asyncio  # noqa: PLC0415 - late: few workers run async tasks

        asyncio.run_coroutine_threadsafe(self._run_on(loop, attempt), loop)

    async def _run_on(self, loop: asyncio.AbstractEventLoop, attempt: Attempt) -> None:
        self._came.put((attempt, await attempt.run_on(loop)))
        self._on_end()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while not self._is_closing:
                try:
                    loop.run_forever()
                except BaseException as error:  # noqa: BLE001 - see `_log_escaped`
                    _log_escaped(error, hide=self._hides)
            _end_what_is_left(loop)
        finally:
            loop.close()
            self._on_thread_end()


def _log_escaped(error: BaseException, *, hide: bool) -> None:
    """Tell what came out of a loop, which goes on.

    asyncio hands on what a task of user code raises to end the process (SystemExit,
    KeyboardInterrupt), also of a task that nobody awaits; and a loop can be stopped by anybody.
    """
    log.warning(
        "loop_interrupted", error=f"{type(error).__name__}: {fault_of(error, hide=hide).message}"
    )


def _end_what_is_left(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what jobs have started and not awaited, and give it a moment: it may refuse."""
    import asyncio  # noqa: PLC0415 - late: few workers run async tasks

    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    with contextlib.suppress(Exception):  # nobody is there to be told
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=_LAST_MOMENT_S))
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), _LAST_MOMENT_S))
