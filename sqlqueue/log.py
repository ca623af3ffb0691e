"""What the processes of the framework say, as structured events.

Workers, beats and the command line call `configure` once; until then, in a process that only
publishes jobs, events go to the standard library's logger of the module's name, and its host
decides what becomes of them. The root logger is never touched, nor is structlog's own
configuration, which belongs to the application.

Three promises: logging never raises into its caller; text of strangers cannot move the terminal's
cursor or forge a line; a line is written whole, so that processes can share a file. structlog is
imported here only, and late: with the first line to be written, or when the application does. It
takes 20 ms and 5 MB, which a worker that has nothing to tell need not have.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import sys
import threading
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlqueue.errors import ConfigError
from sqlqueue.log_file import LogFile
from sqlqueue.text import did_you_mean, escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType

__all__ = [
    "EVENTS",
    "JOB_FIELDS",
    "Logger",
    "bind_job",
    "configure",
    "get_logger",
    "is_on_terminal",
    "reopen",
]

Format: TypeAlias = Literal["auto", "console", "json"]

#: What names a job, in this order; no max_attempts where there is no limit.
JOB_FIELDS: Final = ("job_id", "task", "queue", "attempt", "max_attempts")

#: Every event there is, by name, and what it says. Names are past tense; new ones are added here.
EVENTS: Final[dict[str, str]] = {
    # The supervisor and its children
    "worker_started": "a supervisor runs; its pid, application, queues, pool",
    "worker_ready": "all its children are up and claim jobs",
    "worker_draining": "no new jobs, running ones may finish: a signal came, or see presence_lost",
    "worker_stopped": "all children are gone",
    "worker_swept": "others took this consumer for dead and released its jobs; it registers anew",
    "grace_over": "the drain took too long; what still runs is released uncounted",
    "child_started": "a child process runs",
    "child_stopped": "a child ended as it was told to, or had no more to do",
    "child_recycled": "a child ends between two jobs, to be replaced by a fresh one, and why",
    "child_start_delayed": "a child has not begun to claim for so long: its import takes or hangs",
    "child_start_failed": "a child ended before it claimed; how often now, and when it is tried again",
    "child_crashed": "an error escaped in a child; it ends",
    "child_lost": "a child died by itself; its started job counts as an attempt",
    "child_killed": "the supervisor killed a child, and why",
    "loop_interrupted": "a task of user code would have ended the event loop; it goes on",
    "leftover_failed": "what a job left on an event loop raised, after a sensitive one ran there",
    "burst_waiting": "--burst has nothing to claim, but jobs are due or running elsewhere",
    "burst_left_paused": "--burst ends; what waits in paused queues is left, by queue",
    "app_import_failed": "a child could not import what -A names",
    "app_import_delayed": "the import of what -A names takes long, or hangs",
    "log_reopened": "SIGHUP: the log file was opened anew, here and in the children",
    "stacks_printed": "SIGQUIT: the stacks of all processes went to standard error",
    "notify_failed": "the service manager's socket cannot be written to",
    # One job
    "job_started": "a task begins; how long the job was ready for it, null if that is not known",
    "job_done": "it ended well; how long it took",
    "job_retry_scheduled": "an attempt failed, and another one follows",
    "job_permanently_failed": "no attempt follows; the job is a dead letter",
    "job_cancelled": "an operator asked it to stop, or it gave up by itself; no attempt follows",
    "job_expired": "its time was over before it could start",
    "job_released": "handed back uncounted: never started, or not finished when the drain ended",
    "job_timed_out": "it reached its time limit",
    "lease_lost": "a late settlement was refused: the job belongs to somebody else by now",
    # The beat
    "beat_started": "a beat runs; its entries",
    "beat_stopped": "a beat ended",
    "tick_enqueued": "a due entry enqueued its calls",
    "tick_skipped": "an entry enqueued nothing for a tick, and why: overlap, or its catch-up policy",
    "ticks_forgotten": "the clock was set back: ticks of the future that was taken back may come again",
    "producer_failed": "a producer raised, took too long or ended its process; it is tried again",
    "schedule_empty": "a beat runs that has no entries; it waits for what is added",
    "entry_refused": "an entry of code or file cannot run; the others do",
    "schedule_changed": "entries were added, removed, paused or resumed; the beat goes by the new ones",
    "clock_jumped": "the wall clock was set, or the machine slept: by more than an hour",
    # The store
    "store_busy": "somebody else holds the writer lock for long, or the disk refused",
    "store_gone": "the database file was replaced, or another version migrated it",
    "presence_lost": "the presence file was removed or replaced: worker or beat ends with code 1",
    "wal_grown": "its write-ahead log stays large; the processes that read just now, if known",
    "history_pruned": "what was removed as old, rows by kind, and pages given back",
}


class Logger:
    """A named source of events. Make one a module, with `get_logger`.

    ``log.info("job_done", took_s=1.2)``. Fields may be anything: what is no text or number is shown
    by its repr. No method raises.
    """

    __slots__ = ("_fields", "_name")

    def __init__(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self._name = name
        self._fields = dict(fields or {})

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds these fields to each event."""
        return Logger(self._name, {**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """Tell what only somebody hunting a bug wants to know."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Tell what went as it should."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Tell what an operator may want to look into."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Tell what went wrong. ``exc_info=error`` adds a traceback, of any level's event."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Tell what went wrong, with the traceback of the exception being handled."""
        self._emit(logging.ERROR, event, {"exc_info": True, **fields})

    @property
    def tells_info(self) -> bool:
        """Say whether `info` writes anything: for who would have to work for what it tells."""
        return _active is None or _active.level <= logging.INFO

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        if _active is not None and level < _active.level:
            return
        # Whatever happens in here (a full disk, a closed stream, a repr that raises) must not decide
        # over a job. Exceptions that are no errors, as a signal handler raises them, pass.
        with contextlib.suppress(Exception):
            fields = {"logger": self._name, **self._fields, **fields}
            if _active is None:
                _emit_through_logging(level, event, fields)
            else:
                _active.emit(level, event, fields)


def get_logger(name: str) -> Logger:
    """Return the logger of a module: ``get_logger(__name__)``. Costs nothing, imports nothing."""
    return Logger(name)


def configure(
    level: str = "info",
    *,
    format: Format = "auto",  # noqa: A002 - as the setting log_format
    file: Path | None = None,
    always: Mapping[str, object] | None = None,
) -> None:
    """Say where the events of this process go, and how they look. May be called again.

    `file` None is standard error. ``auto`` is console on a terminal and JSON elsewhere; a file is
    no terminal. A missing directory is made 0700, a missing file 0600. The file is appended to, and
    opened again whenever it was moved or removed, so logrotate needs no signal (nor does its
    copytruncate). `always` holds fields for every event, such as the worker's name.

    An application's own structlog loggers write to the same place, unless it has configured
    structlog itself. Raises ConfigError, and then what was in force stays in force.
    """
    if level not in _LEVELS:
        raise ConfigError(
            f"log level {quoted(level)} is not known.{did_you_mean(str(level), _LEVELS)}"
            f" Choose one of: {', '.join(_LEVELS)}."
        )
    if format not in {"auto", "console", "json"}:
        raise ConfigError(
            f"log format {quoted(format)} is not known. Choose one of: auto, console, json."
        )
    on_terminal = file is None and _is_terminal(sys.stderr)
    as_json = format == "json" or (format == "auto" and not on_terminal)
    number = _LEVELS[level]
    global _active  # noqa: PLW0603 - one process has one log
    before = _active
    structlog = _structlog_if_imported()
    ours_before = (
        structlog is not None
        and before is not None
        and structlog.get_config()["processors"] is before.processors
    )
    log_file = None if file is None else _log_file(file, before)
    _active = _Active(
        level=number,
        as_json=as_json,
        colors=on_terminal,
        always=dict(always or {}),
        write=_write_to_stderr if log_file is None else log_file.write,
        file=log_file,
    )
    if structlog is not None:
        if ours_before or not structlog.is_configured():
            _configure(structlog, _active)
        return
    if not any(isinstance(one, _WhenImported) for one in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())
    if number <= logging.INFO:
        # The first line comes at once, and perhaps from a signal handler that interrupts an import.
        _ = _active.processors


def _configure(structlog: Any, active: _Active) -> None:
    """Let the application's own structlog loggers write where we do."""
    structlog.configure(
        processors=active.processors,
        wrapper_class=structlog.make_filtering_bound_logger(active.level),
        logger_factory=_Sink,
    )


def reopen() -> None:
    """Open the log file again, for whoever is told of a rotation by a signal. Never raises."""
    with contextlib.suppress(Exception):
        if _active is not None and _active.file is not None:
            _active.file.reopen()


def is_on_terminal() -> bool:
    """Say whether the events of this process go to a terminal, by way of standard error."""
    return (_active is None or _active.file is None) and _is_terminal(sys.stderr)


def level_in_force() -> int | None:
    """Return from which of logging's levels on lines are written; None before `configure`."""
    return None if _active is None else _active.level


def emit(level: int, event: str, fields: dict[str, object]) -> None:
    """Write a line of somebody else's, at any of logging's levels; nothing before `configure`."""
    if _active is not None:
        named = max((one for one in _NAMES if one <= level), default=logging.DEBUG)
        _active.emit(named, event, fields)


def bind_job(fields: Mapping[str, object]) -> None:
    """Add the job to every event from now on in this context, ours and those of the task's structlog.

    `fields` are those of `JOB_FIELDS` that are known. They live in context variables: call it in a
    context that is the job's alone, and two jobs in one process do not mix. On a console attempt and
    max_attempts read ``2/5``.
    """
    _job.set(fields)
    structlog = _structlog_if_imported()
    if structlog is not None:  # for an application with a chain of its own
        structlog.contextvars.bind_contextvars(**fields)


def current_job() -> dict[str, object]:
    """Return what `bind_job` adds here to each event, and what was bound with structlog."""
    structlog = _structlog_if_imported()
    bound = structlog.contextvars.get_contextvars() if structlog is not None else {}
    return {**(_job.get() or {}), **bound}


# --- from a call to a line ------------------------------------------------------------------------

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_NAMES: Final = {number: name for name, number in _LEVELS.items()}
_FIRST: Final[tuple[str, ...]] = ("timestamp", "level", "event", "logger", *JOB_FIELDS)
_MAX_CHARS: Final = 8192  # of one value
_MAX_TRACEBACK_CHARS: Final = 65_536
_MAX_DEPTH: Final = 4
_MAX_ELEMENTS: Final = 100

_EventDict: TypeAlias = "MutableMapping[str, Any]"
_Processor: TypeAlias = "Callable[[Any, str, _EventDict], Any]"


class _Active:
    """The configuration in force."""

    def __init__(
        self,
        *,
        level: int,
        as_json: bool,
        colors: bool,
        always: Mapping[str, object],
        write: Callable[[str], None],
        file: LogFile | None,
    ) -> None:
        self.level = level
        self.as_json = as_json
        self.write = write
        self.file = file
        self._colors = colors
        self._always = always
        self._chain: Sequence[_Processor] | None = None

    @property
    def processors(self) -> Sequence[_Processor]:
        """Return structlog's, the last of which makes the line. Imports it."""
        if self._chain is None:
            import structlog  # noqa: PLC0415 - late, see above

            if self._chain is None:  # or the import has asked for it: see `_execute`
                self._chain = _chain(
                    structlog, as_json=self.as_json, colors=self._colors, always=self._always
                )
        return self._chain

    def emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        # The chain is run here, and not by a structlog logger, because that takes the fields as
        # keyword arguments, where "event" and "self" are taken.
        said: Any = {**fields, "event": event}
        for processor in self.processors:
            said = processor(None, _NAMES[level], said)
        self.write(said)


_active: _Active | None = None
_job: ContextVar[Mapping[str, object] | None] = ContextVar("sqlqueue_job", default=None)


class _Sink:
    """What structlog wraps for the application's own loggers: one more way to our file."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        with contextlib.suppress(Exception):
            if _active is not None:
                _active.write(line)

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


def _emit_through_logging(level: int, event: str, fields: dict[str, object]) -> None:
    logger = logging.getLogger(str(fields.pop("logger")))
    if logger.isEnabledFor(level):
        exc_info: Any = fields.pop("exc_info", None)
        said = [escaped(event), *(f"{escaped(k)}={_harmless(v)}" for k, v in fields.items())]
        logger.log(level, "%s", " ".join(said), exc_info=exc_info)


def _chain(
    structlog: Any, *, as_json: bool, colors: bool, always: Mapping[str, object]
) -> Sequence[_Processor]:
    """Return structlog's chain: from what was said to the text of a line."""
    renderer: _Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        # Rich's tracebacks would show local variables, and execute markup in them.
        else structlog.dev.ConsoleRenderer(
            colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
    )

    def made_harmless(_: object, __: str, said: _EventDict) -> _EventDict:
        said = {**always, **(_job.get() or {}), **said}
        trace = _traceback_of(said)
        if not as_json and "attempt" in said and "max_attempts" in said:
            said["attempt"] = f"{said['attempt']}/{said.pop('max_attempts')}"
        ordered = {key: _harmless(said.pop(key)) for key in _FIRST if key in said}
        ordered.update((escaped(str(key)), _harmless(value)) for key, value in said.items())
        if trace:
            ordered["exception"] = trace
        if not as_json:
            # The console puts these two on lines of their own: indented, they pass for no event.
            for key in ordered.keys() & {"exception", "stack"}:
                ordered[key] = _indented(str(ordered[key]))
        return ordered

    return (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        made_harmless,
        renderer,
    )


def _harmless(value: object, depth: int = 0) -> object:
    """Return a value that any renderer can show, and that moves no cursor. Never raises."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return escaped(_cut(str(value), _MAX_CHARS))
    if isinstance(value, int):  # Python refuses to write integers of more than 4300 digits
        return int(value) if value.bit_length() <= 1024 else f"<{value.bit_length()} bits>"
    if isinstance(value, float):  # NaN is not JSON
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return escaped(os.fsdecode(value))
    if depth < _MAX_DEPTH and isinstance(value, dict):
        pairs = itertools.islice(value.items(), _MAX_ELEMENTS)
        return {escaped(_cut(str(k), 200)): _harmless(each, depth + 1) for k, each in pairs}
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        elements = itertools.islice(value, _MAX_ELEMENTS)
        return [_harmless(each, depth + 1) for each in elements]
    return quoted(value, limit=_MAX_CHARS)


def _traceback_of(said: _EventDict) -> str:
    """Take ``exc_info`` out of an event and return it as text, "" if there is none."""
    exc_info = said.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if not isinstance(error, BaseException):
        return ""
    try:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001 - traceback asks the exception for its text, which is user code
        trace = f"{type(error).__name__} (its traceback could not be written)"
    return escaped(_cut(trace.rstrip("\n"), _MAX_TRACEBACK_CHARS), keep_newlines=True)


def _cut(text: str, limit: int) -> str:
    """Leave the middle out: of a traceback, both ends matter."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … {len(text) - limit} characters … {text[-half:]}"


def _indented(trace: str) -> str:
    return "\n".join(f"  | {line}" for line in trace.split("\n"))


# --- where lines go -------------------------------------------------------------------------------


def _write_to_stderr(line: str) -> None:
    # Asked for each time: the live view of a terminal, and tests, put their own in its place.
    stream = sys.stderr
    if stream is None:  # a daemon without one
        return
    try:
        stream.write(f"{line}\n")
    except UnicodeEncodeError:
        stream.write(f"{line.encode('ascii', 'backslashreplace').decode()}\n")
    stream.flush()


def _log_file(path: Path, before: _Active | None) -> LogFile:
    path = path.expanduser().absolute()
    # A forked child that configures itself goes on with the descriptor it has.
    if before is not None and before.file is not None and before.file.path == path:
        return before.file
    return LogFile(path)


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined] # or there is none, or it is closed
    except (AttributeError, ValueError):
        return False


# --- structlog, late ------------------------------------------------------------------------------


def _structlog_if_imported() -> Any:
    """Return structlog if it is there whole, and not still being imported by another thread."""
    structlog = sys.modules.get("structlog")
    return structlog if hasattr(structlog, "__all__") else None


class _WhenImported:
    """Lets structlog be ours from the moment on that somebody imports it, and then goes away."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        if name != "structlog":
            return None
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        from importlib.util import find_spec  # noqa: PLC0415 - late: seldom come to

        spec = find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            loader.exec_module = functools.partial(_execute, loader.exec_module)
        return spec


def _execute(execute: Callable[[ModuleType], None], structlog: ModuleType) -> None:
    """Run structlog's own code, without rich where nothing needs that, and have it write to us.

    structlog imports rich where it is installed, for tracebacks in colour: half of its own time,
    and megabytes in every worker, which writes JSON and never needs it.
    """
    active = _active
    without_rich = [_WithoutRich()] if active is not None and active.as_json else []
    sys.meta_path[:0] = without_rich
    try:
        execute(structlog)
    finally:
        for one in without_rich:
            sys.meta_path.remove(one)
    if active is not None:
        _configure(structlog, active)
    if fields := _job.get():  # a task imports it
        structlog.contextvars.bind_contextvars(**fields)


class _WithoutRich:
    """Lets imports of rich fail, in the thread that asked for it and in no other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object, target: object = None) -> None:  # noqa: ARG002
        if name == "rich" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(name, name=name)
