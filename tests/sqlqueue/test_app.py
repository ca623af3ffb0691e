"""The application: what can be declared, what a call becomes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

import sqlqueue
from sqlqueue import SqlQueue, Tick, crontab, errors
from sqlqueue.beat.schedule import Cron, Interval
from sqlqueue.config import anchored
from sqlqueue.errors import (
    ConfigError,
    EnvelopeError,
    TaskDefinitionError,
    UnknownTask,
    UnserializableArguments,
)
from sqlqueue.task import Signature
from sqlqueue_transport.reading import JobFilter
from tests.support import ROOT, finish, run_python

NOON = "2026-11-22T12:00:00.000Z"
NOON_MS = 1_795_348_800_000


def rows(app):
    """Return every job in the file, oldest first."""
    return app.backend.jobs(JobFilter())[::-1]


def only(app):
    (row,) = rows(app)
    return app.backend.job(row.message_id)


def add(x, y=0):
    return x + y


@pytest.fixture
def task(app):
    return app.task(name="add")(add)


# --- declaring ------------------------------------------------------------------------------------


def test_a_task_is_named_after_its_module_and_function(app):
    task = app.task(add)
    assert task.name == f"{__name__}.add"
    assert app.tasks == {task.name: task}
    assert (task.__name__, task.__wrapped__) == ("add", add)


def test_calling_a_task_calls_the_function_and_enqueues_nothing(here, task):
    assert task(2, y=3) == 5
    assert list(here.iterdir()) == []


def test_a_tasks_own_attributes_win_over_those_of_its_function(app):
    def odd():
        """Say nothing."""

    odd.name, odd.options, odd.app = "mine", "mine", "mine"
    task = app.task(name="odd")(odd)
    assert (task.name, task.app, task.__doc__) == ("odd", app, "Say nothing.")


def test_a_task_in_main_is_refused_with_the_reason_unless_it_has_a_name():
    program = """
        from sqlqueue import SqlQueue, TaskDefinitionError

        app = SqlQueue("main")

        @app.task(name="named")
        def named():
            pass

        try:
            @app.task
            def unnamed():
                pass
        except TaskDefinitionError as error:
            print(error)
    """
    said = finish(run_python(program))
    assert said.startswith("task unnamed is defined in __main__, which means another file in every")
    assert "give it a name, such as @app.task(name='tasks.add')" in said


def test_two_tasks_of_one_name_are_refused(app, task):
    with pytest.raises(TaskDefinitionError, match="two tasks are named 'add'"):
        app.task(name="add")(lambda: None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"que": "mail"}, r"'que' is no option. Did you mean 'queue'\?"),
        ({"name": ""}, "is no task name"),
        ({"name": "a\x1b[2Jb"}, "is no task name"),
        ({"name": 5}, "is no task name"),
        ({"queue": ""}, "is no queue name"),
        ({"queue": "a,b"}, "is no queue name"),
        ({"queue": "a\u202eb"}, "is no queue name"),
        ({"queue": 5}, "is no queue name"),
        ({"priority": -1}, "whole number from 0 to 9"),
        ({"priority": 10}, "whole number from 0 to 9"),
        ({"priority": True}, "whole number from 0 to 9"),
        ({"max_attempts": 2.5}, "max_attempts"),
        ({"retry_policies": {OSError: 5}}, "retry_policies"),
        ({"max_attempts": -1}, "max_attempts"),
        ({"retry_backoff": float("nan")}, "retry_backoff"),
        ({"retry_backoff_max": -1}, "retry_backoff_max"),
        ({"retry_for": ValueError}, "retry_for"),
        ({"dont_retry_for": (5,)}, "dont_retry_for"),
        ({"time_limit": -1}, "time_limit"),
        ({"time_limit": float("nan")}, "time_limit"),
        ({"time_limit": "1h"}, "time_limit"),
    ],
)
def test_an_option_that_cannot_work_is_refused_where_the_task_is_declared(app, options, said):
    with pytest.raises(TaskDefinitionError, match=said):
        app.task(**{"name": "add", **options})(add)
    assert app.tasks == {}


def test_an_async_generator_and_a_non_function_are_refused(app):
    async def later():
        yield 1

    with pytest.raises(TaskDefinitionError, match="async generator"):
        app.task(later)
    with pytest.raises(TaskDefinitionError, match="decorates a function, not 'add'"):
        app.task("add")


def test_a_worker_serves_the_default_queue_and_those_its_tasks_name(make_app):
    app = make_app(task_default_queue="main")
    app.task(name="a", queue="mail")(add)
    app.task(name="b", queue="mail")(add)
    app.task(name="c")(add)
    assert app.queues == ("main", "mail")
    assert make_app(worker_queues=["x", "y"]).queues == ("x", "y")


def test_an_unknown_task_is_named_with_the_nearest_known_one(app, task):
    assert app.find_task("add") is task
    with pytest.raises(
        UnknownTask, match=r"no task named 'ad' in this application. Did you mean 'add'\?"
    ) as caught:
        app.find_task("ad")
    assert caught.value.task == "ad"


# --- settings -------------------------------------------------------------------------------------


def test_declaring_reads_no_setting_and_opens_nothing(here, monkeypatch):
    monkeypatch.setenv("SQLQUEUE_DURABILITY", "nonsense")
    app = SqlQueue("lazy", nonsense=True)
    task = app.task(name="add")(add)
    app.producer(every="5s")(lambda tick: [])
    app.periodic("nightly", task.s(1), cron="0 3 * * *")
    assert list(here.iterdir()) == []
    with pytest.raises(ConfigError, match="'nonsense' is no setting"):
        _ = app.conf


def test_settings_are_resolved_once_with_their_origins(here, monkeypatch):
    (here / "sqlqueue.toml").write_text('task_default_queue = "of the file"\nworker_grace = 5\n')
    monkeypatch.setenv("SQLQUEUE_WORKER_GRACE", "7s")
    app = SqlQueue("settings", task_default_queue="of the code", task_max_attempts=3)
    assert app.conf is app.conf
    assert (app.conf.task_default_queue, app.conf.worker_grace) == ("of the file", 7.0)
    assert app.resolved.origins["task_max_attempts"] == "code"
    assert app.resolved.origins["worker_grace"] == "env SQLQUEUE_WORKER_GRACE"


def test_a_table_app_holds_the_applications_own_settings(here, monkeypatch):
    (here / "sqlqueue.toml").write_text('[app]\ncolour = "red"\n')
    monkeypatch.setenv("SQLQUEUE_APP_SIZE", "7")
    assert SqlQueue("own").conf.app == {"colour": "red", "size": "7"}


# --- what a call becomes --------------------------------------------------------------------------


def test_delay_stores_one_pending_job_of_celerys_protocol(app, task):
    result = task.delay(2, y=3)
    found = only(app)
    assert json.loads(found.body)[:2] == [[2], {"y": 3}]
    assert (found.row.job_id, found.row.task, found.row.state.value) == (
        result.id,
        "add",
        "pending",
    )
    assert uuid.UUID(result.id).version == 7
    assert (found.row.queue, found.row.priority, found.row.max_attempts) == ("default", 0, 5)
    assert json.loads(found.headers)["timelimit"] == [None, None]


def test_the_decorators_options_travel_with_the_message(app):
    task = app.task(name="add", queue="mail", priority=7, max_attempts=2, time_limit=30)(add)
    task.delay(1)
    found = only(app)
    assert (found.row.queue, found.row.priority, found.row.max_attempts) == ("mail", 7, 2)
    assert json.loads(found.headers)["timelimit"] == [30, None]


def test_a_tasks_attempts_are_the_settings_unless_it_says_otherwise(make_app):
    app = make_app(task_max_attempts=3)
    app.task(name="a")(add).delay(1)
    app.task(name="b", max_attempts=1)(add).delay(1)
    app.send_task("of somebody else", [1])
    assert [row.max_attempts for row in rows(app)] == [3, 1, None]


def test_options_of_a_call_win_over_those_of_its_task(app):
    task = app.task(name="add", queue="mail", priority=7)(add)
    task.apply_async([1], {"y": 2}, queue="other", priority=0)
    found = only(app)
    assert (found.row.queue, found.row.priority) == ("other", 0)
    assert json.loads(found.body)[:2] == [[1], {"y": 2}]


@freeze_time(NOON)
def test_a_countdown_is_a_due_time_in_milliseconds(app, task):
    task.apply_async([1], countdown=0.125)
    row = only(app).row
    assert (row.state.value, row.due_at_ms) == ("scheduled", NOON_MS + 125)


@freeze_time(NOON)
@pytest.mark.parametrize(
    ("eta", "due_ms", "state"),
    [
        (datetime(2026, 11, 22, 12, 0, 5, 250_000, timezone.utc), NOON_MS + 5250, "scheduled"),
        # The same moment, as Berlin's clocks say it.
        (
            datetime(2026, 11, 22, 13, 0, 5, tzinfo=ZoneInfo("Europe/Berlin")),
            NOON_MS + 5000,
            "scheduled",
        ),
        (datetime(1970, 1, 1, tzinfo=timezone.utc), 0, "pending"),
        (datetime(9999, 12, 31, tzinfo=timezone.utc), 253_402_214_400_000, "scheduled"),
        # In the gap of a spring night: 02:30 is not on the clock, and means 01:30 UTC.
        (
            datetime(2027, 3, 28, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
            1_806_197_400_000,
            "scheduled",
        ),
    ],
)
def test_an_aware_eta_is_honoured_in_any_zone(app, task, eta, due_ms, state):
    task.apply_async([1], eta=eta)
    row = only(app).row
    assert (row.due_at_ms, row.state.value) == (due_ms, state)


@freeze_time(NOON)
def test_expires_takes_seconds_or_an_aware_time(app, task):
    task.apply_async([1], expires=1.5)
    task.apply_async([1], expires=datetime(2026, 11, 22, 12, 0, 1, tzinfo=timezone.utc))
    assert [row.expires_at_ms for row in rows(app)] == [NOON_MS + 1500, NOON_MS + 1000]


@freeze_time(NOON)
def test_a_job_that_expires_before_its_eta_is_stored_and_never_runs(app, task):
    task.apply_async([1], countdown=5, expires=1)
    with freeze_time("2026-11-22T12:00:06Z"):
        app.backend.register(name="w", kind="worker", queues=app.queues)
        assert app.backend.claim(app.queues, 1, [])[0] == []
    assert only(app).row.state.value == "expired"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": -1}, "priority=-1; give a whole number from 0 to 9"),
        ({"priority": 2**63}, "give a whole number from 0 to 9"),
        ({"priority": "high"}, "priority='high'; give a whole number"),
        ({"priority": 1.0}, "give a whole number from 0 to 9"),
        ({"countdown": float("nan")}, "countdown=nan; give seconds from now, 0 or more"),
        ({"countdown": -1}, "give seconds from now"),
        ({"countdown": float("inf")}, "give seconds from now"),
        ({"countdown": True}, "give seconds from now"),
        ({"countdown": "5"}, "give seconds from now"),
        ({"countdown": datetime.now(timezone.utc)}, "give seconds from now"),
        ({"countdown": 5, "eta": datetime.now(timezone.utc)}, "not both"),
        ({"eta": datetime(2026, 1, 1)}, "eta=2026-01-01 00:00:00 has no time zone"),  # noqa: DTZ001
        ({"eta": 5}, "give an aware datetime"),
        ({"expires": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"expires": -1}, "give seconds from now"),
        ({"queue": ""}, "queue='' is no queue name"),
        ({"queue": "x" * 300}, "is no queue name"),
        ({"queue": "a\nb"}, "is no queue name"),
        ({"job_id": ""}, "is no job id"),
        ({"job_id": 5}, "is no job id"),
        ({"job_id": "x" * 300}, "is no job id"),
    ],
)
def test_an_option_that_means_nothing_fails_at_the_call_and_stores_nothing(
    app, task, options, said
):
    with pytest.raises(EnvelopeError, match=said):
        task.apply_async([1], **options)
    assert rows(app) == []


class Surprise:
    def __repr__(self):
        raise ValueError("no repr either")


@pytest.mark.parametrize(
    "argument",
    [object(), {1, 2}, b"bytes", {1: "a key that is no text"}, float("nan"), "\ud800", Surprise()],
    ids=["object", "set", "bytes", "key", "nan", "surrogate", "unprintable"],
)
def test_unserialisable_arguments_fail_at_delay_and_nothing_is_stored(app, task, argument):
    with pytest.raises(UnserializableArguments, match="call of add") as caught:
        task.delay(argument)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnserializableArguments):
        task.delay(1, y=[argument])
    assert rows(app) == []


def test_a_call_above_the_limit_is_refused(make_app):
    app = make_app(max_message_bytes=1000)
    task = app.task(name="add")(add)
    with pytest.raises(EnvelopeError, match="the limit is 1,000 bytes"):
        task.delay("x" * 1000)
    assert rows(app) == []


@pytest.mark.parametrize("args", ["ab", 5, {"x": 1}])
def test_args_that_are_no_list_are_refused_and_not_taken_apart(app, task, args):
    with pytest.raises(UnserializableArguments, match="Pass a list or tuple, and a dict"):
        task.apply_async(args)
    with pytest.raises(UnserializableArguments, match="Pass a list or tuple, and a dict"):
        app.send_task("add", (), args if args != {"x": 1} else [("x", 1)])
    assert rows(app) == []


def test_an_unknown_option_of_a_call_is_refused_with_a_suggestion(app):
    with pytest.raises(EnvelopeError, match=r"'priorty' is no option. Did you mean 'priority'\?"):
        app.send_task("add", [1], priorty=None)


@pytest.mark.parametrize("name", ["x" * 5000, "\x1b[2J", "\ud800", 10**5000, None], ids=type)
@pytest.mark.parametrize("options", [{}, {"prio": 1}, {"countdown": -1}, {"eta": 5}], ids=str)
def test_a_name_that_can_be_none_is_the_first_mistake_told(app, name, options):
    with pytest.raises(EnvelopeError, match="is no task name") as caught:
        app.send_task(name, **options)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()


def test_a_job_id_of_ones_own_is_stored_once_however_often_it_is_published(app, task):
    first = task.apply_async([1], job_id="order-1")
    again = task.apply_async([2], job_id="order-1")
    assert first.id == again.id == "order-1"
    assert json.loads(only(app).body)[0] == [1]


def test_the_id_header_alone_never_deduplicates(app, task):
    # Celery's own retries publish the same id again while the original is not acknowledged yet.
    one = app.publication(task.s(1))
    assert one.unique_key is None
    app.backend.publish([one])
    app.backend.publish([one])
    assert len(rows(app)) == 2
    assert len({row.job_id for row in rows(app)}) == 1


def test_a_signature_is_a_call_that_is_not_made_yet(app, task):
    call = task.s(1, y=2)
    assert call == Signature("add", (1,), {"y": 2}, {})
    assert rows(app) == []
    app.backend.publish([app.publication(call)])
    assert json.loads(only(app).body)[:2] == [[1], {"y": 2}]


def test_what_is_no_call_cannot_be_published(app, task):
    for wrong in ("add", None, task):
        with pytest.raises(EnvelopeError, match=r"is no call; write one as task.s"):
            app.publication(wrong)


# --- threads and forks ----------------------------------------------------------------------------


def test_each_thread_gets_a_connection_of_its_own(app, task):
    backends, failures = [], []

    def publish():
        try:
            task.delay(1)
            backends.append(app.backend)
            app.close()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []
    assert len({id(one) for one in backends}) == 4
    assert len(rows(app)) == 4


def test_a_thread_that_comes_while_another_reads_the_settings_finds_them_whole(
    app, task, monkeypatch
):
    """A web server's first two requests: neither may see an application without its URL."""
    is_reading, may_go_on = threading.Event(), threading.Event()

    def slowly(url):
        if threading.current_thread() is first:
            is_reading.set()
            may_go_on.wait(timeout=30)
        return anchored(url)

    def publish():
        task.delay(1)
        app.close()

    monkeypatch.setattr("sqlqueue.app.anchored", slowly)
    first = threading.Thread(target=publish)
    first.start()
    assert is_reading.wait(timeout=30)
    publish()
    may_go_on.set()
    first.join(timeout=30)
    assert len(rows(app)) == 2


