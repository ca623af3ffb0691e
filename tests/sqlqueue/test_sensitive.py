"""Of a sensitive task nobody is shown arguments, results, or what its errors and notes say.

The secret of these tests is in all of them, and then looked for wherever anything is shown or kept.
"""

from __future__ import annotations

import asyncio
import json
import operator
import sqlite3
import time
from contextlib import closing

import pytest

from sqlqueue import envelope
from sqlqueue.cli import main
from sqlqueue.config import set_command_line
from sqlqueue.consoles.admin import details
from sqlqueue.consoles.admin import rows as admin_rows
from sqlqueue.consoles.ops.lists import arguments_text
from sqlqueue.errors import (
    EnvelopeError,
    JobFailed,
    Reject,
    TaskDefinitionError,
    UnserializableResult,
)
from sqlqueue.execute import fault_of
from sqlqueue.inspection import Inspection, JobFilter
from sqlqueue.schedules import stored_entry
from sqlqueue.task import Signature
from sqlqueue.text import HIDDEN
from sqlqueue.worker.solo import run_solo
from tests.support import run_python

SECRET = "hush4711"
DIRTY = SECRET[4:] + SECRET[:4]  # so that no line of code has it whole


def whisper():
    """Return the secret, which no line of code has: tracebacks show those."""
    return DIRTY[4:] + DIRTY[:4]


class Hushed(Exception):
    pass


def fail_with(card):
    """Fail as code does that knows nothing of it: with the argument in the error, twice."""
    try:
        {}[card]
    except KeyError as error:
        raise Hushed(f"card {card} is unknown") from error


@pytest.fixture
def app(make_app):
    app = make_app()
    quick = {"sensitive": True, "retry_backoff": 0, "retry_jitter": False}
    app.task(name="card.good", **quick)(lambda card, cvc=None: {"seen": card})
    app.task(name="card.bad", max_attempts=2, **quick)(fail_with)
    app.task(name="card.odd", max_attempts=1, **quick)(lambda card: {card: {1, 2}})

    @app.task(name="card.reject", **quick)
    def reject(card):
        raise Reject(f"{card} is refused")

    @app.task(name="card.group", max_attempts=1, **quick)
    def add_note(card):
        error = Hushed(card)
        error.__notes__ = [card]  # what add_note() of Python 3.11 does
        raise error

    @app.task(name="card.told", bind=True, **quick)
    def told(self, card):
        self.progress(1, 3, note=f"charging {card}")
        self.progress(2, 3, note=f"charged {card}")

    @app.task(name="open", max_attempts=1)
    def call_marked(card):
        raise Hushed(card)

    return app


@pytest.fixture
def ran(app, events):
    """Run a job of each kind, and return the ids by task."""
    secret = whisper()
    ids = {name: app.send_task(name, [secret]).id for name in app.tasks if name != "open"}
    ids["kwargs"] = app.send_task("card.good", ["x"], {"cvc": secret}).id
    ids["large"] = app.send_task("card.good", [secret + "x" * 100_000]).id
    ids["marked"] = app.send_task("open", [secret], sensitive=True).id
    run_solo(app, name="w", burst=True, handle_signals=False)
    return ids


def where_it_is(secret, path):
    """Return which columns of a file have the secret."""
    found = set()
    with closing(sqlite3.connect(path)) as file:
        tables = [
            name for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type='table'")
        ]
        for table in tables:
            names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            for row in file.execute(f"SELECT * FROM {table}"):
                for name, value in zip(names, row, strict=True):
                    text = (
                        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                    )
                    if secret in text:
                        found.add(f"{table}.{name}")
    return found


def test_secret_is_in_the_file_where_it_is_needed_and_nowhere_else(ran, app, here):
    app.close()
    found = where_it_is(SECRET, here / "queue.db")
    assert found == {"message.body", "body.content", "message.result"}


def test_log_of_the_worker_says_nothing(ran, events):
    logged = events()
    assert {"job_started", "job_done", "job_retry_scheduled", "job_permanently_failed"} <= {
        one["event"] for one in logged
    }
    assert SECRET not in json.dumps(logged)
    assert f"Hushed: {HIDDEN}" in {one.get("error") for one in logged}


