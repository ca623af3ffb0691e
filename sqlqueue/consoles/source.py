"""The queue that this process's console shows.

Set once when the process starts, and opened for each run of a page: runs of several people are
several threads, and an Inspection belongs to one. The store behind it is shared and stays open, so
that an opening costs a millisecond.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlqueue import config
from sqlqueue.opening import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.config import Settings
    from sqlqueue.inspection import Inspection

__all__ = ["Source", "choose", "chosen", "looking"]


@dataclass(frozen=True, slots=True)
class Source:
    """Be where a console looks. `app` None: settings of files, environment and options only.

    With `read_only` the file is opened such that nothing can be written.
    """

    settings: Settings
    app: SqlQueue | None = None
    utc: bool = False
    read_only: bool = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[Inspection]:
        """Open the queue for one run of a page; raises what `opening.opened` does."""
        with opened(
            self.settings, app=self.app, wait_s=BUSY_S, read_only=self.read_only
        ) as inspection:
            yield inspection


BUSY_S = 5.0  # nobody looks at a page that does nothing for longer
_chosen: list[Source] = []


def choose(source: Source) -> None:
    """Say, once at the start of the process, which queue its console shows."""
    _chosen[:] = [source]


def chosen() -> Source:
    """Return it; a process that did not say uses the settings of files and environment."""
    if not _chosen:
        _chosen.append(Source(config.resolve({}).settings))
    return _chosen[0]


def looking() -> Source:
    """Return it for who only looks, whoever started this process and how."""
    return replace(chosen(), read_only=True)
