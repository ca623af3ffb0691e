"""Beats of one application under a clock of the test, and what they have enqueued."""

from __future__ import annotations

import json
import select
import time
from datetime import datetime

import pytest

from sqlqueue.beat.ticking import Beat
from sqlqueue_transport.clock import SystemClock
from sqlqueue_transport.reading import JobFilter
from tests.support import FakeClock


def ms(iso):
    return round(datetime.fromisoformat(iso).timestamp() * 1000)


NOON = ms("2026-11-22T12:00:00+00:00")


@pytest.fixture
def clock(monkeypatch):
    """Be the clock of the whole process, to the millisecond; it is noon."""
    fake = FakeClock(wall=NOON)
    monkeypatch.setattr(SystemClock, "wall_ms", lambda _: fake.wall_ms())
    monkeypatch.setattr(SystemClock, "lease_ms", lambda _: fake.lease_ms())
    return fake


class WaitingBeat(Beat):
    """Be a beat whose turns wait for its producers, as the process does by sleeping."""

    def turn(self):
        pause_s = super().turn()
        give_up_s = time.monotonic() + 20
        while self.is_producing:
            assert time.monotonic() < give_up_s, "a producer does not end"
            poll = select.poll()
            for descriptor in self.descriptors:
                poll.register(descriptor, select.POLLIN)
            poll.poll(20)  # the end of a process rings nobody here
            pause_s = super().turn()
        return pause_s


class Schedule:
    """Make beats of one application, and tell what they have enqueued."""

    def __init__(self, app, here):
        self.app = app
        self.task = app.task(name="t")(lambda x=None: None)
        self.beats = []
        self.file = here / "produced"

    def note(self, *about):
        """Remember something across processes: producers have their own."""
        with self.file.open("a") as file:
            file.write(json.dumps(about) + "\n")

    @property
    def produced(self):
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    def producer(self, name="p", **schedule):
        """Declare a producer that remembers its ticks and yields one call for each."""

        @self.app.producer(name=name, **schedule)
        def produce(tick):
            self.note(tick.entry, tick.due_ms)
            yield self.task.s(tick.due_ms)

        return produce

    def beat(self, *, kind=WaitingBeat, name="b", **options):
        beat = kind(self.app, name=name, **options)
        self.beats.append(beat)
        return beat

    def row(self, entry="p"):
        (found,) = [one for one in self.app.backend.schedules.rows() if one.entry == entry]
        return found

    @property
    def enqueued_ids(self):
        """Return the message ids of all jobs."""
        return [row.message_id for row in self.app.backend.jobs(JobFilter(), limit=1000)]

    @property
    def enqueued(self):
        """Return the first argument of every job, oldest first: when its tick was due."""
        backend = self.app.backend
        return [
            json.loads(backend.job(row.message_id).body)[0][0]
            for row in backend.jobs(JobFilter(), limit=1000)[::-1]
        ]


@pytest.fixture
def schedule(app, here):
    schedule = Schedule(app, here)
    yield schedule
    for beat in schedule.beats:
        beat.close()
