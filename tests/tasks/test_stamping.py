"""What a worker writes into a job file, and what it will not open."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import socket
import stat
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqlqueue.config import resolve
from sqlqueue.errors import ConfigError
from tasks import stamping
from tasks.app import JobSettings, read_job_settings
from tasks.stamping import (
    RefusedFile,
    append_stamp,
    has_stamp,
    read_job_file,
    stamped_jobs,
    written_id,
)

JOB = "019382a0-9e1c-7c3a-8b1e-3f2d5a6b7c8d"
NOW = datetime(2026, 11, 22, 5, 11, 7, 123456, tzinfo=timezone.utc)
CONTENT = b"8d1f0c\n77aa01\n"
LINE = f"2026-11-22T05:11:07.123Z job={JOB} attempt=1 duration_s=11.312 worker=worker-1\n".encode()

spawning = multiprocessing.get_context("spawn")


@pytest.fixture
def jobs(tmp_path) -> Path:
    directory = tmp_path / "jobs"
    directory.mkdir()
    return directory


@pytest.fixture
def outside(tmp_path) -> Path:
    """Make a file that must never change."""
    file = tmp_path / "outside.txt"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def job_file(jobs) -> Path:
    file = jobs / "job-producer-1.txt"
    file.write_bytes(CONTENT)
    return file


def append(directory, name, *, job_id=JOB, attempt=1, duration_s=11.3124, worker="worker-1"):
    return append_stamp(
        directory,
        name,
        job_id=job_id,
        attempt=attempt,
        duration_s=duration_s,
        worker=worker,
        now=NOW,
    )


# ------------------------------------------------------------------------------------ the line


def test_stamp_is_one_line_behind_what_the_file_had(jobs, job_file):
    assert append(jobs, job_file.name)
    assert job_file.read_bytes() == CONTENT + LINE


def test_stamp_tells_its_time_in_utc_whatever_zone_now_has(jobs, job_file):
    append_stamp(
        jobs,
        job_file.name,
        job_id=JOB,
        attempt=1,
        duration_s=11.3124,
        worker="worker-1",
        now=NOW.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
    )
    assert job_file.read_bytes() == CONTENT + LINE


def test_whole_second_is_written_with_its_milliseconds(jobs, job_file):
    append_stamp(
        jobs,
        job_file.name,
        job_id=JOB,
        attempt=2,
        duration_s=0,
        worker="w",
        now=NOW.replace(microsecond=0),
    )
    assert job_file.read_text().endswith(
        f"\n2026-11-22T05:11:07.000Z job={JOB} attempt=2 duration_s=0.000 worker=w\n"
    )


def test_absolute_path_beneath_the_directory_is_accepted(jobs, job_file):
    assert append(jobs, str(job_file))
    assert job_file.read_bytes() == CONTENT + LINE


def test_absolute_path_is_accepted_for_a_directory_given_relatively(jobs, job_file, monkeypatch):
    monkeypatch.chdir(jobs.parent)
    assert append(Path("jobs"), str(job_file))


def test_absolute_path_is_accepted_in_both_spellings_of_a_linked_way_to_the_directory(
    jobs, job_file, tmp_path
):
    (tmp_path / "way").symlink_to(tmp_path)
    assert append(tmp_path / "way" / "jobs", str(job_file))
    assert not append(tmp_path / "way" / "jobs", str(tmp_path / "way" / "jobs" / job_file.name))


def test_file_in_a_directory_of_the_directory_is_stamped(jobs):
    (jobs / "a" / "b").mkdir(parents=True)
    (jobs / "a" / "b" / "file").write_bytes(b"")
    assert append(jobs, "a/b/file")
    assert (jobs / "a" / "b" / "file").read_bytes() == LINE


# ------------------------------------------------------------------------ one stamp per job id


def test_second_delivery_sees_the_stamp_of_the_first_and_writes_nothing(jobs, job_file):
    append(jobs, job_file.name)  # ... and its worker dies before the ack
    assert has_stamp(jobs, job_file.name, job_id=JOB)
    assert not append(jobs, job_file.name, attempt=2, worker="worker-2")
    assert job_file.read_bytes() == CONTENT + LINE


def test_stamp_is_flushed_when_it_was_written_and_when_it_was_found(jobs, job_file, monkeypatch):
    flushed = []
    monkeypatch.setattr(stamping.os, "fsync", lambda file: flushed.append(os.pread(file, 1000, 0)))
    append(jobs, job_file.name)
    append(jobs, job_file.name)  # the first writer may have died before its flush
    assert flushed == [CONTENT + LINE] * 2


def test_each_job_id_has_its_own_stamp_in_one_file(jobs, job_file):
    longer = JOB + "0"
    assert append(jobs, job_file.name, job_id=longer)
    assert append(jobs, job_file.name, job_id=JOB)
    assert stamped_jobs(job_file.read_bytes()) == [longer, JOB]


def test_torn_last_line_is_closed_before_the_stamp(jobs, job_file):
    job_file.write_bytes(CONTENT + b"2026-11-22T05:11:06.9")
    assert append(jobs, job_file.name)
    assert job_file.read_bytes() == CONTENT + b"2026-11-22T05:11:06.9\n" + LINE


@pytest.mark.parametrize("kept", range(len(LINE)))
def test_own_stamp_torn_anywhere_ends_as_exactly_one_whole_stamp(jobs, job_file, kept):
    job_file.write_bytes(CONTENT + LINE[:kept])
    append(jobs, job_file.name, attempt=2)
    append(jobs, job_file.name, attempt=3)
    assert stamped_jobs(job_file.read_bytes()) == [JOB]


def test_mention_of_the_job_in_other_text_is_no_stamp(jobs, job_file):
    job_file.write_bytes(f"see job={JOB} attempt=1\n".encode())
    assert append(jobs, job_file.name)
    assert stamped_jobs(job_file.read_bytes()) == [JOB]


@given(job_id=st.text(), worker=st.text())
@example(job_id="x\n2026-11-22T05:11:07.123Z job=y attempt=1 duration_s=1.000 worker=z", worker="")
@example(job_id="", worker="a b\r\n\x1b[31m")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_hostile_job_id_or_worker_name_writes_one_line_and_one_stamp(jobs, job_id, worker):
    (jobs / "file").write_bytes(b"")
    assert append(jobs, "file", job_id=job_id, worker=worker)
    assert not append(jobs, "file", job_id=job_id, worker=worker)
    content = (jobs / "file").read_bytes()
    assert content.count(b"\n") == 1
    assert content.isascii()
    assert stamped_jobs(content) == [written_id(job_id)]


@given(st.text(), st.text())
@example("", "%")
@example("a b", "a%20b")
@example("\ud800", "\\ud800")
def test_different_job_ids_are_written_differently(one, other):
    assert (written_id(one) == written_id(other)) == (one == other)


def _append_when_told(directory, name, start, answers):
    start.wait(30)
    answers.put(append(directory, name))


def test_two_processes_appending_at_once_write_one_stamp(jobs, job_file):
    start = spawning.Barrier(2)
    answers = spawning.Queue()
    processes = [
        spawning.Process(target=_append_when_told, args=(jobs, job_file.name, start, answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    try:
        assert sorted(answers.get(timeout=30) for _ in processes) == [False, True]
    finally:
        for process in processes:
            process.join(30)
    assert job_file.read_bytes() == CONTENT + LINE


def test_many_threads_appending_at_once_write_one_stamp_each_job(jobs, job_file):
    job_ids = [f"job-{number % 5}" for number in range(20)]
    threads = [
        threading.Thread(target=append, args=(jobs, job_file.name), kwargs={"job_id": job_id})
        for job_id in job_ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(stamped_jobs(job_file.read_bytes())) == sorted(set(job_ids))


def test_file_that_another_process_sits_on_is_an_error_to_retry(jobs, job_file, monkeypatch):
    monkeypatch.setattr(stamping, "_LOCK_WAIT_S", 0.05)
    with job_file.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            append(jobs, job_file.name)
    assert job_file.read_bytes() == CONTENT
    assert append(jobs, job_file.name)


# ------------------------------------------------------------------------------------ refusals


def refusal(directory, name) -> str:
    """Return the reason of a refusal, the same for looking and for stamping."""
    with pytest.raises(RefusedFile) as refused:
        append(directory, name)
    with pytest.raises(RefusedFile) as looked:
        has_stamp(directory, name, job_id=JOB)
    with pytest.raises(RefusedFile) as read:
        read_job_file(directory, name)
    assert str(refused.value) == str(looked.value) == str(read.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    return refused.value.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.txt", r"'\.\.'"),
        ("sub/../../outside.txt", r"'\.\.'"),
        ("..", r"'\.\.'"),
        ("", "empty"),
        (".", "empty part"),
        ("/", "outside"),
        ("sub//file", "empty part"),
        ("sub/", "empty part"),
        ("file\0.txt", "NUL"),
        ("file\n", "newline"),
        ("\x1b[2J", "control character"),
        ("x" * 256, "too long"),
        ("ü" * 128, "too long"),
        ("x/" * 3000 + "x", "too long"),
        ("\ud800", "Unicode"),
        ("missing.txt", "no such file"),
        ("missing/file.txt", "no such file"),
        ("/etc/passwd", "outside"),
        (7, "text"),
        (None, "text"),
        (["file"], "text"),
    ],
)
def test_name_that_is_no_file_beneath_the_directory_is_refused(jobs, outside, name, reason):
    (jobs / "sub").mkdir()
    (jobs / "sub" / "file").write_bytes(CONTENT)
    assert re.search(reason, refusal(jobs, name))
    assert outside.read_bytes() == CONTENT
    assert (jobs / "sub" / "file").read_bytes() == CONTENT


def test_absolute_path_outside_is_refused(jobs, outside):
    assert "outside" in refusal(jobs, str(outside))
    assert "outside" in refusal(jobs, str(jobs))
    assert ".." in refusal(jobs, f"{jobs}/../{outside.name}")
    assert outside.read_bytes() == CONTENT


def test_directory_with_the_same_beginning_is_outside(jobs, tmp_path):
    (tmp_path / "jobs2").mkdir()
    (tmp_path / "jobs2" / "file").write_bytes(CONTENT)
    assert "outside" in refusal(jobs, str(tmp_path / "jobs2" / "file"))


def test_symbolic_link_is_refused_wherever_it_leads(jobs, job_file, outside):
    (jobs / "out").symlink_to(outside)
    (jobs / "in").symlink_to(job_file.name)
    (jobs / "nowhere").symlink_to("nothing")
    for name in ("out", "in", "nowhere"):
        assert "symbolic link" in refusal(jobs, name)
    assert outside.read_bytes() == job_file.read_bytes() == CONTENT


def test_symbolic_link_on_the_way_is_refused(jobs, outside):
    (jobs / "sub").symlink_to(outside.parent)
    assert "link" in refusal(jobs, f"sub/{outside.name}")
    assert "link" in refusal(jobs, f"{jobs}/sub/{outside.name}")
    assert outside.read_bytes() == CONTENT


def test_file_on_the_way_is_refused(jobs, job_file):
    assert "no directory" in refusal(jobs, f"{job_file.name}/file")


def test_hard_link_is_refused(jobs, outside):
    os.link(outside, jobs / "file")
    assert "hard links" in refusal(jobs, "file")
    assert outside.read_bytes() == CONTENT


def test_fifo_is_refused_without_waiting_for_its_other_end(jobs):
    os.mkfifo(jobs / "fifo")
    assert "not a regular file" in refusal(jobs, "fifo")


def test_directory_is_refused(jobs):
    (jobs / "sub").mkdir()
    assert "directory" in refusal(jobs, "sub")


def test_socket_is_refused(jobs, monkeypatch):
    monkeypatch.chdir(jobs)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert "not a regular file" in refusal(jobs, "socket")


def test_device_is_refused():
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert "not a regular file" in refusal(Path("/dev"), "null")


def test_file_too_large_to_be_a_job_file_is_refused_unread(jobs, job_file):
    os.truncate(job_file, 1 << 40)  # sparse
    assert "larger" in refusal(jobs, job_file.name)


def test_kind_of_file_is_judged_on_what_was_opened(jobs, job_file, monkeypatch):
    """The name showed a plain file, and leads to a FIFO by the time it is opened."""
    plain = job_file.stat()
    os.mkfifo(jobs / "fifo")
    monkeypatch.setattr(stamping.os, "stat", lambda *_args, **_options: plain)
    assert "not a regular file" in refusal(jobs, "fifo")


def test_name_that_became_a_link_after_the_look_at_it_is_not_followed(
    jobs, job_file, outside, monkeypatch
):
    plain = job_file.stat()
    (jobs / "link").symlink_to(outside)
    monkeypatch.setattr(stamping.os, "stat", lambda *_args, **_options: plain)
    assert "symbolic link" in refusal(jobs, "link")
    assert outside.read_bytes() == CONTENT


def test_directory_swapped_for_a_link_at_any_moment_lets_nothing_out(jobs, tmp_path):
    """One thread swaps jobs/sub with a link to outside as fast as it can, another one stamps."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "file").write_bytes(CONTENT)
    (jobs / "sub").mkdir()
    (jobs / "sub" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(outside)
    has_ended = threading.Event()

    def swap():
        while not has_ended.is_set():
            (jobs / "sub").rename(tmp_path / "real")
            (tmp_path / "link").rename(jobs / "sub")
            (jobs / "sub").rename(tmp_path / "link")
            (tmp_path / "real").rename(jobs / "sub")

    swapper = threading.Thread(target=swap)
    swapper.start()
    results = {True: 0, False: 0}
    deadline = time.monotonic() + 60
    try:
        # Until it went both ways often enough to have met the swaps.
        while min(results.values()) < 100 and time.monotonic() < deadline:
            try:
                append(jobs, "sub/file", job_id=f"job-{sum(results.values())}")
            except RefusedFile:
                results[False] += 1
            else:
                results[True] += 1
    finally:
        has_ended.set()
        swapper.join(30)
    assert min(results.values()) >= 100
    assert (outside / "file").read_bytes() == CONTENT
    assert len(stamped_jobs((jobs / "sub" / "file").read_bytes())) == results[True]


_parts = st.sampled_from(
    [*"\0\n~.", "", "..", "sub", "file", "link", "outside.txt", "hard", "fifo", "x" * 300]
)
_names = st.one_of(
    st.text(),
    st.lists(_parts, max_size=6).map("/".join),
    st.lists(_parts, max_size=6).map(lambda parts: "/" + "/".join(parts)),
)


@given(name=_names)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_name_only_plain_files_beneath_the_directory_change(jobs, outside, name):
    (jobs / "sub").mkdir(exist_ok=True)
    plain = {jobs / "file", jobs / "sub" / "file"}
    for file in plain:
        file.write_bytes(CONTENT)
    if not (jobs / "link").is_symlink():
        (jobs / "link").symlink_to("..")
        (jobs / "sub" / "outside.txt").symlink_to(outside)
        os.link(outside, jobs / "hard")
        os.mkfifo(jobs / "fifo")
    try:
        append(jobs, name)
    except RefusedFile:
        assert all(file.read_bytes() == CONTENT for file in plain)
    else:
        assert name in {"file", "sub/file"}
    assert outside.read_bytes() == CONTENT


# ------------------------------------------------------------------------- trouble that may pass


def test_missing_jobs_directory_is_an_error_to_retry(tmp_path):
    with pytest.raises(FileNotFoundError):
        append(tmp_path / "jobs", "file")


def test_linked_jobs_directory_is_an_error_that_says_what_to_set(jobs, job_file, tmp_path):
    (tmp_path / "link").symlink_to(jobs)
    with pytest.raises(NotADirectoryError, match=r"set app\.directory"):
        append(tmp_path / "link", job_file.name)
    assert job_file.read_bytes() == CONTENT


@pytest.fixture
def unprivileged():
    """Give a directory that everybody reaches, and drop root's rights where the test has them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "file").write_bytes(CONTENT)
        user = os.geteuid()
        if user == 0:
            for path in (directory, directory / "file"):
                os.chown(path, 65534, -1)
            os.seteuid(65534)
        try:
            yield directory
        finally:
            os.seteuid(user)
            directory.chmod(0o755)


def test_read_only_file_is_an_error_to_retry(unprivileged):
    (unprivileged / "file").chmod(0o400)
    with pytest.raises(PermissionError):
        has_stamp(unprivileged, "file", job_id=JOB)
    with pytest.raises(PermissionError):
        append(unprivileged, "file")
    (unprivileged / "file").chmod(0o600)
    assert append(unprivileged, "file")


def test_unreachable_jobs_directory_is_an_error_to_retry(unprivileged):
    unprivileged.chmod(0)
    with pytest.raises(PermissionError):
        append(unprivileged, "file")
    unprivileged.chmod(0o500)  # nothing is made in it, so it may stay read-only
    assert append(unprivileged, "file")


def test_write_that_was_cut_short_is_an_error_and_the_next_one_repairs_it(
    jobs, job_file, monkeypatch
):
    """The disk takes the beginning of the line only."""
    write = os.write
    with monkeypatch.context() as full_disk:
        full_disk.setattr(stamping.os, "write", lambda file, data: write(file, data[:40]))
        with pytest.raises(OSError, match="40 of"):
            append(jobs, job_file.name)
    assert append(jobs, job_file.name, attempt=2)
    assert stamped_jobs(job_file.read_bytes()) == [JOB]


def test_nothing_stays_open(jobs, job_file):
    before = set(Path("/dev/fd").iterdir())
    append(jobs, job_file.name)
    for name in ("missing", "../x", "missing/x", "sub/x"):
        with pytest.raises(RefusedFile):
            append(jobs, name)
    assert set(Path("/dev/fd").iterdir()) == before


# ------------------------------------------------------------------------------------ settings


def test_settings_have_the_cadence_of_the_founding_job():
    assert read_job_settings({}) == JobSettings(Path("jobs"), 5.0, 7.0, 15.0, 1)


def test_conf_file_says_what_the_code_would_do_without_it():
    conf = Path(__file__).parents[2] / "conf"
    settings = resolve({}, config_file=conf / "sqlqueue.toml", environ={}, command_line={}).settings
    assert read_job_settings(settings.app) == JobSettings()
    for name in ("supervisord.conf", "systemd/sqlqueue-worker@.service"):
        [seconds] = re.findall(
            r"^(?:stopwaitsecs|TimeoutStopSec)=(4\d)$", (conf / name).read_text(), re.MULTILINE
        )
        assert int(seconds) > settings.worker_grace + 5


def test_settings_from_the_environment_are_text():
    assert read_job_settings(
        {
            "directory": "elsewhere",
            "every": "5s",
            "min_seconds": "0.1",
            "max_seconds": "0.5",
            "producers": "3",
        }
    ) == JobSettings(Path("elsewhere"), 5.0, 0.1, 0.5, 3)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"directry": "jobs"}, "Did you mean 'directory'"),
        ({"directory": ""}, "app.directory"),
        ({"directory": 7}, "app.directory"),
        ({"every": 0}, "app.every"),
        ({"every": "soon"}, "app.every"),
        ({"every": True}, "app.every"),
        ({"min_seconds": -1}, "app.min_seconds"),
        ({"min_seconds": 20}, "above app.max_seconds"),
        ({"max_seconds": float("nan")}, "app.max_seconds"),
        ({"max_seconds": [1]}, "app.max_seconds"),
        ({"producers": 0}, "app.producers"),
        ({"producers": 1.5}, "app.producers"),
        ({"producers": True}, "app.producers"),
        ({"producers": "9" * 5000}, "app.producers"),
        ({"producers": 10**5000}, "app.producers"),
    ],
)
def test_setting_that_cannot_be_meant_is_refused_by_its_name(table, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_job_settings(table)
