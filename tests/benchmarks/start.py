"""How long the command line takes to start, beyond what Python itself does.

    python -m tests.benchmarks.start [--rounds 40]

Each program runs once a round, in turn, so that whatever else the machine does hits all alike; the
medians count. The first line is an interpreter of this environment that does nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT

NOTHING = "python -c pass"
PROGRAMS = {
    NOTHING: ["-c", "pass"],
    "sqlqueue --help": ["-m", "sqlqueue", "--help"],
    "sqlqueue --version": ["-m", "sqlqueue", "--version"],
    "sqlqueue worker --help": ["-m", "sqlqueue", "worker", "--help"],
    "sqlqueue inspect jobs --help": ["-m", "sqlqueue", "inspect", "jobs", "--help"],
    "sqlqueue inspect stats": ["-m", "sqlqueue", "inspect", "stats"],
    "sqlqueue inspect stats --json": ["-m", "sqlqueue", "inspect", "stats", "--json"],
}


def main() -> None:
    """Run every program and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory(prefix="sqlqueue-start-") as directory:
        make = ["-m", "sqlqueue", "call", "a.task", "--force"]
        _run(make, Path(directory))
        for _ in range(rounds + 1):
            for name, arguments in PROGRAMS.items():
                found[name].append(_run(arguments, Path(directory)))
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores;"
        f" milliseconds, medians of {rounds} alternating runs"
    )
    print(f"{'program':<32}{'median':>9}{'least':>9}{'beyond Python':>15}")
    # The first round fills caches.
    medians = {name: statistics.median(times[1:]) for name, times in found.items()}
    for name, median in medians.items():
        beyond = median - medians[NOTHING]
        print(f"{name:<32}{median:>9.1f}{min(found[name][1:]):>9.1f}{beyond:>15.1f}")


def _run(arguments: list[str], directory: Path) -> float:
    """Return the milliseconds a Python program takes."""
    began_s = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    main()
