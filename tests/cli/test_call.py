"""`sqlqueue call`: a job from the shell."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli import schemas
from tests.cli.conftest import program

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\n")


def the_job(cli):
    [item] = cli("inspect", "jobs", "--json").json["items"]
    return cli("inspect", "job", item["id"], "--json").json


def test_job_is_enqueued_by_name_and_its_id_printed(cli):
    result = cli("call", "shop.add", "[1, 2]", "--kwargs", '{"c": "ä"}')
    assert result.code == 0
    assert UUID.fullmatch(result.out)
    job = the_job(cli)
    assert job["id"] == result.out.strip()
    assert (job["task"], job["args"], job["kwargs"]) == ("shop.add", [1, 2], {"c": "ä"})
    assert (job["state"], job["queue"]) == ("pending", "default")


def test_application_gives_queue_and_attempts(cli, shop):
    document = cli("call", "shop.add", "[1]", "-A", shop, "--json").json
    job = the_job(cli)
    assert document == {"schema": 1, "id": job["id"]}
    assert (job["queue"], job["max_attempts"]) == ("sums", 3)


def test_options_reach_the_job(cli):
    cli("call", "t", "--queue", "mail", "--priority", 9, "--countdown", "1h", "--job-id", "mine")
    job = the_job(cli)
    assert (job["id"], job["queue"], job["priority"], job["state"]) == (
        "mine",
        "mail",
        9,
        "scheduled",
    )


def test_an_eta_that_no_calendar_has_in_utc_is_exit_2(cli):
    result = cli("call", "t", "--eta", "9999-12-31T23:59:59-23:00")
    assert (result.code, "beyond the years" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("eta", "due"),
    [
        ("2099-01-02T03:04:05Z", "2099-01-02T03:04:05.000Z"),
        ("2099-01-02T03:04:05+02:00", "2099-01-02T01:04:05.000Z"),
        ("2099-01-02T03:04", "2099-01-02T03:04:00.000Z"),
    ],
)
def test_eta_is_utc_unless_it_says_otherwise(cli, eta, due):
    assert cli("call", "t", "--eta", eta).code == 0
    job = the_job(cli)
    assert (job["due_at"], job["state"]) == (due, "scheduled")


def test_own_id_is_stored_once(cli):
    for _ in range(2):
        assert cli("call", "t", "--job-id", "mine").out == "mine\n"
    assert len(cli("inspect", "jobs", "--json").json["items"]) == 1


def test_task_the_application_has_not_is_refused_with_a_suggestion(cli, shop, tmp_path):
    result = cli("call", "shop.ad", "-A", shop)
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'shop.add'?" in result.err
    assert not (tmp_path / "queue.db").exists()
    assert cli("call", "shop.ad", "-A", shop, "--force").code == 0


@pytest.mark.parametrize(
    "args", ["[NaN]", "[1e999]", '["\\ud800"]', '[{"a": 1, "a": 2}]', "[" * 100 + "]" * 100]
)
def test_json_that_no_worker_would_read_is_refused(cli, args):
    result = cli("call", "t", args)
    assert result.code == 2
    assert result.err.startswith("error: JSON_ARGS ")


@pytest.mark.parametrize("command", [["call"], ["schedule", "add", "e", "--every", "5s"]])
def test_keyword_arguments_in_a_third_place_are_not_repeated_and_kwargs_is_named(
    cli, command, tmp_path
):
    result = cli(*command, "t", '["a"]', '{"pin": "hush4711"}')
    assert (result.code, result.out) == (2, "")
    assert "--kwargs '{" in result.err
    assert "hush4711" not in result.err
    assert "pin" not in result.err
    assert not (tmp_path / "queue.db").exists()


def test_keyword_arguments_in_the_place_of_the_positional_ones_name_kwargs(cli):
    result = cli("call", "t", '{"pin": "hush4711"}')
    assert result.code == 2
    assert "JSON_ARGS is no JSON list" in result.err
    assert "Keyword arguments go with --kwargs." in result.err
    assert "hush4711" not in result.err
    assert "--kwargs." not in cli("call", "t", "7").err


def test_waiting_prints_the_result(cli, run, shop, tmp_path):
    worker = program("worker", "-A", shop, "-c", 1, cwd=tmp_path)
    try:
        result = run("call", "shop.add", "[2, 3]", "-A", shop, "--wait", "--timeout", "30s")
        assert (result.code, result.err) == (0, "")
        job_id, value = result.out.splitlines()
        assert UUID.fullmatch(f"{job_id}\n")
        assert value == "5"
        document = run("call", "shop.add", "[2, 3]", "-A", shop, "--wait", "--json").json
        assert (document["state"], document["result"]) == ("done", 5)
        schemas.check("job", document)
        failed = run("call", "shop.fail", "-A", shop, "--wait")
        assert failed.code == 1
        assert "ended permanently_failed: ValueError: broken. See 'sqlqueue inspect" in failed.err
    finally:
        worker.terminate()
        _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err


def test_waiting_ends_with_its_timeout_and_the_job_goes_on(cli):
    result = cli("call", "t", "--wait", "--timeout", "0.05s")
    assert result.code == 1
    assert "is pending after 0.05 s; it goes on" in result.err
    assert the_job(cli)["state"] == "pending"


def test_memory_broker_can_be_published_to(cli, monkeypatch):
    monkeypatch.setenv("SQLQUEUE_DB", "memory://")
    assert cli("call", "t").code == 0
    result = cli("inspect", "stats")
    assert result.code == 2
    assert "not available on this broker" in result.err


def test_document_is_one_line_for_programs(cli):
    out = cli("call", "t", "--json").out
    assert out.count("\n") == 1
    assert json.loads(out)["schema"] == 1


def test_arguments_with_half_a_surrogate_pair_are_refused(cli):
    for text in ("\ud800", "\udcff", '["\ud800"]'):
        done = cli("call", "tasks.add", text, "--db", "q.db")
        assert done.code == 2
        assert "is not UTF-8" in done.err


def test_a_name_that_is_not_utf_8_is_a_mistake_of_the_command_line(cli):
    assert cli("call", "tasks.add").code == 0
    for text in ("\ud800", "\udcff"):
        done = cli("schedule", "pause", text)
        assert done.code == 2
        assert "is not UTF-8" in done.err
