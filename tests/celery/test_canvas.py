"""Chains, groups and chords, on the result backend that is the same file."""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.celery.conftest import Arena
from tests.support import wait_until

pytestmark = pytest.mark.slow


def test_chain_hands_each_result_to_the_next_task(arena: Arena) -> None:
    arena.worker()
    add = arena.tasks.add
    result = chain(add.s(1, 2), add.s(3), add.s(4))()

    assert result.get(timeout=30) == 10
    assert result.parent.get(timeout=30) == 6
    assert result.parent.parent.get(timeout=30) == 3


def test_group_returns_its_results_in_order(arena: Arena) -> None:
    arena.worker(concurrency=4)
    result = group(arena.tasks.add.s(number, number) for number in range(50))()

    assert result.get(timeout=30) == [2 * number for number in range(50)]
    assert result.successful()


def test_a_saved_group_is_restored_in_another_process(arena: Arena) -> None:
    arena.worker()
    result = group(arena.tasks.add.s(number, 1) for number in range(3))()
    result.save()
    script = """
        from celery.result import GroupResult
        from tests.celery.app import app
        import sys
        print(GroupResult.restore(sys.argv[1], app=app).get(timeout=30))
    """
    program = arena.python("restore", script, result.id)
    assert program.wait() == 0, program.text
    assert program.text.strip() == "[1, 2, 3]"


def test_chord_runs_its_body_once_with_all_results_in_order(arena: Arena) -> None:
    arena.worker(concurrency=4)
    add, total = arena.tasks.add, arena.tasks.total
    results = [chord(add.s(number, 0) for number in range(10))(total.s()) for _ in range(10)]

    assert [result.get(timeout=30) for result in results] == [45] * 10
    bodies = arena.trace(task="total")
    assert sorted(line["id"] for line in bodies) == sorted(result.id for result in results)
    assert all(line["numbers"] == list(range(10)) for line in bodies)


def test_chord_inside_a_chain_hands_its_result_on(arena: Arena) -> None:
    arena.worker(concurrency=4)
    add, total = arena.tasks.add, arena.tasks.total
    result = chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(100))()

    assert result.get(timeout=30) == 106


def test_chord_with_a_failed_member_fails_and_does_not_run_its_body(arena: Arena) -> None:
    arena.worker(concurrency=4)
    result = chord([arena.tasks.add.s(1, 1), arena.tasks.add.s(1, "x")])(arena.tasks.total.s())

    wait_until(result.ready, deadline_s=30, what="the chord to fail", every_s=0.05)
    assert result.state == "FAILURE"
    assert not arena.trace(task="total")


def test_results_can_come_back_as_messages(arena: Arena) -> None:
    arena.settings["result_backend"] = "rpc://"
    arena.worker()
    results = [arena.tasks.add.delay(number, 1) for number in range(20)]
    assert [result.get(timeout=30) for result in results] == [number + 1 for number in range(20)]
