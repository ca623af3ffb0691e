"""The Kombu transport: finds the file a URL names, and waits for messages without polling."""

from __future__ import annotations

import socket
import sqlite3
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from kombu.transport import virtual

from sqlqueue_transport.channel import Channel
from sqlqueue_transport.errors import CannotOpen, LeaseLost, Unavailable
from sqlqueue_transport.keeper import Keeper
from sqlqueue_transport.options import Options
from sqlqueue_transport.stores import close_store, open_store

if TYPE_CHECKING:
    from sqlqueue_transport.store import Store

_SCHEME = "sqlqueue://"


class Transport(virtual.Transport):  # type: ignore[misc]  # kombu has no types
    """Connect Kombu to a queue file; see the package's docstring for what it can do."""

    Channel = Channel
    can_parse_url = True
    default_port = None
    driver_type = "sqlqueue"
    driver_name = "sqlite3"
    # What may be waited out and tried again. Programming errors are not among them: Celery's
    # event loop swallows everything that is.
    connection_errors = (*virtual.Transport.connection_errors, Unavailable)
    # A late acknowledgement is the delivery's fault, not the connection's.
    channel_errors = (*virtual.Transport.channel_errors, LeaseLost)
    implements = virtual.Transport.implements.extend(
        asynchronous=False,
        exchange_type=frozenset(["direct"]),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        """Prepare; the file is opened by `establish_connection`."""
        super().__init__(client, **kwargs)
        self._store: Store | None = None
        self._keeper: Keeper | None = None
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
        path, query = path_and_query(self.client)
        self.options = Options.read({**query, **self.client.transport_options})
        if self._store is None:
            self._store = open_store(
                path, create=self.options.create, busy_timeout_s=self.options.busy_timeout
            )
        self._avail_channels.append(self.create_channel(self))
        return self

    def close_connection(self, connection: Any) -> None:
        """Close the channels, which hands back what they hold, and give the store back."""
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None
        try:
            super().close_connection(connection)
        finally:
            store, self._store = self._store, None
            if store is not None:
                close_store(store)

    def verify_connection(self, connection: Any) -> bool:  # noqa: ARG002 - Kombu's signature
        """Say whether the store is open."""
        return self._store is not None

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # noqa: ARG002
        """Deliver what is ready, or wait for it; `timeout` in seconds, None for ever, 0 not at all.

        Raises socket.timeout when nothing came, as Kombu expects. The wait is a sleep that a
        publisher of any process ends; it looks at the file at least once a second, because the
        process that should have woken it may have been killed.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while not self._deliver_ready():
            left_s = 1.0 if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                raise socket.timeout
            queues = [
                queue for channel in list(self.channels) for queue in channel.consumed_queues
            ]
            if not queues and deadline_s is None:
                # Nothing can ever come; the base would spin here.
                raise socket.timeout
            self.store.consumers.sleep(queues, left_s, has_work=self._has_room_for_work)

    def _has_room_for_work(self, _: object) -> bool:
        """Look at the file for the channels that may take more; the others sleep on."""
        queues = [
            queue
            for channel in list(self.channels)
            if channel.has_room
            for queue in channel.consumed_queues
        ]
        return bool(queues) and self.store.has_work(queues)

    def _deliver_ready(self) -> bool:
        return any([channel.deliver_ready() for channel in list(self.channels)])

    def keep_leases(self) -> None:
        """Make sure that the leases of what this connection holds are extended."""
        if not self.options.keep_leases:
            return
        if self._keeper is None:
            self._keeper = Keeper(
                self.store,
                lease_s=self.options.visibility_timeout,
                holds_any=lambda: any(channel.holds_any for channel in list(self.channels)),
            )
        self._keeper.ensure_running()

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: ARG002, FBT001, FBT002
        """Return the URL as it is: a path holds no secret."""
        return uri


def path_and_query(client: Any) -> tuple[str, dict[str, str]]:
    """Return the file a Kombu connection means, and the options in its URL.

    Kombu hands the URL over whole in `hostname`; after a failover it has parsed it and left the
    path in `virtual_host`, without the first slash.
    """
    given = client.hostname or ""
    if given.startswith(_SCHEME):
        return split_url(given)
    return unquote(client.virtual_host or ""), {}


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
    path = unquote(rest[1:])
    if not path:
        message = f"{url} names no file; write for example sqlqueue:///queue.db"
        raise CannotOpen(message)
    return path, dict(parse_qsl(query))
