"""Level `payload`: what larger bodies cost, here and with what else one would take.

See `programs.with_payload`. Above 16 kB our bodies lie in a table of their own, so that neither a
claim nor an acknowledgement writes them again.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tests.benchmarks import servers
from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.levels import Measure, Ratio, Subject, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["LEVEL"]

# How many at full scale; the largest fill a log of several MB each second.
_SIZES = {"300 B": (300, 4_000), "20 kB": (20_000, 1_500), "1 MB": (1_000_000, 60)}
_OURS, _OURS_SYNCED = "sqlqueue, process", "sqlqueue, publish"
_REDIS, _FILES, _HUEY = "Kombu on Redis", "Kombu filesystem", "Huey SQLite, fsync off"
_SLOW = {_FILES: 0.3}  # of that many
_PROMISES = {
    _OURS: ("nothing", "on ack", "any kill"),
    _OURS_SYNCED: ("all of it", "on ack", "power cut"),
    _REDIS: ("nothing", "on ack", "kill of a client"),
    _FILES: ("nothing", "when taken", "any kill, until taken"),
    _HUEY: ("nothing", "when taken", "any kill, until taken"),
}


class _Payload:
    name = "payload"
    title = "Bodies of 300 bytes, 20 kB and 1 MB, one process: messages a second"
    measures = (
        Measure("publish", "/s"),
        Measure("consume + ack", "/s"),
        Measure("there and back", "MB/s", "{:,.1f}"),
        Measure("CPU", "µs", "{:,.0f}", more_is_better=False),
    )
    notes = ("CPU is a message's, there and back, and the server's is in it.",)

    def __init__(self) -> None:
        self._how = {f"{by}, {size}": (by, size) for size in _SIZES for by in _PROMISES}
        self.subjects = tuple(Subject(name, *_PROMISES[by]) for name, (by, _) in self._how.items())
        self.ratios = tuple(
            Ratio(measure, f"{_OURS}, {size}", f"{theirs}, {size}")
            for size in _SIZES
            for theirs in (_REDIS, _FILES, _HUEY)
            for measure in ("publish", "consume + ack", "CPU")
        )

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one in a process of its own, with a server of its own where it needs one."""
        by, size = self._how[subject.name]
        if by == _HUEY and find_spec("huey") is None:
            message = "huey is not installed"
            raise Unavailable(message)
        bytes_each, count = _SIZES[size]
        count = max(round(count * scale * _SLOW.get(by, 1)), 20)
        with _broker(by, directory) as asked:
            return run_fresh(
                "tests.benchmarks.programs.with_payload",
                directory,
                size=bytes_each,
                count=count,
                **asked,
            )


@contextlib.contextmanager
def _broker(by: str, directory: Path) -> Iterator[dict[str, Any]]:
    if by == _REDIS:
        with servers.redis(directory) as server:
            yield {"by": server.url, "server": server.pid}
    elif by == _FILES:
        (directory / "messages").mkdir()
        options = {"data_folder_in": "messages", "data_folder_out": "messages"}
        yield {"by": "filesystem://", "options": options}
    elif by == _HUEY:
        yield {"by": "huey"}
    else:
        durability = "process" if by == _OURS else "publish"
        yield {"by": f"sqlqueue:///{directory}/q.db", "options": {"durability": durability}}


LEVEL = _Payload()
