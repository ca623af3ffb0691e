"""`make audit`: what pip-audit says is read for what it is worth, and never taken for more.

The fixtures are what pip-audit 2.10 has printed: behind a mirror without advisories, behind a proxy that
is not there, and of a service of ours on this machine that knows a made-up vulnerability.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).with_name("fixtures")


def recorded(name: str) -> str:
    return (FIXTURES / f"pip_audit_{name}").read_text()


def dependency(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "version": "1.0", "vulns": [], **fields}


def as_json(*dependencies: dict[str, object]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def audit(tmp_path: Path, *, code: int, out: str = "", error: str = "") -> tuple[int, str]:
    """Run the tool with a program that says what pip-audit has said; return exit code and output."""
    (tmp_path / "out").write_text(out)
    (tmp_path / "error").write_text(error)
    program = tmp_path / "pip-audit"
    program.write_text(
        f'#!/bin/sh\ncat {tmp_path}/out\ncat {tmp_path}/error >&2\necho "$@" >{tmp_path}/asked\n'
        f"exit {code}\n"
    )
    program.chmod(0o700)
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "audit.py", sys.prefix, "--program", program],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_vulnerability_is_red_and_told_with_what_mends_it(tmp_path: Path) -> None:
    code, said = audit(
        tmp_path,
        code=1,
        out=recorded("vulnerable.json"),
        error="Found 2 known vulnerabilities in 2 packages",
    )
    assert code == 1
    assert "4 of 4 packages" in said
    assert "kombu 5.7.0: CVE-2026-00001 (GHSA-made-up-0001), mended in 99.1\n" in said
    assert "pyyaml 6.0.4: " in said


def test_what_could_not_be_looked_up_is_told_with_its_count_and_not_red(tmp_path: Path) -> None:
    code, said = audit(
        tmp_path, code=0, out=recorded("skipped.json"), error="No known vulnerabilities found"
    )
    assert code == 0
    assert said.startswith("*** pip-audit: only 0 of 4 packages could be looked up here ***\n")
    assert "4 x Dependency not found on PyPI" in said
    assert "without a known vulnerability" not in said


def test_service_that_does_not_answer_is_told_and_not_red(tmp_path: Path) -> None:
    code, said = audit(tmp_path, code=1, error=recorded("unreachable.txt"))
    assert code == 0
    assert said.startswith("*** pip-audit: NOTHING WAS AUDITED")
    assert "Connection refused" in said


def test_vulnerability_is_red_though_others_could_not_be_looked_up(tmp_path: Path) -> None:
    bad = {"id": "X-1", "fix_versions": [], "aliases": []}
    out = as_json(
        dependency("bad", vulns=[bad]),
        {"name": "unknown", "skip_reason": "Dependency not found on PyPI: unknown"},
    )
    code, said = audit(tmp_path, code=1, out=out)
    assert code == 1
    assert "1 of 2 packages" in said
    assert "bad 1.0: X-1, mended in no version yet" in said


def test_some_that_were_looked_up_do_not_make_all_of_them_audited(tmp_path: Path) -> None:
    out = as_json(
        *(dependency(f"p{number}") for number in range(9)),
        {"name": "unknown", "skip_reason": "Dependency not found on PyPI: unknown"},
    )
    code, said = audit(tmp_path, code=0, out=out)
    assert code == 0
    assert "only 9 of 10 packages" in said


def test_all_looked_up_and_none_vulnerable_is_quiet(tmp_path: Path) -> None:
    # Ourselves we have from here: what an index has under our name is not what is installed.
    own = {"name": "sqlqueue", "skip_reason": "distribution marked as editable"}
    code, said = audit(tmp_path, code=0, out=as_json(dependency("a"), dependency("b"), own))
    assert code == 0
    assert (
        said
        == "pip-audit: 2 of 2 packages could be looked up here, without a known vulnerability\n"
    )
    asked = (tmp_path / "asked").read_text()
    assert "site-packages" in asked
    assert "--format json" in asked


@pytest.mark.parametrize(
    ("code", "out", "error"),
    [
        (2, "", "usage: pip-audit\npip-audit: error: unrecognized arguments: --path"),
        (1, "", "Traceback (most recent call last):\nKeyError: 'x'"),
        (0, "", ""),
        (0, "[]", ""),
        (-9, '{"dependencies": [', ""),
    ],
)
def test_pip_audit_that_fails_itself_is_red(
    tmp_path: Path, code: int, out: str, error: str
) -> None:
    found, said = audit(tmp_path, code=code % 256, out=out, error=error)
    assert found == 1
    assert said.startswith("pip-audit failed itself")


def test_nothing_installed_is_not_called_audited(tmp_path: Path) -> None:
    code, said = audit(tmp_path, code=0, out=as_json())
    assert code == 0
    assert "only 0 of 0 packages" in said


def test_ci_audits() -> None:
    assert "\nmake audit\n" in (ROOT / ".ci" / "run").read_text()
    assert "tools/audit.py" in (ROOT / "Makefile").read_text()
