"""Loggers of the standard library inside of tasks: the job in every line, nobody else's touched."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest
from structlog.contextvars import bound_contextvars

from sqlqueue import JobFields, get_task_logger
from sqlqueue.worker.solo import run_solo
from tests.support import finish, run_python

JOB = {"job_id": "j1", "task": "t", "queue": "q", "attempt": 2, "max_attempts": 5}
HOSTILE = "\x1b[2J\r\nforged [bold]red[/bold] \u202e"


def test_outside_of_a_worker_it_is_the_loggers_own_of_that_name(caplog):
    logger = get_task_logger("shop.tasks")
    assert isinstance(logger, logging.Logger)
    logger.info("not shown by default")
    with caplog.at_level(logging.INFO, logger="shop.tasks"):
        logger.info("x %s", 5)
        assert logger.isEnabledFor(logging.INFO)
        logger.getChild("below").info("child")
    assert [(one.name, one.getMessage(), one.filename) for one in caplog.records] == [
        ("shop.tasks", "x 5", "test_task_log.py"),
        ("shop.tasks.below", "child", "test_task_log.py"),
    ]
    assert not logger.isEnabledFor(logging.INFO)


def test_in_a_worker_its_lines_carry_the_job_and_stand_in_the_workers_log(events):
    logger = get_task_logger("shop.tasks")
    with bound_contextvars(**JOB):
        logger.info("sent %d mails", 3, extra={"customer": 7, "event": "forged"})
    logger.warning("no job")
    first, second = events()
    assert {**first, "timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "event": "sent 3 mails",
        "logger": "shop.tasks",
        **JOB,
        "customer": 7,
    }
    assert (second["event"], second["level"], "job_id" in second) == ("no job", "warning", False)


def test_extra_fields_cannot_pretend_another_job(events):
    with bound_contextvars(**JOB):
        get_task_logger("x").info("a", extra={"job_id": "other", "queue": "other", "level": "q"})
    (line,) = events()
    assert (line["job_id"], line["queue"], line["level"]) == ("j1", "q", "info")


def test_hostile_text_is_escaped_wherever_it_stands(events, tmp_path):
    get_task_logger("x").error("%s", HOSTILE, extra={"name_": HOSTILE})
    text = (tmp_path / "events.jsonl").read_text()
    assert text.count("\n") == 1
    (line,) = events()
    for value in (line["event"], line["name_"]):
        assert value == r"\x1b[2J\x0d\x0aforged [bold]red[/bold] \u202e"


def test_a_traceback_and_a_stack_are_kept(events):
    logger = get_task_logger("x")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("failed", stack_info=True)
    (line,) = events()
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
    assert "test_task_log.py" in line["stack"]


class Broken:
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def test_a_line_that_cannot_be_formatted_is_written_as_it_is_and_raises_nothing(events):
    logger = get_task_logger("x")
    logger.info("%d pieces", "no number")
    logger.info("%s", Broken())
    logger.info(Broken())
    assert [one["event"] for one in events()] == [
        "%d pieces ('no number',)",
        "%s <tuple>",
        "<Broken>",
    ]


def test_what_logging_disables_for_the_whole_process_is_disabled_in_a_worker_too(events):
    logger = get_task_logger("x")
    logging.disable(logging.INFO)
    try:
        logger.info("not written")
        logger.warning("written")
    finally:
        logging.disable(logging.NOTSET)
    logger.info("written again")
    assert [one["event"] for one in events()] == ["written", "written again"]


def test_levels_between_and_around_the_known_ones_are_rounded_down(events):
    logger = get_task_logger("x")
    for level in (5, 10, 25, 55):
        logger.log(level, "level %d", level)
    assert [one["level"] for one in events()] == ["debug", "info", "critical"]
    logger.setLevel(logging.ERROR)
    logger.warning("not any more")
    assert len(events()) == 3


def test_nothing_of_the_root_logger_or_of_the_own_one_is_touched(events):
    root, own = logging.getLogger(), logging.getLogger("untouched")
    before = (root.level, list(root.handlers), own.level, list(own.handlers), own.propagate)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    own.addHandler(handler)
    try:
        get_task_logger("untouched").warning("to the worker's log only")
    finally:
        own.removeHandler(handler)
    assert stream.getvalue() == ""
    assert len(events()) == 1
    assert (root.level, list(root.handlers), own.level, list(own.handlers), own.propagate) == before


def test_a_handler_of_the_loggers_own_gets_the_line_too(events):
    stream = io.StringIO()
    logger = get_task_logger("x")
    logger.addHandler(logging.StreamHandler(stream))
    logger.info("both")
    assert (stream.getvalue(), len(events())) == ("both\n", 1)


def test_the_filter_gives_other_handlers_the_job():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(JobFields())
    handler.setFormatter(logging.Formatter("%(job_id)s %(task)s %(queue)s %(attempt)s %(message)s"))
    logger = logging.getLogger("of.the.users.own")
    logger.addHandler(handler)
    try:
        with bound_contextvars(**{**JOB, "task": HOSTILE}):
            logger.warning("in")
        logger.warning("out")
    finally:
        logger.removeHandler(handler)
    first, second = stream.getvalue().splitlines()
    assert first == r"j1 \x1b[2J\x0d\x0aforged [bold]red[/bold] \u202e q 2 in"
    assert second == "None None None None out"


def test_two_jobs_in_one_process_do_not_mix(events):
    logger = get_task_logger("x")
    meet = threading.Barrier(2, timeout=30)

    def job(name):
        with bound_contextvars(**{**JOB, "job_id": name}):
            meet.wait()
            logger.info(name)

    threads = [threading.Thread(target=job, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((one["event"], one["job_id"]) for one in events()) == [("a", "a"), ("b", "b")]


def test_a_solo_worker_writes_the_lines_of_its_tasks(app, events):
    logger = get_task_logger("shop")
    app.task(name="t")(lambda: logger.info("inside")).delay()
    assert run_solo(app, name="w", burst=True, handle_signals=False) == 0
    (line,) = events("inside")
    (started,) = events("job_started")
    assert {key: line[key] for key in JOB} == {key: started[key] for key in JOB}


APP = """
from sqlqueue import SqlQueue, get_task_logger
import structlog

