"""A disk filled to the last byte by others, when nobody has the queue open: what is said, and who waits.

SQLite has no room for its shared memory then, and calls that an I/O error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from sqlqueue_transport.sqlite_errors import translated
from tests.cli.conftest import program
from tests.support import small_disk, wait_until

APP = """
from sqlqueue import SqlQueue

app = SqlQueue("small")


@app.task(name="t")
def t():
    return None


app.periodic("tick", t.s(), every="1s")
"""


@pytest.fixture
def full(tmp_path, cli):
    """Give a queue with one job on a disk without a byte left, and the file that takes the room."""
    with small_disk(tmp_path / "small", megabytes=4) as directory:
        path = directory / "queue.db"
        assert cli("--db", path, "call", "t").code == 0
        assert not Path(f"{path}-shm").exists()
        with (
            (directory / "ballast").open("wb", buffering=0) as ballast,
            contextlib.suppress(OSError),
        ):
            while True:
                ballast.write(bytes(4096))
        assert os.statvfs(directory).f_bavail == 0
        yield path


@pytest.mark.parametrize("command", [["call", "t"], ["inspect", "stats"], ["requeue", "x"]])
def test_commands_say_that_the_disk_is_full_and_not_that_it_is_broken(cli, full, command):
    result = cli("--db", full, *command)
    assert (result.code, result.out) == (1, "")
    assert f"error: {full}: its disk is full (0 bytes free)" in result.err
    assert "free space and try again" in result.err
    assert "dmesg" not in result.err
    (full.parent / "ballast").unlink()
    assert cli("--db", full, "call", "t").code == 0
    assert cli("--db", full, "inspect", "stats", "--json").json["states"]["pending"] == 1 + 1


def test_doctor_looks_at_all_that_needs_no_file_and_has_a_failed_check_for_the_rest(cli, full):
    found = cli("--db", full, "doctor", "--json")
    assert found.code == 1
    levels = {one["name"]: one for one in found.json["items"]}
    assert {"sqlite", "libraries", "filesystem", "database"} == levels.keys()
    assert levels["filesystem"]["level"] == "fail"
    assert levels["filesystem"]["summary"].endswith(", 0.0 MB free")
    assert levels["database"]["level"] == "fail"
    assert "its disk is full" in levels["database"]["summary"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["worker", "-c", 1], ["worker", "-P", "solo"], ["beat"]])
def test_what_is_started_then_waits_and_goes_on_when_there_is_room(tmp_path, full, command):
    (tmp_path / "small_app.py").write_text(APP)
    log = tmp_path / "log"
    words = ["--db", full, *command, "-A", "small_app:app", "--log-format", "json"]
    process = program(*words, "--log-file", log, cwd=tmp_path)

    def events() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)["event"] for line in lines]

    try:
        wait_until(lambda: events().count("store_busy") >= 2, deadline_s=30)
        assert process.poll() is None
        assert set(events()) == {"store_busy"}
        (full.parent / "ballast").unlink()
        ready = "beat_started" if command == ["beat"] else "worker_started"
        wait_until(lambda: ready in events(), deadline_s=30)
    finally:
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 0, out + error


@pytest.mark.slow
def test_what_waits_for_room_ends_at_a_signal(tmp_path, full):
    (tmp_path / "small_app.py").write_text(APP)
    log = tmp_path / "log"
    words = ["--db", full, "worker", "-A", "small_app:app", "--log-file", log]
    process = program(*words, cwd=tmp_path)
    try:
        wait_until(lambda: log.exists() and "store_busy" in log.read_text(), deadline_s=30)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_an_io_error_of_a_disk_with_room_still_sends_to_the_kernels_log(tmp_path):
    error = sqlite3.OperationalError("disk I/O error")
    assert "dmesg" in str(translated(error, tmp_path / "queue.db"))
