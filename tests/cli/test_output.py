"""Tables fit their terminal, and nothing of a stranger's moves it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios

import pytest

from sqlqueue.cli.output import Cell, Column, _widths, dumped
from tests.cli.conftest import program
from tests.cli.filling import HOSTILE, RAW

COLUMNS = [
    Column("ID"),
    Column("STATE"),
    Column("TASK", rank=1, flexible=True),
    Column("TRY", rank=2),
    Column("NOTE", rank=3, flexible=True),
]
UUID = "01a203dc-5363-7d44-b61a-cda75492d77a"


def widths(*texts: str, width: int | None) -> dict[str, int]:
    found = _widths(COLUMNS, [[Cell(text) for text in texts]], width)
    return {COLUMNS[index].title: each for index, each in found.items()}


def test_without_a_terminal_nothing_is_cut():
    row = (UUID, "done", "t" * 300, "1/5", "n" * 300)
    assert widths(*row, width=None) == {
        "ID": 36,
        "STATE": len("STATE"),
        "TASK": 300,
        "TRY": 3,
        "NOTE": 300,
    }


def test_columns_go_by_rank_and_ids_and_states_stay():
    row = (UUID, "permanently_failed", "t" * 20, "1/5", "n" * 20)
    assert list(widths(*row, width=200)) == ["ID", "STATE", "TASK", "TRY", "NOTE"]
    assert list(widths(*row, width=80)) == ["ID", "STATE", "TASK", "TRY"]
    assert list(widths(*row, width=75)) == ["ID", "STATE", "TASK"]
    assert widths(*row, width=20) == {"ID": 36, "STATE": 18}


def test_what_is_left_over_goes_to_those_that_were_cut():
    row = (UUID, "done", "t" * 20, "1/5", "n" * 100)
    found = widths(*row, width=120)
    assert (found["ID"], found["TASK"]) == (36, 20)
    assert sum(found.values()) + 2 * len(found) == 120


def test_column_without_a_word_in_it_makes_room():
    assert list(widths(UUID, "", "", "", "", width=200)) == ["ID", "STATE"]


def test_json_is_plain_ascii():
    text = dumped({"a": HOSTILE + "\x7f\ud800é"})
    assert text.isascii()
    assert "\x7f" not in text
    with pytest.raises(ValueError, match="JSON compliant"):
        dumped(float("nan"))


def on_a_terminal(*arguments, cwd, columns=100) -> str:
    """Return what a program writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = program(
        *arguments,
        cwd=cwd,
        stdout=theirs,
        stderr=theirs,
        env={"TERM": "xterm-256color", "COLUMNS": str(columns)},
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65_536):
            said += piece
    except OSError:  # Linux: nobody has the other end any more
        pass
    os.close(ours)
    process.wait(timeout=30)
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "command", ["inspect jobs", "inspect job nice", "inspect dead --by error", "inspect queues"]
)
def test_text_of_strangers_cannot_move_a_real_terminal(filled, tmp_path, command):
    filled.dead(HOSTILE, HOSTILE, task=HOSTILE, job_id="nice", args=(HOSTILE,), kwargs={HOSTILE: 1})
    filled.publish(task=HOSTILE, job_id=HOSTILE, queue=HOSTILE)
    filled.close()
    said = on_a_terminal(*command.split(), cwd=tmp_path)
    assert "evil\\x1b[31m" in said
    without_colors = re.sub(r"\x1b\[[0-9;]*m", "", said)
    for raw in RAW:
        assert raw not in without_colors
    plain = on_a_terminal(*command.split(), "--no-color", cwd=tmp_path)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)


def test_table_on_a_terminal_fits_it(filled, tmp_path):
    filled.dead("ValueError", "x" * 500, task="t" * 300)
    filled.close()
    lines = on_a_terminal("inspect", "jobs", "--no-color", cwd=tmp_path, columns=90).splitlines()
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= 90
    assert "permanently_failed" in lines[1]
