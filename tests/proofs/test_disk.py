"""What the model of a disk keeps and loses at a power cut, and what the recorder sees."""

from __future__ import annotations

import random
import textwrap
from collections import Counter

import pytest

from tests.proofs import disk
from tests.proofs.recording import Kind, Recording

pytestmark = pytest.mark.debian("cc")
HELPERS = """
import os
def sync(name):
    fd = os.open(name, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
def put(name, at, content):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    assert os.pwrite(fd, content, at) == len(content)
    os.close(fd)
"""


@pytest.fixture
def recording(tmp_path):
    made = Recording(tmp_path / "recording")
    made.queue.mkdir(parents=True)
    (made.queue / "old").write_bytes(b"o" * 2000)
    made.begin()
    return made


def record(recording, code):
    """Run Python code in the recorded directory, after `HELPERS`; return all records so far."""
    recording.run([["-c", HELPERS + textwrap.dedent(code)]])
    return list(recording.records())


def followed(recording, code, **how):
    model = disk.Disk(recording, **how)
    for one in record(recording, code):
        model.follow(one)
    return model


def findings(model, name, *, cuts=400):
    """Count what is found of a file in many cuts; None is that it is missing."""
    return Counter(model.after_cut(random.Random(seed)).get(name) for seed in range(cuts))


# -- the recorder ---------------------------------------------------------------------------------


def test_every_kind_of_change_is_recorded_in_its_order(recording):
    records = record(
        recording,
        """
        os.mkdir("d")
        put("d/a", 3, b"abc")
        with open("d/a", "ab") as file:
            file.write(b"def")
        fd = os.open("d/a", os.O_RDWR)
        os.pwritev(fd, [b"x", b"yz"], 10)
        os.lseek(fd, 20, os.SEEK_SET)
        os.writev(fd, [b"uv", b"w"])
        os.ftruncate(fd, 7)
        os.truncate("d/a", 5)
        os.posix_fallocate(fd, 0, 4096)
        os.fdatasync(fd)
        sync("d")
        os.link("d/a", "d/b")
        os.rename("d/a", "d/c")
        os.unlink("d/b")
        os.open("d/c", os.O_WRONLY | os.O_TRUNC)
        """,
    )
    inside = str(recording.queue.resolve())
    told = [
        (
            one.kind.name,
            [name.removeprefix(f"{inside}/") for name in one.names]
            if one.kind in {Kind.CREATE, Kind.MKDIR, Kind.RENAME, Kind.UNLINK, Kind.LINK}
            else (one.at, bytes(one.content)),
        )
        for one in records
    ]
    assert told == [
        ("MKDIR", ["d"]),
        ("CREATE", ["d/a"]),
        ("WRITE", (3, b"abc")),
        ("WRITE", (6, b"def")),
        ("WRITE", (10, b"x")),
        ("WRITE", (11, b"yz")),
        ("WRITE", (20, b"uv")),
        ("WRITE", (22, b"w")),
        ("TRUNCATE", (7, b"")),
        ("TRUNCATE", (5, b"")),
        ("EXTEND", (4096, b"")),
        ("SYNC_BEGIN", (0, b"")),
        ("SYNC_END", (0, b"")),
        ("SYNC_BEGIN", (0, b"")),
        ("SYNC_END", (0, b"")),
        ("LINK", ["d/b"]),
        ("RENAME", ["d/a", "d/c"]),
        ("UNLINK", ["d/b"]),
        ("TRUNCATE", (0, b"")),
    ]
    assert records[11].inode == records[2].inode != records[13].inode


def test_what_happens_outside_of_the_directory_and_what_failed_is_not_recorded(recording):
    assert not record(
        recording,
        """
        import contextlib
        put("../outside", 0, b"x")
        sync("..")
        for failing in (
            lambda: os.unlink("nothing"),
            lambda: os.mkdir("old"),
            lambda: os.rename("nothing", "old"),
            lambda: os.pwrite(os.open("old", os.O_RDONLY), b"x", 0),
            lambda: os.open("old", os.O_CREAT | os.O_EXCL),
        ):
            with contextlib.suppress(OSError):
                failing()
        """,
    )


# -- content --------------------------------------------------------------------------------------


def test_what_was_synced_is_there_after_every_cut(recording):
    model = followed(recording, 'put("old", 0, b"n" * 3000); sync("old")')
    assert set(findings(model, "old")) == {b"n" * 3000}


def test_a_write_that_was_not_synced_is_lost_there_or_torn_between_sectors(recording):
    model = followed(recording, 'put("old", 0, b"n" * 2000)')
    found = findings(model, "old")
    assert {b"o" * 2000, b"n" * 2000} < set(found)
    for content in found:
        for start in range(0, 1536, 512):
            assert content[start : start + 512] in {b"o" * 512, b"n" * 512}


