"""The code in README.md and docs/ is run, so that it cannot rot.

Above each fenced block stands a comment, which a reader of the rendered page does not see:

    <!-- test: file NAME -->    the block becomes the file NAME
    <!-- test: python -->       it is run as a Python script
    <!-- test: run -->          its commands are run (`$ ` begins one) and their output is compared
    <!-- test: make -->         its commands must be `make` with targets that exist
    <!-- test: skip: REASON --> it is not run

The blocks of a page are run from top to bottom, in one empty directory a page. What a page shows as
output may be a real transcript: what differs from run to run (ids, times, durations, process numbers,
children, users, how wide a column is) is not compared. `…` stands for anything within a line, and alone
for any number of lines. A block without a comment fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    # docs/cli.md has a test of its own: tests/cli/test_docs.py.
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.stem != "cli"),
]
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?^(?P<fence>```+)(?P<language>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
ONE_COMMAND_S = 30
# What differs from run to run, and what is compared in its place.
VARYING = [
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "<time>"),
    (r"\bworker-\w+/\d+", "<child>"),
    (r"\bby \S+@\S+ via cli", "by <user>"),
    (r"\b\d+(\.\d+)?m?s ago\b|\bnow(?=[ )])", "<ago>"),
    (r"\bfor \d+ s\b", "for <duration>"),
    (r"(?<=duration_s=)\d+\.\d+|\b\d+(\.\d+)?m?s\b(?!econd)", "<duration>"),
]


@dataclass(frozen=True)
class Block:
    """Be one fenced block: `mark` is what its comment says, None without a comment."""

    mark: str | None
    text: str
    line: int

    @property
    def verb(self) -> str:
        return (self.mark or "").split(" ")[0].rstrip(":")

    @property
    def rest(self) -> str:
        return (self.mark or "").partition(" ")[2].strip()


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(found["mark"], found["text"], text.count("\n", 0, found.start("fence")) + 1)
        for found in BLOCK.finditer(text)
    ]


def environment(directory: Path) -> dict[str, str]:
    """Return what a command of a page sees: our Python first, and none of the caller's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SQLQUEUE_")}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(directory),  # and not the checkout: what is installed is run
        "PYTHONDONTWRITEBYTECODE": "1",
        # As on a terminal 100 columns wide, without the colours.
        "SQLQUEUE_LOG_FORMAT": "console",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }


def run(command: list[str], directory: Path) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ONE_COMMAND_S,
        check=False,
    )
    return done.returncode, done.stdout


def steps_of(text: str) -> list[tuple[str, str | None]]:
    """Return each command with the output that is shown below it; None where none is shown."""
    if not any(line.startswith("$ ") for line in text.splitlines()):
        return [(line, None) for line in text.splitlines() if line.strip()]
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif steps[-1][0].endswith("\\"):
            steps[-1] = (steps[-1][0] + "\n" + line, steps[-1][1])
        else:
            steps[-1][1].append(line)
    return [(command, "\n".join(shown)) for command, shown in steps]


def fits(shown: str, output: str) -> bool:
    pattern = ""
    for line in comparable(shown):
        if line == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += "[^\n]*?".join(re.escape(piece) for piece in line.split("…")) + r"\n"
    said = "".join(f"{line}\n" for line in comparable(output))
    return re.fullmatch(pattern, said) is not None


def comparable(text: str) -> list[str]:
    """Return the lines that are not empty, without what differs from run to run."""
    for varying, instead in VARYING:
        text = re.sub(varying, instead, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def check(block: Block, page: str, directory: Path) -> None:
    where = f"{page}, line {block.line}"
    if block.verb == "file":
        path = directory / block.rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    elif block.verb == "python":
        script = directory / "_block.py"
        script.write_text(block.text)
        code, output = run([sys.executable, script.name], directory)
        script.unlink()
        assert code == 0, f"{where} ends with {code}:\n{output}"
    elif block.verb == "run":
        for command, shown in steps_of(block.text):
            code, output = run(["bash", "-c", command], directory)
            assert code == 0, f"{where}: {command!r} ends with {code}:\n{output}"
            assert shown is None or fits(shown, output), (
                f"{where}: {command!r} says\n{output}\nand the page shows\n{shown}"
            )
    elif block.verb == "make":
        for command, _ in steps_of(block.text):
            targets = re.fullmatch(r'make((?: [a-z-]+)+)(?: ARGS="[^"]*")?(?: +#.*)?', command)
            assert targets, f"{where}: {command!r} is no call of make"
            for target in targets[1].split():
                assert target in make_targets(), f"{where}: there is no 'make {target}'"
    elif block.verb == "skip":
        assert block.rest, f"{where} does not say why it is not run"
    else:
        pytest.fail(f"{where}: a block needs a comment above it: see {Path(__file__).name}")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_or_says_why_not(page, tmp_path):
    for block in blocks_of(page):
        check(block, page, tmp_path)


def test_the_readme_begins_with_the_two_commands():
    first = next(block for block in blocks_of("README.md") if block.verb != "skip")

    assert first.verb == "make"
    assert [command.split(" #")[0].strip() for command, _ in steps_of(first.text)][:2] == [
        "make demo",
        "make test",
    ]


@pytest.mark.parametrize(
    ("shown", "output", "expected"),
    [
        ("done 3", "done   3\n", True),
        ("done 3", "done 3\nfailed 1\n", False),
        ("done …", "done 3 in 1 s\n", True),
        ("…\nlast", "first\nsecond\nlast\n", True),
        ("…", "", True),
        ("a (b)", "a b\n", False),
        ("ok  2.3s (now)", "ok 180ms (3s ago)\n", True),
        ("2 done in 1.0s", "3 done in 1.0s\n", False),
    ],
)
def test_shown_output_fits_what_was_said(shown, output, expected):
    assert fits(shown, output) is expected


def test_a_block_without_a_comment_is_found(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="needs a comment"):
        check(Block(None, "print(1)\n", 1), "page.md", tmp_path)
