"""What a forked process must not inherit, and how it ends with its parent.

A task may fork: by itself, or through multiprocessing. The copy has our signal handlers, with which
`Process.terminate()` would only set a flag, and our call stack, on which it would return into the
worker's loop and settle its parent's job.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

__all__ = [
    "die_with",
    "end_stray_copy",
    "flush_output",
    "give_forks_default_signals",
    "kill_session",
]

_PR_SET_PDEATHSIG: Final = 1


def give_forks_default_signals() -> None:
    """Let every process forked from this one die by its signals again, from now on."""
    os.register_at_fork(after_in_child=_default_signals)


def _default_signals() -> None:
    # Python calls this in the new process's only thread, which then is the main one.
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        faulthandler.unregister(signal.SIGQUIT)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def end_stray_copy(pid: int, error: BaseException | None) -> None:
    """End this process at once if it is not `pid`, as a forked copy would have ended by itself.

    `error` is what user code raised; None when it returned.
    """
    if os.getpid() == pid:
        return
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
    try:
        flush_output()
    finally:
        os._exit(code & 0xFF)


def flush_output() -> None:
    """Write out what was printed, so that no fork prints it twice; user code may have closed it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def die_with(parent_pid: int, lifeline: int | None = None) -> None:
    """End this process when its parent ends, however it ends.

    `lifeline` is a pipe's reading end, for systems on which the kernel does not do it.
    """
    if sys.platform == "linux":
        # The kernel does it (prctl(2)); the check after it covers a parent already gone.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)
        return
    if lifeline is None:  # pragma: no cover - not on Linux
        return
    # Elsewhere the parent's end of a pipe closes with it.
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()  # pragma: no cover


def kill_session(leader: int) -> None:
    """Kill a process and all in its session, also who has left its group, as a shell's jobs do.

    The leader must not have been reaped: until then its number is nobody else's.
    """
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(leader, signal.SIGKILL)
    for pid in _session_of(leader):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _session_of(leader: int) -> list[int]:
    """Return the processes of a session. Elsewhere than on Linux nobody tells: none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # proc(5): the name in parentheses may hold anything; the sixth field is the session.
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def _watch(lifeline: int) -> None:  # pragma: no cover - not on Linux
    os.read(lifeline, 1)
    os._exit(1)
