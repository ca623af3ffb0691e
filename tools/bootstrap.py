"""Make a virtual environment with a pip in it, and install what is asked for.

    python3 tools/bootstrap.py .venv --editable '.[dev]'

The Makefile calls it before anything else, so it needs the standard library only, and not even all
of that: Debian ships Python without `ensurepip`, and `python3 -m venv` then stops half-way. Here the
environment is made without pip, and pip comes from the first of these that has one: ensurepip, the
pip of the Python that runs this, the package index.

An environment that already works is kept. If this is interrupted, run it again: what is there is
completed, and what cannot run is made anew.
"""

# Without "from __future__ import annotations", so that Python 3.6 still gets as far as the sentence
# that refuses it.
import argparse
import base64
import configparser
import hashlib
import html.parser
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

OLDEST_PYTHON = (3, 10)
if sys.version_info < OLDEST_PYTHON:
    sys.exit(
        "sqlqueue needs Python {}.{} or newer, and {} is {}. Name a newer one, as in: "
        "make PYTHON=python3.12 demo".format(*OLDEST_PYTHON, sys.executable, sys.version.split()[0])
    )

OLDEST_PIP = (21, 3)  # the first that installs a project without setup.py in editable form
PYPI = "https://pypi.org/simple"
PIP_WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl")

# A pip.conf or an environment made for installing elsewhere must not lead these calls astray.
PIP_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",  # setuptools warns of every editable install; errors still show
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_USER": "0",
}


