"""Pieces that tests share: a clock that jumps, waiting with a deadline, real Python processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_started: list[subprocess.Popen[str]] = []


class FakeClock:
    """Tell the time the test decides; wall, lease clock and boot are independent.

    `wall` and `lease` are milliseconds. Hand it to `Store(path, clock=FakeClock())`.
    """

    def __init__(
        self,
        wall: int = 1_700_000_000_000,
        lease: int = 1_000_000,
        boot_id: str = "boot-1",
    ) -> None:
        self.wall = wall
        self.lease = lease
        self.boot_id = boot_id

    def wall_ms(self) -> int:
        return self.wall

    def lease_ms(self) -> int:
        return self.lease

    def boot(self) -> str:
        return self.boot_id

    def advance(self, seconds: float) -> None:
        """Let time pass: both clocks move."""
        self.wall += round(seconds * 1000)
        self.lease += round(seconds * 1000)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, as an operator or NTP does; no time passes."""
        self.wall += round(seconds * 1000)


def wait_until(
    condition: Callable[[], Any], *, deadline_s: float = 10, what: str = "", every_s: float = 0.005
) -> Any:
    """Return the first truthy answer of `condition`; fail when there is none in time."""
    give_up_s = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() >= give_up_s:
            message = f"waited {deadline_s} s in vain for {what or condition}"
            raise AssertionError(message)
        time.sleep(every_s)
    return answer


def run_python(code: str, *args: object, **popen: Any) -> subprocess.Popen[str]:
    """Start a Python process on `code`, in which `args` are `sys.argv[1:]`.

    Its stdin, stdout and stderr are pipes of text unless `popen` says otherwise. `end_processes`,
    which a fixture may call, ends what is left of it.
    """
    environment = {**os.environ, **popen.pop("env", {})}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    defaults: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "bufsize": 1,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=environment,
        **{**defaults, **popen},
    )
    _started.append(process)
    return process


def start_logged(
    arguments: Sequence[object], *, log: Path, cwd: Path, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start Python with these arguments, in a session of its own; what it says is added to a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end_processes() -> None:
    """Kill what `run_python` started and nobody waited for, and close the pipes of all."""
    while _started:
        process = _started.pop()
        kill(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def finish(process: subprocess.Popen[str], *, deadline_s: float = 30) -> str:
    """Wait for a process of `run_python` to end well and return what it printed."""
    try:
        out, error = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        message = f"still running after {deadline_s} s; stdout: {out!r}, stderr: {error}"
        raise AssertionError(message) from None
    assert process.returncode == 0, f"exit code {process.returncode}: {out}\n{error}"
    return out or ""


def read_line(process: subprocess.Popen[str], *, deadline_s: float = 30) -> str:
    """Return the next line a process prints, without its end; fail when it ended instead."""
    import select

    assert process.stdout is not None
    # One line at a time is printed before anybody waits for the next, so nothing hides in the
    # text buffer that `poll` cannot see.
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(process.stdout, select.POLLIN)
    ready = poll.poll(deadline_s * 1000)
    line = process.stdout.readline() if ready else ""
    if not line:
        kill(process)
        error = process.stderr.read() if process.stderr else ""
        message = f"no line within {deadline_s} s, exit code {process.returncode}: {error}"
        raise AssertionError(message)
    return line.rstrip("\n")


def say(process: subprocess.Popen[str], line: str = "") -> None:
    """Write a line to a process's stdin."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal and wait for the end; harmless when it has ended."""
    if process.poll() is None:
        process.send_signal(number)
        process.wait(timeout=30)


def in_forked_child(work: Callable[[], Any], *, die_at_statement: int = 0) -> bool:
    """Run `work` in a forked child and say whether it came to its end.

    With `die_at_statement` the child kills itself before that statement which SQLite would run,
    counted from 1 over all connections it opens. Fails when `work` raised.
    """
    pid = os.fork()
    if not pid:
        code = 1  # nothing of the test may run on in here
        try:
            if die_at_statement:
                _die_at_statement(die_at_statement)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the exit code tells
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    assert exit_code in (0, -signal.SIGKILL), f"the child ended with {exit_code}"
    return exit_code == 0


def _die_at_statement(number: int) -> None:
    left = number
    connect = sqlite3.connect

    def on_statement(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(on_statement)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


@contextlib.contextmanager
def small_disk(directory: Path, *, megabytes: int) -> Iterator[Path]:
    """Make a directory that is a disk of its own, of so many megabytes, as long as the block runs.

    Only root may. Where it cannot be had the test is skipped, and fails in CI.
    """
    import pytest

    directory.mkdir(mode=0o700)
    options = f"size={megabytes}m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        why = f"no small disk to be had: {mounted.stderr.strip()}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def cpu_s(pid: int) -> float:
    """Return the processor time that a process and all below it have used, in seconds."""
    used, waiting = 0.0, [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        for task in process.glob("task/*"):
            # Nanoseconds; the ticks of `stat` are too coarse for what idles.
            used += int(task.joinpath("schedstat").read_text().split()[0]) / 1e9
            waiting += map(int, task.joinpath("children").read_text().split())
    return used


def open_names(path: Path, *, process: int | str = "self") -> list[str]:
    """Return the open files of a process whose names begin with `path`, one a descriptor."""
    names = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(descriptor.readlink()))
    return sorted(name for name in names if name.startswith(str(path)))


def database_names(path: Path, *, process: int | str = "self") -> list[str]:
    """Return the open files of a process that belong to SQLite: database, log, shared memory."""
    return [name for name in open_names(path, process=process) if "-run/" not in name]
