"""Run one claimed message and say how it ended: a pipeline of small steps, without any store.

`prepare` reads the message and finds its task; `run` calls it. Whatever happens in user code ends
in an Outcome, also `sys.exit`, a bare BaseException, or an exception that cannot be printed: the
only place that catches everything. What can never work (an undecodable message, an unknown task, a
Reject) goes to the dead letters at once, with a reason.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlqueue import envelope
from sqlqueue.errors import (
    JobCancelled,
    Reject,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    UndecodableMessage,
    UnknownTask,
    UnserializableResult,
)
from sqlqueue.forks import end_stray_copy
from sqlqueue.task import Request, run_as
from sqlqueue.text import HIDDEN
from sqlqueue_transport.messages import Fault, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from types import TracebackType

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Taken
    from sqlqueue.progress import Reporter
    from sqlqueue.retry import RetryPolicy
    from sqlqueue.task import Task

__all__ = [
    "Gate",
    "Prepared",
    "errors_told_to",
    "fault_of",
    "job_id_of",
    "prepare",
    "run",
    "run_async",
    "task_name_of",
]

_MAX_TRACEBACK: Final = 20_000  # characters; the end is kept, where the error is
_MAX_FRAMES: Final = 100  # of each error of a chain, the innermost ones
_MAX_MESSAGE: Final = 2_000
_MAX_TYPE: Final = 200


@dataclass(frozen=True, slots=True)
class Prepared:
    """Be a message whose task is known and can be called. Limits are in seconds; 0 means none."""

    task: Task[..., Any]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    request: Request
    time_limit_s: float
    soft_time_limit_s: float
    policy: RetryPolicy
    is_sensitive: bool = False

    @property
    def allowed_when_lost(self) -> int:
        """Return how many attempts there may be when nobody can say what ended them; 0: any number."""
        return self.policy.allowed_when_lost(self.request.max_attempts)


class Gate(Protocol):
    """Be open while user code runs: only then may somebody else raise a limit in this thread.

    Such an error may still come after the block, until `close` has returned.
    """

    def __enter__(self) -> None:
        """Open."""

    def __exit__(self, *_: object) -> None:
        """Close, all but for what is on its way."""

    def close(self) -> None:
        """Let nothing come any more; may be called again when something came in it."""


def job_id_of(taken: Taken) -> str:
    """Return the job id in the headers, for logs; "?" where there is none."""
    found = taken.headers.get("id")
    return found if isinstance(found, str) else "?"


def task_name_of(taken: Taken) -> str:
    """Return the task's name in the headers, for logs; "?" where there is none."""
    found = taken.headers.get("task")
    return found if isinstance(found, str) else "?"


def prepare(app: SqlQueue, taken: Taken, *, worker: str) -> Prepared | Outcome:
    """Read a message; an Outcome means that it can never run. Calls no user code.

    With keys, what is not signed is not read at all.
    """
    try:
        app.keys.check_message(
            taken.headers, taken.body, taken.content_type, taken.content_encoding
        )
        call = envelope.parse(
            taken.headers,
            taken.body,
            content_type=taken.content_type,
            content_encoding=taken.content_encoding,
            max_bytes=app.conf.max_message_bytes,
        )
        task = app.find_task(call.task)
    except (UndecodableMessage, UnknownTask) as error:
        return Outcome.dead(fault_of(error), cause="rejected")
    options, conf = task.options, app.conf
    policy = app.policy_of(task)
    most = policy.most_attempts if taken.max_attempts is None else taken.max_attempts
    if 0 < most <= taken.attempts:
        # Another worker's application allowed more attempts than ours does.
        return Outcome.dead(Fault("AttemptsExhausted", f"it has had its {most}"), cause="rejected")
    return Prepared(
        task=task,
        args=call.args,
        kwargs=call.kwargs,
        request=Request(
            id=call.id,
            task=call.task,
            attempt=taken.attempts + 1,
            max_attempts=most,
            queue=taken.queue,
            delivery=taken.delivery,
            worker=worker,
        ),
        time_limit_s=_first(call.time_limit_s, options.time_limit, conf.task_time_limit),
        soft_time_limit_s=_first(
            call.soft_time_limit_s, options.soft_time_limit, conf.task_soft_time_limit
        ),
        policy=policy,
        # Also of a call that was published without the mark: at least what it leads to is kept.
        is_sensitive=call.is_sensitive or options.sensitive,
    )


