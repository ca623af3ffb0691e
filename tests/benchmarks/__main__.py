"""Compare sqlqueue with SQLite itself and with what one would take instead, level by level.

    make bench                                         all levels, a quick look
    make bench-all                                     all levels, and keep the results
    python -m tests.benchmarks --list                  what there is
    python -m tests.benchmarks broker --rounds 5       one level
    python -m tests.benchmarks broker --subjects redis "sqlqueue*"
    python -m tests.benchmarks --show tests/benchmarks/results/2026-11-28.json

The subjects of a level take turns within each round, so figures of one run compare with each other;
other machines and moments differ by factors. Progress is told on stderr. What is not installed is
left out, and said so. Ctrl-C ends with what there is.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlqueue_transport.files import filesystem_of
from tests.benchmarks import plot, report, surroundings
from tests.benchmarks.findings import Findings
from tests.benchmarks.runner import Stopped, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.levels import Level, Subject

# In the order in which they are measured: from SQLite itself upwards. Each is the `LEVEL` of the
# module of its name.
LEVELS = (
    *("floor", "broker", "framework", "latency"),
    *("backlog", "contention", "payload", "eta"),
)
RESULTS = Path(__file__).parent / "results"
# What README shows: of these levels the measures that matter most to who chooses.
HEADLINES = {
    "broker": ("publish", "consume + ack", "consume CPU"),
    "framework": ("enqueue", "no-op, 4 at once", "CPU to run"),
    "latency": ("idle, p50", "idle, p99", "idle CPU"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, and return the exit code: 1 when a subject failed."""
    chosen = _parsed(arguments)
    if chosen.show:
        return _show(chosen.show, chosen.results if chosen.write else None)
    levels = [_level(name) for name in chosen.levels or LEVELS]
    if chosen.list:
        for level in levels:
            print(f"{level.name}: {level.title}")
            print(*(f"    {one.name}" for one in level.subjects), sep="\n")
        return 0
    found: list[Findings] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="sqlqueue-bench-", dir=chosen.directory) as name:
        try:
            for level in levels:
                subjects = _matching(level, chosen.subjects)
                if subjects:
                    found.append(_measured(level, subjects, chosen, Path(name)))
                    _print(found[-1])
                    if chosen.write:
                        _write(found[-1], chosen.results)
        except Stopped as stopped:
            found.append(stopped.findings)
            _print(stopped.findings)
            print("stopped: this is what there is", file=sys.stderr)
            code = 130
    if any(one.failed for one in found):
        code = code or 1
    return code


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(LEVELS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of each level (%(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="how much is done: 0.15 is a quick look"
    )
    parser.add_argument("--subjects", nargs="+", default=(), help="names or parts of them, * and ?")
    parser.add_argument("--list", action="store_true", help="show levels and subjects")
    parser.add_argument("--write", action="store_true", help="keep tables and plots in --results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--show", type=Path, metavar="JSON", help="show kept results again")
    parser.add_argument(
        "--directory", type=Path, default=_disk(), help="on the disk to measure on (%(default)s)"
    )
    chosen = parser.parse_args(arguments)
    for name in chosen.levels:
        if name not in LEVELS:
            parser.error(f"there is no level {name!r}; there are {', '.join(LEVELS)}")
    return chosen


def _disk() -> Path:
    """Return a directory for temporary files that is no memory: that would make every sync free."""
    usual = Path(tempfile.gettempdir())
    return Path("/var/tmp") if filesystem_of(usual) == "tmpfs" else usual


def _level(name: str) -> Level:
    level: Level = importlib.import_module(f"tests.benchmarks.{name}").LEVEL
    return level


def _matching(level: Level, patterns: Sequence[str]) -> list[Subject]:
    return [
        one
        for one in level.subjects
        if not patterns
        or any(fnmatch.fnmatch(one.name.lower(), f"*{wanted.lower()}*") for wanted in patterns)
    ]


def _measured(
    level: Level, subjects: list[Subject], chosen: argparse.Namespace, below: Path
) -> Findings:
    directory = below / level.name
    directory.mkdir()
    seen = {**surroundings.look(directory), "scale": chosen.scale}
    began_s = time.monotonic()

    def seen_to_the_end() -> dict[str, object]:
        took_s = round(time.monotonic() - began_s)
        return {**seen, "load_after": round(os.getloadavg()[0], 2), "took_s": took_s}

    try:
        found = run(
            level,
            rounds=chosen.rounds,
            scale=chosen.scale,
            directory=directory,
            subjects=subjects,
            tell=_tell,
        )
    except Stopped as stopped:
        stopped.findings.surroundings = seen_to_the_end()
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    found.surroundings = seen_to_the_end()
    _tell(f"{level.name}: took {found.surroundings['took_s']} s")
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(found: Findings) -> None:
    print("\n".join(report.lines_of(found)), end="\n\n", flush=True)


def _show(path: Path, results: Path | None) -> int:
    found = [Findings.from_json(one) for one in json.loads(path.read_text())["levels"]]
    for one in found:
        _print(one)
    if results is not None:
        _draw(found, found, results)
    return 0


def _write(found: Findings, results: Path) -> None:
    """Keep a level's table under its date, its figures in the JSON of that date, and its plot.

    Levels that were measured earlier that day stay: each level's figures compare with each other.
    """
    date = time.strftime("%Y-%m-%d")
    results.mkdir(exist_ok=True)
    lines = [f"# python -m tests.benchmarks {found.name}", *report.lines_of(found)]
    (results / f"{date}-{found.name}.txt").write_text("\n".join(lines) + "\n")
    path = results / f"{date}.json"
    kept = json.loads(path.read_text())["levels"] if path.exists() else []
    by_name = {one["name"]: one for one in (*kept, found.as_json())}
    levels = [by_name[name] for name in LEVELS if name in by_name]
    text = json.dumps({"date": date, "levels": levels}, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text)
    _draw([found], [Findings.from_json(one) for one in levels], results)
    _tell(f"{found.name}: kept in {path}, and in what is named alike beside it")


def _draw(found: Sequence[Findings], of_the_day: Sequence[Findings], results: Path) -> None:
    """Draw levels, each into a file of its own, and what matters most of all levels of a day."""
    headlines = [_compared(one) for one in of_the_day if one.name in HEADLINES]
    try:
        for one in found:
            plot.draw([one], results / f"latest-{one.name}.svg")
        plot.draw(headlines, results / "latest.svg", only=HEADLINES)
    except ImportError as error:
        _tell(f"no plots: {error}")


def _compared(found: Findings) -> Findings:
    """Return findings of those subjects only that a ratio names."""
    names = {name for ratio in found.ratios for name in (ratio.ours, ratio.theirs)}
    return replace(found, subjects=[one for one in found.subjects if one.name in names])


if __name__ == "__main__":
    # Servers and workers are to be ended also when something other than a keyboard says so.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
