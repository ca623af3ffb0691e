"""Room on the disk that publishes leave to those who end jobs."""

from __future__ import annotations

import contextlib
import os
import time

import kombu
import pytest

from sqlqueue_transport import DiskFault, NewMessage, Outcome, Settlement, Store, TickOf, room
from sqlqueue_transport.room import Room
from tests.support import small_disk


@pytest.fixture
def full(tmp_path):
    """Give a store on a disk of 8 MB that publishes have filled, and the ids they were given."""
    with small_disk(tmp_path / "small", megabytes=8) as directory:
        store = Store(directory / "q.db")
        store.consumers.register(name="w", kind="worker")
        yield store, filled(store, "is nearly full")
        with contextlib.suppress(DiskFault):
            store.close()


def publish(store, body, **options):
    return store.publish([NewMessage(body, "q", task="t", **options)])[0].message_id


def filled(store, words):
    """Publish until that is refused in these words; return the ids that were given."""
    stored = []
    with pytest.raises(DiskFault, match=words):
        stored.extend(publish(store, os.urandom(3000)) for _ in range(10_000))
    return stored


def drained(store):
    ended = []
    while deliveries := store.claim(["q"], 1, lease_s=60).deliveries:
        done = [Settlement(one.message_id, one.delivery, Outcome.done()) for one in deliveries]
        assert store.settle(done) == []
        ended += [one.message_id for one in deliveries]
    return ended


def test_a_queue_that_has_filled_its_disk_drains_before_anybody_frees_space(full):
    store, stored = full
    assert len(stored) > 100
    with pytest.raises(DiskFault, match=r"q\.db is nearly full: .* MB are free.* free some space"):
        publish(store, b"x")
    assert drained(store) == stored


def test_without_that_room_nothing_can_be_ended_any_more(full, monkeypatch):
    """So it would be, and this is what the room is for."""
    store, _ = full
    monkeypatch.setattr(room, "KEPT_BYTES", -(2**40))
    filled(store, "disk is full")
    with pytest.raises(DiskFault, match="disk is full"):
        drained(store)


def test_a_tick_and_its_jobs_are_refused_whole(full):
    store, stored = full
    tick = TickOf("e", 1, "beat", next_due_ms=None, waits_for_last=False, definition=None)
    with pytest.raises(DiskFault, match="nearly full"):
        store.publish_tick([NewMessage(b"x", "q", task="t")], tick)
    assert store.schedules.done_ms("e") is None
    assert drained(store) == stored


def test_what_is_transient_is_let_through(full):
    """Events and answers of Celery's workers: refused, they would cut a worker off from its broker."""
    store, _ = full
    assert publish(store, b"x", transient=True)


@pytest.mark.parametrize("headers", [{"retries": 1}, {"parent_id": "the job that went before"}])
def test_another_try_and_what_follows_in_a_chain_are_let_through(full, headers):
    """Celery takes a publish that was refused for the end of the job."""
    store, _ = full
    with kombu.Connection(f"sqlqueue:///{store.path}") as connection:
        publish = kombu.Producer(connection.default_channel).publish
        with pytest.raises(DiskFault, match="nearly full"):
            publish([], routing_key="q", headers={"task": "t", "id": "1", "retries": 0})
        publish([], routing_key="q", headers={"task": "t", "id": "1", **headers})


def test_a_publish_larger_than_the_room_that_is_left_is_refused(tmp_path):
    with small_disk(tmp_path / "small", megabytes=8) as directory:
        store = Store(directory / "q.db")
        with pytest.raises(DiskFault, match="nearly full"):
            publish(store, bytes(7 << 20))
        assert publish(store, bytes(1 << 20))
        store.close()


class Disk:
    """Stand in for a large disk: how much is free, how often somebody looked, and what time it is."""

    f_frsize, f_blocks = 1, 10**12

    def __init__(self, monkeypatch):
        self.f_bavail, self.looks, self.now_s = 10**12, 0, 1000.0
        monkeypatch.setattr(os, "statvfs", self.look)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def look(self, _):
        self.looks += 1
        return self


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def space(tmp_path):
    return Room(tmp_path)


def test_of_a_large_disk_a_fixed_amount_is_kept(disk, space):
    disk.f_bavail = room.KEPT_BYTES + 4096
    space.refuse_when_scarce(4096)
    with pytest.raises(DiskFault, match=r"16\.8 MB have to stay free"):
        space.refuse_when_scarce(4097)


def test_a_disk_far_from_full_is_looked_at_ten_times_a_second(disk, space):
    for _ in range(2000):
        space.refuse_when_scarce(100)
        disk.now_s += 0.001
    assert disk.looks == pytest.approx(20, abs=1)


def test_what_was_published_since_the_last_look_counts_against_what_it_found(disk, space):
    disk.f_bavail = room.KEPT_BYTES + room.FAR_BYTES + 1000
    for _ in range(10):
        space.refuse_when_scarce(100)
    assert disk.looks == 1
    disk.f_bavail = room.KEPT_BYTES
    with pytest.raises(DiskFault, match="nearly full"):
        space.refuse_when_scarce(1)
    assert disk.looks == 2


def test_near_its_end_each_publish_looks_at_the_disk(disk, space):
    disk.f_bavail = room.KEPT_BYTES + room.FAR_BYTES
    for looks in range(1, 10):
        space.refuse_when_scarce(1)
        assert disk.looks == looks


def test_what_others_have_filled_is_seen_by_the_next_look(disk, space):
    space.refuse_when_scarce(1)
    disk.f_bavail = 0
    disk.now_s += room.LOOK_EVERY_S
    with pytest.raises(DiskFault, match="nearly full"):
        space.refuse_when_scarce(1)
