"""What the processes of one file tell each other of their flushes, in the page of the writer lock.

A few words of shared memory: how many durable commits there were, up to which of them some flush has
come, when a flush has failed, and since when one is under way. Only the second is ever relied on; see
`flushing`. It names the log that was flushed and carries a check sum over that and the boot, so that
what is torn, of another log, or left by an earlier boot says nothing.
"""

from __future__ import annotations

import hashlib
import struct
import time
from typing import TYPE_CHECKING

from sqlqueue_transport.mapping import put

if TYPE_CHECKING:
    import mmap

    from sqlqueue_transport.files import FileIdentity

# The page's first half is the writer lock's.
_COMMITS_AT = 2048
_FAILED_AT = 2056
_UNDER_WAY_AT = 2112  # a place for each flush at once: since when
_REACHED_AT = 2176
_WORD = struct.Struct("<Q")
_REACHED = struct.Struct(
    "<QQQQ"
)  # up to which commit; the log's device and inode; the newest failure
_CHECK_SIZE = 16
_NONSENSE = 1 << 62  # nobody has counted so far: a power cut has left anything in the page
# A flush may begin while one is under way that began too early for it: whoever is alone, or one of two,
# never waits for another. A third would only be one more for the disk.
AT_ONCE = 2
_PLACES = range(_UNDER_WAY_AT, _UNDER_WAY_AT + AT_ONCE * _WORD.size, _WORD.size)
# Whoever has not ended its flush by then is taken for killed or stopped, and not waited for.
LONGEST_NS = 100_000_000


class SharedFlushes:
    """Be the flushes of one log, as this process sees them, for as long as it has the log open.

    Commits go by their number; `failed_ns` is what that was before the commit's transaction began.
    """

    def __init__(self, memory: mmap.mmap, boot: str, log: FileIdentity) -> None:
        """Take the page of the writer lock; the numbers in it go on from where they are."""
        self._memory = memory
        self._key = hashlib.blake2b(boot.encode()).digest()
        self._log = log
        self._known = self._known_failed_ns = 0
        self._wanted = 0

    def _word(self, at: int) -> int:
        found: int = _WORD.unpack_from(self._memory, at)[0]
        return found

    @property
    def commits(self) -> int:
        """Return the number of the newest durable commit: it is in the log, and all before it."""
        found = self._word(_COMMITS_AT)
        return found if found < _NONSENSE else 0

    def count(self) -> int:
        """Give a commit its number. Under the writer lock, and after the COMMIT: never before."""
        self._wanted = self.commits + 1
        put(self._memory, _COMMITS_AT, _WORD.pack(self._wanted))
        return self._wanted

    @property
    def is_owed(self) -> bool:
        """Say whether somebody in this process has a commit and has not come to its flush yet."""
        return self._wanted > self._known

    @property
    def failed_ns(self) -> int:
        """Return when a flush has failed last, in any process; to be compared with itself only."""
        return self._word(_FAILED_AT)

    def fail(self) -> None:
        """Let everybody know that a flush has failed."""
        put(self._memory, _FAILED_AT, _WORD.pack(time.monotonic_ns()))

    # -- what was reached -------------------------------------------------------------------------

    def reach(self, commit: int, failed_ns: int) -> None:
        """Tell that all up to this commit are on the disk: after a flush that has succeeded.

        Both were read before it began. If the process dies midway, nothing is told.
        """
        self._know(commit, failed_ns)
        if not self.has_reached(commit, failed_ns):  # a flush that began later ended first
            packed = _REACHED.pack(commit, self._log.device, self._log.inode, failed_ns)
            put(self._memory, _REACHED_AT, packed + self._check(packed))

    def knows(self, commit: int, failed_ns: int) -> bool:
        """Say whether this process has seen that the commit is on the disk; also once the log is closed."""
        return self._known >= commit and self._known_failed_ns == failed_ns

    def _know(self, commit: int, failed_ns: int) -> None:
        self._known, self._known_failed_ns = max(self._known, commit), failed_ns

    def has_reached(self, commit: int, failed_ns: int) -> bool:
        """Say whether somebody has flushed that commit, and no flush had failed in between."""
        found = self._memory[_REACHED_AT : _REACHED_AT + _REACHED.size + _CHECK_SIZE]
        packed, check = found[: _REACHED.size], found[_REACHED.size :]
        upto, device, inode, failed = _REACHED.unpack(packed)
        if (
            upto < commit
            or (device, inode) != (self._log.device, self._log.inode)
            or failed != failed_ns
            or check != self._check(packed)
        ):
            return False
        self._know(upto, failed)
        return True

    def _check(self, packed: bytes) -> bytes:
        return hashlib.blake2b(packed, digest_size=_CHECK_SIZE, key=self._key).digest()

    # -- what is under way ------------------------------------------------------------------------

    def begin(self) -> int:
        """Tell that a flush begins; return what to `end`. Two may tell it in the same place."""
        now_ns = time.monotonic_ns()
        place = min(_PLACES, key=self._word)
        put(self._memory, place, _WORD.pack(now_ns))
        return place

    def end(self, place: int) -> None:
        """Tell that it has ended, however."""
        put(self._memory, place, _WORD.pack(0))

    def should_wait(self, since_ns: int) -> bool:
        """Say whether a flush of another would come to who wants one since `since_ns`, or be in his way.

        Not when it takes too long.
        """
        now_ns = time.monotonic_ns()
        began = [at for at in map(self._word, _PLACES) if 0 <= now_ns - at < LONGEST_NS]
        return len(began) == AT_ONCE or any(at >= since_ns for at in began)
