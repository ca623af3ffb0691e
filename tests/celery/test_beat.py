"""Celery's own periodic producer, on the queue file."""

from __future__ import annotations

import itertools
import signal

import pytest

from tests.celery.conftest import Arena

pytestmark = pytest.mark.slow

SCHEDULE = {"tick": {"task": "stamp", "schedule": 1.0, "args": ["tick"]}}


def test_beat_enqueues_a_tick_a_second_and_each_runs_once(arena: Arena) -> None:
    arena.settings["beat_schedule"] = SCHEDULE
    arena.worker()
    beat = arena.celery("beat", "beat", "-l", "info", "-s", "schedule", "--max-interval", 1)
    ticks = arena.wait_trace(5, label="tick", deadline_s=60)

    beat.signal(signal.SIGTERM)
    assert beat.wait() == 0
    between_s = [after["at"] - before["at"] for before, after in itertools.pairwise(ticks)]
    print("between ticks:", ", ".join(f"{seconds:.3f}" for seconds in between_s), "s")
    sent = beat.text.count("Sending due task tick")
    arena.wait_trace(sent, label="tick")
    ids = [line["id"] for line in arena.trace(label="tick")]
    assert len(ids) == len(set(ids)) == sent


def test_a_worker_with_a_beat_inside_runs_its_ticks(arena: Arena) -> None:
    arena.settings["beat_schedule"] = SCHEDULE
    arena.worker("worker", "--beat", "-s", "schedule")
    arena.wait_trace(3, label="tick", deadline_s=60)
