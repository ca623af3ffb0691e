"""Map a small file into memory so that a full disk is an error and not a signal.

Writing to a hole of a mapped file on a full disk raises SIGBUS, which kills the process, so
every byte is allocated before it is mapped, and such a file is never truncated.
"""

from __future__ import annotations

import errno
import mmap
import os


def map_file(descriptor: int, size: int) -> mmap.mmap:
    """Allocate `size` bytes of an open file and map them, shared between processes.

    Raises OSError when the disk is full; the file may then be longer, but is never mapped.
    """
    _allocate(descriptor, size)
    return mmap.mmap(descriptor, size)


def put(memory: mmap.mmap, at: int, packed: bytes) -> None:
    """Write into memory that other processes read meanwhile, in one copy.

    `struct.pack_into` fills the place with zeros first, and others see them: a heartbeat of 0 is a
    child that has been silent for ever. What is copied is, at each aligned word, the old or the new.
    """
    memory[at : at + len(packed)] = packed


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            # musl does not do by hand what the filesystem cannot do, as glibc does.
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
        else:
            return
    while (there := os.fstat(descriptor).st_size) < size:  # macOS has no posix_fallocate
        os.pwrite(descriptor, bytes(size - there), there)
