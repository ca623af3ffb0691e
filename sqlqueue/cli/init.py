"""`sqlqueue init`: the first files of a project, which run as they are.

They are kept as data in `sqlqueue/templates/`. Nothing that exists is ever written over, opened for
writing or removed, and that is the file system's word, not the result of a look beforehand.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from sqlqueue.cli.completing import directories
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.invocation import Command, Invocation, pass_invocation
from sqlqueue.cli.output import Output
from sqlqueue.palette import HEADING, MUTED
from sqlqueue.text import quoted

__all__ = ["init"]

#: What is written, and the template it is. The tasks are no module as long as they are in here.
_FILES: Final = {
    "sqlqueue.toml": "sqlqueue.toml",
    "tasks.py": "tasks.py.txt",
    "supervisord.conf": "supervisord.conf",
    ".gitignore": "gitignore",
}
#: What a project may have instead: beside a package of that name a module would never be imported,
#: and beside a new sqlqueue.toml the settings in conf/ would never be read again.
_INSTEAD: Final = {
    "sqlqueue.toml": "conf/sqlqueue.toml",
    "tasks.py": "tasks/__init__.py",
    "supervisord.conf": "conf/supervisord.conf",
}
_NEXT: Final = (
    ("sqlqueue worker -A tasks:app --beat", "run jobs, and what is due"),
    ("sqlqueue call -A tasks:app tasks.add '[2, 3]' --wait", "enqueue one"),
    ("sqlqueue inspect stats --watch", "look on"),
    ("sqlqueue console admin -A tasks:app", "look in a browser: pip install 'sqlqueue[consoles]'"),
    ("supervisord -n -c supervisord.conf", "or all of it, kept running: pip install supervisor"),
)


@click.command(cls=Command)
@click.argument("directory", metavar="[DIR]", default=".", shell_complete=directories)
@pass_invocation
def init(invocation: Invocation, directory: str) -> None:
    """Write the first files of a project into DIR, ready to run.

    sqlqueue.toml has the settings one changes, tasks.py an application with tasks and a schedule,
    supervisord.conf starts all of it, .gitignore keeps the queue out of git. DIR is here if not
    given, and is made if missing. A file that exists is left as it is.
    """
    where = Path(directory)
    _make(where)
    written: list[str] = []
    kept: list[str] = []
    for name, template in _FILES.items():
        existing = _INSTEAD.get(name)
        if existing is not None and (where / existing).exists():
            kept.append(existing)
        elif _write(where / name, _text_of(template)):
            written.append(name)
        else:
            kept.append(name)
    output = Output(invocation)
    if output.is_table:
        _tell(output, where, written, kept)
    else:
        output.document({"directory": str(where.resolve()), "written": written, "kept": kept})


def _make(where: Path) -> None:
    """Make the directory if it is missing; its parents are not made. Raises CommandFailed."""
    try:
        where.mkdir(exist_ok=True)
    except FileExistsError:
        raise CommandFailed(
            f"{quoted(str(where))} is a file. Name a directory.", ExitCode.USAGE
        ) from None
    except FileNotFoundError:
        raise CommandFailed(
            f"there is no directory {quoted(str(where.parent))} to make {quoted(where.name)} in."
            " Make it first, or name another.",
            ExitCode.USAGE,
        ) from None


def _text_of(template: str) -> str:
    text = (files("sqlqueue") / "templates" / template).read_text(encoding="utf-8")
    # supervisord reads % as the beginning of a name.
    return text.replace("@BIN@", str(Path(sys.executable).parent).replace("%", "%%"))


def _write(path: Path, text: str) -> bool:
    """Write a new file; False if there is anything of that name, be it a link that leads nowhere.

    What could not be written whole, on a full disk, is removed again.
    """
    try:
        stream = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return True


def _tell(output: Output, where: Path, written: list[str], kept: list[str]) -> None:
    if not written:
        output.line(
            f"Nothing to do: {', '.join(kept)} are there already, and were left as they are."
        )
        return
    output.line(f"Written to {where.resolve()}: {', '.join(written)}")
    if kept:
        are = "was there and is" if len(kept) == 1 else "were there and are"
        output.note(f"{', '.join(kept)} {are} left as before.")
    if "tasks.py" not in written:
        return
    output.line("")
    output.line("Next:", HEADING)
    if where.resolve() != Path.cwd():
        output.line(f"  cd {shlex.quote(str(where))}")
    widest = max(len(command) for command, _ in _NEXT)
    for command, why in _NEXT:
        output.pieces([f"  {command:<{widest}}  ", (f"# {why}", MUTED)])
