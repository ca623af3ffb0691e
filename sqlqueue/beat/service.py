"""The beat: runs what is due, and enqueues it together with its tick, in one transaction.

Any number of beats may run. They agree on every tick's time to the millisecond (`schedule`), and
the file takes each (entry, tick) once. A beat that loses the race has done its work in vain, and a
beat killed before its commit has enqueued nothing: the next look finds the tick still due.
Producers run here, in the beat's own process, so producing never waits for a worker.

The schedule follows the wall clock. When that was set back, ticks come again which the file has
already, and are passed over; a tick from a future that was taken back holds nobody up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.beat.schedule import Cron, Tick, due_ticks
from sqlqueue.errors import ConfigError, SqlQueueError
from sqlqueue.execute import fault_of
from sqlqueue.log import get_logger
from sqlqueue.notify import Notifier
from sqlqueue.stopping import stopped_by_signals
from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock
from sqlqueue_transport.errors import FileReplaced, InvalidMessage, SchemaChanged
from sqlqueue_transport.messages import TickOf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.beat.schedule import Entry, When
    from sqlqueue.task import Signature

__all__ = ["Beat", "run_beat"]

log = get_logger(__name__)

_LONGEST_BACKOFF_S: Final = 60.0
_EXIT_FAILED: Final = 1
_EXIT_SCHEMA: Final = 6


@dataclass(slots=True)
class _Progress:
    """How far this beat is with one entry.

    `done_ms` is the newest moment up to which every tick was enqueued or given up. After
    `failures` in a row the entry rests until `not_before_ms`, on the lease clock: a wall clock that
    is set back must not prolong it.
    """

    done_ms: int
    failures: int = 0
    not_before_ms: int = 0


class Beat:
    """Enqueue what is due. `turn` is one look at the clock; `run_beat` is the process around it."""

    def __init__(
        self,
        app: SqlQueue,
        *,
        name: str,
        max_ticks: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Describe the entries in the file. `max_ticks` ends the beat after so many ticks.

        Raises ConfigError when there is nothing to do.
        """
        self._app = app
        self._backend = app.backend
        self._name = name
        self._clock = clock
        self._left = max_ticks
        self.entries = app.entries
        if not self.entries:
            raise ConfigError(
                f"the application {app.name!r} has no schedule: decorate a function with"
                " @app.producer(every=…), call app.periodic(…), or add a [beat.NAME] table"
            )
        # A tick at the very moment an entry was first seen is due: hence the millisecond before.
        self._progress = {
            name: _Progress(done_ms=self._describe(entry) - 1)
            for name, entry in self.entries.items()
        }

    @property
    def is_over(self) -> bool:
        """Say whether the beat has enqueued all the ticks it was to."""
        return self._left == 0

    def turn(self) -> float:
        """Enqueue everything that is due and return after how many seconds to look again.

        An entry whose producer fails is reported and tried again with back-off; the others go on.
        Raises the transport's errors when the store cannot be used: nothing is lost, what was due
        stays due. If the process dies midway, a tick is enqueued whole or not at all.
        """
        for entry in self.entries.values():
            if self._rest_ms(entry) <= 0:
                self._run_due(entry, self._clock.wall_ms())
            if self.is_over:
                break
        return min(self._pause_ms(entry) for entry in self.entries.values()) / 1000

    def _rest_ms(self, entry: Entry[Signature]) -> int:
        return self._progress[entry.name].not_before_ms - self._clock.lease_ms()

    def _pause_ms(self, entry: Entry[Signature]) -> int:
        if self._progress[entry.name].failures:  # its tick is still due
            return max(self._rest_ms(entry), 0)
        now_ms = self._clock.wall_ms()
        return entry.when.next_after(now_ms) - now_ms

    def _run_due(self, entry: Entry[Signature], now_ms: int) -> None:
        progress = self._progress[entry.name]
        if progress.done_ms > now_ms:  # the clock was set back: start anew, from here
            progress.done_ms = now_ms - 1
        if entry.when.next_after(progress.done_ms) > now_ms:
            return  # without asking the store
        enqueued_ms = self._backend.last_tick_ms(entry.name)
        if enqueued_ms is not None and enqueued_ms <= now_ms:
            progress.done_ms = max(progress.done_ms, enqueued_ms)
        late_ms = round(self._app.conf.beat_max_interval * 1000)
        for due_ms in due_ticks(
            entry, last_due_ms=progress.done_ms, now_ms=now_ms, max_late_ms=late_ms
        ):
            if self.is_over or not self._run_tick(entry, Tick(entry.name, due_ms)):
                return
        # What the policy left out stays out, also when a later look has another "newest".
        progress.done_ms = now_ms

    def _run_tick(self, entry: Entry[Signature], tick: Tick) -> bool:
        """Enqueue one tick; False when the entry has to rest and be tried again."""
        try:
            publications = [self._app.publication(call) for call in _calls(entry, tick)]
        except BaseException as error:  # noqa: BLE001 - a producer is user code, and may sys.exit()
            self._note_failure(entry, tick, error)
            return False
        try:
            is_ours = self._backend.publish(
                publications, tick=TickOf(tick.entry, tick.due_ms, self._name)
            )
        except InvalidMessage as error:
            self._note_failure(entry, tick, error)
            return False
        self._progress[entry.name].failures = 0
        if is_ours:
            if self._left is not None:
                self._left -= 1
            log.info(
                "tick_enqueued",
                entry=tick.entry,
                due=tick.due.isoformat(timespec="milliseconds"),
                jobs=len(publications),
            )
            self._describe(entry)
        return True

    def _note_failure(self, entry: Entry[Signature], tick: Tick, error: BaseException) -> None:
        progress = self._progress[entry.name]
        progress.failures += 1
        wait_s = min(2.0 ** min(progress.failures - 1, 10), _LONGEST_BACKOFF_S)
        progress.not_before_ms = self._clock.lease_ms() + round(wait_s * 1000)
        fault = fault_of(error)
        text = f"{fault.type}: {fault.message}"
        log.error(
            "producer_failed",
            entry=entry.name,
            due=tick.due.isoformat(timespec="milliseconds"),
            error=text,
            retry_in_s=wait_s,
            exc_info=None if isinstance(error, SqlQueueError) else error,
        )
        self._describe(entry, error=text)

    def _describe(self, entry: Entry[Signature], *, error: str | None = None) -> int:
        target = entry.signature.task if entry.signature else _function_name(entry)
        return self._backend.describe_entry(
            entry.name,
            description=_in_words(entry.when),
            target=target,
            next_due_ms=entry.when.next_after(self._clock.wall_ms()),
            error=error,
        )


