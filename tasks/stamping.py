r"""The task `tasks.stamping.stamp`: what a worker does with a job file.

It waits a while, as work would, and appends one line to the file:

    2026-11-22T05:11:07.123Z job=<id> attempt=1 duration_s=11.312 worker=<name>\n

Two things make it more than an append. Delivery is at least once: a worker may die after its append
and before its ack, so a file carries one stamp per job id, whoever runs the job again sees the
first one's line. And a job's argument is hostile text: the file is opened beneath the jobs
directory and nowhere else.

How a file is opened. A path that was checked and then opened by its text can be changed in between:
`jobs/sub` becomes a link to `/etc` after the check and before the open. So nothing is checked by
its text alone. Each component is opened relative to the descriptor of the one before it, and the
kernel itself refuses a link in that very call (O_NOFOLLOW); the file is looked at through its
descriptor, after it is open and can no longer be exchanged. A FIFO must not block the worker
(O_NONBLOCK), and a device must not even be opened (some act on that), so the name is also looked at
before; that look only spares trouble, the one at the descriptor decides. A second hard link would
let a line land in a file that also lives elsewhere: one link exactly.

Refuses outside paths, links, hard links, FIFOs, devices, sockets, directories and missing files.
Trouble that may pass (the directory is missing or read-only, the disk full) is an ordinary OSError:
the job is retried.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import stat
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlqueue import Reject
from sqlqueue.text import quoted

from .app import app, job_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlqueue import Task

__all__ = [
    "STAMP_TASK",
    "RefusedFile",
    "append_stamp",
    "has_stamp",
    "open_directory",
    "read_job_file",
    "stamp",
    "stamped_jobs",
    "written_id",
]

STAMP_TASK = "tasks.stamping.stamp"

_MOST_NAME_BYTES = 255  # NAME_MAX of every usual filesystem
_MOST_PATH_BYTES = 4096  # PATH_MAX of Linux
_MOST_FILE_BYTES = 64 << 20  # a job file has a few hundred; a sparse giant must not fill the memory
_LOCK_WAIT_S = 10.0
_LOCK_POLL_S = 0.01

# A line that was torn before its worker's name is no stamp: its job has to write a whole one.
_STAMP_LINE = re.compile(
    rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z job=(\S+) attempt=\d+ duration_s=\d+\.\d{3}"
    rb" worker=\S+$",
    re.MULTILINE,
)


class RefusedFile(Exception):
    """Say that no attempt will ever stamp this name: it is not a plain file beneath the directory.

    Carries `.name`, as it was given, `.reason`, and `.is_missing`: whether there is just no file.
    """

    def __init__(self, name: object, reason: str, *, is_missing: bool = False) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason
        self.is_missing = is_missing

    def __str__(self) -> str:
        """Return one line, safe to show whatever the name is."""
        return f"refused to stamp {quoted(self.name)}: {self.reason}"


@app.task(name=STAMP_TASK, bind=True)
def stamp(self: Task[..., str], name: str) -> str:
    """Wait a random while between `min_seconds` and `max_seconds`, then stamp the job file `name`.

    `name` is relative to the jobs directory; an absolute path is accepted beneath it. Raises Reject
    for a name that is refused: at once, before any waiting. Returns "stamped", or "already stamped"
    when an earlier delivery of this job did so.

    If the process dies midway, the file carries the stamp or does not; the next attempt writes it
    where it is missing.
    """
    began = time.monotonic()
    settings = job_settings()
    request = self.request
    try:
        if has_stamp(settings.directory, name, job_id=request.id):
            return "already stamped"
        time.sleep(random.uniform(settings.min_seconds, settings.max_seconds))
        # Opened anew, by the same rules: a descriptor held over the wait would stamp a file that
        # was taken away meanwhile, and the job would be done with nothing to show.
        is_new = append_stamp(
            settings.directory,
            name,
            job_id=request.id,
            attempt=request.attempt,
            duration_s=time.monotonic() - began,
            worker=request.worker,
            now=datetime.now(timezone.utc),
        )
    except RefusedFile as refusal:
        raise Reject(str(refusal)) from refusal
    return "stamped" if is_new else "already stamped"


def append_stamp(
    directory: Path,
    name: str,
    *,
    job_id: str,
    attempt: int,
    duration_s: float,
    worker: str,
    now: datetime,
) -> bool:
    """Append the stamp of job `job_id` to a job file, once; return whether this call wrote it.

    `duration_s` is how long the attempt took, in seconds; `now` is an aware time. Raises
    RefusedFile for a name that is refused, TimeoutError when another process sits on the file for
    10 s, OSError for what may pass. Any number of processes and threads may call it at once.

    When it returned, the stamp is on the disk. If the process dies midway, the file carries the
    whole stamp, none, or (a full disk, a power cut) the beginning of one, which the next call
    closes with a newline before it writes its own.
    """
    line = _stamp_line(
        job_id=job_id, attempt=attempt, duration_s=duration_s, worker=worker, now=now
    )
    with _job_file(directory, name, flags=os.O_RDWR | os.O_APPEND) as file, _locked(file):
        _require_single_file(file, name)  # once more: waiting for the lock may have taken long
        content = _read(file, name)
        is_new = written_id(job_id) not in stamped_jobs(content)
        if is_new:
            is_torn = bool(content) and not content.endswith(b"\n")
            _write_once(file, b"\n" + line if is_torn else line)
        # Also where the stamp was found: its writer may have died between its write and its flush.
        os.fsync(file)
    return is_new


def has_stamp(directory: Path, name: str, *, job_id: str) -> bool:
    """Return whether a job file carries the stamp of job `job_id`; changes nothing.

    Opens the file as stamping it would, so that it raises what `append_stamp` would raise.
    """
    with _job_file(directory, name, flags=os.O_RDWR | os.O_APPEND) as file:
        return written_id(job_id) in stamped_jobs(_read(file, name))


def read_job_file(directory: Path, name: object) -> bytes:
    """Return the content of a job file, for those who may only read it.

    Raises RefusedFile for a name that is refused, OSError for other trouble.
    """
    with _job_file(directory, name, flags=os.O_RDONLY) as file:
        return _read(file, name)


def stamped_jobs(content: bytes) -> list[str]:
    """Return the id of each whole stamp in a job file's content, in order, as `written_id` has it.

    A line that was torn before its end is no stamp.
    """
    return [match.decode("utf-8", "replace") for match in _STAMP_LINE.findall(content)]


def written_id(text: str) -> str:
    """Return a job's id, or a worker's name, as a stamp writes it.

    The line is parted by spaces and ended by a newline, and both words may be chosen by whoever
    calls: what is not plain is percent-encoded, so that different ids stay different and none can
    write a second stamp. Canonical UUIDs stay as they are.
    """
    return quote(text, safe="@:+,=/", errors="surrogatepass") or "%"


def open_directory(directory: Path) -> int:
    """Return a descriptor of the jobs directory, which the caller closes.

    The directory itself must not be a link: it would be a way to move every job file elsewhere.
    The way to it is the operator's. Raises OSError, with advice where it is a link.
    """
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and directory.is_symlink():
            raise NotADirectoryError(
                errno.ENOTDIR,
                "the jobs directory is a symbolic link; set app.directory to where it leads",
                str(directory),
            ) from error
        raise


# ------------------------------------------------------------------------------ opening beneath


@contextlib.contextmanager
def _job_file(directory: Path, name: object, *, flags: int) -> Iterator[int]:
    """Open the job file `name` beneath `directory`, and close it afterwards."""
    parts = _parts(directory, name)
    here = open_directory(directory)
    try:
        for part in parts[:-1]:
            here = _enter(here, part, name=name)
        file = _open_file(here, parts[-1], name=name, flags=flags)
    finally:
        os.close(here)
    try:
        _require_single_file(file, name)
        yield file
    finally:
        os.close(file)


def _parts(directory: Path, name: object) -> list[str]:
    """Split a name into its components beneath the directory, by its text alone."""
    if not isinstance(name, str):
        raise RefusedFile(name, "the name of a job file must be text")
    if not name:
        raise RefusedFile(name, "the name is empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise RefusedFile(name, "the name has a NUL, a newline or another control character")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise RefusedFile(name, "the name is not valid Unicode") from None
    if size > _MOST_PATH_BYTES:
        raise RefusedFile(name, "the name is too long")
    parts = _relative(directory, name).split("/")
    for part in parts:
        if part == "..":
            raise RefusedFile(name, "it leaves the jobs directory with '..'")
        if part in ("", "."):
            raise RefusedFile(name, "it has an empty part, or '.', between its slashes")
        if len(part.encode()) > _MOST_NAME_BYTES:
            raise RefusedFile(name, "the name is too long")
    return parts


def _relative(directory: Path, name: str) -> str:
    if not name.startswith("/"):
        return name
    # Both spellings, since the caller may have resolved links on the way to the directory, or not.
    # Either remainder is then walked from the directory's own descriptor, so neither can mislead.
    for prefix in (os.path.abspath(directory), os.path.realpath(directory)):  # noqa: PTH100
        if name.startswith(prefix.rstrip("/") + "/"):
            return name[len(prefix.rstrip("/")) + 1 :]
    raise RefusedFile(name, "it lies outside of the jobs directory")


def _enter(here: int, part: str, *, name: object) -> int:
    """Open a directory inside `here`, and close `here` once that worked."""
    try:
        inner = os.open(
            part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here
        )
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            # Linux answers ENOTDIR for a link that must be a directory and must not be followed.
            reason = f"{quoted(part)} on its way is a link, or no directory"
            raise RefusedFile(name, reason) from error
        _refuse_if_final(error, name)
        raise
    os.close(here)
    return inner


def _open_file(here: int, part: str, *, name: object, flags: int) -> int:
    try:
        _require_file(os.stat(part, dir_fd=here, follow_symlinks=False), name)
        return os.open(
            part,
            flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
            dir_fd=here,
        )
    except OSError as error:
        _refuse_if_final(error, name)
        raise


def _refuse_if_final(error: OSError, name: object) -> None:
    """Raise RefusedFile where trying again would find the same; trouble that may pass returns."""
    reason = {
        errno.ENOENT: "there is no such file",
        errno.ELOOP: "it is a symbolic link",
        errno.EISDIR: "it is a directory",
        errno.ENXIO: "it is not a regular file",
        errno.ENAMETOOLONG: "the name is too long",
    }.get(error.errno or 0)
    if reason is not None:
        raise RefusedFile(name, reason, is_missing=error.errno == errno.ENOENT) from error


def _require_single_file(file: int, name: object) -> None:
    found = os.fstat(file)
    _require_file(found, name)
    if found.st_nlink == 0:
        # Removed since it was opened.
        raise RefusedFile(name, "there is no such file", is_missing=True)
    if found.st_nlink != 1:
        raise RefusedFile(name, f"it has {found.st_nlink} hard links, and must have one")
    if found.st_size > _MOST_FILE_BYTES:
        raise RefusedFile(name, f"it is larger than {_MOST_FILE_BYTES >> 20} MiB")


def _require_file(found: os.stat_result, name: object) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise RefusedFile(name, "it is a symbolic link")
    if stat.S_ISDIR(found.st_mode):
        raise RefusedFile(name, "it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise RefusedFile(name, "it is not a regular file")


# ---------------------------------------------------------------------------- reading, writing


@contextlib.contextmanager
def _locked(file: int) -> Iterator[None]:
    """Hold the file's flock, so that looking for a stamp and writing it are one step.

    The lock belongs to this opening of the file: threads exclude each other as processes do, and
    the kernel frees it when a process dies. Waiting is bounded, since a process may be stopped
    while it holds the lock; the job is then retried.
    """
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"another process holds the file for {_LOCK_WAIT_S:g} s"
                ) from None
        time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        # Closing would do, were it not for a child forked meanwhile, which holds the descriptor.
        fcntl.flock(file, fcntl.LOCK_UN)


def _read(file: int, name: object) -> bytes:
    pieces = []
    size = 0
    while piece := os.pread(file, 1 << 20, size):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_FILE_BYTES:  # it grows while it is read
            raise RefusedFile(name, f"it is larger than {_MOST_FILE_BYTES >> 20} MiB")
    return b"".join(pieces)


def _write_once(file: int, data: bytes) -> None:
    """Append `data` in one write: a second one could land behind another program's line."""
    written = os.write(file, data)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes of the stamp were taken")


def _stamp_line(
    *, job_id: str, attempt: int, duration_s: float, worker: str, now: datetime
) -> bytes:
    at = now.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return (
        f"{at}Z job={written_id(job_id)} attempt={attempt:d} duration_s={max(duration_s, 0):.3f}"
        f" worker={written_id(worker)}\n"
    ).encode()
