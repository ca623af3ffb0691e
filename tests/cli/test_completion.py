"""TAB offers what there is, and never disturbs whoever types."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.filling import HOSTILE
from tests.support import ROOT

SHELLS = ["bash", "zsh", "fish", "powershell"]


@pytest.fixture
def press_tab(run):
    """Return what is offered at the end of a line, as a shell asks for it."""

    def press(line: str, shell: str = "bash", **more: str) -> list[str]:
        words = f"sqlqueue {line}".split(" ")
        env = {
            "_SQLQUEUE_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": " ".join(words),
            # fish hands over the word itself, and the words without it.
            "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1),
            **more,
        }
        result = run(env=env)
        assert (result.code, result.err) == (0, ""), result
        return [each for each in result.out.splitlines() if each]

    return press


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_calls_us(run, shell):
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert "_SQLQUEUE_COMPLETE" in result.out
    assert f"{shell}_complete" in result.out


def test_shell_that_is_none_is_refused_with_those_there_are(cli):
    result = cli("completion", "tcsh")
    assert result.code == 2
    assert "'bash', 'zsh', 'fish', 'powershell'" in result.err


HELP = "Pause queues: no consumer takes anything..."


@pytest.mark.parametrize(
    ("shell", "offered"),
    [
        ("bash", ["plain,pause"]),
        ("zsh", ["plain", "pause", HELP]),
        ("fish", [f"plain,pause\t{HELP}"]),
        ("powershell", ["plain", "pause", HELP]),
    ],
)
def test_every_shell_gets_an_answer_in_its_own_form(press_tab, shell, offered):
    assert press_tab("pau", shell) == offered


def test_real_bash_takes_the_script_and_offers_what_is_in_the_file(filled, tmp_path):
    filled.publish(queue="mail")
    filled.publish(queue="sums")
    filled.close()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sqlqueue"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sqlqueue "$@"\n')
    command.chmod(0o700)
    script = r"""
        eval "$(sqlqueue completion bash)"
        complete -p sqlqueue
        press_tab() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _sqlqueue_completion sqlqueue
            echo "${COMPREPLY[*]}"
        }
        press_tab sqlqueue ins
        press_tab sqlqueue inspect jobs --queue ""
        press_tab sqlqueue inspect jobs --lim
        press_tab sqlqueue --db elsewhere.db pause ""
    """
    environment = {key: text for key, text in os.environ.items() if "SQLQUEUE" not in key}
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", script],
        cwd=tmp_path,
        env={
            **environment,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _sqlqueue_completion sqlqueue",
        "inspect",
        "mail sums",
        "--limit",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("inspect jobs --task ", ["shop.add", "shop.mail"]),
        ("inspect jobs --task shop.a", ["shop.add"]),
        ("inspect dead --queue ", ["default", "mail"]),
        ("--db other.db inspect jobs --queue ", ["other"]),
        ("pause ", ["default", "mail"]),
        ("resume mail ", ["default", "mail"]),
        ("purge ", ["default", "mail"]),
        ("call ", ["shop.add", "shop.mail"]),
        ("schedule add name shop.m", ["shop.mail"]),
        ("inspect jobs --state per", ["permanently_failed"]),
        ("inspect jobs --state done,fai", ["done,failed"]),
        ("inspect jobs --state done,d", []),
        ("completion ", SHELLS),
    ],
)
def test_values_are_completed_from_the_file_that_the_line_names(
    filled, press_tab, tmp_path, line, offered
):
    filled.publish(task="shop.add")
    filled.publish(task="shop.mail", queue="mail")
    filled.close()
    other = type(filled)(tmp_path / "other.db")
    other.publish(queue="other")
    other.close()
    assert press_tab(line) == [f"plain,{each}" for each in offered]


def test_names_that_a_shell_would_run_are_not_offered(filled, press_tab):
    for name in ("$(reboot)", "a b", "a;b", "`x`", "-rf", "*", HOSTILE, "fine.name"):
        filled.publish(queue=name, task=name)
    filled.close()
    assert press_tab("pause ") == ["plain,fine.name"]
    assert press_tab("call ") == ["plain,fine.name"]


@pytest.mark.parametrize("line", ["pause ", "call ", "inspect jobs --task ", "wrok", "wrok x"])
def test_without_a_database_nothing_is_offered_or_said_or_made(press_tab, tmp_path, line):
    assert press_tab(line) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "env",
    [
        {"SQLQUEUE_DB": "redis://nobody.invalid/0"},
        {"SQLQUEUE_DB": "."},
        {"SQLQUEUE_WORKER_CONCURRENCY": "many"},
        {"SQLQUEUE_CONFIG": "missing.toml"},
        {"SQLQUEUE_APP": "missing:app"},
        {"SQLQUEUE_DB": "broken.db"},
    ],
    ids=lambda env: "=".join(*env.items()),
)
def test_what_is_wrong_is_not_told_while_somebody_types(press_tab, tmp_path, env):
    (tmp_path / "broken.db").write_text("this is no database" * 100)
    assert press_tab("pause ", **env) == []


def test_application_is_not_imported_to_complete(filled, press_tab, tmp_path):
    filled.publish(queue="mail")
    filled.close()
    (tmp_path / "loud.py").write_text("print('loud'); open('imported', 'w')")
    assert press_tab("-A loud:app pause ") == ["plain,mail"]
    assert not (tmp_path / "imported").exists()


def test_nothing_heavy_is_imported_to_complete_without_a_database(tmp_path):
    code = (
        "import sys; from sqlqueue.cli import main; main(); "
        "print([name for name in ('kombu', 'rich', 'structlog') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_SQLQUEUE_COMPLETE": "bash_complete",
            "COMP_WORDS": "sqlqueue pause ",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["[]"]
