"""`sqlqueue requeue | cancel | fail`: who is meant, who is asked, what is told."""

from __future__ import annotations

import getpass
import os
import pty
import socket

import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.lifecycle import State
from tests.cli.conftest import program


def states(tmp_path) -> dict[str, str]:
    """Return the state of each job in queue.db."""
    store = Store(tmp_path / "queue.db")
    from sqlqueue_transport.reading import JobFilter

    found = {row.job_id: row.state.value for row in store.reading.jobs(JobFilter(), limit=1000)}
    store.close()
    return found


def test_one_job_by_id_needs_no_yes(cli, filled, tmp_path):
    job_id = filled.dead()
    filled.close()
    result = cli("requeue", job_id, "--reason", "disk was full")
    assert (result.code, result.out, result.err) == (0, "1 requeued.\n", "")
    assert states(tmp_path) == {job_id: "pending"}
    [audit] = cli("inspect", "job", job_id, "--json").json["audit"]
    assert audit["actor"] == f"{getpass.getuser()}@{socket.gethostname()} via cli"
    assert (audit["action"], audit["reason"]) == ("requeue", "disk was full")


@pytest.mark.parametrize(
    ("action", "state"), [("cancel", "cancelled"), ("fail", "permanently_failed")]
)
def test_waiting_jobs_are_given_up(cli, filled, tmp_path, action, state):
    ids = [filled.publish(), filled.publish(due_in_s=60), filled.failed()]
    filled.close()
    assert cli(action, *ids, "--yes").code == 0
    assert set(states(tmp_path).values()) == {state}


def test_more_than_one_job_without_yes_is_refused_where_nobody_can_be_asked(run, filled, tmp_path):
    filled.dead()
    filled.dead()
    filled.close()
    result = run("requeue", "--task", "tasks.add")
    assert (result.code, result.out) == (2, "")
    assert "2 jobs would be requeued" in result.err
    assert "--yes" in result.err
    assert set(states(tmp_path).values()) == {"permanently_failed"}


@pytest.mark.parametrize(
    ("answer", "code", "state"),
    [("y", 0, "pending"), ("n", 1, "permanently_failed"), ("", 1, "permanently_failed")],
)
def test_more_than_one_job_is_asked_about_on_a_terminal(filled, tmp_path, answer, code, state):
    filled.dead()
    filled.dead()
    filled.close()
    ours, theirs = pty.openpty()
    process = program(
        "requeue", "--task", "tasks.add", cwd=tmp_path, stdin=theirs, stderr=theirs, text=False
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == code
    assert out == (b"2 requeued.\n" if code == 0 else b"")
    assert set(states(tmp_path).values()) == {state}


def test_dry_run_shows_and_changes_nothing(cli, filled, tmp_path):
    ids = [filled.dead(), filled.dead()]
    filled.close()
    result = cli("requeue", "--task", "tasks.add", "--dry-run")
    assert result.code == 0
    assert all(job_id in result.out for job_id in ids)
    assert "2 jobs would be requeued; nothing was changed." in result.err
    assert set(states(tmp_path).values()) == {"permanently_failed"}
    document = cli("requeue", "--task", "tasks.add", "--dry-run", "--json").json
    assert (document["dry_run"], document["matched"], document["changed"]) == (True, 2, 0)


def test_filter_requeues_dead_letters_and_leaves_the_others_alone(cli, filled, tmp_path):
    done, dead, failed = filled.done(), filled.dead(), filled.failed()
    filled.close()
    assert cli("requeue", "--task", "tasks.add", "--yes").code == 0
    assert states(tmp_path) == {done: "done", dead: "pending", failed: "failed"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--state done", {"done"}),
        ("--state done,permanently_failed", {"done", "dead", "odd"}),
        ("--error ValueError", {"dead"}),
        ("--error OSError --since 1h", {"odd"}),
        ("--queue mail --state done", {"mail"}),
    ],
)
def test_filters_choose_the_jobs(cli, filled, tmp_path, options, wanted):
    filled.done(job_id="done")
    filled.dead(job_id="dead")
    filled.dead("OSError", job_id="odd")
    filled.done(job_id="mail", queue="mail")
    filled.close()
    before = states(tmp_path)
    assert cli("requeue", *options.split(), "--yes").code == 0
    after = states(tmp_path)
    changed = {job_id for job_id in after if before[job_id] != after[job_id]}
    assert changed == wanted | ({"mail"} if "done" in options else set())


def test_nothing_that_matches_is_exit_3(cli, filled):
    filled.done()
    filled.close()
    for arguments in (["requeue", "--task", "x"], ["cancel", "--queue", "x"], ["fail", "nope"]):
        result = cli(*arguments)
        assert (result.code, result.out) == (3, "")
        assert result.err.startswith("error: no job")


def test_job_in_the_wrong_state_is_told_and_left_alone(cli, filled, tmp_path):
    job_id = filled.done()
    filled.close()
    result = cli("cancel", job_id)
    assert result.code == 3
    assert f"job {job_id} is done, and cancel takes pending, scheduled, failed" in result.err
    assert states(tmp_path) == {job_id: "done"}


