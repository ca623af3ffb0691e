"""Workers and beats under a service manager that listens, and the unit files for a real one."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlqueue.config import duration_s
from tests.crash.conftest import Arena
from tests.support import ROOT, wait_until

UNITS = sorted((ROOT / "conf" / "systemd").glob("*.service"))

APP = """
import os, pathlib, socket, time
from sqlqueue import SqlQueue

app = SqlQueue("crashapp", broker_url="sqlqueue:///queue.db")

# Only in a child, which leads a session: not in the process that tells the supervisor of the tasks.
if os.getsid(0) == os.getpid():
    while pathlib.Path("slow_import").exists():
        time.sleep(0.01)

@app.producer(every=3600, name="seldom")
def produce(tick):
    return []

@app.task(name="environment")
def environment():
    return sorted(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG")))

@app.task(name="wait_for_file")
def wait_for_file(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)
"""


class Manager:
    """Be what systemd is to a service: a socket, and everything that was said on it."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(path))

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path)}

    def listen(self) -> list[str]:
        """Return everything up to now."""
        try:
            while True:
                self.heard.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return self.heard

    def wait(self, text: str, *, times: int = 1) -> None:
        wait_until(
            lambda: sum(text in one for one in self.listen()) >= times,
            deadline_s=30,
            what=f"{text!r} among {self.heard}",
        )


@pytest.fixture
def arena(arena: Arena) -> Arena:
    (arena.directory / "crashapp.py").write_text(APP)
    return arena


@pytest.fixture
def manager(arena: Arena) -> Iterator[Manager]:
    made = Manager(arena.directory / "notify")
    yield made
    made.socket.close()


