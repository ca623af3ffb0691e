"""The schema: what it refuses to hold, and what it promises to those who read it."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import files, migrations
from sqlqueue_transport.lifecycle import FINISHED, State
from sqlqueue_transport.messages import NewMessage, Outcome
from sqlqueue_transport.store import Store
from tests.transport.rows import claim_one, ended, publish, put, rows_of

SCHEMA = resources.files("sqlqueue_transport").joinpath("schema.sql").read_text("utf-8")


@pytest.fixture(scope="module")
def bare() -> Iterator[sqlite3.Connection]:
    """Run the schema alone, for rows that no store would write."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.executescript(SCHEMA)
    yield connection
    connection.close()


# -- the view ---------------------------------------------------------------------------------------


def test_the_view_jobs_has_exactly_its_documented_columns(store: Store) -> None:
    assert [name for (name,) in rows_of(store, "SELECT name FROM pragma_table_info('jobs')")] == [
        "id",
        "message_id",
        "task",
        "queue",
        "state",
        "priority",
        "attempts",
        "enqueued_at_ms",
        "due_at_ms",
        "started_at_ms",
        "finished_at_ms",
    ]


def test_the_view_shows_the_state_as_text_and_leaves_out_what_is_no_job(store: Store) -> None:
    message_id = publish(store, job_id="a", priority=3)
    publish(store, task=None)
    store.settle([ended(claim_one(store), Outcome.done("null"))])

    now_ms = store.clock.wall_ms()
    assert rows_of(store, "SELECT * FROM jobs") == [
        ("a", message_id, "tasks.stamp", "default", "done", 3, 1, now_ms, None, now_ms, now_ms)
    ]


# -- what cannot be ---------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"queue": "q", "state": "pending", "enqueued_at_ms": 1}
LEASED = {
    "state": "processing",
    "lease_until_ms": 5,
    "worker_id": 1,
    "started_at_ms": 1,
    "delivery": 1,
}


def _insert(connection: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    names = ", ".join(values)
    marks = ", ".join("?" * len(values))
    connection.execute("BEGIN")
    try:
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*values.values()])
    finally:
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        LEASED,
        {"state": "scheduled", "due_at_ms": 9},
        {"state": "failed", "due_at_ms": 9, "attempts": 1},
        *({"state": state.value, "finished_at_ms": 3} for state in FINISHED),
        {"priority": 9, "max_attempts": 0},
    ],
)
def test_a_possible_row_is_taken(bare: sqlite3.Connection, fields: dict[str, Any]) -> None:
    _insert(bare, "message", {**GOOD, **fields})


IMPOSSIBLE: list[dict[str, Any]] = [
    {"state": "running"},
    {"state": None},
    {"queue": None},
    {"lease_until_ms": 5},  # a lease on what nobody runs
    {"state": "done", "finished_at_ms": 1, "lease_until_ms": 5},
    {**LEASED, "lease_until_ms": None},
    {**LEASED, "worker_id": None},
    {**LEASED, "started_at_ms": None},
    {**LEASED, "delivery": 0},
    {**LEASED, "finished_at_ms": 1},
    {"state": "scheduled"},  # due never
    {"state": "failed"},
    *({"state": state.value} for state in FINISHED),  # finished, but when?
    {"finished_at_ms": 1},  # finished, but waiting
    {"priority": -1},
    {"priority": 10},
    {"priority": "high"},
    {"attempts": -1},
    {"max_attempts": -1},
    {"enqueued_at_ms": "today"},
    {"enqueued_at_ms": float("nan")},
    {"body": "text"},
    {"headers": b"{}"},
    {"headers": None},
]


