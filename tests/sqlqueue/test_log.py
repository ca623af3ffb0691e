import ast
import io
import json
import logging
import math
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog
from freezegun import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

import sqlqueue
from sqlqueue import log
from sqlqueue.errors import ConfigError
from sqlqueue.log import EVENTS, configure, get_logger, reopen
from sqlqueue.text import escaped, quoted

LOG = get_logger("sqlqueue.test")
FORGED = "x\n2026-01-01T00:00:00Z [info] job_done\r\x1b[2J\x9b1m\x7f\u202e\u2028\u200b\ud800\x00"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Leave neither our configuration nor structlog's behind."""
    monkeypatch.setattr(log, "_active", None)
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stderr(capsys):
    return Captured(capsys)


class Captured:
    """Standard error so far; pytest puts its own stream there between fixture and test."""

    def __init__(self, capsys):
        self._capsys = capsys
        self._said = ""

    def getvalue(self):
        self._said += self._capsys.readouterr().err
        return self._said


def lines(source):
    text = source.read_text() if isinstance(source, Path) else source.getvalue()
    return [json.loads(line) for line in text.splitlines()]


def in_a_new_process(program, **options):
    environ = {**os.environ, "PYTHONPATH": str(Path(sqlqueue.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
        timeout=60,
        **options,
    )


# --- what a line says -----------------------------------------------------------------------------


def test_without_a_terminal_a_line_is_json_with_an_iso_utc_time(stderr):
    configure(always={"worker": "w1"})
    with freeze_time("2026-11-22T05:11:07.123Z"):
        LOG.info("job_done", took_s=1.5)
    (line,) = lines(stderr)
    assert line.pop("timestamp").startswith("2026-11-22T05:11:07.123")
    assert line == {
        "level": "info",
        "event": "job_done",
        "logger": "sqlqueue.test",
        "worker": "w1",
        "took_s": 1.5,
    }


def test_times_end_in_z(stderr):
    configure()
    LOG.info("job_done")
    assert lines(stderr)[0]["timestamp"].endswith("Z")


def test_events_within_a_job_name_the_job_and_events_after_it_do_not(stderr):
    configure()
    with bound_contextvars(job_id="1", task="a.b", queue="q", attempt=2, max_attempts=5):
        LOG.info("job_started")
        LOG.info("job_done", attempt=3)
    LOG.info("worker_stopped")
    started, done, stopped = lines(stderr)
    assert list(started)[4:] == ["job_id", "task", "queue", "attempt", "max_attempts"]
    assert (started["job_id"], started["task"], started["queue"]) == ("1", "a.b", "q")
    assert (started["attempt"], started["max_attempts"], done["attempt"]) == (2, 5, 3)
    assert "job_id" not in stopped


def test_two_threads_do_not_mix_their_jobs(stderr):
    configure()
    both_are_in = threading.Barrier(2, timeout=10)

    def run(number):
        with bound_contextvars(job_id=number, task="a.b", queue="q", attempt=1):
            both_are_in.wait()
            LOG.info("job_done", expected=number)

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["job_id"] for line in lines(stderr)] == [
        line["expected"] for line in lines(stderr)
    ]


def test_a_console_shows_the_attempt_as_two_of_five(stderr):
    configure(format="console")
    with bound_contextvars(job_id="1", task="a.b", queue="q", attempt=2, max_attempts=5):
        LOG.info("job_started")
    assert "attempt=2/5" in stderr.getvalue()
    assert "max_attempts" not in stderr.getvalue()


def test_only_events_at_the_level_or_above_are_said(stderr):
    configure("warning")
    for say in (LOG.debug, LOG.info, LOG.warning, LOG.error):
        say("store_busy")
    assert [line["level"] for line in lines(stderr)] == ["warning", "error"]


def test_a_bound_logger_adds_its_fields(stderr):
    configure()
    bound = LOG.bind(worker="w2").bind(child=7)
    bound.info("child_started")
    LOG.info("child_started")
    bound_line, plain_line = lines(stderr)
    assert (bound_line["worker"], bound_line["child"]) == ("w2", 7)
    assert "worker" not in plain_line


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_told_with_its_traceback(stderr, form):
    configure(format=form)
    try:
        int("no number")
    except ValueError as error:
        LOG.exception("producer_failed")
        LOG.warning("producer_failed", exc_info=error)
    assert stderr.getvalue().count("Traceback (most recent call last)") == 2
    assert stderr.getvalue().count("ValueError: invalid literal") == 2


def test_the_applications_own_structlog_loggers_write_here_too(stderr):
    configure()
    with bound_contextvars(job_id="1", task="a.b", queue="q", attempt=1):
        structlog.get_logger().info("mine", evil=FORGED)
        structlog.get_logger().debug("too quiet")
    (line,) = lines(stderr)
    assert (line["event"], line["job_id"]) == ("mine", "1")
    configure("debug")
    structlog.get_logger().debug("now heard")
    assert lines(stderr)[-1]["event"] == "now heard"


def test_an_application_that_configured_structlog_keeps_its_configuration(stderr):
    own = [structlog.processors.KeyValueRenderer()]
    structlog.configure(processors=own)
    configure()
    assert structlog.get_config()["processors"] is own
    LOG.info("job_done")
    assert lines(stderr)[0]["event"] == "job_done"


def test_the_root_logger_is_left_alone(stderr):
    root = logging.getLogger()
    before = (list(root.handlers), root.level, list(root.filters))
    configure("debug")
    LOG.error("job_done")
    assert (list(root.handlers), root.level, list(root.filters)) == before


def test_before_it_is_configured_events_go_to_the_hosts_logging(caplog, stderr):
    with caplog.at_level(logging.INFO, logger="sqlqueue.test"):
        LOG.info("job_done", evil=FORGED, took_s=1)
        LOG.debug("job_done")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("sqlqueue.test", "INFO")
    assert record.getMessage() == f"job_done evil={escaped(FORGED)} took_s=1"
    assert not stderr.getvalue()


# --- hostile text ---------------------------------------------------------------------------------

CONTROL = "".join(
    map(chr, [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), 0x2028, 0xFEFF])
)


