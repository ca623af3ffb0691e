"""Decide whether a path may hold a queue, before SQLite ever sees it.

SQLite opens whatever it is given. We refuse what would lose data (network filesystems, hard
links, directories, pipes) or hand it to somebody else (symbolic links, foreign owners,
directories others may write to). Nothing here opens the database file: closing any descriptor
of it would drop SQLite's POSIX locks in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from sqlqueue_transport.errors import CannotOpen, DatabaseMissing, NetworkFilesystem, UnsafeFile

# Filesystems on which WAL's shared memory or its locks do not work between processes.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "drvfs",
        "fakeowner",
        "fuse",
        "fuseblk",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "prl_fs",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    },
)
MOUNT_TABLE = Path("/proc/self/mountinfo")
# What SQLite keeps beside the file and trusts as much as the file itself.
COMPANIONS = ("-wal", "-shm", "-journal")
# With less a file cannot be opened: its shared memory takes 32 kB, the log of a new one 200.
NO_ROOM_BYTES = 256 << 10
_OWNER_ONLY = 0o600
# linux/fcntl.h and linux/stat.h
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_SIZE = 256
_BTIME_AT = 80
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tell one file from another at the same path."""

    device: int
    inode: int


def identity_of(path: Path) -> FileIdentity | None:
    """Return which file the path leads to now; None when there is none."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileIdentity(found.st_dev, found.st_ino)


def born_ns(path: Path) -> int:
    """Return when the file at the path was made, as its filesystem says; 0 where that is not known.

    An inode number is used again, often at once, for the next file that is made; a time of birth is
    not. Linux tells it since 4.11 by statx(2), which Python has no function for. Opens nothing.
    """
    statx = getattr(ctypes.CDLL(None), "statx", None)  # glibc has it since 2.28
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(
        _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found
    ):
        return 0
    (known,) = struct.unpack_from("=I", found)
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BTIME_AT)
    return seconds * 10**9 + nanoseconds if known & _STATX_BTIME else 0


def size_of(path: Path) -> int | None:
    """Return how many bytes the file at the path has; None when there is none."""
    try:
        return os.lstat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def free_bytes(directory: Path) -> int | None:
    """Return how much room there is on the disk of a directory; None where that cannot be told."""
    try:
        found = os.statvfs(directory)  # which opens nothing
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def is_full(path: Path) -> bool:
    """Say whether the disk of the file at `path` has no room for what opening it takes.

    A quota cannot be seen here.
    """
    free = free_bytes(path.parent)
    return free is not None and free < NO_ROOM_BYTES


def resolved_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path by which every process knows the file.

    The directory is resolved, so that two ways to it share locks; the last component is not,
    because a symbolic link there is refused. Raises CannotOpen when the directory is missing.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        message = f"{text!r} is not a path: give the database file, as in sqlqueue:///queue.db"
        raise CannotOpen(message)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        message = f"{text!r} cannot be the name of a file here; use valid Unicode text"
        raise CannotOpen(message) from None
    given = Path(text)
    if text.endswith("/") or given.name in {"", ".", ".."}:
        message = f"{text} names a directory; give the database file in it, e.g. {text.rstrip('/')}/queue.db"
        raise CannotOpen(message)
    try:
        parent = given.parent.resolve(strict=True)
        is_directory = parent.is_dir()
    except FileNotFoundError:
        message = f"the directory {given.parent} does not exist; create it, or choose another path"
        raise CannotOpen(message) from None
    except (OSError, RuntimeError) as error:
        message = f"cannot reach the directory {given.parent}: {error}"
        raise CannotOpen(message) from error
    if not is_directory:
        message = f"{parent} is not a directory, so there can be no database in it"
        raise CannotOpen(message)
    return parent / given.name


def refuse_unsafe(path: Path, *, create: bool) -> None:
    """Raise a CannotOpen that says what is wrong with the path, or return.

    With `create`, a missing file is no fault. Nothing is opened or changed.
    """
    try:
        _refuse_filesystem(path)
        _refuse_directory(path.parent)
        for suffix in COMPANIONS:
            _refuse_companion(path.with_name(path.name + suffix))
        found = os.lstat(path)
    except FileNotFoundError:
        if create:
            if not os.access(path.parent, os.W_OK | os.X_OK):
                message = f"cannot create {path}: the directory is not writable for this user"
                raise CannotOpen(message) from None
            return
        message = f"no database at {path}"
        raise DatabaseMissing(message) from None
    except OSError as error:
        message = f"cannot look at {path}: {error.strerror}"
        raise CannotOpen(message) from error
    _refuse_file(path, found)


def _refuse_file(path: Path, found: os.stat_result) -> None:
    kind = _kind(found.st_mode)
    if kind:
        message = f"{path} is a {kind}, not a database file; give another path"
        raise UnsafeFile(message)
    if found.st_uid != os.geteuid():
        message = (
            f"{path} belongs to user id {found.st_uid}, this process runs as {os.geteuid()}: "
            "run as its owner, or change the owner"
        )
        raise UnsafeFile(message)
    if found.st_nlink > 1:
        message = (
            f"{path} has {found.st_nlink} hard links; under two names SQLite keeps two logs and "
            "loses data. Remove the other names"
        )
        raise UnsafeFile(message)
    if found.st_mode & _OTHERS_MAY_WRITE:
        message = f"{path} is writable for other users; run 'chmod 600 {path}'"
        raise UnsafeFile(message)
    if not os.access(path, os.R_OK | os.W_OK):
        message = f"{path} is not readable and writable for this user; check its permissions"
        raise CannotOpen(message)


def _refuse_companion(path: Path) -> None:
    """Refuse a log that somebody else wrote: SQLite would replay it into the database."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    kind = _kind(found.st_mode)
    if kind or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE:
        what = kind or f"file of user id {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
        message = f"{path} belongs to the database but is a {what}; find out who made it"
        raise UnsafeFile(message)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    for is_kind, name in (
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
    ):
        if is_kind(mode):
            return name
    return "device"


