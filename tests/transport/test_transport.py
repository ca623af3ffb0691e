"""The transport: which file a URL means, how it fails, and how it waits."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import kombu
import pytest
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import parse_url

from sqlqueue_transport import Transport, close_store, open_store
from sqlqueue_transport.errors import (
    Busy,
    CannotOpen,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    ForkedStore,
    InvalidMessage,
    LeaseLost,
    SchemaChanged,
    TransportError,
    Unavailable,
    WorkerSwept,
)
from sqlqueue_transport.store import Store
from sqlqueue_transport.transport import path_and_query, split_url
from tests.support import finish, run_python, wait_until
from tests.transport.broker import connect, get, publish, store_of
from tests.transport.rows import bind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def connection(path: Path) -> Iterator[kombu.Connection]:
    with connect(path) as opened:
        yield opened


# -- what it says of itself -------------------------------------------------------------------------


def test_the_scheme_is_registered_by_importing_the_package() -> None:
    assert TRANSPORT_ALIASES["sqlqueue"] == "sqlqueue_transport.transport:Transport"
    assert kombu.Connection("sqlqueue:///q.db").get_transport_cls() is Transport


def test_it_claims_to_implement_what_it_does_and_nothing_else() -> None:
    assert dict(Transport.implements) == {
        "asynchronous": True,
        "batch_publish": True,
        "exchange_type": frozenset({"direct", "topic", "fanout"}),
        "heartbeats": False,
    }
    assert (Transport.driver_type, Transport.driver_name) == ("sqlqueue", "sqlite3")
    assert Transport.can_parse_url
    assert Transport.default_port is None


def test_the_capabilities_of_the_docstring_are_those_of_the_class() -> None:
    import sqlqueue_transport

    lines = [line for line in (sqlqueue_transport.__doc__ or "").splitlines() if ": " in line]
    says = {
        key.removeprefix("* Supports ").strip(): value.split(",")[0].strip()
        for key, _, value in (line.partition(": ") for line in lines)
        if key.startswith("* Supports ")
    }
    assert says == {
        "direct exchanges and the default exchange": "yes",
        "topic exchanges": "yes",
        "fanout exchanges": "yes",
        "headers exchanges": "no",
        "binding exchanges to exchanges": "no",
        "priorities": "yes",
        "`eta` held by the broker": "yes (`hold_eta`)",
        "`expiration` and `x-message-ttl`": "yes",
        "the `expires` header of jobs": "yes",
        "`x-expires`, auto-delete and exclusive queues": "yes",
        "`x-max-length`": "yes",
        "`x-max-length-bytes`": "no",
        "`x-dead-letter-exchange` and `x-dead-letter-routing-key`": "yes",
        "a limit of deliveries": "yes (`max_deliveries`)",
        "prefetch counts": "yes",
        "visibility timeouts": "yes (`visibility_timeout`)",
        "batches (`Producer.batch`)": "yes",
        "the event loop (`asynchronous`)": "yes",
        "heartbeats": "no",
        "gevent": "yes",
        "eventlet": "no",
    }
    assert Transport.implements.exchange_type == {"direct", "topic", "fanout"}
    assert Transport.implements.batch_publish
    assert Transport.implements.asynchronous
    assert not Transport.implements.heartbeats


def test_the_driver_is_the_standard_library(connection: kombu.Connection) -> None:
    assert connection.transport.driver_version() == sqlite3.sqlite_version


def test_what_may_be_waited_out_is_a_connection_error_and_nothing_else() -> None:
    """Celery's event loop swallows connection errors, so a programming error must not be one."""
    for kind in (Unavailable, Busy, DiskFault, FileReplaced, SchemaChanged, CannotOpen):
        assert issubclass(kind, Transport.connection_errors)
    for other in (
        InvalidMessage,
        LeaseLost,
        WorkerSwept,
        ForkedStore,
        TransportError,
        sqlite3.Error,
        sqlite3.IntegrityError,
        ValueError,
        TypeError,
        OSError,
    ):
        assert not issubclass(other, Transport.connection_errors)
    assert issubclass(LeaseLost, Transport.channel_errors)


