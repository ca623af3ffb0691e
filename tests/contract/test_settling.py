"""What becomes of a delivery: ack, reject, requeue, recover, and the end of who held it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest

from sqlqueue_transport.errors import (
    LeaseLost,
)
from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    get,
    get_all,
    publish,
    turn,
)
from tests.support import kill, read_line, run_python, say, wait_until
from tests.transport.rows import rows_of


def test_a_rejected_message_is_delivered_no_more(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    get(connection).reject()
    assert get(connection) is None


def test_a_requeued_message_is_delivered_again(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, {"a": 1})
    for _ in range(3):
        message = get(connection)
        assert message.payload == {"a": 1}
        message.requeue()
    get(connection).ack()
    assert get(connection) is None


def test_recover_hands_back_what_the_channel_holds(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    message = get(connection)
    message.channel.basic_recover(requeue=True)
    assert get(connection).payload == "x"


def test_without_acknowledgement_nothing_comes_back(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    message = get(connection, no_ack=True)
    message.ack()  # harmless
    message.channel.basic_recover(requeue=True)
    assert get(connection) is None


def test_what_is_acknowledged_does_not_come_back(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.channel()
    for number in range(3):
        publish(connection, number)
    held = [channel.basic_get("q") for _ in range(3)]
    held[1].ack()
    channel.basic_recover(requeue=True)
    assert sorted(get_all(connection)) == [0, 2]


def test_a_message_is_settled_only_once(broker: Broker) -> None:
    """Kombu's message sees to it: every verb counts."""
    connection = broker.connect()
    for verb in ("ack", "reject", "requeue"):
        publish(connection, "x")
        message = get(connection)
        getattr(message, verb)()
        for again in (message.ack, message.reject, message.requeue):
            with pytest.raises(message.MessageStateError):
                again()
        get_all(connection)


def test_recovering_a_channel_leaves_what_another_one_holds(broker: Broker) -> None:
    connection = broker.connect()
    first, second = connection.channel(), connection.channel()
    publish(connection, "a")
    publish(connection, "b")
    held = [first.basic_get("q"), second.basic_get("q")]
    second.basic_recover(requeue=True)
    assert get(connection).payload == "b"
    assert get(connection) is None
    held[0].ack()


# == on ours ========================================================================================


def test_acknowledging_several_means_what_this_channel_was_given_before(sqlqueue: Broker) -> None:
    """Kombu's virtual base ignores `multiple`."""
    connection = sqlqueue.connect()
    first, second = connection.channel(), connection.channel()
    for number in range(6):
        publish(connection, number)
    held = [channel.basic_get("q") for channel in (first, second, first, second, first)]
    held[2].ack(multiple=True)  # 0 and 2, and not 1
    first.close()
    second.close()
    assert get_all(connection) == [1, 3, 4, 5]


def test_recover_without_requeue_hands_back_as_well(sqlqueue: Broker) -> None:
    """RabbitMQ gives it to anybody, too; Kombu's virtual base refuses."""
    connection = sqlqueue.connect()
    publish(connection, "x")
    get(connection).channel.basic_recover(requeue=False)
    assert get_all(connection) == ["x"]


