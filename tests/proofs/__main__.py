"""Run the proofs of docs/promises.md with their full figures.

    make soak                                      all of them, one after the other: one and a half hours
    make soak ARGS="kills cuts"                    some
    make soak ARGS="kills --count 1000 --seed 7"   one, with a figure and a seed of one's own
    make soak ARGS="--write"                       keep what they report in tests/benchmarks/results

`make test-all` runs each with a smaller figure. A proof that fails says what was broken and the seed;
its directory is kept.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@dataclass(frozen=True)
class Proof:
    """Be a proof: a function of a module of this directory, and what it is asked to do in full."""

    module: str
    unit: str
    full: int
    minutes: int  # what that takes on two cores that have nothing else to do
    function: str = "prove"


PROOFS = {
    "kills": Proof("kills", "kills", 10_000, 20),
    "stops": Proof("stops", "stops", 1_000, 20),
    "cuts": Proof("cuts", "cuts", 50_000, 15),
    "faults": Proof("faults", "faults", 5_000, 4),
    "model": Proof("model", "examples", 2_000, 3),
    "fuzz": Proof("fuzz", "seconds", 600, 11),
    "load": Proof("load", "jobs", 50_000, 2),
    "backlog": Proof("load", "jobs", 1_000_000, 8, "prove_backlog"),
    "day": Proof("day", "seconds", 900, 16),
}


def main() -> int:
    """Run what is asked for; return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        usage='make soak ARGS="[NAME ...] [--count COUNT] [--seed SEED] [--write]"',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROOFS))
    parser.add_argument("--count", type=int, help="instead of the full figure; with one NAME")
    parser.add_argument("--seed", type=int, help="default: a new one, which is told")
    parser.add_argument("--write", action="store_true", help="keep the reports in tests/benchmarks")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in PROOFS]:
        parser.error(f"no proof is named {unknown[0]}; there are {', '.join(PROOFS)}")
    if chosen.count is not None and (len(chosen.names) != 1 or chosen.count < 1):
        parser.error("--count takes a number above zero, and one NAME whose figure it is")
    seed = int(time.time()) if chosen.seed is None else chosen.seed
    names = chosen.names or list(PROOFS)
    minutes = sum(PROOFS[name].minutes for name in names) if chosen.count is None else None
    print(
        f"{', '.join(names)}, one after the other"
        + (f": about {minutes} minutes on two cores." if minutes else ".")
        + " Ctrl-c ends it; all processes end with it.",
        flush=True,
    )
    broken = []
    for name in names:
        report = run(name, chosen.count or PROOFS[name].full, seed)
        if report is None:
            broken.append(name)
        elif chosen.write:
            (RESULTS / f"proof-{name}.txt").write_text(report)
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nall held", flush=True)
    return int(bool(broken))


def run(name: str, count: int, seed: int) -> str | None:
    """Run one proof in a directory of its own and print its report; return it, None when it failed."""
    proof = PROOFS[name]
    print(f"\n== {name}: {count:,} {proof.unit}, seed {seed}", flush=True)
    prove = getattr(importlib.import_module(f"tests.proofs.{proof.module}"), proof.function)
    directory = Path(tempfile.mkdtemp(prefix=f"sqlqueue-{name}-"))
    began_s, began = time.monotonic(), dt.datetime.now(dt.timezone.utc)
    try:
        figures = prove(directory, **{proof.unit: count}, seed=seed, say=_say)
    except Exception:  # noqa: BLE001 - whatever went wrong, the others are still to be run
        traceback.print_exc()
        again = f'make soak ARGS="{name} --count {count} --seed {seed}"'
        print(f"{name} FAILED; what is left of it: {directory}; again: {again}", flush=True)
        return None
    shutil.rmtree(directory)
    report = "\n".join(
        [
            f'make soak ARGS="{name} --count {count} --seed {seed}"',
            (
                f"{began:%Y-%m-%d %H:%M} UTC, {time.monotonic() - began_s:.0f} s, "
                f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
                f"SQLite {sqlite3.sqlite_version}"
            ),
            "",
            *figures,
            "",
        ]
    )
    print(report, flush=True)
    return report


def _say(line: str) -> None:
    print(f"   {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