# -- which file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        ("sqlqueue:///queue.db", "queue.db", {}),
        ("sqlqueue:///./run/queue.db", "./run/queue.db", {}),
        ("sqlqueue:////var/lib/queue.db", "/var/lib/queue.db", {}),
        ("sqlqueue:////a%20b/q%3F%23%25.db", "/a b/q?#%.db", {}),
        ("sqlqueue:///größe.db", "größe.db", {}),
        ("sqlqueue:///gr%C3%B6%C3%9Fe.db", "größe.db", {}),
        ("sqlqueue:///a b.db", "a b.db", {}),
        ("sqlqueue:///a#b.db", "a#b.db", {}),
        ("sqlqueue:///a%2520b.db", "a%20b.db", {}),
        (
            "sqlqueue:///q.db?create=no&busy_timeout=2",
            "q.db",
            {"create": "no", "busy_timeout": "2"},
        ),
        ("sqlqueue:///q.db?", "q.db", {}),
        ("sqlqueue:///a:b@c.db", "a:b@c.db", {}),
    ],
)
def test_a_url_names_a_file(url: str, path: str, query: dict[str, str]) -> None:
    assert split_url(url) == (path, query)
    assert path_and_query(kombu.Connection(url)) == (path, query)


@pytest.mark.parametrize(
    "url",
    ["sqlqueue://", "sqlqueue://queue.db", "sqlqueue://host/queue.db", "sqlqueue:///",
     "sqlqueue:///?create=no", "sqlqueue:///%ff.db"],
)  # fmt: skip
def test_a_url_that_names_no_file_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(CannotOpen) as caught:
        kombu.Connection(url).transport.establish_connection()
    assert "sqlqueue:///" in str(caught.value) or "UTF-8" in str(caught.value)


@pytest.mark.parametrize("name", ["q.db", "a b.db", "größe.db", "a%20b.db", "名前.db"])
def test_a_file_of_any_name_is_opened_under_that_name(tmp_path: Path, name: str) -> None:
    with kombu.Connection(f"sqlqueue:///{quote(str(tmp_path / name))}") as connection:
        connection.connect()
        assert store_of(connection).path == tmp_path.resolve() / name
    assert (tmp_path / name).exists()


def test_a_relative_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with kombu.Connection("sqlqueue:///q.db") as connection:
        connection.connect()
    assert (tmp_path / "q.db").exists()


def test_the_shape_that_a_failover_leaves_names_the_same_file() -> None:
    """Kombu takes the second URL of a list to pieces and unescapes its path once."""
    for url in (
        "sqlqueue:////var/lib/q.db",
        "sqlqueue:///q.db",
        "sqlqueue:///a%20b.db",
        "sqlqueue:///a%2520b.db",
        "sqlqueue:///gr%C3%B6%C3%9Fe.db",
    ):
        parsed = parse_url(url)
        client = SimpleNamespace(hostname=parsed["hostname"], virtual_host=parsed["virtual_host"])
        assert path_and_query(client) == split_url(url)


@pytest.mark.parametrize(("hostname", "virtual_host"), [(None, "/"), ("", None), ("q.db", "/")])
def test_a_connection_without_a_url_is_refused_with_a_hint(
    hostname: str | None, virtual_host: str | None
) -> None:
    with pytest.raises(CannotOpen, match="names no file"):
        path_and_query(SimpleNamespace(hostname=hostname, virtual_host=virtual_host))


def test_options_come_from_the_url_and_from_code_and_code_wins(path: Path) -> None:
    connection = kombu.Connection(
        f"sqlqueue:///{path}?visibility_timeout=7&max_prefetch=3&unheard_of=1",
        transport_options={"max_prefetch": 5, "interval_start": 0, "errback": None},
    )
    with connection:
        connection.connect()
        options = connection.transport.options
        assert (options.visibility_timeout, options.max_prefetch) == (7.0, 5)


def test_an_option_that_means_nothing_is_refused_and_not_retried(path: Path) -> None:
    with pytest.raises(InvalidMessage, match="visibility_timeout"):
        connect(path, visibility_timeout="soon").connect()
    assert not path.exists()


# -- failing ----------------------------------------------------------------------------------------


def _directory(tmp_path: Path) -> Path:
    return tmp_path


def _missing_parent(tmp_path: Path) -> Path:
    return tmp_path / "missing" / "q.db"


def _parent_is_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "q.db"


def _fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "q.db")
    return tmp_path / "q.db"


def _link(tmp_path: Path) -> Path:
    (tmp_path / "q.db").symlink_to(tmp_path / "elsewhere.db")
    return tmp_path / "q.db"


