"""Consoles as an operator starts them: the real command, on a free port of this machine."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.cli.conftest import program
from tests.support import kill, read_line, wait_until


class Console:
    """Be a console that is served by a process of its own."""

    def __init__(self, role: str, process: subprocess.Popen[str], link: str) -> None:
        self.role = role
        self.process = process
        self.link = link  # as it was printed, with the token
        parts = urlsplit(link)
        self.port = parts.port or 0
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.token = parse_qs(parts.query).get("token", [""])[0]

    def get(self, path: str = "/", **headers: str) -> http.client.HTTPResponse:
        """Ask for a path by HTTP, without a browser; the answer is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )
            response = connection.getresponse()
            response.text = response.read().decode(errors="replace")  # type: ignore[attr-defined]
            return response
        finally:
            connection.close()

    def wait(self) -> None:
        """Wait until it serves."""
        wait_until(self._is_healthy, deadline_s=30, what="its health", every_s=0.05)

    def _is_healthy(self) -> bool:
        try:
            return self.get("/_stcore/health").status == 200
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it by a signal; return its exit code and what it had said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, error = self.process.communicate(timeout=30)
        return self.process.returncode, error


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Console]]:
    """Start consoles: `start("admin", "--auth", "none")`; they end with the test."""
    started: list[Console] = []

    def call(role: str, *arguments: object, cwd: Path = tmp_path, **popen: Any) -> Console:
        process = program(
            *("console", role, "--no-browser", "--port", free_port(), *arguments),
            cwd=cwd,
            **popen,
        )
        try:
            console = Console(role, process, read_line(process, deadline_s=60))
        except BaseException:
            kill(process)
            process.communicate()
            raise
        started.append(console)
        return console

    yield call
    for console in started:
        kill(console.process)
        for pipe in (console.process.stdout, console.process.stderr):
            pipe.close()