def run_beat(
    app: SqlQueue,
    *,
    name: str,
    max_interval_s: float | None = None,
    max_ticks: int | None = None,
    notifier: Notifier | None = None,
) -> int:
    """Run a beat in the main thread until SIGTERM or SIGINT; return the exit code.

    `max_interval_s` is its longest sleep; None means the setting `beat_max_interval`. A running
    producer is finished first; a second signal ends the process at once. `notifier` None makes one
    of the environment; its watchdog bites when a producer hangs, because then nothing else is
    produced either. Raises ConfigError, the transport's CannotOpen, and NotAvailable for a broker
    that keeps no schedule.
    """
    notifier = notifier or Notifier()
    longest_s = app.conf.beat_max_interval if max_interval_s is None else max_interval_s
    backend = app.backend
    code = 0
    try:
        with _stopping_by_signal(notifier) as stopping:
            beat = Beat(app, name=name, max_ticks=max_ticks)
            backend.register(name=name, kind="beat")
            log.info("beat_started", beat=name, pid=os.getpid(), entries=sorted(beat.entries))
            notifier.ready()
            notifier.status(f"{len(beat.entries)} entries")
            while not stopping.is_set and not beat.is_over:
                notifier.alive()
                try:
                    backend.beat()
                    pause_s = min(beat.turn(), backend.keep_house(sweep=True))
                except (FileReplaced, SchemaChanged):
                    raise
                except backend.connection_errors as error:
                    log.warning("store_busy", error=str(error))
                    pause_s = 1.0
                if not beat.is_over:
                    stopping.sleep(min(max(pause_s, 0.0), longest_s, notifier.watchdog_every_s))
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", beat=name, error=str(error))
        code = _EXIT_SCHEMA if isinstance(error, SchemaChanged) else _EXIT_FAILED
    finally:
        # Where the store is gone there is nothing to give back.
        with contextlib.suppress(*backend.connection_errors):
            backend.leave()
        with contextlib.suppress(*backend.connection_errors):
            app.close()
    log.info("beat_stopped", beat=name, exit_code=code)
    return code


class _Stopping:
    """Be a flag that a signal sets, and a sleep that any signal ends."""

    def __init__(self, reading: int, notifier: Notifier) -> None:
        self.is_set = False
        self._reading = reading
        self._notifier = notifier
        self._poll = select.poll()  # select() knows no descriptor above 1023
        self._poll.register(reading, select.POLLIN)

    def set(self) -> None:
        self.is_set = True
        self._notifier.stopping(0.0)

    def sleep(self, seconds: float) -> None:
        # The signal may come between any look at the flag and the sleep: then a byte lies here.
        if not self.is_set:
            self._poll.poll(seconds * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._reading, 4096)


@contextlib.contextmanager
def _stopping_by_signal(notifier: Notifier) -> Iterator[_Stopping]:
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    stopping = _Stopping(reading, notifier)
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        with stopped_by_signals(stopping.set, reopened=notifier.reloaded):
            yield stopping
    finally:
        signal.set_wakeup_fd(waking)
        os.close(reading)
        os.close(writing)


def _calls(entry: Entry[Signature], tick: Tick) -> list[Signature]:
    if entry.produce is None:
        return [entry.signature] if entry.signature is not None else []
    calls = entry.produce(tick)
    if calls is None:
        raise TypeError("the producer returned None; yield calls, such as task.s(...)")
    return list(calls)


def _in_words(when: When) -> str:
    if isinstance(when, Cron):
        return f"{when.expression} {when.timezone}"
    return f"every {when.every_ms / 1000:g}s"


def _function_name(entry: Entry[Signature]) -> str:
    name: str = getattr(entry.produce, "__qualname__", "producer")
    return f"{name}()"
