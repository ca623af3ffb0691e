"""The beat: each tick once, however many beats run, die, fail or see their clock jump."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import os
import random
import shutil
import signal
import threading
import time

import pytest

from sqlqueue.beat.service import run_beat
from sqlqueue.beat.ticking import Beat
from sqlqueue.errors import NotAvailable
from sqlqueue_transport.errors import DiskFault
from sqlqueue_transport.reading import JobFilter
from tests.sqlqueue.beat.conftest import NOON, ms
from tests.support import finish, kill, read_line, run_python, wait_until

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


# --- when -----------------------------------------------------------------------------------------


def test_an_interval_ticks_at_its_multiples_to_the_millisecond(clock, schedule):
    schedule.producer(every="5s")
    clock.wall += 1
    beat = schedule.beat()
    assert beat.turn() == 4.999
    clock.advance(4.998)
    assert beat.turn() == 0.001
    assert schedule.enqueued == []
    clock.advance(0.001)
    assert beat.turn() == 5.0
    assert schedule.enqueued == [NOON + 5000]
    assert beat.turn() == 5.0
    assert schedule.enqueued == [NOON + 5000]


def test_a_tick_at_the_very_moment_an_entry_is_first_seen_is_due(clock, schedule):
    schedule.producer(every="5s")
    schedule.beat().turn()
    assert schedule.enqueued == [NOON]


def test_a_cron_entry_is_due_by_the_clocks_of_its_zone(clock, schedule):
    schedule.producer(cron="30 13 * * *", timezone="Europe/Berlin")  # 12:30 UTC in November
    beat = schedule.beat()
    assert beat.turn() == 30 * MINUTE_S
    clock.advance(30 * MINUTE_S)
    beat.turn()
    assert schedule.enqueued == [NOON + 1_800_000]
    assert beat.turn() == DAY_S


def test_a_periodic_call_is_enqueued_with_its_options(clock, app, schedule):
    call = schedule.task.s(7)
    call.options.update(queue="slow", priority=3, countdown=60)
    app.periodic("report", call, every="5s")
    schedule.beat().turn()
    (row,) = app.backend.jobs(JobFilter())
    assert (row.queue, row.priority, row.state.value) == ("slow", 3, "scheduled")
    assert schedule.enqueued == [7]


def test_a_beat_table_of_the_settings_is_beaten_too(clock, here, schedule):
    (here / "sqlqueue.toml").write_text('[beat.x]\ntask = "t"\nargs = ["weekly"]\nevery = 5\n')
    schedule.beat().turn()
    assert schedule.enqueued == ["weekly"]


def test_a_producer_may_yield_many_calls_or_none(clock, app, schedule):
    app.producer(every=5, name="many")(lambda tick: [schedule.task.s(n) for n in range(3)])
    app.producer(every=5, name="none")(lambda tick: [])
    schedule.beat().turn()
    assert schedule.enqueued == [0, 1, 2]
    assert (schedule.row("many").ticks, schedule.row("none").ticks) == (1, 1)


def test_an_application_without_a_schedule_waits_for_what_is_added(clock, app, schedule):
    beat = schedule.beat()
    assert beat.turn() == math.inf
    app.schedules.add("later", schedule.task.s("added"), every="5s")
    assert beat.is_up_to_date() is False
    assert beat.turn() == 5.0
    assert schedule.enqueued == ["added"]


def test_what_operators_see_of_an_entry_is_written_down(clock, app, schedule):
    schedule.producer(every="1m30s")
    app.periodic("c", schedule.task.s(1), cron="0 3 * * *", timezone="Europe/Berlin")
    schedule.beat()
    row = schedule.row()
    assert (row.description, row.target) == ("every 90s", "Schedule.producer.<locals>.produce()")
    assert (row.first_seen_ms, row.next_due_ms, row.error) == (NOON, NOON + 90_000, None)
    row = schedule.row("c")
    assert (row.description, row.target) == ("0 3 * * * Europe/Berlin", "t")
    assert row.next_due_ms == ms("2026-11-23T02:00:00+00:00")


def test_between_two_ticks_a_beat_does_not_touch_the_store(clock, app, schedule):
    schedule.producer(every="5s")
    beat = schedule.beat()
    beat.turn()
    database = app.backend.store.database
    before = database.read_transactions, database.write_transactions
    for _ in range(10):
        clock.advance(0.4)
        beat.turn()
    assert (database.read_transactions, database.write_transactions) == before


# --- a beat that was away -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "missed_s"),
    [
        ({"catch_up": "skip"}, []),
        ({"catch_up": "one"}, [60]),
        ({"catch_up": "all"}, [10, 20, 30, 40, 50, 60]),
        ({"catch_up": "all", "catch_up_limit": 3}, [40, 50, 60]),
    ],
)
def test_what_was_missed_is_caught_up_by_the_entrys_policy(clock, schedule, options, missed_s):
    schedule.producer(every="10s", **options)
    schedule.beat().turn()
    clock.advance(69)  # too late for 60 to count as on time
    schedule.beat().turn()
    assert schedule.enqueued == [NOON, *(NOON + 1000 * each for each in missed_s)]


def test_a_tick_that_is_late_by_more_than_one_sleep_is_skipped(clock, schedule):
    schedule.producer(every="1h", catch_up="skip")
    beat = schedule.beat()
    beat.turn()
    clock.advance(HOUR_S + 5)  # beat_max_interval
    beat.turn()
    assert schedule.enqueued == [NOON, NOON + 3_600_000]
    clock.advance(HOUR_S + 0.001)
    schedule.beat().turn()
    assert schedule.enqueued == [NOON, NOON + 3_600_000]


def test_what_a_policy_left_out_stays_out(clock, schedule):
    schedule.producer(every="5s", catch_up="one")
    beat = schedule.beat()
    beat.turn()
    clock.advance(60)
    for _ in range(3):
        beat.turn()
        schedule.beat().turn()
    assert schedule.enqueued == [NOON, NOON + 60_000]


def test_a_beat_that_starts_anew_does_not_produce_again_what_the_file_has(clock, schedule):
    schedule.producer(every="5s", catch_up="all")
    for _ in range(3):
        schedule.beat().turn()
        clock.advance(5)
    assert [due for _, due in schedule.produced] == [NOON, NOON + 5000, NOON + 10_000]


def test_an_entry_that_is_new_has_missed_nothing(clock, app, schedule):
    schedule.producer(every="5s", catch_up="all")
    schedule.beat().turn()
    clock.advance(60)
    schedule.producer("new", every="5s", catch_up="all")
    schedule.beat().turn()
    assert [due for name, due in schedule.produced if name == "new"] == [NOON + 60_000]


# --- two beats, and dead ones ---------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", ["one", "all"])
def test_two_beats_enqueue_each_tick_once(clock, schedule, catch_up):
    schedule.producer(every="1s", catch_up=catch_up)
    beats = [schedule.beat(), schedule.beat()]
    chance = random.Random(7)
    for _ in range(50):
        clock.advance(1)
        for beat in chance.sample(beats, k=2):
            beat.turn()
    first = 0 if catch_up == "all" else 1  # when the beats began to look, NOON was missed already
    assert schedule.enqueued == [NOON + 1000 * n for n in range(first, 51)]


def test_a_beat_that_dies_between_producing_and_committing_enqueues_once(
    clock, app, schedule, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    schedule.producer(every="5s")
    beat = schedule.beat()
    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "publish", killed)
        with pytest.raises(Killed):
            beat.turn()
    assert schedule.enqueued == []
    schedule.beat().turn()
    # Produced once more, enqueued once.
    assert schedule.produced == [("p", NOON), ("p", NOON)]
    assert schedule.enqueued == [NOON]


def test_the_loser_of_a_race_has_produced_in_vain(clock, schedule):
    schedule.producer(every="5s")
    loser = schedule.beat(kind=Beat, max_ticks=1)
    winner = schedule.beat(max_ticks=1)
    loser.turn()  # asks its producer
    winner.turn()
    wait_until(lambda: (loser.collect(), not loser.is_producing)[1])
    assert schedule.produced == [("p", NOON), ("p", NOON)]
    assert schedule.enqueued == [NOON]
    assert (loser.is_over, winner.is_over) == (False, True)


def test_max_ticks_ends_it_in_the_midst_of_a_turn(clock, app, schedule):
    schedule.producer(every="1s", catch_up="all")
    schedule.beat().turn()
    clock.advance(10)
    beat = schedule.beat(max_ticks=3)
    beat.turn()
    assert beat.is_over
    assert schedule.enqueued == [NOON + 1000 * n for n in range(4)]
    assert schedule.beat(max_ticks=0).is_over


def test_a_store_that_cannot_be_used_loses_no_tick(clock, app, schedule, monkeypatch):
    schedule.producer(every="5s")
    beat = schedule.beat()

    def failing(*_, **__):
        raise DiskFault("no room")

    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "publish", failing)
        for _ in range(2):
            with pytest.raises(DiskFault):
                beat.turn()
    beat.turn()
    assert schedule.enqueued == [NOON]


# --- a producer that fails ------------------------------------------------------------------------


def test_a_producer_that_raises_is_tried_again_with_back_off_and_others_go_on(
    clock, app, schedule, events
):
    faults = [ValueError("no disk"), OSError("still none"), ConnectionError("nor net")]

    @app.producer(name="bad", every="1h")
    def bad(tick):
        schedule.note("bad", tick.due_ms)
        if faults:  # its process lives on, and so does what it remembers
            raise faults.pop(0)
        yield schedule.task.s("bad")

    schedule.producer("good", every="1s")
    beat = schedule.beat()
    tried = []
    for _ in range(9):
        before = schedule.produced.count(("bad", NOON))
        assert beat.turn() <= 1.0
        tried += [clock.wall - NOON] * (schedule.produced.count(("bad", NOON)) - before)
        clock.advance(1)
    # After one second, two, four: and it is the same tick each time.
    assert tried == [0, 1000, 3000, 7000]
    assert schedule.enqueued.count("bad") == 1
    assert len(schedule.enqueued) == 10
    logged = events("producer_failed")
    assert [(one["error"], one["retry_in_s"]) for one in logged] == [
        ("ValueError: no disk", 1.0),
        ("OSError: still none", 2.0),
        ("ConnectionError: nor net", 4.0),
    ]
    assert "Traceback" in logged[0]["traceback"]


def test_the_error_of_a_producer_is_shown_until_it_succeeds(clock, app, schedule):
    faults = [ValueError("no disk \x1b[2J\ud800")]

    @app.producer(name="p", every="1s")
    def produce(tick):
        if faults:
            raise faults.pop()
        return [schedule.task.s(1)]

    beat = schedule.beat()
    assert beat.turn() == 1.0
    assert schedule.row().error == "ValueError: no disk \x1b[2J\\ud800"
    clock.advance(1)
    beat.turn()
    assert schedule.row().error is None
    assert schedule.row().last_due_ms == NOON + 1000


def test_a_beat_whose_failed_tick_another_one_took_sleeps_until_the_next(clock, app, schedule):
    failing = [True]

    @app.producer(name="p", every="1h")
    def produce(tick):
        if failing:
            raise ValueError("boom")
        yield schedule.task.s(tick.due_ms)

    beat = schedule.beat()
    beat.turn()
    failing.clear()
    schedule.beat().turn()
    assert schedule.enqueued == [NOON]
    clock.advance(1)
    assert beat.turn() == 3599.0


def test_the_back_off_is_bounded_and_starts_anew_after_a_success(clock, app, schedule, here):
    broken = here / "broken"
    broken.touch()

    @app.producer(name="p", every="1h", catch_up="all")
    def produce(tick):
        if broken.exists():
            raise ValueError
        return []

    beat = schedule.beat()
    pauses = []
    for _ in range(9):
        pauses.append(beat.turn())
        clock.advance(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    broken.unlink()
    beat.turn()
    broken.touch()
    clock.advance(HOUR_S)
    assert beat.turn() == 1


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


def test_whatever_a_producer_does_ends_neither_the_beat_nor_the_others(clock, app, schedule):
    class Bare(BaseException):
        pass

    def raises(error):
        def produce(tick):
            raise error

        return produce

    wrong = {
        "exit": (raises(SystemExit(3)), "SystemExit: 3"),
        "bare": (raises(Bare("boom")), "Bare: boom"),
        "unprintable": (
            raises(Unprintable()),
            "Unprintable: (its text cannot be had: RuntimeError)",
        ),
        "nothing": (lambda tick: None, "TypeError: the producer returned None; yield calls"),
        "number": (lambda tick: 5, "TypeError: 'int' object is not iterable"),
        "text": (lambda tick: ["t"], "EnvelopeError: 't' is no call; write one as task.s(...)"),
        "object": (lambda tick: [schedule.task.s(object())], "UnserializableArguments: call of t"),
        "queue": (lambda tick: [_with(schedule.task.s(), queue="a\nb")], "is no queue name"),
        "late": (lambda tick: _failing_late(schedule.task), "ValueError: half-way"),
    }
    for name, (produce, _) in wrong.items():
        app.producer(every="5s", name=name)(produce)
    schedule.producer("good", every="5s")
    schedule.beat().turn()
    for name, (_, said) in wrong.items():
        assert said in schedule.row(name).error, name
    assert schedule.enqueued == [NOON]


def _with(call, **options):
    call.options.update(options)
    return call


def _failing_late(task):
    yield task.s(1)
    raise ValueError("half-way")


def test_a_message_that_the_broker_refuses_is_the_entrys_failure(clock, app, schedule, monkeypatch):
    # Nothing known gets past our own checks; a broker may have stricter ones.
    from sqlqueue_transport.errors import InvalidMessage

    publish = app.backend.publish

    def strict(publications, *, tick):
        if tick.entry == "bad":
            raise InvalidMessage("not this one")
        return publish(publications, tick=tick)

    monkeypatch.setattr(app.backend, "publish", strict)
    schedule.producer("bad", every="5s")
    schedule.producer("good", every="5s")
    schedule.beat().turn()
    assert schedule.row("bad").error == "InvalidMessage: not this one"
    assert schedule.enqueued == [NOON]


# --- clocks that jump -----------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-HOUR_S, -10 * 365 * DAY_S])
def test_a_clock_set_back_repeats_no_tick_and_misses_none(clock, schedule, jump_s):
    schedule.producer(every="5s")
    beats = [schedule.beat()]
    for _ in range(3):
        beats[0].turn()
        clock.advance(5)
    before = [NOON, NOON + 5000, NOON + 10_000]
    clock.jump_wall(jump_s)
    beats.append(schedule.beat())  # a new one and the old one agree
    again = clock.wall
    for _ in range(3):
        for beat in beats:
            assert beat.turn() == 5.0
        clock.advance(5)
    # What lies behind the jump is a tick that nobody has enqueued: it is 5 s off from the others.
    assert schedule.enqueued == [*before, again, again + 5000, again + 10_000]
    assert len(set(schedule.enqueued)) == 6


def test_a_clock_set_back_by_seconds_passes_over_what_the_file_has(clock, schedule):
    schedule.producer(every="5s", catch_up="all")
    beat = schedule.beat()
    for _ in range(4):
        beat.turn()
        clock.advance(5)
    clock.jump_wall(-12)
    for _ in range(20):
        beat.turn()
        clock.advance(1)
    expected = [NOON + 1000 * each for each in range(0, 30, 5)]
    assert schedule.enqueued == expected[: len(schedule.enqueued)]
    assert len(schedule.enqueued) >= 5


def test_a_tick_of_a_future_that_was_taken_back_holds_nobody_up(clock, schedule):
    schedule.producer(every="1h")
    beat = schedule.beat()
    beat.turn()
    clock.jump_wall(10 * 365 * DAY_S)
    beat.turn()
    clock.jump_wall(-10 * 365 * DAY_S)
    clock.advance(HOUR_S)
    for each in (beat, schedule.beat()):
        each.turn()
    assert schedule.enqueued == [NOON, NOON + 10 * 365 * DAY_S * 1000, NOON + 3_600_000]


@pytest.mark.parametrize(("catch_up", "caught_up"), [("skip", 1), ("one", 1), ("all", 12)])
def test_a_clock_set_forward_is_time_that_was_missed(clock, schedule, catch_up, caught_up):
    schedule.producer(every="5m", catch_up=catch_up)
    beat = schedule.beat()
    beat.turn()
    clock.jump_wall(HOUR_S)
    beat.turn()
    assert len(schedule.enqueued) == 1 + caught_up
    assert schedule.enqueued[-1] == NOON + 3_600_000


def test_a_clock_set_back_does_not_prolong_the_rest_of_a_failed_producer(clock, app, schedule):
    @app.producer(name="p", every="1s")
    def produce(tick):
        schedule.note(tick.due_ms)
        raise ValueError

    beat = schedule.beat()
    beat.turn()
    clock.jump_wall(-HOUR_S)
    clock.advance(1)
    assert beat.turn() == 2.0
    assert len(schedule.produced) == 2


# --- the process ----------------------------------------------------------------------------------

BEATS = """
    import os, sys
    from sqlqueue import SqlQueue, log
    from sqlqueue.beat.service import run_beat

    log.configure("info", format="json")
    app = SqlQueue("test", broker_url="sqlqueue:///queue.db")

    @app.task(name="t")
    def t(due_ms):
        pass

    @app.producer(name="p", every=sys.argv[1], catch_up="all")
    def produce(tick):
        with open("produced", "a") as file:
            file.write(f"{os.getppid()} {tick.due_ms}\\n")  # the beat's, whose child we are
        yield t.s(tick.due_ms)

    sys.exit(run_beat(app, name=f"b-{os.getpid()}"))
