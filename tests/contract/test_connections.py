"""Connections: pools, copies, retries, lists of URLs, and files that cannot be opened."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import kombu
import pytest
from kombu import Producer
from kombu.pools import connections, producers, reset

from sqlqueue_transport.errors import (
    DatabaseMissing,
)
from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    get,
    get_all,
    publish,
)
from tests.support import finish, run_python, wait_until


@pytest.fixture
def pooled() -> Iterator[None]:
    yield
    reset()


@pytest.mark.usefixtures("pooled")
def test_pools_hand_out_connections_and_producers(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        with producers[connection].acquire(block=True, timeout=10) as producer:
            producer.publish(number, routing_key="q")
    with connections[connection].acquire(block=True, timeout=10) as pooled_connection:
        assert [get(pooled_connection).payload for _ in range(3)] == [0, 1, 2]


def test_publishing_with_a_retry_policy_leaves_a_working_connection(broker: Broker) -> None:
    """Kombu writes the policy into the transport's options."""
    connection = broker.connect()
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "errback": print}
    publish(connection, "x", retry=True, retry_policy=policy)
    assert connection.transport_options["max_retries"] == 3
    connection.release()
    publish(connection, "y", retry=True, retry_policy=policy)
    assert get(connection).payload == "x"


def test_a_clone_is_a_connection_to_the_same_broker(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    with connection.clone() as other:
        assert get(other).payload == "x"


def test_unknown_transport_options_are_ignored(broker: Broker) -> None:
    connection = broker.connect(polling_interval=0.1, unheard_of={"a": 1}, socket_timeout=3)
    publish(connection, "x")
    assert get(connection).payload == "x"


def test_a_connection_supports_what_it_says(broker: Broker) -> None:
    connection = broker.connect()
    assert connection.supports_exchange_type("direct")
    assert not connection.supports_heartbeats
    connection.heartbeat_check()
    assert connection.ensure_connection() is connection
    assert connection.connected


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[kombu.Connection]:
    bad, good = "sqlqueue:////no/such/dir/q.db", f"sqlqueue:///{tmp_path}/good.db"
    with kombu.Connection(f"{bad};{good}") as connection:
        yield connection


def test_a_list_of_urls_is_tried_until_one_connects(
    failover: kombu.Connection, tmp_path: Path
) -> None:
    failed: list[BaseException] = []
    failover.ensure_connection(
        errback=lambda error, _: failed.append(error), max_retries=3, interval_start=0
    )
    assert len(failed) == 1
    assert "/no/such/dir" in str(failed[0])
    assert failover.default_channel.store.path == tmp_path / "good.db"
    publish(failover, "x")
    assert get(failover).payload == "x"


def test_a_list_of_urls_connects_by_itself_when_it_is_used(failover: kombu.Connection) -> None:
    publish(failover, "x")
    with failover.clone() as other:
        assert get(other).payload == "x"


def test_a_list_of_urls_without_a_good_one_fails_with_a_connection_error(tmp_path: Path) -> None:
    connection = kombu.Connection(f"sqlqueue:///{tmp_path};sqlqueue:////no/such/dir/q.db")
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=2, interval_start=0, interval_step=0)
    with pytest.raises(connection.connection_errors):
        connection.connect()


def test_a_connection_goes_back_to_the_first_url_of_its_list(tmp_path: Path) -> None:
    directory = tmp_path / "comes later"
    first, second = f"sqlqueue:///{directory}/q.db".replace(" ", "%20"), f"sqlqueue:///{tmp_path}/"
    connection = kombu.Connection(f"{first};{second}")
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    directory.mkdir()
    connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
    publish(connection, "x")
    assert (directory / "q.db").exists()
    connection.release()


def test_a_list_of_urls_passes_over_whatever_cannot_be_opened(tmp_path: Path) -> None:
    urls = [f"sqlqueue:///{_lay(kind, tmp_path)}" for kind in OBSTACLES]
    connection = kombu.Connection(";".join([*urls, f"sqlqueue:///{tmp_path}/good.db"]))
    failed: list[BaseException] = []
    connection.ensure_connection(
        errback=lambda error, _: failed.append(error),
        max_retries=20,
        interval_start=0,
        interval_step=0,
    )
    assert len(failed) == len(urls)
    publish(connection, "x")
    assert get(connection).payload == "x"
    connection.release()


# -- retrying ---------------------------------------------------------------------------------------


def test_a_call_that_fails_for_the_connection_is_tried_again(broker: Broker) -> None:
    connection = broker.connect()
    calls: list[int] = []

    def flaky() -> str:
        calls.append(len(calls))
        if len(calls) < 2:
            raise connection.recoverable_connection_errors[0]
        return "at last"

    retrying = connection.ensure(
        Producer(connection), flaky, max_retries=5, interval_start=0, interval_step=0
    )
    assert retrying() == "at last"
    assert calls == [0, 1]
    publish(connection, "x")
    assert get(connection).payload == "x"


