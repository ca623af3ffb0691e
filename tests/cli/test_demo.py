"""`sqlqueue demo`: the whole thing, as somebody sees it who has just installed it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli import schemas
from tests.cli.conftest import program
from tests.support import wait_until

pytest.importorskip("sqlqueue.demo_tasks", reason="sqlqueue is not installed: make setup")

QUICK = "--every 0.1s --min-seconds 0.05 --max-seconds 0.2 --concurrency 2".split()
STAMP = re.compile(
    r"^\S+Z job=(\S+) attempt=1 duration_s=\d+\.\d{3} worker=worker-demo/\d+$", re.MULTILINE
)


def stamps(directory: Path) -> dict[str, list[str]]:
    """Return the job ids stamped into each file."""
    return {file.name: STAMP.findall(file.read_text()) for file in directory.glob("job-*.txt")}


def descendants(pid: int) -> list[int]:
    """Return the living processes whose ancestor a process is, or was until it died."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text()
        except OSError:
            continue
        name_end = status.rindex(")")
        state, parent = status[name_end + 2 :].split()[:2]
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found, todo = [], [pid]
    while todo:
        above = todo.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        todo += below
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    if process.poll() is None:
        process.send_signal(number)
    return process.communicate(timeout=60)


def test_so_many_files_are_made_each_stamped_once(run, tmp_path):
    result = run("demo", "--count", 6, *QUICK, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out.splitlines()[-1])
    schemas.check("demo", summary)
    assert (summary["schema"], summary["done"]) == (1, 6)
    assert (summary["failed"], summary["permanently_failed"]) == (0, 0)
    assert 0 < summary["seconds"] < 60
    found = stamps(tmp_path / "jobs")
    assert len(found) == 6
    assert all(len(ids) == 1 for ids in found.values())
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "producer.log",
        "worker-demo.log",
    }
    assert run("doctor", "-A", "sqlqueue.demo_tasks.app:app").code == 0


def test_second_run_counts_its_own_jobs_only(run, tmp_path):
    for _ in range(2):
        result = run("demo", "--count", 2, *QUICK)
        assert result.code == 0, result.err
        assert result.out.startswith("2 done in ")
    assert len(stamps(tmp_path / "jobs")) == 4


def test_several_producers_and_other_places(run, tmp_path):
    result = run(
        *("demo", "--count", 4, *QUICK, "--producers", 2, "--dir", "files", "--db", "d/x.db"),
    )
    assert result.code == 2  # the directory of a database is never made
    (tmp_path / "d").mkdir()
    result = run(
        *("demo", "--count", 4, *QUICK, "--producers", 2, "--dir", "files", "--db", "d/x.db"),
    )
    assert result.code == 0, result.err
    found = stamps(tmp_path / "files")
    assert len(found) == 4
    assert {name[:14] for name in found} == {"job-producer-1", "job-producer-2"}
    assert not (tmp_path / "queue.db").exists()


