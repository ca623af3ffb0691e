"""Build small C libraries that stand between real processes and the kernel (LD_PRELOAD).

What they see is what a process really asks of the system, whoever asks: SQLite, our own flushes, or
Python. Tests that use one are marked `debian("cc")`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def built(source: Path) -> Path:
    """Compile a C source of this directory's kind into a shared library and return its path.

    It is compiled once for each content. Raises AssertionError when there is no compiler, or when
    the compiler refuses; both say so.
    """
    compiler = shutil.which("cc")
    assert compiler, "no C compiler `cc`: apt-get install gcc libc6-dev"
    content = source.read_bytes()
    directory = Path(tempfile.gettempdir()) / f"sqlqueue-preload-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    library = directory / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        options = ["-shared", "-fPIC", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
        compiled = subprocess.run(
            [compiler, *options, "-o", made, source, "-ldl"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert compiled.returncode == 0, compiled.stderr
        made.rename(library)
    return library