def test_inspection_hands_nothing_out(ran, app):
    inspection = Inspection(app.backend)
    for job_id in ran.values():
        job = inspection.job(job_id)
        assert SECRET not in repr(job)
        assert job.is_sensitive
        assert job.arguments.is_hidden
        assert SECRET not in repr(inspection.arguments_of([job.row.message_id]))
        assert admin_rows.call_text(job.arguments) == HIDDEN
        assert arguments_text(job.arguments) == HIDDEN
        assert details.arguments_text(job.arguments) == HIDDEN
        assert details.views(app, job) == ()
    assert [call.args for call in inspection.jobs_with_arguments(task="card.good")] == [()] * 3
    assert SECRET not in repr([*inspection.every_job(JobFilter())])
    assert SECRET not in repr([inspection.dead_groups(), inspection.errors_since(3600)])


def test_views_of_an_application_see_a_call_without_arguments(ran, app):
    seen = []
    app.job_view("card", task="card.good")(lambda call: seen.append(call) or repr(call))
    [(_, text)] = details.views(app, Inspection(app.backend).job(ran["card.good"]))
    assert SECRET not in text
    assert seen[0].args == ()


@pytest.mark.parametrize("search", [SECRET, SECRET[:5], f'"{SECRET}"', "charging"])
def test_search_does_not_find_what_it_must_not_tell(ran, app, search):
    app.send_task("open", [SECRET + " charging"], job_id="not-sensitive")
    inspection = Inspection(app.backend)
    found = [row.name for row in inspection.every_job(JobFilter(search=search))]
    assert found == (["not-sensitive"] if search != f'"{SECRET}"' else [])
    for kind in ("error", "search"):
        assert not inspection.count(JobFilter(**{kind: f"card {SECRET}"})).count


def test_sensitive_jobs_are_found_by_all_else(ran, app):
    inspection = Inspection(app.backend)
    for chosen in (
        JobFilter(search=ran["card.good"]),
        JobFilter(search="card.goo"),
        JobFilter(error="Hushed"),
        JobFilter(task="card.bad"),
    ):
        assert inspection.count(chosen).count


COMMANDS = [
    *(
        ["inspect", *words]
        for words in (["jobs"], ["dead"], ["dead", "--by", "error"], ["workers"])
    ),
    ["inspect", "jobs", "--search", "card"],
    ["doctor"],
    ["requeue", "--state", "permanently_failed", "--dry-run"],
    *(["inspect", "job", "ID", *more] for more in ([], ["--traceback", "all"])),
]


