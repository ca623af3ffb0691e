"""What `sqlqueue doctor` looks at: the file, its surroundings, the workers, and the jobs.

Each check answers with a level, a sentence and the problems it found, so that one that fails does
not hide the others. It reads through an Inspection, and for what only a file has (integrity, log,
permissions) asks the store. Mends nothing, and writes nothing but a mark by which it sees that one can.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import shutil
import stat
import sys
import time
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, Final

import kombu

from sqlqueue.backend import SqliteBackend, database_path
from sqlqueue.errors import NotAvailable
from sqlqueue.inspection import JobFilter, State
from sqlqueue.scheduled import Standing
from sqlqueue_transport import files, log_guard
from sqlqueue_transport.errors import DiskFault, Unavailable
from sqlqueue_transport.migrations import SCHEMA_VERSION
from sqlqueue_transport.reading import WRONG_COUNTS
from sqlqueue_transport.writer_lock import read_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.store import Store

__all__ = [
    "Check",
    "Level",
    "check_writer_lock",
    "database_path",
    "examine",
    "surroundings",
    "versions",
]

MOST_PROBLEMS: Final = 100  # of one check; the first ones tell enough
_LOCK_LIMIT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05
_SPACE_LIMIT_BYTES: Final = 100 << 20
_OTHER_LIBRARIES: Final = ("apsw", "pysqlite3", "pysqlite2", "sqlcipher3", "libsql", "pysqlcipher3")
# SQLite's releases with the WAL-reset bug, and the two branches it was also mended in
# (sqlite.org/releaselog/3_51_3.html).
_BUG_SINCE: Final = (3, 7, 0)
_MENDED: Final = (3, 51, 3)
_MENDED_BRANCHES: Final = {(3, 44): 6, (3, 50): 7}


class Level(str, Enum):
    """How bad it is: `warn` may be meant, `fail` is not healthy."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """Be one answer: what was looked at, how it is, and what to do (`hint`, "" when nothing)."""

    name: str
    level: Level
    summary: str
    problems: tuple[str, ...] = ()
    hint: str = ""


def versions() -> list[tuple[str, str]]:
    """Return what is at work, by name: this software, the schema of its files, SQLite, Python."""
    return [
        ("sqlqueue", _own_version()),
        ("Schema", str(SCHEMA_VERSION)),
        ("SQLite", _sqlite_version()),
        ("Python", platform.python_version()),
    ]


def check_writer_lock(path: Path) -> Check:
    """Say who holds the writer lock, and for how long, without opening the database.

    Look at it first: behind a stopped holder every opening would wait.
    """
    lock = path.with_name(f"{path.name}-run") / "writer.lock"
    holder = read_holder(lock)
    held_s = 0.0 if holder is None or holder.since_s is None else time.monotonic() - holder.since_s
    if held_s >= _LOCK_LIMIT_S:
        time.sleep(_LOOK_AGAIN_S)  # it may be about to say that it has it only now
    if holder is None or held_s < _LOCK_LIMIT_S or read_holder(lock) != holder:
        return Check("writer lock", Level.OK, "nobody holds it for long")
    return Check(
        "writer lock",
        Level.FAIL,
        f"process {holder.pid} has held it for {held_s:.0f} s; nobody else can write",
        hint=f"continue the process ('kill -CONT {holder.pid}') or end it ('kill -9 {holder.pid}')",
    )


def examine(
    inspection: Inspection,
    *,
    strict: bool = False,
    app_checks: Mapping[str, Callable[[Inspection], Iterable[str]]] | None = None,
) -> Iterator[Check]:
    """Yield one check after the other, the quick ones first.

    `strict` reads every page of the file and every index. `app_checks` are functions of the
    application by title. Raises NotAvailable on a broker that is no file, and the transport's
    errors.
    """
    backend = inspection.backend
    if not isinstance(backend, SqliteBackend):
        raise NotAvailable("a doctor")
    store = backend.store
    yield from surroundings(store.path)
    yield _check_permissions(store)
    yield check_writer_lock(store.path)
    if not store.database.is_read_only:
        yield _check_writing(store)
    yield _check_log(store.path)
    yield _check_integrity(store, strict=strict)
    yield _check_invariants(store, strict=strict)
    yield from _check_jobs(inspection)
    yield _check_workers(inspection)
    yield from _check_queues(inspection)
    yield _check_schedule(inspection)
    for title, function in (app_checks or {}).items():
        yield _check_app(inspection, title, function)


def surroundings(path: Path) -> Iterator[Check]:
    """Yield the checks that do without opening the file at `path`, or there being one."""
    yield _check_sqlite(_sqlite_version())
    yield _check_libraries()
    yield _check_filesystem(path)


# -- the file ------------------------------------------------------------------------------------------


def _sqlite_version() -> str:
    # Asked of the transport, because sqlite3 itself is imported there and nowhere else.
    return str(kombu.Connection("sqlqueue:///").transport.driver_version())


def _own_version() -> str:
    try:
        return metadata.version("sqlqueue")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


def _check_sqlite(version: str) -> Check:
    major, minor, patch, *_ = (int(part) for part in f"{version}.0.0".split("."))
    mended_at = _MENDED_BRANCHES.get((major, minor))
    mended = (major, minor, patch) >= _MENDED or (mended_at is not None and patch >= mended_at)
    if (major, minor, patch) < _BUG_SINCE or mended:
        return Check("sqlite", Level.OK, f"SQLite {version}")
    return Check(
        "sqlite",
        Level.WARN,
        f"SQLite {version} has the WAL-reset bug (3.7.0 to 3.51.2): a checkpoint that races a"
        " commit can lose it",
        hint="sqlqueue's own processes exclude that race among themselves; let no other program"
        " write to the file, or use a Python with SQLite 3.51.3 or newer",
    )


def _check_libraries() -> Check:
    others = [name for name in _OTHER_LIBRARIES if name in sys.modules]
    if not others:
        return Check("libraries", Level.OK, "one SQLite library in this process")
    return Check(
        "libraries",
        Level.WARN,
        f"a second SQLite library is loaded: {', '.join(others)}",
        hint="two libraries on one file destroy each other's locks: never open the queue with it",
    )


def _check_filesystem(path: Path) -> Check:
    kind = files.filesystem_of(path.parent) or "of a kind that cannot be told"
    free = shutil.disk_usage(path.parent).free
    summary = f"{path.parent} is {kind}, {_room(free)} free"
    if files.is_network(kind):
        return Check("filesystem", Level.FAIL, summary, hint="move the file to a local disk")
    if free < _SPACE_LIMIT_BYTES:
        return Check("filesystem", Level.FAIL, summary, hint="free some space")
    if kind in {"tmpfs", "ramfs"}:
        return Check(
            "filesystem",
            Level.WARN,
            summary,
            hint="it is memory: jobs do not survive a reboot there",
        )
    return Check("filesystem", Level.OK, summary)


def _room(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _check_permissions(store: Store) -> Check:
    directory = store.database.run_directory
    wanted = [(store.path.with_name(store.path.name + end), 0o600) for end in ("", "-wal", "-shm")]
    wanted += [(directory, 0o700)]
    # All of it, the consoles' tokens as well.
    with contextlib.suppress(OSError):
        wanted += [(path, 0o600) for path in sorted(directory.iterdir()) if not path.is_dir()]
    problems = []
    for path, mode in wanted:
        try:
            found = stat.S_IMODE(path.lstat().st_mode)
        except OSError:
            continue
        if found & ~mode & 0o077:
            problems.append(f"{path} is open to other users ({found:04o}): chmod {mode:o} {path}")
    if problems:
        return Check(
            "permissions",
            Level.FAIL,
            "other users may read or change the queue",
            tuple(problems),
            hint="run the chmod commands",
        )
    return Check("permissions", Level.OK, "the owner's alone")


def _check_writing(store: Store) -> Check:
    """Try what every publisher does; a disk that refuses shows nowhere else before it is too late."""
    try:
        took_s = store.try_writing()
    except Unavailable as error:
        trouble = error
    else:
        return Check(
            "writing", Level.OK, f"a mark was written and flushed in {took_s * 1000:.1f} ms"
        )
    if isinstance(trouble, DiskFault):
        with contextlib.suppress(Unavailable):
            store.try_writing(in_reserve=True)
            return Check(
                "writing",
                Level.FAIL,
                f"the disk is nearly full: {_room(files.free_bytes(store.path.parent) or 0)} free, kept to"
                " finish what is queued",
                hint="nothing new can be published until you free some space; what is queued still ends",
            )
    return Check(
        "writing",
        Level.FAIL,
        str(trouble),
        hint="until this is mended, nothing can be published, and nothing that ends is written down",
    )


def _check_log(path: Path) -> Check:
    size = log_guard.size_of(path)
    summary = f"write-ahead log: {size / 1e6:.1f} MB"
    if size <= log_guard.LIMIT_BYTES:
        return Check("log size", Level.OK, summary)
    return Check(
        "log size",
        Level.FAIL,
        summary,
        tuple(f"process {pid} reads at this moment" for pid in log_guard.readers_of(path)),
        hint="a program that reads for long keeps it from being emptied: end it",
    )


def _check_integrity(store: Store, *, strict: bool) -> Check:
    found = tuple(store.reading.damage(full=strict))
    what = "integrity" if strict else "quick integrity"
    if not found:
        return Check("integrity", Level.OK, f"{what} and foreign keys are in order")
    return Check(
        "integrity",
        Level.FAIL,
        f"the file is damaged: {len(found)} complaints",
        found[:MOST_PROBLEMS],
        hint="stop everything, and restore a backup, or '.recover' a copy in the sqlite3 shell",
    )


def _check_invariants(store: Store, *, strict: bool) -> Check:
    broken = store.reading.broken_invariants(full=strict)
    if not broken:
        return Check("invariants", Level.OK, "states, leases and attempts agree")
    hint = "another program has written to it, or this is a bug: please report it"
    if WRONG_COUNTS in broken:
        hint += ". 'sqlqueue db recount' counts anew"
    return Check(
        "invariants",
        Level.FAIL,
        "the file says what must never be",
        tuple(f"{count} {name}" for name, count in broken.items()),
        hint=hint,
    )


# -- jobs and workers ------------------------------------------------------------------------------------


def _check_jobs(inspection: Inspection) -> Iterator[Check]:
    """Look at what is processing: leases that are over, holders that are dead, jobs that hang."""
    alive = {row.name for row in inspection.backend.workers()}
    limit_ms = inspection.settings.visibility_timeout * 1000
    now_ms = inspection.now_ms
    overdue, orphaned, long = [], [], []
    for row in inspection.every_job(JobFilter(states=(State.PROCESSING,))):
        name = f"job {row.name} on {row.worker or 'nobody'}"
        if row.lease_left_ms is not None and row.lease_left_ms <= 0:
            overdue.append(f"{name}: over for {-row.lease_left_ms / 1000:.1f} s")
        if row.worker not in alive:
            orphaned.append(name)
        elif row.started_at_ms is not None and now_ms - row.started_at_ms > limit_ms:
            long.append(f"{name}: runs for {(now_ms - row.started_at_ms) / 1000:.0f} s")
    yield _found(
        "leases",
        overdue,
        good="no lease is over",
        bad="in processing though the lease is over (stalled)",
        hint="a running worker takes them back within a second or two: start one",
    )
    yield _found(
        "dead holders",
        orphaned,
        good="every job in processing has a living worker",
        bad="held by workers that are gone",
        hint="the next worker that starts gives them back at once",
        level=Level.WARN,
    )
    yield _found(
        "long jobs",
        long,
        good=f"no job runs longer than the visibility timeout ({limit_ms / 1000:g} s)",
        bad=f"running for longer than the visibility timeout ({limit_ms / 1000:g} s)",
        hint="if they hang, give their tasks a time_limit; if not, raise visibility_timeout",
    )


def _check_workers(inspection: Inspection) -> Check:
    limit_s = inspection.settings.visibility_timeout
    silent, unknown, alive, others = [], [], 0, 0
    for row in inspection.backend.workers():
        if row.kind not in {"worker", "child"} and not row.queues:
            continue
        name = f"{row.kind} {row.name} (process {row.pid})"
        if not row.is_known_alive:
            unknown.append(f"{name}: the presence file was lost, so nobody knows whether it lives")
        elif row.heartbeat_age_s is not None and row.heartbeat_age_s > limit_s:
            silent.append(f"{name}: no sign of life for {row.heartbeat_age_s:.0f} s")
        elif row.kind == "worker":
            alive += 1
        elif row.kind == "client":
            others += 1
    if silent:
        return Check(
            "workers",
            Level.FAIL,
            f"{len(silent)} silent for longer than the visibility timeout",
            tuple((silent + unknown)[:MOST_PROBLEMS]),
            hint="stopped or hanging: continue them ('kill -CONT PID') or end them ('kill -9 PID')",
        )
    if unknown:
        return Check(
            "workers",
            Level.WARN,
            f"of {len(unknown)} nobody knows whether they live",
            tuple(unknown[:MOST_PROBLEMS]),
            hint="restart the workers",
        )
    summary = f"{alive} alive" if alive else "none is running"
    if others:
        # Celery's workers, and whatever else consumes through Kombu.
        summary += f", {others} other program{'s' if others > 1 else ''} consuming"
    return Check("workers", Level.OK, summary)


def _check_queues(inspection: Inspection) -> Iterator[Check]:
    found = inspection.queues()
    unserved = [
        f"queue {queue.name}: {queue.pending} pending, the oldest for"
        f" {queue.oldest_pending_s or 0:.0f} s"
        for queue in found
        if queue.pending and not queue.servers
    ]
    paused = [
        f"queue {queue.name}: {queue.pending} pending, paused by {queue.pause.actor or 'somebody'}"
        f" for {(inspection.now_ms - queue.pause.since_ms) / 1000:.0f} s"
        for queue in found
        if queue.pending and queue.pause is not None
    ]
    yield _found(
        "paused queues",
        paused,
        good="nothing waits in a paused queue",
        bad="paused, with pending jobs",
        hint="let them be worked on again: sqlqueue resume QUEUE",
        level=Level.WARN,
    )
    yield _found(
        "queues",
        unserved,
        good="every queue with pending jobs is served",
        bad="with pending jobs, but served by no worker",
        hint="start a worker for them: sqlqueue worker -A … -Q QUEUE, or celery -A … worker -Q QUEUE",
    )


def _check_schedule(inspection: Inspection) -> Check:
    """Look at entries that fail, and at those nobody runs."""
    entries = inspection.schedule()
    failing = [
        f"entry {one.row.entry}: {one.row.error}"
        for one in entries
        if one.row.error is not None and one.standing is not Standing.PAUSED
    ]
    if failing:
        return Check(
            "schedule",
            Level.FAIL,
            f"{len(failing)} entries fail",
            tuple(failing[:MOST_PROBLEMS]),
            hint="the beat's log has the tracebacks; it tries again by itself",
        )
    idle = {
        Standing.NO_BEAT: "no beat is running",
        Standing.ORPHANED: "not in any running beat's application",
    }
    return _found(
        "schedule",
        [f"entry {one.row.entry}: {idle[one.standing]}" for one in entries if one.standing in idle],
        good="every entry is run by a beat" if entries else "there is none",
        bad="run by no beat",
        hint="start a beat: sqlqueue beat -A …; remove what is not wanted: sqlqueue schedule remove",
        level=Level.WARN,
    )


def _check_app(
    inspection: Inspection, title: str, function: Callable[[Inspection], Iterable[str]]
) -> Check:
    try:
        found = list(itertools.islice(function(inspection), MOST_PROBLEMS + 1))
    except Exception as error:  # noqa: BLE001 - a check is user code; the others still have a word
        return Check(title, Level.FAIL, f"the check itself failed: {type(error).__name__}: {error}")
    return _found(title, found, good="in order", bad="not in order", hint="")


def _found(
    name: str,
    problems: list[str],
    *,
    good: str,
    bad: str,
    hint: str,
    level: Level = Level.FAIL,
) -> Check:
    if not problems:
        return Check(name, Level.OK, good)
    count = str(len(problems)) if len(problems) <= MOST_PROBLEMS else f"more than {MOST_PROBLEMS}"
    return Check(name, level, f"{count} {bad}", tuple(problems[:MOST_PROBLEMS]), hint)
