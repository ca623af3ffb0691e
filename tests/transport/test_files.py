"""What may not hold a queue is refused before SQLite sees it, and what we make is private."""

from __future__ import annotations

import ast
import os
import re
import socket
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest

import sqlqueue_transport
from sqlqueue_transport import (
    CannotOpen,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    ForeignDatabase,
    NetworkFilesystem,
    SchemaTooNew,
    Store,
    UnsafeFile,
    close_store,
    files,
    open_store,
)
from sqlqueue_transport.mapping import map_file
from tests.support import finish, run_python


def refusal(path, kind, **options):
    """Open `path` and return the text of the expected refusal."""
    with pytest.raises(kind) as caught:
        Store(path, busy_timeout_s=2.0, **options)
    return str(caught.value)


# -- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "a\0b", "/", ".", "..", "somewhere/", "\ud800"])
def test_what_names_no_file_is_refused(given):
    with pytest.raises(CannotOpen) as caught:
        files.resolved_path(given)
    str(caught.value).encode()


def test_an_error_about_a_name_that_is_no_unicode_can_be_printed(tmp_path):
    name = os.fsdecode(b"\xff")
    assert "\\udcff" in refusal(tmp_path / name / "q.db", CannotOpen)


def test_two_ways_to_a_directory_lead_to_one_path(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    ways = ["real/q.db", "alias/q.db", "alias/../real/q.db", "real/./q.db"]
    assert {files.resolved_path(tmp_path / way) for way in ways} == {tmp_path / "real" / "q.db"}


def test_a_missing_directory_is_named(tmp_path):
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere" / "q.db", CannotOpen)


def test_a_file_where_the_directory_should_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert "file is not a directory" in refusal(tmp_path / "file" / "q.db", CannotOpen)


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    assert "too long" in refusal(tmp_path / ("q" * 300), CannotOpen)


@pytest.mark.parametrize(
    "name", ["a b.db", "50%20.db", "what?.db", "a#b.db", "ü☃.db", "file:x.db", "a&mode=ro.db", "'"]
)
def test_odd_names_lead_to_the_file_of_that_name(tmp_path, name):
    store = Store(tmp_path / name)
    store.close()
    assert (tmp_path / name).stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}-run"}


def test_a_name_that_is_no_unicode_works(tmp_path):
    name = os.fsdecode(b"q\xff.db")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this filesystem takes UTF-8 only")
    store = Store(tmp_path / name)
    assert store.look([])[1] is None
    store.close()


def test_a_missing_database_is_missing_when_it_may_not_be_made(tmp_path):
    assert "no database at" in refusal(tmp_path / "q.db", DatabaseMissing, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "words"), [(0o500, "not writable for this user"), (0o600, "cannot reach|cannot look")]
)
def test_a_directory_without_permission_says_so(mode, words):
    code = """
        import os, sys
        from sqlqueue_transport import CannotOpen, Store
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 0)  # root may do everything everywhere
        try:
            Store(sys.argv[1])
        except CannotOpen as error:
            print(error)
    """
    # Not under tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        directory = Path(above) / "shut"
        directory.mkdir()
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        directory.chmod(mode)
        text = finish(run_python(code, directory / "q.db"))
        directory.chmod(0o700)
    assert re.search(words, text)


# -- what lies there --------------------------------------------------------------------------------


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_link(path):
    path.with_name("real.db").touch(mode=0o600)
    path.symlink_to("real.db")


def make_hard_link(path):
    path.touch(mode=0o600)
    os.link(path, path.with_name("other name.db"))


def make_writable_for_others(path):
    path.touch()
    path.chmod(0o622)


def make_foreign(path):
    path.touch(mode=0o600)
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "is a directory"),
        (make_fifo, "is a FIFO"),
        (make_socket, "is a socket"),
        (make_link, "is a symbolic link"),
        (make_hard_link, "has 2 hard links"),
        (make_writable_for_others, "chmod 600"),
        (make_foreign, "belongs to user id 12345"),
    ],
)
def test_what_is_unsafe_is_refused_with_the_reason(tmp_path, make, words):
    path = tmp_path / "q.db"
    make(path)
    assert words in refusal(path, UnsafeFile)


def test_a_device_is_refused():
    with pytest.raises(UnsafeFile, match="is a device"):
        files.refuse_unsafe(Path("/dev/null"), create=False)


@pytest.mark.parametrize("suffix", files.COMPANIONS)
@pytest.mark.parametrize("make", [make_link, make_writable_for_others, make_foreign])
def test_a_log_that_somebody_else_may_have_made_is_refused(tmp_path, suffix, make):
    make(tmp_path / f"q.db{suffix}")
    assert f"q.db{suffix} belongs to the database but is a" in refusal(
        tmp_path / "q.db", UnsafeFile
    )
    assert not (tmp_path / "q.db").exists()


