"""The fixtures for pytest, in runs of pytest itself."""

from __future__ import annotations

import configparser
import subprocess
import sys

import pytest

from tests.support import ROOT

pytest_plugins = ["pytester"]

SHOP = """
    import threading
    from sqlqueue import SqlQueue

    app = SqlQueue("shop", broker_url="sqlqueue:////nowhere/at/all/queue.db")

    @app.task
    def price(pieces: int) -> int:
        return pieces * 3

    @app.task
    def bad() -> None:
        raise ZeroDivisionError("of the task")
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """Be a project with an application and an ini file that names it."""
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\nsqlqueue_app = shop:app\npythonpath = .\n")
    return pytester


def run(project, tests, *options):
    project.makepyfile(tests)
    return project.runpytest_inprocess("-p", "sqlqueue.pytest_plugin", "-p", "no:xdist", *options)


def test_the_application_is_in_testing_and_its_jobs_run_when_drained(project):
    result = run(
        project,
        """
        from shop import app, price

        def test_app(sqlqueue_app):
            assert sqlqueue_app is app
            assert app.in_testing is not None
            assert price.delay(2).state == "pending"

        def test_testing(sqlqueue_app, sqlqueue_testing):
            assert sqlqueue_testing.jobs() == []
            price.apply_async((2,), countdown=60)
            sqlqueue_testing.advance(60)
            (ran,) = sqlqueue_testing.drain()
            assert ran.result == 6

        def test_after():
            assert app.in_testing is None
        """,
    )
    result.assert_outcomes(passed=3)


def test_an_exception_of_a_task_fails_the_test_with_its_traceback(project):
    result = run(
        project,
        """
        from shop import bad

        def test_bad(sqlqueue_testing):
            bad.delay()
            sqlqueue_testing.drain()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*def bad() -> None:*", "E *ZeroDivisionError: of the task"])


def test_a_worker_runs_in_a_thread_until_the_test_ends(project):
    result = run(
        project,
        """
        import threading
        from shop import price

        def test_worker(sqlqueue_worker):
            assert price.delay(2).get(timeout=30) == 6
            assert price.apply_async((3,), countdown=0.01).get(timeout=30) == 9

        def test_after():
            assert not [one for one in threading.enumerate() if "sqlqueue" in one.name]
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_worker_that_crashes_fails_its_test(project):
    result = run(
        project,
        """
        import contextlib
        from shop import price
        from sqlqueue import TestingError
        from sqlqueue.worker.consumer import Consumer

        def test_crash(sqlqueue_worker, monkeypatch):
            def crash(*_):
                raise MemoryError("crashed")
            monkeypatch.setattr(Consumer, "_start", crash)
            with contextlib.suppress(TestingError):
                price.delay(2).get(timeout=60)
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*TestingError: the worker crashed: MemoryError: crashed"])


def test_the_command_line_wins_over_the_ini_file(project):
    project.makepyfile(other="from sqlqueue import SqlQueue\nmine = SqlQueue('other')\n")
    tests = "def test_name(sqlqueue_app):\n    assert sqlqueue_app.name == 'other'\n"
    run(project, tests, "--sqlqueue-app", "other:mine").assert_outcomes(passed=1)


@pytest.mark.parametrize("entered", [True, False])
def test_a_fixture_of_the_users_own_may_return_another_application(project, entered):
    with_testing = "with app.testing():\n        yield app" if entered else "yield app"
    project.makeconftest(
        f"""
        import pytest
        from sqlqueue import SqlQueue

        @pytest.fixture
        def sqlqueue_app():
            app = SqlQueue("own", broker_url="sqlqueue:////nowhere/at/all/queue.db")
            app.task(name="t")(lambda: 1)
            {with_testing.replace(chr(10), chr(10) + " " * 8)}
        """
    )
    result = run(
        project,
        """
        def test_own(sqlqueue_app, sqlqueue_testing):
            assert sqlqueue_testing.app is sqlqueue_app
            sqlqueue_app.send_task("t")
            assert len(sqlqueue_testing.drain()) == 1
        """,
    )
    result.assert_outcomes(passed=1)


def test_without_an_application_an_error_says_how_to_name_one(pytester):
    result = run(pytester, "def test_none(sqlqueue_app): ...\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no application for sqlqueue's fixtures. Name one in the ini*"])


def test_an_application_that_cannot_be_imported_is_said_in_one_line(pytester):
    result = run(pytester, "def test_none(sqlqueue_app): ...\n", "--sqlqueue-app=nowhere:app")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["sqlqueue_app = nowhere:app: *nowhere*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_pytest_finds_the_plugin_by_the_name_of_its_module():
    """By another name, `-p sqlqueue.pytest_plugin` would register it twice, which pytest refuses."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entry = setup["options.entry_points"]["pytest11"].strip()
    assert entry == "sqlqueue.pytest_plugin = sqlqueue.pytest_plugin"


def test_importing_the_plugin_loads_nothing_of_the_framework():
    code = (
        "import sys, pytest; before = set(sys.modules); import sqlqueue.pytest_plugin;"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['sqlqueue', 'sqlqueue.pytest_plugin']"


@pytest.mark.slow
def test_a_run_of_its_own_with_two_processes(project):
    """Each of xdist's processes has a file of its own."""
    project.makepyfile(
        """
        import pytest
        from shop import price

        @pytest.mark.parametrize("number", range(8))
        def test_number(sqlqueue_testing, number):
            price.delay(number)
            assert [ran.result for ran in sqlqueue_testing.drain()] == [number * 3]
        """
    )
    result = project.runpytest_subprocess("-p", "sqlqueue.pytest_plugin", "-n", "2")
    result.assert_outcomes(passed=8)
