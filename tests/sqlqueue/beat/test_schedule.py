import itertools
import time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlqueue.beat import definition
from sqlqueue.beat.schedule import (
    Cron,
    Entry,
    Interval,
    Once,
    Tick,
    crontab,
    due_ticks,
    forgotten_after_ms,
    manner,
    when,
)
from sqlqueue.errors import ConfigError
from sqlqueue.text import escaped

BERLIN = ZoneInfo("Europe/Berlin")
DAY_MS = 86_400_000


def ms(iso):
    return round(datetime.fromisoformat(iso).timestamp() * 1000)


def in_utc(ticks):
    return [f"{datetime.fromtimestamp(t / 1000, timezone.utc):%m-%d %H:%M}" for t in ticks]


def entry(schedule, **options):
    return Entry("an entry", schedule, signature="a call", **options)


# --- intervals ------------------------------------------------------------------------------------


def test_interval_ticks_are_multiples_since_the_epoch_so_that_beats_agree():
    every = Interval(5000)
    assert every.next_after(0) == 5000
    assert every.next_after(4999) == 5000
    assert every.next_after(5000) == 10_000
    assert every.next_after(-1) == 0


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(-(10**14), 10**14), st.integers(0, 10**13))
def test_the_newest_ticks_of_an_interval_are_those_that_next_after_yields(every, after, length):
    schedule = Interval(every)
    newest = schedule.newest_between(after, after + length, limit=5)
    assert all(after < tick <= after + length for tick in newest)
    for tick, following in itertools.pairwise(newest):
        assert schedule.next_after(tick) == following
    if newest:
        assert schedule.next_after(newest[-1]) > after + length
    else:
        assert schedule.next_after(after) > after + length


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_an_interval_below_a_millisecond_is_refused(bad):
    with pytest.raises(ConfigError, match="give a millisecond or more"):
        Interval(bad)


# --- cron and daylight saving time ----------------------------------------------------------------


def ticks_between(cron, begin, end):
    return in_utc(cron.newest_between(ms(begin), ms(end), limit=1000))


def test_a_fixed_time_in_the_gap_moves_to_its_end_and_is_not_lost():
    # On 2026-03-29 Berlin's clocks go from 02:00 (01:00 UTC) to 03:00.
    ticks = ticks_between(
        Cron("30 2 * * *", "Europe/Berlin"), "2026-03-28T00:00+00:00", "2026-03-31T00:00+00:00"
    )
    assert ticks == ["03-28 01:30", "03-29 01:00", "03-30 00:30"]


def test_two_fixed_times_in_one_gap_are_one_tick():
    ticks = ticks_between(
        Cron("10,50 2 * * *", "Europe/Berlin"), "2026-03-29T00:00+00:00", "2026-03-30T12:00+00:00"
    )
    assert ticks == ["03-29 01:00", "03-30 00:10", "03-30 00:50"]


def test_a_fixed_time_in_the_fold_comes_once():
    # On 2026-10-25 Berlin's clocks go from 03:00 (01:00 UTC) back to 02:00.
    cron = Cron("30 2 * * *", "Europe/Berlin")
    ticks = ticks_between(cron, "2026-10-24T00:00+00:00", "2026-10-27T00:00+00:00")
    assert ticks == ["10-24 00:30", "10-25 00:30", "10-26 01:30"]
    # Also when a beat starts, or asks again, in the second pass of that hour.
    assert in_utc([cron.next_after(ms("2026-10-25T01:15+00:00"))]) == ["10-26 01:30"]
    assert in_utc([cron.next_after(ms("2026-10-25T00:30+00:00"))]) == ["10-26 01:30"]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_every_five_minutes_go_on_evenly_through_gap_and_fold(day):
    begin = ms(f"{day}T00:00+00:00")
    ticks = Cron("*/5 * * * *", "Europe/Berlin").newest_between(begin, begin + DAY_MS, limit=1000)
    assert ticks == list(range(begin + 300_000, begin + DAY_MS + 1, 300_000))


def test_an_hourly_tick_comes_25_times_on_the_long_day_and_23_times_on_the_short_one():
    hourly = Cron("0 * * * *", "Europe/Berlin")
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25)):
        midnight = datetime.fromisoformat(day).replace(tzinfo=BERLIN)
        begin = round(midnight.timestamp() * 1000) - 1
        next_midnight = (midnight + timedelta(days=1)).timestamp()
        ticks = hourly.newest_between(begin, round(next_midnight * 1000) - 1, limit=100)
        assert len(ticks) == hours