def test_a_directory_open_to_everybody_is_refused_unless_it_is_sticky(tmp_path):
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    assert "chmod o-w" in refusal(directory / "q.db", UnsafeFile)
    directory.chmod(0o1777)
    Store(directory / "q.db").close()


@pytest.mark.parametrize("content", [b"#", b"hello world\n" * 1000, b"\0" * 5000, b"\x89PNG\r\n"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    path.chmod(0o600)
    assert "is not a SQLite database" in refusal(path, ForeignDatabase)
    assert path.read_bytes() == content


def test_another_applications_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.close()
    path.chmod(0o600)
    before = path.read_bytes()
    assert "another application's" in refusal(path, ForeignDatabase)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "q.db"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "schema version 99" in refusal(path, SchemaTooNew)


def test_an_empty_file_becomes_a_queue(tmp_path):
    path = tmp_path / "q.db"
    path.touch(mode=0o600)
    Store(path).close()
    assert path.stat().st_size > 0


def test_a_database_cut_to_zero_bytes_is_no_new_queue(tmp_path):
    path = tmp_path / "q.db"
    Store(path).close()
    os.truncate(path, 0)
    assert "was truncated" in refusal(path, FileReplaced)


def test_a_database_that_was_cut_short_is_called_damaged(tmp_path):
    path = tmp_path / "q.db"
    Store(path).close()
    os.truncate(path, 8192)
    assert "is damaged" in refusal(path, DiskFault)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 0)])
def test_a_log_without_its_database_is_kept(tmp_path, harm):
    """SQLite deletes the log beside an empty file; what it held had been acknowledged."""
    path = tmp_path / "q.db"
    code = """
        import os, sys
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        store.publish([NewMessage(b"precious", "default")])
        os._exit(0)
    """
    finish(run_python(code, path))
    log = tmp_path / "q.db-wal"
    assert log.stat().st_size > 0
    harm(path)
    (tmp_path / "q.db-run" / "presence").unlink()
    assert "q.db-wal holds" in refusal(path, FileReplaced)
    assert log.stat().st_size > 0


# -- filesystems ------------------------------------------------------------------------------------


def mount_table(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


LOCAL = "23 1 999:1 / / rw,relatime shared:1 - ext4 /dev/root rw"


def test_the_filesystem_is_the_one_with_the_longest_mount_point(tmp_path):
    table = mount_table(
        tmp_path / "mounts",
        LOCAL,
        f"24 23 999:2 / {tmp_path.parent} rw - xfs /dev/b rw",
        f"25 24 999:3 / {tmp_path}/elsewhere rw - nfs4 server:/ rw",
        f"26 24 999:4 / {tmp_path}x rw - cifs //server rw",
    )
    assert files.filesystem_of(tmp_path, mount_table=table) == "xfs"


def test_a_later_mount_covers_an_earlier_one_on_the_same_point(tmp_path):
    table = mount_table(
        tmp_path / "mounts",
        LOCAL,
        f"24 23 999:2 / {tmp_path} rw - nfs server:/ rw",
        f"25 24 999:3 / {tmp_path} rw master:1 - tmpfs tmpfs rw",
    )
    assert files.filesystem_of(tmp_path, mount_table=table) == "tmpfs"


def test_the_device_number_decides_before_the_path_does(tmp_path):
    device = tmp_path.stat().st_dev
    table = mount_table(
        tmp_path / "mounts",
        f"23 1 {os.major(device)}:{os.minor(device)} / /far/away rw - nfs server:/ rw",
        f"24 23 999:2 / {tmp_path} rw - ext4 /dev/root rw",
    )
    assert files.filesystem_of(tmp_path, mount_table=table) == "nfs"


@pytest.mark.parametrize("name", ["with blank", "tab\there", "back\\slash", "ümlaut", "line\nfeed"])
def test_mount_points_are_read_with_their_escapes(tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    written = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in str(directory))
    table = mount_table(tmp_path / "mounts", LOCAL, f"24 23 999:2 / {written} rw - nfs4 s:/ rw")
    assert files.filesystem_of(directory, mount_table=table) == "nfs4"


def test_a_mount_table_that_is_no_unicode_or_not_there_is_no_error(tmp_path):
    table = tmp_path / "mounts"
    table.write_bytes(b"24 23 999:2 / /\xff\xfe rw - nfs s:/ rw\nrubbish\n" + LOCAL.encode())
    assert files.filesystem_of(tmp_path, mount_table=table) == "ext4"
    assert files.filesystem_of(tmp_path, mount_table=tmp_path / "none") is None


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "drvfs", "vboxsf"]
)
def test_a_network_filesystem_is_refused_by_its_name(tmp_path, monkeypatch, kind):
    table = mount_table(tmp_path / "mounts", f"24 23 999:2 / {tmp_path} rw - {kind} x rw")
    monkeypatch.setattr(files, "MOUNT_TABLE", table)
    assert f"is on {kind}" in refusal(tmp_path / "q.db", NetworkFilesystem)
    assert not (tmp_path / "q.db").exists()


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs"]
)
def test_local_filesystems_are_taken(kind):
    assert not files.is_network(kind)


