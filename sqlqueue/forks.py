"""What a process that user code forks must not inherit from a worker or a beat.

A task may fork: by itself, or through multiprocessing. The copy has our signal handlers, with which
`Process.terminate()` would only set a flag, and our call stack, on which it would return into the
worker's loop and settle its parent's job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys

__all__ = ["end_stray_copy", "give_forks_default_signals"]


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
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code & 0xFF)
