"""Brokers that the contract tests run on, and a clock that can be set while they do.

The contract is one text for every broker. Where Kombu's own brokers are known to differ, a test
asks for a fixture that leaves them out, and the fixture says why.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import freezegun
import kombu
import pytest
import redis as redis_client
from kombu.transport import memory

import sqlqueue_transport  # registers the scheme
from tests.support import end_processes, free_port, kill, read_line, run_python, say, wait_until

assert sqlqueue_transport

# Where the marker says so, the test needs a program of Debian's: `make test` leaves it out.
REDIS = pytest.param("redis", marks=pytest.mark.debian("redis-server"))


@dataclass
class Broker:
    """Be a broker to connect to as often as a test likes; `path` is None where there is no file."""

    url: str
    path: Path | None = None
    opened: list[kombu.Connection] = field(default_factory=list)

    def connect(self, **options: Any) -> kombu.Connection:
        """Return a new connection; `options` are transport options."""
        connection = kombu.Connection(self.url, transport_options=options)
        self.opened.append(connection)
        return connection

    def close(self) -> None:
        for connection in self.opened:
            connection.release()


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_processes()


@pytest.fixture
def sqlqueue(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(f"sqlqueue:///{tmp_path}/queue.db", tmp_path / "queue.db")
    yield broker
    broker.close()


@pytest.fixture
def in_memory() -> Iterator[Broker]:
    """Kombu's own transport, whose queues outlive its connections."""
    broker = Broker("memory://")
    yield broker
    broker.close()
    memory.Transport.global_state.clear()
    memory.Channel.queues.clear()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[int]:
    """Be the port of a Redis that keeps nothing on the disk."""
    directory = tempfile.mkdtemp(prefix="redis-")
    port = free_port()
    command = (
        f"redis-server --port {port} --bind 127.0.0.1 --appendonly no --dir {directory} --save"
    )
    server = subprocess.Popen([*command.split(), ""], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), what="an answer of redis-server")
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(directory)


def _answers(port: int) -> bool:
    with (
        contextlib.suppress(redis_client.ConnectionError),
        redis_client.Redis(port=port) as client,
    ):
        return bool(client.ping())
    return False


@pytest.fixture
def redis(redis_server: int) -> Iterator[Broker]:
    """Be a real Redis, empty."""
    with redis_client.Redis(port=redis_server) as client:
        client.flushall()
    broker = Broker(f"redis://127.0.0.1:{redis_server}/0")
    yield broker
    broker.close()


def _chosen(request: pytest.FixtureRequest) -> Broker:
    chosen: Broker = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(params=["sqlqueue", "in_memory", REDIS])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Be each in turn: what is tested on this one is what Kombu's own transports do as well."""
    return _chosen(request)


@pytest.fixture(params=["sqlqueue", REDIS])
def shared_broker(request: pytest.FixtureRequest) -> Broker:
    """Be each one that several processes can use, and that an event loop can watch."""
    return _chosen(request)


@pytest.fixture(params=["sqlqueue", "in_memory"])
def exact_broker(request: pytest.FixtureRequest) -> Broker:
    """Be each one but Redis.

    There an empty queue is none, a removed binding goes on leading, and a wait for a message that
    was given up still takes one.
    """
    return _chosen(request)


@pytest.fixture
def frozen() -> Iterator[Any]:
    """Set the clock with `frozen.tick(seconds)`, while `drain_events` still times out.

    A clock that stands still would stop `drain_events(timeout=…)` for ever, in every transport of
    Kombu: freezegun freezes time.monotonic, too. So it starts at a fixed moment and then ticks.
    """
    with freezegun.freeze_time(
        "2026-11-22T05:00:00Z", tick=True, ignore=["_pytest.timing"]
    ) as clock:
        yield clock


# Evaluates what it is told to. `connection` is a connection, and `held` a list.
OTHER_PROCESS = """
    import contextlib, os, socket, sys
    import kombu
    from kombu import Consumer, Exchange, Producer, Queue
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    channel = connection.default_channel
    held = []
    def turn(timeout=0.01):
        with contextlib.suppress(socket.timeout):
            connection.drain_events(timeout=timeout)
    def error_of(call):
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    for line in sys.stdin:
        print(eval(line), flush=True)
"""


class OtherProcess:
    """Be another process on the same broker, which answers with the value of an expression.

    It knows `connection`, its default `channel`, an empty list `held`, `turn()`,
    `error_of(lambda: …)` and Kombu's classes.
    """

    def __init__(self, url: str) -> None:
        self.process = run_python(OTHER_PROCESS, url)

    def __call__(self, expression: str) -> str:
        say(self.process, expression)
        return read_line(self.process)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        kill(self.process)

    def leave(self) -> None:
        """Let it end in good order."""
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


@pytest.fixture
def another(sqlqueue: Broker) -> Callable[..., OtherProcess]:
    """Start further processes on our file; options may stand behind the `?` of `query`."""
    return lambda query="": OtherProcess(sqlqueue.url + query)


@pytest.fixture
def other_process(another: Callable[..., OtherProcess]) -> OtherProcess:
    """Be one further process on our file."""
    return another()
