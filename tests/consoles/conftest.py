"""Consoles as an operator starts them: the real command, on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.cli.conftest import program
from tests.support import free_port, kill, read_line, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.consoles.browsing import Tab


SHOP = """
import pathlib, time
from sqlqueue import SqlQueue

app = SqlQueue("shop")


@app.task(name="shop.heal", max_attempts=1)
def heal():
    if not pathlib.Path("medicine").exists():
        raise ValueError("no medicine")
    return "healed"


@app.task(name="shop.wait", bind=True)
def wait(self):
    pathlib.Path("waiting").touch()
    while True:
        self.checkpoint()
        time.sleep(0.01)
"""


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

    def end(self) -> None:
        """Kill it, if it is still there, and close its pipes."""
        kill(self.process)
        for pipe in filter(None, (self.process.stdout, self.process.stderr)):
            pipe.close()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it by a signal; return its exit code and what it had said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, error = self.process.communicate(timeout=30)
        return self.process.returncode, error


def start_console(role: str, *arguments: object, cwd: Path, **popen: Any) -> Console:
    """Start a console; whoever does ends it."""
    process = program(
        *("console", role, "--no-browser", "--port", free_port(), *arguments), cwd=cwd, **popen
    )
    try:
        return Console(role, process, read_line(process, deadline_s=60))
    except BaseException:
        kill(process)
        process.communicate()
        raise


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Console]]:
    """Start consoles: `start("admin", "--auth", "none")`; they end with the test."""
    started: list[Console] = []

    def call(role: str, *arguments: object, cwd: Path = tmp_path, **popen: Any) -> Console:
        started.append(start_console(role, *arguments, cwd=cwd, **popen))
        return started[-1]

    yield call
    for console in started:
        console.end()


@pytest.fixture
def ask(tmp_path):
    """Ask the command line for a document, as a program of its own."""

    def call(*arguments):
        process = program(*arguments, "--json", cwd=tmp_path)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        return json.loads(out)

    return call


@pytest.fixture
def run_worker(tmp_path):
    """Start a worker of the shop; it ends with the test."""
    (tmp_path / "shop.py").write_text(SHOP)
    started = []

    def start(*arguments):
        process = program(
            *("worker", "-A", "shop:app", "-c", 2, "-n", "w1", *arguments),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"SQLQUEUE_LOG_DIR": "logs"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # its job never ends
            process.wait(10)
        kill(process)


# What follows needs chromium; tests that use it are marked debian("chromium").


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Give a browser to the tests of a module.

    No longer: as long as Playwright is there a loop runs in this thread, in which other modules could
    not use asyncio.
    """
    from playwright.sync_api import sync_playwright

    from tests.consoles.browsing import launched

    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture
def artefacts(request) -> Path:
    """Return the directory that keeps what a test saw; it is emptied for it."""
    from tests.consoles.browsing import ARTEFACTS

    name = re.sub(r"[^\w-]+", "-", request.node.name).strip("-")[:120]
    directory = ARTEFACTS / request.path.stem / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def open_tab(chromium, artefacts) -> Iterator[Callable[..., Tab]]:
    """Open tabs before a console: `open_tab(console, width=390, dark=True)`.

    At the end of the test each leaves a picture and what its page said; a page with an error in it
    fails the test, unless the test empties `tab.errors`.
    """
    from tests.consoles.browsing import Tab

    tabs: list[Tab] = []

    def call(console: Console, *, width: int = 1440, height: int = 900, dark: bool = False) -> Tab:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        tabs.append(Tab(context, console))
        return tabs[-1]

    yield call
    wrong = []
    for number, tab in enumerate(tabs):
        (artefacts / f"tab-{number}.log").write_text("\n".join(tab.said) + "\n")
        with contextlib.suppress(Exception):  # a page that is gone has no picture
            tab.shot(artefacts / f"tab-{number}.png")
        tab.context.close()
        wrong += tab.errors
    assert not wrong, f"the page said: {wrong}"
