"""Ask pip-audit whether an installed package has a known vulnerability, and say what that was worth.

    .venv/audit/bin/python tools/audit.py .venv

pip-audit calls it success when it could look up nothing: behind a mirror that has no advisories each
package is "skipped", and "No known vulnerabilities found". So its answer is read here:

* a vulnerability ends with exit code 1, and so does a pip-audit that fails for a reason of its own;
* what could not be looked up, be it some packages or the service as a whole, is told loudly, with
  the count, and ends with 0: a change must not wait for somebody else's server.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

OWN = "sqlqueue"  # is installed from here, and not from the index
LONGEST_S = 300
# How requests, urllib3 and pip-audit say that nobody answered.
UNREACHABLE = re.compile(
    r"ConnectionError|ProxyError|ConnectTimeout|ReadTimeout|SSLError|NewConnectionError|"
    r"Max retries exceeded|ServiceError|HTTPError|Tried to look up|timed out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """Be what an audit is worth: an exit code, and lines to print."""

    code: int
    lines: tuple[str, ...]


def verdict(code: int, out: str, error: str) -> Verdict:
    """Judge what pip-audit ended with: exit code, standard output and standard error."""
    try:
        found = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = next((line for line in reversed(error.splitlines()) if line.strip()), "no word")
        if code and UNREACHABLE.search(error):
            return Verdict(0, (_loud("NOTHING WAS AUDITED, the service did not answer"), last))
        return Verdict(1, (f"pip-audit failed itself (exit code {code}): {last}",))
    others = [one for one in found if one["name"] != OWN]
    skipped = [one for one in others if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {each['id']}"
        f"{_in_brackets(each.get('aliases', []))}, mended in {_versions(each)}"
        for one in others
        for each in one.get("vulns", [])
    ]
    counted = f"{len(others) - len(skipped)} of {len(others)} packages could be looked up here"
    if lines:
        return Verdict(1, (f"pip-audit: KNOWN VULNERABILITIES. {counted}", *lines))
    if not others or skipped:
        return Verdict(0, (_loud(f"only {counted}"), *_reasons(skipped)))
    return Verdict(0, (f"pip-audit: {counted}, without a known vulnerability",))


def main(arguments: list[str]) -> int:
    """Run pip-audit over the packages of an environment; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path, help="directory of the environment to look at")
    parser.add_argument("--program", default=str(Path(sys.executable).with_name("pip-audit")))
    options = parser.parse_args(arguments)
    packages = sysconfig.get_path(
        "purelib", vars={"base": str(options.venv), "platbase": str(options.venv)}
    )
    if not Path(packages).is_dir():
        print(f"pip-audit: there are no packages in {packages}", file=sys.stderr)
        return 1
    command = [options.program, "--path", packages, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired:
        found = Verdict(0, (_loud(f"NOTHING WAS AUDITED, it took more than {LONGEST_S} s"),))
    else:
        found = verdict(done.returncode, done.stdout, done.stderr)
    print(*found.lines, sep="\n", flush=True)
    return found.code


def _loud(text: str) -> str:
    return f"*** pip-audit: {text} ***"


def _in_brackets(aliases: list[str]) -> str:
    return f" ({', '.join(aliases)})" if aliases else ""


def _versions(found: dict[str, list[str]]) -> str:
    return ", ".join(found.get("fix_versions", [])) or "no version yet"


def _reasons(skipped: list[dict[str, str]]) -> list[str]:
    """Return each kind of reason once, with how often it was given."""
    kinds: dict[str, int] = {}
    for one in skipped:
        kind = one["skip_reason"].partition(":")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{count} x {kind}" for kind, count in kinds.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
