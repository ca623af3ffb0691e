"""The statements: their states are the table's, and the hot ones walk their small index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from sqlqueue_transport import (
    acting,
    activity,
    chords,
    counting,
    deleting,
    listing,
    pausing,
    pruning,
    reading,
    results,
    schedules,
    statements,
    topology,
)
from sqlqueue_transport.lifecycle import TRANSITIONS, Event, State
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import put, row

CHANGES_STATE = {
    "statements.PROMOTE": Event.PROMOTE,
    "statements.CLAIM": Event.CLAIM,
    "statements.EXPIRE": Event.EXPIRE,
    "statements.OVERFLOW": Event.OVERFLOW,
    "statements.DEAD_LETTER": Event.DEAD_LETTER,
    "statements.COMPLETE": Event.COMPLETE,
    "statements.RETRY": Event.RETRY,
    "statements.EXHAUST": Event.EXHAUST,
    "statements.RELEASE": Event.RELEASE,
    "statements.RETURN": Event.RELEASE,
    "statements.ABORT": Event.ABORT,
    # What a sweeper does for somebody else is the same step.
    "statements.COMPLETE_FOR_ANOTHER": Event.COMPLETE,
    "statements.LOSE_TO_RETRY": Event.RETRY,
    "statements.LOSE_TO_DEAD": Event.EXHAUST,
    "statements.LOSE_UNCOUNTED": Event.RELEASE,
    "statements.LOSE_TO_CANCELLED": Event.ABORT,
    "acting._CANCEL": Event.CANCEL,
    "acting._FAIL": Event.FAIL,
    "acting._REQUEUE": Event.REQUEUE,
}
MODULES = (
    statements,
    acting,
    pausing,
    topology,
    schedules,
    reading,
    counting,
    listing,
    activity,
    deleting,
    pruning,
    results,
    chords,
)


def _all_statements() -> dict[str, str]:
    """Return every SQL text of the package by module and name."""
    found = {}
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", value):
                found[f"{module.__name__.split('.')[-1]}.{name}"] = value
    return found


ALL = _all_statements()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("statements") / "queue.db", clock=FakeClock())
    yield opened
    opened.close()


def _values(store: Store, message_id: int, before: State, event: Event) -> dict[str, Any]:
    now_ms = store.clock.wall_ms()
    return {
        "id": message_id,
        "delivery": row(store, message_id)["delivery"],
        "now_ms": now_ms,
        "lease_now_ms": store.clock.lease_ms(),
        "lease_until_ms": store.clock.lease_ms() + 1000,
        "worker_id": store.consumers.worker_id,
        "due_at_ms": now_ms + 1000,
        "result": None,
        "error_type": "E",
        "error_message": "e",
        "counted": 1,
        "blind": 1,
        "kill_in_ms": None,
        "reason": "r",
        "before": before.value,
        "after": TRANSITIONS.get((before, event), before).value,
        # A dead letter exchange's target.
        "queue": "elsewhere",
        "exchange": "dlx",
        "routing_key": "k",
        "headers": "{}",
        "max_priority": None,
        "expires_at_ms": None,
    }


@pytest.mark.parametrize("name", CHANGES_STATE)
def test_a_statement_leads_from_and_to_the_states_of_the_table(store: Store, name: str) -> None:
    event = CHANGES_STATE[name]
    steps = set()
    for before in State:
        message_id = put(store, before, queue=name)
        values = _values(store, message_id, before, event)
        if name.startswith("acting."):
            # An operator's statement takes its states from the table, so it is asked only those.
            if (before, event) not in TRANSITIONS:
                continue
            # And it must compare: of every other state it changes nothing.
            for other in State:
                if other is not before:
                    wrong = {**values, "before": other.value}
                    assert not store.database.write(
                        lambda c, wrong=wrong: c.execute(ALL[name], wrong).rowcount
                    )
        store.database.write(lambda c, values=values: c.execute(ALL[name], values).rowcount)
        after = State(row(store, message_id)["state"])
        if after is not before:
            steps.add((before, after))

    known = {(before, after) for (before, one), after in TRANSITIONS.items() if one is event}
    assert steps == {(before, after) for before, after in known if before is not after}


def test_every_statement_that_changes_a_state_is_held_by_the_test_above() -> None:
    changing = {
        name
        for name, text in ALL.items()
        if re.search(r"UPDATE message\s+SET[^;]*?\bstate = ", text.split("WHERE")[0], re.DOTALL)
    }
    assert changing == set(CHANGES_STATE)


def test_only_publishing_inserts_messages() -> None:
    inserting = {name for name, text in ALL.items() if "INSERT INTO message" in text}
    assert inserting == {"statements.PUBLISH"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_statement_asks_sqlite_for_the_time(name: str) -> None:
    assert not re.search(
        r"\b(now\(|CURRENT_TIME|unixepoch|julianday|strftime|datetime\()", ALL[name], re.IGNORECASE
    )


SETTLEMENTS = (
    "COMPLETE", "DELETE_DONE", "RETRY", "EXHAUST", "RELEASE", "RETURN", "ABORT", "EXTEND",
)  # fmt: skip
# What is no job is deleted when it is done, so each of the two ends only its own kind.
ENDS_ONLY = {"COMPLETE": " AND task IS NOT NULL", "DELETE_DONE": " AND task IS NULL"}


@pytest.mark.parametrize("name", SETTLEMENTS)
def test_a_settlement_is_fenced_and_asks_for_an_unexpired_lease(name: str) -> None:
    condition = " ".join(getattr(statements, name).split("WHERE")[1].split())
    assert condition == (
        "id = :id AND delivery = :delivery AND state = 'processing' "
        "AND lease_until_ms > :lease_now_ms" + ENDS_ONLY.get(name, "")
    )


# -- query plans ------------------------------------------------------------------------------------


def _plan(store: Store, statement: str) -> list[str]:
    names = set(re.findall(r"(?<!:):(\w+)", statement))
    values = dict.fromkeys(names, 1)
    found = store.database.read(
        lambda c: c.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()
    )
    return [line[3] for line in found]


# Statement: what its plan must say, line by line (a piece of each line).
PLANS = {
    "statements.READY": [
        "SEARCH m USING INDEX message_ready (queue=?)",
        "SEARCH b USING INTEGER PRIMARY KEY",
        # Whether it is paused: once, and not once for each row.
        "SCALAR SUBQUERY",
        "SEARCH queue USING PRIMARY KEY (name=?)",
    ],
    "statements.ANY_READY": [
        "SEARCH message USING INDEX message_ready (queue=?)",
        "SCALAR SUBQUERY",
        "SEARCH queue USING PRIMARY KEY (name=?)",
    ],
    "statements.GOES_ON": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.WAS_ASKED_TO_STOP": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.NOTE_PROGRESS": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.KILLS_DUE": ["SCAN message USING INDEX message_lease"],
    "statements.ABORT": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "acting._TERMINATE": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "counting._WHO_PAUSED": ["SEARCH audit USING INDEX audit_message (message_id=?)"],
    "counting._NEW": ["SEARCH message USING INTEGER PRIMARY KEY (rowid>?)"],
    "counting._NEXT_QUEUE": ["SEARCH message USING INDEX message_ready (queue>?)"],
    "counting._NEXT_PRIORITY": [
        "SEARCH message USING INDEX message_ready (queue=? AND priority<?)"
    ],
    "counting._FIRST_IN_LINE": [
        "SEARCH message USING INDEX message_ready (queue=? AND priority=?)"
    ],
    "counting._STALLED": ["SEARCH message USING INDEX message_lease (lease_until_ms<?)"],
    "listing._PENDING_IDS": ["SCAN message USING INDEX message_ready"],
    "listing._PENDING_IDS_OF_QUEUE": ["SEARCH message USING INDEX message_ready (queue=?)"],
    "listing._LATER_IDS": ["message USING INDEX message_"],
    "listing._LATER_IDS_OF_QUEUE": ["SEARCH message USING INDEX message_later (queue=?)"],
    "listing._PROCESSING_IDS": ["SCAN message USING INDEX message_lease"],
    "listing._STALLED_IDS": ["SEARCH message USING INDEX message_lease (lease_until_ms<?)"],
    "listing._FINISHED_IDS": [
        "SEARCH message USING INDEX message_history (state=? AND finished_at_ms>? AND finished_at_ms<",
    ],
    "listing._LONGEST_RUNNING_IDS": ["SCAN message USING INDEX message_lease"],
    "listing._IDS_OF_JOB": ["SEARCH message USING INDEX message_job (job_id=?)"],
    "listing._IDS_OF_PREFIX": ["SEARCH message USING INDEX message_job (job_id>? AND job_id<?)"],
    "activity._ENDED": [
        "SEARCH message USING INDEX message_history (state=? AND finished_at_ms>? AND finished_at_ms<",
    ],
    "activity._FAILED": [
        "SEARCH attempt USING INDEX attempt_failure (ended_at_ms>? AND ended_at_ms<?)"
    ],
    "activity._NEWEST_DONE": [
        "SEARCH message USING INDEX message_history (state=? AND finished_at_ms>? AND finished_at_ms<",
    ],
    "activity._NEWEST_FAILED": [
        "SEARCH a USING INDEX attempt_failure (ended_at_ms>?)",
        "SEARCH m USING INTEGER PRIMARY KEY",
    ],
    "statements.NEXT_DUE": ["SEARCH message USING INDEX message_due"],
    "statements.PROMOTE": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH message USING INDEX message_due (due_at_ms<?)",
    ],
    "statements.ANY_OVERDUE": ["SEARCH message USING INDEX message_lease (lease_until_ms<?)"],
    "statements.OVERDUE": [
        "SEARCH m USING INDEX message_lease (lease_until_ms<?)",
        "SEARCH w USING INTEGER PRIMARY KEY",
    ],
    # Only what is processing is walked: the index holds nothing else.
    "statements.HELD_BY_WORKER": [
        "SCAN m USING INDEX message_lease",
        "SEARCH w USING INTEGER PRIMARY KEY",
        "TEMP B-TREE",
    ],
    "statements.EXTEND_WORKER": ["SEARCH message USING INDEX message_lease (lease_until_ms>?)"],
    "statements.FIND_UNIQUE": ["SEARCH message USING INDEX message_unique (unique_key=?)"],
    "statements.ROUTE": ["SEARCH binding USING PRIMARY KEY (exchange=? AND routing_key=?)"],
    "statements.WORKER_IS_REGISTERED": ["SEARCH worker USING INTEGER PRIMARY KEY"],
    "statements.REGISTERED_WORKERS": ["SCAN worker USING INDEX worker_alive"],
    "statements.CLAIM": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.EXPIRE": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.COMPLETE": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.RETRY": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.EXHAUST": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.RELEASE": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.EXTEND": ["SEARCH message USING INTEGER PRIMARY KEY"],
    "statements.COUNT_LOSSES": ["SEARCH attempt USING INDEX attempt_message (message_id=?)"],
    "statements.READY_COUNT": ["SEARCH message USING INDEX message_ready (queue=?)"],
    "topology._PURGE": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH message USING INDEX message_ready (queue=?)",
    ],
    "statements.EMPTY_QUEUE": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH message USING INDEX message_ready (queue=?)",
    ],
    "statements.EMPTY_QUEUE_LATER": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH message USING INDEX message_later (queue=?)",
    ],
    "statements.ENDING_QUEUES": ["SCAN queue USING INDEX queue_mortal"],
    "statements.IS_ENDING": ["SEARCH queue USING PRIMARY KEY (name=?)"],
    "statements.LEAVE_QUEUE": ["SEARCH consumer USING INDEX consumer_queue (queue=?)"],
    "statements.CONSUMERS_OF": ["SEARCH consumer USING INDEX consumer_queue (queue=?)"],
    "statements.EXPIRED": ["SEARCH message USING INDEX message_expiry (expires_at_ms>? AND"],
    "pruning._FORGET_QUEUES": [
        "SEARCH queue USING PRIMARY KEY",
        "SEARCH queue USING INDEX queue_gone (gone_at_ms>? AND",
    ],
    "pruning._PRUNE_MESSAGES": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "SEARCH message USING INDEX message_history (state=? AND finished_at_ms>? AND finished_at_ms<?)",
        "SEARCH attempt USING INDEX attempt_message (message_id=?)",
        "SEARCH body USING INTEGER PRIMARY KEY",
        "SEARCH progress USING INTEGER PRIMARY KEY",
    ],
    "pruning._COUNT_ENDED": [
        "SEARCH message USING INDEX message_history (state=? AND finished_at_ms>? AND finished_at_ms<?)"
    ],
    "deleting._LATER_COUNT": ["SEARCH message USING INDEX message_later (queue=?)"],
    "pruning._NEXT_ENTRY": ["SEARCH tick USING PRIMARY KEY (entry=?)", "(entry>?)"],
    "pruning._PRUNE_TICKS": ["SEARCH tick USING PRIMARY KEY (entry=? AND due_ms"],
    "pruning._AUDIT_AFTER": ["SEARCH audit USING INTEGER PRIMARY KEY (rowid>?)"],
    "pruning._WORKERS_AFTER": ["SEARCH worker USING INTEGER PRIMARY KEY (rowid>?)"],
    "topology._PURGE_LATER": [
        "SEARCH message USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH message USING INDEX message_later (queue=?)",
    ],
    "topology._HAS_BINDING": ["SEARCH binding USING PRIMARY KEY"],
    "reading._MESSAGES_OF_JOB": ["SEARCH message USING INDEX message_job (job_id=?)"],
    "counting._UNFINISHED": [
        "SEARCH message USING INDEX message_ready (queue=?)",
        "SCAN message USING INDEX message_lease",
        "SEARCH message USING INDEX message_later (queue=?)",
    ],
    "reading._ATTEMPTS": ["SEARCH attempt USING INDEX attempt_message (message_id=?)"],
    "reading._NEWEST_AUDIT": ["SEARCH audit USING INTEGER PRIMARY KEY (rowid<?)"],
    "reading._AUDIT": ["SEARCH audit USING INDEX audit_message (message_id=?)"],
    "results._STORE": ["SEARCH result USING INDEX sqlite_autoindex_result_1 (key=?)"],
    "results._GET": ["SEARCH result USING INDEX sqlite_autoindex_result_1 (key=?)"],
    "results._DELETE": ["SEARCH result USING INDEX sqlite_autoindex_result_1 (key=?)"],
    "results._EXPIRE": ["SEARCH result USING INDEX sqlite_autoindex_result_1 (key=?)"],
    "results._NEWER": ["SEARCH result USING INTEGER PRIMARY KEY (rowid>?)"],
    "results._NEWEST": ["SEARCH result"],
    "results._VALUE": ["SEARCH result USING INTEGER PRIMARY KEY (rowid=?)"],
    "results._PRUNE": [
        "SEARCH result USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH result USING INDEX result_expiry (expires_at_ms>? AND expires_at_ms<?)",
    ],
    "chords._RUN": ["SEARCH chord USING INDEX sqlite_autoindex_chord_1 (key=?)"],
    "chords._MEMBERS": ["SEARCH chord_member USING INDEX sqlite_autoindex_chord_member_1"],
    "chords._IS_FILLED": [
        "SEARCH chord_member USING INDEX sqlite_autoindex_chord_member_1 (chord_id=? AND slot=?)"
    ],
    "chords._SLOT_OF": ["SEARCH chord_addition USING PRIMARY KEY (chord_id=? AND task_id=?)"],
    "chords._IS_ADDED": [
        "SEARCH chord_addition USING INDEX chord_addition_slot (chord_id=? AND slot=?)"
    ],
    "chords._DELETE_MEMBERS": [
        "SEARCH chord_member USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH chord_member USING INDEX sqlite_autoindex_chord_member_1 (chord_id=?)",
    ],
    "chords._PRUNE_MEMBERS": [
        "SEARCH chord_member USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH c USING INDEX chord_expiry (expires_at_ms>? AND expires_at_ms<?)",
        "SEARCH m USING INDEX sqlite_autoindex_chord_member_1 (chord_id=?)",
    ],
    "chords._PRUNE": [
        "SEARCH chord USING INTEGER PRIMARY KEY",
        "LIST SUBQUERY",
        "SEARCH c USING INDEX chord_expiry (expires_at_ms>? AND expires_at_ms<?)",
        "CORRELATED SCALAR SUBQUERY",
        "SEARCH m USING INDEX sqlite_autoindex_chord_member_1 (chord_id=?)",
    ],
}


@pytest.mark.parametrize("name", PLANS)
def test_a_hot_statement_uses_its_index(store: Store, name: str) -> None:
    plan = _plan(store, ALL[name])
    for piece in PLANS[name]:
        assert any(piece in line.replace("COVERING ", "") for line in plan), plan
    assert not [line for line in plan if _walks_everything(line)], plan
    assert name in MAY_SORT or not any("TEMP B-TREE" in line for line in plan)


# What a dead worker held is little, and so is the tail that is counted, and what runs. Buckets are
# made of what was counted.
MAY_SORT = {
    "statements.HELD_BY_WORKER",
    "counting._NEW",
    "listing._LONGEST_RUNNING_IDS",
    "activity._ENDED",
    "activity._FAILED",
}


def test_the_pause_of_a_queue_is_not_looked_up_for_each_row(store: Store) -> None:
    for name in ("statements.READY", "statements.ANY_READY"):
        assert not [line for line in _plan(store, ALL[name]) if "CORRELATED" in line]


def _walks_everything(line: str) -> bool:
    return (
        re.match(r"(SCAN|SEARCH) (message|m|chord_member|chord_addition)\b", line) is not None
        and "USING" not in line
    )


def test_the_plan_test_sees_a_predicate_that_does_not_match(store: Store) -> None:
    """Written in another way, the same question walks over the whole history."""
    for same in (
        statements.ANY_READY.replace("= 'pending'", "IN ('pending', 'nothing')"),
        statements.NEXT_DUE.replace("'scheduled', 'failed'", "'failed', 'scheduled'"),
        statements.FIND_UNIQUE.replace(" AND unique_key IS NOT NULL", "").replace(
            "unique_key = :unique_key", "coalesce(unique_key, '') = :unique_key"
        ),
    ):
        assert any(_walks_everything(line) for line in _plan(store, same)), same
