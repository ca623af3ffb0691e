"""The producer: writes a job file on each tick and yields the call that stamps it.

It stands before the queue. The beat runs `produce` in its own process and commits the tick together
with the calls it yielded, so a call is enqueued once however many beats run, and only after its
file is there, whole and on the disk. What this module must see to is the file: one per tick, never
half written, never written anew.

A file is written under another name and published by a hard link, which fails where the final name
exists. (A rename would replace it, and with it perhaps a stamp.) If the name exists, another beat
was faster, or an earlier run of this tick died before its commit. Either way the file is the
tick's, and the call is yielded all the same: whether the tick still has to be enqueued is decided
by the broker's transaction, not by a file.

A crash between link and unlink leaves a file with two names, and such a file is not stamped. So
whoever made or found the final file removes the other names before it yields the call. It may take
the temporary file of a beat that is still at work with it; that one finds the final name taken, or
starts over.

Refuses entry names that are no file names.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

from sqlqueue.text import quoted

from .app import app, job_settings
from .stamping import open_directory, stamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlqueue import Signature, Tick

__all__ = ["RandomBits", "job_file_name", "produce", "remove_temporaries", "write_job_file"]

_ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_LINES = 4
_MOST_STARTS = 10
_TEMPORARY_SUFFIX = ".tmp"

_swept: set[str] = set()  # the entries this process has swept after


class RandomBits(Protocol):
    """Name what is needed of a random.Random."""

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""


def produce(tick: Tick) -> Iterator[Signature]:
    """Write the tick's job file, then yield the call that stamps it.

    Runs in the beat. Raises OSError when the file cannot be written; the tick is then not
    enqueued. If the process dies midway, there is a file or a temporary file, and no call; the
    same tick, run again, goes on from there.
    """
    directory = job_settings().directory
    if tick.entry not in _swept:
        remove_temporaries(directory, tick.entry)
        _swept.add(tick.entry)
    yield stamp.s(write_job_file(directory, tick.entry, due_ms=tick.due_ms, random=_random))


def job_file_name(entry: str, *, due_ms: int) -> str:
    """Return `job-<entry>-<tick>.txt`; the tick is its due time in UTC, like 20261122T051105200Z.

    Raises ValueError for an entry whose name is no part of a file's name.
    """
    if not _ENTRY_NAME.fullmatch(entry):
        raise ValueError(
            f"a producer entry is named with 1 to 100 of A-Z a-z 0-9 . _ - and begins with a letter"
            f" or a digit, since its job files carry the name; {quoted(entry)} is none",
        )
    seconds, ms = divmod(due_ms, 1000)
    due = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"job-{entry}-{due:%Y%m%dT%H%M%S}{ms:03d}Z.txt"


def write_job_file(directory: Path, entry: str, *, due_ms: int, random: RandomBits) -> str:
    """Make sure the tick's job file exists, whole and on the disk, and return its name.

    `due_ms` is the tick's due time, in milliseconds since the Unix epoch. A file that is already
    there is kept as it is. The directory is made where it is missing. Raises OSError. Any number
    of processes and threads may call it for one tick at once.

    If the process dies midway, the file may stay under both names, which the next call for this
    tick mends; or a temporary file alone, which `remove_temporaries` clears away.
    """
    final = job_file_name(entry, due_ms=due_ms)
    _make_directory(directory)
    here = open_directory(directory)
    try:
        is_ours = not _links(here, final) and _publish(here, final, content=_content(random))
        # A directory of a million job files takes 0.7 s to list, so that is done only where another name
        # can be left: not after our own link and unlink, as nearly always.
        if not is_ours or _links(here, final) != 1:
            _remove_names(here, _temporary_prefix(final))
        os.fsync(here)
    finally:
        os.close(here)
    return final


def remove_temporaries(directory: Path, entry: str) -> None:
    """Remove the temporary files that dead beats left of this entry, whatever their tick.

    A tick whose beat died may never be run again: the catch-up policy may pass over it. A living
    beat whose temporary file is taken starts over. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        here = open_directory(directory)
        try:
            _remove_names(here, f".job-{entry}-")
        finally:
            os.close(here)


def _publish(here: int, final: str, *, content: bytes) -> bool:
    """Write the file under a name of its own, then link it to `final`; False if that exists."""
    for _ in range(_MOST_STARTS):
        temporary = _temporary_prefix(final) + uuid.uuid4().hex + _TEMPORARY_SUFFIX
        try:
            _write_file(here, temporary, content)
            os.link(temporary, final, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Another beat took the temporary file away, as it does when it finds the final one, or
            # sweeps after a dead beat. Starting over tells which.
            continue
        finally:
            # Also on the way of an error, a full disk for one: leave nothing behind.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=here)
        return True
    raise FileNotFoundError(
        f"the temporary file of {quoted(final, limit=200)} was taken away {_MOST_STARTS} times;"
        " something else removes files from the jobs directory",
    )


# The operating system's randomness: two beats that were forked from one process, or seeded alike,
# would write alike.
_random = random.SystemRandom()


def _temporary_prefix(final: str) -> str:
    return f".{final}."


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _links(here: int, name: str) -> int:
    """Return how many names the file has; 0 where it does not exist."""
    try:
        return os.stat(name, dir_fd=here, follow_symlinks=False).st_nlink
    except FileNotFoundError:
        return 0


def _content(random: RandomBits) -> bytes:
    return "".join(f"{random.getrandbits(128):032x}\n" for _ in range(_LINES)).encode()


def _write_file(here: int, name: str, content: bytes) -> None:
    """Write a new file and flush it to the disk, before anybody can see it under its final name."""
    file = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        mode=0o600,
        dir_fd=here,
    )
    with open(file, "wb") as stream:  # noqa: PTH123 - a descriptor has no path
        stream.write(content)
        stream.flush()
        os.fsync(file)


def _remove_names(here: int, prefix: str) -> None:
    for name in os.listdir(here):
        if name.startswith(prefix) and name.endswith(_TEMPORARY_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=here)


def _declare() -> None:
    settings = job_settings()
    for number in range(1, settings.producers + 1):
        app.producer(every=settings.every, name=f"producer-{number}")(produce)


_declare()