def test_requeueing_keeps_the_order_within_a_priority(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for number, priority in enumerate([0, 5, 0, 5]):
        publish(connection, number, priority=priority)
    held = [get(connection) for _ in range(4)]
    for message in (held[2], held[1], held[3], held[0]):
        message.requeue()
    assert [get(connection).payload for _ in range(4)] == [1, 3, 0, 2]


def _states(connection: kombu.Connection) -> list[str]:
    """Return the states of all messages in the file, oldest first."""
    store = connection.default_channel.store
    return [state for (state,) in rows_of(store, "SELECT state FROM message ORDER BY id")]


JOB = {"headers": {"task": "tasks.stamp", "id": "1"}}


def test_a_job_that_is_done_stays_as_history_and_a_mere_message_goes(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "job", **JOB)
    publish(connection, "message")
    publish(connection, "message", "without acknowledgement")
    get(connection).ack()
    get(connection).ack()
    get(connection, "without acknowledgement", no_ack=True)
    assert _states(connection) == ["done"]


def test_a_rejected_job_stays_with_the_dead_letters(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x", **JOB)
    get(connection).reject()
    assert _states(connection) == ["permanently_failed"]


def test_requeueing_keeps_the_order(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for number in range(4):
        publish(connection, number)
    held = [get(connection) for _ in range(3)]
    for message in (held[1], held[0], held[2]):
        message.requeue()
    assert [get(connection).payload for _ in range(4)] == [0, 1, 2, 3]


def test_a_message_that_is_delivered_again_says_so(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x")
    first = get(connection)
    assert first.delivery_info["redelivered"] is False
    first.channel.basic_recover()
    assert get(connection).delivery_info["redelivered"] is True


def test_a_late_ack_is_refused(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x")
    late = get(connection)
    late.channel.basic_recover()
    get(connection).ack()
    with pytest.raises(LeaseLost):
        late.ack()


@pytest.mark.parametrize("ended", ["channel", "connection", "context"])
def test_what_ends_hands_back_in_place_what_it_held(sqlqueue: Broker, ended: str) -> None:
    other = sqlqueue.connect()
    for number in range(4):
        publish(other, number)
    connection = sqlqueue.connect()
    channel = connection.channel()
    held: list[Any] = []
    channel.basic_consume("q", False, held.append)
    for _ in range(3):
        connection.drain_events(timeout=10)
    assert len(held) == 3
    if ended == "channel":
        channel.close()
    elif ended == "connection":
        connection.release()
    else:
        with connection:
            pass
    assert [get(other).payload for _ in range(4)] == [0, 1, 2, 3]


HOLDER = """
    import os, sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    held = []
    connection.default_channel.basic_qos(0, 2, False)
    connection.default_channel.basic_consume("q", False, held.append)
    for _ in range(2):
        connection.drain_events(timeout=10)
    print("holds", len(held), flush=True)
    sys.stdin.readline()
    sys.argv[2] == "raise" and 1 / 0
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_end_of_the_interpreter_hands_back_what_it_held(sqlqueue: Broker, how: str) -> None:
    connection = sqlqueue.connect()
    for number in range(3):
        publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, how)
    assert read_line(process) == "holds 2"
    say(process)
    process.communicate(timeout=30)
    assert process.returncode == (how == "raise")
    assert [get(connection).payload for _ in range(3)] == [0, 1, 2]  # no sweep was needed


def test_what_a_killed_process_held_is_delivered_again_soon(sqlqueue: Broker) -> None:
    """With a visibility timeout of an hour: the kernel tells, not the clock."""
    connection = sqlqueue.connect()
    for number in range(3):
        publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, "return")
    assert read_line(process) == "holds 2"
    third = get(connection)  # a consumer that holds something watches over the others
    assert third.payload == 2
    kill(process)
    killed_s = time.monotonic()
    again = wait_until(lambda: get(connection), what="the first message again")
    print(f"killed consumer: redelivered after {time.monotonic() - killed_s:.3f} s")
    assert again.payload == 0
    assert again.delivery_info["redelivered"] is True


# -- messages that come back again and again --------------------------------------------------------


def _error_types(connection: kombu.Connection) -> list[str | None]:
    store = connection.default_channel.store
    return [error for (error,) in rows_of(store, "SELECT error_type FROM message ORDER BY id")]


def test_a_message_that_comes_back_too_often_goes_to_the_dead_letters(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect(max_deliveries=3)
    publish(connection, "x", **JOB)
    for _ in range(3):
        get(connection).requeue()
    assert get(connection) is None
    assert _states(connection) == ["permanently_failed"]
    assert _error_types(connection) == ["TooManyDeliveries"]


def test_by_default_a_message_is_delivered_twenty_times(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x", **JOB)
    for _ in range(20):
        get(connection).requeue()
    assert get(connection) is None


def test_without_a_limit_a_message_always_comes_back(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect(max_deliveries=0)
    publish(connection, "x", **JOB)
    for _ in range(30):
        get(connection).requeue()
    assert get_all(connection) == ["x"]


RELEASES = {
    "recover": lambda connection, channel: channel.basic_recover(requeue=True),
    "channel closed": lambda connection, channel: channel.close(),
    "connection closed": lambda connection, channel: connection.release(),
}


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_a_release_in_good_order_is_not_counted(
    sqlqueue: Broker, release: Callable[[Any, Any], object]
) -> None:
    connection = sqlqueue.connect(max_deliveries=2)
    publish(connection, "x", **JOB)
    for _ in range(5):
        holding = sqlqueue.connect(max_deliveries=2)
        channel = holding.channel()
        assert channel.basic_get("q").payload == "x"
        release(holding, channel)
    assert get_all(connection) == ["x"]


@pytest.mark.parametrize("end", [OtherProcess.kill, OtherProcess.leave], ids=["killed", "left"])
def test_a_consumer_that_is_killed_counts_and_one_that_leaves_does_not(
    sqlqueue: Broker,
    another: Callable[..., OtherProcess],
    end: Callable[[OtherProcess], None],
) -> None:
    connection = sqlqueue.connect(max_deliveries=2)
    publish(connection, "poison", **JOB)
    publish(connection, "y", "watched")
    assert get(connection, "watched")  # who holds something watches over the others

    def is_back() -> bool:
        turn(connection)
        return "processing" not in _states(connection)[:1]

    for _ in range(2):
        process = another("?max_deliveries=2")
        assert process("held.append(channel.basic_get('q')) or held[0].payload") == "poison"
        end(process)
        wait_until(is_back, what="the message back")
    if end is OtherProcess.leave:
        assert get_all(connection) == ["poison"]
    else:
        assert _states(connection)[0] == "permanently_failed"
        assert _error_types(connection)[0] == "TooManyDeliveries"
