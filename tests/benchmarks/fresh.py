"""Run a measuring program as a process of its own.

What one subject imports, caches or leaves open is then nobody else's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_fresh"]

_LONGEST_S = 180


def run_fresh(module: str, directory: Path, **asked: Any) -> dict[str, Any]:
    """Run a module with `asked` as JSON in its first argument; return the JSON it prints at last.

    It runs in `directory`. Raises RuntimeError with what it said when it does not end well.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, json.dumps(asked)],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{module} did not end within {_LONGEST_S} s"
        raise RuntimeError(message) from error
    if ran.returncode:
        said = " | ".join(ran.stderr.strip().splitlines()[-3:])
        message = f"{module} ended with {ran.returncode}: {said}"
        raise RuntimeError(message)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
