"""`inspect … --watch`: in one place on a terminal, one look after the other elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import termios
import time

import pytest

from tests.cli.conftest import program
from tests.cli.filling import HOSTILE, Filled
from tests.support import wait_until

ALTERNATE, ORDINARY = "\x1b[?1049h", "\x1b[?1049l"
COMMANDS = ["stats", "jobs", "queues", "workers", "schedule", "dead"]


class Terminal:
    """A program on a terminal of its own, and what stands there now."""

    def __init__(self, *arguments, cwd, columns=100, lines=30, kind="xterm-256color") -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns, lines)
        # xdist sets COLUMNS, which would count for more than the terminal.
        env = {"TERM": kind, "COLUMNS": "", "LINES": ""}
        self.process = program(*arguments, cwd=cwd, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.said = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> str:
        """Return all it has said until now."""
        with contextlib.suppress(OSError):  # Linux: nobody has the other end any more
            while select.select([self.ours], [], [], 0)[0]:
                self.said += os.read(self.ours, 65_536).decode(errors="replace")
        return self.said

    def picture(self) -> list[str]:
        """Return the lines of the last whole picture in the alternate screen, without colours."""
        pictures = self.read().rpartition(ORDINARY)[0] or self.said
        last = pictures.split("\x1b[H")[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).replace("\r", "").split("\n")

    def wait_for(self, text: str) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.read()
            return any(text in line for line in self.picture())

        try:
            wait_until(is_there, deadline_s=30, what=repr(text))
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.picture()])) from None

    def ended(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; return the exit code and what then stands on the ordinary screen."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        return code, self.read().partition(ORDINARY)[2].replace("\r", "")


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(*arguments, **options) -> Terminal:
        opened.append(Terminal(*arguments, cwd=tmp_path, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.ours)


def later(path, **job) -> str:
    """Publish a job into a file that others look at."""
    filled = Filled(path)
    try:
        return filled.publish(**job)
    finally:
        filled.close()


def test_picture_changes_when_a_job_arrives_and_the_last_one_stays(filled, terminal, tmp_path):
    filled.publish(task="shop.first")
    filled.close()
    watched = terminal("inspect", "jobs", "--watch", "0.2")
    watched.wait_for("shop.first")
    watched.wait_for("every 0.2s, ctrl-c ends")
    later(tmp_path / "queue.db", task="shop.second")
    watched.wait_for("shop.second")
    code, left = watched.ended()
    assert code == 0
    assert watched.said.count(ALTERNATE) == watched.said.count(ORDINARY) == 1
    assert "\x1b[2J" not in watched.said  # a cleared screen flickers
    assert "shop.first" in left
    assert "shop.second" in left
    assert "ctrl-c" not in left


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_can_be_watched_draws_itself_on_a_terminal(filled, terminal, command):
    filled.dead(task="shop.add")
    filled.close()
    watched = terminal("inspect", command, "--watch")
    watched.wait_for("every 2s, ctrl-c ends")
    assert watched.ended()[0] == 0


def test_picture_follows_the_size_of_the_terminal_at_once(filled, terminal):
    for number in range(30):
        filled.publish(task=f"shop.{number:02d}_{'x' * 60}")
    filled.close()
    watched = terminal("inspect", "jobs", "--watch", "1h", columns=150, lines=40)
    watched.wait_for("shop.00_" + "x" * 60)
    assert len(watched.picture()) == 40
    watched.resize(80, 10)
    # At once, and not in an hour; in ten lines, of which none is longer than 80.
    watched.wait_for("more lines")
    picture = watched.picture()
    assert len(picture) == 10
    assert max(map(len, picture)) == 80
    watched.resize(150, 40)
    watched.wait_for("shop.00_" + "x" * 60)


def test_what_goes_wrong_later_is_shown_and_tried_again(filled, terminal, tmp_path):
    filled.publish(task="shop.first")
    filled.close()
    watched = terminal("inspect", "jobs", "--watch", "0.2")
    watched.wait_for("shop.first")
    for path in tmp_path.glob("queue.db*"):
        path.rename(tmp_path / f"away-{path.name}")
    watched.wait_for("error: no database at ./queue.db.")
    watched.wait_for("shop.first")  # the last look is still there, below
    for path in tmp_path.glob("away-*"):
        path.rename(tmp_path / path.name.removeprefix("away-"))
    watched.wait_for("every 0.2s")
    code, left = watched.ended()
    assert code == 0
    assert "shop.first" in left


def test_terminated_watch_gives_the_ordinary_screen_back(filled, terminal):
    filled.close()
    watched = terminal("inspect", "stats", "--watch")
    watched.wait_for("every 2s")
    code, left = watched.ended(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert watched.said.count(ORDINARY) == 1
    assert "pending" in left


def test_terminal_that_cannot_move_its_cursor_gets_a_table_after_the_other(filled, terminal):
    filled.publish(task="shop.first")
    filled.close()
    watched = terminal("inspect", "jobs", "--watch", "0.2", kind="dumb")
    wait_until(lambda: watched.read().count("shop.first") > 2, deadline_s=30, what="three looks")
    assert watched.ended()[0] == 0
    assert "\x1b" not in watched.said.replace("\x1b[0m", "").replace("\x1b[1m", "")


def test_text_of_strangers_cannot_move_the_watched_terminal(filled, terminal):
    filled.publish(task=HOSTILE, job_id="nice", queue=HOSTILE)
    filled.close()
    watched = terminal("inspect", "jobs", "--watch", columns=160)
    watched.wait_for("evil\\x1b[31m")
    watched.ended()
    for raw in ("\x1b]0;", "\x07", "\u202e", "\x9b", "\x1b[31mevil"):
        assert raw not in watched.said


@pytest.mark.parametrize("command", ["inspect stats", "schedule list", "inspect job x"])
def test_what_is_wrong_at_the_first_look_ends_it(run, command):
    if command == "inspect stats":
        result = run(*command.split(), "--watch")
        assert (result.code, result.out) == (2, "")
        assert "error: no database at ./queue.db" in result.err
    else:
        assert "no such option" in run(*command.split(), "--watch").err.lower()


@pytest.mark.parametrize("seconds", ["0.1", "0", "soon"])
def test_interval_that_is_none_or_too_short_is_refused(cli, seconds):
    result = cli("inspect", "stats", f"--watch={seconds}")
    assert result.code == 2
    assert "--watch" in result.err


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_a_document_a_line_and_each_comes_at_once(filled, tmp_path, command, form):
    filled.dead(task="shop.add")
    filled.close()
    with program("inspect", command, "--watch", "0.2", "-o", form, cwd=tmp_path) as watching:
        try:
            first = json.loads(watching.stdout.readline())
            second = json.loads(watching.stdout.readline())
        finally:
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate(timeout=30)
    assert first["schema"] == second["schema"] == 1
    assert (watching.returncode, err) == (0, "")
    assert ("items" in first) == (command != "stats")


def test_tables_without_a_terminal_follow_each_other(filled, tmp_path):
    filled.publish(task="shop.first")
    filled.close()
    with program("inspect", "jobs", "--watch", "0.2", cwd=tmp_path) as watching:
        try:
            lines = [watching.stdout.readline() for _ in range(5)]
        finally:
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=30)
    assert [line.split()[0] if line.strip() else "" for line in lines][::3] == ["ID", "ID"]
    assert lines[2] == "\n"
    assert "shop.first" in lines[1]
    assert "shop.first" in lines[4]


def test_errors_between_documents_go_to_standard_error(filled, tmp_path):
    filled.publish()
    filled.close()
    with program("inspect", "stats", "--json", "--watch", "0.2", cwd=tmp_path) as watching:
        try:
            assert json.loads(watching.stdout.readline())
            for path in tmp_path.glob("queue.db*"):
                path.rename(tmp_path / f"away-{path.name}")
            assert watching.stderr.readline().startswith("error: no database at ./queue.db")
            for path in tmp_path.glob("away-*"):
                path.rename(tmp_path / path.name.removeprefix("away-"))
            give_up_s = time.monotonic() + 30
            while json.loads(watching.stdout.readline())["states"]["pending"] != 1:
                assert time.monotonic() < give_up_s
        finally:
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=30)
    assert watching.returncode == 0


def test_reader_that_has_enough_ends_it_without_a_word(filled, tmp_path):
    filled.close()
    with program("inspect", "stats", "--json", "--watch", "0.2", cwd=tmp_path) as watching:
        assert watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(timeout=30) == 0
        assert watching.stderr.read() == ""