def test_a_closed_application_opens_again_when_it_is_used(app, task):
    task.delay(1)
    app.close()
    app.close()
    task.delay(1)
    assert len(rows(app)) == 2


def test_parent_and_forked_child_publish_side_by_side(app, task):
    task.delay(0)
    of_the_parent = app.backend
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert app.backend is not of_the_parent
            for number in range(1, 6):
                task.delay(number)
            app.close()
            code = 0
        finally:
            os._exit(code)
    for number in range(6, 11):
        task.delay(number)
    assert os.waitpid(pid, 0)[1] == 0
    assert app.backend is of_the_parent
    assert len(rows(app)) == 11


# --- the schedule ---------------------------------------------------------------------------------


def test_producers_and_periodic_calls_are_entries(app, task):
    @app.producer(every="5s")
    def produce(tick):
        return [task.s(tick.due_ms)]

    app.producer(cron=crontab(minute=0), name="hourly", catch_up="all", catch_up_limit=7)(produce)
    app.periodic("nightly", task.s(1), cron="0 3 * * *", timezone="Europe/Berlin", catch_up="skip")
    entries = app.entries
    assert list(entries) == ["produce", "hourly", "nightly"]
    assert entries["produce"].when == Interval(5000)
    assert entries["produce"].produce(Tick("produce", 5)) == [task.s(5)]
    assert entries["hourly"].when == Cron("0 * * * *", "UTC")
    assert (entries["hourly"].catch_up, entries["hourly"].catch_up_limit) == ("all", 7)
    assert entries["nightly"].when == Cron("0 3 * * *", "Europe/Berlin")
    assert entries["nightly"].signature == task.s(1)
    assert produce(Tick("called", 1)) == [task.s(1)]