def main(arguments: list[str]) -> None:
    """Read the command line, make the environment, install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path, help="directory of the environment")
    parser.add_argument("requirements", nargs="*", help="what pip shall install into it")
    parser.add_argument("-e", "--editable", help="a project to install in place, as '.[dev]'")
    options = parser.parse_args(arguments)

    wanted = [*options.requirements]
    if options.editable:
        wanted += ["--editable", options.editable]
    python = make_environment(options.venv)
    if wanted:
        say(f"installing {' '.join(wanted)} into {options.venv} (the first time takes a minute)")
        run(python, "-I", "-m", "pip", "install", "--quiet", *wanted)


def make_environment(venv: Path) -> Path:
    """Return the Python of an environment at `venv` that runs and has a pip."""
    python = venv / "bin" / "python"
    if not runs(python, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"):
        say(f"making {venv} with {sys.executable}")
        # Cleared only if it is an environment: any other directory may hold somebody's files.
        clear = ["--clear"] if (venv / "pyvenv.cfg").exists() else []
        if not runs(sys.executable, "-c", "import venv"):
            sys.exit("This Python has no venv. On Debian and Ubuntu: apt install python3-venv")
        run(sys.executable, "-m", "venv", "--without-pip", *clear, venv)
    if not runs(python, "-I", "-m", "pip", "--version"):
        bring_pip(python)
    if pip_version(python) < OLDEST_PIP:
        run(python, "-I", "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    return python


def bring_pip(python: Path) -> None:
    """Install a pip into the environment of `python`, from wherever there is one."""
    shipped = importlib.util.find_spec("ensurepip") is not None
    if shipped and runs(python, "-I", "-m", "ensurepip", "--default-pip"):
        return
    with tempfile.TemporaryDirectory() as directory:
        download = ["download", "--quiet", "--no-deps", "--dest", directory, "pip"]
        if runs(sys.executable, "-m", "pip", *download):
            say("no ensurepip here: pip comes through the pip of this Python")
            wheel = next(Path(directory).glob("pip-*.whl"))
        else:
            say("neither ensurepip nor pip here: pip comes from the package index")
            wheel = download_pip(Path(directory))
        # A wheel is a zip file that Python can run from: this pip installs itself.
        run(python, "-I", wheel / "pip", "install", "--quiet", "--no-index", wheel)


def download_pip(directory: Path) -> Path:
    """Load the newest pip from the first package index that has one; return its wheel.

    The indexes are those of pip's own configuration. Ends the program if none answers.
    """
    indexes = [pip_setting("index-url") or PYPI, *pip_setting("extra-index-url").split()]
    refusals = []
    for index in indexes:
        # Most indexes answer for a directory; one in the file system has only its page.
        page = f"{index.rstrip('/')}/pip/" + ("index.html" if index.startswith("file:") else "")
        try:
            links = WheelLinks(page)
            links.feed(fetch(page).decode())
            if not links.found:
                refusals.append(f"{public(index)}: no pip for this Python")
                continue
            _, url = max(links.found)
            content = fetch(url)
        except (OSError, ValueError) as error:
            refusals.append(f"{public(index)}: {error}")
            continue
        location = urllib.parse.urlsplit(url)
        digest = urllib.parse.parse_qs(location.fragment).get("sha256")
        if digest and digest != [hashlib.sha256(content).hexdigest()]:
            sys.exit(f"{public(index)} sent a pip that is not the one it announced. Not using it.")
        wheel = directory / Path(location.path).name
        wheel.write_bytes(content)
        return wheel
    sys.exit(
        "No pip to be had: {}. Install python3-venv or python3-pip (Debian, Ubuntu), or name a "
        "reachable index in PIP_INDEX_URL.".format("; ".join(refusals))
    )


class WheelLinks(html.parser.HTMLParser):
    """The wheels of pip that a page of a package index links to and that suit this Python.

    `found` holds pairs of version and address. The page is that of PEP 503, which every index and
    mirror serves; PyPI's JSON is PyPI's alone.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.found: list[tuple[tuple[int, ...], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a link to a released, not withdrawn wheel."""
        link = dict(attrs)
        url = urllib.parse.urljoin(self.page, link.get("href") or "")
        name = PIP_WHEEL.fullmatch(Path(urllib.parse.urlsplit(url).path).name)
        oldest = re.search(r">=\s*3\.(\d+)", link.get("data-requires-python") or ">=3.0")
        suits = oldest is None or (3, int(oldest.group(1))) <= sys.version_info
        if tag == "a" and name and suits and "data-yanked" not in link:
            self.found.append((numbers(name.group(1)), url))


def fetch(url: str) -> bytes:
    """Return what is at `url`. Raises OSError. Proxies are those of the environment."""
    request = urllib.request.Request(public(url))  # noqa: S310  the user's own index, also file:
    if public(url) != url:
        credentials = urllib.parse.unquote(urllib.parse.urlsplit(url).netloc.rpartition("@")[0])
        encoded = base64.b64encode(credentials.encode()).decode()
        request.add_header("Authorization", f"Basic {encoded}")
    context = ssl.create_default_context(cafile=pip_setting("cert") or None)
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def pip_setting(name: str) -> str:
    """Return what PIP_<NAME> or a pip.conf says of an option of pip install, or ""."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    home = Path.home()
    config = configparser.RawConfigParser()
    config.read(  # a later file wins over an earlier one, as in pip
        [
            "/etc/pip.conf",
            home / ".pip" / "pip.conf",
            home / "Library" / "Application Support" / "pip" / "pip.conf",
            Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
            os.environ.get("PIP_CONFIG_FILE", os.devnull),
        ]
    )
    return config.get("install", name, fallback=config.get("global", name, fallback=""))


def public(url: str) -> str:
    """Return `url` without the name and password that an index may ask for."""
    return re.sub(r"//[^/@]*@", "//", url)


def pip_version(python: Path) -> tuple[int, ...]:
    """Return the version of the pip that `python` has."""
    question = [str(python), "-I", "-c", "import pip; print(pip.__version__)"]
    return numbers(subprocess.check_output(question, text=True))


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, which compare as versions do."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def runs(*command: str | Path) -> bool:
    """Say whether a command exists and ends well. What it prints is thrown away."""
    return shutil.which(command[0]) is not None and exit_code(command, subprocess.DEVNULL) == 0


def run(*command: str | Path) -> None:
    """Run a command. If it fails it has said why, and the program ends with its exit code."""
    code = exit_code(command, None)
    if code != 0:
        sys.exit(code)


def exit_code(command: Sequence[str | Path], output: int | None) -> int:
    """Run a command with nothing to read and `output` to write to; return its exit code."""
    environment = {**os.environ, **PIP_ENVIRONMENT}
    return subprocess.run(
        command,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    ).returncode


def say(sentence: str) -> None:
    """Tell whoever ran make what happens; standard output belongs to what comes after."""
    print(f"setup: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
