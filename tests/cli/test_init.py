"""`sqlqueue init` writes a project that runs, and never touches what is there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.conftest import program
from tests.support import ROOT, wait_until

NAMES = ["sqlqueue.toml", "tasks.py", "supervisord.conf", ".gitignore"]


def test_init_writes_a_project_and_says_what_to_run_next(cli, tmp_path):
    result = cli("init", "my shop")
    assert (result.code, result.err) == (0, "")
    assert sorted(NAMES) == sorted(path.name for path in (tmp_path / "my shop").iterdir())
    assert f"Written to {tmp_path / 'my shop'}: sqlqueue.toml, tasks.py" in result.out
    assert "cd 'my shop'" in result.out
    assert "sqlqueue worker -A tasks:app --beat" in result.out


def test_init_without_a_directory_writes_here(cli, tmp_path):
    result = cli("init", "--json")
    assert result.json == {
        "schema": 1,
        "directory": str(tmp_path),
        "written": NAMES,
        "kept": [],
    }
    assert (tmp_path / "tasks.py").exists()


def test_init_a_second_time_has_nothing_to_do(cli):
    cli("init")
    result = cli("init")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Nothing to do: sqlqueue.toml, tasks.py, ")


def test_path_of_the_command_is_written_as_supervisord_reads_it(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/50% shop/bin/python3")
    cli("init")
    assert ":/opt/50%% shop/bin:" in (tmp_path / "supervisord.conf").read_text()


def test_init_leaves_every_file_that_exists_as_it_is(cli, tmp_path):
    (tmp_path / "tasks.py").write_text("mine = 1\n")
    (tmp_path / "supervisord.conf").symlink_to("nowhere")
    result = cli("init")
    assert result.code == 0
    assert "Written to" in result.out
    assert "Next:" not in result.out  # these commands are about our tasks.py
    assert "tasks.py, supervisord.conf were there and are left as before." in result.err
    assert (tmp_path / "tasks.py").read_text() == "mine = 1\n"
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "sqlqueue.toml").exists()


def test_init_writes_nothing_that_would_hide_the_settings_or_be_hidden_by_a_package(cli, tmp_path):
    for name in ("conf/sqlqueue.toml", "tasks/__init__.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    result = cli("init", "--json")
    assert result.json["written"] == ["supervisord.conf", ".gitignore"]
    assert result.json["kept"] == ["conf/sqlqueue.toml", "tasks/__init__.py"]


def test_init_makes_one_directory_and_no_parents(cli, tmp_path):
    result = cli("init", "a/b")
    assert result.code == 2
    assert "error: there is no directory 'a' to make 'b' in." in result.err
    assert not list(tmp_path.iterdir())


def test_init_refuses_a_directory_that_is_a_file(cli, tmp_path):
    (tmp_path / "file").write_text("")
    result = cli("init", "file")
    assert (result.code, result.err) == (2, "error: 'file' is a file. Name a directory.\n")


def test_what_cannot_be_written_whole_is_removed_again(run, tmp_path):
    # No file of this process may be longer: as a full disk, only sooner.
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "import sys; from sqlqueue.cli import main; sys.exit(main(['init']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "error: File too large\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_worker_and_beat_of_the_written_project_run_its_jobs(run, tmp_path):
    assert run("init").code == 0
    tasks = tmp_path / "tasks.py"
    tasks.write_text(tasks.read_text().replace('every="10s"', 'every="0.3s"'))
    worker = program("worker", "-A", "tasks:app", "--beat", cwd=tmp_path)
    try:
        called = run("call", "-A", "tasks:app", "tasks.add", "[2, 3]", "--wait", "--timeout", "30s")
        assert (called.code, called.out.splitlines()[-1]) == (0, "5"), called.err
        wait_until(
            lambda: run(
                "inspect", "jobs", "--task", "tasks.fetch", "--state", "done", "--json"
            ).json["items"],
            deadline_s=30,
            what="a job of the schedule",
        )
        assert run("config", "show", "--json").json
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool",
    [
        "mypy --strict --follow-imports=silent",
        "ruff check --isolated",
        "ruff format --isolated --check",
    ],
    ids=["types", "lint", "format"],
)
def test_written_tasks_please_the_tools_of_whoever_goes_on_with_them(cli, tmp_path, tool):
    pytest.importorskip(tool.split()[0], reason="a tool of development")
    cli("init")
    done = subprocess.run(
        [sys.executable, "-m", *tool.split(), "tasks.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_written_supervisord_conf_runs_beat_and_worker_and_stops_them(run):
    pytest.importorskip("supervisor")
    # Not in tmp_path: a socket's path ends at 107 bytes. And a name that supervisord could misread.
    with tempfile.TemporaryDirectory(prefix="50% shop-") as name:
        directory = Path(name).resolve()
        assert run("init", directory).code == 0
        tasks = directory / "tasks.py"
        tasks.write_text(tasks.read_text().replace('every="10s"', 'every="0.3s"'))
        # The command, wherever this checkout is installed.
        (directory / ".venv" / "bin").mkdir(parents=True)
        command = directory / ".venv" / "bin" / "sqlqueue"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sqlqueue "$@"\n')
        command.chmod(0o700)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("SQLQUEUE_")
        }
        supervisord = subprocess.Popen(
            [
                *(sys.executable, "-m", "supervisor.supervisord", "--nodaemon"),
                *("-c", str(directory / "supervisord.conf")),
            ],
            cwd="/",
            # The command is found by what is in the file, and by nothing else.
            env={**environment, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            queue = directory / "queue.db"
            wait_until(queue.exists, deadline_s=30, what="the queue")
            wait_until(
                lambda: run("inspect", "jobs", "--state", "done", "--db", queue, "--json").json[
                    "items"
                ],
                deadline_s=60,
                every_s=0.2,
                what="a job of the schedule that is done",
            )
            assert (directory / "logs" / "worker.log").stat().st_size
            assert (directory / "logs" / "beat.log").stat().st_size
        finally:
            supervisord.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisord.wait(60)
            supervisord.kill()
            supervisord.wait(10)
        log = (directory / "supervisord.log").read_text()
        for one in ("worker", "beat"):
            assert f"stopped: {one} (exit status 0)" in log, log
