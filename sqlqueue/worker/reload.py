"""Start a worker anew whenever a Python file of its application changes: for development.

The watching process imports nothing of the application. The worker is a process of its own, drained
as by any SIGTERM, so that an edit loses no running job. It dies with the one that watches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlqueue.errors import ConfigError
from sqlqueue.forks import die_with
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["run_reloading"]

_EXIT_USAGE: Final = 2  # of an application that cannot be imported, too
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON: Final = (*_STOPPING, signal.SIGHUP, signal.SIGQUIT)
_LOOK_EVERY_S: Final = 0.05


def run_reloading(app_path: str, arguments: Sequence[str]) -> int:
    """Run `sqlqueue` with these arguments, and again after each change; return its exit code.

    In the main thread. Its signals are passed on to the worker; SIGTERM and SIGINT end both. So does
    a worker that ends by itself, unless it is because of an edit: one that breaks the import is
    waited out, as the next edit may mend it. Raises ConfigError where watchfiles is not installed.
    """
    try:
        import watchfiles  # noqa: PLC0415 - only here, and perhaps not installed
    except ImportError:
        raise ConfigError(
            f"--reload needs watchfiles. Install it: {sys.executable} -m pip install watchfiles"
        ) from None
    return _Reloader(watchfiles, arguments, _watched(app_path)).run()


class _Reloader:
    def __init__(self, watchfiles: Any, arguments: Sequence[str], paths: Sequence[Path]) -> None:
        self._watchfiles = watchfiles
        self._arguments = arguments
        self._paths = paths
        self._signals: list[int] = []
        self._is_told = False

    def run(self) -> int:
        _say(f"watching {', '.join(map(str, self._paths))} for changes")
        with self._noting_signals():
            was_edited = False
            while True:
                worker = self._start()
                changed = self._change(worker, while_it_runs=True)
                if changed and not self._is_told:
                    _say(f"{changed} changed, starting anew")
                    worker.terminate()
                code = self._end_of(worker)
                if not changed and code == _EXIT_USAGE and was_edited and not self._is_told:
                    _say("waiting for a change that mends it")
                    changed = self._change(worker, while_it_runs=False)
                if not changed or self._is_told:
                    return code if code >= 0 else 128 - code
                was_edited = True

    def _start(self) -> subprocess.Popen[bytes]:
        watcher = os.getpid()
        return subprocess.Popen(  # noqa: S603 - our own command line, as it was typed
            [sys.executable, "-m", "sqlqueue", *self._arguments],
            # A session of its own: ctrl-c comes here, and is passed on as one signal.
            start_new_session=True,
            preexec_fn=lambda: die_with(watcher),  # noqa: PLW1509 - nothing here has threads now
        )

    def _change(self, worker: subprocess.Popen[bytes], *, while_it_runs: bool) -> str | None:
        """Wait for a change and return a file's name; None when told to stop.

        With `while_it_runs` also when the worker has ended.
        """

        class Stop:
            @staticmethod
            def is_set() -> bool:
                self._pass_signals_on(worker)
                return self._is_told or (while_it_runs and worker.poll() is not None)

        for changes in self._watchfiles.watch(
            *self._paths,
            watch_filter=self._watchfiles.PythonFilter(),
            stop_event=Stop(),
            step=round(_LOOK_EVERY_S * 1000),
        ):
            return Path(min(path for _, path in changes)).name
        return None

    def _end_of(self, worker: subprocess.Popen[bytes]) -> int:
        while True:
            self._pass_signals_on(worker)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return worker.wait(_LOOK_EVERY_S)

    def _pass_signals_on(self, worker: subprocess.Popen[bytes]) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._is_told = self._is_told or number in _STOPPING
            worker.send_signal(number)  # harmless when it has ended

    @contextlib.contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Only note them: passing on waits until there is a worker, and no start is under way."""
        before = {
            number: signal.signal(number, lambda number, _: self._signals.append(number))
            for number in _PASSED_ON
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _watched(app_path: str) -> list[Path]:
    """Return the working directory and, if it is not in there, that of the application's package."""
    here = Path.cwd()
    top = app_path.partition(":")[0].partition(".")[0]
    # Found, and not imported: that is user code, and nobody could import it again.
    spec = PathFinder.find_spec(top, [str(here), *sys.path])
    found = [] if spec is None else list(spec.submodule_search_locations or [])
    if spec is not None and not found and spec.origin:
        found = [str(Path(spec.origin).parent)]
    elsewhere = [path for path in map(Path, found) if not path.resolve().is_relative_to(here)]
    return [here, *elsewhere]


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed standard error
        sys.stderr.write(f"sqlqueue: {escaped(text)}\n")
        sys.stderr.flush()