def test_a_cron_without_a_zone_is_in_that_of_the_settings(here, task, app):
    (here / "sqlqueue.toml").write_text(
        'timezone = "Europe/Berlin"\n[beat.b]\ntask = "add"\nargs = [1]\ncron = "0 3 * * *"\n'
    )
    app.periodic("a", task.s(1), cron="0 3 * * *")
    app.periodic("c", task.s(1), cron=crontab(minute=0, hour=3))
    app.periodic("d", task.s(1), cron=Cron("0 3 * * *"))
    assert [one.when for one in app.entries.values()] == [Cron("0 3 * * *", "Europe/Berlin")] * 4


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"every": "5s", "cron": "* * * * *"},
        {"every": "often"},
        {"every": 0},
        {"cron": "every day"},
        {"cron": "* * * * *", "timezone": "Mars/Base"},
        {"cron": crontab(timezone="UTC"), "timezone": "Europe/Berlin"},
        {"every": "5s", "timezone": "Europe/Berlin"},
        {"every": 1, "catch_up": "two"},
        {"every": 1, "catch_up_limit": 0},
        {"every": 1, "name": ""},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_where_it_is_declared(app, schedule):
    with pytest.raises(ConfigError):
        app.producer(**schedule)(lambda tick: [])
    assert app.entries == {}


