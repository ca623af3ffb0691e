"""From settings, or an application, to an open queue that can be looked at and acted on."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from sqlqueue.backend import open_backend
from sqlqueue.errors import BrokerUnavailable
from sqlqueue.inspection import Inspection
from sqlqueue.text import without_passwords

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend
    from sqlqueue.config import Settings

__all__ = ["opened"]


@contextlib.contextmanager
def opened(
    settings: Settings,
    *,
    app: SqlQueue | None = None,
    wait_s: float | None = None,
    read_only: bool = False,
) -> Iterator[Inspection]:
    """Open the queue of these settings for one thread; a missing file is an error and is not made.

    `app` tells how many attempts its tasks have. `wait_s` bounds the wait for the writer lock; None
    is the transport's own 30 s. With `read_only` a file is opened for looking only: nothing is waited
    for, migrated, or can be written. Raises a CannotOpen for a file, BrokerUnavailable for another
    broker.
    """
    options = dict(settings.transport_options)
    if wait_s is not None:
        options["busy_timeout"] = wait_s
    backend = _open(dataclasses.replace(settings, transport_options=options), read_only=read_only)
    try:
        yield Inspection(backend, settings=settings, max_attempts=_max_attempts(app))
    finally:
        backend.close()


def _max_attempts(app: SqlQueue | None) -> dict[str, int]:
    if app is None:
        return {}
    return {name: app.policy_of(task).most_attempts for name, task in app.tasks.items()}


def _open(settings: Settings, *, read_only: bool) -> Backend:
    if settings.broker_url.startswith("sqlqueue://"):
        return open_backend(settings, create=False, read_only=read_only)
    try:
        return open_backend(settings, create=False)
    except Exception as error:
        # Every transport of Kombu raises what its driver raises, and where the driver is not
        # installed (5.7, redis) an AttributeError.
        why = f"{error.args[0] if error.args else ''}" or type(error).__name__
        raise BrokerUnavailable(without_passwords(settings.broker_url), why) from error
