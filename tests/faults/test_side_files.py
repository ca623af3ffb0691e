"""The presence file goes away under running processes."""

from __future__ import annotations

import time

import pytest

from sqlqueue.task import Signature
from sqlqueue_transport import NewMessage, Store
from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import finish, read_line, run_python, wait_until

WITHIN_S = 1.0  # how soon a change is promised to be noticed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_worker_whose_presence_file_is_lost_finishes_its_job_and_ends_to_be_started_anew(
    arena: Arena, how: str
) -> None:
    worker = arena.worker("-c", 2)
    # Both: a child that registers after the file is gone makes another.
    wait_until(lambda: "worker_ready" in arena.logs(), what="both children")
    running = arena.publish("work", 3)
    arena.started(running)
    waiting = [arena.publish("hang") for _ in range(2)]
    presence = arena.directory / "queue.db-run" / "presence"
    content = presence.read_bytes()
    presence.unlink()
    if how == "replaced":
        presence.write_bytes(content)
        presence.chmod(0o600)
    began_s = time.monotonic()
    wait_until(lambda: "presence_lost" in arena.logs(), deadline_s=5 * WITHIN_S, every_s=0.01)
    print(f"noticed after {time.monotonic() - began_s:.2f} s")
    assert worker.wait(timeout=30) == 1
    assert str(presence) in arena.logs()
    done = arena.job(running).row
    assert (done.state, done.attempts, done.delivery) == (State.DONE, 1, 1), arena.logs()
    # The next one sees its children, and so the time limits of what they run hold.
    arena.worker("-c", 2)
    for job_id in waiting:
        arena.wait_state(job_id, State.PERMANENTLY_FAILED)


@pytest.mark.slow
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_a_solo_worker_whose_presence_file_is_lost_finishes_its_job_and_ends(
    arena: Arena, is_busy: bool
) -> None:
    worker = arena.worker("-P", "solo")
    if is_busy:
        running = arena.publish("held")
        arena.started(running)
        waiting = arena.publish("work", 0)
    else:
        wait_until(lambda: "worker_started" in arena.logs(), deadline_s=30)
    presence = arena.directory / "queue.db-run" / "presence"
    presence.unlink()
    began_s = time.monotonic()
    wait_until(lambda: "presence_lost" in arena.logs(), deadline_s=5 * WITHIN_S, every_s=0.01)
    print(f"noticed after {time.monotonic() - began_s:.2f} s")
    if is_busy:
        assert worker.poll() is None
        (arena.directory / "go").touch()
    assert worker.wait(timeout=30) == 1, arena.logs()
    assert str(presence) in arena.logs()
    assert arena.logs().count("presence_lost") == 1
    if is_busy:
        done = arena.job(running).row
        assert (done.state, done.attempts, done.delivery) == (State.DONE, 1, 1), arena.logs()
        assert arena.state(waiting) is State.PENDING
        arena.worker("-P", "solo")
        arena.wait_state(waiting, State.DONE)


@pytest.mark.slow
def test_a_beat_whose_presence_file_is_lost_ends_to_be_started_anew(arena: Arena) -> None:
    """Who removes an entry of its code would else not see that a living beat has it."""
    arena.app.schedules.add("e", Signature("work", (0,), {}, {}), every=1)
    beat = arena.start("beat", "-A", "crashapp:app")
    wait_until(lambda: "tick_enqueued" in arena.logs(), deadline_s=30)
    (arena.directory / "queue.db-run" / "presence").unlink()
    began_s = time.monotonic()
    assert beat.wait(timeout=30) == 1, arena.logs()
    print(f"ended after {time.monotonic() - began_s:.2f} s")
    assert "presence_lost" in arena.logs()
    assert "store_gone" not in arena.logs()


@pytest.mark.slow
def test_a_signal_to_stop_does_not_hurry_a_worker_that_drains_for_a_lost_presence_file(
    arena: Arena,
) -> None:
    worker = arena.worker("-c", 1)
    running = arena.publish("work", 3)
    arena.started(running)
    (arena.directory / "queue.db-run" / "presence").unlink()
    wait_until(lambda: "worker_draining" in arena.logs(), deadline_s=5 * WITHIN_S)
    worker.terminate()
    assert worker.wait(timeout=30) == 1
    assert arena.state(running) is State.DONE


def test_a_publisher_finds_the_sleepers_of_a_new_presence_file(arena: Arena) -> None:
    """Else a worker that was started anew would hear of each job a second late, for ever."""
    path = arena.directory / "queue.db"
    sleeping = """
        import sys
        from sqlqueue_transport import Store
        store = Store(sys.argv[1])
        store.consumers.register(name="sleeper", kind="worker")
        slot, bell = store.consumers.ready_to_sleep()
        store.consumers.sleepers.lie_down(slot, ["q"], 600)
        print(flush=True)
        print(bell.wait(60), flush=True)
        store.close()
    """
    publisher = Store(path)
    publisher.publish([NewMessage(b"x", "q")])
    before = publisher.consumers.presence.identity  # asked later, it may have followed already
    (arena.directory / "queue.db-run" / "presence").unlink()
    sleeper = run_python(sleeping, path)
    read_line(sleeper)

    def follows() -> bool:
        publisher.publish([NewMessage(b"x", "q")])
        return publisher.consumers.presence.identity != before

    wait_until(follows, deadline_s=5 * WITHIN_S)
    assert finish(sleeper, deadline_s=10) == "True\n"
    publisher.close()


def test_a_process_with_a_slot_never_leaves_its_file_by_itself(arena: Arena) -> None:
    """The lock on its slot is what says that it lives: closing the file would drop it."""
    store = Store(arena.directory / "queue.db")
    store.consumers.register(name="w", kind="worker")
    before = store.consumers.presence
    assert not store.consumers.has_lost_presence
    (arena.directory / "queue.db-run" / "presence").unlink()
    store.consumers._looked_at_s = -1e9
    assert store.consumers.presence is before
    assert store.consumers.has_lost_presence
    store.close()
