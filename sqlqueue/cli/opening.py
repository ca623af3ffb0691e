"""From the shared options to settings, an application, and an open queue."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlqueue import config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlqueue.app import SqlQueue
    from sqlqueue.cli.invocation import Invocation
    from sqlqueue.config import Resolved
    from sqlqueue.inspection import Inspection

__all__ = ["apply_command_line", "inspecting", "load", "resolved"]


def apply_command_line(invocation: Invocation, values: Mapping[str, object] | None = None) -> None:
    """Hand the shared options, and `values` by setting, to whatever resolves settings later.

    Raises ConfigError for a `--db` that is no path.
    """
    given = dict(values or {})
    if invocation.db is not None:
        given["broker_url"] = config.database_url(invocation.db)
    config.set_command_line(given, invocation.config)


def load(invocation: Invocation) -> SqlQueue | None:
    """Import the application of `-A`; None when none was given. Call `apply_command_line` before."""
    if invocation.app is None:
        return None
    from sqlqueue.loading import load_app

    return load_app(invocation.app)


def resolved(app: SqlQueue | None) -> Resolved:
    """Return the settings in force: the application's, or those of files, environment and options."""
    return config.resolve({}) if app is None else app.resolved


@contextlib.contextmanager
def inspecting(
    invocation: Invocation,
    *,
    app: SqlQueue | None = None,
    wait_s: float | None = None,
    read_only: bool = False,
) -> Iterator[Inspection]:
    """Open the queue for looking and acting; a missing file is an error and is not made.

    `wait_s` bounds the wait for the writer lock; None is the transport's own 30 s. With `read_only`
    a file is opened for looking only: nothing is waited for, migrated, or can be written.
    """
    from sqlqueue.opening import opened

    apply_command_line(invocation)
    app = app or load(invocation)
    settings = resolved(app).settings
    with opened(settings, app=app, wait_s=wait_s, read_only=read_only) as inspection:
        yield inspection