def test_writes_come_to_the_disk_in_any_order_also_between_files(recording):
    model = followed(
        recording,
        """
        put("one", 0, b"1"); put("two", 0, b"2"); sync(".")
        put("one", 0, b"a"); put("one", 600, b"b"); put("two", 0, b"c")
        """,
    )
    cuts = [model.after_cut(random.Random(seed)) for seed in range(400)]
    found = {(one["one"][:1], one["one"][600:601], one["two"]) for one in cuts}
    assert {(b"1", b"b", b"2"), (b"a", b"", b"2"), (b"1", b"", b"c")} <= {
        (a if a == b"a" else b"1", b if b == b"b" else b"", c if c == b"c" else b"2")
        for a, b, c in found
    }


def test_a_sector_holds_what_it_held_at_some_moment(recording):
    """The second of two writes to a sector never comes to the disk without the first."""
    model = followed(recording, 'put("old", 0, b"a" * 10); put("old", 10, b"b" * 10)')
    assert {content[:20] for content in findings(model, "old")} == {
        b"o" * 20,
        b"a" * 10 + b"o" * 10,
        b"a" * 10 + b"b" * 10,
    }


def test_a_sync_promises_only_what_was_written_before_it_began(recording):
    records = record(recording, 'put("old", 0, b"a"); sync("old"); put("old", 1, b"b")')
    writes = [one for one in records if one.kind is Kind.WRITE]
    begin, end = (one for one in records if one.kind in {Kind.SYNC_BEGIN, Kind.SYNC_END})
    model = disk.Disk(recording)
    for one in (writes[0], begin, writes[1], end):
        model.follow(one)
    assert {content[:2] for content in findings(model, "old")} == {b"ao", b"ab"}
    model = disk.Disk(recording)
    for one in (writes[0], begin):  # it has not returned
        model.follow(one)
    assert {content[:1] for content in findings(model, "old")} == {b"o", b"a"}


def test_a_file_that_was_cut_short_may_have_its_old_length_and_one_that_grew_may_hold_zeros(
    recording,
):
    model = followed(recording, 'os.truncate("old", 100)')
    assert {len(content) for content in findings(model, "old")} == {100, 2000}
    model = followed(recording, 'put("old", 4096, b"n" * 512)')
    found = findings(model, "old", cuts=2000)
    assert any(content[4096:] == bytes(512) for content in found)


# -- names ----------------------------------------------------------------------------------------


def test_a_synced_file_may_have_no_name_until_its_directory_is_synced(recording):
    making = 'put("new", 0, b"n"); sync("new");'
    assert set(findings(followed(recording, making), "new")) == {None, b"n"}


def test_after_a_sync_of_the_directory_a_name_is_there(recording):
    model = followed(recording, 'put("new", 0, b"n"); sync("new"); sync(".")')
    assert set(findings(model, "new")) == {b"n"}


def test_a_removed_file_may_come_back_until_its_directory_is_synced(recording):
    model = followed(recording, 'os.unlink("old")')
    assert set(findings(model, "old")) == {None, b"o" * 2000}
    model = followed(recording, 'sync(".")')
    assert set(findings(model, "old")) == {None}


def test_a_rename_happened_or_it_did_not(recording):
    model = followed(
        recording, 'put("new", 0, b"n"); sync("new"); sync("."); os.rename("new", "old")'
    )
    cuts = [model.after_cut(random.Random(seed)) for seed in range(200)]
    assert {(one.get("new"), one["old"]) for one in cuts} == {
        (b"n", b"o" * 2000),
        (None, b"n"),
    }


def test_a_new_file_under_an_old_name_is_another_file(recording):
    model = followed(
        recording,
        """
        put("new", 0, b"1"); sync("new"); sync(".")
        os.unlink("new"); put("new", 1, b"2")
        """,
    )
    assert set(findings(model, "new", cuts=1000)) <= {b"1", None, b"", bytes(2), b"\0" + b"2"}


def test_mapped_files_hold_anything(recording):
    model = followed(recording, 'put("q-shm", 0, b"x" * 40); sync("q-shm"); sync(".")')
    found = findings(model, "q-shm")
    assert {None, b"", b"x" * 40} < set(found)
    assert len(found) > 10


# -- a disk that is broken ------------------------------------------------------------------------


def test_a_disk_may_ignore_syncs(recording):
    code = 'put("old", 0, b"n" * 2000); sync("old"); put("new", 0, b"n"); sync(".")'
    found = findings(followed(recording, code, ignores="*"), "old")
    assert b"o" * 2000 in found
    model = disk.Disk(recording, ignores="/")
    for one in recording.records():
        model.follow(one)
    assert set(findings(model, "old")) == {b"n" * 2000}
    assert None in findings(model, "new")
    model = disk.Disk(recording, ignores="old")
    for one in recording.records():
        model.follow(one)
    assert b"o" * 2000 in findings(model, "old")
    assert set(findings(model, "new")) == {b"n", b"\0", b""}


def test_the_same_number_finds_the_same_disk(recording, tmp_path):
    model = followed(recording, 'put("old", 0, b"n" * 2000); put("new", 0, b"n")')
    found = model.after_cut(random.Random(5))
    assert found == model.after_cut(random.Random(5))
    place = tmp_path / "place"
    place.mkdir()
    (place / "left over").touch()
    disk.write(found, place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == found
    assert (place / "old").stat().st_mode & 0o777 == 0o600
