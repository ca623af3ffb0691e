"""`make` on a bare machine: an environment with pip comes about whatever Python was shipped without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parents[2] / "tools" / "bootstrap.py"

# Python reads a sitecustomize when it starts. This one takes modules away from the Python that is
# "installed", as a distribution does by not packing them, and leaves new environments alone.
TAKE_AWAY = """
import sys
if sys.prefix == sys.base_prefix:
    sys.modules.update(dict.fromkeys({absent!r}))
"""


def base_python() -> Path:
    """Return the Python that the environment of these tests was made from."""
    return Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


@pytest.mark.slow
@pytest.mark.parametrize("absent", [["ensurepip"], ["ensurepip", "pip"]], ids=" and ".join)
def test_environment_gets_a_pip_where_python_comes_without(
    tmp_path: Path, absent: list[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(TAKE_AWAY.format(absent=absent))
    environment = {**os.environ, "PYTHONPATH": str(bare)}

    making = subprocess.run(
        [base_python(), BOOTSTRAP, tmp_path / "venv"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )

    # Without ensurepip, a pip that this machine has may serve; without that, only the index can.
    where = "from the package index" if "pip" in absent else ""
    assert f"pip comes {where}" in making.stderr
    assert b"pip " in subprocess.check_output(
        [tmp_path / "venv" / "bin" / "python", "-I", "-m", "pip", "--version"]
    )
