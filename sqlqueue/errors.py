"""The errors of the framework, in one tree.

    SqlQueueError
    ├ ConfigError                 settings, TOML, environment, durations, schedules; exit code 2
    ├ AppImportError              what -A names cannot be imported; exit code 2
    ├ TaskDefinitionError         a decorator used wrongly, a task in __main__, a name used twice
    ├ EnvelopeError               a call or a message that cannot be written or read
    │ ├ UnserializableArguments     raised by delay(); also a TypeError
    │ ├ BulkStopped                 one of many calls could not be written; says which
    │ └ UndecodableMessage          ends in the dead letters with its .reason
    │   ├ Unsigned                    signing_key is set, and nobody has signed it
    │   └ BadSignature                signed with another key, or changed since
    ├ UnknownTask                 a message names a task this worker has not got
    ├ NotAvailable                this broker cannot do that
    ├ BrokerUnavailable           a broker that is no file cannot be reached, or its package is missing
    ├ JobNotFound                 no job has this id
    ├ QueueNotFound               no queue has this name
    ├ ScheduleNotFound            no schedule entry has this name
    ├ JobFailed                   raised by AsyncResult.get() for a job that ended badly
    ├ ResultTimeout               the result did not come in time; also a TimeoutError
    ├ TestingError                app.testing used in a way that cannot work
    ├ Retry                       raise inside a task: run it again later
    ├ Reject                      raise inside a task: to the dead letters at once
    ├ UnserializableResult        what a task returned cannot be kept as JSON
    └ SoftTimeLimitExceeded       raised inside a task that runs longer than its soft limit

    JobCancelled                  stop: an operator asked the running job to; a BaseException
    TimeLimitExceeded             raised inside a task at its time limit, just before force is used;
                                  no Exception, so that a task does not catch it by the way

Each text says what happened, to what, and what to do next; the data stands in attributes. Errors of
the transport have a tree of their own, in sqlqueue_transport/errors.py.
"""

from __future__ import annotations

import math
from typing import TypeVar

from sqlqueue.text import quoted

__all__ = [
    "AppImportError",
    "BadSignature",
    "BrokerUnavailable",
    "BulkStopped",
    "ConfigError",
    "EnvelopeError",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "NotAvailable",
    "QueueNotFound",
    "Reject",
    "ResultTimeout",
    "Retry",
    "ScheduleNotFound",
    "SoftTimeLimitExceeded",
    "SqlQueueError",
    "TaskDefinitionError",
    "TestingError",
    "TimeLimitExceeded",
    "UndecodableMessage",
    "UnknownTask",
    "UnserializableArguments",
    "UnserializableResult",
    "Unsigned",
]


class SqlQueueError(Exception):
    """Anything that the framework itself raises."""

    def __reduce__(self) -> tuple[object, ...]:
        # An exception with arguments of its own pickles well and then fails to *un*pickle, which
        # hangs a process pool for ever. Text and attributes travel here, not the call.
        return _rebuilt, (type(self), self.args, self.__dict__)


class ConfigError(SqlQueueError):
    """A setting, a file, a variable, a duration or a schedule that makes no sense."""


class AppImportError(SqlQueueError):
    """What ``-A`` names cannot be imported, or is no application."""


class TaskDefinitionError(SqlQueueError):
    """A task or producer is declared in a way that cannot work."""


class EnvelopeError(SqlQueueError):
    """A call or a message that cannot be written or read."""


class UnserializableArguments(EnvelopeError, TypeError):
    """The arguments of a call cannot be written as JSON; nothing was published."""


class BulkStopped(EnvelopeError):
    """One of many calls cannot be published; its cause is the error that `delay` would have raised.

    ``index`` is its place among the calls, counted from 0; ``published`` how many before it are
    stored. Those between the two were not.
    """

    def __init__(self, index: int, published: int, why: str) -> None:
        super().__init__(
            f"call number {index}, counted from 0, cannot be published: {why} The first {published}"
            " calls are stored, and nothing after them. Mend it and publish the rest."
        )
        self.index = index
        self.published = published


class UndecodableMessage(EnvelopeError):
    """A message that is no job we could run, whoever wrote it.

    ``reason`` is one line for people. It never quotes the message's body.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unsigned(UndecodableMessage):
    """Only what is signed is run here, and this is not; see `signing`."""


class BadSignature(UndecodableMessage):
    """It is signed with a key this application does not have, or was changed after it was signed."""


class UnknownTask(SqlQueueError):
    """A message names a task which the application of this worker does not have."""

    def __init__(self, task: str, hint: str = "") -> None:
        super().__init__(
            f"no task named {quoted(task)} in this application{hint or '.'} Import the module that"
            " declares it where -A points, then requeue the job."
        )
        self.task = task


class NotAvailable(SqlQueueError):
    """The broker in use has no means to do what was asked."""

    def __init__(self, feature: str = "this") -> None:
        super().__init__(f"{feature}: not available on this broker")
        self.feature = feature


class BrokerUnavailable(SqlQueueError):
    """A broker that is no file cannot be reached, or the package that speaks to it is missing."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"cannot use the broker {url}: {why}. Is it running, and is its package installed?"
            " sqlqueue:///queue.db is a file here."
        )
        self.url = url


