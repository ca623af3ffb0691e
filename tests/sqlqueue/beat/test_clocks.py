"""Wall clocks that jump: no tick is doubled, and none is silenced."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.sqlqueue.beat.conftest import NOON, ms

HOUR_S, DAY_S = 3600, 86_400


def ticks(app, entry="e"):
    return [
        due
        for (due,) in app.backend.store.database.read(
            lambda c: c.execute(
                "SELECT due_ms FROM tick WHERE entry = ? ORDER BY at_ms, due_ms", (entry,)
            ).fetchall()
        )
    ]


def beat_for(beats, clock, seconds, step_s):
    for _ in range(int(seconds / step_s)):
        for beat in beats:
            beat.turn()
        clock.advance(step_s)


@pytest.mark.parametrize(
    ("when", "is_restarted"),
    itertools.product([{"every": "10m"}, {"cron": "*/10 * * * *"}], [False, True]),
)
def test_what_follows_time_goes_on_at_once_when_the_clock_is_set_back(
    clock, app, schedule, events, when, is_restarted
):
    app.periodic("e", schedule.task.s(), **when)
    beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, 6 * HOUR_S, 600)
    assert len(schedule.enqueued_ids) == 36
    clock.jump_wall(-3 * HOUR_S)
    if is_restarted:
        beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, 3 * HOUR_S, 600)
    # For the three hours that come again, too: a job each ten minutes of real time. What is due at
    # the very moment they begin has been.
    assert len(schedule.enqueued_ids) == 36 + 17
    assert {one["entry"] for one in events("ticks_forgotten")} == {"e"}
    if not is_restarted:
        assert {one["by_s"] for one in events("clock_jumped")} == {-3.0 * HOUR_S}


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_set_back_by_half_an_hour_silences_no_interval(
    clock, app, schedule, events, is_restarted
):
    app.periodic("e", schedule.task.s(), every="1m")
    app.periodic("hourly", schedule.task.s(), every="1h")
    beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, HOUR_S + 60, 60)
    assert len(ticks(app)) == 61
    clock.jump_wall(-1800)
    if is_restarted:
        beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, 1800, 60)
    # One for each minute that has passed. What is due at the moment of the jump has been.
    assert len(schedule.enqueued_ids) == 61 + 29 + len(ticks(app, "hourly"))
    assert len(ticks(app, "hourly")) == 2  # not a third time, though it is one o'clock again
    assert {one["entry"] for one in events("ticks_forgotten")} == {"e"}


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_time_of_day_that_has_been_does_not_come_again_the_same_day(
    clock, app, schedule, is_restarted
):
    app.periodic("e", schedule.task.s(), cron="0 14 * * *")
    beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, 3 * HOUR_S, 600)
    clock.jump_wall(-2.5 * HOUR_S)  # 12:30
    if is_restarted:
        beats = [schedule.beat(), schedule.beat()]
    beat_for(beats, clock, 3 * DAY_S, 600)
    day = DAY_S * 1000
    first = ms("2026-11-22T14:00:00+00:00")
    assert ticks(app) == [first, first + day, first + 2 * day, first + 3 * day][: len(ticks(app))]
    assert len(ticks(app)) == 3


@pytest.mark.parametrize("years", [10, 300])
def test_a_calendar_that_was_wrong_for_a_while_leaves_no_hole(clock, app, schedule, years):
    app.periodic("e", schedule.task.s(), cron="0 14 * * *")
    beat = schedule.beat()
    beat_for([beat], clock, DAY_S, HOUR_S)
    clock.jump_wall(years * 365 * DAY_S)
    beat_for([beat], clock, DAY_S, HOUR_S)
    clock.jump_wall(-years * 365 * DAY_S)
    beat_for([beat, schedule.beat()], clock, 2 * DAY_S, HOUR_S)
    first = ms("2026-11-22T14:00:00+00:00")
    assert [due for due in ticks(app) if due < NOON + 10 * DAY_S * 1000] == [
        first + n * DAY_S * 1000
        for n in range(4)  # day 1 was spent in the future, and is caught up
    ]


@pytest.mark.parametrize(
    ("options", "caught_up"),
    [({}, 1), ({"catch_up": "all"}, 100), ({"catch_up": "all(7)"}, 7), ({"catch_up": "skip"}, 1)],
)
def test_a_jump_of_ten_years_or_a_long_sleep_enqueues_a_bounded_number(
    clock, app, schedule, events, options, caught_up
):
    app.periodic("e", schedule.task.s(), every="1m", **options)
    beat = schedule.beat()
    beat.turn()
    clock.jump_wall(10 * 365 * DAY_S)
    for _ in range(3):
        beat.turn()
    assert len(ticks(app)) == 1 + caught_up
    assert ticks(app)[-1] == clock.wall
    assert [one["by_s"] for one in events("clock_jumped")] == [10.0 * 365 * DAY_S]


def test_small_steps_back_and_forth_double_nothing(clock, app, schedule):
    app.periodic("e", schedule.task.s(), every="1s", catch_up="all")
    beats = [schedule.beat(), schedule.beat()]
    for number in range(60):
        for beat in beats:
            beat.turn()
        clock.advance(1)
        clock.jump_wall((0.4, -0.9, 0.3, -0.2, 0.5, -0.1)[number % 6])
    due = ticks(app)
    assert due == list(range(NOON, due[-1] + 1, 1000))


def test_the_clocks_of_a_zone_that_change_are_no_jump(clock, app, schedule, events):
    clock.wall = ms("2026-10-25T00:00:00+00:00")
    app.periodic("e", schedule.task.s(), cron="30 2 * * *", timezone="Europe/Berlin")
    beat = schedule.beat()
    assert beat.turn() == 1800.0
    clock.advance(1800)
    assert beat.turn() == 25 * 3600 + 0.0
    assert math.isfinite(beat.turn())
    assert events("clock_jumped") == []
