"""Celery and a worker of ours with a key: Celery runs what is signed, and what Celery sends is refused."""

from __future__ import annotations

import pytest

from sqlqueue import SqlQueue
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only

pytestmark = [pytest.mark.slow, ours_only]


@pytest.fixture(autouse=True)
def directory(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where no settings lie: a conf/sqlqueue.toml in the working directory would be read."""
    monkeypatch.chdir(arena.directory)


def test_celery_runs_what_we_have_signed_and_shows_nothing_of_a_sensitive_call(
    arena: Arena,
) -> None:
    arena.worker(pool="solo")
    app = SqlQueue("ours", broker_url=arena.broker, signing_key="k" * 40)
    try:
        job = app.send_task("add", [4711, 1], queue="celery", sensitive=True)
    finally:
        app.close()
    arena.wait_state(job.id, State.DONE)
    shown = arena.sqlqueue("inspect", "job", job.id, "--json")
    assert '"sensitive": true' in shown.text
    assert "SUCCESS" in shown.text
    assert "471" not in shown.text.replace(job.id, "")


def test_worker_with_a_key_refuses_what_celery_has_enqueued(arena: Arena) -> None:
    job = arena.tasks.add.delay(1, 1).id
    app = SqlQueue(
        "ours", broker_url=arena.broker, signing_key="k" * 40, task_default_queue="celery"
    )
    app.task(name="add")(lambda x, y: pytest.fail("it was run"))
    try:
        run_solo(app, name="w", burst=True, handle_signals=False)
    finally:
        app.close()
    row = arena.wait_state(job, State.PERMANENTLY_FAILED)
    assert row.error_type == "Unsigned"
