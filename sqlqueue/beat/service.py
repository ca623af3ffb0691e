"""The beat: runs what is due, and enqueues it together with its tick, in one transaction.

Any number of beats may run. They agree on every tick's time to the millisecond (`schedule`), and
the file takes each (entry, tick) once. A beat that loses the race has done its work in vain, and a
beat killed before its commit has enqueued nothing: the next look finds the tick still due.
Producers run here, in the beat's own process, so producing never waits for a worker.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock
from sqlqueue_transport.errors import FileReplaced, SchemaChanged
from sqlqueue_transport.messages import TickOf

from sqlqueue.beat.schedule import Tick, due_ticks
from sqlqueue.errors import ConfigError, SqlQueueError
from sqlqueue.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlqueue.app import SqlQueue
    from sqlqueue.beat.schedule import Entry
    from sqlqueue.task import Signature

__all__ = ["Beat", "run_beat"]

log = get_logger(__name__)

_LONGEST_BACKOFF_S: Final = 60.0


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
        self._entries = app.entries
        if not self._entries:
            raise ConfigError(
                f"the application {app.name!r} has no schedule: decorate a function with"
                " @app.producer(every=…), call app.periodic(…), or add a [beat.NAME] table"
            )
        self._last_ms: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._not_before_ms: dict[str, int] = {}
        for entry in self._entries.values():
            first_seen_ms = self._describe(entry)
            self._last_ms[entry.name] = first_seen_ms - 1

    @property
    def is_over(self) -> bool:
        """Say whether the beat has enqueued all the ticks it was to."""
        return self._left == 0

    def turn(self) -> int:
        """Enqueue everything that is due and return when to look again, in UTC milliseconds.

        An entry whose producer fails is reported and tried again with back-off; the others go on.
        Raises the transport's errors when the store cannot be used: nothing is lost, what was due
        stays due. If the process dies midway, a tick is enqueued whole or not at all.
        """
        wake_ms: list[int] = []
        for entry in self._entries.values():
            now_ms = self._clock.wall_ms()
            wait_until_ms = self._not_before_ms.get(entry.name, 0)
            if now_ms >= wait_until_ms:
                self._run_due(entry, now_ms)
            wake_ms.append(
                max(
                    entry.when.next_after(self._clock.wall_ms()),
                    self._not_before_ms.get(entry.name, 0),
                )
            )
            if self.is_over:
                break
        return min(wake_ms)

    def _run_due(self, entry: Entry[Signature], now_ms: int) -> None:
        enqueued_ms = self._backend.last_tick_ms(entry.name)
        last_ms = max(self._last_ms[entry.name], enqueued_ms or 0)
        late_ms = round(self._app.conf.beat_max_interval * 1000)
        for due_ms in due_ticks(entry, last_due_ms=last_ms, now_ms=now_ms, max_late_ms=late_ms):
            if self.is_over or not self._run_tick(entry, Tick(entry.name, due_ms)):
                return
        # What the policy left out stays out, also when a later look has another "newest".
        self._last_ms[entry.name] = max(last_ms, min(now_ms, self._clock.wall_ms()))

    def _run_tick(self, entry: Entry[Signature], tick: Tick) -> bool:
        """Enqueue one tick; False when the entry has to wait and be tried again."""
        try:
            publications = [self._app.publication(call) for call in self._calls(entry, tick)]
        except Exception as error:  # noqa: BLE001 - a producer is user code
            self._note_failure(entry, tick, error)
            return False
        is_ours = self._backend.publish(
            publications, tick=TickOf(tick.entry, tick.due_ms, self._name)
        )
        self._failures.pop(entry.name, None)
        if is_ours:
            self._describe(entry)
            if self._left is not None:
                self._left -= 1
            log.info(
                "tick_enqueued",
                entry=tick.entry,
                due=tick.due.isoformat(timespec="milliseconds"),
                jobs=len(publications),
            )
        return True

    def _calls(self, entry: Entry[Signature], tick: Tick) -> Iterable[Signature]:
        if entry.produce is not None:
            return list(entry.produce(tick))
        return [entry.signature] if entry.signature is not None else []

    def _note_failure(self, entry: Entry[Signature], tick: Tick, error: Exception) -> None:
        failures = self._failures[entry.name] = self._failures.get(entry.name, 0) + 1
        wait_s = min(2.0 ** (failures - 1), _LONGEST_BACKOFF_S)
        self._not_before_ms[entry.name] = self._clock.wall_ms() + round(wait_s * 1000)
        text = f"{type(error).__name__}: {error}"
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
            description=str(entry.when),
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
) -> int:
    """Run a beat in the calling thread until SIGTERM or SIGINT; return the exit code.

    `max_interval_s` is its longest sleep; None means the setting `beat_max_interval`. A running
    producer is finished first; a second signal ends the process at once.
    """
    longest_s = app.conf.beat_max_interval if max_interval_s is None else max_interval_s
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    backend = app.backend
    code = 0
    try:
        beat = Beat(app, name=name, max_ticks=max_ticks)
        backend.register(name=name, kind="beat")
        log.info("beat_started", beat=name, pid=os.getpid(), entries=sorted(app.entries))
        while not stopped and not beat.is_over:
            try:
                backend.beat()
                sleep_s = beat.turn() / 1000 - time.time()
            except (FileReplaced, SchemaChanged):
                raise
            except backend.connection_errors as error:
                log.warning("store_busy", error=str(error))
                sleep_s = 1.0
            if not stopped and not beat.is_over:
                select.select([reading], [], [], min(max(sleep_s, 0.0), longest_s))
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", beat=name, error=str(error))
        code = 1
    finally:
        signal.set_wakeup_fd(waking)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(reading)
        os.close(writing)
    backend.leave()
    app.close()
    log.info("beat_stopped", beat=name, exit_code=code)
    return code


def _function_name(entry: Entry[Signature]) -> str:
    name: str = getattr(entry.produce, "__qualname__", "producer")
    return f"{name}()"
