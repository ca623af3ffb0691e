"""From the shared options to settings, an application, and an open queue."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING

from sqlqueue import config
from sqlqueue.cli.failures import CommandFailed, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend
    from sqlqueue.cli.invocation import Invocation
    from sqlqueue.config import Resolved, Settings
    from sqlqueue.inspection import Inspection

__all__ = ["apply_command_line", "inspecting", "load", "resolved", "without_passwords"]


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
    from sqlqueue.inspection import Inspection

    apply_command_line(invocation)
    app = app or load(invocation)
    settings = resolved(app).settings
    backend = _open(settings, wait_s=wait_s, read_only=read_only)
    try:
        yield Inspection(backend, settings=settings, max_attempts=_max_attempts(app))
    finally:
        backend.close()


def without_passwords(url: str) -> str:
    """Return a broker URL that can be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:**@", url)


def _max_attempts(app: SqlQueue | None) -> dict[str, int]:
    if app is None:
        return {}
    return {name: app.policy_of(task).most_attempts for name, task in app.tasks.items()}


def _open(settings: Settings, *, wait_s: float | None, read_only: bool) -> Backend:
    from sqlqueue.backend import open_backend

    options = dict(settings.transport_options)
    if wait_s is not None:
        options["busy_timeout"] = wait_s
    settings = dataclasses.replace(settings, transport_options=options)
    if settings.broker_url.startswith("sqlqueue://"):
        return open_backend(settings, create=False, read_only=read_only)
    try:
        return open_backend(settings, create=False)
    except Exception as error:
        # Every transport of Kombu raises what its driver raises, and where the driver is not
        # installed (5.7, redis) an AttributeError.
        why = f"{error.args[0] if error.args else ''}" or type(error).__name__
        raise CommandFailed(
            f"cannot use the broker {without_passwords(settings.broker_url)}: {why}. Is it running,"
            " and is its package installed? sqlqueue:///queue.db is a file here.",
            ExitCode.USAGE,
        ) from error
