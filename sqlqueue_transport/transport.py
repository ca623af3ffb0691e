"""The Kombu transport: finds the file a URL names, and waits for messages without polling.

What it waits in is either `drain_events`, a sleep on the process's bell, or the caller's event
loop (`event_loop`). Both ask the channels for one message at a time, in turns.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote

from kombu.transport import virtual
from kombu.utils.compat import detect_environment

from sqlqueue_transport.acks import HeldAcks
from sqlqueue_transport.channel import Channel
from sqlqueue_transport.errors import CannotOpen, LeaseLost, Unavailable
from sqlqueue_transport.event_loop import LoopSide
from sqlqueue_transport.keeper import Keeper
from sqlqueue_transport.messages import split_tag
from sqlqueue_transport.options import Options
from sqlqueue_transport.routing import EXCHANGE_TYPES
from sqlqueue_transport.sleepers import LONGEST_SLEEP_S
from sqlqueue_transport.stores import close_store, open_store

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlqueue_transport.store import Store

_SCHEME = "sqlqueue://"


class Transport(virtual.Transport):
    """Connect Kombu to a queue file; see the package's docstring for what it can do."""

    client: Any
    Channel = Channel
    can_parse_url = True
    default_port = None
    driver_type = "sqlqueue"
    driver_name = "sqlite3"
    # What may be waited out and tried again. Programming errors are not among them: Celery's
    # event loop swallows everything that is.
    connection_errors: Any = (
        *virtual.Transport.connection_errors,
        Unavailable,
    )
    # A late acknowledgement is the delivery's fault, not the connection's.
    channel_errors: Any = (*virtual.Transport.channel_errors, LeaseLost)
    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=frozenset(EXCHANGE_TYPES),
        heartbeats=False,
    )
    # Kombu would put its "localhost" into the copies it makes after a failover.
    default_connection_params: ClassVar[dict[str, Any]] = {}

    def __init__(self, client: Any, **kwargs: Any) -> None:
        """Prepare; the file is opened by `establish_connection`."""
        super().__init__(client, **kwargs)
        self._store: Store | None = None
        self.acks: HeldAcks
        self._keeper: Keeper | None = None
        self._turns = itertools.count(1)
        # When, in turns, each consumer was given something.
        self._served: dict[str, int] = {}
        self._sleeps = False
        self._loop_side: LoopSide | None = None
        self.exclusive_queues: set[str] = set()
        self.options = Options()

    @property
    def store(self) -> Store:
        """Return the open store. Raises CannotOpen when the connection was closed."""
        if self._store is None:
            message = "this connection is closed; connect again"
            raise CannotOpen(message)
        return self._store

    def driver_version(self) -> str:
        """Return the version of the SQLite library."""
        return sqlite3.sqlite_version

    def establish_connection(self) -> Transport:
        """Open the file. Raises one of `connection_errors` with a sentence that helps."""
        if detect_environment() == "eventlet":
            # Its patched modules have no select.poll, and it is no longer developed
            # (eventlet.readthedocs.io).
            message = "sqlqueue does not run under eventlet; use gevent, threads or processes"
            raise CannotOpen(message)
        path, query = path_and_query(self.client)
        self.options = Options.read({**query, **self.client.transport_options})
        if self._store is None:
            self._store = open_store(
                path,
                create=self.options.create,
                busy_timeout_s=self.options.busy_timeout,
                read_only=self.options.read_only,
            )
            self.acks = HeldAcks(self._store, durable=self.options.sync_settle)
            self._store.consumers.max_deliveries = self.options.max_deliveries
            # Of a connection before this one. Whatever comes next says that the file is no better.
            with contextlib.suppress(Unavailable):
                self._store.do_what_is_owed()
        self._avail_channels.append(self.create_channel(self))
        return self

    def close_connection(self, connection: Any) -> None:
        """Close the channels, which hands back what they hold, and give the store back.

        If the file cannot be written now, raises one of `connection_errors`; what the connection
        held is then handed back as soon as it can, by its process or, without it, by any other.
        """
        self.unregister_from_event_loop(connection, None)
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None
        try:
            try:
                super().close_connection(connection)
            finally:
                self._end_exclusive_queues()
        finally:
            store, self._store = self._store, None
            if store is not None:
                close_store(store)

    def _end_exclusive_queues(self) -> None:
        names, self.exclusive_queues = self.exclusive_queues, set()
        store = self._store
        if names and store is not None and store.consumers.is_registered:
            owner_id = store.consumers.worker_id
            store.do_or_owe(lambda: store.topology.end_own(sorted(names), owner_id))

    def verify_connection(self, connection: Any) -> bool:
        """Say whether the store is open."""
        return self._store is not None

    def drain_events(  # type: ignore[override]  # as in Kombu's own transports
        self, connection: Any, timeout: float | None = None
    ) -> None:
        """Deliver one message, or wait for it; `timeout` in seconds, None for ever, 0 not at all.

        Raises socket.timeout when nothing came, as Kombu expects. What was acknowledged is committed
        before it waits. The wait is a sleep that a
        publisher of any process ends; it looks at the file at least once a second, because the
        process that should have woken it may have been killed.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        if self.options.group_acks:
            self.acks.begin()
        while not (self.deliver_arrived() or (self.fetch(None) and self.deliver_arrived())):
            self.acks.settle()
            left_s = LONGEST_SLEEP_S if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if deadline_s is None and not any(one.is_consuming for one in list(self.channels)):
                # Nothing can ever come; the base would spin here.
                raise TimeoutError
            self._sleep(left_s)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Deliver from within Kombu's event loop from now on, instead of by `drain_events`."""
        self.unregister_from_event_loop(connection, loop)
        self._loop_side = LoopSide(loop, self.store, self.acks, self)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        """Leave the event loop; harmless when not in it."""
        side, self._loop_side = self._loop_side, None
        if side is not None:
            side.close()

    def deliver_arrived(self) -> bool:
        """Deliver one message that was fetched; say whether there was one."""
        for channel in list(self.channels):  # noqa: SIM110 - once for every message
            if channel.deliver_arrived():
                return True
        return False

    def fetch(self, ready: Collection[str] | None) -> bool:
        """Claim for one consumer whose queue has something; say whether that gave any message.

        Consumers take turns, so that no queue starves. `ready` are the queues that have something,
        None if that is not known.
        """
        may_take = [
            (consumer, limit, channel)
            for channel in list(self.channels)
            for consumer, limit in channel.open_consumers
        ]
        if len(may_take) > 1:
            may_take.sort(key=lambda one: self._served.get(one[0].name, 0))
            if ready is None:
                ready, _ = self.store.look(list({consumer.queue for consumer, _, _ in may_take}))
        for consumer, limit, channel in may_take:
            if (ready is None or consumer.queue in ready) and channel.fetch(consumer, limit):
                self._served[consumer.name] = next(self._turns)
                return True
        return False

    def _sleep(self, timeout_s: float) -> None:
        """Sleep until a channel can take a message, or has become able to."""
        consumers = self.store.consumers
        try:
            # First the sign, then the look: a settlement of another thread that makes room is
            # either seen by the look or rings.
            self._sleeps = True
            queues = self.open_queues()
            if queues:
                consumers.sleep(queues, timeout_s, has_work=self._has_work)
            elif consumers.worker_id and consumers.bell is not None:
                # Full, or consuming nothing. Nobody may count on us for a message, and what is
                # due in the file is none of our business.
                consumers.bell.wait(min(timeout_s, LONGEST_SLEEP_S))
        finally:
            self._sleeps = False

    def _has_work(self, _: object) -> bool:
        return self.store.has_work(self.open_queues())

    def open_queues(self) -> list[str]:
        """Return the queues whose messages a consumer of this connection may take now."""
        found = {
            consumer.queue: None
            for channel in list(self.channels)
            for consumer, _ in channel.open_consumers
        }
        return list(found)

    def forget_consumer(self, name: str) -> None:
        """Remember nothing of a consumer that is cancelled."""
        self._served.pop(name, None)

    def make_room(self) -> None:
        """Wake this connection: a channel may take messages that it could not take before.

        Any thread may call it.
        """
        side = self._loop_side
        if side is not None:
            side.wake()
        bell = self.store.consumers.bell if self._sleeps else None
        if bell is not None:
            bell.ring()

    def keep_watch(self) -> None:
        """Have a thread that extends what this connection holds, and sweeps for the dead."""
        if not self.options.keep_leases:
            return
        if self._keeper is None:
            self._keeper = Keeper(self.store, self.options, self._held)
        self._keeper.ensure_running()

    def _held(self) -> list[tuple[int, int]]:
        return [split_tag(tag) for channel in list(self.channels) for tag in channel.held_tags()]

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: FBT001, FBT002
        """Return the URL, with the whole path: it holds no secret, and a relative one means little.

        What two programs of different directories call by the same relative path are two files.
        """
        # None after a failover: Kombu has then taken the URL to pieces.
        given = uri or f"{_SCHEME}/{quote(self.client.virtual_host or '')}"
        path = given.removeprefix(f"{_SCHEME}/")
        if path == given or not path or path.startswith(("/", "?")):
            return given
        return f"{_SCHEME}/{quote(os.fsencode(Path.cwd()))}/{path}"


