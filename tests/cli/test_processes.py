"""`sqlqueue worker` and `sqlqueue beat`, as an operator starts them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import program
from tests.support import wait_until

BEAT = """
from sqlqueue import SqlQueue, Signature

app = SqlQueue("clock")


@app.task(name="clock.tick")
def tick():
    pass


@app.producer(every=0.05, name="fast")
def produce(tick):
    yield Signature("clock.tick")
"""


@pytest.fixture
def clock(tmp_path):
    (tmp_path / "clockwork.py").write_text(BEAT)
    return "clockwork:app"


def events(path):
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_worker_runs_what_is_there_and_stops(run, shop, tmp_path):
    ids = [run("call", "shop.add", f"[{n}, 1]", "-A", shop).out.strip() for n in range(3)]
    result = run("worker", "-A", shop, "--burst", "-c", 2, "-n", "w1")
    assert (result.code, result.out) == (0, "")
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert [line["event"] for line in lines].count("job_done") == 3
    for number, job_id in enumerate(ids):
        document = run("inspect", "job", job_id, "--json").json
        assert (document["state"], document["result"]) == ("done", number + 1)
        assert document["worker"].startswith("w1/")


def test_worker_takes_its_options_before_the_application_is_imported(run, tmp_path):
    (tmp_path / "asked.py").write_text(
        "from sqlqueue import SqlQueue\n"
        "app = SqlQueue('asked', worker_concurrency=7, visibility_timeout=7)\n"
        "conf = app.conf\n"
        "print(conf.worker_concurrency, conf.worker_queues, conf.visibility_timeout,"
        " conf.task_time_limit, conf.worker_grace, conf.broker_url, conf.log_level,"
        " dict(conf.worker_queue_weights))\n"
    )
    result = run(
        *("worker", "-A", "asked", "-c", 2, "-Q", "a,b", "--visibility-timeout", "10m"),
        *("--time-limit", "90", "--grace", "1m", "--db", "x.db", "--burst", "-P", "solo", "-v"),
        *("--weights", "a=6,b=1"),
    )
    assert result.code == 0, result.err
    shown = "2 ('a', 'b') 600.0 90.0 60.0 sqlqueue:///x.db debug {'a': 6.0, 'b': 1.0}"
    assert set(result.out.splitlines()) == {shown}


def test_worker_with_a_weight_for_a_queue_nobody_knows_does_not_start(run, shop):
    result = run("worker", "-A", shop, "--weights", "smus=6", "--burst")
    assert (result.code, result.out) == (2, "")
    assert "names the queue 'smus'" in result.err
    assert "Did you mean 'sums'?" in result.err


def test_worker_with_weights_runs_what_lies_in_every_queue(run, shop):
    ids = [run("call", "shop.add", "[1, 1]", "-A", shop).out.strip() for _ in range(2)]
    other = run("call", "shop.fail", "[]", "-A", shop).out.strip()
    assert run("worker", "-A", shop, "--weights", "sums=9", "--burst", "-c", 1).code == 0
    states = [run("inspect", "job", one, "--json").json["state"] for one in (*ids, other)]
    assert states == ["done", "done", "permanently_failed"]


def test_worker_stops_after_so_many_jobs(run, shop):
    for _ in range(5):
        run("call", "shop.add", "[1, 1]", "-A", shop)
    assert run("worker", "-A", shop, "--max-jobs", 2, "-c", 1).code == 0
    assert run("inspect", "stats", "--json").json["states"]["done"] == 2


def test_log_file_gets_its_directory_and_everything_said(run, shop, tmp_path):
    result = run("worker", "-A", shop, "--burst", "--log-file", "deep/er/w.log")
    assert (result.code, result.out, result.err) == (0, "", "")
    log = tmp_path / "deep" / "er" / "w.log"
    assert events(log)[0] == "worker_started"
    assert log.stat().st_mode & 0o077 == 0


def test_log_directory_gets_a_file_for_each_process(run, shop, clock, tmp_path):
    env = {"SQLQUEUE_LOG_DIR": "logs"}
    run("worker", "-A", shop, "--burst", "-n", "worker-1", env=env)
    run("worker", "-A", shop, "--burst", "-n", "red", env=env)
    run("beat", "-A", clock, "--max-ticks", 1, env=env)
    run("beat", "-A", clock, "--max-ticks", 1, "-n", "b2", env=env)
    found = {path.name for path in (tmp_path / "logs").iterdir()}
    assert found == {"worker-1.log", "worker-red.log", "beat.log", "beat-b2.log"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker", "-A", "nowhere:app"], "error: cannot import app 'nowhere:app'"),
        (["beat", "-A", "nowhere:app"], "error: cannot import app 'nowhere:app'"),
        (["beat"], "error: which application?"),
    ],
)
def test_application_that_cannot_be_had_is_exit_2(run, arguments, said):
    result = run(*arguments, "--log-file", "w.log")
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err


def test_beat_without_a_schedule_says_so_and_waits_for_what_is_added(run, shop, tmp_path):
    process = program("beat", "-A", shop, "--max-ticks", 1, cwd=tmp_path)
    try:
        line = next(line for line in process.stderr if "schedule_empty" in line)
        assert "sqlqueue schedule add" in json.loads(line)["hint"]
        added = run("schedule", "add", "e", "shop.add", "[1]", "--every", "0.1s", "-A", shop)
        assert added.code == 0
        _, said = process.communicate(timeout=30)
        assert (process.returncode, "tick_enqueued" in said) == (0, True)
    finally:
        process.kill()
        process.communicate()
    assert run("inspect", "stats", "--json").json["states"]["pending"] == 1


def test_beat_enqueues_exactly_as_many_ticks_as_told(run, clock):
    assert run("beat", "-A", clock, "--max-ticks", 3).code == 0
    assert run("inspect", "stats", "--json").json["states"]["pending"] == 3
    [entry] = run("inspect", "schedule", "--json").json["items"]
    assert (entry["entry"], entry["ticks"]) == ("fast", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_beat_stops_at_a_signal(run, clock, tmp_path, number):
    process = program("beat", "-A", clock, "--log-file", "beat.log", cwd=tmp_path)
    log = tmp_path / "beat.log"
    wait_until(lambda: log.exists() and "tick_enqueued" in log.read_text(), deadline_s=30)
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    process.communicate()
    assert events(log)[-1] == "beat_stopped"


def test_living_worker_is_seen_and_drains_at_sigterm(run, shop, tmp_path):
    process = program("worker", "-A", shop, "-c", 3, "-n", "red", cwd=tmp_path)
    try:

        def alive():
            found = run("inspect", "stats")
            return found.code == 0 and run("inspect", "stats", "--json").json["workers"]["alive"]

        wait_until(alive, deadline_s=30)
        stats = run("inspect", "stats", "--json").json
        assert stats["workers"] == {"alive": 1, "slots": 3}
        wait_until(
            lambda: len(run("inspect", "workers", "--json").json["items"]) == 4, deadline_s=30
        )
        worker, *children = run("inspect", "workers", "--json").json["items"]
        assert (worker["name"], worker["kind"], worker["alive"]) == ("red", "worker", True)
        assert worker["pid"] == process.pid
        assert [child["kind"] for child in children] == ["child"] * 3
        assert {child["parent_id"] for child in children} == {worker["id"]}
        assert run("inspect", "ping").code == 0
        assert "red" in run("inspect", "workers").out
        queues = {q["name"]: q["workers"] for q in run("inspect", "queues", "--json").json["items"]}
        assert queues == {"default": 1, "sums": 1}
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def on_a_terminal(*arguments: object, cwd: Path) -> str:
    """Run a program to its end, and return what it says on its terminal."""
    ours, theirs = pty.openpty()
    process = program(*arguments, cwd=cwd, stderr=theirs, stdout=subprocess.DEVNULL, text=False)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # Linux: nobody has the other end any more
        pass
    assert process.wait(timeout=30) == 0
    os.close(ours)
    return said.decode()


def test_worker_greets_on_a_terminal(shop, tmp_path):
    words = ("worker", "-A", shop, "--burst", "-n", "red", "--no-color")
    text = on_a_terminal(*words, cwd=tmp_path)
    for expected in ("worker red", "2 tasks: shop.add, shop.fail", "queue.db", "sums", "ctrl-c"):
        assert expected in text


@pytest.mark.parametrize("kind", ["worker --burst -P solo", "beat --max-ticks 1"])
def test_process_that_is_to_be_quiet_does_not_greet(clock, tmp_path, kind):
    words = (*kind.split(), "-A", clock, "--log-file", "x.log")
    assert "ctrl-c" in on_a_terminal(*words, cwd=tmp_path)
    assert on_a_terminal(*words, "--quiet", cwd=tmp_path) == ""