KINDS: dict[str, Callable[[Arena, dict[str, str]], subprocess.Popen[bytes]]] = {
    "processes": lambda arena, env: arena.start(
        "worker", "-A", "crashapp:app", "-c", 2, "--grace", "40s", env=env
    ),
    "solo": lambda arena, env: arena.start("worker", "-A", "crashapp:app", "-P", "solo", env=env),
    "beat": lambda arena, env: arena.start("beat", "-A", "crashapp:app", env=env),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_says_when_it_is_ready_lives_reloads_and_stops(
    arena: Arena, manager: Manager, kind: str
) -> None:
    env = {**manager.environment, "WATCHDOG_USEC": "200000"}
    process = KINDS[kind](arena, env)
    manager.wait("READY=1")
    manager.wait("WATCHDOG=1", times=3)
    manager.wait("STATUS=")
    assert not any("STOPPING" in one for one in manager.listen())
    process.send_signal(signal.SIGHUP)
    manager.wait("RELOADING=1\nMONOTONIC_USEC=")
    manager.wait("READY=1", times=2)
    process.terminate()
    assert process.wait(timeout=30) == 0, arena.logs()
    grace = {"processes": 40, "solo": 30, "beat": 0}[kind]
    assert f"STOPPING=1\nEXTEND_TIMEOUT_USEC={(grace + 15) * 10**6}" in manager.listen()


def test_a_worker_is_ready_when_its_children_claim_and_not_when_they_are_forked(
    arena: Arena, manager: Manager
) -> None:
    slow = arena.directory / "slow_import"
    slow.touch()
    started = arena.start("worker", "-A", "crashapp:app", "-c", 2, env=manager.environment)
    manager.wait("children up: 0 of 2")
    assert "READY=1" not in manager.listen()
    slow.unlink()
    manager.wait("READY=1")
    manager.wait("children up: 2 of 2")
    started.terminate()
    assert started.wait(timeout=30) == 0


def test_a_task_knows_nothing_of_the_manager(arena: Arena, manager: Manager) -> None:
    for arguments in (["-c", 1], ["-P", "solo"]):
        job = arena.publish("environment")
        env = {**manager.environment, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": ""}
        process = arena.start("worker", "-A", "crashapp:app", "--burst", *arguments, env=env)
        assert process.wait(timeout=30) == 0, arena.logs()
        assert arena.job(job).result == "[]"


def test_the_status_says_how_many_jobs_run(arena: Arena, manager: Manager) -> None:
    arena.publish("wait_for_file", "go")
    worker = arena.start("worker", "-A", "crashapp:app", "-c", 2, env=manager.environment)
    manager.wait("STATUS=working: jobs running: 1, children up: 2 of 2")
    worker.terminate()
    manager.wait("STATUS=stopping: jobs running: 1, children up: 1 of 2")
    (arena.directory / "go").touch()
    assert worker.wait(timeout=30) == 0


@pytest.mark.slow
def test_a_store_that_is_busy_for_long_does_not_wake_the_watchdog_and_a_stopped_worker_does(
    arena: Arena, manager: Manager
) -> None:
    env = {**manager.environment, "WATCHDOG_USEC": "20000000"}
    worker = arena.start("worker", "-A", "crashapp:app", "-c", 1, env=env)
    manager.wait("READY=1")
    with writing(arena):
        os.kill(arena.children(worker)[0], signal.SIGKILL)  # what it held has to be given back
        wait_until(lambda: "store_busy" in arena.logs(), deadline_s=30, what="store_busy")
        before = manager.listen().count("WATCHDOG=1")
        manager.wait("WATCHDOG=1", times=before + 2)
    manager.wait("children up: 1 of 1", times=2)
    worker.send_signal(signal.SIGSTOP)
    silent_from = len(manager.listen())
    stopped_s = time.monotonic()
    wait_until(lambda: time.monotonic() - stopped_s > 3, what="three seconds")
    assert len(manager.listen()) == silent_from
    worker.send_signal(signal.SIGCONT)
    worker.terminate()
    assert worker.wait(timeout=30) == 0


@contextlib.contextmanager
def writing(arena: Arena) -> Iterator[None]:
    """Hold the writer lock and an open transaction."""
    held, let_go = threading.Event(), threading.Event()
    store = arena.store

    def hold(_: object) -> None:
        held.set()
        let_go.wait(100)

    thread = threading.Thread(target=lambda: store.database.write(hold))
    thread.start()
    assert held.wait(30)
    try:
        yield
    finally:
        let_go.set()
        thread.join()
        store.close()


# -- the unit files ----------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names keep their capitals
    parser.read(path)
    return parser


def test_every_unit_is_a_service_that_talks_to_systemd_or_a_console() -> None:
    kinds = {path.name: unit(path)["Service"]["Type"] for path in UNITS}
    assert kinds == {
        "sqlqueue-console@.service": "exec",
        "sqlqueue-producer.service": "notify",
        "sqlqueue-worker@.service": "notify",
    }


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_every_unit_is_restarted_asked_to_stop_and_fenced_in(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["Restart"] == "always"
    assert service["KillSignal"] == "SIGTERM"
    assert duration_s(service["TimeoutStopSec"], name="TimeoutStopSec") > 0
    assert service["User"] == "sqlqueue"
    assert service["UMask"] == "0077"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    # The queue file, and for what the tasks write.
    assert service["ReadWritePaths"] == service["WorkingDirectory"]


@pytest.mark.parametrize(
    "path", [path for path in UNITS if "console" not in path.name], ids=lambda path: path.name
)
def test_the_units_are_what_our_drain_and_our_messages_need(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert duration_s(service["WatchdogSec"], name="WatchdogSec") >= 30
    grace_s = 30 if "worker" in path.name else 0
    assert float(service["TimeoutStopSec"]) > grace_s
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    if "worker" in path.name:
        assert service["KillMode"] == "mixed"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_itself_understands_the_units(path: Path, tmp_path: Path) -> None:
    # Where they say that the program is, there is none here.
    text = re.sub(r"/opt/sqlqueue/\.venv/bin/sqlqueue", "/bin/true", path.read_text())
    (tmp_path / path.name).write_text(text.replace("User=sqlqueue", "User=root"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / path.name)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (checked.returncode, checked.stderr) == (0, "")
