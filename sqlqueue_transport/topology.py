"""Queues, exchanges and bindings: rows in the file, so every process sees the same ones at once.

Three kinds of queues go away by themselves: auto-delete ones with their last consumer, exclusive
ones with the connection that made them or their last consumer, those with `x-expires` when nobody
used them for that long. A row says since when a queue has had no consumer; whoever cancels a
consumer, closes or sweeps looks for what is over (`end_unused`), and the row is judged again in
the transaction that ends it.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import statements as sql
from sqlqueue_transport.errors import InvalidMessage, NotDeclared, QueueLocked
from sqlqueue_transport.routing import exchange_type
from sqlqueue_transport.showing import shown

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

LONGEST_NAME = 255  # AMQP's short string (AMQP 0-9-1, 4.2.5.3)
PURGED_AT_ONCE = 500  # rows a transaction, so that workers never wait for a purge

# What went away by itself comes back with its new arguments; what is there stays as it was made.
_DECLARE_QUEUE = """
INSERT INTO queue (
  name, durable, exclusive, auto_delete, arguments, created_at_ms, message_ttl_ms, expires_ms,
  max_length, max_priority, dead_letter_exchange, dead_letter_routing_key, owner_id,
  unused_since_ms
)
VALUES (
  :name, :durable, :exclusive, :auto_delete, :arguments, :now_ms, :message_ttl_ms, :expires_ms,
  :max_length, :max_priority, :dead_letter_exchange, :dead_letter_routing_key, :owner_id, :now_ms
)
ON CONFLICT (name) DO UPDATE SET
  durable = excluded.durable,
  exclusive = excluded.exclusive,
  auto_delete = excluded.auto_delete,
  arguments = excluded.arguments,
  created_at_ms = excluded.created_at_ms,
  message_ttl_ms = excluded.message_ttl_ms,
  expires_ms = excluded.expires_ms,
  max_length = excluded.max_length,
  max_priority = excluded.max_priority,
  dead_letter_exchange = excluded.dead_letter_exchange,
  dead_letter_routing_key = excluded.dead_letter_routing_key,
  owner_id = excluded.owner_id,
  unused_since_ms = excluded.unused_since_ms,
  gone_at_ms = NULL
