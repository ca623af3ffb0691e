"""A task framework with Celery's manners and no server: jobs live in one SQLite file.

    from sqlqueue import SqlQueue

    app = SqlQueue("tasks", broker_url="sqlqueue:///queue.db")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    add.delay(2, 3)

The names below are imported when they are first used: the command line lives in this package, too,
and must answer `--help` before Kombu is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlqueue.app import SqlQueue
    from sqlqueue.beat.schedule import Tick, crontab
    from sqlqueue.errors import (
        AppImportError,
        BulkStopped,
        ConfigError,
        EnvelopeError,
        JobCancelled,
        JobFailed,
        JobNotFound,
        NotAvailable,
        QueueNotFound,
        Reject,
        ResultTimeout,
        Retry,
        ScheduleNotFound,
        SoftTimeLimitExceeded,
        SqlQueueError,
        TaskDefinitionError,
        TestingError,
        TimeLimitExceeded,
        UndecodableMessage,
        UnknownTask,
        UnserializableArguments,
        UnserializableResult,
    )
    from sqlqueue.results import AsyncResult
    from sqlqueue.retry import Backoff
    from sqlqueue.task import Request, Signature, Task
    from sqlqueue.task_log import JobFields, get_task_logger

__all__ = [
    "AppImportError",
    "AsyncResult",
    "Backoff",
    "BulkStopped",
    "ConfigError",
    "EnvelopeError",
    "JobCancelled",
    "JobFailed",
    "JobFields",
    "JobNotFound",
    "NotAvailable",
    "QueueNotFound",
    "Reject",
    "Request",
    "ResultTimeout",
    "Retry",
    "ScheduleNotFound",
    "Signature",
    "SoftTimeLimitExceeded",
    "SqlQueue",
    "SqlQueueError",
    "Task",
    "TaskDefinitionError",
    "TestingError",
    "Tick",
    "TimeLimitExceeded",
    "UndecodableMessage",
    "UnknownTask",
    "UnserializableArguments",
    "UnserializableResult",
    "crontab",
    "get_task_logger",
]

_HOMES = {
    "AppImportError": "sqlqueue.errors",
    "AsyncResult": "sqlqueue.results",
    "Backoff": "sqlqueue.retry",
    "BulkStopped": "sqlqueue.errors",
    "ConfigError": "sqlqueue.errors",
    "EnvelopeError": "sqlqueue.errors",
    "JobCancelled": "sqlqueue.errors",
    "JobFailed": "sqlqueue.errors",
    "JobFields": "sqlqueue.task_log",
    "JobNotFound": "sqlqueue.errors",
    "NotAvailable": "sqlqueue.errors",
    "QueueNotFound": "sqlqueue.errors",
    "Reject": "sqlqueue.errors",
    "Request": "sqlqueue.task",
    "ResultTimeout": "sqlqueue.errors",
    "Retry": "sqlqueue.errors",
    "ScheduleNotFound": "sqlqueue.errors",
    "Signature": "sqlqueue.task",
    "SoftTimeLimitExceeded": "sqlqueue.errors",
    "SqlQueue": "sqlqueue.app",
    "SqlQueueError": "sqlqueue.errors",
    "Task": "sqlqueue.task",
    "TaskDefinitionError": "sqlqueue.errors",
    "TestingError": "sqlqueue.errors",
    "Tick": "sqlqueue.beat.schedule",
    "TimeLimitExceeded": "sqlqueue.errors",
    "UndecodableMessage": "sqlqueue.errors",
    "UnknownTask": "sqlqueue.errors",
    "UnserializableArguments": "sqlqueue.errors",
    "UnserializableResult": "sqlqueue.errors",
    "crontab": "sqlqueue.beat.schedule",
    "get_task_logger": "sqlqueue.task_log",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module at first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
