"""The beat of `sqlqueue worker --beat`: one more child of the supervisor, that runs no jobs.

A process of its own, because the application's code is run in it, and the supervisor runs none. It
ends with its supervisor. One that dies is replaced, with back-off while it dies young; jobs go on
meanwhile, and ticks that were due are caught up by their entries' policies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NoReturn

from sqlqueue.beat.service import run_beat
from sqlqueue.errors import SqlQueueError
from sqlqueue.forks import die_with
from sqlqueue.loading import load_app
from sqlqueue.log import get_logger
from sqlqueue.worker.child import START_FAILED
from sqlqueue.worker.places import backoff_s
from sqlqueue_transport.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BeatChild", "forked_beat"]

log = get_logger(__name__)

# Those that the supervisor heeds and passes on.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_YOUNG_S: Final = 10.0


class BeatChild:
    """Keep one beat running. Belongs to the supervisor's thread, but for `tell`."""

    def __init__(self, name: str, become: Callable[[], NoReturn]) -> None:
        """Name the beat. `become` is what its forked process does."""
        self.name = name
        self.pid: int | None = None
        self._become = become
        self._started_s = 0.0
        self._not_before_s = 0.0
        self._failures = 0

    def keep(self, *, unless: Callable[[], bool]) -> None:
        """Start the process if none runs, unless it has to rest, or `unless` says so.

        That is asked with signals blocked: whoever is told to stop before this does not know the
        process yet, and whoever is told after it does.
        """
        if self.pid is not None or time.monotonic() < self._not_before_s:
            return
        self._started_s = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if unless():
                return
            pid = os.fork()
            if not pid:
                self._become()
            self.pid = pid
        except OSError as error:  # no memory, no process to be had
            self._rest()
            log.error("child_start_failed", worker=self.name, error=str(error))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        log.info("child_started", worker=self.name, pid=pid)

    def note_end(self, code: int, *, is_wanted: bool) -> None:
        """Take notice that the process has ended with this code, below 0 a signal's number."""
        pid, self.pid = self.pid, None
        if not is_wanted:
            return
        if time.monotonic() - self._started_s >= _YOUNG_S:
            self._failures = 0
        wait_s = self._rest()
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.warning("child_lost", worker=self.name, pid=pid, why=why, replaced_in_s=wait_s)

    def kill(self) -> None:
        """End the process and all below it at once, and wait until it is gone."""
        if self.pid is not None:
            self.tell(signal.SIGKILL)  # its producers die with it
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = None

    def tell(self, number: int) -> None:
        """Send it a signal; safe in a signal handler."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _rest(self) -> float:
        self._failures += 1
        wait_s = backoff_s(self._failures)
        self._not_before_s = time.monotonic() + wait_s
        return wait_s


def forked_beat(
    app_path: str, *, name: str, parent_pid: int, lifeline: int, unblock: Callable[[], object]
) -> int:
    """Run a beat in this just forked process and return its exit code.

    `unblock` lets signals in again, once somebody listens to them: until then they wait.
    """
    os.setsid()
    die_with(parent_pid, lifeline)
    try:
        return run_beat(load_app(app_path), name=name, unblock=unblock)
    except (SqlQueueError, TransportError) as error:
        log.error("child_start_failed", worker=name, error=str(error))
        return START_FAILED
