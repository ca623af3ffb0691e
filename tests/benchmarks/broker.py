"""Level `broker`: Kombu's Producer and Consumer in one process, on our file and on what else there is.

See `programs.through_kombu`. Kombu itself costs what its memory transport costs: nothing that goes
through Kombu can be faster. SQLite alone does what our transport asks of SQLite, without Kombu.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tests.benchmarks import servers
from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.levels import Measure, Ratio, Subject, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.benchmarks.servers import Server

__all__ = ["LEVEL"]

_OUR_SYNCED = {"process": "nothing", "publish": "all of it", "full": "all of it, and acks"}
_ON_REDIS, _ON_SYNCED_REDIS = "Redis", "Redis, fsync always"
_ON_RABBITMQ, _ON_CONFIRMED = "RabbitMQ", "RabbitMQ, confirms"


@dataclass(frozen=True, slots=True)
class _Way:
    """Be how one subject is measured; `count` is how many messages at full scale."""

    subject: Subject
    count: int
    url: str = ""  # {} is the directory
    server: Callable[[Path], AbstractContextManager[Server]] | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""  # a package


def _ours(
    durability: str, count: int, *, prefetch: int = 16, batch: int = 0, groups: bool = False
) -> _Way:
    how = f", publish by {batch}" if batch else f", prefetch {prefetch}"
    if groups:
        how += ", grouped acks"
    subject = Subject(
        f"sqlqueue, {durability}{how}",
        synced=_OUR_SYNCED[durability],
        acked="after ack, with others" if groups else "on ack, a transaction each",
        survives="any kill" if durability == "process" else "power cut",
    )
    options = {"durability": durability, "group_acks": groups}
    asked = {"options": options, "prefetch": prefetch, "batch": batch}
    return _Way(subject, count, url="sqlqueue:///{}/queue.db", asked=asked)


def _floor(batch: int, count: int, *, synced: bool) -> _Way:
    many = "one a transaction" if batch == 1 else f"{batch} a transaction"
    subject = Subject(
        f"SQLite alone, {'synced' if synced else 'unsynced'}, {many}",
        synced="all of it" if synced else "nothing",
        acked="in the next claim's transaction",
        survives="power cut" if synced else "any kill",
    )
    asked = {"by": "plain", "batch": batch, "synced": synced, "are_jobs": False}
    return _Way(subject, count, asked=asked)


_WAYS = (
    _ours("process", 6_000),
    _ours("publish", 3_000),
    _ours("full", 3_000),
    _ours("process", 4_000, prefetch=1),
    _ours("publish", 2_500, prefetch=1),
    _ours("process", 15_000, groups=True),
    _ours("publish", 6_000, groups=True),
    _ours("process", 15_000, prefetch=100, groups=True),
    _ours("process", 15_000, batch=100),
    _ours("publish", 15_000, batch=100),
    _floor(1, 10_000, synced=False),
    _floor(16, 20_000, synced=False),
    _floor(1, 1_500, synced=True),
    _Way(
        Subject("Kombu memory", "nothing", "on ack", "nothing"),
        15_000,
        url="memory://",
    ),
    _Way(
        Subject(_ON_REDIS, "nothing", "on ack", "kill of a client"),
        2_500,
        server=servers.redis,
    ),
    _Way(
        Subject(_ON_SYNCED_REDIS, "all of it", "on ack", "power cut"),
        1_000,
        server=partial(servers.redis, synced=True),
    ),
    _Way(
        Subject(_ON_RABBITMQ, "sent, not confirmed", "on ack", "power cut, but for the newest"),
        5_000,
        server=servers.rabbitmq,
    ),
    _Way(
        Subject(_ON_CONFIRMED, "all of it", "on ack", "power cut"),
        1_500,
        server=servers.rabbitmq,
        asked={"options": {"confirm_publish": True}},
    ),
    _Way(
        Subject("SQLAlchemy + SQLite", "all of it", "when taken", "power cut, until taken"),
        400,
        url="sqla+sqlite:///{}/queue.db",
        needs="sqlalchemy",
    ),
    _Way(
        Subject("Kombu filesystem", "nothing", "when taken", "any kill, until taken"),
        2_000,
        url="filesystem://",
        asked={"options": {"data_folder_in": "messages", "data_folder_out": "messages"}},
    ),
)

_UNSYNCED, _SYNCED = "sqlqueue, process, prefetch 16", "sqlqueue, publish, prefetch 16"
# As the acks of RabbitMQ's clients, which nobody answers.
_GROUPED = f"{_UNSYNCED}, grouped acks"
_ONE, _MANY = (
    "SQLite alone, unsynced, one a transaction",
    "SQLite alone, unsynced, 16 a transaction",
)


class _Broker:
    name = "broker"
    title = "Kombu's Producer and Consumer, one process, 300 B: messages a second"
    measures = (
        Measure("publish", "/s"),
        Measure("consume + ack", "/s"),
        Measure("publish CPU", "µs", "{:,.1f}", more_is_better=False),
        Measure("consume CPU", "µs", "{:,.1f}", more_is_better=False),
    )
    subjects = tuple(way.subject for way in _WAYS)
    ratios = (
        Ratio("publish", _UNSYNCED, _ON_REDIS, at_least=5),
        Ratio("publish", _SYNCED, _ON_SYNCED_REDIS, at_least=3),
        Ratio("publish", _UNSYNCED, _ONE, then=0.6),
        Ratio("publish", _SYNCED, "SQLite alone, synced, one a transaction", then=0.6),
        Ratio("publish", _UNSYNCED, "Kombu memory"),
        Ratio("publish", _UNSYNCED, _ON_RABBITMQ),
        Ratio("publish", _SYNCED, _ON_CONFIRMED),
        Ratio("consume + ack", _GROUPED, _ON_REDIS, at_least=12),
        Ratio("consume + ack", _GROUPED, _ON_RABBITMQ, at_least=2),
        Ratio("consume + ack", _GROUPED, _MANY, then=0.6),
        Ratio("consume + ack", _UNSYNCED, _ON_REDIS),
        Ratio("consume + ack", _UNSYNCED, _ON_RABBITMQ),
        Ratio("consume + ack", "sqlqueue, process, prefetch 1", _ONE, then=0.6),
        Ratio("consume + ack", _UNSYNCED, "Kombu memory"),
        Ratio("publish CPU", _UNSYNCED, _ON_REDIS),
        Ratio("consume CPU", _GROUPED, _ON_REDIS),
        Ratio("publish CPU", _UNSYNCED, _ON_RABBITMQ),
        Ratio("consume CPU", _GROUPED, _ON_RABBITMQ),
    )
    notes = (
        "Peers are consumed from with a prefetch of 16. CPU is a message's, and the server's is in it.",
        "RabbitMQ keeps messages in a durable queue; without confirms nobody knows whether it has them.",
        "Kombu's filesystem transport lists its directory for each message: slower the more there wait.",
    )

    def __init__(self) -> None:
        self._ways = {way.subject.name: way for way in _WAYS}

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one in a process of its own, with a server of its own where it needs one."""
        way = self._ways[subject.name]
        count = max(round(way.count * scale), 200)
        if not way.url and not way.server:
            return _alone(directory, count, way.asked)
        if way.needs and find_spec(way.needs) is None:
            message = f"{way.needs} is not installed"
            raise Unavailable(message)
        (directory / "messages").mkdir()
        with _url(way, directory) as (url, server):
            return run_fresh(
                "tests.benchmarks.programs.through_kombu",
                directory,
                url=url,
                count=count,
                server=server,
                **way.asked,
            )


@contextlib.contextmanager
def _url(way: _Way, directory: Path) -> Iterator[tuple[str, int | None]]:
    if way.server is None:
        yield way.url.format(directory), None
        return
    with way.server(directory) as server:
        yield server.url, server.pid


def _alone(directory: Path, count: int, asked: Mapping[str, Any]) -> dict[str, float]:
    found = run_fresh("tests.benchmarks.programs.on_sqlite", directory, count=count, **asked)
    consumed, consumed_cpu = found["ack + claim"], found["ack + claim CPU"]
    if asked["batch"] > 1:  # a publish is a transaction, so that only the other half compares
        return {"consume + ack": consumed, "consume CPU": consumed_cpu}
    return {
        "publish": found["enqueue"],
        "consume + ack": consumed,
        "publish CPU": found["enqueue CPU"],
        "consume CPU": consumed_cpu,
    }


LEVEL = _Broker()
