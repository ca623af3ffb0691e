"""The order of queues: strict, or by lot; a lot that leaves nobody out."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from sqlqueue.config import set_command_line
from sqlqueue.errors import ConfigError
from sqlqueue.worker.queue_order import QueueOrder

QUEUES = ("high", "mid", "low")
DRAWS = 20_000


def drawn(weights, *, count=DRAWS, seed=7):
    order = QueueOrder(QUEUES, weights, random=Random(seed))
    return [order.draw() for _ in range(count)]


def test_without_weights_the_order_is_the_given_one():
    assert set(drawn({}, count=50)) == {QUEUES}


def test_a_queue_comes_first_as_often_as_its_weight_says():
    first = Counter(order[0] for order in drawn({"high": 6, "mid": 3, "low": 1}))
    # Three standard deviations of the rarest are 0.6 %; the seed makes it the same each time.
    assert {queue: round(first[queue] / DRAWS, 2) for queue in QUEUES} == {
        "high": 0.6,
        "mid": 0.3,
        "low": 0.1,
    }


def test_the_second_place_is_drawn_likewise_from_the_rest():
    second = Counter(
        order[1] for order in drawn({"high": 6, "mid": 3, "low": 1}) if order[0] == "high"
    )
    assert round(second["mid"] / second.total(), 2) == pytest.approx(0.75, abs=0.011)


def test_every_draw_has_every_queue_once():
    assert {tuple(sorted(order)) for order in drawn({"high": 1e6}, count=500)} == {
        tuple(sorted(QUEUES))
    }


def test_a_queue_without_a_weight_has_one():
    first = Counter(order[0] for order in drawn({"high": 2}))
    assert [first[queue] / DRAWS for queue in QUEUES] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_two_workers_do_not_draw_the_same_orders():
    first, second = (QueueOrder(QUEUES, {"high": 1}) for _ in range(2))
    assert [first.draw() for _ in range(64)] != [second.draw() for _ in range(64)]


# -- in an application ------------------------------------------------------------------------------


def test_a_weight_of_a_queue_that_nothing_goes_to_is_an_error_with_a_suggestion(make_app):
    typed, written = make_app(), make_app(worker_queue_weights={"mial": 2})
    for app in (typed, written):
        app.task(name="t", queue="mail")(lambda: None)
    # One file of settings is for all workers; what is typed is for this one.
    assert written.queue_weights == {"mial": 2}
    set_command_line({"worker_queue_weights": {"mial": 2}})
    try:
        with pytest.raises(ConfigError, match=r"names the queue 'mial'.* Did you mean 'mail'\?"):
            _ = typed.queue_weights
    finally:
        set_command_line({})


def test_a_weight_of_a_queue_that_another_worker_serves_is_none(make_app):
    app = make_app(worker_queues=["sums"], worker_queue_weights={"sums": 1, "mail": 2})
    app.task(name="t", queue="mail")(lambda: None)
    assert app.queue_weights == {"sums": 1, "mail": 2}
