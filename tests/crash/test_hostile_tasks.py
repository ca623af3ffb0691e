"""Tasks and messages that could take their worker along, and must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import wait_until

HOSTILE = '''

@app.task(name="exit_0", max_attempts=2)
def exit_0():
    os._exit(0)


@app.task(name="forks", bind=True, max_attempts=1)
def forks(self, how):
    """Fork, and let the copy come back into the worker's code."""
    pid = os.fork()
    if not pid:
        if how == "exit":
            sys.exit(0)
        if how == "raise":
            raise ValueError("in the copy")
        return "the copy's"
    _, status = os.waitpid(pid, 0)
    return status


@app.task(name="terminates", max_attempts=1)
def terminates():
    import multiprocessing

    fork = multiprocessing.get_context("fork")
    running = fork.Event()

    def run():
        running.set()
        time.sleep(600)

    process = fork.Process(target=run)
    process.start()
    running.wait()  # what comes during the fork itself, CPython forgets
    process.terminate()
    process.join()
    return process.exitcode


@app.task(name="wanders")
def wanders():
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    try:
        app.send_task("work", (0,), job_id="sent from elsewhere")
    finally:
        os.chdir("..")


@app.task(name="deaf", bind=True)
def deaf(self):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trace(self, "start")
    time.sleep(1)
'''


@pytest.fixture
def hostile(arena: Arena) -> Arena:
    with (arena.directory / "crashapp.py").open("a") as file:
        file.write(HOSTILE)
    return arena


def test_a_task_that_exits_with_0_is_a_lost_attempt_and_the_worker_goes_on(hostile: Arena) -> None:
    job = hostile.publish("exit_0")
    others = [hostile.publish("work", 0) for _ in range(6)]
    worker = hostile.worker("-c", 2)
    detail = hostile.wait_state(job, State.PERMANENTLY_FAILED)
    assert [(one.attempt, one.outcome) for one in detail.attempts] == [(1, "lost"), (2, "lost")]
    for other in others:
        assert hostile.wait_state(other, State.DONE).row.attempts == 1
    assert worker.poll() is None


@pytest.mark.parametrize(("how", "status"), [("exit", "0"), ("raise", "256"), ("return", "0")])
def test_a_forked_copy_of_a_task_never_settles_its_parents_job(
    hostile: Arena, how: str, status: str
) -> None:
    job = hostile.publish("forks", how)
    assert hostile.worker("-c", 1, "--burst").wait(timeout=30) == 0, hostile.logs()
    detail = hostile.job(job)
    assert (detail.row.state, detail.row.attempts, detail.result) == (State.DONE, 1, status)
    assert "lease_lost" not in hostile.logs()


def test_a_process_of_a_task_can_be_terminated(hostile: Arena) -> None:
    job = hostile.publish("terminates")
    hostile.worker("-c", 1)
    assert hostile.wait_state(job, State.DONE).result == "-15"


def test_a_task_that_changes_the_directory_enqueues_into_the_same_queue(hostile: Arena) -> None:
    job = hostile.publish("wanders")
    hostile.worker("-c", 1)
    hostile.wait_state(job, State.DONE)
    hostile.wait_state("sent from elsewhere", State.DONE)
    assert list((hostile.directory / "elsewhere").iterdir()) == []


def test_a_task_that_ignores_sigterm_does_not_keep_its_child_from_draining(hostile: Arena) -> None:
    deaf = hostile.publish("deaf")
    worker = hostile.worker("-c", 1, "--grace", "1h")
    hostile.wait_state(deaf, State.DONE)
    later = hostile.publish("work", 0)
    hostile.wait_state(later, State.DONE)
    worker.terminate()
    assert worker.wait(timeout=30) == 0, hostile.logs()


def test_a_message_that_is_no_text_is_buried_and_its_neighbours_run_once(arena: Arena) -> None:
    jobs = [arena.publish("work", 0) for _ in range(5)]
    broken = arena.app.backend.message_ids_of(jobs[2])[0]
    arena.app.backend.store.database.write(
        lambda connection: (
            connection.execute(
                "UPDATE message SET headers = CAST(x'7bff7d' AS TEXT) WHERE id = :id",
                {"id": broken},
            ).rowcount
        )
    )
    arena.worker("-c", 2)
    for number, job in enumerate(jobs):
        expected = State.PERMANENTLY_FAILED if number == 2 else State.DONE
        assert arena.wait_state(job, expected).row.attempts == 1
    assert arena.job(jobs[2]).row.error_message


def test_a_message_without_a_task_is_seen_among_the_dead_letters(arena: Arena) -> None:
    import kombu

    with kombu.Connection(f"sqlqueue:///{arena.directory}/queue.db") as connection:
        connection.Producer().publish({"hello": 1}, routing_key="default")
    arena.worker("-c", 1)
    counts = arena.app.backend.counts
    wait_until(lambda: counts().states[State.PERMANENTLY_FAILED] == 1, what="the dead letter")
    (row,) = arena.all_jobs()
    assert (row.task, row.state) == (None, State.PERMANENTLY_FAILED)
    shown = arena.start("inspect", "dead")
    assert shown.wait(timeout=30) == 0
    assert "task" in arena.logs()
    assert Path(arena.directory / "queue.db").exists()
