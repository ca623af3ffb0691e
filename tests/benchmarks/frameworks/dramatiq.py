"""Dramatiq on Redis, with processes of one thread each."""

from __future__ import annotations

import sys

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject


class DramatiqPeer(Peer):
    """Be Dramatiq's master and its workers."""

    app = "dramatiq_app"
    needs = "dramatiq"

    def work(self, count: int) -> list[list[str]]:
        return [[sys.executable, "-m", "dramatiq", self.module, "-p", str(count), "-t", "1"]]


PEERS = [
    DramatiqPeer(
        Subject(
            "Dramatiq Redis", "nothing", "when it has run", "kills but the server's, after a minute"
        ),
        server="redis",
        guesses=(4500, 1000),
    )
]
