"""What the console shows of a stamping job's file, and of what is no job's file."""

from __future__ import annotations

import os

import pytest

from sqlqueue.inspection import Call
from tasks.viewing import stamped_file


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def call(*args: object, **kwargs: object) -> Call:
    return Call(id="one", message_id=1, state="done", args=args, kwargs=kwargs)


def test_file_of_the_job_is_shown_whichever_way_it_was_named(jobs):
    (jobs / "a.txt").write_text("stamped\n")
    assert stamped_file(call("a.txt")) == stamped_file(call(name="a.txt")) == "stamped\n"


def test_nothing_outside_of_the_directory_is_shown(jobs, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (jobs / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", jobs / "hard")
    for name in ("../secret", str(tmp_path / "secret"), "link", "hard", 7, None):
        said = stamped_file(call(name))
        assert "refused" in said
        assert said != "secret"


def test_missing_file_and_missing_directory_are_told(jobs):
    assert "there is no such file" in stamped_file(call("none.txt"))
    jobs.rmdir()
    assert "cannot be read" in stamped_file(call("none.txt"))


def test_bytes_that_are_no_text_are_shown_as_such(jobs):
    (jobs / "a.txt").write_bytes(b"\xff")
    assert stamped_file(call("a.txt")) == "\ufffd"