def test_two_entries_of_one_name_are_refused(app, task, here):
    app.periodic("one", task.s(1), every=5)
    with pytest.raises(ConfigError, match="two schedule entries are named 'one'"):
        app.producer(every=5, name="one")(lambda tick: [])


def test_a_beat_table_is_an_entry(here, app, task):
    (here / "sqlqueue.toml").write_text(
        "[beat.report]\n"
        'task = "reports.send"\nargs = ["weekly"]\nkwargs = {to = "me"}\nevery = "1h30m"\n'
        'queue = "slow"\npriority = 3\nexpires = 60\ncatch_up = "all"\ncatch_up_limit = 5\n'
    )
    (entry,) = app.entries.values()
    assert entry.name == "report"
    assert entry.when == Interval(5_400_000)
    assert entry.signature == Signature(
        "reports.send", ("weekly",), {"to": "me"}, {"queue": "slow", "priority": 3, "expires": 60}
    )
    assert (entry.catch_up, entry.catch_up_limit) == ("all", 5)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[beat]\nx = 5", r"\[beat.x\] must be a table with task= and every=, cron= or at="),
        ("[beat.x]\nevery = 5", r"\[beat.x\] needs task = 'name'"),
        ('[beat.x]\ntask = "add"', r"\[beat.x\]: give one of every=, cron= and at="),
        (
            '[beat.x]\ntask = "add"\nevery = 5\ncron = "* * * * *"',
            "give one of every=, cron= and at=",
        ),
        ('[beat.x]\ntask = "add"\nevery = 5\nargs = "ab"', r"args = \[...\]"),
        ('[beat.x]\ntask = "add"\nevery = 5\nkwargs = [1]', "kwargs = "),
        ('[beat.x]\ntask = "add"\nevry = 5', r"'evry' is no key. Did you mean 'every'\?"),
        ('[beat.x]\ntask = "add"\nevery = 5\ncatchup = "one"', "Did you mean 'catch_up'"),
        ('[beat.x]\ntask = "add"\nevery = 5\ncatch_up = "two"', "catch_up = 'two' is not known"),
        ('[beat.x]\ntask = "add"\nevery = "soon"', r"\[beat.x\]: every = 'soon' is no duration"),
        ('[beat.x]\ntask = "add"\ncron = 5', "is no cron expression"),
        ('[beat.x]\ntask = "add"\nevery = 5\npriority = "high"', "'x': priority='high'"),
        ('[beat.x]\ntask = "add"\nevery = 5\nqueue = ""', "'x': queue='' is no queue name"),
        ('[beat.x]\ntask = "add"\nevery = 5\nargs = [2026-01-01]', "'x': call of add: args"),
        ('[beat.x]\ntask = "a\\u001bb"\nevery = 5', "'x': .* is no task name"),
        ('[beat.one]\ntask = "add"\nevery = 5', "the code has an entry of that name already"),
        ('[beat.""]\ntask = "add"\nevery = 5', "is no entry name"),
    ],
)
def test_a_beat_table_that_makes_no_sense_is_refused_with_its_name(here, app, task, table, said):
    (here / "sqlqueue.toml").write_text(table)
    app.periodic("one", task.s(1), every=5)
    with pytest.raises(ConfigError, match=said):
        _ = app.entries


