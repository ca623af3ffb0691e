"""What a supervisor knows of an application that it must not import: asked of a process of its own.

User code runs in that process, for as long as the import takes, and is gone with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sqlqueue.config import Settings
from sqlqueue.errors import AppImportError, ConfigError
from sqlqueue.forks import die_with, flush_output
from sqlqueue.loading import load_app
from sqlqueue.log import get_logger

__all__ = ["AppFacts", "ask_app"]

log = get_logger(__name__)

_FIRST_WARNING_S: Final = 10.0  # an import that takes longer is told of


@dataclass(frozen=True, slots=True)
class AppFacts:
    """Be what a supervisor knows of the application it must not import."""

    settings: Settings
    queues: tuple[str, ...]
    tasks: tuple[str, ...]


def ask_app(path: str) -> AppFacts:
    """Import the application in a process of its own and return what a supervisor needs.

    Raises AppImportError or ConfigError with the text of the import's own error.
    """
    reading, writing = os.pipe()
    flush_output()
    parent_pid = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(reading)
        die_with(parent_pid)
        _answer(path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        _wait_for_answer(path, reading)
        # A line, not to the end: a process that the import has started may hold the pipe for ever.
        answer = pipe.readline()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise AppImportError(f"cannot import app {path!r}: the import ended its process ({how})")
    found: dict[str, Any] = json.loads(answer)
    if "error" in found:
        kind = ConfigError if found["kind"] == "ConfigError" else AppImportError
        raise kind(found["error"])
    found["settings"]["worker_queues"] = tuple(found["settings"]["worker_queues"])
    return AppFacts(Settings(**found["settings"]), tuple(found["queues"]), tuple(found["tasks"]))


def _wait_for_answer(path: str, reading: int) -> None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    waited_s, pause_s = 0.0, _FIRST_WARNING_S
    while not poll.poll(pause_s * 1000):
        waited_s += pause_s
        pause_s = waited_s
        log.warning("app_import_delayed", app=path, waited_s=waited_s)


def _answer(path: str, writing: int) -> NoReturn:
    try:
        app = load_app(path)
        _ = app.keys  # read here to see a mistake now; a supervisor needs none
        settings = {
            field.name: getattr(app.conf, field.name)
            for field in dataclasses.fields(Settings)
            if field.name not in {"app", "beat"} and not field.name.startswith("signing_")
        }
        answer = json.dumps(
            {
                "settings": settings,
                "queues": app.queues,
                "weights": app.queue_weights,  # checked by this look
                "tasks": sorted(app.tasks),
            },
            default=dict,
        )
    except BaseException as error:  # noqa: BLE001 - importing an application is user code
        text = str(error) or type(error).__name__
        answer = json.dumps({"error": text, "kind": type(error).__name__})
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer.encode() + b"\n")
    os._exit(0)