app = SqlQueue("logged", broker_url="sqlqueue:///queue.db")
logger = get_task_logger(__name__)
own = structlog.get_logger()

@app.task(name="t", bind=True, max_attempts=2, retry_backoff=0)
def t(self, text):
    logger.info("one %s", text)
    own.warning("two", text=text)
    logger.getChild("x").error("three", extra={"text": text})
    if self.request.attempt == 1:
        raise OSError(text)
"""


@pytest.mark.slow
def test_every_line_of_a_child_between_start_and_end_carries_the_job(here, app):
    (here / "logged.py").write_text(APP)
    jobs = [app.send_task("t", [HOSTILE], queue="default") for _ in range(4)]
    with (here / "log").open("w") as log_file:
        process = run_python(
            "import sys; from sqlqueue.cli import main; sys.exit(main())",
            *("worker", "-A", "logged:app", "-c", "2", "--burst", "--log-format", "json"),
            cwd=here,
            env={"PYTHONPATH": str(here)},
            stderr=log_file,
        )
        finish(process, deadline_s=60)
    lines = [json.loads(line) for line in (here / "log").read_text().splitlines()]
    said = {"job_started", "two", "three", "job_done", "job_retry_scheduled"}
    of_jobs = [one for one in lines if one["event"] in said or one["event"].startswith("one ")]
    assert len(of_jobs) == 4 * 2 * 5
    ids = {job.id for job in jobs}
    for line in of_jobs:
        assert line["job_id"] in ids
        assert (line["task"], line["queue"]) == ("t", "default")
        assert (line["attempt"] in {1, 2}, line["max_attempts"]) == (True, 2)
    assert HOSTILE[:4] not in (here / "log").read_text()