@pytest.mark.parametrize("output", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_line_shows_nothing(ran, app, capfd, command, output):
    app.close()
    said = ""
    for job_id in ran.values() if "ID" in command else [""]:
        capfd.readouterr()
        try:
            main(
                [word if word != "ID" else job_id for word in command]
                + ["--db", "queue.db", *output]
            )
        finally:
            set_command_line({})
        out, err = capfd.readouterr()
        assert "error:" not in err, err
        said += out + err
        if output and "ID" in command:
            document = json.loads(out)
            assert document["sensitive"] is True
            assert document["args"] is document["kwargs"] is document["result"] is None
    assert said
    assert SECRET not in said
    assert "ID" not in command or output or HIDDEN in said


def test_type_and_code_of_an_error_are_kept(ran, app):
    job = Inspection(app.backend).job(ran["card.bad"])
    assert job.error.type == "Hushed"
    assert job.error.message == HIDDEN
    assert [one.outcome for one in job.history] == ["failed", "failed"]
    assert "in fail_with" in job.error.traceback
    assert "test_sensitive.py" in job.error.traceback
    with pytest.raises(JobFailed) as caught:
        app.result(ran["card.bad"]).get(timeout=5)
    assert SECRET not in f"{caught.value} {caught.value.traceback}"


def test_progress_is_kept_without_its_note(ran, app, here):
    app.close()
    with closing(sqlite3.connect(here / "queue.db")) as file:
        assert file.execute("SELECT done, total, note FROM progress").fetchall() == [
            (2.0, 3.0, None)
        ]


def test_program_that_has_enqueued_it_has_its_result(ran, app):
    assert app.result(ran["card.good"]).get(timeout=5) == {"seen": SECRET}
    assert app.result(ran["card.good"]).state == "done"


def test_what_an_async_task_leaves_on_the_loop_says_nothing_either(app, events):
    """A loop hands on a SystemExit of a task that nobody awaits: the loop goes on, and says so."""

    @app.task(name="async", sensitive=True)
    async def leaves(card):
        async def stray():
            raise SystemExit(card)

        task = asyncio.get_running_loop().create_task(stray())
        await asyncio.wait([task])

    leaves.delay(whisper())
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert [one["error"] for one in events("loop_interrupted")] == [f"SystemExit: {HIDDEN}"]
    assert SECRET not in json.dumps(events())


LEAVING = """
import asyncio, gc, os
from sqlqueue import SqlQueue

app = SqlQueue("leaving", broker_url="sqlqueue:///queue.db")


def fail(card):
    raise ValueError(f"card {card}")


async def leave(how, card):
    loop = asyncio.get_running_loop()

    async def stray():
        fail(card)

    async def waits():
        unheard.append(loop.create_future())
        await unheard[0]

    async def yields():
        try:
            yield
        finally:
            fail(card)

    unheard = []
    if how == "task":
        asyncio.create_task(stray())
    elif how == "callback":
        loop.call_soon(fail, card)
    elif how == "thread":
        loop.run_in_executor(None, fail, card)
    elif how == "pending":
        asyncio.create_task(waits(), name=f"for {card}")
    elif how == "generator":
        async for _ in yields():
            break
    elif how == "account":
        loop.call_exception_handler({"message": f"lost {card}", "protocol": card})
    elif how == "without exception":
        loop.call_exception_handler({"message": card, "exception": None})
    await asyncio.sleep(0.05)
    unheard.clear()
    gc.collect()
    await asyncio.sleep(0)


app.task(name="hushed", sensitive=True)(leave)
app.task(name="plain")(leave)
"""
WAYS = ["task", "callback", "thread", "pending", "generator", "account", "without exception"]


def said_by_worker(directory, pool, calls):
    """Return the log of a worker that runs these calls, one after the other, in a process."""
    (directory / "leaving.py").write_text(LEAVING)
    code = f"""
        import subprocess, sys, leaving
        for name, how, card in {calls!r}:
            leaving.app.send_task(name, [how, card])
        leaving.app.close()
        worker = subprocess.run([sys.executable, "-m", "sqlqueue", "worker", "-A", "leaving:app",
            "--burst", "-c", "1", "-P", {pool!r}], capture_output=True, text=True, timeout=60)
        print(worker.stdout, worker.stderr)
        assert worker.returncode == 0
        assert worker.stderr.count("job_done") == {len(calls)}
    """
    process = run_python(code, cwd=directory)
    out, error = process.communicate(timeout=110)
    assert process.returncode == 0, out + error
    return out + error


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "processes", "threads"])
def test_what_a_sensitive_job_leaves_on_the_loop_fails_without_its_text(tmp_path, pool):
    before = [("plain", how, "before") for how in ("task", "callback")]
    hushed = [("hushed", how, SECRET) for how in WAYS]
    said = said_by_worker(tmp_path, pool, before + hushed)
    assert SECRET not in said
    assert said.count("ValueError: card before") == 2, "what ran before hides nothing"
    told = [
        json.loads(line[line.index("{") :])
        for line in said.splitlines()
        if '"leftover_failed"' in line
    ]
    assert {(one["what"], one["error"]) for one in told} == {
        ("task", f"ValueError: {HIDDEN}"),
        ("callback", f"ValueError: {HIDDEN}"),
        ("future", f"ValueError: {HIDDEN}"),
        ("task", HIDDEN),
        ("something", HIDDEN),
    }
    traces = [one["traceback"] for one in told if "traceback" in one]
    assert all("in fail" in one and "leaving.py" in one for one in traces)


