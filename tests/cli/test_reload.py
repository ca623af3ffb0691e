"""`sqlqueue worker --reload`: edits start the worker anew, and lose no job."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sqlqueue import SqlQueue
from tests.cli.conftest import program
from tests.support import is_running, kill, wait_until

needs_watchfiles = pytest.mark.skipif(
    importlib.util.find_spec("watchfiles") is None and not os.environ.get("CI"),
    reason="watchfiles is not installed",
)

APP = """
import pathlib, time
from sqlqueue import SqlQueue

app = SqlQueue("edited", broker_url="sqlqueue:///queue.db")

@app.task(name="version")
def version():
    return {version!r}

@app.task(name="wait_for_file")
def wait_for_file(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)
"""


class Desk:
    """Be a developer's directory, with a worker that watches it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[str]] = []
        self.written = 0
        self.app = SqlQueue("desk", broker_url=f"sqlqueue:///{directory}/queue.db")

    def write(self, version: str, *, into: str = "edited.py") -> None:
        # Of another size each time: Python tells sources apart by size and second.
        self.written += 1
        self.write_text(APP.format(version=version) + "#" * self.written, into=into)

    def write_text(self, text: str, *, into: str = "edited.py") -> None:
        made = self.directory / f"{into}.new"
        made.write_text(text)
        made.rename(self.directory / into)

    def start(self, *arguments: object, **popen) -> subprocess.Popen[str]:
        with (self.directory / "said.txt").open("a") as output:
            process = program(
                *("worker", "-A", "edited:app", "-c", 1, "--reload", *arguments),
                cwd=self.directory,
                stdout=output,
                stderr=output,
                **popen,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return (self.directory / "said.txt").read_text()

    def wait(self, text: str, *, times: int = 1) -> None:
        wait_until(
            lambda: self.said().count(text) >= times,
            deadline_s=30,
            what=f"{times} x {text!r} in:\n{self.said()}",
        )

    def publish(self, task: str, *arguments: object):
        """Enqueue a call as another process would."""
        return self.app.send_task(task, arguments)


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    made.write("one")
    yield made
    made.app.close()
    for process in made.processes:
        kill(process)


def test_without_watchfiles_one_line_says_how_to_install_it(run, desk):
    (desk.directory / "watchfiles.py").write_text("raise ImportError('not here')")
    result = run("worker", "-A", "edited:app", "--reload")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: --reload needs watchfiles. Install it: {sys.executable} -m pip install watchfiles\n"
    )


def test_without_the_option_watchfiles_is_not_imported(run, desk):
    (desk.directory / "watchfiles.py").write_text("raise RuntimeError('imported')")
    assert run("worker", "-A", "edited:app", "--burst").code == 0


@needs_watchfiles
@pytest.mark.slow
def test_an_edit_drains_the_old_worker_and_starts_one_with_the_new_code(desk):
    process = desk.start()
    desk.wait("worker_ready")
    waiting = desk.publish("wait_for_file", "go")
    desk.wait("job_started")
    desk.write("two")
    desk.wait("edited.py changed, starting anew")
    desk.wait("worker_draining")
    (desk.directory / "go").touch()
    desk.wait("worker_ready", times=2)
    job = desk.publish("version")
    assert job.get(timeout=30) == "two"
    assert (waiting.state, waiting.attempts) == ("done", 1)
    process.terminate()
    assert process.wait(timeout=30) == 0


@needs_watchfiles
@pytest.mark.slow
def test_an_edit_that_breaks_the_import_is_printed_and_waited_out(desk):
    process = desk.start()
    desk.wait("worker_ready")
    desk.write_text("raise RuntimeError('half written')")
    desk.wait("half written")
    desk.wait("waiting for a change that mends it")
    assert process.poll() is None
    desk.write("mended")
    desk.wait("worker_ready", times=2)
    desk.write_text("this is no Python")
    desk.wait("waiting for a change that mends it", times=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 2


@needs_watchfiles
@pytest.mark.slow
def test_a_package_elsewhere_is_watched_too_and_what_is_no_python_is_not(desk, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    package = elsewhere / "farapp"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported by ' + __name__)")
    (package / "__init__.py").write_text("")
    (package / "app.py").write_text(APP.format(version="far"))
    environment = {
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(elsewhere)])
    }
    with (desk.directory / "said.txt").open("a") as output:
        process = program(
            *("worker", "-A", "farapp.app:app", "-c", 1, "--reload"),
            cwd=desk.directory,
            env=environment,
            stdout=output,
            stderr=output,
        )
    desk.processes.append(process)
    desk.wait("worker_ready")
    (desk.directory / "notes.txt").write_text("no Python")
    (package / "other.py").write_text("x = 1")
    desk.wait("other.py changed, starting anew")
    desk.wait("worker_ready", times=2)
    assert "notes.txt" not in desk.said()
    process.terminate()
    assert process.wait(timeout=30) == 0


@needs_watchfiles
@pytest.mark.slow
def test_a_first_start_that_fails_and_a_burst_keep_their_exit_codes(desk):
    assert desk.start("--burst").wait(timeout=60) == 0
    desk.write_text("raise RuntimeError('from the beginning')")
    assert desk.start().wait(timeout=60) == 2
    assert "from the beginning" in desk.said()


@needs_watchfiles
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_and_a_second_one_stops_at_once(desk, number):
    process = desk.start("--grace", "1h")
    desk.wait("worker_ready")
    job = desk.publish("wait_for_file", "never")
    desk.wait("job_started")
    process.send_signal(signal.SIGQUIT)
    desk.wait("stacks_printed")
    process.send_signal(number)
    desk.wait("worker_draining")
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert (job.state, job.attempts) == ("pending", 0)


@needs_watchfiles
@pytest.mark.slow
def test_ctrl_c_at_the_terminal_is_one_signal_for_the_worker(desk):
    process = desk.start("--grace", "1h", start_new_session=True)
    desk.wait("worker_ready")
    job = desk.publish("wait_for_file", "go")
    desk.wait("job_started")
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does, to all of the foreground
    desk.wait("worker_draining")
    (desk.directory / "go").touch()
    assert process.wait(timeout=30) == 0
    assert job.get(timeout=5) is None
    assert job.attempts == 1


@needs_watchfiles
@pytest.mark.slow
def test_the_worker_does_not_outlive_the_one_that_watches(desk):
    process = desk.start()
    desk.wait("worker_ready")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    kill(process)
    wait_until(lambda: not any(is_running(int(pid)) for pid in children), what="its end")
