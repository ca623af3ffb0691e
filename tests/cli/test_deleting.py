"""`sqlqueue purge | prune`: the count first, a word of consent, and then exactly that."""

from __future__ import annotations

import contextlib
import os
import pty

import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.reading import JobFilter
from tests.cli.conftest import program
from tests.cli.filling import HOSTILE, RAW


def states(tmp_path) -> dict[str, str]:
    """Return the state of each job in queue.db."""
    store = Store(tmp_path / "queue.db")
    found = {row.job_id: row.state.value for row in store.reading.jobs(JobFilter(), limit=1000)}
    store.close()
    return found


@pytest.fixture
def mixed(filled):
    """Fill queue.db with jobs that wait, one that is done and a dead letter; another queue as well."""
    filled.store.topology.declare_queue("default")
    filled.done(job_id="done")
    filled.dead(job_id="dead")
    filled.failed(job_id="failed")
    filled.publish(job_id="pending")
    filled.publish(job_id="later", due_in_s=600)
    filled.publish(job_id="other", queue="mail")
    filled.close()


def on_a_terminal(*arguments: str, answer: str, cwd) -> tuple[int, bytes, bytes]:
    """Run a program whose stdin and stderr are a terminal; return its code, output and screen."""
    ours, theirs = pty.openpty()
    process = program(*arguments, cwd=cwd, stdin=theirs, stderr=theirs, text=False)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=30)
    screen = b""
    with contextlib.suppress(OSError):  # EIO: the other side has closed, and all is read
        while piece := os.read(ours, 65_536):
            screen += piece
    os.close(ours)
    return process.returncode, out, screen


# -- purge ------------------------------------------------------------------------------------------------


def test_purge_deletes_what_waits_and_tells_how_many(cli, mixed, tmp_path):
    result = cli("purge", "default", "--yes", "--reason", "wrong batch")
    assert (result.code, result.out, result.err) == (0, "default: 3 messages deleted\n", "")
    assert states(tmp_path) == {"done": "done", "dead": "permanently_failed", "other": "pending"}
    assert cli("purge", "default").out == "default: 0 messages deleted\n"


def test_a_dry_run_of_purge_counts_and_deletes_nothing(cli, mixed, tmp_path):
    before = states(tmp_path)
    result = cli("purge", "default", "mail", "--dry-run")
    assert result.code == 0
    assert result.out == "default: 3 messages would be deleted\nmail: 1 message would be deleted\n"
    assert result.err == "Nothing was changed.\n"
    assert cli("purge", "default", "--dry-run", "--json").json == {
        "schema": 1,
        "action": "purge",
        "dry_run": True,
        "items": [{"queue": "default", "matched": 3, "deleted": 0}],
    }
    assert states(tmp_path) == before


def test_purge_in_json(cli, mixed):
    assert cli("purge", "mail", "default", "mail", "--yes", "--json").json["items"] == [
        {"queue": "mail", "matched": 1, "deleted": 1},
        {"queue": "default", "matched": 3, "deleted": 3},
    ]


@pytest.mark.parametrize("age", ["7", "0.5", " 30"])
def test_an_age_without_a_unit_is_refused_since_it_may_have_been_meant_as_days(cli, filled, age):
    result = cli("prune", "--older-than", age, "--yes")
    assert result.code == 2
    assert "of what? Say '7d'" in result.err


@pytest.mark.parametrize("arguments", [["purge", "default"], ["prune", "--older-than", "0s"]])
def test_where_nobody_can_be_asked_it_needs_yes(run, mixed, tmp_path, arguments):
    before = states(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "would be deleted, and there is no terminal to ask on. Say --yes" in result.err
    assert states(tmp_path) == before


@pytest.mark.parametrize(
    ("answer", "code"), [("default", 0), ("y", 1), ("", 1), ("defaul", 1), ("DEFAULT", 1)]
)
def test_on_a_terminal_the_name_of_the_queue_is_typed(mixed, tmp_path, answer, code):
    found, out, screen = on_a_terminal("purge", "default", answer=answer, cwd=tmp_path)
    assert found == code
    assert b"3 messages in queue default would be deleted. Type the queue's name" in screen
    assert out == (b"" if code else b"default: 3 messages deleted\n")
    assert ("pending" in states(tmp_path)) == bool(code)


def test_an_unknown_queue_is_exit_3_and_nothing_is_purged(cli, mixed, tmp_path):
    before = states(tmp_path)
    result = cli("purge", "mail", "defualt", "--yes")
    assert result.code == 3
    assert "there is no queue 'defualt'. Did you mean 'default'?" in result.err
    assert states(tmp_path) == before


def test_hostile_names_of_queues_are_spelled_out(cli, filled):
    filled.close()
    result = cli("purge", HOSTILE, "--yes")
    assert result.code == 3
    assert not [raw for raw in RAW if raw in result.err]


def test_a_broker_that_is_no_file_is_not_purged(cli):
    result = cli("purge", "default", "--yes", "--db", "memory://")
    assert result.code == 2
    assert "not available on this broker" in result.err


# -- prune ------------------------------------------------------------------------------------------------


def test_prune_deletes_done_jobs_unless_other_states_are_named(cli, mixed, tmp_path):
    result = cli("prune", "--older-than", "0s", "--yes")
    assert (result.code, result.out, result.err) == (0, "1 job deleted.\n", "")
    assert "done" not in states(tmp_path)
    assert "dead" in states(tmp_path)
    result = cli(
        "prune", "--older-than", "0s", "--state", "cancelled,permanently-failed", "--yes", "--json"
    )
    assert result.json == {
        "schema": 1,
        "action": "prune",
        "dry_run": False,
        "states": ["cancelled", "permanently_failed"],
        "older_than_s": 0.0,
        "matched": 1,
        "deleted": 1,
    }
    assert set(states(tmp_path)) == {"failed", "pending", "later", "other"}


def test_prune_leaves_what_is_younger(cli, mixed, tmp_path):
    before = states(tmp_path)
    assert cli("prune", "--older-than", "1h", "--yes").out == "0 jobs deleted.\n"
    assert states(tmp_path) == before


def test_a_dry_run_of_prune_counts_and_deletes_nothing(cli, mixed, tmp_path):
    before = states(tmp_path)
    result = cli("prune", "--older-than", "0s", "--dry-run", "--utc")
    assert result.out.startswith("1 job in done that ended before 20")
    assert result.out.endswith(" UTC would be deleted\n")
    assert result.err == "Nothing was changed.\n"
    assert states(tmp_path) == before


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_prune_asks(mixed, tmp_path, answer, code):
    found, _, screen = on_a_terminal(
        "prune", "--older-than", "0s", "--state", "done", answer=answer, cwd=tmp_path
    )
    assert found == code
    assert b"Delete 1 job in done that ended before" in screen
    assert ("done" in states(tmp_path)) == bool(code)


def test_the_age_must_be_said(cli, mixed):
    result = cli("prune", "--yes")
    assert result.code == 2
    assert "--older-than" in result.err


@pytest.mark.parametrize("state", ["pending", "processing", "failed", "stalled", "dnoe"])
def test_states_that_are_no_end_are_refused(cli, mixed, tmp_path, state):
    before = states(tmp_path)
    result = cli("prune", "--older-than", "0s", "--state", state, "--yes")
    assert result.code == 2
    assert f"'{state}' is no state in which a job has ended" in result.err
    assert states(tmp_path) == before
