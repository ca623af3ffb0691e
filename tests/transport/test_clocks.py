"""Two clocks: leases follow the monotonic one, due times and what people read the wall clock."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import freezegun
import pytest

from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import claim_one, ended, publish, row, state_of, vanish

HOUR_S = 3600.0
TEN_YEARS_S = 10 * 365.25 * 24 * HOUR_S
JUMPS = pytest.mark.parametrize("jump_s", [-TEN_YEARS_S, -HOUR_S, HOUR_S, TEN_YEARS_S])


@JUMPS
def test_a_jump_of_the_wall_clock_does_not_end_a_lease(
    store: Store, clock: FakeClock, jump_s: float
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.jump_wall(jump_s)
    clock.advance(9.999)

    assert store.consumers.sweep() == []
    assert not store.claim(["default"], 1, lease_s=10).deliveries
    assert store.settle([ended(taken, Outcome.done())]) == []


@JUMPS
def test_a_jump_of_the_wall_clock_does_not_prolong_a_lease(
    store: Store, clock: FakeClock, jump_s: float
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.jump_wall(jump_s)
    clock.advance(10)

    late = ended(taken, Outcome.done())
    assert store.settle([late]) == [late]
    assert [one.message_id for one in store.consumers.sweep()] == [taken.message_id]
    assert claim_one(store).delivery == 2


@JUMPS
def test_an_extension_does_not_follow_the_wall_clock(
    store: Store, clock: FakeClock, jump_s: float
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.jump_wall(jump_s)
    store.extend([(taken.message_id, taken.delivery)], 10)
    clock.advance(9.999)
    assert store.consumers.sweep() == []
    clock.advance(0.001)
    assert len(store.consumers.sweep()) == 1


@JUMPS
def test_due_times_follow_the_wall_clock(store: Store, clock: FakeClock, jump_s: float) -> None:
    publish(store, due_at_ms=clock.wall + 1000)
    clock.jump_wall(jump_s)
    assert bool(store.claim(["default"], 1, lease_s=10).deliveries) == (jump_s > 0)


@JUMPS
def test_expiry_follows_the_wall_clock(store: Store, clock: FakeClock, jump_s: float) -> None:
    message_id = publish(store, expires_at_ms=clock.wall + 1000)
    clock.jump_wall(jump_s)
    store.claim(["default"], 1, lease_s=10)
    expected = State.EXPIRED if jump_s > 0 else State.PROCESSING
    assert state_of(store, message_id) is expected


@pytest.mark.parametrize("seconds", [0, 1, 2**31 - 1, 2**31, 253_402_300_799], ids=str)
def test_every_wall_time_of_the_calendar_can_be_stored(
    tmp_path: Path, clock: FakeClock, seconds: int
) -> None:
    """The epoch, January 2038, the end of 9999."""
    clock.wall = seconds * 1000
    store = Store(tmp_path / "queue.db", clock=clock)
    message_id = publish(store, due_at_ms=clock.wall + 1)
    clock.advance(0.001)
    store.settle([ended(claim_one(store), Outcome.done())])
    assert row(store, message_id)["finished_at_ms"] == seconds * 1000 + 1
    store.close()


def test_after_a_reboot_the_leases_of_the_old_boot_are_void(
    store: Store, clock: FakeClock, tmp_path: Path
) -> None:
    """The monotonic clock begins anew: what it said before means nothing."""
    message_id = publish(store)
    claim_one(store, lease_s=HOUR_S)
    vanish(store)

    after = Store(tmp_path / "queue.db", clock=FakeClock(clock.wall, lease=5, boot_id="boot-2"))
    assert [one.message_id for one in after.consumers.sweep_all()] == [message_id]
    assert claim_one(after).message_id == message_id
    after.close()


# -- the system's own clock, frozen -----------------------------------------------------------------


def test_the_visibility_timeout_is_exact_to_the_millisecond(tmp_path: Path) -> None:
    with freezegun.freeze_time("2026-11-22T05:11:07.5Z") as frozen:
        store = Store(tmp_path / "queue.db")
        message_id = publish(store)
        taken = claim_one(store, lease_s=2.5)
        assert row(store, message_id)["started_at_ms"] == 1_795_324_267_500

        frozen.tick(2.499)
        assert store.consumers.sweep() == []
        assert not store.claim(["default"], 1, lease_s=2.5).deliveries

        frozen.tick(0.001)
        late = ended(taken, Outcome.done())
        assert store.settle([late]) == [late]
        assert [one.message_id for one in store.consumers.sweep()] == [message_id]
        assert claim_one(store, lease_s=2.5).delivery == 2
        store.close()


def test_an_eta_is_exact_to_the_millisecond(tmp_path: Path) -> None:
    with freezegun.freeze_time("2026-11-22T05:00:00Z") as frozen:
        store = Store(tmp_path / "queue.db")
        due = datetime(2026, 11, 22, 6, tzinfo=timezone.utc)
        publish(store, due_at_ms=round(due.timestamp() * 1000))
        frozen.tick(3599.999)
        assert not store.claim(["default"], 1, lease_s=60).deliveries
        frozen.tick(0.001)
        assert claim_one(store).delivery == 1
        store.close()
