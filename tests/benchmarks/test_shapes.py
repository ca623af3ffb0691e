"""The measuring programs of the shapes of load, on a few messages: that they measure what they say."""

from __future__ import annotations

from contextlib import closing

import pytest

from sqlqueue_transport import Outcome, Settlement, Store
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.recounting import recount
from tests.benchmarks.filled import Together, filled
from tests.benchmarks.programs import many_writers, on_files, with_eta
from tests.benchmarks.programs.on_sqlite import QUEUE

COUNT = 20_000  # enough for the tally to have taken most of them


@pytest.fixture
def here(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.chdir(own)
    return own


@pytest.mark.parametrize("state", [State.PENDING, State.SCHEDULED, State.DONE])
def test_a_filled_file_counts_what_was_filled_in(here, state):
    with closing(Store(filled(here, COUNT, state.value))) as store:
        assert store.reading.counts().states[state] == COUNT
        assert recount(store.database).wrong == 0


def test_what_was_filled_in_is_claimed_in_its_order_and_ends(here):
    with closing(Store(filled(here, 10))) as store:
        first, second = store.claim([QUEUE], 2, lease_s=60).deliveries
        assert first.message_id + 1 == second.message_id
        done = [Settlement(one.message_id, one.delivery, Outcome.done()) for one in (first, second)]
        assert store.settle(done) == []
        assert store.reading.counts().states[State.DONE] == 2


def test_each_filled_file_is_a_copy_of_its_own(here, tmp_path):
    with closing(Store(filled(here, 10))) as store:
        store.claim([QUEUE], 10, lease_s=60)
    other = tmp_path / "other"
    other.mkdir()
    with closing(Store(filled(other, 10))) as store:
        assert store.reading.counts().states[State.PENDING] == 10


@pytest.mark.parametrize("by", ["plain", "store", "kombu"])
def test_as_many_wait_after_the_turns_as_before(here, by):
    files = {"empty": filled(here, 0), "full": filled(here, 50)}
    found = on_files.main(
        by, {name: str(path) for name, path in files.items()}, portions=2, size=32
    )
    assert set(found) == set(files)
    assert all(figure > 0 for figures in found.values() for figure in figures.values())
    for name, waiting in (("empty", 0), ("full", 50)):
        with closing(Store(files[name])) as store:
            states = store.reading.counts().states
            assert states[State.PENDING] == waiting
            assert states[State.PROCESSING] == 0


def test_what_is_due_at_once_is_waited_for_and_then_taken(here):
    files = {"empty": str(filled(here, 0, "scheduled"))}
    found = with_eta.main("kombu", files, portions=1, size=32, due=64, late=5)
    assert found["empty"]["due at once"] > 0
    assert found["empty"]["late p50"] > 0


@pytest.mark.parametrize("by", ["plain", "store"])
def test_many_writers_all_publish_and_none_is_lost(here, by):
    found = many_writers.main(by, 3, 0.2)
    with closing(Store(here / "queue.db")) as store:
        # Each has published one before the time began.
        published = store.reading.counts().states[State.PENDING] - 3
    assert found["publish"] * 0.2 == pytest.approx(published)
    assert 0 <= found["share"] <= 1
    assert found["worst wait"] <= found["slowest publish"]


def test_a_writer_that_fails_ends_the_measurement(here, monkeypatch):
    def fail(self):
        raise SystemExit(3)

    monkeypatch.setattr(many_writers._StoreWriter, "publish_one", fail)
    with pytest.raises(SystemExit, match="a writer failed"):
        many_writers.main("store", 2, 0.1)


def test_a_group_is_measured_once_for_all_its_members_and_again_in_the_next_round(tmp_path):
    asked = []

    def measure(group, directory, scale):
        asked.append(group)
        return {"a": {"rate": len(asked)}, "b": {"rate": -len(asked)}}

    together = Together(measure)
    rates = [together.figures("x", member, tmp_path, 1)["rate"] for member in "abba"]
    assert rates == [1, -1, -2, 2]
    assert asked == ["x", "x"]
