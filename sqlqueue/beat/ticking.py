"""One beat: what it knows of each entry, and what one look at the clock does.

Any number of beats may run. They agree on every tick's time to the millisecond (`schedule`), and
the file takes each (entry, tick) once. A beat that loses the race has done its work in vain, and a
beat killed before its commit has enqueued nothing: the next look finds the tick still due.

The schedule follows the wall clock. When that was set back, ticks come again which the file has
already, and are passed over; a tick from a future that was taken back holds nobody up. When it was
set forward, or the machine slept, that is time that was missed, and each entry's policy says what
is caught up.

Entries come from the application and from the file. Those of the file are read again whenever its
version says so; nothing else of the file is looked at between ticks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from sqlqueue.beat import definition
from sqlqueue.beat.producers import Producer, publications
from sqlqueue.beat.schedule import MENDED_MS, Tick, due_ticks, forgotten_after_ms
from sqlqueue.errors import ConfigError, SqlQueueError
from sqlqueue.execute import fault_of
from sqlqueue.log import get_logger
from sqlqueue.schedules import stored_entry
from sqlqueue_transport.clock import JUMP_MS, SYSTEM_CLOCK, Clock
from sqlqueue_transport.errors import TransportError, Unavailable
from sqlqueue_transport.messages import Fault, TickAnswer, TickOf
from sqlqueue_transport.schedules import Described

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Publication
    from sqlqueue.beat.schedule import Entry, When
    from sqlqueue.task import Signature
    from sqlqueue_transport.schedules import EntryRow

__all__ = ["Beat"]

log = get_logger(__name__)

_LONGEST_BACKOFF_S: Final = 60.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(slots=True)
class _Progress:
    """How far this beat is with one entry.

    `done_ms` is the newest moment up to which every tick was enqueued or given up. After
    `failures` in a row the entry rests until `not_before_ms`, on the lease clock: a wall clock that
    is set back must not prolong it.
    """

    done_ms: int
    is_paused: bool = False
    failures: int = 0
    not_before_ms: int = 0
    _next: tuple[int, int | None] | None = None

    def next_of(self, when: When) -> int | None:
        """Return the first tick after `done_ms`; None when nothing comes any more.

        Kept, because cron reckons long, and every turn asks for every entry.
        """
        if self._next is None or self._next[0] != self.done_ms:
            self._next = self.done_ms, when.next_after(self.done_ms)
        return self._next[1]


class Beat:
    """Enqueue what is due. `turn` is one look at the clock; `service.run_beat` is the process."""

    def __init__(
        self,
        app: SqlQueue,
        *,
        name: str,
        max_ticks: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
        worker_id: int | None = None,
    ) -> None:
        """Describe the entries in the file. `max_ticks` ends the beat after so many ticks.

        `worker_id` is that of the registered process. Raises ConfigError for entries of the
        application that make no sense, the transport's errors, and NotAvailable.
        """
        self._app = app
        self._backend = app.backend
        self._schedules = self._backend.schedules
        self._name = name
        self._worker_id = worker_id
        self._clock = clock
        self._clock_offset_ms = clock.wall_ms() - clock.lease_ms()
        self._left = max_ticks
        self._of_application = app.entries
        self._producers: dict[str, Producer] = {}
        self._progress: dict[str, _Progress] = {}
        self._refused: dict[str, str] = {}
        self._version = -1
        self._is_outdated = False
        self.is_draining = False
        """Whether it is about to end, so that another try of what fails is the next beat's."""
        self.entries: dict[str, Entry[Signature]] = {}
        self._read_schedule()

    @property
    def is_over(self) -> bool:
        """Say whether the beat has enqueued all the ticks it was to."""
        return self._left == 0

    @property
    def is_producing(self) -> bool:
        """Say whether a producer runs."""
        return any(one.tick is not None for one in self._producers.values())

    @property
    def producers_left_s(self) -> float:
        """Return how long it is until the first deadline of a producer that runs; inf: none does."""
        left_s = (one.left_s for one in self._producers.values() if one.tick is not None)
        return max(min(left_s, default=math.inf), 0.0)

    @property
    def descriptors(self) -> list[int]:
        """Return what becomes readable when a producer has something to say."""
        found = (one.descriptor for one in self._producers.values())
        return [descriptor for descriptor in found if descriptor is not None]

    def is_up_to_date(self) -> bool:
        """Ask the file whether entries were changed; if so, the next turn reads them."""
        if self._schedules.version() != self._version:
            self._is_outdated = True
        return not self._is_outdated

    def turn(self) -> float:
        """Enqueue everything that is due and return after how many seconds to look again.

        Producers are started, and what they have made is enqueued by a later turn: look again also
        when one of `descriptors` is readable, or a child process has ended. An entry that fails is
        reported and tried again with back-off; the others go on. Raises the transport's errors when
        the store cannot be used: nothing is lost, what was due stays due. If the process dies
        midway, a tick is enqueued whole or not at all.
        """
        if self._is_outdated:
            self._read_schedule()
        self._watch_clock()
        self.collect()
        for entry in self.entries.values():
            if self.is_over:
                break
            if not self._is_busy(entry):
                self._run_due(entry, self._clock.wall_ms())
        return (
            min((self._pause_ms(entry) for entry in self.entries.values()), default=math.inf) / 1000
        )

    def collect(self) -> None:
        """Enqueue what producers have made, without starting any."""
        for name, producer in self._producers.items():
            produced = None if self.is_over else producer.finished()
            if produced is None:
                continue
            entry = self.entries.get(name)
            if entry is None:  # it went away while it was asked
                continue
            if produced.fault is not None:
                self._note_failure(entry, produced.tick, produced.fault)
            else:
                self._enqueue(entry, produced.tick, produced.publications)

    def stop_producers(self, *, after_s: float) -> None:
        """End the producers that still run so long after the beat was told to stop.

        Their ticks have failed, and stay due. All are ended, also if the store cannot be used: then
        it raises the transport's errors.
        """
        stopped = [
            (self.entries[name], producer.stopped(after_s=after_s))
            for name, producer in self._producers.items()
            if name in self.entries
        ]
        for entry, produced in stopped:
            if produced is not None and produced.fault is not None:
                self._note_failure(entry, produced.tick, produced.fault)

    def close(self) -> None:
        """End the processes of all producers. What they were asked for stays due."""
        for producer in self._producers.values():
            producer.end()

    # -- which entries there are --------------------------------------------------------------------

    def _read_schedule(self) -> None:
        """Describe the application's entries and read the file's; the rest goes on as it was."""
        # First: what changes meanwhile raises it again, and is read by the next turn.
        version = self._schedules.version()
        now_ms = self._clock.wall_ms()
        refused = self._schedules.describe(
            [self._described(one, now_ms) for one in self._of_application.values()],
            worker_id=self._worker_id,
        )
        rows = {row.entry: row for row in self._schedules.entries()}
        entries = {
            name: entry for name, entry in self._of_application.items() if name not in refused
        }
        problems = {
            name: "the queue file has an entry of that name, which keeps it. Rename this one, or"
            f" remove that: 'sqlqueue schedule remove {name}'."
            for name in refused
        }
        for row in rows.values():
            if row.origin == "file":
                try:
                    entries[row.entry] = stored_entry(self._app, row.entry, row.definition)
                except ConfigError as error:
                    problems.setdefault(row.entry, str(error))
                    self._schedules.set_error(row.entry, str(error))
        for name, problem in problems.items():
            if self._refused.get(name) != problem:
                log.error("entry_refused", entry=name, error=problem)
        if self._version >= 0:
            log.info("schedule_changed", beat=self._name, entries=sorted(entries))
        self._refused = problems
        self._progress = {
            name: self._progress_of(entry, rows[name], now_ms)
            for name, entry in entries.items()
            if name in rows  # or it was removed just now, and the next turn reads that
        }
        self.entries = {name: entries[name] for name in self._progress}
        for name in [name for name in self._producers if name not in entries]:
            self._producers.pop(name).end()
        self._version, self._is_outdated = version, False

    def _described(self, entry: Entry[Signature], now_ms: int) -> Described:
        return Described(
            entry=entry.name,
            description=definition.in_words(entry.when),
            target=entry.signature.task if entry.signature else _function_name(entry),
            next_due_ms=entry.when.next_after(now_ms),
            definition=definition.write(entry),
            origin=entry.origin,
        )

    def _progress_of(self, entry: Entry[Signature], row: EntryRow, now_ms: int) -> _Progress:
        if row.newest_ms is not None and row.newest_ms - now_ms > MENDED_MS:
            self._forget_taken_back(entry, now_ms, row.newest_ms - now_ms)
        # A tick at the very moment an entry was first seen is due: hence the millisecond before.
        done_ms = max(row.first_seen_ms - 1, -1 if row.done_ms is None else row.done_ms)
        progress = self._progress.get(entry.name)
        if progress is None or self.entries[entry.name].definition != entry.definition:
            return _Progress(done_ms, row.is_paused)
        if progress.is_paused != row.is_paused:
            progress.is_paused = row.is_paused
            progress.failures = progress.not_before_ms = 0
        progress.done_ms = max(progress.done_ms, done_ms)
        return progress

    # -- the clock ----------------------------------------------------------------------------------

    def _watch_clock(self) -> None:
        """Notice that the wall clock was set: went another way than the other one."""
        offset_ms = self._clock.wall_ms() - self._clock.lease_ms()
        jumped_ms, self._clock_offset_ms = offset_ms - self._clock_offset_ms, offset_ms
        if abs(jumped_ms) > JUMP_MS:
            log.warning("clock_jumped", beat=self._name, by_s=jumped_ms / 1000)
        if jumped_ms < -MENDED_MS:
            for entry in self.entries.values():
                self._forget_taken_back(entry, self._clock.wall_ms(), -jumped_ms)

    def _forget_taken_back(self, entry: Entry[Signature], now_ms: int, back_ms: int) -> None:
        after_ms = forgotten_after_ms(entry.when, now_ms, back_ms)
        if after_ms is not None:
            count = self._schedules.forget_ticks(entry.name, after_ms=after_ms)
            if count:
                log.warning("ticks_forgotten", entry=entry.name, count=count)

    # -- one entry ----------------------------------------------------------------------------------

    def _is_busy(self, entry: Entry[Signature]) -> bool:
        progress = self._progress[entry.name]
        return progress.is_paused or self._runs(entry) or self._rest_ms(entry) > 0

    def _runs(self, entry: Entry[Signature]) -> bool:
        producer = self._producers.get(entry.name)
        return producer is not None and producer.tick is not None

    def _rest_ms(self, entry: Entry[Signature]) -> int:
        return self._progress[entry.name].not_before_ms - self._clock.lease_ms()

    def _pause_ms(self, entry: Entry[Signature]) -> float:
        progress = self._progress[entry.name]
        if progress.is_paused:
            return math.inf
        if self._runs(entry):
            return max(self._producers[entry.name].left_s * 1000, 0)
        next_ms = progress.next_of(entry.when)
        if next_ms is None:
            return math.inf
        # What failed is still due, unless another beat took it or a pause gave it up: both count.
        return max(next_ms - self._clock.wall_ms(), self._rest_ms(entry), 0)

    def _run_due(self, entry: Entry[Signature], now_ms: int) -> None:
        progress = self._progress[entry.name]
        if progress.done_ms > now_ms:  # the clock was set back: start anew, from here
            progress.done_ms = now_ms - 1
        next_ms = progress.next_of(entry.when)
        if next_ms is None or next_ms > now_ms:
            return  # without asking the store
        done_ms = self._schedules.done_ms(entry.name)
        if done_ms is not None:
            progress.done_ms = max(progress.done_ms, done_ms)
        late_ms = round(self._app.conf.beat_max_interval * 1000)
        due = due_ticks(entry, last_due_ms=progress.done_ms, now_ms=now_ms, max_late_ms=late_ms)
        if not due:
            progress.failures = 0
            self._give_up(entry, progress, now_ms)
        for due_ms in due:
            if self.is_over or not self._run_tick(entry, Tick(entry.name, due_ms)):
                return
        # What the policy left out stays out, also when a later look has another "newest".
        progress.done_ms = now_ms

    def _give_up(self, entry: Entry[Signature], progress: _Progress, now_ms: int) -> None:
        """Note that the policy left out all that was due, if anything was."""
        missed_ms = entry.when.next_after(progress.done_ms)
        if missed_ms is not None and missed_ms <= now_ms:
            next_ms = entry.when.next_after(now_ms)
            self._schedules.give_up(entry.name, done_ms=now_ms, next_due_ms=next_ms)
            log.warning("tick_skipped", entry=entry.name, due=_iso(missed_ms), why="catch_up")

    def _run_tick(self, entry: Entry[Signature], tick: Tick) -> bool:
        """Enqueue one tick, or begin to; False when the entry's next tick has to wait for that."""
        if entry.produce is not None:
            self._produce(entry, tick)
            return False
        try:
            found = list(publications(self._app, entry, tick))
        except SqlQueueError as error:
            self._note_failure(entry, tick, fault_of(error))
            return False
        return self._enqueue(entry, tick, found)

    def _produce(self, entry: Entry[Signature], tick: Tick) -> None:
        if entry.overlap == "skip":
            # Asked before, so that nothing is produced in vain, and again when it is enqueued.
            answer = self._schedules.skip_overlapping(self._tick_of(entry, tick))
            if answer is not None:
                self._took(entry, tick, answer, jobs=0)
                return
        producer = self._producers.get(entry.name)
        if producer is None:
            limit_s = self._app.conf.beat_producer_timeout
            producer = Producer(self._app, entry, limit_s=limit_s, clock=self._clock)
            self._producers[entry.name] = producer
        try:
            producer.start(tick)
        except OSError as error:  # no process, no descriptor, no memory to be had
            self._note_failure(entry, tick, fault_of(error))

    def _enqueue(self, entry: Entry[Signature], tick: Tick, found: Iterable[Publication]) -> bool:
        """Store a tick with its jobs; False when the entry has to rest and be tried again."""
        found = list(found)
        try:
            answer = self._backend.publish(found, tick=self._tick_of(entry, tick))
        except Unavailable:
            raise
        except TransportError as error:
            self._note_failure(entry, tick, fault_of(error))
            return False
        return self._took(entry, tick, answer, jobs=len(found))

    def _took(self, entry: Entry[Signature], tick: Tick, answer: TickAnswer, *, jobs: int) -> bool:
        if answer is TickAnswer.HELD:  # paused, removed or changed just now
            self._is_outdated = True
            return False
        progress = self._progress[entry.name]
        progress.failures = 0
        progress.done_ms = tick.due_ms
        if answer is TickAnswer.THERE:
            return True
        if self._left is not None:
            self._left -= 1
        due = _iso(tick.due_ms)
        if answer is TickAnswer.SKIPPED:
            log.warning("tick_skipped", entry=tick.entry, due=due, why="overlap")
        else:
            log.info("tick_enqueued", entry=tick.entry, due=due, jobs=jobs)
        return True

    def _tick_of(self, entry: Entry[Signature], tick: Tick) -> TickOf:
        return TickOf(
            tick.entry,
            tick.due_ms,
            self._name,
            next_due_ms=entry.when.next_after(max(tick.due_ms, self._clock.wall_ms())),
            waits_for_last=entry.overlap == "skip",
            definition=entry.definition,
        )

    def _note_failure(self, entry: Entry[Signature], tick: Tick, fault: Fault) -> None:
        progress = self._progress[entry.name]
        progress.failures += 1
        wait_s = min(2.0 ** min(progress.failures - 1, 10), _LONGEST_BACKOFF_S)
        progress.not_before_ms = self._clock.lease_ms() + round(wait_s * 1000)
        text = f"{fault.type}: {fault.message}"
        log.error(
            "producer_failed",
            entry=entry.name,
            due=_iso(tick.due_ms),
            error=text,
            retry_in_s=None if self.is_draining else wait_s,
            **({"traceback": fault.traceback} if fault.traceback else {}),
        )
        self._schedules.set_error(entry.name, text)


def _iso(at_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds")


def _function_name(entry: Entry[Signature]) -> str:
    name: str = getattr(entry.produce, "__qualname__", "producer")
    return f"{name}()"