def _not_sqlite(tmp_path: Path) -> Path:
    (tmp_path / "q.db").write_bytes(b"not a database, " * 100)
    return tmp_path / "q.db"


def _anothers(tmp_path: Path) -> Path:
    other = sqlite3.connect(tmp_path / "q.db")
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    return tmp_path / "q.db"


@pytest.mark.parametrize(
    "bad",
    [_directory, _missing_parent, _parent_is_a_file, _fifo, _link, _not_sqlite, _anothers],
)
def test_a_bad_path_fails_when_connecting_with_a_connection_error(tmp_path: Path, bad: Any) -> None:
    connection = connect(bad(tmp_path))
    with pytest.raises(connection.connection_errors) as caught:
        connection.transport.establish_connection()
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    assert not connection.connected


def test_a_missing_file_is_not_made_if_so_wished(path: Path) -> None:
    with pytest.raises(DatabaseMissing):
        connect(path, create=False).transport.establish_connection()
    assert not path.exists()


def test_a_closed_connection_says_so(path: Path) -> None:
    connection = connect(path)
    channel = connection.channel()
    transport = connection.transport
    assert connection.connected
    connection.release()
    assert not connection.connected
    with pytest.raises(CannotOpen, match="closed"):
        _ = transport.store
    with pytest.raises(CannotOpen):
        channel.basic_get("q")


def test_a_released_connection_connects_again_when_it_is_used(path: Path) -> None:
    connection = connect(path)
    publish(connection, "q", "before")
    connection.release()
    publish(connection, "q", "after")
    assert [get(connection, "q").payload for _ in range(2)] == ["before", "after"]
    connection.release()


def test_the_last_connection_closes_the_store(path: Path) -> None:
    first, second = connect(path), connect(path)
    first.connect()
    second.connect()
    store = store_of(first)
    assert store_of(second) is store
    first.release()
    publish(second, "q")
    second.release()
    with pytest.raises(CannotOpen, match="closed"):
        store.database.read(lambda c: c.execute("SELECT 1").fetchall())


def test_a_file_that_was_replaced_is_noticed_and_connecting_again_uses_the_new_one(
    path: Path,
) -> None:
    connection = connect(path)
    publish(connection, "q", "lost with the old file")
    for one in path.parent.glob("queue.db*"):
        if one.is_file():
            one.unlink()
    with pytest.raises(FileReplaced):
        store_of(connection).database.look_at_path()
    connection.release()
    with pytest.raises(connection.connection_errors, match="gone now; put it back"):
        connection.connect()

    Store(path).close()  # somebody else's
    publish(connection, "q", "in the new file")
    assert get(connection, "q").payload == "in the new file"
    connection.release()


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_a_connection_held_is_free_when_its_file_has_been_away_and_is_back(
    tmp_path: Path, is_shared: bool
) -> None:
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir(mode=0o700)
    other = connect(there / "queue.db")
    if is_shared:
        other.connect()
    connection = connect(there / "queue.db")
    publish(connection, "q", "held")
    get(connection, "q")
    connection.channel().queue_declare("own", exclusive=True)
    there.rename(away)
    with pytest.raises(FileReplaced):
        store_of(connection).database.look_at_path()
    connection.release()
    away.rename(there)

    connection.default_channel.queue_declare("own", exclusive=True)
    assert get(connection, "q").payload == "held"
    connection.release()
    other.release()


# -- as Kombu shows it ------------------------------------------------------------------------------


def test_a_connection_shows_its_url(path: Path) -> None:
    assert connect(path).as_uri() == f"sqlqueue:///{path}"
    assert f"sqlqueue:///{path}" in repr(connect(path))


def test_a_connection_shows_a_url_after_a_failover_too(tmp_path: Path) -> None:
    good = tmp_path / "a b.db"
    connection = kombu.Connection(f"sqlqueue:////no/such/q.db;sqlqueue:///{quote(str(good))}")
    connection.ensure_connection(max_retries=3, interval_start=0)
    assert connection.as_uri() == f"sqlqueue:///{quote(str(good))}"
    assert split_url(connection.as_uri())[0] == str(good)
    connection.release()


