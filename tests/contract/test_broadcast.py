"""Messages for everybody: fanout and topic exchanges, and Kombu's remote control on top of them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Exchange, Producer, Queue
from kombu.common import Broadcast
from kombu.exceptions import InconsistencyError
from kombu.pidbox import Mailbox

from tests.contract.conftest import Broker
from tests.contract.verbs import (
    collecting,
    declare,
    exists,
    turn,
)
from tests.support import kill, read_line, run_python, wait_until
from tests.transport.rows import rows_of


def _until_heard(publish_one: Callable[[], None], receivers: dict[Any, list[Any]]) -> None:
    """Publish until every receiver has heard it, then forget.

    In Redis a subscription begins some time after `consume`, and what comes before is not heard.
    """

    def all_heard() -> bool:
        publish_one()
        for connection in receivers:
            turn(connection, 0.05)
        return all(receivers.values())

    wait_until(all_heard, what="the broadcast at every receiver")
    for connection, heard in receivers.items():
        with contextlib.suppress(socket.timeout):
            while True:
                connection.drain_events(timeout=0.2)
        heard.clear()


def test_a_broadcast_reaches_every_consumer(broker: Broker) -> None:
    receivers: dict[Any, list[Any]] = {broker.connect(): [] for _ in range(3)}
    with contextlib.ExitStack() as consuming:
        for connection, heard in receivers.items():
            consuming.enter_context(collecting(connection, Broadcast("news"), into=heard))
        exchange = Exchange("news", "fanout")
        producer = Producer(broker.connect().default_channel, exchange)
        _until_heard(lambda: producer.publish("is anybody there?"), receivers)
        for number in range(5):
            producer.publish(number)
        for connection, heard in receivers.items():
            wait_until(lambda c=connection, heard=heard: turn(c) or len(heard) == 5)
    assert list(receivers.values()) == [list(range(5))] * 3


def test_events_reach_who_asked_for_their_topic(broker: Broker) -> None:
    """As Celery's events: short-lived queues, a pattern each."""
    exchange = Exchange("events", "topic", durable=False)
    patterns = {"#": [], "task.#": [], "worker.*": []}
    options = {"auto_delete": True, "durable": False, "expires": 60.0, "message_ttl": 5.0}
    with contextlib.ExitStack() as consuming:
        connections_ = []
        for pattern, heard in patterns.items():
            connections_.append(broker.connect())
            queue = Queue(f"for {pattern}", exchange, routing_key=pattern, **options)
            consuming.enter_context(collecting(connections_[-1], queue, into=heard))
        producer = Producer(broker.connect().default_channel, exchange)
        for key in ("task.sent", "worker.online", "task.retry.late", "worker"):
            producer.publish(key, routing_key=key)
        wait_until(
            lambda: (
                any(turn(connection) for connection in connections_)
                or [len(heard) for heard in patterns.values()] == [4, 2, 1]
            ),
            what="the events",
        )
        for connection in connections_:
            turn(connection)
    assert patterns == {
        "#": ["task.sent", "worker.online", "task.retry.late", "worker"],
        "task.#": ["task.sent", "task.retry.late"],
        "worker.*": ["worker.online"],
    }


NODE = """
    import sys, socket
    import kombu
    from kombu.pidbox import Mailbox
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    mailbox = Mailbox("control", type="fanout", connection=connection)
    node = mailbox.Node(hostname=sys.argv[2], state={"name": sys.argv[2]}, channel=connection.default_channel)
    @node.handler
    def ping(state, **arguments):
        return {"pong": state["name"], **arguments}
    @node.handler
    def fail(state):
        raise ValueError("not today")
    @node.handler
    def leave(state):
        raise SystemExit
    consumer = node.listen()
    print("listens", flush=True)
    while True:
        try:
            connection.drain_events(timeout=0.5)
        except socket.timeout:
            pass
        except SystemExit:
            break
    consumer.cancel()
    connection.release()
"""


@pytest.fixture
def nodes(shared_broker: Broker) -> dict[str, Any]:
    """Be two processes that can be remotely controlled."""
    started = {name: run_python(NODE, shared_broker.url, name) for name in ("one", "two")}
    for process in started.values():
        assert read_line(process) == "listens"
    return started


def _mailbox(broker: Broker) -> Mailbox:
    return Mailbox("control", type="fanout", connection=broker.connect())


def _asked(mailbox: Mailbox, command: str, arguments: Any = None, **options: Any) -> Any:
    """Ask every node, until both are listening."""
    return wait_until(
        lambda: (
            len(replies := mailbox.multi_call(command, arguments, timeout=2, limit=2, **options))
            == 2
            and replies
        ),
        what="two answers",
    )