def raised(message):
    try:
        raise ValueError(message)  # noqa: TRY301 - for its traceback
    except ValueError as error:
        return error


@pytest.mark.parametrize("form", ["json", "console"])
def test_text_of_strangers_can_neither_forge_a_line_nor_move_the_cursor(stderr, form):
    configure(format=form)
    with bound_contextvars(job_id=FORGED, task=FORGED, queue=FORGED, attempt=1):
        LOG.info(
            FORGED,
            value=FORGED,
            nested={FORGED: [FORGED, (FORGED, {FORGED: {FORGED}})]},
            raw=FORGED.encode(errors="surrogatepass"),
            path=Path(FORGED.replace("\0", "").replace("\ud800", "")),
            odd=type("Odd", (), {"__repr__": lambda _: FORGED})(),
            exception=FORGED,
            stack=FORGED,
            exc_info=raised(FORGED),
            **{FORGED: FORGED},
        )
    said = stderr.getvalue()
    assert not set(said.replace("\n", "")) & set(CONTROL + "\ud800")
    first, *others = said.splitlines()
    assert "job_done" in first
    if form == "json":
        json.loads(first)
        assert others == []
    else:
        assert all(line.startswith("  | ") or not line.strip("=") for line in others)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_one_visible_line_and_ordinary_text_is_itself(text):
    shown = escaped(text)
    shown.encode()
    assert not set(shown) & set(CONTROL)
    assert len((shown + "|").splitlines()) == 1
    assert escaped(shown) == shown


def test_ordinary_text_of_any_script_is_left_alone():
    for text in ("plain", "grün", "日本語", "😀", "עברית", "a\\b", "tab-less", ""):
        assert escaped(text) == text
    assert escaped("a\x1b\u202e\U000e0041\n") == "a\\x1b\\u202e\\U000e0041\\x0a"
    assert escaped("a\nb\x1b", keep_newlines=True) == "a\nb\\x1b"


def test_a_quoted_value_is_short_escaped_and_never_raises():
    class Bad:
        def __repr__(self):
            raise OSError

    assert quoted("a\n") == "'a\\x0a'"
    assert quoted("x" * 1000) == f"'{'x' * 80}…'"
    assert quoted(Bad()) == "<Bad>"
    assert quoted(10**5000) == "<int>"


# --- never into the caller ------------------------------------------------------------------------


class Evil:
    def __repr__(self):
        raise RuntimeError("repr")

    __str__ = __repr__


class EvilError(Exception):
    def __str__(self):
        raise RuntimeError("str")


@pytest.mark.parametrize("form", ["json", "console"])
def test_odd_values_are_shown_and_raise_nothing(stderr, form):
    configure(format=form)
    cyclic = []
    cyclic.append(cyclic)
    LOG.info(
        "job_done",
        evil=Evil(),
        keys={Evil: 1, 2: 3, None: 4},
        nan=math.nan,
        infinite=-math.inf,
        big=10**5000,
        cyclic=cyclic,
        long="x" * 10**6,
        many=list(range(10**5)),
        exc_info=EvilError(),
        event="taken",
        level="taken",
        self="taken",
        timestamp="taken",
    )
    said = stderr.getvalue()
    assert "job_done" in said
    assert "<Evil>" in said
    assert len(said) < 50_000
    if form == "json":
        json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_giant_traceback_keeps_its_beginning_and_its_end(stderr):
    configure()
    LOG.error("job_permanently_failed", exc_info=ValueError("x" * 10**7 + "the end"))
    (line,) = lines(stderr)
    assert len(line["exception"]) < 100_000
    assert line["exception"].startswith("ValueError: xxx")
    assert line["exception"].endswith("the end")


