"""Map a small file into memory so that a full disk is an error and not a signal.

Writing to a hole of a mapped file on a full disk raises SIGBUS, which kills the process, so
every byte is allocated before it is mapped, and such a file is never truncated.
"""

from __future__ import annotations

import mmap
import os


def map_file(descriptor: int, size: int) -> mmap.mmap:
    """Allocate `size` bytes of an open file and map them, shared between processes.

    Raises OSError when the disk is full; the file may then be longer, but is never mapped.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # pragma: no cover - macOS: write the zeros ourselves
        missing = size - os.fstat(descriptor).st_size
        if missing > 0:
            os.pwrite(descriptor, bytes(missing), size - missing)
    return mmap.mmap(descriptor, size)