"""


@pytest.fixture
def beat_process(here):
    started = []

    def begin(every="0.2s"):
        process = run_python(BEATS, every, cwd=here)
        started.append(process)
        return process

    yield begin
    for process in started:
        kill(process)
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=30)
    return process.returncode, out + error


def test_two_beats_and_one_killed_again_and_again_enqueue_each_tick_once(
    app, schedule, beat_process, here
):
    chance = random.Random(7)
    steady = [beat_process(), beat_process()]
    wait_until(lambda: app.backend.schedules.done_ms("p"), deadline_s=20)
    until_s = time.monotonic() + 6
    kills = 0
    while time.monotonic() < until_s:
        victim = beat_process()
        produced = here / "produced"
        wait_until(lambda: f"{victim.pid} " in produced.read_text(), deadline_s=20)  # noqa: B023
        threading.Event().wait(chance.random() * 0.2)
        kill(victim)
        kills += 1
    for process in steady:
        process.terminate()
        assert ended(process)[0] == 0
    due = schedule.enqueued
    print(f"{len(due)} ticks, {kills} kills")
    assert kills >= 3
    assert len(due) >= 25
    assert sorted(set(due)) == sorted(due)
    assert [after - before for before, after in itertools.pairwise(sorted(due))] == [200] * (
        len(due) - 1
    )
    by_beat = collections.Counter(
        line.split()[0] for line in (here / "produced").read_text().splitlines()
    )
    assert len(by_beat) >= 2 + 3
    assert app.backend.store.reading.damage(full=True) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_though_it_sleeps(app, schedule, beat_process, number):
    process = beat_process("1h")
    wait_until(lambda: [one for one in app.backend.workers() if one.kind == "beat"])
    began_s = time.monotonic()
    process.send_signal(number)
    code, said = ended(process)
    assert code == 0
    assert time.monotonic() - began_s < 3
    assert '"event": "beat_stopped"' in said
    assert app.backend.workers() == []


def test_a_signal_that_comes_while_it_starts_ends_it_in_order(app, here):
    """Whoever sees a beat in the table of workers may stop it."""
    program = """
        import os, signal, sys
        from sqlqueue import SqlQueue
        from sqlqueue.backend import SqliteBackend
        from sqlqueue.beat.service import run_beat

        register = SqliteBackend.register

        def register_and_be_told(self, **about):
            register(self, **about)
            os.kill(os.getpid(), signal.SIGTERM)

        SqliteBackend.register = register_and_be_told
        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")
        app.producer(every="1h", name="p")(lambda tick: [])
        sys.exit(run_beat(app, name="b"))
    """
    code, said = ended(run_python(program, cwd=here))
    assert code == 0, said
    assert app.backend.workers() == []


def test_a_running_producer_is_finished_first_and_a_second_signal_does_not_wait(app, here):
    program = """
        import sys
        from sqlqueue import SqlQueue
        from sqlqueue.beat.service import run_beat

        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")

        @app.producer(every="0.1s", name="p")
        def produce(tick):
            print("producing", flush=True)
            sys.stdin.readline()
            return []

        sys.exit(run_beat(app, name="b"))
    """
    for signals, code in [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGTERM], 130)]:
        process = run_python(program, cwd=here)
        assert process.stdout.readline() == "producing\n"
        before = app.backend.schedules.done_ms("p")
        for number in signals:
            process.send_signal(number)
            threading.Event().wait(0.2)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
        assert ended(process)[0] == code
        assert (app.backend.schedules.done_ms("p") == before) is (code == 130)


def test_a_second_signal_that_comes_while_the_first_is_handled_counts(here):
    """One that was taken for the first again would leave the producer running, and the process."""
    program = """
        import os, signal, sys, time
        from sqlqueue import SqlQueue
        from sqlqueue.beat import service

        class Stopping(service._Stopping):
            def set(self):
                os.kill(os.getpid(), signal.SIGINT)
                super().set()

        service._Stopping = Stopping
        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")

        @app.producer(every="0.1s", name="p")
        def produce(tick):
            print("producing", flush=True)
            time.sleep(60)
            return []

        sys.exit(service.run_beat(app, name="b"))
    """
    process = run_python(program, cwd=here)
    assert read_line(process) == "producing"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130


def test_a_replaced_file_ends_it_with_code_1(app, schedule, beat_process, here):
    process = beat_process("0.1s")
    wait_until(lambda: [one for one in app.backend.workers() if one.kind == "beat"])
    shutil.move(here / "queue.db", here / "moved.db")
    code, said = ended(process)
    assert code == 1
    assert '"event": "store_gone"' in said
    assert "Traceback" not in said
    shutil.move(here / "moved.db", here / "queue.db")


def test_a_store_in_trouble_is_waited_out(app, schedule, events, monkeypatch):
    publish, faults = app.backend.publish, [DiskFault("no room")]

    def failing(*args, **options):
        if faults:
            raise faults.pop()
        return publish(*args, **options)

    monkeypatch.setattr(app.backend, "publish", failing)
    schedule.producer(every="50ms")
    assert run_beat(app, name="b", max_ticks=2, max_interval_s=0.05) == 0
    assert len(schedule.enqueued) == 2
    assert [one["error"] for one in events("store_busy")] == ["no room"]


def test_it_ends_after_max_ticks_and_leaves_no_trace_of_itself(app, schedule, events):
    schedule.producer(every="20ms")
    before = signal.getsignal(signal.SIGTERM)
    assert run_beat(app, name="b", max_ticks=3) == 0
    assert len(schedule.enqueued) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    assert app.backend.workers() == []
    assert len(events("tick_enqueued")) == 3
    (started,) = events("beat_started")
    assert (started["entries"], started["pid"]) == (["p"], os.getpid())


def test_signals_of_others_do_not_make_it_spin(app, schedule):
    # Each signal that Python handles writes a byte into the pipe that ends the sleep.
    @app.producer(name="p", every="100ms")
    def produce(tick):
        os.kill(os.getpid(), signal.SIGUSR1)
        return []

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        began_s = time.process_time()
        run_beat(app, name="b", max_ticks=8)
        took_s = time.process_time() - began_s
    finally:
        signal.signal(signal.SIGUSR1, before)
    print(f"{took_s:.3f} s of CPU in 0.8 s")
    assert took_s < 0.4


def test_a_broker_without_a_store_cannot_keep_a_schedule(make_app):
    app = make_app(broker_url="memory://")
    app.producer(every=5)(lambda tick: [])
    with pytest.raises(NotAvailable, match="a schedule, and a beat: not available on this broker"):
        run_beat(app, name="b")


def test_a_mistake_in_the_schedule_is_told_before_anything_runs(here):
    program = """
        from sqlqueue import SqlQueue
        from sqlqueue.beat.service import run_beat

        app = SqlQueue("test")
        app.periodic("p", app.task(name="t")(print).s(object()), every=5)
        try:
            run_beat(app, name="b")
        except Exception as error:
            print(type(error).__name__, error)
    """
    said = finish(run_python(program, cwd=here))
    assert said.startswith("ConfigError schedule entry 'p': call of t: args[0] is a object")