@pytest.mark.slow
def test_what_another_job_leaves_after_a_sensitive_one_is_hidden_too(tmp_path):
    """It may have been given something by it: a pool of connections, for one."""
    said = said_by_worker(tmp_path, "solo", [("hushed", "nothing", "x"), ("plain", "task", SECRET)])
    assert SECRET not in said
    assert "leftover_failed" in said


def test_arguments_that_do_not_fit_are_told_without_them(app):
    @app.task(name="two", sensitive=True, max_attempts=1, bind=True)
    def two(self, card, cvc):
        """Take two."""

    @app.task(name="async two", sensitive=True, max_attempts=1)
    async def async_two(card, cvc):
        """Take two."""

    calls = [([whisper()], {}), (["x"], {whisper(): "x"}), ([], {}), (["x"] * 3, {})]
    for name in ("two", "async two"):
        for args, kwargs in calls:
            job_id = app.send_task(name, args, kwargs).id
            run_solo(app, name="w", burst=True, handle_signals=False)
            error = Inspection(app.backend).job(job_id).error
            assert error.type == "TypeError"
            assert "arguments do not fit the task's signature (values hidden)" in error.message
            assert SECRET not in repr(error)


def test_result_that_is_no_json_is_told_without_it(app):
    job_id = app.send_task("card.odd", [whisper()]).id
    run_solo(app, name="w", burst=True, handle_signals=False)
    error = Inspection(app.backend).job(job_id).error
    assert error.type == "UnserializableResult"
    assert error.message.startswith("the result is no JSON (value hidden). Return text")
    assert SECRET not in repr(error)


@pytest.mark.parametrize("kind", [TypeError, UnserializableResult])
def test_the_same_errors_of_the_task_itself_are_hidden(app, kind):
    @app.task(name="raises", sensitive=True, max_attempts=1)
    def raises(card, depth=1):
        if depth:
            raises(card, 0)
        raise kind(card)

    job_id = raises.delay(whisper()).id
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert Inspection(app.backend).job(job_id).error.message == HIDDEN


def test_a_function_in_c_that_fits_and_fails_is_not_said_not_to_fit(app):
    app.task(name="add", sensitive=True, max_attempts=1)(operator.add)
    job_id = app.send_task("add", [whisper(), 1]).id
    run_solo(app, name="w", burst=True, handle_signals=False)
    error = Inspection(app.backend).job(job_id).error
    assert (error.type, error.message) == ("TypeError", HIDDEN)


def test_a_call_that_is_not_made_yet_does_not_show_its_arguments(app):
    good, plain = app.tasks["card.good"], app.tasks["open"]
    hidden = [
        good.s(SECRET),
        good.s("x", cvc=SECRET).set(queue="q"),
        plain.s(SECRET).set(sensitive=True),
    ]
    for call in hidden:
        for shown in (repr(call), str(call), f"{[call]}"):
            assert SECRET not in shown
            assert HIDDEN in shown
    assert "'queue': 'q'" in repr(hidden[1])
    assert repr(plain.s(1, a=2)) == "Signature(task='open', args=(1,), kwargs={'a': 2}, options={})"
    assert good.s(SECRET).args == (SECRET,)
    assert good.s(SECRET) == Signature("card.good", (SECRET,))


def test_limit_of_time_is_no_secret(app):
    @app.task(name="slow", sensitive=True, soft_time_limit=0.05, max_attempts=1)
    def slow(card):
        give_up_s = time.monotonic() + 20
        while time.monotonic() < give_up_s:
            pass

    job = slow.delay(whisper())
    run_solo(app, name="w", burst=True, handle_signals=False)
    error = Inspection(app.backend).job(job.id).error
    assert error.type == "SoftTimeLimitExceeded"
    assert "0.05 s" in error.message


def test_other_tasks_show_what_they_always_did(app):
    app.send_task("open", ["plain"], job_id="one")
    run_solo(app, name="w", burst=True, handle_signals=False, max_jobs=1)
    job = Inspection(app.backend).job("one")
    assert job.arguments.args == ("plain",)
    assert not job.is_sensitive
    assert job.error.message == "plain"