WHERE gone_at_ms IS NOT NULL
"""
_HAS_QUEUE = "SELECT exclusive, owner_id FROM queue WHERE name = :name AND gone_at_ms IS NULL"
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
_DISOWN = """
UPDATE queue SET owner_id = 0
WHERE name = :name AND exclusive = 1 AND owner_id = :owner_id AND gone_at_ms IS NULL
"""
_NEWEST = "SELECT coalesce(max(id), 0) FROM message"
_DELETE_QUEUE = "DELETE FROM queue WHERE name = :name"
_DECLARE_EXCHANGE = """
INSERT INTO exchange (name, type, durable, auto_delete, arguments)
VALUES (:name, :type, :durable, :auto_delete, :arguments)
ON CONFLICT (name) DO NOTHING
"""
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
        owner_id: int | None = None,
    ) -> bool:
        """Make a queue unless it is there; say whether it was made.

        Looks first, so that a repetition writes nothing. `arguments` are AMQP's (`x-expires` and
        so on, see `docs/transport.md`); a queue that is there keeps its own. `owner_id` is the
        worker whose connection an exclusive queue belongs to. Raises InvalidMessage for a name or
        an argument that cannot be.
        """
        values = _row_of(
            name,
            arguments,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            owner_id=owner_id,
        )
        values["now_ms"] = self._clock.wall_ms()
        if self.has_queue(name):
            self.touch(name)
            return False
        return bool(self._database.write(lambda c: c.execute(_DECLARE_QUEUE, values).rowcount))

    def has_queue(self, name: str) -> bool:
        """Say whether the queue was declared, and is still there."""
        valid_name(name, what="queue")
        return bool(self._database.read(lambda c: c.execute(_HAS_QUEUE, {"name": name}).fetchone()))

    def refuse_locked(self, name: str, owner_id: int | None) -> None:
        """Raise QueueLocked for an exclusive queue, unless this worker owns it."""
        valid_name(name, what="queue")
        found = self._database.read(lambda c: c.execute(_HAS_QUEUE, {"name": name}).fetchone())
        if found is not None and found[0] and (owner_id is None or found[1] != owner_id):
            message = f"queue {name!r} is exclusive to another connection"
            raise QueueLocked(message)

    def touch(self, name: str) -> None:
        """Count a look at a queue as use: `x-expires` starts anew."""
        values = {"queue": name, "now_ms": self._clock.wall_ms()}
        if self._database.read(lambda c: c.execute(sql.CAN_EXPIRE, values).fetchone()):
            self._database.write(lambda c: c.execute(sql.TOUCH_QUEUE, values).rowcount)

    def size(self, name: str) -> int:
        """Return how many messages of a queue are ready."""
        count: int = self._database.read(
            lambda c: c.execute(sql.READY_COUNT, {"queue": name}).fetchone()[0]
        )
        return count

    def end_unused(self) -> None:
        """End the queues that go away by themselves and whose time has come.

        Their messages go with them, in chunks. Each is judged anew, so a queue that somebody uses
        meanwhile keeps what is left and what comes. If the process dies midway, the next one goes on.
        """
        for name in self._ending():
            while self._database.write(lambda c, name=name: self._end_some(c, name)):  # type: ignore[misc]
                pass

    def end_own(self, names: Sequence[str], owner_id: int) -> None:
        """End exclusive queues whose connection closes."""
        for name in names:
            values = {"name": name, "owner_id": owner_id}
            self._database.write(lambda c, values=values: c.execute(_DISOWN, values).rowcount)  # type: ignore[misc]
        self.end_unused()

    def _ending(self) -> list[str]:
        values = {"now_ms": self._clock.wall_ms()}
        rows = self._database.read(lambda c: c.execute(sql.ENDING_QUEUES, values).fetchall())
        return [name for (name,) in rows]

    def _end_some(self, connection: sqlite3.Connection, name: str) -> bool:
        """Delete a chunk of an ending queue's messages, or end it; say whether there is more to do."""
        values = {"queue": name, "now_ms": self._clock.wall_ms(), "chunk": PURGED_AT_ONCE}
        if not connection.execute(sql.IS_ENDING, values).fetchone():
            return False  # used again meanwhile, or ended by somebody else
        for statement in (sql.EMPTY_QUEUE, sql.EMPTY_QUEUE_LATER):
            if connection.execute(statement, values).rowcount == PURGED_AT_ONCE:
                return True
        for statement in (sql.UNBIND_ALL, sql.END_QUEUE):
            connection.execute(statement, values)
        return False

    def purge(self, name: str) -> int:
        """Delete what is ready in a queue and return how many; what is held or due later stays.

        What is published meanwhile stays, too. If the process dies midway, a part is deleted.
        """
        return self._purge(_PURGE, valid_name(name, what="queue"))

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue with its bindings and waiting messages; return how many were ready.

        What a consumer holds is left to it. Nothing happens when a condition is not met, as in
        Kombu's virtual transports; a consumer that died counts until the next sweep. If the process
        dies midway the queue is gone, and some of its messages may be left: delete it again.
        """
        valid_name(name, what="queue")

        def work(connection: sqlite3.Connection) -> bool:
            values = {"queue": name}
            ready = connection.execute(sql.READY_COUNT, values).fetchone()[0]
            used = connection.execute(sql.CONSUMERS_OF, values).fetchone()
            if (if_empty and ready) or (if_unused and used):
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
        valid_name(name, what="exchange")
        return self._database.read(lambda c: exchange_type(c, name))

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange and its bindings; queues and their messages stay.

        With `if_unused` nothing happens while a queue is bound.
        """
        valid_name(name, what="exchange")

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
        """Route an exchange's messages with this key to a queue.

        The queue is made if need be. Looks first, so that a repetition writes nothing. Raises
        NotDeclared for an exchange that is not there, and for a queue that went away by itself: made
        now, they might be of the wrong type, or stay for ever.
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
        if self._database.read(lambda c: c.execute(_HAS_BINDING, values).fetchone()):
            return

        row = _row_of(queue)

        def work(connection: sqlite3.Connection) -> None:
            refuse_gone(connection, queue)
            if exchange_type(connection, exchange) is None:
                message = (
                    f"exchange {exchange!r} was never declared; declare it before binding to it"
                )
                raise NotDeclared(message)
            connection.execute(_DECLARE_QUEUE, {**row, "now_ms": self._clock.wall_ms()})
            connection.execute(_BIND, values)

        self._database.write(work)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding; harmless when it is not there."""
        valid_name(queue, what="queue")
        valid_name(exchange, what="exchange")
        if routing_key:
            valid_name(routing_key, what="routing key")
        values = {"queue": queue, "exchange": exchange, "routing_key": routing_key}
        self._database.write(lambda c: c.execute(_UNBIND, values).rowcount)

    def bindings(self) -> list[tuple[str, str, str]]:
        """Return every binding as (queue, exchange, routing key)."""
        return self._database.read(lambda c: c.execute(_BINDINGS).fetchall())