def test_minutes_of_a_fixed_hour_follow_the_clock_and_so_miss_the_gap_and_repeat_in_the_fold():
    cron = Cron("*/30 2 * * *", "Europe/Berlin")
    assert ticks_between(cron, "2026-03-29T00:00+00:00", "2026-03-30T00:20+00:00") == [
        "03-30 00:00"
    ]
    assert ticks_between(cron, "2026-10-25T00:00+00:00", "2026-10-25T23:00+00:00") == [
        "10-25 00:30",
        "10-25 01:00",
        "10-25 01:30",
    ]


def test_a_fold_of_half_an_hour_loses_no_tick():
    # Lord Howe, 2026-04-05: at 02:00 (+11) it is 01:30 (+10:30) again.
    cron = Cron("*/10 2 * * *", "Australia/Lord_Howe")
    ticks = ticks_between(cron, "2026-04-04T12:00+00:00", "2026-04-05T12:00+00:00")
    assert ticks == [f"04-04 {at}" for at in ("15:30 15:40 15:50 16:00 16:10 16:20".split())]


LEAPS = [
    ("UTC", "2026-03-29"),
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-04"),  # half an hour
    ("Australia/Lord_Howe", "2026-10-03"),
    ("America/Santiago", "2026-09-06"),  # a gap at midnight
]
MINUTES = {"*": range(60), "*/7": range(0, 60, 7), "0": [0], "5,35": [5, 35], "59": [59]}
HOURS = {"*": range(24), "*/2": range(0, 24, 2), "0": [0], "1,2": [1, 2], "3": [3]}


def ticks_by_the_policys_letter(minute, hour, zone, *, begin, end):
    """Look at each minute there is, and at each minute a clock could show."""
    ticks = set()
    if "*" in (minute[0], hour[0]):
        for tick in range(begin + 60_000, end + 1, 60_000):
            wall = datetime.fromtimestamp(tick / 1000, zone)
            if wall.minute in MINUTES[minute] and wall.hour in HOURS[hour]:
                ticks.add(tick)
        return sorted(ticks)
    first = datetime.fromtimestamp(begin / 1000, timezone.utc).date() - timedelta(days=1)
    for day, h, m in itertools.product(range(6), HOURS[hour], MINUTES[minute]):
        wall = datetime(first.year, first.month, first.day, h, m) + timedelta(days=day)  # noqa: DTZ001
        while not (shown := exists(wall, zone)):
            wall += timedelta(minutes=1)
        ticks.add(shown)
    return sorted(tick for tick in ticks if begin < tick <= end)


def exists(wall, zone):
    aware = wall.replace(tzinfo=zone)
    back = aware.astimezone(timezone.utc).astimezone(zone).replace(tzinfo=None)
    return round(aware.timestamp() * 1000) if back == wall else None


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([*MINUTES]), st.sampled_from([*HOURS]), st.sampled_from(LEAPS), st.data())
def test_ticks_follow_the_policy_whoever_asks_and_whenever(minute, hour, leap, data):
    zone, day = leap
    begin = ms(f"{day}T00:00+00:00") - DAY_MS
    end = begin + 3 * DAY_MS
    expected = ticks_by_the_policys_letter(minute, hour, ZoneInfo(zone), begin=begin, end=end)
    cron = Cron(f"{minute} {hour} * * *", zone)
    assert cron.newest_between(begin, end, limit=10_000) == expected
    assert cron.newest_between(begin, end, limit=3) == expected[-3:]
    for _ in range(5):
        asked_at = data.draw(st.integers(begin, expected[-1] - 1))
        assert cron.next_after(asked_at) == next(tick for tick in expected if tick > asked_at)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_year_of_minutes_missed_is_caught_up_in_an_instant(zone):
    now = ms("2026-11-22T05:11:07.123+00:00")
    every_minute = Cron("* * * * *", zone)
    before_s = time.perf_counter()
    missed = due_ticks(
        entry(every_minute, catch_up="all"), last_due_ms=now - 365 * DAY_MS, now_ms=now
    )
    took_s = time.perf_counter() - before_s
    assert len(missed) == 100
    assert missed[-1] == ms("2026-11-22T05:11+00:00")
    print(f"100 of a year of minutely ticks ({zone}): {took_s * 1000:.1f} ms")
    assert took_s < 0.5