@pytest.mark.parametrize("fields", IMPOSSIBLE)
def test_an_impossible_row_is_refused(bare: sqlite3.Connection, fields: dict[str, Any]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        _insert(bare, "message", {**GOOD, **fields})


IMPOSSIBLE_BESIDE: list[tuple[str, dict[str, Any]]] = [
    (
        "worker",
        {
            "name": "w",
            "kind": "manager",
            "pid": 1,
            "host": "h",
            "boot": "b",
            "presence": "p",
            "slot": 0,
            "started_at_ms": 1,
        },
    ),
    ("binding", {"exchange": "e", "routing_key": "k", "queue": "never declared"}),
    ("body", {"message_id": 4711, "content": b""}),
    ("body", {"message_id": 4711, "content": None}),
    (
        "attempt",
        {
            "message_id": 4711,
            "run": 1,
            "attempt": 1,
            "delivery": 1,
            "ended_at_ms": 1,
            "outcome": "failed",
        },
    ),
    (
        "attempt",
        {
            "message_id": 4711,
            "run": 1,
            "attempt": 1,
            "delivery": 1,
            "ended_at_ms": 1,
            "outcome": "gave up",
        },
    ),
    ("tick", {"entry": None, "due_ms": 1, "at_ms": 1, "beat": "b", "jobs": 1}),
    ("meta", {"key": "k", "value": None}),
    *(
        ("queue", {"name": "q", "created_at_ms": 1, **wrong})
        for wrong in (
            {"message_ttl_ms": -1},
            {"expires_ms": 0},
            {"max_length": -1},
            {"max_priority": -1},
        )
    ),
    ("counted", {"only": 2, "upto": 1}),
    (
        "schedule",
        {"entry": "e", "description": "d", "target": "t", "first_seen_ms": 1, "origin": "rumour"},
    ),
]


@pytest.mark.parametrize(("table", "values"), IMPOSSIBLE_BESIDE)
def test_an_impossible_row_beside_the_messages_is_refused(
    bare: sqlite3.Connection, table: str, values: dict[str, Any]
) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        _insert(bare, table, values)


def _checks() -> list[tuple[int, int]]:
    """Return where the condition of each CHECK of the schema begins and ends."""
    found = []
    for match in re.finditer(r"CHECK \(", re.sub(r"--.*", lambda one: " " * len(one[0]), SCHEMA)):
        at, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(SCHEMA[at], 0)
            at += 1
        found.append((match.end(), at - 1))
    return found


def _taken(schema: str) -> list[int]:
    """Return which of the impossible rows a schema takes; foreign keys are not looked at."""
    rows = [*(("message", {**GOOD, **fields}) for fields in IMPOSSIBLE), *IMPOSSIBLE_BESIDE]
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema)
    taken = []
    for number, (table, values) in enumerate(rows):
        with contextlib.suppress(sqlite3.IntegrityError):
            _insert(connection, table, values)
            taken.append(number)
    connection.close()
    return taken


@pytest.mark.parametrize("check", _checks(), ids=lambda one: SCHEMA[one[0] : one[1]][:40])
def test_each_check_refuses_something_that_nothing_else_refuses(check: tuple[int, int]) -> None:
    begins, ends = check
    assert _taken(f"{SCHEMA[:begins]}1{SCHEMA[ends:]}") != _taken(SCHEMA)


