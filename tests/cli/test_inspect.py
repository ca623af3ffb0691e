"""`sqlqueue inspect`: what programs and people are shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from sqlqueue.operations import Action, Operations
from sqlqueue_transport import Outcome
from sqlqueue_transport.schedules import Described
from tests.cli.filling import HOSTILE, RAW
from tests.support import ROOT

STATES = [
    "pending",
    "scheduled",
    "processing",
    "done",
    "failed",
    "permanently_failed",
    "cancelled",
    "expired",
]
ITEM = {
    "id",
    "message_id",
    "task",
    "queue",
    "state",
    "priority",
    "attempts",
    "max_attempts",
    "enqueued_at",
    "due_at",
    "started_at",
    "finished_at",
    "stop_asked_at",
    "kill_at",
    "progress",
    "worker",
    "error",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_stats_document_is_the_promised_one(cli, filled):
    filled.done()
    filled.publish()
    filled.close()
    document = cli("inspect", "stats", "--json").json
    assert list(document) == [
        "schema",
        "states",
        "stalled",
        "oldest_pending_s",
        "paused",
        "workers",
        "log_bytes",
    ]
    assert list(document["states"]) == STATES
    assert document["schema"] == 1
    assert document["states"]["done"] == document["states"]["pending"] == 1
    assert document["oldest_pending_s"] >= 0
    assert document["workers"] == {"alive": 0, "slots": 0}
    assert document["log_bytes"] >= 0
    assert document["paused"] == {}


def test_stats_warn_of_a_log_that_has_grown(cli, filled, monkeypatch):
    filled.publish()
    assert "'sqlqueue doctor' names it" not in cli("inspect", "stats").out
    monkeypatch.setattr("sqlqueue.inspection.LIMIT_BYTES", 0)
    assert "MB: a program reads for long; 'sqlqueue doctor' names it" in cli("inspect", "stats").out
    filled.close()


def test_stats_say_null_when_nothing_waits(cli, filled):
    filled.close()
    assert cli("inspect", "stats", "--json").json["oldest_pending_s"] is None
    assert "nothing waits" in cli("inspect", "stats").out


def test_jobs_are_listed_newest_first_without_what_only_a_page_has(cli, filled):
    ids = [filled.done(), filled.dead(), filled.publish()]
    filled.close()
    document = cli("inspect", "jobs", "--json").json
    assert list(document) == ["schema", "items", "next"]
    assert [item["id"] for item in document["items"]] == ids[::-1]
    assert document["next"] is None
    for item in document["items"]:
        assert set(item) == ITEM
        assert TIME.fullmatch(item["enqueued_at"])
    waiting, dead, done = document["items"]
    assert (waiting["started_at"], waiting["worker"], waiting["error"]) == (None, None, None)
    assert dead["error"] == {"type": "ValueError", "message": "no such file"}
    assert TIME.fullmatch(done["finished_at"])
    assert (done["attempts"], done["max_attempts"]) == (1, 5)


def test_list_goes_on_with_its_cursor(cli, filled):
    for _ in range(5):
        filled.publish()
    filled.close()
    seen, cursor = [], []
    while True:
        document = cli("inspect", "jobs", "--json", "--limit", 2, *cursor).json
        seen += [item["message_id"] for item in document["items"]]
        if document["next"] is None:
            break
        cursor = ["--cursor", document["next"]]
    assert seen == [5, 4, 3, 2, 1]


def test_list_is_fifty_long_unless_told_otherwise(cli, filled):
    for _ in range(51):
        filled.publish()
    filled.close()
    assert len(cli("inspect", "jobs", "--json").json["items"]) == 50
    shown = cli("inspect", "jobs")
    assert len(shown.out.splitlines()) == 51
    assert "--cursor 2" in shown.err
    assert cli("inspect", "jobs", "-q").err == ""
    assert len(cli("inspect", "jobs", "--limit", 1000, "--json").json["items"]) == 51


def test_jsonl_is_a_document_a_line(cli, filled):
    ids = [filled.publish() for _ in range(3)]
    filled.close()
    lines = cli("inspect", "jobs", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids[::-1]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--state done", {"done"}),
        ("--state done,pending", {"done", "other", "mail", "pending"}),
        ("--state DONE --state permanently-failed", {"done", "dead"}),
        ("--task tasks.other", {"other"}),
        ("--queue mail", {"mail"}),
        ("--error ValueError", {"dead"}),
        ("--error such", {"dead"}),
        ("--until 1h", set()),
        ("--since 1h --until 2099-01-01", {"done", "dead", "pending", "other", "mail"}),
        ("--search dead", {"dead"}),
        ("--search tasks.oth", {"other"}),
        ("--since 1h", {"done", "dead", "pending", "other", "mail"}),
        ("--since 2020-01-01", {"done", "dead", "pending", "other", "mail"}),
        ("--since 2099-01-01T00:00Z", set()),
        ("--state done --task tasks.other", set()),
        ("--worker nobody", set()),
        ("--state stalled", set()),
    ],
)
def test_filters_narrow_the_list(cli, filled, options, wanted):
    filled.done(job_id="done")
    filled.dead(job_id="dead")
    filled.publish(job_id="other", task="tasks.other")
    filled.publish(job_id="mail", queue="mail")
    filled.publish(job_id="pending")
    filled.close()
    items = cli("inspect", "jobs", *options.split(), "--json").json["items"]
    assert {item["id"] for item in items} == wanted


def test_job_document_is_the_promised_one(cli, filled):
    job_id = filled.failed(retry_in_s=0, args=(1,), kwargs={"b": None}, priority=3, max_attempts=4)
    filled.store.claim([], 0, lease_s=1)
    delivery = filled.claim()
    filled.settle(delivery, Outcome.done('{"sum": 3}'))
    filled.close()
    document = cli("inspect", "job", job_id, "--json").json
    assert (ITEM | {"schema", "args", "kwargs", "result", "history"}) <= set(document)
    assert (document["args"], document["kwargs"]) == ([1], {"b": None})
    assert document["result"] == {"sum": 3}
    assert document["error"] is None
    assert (document["attempts"], document["max_attempts"], document["priority"]) == (2, 4, 3)
    failed, done = document["history"]
    for one in (failed, done):
        assert set(one) == {
            "run",
            "attempt",
            "worker",
            "started_at",
            "ended_at",
            "outcome",
            "error",
        }
        assert TIME.fullmatch(one["ended_at"])
    assert (failed["outcome"], failed["error"]["type"], done["outcome"]) == (
        "failed",
        "OSError",
        "done",
    )
    assert "Traceback" in failed["error"]["traceback"]
    assert done["error"] is None


def test_job_page_shows_what_one_wants_to_know(cli, filled):
    job_id = filled.dead("KeyError", "'shelf'", args=("a b",), kwargs={"c": 1})
    filled.close()
    page = cli("inspect", "job", job_id, "--utc").out
    assert job_id in page
    assert '("a b", c=1)' in page
    assert "KeyError: 'shelf'" in page
    assert "1/5" in page
    assert "Traceback of attempt 1" in page
    assert "  KeyError: 'shelf'" in page
    assert " UTC" in page
    assert "Traceback of" not in cli("inspect", "job", job_id, "--traceback", "none").out


def test_job_page_tells_what_operators_did(cli, filled):
    job_id = filled.dead()
    from sqlqueue.inspection import Inspection

    backend = filled.backend()
    operations = Operations(Inspection(backend))
    choice = operations.choose(Action.REQUEUE, names=[job_id])
    operations.apply(Action.REQUEUE, choice.targets, actor="kim@here via cli", reason="disk full")
    backend.close()
    filled.close()
    page = cli("inspect", "job", job_id).out
    assert "requeue by kim@here via cli, permanently_failed → pending: disk full" in page
    [entry] = cli("inspect", "job", job_id, "--json").json["audit"]
    assert (entry["actor"], entry["reason"]) == ("kim@here via cli", "disk full")


def test_shared_id_shows_the_newest_and_lists_the_others(cli, filled):
    for number in range(3):
        filled.publish(job_id="same", args=(number,))
    filled.close()
    document = cli("inspect", "job", "same", "--json").json
    assert (document["message_id"], document["args"]) == (3, [2])
    assert document["other_messages"] == [2, 1]
    assert "#2, #1" in cli("inspect", "job", "same").out
    assert cli("inspect", "job", "#1", "--json").json["args"] == [0]


@pytest.mark.parametrize("name", ["nope", "1", "#99"])
def test_unknown_job_is_exit_3(cli, filled, name):
    filled.publish()
    filled.close()
    result = cli("inspect", "job", name)
    assert (result.code, result.out) == (3, "")
    assert f"error: no job has the id '{name}'" in result.err


def test_unreadable_body_is_told(cli, filled):
    job_id = filled.publish(body=b"\xff")
    filled.close()
    document = cli("inspect", "job", job_id, "--json").json
    assert (document["args"], document["kwargs"]) == (None, None)
    assert document["body_error"] == "its body is not UTF-8"
    assert "cannot be read: its body is not UTF-8" in cli("inspect", "job", job_id).out


def test_dead_letters_are_listed_and_grouped(cli, filled):
    for name in "abc":
        newest = filled.dead("OSError", f"no file '{name}'")
    filled.dead("KeyError", "x")
    filled.done()
    filled.close()
    items = cli("inspect", "dead", "--json").json["items"]
    assert len(items) == 4
    first, second = cli("inspect", "dead", "--by", "error", "--json").json["items"]
    assert (first["count"], first["error"]) == (3, {"type": "OSError", "message": "no file …"})
    assert first["example"] == newest
    assert second["count"] == 1
    assert "OSError: no file …" in cli("inspect", "dead", "--by", "error").out
    [item] = cli("inspect", "dead", "--by", "error", "--error", "KeyError", "--json").json["items"]
    assert item["error"]["type"] == "KeyError"


def test_queues_and_workers_and_schedule_are_lists(cli, filled):
    filled.publish(queue="mail")
    filled.store.schedules.describe(
        [Described("tidy", "every 5s", "tasks.tidy", next_due_ms=1_700_000_000_000)]
    )
    filled.close()
    [queue] = cli("inspect", "queues", "--json").json["items"]
    assert (queue["name"], queue["pending"], queue["workers"]) == ("mail", 1, 0)
    assert cli("inspect", "workers", "--json").json == {"schema": 1, "items": [], "next": None}
    [entry] = cli("inspect", "schedule", "--json").json["items"]
    assert (entry["entry"], entry["target"], entry["ticks"]) == ("tidy", "tasks.tidy", 0)
    assert entry["next_due_at"] == "2023-11-14T22:13:20.000Z"
    assert "mail" in cli("inspect", "queues").out
    assert "tidy" in cli("inspect", "schedule").out


def test_nobody_alive_is_told_by_ping(cli, filled):
    filled.close()
    result = cli("inspect", "ping")
    assert result.code == 1
    assert "no worker is alive" in result.err


def test_nothing_to_show_says_something_useful(cli, filled):
    filled.close()
    assert "No jobs yet. Enqueue one" in cli("inspect", "jobs").out
    assert "No queues yet" in cli("inspect", "queues").out
    assert "No worker is running" in cli("inspect", "workers").out
    assert "No schedule yet" in cli("inspect", "schedule").out


def test_filter_that_finds_nothing_says_what_there_is(cli, filled):
    filled.done()
    filled.close()
    assert "No failed jobs. There are: 1 done." in cli("inspect", "jobs", "--state", "failed").out
    assert "No permanently_failed jobs. There are: 1 done." in cli("inspect", "dead").out
    assert "No jobs match. There are: 1 done." in cli("inspect", "jobs", "--task", "x").out
    assert "No stalled jobs" in cli("inspect", "jobs", "--state", "stalled").out


def test_missing_database_is_an_error_that_helps(cli):
    result = cli("inspect", "stats")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: no database at ./queue.db. ")
    assert "--db / SQLQUEUE_DB" in result.err


def test_looking_creates_nothing(cli, tmp_path):
    cli("inspect", "stats")
    cli("doctor")
    cli("requeue", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extra", [[], ["--json"], ["-o", "jsonl"]])
def test_text_of_strangers_cannot_move_the_terminal(cli, filled, extra):
    filled.dead(
        HOSTILE, HOSTILE, task=HOSTILE, job_id=HOSTILE, args=(HOSTILE,), kwargs={HOSTILE: 1}
    )
    filled.done(HOSTILE, task=HOSTILE, job_id="nice")
    filled.publish(queue=HOSTILE, task=HOSTILE)
    filled.store.schedules.describe(
        [Described(HOSTILE, HOSTILE, HOSTILE, next_due_ms=None, definition=HOSTILE)]
    )
    filled.store.schedules.set_error(HOSTILE, HOSTILE)
    filled.close()
    for command in (
        "inspect jobs",
        "inspect dead",
        "inspect dead --by error",
        "inspect queues",
        "inspect schedule",
        "inspect job nice",
        "inspect job #1",
        "doctor",
        "requeue --state permanently_failed --dry-run",
        "requeue --task nothing",
    ):
        result = cli(*command.split(), *extra)
        for raw in RAW:
            assert raw not in result.out, command
            assert raw not in result.err, command
        if not extra and "evil" in result.out:
            assert "evil\\x1b[31m" in result.out
    for command in (["inspect", "job", HOSTILE + "?"], ["requeue", HOSTILE + "?"]):
        result = cli(*command, *extra)
        assert result.code == 3
        assert "evil\\x1b[31m" in result.err
        for raw in RAW:
            assert raw not in result.err


def test_markup_of_strangers_is_shown_and_not_obeyed(cli, filled):
    filled.publish(task="[bold red]x[/] :smile: [link=http://x]y[/link]")
    filled.close()
    assert "[bold red]x[/] :smile: [link=http://x]y[/link]" in cli("inspect", "jobs").out


def test_reader_that_has_enough_is_no_error(filled, tmp_path):
    for _ in range(200):
        filled.publish()
    filled.close()
    done = subprocess.run(
        f"{sys.executable} -m sqlqueue inspect jobs --limit 200 -o jsonl | head -n 1",
        shell=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


# -- progress -----------------------------------------------------------------------------------------


def said(filled, *words) -> str:
    filled.store.consumers.register(name="w/1", kind="child")
    job_id = filled.publish()
    one = filled.claim()
    done, total, note = words
    assert filled.store.running.note_progress(
        one.message_id, one.delivery, done=done, total=total, note=note
    )
    return job_id


def test_progress_is_a_bar_for_people_and_numbers_for_programs(cli, filled):
    job_id = said(filled, 3, 12, f"page 3 {HOSTILE}")
    shown = cli("inspect", "job", job_id).out
    assert "progress  █████░░░░░░░░░░░░░░░ 25%, 3 of 12: page 3" in shown
    assert not [raw for raw in RAW if raw in shown]
    assert "processing 25%" in cli("inspect", "jobs").out
    assert "25%" in cli("inspect", "workers").out
    progress = cli("inspect", "job", job_id, "--json").json["progress"]
    assert (progress["done"], progress["total"]) == (3.0, 12.0)
    assert progress["note"].startswith("page 3 ")
    (worker,) = cli("inspect", "workers", "--json").json["items"]
    assert [job["progress"] for job in worker["jobs"]] == [0.25]


def test_progress_without_a_total_has_no_bar(cli, filled):
    job_id = said(filled, 1500, None, "")
    assert "progress  1500 (now)" in cli("inspect", "job", job_id).out
    assert "%" not in cli("inspect", "jobs").out


def test_a_job_that_says_nothing_has_no_progress(cli, filled):
    job_id = filled.publish()
    filled.close()
    assert "progress" not in cli("inspect", "job", job_id).out
    assert cli("inspect", "job", job_id, "--json").json["progress"] is None
