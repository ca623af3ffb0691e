"""A year of ticks, each exactly once, as a calendar of another make has them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from sqlqueue.beat.cron import Cron
from sqlqueue.beat.ticking import Beat

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
QUARTER = timedelta(minutes=15)
BEGIN = datetime(2011, 1, 1, tzinfo=timezone.utc)
END = datetime(2012, 1, 1, tzinfo=timezone.utc)
# A summer's hour; the same, elsewhere; half an hour; more than one a year; a day that never was.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
)


def ms(moment):
    return (moment - EPOCH) // timedelta(milliseconds=1)


def quarters(zone):
    """Return every quarter of an hour of the year and a little more, with what the clocks show."""
    local = ZoneInfo(zone)
    moment = BEGIN - timedelta(days=2)
    while moment < END + timedelta(days=2):
        yield moment, moment.astimezone(local).replace(tzinfo=None)
        moment += QUARTER


def of_fixed_time(shown, hour, minute):
    """Once a date: at the first moment at which that date's time is reached, or passed."""
    found, moments = set(), iter(shown)
    moment, wall = next(moments)
    due = wall.replace(hour=hour, minute=minute)
    while due < shown[-1][1]:
        while wall < due:
            moment, wall = next(moments)
        found.add(moment)
        due += timedelta(days=1)
    return found


def of_every_so_many_hours(shown, hours):
    return {moment for moment, wall in shown if wall.minute == 0 and wall.hour % hours == 0}


@pytest.fixture(scope="module")
def shown():
    return {zone: list(quarters(zone)) for zone in ZONES}


def within(moments):
    return sorted(ms(moment) for moment in moments if BEGIN <= moment < END)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("at", [(0, 0), (0, 30), (2, 15), (2, 30), (3, 0), (23, 45)])
def test_a_time_of_day_comes_once_a_date_in_any_zone(shown, zone, at):
    hour, minute = at
    cron = Cron(f"{minute} {hour} * * *", zone)
    found = cron.newest_between(ms(BEGIN) - 1, ms(END) - 1, limit=1000)
    assert found == within(of_fixed_time(shown[zone], hour, minute))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("hours", [1, 2, 3])
def test_hours_follow_the_time_that_passes_in_any_zone(shown, zone, hours):
    cron = Cron(f"0 */{hours} * * *", zone)
    found = cron.newest_between(ms(BEGIN) - 1, ms(END) - 1, limit=10_000)
    assert found == within(of_every_so_many_hours(shown[zone], hours))


def test_two_beats_enqueue_every_tick_of_a_year_exactly_once(clock, make_app, shown):
    app = make_app(durability="process")
    task = app.task(name="t")(lambda: None)
    expected = {}
    for zone in ZONES:
        app.periodic(f"fixed {zone}", task.s(), cron="30 2 * * *", timezone=zone)
        expected[f"fixed {zone}"] = within(of_fixed_time(shown[zone], 2, 30))
    howe = "Australia/Lord_Howe"
    app.periodic("hours", task.s(), cron="0 */12 * * *", timezone=howe)
    expected["hours"] = within(of_every_so_many_hours(shown[howe], 12))
    app.periodic("interval", task.s(), every="5d", catch_up="all")
    expected["interval"] = [at for at in range(0, ms(END), 432_000_000) if at >= ms(BEGIN)]
    app.periodic("once", task.s(), at="2011-07-01T12:34:56Z")
    expected["once"] = [ms(datetime(2011, 7, 1, 12, 34, 56, tzinfo=timezone.utc))]

    clock.wall = ms(BEGIN)
    beats = [Beat(app, name=name) for name in ("a", "b")]
    turns = 0
    while clock.wall < ms(END):
        turns += 1
        order = beats if turns % 2 else beats[::-1]
        pause_s = min([beat.turn() for beat in order])
        clock.advance(min(pause_s, (ms(END) - clock.wall) / 1000))

    rows = app.backend.store.database.read(
        lambda c: c.execute("SELECT entry, due_ms, at_ms, beat, jobs FROM tick").fetchall()
    )
    found = {entry: [] for entry in expected}
    for entry, due_ms, at_ms, _, jobs in rows:
        found[entry].append(due_ms)
        assert (at_ms, jobs) == (due_ms, 1)
    # The last turn stands at the very end of the year, and takes what is due then.
    assert {entry: [at for at in due if at < ms(END)] for entry, due in found.items()} == expected
    assert {beat for _, _, _, beat, _ in rows} == {"a", "b"}
    jobs = app.backend.counts().states
    assert sum(jobs.values()) == len(rows)
    print(f"{len(rows)} ticks in {turns} turns")
