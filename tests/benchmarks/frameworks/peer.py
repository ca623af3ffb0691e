"""What a framework has to say of itself to be measured, and what is measured of it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.benchmarks import servers
from tests.benchmarks.levels import Subject, Unavailable

__all__ = ["Peer"]


@dataclass(frozen=True)
class Peer(ABC):
    """Be a framework in one setting.

    `guesses` are jobs a second to begin with, enqueued by one process and run by four workers;
    rounds go by what the ones before have measured. `workers` are the numbers to measure.
    """

    subject: Subject
    server: str = ""  # "redis", "redis synced", "rabbitmq", or none
    environment: Mapping[str, str] = field(default_factory=dict)
    filling: Mapping[str, str] = field(default_factory=dict)  # to enqueue sooner, unmeasured
    guesses: tuple[float, float] = (2000, 2000)
    workers: Sequence[int] = (4,)

    app: ClassVar[str]
    needs: ClassVar[str] = ""  # the package, where it may be missing
    one_process: ClassVar[bool] = False  # a broker that publisher and workers must be one to share

    @abstractmethod
    def work(self, count: int) -> list[list[str]]:
        """Return the programs to start for so many workers."""

    @property
    def client(self) -> list[str]:
        """Return the program that enqueues."""
        return [sys.executable, "-m", "tests.benchmarks.frameworks.apps.client", self.app]

    def prepare(self, environment: dict[str, str]) -> None:
        """Add what programs need to find. Raises Unavailable."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            message = f"{self.needs} is not installed: pip install {self.needs}"
            raise Unavailable(message)

    @contextlib.contextmanager
    def serving(self, directory: Path) -> Iterator[tuple[str, list[int]]]:
        """Run the server, if there is one; its URL, and the ids of its processes."""
        if not self.server:
            yield os.fspath(directory / "queue.db"), []
        elif self.server == "rabbitmq":
            with servers.rabbitmq(directory) as server:
                yield server.url, [server.pid]
        else:
            with servers.redis(directory, synced="synced" in self.server) as server:
                yield server.url, [server.pid]

    @property
    def module(self) -> str:
        """Return where its application is to be imported from."""
        return f"tests.benchmarks.frameworks.apps.{self.app}"
