"""plainjob: a queue on SQLite for Node. Its packages are kept in the user's cache.

`npm install` fetches them once. npm no longer runs the script that compiles better-sqlite3, so it is
asked to, against the headers that came with this Node where there are some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject, Unavailable

PROGRAM = Path(__file__).parent / "apps" / "plainjob.mjs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PACKAGES = CACHE / "sqlqueue-benchmarks" / "plainjob"


class PlainjobPeer(Peer):
    """Be processes of Node with a worker each."""

    app = "plainjob.mjs"

    def prepare(self, environment: dict[str, str]) -> None:
        node = shutil.which("node")
        if node is None or shutil.which("npm") is None:
            raise Unavailable("Node and npm are not installed: apt-get install nodejs npm")
        if not (PACKAGES / "built").exists():
            _install(Path(node))
        environment["NODE_PATH"] = str(PACKAGES / "node_modules")

    @property
    def client(self) -> list[str]:
        return ["node", str(PROGRAM)]

    def work(self, count: int) -> list[list[str]]:
        return [["node", str(PROGRAM), "work", str(number)] for number in range(count)]


def _install(node: Path) -> None:
    """Fetch and build the packages; a try that failed is not repeated in the same run."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    if (PACKAGES / "failed").exists():
        raise Unavailable(f"npm could not install it: see {PACKAGES}/npm.log; remove `failed`")
    (PACKAGES / "package.json").write_text('{"private": true}\n')
    environment = {**os.environ, "npm_config_build_from_source": "true"}
    headers = node.resolve().parent.parent
    if (headers / "include" / "node" / "node.h").exists():
        environment["npm_config_nodedir"] = str(headers)
    with (PACKAGES / "npm.log").open("wb") as log:
        for arguments in (
            ["install", "--no-audit", "--no-fund", "plainjob", "better-sqlite3"],
            ["install-scripts", "approve", "better-sqlite3"],
            ["rebuild", "better-sqlite3", "--foreground-scripts"],
        ):
            ended = subprocess.run(
                ["npm", *arguments],
                cwd=PACKAGES,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=900,
                check=False,
            ).returncode
            # Older npms need no approval, and know no such command.
            if ended and arguments[0] != "install-scripts":
                (PACKAGES / "failed").touch()
                raise Unavailable(f"npm could not install it: see {PACKAGES}/npm.log")
    (PACKAGES / "built").touch()


PEERS = [
    PlainjobPeer(
        Subject(
            "plainjob", "nothing", "when it has run", "kills, after half an hour; no power cuts"
        ),
        guesses=(30_000, 10_000),
        workers=(1, 2, 4, 8),
    )
]
