"""Who does something that is audited: user and host, and through what."""

from __future__ import annotations

import getpass
import os
import socket

__all__ = ["actor"]


def actor(via: str) -> str:
    """Return ``user@host via cli`` for this process; `via` is such as ``cli`` or ``python``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()} via {via}"