def test_bindings_are_shown_by_kombus_manager(connection: kombu.Connection) -> None:
    bind(store_of(connection), "q", "e", "k")
    assert connection.get_manager().get_bindings() == [
        {"destination": "q", "source": "e", "routing_key": "k"}
    ]


# -- waiting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, -1, 0.05])
def test_a_drain_that_finds_nothing_times_out_in_time(
    connection: kombu.Connection, timeout: float
) -> None:
    connection.default_channel.basic_consume("q", False, print)
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=timeout)
    assert max(timeout, 0) <= time.monotonic() - began_s < max(timeout, 0) + 0.5


def test_a_drain_without_a_timeout_ends_when_a_message_comes(connection: kombu.Connection) -> None:
    seen: list[Any] = []
    connection.default_channel.basic_consume("q", True, seen.append)
    with connection.clone() as other:
        later = threading.Timer(0.1, publish, (other, "q"))
        later.start()
        connection.drain_events()
        later.join()
    assert len(seen) == 1


@pytest.mark.parametrize("timeout", [None, 0, 0.05])
def test_a_drain_with_no_consumer_ends(connection: kombu.Connection, timeout: float | None) -> None:
    connection.connect()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=timeout)


PUBLISH_LATER = """
    import sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    producer = kombu.Producer(connection.default_channel)
    for line in sys.stdin:
        producer.publish(line.strip(), routing_key="q")
        print("published", flush=True)
    connection.release()
"""


def test_a_publisher_of_another_process_wakes_a_sleeping_drain(
    connection: kombu.Connection, path: Path
) -> None:
    publisher = run_python(PUBLISH_LATER, f"sqlqueue:///{path}")
    took: list[float] = []
    connection.default_channel.basic_consume(
        "q", True, lambda message: took.append(time.monotonic() - float(message.payload))
    )
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    publisher.stdin.write("0\n")
    publisher.stdin.flush()
    connection.drain_events(timeout=30)  # it has started
    took.clear()
    for _ in range(5):

        def speak() -> None:
            wait_until(lambda: connection.transport._sleeps, deadline_s=10)
            publisher.stdin.write(f"{time.monotonic()}\n")  # type: ignore[union-attr]
            publisher.stdin.flush()  # type: ignore[union-attr]

        speaker = threading.Thread(target=speak)
        speaker.start()
        connection.drain_events(timeout=10)
        speaker.join()
    finish(publisher)
    print(f"publish to delivery, another process: {sorted(took)[2] * 1000:.2f} ms (median)")
    assert sorted(took)[2] < 0.5  # the safety poll alone would need up to a second each


def test_a_drain_wakes_for_what_becomes_due(connection: kombu.Connection) -> None:
    from datetime import datetime, timedelta, timezone

    due = datetime.now(timezone.utc) + timedelta(milliseconds=150)
    publish(connection, "q", headers={"eta": due.isoformat()})
    seen: list[Any] = []
    connection.default_channel.basic_consume("q", True, seen.append)
    connection.drain_events(timeout=5)
    late_s = (datetime.now(timezone.utc) - due).total_seconds()
    assert 0 <= late_s < 0.5


def test_an_idle_drain_looks_at_the_file_once_a_second_and_writes_nothing(
    connection: kombu.Connection,
) -> None:
    connection.default_channel.basic_consume("q", False, print)
    connection.transport._keeper.stop()  # it looks at the file for another reason
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)  # registers
    database = store_of(connection).database
    writes, reads = database.write_transactions, database.read_transactions
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=2.5)
    assert database.write_transactions == writes
    assert database.read_transactions - reads <= 4 * 4


def _keepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "sqlqueue-keeper"}


def test_closing_a_connection_ends_its_keeper(path: Path) -> None:
    before = _keepers()
    connection = connect(path, visibility_timeout=5)
    publish(connection, "q")
    assert _keepers() == before
    get(connection, "q")
    assert len(_keepers()) == len(before) + 1
    connection.release()
    assert _keepers() == before


def test_no_keeper_runs_where_none_is_wanted(path: Path) -> None:
    before = _keepers()
    with connect(path, keep_leases=False) as connection:
        publish(connection, "q")
        get(connection, "q")
        assert _keepers() == before


def test_a_store_is_shared_with_who_opened_it_without_kombu(path: Path) -> None:
    store = open_store(path)
    with connect(path) as connection:
        assert store_of(connection) is store
    store.publish([])
    close_store(store)
