"""What holds for every test, and what the markers `slow` and `debian` do to one."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Generator, Iterator

import pytest
import structlog

from sqlqueue import config, log
from sqlqueue_transport import stores

SLOW_TIMEOUT_S = 600
MEASURED_LINES = 20  # what a test printed last
_PID = os.getpid()


def pytest_configure() -> None:
    """Let this process open many files, and programs that it starts be interrupted.

    A process keeps the presence file of each queue it used. And a shell starts what it runs in the
    background with SIGINT ignored, which programs inherit, so that tests of ctrl-c would wait in vain.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than the 120 s of pyproject.toml, unless they name their own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """End a forked child that left its test, and spell out halves of surrogate pairs in the rest.

    Such a child, of an exception nobody expected, would run all further tests a second time. And
    hostile text is printed on purpose, which xdist cannot carry from its workers as it is.
    """
    if os.getpid() != _PID:
        told = str(call.excinfo and call.excinfo.getrepr())
        os.write(2, f"a forked child left {item.nodeid}: {told}\n".encode(errors="replace"))
        os._exit(97)
    report = yield
    report.sections = [(_spelled(title), _spelled(text)) for title, text in report.sections]
    report.user_properties = [
        (name, _spelled(value) if isinstance(value, str) else value)
        for name, value in report.user_properties
    ]
    return report


def _spelled(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `debian("redis-server")` where that program is not installed.

    In CI it fails instead: what was not tested must not look green.
    """
    for marker in item.iter_markers("debian"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing and os.environ.get("CI"):
            pytest.fail(f"not installed: {', '.join(missing)}")
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what slow tests have printed, though they passed: what they measured.

    No test asserts a speed, so that whoever wants to know one has to see it.
    """
    told = [
        (report.nodeid, report.capstdout.rstrip().splitlines()[-MEASURED_LINES:])
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and "slow" in report.keywords and report.capstdout.strip()
    ]
    if told:
        terminalreporter.section("measured")
    for node_id, lines in told:
        terminalreporter.write_line(node_id)
        for line in lines:
            terminalreporter.write_line(f"    {line}")


@pytest.fixture(autouse=True)
def _gives_back_its_stores() -> Iterator[None]:
    """Fail a test that leaves a queue file open: the next one would find it in this process."""
    before = set(stores._open)
    yield
    left = [str(path) for path in stores._open if path not in before]
    assert not left, f"left open: {left}"


@pytest.fixture(autouse=True)
def _forgets_what_it_configured() -> Iterator[None]:
    """Take back what a command that ran in this process was told, and where it logs to.

    Applications of later tests would obey it, and their lines would go there.
    """
    yield
    config.set_command_line({})
    if log._active is not None:
        log._active = None
        structlog.reset_defaults()