def test_call_without_the_mark_still_keeps_what_it_leads_to(app, make_app):
    """A program that does not know the task publishes its arguments openly; no error adds to it."""
    make_app().send_task("card.bad", ["card-1"], job_id="one")
    run_solo(app, name="w", burst=True, handle_signals=False)
    job = Inspection(app.backend).job("one")
    assert job.error.message == HIDDEN
    assert not job.is_sensitive


def test_call_may_add_the_mark_and_not_take_it_away(app):
    def headers(name, **options):
        return app.publication(Signature(name, (SECRET,), {"a": SECRET}, options)).envelope.headers

    mark = "sqlqueue-sensitive"
    assert mark not in headers("open")
    for found in (
        headers("open", sensitive=True),
        headers("card.good"),
        headers("card.good", sensitive=False),
    ):
        assert found[mark] is True
        assert found["argsrepr"] == found["kwargsrepr"] == f"({HIDDEN})"
        assert SECRET not in repr(found)


@pytest.mark.parametrize("value", [1, "yes", 0, [True]])
def test_mark_is_true_or_false(app, value):
    with pytest.raises(TaskDefinitionError, match="sensitive"):
        app.task(name="new", sensitive=value)(print)
    with pytest.raises(EnvelopeError, match="sensitive"):
        app.send_task("open", [1], sensitive=value)


@pytest.mark.parametrize(
    "headers",
    [
        '{"sqlqueue-sensitive": false}',
        '{"sqlqueue-sensitive": null}',
        '"sqlqueue-sensitive" [',
        "[",
    ],
)
def test_headers_of_a_foreign_hand_neither_end_the_search_nor_open_anything(app, here, headers):
    app.send_task("open", ["findme"], job_id="one")
    app.send_task("open", ["findme"], job_id="two")
    app.close()
    with closing(sqlite3.connect(here / "queue.db")) as file, file:
        file.execute("PRAGMA ignore_check_constraints = 1")
        file.execute("UPDATE message SET headers = ? WHERE job_id = 'one'", (headers,))
    inspection = Inspection(app.backend)
    found = {row.name for row in inspection.every_job(JobFilter(search="findme"))}
    assert found == ({"two"} if "sensitive" in headers else {"one", "two"})
    assert "findme" not in repr(inspection.job("one"))


def test_result_that_celery_stored_is_not_shown(app, ran):
    store = app.backend.store
    for job_id, result in (
        (ran["card.good"], {"card": SECRET}),
        (ran["card.bad"], {"exc_type": "KeyError", "exc_message": [SECRET], "exc_module": "x"}),
    ):
        meta = {"status": "X", "result": result, "traceback": SECRET}
        store.results.store(
            f"celery-task-meta-{job_id}", "X", json.dumps(meta).encode(), expires_s=None
        )
        found = Inspection(app.backend).job(job_id).celery
        assert found.state == "X"
        assert SECRET not in repr(found)


@pytest.mark.parametrize("by", ["its task", "its call"])
@pytest.mark.parametrize("remover", ["the application", "a program without the tasks"])
def test_entry_of_the_schedule_leaves_its_arguments_in_no_audit(app, make_app, here, by, remover):
    options = {} if by == "its task" else {"sensitive": True}
    name = "card.good" if by == "its task" else "open"
    call = Signature(name, ([SECRET],), {"cvc": SECRET}, {**options, "queue": "q"})
    app.schedules.add("charge", call, every=60, jitter=5, actor="ann")
    app.schedules.add("plain", Signature("open", ("seen",), {}, {}), every=60)
    app.close()
    assert where_it_is(SECRET, here / "queue.db") == {"schedule.definition"}
    other = app if remover == "the application" else make_app()
    for entry in ("charge", "plain"):
        other.schedules.remove(entry, actor="bob", reason="over")
    other.close()
    assert where_it_is(SECRET, here / "queue.db") == set()
    with closing(sqlite3.connect(here / "queue.db")) as file:
        rows = file.execute("SELECT actor, action, before, after FROM audit ORDER BY id").fetchall()
    assert [row[:2] for row in rows if "charge" in row[3]] == [
        ("ann", "schedule_add"),
        ("bob", "schedule_remove"),
    ]
    for kept in (rows[0][3], rows[2][2]):
        found = json.loads(json.loads(kept)["definition"])
        assert (found["task"], found["every"], found["jitter"]) == (name, 60, 5)
        assert not {"args", "kwargs", "options"} & found.keys()
    for kept in (rows[1][3], rows[3][2]):
        assert json.loads(json.loads(kept)["definition"])["args"] == ["seen"]


