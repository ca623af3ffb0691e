"""The process of a beat: runs until it is told to stop, and sleeps in between.

What a beat does is `ticking`; this is the loop around it. It sleeps until the next tick is due, at
most `beat_max_interval`, so that it notices a clock that was set. A signal, a change of the
schedule, and a producer that has something to say end the sleep.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from sqlqueue.beat.ticking import Beat
from sqlqueue.log import get_logger
from sqlqueue.notify import Notifier
from sqlqueue.stopping import stopped_by_signals
from sqlqueue_transport.errors import FileReplaced, SchemaChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend

__all__ = ["run_beat"]

log = get_logger(__name__)

_GRACE_S: Final = 5.0  # how long running producers may finish when the beat is stopped
_EMPTY_HINT: Final = (
    "decorate a function with @app.producer(every=…), call app.periodic(…), or add a [beat.NAME] table"
    " and restart; or run 'sqlqueue schedule add' now"
)
_EXIT_FAILED: Final = 1
_EXIT_SCHEMA: Final = 6


def run_beat(
    app: SqlQueue,
    *,
    name: str,
    max_interval_s: float | None = None,
    max_ticks: int | None = None,
    notifier: Notifier | None = None,
    unblock: Callable[[], object] | None = None,
) -> int:
    """Run a beat in the main thread until SIGTERM or SIGINT; return the exit code.

    `max_interval_s` is its longest sleep; None means the setting `beat_max_interval`. Running
    producers have a few seconds to finish, then they are ended and their ticks stay due; a second
    signal ends the process at once. `unblock` is given by a supervisor, which then ends the process
    itself: it lets in the signals that came since the fork. `notifier` None makes one of the
    environment. When the presence file is lost, it ends the same way with code 1, to be started anew.
    Raises ConfigError, the transport's CannotOpen, and NotAvailable for a broker that keeps no schedule.
    """
    notifier = notifier or Notifier()
    longest_s = app.conf.beat_max_interval if max_interval_s is None else max_interval_s
    _ = app.keys  # a mistake in them is one of the start, and not of the first tick
    backend = app.backend
    code = 0
    beat = None
    try:
        with _stopping_by_signal(notifier, at_once=unblock is None) as stopping:
            if unblock is not None:
                unblock()
            # First: what it describes is known to be its own.
            worker_id = backend.register(name=name, kind="beat")
            beat = Beat(app, name=name, max_ticks=max_ticks, worker_id=worker_id)
            log.info("beat_started", beat=name, pid=os.getpid(), entries=sorted(beat.entries))
            notifier.ready()
            notifier.status(f"{len(beat.entries)} entries")
            if not beat.entries:
                log.warning("schedule_empty", beat=name, hint=_EMPTY_HINT)
            while not stopping.is_set and not beat.is_over:
                notifier.alive()
                if (lost := backend.lost_presence) is not None:
                    # Nobody rings it any more, and who removes an entry does not see that it has it.
                    log.error("presence_lost", beat=name, path=str(lost))
                    code = _EXIT_FAILED
                    stopping.set()
                    break
                pause_s = _turn(beat, backend)
                if not beat.is_over:
                    pause_s = min(max(pause_s, 0.0), longest_s, notifier.watchdog_every_s)
                    _sleep(beat, backend, stopping, pause_s)
            _finish(beat, backend, stopping)
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", beat=name, error=str(error))
        code = _EXIT_SCHEMA if isinstance(error, SchemaChanged) else _EXIT_FAILED
    finally:
        if beat is not None:
            beat.close()
        # Where the store is gone there is nothing to give back.
        with contextlib.suppress(*backend.connection_errors):
            backend.leave()
        with contextlib.suppress(*backend.connection_errors):
            app.close()
    log.info("beat_stopped", beat=name, exit_code=code)
    return code


def _turn(beat: Beat, backend: Backend) -> float:
    """Do what is due, and return after how many seconds to look again; a busy store is waited out."""
    try:
        # The one place for what a living beat does for the file beside its schedule.
        backend.beat()
        return min(beat.turn(), backend.keep_house(sweep=True))
    except (FileReplaced, SchemaChanged):
        raise
    except backend.connection_errors as error:
        log.warning("store_busy", error=str(error))
        return 1.0


def _sleep(beat: Beat, backend: Backend, stopping: _Stopping, seconds: float) -> None:
    """Sleep until something happens, at most so long."""
    try:
        with backend.schedules.listening(seconds) as bell:
            if beat.is_up_to_date():
                rung = stopping.sleep(seconds, [bell.descriptor, *beat.descriptors])
                if bell.descriptor in rung:
                    bell.hear()
    except (FileReplaced, SchemaChanged):
        raise
    except backend.connection_errors as error:
        log.warning("store_busy", error=str(error))
        stopping.sleep(min(seconds, 1.0), beat.descriptors)


def _finish(beat: Beat, backend: Backend, stopping: _Stopping) -> None:
    """Let running producers finish, each until its own deadline, and none longer than the grace."""
    until_s = time.monotonic() + _GRACE_S
    beat.is_draining = True
    while beat.is_producing and not beat.is_over:
        left_s = until_s - time.monotonic()
        with contextlib.suppress(*backend.connection_errors):
            if left_s <= 0:
                beat.stop_producers(after_s=_GRACE_S)
                return
            stopping.wait(min(left_s, beat.producers_left_s), beat.descriptors)
            beat.collect()


class _Stopping:
    """Be a flag that a signal sets, and a sleep that any signal ends."""

    def __init__(self, reading: int, notifier: Notifier) -> None:
        self.is_set = False
        self._reading = reading
        self._notifier = notifier

    def set(self) -> None:
        self.is_set = True
        self._notifier.stopping(0.0)

    def sleep(self, seconds: float, others: Iterable[int]) -> list[int]:
        """Sleep until a signal, or until one of the others is readable; return those that are."""
        # The signal may come between any look at the flag and the sleep: then a byte lies here.
        return [] if self.is_set else self.wait(seconds, others)

    def wait(self, seconds: float, others: Iterable[int]) -> list[int]:
        """Sleep the same way, also when the flag is set."""
        poll = select.poll()  # select() knows no descriptor above 1023
        for descriptor in (self._reading, *others):
            poll.register(descriptor, select.POLLIN)
        found = poll.poll(None if math.isinf(seconds) else seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 4096)
        return [descriptor for descriptor, _ in found]


@contextlib.contextmanager
def _stopping_by_signal(notifier: Notifier, *, at_once: bool) -> Iterator[_Stopping]:
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    stopping = _Stopping(reading, notifier)
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Handled, so that the end of a producer's process ends the sleep.
    children = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with stopped_by_signals(stopping.set, reopened=notifier.reloaded, at_once=at_once):
            yield stopping
    finally:
        signal.signal(signal.SIGCHLD, children)
        signal.set_wakeup_fd(waking)
        os.close(reading)
        os.close(writing)
