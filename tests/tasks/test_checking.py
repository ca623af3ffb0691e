"""What doctor says of jobs and their files."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sqlqueue.inspection import Inspection
from tasks import checking
from tasks.app import JobSettings
from tasks.checking import file_problems, stamped_files
from tasks.stamping import STAMP_TASK, append_stamp
from tests.cli.filling import Filled

NOW = datetime(2026, 11, 22, 5, 11, 7, tzinfo=timezone.utc)


@pytest.fixture
def jobs(tmp_path) -> Path:
    directory = tmp_path / "jobs"
    directory.mkdir()
    return directory


def job_file(directory, name, *, stamps=()) -> str:
    (directory / name).write_bytes(b"8d1f0c\n")
    for job_id in stamps:
        append_stamp(directory, name, job_id=job_id, attempt=1, duration_s=1.0, worker="w", now=NOW)
    return name


def problems(directory, *jobs) -> list[str]:
    return list(file_problems(directory, jobs))


def test_healthy_jobs_have_no_problems(jobs):
    assert not problems(
        jobs,
        ("done", "done", job_file(jobs, "a", stamps=["done"])),
        ("waiting", "pending", job_file(jobs, "b")),
        ("stamped but not settled", "processing", job_file(jobs, "c", stamps=["other"])),
        ("again", "failed", job_file(jobs, "d")),
    )


def test_done_job_without_a_stamp_is_told(jobs):
    [problem] = problems(jobs, ("one", "done", job_file(jobs, "a", stamps=["other"])))
    assert problem == "job one (done): its file 'a' carries no stamp of it"


@pytest.mark.parametrize("state", ["done", "processing", "permanently_failed"])
def test_two_stamps_of_one_job_are_told(jobs, state):
    name = job_file(jobs, "a", stamps=["one"])
    line = (jobs / name).read_bytes().splitlines(keepends=True)[-1]
    with (jobs / name).open("ab") as file:
        file.write(line)
    [problem] = problems(jobs, ("one", state, name))
    assert problem == f"job one ({state}): its file 'a' carries 2 stamps of it"


@pytest.mark.parametrize("state", ["pending", "done", "failed", "permanently_failed"])
def test_missing_file_is_told(jobs, state):
    [problem] = problems(jobs, ("one", state, "missing"))
    assert problem == f"job one ({state}): its file 'missing' is missing"


def test_job_that_will_not_run_needs_no_file(jobs):
    assert not problems(jobs, ("one", "cancelled", "missing"), ("two", "expired", "missing"))


@pytest.mark.parametrize("name", ["../x", "fifo", None, 7, ["a"]])
def test_refused_name_is_told_while_its_dead_letter_does_not_tell_it(jobs, name):
    os.mkfifo(jobs / "fifo")
    assert len(problems(jobs, ("one", "pending", name))) == 1
    assert not problems(jobs, ("one", "permanently_failed", name))


def test_missing_directory_is_one_problem(tmp_path):
    [problem] = problems(tmp_path / "jobs", ("one", "pending", "a"), ("two", "pending", "b"))
    assert "jobs directory" in problem


def test_hostile_names_stay_on_one_line(jobs):
    for problem in problems(jobs, ("one", "pending", "\x1b[31m\n" * 1000), ("two", "done", "a\rb")):
        assert problem.isprintable()
        assert len(problem) < 400


@pytest.fixture
def told(jobs, tmp_path, monkeypatch):
    """Return what `doctor` is told of the jobs that a function puts into a queue."""
    monkeypatch.setattr(checking, "job_settings", lambda: JobSettings(directory=jobs))

    def told(fill) -> list[str]:
        filled = Filled(tmp_path / "queue.db")
        backend = filled.backend()
        try:
            fill(filled)
            return list(stamped_files(Inspection(backend)))
        finally:
            backend.close()
            filled.close()

    return told


def test_doctor_compares_the_queue_with_the_files(jobs, told):
    def fill(filled):
        job_file(jobs, "a", stamps=["good"])
        filled.done(task=STAMP_TASK, job_id="good", args=("a",))
        job_file(jobs, "b", stamps=["by-keyword"])
        filled.done(task=STAMP_TASK, job_id="by-keyword", args=(), kwargs={"name": "b"})
        filled.done(task=STAMP_TASK, job_id="bare", args=(job_file(jobs, "c"),))
        filled.done(task="another task", args=("missing",))

    assert told(fill) == ["job bare (done): its file 'c' carries no stamp of it"]


def test_dead_letter_that_nobody_can_read_is_no_problem_of_the_files(jobs, told):
    def fill(filled):
        filled.dead("UndecodableMessage", task=STAMP_TASK, body=b"nonsense")

    assert not told(fill)


def test_waiting_job_without_a_name_is_told(jobs, told):
    def fill(filled):
        filled.publish(task=STAMP_TASK, args=())

    assert len(told(fill)) == 1
