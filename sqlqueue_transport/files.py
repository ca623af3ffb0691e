"""Decide whether a path may hold a queue, before SQLite ever sees it.

SQLite opens whatever it is given. We refuse what would lose data (network filesystems, hard
links, directories, pipes) or hand it to somebody else (symbolic links, foreign owners,
directories others may write to). Nothing here opens the database file: closing any descriptor
of it would drop SQLite's POSIX locks in this process (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from sqlqueue_transport.errors import CannotOpen, DatabaseMissing, NetworkFilesystem, UnsafeFile

# Filesystems on which WAL's shared memory or its locks do not work between processes.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "drvfs",
        "fuse",
        "fuseblk",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "prl_fs",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    },
)
MOUNT_TABLE = Path("/proc/self/mountinfo")
_OWNER_ONLY = 0o600
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
    except FileNotFoundError:
        return None
    return FileIdentity(found.st_dev, found.st_ino)


def resolved_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path by which every process knows the file.

    The directory is resolved, so that two ways to it share locks; the last component is not,
    because a symbolic link there is refused. Raises CannotOpen when the directory is missing.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        message = f"{text!r} is not a path: give the database file, as in sqlqueue:///queue.db"
        raise CannotOpen(message)
    given = Path(text)
    if text.endswith("/") or given.name in {"", ".", ".."}:
        message = f"{text} names a directory; give the database file in it, e.g. {text.rstrip('/')}/queue.db"
        raise CannotOpen(message)
    try:
        parent = given.parent.resolve(strict=True)
    except FileNotFoundError:
        message = f"the directory {given.parent.absolute()} does not exist; create it, or choose another path"
        raise CannotOpen(message) from None
    except (OSError, RuntimeError) as error:
        message = f"cannot reach the directory {given.parent}: {error}"
        raise CannotOpen(message) from error
    if not parent.is_dir():
        message = f"{parent} is not a directory, so there can be no database in it"
        raise CannotOpen(message)
    return parent / given.name


def refuse_unsafe(path: Path, *, create: bool) -> None:
    """Raise a CannotOpen that says what is wrong with the path, or return.

    With `create`, a missing file is no fault. Nothing is opened or changed.
    """
    _refuse_filesystem(path.parent)
    _refuse_directory(path.parent)
    try:
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


def _refuse_filesystem(directory: Path) -> None:
    kind = filesystem_of(directory)
    if kind is not None and is_network(kind):
        message = f"{directory} is on {kind}; SQLite's WAL is not safe there. Use a local disk"
        raise NetworkFilesystem(message)


def is_network(kind: str) -> bool:
    """Say whether a filesystem type is one on which WAL corrupts."""
    return kind in NETWORK_FILESYSTEMS or kind.startswith("fuse.")


def filesystem_of(directory: Path, *, mount_table: Path | None = None) -> str | None:
    """Return the type of the filesystem that holds `directory`; None when it cannot be told.

    Reads the kernel's mount table (proc_pid_mountinfo(5)): the device number decides, and among
    several mounts of one device the longest mount point above the directory.
    """
    if sys.platform != "linux" and mount_table is None:  # pragma: no cover - no table to read
        return None
    try:
        lines = (mount_table or MOUNT_TABLE).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:  # noqa: PLR2004 - columns of the table
            continue
        mount_point = Path(fields[4].encode().decode("unicode_escape"))
        if mount_point == directory or mount_point in directory.parents:
            length = len(mount_point.parts)
            # A later line covers an earlier one on the same mount point.
            if best is None or length >= best[0]:
                best = (length, after.split(" ")[0])
    return best[1] if best else None


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
