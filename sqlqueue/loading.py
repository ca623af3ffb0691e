"""Import an application by the name given with `-A`: `module:attribute`."""

from __future__ import annotations

import importlib
import os
import sys

from sqlqueue.app import SqlQueue
from sqlqueue.errors import AppImportError, SqlQueueError
from sqlqueue.text import did_you_mean, quoted

__all__ = ["load_app"]

_USUAL_NAME = "app"


def load_app(path: str) -> SqlQueue:
    """Import `module:attribute` (`module` alone means `module:app`) from here or the import path.

    Runs the module's code. Raises AppImportError, with the error of the import as its cause, and
    ConfigError or TaskDefinitionError where the application itself is wrong.
    """
    name, _, attribute = path.partition(":")
    attribute = attribute or _USUAL_NAME
    if not name or name == "__main__":
        raise AppImportError(
            f"cannot import app {quoted(path)}: give a module's name, as in -A tasks.app:app"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except SqlQueueError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or name
        hint = (
            f" Run it from the directory that contains {missing.partition('.')[0]!r}."
            if name == missing or name.startswith(f"{missing}.")
            else f" {name} imports it; install it in this environment ({sys.prefix})."
        )
        raise AppImportError(
            f"cannot import app {quoted(path)}: no module named {quoted(missing)}.{hint}"
        ) from error
    except Exception as error:
        raise AppImportError(
            f"cannot import app {quoted(path)}: {type(error).__name__}: {error}"
        ) from error
    found = module
    for part in attribute.split("."):
        inner = getattr(found, part, None)
        if inner is None:
            apps = [key for key, value in vars(module).items() if isinstance(value, SqlQueue)]
            hint = did_you_mean(part, apps) or (f" It has: {', '.join(apps)}." if apps else "")
            raise AppImportError(
                f"cannot import app {quoted(path)}: module {quoted(name)} has no attribute"
                f" {quoted(part)}.{hint}"
            )
        found = inner
    if not isinstance(found, SqlQueue):
        raise AppImportError(
            f"cannot import app {quoted(path)}: it is a {type(found).__name__}, not a SqlQueue"
        )
    return found