def test_rare_ticks_are_found_and_each_leap_day_once():
    leap_day = Cron("0 12 29 2 *", "Europe/Berlin")
    ticks = leap_day.newest_between(
        ms("2020-01-01T00:00+00:00"), ms("2040-01-01T00:00+00:00"), limit=9
    )
    assert [datetime.fromtimestamp(t / 1000, BERLIN).year for t in ticks] == [
        2020,
        2024,
        2028,
        2032,
        2036,
    ]


def test_beyond_the_calendar_there_is_no_tick():
    assert Cron("* * * * *").next_after(ms("9999-12-31T23:59:30+00:00")) is None


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "* * * *",
        "* * * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "*/0 * * * *",
        "0 0 30 2 *",
        "@daily",
        "a b c d e",
        "5-1 * * * *",
        "0 0 * * 1#2/3",
        "٣ * * * *",
        "9" * 5000 + " * * * *",
        "1," * 5000 + "1 * * * *",
        "\x1b[2J * * * *",
        None,
        5,
    ],
)
def test_a_bad_expression_is_a_config_error_that_says_what_to_write(bad):
    with pytest.raises(ConfigError, match="cron = ") as caught:
        Cron(bad)
    assert escaped(str(caught.value)) == str(caught.value)
    assert any(hint in str(caught.value) for hint in ("Write five fields", "Correct its day"))


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789*/,-#LW MONSUN", max_size=20) | st.text(max_size=30))
def test_any_expression_works_or_is_a_config_error(text):
    try:
        cron = Cron(text)
    except ConfigError:
        return
    assert cron.next_after(0) > 0


def test_a_bad_time_zone_is_a_config_error():
    with pytest.raises(ConfigError, match="Did you mean 'Europe/Berlin'"):
        Cron("* * * * *", "Europe/Berln")


# --- Celery's keywords ----------------------------------------------------------------------------


def test_crontab_takes_celerys_keywords():
    assert crontab() == Cron("* * * * *")
    assert crontab(0, "*/3") == Cron("0 */3 * * *")
    assert crontab(minute={30}, hour=[1, 2], day_of_week="mon-fri") == Cron("30 1,2 * * mon-fri")
    assert crontab(
        minute=0, hour=0, day_of_month="1", month_of_year=(1, 7), timezone="CET"
    ) == Cron("0 0 1 1,7 *", "CET")


def test_crontab_refuses_what_celery_would_read_otherwise():
    with pytest.raises(ConfigError, match="'both' to Celery"):
        crontab(day_of_week="mon", day_of_month="1-7")


@pytest.mark.parametrize("bad", [{"minute": "1 2"}, {"minute": ""}, {"hour": 24}, {"hour": []}])
def test_crontab_refuses_fields_that_are_none(bad):
    with pytest.raises(ConfigError):
        crontab(**bad)


# --- entries and catching up ----------------------------------------------------------------------


def test_a_schedule_is_given_as_an_interval_or_as_a_cron_expression():
    assert when(every="5s") == Interval(5000)
    assert when(every=0.25) == Interval(250)
    assert when(cron="0 3 * * *", timezone="Europe/Berlin") == Cron("0 3 * * *", "Europe/Berlin")
    assert when(cron=crontab(minute=1)) == Cron("1 * * * *", "UTC")


@pytest.mark.parametrize(
    "bad",
    [{}, {"every": 1, "cron": "* * * * *"}, {"every": "soon"}, {"every": 0}, {"cron": "x"}],
)
def test_a_schedule_that_says_nothing_or_two_things_is_refused(bad):
    with pytest.raises(ConfigError, match=r"^beat\.nightly: "):
        when(**bad, name="beat.nightly")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("one", [60_000]), ("skip", []), ("all", [20_000, 30_000, 40_000, 50_000, 60_000])],
)
def test_a_beat_that_was_down_follows_the_entrys_catch_up_policy(policy, expected):
    down = {"last_due_ms": 10_000, "now_ms": 69_999, "max_late_ms": 5000}
    assert due_ticks(entry(Interval(10_000), catch_up=policy), **down) == expected