def test_every_table_is_strict(bare: sqlite3.Connection) -> None:
    loose = bare.execute(
        "SELECT name FROM pragma_table_list WHERE type = 'table' AND NOT strict"
        " AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    assert loose == []


def test_the_states_of_the_check_are_the_states_of_the_table(bare: sqlite3.Connection) -> None:
    for state in State:
        row = {**GOOD, "state": state.value, "due_at_ms": 1}
        if state is State.PROCESSING:
            row |= LEASED
        elif state in FINISHED:
            row["finished_at_ms"] = 1
        _insert(bare, "message", row)


# -- what the file is -------------------------------------------------------------------------------


def test_an_id_is_never_used_again(store: Store) -> None:
    """A reused rowid would let a stale ack hit another message."""
    first = publish(store)
    newest = publish(store)
    store.topology.purge("default")
    assert publish(store) > newest > first


def test_whatever_is_deleted_in_whatever_order_no_id_is_given_twice(store: Store) -> None:
    seen: set[int] = set()
    for number in range(60):
        new = [publish(store) for _ in range(4)]
        assert not seen & set(new)
        assert min(new) > max(seen, default=0)
        seen |= set(new)
        # Always something of the newest, in one statement or one by one, now and then all there is.
        order = "DESC" if number % 2 else "ASC"
        chosen = [
            id_ for (id_,) in rows_of(store, f"SELECT id FROM message ORDER BY id {order} LIMIT 3")
        ] + new[-1 - number % 3 :]
        if number % 7 == 0:
            store.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
        for id_ in chosen:
            store.database.write(
                lambda c, id_=id_: c.execute("DELETE FROM message WHERE id = ?", [id_]).rowcount
            )


def test_deleting_a_message_takes_its_body_and_attempts_along(store: Store) -> None:
    message_id = publish(store, body=b"x" * 20_000)
    store.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
    assert rows_of(store, "SELECT * FROM body WHERE message_id = ?", message_id) == []
    assert store.reading.damage(full=True) == []


def test_the_partial_indexes_hold_only_their_states(store: Store) -> None:
    """A history of thousands leaves the index of what is ready as small as it was."""
    for state in State:
        put(store, state, due="future")
    for index, states in {
        "message_ready": 1,
        "message_lease": 1,
        "message_due": 2,
        "message_history": 4,
    }.items():
        (predicate,) = rows_of(
            store,
            "SELECT substr(sql, instr(sql, 'WHERE')) FROM sqlite_schema WHERE name = ?",
            index,
        )
        ((count,),) = rows_of(
            store, f"SELECT count(*) FROM message INDEXED BY {index} {predicate[0]}"
        )
        assert count == states


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is not installed")
def test_the_schema_runs_in_the_sqlite3_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sqlite3", "-bail", tmp_path / "shell.db"],
        input=SCHEMA + "\nSELECT count(*) FROM jobs;",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"


def test_a_person_can_read_a_job_with_nothing_but_sqlite(store: Store, tmp_path: Path) -> None:
    publish(store, queue="Größe", job_id="a'; DROP TABLE message; --")
    other = sqlite3.connect(f"file:{tmp_path}/queue.db?mode=ro", uri=True)
    try:
        found = other.execute("SELECT id, queue, state FROM jobs").fetchall()
    finally:
        other.close()
    assert found == [("a'; DROP TABLE message; --", "Größe", "pending")]


# == an older file ==================================================================================


def structure(path: Path) -> dict[str, Any]:
    """Return what the tables, indexes, triggers and views of a file are, whatever their columns' order."""
    connection = sqlite3.connect(path)
    names = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    found: dict[str, Any] = {}
    for kind, name, text in names:
        if kind == "table":
            found[name] = {row[1:] for row in connection.execute(f"PRAGMA table_info({name})")}
        elif kind == "index":
            found[name] = [row[2] for row in connection.execute(f"PRAGMA index_xinfo({name})")]
        elif kind == "trigger":
            found[name] = text
        else:
            found[name] = kind
    connection.close()
    return found


def old_file(path: Path, version: int) -> Path:
    """Make a file of an older schema, with one job that failed once."""
    connection = sqlite3.connect(path)
    connection.executescript(
        (Path(__file__).parent / "fixtures" / f"schema-{version}.sql").read_text()
    )
    connection.executescript(
        f"PRAGMA application_id = {migrations.APPLICATION_ID}; PRAGMA user_version = {version};"
        "INSERT INTO queue (name, created_at_ms) VALUES ('default', 1);"
        "INSERT INTO message (queue, state, task, enqueued_at_ms, body)"
        " VALUES ('default', 'pending', 't', 1, x'5b5d');"
        "INSERT INTO attempt (message_id, run, attempt, delivery, ended_at_ms, outcome)"
        " VALUES (1, 1, 1, 1, 1, 'failed');"
    )
    connection.close()
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_an_older_file_becomes_what_a_new_one_is_and_keeps_its_jobs(
    tmp_path: Path, version: int
) -> None:
    old, new = old_file(tmp_path / "old.db", version), tmp_path / "new.db"
    for path in (old, new):
        store = Store(path)
        store.publish([NewMessage(b"[]", "default", task="t")])
        store.close()
    assert structure(old) == structure(new)
    store = Store(old)
    assert store.topology.size("default") == 2
    # What was there is in the tally of version 4, and what came is not yet.
    assert rows_of(store, "SELECT sum(messages) FROM tally") == [(1 if version < 4 else None,)]
    assert store.reading.counts().states[State.PENDING] == 2
    assert store.reading.broken_invariants(full=True) == {}
    assert rows_of(store, "SELECT message_id, outcome FROM attempt") == [(1, "failed")]
    store.close()


def test_migrating_from_4_copies_every_kind_of_row_and_forgets_no_id(tmp_path: Path) -> None:
    """The table of messages is made anew: what refers to it stays, and what was deleted stays spent."""
    path = old_file(tmp_path / "queue.db", 4)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for state in State:
            values: dict[str, Any] = {**GOOD, "state": state.value, "due_at_ms": 9, "task": "t"}
            if state is State.PROCESSING:
                values |= LEASED
            elif state in FINISHED:
                values["finished_at_ms"] = 3
            names = ", ".join(values)
            connection.execute(
                f"INSERT INTO message ({names}) VALUES ({', '.join('?' * len(values))})",
                [*values.values()],
            )
        connection.execute("INSERT INTO body SELECT max(id), x'00' FROM message")
        connection.execute("INSERT INTO progress SELECT max(id), 1, 2, 3, 'half', 4 FROM message")
        connection.execute(
            "INSERT INTO message (queue, state, enqueued_at_ms) VALUES ('q', 'pending', 1)"
        )
        connection.execute("DELETE FROM message WHERE id = (SELECT max(id) FROM message)")
    queries = [
        f"SELECT * FROM {table} ORDER BY 1" for table in ("message", "body", "attempt", "progress")
    ]
    before = [connection.execute(query).fetchall() for query in queries]
    (spent,) = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'message'"
    ).fetchone()
    connection.close()
    store = Store(path)
    assert [rows_of(store, query) for query in queries] == before
    assert store.reading.damage(full=True) == []
    assert publish(store) == spent + 1
    store.close()


def test_a_backup_is_wholly_on_the_disk_before_the_file_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rollback journal, found again after a power cut, would empty it: that is gone, too."""
    path = old_file(tmp_path / "old.db", 3)
    seen: list[object] = []
    sync, run = files.sync_directory, migrations._run_script

    def synced(directory: Path) -> None:
        found = [(one.name, one.stat().st_size > 0) for one in directory.glob("*.backup*")]
        seen[:] = [directory, found]
        sync(directory)

    def checked(connection: sqlite3.Connection, script: str) -> None:
        assert seen == [tmp_path, [("old.db.v3.backup", True)]]
        run(connection, script)

    monkeypatch.setattr(files, "sync_directory", synced)
    monkeypatch.setattr(migrations, "_run_script", checked)
    Store(path).close()
    assert seen
