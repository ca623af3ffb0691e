"""The power is cut at any moment: every acknowledged publish is there, and the queue goes on.

Real processes use a queue and are recorded (`recording`, `recorded`, `cut_scenarios`). For each cut a
moment of a recording is taken, one of the contents that a disk may have then is made (`disk`), and the
product opens it: nothing that was promised by then may be missing, nothing may be there that was never
asked for, and everything must work (`cut_promises`).

A cut is known by its recording, its seed and its number: `python -m tests.proofs.cuts RECORDING SEED
TOTAL NUMBER` makes it again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from sqlqueue_transport.errors import TransportError
from tests.proofs.cut_promises import Told, examine
from tests.proofs.cut_scenarios import SCENARIOS, record
from tests.proofs.disk import Disk
from tests.proofs.recording import Kind, Recording
from tests.support import ROOT

PROCESSES = 2
CUTS_A_ROUND = 3_000
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 128 << 20  # a container may have little


def cut(
    recording: Recording,
    numbers: range,
    *,
    total: int,
    seed: int,
    ignores: str = "",
) -> Iterator[Counter[str]]:
    """Make the cuts of these numbers, of `total` that are spread over the recording.

    `ignores` is for a broken disk: see `Disk`. Raises AssertionError with the words to make it again
    when a promise is broken.
    """
    records = list(recording.records())
    first = next(i for i, one in enumerate(records) if one.kind is not Kind.NOTE)
    model, told, at = Disk(recording, ignores=ignores), Told(), 0
    has_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES
    with tempfile.TemporaryDirectory(
        prefix="sqlqueue-cuts-", dir=_MEMORY if has_memory else recording.directory
    ) as place:
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            moment = first + int((number + rng.random()) * (len(records) + 1 - first) / total)
            while at < moment:
                model.follow(records[at])
                if records[at].kind is Kind.NOTE:
                    told.hear(records[at].note)
                at += 1
            found = model.after_cut(rng)
            try:
                yield examine(Path(place), found, told, drains=number % 10 == 0)
            except (AssertionError, TransportError, sqlite3.Error) as error:
                words = f"{recording.directory} {seed} {total} {number}"
                message = (
                    f"{error or error!r}\nafter {moment} of {len(records)} records; "
                    f"again: python -m tests.proofs.cuts {words}"
                )
                raise AssertionError(message) from error


def main(directory: str, seed: str, total: str, first: str, end: str = "") -> None:
    """Make some cuts of a recording and print their figures as JSON."""
    numbers = range(int(first), int(end) if end else int(first) + 1)
    figures: Counter[str] = Counter()
    for one in cut(Recording(Path(directory)), numbers, total=int(total), seed=int(seed)):
        figures += one
    print(json.dumps({**figures, "cpu_ms": round(time.process_time() * 1000)}))


def prove(
    directory: Path, *, cuts: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Record every scenario and cut its power, `cuts` times in all. Return figures for people.

    For each few thousand cuts all is recorded anew: what happens between processes is never the
    same twice. A recording whose cuts failed stays in `directory`.
    """
    sums: Counter[str] = Counter()
    rounds = -(-cuts // CUTS_A_ROUND)
    for number in range(rounds):
        share = cuts * (number + 1) // rounds - cuts * number // rounds
        sums += _round(directory / f"round-{number}", share, seed + number, say)
    assert sums["log resets"], "no log was begun anew: the recordings are too short"
    return [
        (
            f"{sums['cuts']:,} power cuts, {sums['promised']:,} acknowledged publishes looked for: "
            f"0 lost; {sums['again']:,} settlements were not on the disk: all can run again"
        ),
        (
            f"{sums['records']:,} records of {sums['recordings']} recordings, "
            f"{sums['log resets']} logs begun anew; {sums['old']:,} files found as before a migration, "
            f"{sums['new']:,} migrated, each with a whole backup; {sums['backups']:,} backups found, "
            "all whole"
        ),
    ]


def _round(directory: Path, cuts: int, seed: int, say: Callable[[str], object]) -> Counter[str]:
    shares = sum(scenario.share for scenario in SCENARIOS.values())
    sums: Counter[str] = Counter()
    done = 0
    for name, scenario in SCENARIOS.items():
        recording = record(name, directory / name.replace(" ", "-"))
        done += scenario.share
        total = cuts * done // shares - sums["cuts"]
        if total:
            figures = _cut_in_parallel(recording, total=total, seed=seed)
            say(f"{name}: {total:,} cuts, {figures['cpu_ms'] / total:.1f} ms each")
            sums += figures
        sums += _measured(recording)
        shutil.rmtree(recording.directory)
    directory.rmdir()
    return sums


def _measured(recording: Recording) -> Counter[str]:
    """Count the records, and how often a log was begun anew in place."""
    figures: Counter[str] = Counter(recordings=1)
    logs: dict[int, int] = {}
    for one in recording.records():
        figures["records"] += 1
        if one.kind is Kind.CREATE and one.names[0].endswith("-wal"):
            logs[one.inode] = 0
        elif one.kind is Kind.WRITE and one.inode in logs and one.at == 0:
            figures["log resets"] += logs[one.inode]
            logs[one.inode] = 1
    return figures


def _cut_in_parallel(recording: Recording, *, total: int, seed: int) -> Counter[str]:
    bounds = [total * part // PROCESSES for part in range(PROCESSES + 1)]
    command = [sys.executable, "-m", "tests.proofs.cuts", recording.directory, seed, total]
    processes = [
        subprocess.Popen(
            [str(part) for part in (*command, first, end)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first, end in pairwise(bounds)
        if first < end
    ]
    figures: Counter[str] = Counter()
    try:
        for process in processes:
            out, error = process.communicate(timeout=60 + total)
            assert process.returncode == 0, error
            figures += Counter(json.loads(out))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
