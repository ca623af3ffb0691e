"""The command line: what operators type. `main` is the entry point of the `sqlqueue` script.

A module per group of commands, imported when its command is asked for. They parse and show;
what they know comes from `inspection` and `health`, what they do is done by `operations`, `worker`
and `beat`. Kombu, structlog and rich take longer to import than `--help` may last, so no module in
here imports them, or anything that does, at its top.
"""

from __future__ import annotations

from sqlqueue.cli.root import main

__all__ = ["main"]