def path_and_query(client: Any) -> tuple[str, dict[str, str]]:
    """Return the file a Kombu connection means, and the options in its URL.

    Kombu hands the URL over whole in `hostname`; after a failover it has parsed it and left the
    path in `virtual_host`, without the first slash and unescaped.
    """
    given = client.hostname or ""
    if given.startswith(_SCHEME):
        return split_url(given)
    path = client.virtual_host or ""
    if path in {"", "/"}:
        return split_url(f"{_SCHEME}{given}")
    return path, {}


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """Return path and options of `sqlqueue:///relative.db` or `sqlqueue:////absolute.db`.

    Percent escapes are read. Raises CannotOpen when there is no path, or only two slashes.
    """
    rest, _, query = url.removeprefix(_SCHEME).partition("?")
    if not rest.startswith("/"):
        message = (
            f"{url} names no file: write three slashes for a relative path (sqlqueue:///{rest or 'queue.db'}) "
            "and four for an absolute one (sqlqueue:////var/lib/app/queue.db)"
        )
        raise CannotOpen(message)
    try:
        path = unquote(rest[1:], errors="strict")
    except UnicodeDecodeError as error:
        message = f"{url} is not UTF-8 behind its percent signs; write the path as UTF-8"
        raise CannotOpen(message) from error
    if not path:
        message = f"{url} names no file; write for example sqlqueue:///queue.db"
        raise CannotOpen(message)
    return path, dict(parse_qsl(query))
