"""Ways to break the product's durability, so that the power cuts can be seen to find them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlqueue_transport import files, flushing, opening
from sqlqueue_transport.database import Database
from sqlqueue_transport.store import Store


def _no_flush() -> None:
    flushing._sync_data = lambda _: None


def _synchronous_off() -> None:
    connect = opening.connect

    def without(path: Path, timeout_s: float, **options: Any) -> sqlite3.Connection:
        connection = connect(path, timeout_s, **options)
        connection.execute("PRAGMA synchronous = OFF").fetchall()
        return connection

    opening.connect = without


def _flush_before_commit() -> None:
    flush = flushing._sync_data
    flushing._sync_data = lambda _: None
    transaction = Database._transaction

    def early(self: Database, connection: Any, work: Callable[[Any], Any], *, durable: bool) -> Any:
        def flushed(inner: Any) -> Any:
            result = work(inner)
            flush(self._held.log)
            return result

        return transaction(self, connection, flushed, durable=durable)

    Database._transaction = early


def _join_a_flush_in_flight() -> None:
    def joined(self: flushing.Flushing, commit: int) -> None:
        is_first = self.mutex.acquire(blocking=False)
        with self.mutex:
            if is_first:
                self.mutex.release()
                self.flush_now()

    flushing.Flushing.flush = joined


def _old_descriptor() -> None:
    open_writer, first = opening.open_writer, []

    def with_old_log(path: Path, held: Any, **options: Any) -> sqlite3.Connection:
        connection = open_writer(path, held, **options)
        first.append(held.log)
        held.log = os.dup(first[0])
        return connection

    opening.open_writer = with_old_log


def _no_directory_sync() -> None:
    files.sync_directory = lambda _: None


def _durability_process() -> None:
    publish = Store.publish

    def lax(self: Store, messages: Any, *, durable: bool = True) -> Any:
        return publish(self, messages, durable=False)

    Store.publish = lax


def _settlements_not_flushed() -> None:
    settle, claim = Store.settle, Store.claim

    def lax(self: Store, settlements: Any, *, durable: bool = False) -> Any:
        return settle(self, settlements, durable=False)

    def lax_claim(self: Store, *arguments: Any, **options: Any) -> Any:
        return claim(self, *arguments, **{**options, "durable": False})

    Store.settle, Store.claim = lax, lax_claim


def _batch_in_two() -> None:
    publish = Store.publish

    def halves(self: Store, messages: Any, *, durable: bool = True) -> Any:
        for half in (messages[:1], messages[1:]):
            if half:
                publish(self, half, durable=durable)

    Store.publish = halves


def _backup_not_flushed() -> None:
    sync = os.fsync

    def only_directories(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            sync(descriptor)

    os.fsync = only_directories


def _tick_apart() -> None:
    def apart(self: Store, messages: Any, tick: Any, *, durable: bool = True) -> Any:
        answer = publish_tick(self, [], tick, durable=durable)
        self.publish(messages if answer.value == "taken" else [], durable=durable)
        return answer

    publish_tick, Store.publish_tick = Store.publish_tick, apart


WAYS: dict[str, Callable[[], None]] = {
    "no flush of our own": _no_flush,
    "synchronous off": _synchronous_off,
    "flush before the commit": _flush_before_commit,
    "a flush in flight is joined": _join_a_flush_in_flight,
    "the descriptor of an older log": _old_descriptor,
    "no sync of directories": _no_directory_sync,
    "durability process": _durability_process,
    "settlements not flushed": _settlements_not_flushed,
    "a batch in two transactions": _batch_in_two,
    "backup not flushed": _backup_not_flushed,
    "tick and jobs apart": _tick_apart,
}


def apply(way: str) -> None:
    """Break this process in one of the ways; "" breaks nothing."""
    if way:
        WAYS[way]()
