"""A task: a decorated function that can be called here, or enqueued to run in a worker."""

from __future__ import annotations

from collections.abc import Sized
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, cast

from sqlqueue import progress
from sqlqueue.bulk import CHUNK
from sqlqueue.errors import JobCancelled, Retry
from sqlqueue.retry import Backoff, RetryPolicy
from sqlqueue.text import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlqueue.app import SqlQueue
    from sqlqueue.progress import Reporter
    from sqlqueue.results import AsyncResult

__all__ = ["AsyncTask", "Request", "Signature", "Task", "TaskOptions", "leave_store", "run_as"]

P = ParamSpec("P")
R = TypeVar("R")
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)


@dataclass(slots=True)
class Stop:
    """Be what the worker wants of a running job, set from another thread.

    `is_asked` says that it is not to go on, `was_raised` that the task has met JobCancelled for it at a
    checkpoint. `raise_pending` raises what could not be raised before,
    because the store was at work.
    """

    is_asked: bool = False
    was_raised: bool = False
    raise_pending: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Request:
    """Be what a bound task knows of the job it runs.

    `attempt` counts from 1, `max_attempts` is how many there may be, 0 any number; `delivery` is
    raised each time the message is handed out, so (id, delivery) names this very execution;
    `worker` is the child's name.
    """

    id: str
    task: str
    attempt: int
    max_attempts: int
    queue: str
    delivery: int
    worker: str

    def __post_init__(self) -> None:
        """Keep the worker's wishes beside the fields: they are no data, for `asdict` or a log."""
        object.__setattr__(self, "_stop", Stop())

    @property
    def stop(self) -> Stop:
        """Return where the worker says what it wants of this job. For the worker."""
        stop: Stop = self.__dict__["_stop"]
        return stop

    @property
    def cancelled(self) -> bool:
        """Say whether the job is not to go on: an operator wants it to stop, or it is another's now.

        Known within a second or two. See `Task.checkpoint`.
        """
        return self.stop.is_asked