def test_a_call_that_fails_for_itself_is_not_tried_again(broker: Broker) -> None:
    connection = broker.connect()
    calls: list[int] = []

    def wrong() -> None:
        calls.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connection.ensure(Producer(connection), wrong, max_retries=5, interval_start=0)()
    assert calls == [1]


def test_a_connection_is_used_again_after_its_release(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        publish(connection, number)
        connection.release()
        assert not connection.connected
    assert get_all(connection) == [0, 1, 2]


def test_a_connection_is_carried_to_another_process_by_pickle(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    with pickle.loads(pickle.dumps(connection)) as other:
        assert get(other).payload == "x"


def test_many_channels_are_opened_and_closed(broker: Broker) -> None:
    connection = broker.connect()
    channels = [connection.channel() for _ in range(50)]
    publish(connection, "x")
    for channel in channels:
        channel.close()
        channel.close()  # harmless
    assert get(connection).payload == "x"


@pytest.mark.usefixtures("pooled")
def test_a_pool_is_used_by_many_threads(broker: Broker) -> None:
    connection = broker.connect()
    pool = producers[connection]

    def publish_some(first: int) -> None:
        for number in range(first, first + 10):
            with pool.acquire(block=True, timeout=10) as producer:
                producer.publish(number, routing_key="q")

    threads = [threading.Thread(target=publish_some, args=(10 * one,)) for one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(get_all(connection)) == list(range(80))


# == on ours ========================================================================================


def test_the_transport_says_what_it_can_do(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    capabilities = connection.transport.implements
    assert capabilities.exchange_type == {"direct", "topic", "fanout"}
    assert capabilities.asynchronous is True
    assert capabilities.batch_publish is True
    assert capabilities.heartbeats is False
    assert connection.transport.driver_type == "sqlqueue"
    for kind in ("direct", "topic", "fanout"):
        assert connection.supports_exchange_type(kind)
    assert not connection.supports_exchange_type("headers")


@pytest.mark.parametrize("name", ["plain.db", "a b?c#d%e;f.db", "日本.db"], ids=ascii)
def test_the_url_of_a_connection_leads_to_the_same_file(tmp_path: Path, name: str) -> None:
    with kombu.Connection(f"sqlqueue:///{tmp_path}/{quote(name)}") as connection:
        publish(connection, "x")
        assert (tmp_path / name).exists()
        with kombu.Connection(connection.as_uri()) as other:
            assert get(other).payload == "x"
        assert connection.info()["transport"] == "sqlqueue"


def _no_directory(path: Path) -> Path:
    return path / "no such directory" / "q.db"


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _text(path: Path) -> Path:
    path.write_text("Dear diary, ...\n" * 100)
    path.chmod(0o600)
    return path


def _foreign_database(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    path.chmod(0o600)
    return path


def _newer_schema(path: Path) -> Path:
    kombu.Connection(f"sqlqueue:///{path}").connect().close_connection(None)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9999")
    return path


def _everybodys_directory(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path / "q.db"


OBSTACLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no directory": (_no_directory, "no such directory"),
    "a directory": (_directory, "is a directory"),
    "a FIFO": (_fifo, "is a FIFO"),
    "a text": (_text, "is not a SQLite database"),
    "another application's database": (_foreign_database, "another application's"),
    "a newer schema": (_newer_schema, "9999"),
    "everybody's directory": (_everybodys_directory, "chmod o-w"),
}


def _lay(kind: str, directory: Path) -> str:
    make, _ = OBSTACLES[kind]
    return quote(str(make(directory / kind)))


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_cannot_be_opened_fails_in_connect_with_a_connection_error(
    tmp_path: Path, kind: str
) -> None:
    connection = kombu.Connection(f"sqlqueue:///{_lay(kind, tmp_path)}")
    with pytest.raises(connection.connection_errors, match=OBSTACLES[kind][1]) as caught:
        connection.connect()
    print(caught.value)
    assert str(tmp_path) in str(caught.value)  # which file
    assert not connection.connected
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    connection.transport_options.update(max_retries=1, interval_start=0, interval_step=0)
    with pytest.raises(kombu.exceptions.OperationalError):
        publish(connection, "x")


def test_a_directory_that_cannot_be_written_fails_in_connect() -> None:
    code = """
        import os, sys
        import kombu
        import sqlqueue_transport
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 0)  # root may write everywhere
        connection = kombu.Connection("sqlqueue:///" + sys.argv[1])
        try:
            connection.connect()
        except connection.connection_errors as error:
            print(error)
    """
    # Not under tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        directory = Path(above) / "shut"
        directory.mkdir()
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        directory.chmod(0o500)
        text = finish(run_python(code, directory / "q.db"))
        directory.chmod(0o700)
    assert f"{directory}" in text
    assert "permission" in text.lower() or "writ" in text.lower()


def test_a_path_that_is_mended_is_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    path.mkdir()
    connection = kombu.Connection(f"sqlqueue:///{path}")

    def mend(*_: object) -> None:
        if path.is_dir():
            path.rmdir()

    connection.ensure_connection(errback=mend, max_retries=5, interval_start=0, interval_step=0)
    publish(connection, "x")
    assert get(connection).payload == "x"
    connection.release()


# -- files that vanish ------------------------------------------------------------------------------


@pytest.fixture
def vanished(sqlqueue: Broker, tmp_path: Path) -> tuple[kombu.Connection, Path]:
    """Be a connection whose file was moved away while it was in use."""
    connection = sqlqueue.connect()
    publish(connection, "x")
    assert sqlqueue.path is not None
    aside = tmp_path / "aside.db"
    sqlqueue.path.rename(aside)
    connection.release()
    return connection, aside


def test_a_file_that_vanished_is_not_made_anew(
    sqlqueue: Broker, vanished: tuple[kombu.Connection, Path]
) -> None:
    """What was published before would seem lost, and what is published after would be."""
    connection, aside = vanished
    assert sqlqueue.path is not None
    for one in (connection, sqlqueue.connect(), connection.clone()):
        with pytest.raises(DatabaseMissing, match=r"queue\.db") as caught:
            one.connect()
        assert isinstance(caught.value, one.connection_errors)
    print(caught.value)
    assert not sqlqueue.path.exists()
    aside.rename(sqlqueue.path)
    assert get_all(sqlqueue.connect()) == ["x"]
    assert get_all(connection) == []


def test_a_connection_waits_for_a_file_that_vanished(
    sqlqueue: Broker, vanished: tuple[kombu.Connection, Path]
) -> None:
    connection, aside = vanished
    failed: list[BaseException] = []

    def bring_back(error: BaseException, _: object) -> None:
        failed.append(error)
        if len(failed) == 3:
            aside.rename(str(sqlqueue.path))

    connection.ensure_connection(
        errback=bring_back, max_retries=10, interval_start=0, interval_step=0
    )
    assert [type(error) for error in failed] == [DatabaseMissing] * 3
    assert get_all(connection) == ["x"]


def test_a_file_that_vanishes_under_a_connection_is_a_connection_error(
    sqlqueue: Broker, tmp_path: Path
) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x")
    assert sqlqueue.path is not None
    sqlqueue.path.rename(tmp_path / "aside.db")

    def noticed() -> bool:  # it looks once a second
        try:
            publish(connection, "y")
        except connection.connection_errors:
            return True
        return False

    wait_until(noticed, what="a connection error")
    with pytest.raises(connection.connection_errors):
        connection.clone().connect()
    assert not sqlqueue.path.exists()


def test_a_file_that_was_moved_in_good_order_is_made_anew_by_others(
    sqlqueue: Broker, tmp_path: Path, another: Callable[..., OtherProcess]
) -> None:
    """They cannot know of it; `create=False` is for who does."""
    connection = sqlqueue.connect()
    publish(connection, "x")
    connection.release()
    assert sqlqueue.path is not None
    sqlqueue.path.rename(tmp_path / "aside.db")
    there = another()
    assert there("channel.queue_declare('q').message_count") == "0"
    assert sqlqueue.path.exists()


# -- green threads ----------------------------------------------------------------------------------

EVENTLET = """
    import eventlet
    eventlet.monkey_patch()
    import sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    try:
        connection.connect()
    except Exception as error:
        print(error)
    else:
        print("connected")
"""


def test_eventlet_is_refused_with_the_reason(sqlqueue: Broker) -> None:
    text = finish(run_python(EVENTLET, sqlqueue.url, env={"EVENTLET_HUB": "poll"}))
    print(text)
    assert "eventlet" in text.lower()
    assert "Traceback" not in text
    assert not Path(str(sqlqueue.path)).exists()


GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import sys, time
    import gevent
    import kombu
    import sqlqueue_transport

    found, ticks = [], []

    def consume(connection):
        def on_message(body, message):
            found.append(body)
            message.ack()
        with connection.Consumer([kombu.Queue("q")], callbacks=[on_message]):
            while len(found) < 20:
                connection.drain_events(timeout=10)
        connection.release()

    def publish(first):
        with kombu.Connection(sys.argv[1]) as connection:
            producer = connection.Producer()
            for number in range(first, first + 10):
                producer.publish(number, routing_key="q")
                gevent.sleep(0.01)

    def tick():
        while len(found) < 20:
            ticks.append(time.monotonic())
            gevent.sleep(0.01)

    jobs = [gevent.spawn(consume, kombu.Connection(sys.argv[1])), gevent.spawn(tick)]
    gevent.sleep(0.2)  # by now the consumer sleeps, and must not hold up the others
    jobs += [gevent.spawn(publish, 0), gevent.spawn(publish, 10)]
    gevent.joinall(jobs, timeout=30, raise_error=True)
    longest = max(later - earlier for earlier, later in zip(ticks, ticks[1:]))
    print(sorted(found) == list(range(20)), longest < 0.5, round(longest, 3))
"""


def test_greenlets_of_gevent_publish_and_consume_side_by_side(sqlqueue: Broker) -> None:
    text = finish(run_python(GEVENT, sqlqueue.url))
    print(f"all found, no greenlet held up for 0.5 s, longest: {text}")
    assert text.startswith("True True")
