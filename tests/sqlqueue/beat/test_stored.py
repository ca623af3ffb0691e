"""Entries that live in the file, one-offs, jitter, overlap: what a beat makes of them."""

from __future__ import annotations

import json
import math
import random
from datetime import datetime, timezone

import pytest

from sqlqueue.beat.schedule import Tick
from sqlqueue.errors import ConfigError, NotAvailable, ScheduleNotFound
from sqlqueue.inspection import Inspection
from sqlqueue.scheduled import Standing
from sqlqueue.task import Signature
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.pruning import Policy
from sqlqueue_transport.reading import JobFilter
from tests.sqlqueue.beat.conftest import NOON, ms

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def look(beat):
    """Do what the process does before it sleeps, and one turn."""
    beat.is_up_to_date()
    return beat.turn()


# --- added, removed, paused, resumed ----------------------------------------------------------------


def test_an_entry_that_is_added_is_beaten_from_its_next_tick_on(clock, app, schedule):
    beat = schedule.beat()
    app.schedules.add("mine", schedule.task.s("x"), every="10s", catch_up="all(3)")
    assert look(beat) == 10.0  # NOON is a tick, and it was added at NOON
    assert schedule.enqueued == ["x"]
    clock.advance(100)
    for each in (beat, schedule.beat()):  # a restarted one has it from the file
        look(each)
    assert len(schedule.enqueued) == 1 + 3
    row = schedule.row("mine")
    assert (row.origin, row.target, row.ticks, row.description) == ("file", "t", 4, "every 10s")
    assert row.next_due_ms == NOON + 110_000


def test_an_added_call_keeps_its_arguments_and_options(clock, app, schedule):
    call = schedule.task.s([1, {"a": None}])
    call.options.update(queue="slow", priority=3, expires=60, countdown=5)
    app.schedules.add("mine", call, every="10s")
    look(schedule.beat())
    [row] = app.backend.jobs(JobFilter())
    assert (row.queue, row.priority, row.state) == ("slow", 3, State.SCHEDULED)
    assert schedule.enqueued == [[1, {"a": None}]]


def test_an_entry_that_is_removed_is_not_beaten_any_more(clock, app, schedule):
    beats = [schedule.beat(), schedule.beat()]
    app.schedules.add("mine", schedule.task.s("x"), every="10s")
    for beat in beats:
        look(beat)
    app.schedules.remove("mine")
    clock.advance(10)
    look(beats[0])
    beats[1].turn()  # has not looked, and is told by the file
    assert schedule.enqueued == ["x"]
    assert app.schedules.list() == []
    assert look(beats[1]) == math.inf


def test_an_entry_that_was_replaced_is_not_beaten_as_it_was(clock, app, schedule):
    beat = schedule.beat()
    app.schedules.add("mine", schedule.task.s("old"), every="10s")
    look(beat)
    app.schedules.remove("mine")
    app.schedules.add("mine", schedule.task.s("new"), every="5s")
    clock.advance(10)
    beat.turn()  # still has the old one in mind; the file refuses it
    assert schedule.enqueued == ["old"]
    beat.turn()
    assert schedule.enqueued == ["old", "new"]


@pytest.mark.parametrize("origin", ["code", "settings", "file"])
def test_an_entry_of_any_origin_rests_while_it_is_paused_and_catches_nothing_up(
    clock, here, app, schedule, origin
):
    if origin == "code":
        app.periodic("e", schedule.task.s("x"), every="10s", catch_up="all")
    elif origin == "settings":
        table = '[beat.e]\ntask = "t"\nargs = ["x"]\nevery = 10\ncatch_up = "all"\n'
        (here / "sqlqueue.toml").write_text(table)
    else:
        app.schedules.add("e", schedule.task.s("x"), every="10s", catch_up="all")
    beat = schedule.beat()
    look(beat)
    assert schedule.row("e").origin == origin
    assert app.schedules.pause("e") is True
    assert app.schedules.pause("e") is False
    clock.advance(60)
    beat.turn()  # has not looked, and is told by the file
    assert look(beat) == math.inf
    assert look(schedule.beat()) == math.inf
    assert app.schedules.resume("e") is True
    assert app.schedules.resume("e") is False
    clock.advance(1)
    for each in (beat, schedule.beat()):
        assert look(each) == 9.0
    clock.advance(9)
    look(beat)
    assert schedule.enqueued == ["x", "x"]