@pytest.mark.parametrize(
    "definition",
    [
        '{"task": "card.good", "args": ["SECRET"], "every": 5}',
        '{"task": "open", "args": ["SECRET"], "every": 5, "options": {"sensitive": true}}',
        '{"task": "open", "args": ["SECRET"], "options": {"sensitive": true',
        '{"task": "open", "args": ["SECRET"], "options": 5}',
        '["SECRET", "sensitive"]',
    ],
)
def test_entry_that_somebody_wrote_by_hand_leaves_its_arguments_in_no_audit(app, here, definition):
    app.schedules.add("e", Signature("open", ("seen",), {}, {}), every=60)
    app.close()
    with closing(sqlite3.connect(here / "queue.db")) as file, file:
        file.execute("UPDATE schedule SET definition = ?", (definition.replace("SECRET", SECRET),))
    app.schedules.remove("e")
    app.close()
    assert where_it_is(SECRET, here / "queue.db") == set()


def test_jobs_of_an_entry_of_a_sensitive_task_are_marked_also_where_the_beat_knows_no_task(
    app, make_app
):
    app.schedules.add("charge", Signature("card.good", (SECRET,), {}, {}), every=60)
    [row] = app.schedules.list()
    entry = stored_entry(make_app(), "charge", row.definition)
    headers = make_app().publication(entry.signature).envelope.headers
    assert headers["sqlqueue-sensitive"] is True


def test_test_of_an_application_sees_what_it_has_published(app):
    with app.testing() as testing:
        app.send_task("card.good", ["x"])
        testing.drain()
        [job] = testing.jobs()
        assert (job.args, job.result) == (("x",), {"seen": "x"})


def test_fault_of_an_error_that_hides_has_none_of_its_texts():
    with pytest.raises(Hushed) as caught:
        fail_with(SECRET)
    assert SECRET in fault_of(caught.value).traceback
    fault = fault_of(caught.value, hide=True)
    assert fault.type == "Hushed"
    assert SECRET not in repr(fault)
    assert fault.traceback.startswith("Traceback (most recent call last):\n")


def test_worker_process_and_who_waits_at_a_terminal_are_told_nothing(tmp_path):
    (tmp_path / "cards.py").write_text(
        "from sqlqueue import SqlQueue\n"
        "app = SqlQueue('cards', broker_url='sqlqueue:///queue.db')\n"
        "@app.task(name='charge', sensitive=True)\n"
        "def charge(card):\n"
        "    return card\n"
    )
    code = """
        import subprocess, sys
        run = lambda *words: subprocess.run(
            [sys.executable, "-m", "sqlqueue", *words, "-A", "cards:app"],
            capture_output=True, text=True, timeout=60)
        worker = subprocess.Popen([sys.executable, "-m", "sqlqueue", "worker", "-A", "cards:app",
            "-P", "solo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said = run("call", "charge", '["CARD"]', "--wait", "--timeout", "50s")
        finally:
            worker.terminate()
            log, _ = worker.communicate(timeout=50)
        assert said.returncode == 0, said
        assert "CARD" not in said.stdout + said.stderr + log, (said, log)
        assert "sensitive" in said.stderr, said
        assert "job_done" in log, log
    """
    process = run_python(code.replace("CARD", SECRET), cwd=tmp_path)
    out, error = process.communicate(timeout=110)
    assert process.returncode == 0, out + error


def test_mark_is_written_as_the_transport_reads_it():
    built = envelope.build("t", (), {}, job_id="x", sensitive=True)
    assert built.headers["sqlqueue-sensitive"] is True
    assert envelope.parse(built.headers, built.body).is_sensitive