def test_an_entry_whose_call_cannot_be_enqueued_is_refused_before_it_is_due(app, task):
    app.periodic("bad", task.s(object()), every=5)
    with pytest.raises(ConfigError, match="schedule entry 'bad': call of add"):
        _ = app.entries


def test_checks_are_kept_by_title(app):
    @app.check("files")
    def files(inspection):
        yield "a problem"

    assert app.checks == {"files": files}
    with pytest.raises(TaskDefinitionError, match="two checks are called 'files'"):
        app.check("files")(files)


# --- the package ----------------------------------------------------------------------------------


def test_every_public_name_is_there_and_imported_when_first_used():
    assert sorted(sqlqueue.__all__) == sorted(sqlqueue._HOMES)
    for name in sqlqueue.__all__:
        assert getattr(sqlqueue, name).__name__ == name
    assert sqlqueue.JobFailed is errors.JobFailed
    with pytest.raises(AttributeError, match="no attribute 'Celery'"):
        _ = sqlqueue.Celery


def test_importing_the_package_imports_neither_kombu_nor_sqlite():
    program = """
        import sys
        import sqlqueue
        sqlqueue.JobFailed
        print(sorted({"kombu", "sqlite3", "rich", "structlog", "click"} & set(sys.modules)))
    """
    assert finish(run_python(program)) == "[]\n"


