"""Fixtures for pytest: an application in testing, what runs its jobs, and a real worker.

    # pytest.ini
    [pytest]
    sqlqueue_app = shop.tasks:app

    def test_an_order_is_mailed(sqlqueue_testing):
        order.delay(7)
        (ran,) = sqlqueue_testing.drain()

pytest imports this module in every run where sqlqueue is installed, so it imports nothing: the
fixtures do, when a test asks for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.testing import Testing

__all__ = ["sqlqueue_app", "sqlqueue_testing", "sqlqueue_worker"]

_NAMES = "the application of the fixtures sqlqueue_app, sqlqueue_testing and sqlqueue_worker"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``sqlqueue_app`` to the ini file and ``--sqlqueue-app`` to the command line."""
    parser.addini("sqlqueue_app", f"module:attribute of {_NAMES}", default="")
    parser.getgroup("sqlqueue").addoption(
        "--sqlqueue-app",
        default="",
        metavar="MODULE:ATTRIBUTE",
        help=f"{_NAMES}; wins over the ini option sqlqueue_app",
    )


@pytest.fixture
def sqlqueue_app(pytestconfig: pytest.Config) -> Iterator[SqlQueue]:
    """Return the application that the ini option ``sqlqueue_app`` names, in testing.

    Write a fixture of this name to use another one; return it as it is, or in testing.
    """
    path = pytestconfig.getoption("sqlqueue_app") or pytestconfig.getini("sqlqueue_app")
    if not path:
        pytest.fail(
            "no application for sqlqueue's fixtures. Name one in the ini file"
            " (sqlqueue_app = module:app) or with --sqlqueue-app module:app, or write a fixture"
            " sqlqueue_app that returns one.",
            pytrace=False,
        )
    from sqlqueue.errors import AppImportError  # noqa: PLC0415 - see above
    from sqlqueue.loading import load_app  # noqa: PLC0415 - see above

    try:
        app = load_app(path)
    except AppImportError as error:
        pytest.fail(f"sqlqueue_app = {path}: {error}", pytrace=False)
    with app.testing():
        yield app


@pytest.fixture
def sqlqueue_testing(sqlqueue_app: SqlQueue) -> Iterator[Testing]:
    """Return what runs the jobs of ``sqlqueue_app``, moves its time and looks into its file."""
    running = sqlqueue_app.in_testing
    if running is not None:
        yield running
    else:  # a fixture of the user's own, which returns it as it is
        with sqlqueue_app.testing() as testing:
            yield testing


@pytest.fixture
def sqlqueue_worker(sqlqueue_testing: Testing) -> Iterator[Testing]:
    """Have a real worker run the jobs of ``sqlqueue_app`` in a thread until the test ends.

    Time goes on by itself. The test fails if the worker crashes.
    """
    with sqlqueue_testing.worker():
        yield sqlqueue_testing
