"""Connections: pools, copies, retries, lists of URLs, and files that cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
from kombu.pools import connections, producers, reset

from tests.contract.conftest import Broker
from tests.contract.verbs import (
    get,
    publish,
)


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
