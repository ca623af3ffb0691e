"""The token beside the queue file: its owner's alone, whole or not there, the same at every start."""

from __future__ import annotations

import contextlib
import os
import signal
import stat

import pytest

from sqlqueue.consoles import tokens
from sqlqueue.errors import ConfigError
from tests.support import finish, kill, read_line, run_python, say


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "console-admin.token"


def test_token_is_made_once_and_is_its_owners_alone(kept):
    before = os.umask(0)
    try:
        token = tokens.kept_in(kept)
    finally:
        os.umask(before)
    assert len(token) >= 40
    assert tokens.kept_in(kept) == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert list(kept.parent.iterdir()) == [kept]


def test_two_files_have_two_tokens(tmp_path):
    assert tokens.kept_in(tmp_path / "a") != tokens.kept_in(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_token_that_others_could_read_is_none(kept, mode):
    tokens.kept_in(kept)
    kept.chmod(mode)
    with pytest.raises(ConfigError, match="remove the file"):
        tokens.kept_in(kept)


def test_link_is_not_followed(kept, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    tokens.kept_in(elsewhere)
    kept.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="cannot read the token"):
        tokens.kept_in(kept)


def test_link_to_nowhere_makes_no_file_there(kept, tmp_path):
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot read the token"):
        tokens.kept_in(kept)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"short",
        b"fifteen-letters",
        b"\xff" * 40,
        b"two words of a good length",
        b"first-line-of-the-file\nsecond",
        b"a-zero-byte-\0-in-the-middle",
    ],
)
def test_file_that_holds_no_token_is_told_and_left_alone(kept, content):
    kept.write_bytes(content)
    kept.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no token: remove the file"):
        tokens.kept_in(kept)
    assert kept.read_bytes() == content


def test_directory_or_pipe_in_its_place_is_told(tmp_path):
    (tmp_path / "directory").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    for name in ("directory", "pipe"):
        with pytest.raises(ConfigError, match="holds no token"):
            tokens.kept_in(tmp_path / name)


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "ü" * 20, "with a space in it", "x" * 20 + "\n"]
)
def test_token_that_could_be_guessed_or_not_be_typed_is_refused(token):
    with pytest.raises(ConfigError, match="at least 16 characters"):
        tokens.checked(token)


def test_cookie_tells_neither_the_token_nor_that_of_the_other_console():
    token = "a-token-of-a-good-length"
    admin, ops = (tokens.cookie_value(token, role=role) for role in ("admin", "ops"))
    assert admin != ops
    assert token not in admin
    assert tokens.cookie_value(token + "x", role="admin") != admin


STARTING = """
    import os, pathlib, sys
    from sqlqueue.consoles import tokens

    where, dies = pathlib.Path(sys.argv[1]), sys.argv[2]
    if dies:
        link = os.link
        def killed(*paths):
            if dies == "named":
                link(*paths)
            os.kill(os.getpid(), 9)
        os.link = killed
    print("ready")
    sys.stdin.readline()
    print(tokens.kept_in(where))
"""


def test_consoles_that_start_at_once_have_one_token(kept):
    starting = [run_python(STARTING, kept, "") for _ in range(4)]
    for process in starting:
        assert read_line(process) == "ready"
    for process in starting:
        say(process)
    assert len({finish(process) for process in starting}) == 1
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("dies", ["written", "named"])
def test_killed_console_leaves_a_whole_token_or_none(kept, dies):
    process = run_python(STARTING, kept, dies)
    assert read_line(process) == "ready"
    say(process)
    assert process.wait(30) == -signal.SIGKILL
    kill(process)
    there = kept.exists()
    assert there is (dies == "named")
    before = kept.read_text().strip() if there else None
    token = tokens.kept_in(kept)
    assert before in (None, token)
    # A leftover of the killed one, under whose number another process may come again.
    with contextlib.suppress(FileNotFoundError):
        kept.with_name(f"{kept.name}.{process.pid}").rename(f"{kept}.{os.getpid()}")
    assert tokens.kept_in(kept) == token


def test_token_is_made_over_what_a_killed_process_of_the_same_number_left(kept):
    kept.with_name(f"{kept.name}.{os.getpid()}").write_text("half a tok")
    token = tokens.kept_in(kept)
    assert token == tokens.kept_in(kept) == kept.read_text().strip()