def test_partly_done_is_exit_4_and_says_what_was_not(cli, filled, tmp_path):
    done, waiting = filled.done(), filled.publish()
    filled.close()
    result = cli("cancel", done, waiting, "nope", "--json")
    assert result.code == 4
    document = result.json
    assert (document["changed"], document["skipped"], document["not_found"]) == (1, 1, ["nope"])
    assert {item["id"]: item["after"] for item in document["items"]} == {
        waiting: "cancelled",
        done: None,
    }
    assert "1 cancelled, 1 skipped: their state had changed" in result.err
    assert states(tmp_path) == {done: "done", waiting: "cancelled"}


def test_what_a_worker_was_faster_with_is_skipped(cli, filled, tmp_path, monkeypatch):
    first, second = filled.publish(), filled.publish()
    from sqlqueue.operations import Operations

    apply = Operations.apply

    def claim_first(self, *args, **kwargs):
        filled.claim()
        return apply(self, *args, **kwargs)

    monkeypatch.setattr(Operations, "apply", claim_first)
    result = cli("cancel", first, second, "--yes")
    assert (result.code, result.out) == (4, "1 cancelled, 1 skipped: their state had changed.\n")
    filled.close()
    assert states(tmp_path)[second] == "cancelled"


def test_fail_without_a_reason_says_so(cli, filled):
    job_id = filled.publish()
    filled.close()
    cli("fail", job_id)
    error = cli("inspect", "job", job_id, "--json").json["error"]
    assert error == {"type": "FailedByOperator", "message": "no reason given", "traceback": None}


def test_failed_job_can_be_requeued_and_counts_anew(cli, filled):
    job_id = filled.dead()
    filled.close()
    cli("requeue", job_id)
    document = cli("inspect", "job", job_id, "--json").json
    assert (document["state"], document["attempts"]) == (State.PENDING.value, 0)
    assert [one["run"] for one in document["history"]] == [1]


# -- running jobs -------------------------------------------------------------------------------------


def running(filled, *, kind="child") -> str:
    """Publish a job, and let a process of that kind run it."""
    filled.store.consumers.register(name="w/1", kind=kind)
    job_id = filled.publish()
    filled.claim()
    return job_id


def test_a_running_job_is_refused_with_a_hint(cli, filled):
    job_id = running(filled)
    result = cli("cancel", job_id)
    assert (result.code, result.out) == (3, "")
    assert "is processing" in result.err
    assert "--terminate asks running jobs to stop" in result.err
    assert "--terminate" in cli("cancel", "--state", "processing").err


def test_a_running_job_is_asked_to_stop_and_a_waiting_one_cancelled(cli, filled):
    job_id, waiting = running(filled), filled.publish()
    result = cli("cancel", "--task", "tasks.add", "--terminate", "--yes", "--reason", "wrong month")
    assert (result.code, result.out) == (0, "1 cancelled, 1 asked to stop.\n")
    document = cli("inspect", "job", job_id, "--json").json
    assert (document["state"], document["kill_at"]) == ("processing", None)
    assert document["stop_asked_at"].endswith("Z")
    assert document["audit"][0]["action"] == "terminate"
    assert cli("inspect", "job", waiting, "--json").json["state"] == "cancelled"
    assert "processing (asked to stop)" in cli("inspect", "jobs").out
    assert "stop      asked " in cli("inspect", "job", job_id).out


def test_by_force_is_asked_too_and_shown_with_its_time(cli, filled):
    job_id = running(filled)
    result = cli("cancel", job_id, "--force-after", "1h", "--json")
    document = result.json
    assert (document["action"], document["changed"], document["asked_to_stop"]) == (
        "terminate",
        1,
        1,
    )
    (item,) = document["items"]
    assert (item["before"], item["after"]) == ("processing", "processing")
    assert "by force from" in cli("inspect", "job", job_id).out
    assert cli("inspect", "job", job_id, "--json").json["kill_at"].endswith("Z")


def test_a_solo_worker_cannot_be_forced_and_that_is_said(cli, filled):
    job_id = running(filled, kind="worker")
    result = cli("cancel", job_id, "--force-after", "0s")
    assert "1 asked to stop; 1 cannot be killed for it: the pool solo" in result.out


def test_a_job_of_celerys_is_not_asked_and_that_is_said(cli, filled):
    job_id = running(filled, kind="client")
    result = cli("cancel", job_id, "--terminate")
    assert result.code == 4
    assert "0 cancelled, 1 not asked, as no worker of ours runs them" in result.out
    assert "celery control revoke" in result.out
    assert cli("inspect", "job", job_id, "--json").json["stop_asked_at"] is None


def test_a_dry_run_asks_nobody(cli, filled):
    job_id = running(filled)
    result = cli("cancel", job_id, "--terminate", "--dry-run")
    assert job_id in result.out
    assert cli("inspect", "job", job_id, "--json").json["stop_asked_at"] is None
