"""conf/supervisord.conf, run for real: each program is killed and comes back to work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import xmlrpc.client
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import free_port

pytest.importorskip("sqlqueue.cli")
pytest.importorskip("supervisor")

CHECKOUT = Path(__file__).parents[2]
CONSOLES = ["console-admin:console-admin", "console-ops:console-ops"]
PROGRAMS = [*CONSOLES, "producer:producer", "worker:worker-1", "worker:worker-2"]
STAMP = re.compile(
    r"^\S+Z job=(?P<job>\S+) attempt=\d+ duration_s=\d+\.\d{3} worker=(?P<worker>\S+)$",
    re.MULTILINE,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Installation:
    """A copy of conf/ in a directory of its own, as a checkout would have it, under supervisord."""

    directory: Path
    process: subprocess.Popen[bytes]
    seen_pids: set[int] = field(default_factory=set)

    @property
    def jobs(self) -> Path:
        return self.directory / "jobs"

    def call(self, method: str, *arguments: object):
        """Ask supervisord, as supervisorctl does."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.directory / 'supervisor.sock'}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            try:
                return getattr(proxy.supervisor, method)(*arguments)
            finally:
                transport.close()

    def running(self) -> dict[str, int]:
        """Return the process id of each program that runs."""
        with contextlib.suppress(OSError):
            pids = {
                f"{info['group']}:{info['name']}": info["pid"]
                for info in self.call("getAllProcessInfo")
                if info["statename"] == "RUNNING"
            }
            self.seen_pids.update(pids.values())
            return pids
        return {}

    def stamps(self) -> list[tuple[str, str, str]]:
        """Return (file, job id, worker) of each stamp there is."""
        return [
            (file.name, match["job"], match["worker"])
            for file in self.jobs.glob("*.txt")
            for match in STAMP.finditer(file.read_text())
        ]

    def stamped_by(self, worker: str) -> int:
        return sum(worker in by for _, _, by in self.stamps())

    def logs(self) -> str:
        """Return the ends of all logs, for a failure's message."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in (*self.directory.glob("*.log"), *self.directory.glob("*/*.log"))
        ]
        for program in PROGRAMS:
            with contextlib.suppress(OSError, xmlrpc.client.Error):
                printed, *_ = self.call("tailProcessStdoutLog", program, 0, 3000)
                texts.append(f"--- printed by {program}\n{printed}")
        return "\n".join(texts)

    def wait(self, condition, what: str, *, within_s: float = 60) -> float:
        """Wait until the condition holds; return how many seconds that took."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, f"supervisord ended\n{self.logs()}"
            assert time.monotonic() - began < within_s, (
                f"not within {within_s} s: {what}\n{self.logs()}"
            )
            time.sleep(0.05)
        return time.monotonic() - began


@pytest.fixture
def installation():
    # Not in tmp_path: a socket's path ends at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sqlqueue-") as name:
        directory = Path(name).resolve()
        shutil.copytree(CHECKOUT / "conf", directory / "conf")
        move_consoles(directory / "conf" / "supervisord.conf")
        (directory / "tasks").symlink_to(CHECKOUT / "tasks")
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("SQLQUEUE_")
        } | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(directory), str(CHECKOUT)]),
            "SQLQUEUE_APP_EVERY": "0.3s",
            "SQLQUEUE_APP_MIN_SECONDS": "0.1",
            "SQLQUEUE_APP_MAX_SECONDS": "0.4",
            "SQLQUEUE_WORKER_CONCURRENCY": "2",
        }
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "supervisor.supervisord", "--nodaemon"),
                *("-c", str(directory / "conf" / "supervisord.conf")),
            ],
            cwd="/",  # every path in the file is its own business
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Installation(directory, process)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def move_consoles(configuration: Path) -> None:
    """Give the consoles ports that are free: those in the file may be somebody's."""
    text = configuration.read_text()
    for port in ("8501", "8502"):
        assert text.count(f"--port {port}") == 1
        text = text.replace(f"--port {port}", f"--port {free_port()}")
    configuration.write_text(text)


def answers(installation, program: str) -> bool:
    """Say whether a console serves its page to who has the link that it printed."""
    printed, *_ = installation.call("tailProcessStdoutLog", program, 0, 3000)
    links = re.findall(r"^http://localhost:\d+/\?token=\S+$", printed, re.MULTILINE)
    if not links:
        return False
    jar = urllib.request.HTTPCookieProcessor()
    with contextlib.suppress(OSError), urllib.request.build_opener(jar).open(links[-1]) as page:
        return page.status == 200 and b"token" not in page.geturl().encode()
    return False


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def made(installation) -> int:
    return len(list(installation.jobs.glob("*.txt")))


def kill_and_see_back_at_work(installation, program) -> None:
    _, name = program.split(":")
    pid = installation.running()[program]
    os.kill(pid, signal.SIGKILL)
    took_s = installation.wait(
        lambda: installation.running().get(program, pid) != pid, f"{program} runs again"
    )
    print(f"{program} ran again {took_s:.1f} s after its kill -9")

    def work() -> int:
        return made(installation) if name == "producer" else installation.stamped_by(name)

    before = work()
    installation.wait(lambda: work() > before + 2, f"{name} works again")


def test_each_program_is_killed_and_comes_back_to_work_and_all_stop_cleanly(installation):
    installation.wait(lambda: sorted(installation.running()) == PROGRAMS, "five programs run")
    installation.wait(lambda: installation.stamped_by("worker-1"), "worker-1 stamps files")
    installation.wait(lambda: installation.stamped_by("worker-2"), "worker-2 stamps files")

    for console in CONSOLES:
        installation.wait(lambda console=console: answers(installation, console), "it answers")
    for program in PROGRAMS[len(CONSOLES) :]:
        kill_and_see_back_at_work(installation, program)

    # No more jobs; those there are, the ones of killed workers among them, get done.
    installation.call("stopProcess", "producer:producer")
    installation.wait(
        lambda: (
            {file.name for file in installation.jobs.glob("*.txt")}
            == {file for file, _, _ in installation.stamps()}
        ),
        "every file is stamped",
    )
    stamps = installation.stamps()
    assert len({file for file, _, _ in stamps}) == len({job for _, job, _ in stamps}) == len(stamps)

    for log in ("producer.log", "worker-1.log", "worker-2.log"):
        assert (installation.directory / "logs" / log).stat().st_size

    installation.running()
    installation.call("shutdown")
    assert installation.process.wait(60) == 0
    assert not any(is_alive(pid) for pid in installation.seen_pids)
    log = (installation.directory / "supervisord.log").read_text()
    for program in ("console-admin", "console-ops", "producer", "worker-1", "worker-2"):
        # The last end of each: by SIGTERM, drained, with exit code 0.
        [*_, ending] = re.findall(rf"(?:stopped|exited): {program} \((.*)\)", log)
        assert ending == "exit status 0", log
    assert not list(installation.jobs.glob(".*")), "temporary files are left"