class JobNotFound(SqlQueueError):
    """No job has this id: it was never stored, or retention has removed it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"no job has the id {quoted(job_id)}. List jobs with 'sqlqueue inspect jobs'."
        )
        self.job_id = job_id


class QueueNotFound(SqlQueueError):
    """No queue has this name: nobody has declared it, and no message waits in it."""

    def __init__(self, queue: str, hint: str = "") -> None:
        super().__init__(
            f"there is no queue {quoted(queue)}{hint or '.'} List queues with 'sqlqueue inspect queues'."
        )
        self.queue = queue


class JobCancelled(BaseException):
    """The running job is to stop, because an operator asked it to (``sqlqueue cancel --terminate``).

    Raised in the task by the worker. A task may raise it, too, to end its own job: either way the job
    is ``cancelled``, and no attempt follows. What must be put in order belongs into a ``finally``.

    No ``SqlQueueError``, because it is no error: like ``asyncio.CancelledError`` and for its reason it
    is a ``BaseException``, so that the ``except Exception`` of a task which goes on after each
    failure (a loop over files, a client that tries again) does not swallow it.
    """

    def __init__(self, reason: str = "an operator asked the job to stop") -> None:
        super().__init__(reason)
        self.reason = reason


class ScheduleNotFound(SqlQueueError):
    """No schedule entry has this name: it was not added, and no beat has described it."""

    def __init__(self, entry: str, hint: str = "") -> None:
        super().__init__(
            f"the queue file has no schedule entry named {quoted(entry)}.{hint} List them with 'sqlqueue inspect"
            " schedule'."
        )
        self.entry = entry


class JobFailed(SqlQueueError):
    """The job whose result was asked for ended ``permanently_failed``, cancelled or expired.

    ``traceback`` is the text of the last attempt's traceback, None where there is none (the process
    of the attempt was lost, or the job never ran).
    """

    def __init__(
        self,
        job_id: str,
        error_type: str,
        *,
        error_message: str = "",
        traceback: str | None = None,
    ) -> None:
        what = f"{error_type}: {error_message}" if error_message else error_type
        super().__init__(f"job {job_id} failed: {what}")
        self.job_id = job_id
        self.error_type = error_type
        self.error_message = error_message
        self.traceback = traceback


class ResultTimeout(SqlQueueError, TimeoutError):
    """The job had not ended when the time given to ``get(timeout)`` was over; it goes on."""


class TestingError(SqlQueueError):
    """`app.testing` was used in a way that cannot work; the text says what to do instead."""

    __test__ = False  # pytest would take it for a class of tests


class Retry(SqlQueueError):
    """Raise inside a task to end this attempt and have the job run again.

    ``countdown`` is in seconds; None means the task's own back-off. The attempt counts: at
    ``max_attempts`` the job is ``permanently_failed`` all the same.
    """

    def __init__(self, countdown: float | None = None, reason: str = "") -> None:
        if countdown is not None and not (math.isfinite(countdown) and countdown >= 0):
            raise ValueError(f"Retry(countdown={countdown}): give seconds, 0 or more, or None")
        super().__init__(reason or "the task asked to be run again")
        self.countdown = countdown
        self.reason = reason


class Reject(SqlQueueError):
    """Raise inside a task to send the job to the dead letters at once, attempts left or not."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnserializableResult(SqlQueueError):
    """What a task returned cannot be written as JSON; the attempt has failed."""


class SoftTimeLimitExceeded(SqlQueueError):
    """Raised inside of a task that has run for its ``soft_time_limit``: clean up, and end.

    Uncaught, it fails the attempt like any other error. A task that catches it may go on, until its
    ``time_limit``.
    """

    def __init__(self) -> None:
        super().__init__("the task has run for its soft time limit")


class TimeLimitExceeded(BaseException):
    """Raised inside of a task that has run for its ``time_limit``, where other jobs share its process.

    A task that does not end within a second of it is ended together with its process. In the pool
    ``processes`` nothing is raised: the process is killed.
    """

    def __init__(self) -> None:
        super().__init__("the task has run for its time limit")


_E = TypeVar("_E", bound=SqlQueueError)


def _rebuilt(kind: type[_E], args: tuple[object, ...], attributes: dict[str, object]) -> _E:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error
