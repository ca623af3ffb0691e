"""Waiting for Celery's results, asleep until somebody stores one.

`result.get()` comes by here on its way to `results.Results.sleep`. Celery's base classes keep the
result objects and decide what is fulfilled; here is only which keys are watched, and who looks.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.asynchronous import BaseResultConsumer
from celery.result import ResultSet
from celery.utils.log import get_logger

from sqlqueue_transport.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue_transport.results import Results

logger = get_logger(__name__)

LONGEST_WAIT_S = 1.0


class ResultConsumer(BaseResultConsumer):
    """Wait for the results of one backend.

    Any thread may wait, subscribe and cancel. A thread that reads hands on what the others wait
    for, too, and wakes them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare; the file is opened by the first look at it."""
        super().__init__(*args, **kwargs)
        self._forget_all()

    @property
    def _results(self) -> Results:
        results: Results = self.backend.results
        return results

    def _forget_all(self) -> None:
        self._pid = os.getpid()
        # Keys somebody waits for, and those of them that were never looked for. Dictionaries, and
        # only single calls of theirs: `cancel_for` is called by the garbage collector, in any
        # thread and in the middle of anything, and must not wait for a lock.
        self._watched: dict[str, None] = {}
        self._unseen: dict[str, None] = {}
        self._seen = 0
        # How often something was handed on. A thread that has not come by since may be ready.
        self._handed_on = 0
        self._known = threading.local()
        self._draining: dict[int, None] = {}
        self._reading = threading.Lock()
        self._is_watching = threading.Event()

    def _own(self) -> None:
        """Forget, in a forked child, for what and with which locks the parent waits."""
        if self._pid != os.getpid():
            self._forget_all()

    def start(self, initial_task_id: str, **_: Any) -> None:
        """Watch for a task's result."""
        self.consume_from(initial_task_id)

    def stop(self) -> None:
        """Watch for nothing any more."""
        self._forget_all()

    def consume_from(self, task_id: str) -> None:
        """Watch for a task's result. Reads nothing yet."""
        self._own()
        key = self.backend.get_key_for_task(task_id)
        if key in self._watched:
            return
        self._unseen[key] = None
        self._watched[key] = None
        self._is_watching.set()
        if self._others_drain():
            self._results.stir()  # they sleep without this key

    def cancel_for(self, task_id: str) -> None:
        """Watch for a task's result no longer. Never waits."""
        key = self.backend.get_key_for_task(task_id)
        self._watched.pop(key, None)
        self._unseen.pop(key, None)

    def on_wait_for_pending(self, result: Any, **_: Any) -> None:
        """Hand on what is there already, before anybody sleeps. Raises what opening raises."""
        self._own()
        if isinstance(result, ResultSet):
            self._look()
            return
        # Not by a look: the same task may be watched for another result object, which Celery
        # before 5.7 takes for this one.
        list(result._iter_meta())  # noqa: SLF001 - Celery's own backends call it, too
        self._handed_on += 1

    def on_state_change(self, meta: dict[str, Any], message: Any) -> None:
        """Hand a state to who waits for it."""
        super().on_state_change(meta, message)
        if meta["status"] in states.READY_STATES:
            self.cancel_for(meta["task_id"])

    def drain_events_until(
        self, p: Any, timeout: float | None = None, on_interval: Any = None
    ) -> Iterator[None]:
        """Wait until the promise `p` is fulfilled, at most `timeout` seconds.

        Celery's drainers alone would wait in whole seconds.
        """
        deadline_s = time.monotonic() + timeout if timeout else None

        def wait(timeout: float) -> None:
            left_s = timeout if deadline_s is None else deadline_s - time.monotonic()
            self.drain_events(min(timeout, max(left_s, 0.0)))

        drained: Iterator[None] = self.drainer.drain_events_until(
            p,
            timeout=timeout,
            interval=min(timeout or LONGEST_WAIT_S, LONGEST_WAIT_S),
            on_interval=on_interval,
            wait=wait,
        )
        return drained

    def drain_events(self, timeout: float | None = None) -> None:
        """Hand on what is new, or sleep until something is, at most `timeout` seconds.

        Also returns when another thread has handed something on since this one was here last. A
        file that cannot be used now is waited out: who waits has a timeout of his own.
        """
        self._own()
        if getattr(self._known, "handed_on", None) != self._handed_on:
            self._known.handed_on = self._handed_on
            return
        timeout_s = LONGEST_WAIT_S if timeout is None else timeout
        thread_id = threading.get_ident()
        self._draining[thread_id] = None
        try:
            self._sleep(timeout_s)
        except Unavailable as error:
            logger.warning("Waiting for results although they cannot be read: %s", error)
            self._unseen.update(self._watched)
            time.sleep(min(timeout_s, LONGEST_WAIT_S))
        finally:
            self._draining.pop(thread_id, None)
        self._known.handed_on = self._handed_on

    def _sleep(self, timeout_s: float) -> None:
        if not self._watched:
            # In a loop of greenlets one of them drains all the time, also when nobody waits.
            self._is_watching.clear()
            if not self._watched:
                self._is_watching.wait(timeout_s)
            return
        before = self._handed_on

        def has_news() -> bool:
            self._look()
            return self._handed_on != before

        results = self._results
        if results.sleep(list(self._watched), timeout_s, has_news=has_news):
            has_news()

    def _others_drain(self) -> bool:
        return any(one != threading.get_ident() for one in list(self._draining))

    def _look(self) -> None:
        """Read what is new and hand it on."""
        with self.backend.reopening(), self._reading:
            found = self._read()
        trouble: Exception | None = None
        for key, value in found:
            if key not in self._watched:
                continue  # handed on or cancelled in between
            try:
                self.on_state_change(self.backend.decode_result(value), None)
            except Exception as error:  # noqa: BLE001 - the others are to get theirs first
                trouble = error
        if found:
            self._handed_on += 1
            if self._others_drain():
                self._results.stir()
        if trouble is not None:
            raise trouble

    def _read(self) -> list[tuple[str, bytes]]:
        results = self._results
        if all(key in self._unseen for key in list(self._watched)):
            # Nobody has waited for a while: what was stored meanwhile need not be gone through.
            self._seen = results.newest()
        # What is not found here is newer than what was seen.
        keys = list(self._unseen)
        found = [
            (key, value)
            for key, value in zip(keys, results.get_many(keys), strict=True)
            if value is not None
        ]
        for key in keys:
            self._unseen.pop(key, None)
        news = results.newer(self._seen, self._watched.__contains__)
        self._seen = news.seen
        return found + news.found


__all__ = ["ResultConsumer"]