@pytest.mark.parametrize("origin", ["code", "file"])
def test_a_one_off_that_was_due_during_a_pause_is_over(clock, app, schedule, origin):
    at = "2026-11-22T12:00:30Z"
    if origin == "code":
        app.periodic("e", schedule.task.s("x"), at=at)
    else:
        app.schedules.add("e", schedule.task.s("x"), at=at)
    app.backend.register(name="b", kind="beat")
    beat = schedule.beat(worker_id=app.backend.store.consumers.worker_id)
    look(beat)
    app.schedules.pause("e")
    look(beat)
    clock.advance(60)
    assert app.schedules.resume("e") is True
    [found] = Inspection(app.backend).schedule()
    assert (found.standing, found.row.next_due_ms) == (Standing.OVER, None)
    assert look(beat) == look(schedule.beat()) == math.inf
    assert schedule.enqueued == []


def test_a_tick_that_failed_before_a_pause_is_given_up_too(clock, app, schedule):
    @app.producer(name="p", at="2026-11-22T12:00:00Z")
    def produce(tick):
        raise ValueError("boom")

    beat = schedule.beat()
    beat.turn()
    assert schedule.row().error == "ValueError: boom"
    app.schedules.pause("p")
    app.schedules.resume("p")
    clock.advance(60)
    assert look(beat) == math.inf
    [found] = Inspection(app.backend).schedule()
    assert (found.standing, found.problem) == (Standing.OVER, "")


def test_a_definition_that_cannot_be_read_is_not_over_because_it_was_resumed(clock, app, schedule):
    app.backend.schedules.add(
        "e", description="?", target="t", definition="{", next_due_ms=NOON, actor="me"
    )
    app.schedules.pause("e")
    app.schedules.resume("e")
    assert schedule.row("e").next_due_ms == NOON
    schedule.beat()
    assert "its definition" in schedule.row("e").error


def test_a_producer_that_is_paused_while_it_produces_enqueues_nothing(clock, app, schedule):
    @app.producer(name="p", every="10s")
    def produce(tick):
        app.schedules.pause("p")
        yield schedule.task.s("x")

    beat = schedule.beat()
    beat.turn()
    assert schedule.enqueued == []
    assert schedule.row().paused_at_ms == NOON
    assert beat.turn() == math.inf


def test_names_are_unique_across_the_origins(clock, app, schedule):
    app.periodic("code", schedule.task.s(), every=5)
    app.schedules.add("mine", schedule.task.s(), every=5)
    with pytest.raises(ConfigError, match="'code': the code or the settings have an entry"):
        app.schedules.add("code", schedule.task.s(), every=5)
    with pytest.raises(ConfigError, match=r"'mine': there is one of that name\. Remove it first"):
        app.schedules.add("mine", schedule.task.s(), every=5)


def test_who_does_not_know_the_code_cannot_take_its_names_either(clock, app, schedule, make_app):
    app.periodic("code", schedule.task.s(), every=5)
    schedule.beat()
    stranger = make_app()
    with pytest.raises(ConfigError, match="'code': there is one of that name"):
        stranger.schedules.add("code", Signature("t"), every=5)


def test_an_entry_of_the_code_whose_name_the_file_has_waits_until_that_is_removed(
    clock, app, schedule, events
):
    app.schedules.add("e", schedule.task.s("file"), every="10s")
    app.periodic("e", schedule.task.s("code"), every="10s")
    app.periodic("other", schedule.task.s("other"), every="10s")
    beat = schedule.beat()
    look(beat)
    assert sorted(schedule.enqueued) == ["file", "other"]
    [refused] = events("entry_refused")
    assert (refused["entry"], refused["level"]) == ("e", "error")
    assert "sqlqueue schedule remove e" in refused["error"]
    app.schedules.remove("e")
    clock.advance(10)
    look(beat)
    assert schedule.enqueued[2:] == ["code", "other"]
    assert len(events("entry_refused")) == 1