def test_every_process_answers_a_remote_command(
    shared_broker: Broker, nodes: dict[str, Any]
) -> None:
    mailbox = _mailbox(shared_broker)
    replies = _asked(mailbox, "ping", {"n": 1})
    found = {name: reply for one in replies for name, reply in one.items()}
    assert found == {"one": {"pong": "one", "n": 1}, "two": {"pong": "two", "n": 1}}


def test_one_process_answers_a_command_that_names_it(
    shared_broker: Broker, nodes: dict[str, Any]
) -> None:
    mailbox = _mailbox(shared_broker)
    _asked(mailbox, "ping")
    for _ in range(3):
        assert mailbox.call(["two"], "ping", timeout=5) == [{"two": {"pong": "two"}}]
    ((reply,),) = (one.values() for one in mailbox.call(["one"], "fail", timeout=5))
    assert "not today" in reply["error"]


def test_a_command_is_for_who_is_there_and_not_for_who_comes_later(
    shared_broker: Broker, nodes: dict[str, Any]
) -> None:
    mailbox = _mailbox(shared_broker)
    _asked(mailbox, "ping")
    mailbox.abcast("leave")
    for process in nodes.values():
        process.wait(timeout=30)
    later = run_python(NODE, shared_broker.url, "one")
    assert read_line(later) == "listens"
    replies = wait_until(lambda: mailbox.multi_call("ping", timeout=1, limit=1))
    assert replies == [{"one": {"pong": "one"}}]
    assert later.poll() is None


# == on ours ========================================================================================


@pytest.fixture
def our_nodes(sqlqueue: Broker) -> dict[str, Any]:
    started = {name: run_python(NODE, sqlqueue.url, name) for name in ("one", "two")}
    for process in started.values():
        assert read_line(process) == "listens"
    return started


def test_a_command_is_answered_at_once(sqlqueue: Broker, our_nodes: dict[str, Any]) -> None:
    """A node that has been heard to listen hears; nobody has to ask twice."""
    mailbox = _mailbox(sqlqueue)
    took_s = []
    for _ in range(10):
        began_s = time.monotonic()
        assert len(mailbox.multi_call("ping", timeout=10, limit=2)) == 2
        took_s.append(time.monotonic() - began_s)
    took_s.sort()
    print(f"two answers: p50 {took_s[5]:.4f} s, max {took_s[-1]:.4f} s")
    assert took_s[5] < 0.25


def test_remote_control_leaves_nothing_behind(sqlqueue: Broker, our_nodes: dict[str, Any]) -> None:
    """Nor do the nodes, one that leaves and one that is killed."""
    connection = sqlqueue.connect()
    mailbox = _mailbox(sqlqueue)
    for _ in range(3):
        assert len(mailbox.multi_call("ping", timeout=10, limit=2)) == 2
    assert not exists(connection, mailbox.reply_queue.name)
    mailbox.call(["one"], "leave", timeout=0.1)
    our_nodes["one"].wait(timeout=30)
    assert not exists(connection, "one.control.pidbox")
    kill(our_nodes["two"])
    with collecting(connection, "elsewhere", channel=connection.channel()):
        wait_until(lambda: turn(connection) or not exists(connection, "two.control.pidbox"))
    mailbox.abcast("ping")  # to nobody
    store = connection.default_channel.store
    assert rows_of(store, "SELECT queue, state FROM message") == []
    assert list(connection.default_channel.list_bindings()) == []


def test_a_second_node_of_one_name_is_told_that_the_name_is_in_use(
    sqlqueue: Broker, our_nodes: dict[str, Any]
) -> None:
    """Kombu asks the error for its AMQP number."""
    connection = sqlqueue.connect()
    mailbox = Mailbox("control", type="fanout", connection=connection)
    with pytest.raises(InconsistencyError, match="already using this process mailbox"):
        mailbox.Node(hostname="one", channel=connection.default_channel).listen()


def test_a_broadcast_that_nobody_fetches_does_not_grow_for_ever(sqlqueue: Broker) -> None:
    """The queue of an event receiver that is stuck is bounded by its time to live."""
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    exchange = Exchange("events", "topic")
    declare(connection, "stuck", exchange=exchange, routing_key="#", message_ttl=0.2)
    producer = Producer(connection.default_channel, exchange)
    with producer.batch():
        for _ in range(200):
            producer.publish("x", routing_key="task.sent")
    store = connection.default_channel.store
    with collecting(other, "elsewhere"):
        wait_until(lambda: turn(other) or not rows_of(store, "SELECT 1 FROM message LIMIT 1"))