class Broken(io.StringIO):
    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Broken(), io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_a_broken_stderr_raises_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    configure()
    LOG.error("job_done", text="grün")
    configure(format="console")
    LOG.error("job_done", text="grün")
    if isinstance(stream, io.TextIOWrapper):
        assert b"gr\\xfcn" in stream.buffer.getvalue()


def test_a_disk_that_is_full_raises_nothing():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    configure(file=Path("/dev/full"))
    LOG.error("job_done")


def test_without_configuration_odd_values_raise_nothing_either(caplog):
    LOG.error("job_done", evil=Evil(), exc_info=EvilError())
    assert "<Evil>" in caplog.text


def test_what_a_signal_handler_raises_passes(monkeypatch):
    class Interrupting(io.StringIO):
        def write(self, _):
            raise KeyboardInterrupt

    configure()
    monkeypatch.setattr(sys, "stderr", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        LOG.info("job_done")


# --- the file -------------------------------------------------------------------------------------


def test_a_file_is_json_private_and_appended_to(tmp_path):
    path = tmp_path / "logs" / "worker.log"
    for event in ("worker_started", "worker_stopped"):
        log._active = None
        configure(file=path)
        LOG.info(event)
    assert [line["event"] for line in lines(path)] == ["worker_started", "worker_stopped"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_was_rotated_away_is_made_anew(tmp_path):
    path = tmp_path / "worker.log"
    configure(file=path)
    LOG.info("worker_started")
    path.rename(tmp_path / "worker.log.1")
    LOG.info("worker_ready")
    path.rename(tmp_path / "worker.log.2")
    path.write_text("")
    LOG.info("worker_stopped")
    path.unlink()
    LOG.info("child_lost")
    assert [line["event"] for line in lines(tmp_path / "worker.log.1")] == ["worker_started"]
    assert [line["event"] for line in lines(tmp_path / "worker.log.2")] == ["worker_ready"]
    assert [line["event"] for line in lines(path)] == ["child_lost"]


def test_a_file_that_was_truncated_is_written_from_its_start(tmp_path):
    path = tmp_path / "worker.log"
    configure(file=path)
    LOG.info("worker_started")
    os.truncate(path, 0)
    LOG.info("worker_stopped")
    assert [line["event"] for line in lines(path)] == ["worker_stopped"]


def test_a_directory_that_vanished_is_made_anew_or_done_without(tmp_path):
    path = tmp_path / "logs" / "worker.log"
    configure(file=path)
    path.unlink()
    path.parent.rmdir()
    LOG.info("worker_started")
    assert [line["event"] for line in lines(path)] == ["worker_started"]
    path.rename(tmp_path / "kept.log")
    path.parent.rmdir()
    path.parent.write_text("a file is in the way")
    LOG.info("worker_stopped")
    assert lines(tmp_path / "kept.log")[-1]["event"] == "worker_stopped"


def test_reopen_makes_the_file_and_is_harmless_without_one(tmp_path, stderr):
    reopen()
    configure()
    reopen()
    path = tmp_path / "worker.log"
    configure(file=path)
    path.unlink()
    reopen()
    assert path.read_text() == ""


def test_rotation_uses_up_no_descriptors(tmp_path):
    path = tmp_path / "worker.log"
    configure(file=path)
    before = open_descriptors()
    for number in range(50):
        LOG.info("worker_ready")
        path.rename(tmp_path / f"old.{number}")
    assert open_descriptors() == before


def open_descriptors():
    return len(list(Path("/dev/fd").iterdir()))


def test_a_descriptor_that_somebody_closed_is_never_written_to_again(tmp_path):
    path, database = tmp_path / "worker.log", tmp_path / "queue.db"
    configure(file=path)
    descriptor = log._active.file._fd
    with database.open("wb") as other:
        # As after a daemon has closed all it inherited, and opened a file of its own.
        os.dup2(other.fileno(), descriptor)
        LOG.info("worker_ready")
        path.rename(tmp_path / "old.log")
        LOG.info("worker_stopped")
        assert os.path.sameopenfile(descriptor, other.fileno())  # taken away from nobody
        os.close(descriptor)
    assert database.read_bytes() == b""
    assert lines(tmp_path / "old.log")[-1]["event"] == "worker_ready"
    assert lines(path)[-1]["event"] == "worker_stopped"


def test_processes_that_share_a_file_write_whole_lines_through_its_rotations(tmp_path):
    path = tmp_path / "shared.log"
    configure(file=path)
    children = []
    for number in range(4):
        if (pid := os.fork()) == 0:
            for n in range(200):
                LOG.info("job_done", child=number, n=n, padding="x" * 500)
            os._exit(0)
        children.append(pid)
    rotated = 0
    while children:
        if path.exists():
            path.rename(tmp_path / f"shared.log.{rotated}")
            rotated += 1
        for child in list(children):  # and no others: a test before may have left one
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(done)
                assert status == 0
    seen = [
        (line["child"], line["n"]) for part in tmp_path.glob("shared.log*") for line in lines(part)
    ]
    assert sorted(seen) == [(child, n) for child in range(4) for n in range(200)]


def test_a_file_that_cannot_be_written_is_a_config_error_and_changes_nothing(tmp_path, stderr):
    configure()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for bad in (tmp_path, tmp_path / "fifo", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot write the log"):
            configure(file=bad)
    LOG.info("job_done")
    assert lines(stderr)[0]["event"] == "job_done"


@pytest.mark.parametrize("bad", [{"level": "verbose"}, {"level": "debgu"}, {"format": "xml"}])
def test_an_unknown_level_or_format_is_a_config_error(bad):
    with pytest.raises(ConfigError, match="Choose one of"):
        configure(**bad)


# --- what it costs --------------------------------------------------------------------------------


def test_getting_a_logger_imports_no_structlog_and_json_no_rich():
    program = """if True:
        import sys
        from pathlib import Path
        import sqlqueue.log as log
        log.get_logger("x").info("job_done")
        assert "structlog" not in sys.modules
        log.configure(file=Path(sys.argv[1]))
        log.get_logger("x").info("job_done")
        assert "structlog" in sys.modules and "rich" not in sys.modules
        import rich
        """
    in_a_new_process(program.replace("sys.argv[1]", "'/dev/null'"))


def test_a_process_with_nothing_to_tell_never_imports_structlog(tmp_path):
    program = """if True:
        import sys
        from pathlib import Path
        import sqlqueue.log as log
        log.configure("warning", file=Path(sys.argv[1]))
        log.bind_job({"job_id": "1", "attempt": 1})
        log.get_logger("x").info("job_done")
        assert "structlog" not in sys.modules
        log.get_logger("x").warning("job_done")
        assert "structlog" in sys.modules and "rich" not in sys.modules
        """
    file = tmp_path / "log"
    in_a_new_process(program.replace("sys.argv[1]", repr(str(file))))
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["event"], line["job_id"], line["attempt"]) == ("job_done", "1", 1)


def test_a_task_that_imports_structlog_writes_here_with_its_job_and_leaves_none_behind(tmp_path):
    program = """if True:
        import contextvars, sys
        from pathlib import Path
        import sqlqueue.log as log
        log.configure("warning", file=Path(sys.argv[1]))
        def job():
            log.bind_job({"job_id": "1", "attempt": 1})
            import structlog
            structlog.get_logger().warning("theirs")
            assert structlog.contextvars.get_contextvars()["job_id"] == "1"
        contextvars.copy_context().run(job)
        import structlog
        structlog.get_logger().warning("none")
        structlog.get_logger().info("too low")
        log.configure("info", file=Path(sys.argv[1]))
        structlog.get_logger().info("told")
        assert "rich" not in sys.modules
        """
    file = tmp_path / "log"
    in_a_new_process(program.replace("sys.argv[1]", repr(str(file))))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["event"], one.get("job_id")) for one in lines] == [
        ("theirs", "1"),
        ("none", None),
        ("told", None),
    ]


def test_on_a_terminal_lines_are_for_people():
    leader, follower = pty.openpty()
    program = (
        "import sqlqueue.log as l; l.configure(); l.get_logger('x').info('job_done', took_s=2)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(sqlqueue.__file__).parents[1])}
    try:
        subprocess.run(
            [sys.executable, "-c", program], check=True, stderr=follower, env=environ, timeout=60
        )
        said = os.read(leader, 10_000).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "job_done" in said
    assert "\x1b[" in said
    assert not said.startswith("{")


def test_every_event_in_the_source_is_listed_and_in_the_house_form():
    unlisted = {}
    for path in Path(sqlqueue.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"debug", "info", "warning", "error", "exception"}
                and "log" in ast.unparse(node.func.value).lower()
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and node.args[0].value not in EVENTS
            ):
                unlisted[node.args[0].value] = f"{path.name}:{node.lineno}"
    assert unlisted == {}
    assert all(
        name.isidentifier() and name == name.lower() and what for name, what in EVENTS.items()
    )
