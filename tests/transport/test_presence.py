"""The file of presence: locks that die with their process, and notes that are whole or none."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlqueue_transport import CannotOpen, presence
from sqlqueue_transport.presence import NOTES, SLOTS, Ended, Note, PresenceFile, Standing
from tests.support import finish, kill, open_names, read_line, run_python, say


@pytest.fixture
def path(tmp_path):
    return tmp_path / "presence"


@pytest.fixture
def file(path):
    return PresenceFile.create(path)


HOLD = """
    import os, sys
    from pathlib import Path
    from sqlqueue_transport.presence import PresenceFile
    file = PresenceFile.attach(Path(sys.argv[1]))
    slot = file.take_free_slot()
    file.write_entry(slot, worker_id=7, pid=os.getpid(), heartbeat_ms=1, parent_id=3)
    print(slot, flush=True)
    sys.stdin.readline()
    file.own(slot)
    print("owned", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(path, file):
    """Give another process that has taken slot 0, and owns it after a line."""
    process = run_python(HOLD, path)
    assert read_line(process) == "0"
    return process


# -- one file, one object, never closed ---------------------------------------------------------------


def test_a_file_has_its_full_size_and_identity_from_the_start(path, file):
    assert path.stat().st_size == presence._SIZE
    assert path.stat().st_blocks * 512 >= presence._SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in path.parent.iterdir()] == ["presence"]
    assert len(file.identity) == 32
    path.unlink()
    assert PresenceFile.create(path).identity != file.identity


def test_all_users_in_a_process_share_one_object_and_one_descriptor(path, file):
    assert PresenceFile.attach(path) is file
    # One we opened, one that the memory map keeps for itself.
    assert len(open_names(path)) == 2


def test_a_missing_file_is_none_and_is_not_made(path):
    assert PresenceFile.attach(path) is None
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 2_000_000])
def test_rubbish_is_no_presence_file(path, content):
    path.write_bytes(content)
    assert PresenceFile.attach(path) is None
    assert open_names(path) == []


def test_the_file_of_another_version_is_refused(path, file):
    path.unlink()
    path.write_bytes(presence._HEADER.pack(b"SQLQPRS9", 1, 1, b"i" * 16) + bytes(10_000))
    with pytest.raises(CannotOpen, match="of another version"):
        PresenceFile.attach(path)