def _refuse_directory(directory: Path) -> None:
    found = directory.stat()
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        message = (
            f"everybody may replace files in {directory}; run 'chmod o-w {directory}', "
            "or set its sticky bit"
        )
        raise UnsafeFile(message)


def _refuse_filesystem(path: Path) -> None:
    kind = filesystem_of(path.parent)
    if kind is not None and is_network(kind):
        message = f"{path} is on {kind}; SQLite's WAL is not safe there. Use a local disk."
        raise NetworkFilesystem(message)
    if any(mount.point == path for mount in _mounts(MOUNT_TABLE)):
        message = (
            f"{path} is mounted as a single file (docker run -v FILE:FILE?); inside and outside "
            "SQLite would keep two logs and lose data. Mount its directory instead"
        )
        raise UnsafeFile(message)


def is_network(kind: str) -> bool:
    """Say whether a filesystem type is one on which WAL corrupts."""
    return kind in NETWORK_FILESYSTEMS or kind.startswith("fuse.")


def filesystem_of(directory: Path, *, mount_table: Path | None = None) -> str | None:
    """Return the type of the filesystem that holds `directory`; None when it cannot be told.

    Reads the kernel's mount table (proc_pid_mountinfo(5)). The device number decides: it cannot
    be covered by another mount. Where the table does not know it (btrfs subvolumes), the longest
    mount point above the directory does.
    """
    mounts = _mounts(mount_table or MOUNT_TABLE)
    found = directory.stat().st_dev
    device = f"{os.major(found)}:{os.minor(found)}"
    best: _Mount | None = None
    for mount in mounts:
        if mount.device == device:
            return mount.kind
        is_above = mount.point == directory or mount.point in directory.parents
        # A later line covers an earlier one on the same mount point.
        if is_above and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    return best.kind if best else None


@dataclass(frozen=True, slots=True)
class _Mount:
    device: str
    point: Path
    kind: str


def _mounts(mount_table: Path) -> list[_Mount]:
    """Read a mount table; empty where there is none (macOS)."""
    try:
        lines = mount_table.read_bytes().splitlines()
    except OSError:
        return []
    mounts: list[_Mount] = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        if len(fields) < 5 or not after:
            continue
        # Blanks and the like are octal in the table; all other bytes stand as they are.
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), fields[4])
        mounts.append(
            _Mount(
                device=os.fsdecode(fields[2]),
                point=Path(os.fsdecode(point)),
                kind=os.fsdecode(after.split(b" ")[0]),
            )
        )
    return mounts


def create_private_file(path: Path) -> None:
    """Create an empty file of mode 0600 that nobody else made, and make its name durable.

    An existing file is left alone. If the process dies midway there is an empty file or none.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, _OWNER_ONLY)
    except FileExistsError:
        return
    os.close(descriptor)
    sync_directory(path.parent)


def create_private_directory(path: Path) -> None:
    """Create a directory of mode 0700, or accept ours; refuse a link or another owner's."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            message = f"{path} must be a directory of this user; remove what is there"
            raise UnsafeFile(message) from None
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{path} is open to other users; run 'chmod 700 {path}'"
            raise UnsafeFile(message) from None
        return
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory, so that names made in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