@pytest.mark.parametrize("policy", ["one", "skip", "all"])
def test_a_tick_on_time_or_a_little_late_is_due_under_every_policy(policy):
    on_time = entry(Interval(10_000), catch_up=policy)
    for now_ms in (20_000, 20_001, 25_000):
        assert due_ticks(on_time, last_due_ms=10_000, now_ms=now_ms, max_late_ms=5000) == [20_000]
    assert due_ticks(on_time, last_due_ms=20_000, now_ms=25_000, max_late_ms=5000) == []


def test_catching_up_keeps_the_newest_up_to_the_limit():
    every_second = entry(Interval(1000), catch_up="all", catch_up_limit=3)
    assert due_ticks(every_second, last_due_ms=0, now_ms=10**12) == [
        10**12 - 2000,
        10**12 - 1000,
        10**12,
    ]


def test_a_clock_that_went_back_makes_nothing_due():
    for policy in ("one", "skip", "all"):
        due = due_ticks(entry(Interval(10), catch_up=policy), last_due_ms=10**12, now_ms=10**9)
        assert due == []


@pytest.mark.parametrize("schedule", [Interval(7000), Cron("*/5 * * * *", "Europe/Berlin")])
def test_a_beat_that_wakes_when_told_enqueues_each_tick_once(schedule):
    with freeze_time("2026-10-25T00:00:00.250Z") as now:
        last_due_ms, enqueued = ms("2026-10-25T00:00:00+00:00"), []
        end_ms = last_due_ms + 7_200_000
        while (now_ms := time.time_ns() // 1_000_000) <= end_ms + 1000:
            ticks = due_ticks(
                entry(schedule, catch_up="skip"), last_due_ms=last_due_ms, now_ms=now_ms
            )
            enqueued += ticks
            last_due_ms = now_ms
            now.move_to(
                datetime.fromtimestamp(schedule.next_after(now_ms) / 1000 + 0.003, timezone.utc)
            )
        begin_ms = ms("2026-10-25T00:00:00+00:00")
        assert enqueued == schedule.newest_between(begin_ms, end_ms, limit=10_000)


def test_a_tick_tells_its_due_time_in_utc():
    tick = Tick("producer-1", ms("2026-11-22T05:11:05.123+00:00"))
    assert tick.due == datetime(2026, 11, 22, 5, 11, 5, 123_000, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 300},
        {"name": None},
        {"signature": None},
        {"produce": list},
    ],
)
def test_an_entry_that_cannot_work_is_refused(bad):
    with pytest.raises(ConfigError):
        Entry(**{"name": "e", "when": Interval(1000), "signature": "call", **bad})


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"catch_up": "some"}, "catch_up = 'some' is not known"),
        ({"catch_up": "all()"}, "catch_up = 'all\\(\\)' is not known"),
        ({"catch_up": "all(0)"}, "catch_up_limit = 0"),
        ({"catch_up": "all(5)", "catch_up_limit": 5}, "has its limit already"),
        ({"catch_up_limit": 0}, "catch_up_limit = 0"),
        ({"catch_up_limit": True}, "catch_up_limit = True"),
        ({"catch_up_limit": 10**9}, "Give a whole number from 1 to 100000"),
        ({"overlap": "queue"}, "overlap = 'queue' is not known"),
        ({"overlap": None}, "overlap = None is not known"),
        ({"jitter": "soon"}, "jitter = 'soon' is no duration"),
        ({"jitter": -1}, "jitter = -1 is negative"),
    ],
)
def test_a_manner_that_makes_no_sense_is_refused_with_its_name(bad, said):
    with pytest.raises(ConfigError, match=f"^mine: .*{said}"):
        manner(**bad, name="mine")


def test_all_may_say_its_limit_in_one_word():
    assert manner(catch_up="all(20)") == manner(catch_up="all", catch_up_limit=20)
    assert manner(catch_up="all")["catch_up_limit"] == 100


