"""Loggers of the standard library for tasks: their lines carry the job, and go where a worker's go.

Users of structlog need none of this: `log.bind_job` binds its context variables. The root logger,
and the loggers and handlers of the application, are left as they are.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final

from sqlqueue import log
from sqlqueue.text import escaped, quoted

__all__ = ["JobFields", "get_task_logger"]


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for tasks, to be used like one of `logging.getLogger(name)`.

    In a worker its lines go to the worker's log, from the worker's level on, with job id, task,
    queue and attempt; keys of `extra` become fields. Elsewhere it does what the standard library's
    logger of that name does. It may be made at import; any thread may use it, but a thread that a
    task starts by itself knows no job.
    """
    return _TaskLogger(name)


class JobFields(logging.Filter):
    """Give each record the job as attributes, for a handler of your own: `handler.addFilter(…)`.

    They are ``job_id``, ``task``, ``queue``, ``attempt`` and ``max_attempts``; None where there is
    no job, or no limit. Text is escaped. No record is left out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes; always True."""
        job = log.current_job()
        for key in log.JOB_FIELDS:
            value = job.get(key)
            setattr(record, key, escaped(value) if isinstance(value, str) else value)
        return True


class _TaskLogger(logging.Logger):
    """Stand below the logger of its name, which answers wherever no worker's log is configured.

    It is in no registry: the level of the application's own logger, which is WARNING unless somebody
    has set it, could not be lowered to the worker's without changing what is not ours.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.parent = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Say whether a line of this level is written: in a worker, by the worker's level."""
        least = log.level_in_force()
        if least is None:
            # Not super's: it remembers its answers, and only the registered are told of changes.
            return self.manager.disable < level and level >= self.getEffectiveLevel()
        return self.manager.disable < level and level >= (self.level or least)

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Write a record to the worker's log, and to handlers of this very object."""
        if log.level_in_force() is None:
            super().callHandlers(record)
            return
        # A line that cannot be written must not decide over a job.
        with contextlib.suppress(Exception):
            log.emit(record.levelno, _text_of(record), _fields_of(record))
        for handler in self.handlers:
            if record.levelno >= handler.level:
                handler.handle(record)

    def getChild(self, suffix: str) -> _TaskLogger:  # noqa: N802 - logging's name
        """Return a task logger of a name below."""
        return _TaskLogger(f"{self.name}.{suffix}")


# What every record has is no field of the caller's.
_NOT_EXTRA: Final = frozenset(
    {
        *vars(logging.makeLogRecord({})),
        "message",
        "asctime",
        "event",
        "logger",
        "level",
        "timestamp",
    }
) | {*log.JOB_FIELDS}


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or whose text cannot be had
        text = record.msg if isinstance(record.msg, str) else quoted(record.msg)
        return f"{text} {quoted(record.args)}" if record.args else text


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        key: value for key, value in vars(record).items() if key not in _NOT_EXTRA
    }
    fields["logger"] = record.name
    if record.exc_info:
        fields["exc_info"] = record.exc_info
    if record.stack_info:
        fields["stack"] = record.stack_info
    return fields
