"""The application: tasks, producers, schedule entries, and the way to the broker.

`task.delay` ends here in `send_task`, which hands what `calls` has made of it to the backend.
Settings are resolved at first use, so that the command line can have its say before.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import weakref
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    overload,
)

from sqlqueue import envelope
from sqlqueue.backend import Backend, Publication, open_backend
from sqlqueue.bulk import CHUNK, publish_in_chunks
from sqlqueue.calls import (
    limits_of,
    publication_of,
    signature_of,
    valid_mark,
    valid_priority,
    valid_queue,
)
from sqlqueue.config import Resolved, Settings, anchored, mistakes, resolve
from sqlqueue.errors import (
    ConfigError,
    EnvelopeError,
    TaskDefinitionError,
    TestingError,
    UnknownTask,
)
from sqlqueue.results import AsyncResult
from sqlqueue.signing import Keys, keys_of
from sqlqueue.task import AsyncTask, Signature, Task, TaskOptions, leave_store
from sqlqueue.text import did_you_mean, quoted
from sqlqueue_transport.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Unpack

    from sqlqueue.beat.schedule import Entry, EntryOptions, Tick
    from sqlqueue.retry import Backoff, RetryPolicy
    from sqlqueue.schedules import Schedules
    from sqlqueue.testing import Testing

__all__ = ["SqlQueue"]

P = ParamSpec("P")
R = TypeVar("R")
Produce: TypeAlias = "Callable[[Tick], Iterable[Signature]]"
Check: TypeAlias = "Callable[[Any], Iterable[str]]"
JobView: TypeAlias = "Callable[[Any], str | None]"


class _Options(TypedDict, total=False):
    """What the decorator takes beside `bind`, for type checkers."""

    name: str | None
    queue: str | None
    priority: int | None
    max_attempts: int | None
    retry_backoff: float
    retry_backoff_max: float
    retry_jitter: bool
    retry_for: tuple[type[BaseException], ...]
    dont_retry_for: tuple[type[BaseException], ...]
    retry_policies: Mapping[type[BaseException], Backoff | None]
    time_limit: float | None
    soft_time_limit: float | None
    sensitive: bool


class _MakesTask(Protocol):
    """What `@app.task(…)` returns: a decorator that knows an async function from another."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class _MakesBoundTask(Protocol):
    """What `@app.task(bind=True, …)` returns: callers do not see the first argument."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


_apps: weakref.WeakSet[SqlQueue] = weakref.WeakSet()
_switching = threading.Lock()


class SqlQueue:
    """Be one application: `app = SqlQueue("tasks", broker_url="sqlqueue:///queue.db")`.

    Keyword arguments are fields of `config.Settings`; files, environment and command line win over
    them. Nothing is read or opened before it is needed. Threads may share an application: each gets
    a connection of its own.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        """Name the application and remember its settings."""
        self.name = name
        self.tasks: dict[str, Task[..., Any]] = {}
        self.checks: dict[str, Check] = {}
        self.job_views: dict[tuple[str, str], JobView] = {}
        self._code = settings
        self._resolved: Resolved | None = None
        self._broker_url = ""
        self._keys: Keys | None = None
        self._entries: dict[str, Callable[[str], Entry[Signature]]] = {}
        self._local = threading.local()
        self._testing: Testing | None = None
        self._opened: list[Backend] = []  # in testing: by all threads
        _apps.add(self)

    # -- settings -----------------------------------------------------------------------------------

    @property
    def resolved(self) -> Resolved:
        """Return the settings with the origin of each. Raises ConfigError."""
        if self._resolved is None:
            resolved = resolve(self._code)
            # Fixed now: a task that changes the directory must not find another queue there.
            self._broker_url = anchored(resolved.settings.broker_url)
            self._resolved = resolved  # last: who finds it set finds the URL, too
        return self._resolved

    @property
    def conf(self) -> Settings:
        """Return the settings in force. Raises ConfigError."""
        return self.resolved.settings

    @property
    def keys(self) -> Keys:
        """Return the keys that messages are signed and verified with; false without any.

        Read at first use: who only looks at a queue need not be able to. Raises ConfigError.
        """
        if self._keys is None:
            conf = self.conf
            self._keys = keys_of(
                conf.signing_key, conf.signing_keys_accepted, conf.signing_key_file
            )
        return self._keys

    @property
    def backend(self) -> Backend:
        """Return this thread's connection to the broker, opening it first.

        Raises the transport's connection errors.
        """
        backend: Backend | None = getattr(self._local, "backend", None)
        if backend is None:
            settings = replace(self.conf, broker_url=self._broker_url)
            backend = self._local.backend = open_backend(settings)
            if self._testing is not None:
                self._opened.append(backend)
        return backend

    def close(self) -> None:
        """Close this thread's connection; the next use opens it again."""
        backend: Backend | None = getattr(self._local, "backend", None)
        self._local.backend = None
        if backend is not None:
            backend.close()

    def after_fork(self) -> None:
        """Forget the parent's connections; called in every forked child."""
        self._local = threading.local()
        self._opened = []

    # -- testing ----------------------------------------------------------------------------------------

    def testing(self) -> AbstractContextManager[Testing]:
        """Use a file and a clock of the test's own: `with app.testing() as testing:`.

        Inside the block nothing of the configured broker is opened, in no thread; time stands still;
        jobs run when `testing.drain()` says so. See `sqlqueue.testing`. Raises TestingError when the
        application is in testing already.
        """
        from sqlqueue.testing import testing  # noqa: PLC0415 - what only tests need

        return testing(self)

    @property
    def in_testing(self) -> Testing | None:
        """Return what the block of `testing` that the application is in was given; None outside."""
        return self._testing

    @contextlib.contextmanager
    def working_for(self, testing: Testing, *, broker_url: str) -> Iterator[None]:
        """Use a test's broker, of our own kind, and its clock inside the block, in all threads.

        For `testing`. Connections that threads have are kept for after the block; those made in it
        are closed at its end. Raises TestingError inside such a block.
        """
        resolved = self.resolved
        settings = replace(
            resolved.settings,
            broker_url=broker_url,
            transport_options={},  # they may be meant for another transport
            durability="process",  # nobody pulls a plug
        )
        with _switching:
            if self._testing is not None:
                raise TestingError(
                    f"the application {quoted(self.name)} is in testing already, here or in another"
                    " thread. Leave the block before, or use its Testing object."
                )
            before = resolved, self._broker_url, self._local
            self._testing, self._opened = testing, []
        self._resolved = Resolved(settings, {**resolved.origins, "broker_url": "testing"})
        self._broker_url, self._local = broker_url, threading.local()
        try:
            yield
        finally:
            opened = self._opened
            self._resolved, self._broker_url, self._local = before
            self._testing = None
            with contextlib.ExitStack() as closing:
                for backend in opened:
                    closing.callback(backend.close)

    # -- declaring ------------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self, _: None = None, /, *, bind: Literal[True], **options: Unpack[_Options]
    ) -> _MakesBoundTask: ...

    @overload
    def task(
        self, _: None = None, /, *, bind: Literal[False] = ..., **options: Unpack[_Options]
    ) -> _MakesTask: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a task of a function: `@app.task` or `@app.task(queue="mail", max_attempts=3)`.

        The function may be an async one: workers await it on an event loop.

        name                 default: module and function name
        queue, priority      default: task_default_queue, 0
        max_attempts         attempts in all, 0 for any number; default: task_max_attempts (5)
        retry_backoff        seconds before the second attempt, doubled after each further one
        retry_backoff_max    the longest of these waits
        retry_jitter         shorten waits at random, so that failures do not come back together
        retry_for            exceptions that are retried
        dont_retry_for       exceptions that end the job at once
        retry_policies       exceptions with a Backoff of their own; None: never retried. The most
                             specific class decides
        time_limit           seconds until an attempt is ended by force; 0 none; default:
                             task_time_limit (1 h)
        soft_time_limit      seconds until SoftTimeLimitExceeded is raised in the task; 0 none;
                             default: task_soft_time_limit (none)
        sensitive            show nobody the arguments, results, errors' texts and notes of its jobs:
                             neither logs nor consoles nor the command line. They are stored as ever,
                             but for errors' texts and notes, which are not stored at all
        bind                 hand the task itself to the function first, for `self.request`

        Raises TaskDefinitionError.
        """

        def decorate(function: Callable[..., Any]) -> Task[..., Any]:
            return self._declare(function, options)

        return decorate if function is None else decorate(function)

    def _declare(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
        if not callable(function):
            raise TaskDefinitionError(
                f"@app.task decorates a function, not {quoted(function)}. Give options by keyword."
            )
        name = options.get("name")
        if name is None:
            name = _default_name(function)
        if inspect.isasyncgenfunction(function):
            raise TaskDefinitionError(
                f"task {quoted(name)} is an async generator, which ends in no result. Return a value"
                " instead of yielding some."
            )
        for key in options:
            if key not in _TASK_OPTIONS:
                raise TaskDefinitionError(
                    f"task {quoted(name)}: {quoted(key)} is no option."
                    f"{did_you_mean(key, _TASK_OPTIONS)}"
                )
        task_options = TaskOptions(**{key: options[key] for key in options if key != "name"})
        try:
            # Whatever a call could not be published with is refused here, before there is one.
            envelope.build(name, (), {}, job_id="none", **limits_of(task_options))
            valid_priority(task_options.priority)
            valid_queue(task_options.queue)
            valid_mark(task_options.sensitive)
        except EnvelopeError as error:
            raise TaskDefinitionError(f"task {quoted(name)}: {error}") from None
        if name in self.tasks:
            raise TaskDefinitionError(
                f"two tasks are named {quoted(name)}; give one of them another name="
            )
        kind = AsyncTask if inspect.iscoroutinefunction(function) else Task
        task: Task[..., Any] = kind(self, name, function, task_options)
        self.tasks[name] = task
        return task

    def producer(
        self, *, name: str | None = None, **options: Unpack[EntryOptions]
    ) -> Callable[[Produce], Produce]:
        """Have a beat call a function on each tick and enqueue what it yields, tick and calls as one.

        every                a duration: ``"5s"``
        cron, timezone       an expression, or `crontab(…)`, and the zone of its clocks; default:
                             the setting `timezone`
        at                   once: an aware datetime, or ISO text
        catch_up             about ticks missed: one (default), skip, or all
        catch_up_limit       of all: at most so many, the newest; default 100
        jitter               a duration: its jobs become due up to so much later
        overlap              allow (default), or skip: nothing while jobs of the last tick are
                             unfinished

        The function runs in a process of its own beside the beat and never waits for a worker. It
        has `beat_producer_timeout` seconds. It may run twice for one tick (two beats, a beat killed
        before its commit), but its calls are enqueued once. Raises ConfigError for a schedule that
        makes no sense.
        """
        from sqlqueue.beat.schedule import Entry, timing  # noqa: PLC0415 - late: see `schedules`

        def decorate(function: Produce) -> Produce:
            entry = getattr(function, "__name__", "producer") if name is None else name
            self._add(
                entry,
                lambda zone: Entry(
                    entry, produce=function, **timing(options, zone=zone, name=str(entry))
                ),
            )
            return function

        return decorate

    def periodic(self, name: str, signature: Signature, **options: Unpack[EntryOptions]) -> None:
        """Have a beat enqueue a call on each tick. Options as in `producer`. Raises ConfigError."""
        from sqlqueue.beat.schedule import Entry, timing  # noqa: PLC0415 - late: see `schedules`

        self._add(
            name,
            lambda zone: Entry(
                name, signature=signature, **timing(options, zone=zone, name=str(name))
            ),
        )

    @property
    def schedules(self) -> Schedules:
        """Return the entries that live in the queue file, to add, remove, pause and resume."""
        # Late, as `beat.schedule` elsewhere here: an application without a schedule starts without.
        from sqlqueue.schedules import Schedules  # noqa: PLC0415 - late, see above

        return Schedules(self)

    def _add(self, name: str, entry_in: Callable[[str], Entry[Signature]]) -> None:
        # Made once to see its mistakes where they are, and again by `entries`: the settings, of
        # which the default time zone is one, are not read before they are needed.
        entry_in("UTC")
        if name in self._entries:
            raise ConfigError(f"two schedule entries are named {quoted(name)}; rename one")
        self._entries[name] = entry_in

    def check(self, title: str) -> Callable[[Check], Check]:
        """Have `sqlqueue doctor -A` call a function with an Inspection; it yields problems."""

        def decorate(function: Check) -> Check:
            if title in self.checks:
                raise TaskDefinitionError(f"two checks are called {quoted(title)}; rename one")
            self.checks[title] = function
            return function

        return decorate

    def job_view(self, title: str, *, task: str) -> Callable[[JobView], JobView]:
        """Have the admin console show, on the page of each job of a task, what a function says.

        It is called with a `Call` at every look at such a job, in the console's process, and returns
        text, or None for nothing. The text is shown as it is, its end where it is long.
        """

        def decorate(function: JobView) -> JobView:
            if (task, title) in self.job_views:
                raise TaskDefinitionError(
                    f"two views of {quoted(task)} are called {quoted(title)}; rename one"
                )
            self.job_views[task, title] = function
            return function

        return decorate

    # -- what was declared ------------------------------------------------------------------------------

    @property
    def entries(self) -> dict[str, Entry[Signature]]:
        """Return the schedule: entries of the code, then those of `[beat.NAME]` tables.

        Those of the queue file (`schedules`) are not among them. Raises ConfigError for a table
        that makes no sense, and for a call nobody could enqueue.
        """
        return {name: make() for name, make in self._declared_entries()}

    @property
    def mistakes(self) -> list[str]:
        """Return all that is wrong with settings and schedule, where `conf` and `entries` raise the first.

        The schedule is looked at once the settings are right.
        """
        found = mistakes(self._code)
        if not found:
            for _, make in self._declared_entries():
                try:
                    make()
                except ConfigError as error:
                    found.append(str(error))
        return found

    def _declared_entries(self) -> Iterator[tuple[str, Callable[[], Entry[Signature]]]]:
        """Yield the name of each entry of code and settings, and what makes it or raises ConfigError."""
        for name, entry_in in self._entries.items():
            yield name, partial(self._checked, name, partial(entry_in, self.conf.timezone))
        for name, table in self.conf.beat.items():
            yield name, partial(self._checked, name, partial(self._entry_of, name, table))

    def _checked(self, name: str, make: Callable[[], Entry[Signature]]) -> Entry[Signature]:
        entry = make()
        if entry.signature is not None:
            try:
                self.publication(entry.signature)
            except EnvelopeError as error:
                raise ConfigError(f"schedule entry {quoted(name)}: {error}") from None
        return entry

    def _entry_of(self, name: str, table: object) -> Entry[Signature]:
        from sqlqueue.beat.schedule import (  # noqa: PLC0415 - late: see `schedules`
            Entry,
            EntryOptions,
            timing,
        )

        where = f"[beat.{name}]"
        timing_keys = tuple(EntryOptions.__annotations__)
        keys = ("task", "args", "kwargs", "queue", "priority", "expires", *timing_keys)
        if name in self._entries:
            raise ConfigError(f"{where}: the code has an entry of that name already")
        if not isinstance(table, dict):
            raise ConfigError(f"{where} must be a table with task= and every=, cron= or at=")
        for key in table:
            if key not in keys:
                raise ConfigError(
                    f"{where}: {quoted(key)} is no key.{did_you_mean(key, keys)}"
                    f" There are: {', '.join(keys)}."
                )
        task, args, kwargs = table.get("task"), table.get("args", []), table.get("kwargs", {})
        if not isinstance(task, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ConfigError(
                f"{where} needs task = 'name', and may have args = [...] and kwargs = {{...}}"
            )
        options: Any = {key: table[key] for key in timing_keys if key in table}
        if isinstance(
            options.get("at"), datetime
        ):  # TOML has times of its own, with and without zone
            options["at"] = options["at"].isoformat()
        return Entry(
            name,
            origin="settings",
            **timing(options, zone=self.conf.timezone, name=where),
            signature=Signature(
                task,
                tuple(args),
                kwargs,
                {key: table[key] for key in ("queue", "priority", "expires") if key in table},
            ),
        )

    @property
    def queues(self) -> tuple[str, ...]:
        """Return the queues a worker of this application serves unless told otherwise."""
        if self.conf.worker_queues:
            return self.conf.worker_queues
        named = [task.options.queue for task in self.tasks.values() if task.options.queue]
        return tuple(dict.fromkeys([self.conf.task_default_queue, *named]))

    @property
    def queue_weights(self) -> Mapping[str, float]:
        """Return the weights a worker's claims are drawn by; empty means strictly in order.

        Raises ConfigError if the command line names a queue that nothing here ever goes to. In a file
        it may stand: one file of settings is for all workers.
        """
        weights = self.conf.worker_queue_weights
        if self.resolved.origins["worker_queue_weights"] != "command line":
            return weights
        declared = {task.options.queue for task in self.tasks.values() if task.options.queue}
        known = {*self.queues, self.conf.task_default_queue, *declared}
        for queue in weights:
            if queue not in known:
                raise ConfigError(
                    f"worker_queue_weights names the queue {quoted(queue)}, which no task here uses and"
                    f" this worker does not serve.{did_you_mean(queue, known)}"
                )
        return weights

    def find_task(self, name: str) -> Task[..., Any]:
        """Return a task by name. Raises UnknownTask, with a suggestion."""
        found = self.tasks.get(name)
        if found is None:
            raise UnknownTask(name, f".{did_you_mean(name, self.tasks)}")
        return found

    def policy_of(self, task: Task[..., Any]) -> RetryPolicy:
        """Return how a task's failures are retried."""
        return task.policy(self.conf.task_max_attempts)

    # -- publishing ---------------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Enqueue a call by the task's name, which need not be declared here.

        Options are those of `Task.apply_async`. Raises EnvelopeError kinds for what cannot be
        published, and the transport's errors; see `Task.apply_async` for a death midway.
        """
        one = self.publication(signature_of(name, args, kwargs, options))
        self.backend.publish([one])
        leave_store()
        return self.result(str(one.envelope.headers["id"]))

    def publish_many(
        self,
        calls: Iterable[Signature],
        *,
        chunk: int = CHUNK,
        on_progress: Callable[[int, int | None], object] | None = None,
        total: int | None = None,
    ) -> int:
        """Enqueue many calls, `app.publish_many(add.s(x, 1) for x in numbers)`; return how many.

        `calls` is taken bit by bit, `chunk` calls at a time, and each chunk is stored in one
        transaction, as durably as one `delay`. After each, `on_progress` is called with the number
        published so far and that of all: `total`, or the length of `calls`, or None.

        If it raises, or the process dies midway, the chunks before are stored: give the calls ids
        of their own (`.set(job_id=…)`) and publish them all again, and each is stored once. Raises
        BulkStopped, with index and number stored, for a call that cannot be published; what `calls`
        or `on_progress` raise, and the transport's errors, come through as they are.
        """

        def publish(publications: Sequence[Publication]) -> None:
            self.backend.publish(publications)
            leave_store()

        return publish_in_chunks(
            calls,
            publication=self.publication,
            publish=publish,
            chunk=chunk,
            on_progress=on_progress,
            total=total,
        )

    def publication(self, call: Signature) -> Publication:
        """Turn a call into what the backend publishes. Raises EnvelopeError kinds."""
        if not isinstance(call, Signature):
            raise EnvelopeError(f"{quoted(call)} is no call; write one as task.s(...)")
        known = self.tasks.get(call.task)
        return publication_of(
            call,
            defaults=known.options if known else TaskOptions(),
            max_attempts=self.policy_of(known).most_attempts if known else None,
            conf=self.conf,
            keys=self.keys,
            clock=self._testing.clock if self._testing else SYSTEM_CLOCK,
        )

    def result(self, job_id: str) -> AsyncResult[Any]:
        """Return the handle of a job by its id."""
        testing = self._testing
        if testing is None:
            return AsyncResult(job_id, lambda: self.backend)
        return AsyncResult(job_id, lambda: self.backend, before_waiting=testing.refuse_waiting)


_TASK_OPTIONS: Final = ("name", *(field.name for field in fields(TaskOptions)))


def _default_name(function: Callable[..., Any]) -> str:
    module, own = function.__module__, getattr(function, "__qualname__", type(function).__name__)
    if module == "__main__":
        raise TaskDefinitionError(
            f"task {own} is defined in __main__, which means another file in every process:"
            " workers import the application by its module's name. Move it to a module, or"
            " give it a name, such as @app.task(name='tasks.add')."
        )
    return f"{module}.{own}"


def _after_fork_in_child() -> None:
    for app in list(_apps):
        app.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
