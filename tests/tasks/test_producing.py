"""One whole job file per tick, however many beats there are and wherever they die."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks import producing
from tasks.producing import job_file_name, remove_temporaries, write_job_file
from tasks.stamping import has_stamp

DUE_MS = 1_795_324_265_200  # 2026-11-22T05:11:05.200Z
NAME = "job-producer-1-20261122T051105200Z.txt"

spawning = multiprocessing.get_context("spawn")


@pytest.fixture
def jobs(tmp_path) -> Path:
    return tmp_path / "jobs"


def write(directory, entry="producer-1", *, due_ms=DUE_MS, seed=1) -> str:
    return write_job_file(directory, entry, due_ms=due_ms, random=random.Random(seed))


def names_in(directory) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_file_is_named_after_entry_and_tick_and_holds_lines_of_hex(jobs):
    assert write(jobs) == NAME
    assert re.fullmatch(r"([0-9a-f]{32}\n){4}", (jobs / NAME).read_text())
    assert names_in(jobs) == [NAME]


def test_directory_and_file_are_nobody_elses(jobs):
    write(jobs)
    assert stat.S_IMODE(jobs.stat().st_mode) == 0o700
    assert stat.S_IMODE((jobs / NAME).stat().st_mode) == 0o600


def test_file_is_one_that_stamping_accepts(jobs):
    assert not has_stamp(jobs, write(jobs), job_id="any")


def test_each_entry_and_each_tick_has_its_file(jobs):
    names = {write(jobs, f"producer-{n}", due_ms=DUE_MS + t) for n in (1, 2) for t in (0, 1, 5000)}
    assert len(names) == 6
    assert set(names_in(jobs)) == names


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
@example(999)
def test_names_sort_like_their_ticks(due_ms):
    assert job_file_name("a", due_ms=due_ms) < job_file_name("a", due_ms=due_ms + 1)


@given(st.text())
@example("../x")
@example("a/b")
@example("a\n")
@example("")
@example(".hidden")
@example("x" * 101)
@example("\u0661")  # an Arabic digit
def test_entry_name_that_is_no_part_of_a_file_name_is_refused(entry):
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", entry, re.ASCII):
        assert "/" not in job_file_name(entry, due_ms=DUE_MS)
    else:
        with pytest.raises(ValueError, match="producer entry is named"):
            job_file_name(entry, due_ms=DUE_MS)


def test_file_and_its_name_are_on_the_disk_before_the_call_is_made(jobs, monkeypatch):
    jobs.mkdir()
    flushed = []

    def record(file):
        is_directory = stat.S_ISDIR(os.fstat(file).st_mode)
        flushed.append(names_in(jobs) if is_directory else os.fstat(file).st_size)

    monkeypatch.setattr(producing.os, "fsync", record)
    write(jobs)
    assert flushed == [4 * 33, [NAME]]
    write(jobs)  # whoever made it may have died before the second flush
    assert flushed == [4 * 33, [NAME], [NAME]]


# ---------------------------------------------------------------------------- the tick runs again


def test_tick_run_again_keeps_the_file_it_finds(jobs):
    write(jobs, seed=1)
    with (jobs / NAME).open("a") as file:
        file.write("a stamp\n")
    content = (jobs / NAME).read_bytes()
    assert write(jobs, seed=2) == NAME
    assert (jobs / NAME).read_bytes() == content
    assert names_in(jobs) == [NAME]


class Killed(BaseException):
    """Stand for a kill -9: nothing behind it runs that a dead process would not run either."""


def kill_at(monkeypatch, call):
    """Let this process "die" right after the system call, its clean-up undone."""
    real = getattr(os, call)

    def dying(*args, **options):
        real(*args, **options)
        # A dead process cleans nothing up.
        monkeypatch.setattr(producing.os, "unlink", lambda *_args, **_options: None)
        raise Killed

    monkeypatch.setattr(producing.os, call, dying)


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_beat_killed_in_the_middle_leaves_what_the_next_run_mends(jobs, call):
    jobs.mkdir()
    with pytest.MonkeyPatch.context() as patching:
        kill_at(patching, call)
        with pytest.raises(Killed):
            write(jobs)
    assert [name for name in names_in(jobs) if name.endswith(".tmp")]
    remove_temporaries(jobs, "producer-1")  # as the first tick of a new beat does
    assert write(jobs) == NAME
    assert names_in(jobs) == [NAME]
    assert (jobs / NAME).stat().st_nlink == 1


def test_file_with_two_names_gets_one_when_its_tick_is_run_again(jobs):
    write(jobs)
    os.link(jobs / NAME, jobs / f".{NAME}.0123.tmp")
    write(jobs)
    assert names_in(jobs) == [NAME]
    assert not has_stamp(jobs, NAME, job_id="any")


def test_temporary_file_taken_by_a_faster_beat_does_not_matter(jobs, monkeypatch):
    """Another beat publishes, and removes all temporary files, right before our link."""
    link = os.link

    def slow_link(*args, **options):
        monkeypatch.setattr(producing.os, "link", link)
        write(jobs, seed=2)
        remove_temporaries(jobs, "producer-1")
        link(*args, **options)

    monkeypatch.setattr(producing.os, "link", slow_link)
    assert write(jobs, seed=1) == NAME
    assert (jobs / NAME).read_text().startswith(f"{random.Random(2).getrandbits(128):032x}\n")
    assert names_in(jobs) == [NAME]


def test_temporary_file_taken_without_a_final_one_is_written_anew(jobs, monkeypatch):
    link = os.link

    def slow_link(*args, **options):
        monkeypatch.setattr(producing.os, "link", link)
        remove_temporaries(jobs, "producer-1")
        link(*args, **options)

    monkeypatch.setattr(producing.os, "link", slow_link)
    assert write(jobs) == NAME
    assert names_in(jobs) == [NAME]


def test_something_that_always_takes_the_temporary_file_is_an_error(jobs, monkeypatch):
    link = os.link

    def hindered_link(*args, **options):
        remove_temporaries(jobs, "producer-1")
        link(*args, **options)

    monkeypatch.setattr(producing.os, "link", hindered_link)
    with pytest.raises(FileNotFoundError, match="taken away 10 times"):
        write(jobs)


def test_full_disk_is_an_error_that_leaves_nothing_behind(jobs, monkeypatch):
    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    jobs.mkdir()
    monkeypatch.setattr(producing.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(jobs)
    assert names_in(jobs) == []


def test_linked_directory_is_refused(jobs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    jobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match=r"set app\.directory"):
        write(jobs)
    assert names_in(tmp_path / "elsewhere") == []


def test_link_in_the_place_of_the_file_is_neither_followed_nor_replaced(jobs, tmp_path):
    jobs.mkdir()
    (jobs / NAME).symlink_to(tmp_path / "elsewhere")
    assert write(jobs) == NAME
    assert (jobs / NAME).is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def _write_ticks(directory, seed, start, ticks):
    for tick in range(ticks):
        start.wait(30)
        write(directory, due_ms=DUE_MS + tick, seed=seed)


def test_two_beats_racing_for_the_same_ticks_leave_one_whole_file_each(jobs):
    ticks = 40
    start = spawning.Barrier(2)
    beats = [
        spawning.Process(target=_write_ticks, args=(jobs, seed, start, ticks)) for seed in (1, 2)
    ]
    for beat in beats:
        beat.start()
    for beat in beats:
        beat.join(60)
    assert [beat.exitcode for beat in beats] == [0, 0]
    files = sorted(jobs.iterdir())
    assert len(files) == ticks
    for file in files:
        assert re.fullmatch(r"([0-9a-f]{32}\n){4}", file.read_text())
        assert file.stat().st_nlink == 1
