"""The founding job: a producer writes job files and enqueues them, workers stamp them.

Importing anything of this package declares all of it, so that a worker, a beat and a caller know the
same tasks and schedule entries. Imports inside are relative: the same files are shipped in the
wheel as `sqlqueue.demo_tasks`.
"""

from __future__ import annotations

from . import app, checking, producing, stamping, viewing

__all__ = ["app", "checking", "producing", "stamping", "viewing"]
