"""A file that only Celery uses: the command line reads it, and acts on it, all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.celery.running import end
from tests.cli.filling import HOSTILE, RAW


@pytest.fixture
def celery(tmp_path: Path) -> Iterator[Celery]:
    """Give an application on queue.db that publishes and keeps results, and has no worker."""
    url = f"sqlqueue:///{tmp_path}/queue.db"
    app = Celery("shop", broker=url, backend=url, set_as_current=False)
    yield app
    end(app)


def send(app: Celery, *args: Any, **options: Any) -> str:
    """Publish a call of `shop.add` and return its id."""
    task_id: str = app.send_task("shop.add", args, **options).id
    return task_id


def acknowledge(app: Celery, *, requeue: bool | None = None) -> None:
    """Do to the next message what a worker would: acknowledge, or reject it."""
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery")
        message.ack() if requeue is None else message.reject(requeue=requeue)


def fail(app: Celery, task_id: str, error: Exception) -> None:
    app.backend.mark_as_failure(task_id, error, traceback=f"Traceback …\n{error!r}")


def test_names_ids_arguments_and_states_come_from_celerys_own_messages(cli, celery):
    waiting = send(celery, 2, 3)
    later = send(celery, 4, countdown=3600, priority=5)
    document = cli("inspect", "jobs", "--json").json
    shown = {one["id"]: (one["task"], one["queue"], one["state"]) for one in document["items"]}
    assert shown == {
        waiting: ("shop.add", "celery", "pending"),
        later: ("shop.add", "celery", "scheduled"),
    }
    document = cli("inspect", "job", waiting, "--json").json
    assert (document["args"], document["kwargs"]) == ([2, 3], {})
    assert document["celery"] is None


def test_cancel_fail_and_requeue_act_on_celerys_jobs(cli, celery):
    waiting, later = send(celery, 1), send(celery, 2, countdown=3600)
    assert cli("cancel", waiting, "--yes").code == 0
    assert cli("fail", later, "--reason", "no", "--yes").code == 0
    assert cli("requeue", waiting, "--yes").code == 0
    states = {one["id"]: one["state"] for one in cli("inspect", "jobs", "--json").json["items"]}
    assert states == {waiting: "pending", later: "permanently_failed"}


def test_a_rejected_job_is_a_dead_letter_with_a_reason(cli, celery):
    send(celery, 1)
    acknowledge(celery, requeue=False)
    (dead,) = cli("inspect", "dead", "--json").json["items"]
    assert dead["error"] == {"type": "Rejected", "message": "the consumer rejected it"}


def test_a_retry_is_another_message_of_the_same_job(cli, celery):
    """Celery publishes it while the first one is not yet acknowledged, under the same id."""
    first = send(celery, 1)
    assert send(celery, 1, task_id=first, countdown=60) == first
    acknowledge(celery)
    document = cli("inspect", "job", first, "--json").json
    assert (document["state"], len(document["other_messages"])) == ("scheduled", 1)


def test_a_success_is_shown_as_celery_keeps_it(cli, celery):
    task_id = send(celery, 2, 3)
    celery.backend.mark_as_done(task_id, {"sum": 5})
    acknowledge(celery)
    document = cli("inspect", "job", task_id, "--json").json
    assert document["celery"] == {"state": "SUCCESS", "result": {"sum": 5}, "error": None}
    page = cli("inspect", "job", task_id).out
    assert re.search(r"^celery +SUCCESS: \{\"sum\": 5\}$", page, re.MULTILINE)


def test_a_failed_task_that_was_acknowledged_shows_its_failure_and_its_traceback(cli, celery):
    task_id = send(celery, 2, 3)
    fail(celery, task_id, ValueError("broken", 7))
    acknowledge(celery)
    document = cli("inspect", "job", task_id, "--json").json
    assert document["state"] == "done"
    assert document["celery"]["state"] == "FAILURE"
    assert document["celery"]["error"]["type"] == "ValueError"
    assert document["celery"]["error"]["message"] == "broken, 7"
    page = cli("inspect", "job", task_id).out
    assert "FAILURE: ValueError: broken, 7" in page
    assert "Celery's traceback\n  Traceback …" in page
    assert "Celery's traceback" not in cli("inspect", "job", task_id, "--traceback", "none").out


def test_failed_tasks_are_listed_and_run_again(cli, celery):
    failed, fine = send(celery, 1), send(celery, 2)
    fail(celery, failed, ValueError("broken"))
    celery.backend.mark_as_done(fine, 2)
    for _ in range(2):
        acknowledge(celery)
    found = cli("inspect", "jobs", "--celery-state", "failure", "--json").json["items"]
    assert [one["id"] for one in found] == [failed]
    again = ("--state", "done", "--celery-state", "FAILURE", "--yes")
    assert cli("requeue", *again).code == 0
    states = {one["id"]: one["state"] for one in cli("inspect", "jobs", "--json").json["items"]}
    assert states == {failed: "pending", fine: "done"}
    assert cli("requeue", *again).code == 3


def test_what_celery_keeps_is_hostile_text(cli, celery):
    task_id = send(celery, 1)
    fail(celery, task_id, ValueError(HOSTILE))
    page = cli("inspect", "job", task_id).out
    assert not [raw for raw in RAW if raw in page]
    assert "[bold red]x[/]" in page  # printed, not executed


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_a_result_in_another_format_is_not_unpacked(cli, tmp_path, serializer):
    url = f"sqlqueue:///{tmp_path}/queue.db"
    app = Celery("shop", broker=url, backend=url, set_as_current=False)
    app.conf.update(result_serializer=serializer, accept_content=["json", serializer])
    task_id = send(app, 1)
    app.backend.mark_as_done(task_id, 1)
    document = cli("inspect", "job", task_id, "--json").json
    assert document["celery"] == {"state": "SUCCESS", "result": None, "error": None}
    end(app)


def test_a_consuming_program_serves_its_queues(cli, celery):
    send(celery, 1)
    assert "served by no worker" in cli("doctor").out
    with celery.connection_for_read() as connection:
        connection.default_channel.basic_consume("celery", False, print, "t")
        assert "served by no worker" not in cli("doctor").out
        (queue,) = cli("inspect", "queues", "--json").json["items"]
        assert (queue["name"], queue["workers"]) == ("celery", 1)


def test_a_worker_is_known_by_the_name_celery_gives_it(cli, celery):
    with celery.connection_for_read() as connection:
        node = celery.control.mailbox(connection).Node("celery@shop", channel=connection.channel())
        node.listen()
        (worker,) = cli("inspect", "workers", "--json").json["items"]
        assert worker["name"] == "celery@shop"
