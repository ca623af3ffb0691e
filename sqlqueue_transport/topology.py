"""Queues, exchanges and bindings: rows in the file, so every process sees the same ones at once."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from sqlqueue_transport.errors import InvalidMessage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

LONGEST_NAME = 255  # AMQP's short string (AMQP 0-9-1, 4.2.5.3)
PURGED_AT_ONCE = 500  # rows a transaction, so that workers never wait for a purge

_DECLARE_QUEUE = """
INSERT INTO queue (name, durable, exclusive, auto_delete, arguments, created_at_ms)
VALUES (:name, :durable, :exclusive, :auto_delete, :arguments, :now_ms)
ON CONFLICT (name) DO NOTHING
"""
_HAS_QUEUE = "SELECT 1 FROM queue WHERE name = :name"
_READY_COUNT = "SELECT count(*) FROM message WHERE state = 'pending' AND queue = :queue"
# Their queues are JSON, read in Python: SQLite has json_each for certain only since 3.38.
_CONSUMED = "SELECT queues FROM worker WHERE ended_at_ms IS NULL"
# Only what waits is purged, as in AMQP: what somebody holds is his. Purged messages are gone.
_PURGE = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state = 'pending' AND queue = :queue AND id <= :newest
  ORDER BY priority DESC, id
  LIMIT :chunk
)
"""
_PURGE_LATER = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state IN ('scheduled', 'failed') AND queue = :queue AND id <= :newest
  LIMIT :chunk
)
"""
_NEWEST = "SELECT coalesce(max(id), 0) FROM message"
_DELETE_QUEUE = "DELETE FROM queue WHERE name = :name"
_DECLARE_EXCHANGE = """
INSERT INTO exchange (name, type, durable, auto_delete, arguments)
VALUES (:name, :type, :durable, :auto_delete, :arguments)
ON CONFLICT (name) DO NOTHING
"""
_EXCHANGE_TYPE = "SELECT type FROM exchange WHERE name = :name"
_IS_BOUND = "SELECT 1 FROM binding WHERE exchange = :name LIMIT 1"
_DELETE_EXCHANGE = "DELETE FROM exchange WHERE name = :name"
_DELETE_EXCHANGE_BINDINGS = "DELETE FROM binding WHERE exchange = :name"
_HAS_BINDING = """
SELECT 1 FROM binding
WHERE exchange = :exchange AND routing_key = :routing_key AND queue = :queue
"""
_BIND = """
INSERT INTO binding (exchange, routing_key, queue, arguments)
VALUES (:exchange, :routing_key, :queue, :arguments)
ON CONFLICT DO NOTHING
"""
_UNBIND = """
DELETE FROM binding
WHERE exchange = :exchange AND routing_key = :routing_key AND queue = :queue
"""
_BINDINGS = "SELECT queue, exchange, routing_key FROM binding ORDER BY exchange, routing_key, queue"


class Topology:
    """Declare and delete what messages travel through.

    Each call is one transaction, but for those that delete messages: these go in chunks.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a queue unless it is there; looks first, so that a repetition writes nothing."""
        valid_name(name, what="queue")
        if self.has_queue(name):
            return
        values = {
            "name": name,
            "durable": int(durable),
            "exclusive": int(exclusive),
            "auto_delete": int(auto_delete),
            "arguments": _as_json(arguments),
            "now_ms": self._clock.wall_ms(),
        }
        self._database.write(lambda c: c.execute(_DECLARE_QUEUE, values).rowcount)

    def has_queue(self, name: str) -> bool:
        """Say whether the queue was declared."""
        valid_name(name, what="queue")
        return bool(self._database.read(lambda c: c.execute(_HAS_QUEUE, {"name": name}).fetchone()))

    def size(self, name: str) -> int:
        """Return how many messages of a queue are ready."""
        count: int = self._database.read(
            lambda c: c.execute(_READY_COUNT, {"queue": name}).fetchone()[0]
        )
        return count

    def consumers(self, name: str) -> int:
        """Return how many processes are registered as consuming a queue; plain clients are not."""
        return self._database.read(lambda c: _consumers(c, name))

    def purge(self, name: str) -> int:
        """Delete what is ready in a queue and return how many; what is held or due later stays.

        What is published meanwhile stays, too. If the process dies midway, a part is deleted.
        """
        return self._purge(_PURGE, name)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue with its bindings and waiting messages; return how many were ready.

        What a consumer holds is left to it. Nothing happens when a condition is not met, as in
        Kombu's virtual transports. If the process dies midway the queue is gone, and some of its
        messages may be left: delete it again.
        """

        def work(connection: sqlite3.Connection) -> bool:
            ready = connection.execute(_READY_COUNT, {"queue": name}).fetchone()[0]
            if (if_empty and ready) or (if_unused and _consumers(connection, name)):
                return False
            connection.execute(_DELETE_QUEUE, {"name": name})
            return True

        if not self._database.write(work):
            return 0
        purged = self._purge(_PURGE, name)
        self._purge(_PURGE_LATER, name)
        return purged

    def _purge(self, statement: str, name: str) -> int:
        newest = self._database.read(lambda c: c.execute(_NEWEST).fetchone()[0])
        values = {"queue": name, "newest": newest, "chunk": PURGED_AT_ONCE}
        purged = 0
        while True:
            count = self._database.write(lambda c: c.execute(statement, values).rowcount)
            purged += count
            if count < PURGED_AT_ONCE:
                return purged

    def declare_exchange(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = True,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Make an exchange unless it is there and return the type it has."""
        valid_name(name, what="exchange")
        known = self.exchange_type(name)
        if known is None:
            values = {
                "name": name,
                "type": kind,
                "durable": int(durable),
                "auto_delete": int(auto_delete),
                "arguments": _as_json(arguments),
            }
            self._database.write(lambda c: c.execute(_DECLARE_EXCHANGE, values).rowcount)
            known = self.exchange_type(name) or kind
        return known

    def exchange_type(self, name: str) -> str | None:
        """Return an exchange's type; None when it was not declared."""
        row = self._database.read(lambda c: c.execute(_EXCHANGE_TYPE, {"name": name}).fetchone())
        return row[0] if row else None

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange and its bindings; queues and their messages stay.

        With `if_unused` nothing happens while a queue is bound.
        """

        def work(connection: sqlite3.Connection) -> None:
            if if_unused and connection.execute(_IS_BOUND, {"name": name}).fetchone():
                return
            connection.execute(_DELETE_EXCHANGE_BINDINGS, {"name": name})
            connection.execute(_DELETE_EXCHANGE, {"name": name})

        self._database.write(work)

    def bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Route an exchange's messages with this key to a queue, which is made if need be.

        Looks first, so that a repetition writes nothing.
        """
        valid_name(queue, what="queue")
        valid_name(exchange, what="exchange")
        if routing_key:
            valid_name(routing_key, what="routing key")
        values = {
            "queue": queue,
            "exchange": exchange,
            "routing_key": routing_key,
            "arguments": _as_json(arguments),
        }
        declared = {
            "name": queue,
            "durable": 1,
            "exclusive": 0,
            "auto_delete": 0,
            "arguments": "{}",
            "now_ms": self._clock.wall_ms(),
        }
        if self._database.read(lambda c: c.execute(_HAS_BINDING, values).fetchone()):
            return

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_DECLARE_QUEUE, declared)
            connection.execute(_BIND, values)

        self._database.write(work)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding; harmless when it is not there."""
        values = {"queue": queue, "exchange": exchange, "routing_key": routing_key}
        self._database.write(lambda c: c.execute(_UNBIND, values).rowcount)

    def bindings(self) -> list[tuple[str, str, str]]:
        """Return every binding as (queue, exchange, routing key)."""
        return self._database.read(lambda c: c.execute(_BINDINGS).fetchall())


def _consumers(connection: sqlite3.Connection, queue: str) -> int:
    return sum(
        queue in json.loads(queues) for (queues,) in connection.execute(_CONSUMED).fetchall()
    )


def _as_json(arguments: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(arguments or {}), default=str)


@functools.lru_cache(maxsize=1024)  # asked for every publish, of a few names
def valid_name(name: str, *, what: str) -> str:
    """Return the name, or raise InvalidMessage when it cannot be one.

    Control characters would forge lines in logs and terminals, and AMQP ends names at 255 bytes.
    """
    if not name or not isinstance(name, str):
        message = f"a {what} needs a name, not {name!r}"
        raise InvalidMessage(message)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        message = f"{what} name {name!r} contains a lone surrogate; use valid Unicode text"
        raise InvalidMessage(message) from None
    if length > LONGEST_NAME:
        message = f"{what} name of {length} bytes is too long; {LONGEST_NAME} are allowed"
        raise InvalidMessage(message)
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        message = f"{what} name {name!r} contains control characters; leave them out"
        raise InvalidMessage(message)
    return name
