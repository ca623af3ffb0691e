"""What a supervisor sees of its children without asking them: a cell of shared memory for each.

The presence file says who is alive, to everybody. But its entry is gone when a child has left in
order, or when another worker was quicker to sweep it, and then nobody knows any more how far the
child came. These cells are the supervisor's own: they outlive the child, and nobody else cleans up.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from sqlqueue_transport.mapping import put

__all__ = ["Board"]

_TOLD: Final = struct.Struct("=QQ")  # whether all are to stop, the supervisor's worker id
_CELL: Final = struct.Struct("=QQ")  # whether it is up, jobs ended
_NUMBER: Final = struct.Struct("=Q")
_PARENT_AT: Final = 8
_ENDED_AT: Final = 8


class Board:
    """One cell a place. The supervisor clears a cell before it forks, its child writes, both read.

    Memory without a file, inherited by fork; it is gone when supervisor and children are. A child
    that dies leaves its cell as it was: each write is one aligned word.
    """

    def __init__(self, places: int) -> None:
        self._memory = mmap.mmap(-1, _TOLD.size + _CELL.size * places)

    def tell_to_stop(self) -> None:
        """Say to all children, also those to come, that they are to take no other job.

        They are sent a signal as well, which wakes those that sleep; but a task may have taken that.
        """
        put(self._memory, 0, _NUMBER.pack(1))

    def is_told_to_stop(self) -> bool:
        """Say whether children are to take no other job."""
        return bool(_TOLD.unpack_from(self._memory, 0)[0])

    def let_go(self, parent_id: int) -> None:
        """Let children open the file, now that the supervisor has, under this worker id."""
        put(self._memory, _PARENT_AT, _NUMBER.pack(parent_id))

    def parent_id(self) -> int:
        """Return the supervisor's worker id; 0 as long as no child may open the file."""
        found: int = _NUMBER.unpack_from(self._memory, _PARENT_AT)[0]
        return found

    def clear(self, place: int) -> None:
        """Begin with a new child, which is not up and has ended no job."""
        put(self._memory, _at(place), _CELL.pack(0, 0))

    def note_up(self, place: int) -> None:
        """Say that the child has imported its application, is registered, and begins to claim."""
        put(self._memory, _at(place), _NUMBER.pack(1))

    def is_up(self, place: int) -> bool:
        """Say whether the newest child of a place got as far as claiming jobs, dead or alive."""
        return bool(_CELL.unpack_from(self._memory, _at(place))[0])

    def count_ended(self, place: int) -> None:
        """Count one more job, once nobody will run it again; from one thread at a time."""
        at = _at(place) + _ENDED_AT
        put(self._memory, at, _NUMBER.pack(self.jobs_ended(place) + 1))

    def jobs_ended(self, place: int) -> int:
        """Return how many jobs the newest child of a place has ended."""
        ended: int = _CELL.unpack_from(self._memory, _at(place))[1]
        return ended


def _at(place: int) -> int:
    return _TOLD.size + place * _CELL.size
