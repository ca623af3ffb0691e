"""Model a disk at a power cut: what is surely on it, and what may be.

`Disk` follows a recording record by record. At any moment `after_cut` gives one of the many contents
that a machine may find after its power was cut at that moment. The rules are the worst that POSIX
allows a journaling filesystem such as ext4 or XFS on a drive that honours flush:

* What was written to a file before a sync of it began is there once the sync has returned. Nothing
  else is sure, whatever was written to other files later.
* The kernel writes dirty sectors of 512 bytes back when it likes, in any order, also between files.
  So each sector holds what it held at *some* moment since its last sync: writes are lost, torn and
  reordered. A sector is never half old and half new, nor are bytes around a write changed
  (sqlite.org/psow.html).
* The length of a file is a dirty thing of its own: growing may have come without the content (zeros
  are found), and cutting may be lost.
* A name is in its directory for sure only after a sync of the directory. A sync of the file does not
  promise its name. Making and removing are lost each by itself, or all from some moment on; a rename
  happened or did not.
* What is mapped (SQLite's `-shm`, the side files of the queue) may hold anything: these files are
  missing, empty, zeros, noise, or as they were when the recording ended.

Not modelled: sectors torn inside, drives that lie about flush, bit rot, and the order in which real
filesystems commit names with the syncs of their files (all of them keep more than this model).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.proofs.recording import Kind, Record, Recording

SECTOR = 512
_MAPPED_SIZE = 32768  # one region of SQLite's shared memory


@dataclass(slots=True, eq=False)
class _Node:
    """Be a file, or a directory with `names`: what is durable, and what came since, in order."""

    pending: list[tuple[int, Record]] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, _Node | None] | None = None
    # Changes of names since: in one change, several names.
    renames: list[tuple[int, dict[str, _Node | None]]] = field(default_factory=list)
    now: dict[str, _Node | None] = field(default_factory=dict)  # the names as processes see them


class Disk:
    """Follow a recording."""

    def __init__(self, recording: Recording, *, ignores: str = "") -> None:
        """Begin with what was there before, all of it durable.

        A broken disk `ignores` the syncs of a file, by its name; "/" are those of directories, and
        "*" are all.
        """
        self.root = recording.queue.resolve()
        self._ignores = ignores
        self._nodes: dict[int, _Node] = {}
        self._directories: dict[str, _Node] = {}  # by real path, as processes see them
        self._syncs: dict[tuple[int, int], int] = {}
        self._count = 0
        for name, inode in sorted(recording.inodes.items()):
            path = recording.before / name
            real = self.root / name
            if path.is_dir():
                node = _Node(names={})
                self._directories[str(real)] = node
            else:
                node = _Node(content=bytearray(path.read_bytes()))
            self._nodes[inode] = node
            if name != ".":
                parent = self._directories[str(real.parent)]
                assert parent.names is not None
                parent.names[real.name] = parent.now[real.name] = node

    def follow(self, record: Record) -> None:
        """Take in the next record."""
        self._count += 1
        kind = record.kind
        if kind in {Kind.WRITE, Kind.TRUNCATE, Kind.EXTEND}:
            node = self._nodes.setdefault(record.inode, _Node())
            node.pending.append((self._count, record))
        elif kind is Kind.SYNC_BEGIN:
            self._syncs[record.thread, record.inode] = self._count
        elif kind is Kind.SYNC_END:
            began = self._syncs.pop((record.thread, record.inode))
            node = self._nodes.setdefault(record.inode, _Node())
            is_ignored = (
                self._ignores == "*"
                or (self._ignores == "/" and node.names is not None)
                or node is self._directory(self.root).now.get(self._ignores)
            )
            if not is_ignored:
                self._sync(node, began)
        elif kind in {Kind.CREATE, Kind.LINK, Kind.MKDIR}:
            self._made(kind, record.inode, Path(record.names[0]))
        elif kind is Kind.UNLINK:
            path = Path(record.names[0])
            self._rename(path.parent, {path.name: None})
        elif kind is Kind.RENAME:
            old, new = map(Path, record.names)
            assert old.parent == new.parent, "renaming between directories is not modelled"
            moved = self._directory(old.parent).now.get(old.name)
            if moved is not None:
                self._rename(old.parent, {old.name: None, new.name: moved})

    def _made(self, kind: Kind, inode: int, path: Path) -> None:
        there = self._directory(path.parent).now.get(path.name)
        if kind is Kind.CREATE and there is not None and there is self._nodes.get(inode):
            return  # two processes saw that it was missing
        node = self._nodes.get(inode) if kind is Kind.LINK else None
        if node is None:
            # The number of a file that is gone is used again.
            node = self._nodes[inode] = _Node()
        if kind is Kind.MKDIR:
            node = self._nodes[inode] = self._directory(path)
        self._rename(path.parent, {path.name: node})

    def _directory(self, path: Path) -> _Node:
        """Return a directory, also one whose making another process has not recorded yet."""
        return self._directories.setdefault(str(path), _Node(names={}))

    def _rename(self, directory: Path, change: dict[str, _Node | None]) -> None:
        node = self._directory(directory)
        node.renames.append((self._count, change))
        node.now.update(change)

    @staticmethod
    def _sync(node: _Node, before: int) -> None:
        for _, record in [one for one in node.pending if one[0] < before]:
            _apply(node.content, record)
        node.pending = [one for one in node.pending if one[0] >= before]
        if node.names is not None:
            for _, change in [one for one in node.renames if one[0] < before]:
                node.names.update(change)
        node.renames = [one for one in node.renames if one[0] >= before]

    # -- what a machine finds -----------------------------------------------------------------------

    def after_cut(self, rng: random.Random) -> dict[str, bytes | None]:
        """Return what a machine may find now: content by path from the directory on, None a directory."""
        whole = rng.choice(("lost", "there", "each", "each", "each"))
        found: dict[str, bytes | None] = {}
        self._find("", self._directory(self.root), whole, rng, found)
        return found

    def _find(
        self,
        path: str,
        node: _Node,
        whole: str,
        rng: random.Random,
        found: dict[str, bytes | None],
    ) -> None:
        assert node.names is not None
        names = dict(node.names)
        for change in _surviving([change for _, change in node.renames], whole, rng):
            names.update(change)
        is_lost = bool(path) and rng.random() < 0.2  # a directory of mapped files alone
        for name, child in sorted(names.items()):
            if child is None:
                continue
            here = f"{path}{name}"
            if child.names is not None:
                found[here] = None
                self._find(f"{here}/", child, whole, rng, found)
            elif path or name.endswith("-shm"):
                anything = _anything(self.root / here, rng)
                if anything is not None and not is_lost:
                    found[here] = anything
            else:
                found[here] = _content(child, whole, rng)


def _surviving(
    changes: list[dict[str, _Node | None]], whole: str, rng: random.Random
) -> list[dict[str, _Node | None]]:
    how = whole if whole != "each" else rng.choice(("lost", "there", "first", "some"))
    if how == "lost":
        return []
    if how == "first":
        return changes[: rng.randint(0, len(changes))]
    if how == "some":
        return [change for change in changes if rng.random() < 0.5]
    return changes


def _anything(path: Path, rng: random.Random) -> bytes | None:
    """Return what may be found of a mapped file; also what it held when the recording ended."""
    how = rng.choice(("missing", "empty", "zeros", "noise", "as it was"))
    if how == "missing" or (how == "as it was" and not path.is_file()):
        return None
    if how == "as it was":
        return path.read_bytes()
    size = 0 if how == "empty" else _MAPPED_SIZE
    return rng.randbytes(size) if how == "noise" else bytes(size)


def _content(node: _Node, whole: str, rng: random.Random) -> bytes:
    """Return what may be found of a file."""
    pending = [record for _, record in node.pending]
    how = (
        whole if whole != "each" else rng.choice(("lost", "there", "first", "some", "torn", "last"))
    )
    if how == "lost" or not pending:
        return bytes(node.content)
    if how in {"there", "first"}:
        content = bytearray(node.content)
        for record in pending[: len(pending) if how == "there" else rng.randint(0, len(pending))]:
            _apply(content, record)
        return bytes(content)
    # The page cache changes with each write; now and then sectors of it reach the disk.
    cache, disk = bytearray(node.content), bytearray(node.content)
    likely = rng.choice((0.1, 0.5, 0.9))
    for number, record in enumerate(pending, 1):
        _apply(cache, record)
        # "last": all is there but for the newest one or two, which are torn.
        is_written = rng.random() < likely if how != "last" else number < len(pending) - 1
        if record.kind is not Kind.WRITE:
            if is_written:
                _apply(disk, record)
            continue
        is_torn = how == "torn" or (how == "last" and not is_written)
        end = record.at + len(record.content)
        for sector in range(record.at // SECTOR, -(-end // SECTOR)):
            if is_torn:
                is_written = rng.random() < likely
            if is_written:
                start = sector * SECTOR
                piece = cache[start : start + SECTOR]
                if len(disk) < start:
                    disk.extend(bytes(start - len(disk)))
                disk[start : start + len(piece)] = piece
        if len(disk) < end and rng.random() < 0.1:  # the length came without the content
            disk.extend(bytes(min(end, len(cache)) - len(disk)))
    return bytes(disk)


def _apply(content: bytearray, record: Record) -> None:
    at = record.at
    if record.kind is Kind.TRUNCATE and at < len(content):
        del content[at:]
        return
    if at > len(content):
        content.extend(bytes(at - len(content)))
    if record.kind is Kind.WRITE:
        content[at : at + len(record.content)] = record.content


def write(found: dict[str, bytes | None], directory: Path) -> None:
    """Make a directory what a machine found; it is emptied first."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    for name, content in found.items():
        path = directory / name
        if content is None:
            path.mkdir(mode=0o700)
        else:
            path.touch(mode=0o600)
            path.write_bytes(content)