@dataclass(frozen=True, slots=True)
class Signature:
    """Be a call that is not made yet: what producers yield and schedule entries enqueue.

    That of a sensitive task, `is_sensitive`, does not show its arguments; who made it may read them.
    """

    task: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    # It decides what is shown, and makes no other call of it.
    is_sensitive: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        """Show the call, of a sensitive one the task and its options alone."""
        if self.is_sensitive or self.options.get("sensitive"):
            return f"Signature(task={self.task!r}, options={self.options!r}, {HIDDEN})"
        return (
            f"Signature(task={self.task!r}, args={self.args!r}, kwargs={self.kwargs!r},"
            f" options={self.options!r})"
        )

    def set(self, **options: Any) -> Signature:
        """Return the same call with options of `Task.apply_async` besides its own, which they beat."""
        return replace(self, options={**self.options, **options})


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Be what the decorator was told; None means the application's setting.

    Limits are in seconds, 0 means none; so it does for `max_attempts`. `retry_*` as in
    `retry.RetryPolicy`.
    """

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    retry_backoff: float = 1.0
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    retry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_retry_for: tuple[type[BaseException], ...] = ()
    retry_policies: Mapping[type[BaseException], Backoff | None] = field(default_factory=dict)
    time_limit: float | None = None
    soft_time_limit: float | None = None
    sensitive: bool = False
    bind: bool = False

    def policy(self, default_max_attempts: int) -> RetryPolicy:
        """Return how failures are retried. Raises TaskDefinitionError for what cannot work."""
        return RetryPolicy(
            max_attempts=default_max_attempts if self.max_attempts is None else self.max_attempts,
            backoff_s=self.retry_backoff,
            backoff_max_s=self.retry_backoff_max,
            jitter=self.retry_jitter,
            retry_for=self.retry_for,
            dont_retry_for=self.dont_retry_for,
            policies=self.retry_policies,
        )


def leave_store() -> None:
    """Raise, at the end of each call from user code into the store, what had to wait for that end.

    By chance alone it would hardly ever be raised: who watches gets Python's lock whenever a task gives
    it up, and a task that does nothing but publish does so only inside of the store.
    """
    current = _request.get()
    if current is not None:
        current.stop.raise_pending()


_request: ContextVar[Request | None] = ContextVar("sqlqueue_request", default=None)
_reporter: ContextVar[Reporter | None] = ContextVar("sqlqueue_reporter", default=None)


def run_as(request: Request, reporter: Reporter | None = None) -> None:
    """Let `Task.request` answer with `request` from now on in this context, which is the job's own.

    `reporter` is where `Task.progress` goes; None where nobody listens.
    """
    _request.set(request)
    _reporter.set(reporter)


class _TakesOne(Protocol[X_contra]):
    """Be a task that can be called with one argument, for type checkers: ParamSpec cannot say so."""

    def __call__(self, value: X_contra, /) -> object: ...


class Task(Generic[P, R]):
    """Be a named function of an application. Made by `SqlQueue.task`, not directly."""

    is_async = False

    def __init__(
        self, app: SqlQueue, name: str, function: Callable[..., R], options: TaskOptions
    ) -> None:
        """Wrap `function`; raises TaskDefinitionError for options that cannot work."""
        update_wrapper(self, function)  # first: it copies the function's own attributes, too
        self.app = app
        self.name = name
        self.function = function
        self.options = options
        self._policy: RetryPolicy | None = None
        options.policy(1)  # raises

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now; nothing is enqueued."""
        if self.options.bind:
            return self.function(self, *args, **kwargs)
        return self.function(*args, **kwargs)

    def policy(self, default_max_attempts: int) -> RetryPolicy:
        """Return how failures are retried; made once, because every call and every attempt asks.

        `default_max_attempts` is the application's setting, which never changes.
        """
        if self._policy is None:
            self._policy = self.options.policy(default_max_attempts)
        return self._policy

    def accepts(self, /, *args: object, **kwargs: object) -> bool:
        """Say whether the function can be called so; True where nobody can tell. Calls nothing."""
        import inspect  # noqa: PLC0415 - only after a failure

        own = (self, *args) if self.options.bind else args
        try:
            inspect.signature(self.function).bind(*own, **kwargs)
        except ValueError:  # of some functions in C
            return True
        except TypeError:
            return False
        return True

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Task {self.name}>"

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Enqueue a call; when this returns it is stored as durably as `durability` says.

        Raises UnserializableArguments before anything is published, and the transport's errors.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        job_id: str | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        sensitive: bool | None = None,
    ) -> AsyncResult[R]:
        """Enqueue a call with options.

        `countdown` seconds from now or `eta`, an aware datetime, is when it may start earliest;
        `expires`, seconds or a datetime, when it may start latest. `priority` is 0 to 9, higher
        first. Limits, in seconds, are instead of the task's. `sensitive` marks this call as the task's
        option of that name marks all. A `job_id` of your own is stored once, however often it is published. If the process
        dies midway, the job may or may not be stored: with the same `job_id`, try again.
        """
        return self.app.send_task(
            self.name,
            args,
            kwargs,
            countdown=countdown,
            eta=eta,
            expires=expires,
            priority=priority,
            queue=queue,
            job_id=job_id,
            time_limit=time_limit,
            soft_time_limit=soft_time_limit,
            sensitive=sensitive,
        )

    def map(
        self: _TakesOne[X],
        values: Iterable[X],
        *,
        chunk: int = CHUNK,
        on_progress: Callable[[int, int | None], object] | None = None,
        job_id: Callable[[X], str] | None = None,
        **options: Any,
    ) -> int:
        """Enqueue one call for each value, as its only argument; return how many.

        `job_id` makes each value's own job id, so that all may be published again; `options` are
        those of `apply_async`. Everything else is as in `SqlQueue.publish_many`.
        """
        task = cast("Task[..., Any]", self)
        return task._publish_many(  # noqa: SLF001 - our own, seen through the protocol
            ((value, (value,)) for value in values),
            total=len(values) if isinstance(values, Sized) else None,
            chunk=chunk,
            on_progress=on_progress,
            job_id=job_id,
            options=options,
        )

    def starmap(
        self,
        arguments: Iterable[Sequence[Any]],
        *,
        chunk: int = CHUNK,
        on_progress: Callable[[int, int | None], object] | None = None,
        job_id: Callable[[Sequence[Any]], str] | None = None,
        **options: Any,
    ) -> int:
        """Enqueue one call for each list or tuple of arguments; as `map`, for several arguments.

        Type checkers see the arguments in `app.publish_many(task.s(*each) …)`, not in here.
        """
        return self._publish_many(
            # What is neither is left as it is: tuple("ab") would make two arguments of a text.
            ((each, tuple(each) if isinstance(each, list) else each) for each in arguments),
            total=len(arguments) if isinstance(arguments, Sized) else None,
            chunk=chunk,
            on_progress=on_progress,
            job_id=job_id,
            options=options,
        )

    def _publish_many(
        self,
        pairs: Iterable[tuple[X, Any]],
        *,
        total: int | None,
        chunk: int,
        on_progress: Callable[[int, int | None], object] | None,
        job_id: Callable[[X], str] | None,
        options: dict[str, Any],
    ) -> int:
        """Publish a call for each pair of what was given and its arguments."""

        def calls() -> Iterator[Signature]:
            for given, args in pairs:
                own = options if job_id is None else {**options, "job_id": job_id(given)}
                yield Signature(self.name, args, {}, own, is_sensitive=self.options.sensitive)

        return self.app.publish_many(calls(), chunk=chunk, on_progress=on_progress, total=total)

    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature:
        """Return the call without making it."""
        return Signature(self.name, args, dict(kwargs), is_sensitive=self.options.sensitive)

    @property
    def request(self) -> Request:
        """Return the job that runs now; called outside a worker, a stand-in for a local call."""
        current = _request.get()
        if current is None:
            return Request("local", self.name, 1, 1, "", 0, "local")
        return current

    def checkpoint(self) -> None:
        """Raise JobCancelled here if the running job is not to go on; outside a worker do nothing.

        For loops of plain functions: an async one gets it at its next await.
        """
        current = _request.get()
        if current is not None and current.cancelled:
            current.stop.was_raised = True
            raise JobCancelled

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the running job is: `done` of `total`, in whatever unit; None is not known.

        Shown by ``inspect job``. It is a `checkpoint`, too. Call it as often as you like: at most two words a second are
        written, always the newest; of a note the first 500 characters are kept. Outside a worker it
        does nothing. Raises ValueError for what is no finite number of 0 or more. A store that is
        busy or full does not fail the task. If the process dies, the last half second may be missing.
        """
        said = progress.word(done, total, note)
        self.checkpoint()
        reporter = _reporter.get()
        if reporter is not None:
            reporter.report(said)

    def retry(self, *, countdown: float | None = None, reason: str = "") -> NoReturn:
        """End this attempt and have the job run again after `countdown` seconds.

        None means the task's own back-off. Raises Retry; the attempt counts.
        """
        raise Retry(countdown, reason)


class AsyncTask(Task[P, R]):
    """Be a task of an async function: calling it returns the coroutine, enqueueing it the result's type."""

    is_async = True

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override] # what it awaits is what a job of it returns
            self, /, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]:
            """Return the function's coroutine; nothing is enqueued."""
