"""Record real processes with `recorder.c`, and read what they asked of the disk.

A recording is a directory: `before/` is a copy of the queue's directory as it was, wholly on the
disk, when the recording began; `inodes.json` says which file was which inode; `log` has one record a
call of all processes in one order. Recorded programs add notes to it: what they are about to do, and
what they were told was done.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.preload import built
from tests.support import ROOT

_HEAD = struct.Struct("<IIIIQQ")  # struct record of recorder.c


class Kind(IntEnum):
    """Name the kinds of records; the numbers are those of `recorder.c`."""

    WRITE = 1
    TRUNCATE = 2
    EXTEND = 3
    SYNC_BEGIN = 4
    SYNC_END = 5
    CREATE = 6
    MKDIR = 7
    RENAME = 8
    UNLINK = 9
    LINK = 10
    NOTE = 11


@dataclass(frozen=True, slots=True)
class Record:
    """Be one record: `at` is an offset or a size, `content` what was written, or a note's JSON.

    `names` are real paths.
    """

    kind: Kind
    thread: int
    inode: int
    at: int
    content: memoryview

    @property
    def names(self) -> list[str]:
        return [os.fsdecode(name) for name in bytes(self.content).split(b"\0")[:-1]]

    @property
    def note(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(bytes(self.content))
        return found


@dataclass(frozen=True, slots=True)
class Recording:
    """Be a recording in `directory`, of what processes did in `directory / "queue"`."""

    directory: Path

    @property
    def queue(self) -> Path:
        """Return the directory that is recorded."""
        return self.directory / "queue"

    @property
    def before(self) -> Path:
        """Return the copy of it from before."""
        return self.directory / "before"

    @property
    def log(self) -> Path:
        """Return the file of all records."""
        return self.directory / "log"

    def begin(self) -> None:
        """Take what is in the directory for what is on the disk; the log begins with it."""
        inodes = {}
        for path in [self.queue, *sorted(self.queue.rglob("*"))]:
            name = path.relative_to(self.queue)
            if path.is_dir():
                (self.before / name).mkdir()
            elif path.is_file():  # the pipes that wake sleepers are made anew
                shutil.copyfile(path, self.before / name)
            else:
                continue
            inodes[str(name)] = path.stat().st_ino
        (self.directory / "inodes.json").write_text(json.dumps(inodes))
        self.log.touch()

    @property
    def inodes(self) -> dict[str, int]:
        """Return which inode each path had when the recording began, by path from the directory on."""
        found: dict[str, int] = json.loads((self.directory / "inodes.json").read_text())
        return found

    def note(self, what: str, **values: object) -> None:
        """Add a note, as the function `note` does in a recorded program."""
        _append(self.log, what, values)

    def start(self, arguments: Sequence[object], env: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start Python with these arguments, recorded; the caller waits for it."""
        environment = {
            **os.environ,
            **env,
            "PYTHONPATH": str(ROOT),
            "LD_PRELOAD": str(built(Path(__file__).with_name("recorder.c"))),
            "RECORDER_DIRECTORY": str(self.queue.resolve()),
            "RECORDER_LOG": str(self.log),
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=self.queue,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        programs: Sequence[Sequence[object]],
        *,
        deadline_s: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run programs at once, recorded, to their ends; each is a list of arguments for Python.

        Raises AssertionError if one fails or is not done in time.
        """
        processes = [self.start(arguments, env or {}) for arguments in programs]
        try:
            for process, arguments in zip(processes, programs, strict=True):
                out, _ = process.communicate(timeout=deadline_s)
                assert process.returncode == 0, f"{arguments} failed: {process.returncode}\n{out}"
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()

    def records(self) -> Iterator[Record]:
        """Return all records in their order."""
        log = memoryview(self.log.read_bytes())
        at = 0
        while at < len(log):
            size, kind, _, thread, inode, offset = _HEAD.unpack_from(log, at)
            yield Record(Kind(kind), thread, inode, offset, log[at + _HEAD.size : at + size])
            at += size


def note(what: str, **values: object) -> None:
    """Add a note to the log of the recording that this process is in."""
    _append(Path(os.environ["RECORDER_LOG"]), what, values)


def _append(path: Path, what: str, values: Mapping[str, object]) -> None:
    text = json.dumps({"what": what, **values}).encode()
    head = _HEAD.pack(_HEAD.size + len(text), Kind.NOTE, os.getpid(), 0, 0, 0)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        assert os.write(log, head + text) == len(head) + len(text)
    finally:
        os.close(log)