def test_settings_of_another_application_are_left_alone(run, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text(
        'broker_url = "sqlqueue:///precious.db"\nworker_queues = ["mail"]\n'
        '[app]\ncolor = "red"\n[beat.tidy]\ntask = "shop.tidy"\nevery = "0.1s"\n'
    )
    env = {"SQLQUEUE_APP_COLOR": "red", "SQLQUEUE_APP": "shop:app", "SQLQUEUE_WORKER_QUEUES": "x"}
    result = run("demo", "--count", 1, *QUICK, env=env)
    assert result.code == 0, result.err
    assert not (tmp_path / "precious.db").exists()
    assert set(run("inspect", "schedule", "--db", "queue.db", "-o", "jsonl").out.splitlines())
    assert "tidy" not in run("inspect", "schedule", "--db", "queue.db").out


def test_settings_file_of_its_own_counts(run, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "sqlqueue.toml").write_text(
        'broker_url = "sqlqueue:///mine.db"\nlog_dir = "records"\n'
        '[app]\ndirectory = "papers"\nevery = "0.1s"\nmin_seconds = 0\nmax_seconds = 0.1\n'
    )
    result = run("demo", "--count", 2)
    assert result.code == 0, result.err
    assert len(stamps(tmp_path / "papers")) == 2
    assert (tmp_path / "mine.db").exists()
    assert (tmp_path / "records" / "producer.log").exists()


def test_queue_with_jobs_of_others_is_refused(run, tmp_path):
    run("call", "shop.mail", "[1]")
    result = run("demo", "--count", 1, *QUICK)
    assert (result.code, result.out) == (2, "")
    assert "error: queue.db holds jobs of another application, such as 'shop.mail'" in result.err
    assert not (tmp_path / "jobs").exists()
    assert run("inspect", "stats", "--json").json["states"]["pending"] == 1


def test_signal_lets_running_jobs_finish(tmp_path):
    process = program(
        *("demo", "--every", "0.2s", "--min-seconds", "1", "--max-seconds", "1", "--json"),
        cwd=tmp_path,
    )
    wait_until(lambda: len(list((tmp_path / "jobs").glob("job-*.txt"))) >= 3, deadline_s=30)
    below = descendants(process.pid)
    out, err = end(process, signal.SIGINT)
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["done"] >= 1
    assert summary["done"] == sum(map(len, stamps(tmp_path / "jobs").values()))
    assert not any(map(is_alive, below))


def test_second_signal_stops_at_once_and_loses_nothing(run, tmp_path):
    process = program(
        *("demo", "--every", "0.2s", "--min-seconds", "60", "--max-seconds", "60"), cwd=tmp_path
    )
    log = tmp_path / "logs" / "worker-demo.log"
    wait_until(lambda: log.exists() and log.read_text().count("job_started") >= 2, deadline_s=30)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "worker_draining" in log.read_text(), deadline_s=30)
    _, err = end(process, signal.SIGINT)
    assert process.returncode == 130, err
    states = run("inspect", "stats", "--json").json["states"]
    assert states["processing"] == 0
    assert states["pending"] == len(stamps(tmp_path / "jobs"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux ends orphans")
def test_killed_demo_takes_its_processes_along_in_order(run, tmp_path):
    process = program(
        *("demo", "--every", "0.2s", "--min-seconds", "0.5", "--max-seconds", "0.5"), cwd=tmp_path
    )
    wait_until(lambda: len(list((tmp_path / "jobs").glob("job-*.txt"))) >= 2, deadline_s=30)
    below = descendants(process.pid)
    assert len(below) >= 3
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_alive, below)), deadline_s=30)
    assert run("inspect", "stats", "--json").json["states"]["processing"] == 0


def test_worker_that_dies_ends_the_demo_with_the_end_of_its_log(tmp_path):
    process = program(
        *("demo", "--every", "0.2s", "--min-seconds", "5", "--max-seconds", "5"), cwd=tmp_path
    )
    log = tmp_path / "logs" / "worker-demo.log"
    wait_until(lambda: log.exists() and "job_started" in log.read_text(), deadline_s=30)
    started = json.loads(log.read_text().splitlines()[0])
    assert started["event"] == "worker_started"
    os.kill(started["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error: the demo's worker was killed by signal 9." in err
    assert '"event": "job_started"' in err
    assert not descendants(process.pid)


def test_progress_is_told_in_lines_where_there_is_no_terminal(run):
    result = run("demo", "--count", 2, *QUICK)
    assert "\x1b" not in result.err
    assert result.err.startswith("demo: 2 files, one every 0.1s in jobs/")
    assert run("demo", "--count", 1, *QUICK, "-q").err == ""


def test_terminal_gets_a_live_picture(tmp_path):
    ours, theirs = pty.openpty()
    process = program(
        *("demo", "--count", "3", *QUICK),
        cwd=tmp_path,
        stderr=theirs,
        env={"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65_536):
            seen += piece
    except OSError:  # Linux: nobody has the other end any more
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith("3 done in ")
    text = seen.decode()
    for expected in ("sqlqueue demo", "Working", "Stamped", "3 of 3", "job-producer-1-", "stopped"):
        assert expected in text
