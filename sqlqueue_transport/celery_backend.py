"""Celery's result backend in the queue file: `result_backend = "sqlqueue:///queue.db"`.

Celery finds it by the entry point `celery.result_backends`. With `celery_waiting` it is the only
module that imports Celery (5.5 or newer), which the package itself does not need. The rows are
`results`, the counting of chords is `chords`; here Celery's calls become theirs.

What a process that dies leaves behind: a result is stored or not, and a SUCCESS is never replaced.
A chord's member is counted in one transaction, which for the last one also stores the messages of
the body, when broker and results share the file: a chord whose members are all in has its body
stored. Otherwise the body is published before the count is committed, at least once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import UserList
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from celery import states
from celery.app.task import Context
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import BaseKeyValueStoreBackend
from celery.canvas import chord, group, maybe_signature
from celery.exceptions import BackendStoreError, ChordError, ImproperlyConfigured
from celery.result import GroupResult, ResultSet, allow_join_result
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str, ensure_bytes
from kombu.utils.functional import retry_over_time
from kombu.utils.uuid import uuid

from sqlqueue_transport.celery_waiting import ResultConsumer
from sqlqueue_transport.chords import Member, Size, Standing
from sqlqueue_transport.errors import (
    CannotOpen,
    DiskFault,
    FileReplaced,
    InvalidMessage,
    TransportError,
    Unavailable,
)
from sqlqueue_transport.messages import storable
from sqlqueue_transport.options import Options
from sqlqueue_transport.stores import close_store, open_store
from sqlqueue_transport.transport import split_url

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.messages import NewMessage
    from sqlqueue_transport.results import Results
    from sqlqueue_transport.routing import Landed
    from sqlqueue_transport.store import Store

Answer = TypeVar("Answer")

logger = get_logger(__name__)


def _key_text(key: str | bytes) -> str:
    return storable(bytes_to_str(key)) or ""


class ResultBackend(BaseKeyValueStoreBackend, AsyncBackendMixin):
    """Keep Celery's results and chords in a queue file.

    The URL is the transport's; what stands behind its `?`, or in `result_backend_transport_options`,
    are `options.Options`, of which `durability`, `busy_timeout` and `create` mean something here. A
    result is flushed to the disk with `durability` "full" only: with the default, "publish", a power
    cut loses it together with the acknowledgement of its job, which then runs again. Give "full" if
    the broker is not in the same file.
    """

    ResultConsumer = ResultConsumer

    key_t = _key_text
    supports_autoexpire = True
    supports_native_join = True
    supports_result_compression = True
    supports_failure_expires = True

    def __init__(self, *args: Any, url: str | None = None, **kwargs: Any) -> None:
        """Prepare; the file is opened by the first use. Raises ImproperlyConfigured."""
        super().__init__(*args, expires_type=int, url=url, **kwargs)
        conf = self.app.conf
        try:
            path, query = split_url(url or "sqlqueue://")
            given = conf.get("result_backend_transport_options") or {}
            self.options = Options.read({**query, **given})
        except (CannotOpen, InvalidMessage) as error:
            text = f"result_backend: {error}"
            raise ImproperlyConfigured(text) from error
        failures_expire = conf.get("result_failure_expires")
        self.failure_expires = (
            self.expires
            if failures_expire is None
            else self.prepare_expires(failures_expire, type=int)
        )
        chords_expire = conf.get("result_chord_expires")
        self.chord_expires_s = (
            self.expires if chords_expire is None else self.prepare_expires(chords_expire, type=int)
        )
        self._path = path
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._pid = os.getpid()
        self.result_consumer = self.ResultConsumer(
            self, self.app, self.accept, self._pending_results, self._pending_messages
        )

    # -- the file ---------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """Return this process's store, opening it if need be. Raises CannotOpen."""
        if self._pid != os.getpid():
            # A store survives a fork by itself, or refuses. The lock may be a lost thread's.
            self._opening, self._pid = threading.Lock(), os.getpid()
        with self._opening:
            if self._store is None:
                self._store = open_store(
                    self._path,
                    create=self.options.create,
                    busy_timeout_s=self.options.busy_timeout,
                )
            return self._store

    @property
    def results(self) -> Results:
        """Return the results in the file."""
        return self.store.results

    def close(self) -> None:
        """Give the store back; the next use opens it again. Nothing else needs it at exit."""
        store, self._store = self._store, None
        if store is not None:
            close_store(store)

    @contextlib.contextmanager
    def reopening(self) -> Iterator[None]:
        """Open the file anew after the block, if it was found to be another by now."""
        try:
            yield
        except FileReplaced:
            self.close()
            raise

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Say whether waiting may help (`result_backend_always_retry`)."""
        return isinstance(exc, Unavailable)

    def _call(self, work: Callable[[Results], Answer]) -> Answer:
        """Do something with the results, again and again where the settings say so."""
        # Celery has had it since 5.6; before that it never retries anything but store_result.
        retry = getattr(self, "_ensure_retryable", None)
        if retry is None:
            return self._waited_out(work)
        answer: Answer = retry(self._waited_out, work)
        return answer

    def _waited_out(self, work: Callable[[Results], Answer]) -> Answer:
        """Do something with the results; a file that is away or full for a moment is waited for.

        For about twenty seconds, by Celery's own `retry_policy`, as its Redis backend does: an error
        here would leave a task that is done unacknowledged, in some pools for ever. A busy file has
        been waited for already.
        """

        def attempt() -> Answer:
            with self.reopening():
                return work(self.results)  # asked for anew: it may be another store by now

        def say(error: BaseException, intervals: Iterator[float], retries: int) -> float:
            if not retries:
                logger.warning("Waiting to write a result: %s", error)
            return next(intervals)

        waited_for = (CannotOpen, FileReplaced, DiskFault)
        answer: Answer = retry_over_time(attempt, waited_for, errback=say, **self.retry_policy)
        return answer

    # -- keys and values --------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, or None."""
        with self.reopening():
            return self.results.get(key)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what is kept under each of these keys."""
        with self.reopening():
            return self.results.get_many(keys)

    def set(self, key: str, value: str | bytes) -> None:
        """Keep something under a key, whatever it held before."""
        self._set(key, value, states.SUCCESS, self.expires, keep_success=False)

    def delete(self, key: str) -> None:
        """Forget what is kept under a key."""
        with self.reopening():
            self.results.delete(key)

    def expire(self, key: str, value: float | None) -> None:
        """Give what is kept under a key another lifetime in seconds; 0 and None mean for ever."""
        with self.reopening():
            self.results.expire(key, value)

    def _set(
        self,
        key: str,
        value: str | bytes,
        state: str,
        expires_s: float | None,
        *,
        keep_success: bool,
    ) -> None:
        try:
            self._waited_out(
                lambda results: results.store(
                    key,
                    state,
                    ensure_bytes(value),
                    expires_s=expires_s,
                    keep_success=keep_success,
                    durable=self.options.sync_settle,
                )
            )
        except InvalidMessage as error:
            raise BackendStoreError(str(error), state=state) from error

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Store a state, unless the task has succeeded before: that is decided by the one write."""
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        expires_s = self.failure_expires if state == states.FAILURE else self.expires
        key = self.get_key_for_task(task_id)
        self._set(key, self.encode(meta), state, expires_s, keep_success=True)
        # What is too old is in nobody's way. Whoever stores the next result tries again.
        with contextlib.suppress(Unavailable):
            self.results.prune()
        return result

    def _set_with_state(self, key: str, value: str | bytes, state: str) -> None:
        self.set(key, value)

    def forget(self, task_id: str) -> None:
        """Forget a result, and wait for it no longer."""
        super().forget(task_id)
        self.result_consumer.cancel_for(task_id)

    def cleanup(self) -> None:
        """Delete everything that has expired (`celery.backend_cleanup`)."""
        while self._call(lambda results: results.prune(force=True)):
            pass

    def as_uri(self, include_password: bool = False) -> str:  # noqa: FBT001, FBT002 - Celery's signature
        """Return the URL as it is: a path holds no secret."""
        return self.url or ""

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(
            args, {"expires": self.expires, "url": self.url, **(kwargs or {})}
        )

    # -- chords -----------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Sequence[Any], body: Any, **_: Any) -> None:
        """Announce a chord whose header is about to be sent.

        A header with groups in it is saved: the shape of what its body will get.
        """
        group_id, header_results = header_result_args[:2]
        chord_key, chord_expires_s = self.get_key_for_chord(group_id), self.chord_expires_s
        self._call(lambda results: results.chords.begin(chord_key, expires_s=chord_expires_s))
        # A lazy header (of a generator) must not be gone through here.
        if not isinstance(header_results, UserList) and any(
            isinstance(one, GroupResult) for one in header_results
        ):
            header = self.app.GroupResult(group_id, header_results)
            both_expire = self.chord_expires_s and self.expires
            expires_s = max(self.chord_expires_s, self.expires) if both_expire else None
            encoded = self.encode({"result": header.as_tuple()})
            key = self.get_key_for_group(group_id)
            self._set(key, encoded, states.SUCCESS, expires_s, keep_success=False)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Say how many members a chord has.

        Celery does so before it sends the last one. Should all be in by now all the same, because
        the ids are those of an earlier run, the body is published here.
        """
        self._advance(group_id, Size(chord_size), None)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Let a chord wait for one more member (`Task.add_to_chord`).

        A task that adds and is delivered again adds the same places again, not more of them.
        """
        task = self.app.current_task
        slot = f"+{result.id}"
        if task is not None:
            request = task.request
            number = getattr(request, "sqlqueue_added", 0) + 1
            request.sqlqueue_added = number
            slot = f"+{request.id}:{request.retries}:{number}"
        key, expires_s = self.get_key_for_chord(chord_id), self.chord_expires_s
        self._call(lambda results: results.chords.add(key, result.id, slot, expires_s=expires_s))

    def on_chord_part_return(
        self, request: Any, state: str, result: Any, propagate: Any = None, **_: Any
    ) -> None:
        """Count a member that has ended, and with the last one publish the body.

        If the process dies midway, neither has happened or both, when broker and results share the
        file; a member that is delivered again counts once.
        """
        task_id, group_id = request.id, request.group
        if not task_id or not group_id:
            return
        encoded = self.encode([1, task_id, state, self.encode_result(result, state)])
        member = Member(task_id, request.group_index, ensure_bytes(encoded))
        self._advance(group_id, member, request.chord)

    def _advance(self, group_id: str, change: Member | Size, body: Any) -> None:
        key = self.get_key_for_chord(group_id)
        problem: Exception | None = None
        while True:
            standing = self._look(key, change)
            change = self._with_body(change, standing, body)
            known = self._known_body(standing, body)
            messages: list[NewMessage] | None = None if known is None else []
            if standing.is_complete and known is not None:
                messages = self._prepare(group_id, standing, known, problem)
            try:
                if self._commit(key, change, standing, messages):
                    return
            except Unavailable:
                raise
            except TransportError as error:
                if problem is not None:
                    raise
                problem = error  # of the body's messages: it fails, as if nobody could send it

    def _look(self, key: str, change: Member | Size) -> Standing:
        return self._call(lambda results: results.chords.look(key, change))

    def _commit(
        self,
        key: str,
        change: Member | Size,
        standing: Standing,
        messages: Sequence[NewMessage] | None,
    ) -> bool:
        """Make the change, and with the last one store these messages; None: nobody knows them.

        Return False when the chord stands otherwise by now, and nothing was changed.
        """
        landed: Landed = []

        def publish(connection: sqlite3.Connection, now_ms: int) -> None:
            landed.clear()
            self.store.insert(connection, messages or (), now_ms, landed)

        is_done = self._call(
            lambda results: results.chords.advance(
                key,
                change,
                expires_s=self.chord_expires_s,
                prepared=standing,
                publish=None if messages is None else publish,
                durable=self.options.sync_publish if messages else self.options.sync_settle,
            )
        )
        self.store.wake_for(landed)
        return is_done

    def _with_body(self, change: Member | Size, standing: Standing, body: Any) -> Member | Size:
        """Let a member that ends before the size is known leave the body with the chord."""
        if isinstance(change, Size) or standing.total is not None or standing.body is not None:
            return change
        # A body that only pickle could hold: whoever sends the last member leaves it to that one.
        with contextlib.suppress(EncodeError):
            return replace(change, body=ensure_bytes(self.encode(body)))
        return change

    def _known_body(self, standing: Standing, body: Any) -> Any:
        if body is None and standing.body is not None:
            return self.decode(standing.body)
        return body

    def _prepare(
        self, group_id: str, standing: Standing, body: Any, problem: Exception | None
    ) -> list[NewMessage]:
        """Return the messages that follow a complete chord: its body, or what its failure brings.

        What goes to another broker than this file is sent here.
        """
        callback = maybe_signature(body, app=self.app)
        what = "Join"
        try:
            if problem is not None:
                what = "Callback"
                raise problem  # noqa: TRY301 - its traceback is read by Celery
            values = self._joined(group_id, standing)
            what = "Callback"
            with self.store.collecting() as messages:
                self._publish(callback, values)
        except Unavailable:
            raise
        except Exception as error:
            logger.exception("Chord %r cannot go on", group_id)
            reason = error
            if not isinstance(reason, ChordError):
                reason = ChordError(f"{what} error: {error!r}")
                reason.__cause__ = error
            with self.store.collecting() as messages:
                last = _last_tasks(callback, self.app)
                if callback.id is None and last:
                    # A chain, in Celery before 5.7: it could not store the failure.
                    callback.options["task_id"] = last[0].options.get("task_id") or uuid()
                self.chord_error_from_stack(callback, reason)
                self._fail_around(last, reason)
        return messages

    def _fail_around(self, last: list[Any], error: ChordError) -> None:
        """Count the end of a body that will never run as a failed member of the chord around it.

        Celery (5.7) does so for what is chained behind a body, and leaves the chord around to wait.
        """
        for one in last:
            options = one.options
            if options.get("chord") and options.get("group_id") and options.get("task_id"):
                request = Context(
                    id=options["task_id"],
                    group=options["group_id"],
                    group_index=options.get("group_index"),
                    chord=options["chord"],
                )
                self.on_chord_part_return(request, states.FAILURE, error)

    def _publish(self, callback: Any, values: list[Any]) -> None:
        # Celery 5.7 spreads the retries of such a publish; before, there is nothing of the kind.
        retrying = getattr(self.app.amqp, "_retry_publish", None)
        if retrying is None:
            callback.delay(values)
        else:
            retrying(callback.delay, values)

    def _joined(self, group_id: str, standing: Standing) -> list[Any]:
        """Return what the members returned, in the header's shape. Raises ChordError."""
        values, by_task = [], {}
        for encoded in standing.values:
            _, task_id, state, value = self.decode(encoded)
            if state in states.EXCEPTION_STATES:
                value = self.exception_to_python(value)
            if state in states.PROPAGATE_STATES:
                error = ChordError(f"Dependency {task_id} raised {value!r}")
                error.__cause__ = value if isinstance(value, Exception) else None
                raise error
            values.append(value)
            by_task[task_id] = value
        header = self.restore_group(group_id, cache=False)
        if header is None:
            return values
        try:
            shaped: list[Any] = _shaped(header, by_task)
        except KeyError:
            # A part of the header that reports under another id than it was frozen with.
            with allow_join_result():
                joined: list[Any] = header.join(
                    timeout=self.app.conf.result_chord_join_timeout, propagate=True
                )
            return joined
        else:
            return shaped


def _last_tasks(signature: Any, app: Any) -> list[Any]:
    """Return the tasks by whose end a canvas ends."""
    signature = maybe_signature(signature, app=app)
    if isinstance(signature, group):
        return [last for one in signature.tasks for last in _last_tasks(one, app)]
    if isinstance(signature, chord):
        return _last_tasks(signature.body, app)
    if signature.task == "celery.chain" and signature.tasks:
        return _last_tasks(signature.tasks[-1], app)
    return [signature]


def _shaped(result: Any, by_task: dict[str, Any]) -> Any:
    """Return the values of a tree of results as a tree of lists."""
    if isinstance(result, ResultSet):
        return [_shaped(one, by_task) for one in result.results]
    return by_task[result.id]


__all__ = ["ResultBackend"]