def _first(*limits: float | None) -> float:
    """Return the first limit that was given; 0 means none."""
    return next((limit for limit in limits if limit is not None), 0.0)


def run(prepared: Prepared, gate: Gate, reporter: Reporter | None = None) -> Outcome:
    """Call the task in this thread and turn what happened into an Outcome; never raises.

    In a context of its own (`contextvars.copy_context`): from here on it is that of the job.
    `reporter` is whom the task tells how far it is, None where nobody listens. A copy of this process
    that the task forked, and that comes back here, is ended.
    """
    outcome: Outcome | None = None
    while True:
        try:
            if outcome is None:
                outcome = _call(prepared, gate, reporter)
            gate.close()
        except (SoftTimeLimitExceeded, TimeLimitExceeded) as late:
            # It came after the task's end and before the gate was shut. There is one at most: who
            # throws limits keeps them apart.
            outcome = _failed(prepared, late)
        else:
            return outcome


def _call(prepared: Prepared, gate: Gate, reporter: Reporter | None) -> Outcome:
    pid = os.getpid()
    try:
        run_as(prepared.request, reporter)
        with gate:
            value = prepared.task(*prepared.args, **prepared.kwargs)
        end_stray_copy(pid, None)
        return Outcome.done(envelope.dump_result(value))
    except BaseException as error:  # noqa: BLE001 - user code: the one place that catches everything
        end_stray_copy(pid, error)
        return _failed(prepared, error)


async def run_async(
    prepared: Prepared,
    steer: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
    reporter: Reporter | None = None,
) -> Outcome:
    """Await the task, an async function, and turn what happened into an Outcome; never raises.

    In an asyncio task of its own, whose context is from here on that of the job.
    `steer` awaits the task's coroutine, and may throw limits into it; `reporter` as for `run`.
    """
    pid = os.getpid()
    try:
        run_as(prepared.request, reporter)
        value = await steer(prepared.task(*prepared.args, **prepared.kwargs))
        end_stray_copy(pid, None)
        return Outcome.done(envelope.dump_result(value))
    except BaseException as error:  # noqa: BLE001 - as in `_call`
        end_stray_copy(pid, error)
        return _failed(prepared, error)


@contextlib.contextmanager
def errors_told_to(tell: Callable[[str, BaseException], object]) -> Iterator[None]:
    """Call `tell` with job id and exception of each attempt that fails in the block, in this thread.

    For `app.testing`, which raises them in the test: an Outcome keeps only their text. `tell` must
    not raise.
    """
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


_tell: ContextVar[Callable[[str, BaseException], object] | None] = ContextVar(
    "sqlqueue_errors_told_to", default=None
)


def _failed(prepared: Prepared, error: BaseException) -> Outcome:
    tell = _tell.get()
    if tell is not None:
        tell(prepared.request.id, error)
    fault = fault_of(error, hide=prepared.is_sensitive)
    if prepared.is_sensitive and (text := _told_without_values(prepared, error)):
        fault = Fault(fault.type, text, fault.traceback)
    kind = _ended_by(error)
    if kind is JobCancelled:
        # Also of the task's own will. Whether an operator asked is the store's to know.
        return Outcome.cancelled(fault)
    if isinstance(error, Reject):
        return Outcome.dead(fault, cause="rejected")
    cause = "failed"
    if kind is not None:
        cause, fault = "timed_out", _with_limit(fault, prepared, kind)
        error = kind()  # and not the group it may have come in
    request = prepared.request
    in_s = prepared.policy.retry_in_s(error, request.attempt, request.max_attempts, _random)
    if in_s is None:
        return Outcome.dead(fault, cause=cause)
    return Outcome.retry(fault, in_s=in_s, cause=cause)


def _ended_by(error: BaseException) -> type[BaseException] | None:
    """Return what was raised from outside, if that ended the task: the weightiest, None for nothing.

    A task group wraps what was raised in its block, and what its tasks made of it.
    """
    found: set[type[BaseException]] = set()
    left = [error]
    while left:
        one = left.pop()
        found.update(kind for kind in _FROM_OUTSIDE if isinstance(one, kind))
        if isinstance(one, _GROUP):
            left += one.exceptions
    return next((kind for kind in _FROM_OUTSIDE if kind in found), None)


