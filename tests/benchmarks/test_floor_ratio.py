"""What each layer costs beyond SQLite alone, as multiples: a change that doubles one shall be seen.

No speed is asserted. Processor time is compared, not the clock, and with SQLite doing the same in the
same run, in turns: a slow or busy machine changes both sides. The figures are printed. A way fails
only when its multiple is more than `ALLOWED` times what it usually is: for a scan where there was an
index, a sleep that became a spin, a parser that is asked for every message.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple

import pytest

from sqlqueue import SqlQueue
from tests.benchmarks import profiled_app
from tests.benchmarks.filled import filled
from tests.benchmarks.programs.on_files import ThroughKombu
from tests.benchmarks.programs.on_sqlite import Bare, Ours, Plain
from tests.support import ROOT

ALLOWED = 3.0
ROUNDS, SIZE = 6, 256
SCHEDULED = 20_000  # for tomorrow, in each file but the bare one
WORKER_ROUND = 64


class Way(NamedTuple):
    """Be a way to do something, what it is compared with, and how often that it usually takes."""

    name: str
    floor: str
    usual: float


# CPython 3.11, SQLite 3.40.
WAYS = (
    Way("plain enqueue", "bare enqueue", 1.75),
    Way("plain settle + claim", "bare settle + claim", 2.35),
    Way("store enqueue", "plain enqueue", 1.5),
    Way("store settle + claim", "plain settle + claim", 1.65),
    Way("store settle + claim by 16", "plain settle + claim by 16", 1.5),
    Way("Kombu publish", "plain enqueue", 2.0),
    Way("Kombu consume + ack", "plain settle + claim", 1.75),
    Way("task.delay", "plain enqueue", 3.2),
    Way("worker's child, a job", "plain settle + claim", 5.5),
)


@pytest.mark.slow
def test_no_layer_costs_three_times_its_usual_multiple_of_sqlite_alone(tmp_path, monkeypatch):
    took = _measured(tmp_path, monkeypatch)
    found = {way: _multiple(took[way.name], took[way.floor]) for way in WAYS}
    for way, multiple in found.items():
        micros = statistics.median(took[way.name])
        print(
            f"{way.name:<27}{micros:7.1f} µs, {multiple:5.2f} × {way.floor}; usually {way.usual:.2f}"
        )
    assert {
        way.name: round(multiple, 2)
        for way, multiple in found.items()
        if multiple > ALLOWED * way.usual
    } == {}


def _multiple(took: list[float], floor: list[float]) -> float:
    if len(took) == len(floor):  # in turns
        return statistics.median(one / other for one, other in zip(took, floor, strict=True))
    return statistics.median(took) / statistics.median(floor)


def _measured(tmp_path, monkeypatch) -> dict[str, list[float]]:
    """Return the processor time of each way in each round, in microseconds a message."""
    paths = {}
    for name in ("plain", "store", "kombu", "worker"):
        (tmp_path / name).mkdir()
        paths[name] = filled(tmp_path / name, SCHEDULED, "scheduled")
    monkeypatch.setenv("SQLQUEUE_DB", str(paths["worker"]))
    monkeypatch.setenv("SQLQUEUE_DURABILITY", "process")
    bare = Bare(tmp_path / "bare.db", synced=False, are_jobs=True)
    plain = Plain(paths["plain"], synced=False, are_jobs=True)
    store = Ours(paths["store"], synced=False, are_jobs=True)
    kombu = ThroughKombu(paths["kombu"])
    app = SqlQueue("floor")
    nothing = app.task(name="nothing")(lambda: None)
    enqueue: dict[str, Any] = {
        "bare enqueue": lambda: _each(lambda: bare.enqueue(1)),
        "plain enqueue": lambda: _each(lambda: plain.enqueue(1)),
        "store enqueue": lambda: _each(lambda: store.enqueue(1)),
        "Kombu publish": lambda: kombu.publish(2 * SIZE),
        "task.delay": lambda: _each(nothing.delay),
    }
    consume: dict[str, Any] = {
        "bare settle + claim": lambda: _drain(bare, 1),
        "plain settle + claim": lambda: _drain(plain, 1),
        "store settle + claim": lambda: _drain(store, 1),
        "plain settle + claim by 16": lambda: _drain(plain, 16),
        "store settle + claim by 16": lambda: _drain(store, 16),
        "Kombu consume + ack": lambda: kombu.consume(SIZE),
    }
    took: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as open_ones:
        for one in (bare, plain, store, kombu, app):
            open_ones.callback(one.close)
        for number in range(ROUNDS + 1):
            for ways, messages in ((enqueue, 2 * SIZE), (consume, SIZE)):
                # In each round forwards or backwards: what warms up favours nobody.
                for name, work in list(ways.items())[:: -1 if number % 2 else 1]:
                    began_s = time.process_time()
                    work()
                    took_s = time.process_time() - began_s
                    if number:  # the first is for imports, caches and the first pages of a file
                        took[name].append(took_s / messages * 1e6)
    took["worker's child, a job"] = _worker(tmp_path)
    return took


def _each(work: Any) -> None:
    for _ in range(2 * SIZE):
        work()


def _drain(queue: Any, batch: int) -> None:
    """Take a portion, and end each batch together with taking the next."""
    done: Any = []
    for _ in range(SIZE // batch):
        done = queue.turn(done, batch)
        assert len(done) == batch
    queue.turn(done, 0)


def _worker(tmp_path) -> list[float]:
    """Let a real worker run what was enqueued with `delay`; its child tells what each round took."""
    figures = tmp_path / "figures"
    log = tmp_path / "worker.log"
    with contextlib.suppress(subprocess.TimeoutExpired):  # it has told of some rounds by then
        subprocess.run(
            [
                *(sys.executable, "-m", "sqlqueue", "worker", "-c", "1", "--burst"),
                *("-A", "tests.benchmarks.profiled_app:app", "--log-file", str(log)),
            ],
            cwd=ROOT,
            env={**os.environ, profiled_app.ENVIRONMENT: f"{figures}:{WORKER_ROUND}:plain"},
            check=True,
            timeout=30,
        )
    rounds = map(json.loads, figures.read_text().splitlines())
    return [one["cpu_ns"] / one["messages"] / 1000 for one in rounds]
