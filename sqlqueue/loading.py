"""Import an application by the name given with `-A`: `module:attribute`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from types import ModuleType

from sqlqueue.app import SqlQueue
from sqlqueue.errors import AppImportError, SqlQueueError
from sqlqueue.execute import fault_of
from sqlqueue.text import did_you_mean, escaped, quoted

__all__ = ["load_app"]

_USUAL_NAME = "app"


def load_app(path: str) -> SqlQueue:
    """Import `module:attribute` (`module` alone means `module:app`) from here or the import path.

    Runs the module's code. Raises AppImportError, with the error of the import as its cause, and
    ConfigError or TaskDefinitionError where the application itself is wrong.
    """
    name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or name == "__main__":
        as_module = name.removesuffix(".py").strip("./").replace("/", ".")
        is_file = "/" in name or name.endswith(".py")
        raise _refused(
            path,
            "that is no module's name",
            f"Write -A {escaped(as_module)}" if is_file else "Write one, as in -A tasks.app:app",
        )
    module = _imported(path, name)
    found: object = module
    for part in (attribute or _USUAL_NAME).split("."):
        inner = getattr(found, part, None)
        if inner is None:
            raise _refused(
                path,
                f"module {quoted(name)} has no attribute {quoted(part)}",
                _other_names(module, part),
            )
        found = inner
    if not isinstance(found, SqlQueue):
        kind = type(found).__name__
        way_out = "; for Celery's jobs name the file instead: --db FILE" if kind == "Celery" else ""
        raise _refused(
            path,
            f"it is a {kind}, not a SqlQueue{way_out}",
            _other_names(found if isinstance(found, ModuleType) else module, ""),
        )
    return found


def _imported(path: str, name: str) -> ModuleType:
    with contextlib.suppress(FileNotFoundError):  # a working directory that was removed
        here = os.getcwd()  # noqa: PTH109 - the import path holds text
        if here not in sys.path:
            sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except SqlQueueError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or name
        what = f"no module named {quoted(missing)}"
        if name != missing and not name.startswith(f"{missing}."):
            hint = f"{name} imports it; install it in this environment ({sys.prefix})"
        elif "." in missing:
            hint = f"There is a {missing.rpartition('.')[0]!r}, but not with that in it"
        else:
            hint = f"Run it from the directory that contains {missing!r}"
        raise _refused(path, what, hint) from error
    except (Exception, SystemExit) as error:
        raise _refused(
            path, escaped(f"{type(error).__name__}: {fault_of(error).message}"), ""
        ) from error


def _refused(path: str, what: str, hint: str) -> AppImportError:
    end = f" {hint}." if hint and hint[-1] not in ".?" else hint and f" {hint}"
    return AppImportError(f"cannot import app {quoted(path)}: {what}.{end}")


def _other_names(module: ModuleType, wrong: str) -> str:
    """Suggest the applications that a module does have."""
    apps = [
        f"{module.__name__}:{key}"
        for key, value in vars(module).items()
        if isinstance(value, SqlQueue)
    ]
    near = did_you_mean(f"{module.__name__}:{wrong}", apps).strip()
    return near or (f"Write -A {' or -A '.join(apps)}" if apps else "")