def test_the_framework_works_without_rich_and_streamlit(tmp_path):
    program = """
        import sys
        sys.modules["rich"] = sys.modules["streamlit"] = None
        from sqlqueue import SqlQueue
        from sqlqueue.worker.solo import run_solo

        app = SqlQueue("bare")

        @app.task(name="add")
        def add(x, y):
            return x + y

        result = add.delay(2, 3)
        run_solo(app, name="w", burst=True)
        print(result.get(timeout=5))
    """
    environment = {"SQLQUEUE_DB": str(tmp_path / "queue.db")}
    assert finish(run_python(program, env=environment, cwd=tmp_path)) == "5\n"


def test_the_readme_of_the_package_is_true(tmp_path):
    (tmp_path / "example.py").write_text(
        "\n".join(line[4:] for line in sqlqueue.__doc__.splitlines() if line.startswith("    "))
    )
    subprocess.run(
        [sys.executable, "-c", "import example; print(example.add.delay(2, 3).state)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )


@freeze_time(NOON)
def test_a_publication_has_the_moment_of_the_call_and_not_of_the_declaration(app, task):
    with freeze_time(datetime(2026, 11, 22, 12, tzinfo=timezone.utc) + timedelta(hours=1)):
        built = app.publication(Signature("add", (1,), {}, {"countdown": 1}))
    assert built.envelope.headers["eta"] == "2026-11-22T13:00:01+00:00"