def test_a_definition_that_cannot_be_read_stops_no_other_entry(clock, app, schedule, events):
    for name in ("broken", "good"):
        app.schedules.add(name, schedule.task.s(name), every="10s")
    write = app.backend.store.database.write
    write(
        lambda c: (
            c.execute(
                "UPDATE schedule SET definition = '{\"every\": -1}' WHERE entry = 'broken'"
            ).rowcount
        )
    )
    look(schedule.beat())
    assert schedule.enqueued == ["good"]
    assert "every = -1 is negative" in schedule.row("broken").error
    assert [one["entry"] for one in events("entry_refused")] == ["broken"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ((Signature("t"), {}), "give one of every=, cron= and at="),
        ((Signature("t"), {"every": 5, "at": "2030-01-01"}), "give one of"),
        ((Signature("t"), {"at": "2026-11-22T11:59:59Z"}), "is over already"),
        ((Signature("t"), {"every": 5, "overlap": "maybe"}), "overlap = 'maybe' is not known"),
        ((Signature("t", (object(),)), {"every": 5}), "args\\[0\\] is a object"),
        ((Signature("t", options={"job_id": "a"}), {"every": 5}), "job_id= would be the same"),
        ((Signature("t", options={"queue": "a,b"}), {"every": 5}), "is no queue name"),
        (("t", {"every": 5}), "'t' is no call"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_written(clock, app, schedule, call, said):
    signature, options = call
    with pytest.raises(ConfigError, match=said):
        app.schedules.add("mine", signature, **options)
    assert app.schedules.list() == []


def test_an_entry_that_is_not_there_is_an_error_with_a_suggestion(clock, app, schedule):
    app.schedules.add("nightly", schedule.task.s(), every=5)
    for act in (app.schedules.pause, app.schedules.resume, app.schedules.remove):
        with pytest.raises(ScheduleNotFound, match="Did you mean 'nightly'") as caught:
            act("nightli")
        assert caught.value.entry == "nightli"


def test_an_entry_of_the_code_that_no_beat_has_described_yet_is_told_from_a_wrong_name(
    clock, app, schedule
):
    app.periodic("code", schedule.task.s(), every=5)
    for act in (app.schedules.pause, app.schedules.resume, app.schedules.remove):
        with pytest.raises(ScheduleNotFound, match="no beat has described it yet: start one"):
            act("code")
    schedule.beat()
    assert app.schedules.pause("code") is True


def test_an_entry_that_a_beat_has_in_its_code_is_not_removed(clock, app, schedule):
    app.periodic("code", schedule.task.s(), every=5)
    backend = app.backend
    schedule.beat(worker_id=backend.register(name="b", kind="beat"))
    with pytest.raises(ConfigError, match="in the code or the settings of a running beat"):
        app.schedules.remove("code")
    backend.leave()
    app.schedules.remove("code")


def test_a_broker_without_a_store_has_no_schedule(make_app):
    app = make_app(broker_url="memory://")
    with pytest.raises(NotAvailable):
        app.schedules.list()


# --- once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lives_in", ["code", "file"])
@pytest.mark.parametrize("policy", ["one", "all", "skip"])
def test_a_one_off_that_was_missed_is_caught_up_by_its_policy_and_is_over(
    clock, app, schedule, lives_in, policy
):
    options, ran = {"at": "2026-11-22T13:00:00Z", "catch_up": policy}, policy != "skip"
    if lives_in == "code":
        app.periodic("e", schedule.task.s("x"), **options)
        schedule.beat()  # has seen it, and is gone
    else:
        app.schedules.add("e", schedule.task.s("x"), **options)
    clock.advance(2 * HOUR_S)
    for _ in range(2):
        assert look(schedule.beat()) == math.inf
    assert schedule.enqueued == (["x"] if ran else [])
    row = schedule.row("e")
    assert (row.next_due_ms, row.ticks) == (None, int(ran))
    # Also after its tick was pruned, which happens after a month.
    clock.advance(60 * DAY_S)
    while (turn := app.backend.store.housekeeping.turn(Policy(0, 0, 0))).pause_s < 30:
        clock.advance(turn.pause_s)
    look(schedule.beat())
    assert schedule.enqueued == (["x"] if ran else [])


def test_a_one_off_runs_at_its_moment_once_though_two_beats_wait_for_it(clock, app, schedule):
    app.schedules.add(
        "e", schedule.task.s("x"), at=datetime(2026, 11, 22, 12, 5, tzinfo=timezone.utc)
    )
    beats = [schedule.beat(), schedule.beat()]
    assert [look(beat) for beat in beats] == [300.0, 300.0]
    clock.advance(300)
    assert [look(beat) for beat in beats] == [math.inf, math.inf]
    assert schedule.enqueued == ["x"]


def test_a_one_off_of_the_code_with_a_new_time_runs_again(clock, here, make_app):
    (here / "sqlqueue.toml").write_text('[beat.e]\ntask = "t"\nat = 2026-11-22T12:00:05Z\n')
    from sqlqueue.beat.ticking import Beat

    first = make_app()
    beat = Beat(first, name="b")
    clock.advance(5)
    beat.turn()
    text = '[beat.e]\ntask = "t"\nat = 2026-11-22T13:00:20\ntimezone = "Europe/Berlin"\n'
    (here / "sqlqueue.toml").write_text(text)
    again = make_app()
    beat = Beat(again, name="b")
    assert beat.turn() == 15.0
    clock.advance(15)
    beat.turn()
    assert [row.ticks for row in again.schedules.list()] == [2]


def test_a_one_off_that_ran_too_early_by_a_wrong_clock_does_not_run_again(clock, app, schedule):
    app.schedules.add("e", schedule.task.s("x"), at="2026-11-29T12:00:00Z")
    beat = schedule.beat()
    look(beat)
    clock.jump_wall(10 * DAY_S)
    look(beat)
    clock.jump_wall(-10 * DAY_S)
    for _ in range(9):
        look(beat)
        clock.advance(DAY_S)
    look(schedule.beat())
    assert schedule.enqueued == ["x"]


# --- jitter -----------------------------------------------------------------------------------------


def test_jitter_makes_jobs_due_later_and_ticks_not(clock, app, schedule):
    app.periodic("e", schedule.task.s("x"), every="1m", jitter="30s")
    beats = [schedule.beat(), schedule.beat()]
    for _ in range(20):
        for beat in random.Random(1).sample(beats, k=2):
            assert beat.turn() == 60.0
        clock.advance(60)
    entry = app.entries["e"]
    rows = app.backend.jobs(JobFilter(), limit=100)[::-1]
    due = [NOON + 60_000 * n + entry.delay_ms(NOON + 60_000 * n) for n in range(20)]
    assert [row.due_at_ms for row in rows] == due
    assert all(row.state is State.SCHEDULED for row in rows)
    assert len({at % 60_000 for at in due}) > 15


def test_jitter_moves_a_calls_own_times_along(clock, app, schedule):
    from sqlqueue.beat.producers import publications

    later = datetime(2026, 11, 22, 14, tzinfo=timezone.utc)

    def produce(tick):
        yield Signature("t", options={"eta": later, "expires": later})
        yield Signature("t", options={"countdown": 600, "expires": 900})
        yield Signature("t")

    app.producer(name="e", every="1m", jitter="1h")(produce)
    entry = app.entries["e"]
    moved_s = entry.delay_ms(NOON) / 1000
    assert moved_s > 1
    found = [one.envelope.headers for one in publications(app, entry, Tick("e", NOON))]
    etas = [ms(one["eta"].replace("Z", "+00:00")) for one in found]
    at = ms(later.isoformat())
    now = clock.wall_ms()
    assert etas[0] == at + moved_s * 1000
    assert abs(etas[1] - now - (600 + moved_s) * 1000) < 20_000
    assert etas[2] == NOON + moved_s * 1000
    assert ms(found[0]["expires"].replace("Z", "+00:00")) == at + moved_s * 1000
    assert (
        abs(ms(found[1]["expires"].replace("Z", "+00:00")) - now - (900 + moved_s) * 1000) < 20_000
    )


# --- overlap ----------------------------------------------------------------------------------------


def finish_one(app):
    backend = app.backend
    if not backend.store.consumers.is_registered:
        backend.register(name="w", kind="client")
    [taken], _ = backend.claim(["default"], 1, [])
    backend.settle([(taken, Outcome.done("null"))])


@pytest.mark.parametrize("is_producer", [False, True])
def test_an_entry_that_must_not_overlap_waits_for_its_last_jobs(
    clock, app, schedule, events, is_producer
):
    if is_producer:
        schedule.producer("e", every="10s", overlap="skip")
    else:
        app.periodic("e", schedule.task.s("x"), every="10s", overlap="skip")
    beats = [schedule.beat(), schedule.beat()]
    for number in range(6):
        for beat in beats:
            assert beat.turn() == 10.0
        if number == 3:
            finish_one(app)
        clock.advance(10)
    assert len(schedule.enqueued) == 2
    assert [one["why"] for one in events("tick_skipped")] == ["overlap"] * 4
    rows = app.backend.store.database.read(
        lambda c: c.execute("SELECT due_ms, skipped FROM tick ORDER BY due_ms").fetchall()
    )
    skipped = [None, "overlap", "overlap", "overlap", None, "overlap"]
    assert rows == [(NOON + 10_000 * n, why) for n, why in enumerate(skipped)]
    if is_producer:  # nothing was produced in vain: files without jobs would be left
        assert [due for _, due in schedule.produced] == [NOON, NOON + 40_000]


def test_a_tick_that_fell_due_while_its_producer_ran_is_skipped_when_it_overlaps(
    clock, app, schedule
):
    from sqlqueue.beat.ticking import Beat
    from tests.support import wait_until

    schedule.producer("e", every="10s", overlap="skip")
    slow, quick = schedule.beat(kind=Beat), schedule.beat()
    slow.turn()  # asked: nothing hinders
    quick.turn()  # and now something does
    wait_until(lambda: (slow.collect(), not slow.is_producing)[1])
    assert schedule.enqueued == [NOON]
    clock.advance(10)
    slow.turn()
    assert not slow.is_producing
    assert schedule.row("e").last_skipped == "overlap"


# --- as operators see it ----------------------------------------------------------------------------


def test_how_an_entry_stands_is_told_from_the_file_alone(clock, app, schedule, make_app):
    app.periodic("code", schedule.task.s(), cron="30 2 * * *", timezone="Europe/Berlin")
    app.periodic("gone", schedule.task.s(), every="10s")
    app.schedules.add("once", schedule.task.s(), at="2026-11-22T12:00:01Z")
    app.schedules.add("rests", schedule.task.s(), every="10s")
    app.schedules.pause("rests")
    look(schedule.beat())

    def standing():
        stranger = make_app()
        found = Inspection(stranger.backend).schedule()
        return {one.row.entry: one.standing for one in found}, {one.row.entry: one for one in found}

    none = Standing.NO_BEAT
    assert standing()[0] == {
        "code": none,
        "gone": none,
        "once": none,
        "rests": Standing.PAUSED,
    }
    del app._entries["gone"]
    app.backend.register(name="b", kind="beat")
    clock.advance(2)
    look(schedule.beat(worker_id=app.backend.store.consumers.worker_id))
    states, found = standing()
    assert states == {
        "code": Standing.RUNNING,
        "gone": Standing.ORPHANED,
        "once": Standing.OVER,
        "rests": Standing.PAUSED,
    }
    assert found["once"].late_s == 1.0
    assert found["gone"].problem == "not in any running beat's application"
    code = found["code"]
    assert code.zone_name == "Europe/Berlin"
    due = code.next_ms(3, now_ms=clock.wall)
    assert [f"{code.local(at):%m-%d %H:%M %Z}" for at in due] == [
        "11-23 02:30 CET",
        "11-24 02:30 CET",
        "11-25 02:30 CET",
    ]
    assert found["once"].next_ms(3, now_ms=clock.wall) == []
    app.backend.schedules.set_error("code", "boom")
    assert standing()[0]["code"] is Standing.FAILING


def test_what_operators_did_is_audited(clock, app, schedule):
    app.schedules.add("e", schedule.task.s(1), every=5, actor="ann")
    app.schedules.pause("e", actor="ann", reason="a fair")
    app.schedules.remove("e")
    rows = app.backend.store.database.read(
        lambda c: c.execute("SELECT actor, action, reason, after FROM audit ORDER BY id").fetchall()
    )
    assert [row[1] for row in rows] == ["schedule_add", "schedule_pause", "schedule_remove"]
    assert rows[0][0] == "ann"
    assert json.loads(json.loads(rows[0][3])["definition"])["args"] == [1]
    assert rows[1][2] == "a fair"
    assert rows[2][0].endswith(" via python")
