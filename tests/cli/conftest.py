"""The command line, called in this process and as a program of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqlqueue.cli import main
from tests.cli import everything
from tests.cli.filling import Filled
from tests.support import ROOT


@dataclass(frozen=True)
class Result:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one document it printed."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Iterator[Path]:
    """Work in an empty directory, with nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("SQLQUEUE_") or name in {"NO_COLOR", "FORCE_COLOR"}:
            monkeypatch.delenv(name)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before


@pytest.fixture
def cli(capfd) -> Callable[..., Result]:
    """Call the command line in this process: `cli("inspect", "stats")`."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@dataclass(frozen=True)
class Screen:
    """What a terminal was sent, output and errors alike, and the exit code."""

    code: int
    text: str

    @property
    def words(self) -> str:
        """Return the text without its colours."""
        return COLORS.sub("", self.text)


# What rich and click send to a terminal on purpose: select graphic rendition, and nothing else.
COLORS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def screen(monkeypatch) -> Callable[..., Screen]:
    """Call the command line in this process, on a terminal of its own."""

    def call(*arguments: object, columns: int = 200, answer: str = "") -> Screen:
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())  # typed ahead
        said: list[bytes] = []

        def read() -> None:
            # Linux raises when nobody has the other end any more.
            with contextlib.suppress(OSError):
                while piece := os.read(ours, 65_536):
                    said.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm-256color")
            patch.setenv("COLUMNS", str(columns))
            with contextlib.ExitStack() as streams:
                for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
                    stream = streams.enter_context(os.fdopen(os.dup(theirs), mode))
                    patch.setattr(sys, name, stream)
                code = main([str(argument) for argument in arguments])
                os.close(theirs)
        reader.join()
        os.close(ours)
        return Screen(code, b"".join(said).decode().replace("\r\n", "\n"))

    return call


def program(*arguments: object, cwd: Path, env: dict[str, str] | None = None, **popen: Any):
    """Start `python -m sqlqueue …` in a directory."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SQLQUEUE_")
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    return subprocess.Popen(
        [sys.executable, "-m", "sqlqueue", *map(str, arguments)],
        cwd=cwd,
        env={**environment, **(env or {})},
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **popen,
        },
    )


@pytest.fixture
def run(tmp_path) -> Callable[..., Result]:
    """Run the command line as a program, to its end."""

    def call(*arguments: object, env: dict[str, str] | None = None, within_s: float = 60) -> Result:
        process = program(*arguments, cwd=tmp_path, env=env)
        try:
            out, err = process.communicate(timeout=within_s)
        finally:
            process.kill()
        return Result(process.returncode, out, err)

    return call


@pytest.fixture
def filled(tmp_path) -> Iterator[Filled]:
    """Give a queue.db to fill; close it before the command line looks at it."""
    filled = Filled(tmp_path / "queue.db")
    yield filled
    filled.close()


APP = """
from sqlqueue import SqlQueue

app = SqlQueue("shop")


@app.task(name="shop.add", queue="sums", max_attempts=3)
def add(a, b=0):
    return a + b


@app.task(name="shop.fail", max_attempts=1)
def fail():
    raise ValueError("broken")


@app.check("shelves")
def shelves(inspection):
    for call in inspection.jobs_with_arguments(task="shop.add"):
        if call.args == (666,):
            yield f"job {call.id} wants 666"
"""


@pytest.fixture
def shop(tmp_path) -> str:
    """Put an application into the working directory; return what -A takes."""
    # A name of its own, since modules stay in sys.modules.
    name = f"shop_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(APP)
    return f"{name}:app"


@pytest.fixture
def queue(filled, cli) -> everything.Queue:
    """Give a queue.db with something of everything, one job of it running."""
    everything.fill(filled)
    return everything.Queue(filled, cli)


@pytest.fixture
def line(shop) -> Callable[..., list[str]]:
    """Give a way to try each command: `line("inspect job", "--json")` returns its words."""
    return functools.partial(everything.line, app=shop)
