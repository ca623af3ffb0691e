"""What a figure depends on besides the code: the machine, its disk, versions, and who else works."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqlqueue_transport.files import filesystem_of
from tests.benchmarks import servers
from tests.benchmarks.frameworks.plainjob import PACKAGES as PLAINJOB

__all__ = ["in_words", "look", "sync_ms"]

_PACKAGES = ("sqlqueue", "kombu", "celery", "redis", "SQLAlchemy", "huey", "dramatiq", "rq")


def look(directory: Path) -> dict[str, Any]:
    """Return what stands above every table; `directory` is where things are measured."""
    return {
        "began": time.strftime("%Y-%m-%d %H:%M %z"),
        "machine": f"{platform.platform()}, {_processor()}, {os.cpu_count()} cores, "
        f"{_memory_gib():.1f} GiB",
        "load": round(os.getloadavg()[0], 2),
        "filesystem": filesystem_of(directory) or "unknown",
        "fdatasync_ms": round(sync_ms(directory), 3),
        "versions": _versions(),
    }


def in_words(seen: dict[str, Any]) -> list[str]:
    """Return lines that say what `look` saw."""
    versions = ", ".join(f"{name} {number}" for name, number in seen["versions"].items())
    load = f"load {seen['load']}"
    if "load_after" in seen:
        load += f" before and {seen['load_after']} after"
    return [
        f"{seen['began']}, {seen['machine']}, {load}",
        f"on {seen['filesystem']}, fdatasync of a 4 KiB append {seen['fdatasync_ms']:.2f} ms",
        *textwrap.wrap(versions, 118),
    ]


def sync_ms(directory: Path, *, times: int = 100) -> float:
    """Return how long it takes to have another 4 KiB on the disk: the median of some times."""
    path = directory / "synced"
    took_ms = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began_s) * 1000)
    path.unlink()
    return statistics.median(took_ms)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> dict[str, str]:
    found: dict[str, str | None] = {
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["Redis server"] = servers.redis_version()
    found["RabbitMQ"] = servers.rabbitmq_version()
    found["Node"] = _node()
    found["plainjob"] = _plainjob()
    found["commit"] = _commit()
    return {name: number for name, number in found.items() if number}


def _node() -> str | None:
    if shutil.which("node") is None:
        return None
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    return told.stdout.strip().removeprefix("v") or None


def _plainjob() -> str | None:
    described = PLAINJOB / "node_modules" / "plainjob" / "package.json"
    if not described.exists():
        return None
    number: str = json.loads(described.read_text())["version"]
    return number


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or None
