"""The processes of demo and bench: started, stopped and buried as processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from sqlqueue.cli.failures import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Processes"]

_PR_SET_PDEATHSIG: Final = 1
_PATIENCE_S: Final = 3.0
_TAIL_LINES: Final = 5
_TAIL_BYTES: Final = 8192


class Processes:
    """Keep a few `sqlqueue` processes by name."""

    def __init__(self, logs: Path, environment: Mapping[str, str], *, of: str) -> None:
        """Remember where logs go, the environment they get, and whose they are in error messages."""
        self._of = of
        self._logs = logs
        self._environment = dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._files: dict[str, Path] = {}

    def start(self, name: str, arguments: Sequence[str], *, log: str) -> None:
        """Start `sqlqueue <arguments>` with a log of its own, in a session of its own.

        If this process dies, by whatever signal, it gets a SIGTERM and drains (on Linux).
        """
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._files[name] = self._logs / log
        # What it says before its log is open, or when it cannot go on at all, belongs there, too.
        log_fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(log_fd, "ab") as stream:  # noqa: PTH123 - a descriptor has no path
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "sqlqueue", *arguments, "--log-file", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_DieWith(os.getpid()),  # noqa: PLW1509 - no thread is running yet
            )

    def exit_code(self, name: str) -> int | None:
        """Return the exit code of a process that has ended; None while it runs."""
        return self._running[name].poll()

    @property
    def are_running(self) -> bool:
        """Say whether any of them is still there."""
        return any(process.poll() is None for process in self._running.values())

    def refuse_dead(self, name: str) -> None:
        """Raise CommandFailed, with the end of its log, if the process is gone."""
        code = self.exit_code(name)
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise CommandFailed(
                f"{self._of}'s {name} {how}. Its log, {self._files[name]}, ends with:",
                details=self._tail(name) or ["(nothing)"],
            )

    def tell_to_stop(self) -> None:
        """Send SIGTERM to those that run: once to finish, twice to stop at once."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def bury(self) -> None:
        """End whatever still runs, within seconds: asked twice, then by force."""
        for _ in range(2):
            self.tell_to_stop()
            until_s = time.monotonic() + _PATIENCE_S
            while self.are_running and time.monotonic() < until_s:
                time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """End those that still run, with everything in their sessions. They release nothing."""
        for process in self._running.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _tail(self, name: str) -> list[str]:
        with contextlib.suppress(OSError), self._files[name].open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(stream.tell() - _TAIL_BYTES, 0))
            lines = stream.read().decode(errors="replace").splitlines()
            return [line.strip()[:300] for line in lines if line.strip()][-_TAIL_LINES:]
        return []


class _DieWith:
    """Run in the started process before its program: ask the kernel to end it with its parent."""

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        # Loaded before the fork: nothing may be imported or looked up in between.
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def __call__(self) -> None:
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != self._parent_pid:  # it died before we had asked
                os.kill(os.getpid(), signal.SIGTERM)
