"""What fails is tried again, what nobody can do ends in the dead letters, limits hold."""

from __future__ import annotations

import itertools

import pytest

from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = pytest.mark.slow


def test_a_task_that_fails_twice_is_retried_with_a_growing_pause_and_succeeds(arena: Arena) -> None:
    arena.worker()
    result = arena.tasks.flaky.delay(2)

    assert result.get(timeout=60) == 3
    tries = arena.trace(id=result.id)
    assert [line["retries"] for line in tries] == [0, 1, 2]
    first, second = (after["at"] - before["at"] for before, after in itertools.pairwise(tries))
    print(f"paused {first:.2f} s and {second:.2f} s; wanted 1 s and 2 s")
    assert first >= 0.9
    assert second >= 1.9


def test_a_task_that_always_fails_is_given_up_after_its_retries(arena: Arena) -> None:
    arena.worker()
    result = arena.tasks.stubborn.delay()

    wait_until(result.ready, deadline_s=60, what="the end of the retries", every_s=0.05)
    assert result.state == "FAILURE"
    assert "still not" in str(result.result)
    assert [line["retries"] for line in arena.trace(id=result.id)] == [0, 1, 2]


def test_a_task_is_told_of_its_soft_time_limit(arena: Arena) -> None:
    arena.worker()
    assert arena.tasks.patient.delay().get(timeout=60) == "out of time"


@ours_only
def test_a_task_that_rejects_its_message_leaves_it_in_the_dead_letters(arena: Arena) -> None:
    arena.worker()
    job = arena.tasks.rejected.delay().id

    row = arena.wait_state(job, State.PERMANENTLY_FAILED)
    assert row.error_type == "Rejected"
    assert len(arena.trace(id=job)) == 1


@ours_only
def test_a_job_no_worker_knows_ends_in_the_dead_letters(arena: Arena) -> None:
    arena.worker()
    job = arena.app.send_task("of_another_program", ignore_result=True).id
    arena.wait_state(job, State.PERMANENTLY_FAILED)


@ours_only
def test_a_task_that_kills_its_process_each_time_is_buried_after_max_deliveries(
    arena: Arena,
) -> None:
    arena.settings["broker_transport_options"] = {"max_deliveries": 3}
    worker = arena.worker(concurrency=2)
    poison = arena.tasks.poison.delay().id
    healthy = [arena.tasks.stamp_late.delay().id for _ in range(20)]

    row = arena.wait_state(poison, State.PERMANENTLY_FAILED, deadline_s=60)
    assert row.error_type == "TooManyDeliveries"
    assert len(arena.trace(id=poison)) == 3
    for job in healthy:
        arena.wait_state(job, State.DONE)
    assert worker.process.poll() is None
