"""When a child ends by itself, and what its supervisor sees of it."""

from __future__ import annotations

import os

import pytest

from sqlqueue.worker.board import Board
from sqlqueue.worker.lifetime import Lifetime, resident_bytes
from tests.support import in_forked_child


def test_without_bounds_there_is_never_a_reason():
    assert Lifetime().reason_to_end(10**9) is None


@pytest.mark.parametrize(("ended", "is_reason"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_last_job_a_child_may_run_is_the_reason(ended, is_reason):
    assert (Lifetime(max_jobs=3).reason_to_end(ended) is not None) is is_reason


def test_memory_is_what_the_process_has_now_and_not_what_it_had():
    before = resident_bytes()
    hoard = bytearray(os.urandom(1)) * (64 * 2**20)
    grown = resident_bytes()
    del hoard
    assert grown - before > 60 * 2**20
    assert resident_bytes() < grown - 60 * 2**20
    assert "MiB of memory" in str(Lifetime(max_memory_bytes=2**20).reason_to_end(1))
    assert Lifetime(max_memory_bytes=2**40).reason_to_end(1) is None


def test_what_a_child_writes_on_the_board_outlives_it():
    board = Board(3)

    def live():
        board.note_up(1)
        board.count_ended(1)
        board.count_ended(1)

    assert in_forked_child(live)
    assert [(board.is_up(place), board.jobs_ended(place)) for place in range(3)] == [
        (False, 0),
        (True, 2),
        (False, 0),
    ]
    board.clear(1)
    assert (board.is_up(1), board.jobs_ended(1)) == (False, 0)


def test_a_consumer_that_lived_long_enough_settles_and_takes_no_other(app, events):
    from sqlqueue.worker.consumer import Consumer

    app.task(name="t")(lambda: None)
    results = [app.send_task("t") for _ in range(3)]
    counted = []

    def register():
        app.backend.register(name="w", kind="worker", queues=app.queues, slots=1)

    register()
    consumer = Consumer(
        app,
        app.backend,
        queues=app.queues,
        name="w",
        register=register,
        lifetime=Lifetime(max_jobs=2),
        count_ended=lambda: counted.append([result.state for result in results]),
    )
    consumer.run()
    assert consumer.is_recycled
    # Counted once settled, each.
    assert counted == [["done", "processing", "pending"], ["done", "done", "pending"]]
    assert [result.state for result in results] == ["done", "done", "pending"]
    assert len(events("child_recycled")) == 1