# --- once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "zone", "instant"),
    [
        ("2027-03-01T08:00:00+01:00", "UTC", "2027-03-01T07:00:00+00:00"),
        ("2027-03-01T08:00:00Z", "Europe/Berlin", "2027-03-01T08:00:00+00:00"),
        ("2027-03-01 08:00", "Europe/Berlin", "2027-03-01T07:00:00+00:00"),
        ("2027-03-28T02:30:00", "Europe/Berlin", "2027-03-28T01:00:00+00:00"),  # the gap's end
        ("2026-10-25T02:30:00", "Europe/Berlin", "2026-10-25T00:30:00+00:00"),  # its first pass
        ("2011-12-30T12:00:00", "Pacific/Apia", "2011-12-30T10:00:00+00:00"),  # a day there was not
        (datetime(2027, 3, 1, 8, tzinfo=BERLIN), "UTC", "2027-03-01T07:00:00+00:00"),
    ],
)
def test_a_moment_is_one_instant(at, zone, instant):
    once = when(at=at, timezone=zone)
    assert once == Once(ms(instant), zone)
    assert once.next_after(ms(instant) - 1) == ms(instant)
    assert once.next_after(ms(instant)) is None
    assert once.newest_between(ms(instant) - 1, ms(instant), limit=1) == [ms(instant)]
    assert once.newest_between(ms(instant), ms(instant) + DAY_MS, limit=1) == []


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("tomorrow", "is no ISO time"),
        ("", "is no ISO time"),
        (5, "is no time"),
        (datetime(2027, 1, 1), "has no time zone"),  # noqa: DTZ001 - the point
        ("1969-12-31T00:00:00Z", "is in no year from 1970"),
        ("9999-06-01T00:00:00Z", "is in no year from 1970"),
        ("0001-01-01T00:00:00+14:00", "is in no year from 1970"),
        ("9999-12-31T23:59:59-12:00", "is in no year from 1970"),
    ],
)
def test_a_moment_that_is_none_is_refused(at, said):
    with pytest.raises(ConfigError, match=f"^mine: at = .*{said}"):
        when(at=at, name="mine")


def test_a_cron_that_names_no_zone_goes_by_that_of_its_entry_and_else_by_the_default():
    for cron in ("0 3 * * *", Cron("0 3 * * *"), crontab(minute=0, hour=3)):
        assert when(cron=cron, zone="CET") == Cron("0 3 * * *", "CET")
        assert when(cron=cron, timezone="Asia/Tokyo", zone="CET") == Cron("0 3 * * *", "Asia/Tokyo")
    tokyo = crontab(minute=0, hour=3, timezone="Asia/Tokyo")
    assert when(cron=tokyo, zone="CET") == tokyo
    assert when(cron=tokyo, timezone="Asia/Tokyo", zone="CET") == tokyo


def test_a_zone_that_would_be_ignored_is_refused():
    with pytest.raises(ConfigError, match=r"^mine: .*'CET', but its cron names 'UTC'"):
        when(cron=Cron("0 3 * * *", "UTC"), timezone="CET", name="mine")
    with pytest.raises(ConfigError, match=r"^mine: timezone = 'CET' means nothing to every="):
        when(every="5s", timezone="CET", name="mine")


def test_a_missed_moment_is_caught_up_by_the_policy():
    once = Once(1_000_000)
    assert due_ticks(entry(once), last_due_ms=0, now_ms=10**9) == [1_000_000]
    assert due_ticks(entry(once, catch_up="skip"), last_due_ms=0, now_ms=10**9) == []
    assert due_ticks(entry(once, catch_up="skip"), last_due_ms=0, now_ms=1_004_000) == [1_000_000]
    assert due_ticks(entry(once, catch_up="all"), last_due_ms=1_000_000, now_ms=10**9) == []


# --- jitter ---------------------------------------------------------------------------------------


def test_jitter_is_made_of_entry_and_tick_and_lies_within_its_bound():
    some = entry(Interval(1000), jitter_ms=5000)
    delays = [some.delay_ms(due) for due in range(0, 1_000_000, 1000)]
    assert delays == [some.delay_ms(due) for due in range(0, 1_000_000, 1000)]
    assert 0 <= min(delays) < 100
    assert 4900 < max(delays) <= 5000
    assert 2300 < sum(delays) / len(delays) < 2700
    other = Entry("another", Interval(1000), signature="a call", jitter_ms=5000)
    assert [other.delay_ms(due) for due in range(0, 9000, 1000)] != delays[:9]
    assert entry(Interval(1000)).delay_ms(1000) == 0


# --- a clock that was set back --------------------------------------------------------------------


