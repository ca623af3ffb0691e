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
        JobFailed,
        JobNotFound,
        NotAvailable,
        Reject,
        ResultTimeout,
        Retry,
        SqlQueueError,
        TaskDefinitionError,
        TestingError,
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
    "JobFailed",
    "JobFields",
    "JobNotFound",
    "NotAvailable",
    "Reject",
    "Request",
    "ResultTimeout",
    "Retry",
    "Signature",
    "SqlQueue",
    "SqlQueueError",
    "Task",
    "TaskDefinitionError",
    "TestingError",
    "Tick",
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
    "JobFailed": "sqlqueue.errors",
    "JobFields": "sqlqueue.task_log",
    "JobNotFound": "sqlqueue.errors",
    "NotAvailable": "sqlqueue.errors",
    "Reject": "sqlqueue.errors",
    "Request": "sqlqueue.task",
    "ResultTimeout": "sqlqueue.errors",
    "Retry": "sqlqueue.errors",
    "Signature": "sqlqueue.task",
    "SqlQueue": "sqlqueue.app",
    "SqlQueueError": "sqlqueue.errors",
    "Task": "sqlqueue.task",
    "TaskDefinitionError": "sqlqueue.errors",
    "TestingError": "sqlqueue.errors",
    "Tick": "sqlqueue.beat.schedule",
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
