"""`sqlqueue bench` measures on a file of its own, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli import schemas
from tests.cli.conftest import program
from tests.support import is_running, wait_until

QUICK = ("bench", "--jobs", 200, "-c", 2, "--payload", "1KB")


@pytest.mark.slow
def test_bench_measures_with_real_workers_and_removes_its_file(run, tmp_path):
    (tmp_path / "here").mkdir()
    result = run(*QUICK, "--durability", "process", "--dir", "here", "--json")
    assert result.code == 0, result.err
    document = result.json
    schemas.check("bench", document)
    assert document["settings"] == {
        "jobs": 200,
        "concurrency": 2,
        "payload_bytes": 1000,
        "durability": "process",
    }
    assert document["machine"]["directory"] == str(tmp_path / "here")
    figures = document["figures"]
    assert all(value > 0 for value in figures.values())
    assert figures["start_p50_ms"] <= figures["start_p95_ms"] <= figures["start_p99_ms"]
    assert "bench: 200 jobs of 1,000 bytes, 2 processes, durability process, on " in (result.err)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
def test_bench_goes_by_no_settings_of_others_and_shows_a_table(run, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text(
        'broker_url = "sqlqueue:///mine.db"\ntask_default_queue = "mine"\nworker_queues = ["mine"]\n'
    )
    result = run(*QUICK, "-q", env={"SQLQUEUE_WORKER_QUEUES": "other", "SQLQUEUE_DB": "my.db"})
    assert (result.code, result.err) == (0, "")
    assert "claimed, run and settled" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["sqlqueue.toml"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bench_that_is_stopped_leaves_no_file_and_no_worker(tmp_path, number):
    process = program("bench", "--jobs", 1_000_000, "--dir", ".", cwd=tmp_path)
    try:
        wait_until(lambda: list(tmp_path.glob("*/queue.db")), deadline_s=30, what="its queue")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number), err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench_stopped_while_workers_run_ends_them_first(tmp_path):
    process = program("bench", "--jobs", 3000, cwd=tmp_path)
    try:
        [log] = wait_until(
            lambda: list(tmp_path.glob("*/worker.log")), deadline_s=60, what="its worker"
        )
        [worker] = wait_until(lambda: children(process.pid), deadline_s=30, what="its process")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert not log.exists()
    assert not is_running(worker)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench_whose_worker_is_killed_says_so(tmp_path):
    process = program("bench", "--jobs", 3000, cwd=tmp_path)
    try:
        wait_until(lambda: list(tmp_path.glob("*/worker.log")), deadline_s=60, what="its worker")
        [worker] = wait_until(lambda: children(process.pid), deadline_s=30, what="its process")
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "error: the bench's worker was killed by signal 9." in err
    assert not list(tmp_path.iterdir())


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dir", "nowhere"], "--dir 'nowhere' is no directory."),
        (["--payload", "2MB"], "--payload: at most 1,000,000 bytes"),
        (["--payload", "much"], "--payload"),
        (["--durability", "eternal"], "'publish', 'full', 'process'"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_bench_refuses_what_makes_no_sense(cli, tmp_path, arguments, said):
    result = cli("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert not list(tmp_path.iterdir())