def newest_message(connection: sqlite3.Connection) -> int:
    """Return the id of the newest message of all queues, 0 when there is none: where a purge ends."""
    newest: int = connection.execute(_NEWEST).fetchone()[0]
    return newest


def purge_some(connection: sqlite3.Connection, queue: str, *, newest: int, limit: int) -> int:
    """Delete up to `limit` messages that wait in a queue, ready or due later; return how many.

    Those that came after the message `newest` stay. In a transaction of the caller.
    """
    values = {"queue": queue, "newest": newest, "chunk": limit}
    purged = connection.execute(_PURGE, values).rowcount
    values["chunk"] = limit - purged
    return purged + connection.execute(_PURGE_LATER, values).rowcount


def refuse_gone(connection: sqlite3.Connection, queue: str) -> None:
    """Raise NotDeclared for a queue that went away by itself: who uses it has to declare it anew.

    One that was never declared may be used.
    """
    if connection.execute(sql.HAS_GONE, {"queue": queue}).fetchone():
        message = (
            f"queue {queue!r} went away (auto-delete, exclusive or x-expires); declare it anew"
        )
        raise NotDeclared(message)


def _row_of(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
    exclusive: bool = False,
    auto_delete: bool = False,
    owner_id: int | None = None,
) -> dict[str, Any]:
    """Return what `_DECLARE_QUEUE` needs, but for the time. Raises InvalidMessage."""
    given = dict(arguments or {})
    key = _text(given, "x-dead-letter-routing-key")
    if key:  # the name of a queue, where the exchange is the default one
        valid_name(key, what="dead letter routing key")
    return {
        "name": valid_name(name, what="queue"),
        "durable": int(durable),
        "exclusive": int(exclusive),
        "auto_delete": int(auto_delete),
        "arguments": _as_json(given),
        "owner_id": owner_id if exclusive else None,
        "message_ttl_ms": _number(given, "x-message-ttl"),
        "expires_ms": _number(given, "x-expires", least=1),
        "max_length": _number(given, "x-max-length"),
        "max_priority": _number(given, "x-max-priority"),
        "dead_letter_exchange": _text(given, "x-dead-letter-exchange"),
        "dead_letter_routing_key": key,
    }


def _number(arguments: Mapping[str, Any], name: str, *, least: int = 0) -> int | None:
    """Return a whole number among a queue's arguments; None when it is not there."""
    given = arguments.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not least <= given < 2**53:
        message = (
            f"queue argument {name}={shown(given)} is not usable: give a number from {least} on"
        )
        raise InvalidMessage(message)
    return int(given)


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    """Return a text among a queue's arguments; None when it is not there."""
    given = arguments.get(name)
    if given is None or isinstance(given, str):
        return given
    message = f"queue argument {name}={shown(given)} is not usable: give a text"
    raise InvalidMessage(message)


def _as_json(arguments: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(arguments or {}), default=str, allow_nan=False)
    except Exception as error:  # also what the str of a stranger's object raises
        message = f"the arguments {shown(arguments)} cannot be stored as JSON ({shown(error)})"
        raise InvalidMessage(message) from error


def valid_name(name: object, *, what: str) -> str:
    """Return the name, or raise InvalidMessage when it cannot be one.

    Control characters would forge lines in logs and terminals, and AMQP ends names at 255 bytes.
    """
    if not isinstance(name, str) or not name:
        message = f"a {what} needs a name, not {shown(name)}"
        raise InvalidMessage(message)
    return _valid_name(name, what)


@functools.lru_cache(maxsize=1024)  # asked for every publish, of a few names
def _valid_name(name: str, what: str) -> str:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        message = f"{what} name {shown(name)} contains a lone surrogate; use valid Unicode text"
        raise InvalidMessage(message) from None
    if length > LONGEST_NAME:
        message = f"{what} name of {length} bytes is too long; {LONGEST_NAME} are allowed"
        raise InvalidMessage(message)
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        message = f"{what} name {name!r} contains control characters; leave them out"
        raise InvalidMessage(message)
    return name