def test_after_a_clock_was_set_back_only_what_follows_time_goes_on_at_once():
    back_ms = 3_600_001
    assert forgotten_after_ms(Interval(5000), 10**9, back_ms) == 10**9
    assert forgotten_after_ms(Interval(DAY_MS), 10**9, back_ms) == 10**9
    assert forgotten_after_ms(Cron("*/5 * * * *"), 10**9, back_ms) == 10**9
    assert forgotten_after_ms(Cron("0 3 * * *"), 10**9, back_ms) == 10**9 + DAY_MS
    assert forgotten_after_ms(Once(5), 10**9, back_ms) is None


@pytest.mark.parametrize(
    ("when", "back_s", "goes_on"),
    [
        (Interval(5000), 60, False),  # a clock that is mended by so little is not set
        (Interval(5000), 61, True),
        (Interval(600_000), 600, False),
        (Interval(600_000), 601, True),
        (Interval(3_600_000), 1800, False),  # it would come twice in an hour
        (Cron("*/5 * * * *"), 301, True),
        (Cron("*/5 * * * *"), 299, False),
        (Cron("0 3 * * *"), 3600, False),
    ],
)
def test_after_less_than_an_hour_goes_on_what_would_be_silent_for_more_than_its_period(
    when, back_s, goes_on
):
    now_ms = 1_800_000_000_000
    expected = now_ms if goes_on else None
    assert forgotten_after_ms(when, now_ms, back_s * 1000) == expected


# --- as text in the file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Interval(5000), "every 5s"),
        (Interval(1), "every 0.001s"),
        (Interval(86_400_001), "every 86400s"),
        (Cron("0 3 * * MON", "Europe/Berlin"), "0 3 * * MON Europe/Berlin"),
        (Once(1_800_000_000_000), "once at 2027-01-15T08:00:00Z"),
        (Once(1_800_000_000_123), "once at 2027-01-15T08:00:00.123Z"),
        (Once(1_800_000_000_000, "Asia/Tokyo"), "once at 2027-01-15T08:00:00Z"),
    ],
)
def test_an_entry_is_read_back_as_it_was_written(schedule, words):
    call = definition.StoredCall("t", (1, "a"), {"k": [None]}, {"queue": "q", "priority": 3})
    some = entry(schedule, catch_up="all", catch_up_limit=7, jitter_ms=1500, overlap="skip")
    read = definition.read(definition.write(some, call), name="x")
    assert (read.when, read.call) == (schedule, call)
    assert read.manner == {
        "catch_up": "all",
        "catch_up_limit": 7,
        "jitter_ms": 1500,
        "overlap": "skip",
    }
    assert definition.read(definition.write(some), name="x").call is None
    assert definition.in_words(schedule) == words


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ('{"every": 5, "timezone": "CET"}', Interval(5000)),
        ('{"cron": "0 3 * * *"}', Cron("0 3 * * *", "UTC")),
        ('{"at": "2027-01-15T08:00:00Z"}', Once(1_800_000_000_000)),
    ],
)
def test_a_definition_that_was_stored_before_its_zone_counted_is_read_as_then(text, schedule):
    assert definition.read(text, name="x").when == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"every": 5, "cron": "* * * * *"}',
        '{"every": -5}',
        '{"cron": "* * * * *", "timezone": "Mars/Base"}',
        '{"every": 5, "catch_up": "never"}',
        '{"every": 5, "task": 5}',
        '{"every": 5, "task": "t", "args": {}}',
        '{"every": 5, "task": "t", "options": []}',
        '{"every": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_a_definition_that_somebody_wrote_by_hand_wrongly_is_an_error_with_its_name(text):
    with pytest.raises(ConfigError, match=r"^schedule entry 'x'"):
        definition.read(text, name="x")


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_the_ends_of_the_calendar_are_refused_in_every_zone(at, zone):
    with pytest.raises(ConfigError, match="is in no year from 1970"):
        when(at=at, timezone=zone)


@pytest.mark.parametrize("value", [["one"], {"a": 1}, None, 5])
@pytest.mark.parametrize("key", ["catch_up", "overlap"])
def test_a_manner_of_the_wrong_type_is_refused_like_an_unknown_one(key, value):
    with pytest.raises(ConfigError, match=f"mine: {key} = .* is not known. Choose one of"):
        manner(**{key: value}, name="mine")
