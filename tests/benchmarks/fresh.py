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
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, json.dumps(asked)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            out, error = program.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            message = f"{module} did not end within {_LONGEST_S} s"
            raise RuntimeError(message) from None
        finally:
            # `subprocess.run` does not wait for the end of what Ctrl-C made it kill: that would then
            # still write while its directory is removed.
            program.kill()
            program.wait()
    if program.returncode:
        # Where it happened would say more, and name places of this machine in what is kept.
        said = (error.strip() or "nothing was said").splitlines()[-1]
        message = f"{module} ended with {program.returncode}: {said}"
        raise RuntimeError(message)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found