def test_a_database_mounted_as_a_single_file_is_refused(tmp_path, monkeypatch):
    """`docker run -v q.db:/data/q.db`: inside and outside would each have a log of their own."""
    table = mount_table(tmp_path / "mounts", LOCAL, f"24 23 999:2 / {tmp_path}/q.db rw - ext4 x rw")
    monkeypatch.setattr(files, "MOUNT_TABLE", table)
    assert "Mount its directory" in refusal(tmp_path / "q.db", UnsafeFile)


# -- what we make -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_we_make_is_private_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = open_store(tmp_path / "q.db")
        store.consumers.register(name="w", kind="worker")
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_fifo()]
    assert {path.name for path in made} == {
        *("q.db", "q.db-wal", "q.db-shm"),
        *("writer.lock", "presence", "wake.0"),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert stat.S_IMODE((tmp_path / "q.db-run").stat().st_mode) == 0o700
    close_store(store)


def test_a_run_directory_open_to_others_is_refused(tmp_path):
    (tmp_path / "q.db-run").mkdir()
    (tmp_path / "q.db-run").chmod(0o755)
    assert "chmod 700" in refusal(tmp_path / "q.db", UnsafeFile)


def test_a_run_directory_that_is_a_link_or_a_file_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "q.db-run").symlink_to("elsewhere")
    assert "must be a directory of this user" in refusal(tmp_path / "q.db", UnsafeFile)
    (tmp_path / "q.db-run").unlink()
    (tmp_path / "q.db-run").touch(mode=0o600)
    assert "must be a directory of this user" in refusal(tmp_path / "q.db", UnsafeFile)


def test_a_mapped_file_has_no_holes(tmp_path):
    """Writing into a hole on a full disk is SIGBUS."""
    path = tmp_path / "mapped"
    size = 1 << 20
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    memory = map_file(descriptor, size)
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 >= size
    memory.close()
    os.close(descriptor)


def test_mapping_on_a_full_disk_is_an_error_and_no_signal(tmp_path):
    code = """
        import os, resource, signal, sys
        from sqlqueue_transport.mapping import map_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            map_file(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600), 1 << 20)
        except OSError as error:
            print("refused:", error.strerror)
    """
    assert finish(run_python(code, tmp_path / "mapped")).startswith("refused:")


def test_making_a_file_or_directory_makes_its_name_durable(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)),
    )
    inode = tmp_path.stat().st_ino
    files.create_private_file(tmp_path / "file")
    assert synced == [inode]
    files.create_private_directory(tmp_path / "directory")
    assert synced == [inode, inode]


# -- trap: a descriptor of the database that is closed drops SQLite's locks ---------------------------


def test_nothing_opens_the_database_file_but_sqlite(tmp_path, monkeypatch):
    """Closing any descriptor of the file would drop the POSIX locks of this process."""
    opened = []
    path = tmp_path / "q.db"
    Store(path).close()
    real = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda name, *rest, **named: (opened.append(name), real(name, *rest, **named))[1],
    )
    store = open_store(path)
    store.publish([sqlqueue_transport.NewMessage(b"x", "default")])
    store.consumers.register(name="w", kind="worker")
    assert store.claim(["default"], lease_s=60).deliveries
    store.consumers.sweep_all()
    store.database.look_at_path()
    assert store.reading.counts()
    close_store(store)
    assert opened
    assert not [name for name in opened if os.fspath(name) == str(path)]


def test_no_module_of_ours_calls_open_or_copies_a_file():
    """`open`, `Path.open`, `read_bytes` or `shutil` on the database would drop SQLite's locks."""
    suspicious = {"open", "read_bytes", "write_bytes", "write_text", "copy", "copyfile", "copy2"}
    found = []
    package = Path(sqlqueue_transport.__file__).parent
    for module in package.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Name) and called.id in suspicious:
                found.append((module.name, node.lineno, called.id))
            elif isinstance(called, ast.Attribute) and called.attr in suspicious:
                owner = ast.unparse(called.value)
                if owner not in {"os", "self", "mount_table"}:
                    found.append((module.name, node.lineno, f"{owner}.{called.attr}"))
    assert found == []
