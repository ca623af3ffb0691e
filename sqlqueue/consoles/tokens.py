"""The token that opens a console: whoever can read the queue file can read it, and nobody else.

It is made once for each console and kept in the directory of the queue's side files, so that a
console that is restarted does not ask those who look at it again. Admin and Ops have different
tokens: who may look may not act.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from sqlqueue.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SHORTEST", "checked", "cookie_value", "kept_in"]

SHORTEST: Final = 16  # characters of a token somebody chose
_BYTES: Final = 32


def checked(token: str) -> str:
    """Return a token somebody chose; raises ConfigError for one that could be guessed."""
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"a console's token has at least {SHORTEST} characters, printable ASCII without spaces;"
            " leave it out, and a good one is made"
        )
    return token


def kept_in(path: Path) -> str:
    """Return the token kept in a file; make file and token if need be.

    The file is the owner's alone. If the process dies midway there is no file, or a whole one: it
    gets its name when it is written. Raises ConfigError for a file that others may read, for a
    link, and for one that holds no token; OSError where the directory cannot be written.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(_BYTES)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # of a killed process that had our number
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{token}\n")
    try:
        os.link(draft, path)  # of two consoles that start at once, one is first
    except FileExistsError:
        return _read(path)
    finally:
        draft.unlink()
    return token


def cookie_value(token: str, *, role: str) -> str:
    """Return what a browser keeps of a token: it opens that console, and does not tell the token."""
    return hmac.new(token.encode(), f"sqlqueue console {role}".encode(), hashlib.sha256).hexdigest()


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read the token in {path}: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if found.st_mode & 0o077 or found.st_uid != os.getuid():
            raise ConfigError(
                f"{path} can be read by others, so its token is no secret: remove the file, and the"
                " next start makes a new token"
            )
        # Of what is no file (a directory, a pipe) there is nothing to read.
        content = os.read(descriptor, 1024) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(descriptor)
    try:
        return checked(content.decode("ascii", "replace").strip())
    except ConfigError:
        raise ConfigError(
            f"{path} holds no token: remove the file, and the next start makes one"
        ) from None