def test_a_link_is_not_followed(path, tmp_path):
    PresenceFile.create(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        PresenceFile.attach(path)


def test_a_file_that_cannot_be_made_leaves_nothing_behind(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        PresenceFile.create(path)
    assert list(path.parent.iterdir()) == []


def test_the_last_user_closes_the_file(path, file):
    again = PresenceFile.attach(path)
    assert file.join()
    assert again.join()
    file.part()
    assert len(open_names(path)) == 2
    again.part()
    assert open_names(path) == []
    # Who still has the object is told, instead of locking whatever file has that number now.
    assert not file.join()
    assert not file.take(0)
    with pytest.raises(CannotOpen, match="closed by another thread"):
        file.standing(0)
    assert PresenceFile.attach(path) is not file


def test_the_file_stays_open_while_a_slot_is_held(path, file):
    """Closing any descriptor of it would drop the lock."""
    slot = file.take_free_slot()
    file.own(slot)
    assert file.join()
    file.part()
    assert finish(run_python(LOOK, path, slot)) == "owned\n"
    file.give_back(slot)
    assert file.join()
    file.part()
    assert open_names(path) == []


# -- slots ----------------------------------------------------------------------------------------------


def test_a_slot_is_free_then_changing_then_owned_then_free(file, holder):
    assert file.standing(0) is Standing.CHANGING
    say(holder)
    assert read_line(holder) == "owned"
    assert file.standing(0) is Standing.OWNED
    assert not file.is_free(0)
    assert not file.take(0)
    assert file.entry(0).pid == holder.pid
    kill(holder)
    assert file.standing(0) is Standing.FREE
    assert file.take(0)
    file.give_back(0)


def test_ones_own_slots_look_the_same_as_to_others(path, file):
    slot = file.take_free_slot()
    assert file.standing(slot) is Standing.CHANGING
    file.own(slot)
    assert file.standing(slot) is Standing.OWNED
    code = """
        import sys
        from pathlib import Path
        from sqlqueue_transport.presence import PresenceFile
        print(PresenceFile.attach(Path(sys.argv[1])).standing(int(sys.argv[2])).value)
    """
    assert finish(run_python(code, path, slot)) == "owned\n"
    file.give_back(slot)
    assert finish(run_python(code, path, slot)) == "free\n"
    assert file.is_free(slot)


def test_two_users_in_one_process_get_different_slots(path, file):
    """A process's own POSIX lock does not exclude it."""
    again = PresenceFile.attach(path)
    assert [file.take_free_slot(), again.take_free_slot()] == [0, 1]
    assert not again.take(0)
    file.give_back(0)
    assert again.take(0)


def test_looking_at_a_slot_takes_no_lock_and_is_in_nobodys_way(path, file, monkeypatch):
    """A look that locks for a moment would make two lookers see each other as alive."""
    calls = []
    real = fcntl.lockf
    monkeypatch.setattr(fcntl, "lockf", lambda *a: (calls.append(a), real(*a))[1])
    assert file.is_free(5)
    assert file.standing(6) is Standing.FREE
    assert calls == []


def test_an_unused_slot_comes_before_one_with_a_dead_owner(file):
    for worker_id in (1, 2):
        slot = file.take_free_slot()
        file.write_entry(slot, worker_id=worker_id, pid=1, heartbeat_ms=0, parent_id=0)
        file.give_back(slot)
    assert file.take_free_slot() == 2
    assert [entry.worker_id for entry in file.entries()] == [1, 2]


def test_a_full_file_is_an_error_that_says_so(file):
    assert [file.take_free_slot() for _ in range(SLOTS)] == list(range(SLOTS))
    with pytest.raises(CannotOpen, match=f"all {SLOTS} places"):
        file.take_free_slot()


def test_an_entry_says_what_was_written_and_nothing_of_its_predecessor(file):
    file.write_entry(3, worker_id=1, pid=2, heartbeat_ms=3, parent_id=4)
    file.write_note(3, 0, Note(1, 1, 1, 1))
    file.count_ended(3)
    file.write_entry(3, worker_id=5, pid=6, heartbeat_ms=7, parent_id=8)
    entry = file.entry(3)
    assert (entry.worker_id, entry.pid, entry.heartbeat_ms) == (5, 6, 7)
    assert (entry.jobs_ended, entry.parent_id) == (0, 8)
    assert file.notes(3) == {}
    file.beat(3, 99)
    assert file.entry(3).heartbeat_ms == 99
    assert file.count_ended(3) == 1
    file.clear_entry(3)
    assert list(file.entries()) == []


# -- the death of a process ------------------------------------------------------------------------------


def test_a_slot_is_free_at_once_when_its_owner_is_killed(file, holder):
    say(holder)
    read_line(holder)
    holder.send_signal(signal.SIGSTOP)
    assert file.standing(0) is Standing.OWNED  # stopped is not dead
    kill(holder)
    assert file.is_free(0)


def test_a_grandchild_that_outlives_the_owner_does_not_keep_it_alive(path, file):
    """A flock would: it belongs to the open file, which the grandchild has inherited."""
    code = HOLD.replace(
        'print("owned"',
        "grandchild = os.fork() or (os.setsid(), __import__('signal').pause())\n"
        '    print(grandchild, "owned"',
    )
    process = run_python(code, path)
    read_line(process)
    say(process)
    grandchild = int(read_line(process).split()[0])
    assert file.standing(0) is Standing.OWNED
    kill(process)
    try:
        os.kill(grandchild, 0)
        assert len(open_names(path, process=grandchild)) >= 1
        assert file.is_free(0)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_child_does_not_inherit_its_parents_slot_nor_free_it(path, file):
    slot = file.take_free_slot()
    file.own(slot)
    if not (pid := os.fork()):
        child = PresenceFile.attach(path)
        code = 0
        if child is file or child.standing(slot) is not Standing.OWNED or child.take(slot):
            code = 1
        elif child.take_free_slot() == slot:
            code = 2
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert finish(run_python(LOOK, path, slot)) == "owned\n"


LOOK = """
    import sys
    from pathlib import Path
    from sqlqueue_transport.presence import PresenceFile
    print(PresenceFile.attach(Path(sys.argv[1])).standing(int(sys.argv[2])).value)
"""


def test_what_a_child_inherited_can_be_forgotten_without_costing_it_its_own_locks(path):
    """The trap: the memory map has a descriptor of its own, and closing that drops every lock."""
    code = """
        import gc, os, sys
        from pathlib import Path
        from sqlqueue_transport.presence import PresenceFile
        path = Path(sys.argv[1])
        file = PresenceFile.attach(path) or PresenceFile.create(path)
        keep = [file]
        pid = os.fork()
        if pid:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        mine = PresenceFile.attach(path)
        slot = mine.take_free_slot()
        mine.own(slot)
        del file
        keep.clear()
        gc.collect()
        print(slot, flush=True)
        sys.stdin.readline()
        os._exit(0)
    """
    process = run_python(code, path)
    slot = int(read_line(process))
    assert finish(run_python(LOOK, path, slot)) == "owned\n"
    say(process)
    finish(process)


def test_forgetting_everything_here_leaves_the_locks(path, file):
    slot = file.take_free_slot()
    file.own(slot)
    del file
    gc.collect()
    assert finish(run_python(LOOK, path, slot)) == "owned\n"


def test_of_many_processes_that_want_a_slot_each_gets_one_of_its_own(path, file):
    processes = [run_python(HOLD, path) for _ in range(8)]
    slots = [int(read_line(process)) for process in processes]
    assert sorted(slots) == list(range(8))


# -- notes -----------------------------------------------------------------------------------------------


NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)
NOTE = st.builds(Note, NUMBERS, st.integers(1, 2**32 - 1), NUMBERS, NUMBERS)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return PresenceFile.create(tmp_path_factory.mktemp("notes") / "presence")


def raw(file, slot, place):
    at = presence._note_at(slot, place)
    return slice(at, at + presence._NOTE.size)


@given(note=NOTE, place=st.integers(0, NOTES - 1))
def test_a_note_reads_as_it_was_written_until_it_is_cleared(notebook, note, place):
    notebook.write_note(1, place, note)
    assert notebook.notes(1) == {note.message_id: note}
    notebook.clear_note(1, place)
    assert notebook.notes(1) == {}


@settings(max_examples=300)
@given(note=NOTE, at=st.integers(0, presence._NOTE.size - 1), flip=st.integers(1, 255))
def test_a_note_with_any_byte_changed_reads_as_none(notebook, note, at, flip):
    where = raw(notebook, 2, 0)
    notebook.write_note(2, 0, note)
    torn = bytearray(notebook._memory[where])
    torn[at] ^= flip
    notebook._memory[where] = bytes(torn)
    assert notebook.notes(2) == {}


@settings(max_examples=300)
@given(old=st.one_of(st.none(), NOTE), new=NOTE, cut=st.integers(0, presence._NOTE.size))
def test_a_note_torn_at_any_byte_reads_as_the_old_one_the_new_one_or_none(notebook, old, new, cut):
    where = raw(notebook, 3, 0)
    notebook.write_note(3, 0, new)
    whole = bytes(notebook._memory[where])
    notebook.clear_note(3, 0)
    if old is not None:
        notebook.write_note(3, 0, old)
    before = bytes(notebook._memory[where])
    notebook._memory[where] = whole[:cut] + before[cut:]
    found = list(notebook.notes(3).values())
    assert found in ([], [new]) or found == [old]
    if old is None and whole[:cut] + before[cut:] != whole:
        assert found == []


def test_as_many_notes_as_there_are_places_stand_side_by_side(notebook):
    for slot in (9, 10):
        for place in range(NOTES):
            notebook.write_note(slot, place, Note(slot * 100 + place, 1, 2, 3))
    for slot in (9, 10):
        assert list(notebook.notes(slot)) == [slot * 100 + place for place in range(NOTES)]


@pytest.mark.parametrize("place", [-1, NOTES, 10**6])
def test_a_note_outside_its_slot_is_refused(notebook, place):
    with pytest.raises(IndexError):
        notebook.write_note(4, place, Note(1, 1, 1, 1))
    with pytest.raises(IndexError):
        notebook.clear_note(4, place)


def test_a_note_of_a_killed_process_can_be_read_by_another(path, file):
    code = HOLD.replace(
        "file.own(slot)",
        "from sqlqueue_transport.presence import Note\n"
        "    file.own(slot)\n"
        "    file.write_note(slot, 5, Note(42, 3, 1000, 2000))",
    )
    process = run_python(code, path)
    read_line(process)
    say(process)
    read_line(process)
    kill(process)
    assert file.notes(0) == {42: Note(42, 3, 1000, 2000)}


# -- flags -----------------------------------------------------------------------------------------------


def test_sleepers_are_found_by_the_queues_they_wait_for(file):
    file.raise_flag(1, ["a", "b"], 0)
    file.raise_flag(5, ["b"], 0)
    assert list(file.sleepers("a", None)) == [(1, True)]
    assert list(file.sleepers("b", None)) == [(1, True), (5, True)]
    assert list(file.sleepers("c", None)) == []
    assert file.lower_flag(1)
    assert not file.lower_flag(1)
    assert list(file.sleepers("b", None)) == [(5, True)]


def test_queues_with_similar_names_are_told_apart(file):
    """A sleeper woken in vain is a wake-up that somebody else did not get."""
    names = [f"shard-{n}" for n in range(500)] + ["ab", "ba", "stop", "pots", "tops", "", "ü"]
    for name in names:
        file.raise_flag(0, [name], 0)
        assert [other for other in names if list(file.sleepers(other, None))] == [name]


def test_a_sleeper_with_many_queues_is_woken_for_each_but_not_for_sure(file):
    names = [f"queue-{n}" for n in range(40)]
    file.raise_flag(0, names, 0)
    assert all(list(file.sleepers(name, None)) == [(0, False)] for name in names)


def test_only_who_would_sleep_longer_is_woken_for_what_is_due_later(file):
    file.raise_flag(0, ["a"], 1000)
    assert list(file.sleepers("a", 999)) == [(0, True)]
    assert list(file.sleepers("a", 1000)) == []
    assert list(file.sleepers("a", None)) == [(0, True)]


BEATS = """
    import sys, time
    from pathlib import Path
    from sqlqueue_transport.presence import PresenceFile
    file = PresenceFile.attach(Path(sys.argv[1]))
    print(flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        file.beat(3, 2**40 + 1)
        file.beat(3, 2**40)
"""


def test_a_heartbeat_is_never_seen_as_none_while_it_is_written(file):
    """A supervisor kills a child that has been silent since the beginning of time."""
    file.write_entry(3, worker_id=1, pid=2, heartbeat_ms=2**40, parent_id=4)
    process = run_python(BEATS, file.path)
    read_line(process)
    assert {file.entry(3).heartbeat_ms for _ in range(300_000)} <= {2**40, 2**40 + 1}


def test_the_flag_of_a_dead_process_can_be_lowered_by_anybody(path, file):
    code = HOLD.replace("file.own(slot)", 'file.own(slot); file.raise_flag(slot, ["a"], 0)')
    process = run_python(code, path)
    read_line(process)
    say(process)
    read_line(process)
    kill(process)
    assert list(file.sleepers("a", None)) == [(0, True)]
    file.clear_entry(0)
    assert list(file.sleepers("a", None)) == []


def test_the_layout_leaves_no_two_things_on_the_same_bytes():
    assert presence._ENTRY.size <= presence._QUEUE_NAMES_AT
    assert presence._QUEUE_NAMES_AT + presence._QUEUE_NAMES.size <= presence._NOTES_AT
    assert presence._NOTES_AT + NOTES * presence._NOTE.size <= presence._ENTRY_SIZE
    assert presence._HEADER.size <= presence._SLEEPING_AT
    assert presence._SLEEPING_AT + SLOTS <= presence._USED_AT
    assert presence._USED_AT + SLOTS <= presence._ENTRIES_AT
    assert struct.calcsize("<QQQQqQQ") == presence._ENTRY.size


# --- what has ended and is not settled -----------------------------------------------------------

ENDED = st.builds(
    Ended,
    NUMBERS,
    st.integers(1, 2**32 - 1),
    st.one_of(st.none(), st.text(max_size=presence.LONGEST_NOTED_RESULT_BYTES // 4)),
)


def raw_end(file, slot, place):
    at = presence._ended_note_at(slot, place)
    return slice(at, at + presence._ENDED_NOTE_SIZE)


def forget_ends(file, slot):
    file.clear_entry(slot)
    assert file.ended(slot) == []


@given(ended=ENDED, place=st.integers(0, 3 * presence.ENDED_NOTES))
def test_an_end_reads_as_it_was_written(notebook, ended, place):
    forget_ends(notebook, 5)
    notebook.write_ended(5, place, ended)
    assert notebook.ended(5) == [ended]


@settings(max_examples=300)
@given(
    ended=ENDED,
    at=st.integers(0, presence._ENDED_NOTE.size - 1),
    flip=st.integers(1, 255),
)
def test_an_end_with_any_byte_of_its_head_changed_reads_as_none(notebook, ended, at, flip):
    forget_ends(notebook, 6)
    notebook.write_ended(6, 0, ended)
    where = raw_end(notebook, 6, 0)
    torn = bytearray(notebook._memory[where])
    torn[at] ^= flip
    notebook._memory[where] = bytes(torn)
    assert notebook.ended(6) == []


@settings(max_examples=300)
@given(old=ENDED, new=ENDED, cut=st.integers(0, presence._ENDED_NOTE_SIZE))
def test_an_end_torn_at_any_byte_reads_as_the_old_one_the_new_one_or_none(notebook, old, new, cut):
    where = raw_end(notebook, 7, 0)
    forget_ends(notebook, 7)
    notebook.write_ended(7, 0, new)
    whole = bytes(notebook._memory[where])
    forget_ends(notebook, 7)
    notebook.write_ended(7, 0, old)
    before = bytes(notebook._memory[where])
    notebook._memory[where] = whole[:cut] + before[cut:]
    assert notebook.ended(7) in ([], [old], [new])


def test_the_newest_ends_stand_and_no_two_slots_share_a_place(notebook):
    for slot in (8, 9):
        for number in range(presence.ENDED_NOTES + 3):
            notebook.write_ended(slot, number, Ended(slot * 100 + number + 1, 1))
    for slot in (8, 9):
        expected = {slot * 100 + number + 1 for number in range(3, presence.ENDED_NOTES + 3)}
        assert {one.message_id for one in notebook.ended(slot)} == expected
        forget_ends(notebook, slot)


def test_a_new_owner_of_a_slot_inherits_no_ends(notebook):
    """The database may be an older copy of itself by then, in which the same ids are yet to come."""
    notebook.write_ended(10, 0, Ended(7, 1, "1"))
    notebook.write_entry(10, worker_id=3, pid=1, heartbeat_ms=0, parent_id=0)
    assert notebook.ended(10) == []
    forget_ends(notebook, 10)


def test_a_result_that_does_not_fit_is_refused_and_nothing_is_written(notebook):
    with pytest.raises(ValueError, match="does not fit"):
        notebook.write_ended(11, 0, Ended(7, 1, "x" * (presence.LONGEST_NOTED_RESULT_BYTES + 1)))
    assert notebook.ended(11) == []
    notebook.write_ended(11, 0, Ended(7, 1, "x" * presence.LONGEST_NOTED_RESULT_BYTES))
    assert len(notebook.ended(11)) == 1
    forget_ends(notebook, 11)


def test_an_older_files_places_for_ends_are_added(tmp_path):
    file = PresenceFile.create(tmp_path / "presence")
    file.join()
    file.part()
    with (tmp_path / "presence").open("r+b") as older:
        older.truncate(presence._ENDED_NOTES_AT)
    again = PresenceFile.attach(tmp_path / "presence")
    again.join()
    assert again.identity == file.identity
    assert again.ended(presence.SLOTS - 1) == []
    again.write_ended(presence.SLOTS - 1, 0, Ended(1, 1))
    again.part()
