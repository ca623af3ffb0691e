"""`sqlqueue worker --beat`: a beat beside the children, kept alive by their supervisor."""

from __future__ import annotations

import os
import signal

import pytest

from sqlqueue_transport import Store
from tests.cli.conftest import program
from tests.support import is_running, wait_until

APP = """
import pathlib
import time

from sqlqueue import SqlQueue, Signature

app = SqlQueue("clock")


@app.task(name="clock.tick")
def tick():
    pass


@app.producer(every=0.5, name="slow")
def produce_slowly(tick):
    pathlib.Path("begun").touch()
    time.sleep(0.4)
    pathlib.Path(f"made-{tick.due_ms}").touch()
    return []


@app.producer(every=0.2, name="fast", catch_up="all")
def produce(tick):
    yield Signature("clock.tick")
"""


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "queue.db")
    yield opened
    opened.close()


def beats(store):
    return [worker.pid for worker, entry in store.consumers.alive() if worker.kind == "beat"]


def ticks(store, entry="fast"):
    return [
        due
        for (due,) in store.database.read(
            lambda c: c.execute(
                "SELECT due_ms FROM tick WHERE entry = ? ORDER BY due_ms", (entry,)
            ).fetchall()
        )
    ]


def done(store):
    return store.reading.counts().states


@pytest.fixture
def worker(tmp_path, store):
    (tmp_path / "clockwork.py").write_text(APP)
    process = program("worker", "-A", "clockwork:app", "--beat", "-c", 1, "-n", "w", cwd=tmp_path)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_beat_that_is_killed_is_replaced_and_no_tick_is_missing(store, worker):
    for kills in range(3):
        [pid] = wait_until(lambda: beats(store), deadline_s=20)
        count = len(ticks(store))
        wait_until(lambda count=count: len(ticks(store)) > count + 2, deadline_s=20)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: beats(store) not in ([], [pid]), deadline_s=20, what=str(kills))
    count = len(ticks(store))
    wait_until(lambda: len(ticks(store)) > count + 2, deadline_s=20)
    worker.terminate()
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said
    due = ticks(store)
    assert due == list(range(due[0], due[-1] + 1, 200))
    assert said.count('"worker": "w/beat"') >= 3 + 4  # lost and started
    assert beats(store) == []
    states = {state.value: count for state, count in done(store).items() if count}
    assert sum(states.values()) == len(due)
    assert states["done"] >= len(due) - 5


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_drain_lets_the_beat_finish_also_when_everybody_is_told(store, worker, tmp_path, to_all):
    [pid] = wait_until(lambda: beats(store), deadline_s=20)
    wait_until(lambda: len(ticks(store)) > 3, deadline_s=20)
    (tmp_path / "begun").unlink()
    wait_until((tmp_path / "begun").exists, every_s=0.001)  # it produces now, for a while
    if to_all:  # as systemd does
        os.kill(pid, signal.SIGTERM)
    worker.terminate()
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said
    assert '"event": "beat_stopped"' in said
    made = sorted(int(path.name.removeprefix("made-")) for path in tmp_path.glob("made-*"))
    assert ticks(store, "slow") == made
    assert not is_running(pid)
    assert beats(store) == []


@pytest.mark.slow
def test_a_beat_dies_with_its_supervisor(store, worker):
    [pid] = wait_until(lambda: beats(store), deadline_s=20)
    worker.kill()
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--burst",), "--beat is for a worker that stays"),
        (("--max-jobs", 3), "--beat is for a worker that stays"),
        (("-P", "solo"), "--beat needs a supervisor"),
    ],
)
def test_what_has_no_place_for_a_beat_is_refused(cli, shop, options, said):
    result = cli("worker", "-A", shop, "--beat", *options)
    assert (result.code, said in result.err) == (2, True)
    assert "sqlqueue beat" in result.err