def _told_without_values(prepared: Prepared, error: BaseException) -> str | None:
    """Say what went wrong with a sensitive job outside of its code; None where its code raised it.

    That is ours to tell, and needs nothing of what is secret.
    """
    if _of_user_code(error) is not None:
        return None
    if isinstance(error, UnserializableResult):
        return (
            "the result is no JSON (value hidden). Return text, numbers, lists and dicts, or nothing;"
            " keep large data in a file and return its name."
        )
    if isinstance(error, TypeError) and not prepared.task.accepts(
        *prepared.args, **prepared.kwargs
    ):
        return (
            "the arguments do not fit the task's signature (values hidden). Publish it anew with those"
            " of the function."
        )
    return None


def _with_limit(fault: Fault, prepared: Prepared, kind: type[BaseException]) -> Fault:
    """Say how long the limit was: who raises an error in another thread can only name its class."""
    soft = kind is SoftTimeLimitExceeded
    limit_s = prepared.soft_time_limit_s if soft else prepared.time_limit_s
    text = f"it ran longer than its {'soft ' if soft else ''}time limit of {limit_s:g} s"
    return Fault(kind.__name__, text, fault.traceback)


_FROM_OUTSIDE: Final = (JobCancelled, TimeLimitExceeded, SoftTimeLimitExceeded)
# There are none before Python 3.11, and nothing is an instance of no type.
_GROUP: Final[Any] = getattr(builtins, "BaseExceptionGroup", ())
_random = random.SystemRandom()  # survives forks: siblings must not draw the same jitter


def fault_of(error: BaseException, *, hide: bool = False) -> Fault:
    """Describe an exception in bounded, valid text, whatever its own methods do.

    With `hide`, by its type and the lines of code it came through alone: what an exception says, and
    what those say which it came of, is made of arguments as often as not.
    """
    if hide:
        return Fault(
            _said(lambda: type(error).__name__, _MAX_TYPE) or "BaseException",
            HIDDEN,
            _said(lambda: _frames(error), -_MAX_TRACEBACK) or None,
        )
    return Fault(
        _said(lambda: type(error).__name__, _MAX_TYPE) or "BaseException",
        _said(lambda: str(error), _MAX_MESSAGE),
        _said(lambda: _trace(error), -_MAX_TRACEBACK) or None,
    )


def _said(ask: Callable[[], str], limit: int) -> str:
    """Ask an exception for a text; keep `limit` characters of its beginning, below 0 of its end."""
    try:
        # Cut first: the text may be all the memory there is. And by str's own methods: it may be
        # a subclass with others.
        text = ask()
        kept = str.__getitem__(text, slice(limit) if limit > 0 else slice(limit, None))
        left_out = str.__len__(text) - len(kept)
        clean = kept.encode("utf-8", "backslashreplace").decode("utf-8")
    except BaseException as broken:  # noqa: BLE001 - what an exception says is user code, too
        return f"(its text cannot be had: {type(broken).__name__})"
    if not left_out:
        return clean
    if limit < 0:
        return f"… {left_out} characters left out …\n{clean}"
    return f"{clean}… ({left_out} characters left out)"


def _trace(error: BaseException) -> str:
    """Return the traceback from the first frame of user code on; "" where there is none."""
    frames = _of_user_code(error)
    if frames is None:
        return ""
    return "".join(traceback.format_exception(type(error), error, frames, limit=-_MAX_FRAMES))


def _frames(error: BaseException) -> str:
    """Return the traceback as `_trace` does, without a word of any exception."""
    frames = _of_user_code(error)
    lines = traceback.format_tb(frames, limit=-_MAX_FRAMES)
    return "".join(
        ["Traceback (most recent call last):\n", *lines, f"({HIDDEN})\n"] if lines else []
    )


def _of_user_code(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OUR_MODULES:
        frames = frames.tb_next
    return frames


_OUR_MODULES: Final = frozenset(
    {__name__, "sqlqueue.app", "sqlqueue.envelope", "sqlqueue.signing", "sqlqueue.task"}
)
