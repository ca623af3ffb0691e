"""What -A may name, and what is said when it names nothing."""

from __future__ import annotations

import itertools
import sys

import pytest

from sqlqueue.errors import AppImportError, ConfigError, TaskDefinitionError
from sqlqueue.loading import load_app

APP = "from sqlqueue import SqlQueue\napp = SqlQueue('loaded')\n"
numbers = itertools.count()


@pytest.fixture
def module(here, monkeypatch):
    """Write modules under names of their own, and forget them in the end."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(text, name="", path=""):
        name = name or f"loaded_{next(numbers)}"
        file = here / (path or f"{name}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("loaded_"):
            del sys.modules[name]


def refusal(path):
    with pytest.raises(AppImportError) as caught:
        load_app(path)
    return str(caught.value)


def test_an_application_is_found_by_module_and_attribute(module):
    name = module(APP + "other = SqlQueue('other')\nclass Inner:\n    app = other\n")
    assert load_app(f"{name}:app").name == "loaded"
    assert load_app(name).name == "loaded"
    assert load_app(f"{name}:other").name == "other"
    assert load_app(f"{name}:Inner.app").name == "other"


def test_a_module_of_the_working_directory_is_found_and_the_path_is_not_doubled(module, here):
    load_app(module(APP))
    load_app(module(APP))
    assert sys.path.count(str(here)) == 1


def test_a_wrong_attribute_is_answered_with_the_right_one(module):
    name = module(APP)
    assert refusal(f"{name}:ap") == (
        f"cannot import app '{name}:ap': module '{name}' has no attribute 'ap'."
        f" Did you mean '{name}:app'?"
    )
    assert refusal(f"{name}:zzzzzzzzzz").endswith(f" Write -A {name}:app.") or "Did you mean" in (
        refusal(f"{name}:zzzzzzzzzz")
    )


def test_a_package_whose_app_is_a_module_is_answered_with_the_app_in_it(module):
    name = f"loaded_{next(numbers)}"
    module("from . import app", name, f"{name}/__init__.py")
    module(APP, name, f"{name}/app.py")
    said = refusal(name)
    assert "it is a module, not a SqlQueue" in said
    assert f"{name}.app:app" in said


def test_what_is_no_application_is_refused():
    assert refusal("json:loads") == (
        "cannot import app 'json:loads': it is a function, not a SqlQueue."
    )


@pytest.mark.parametrize("path", ["", ":app", "__main__:app", "a b:app", ".tasks", "a..b", "1a"])
def test_what_is_no_modules_name_is_refused(path):
    assert "that is no module's name. Write one, as in -A tasks.app:app." in refusal(path)


@pytest.mark.parametrize("path", ["tasks/app.py", "./tasks/app.py:app", "tasks/app"])
def test_a_file_is_answered_with_its_modules_name(path):
    assert refusal(path).endswith("that is no module's name. Write -A tasks.app.")


def test_a_missing_module_is_told_from_a_module_that_misses_another(module):
    assert refusal("loaded_nowhere.app:app").endswith(
        "no module named 'loaded_nowhere'. Run it from the directory that contains 'loaded_nowhere'."
    )
    package = f"loaded_{next(numbers)}"
    module("", package, f"{package}/__init__.py")
    assert f"There is a '{package}', but not with that in it." in refusal(f"{package}.app")
    name = module("import loaded_that_is_not_installed")
    said = refusal(name)
    assert "no module named 'loaded_that_is_not_installed'" in said
    assert f"{name} imports it; install it in this environment" in said


def test_an_error_of_the_module_is_told_and_kept_as_the_cause(module):
    name = module("1 / 0")
    with pytest.raises(AppImportError, match="ZeroDivisionError: division by zero") as caught:
        load_app(name)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "SyntaxError" in refusal(module("def"))
    assert "SystemExit: 3" in refusal(module("import sys; sys.exit(3)"))
    assert "\\x1b[2J" in refusal(module("raise ValueError('\\x1b[2J')"))


def test_a_mistake_in_the_application_is_told_as_it_is(module):
    with pytest.raises(TaskDefinitionError, match="two tasks are named"):
        load_app(module(APP + "for _ in range(2):\n    app.task(name='t')(print)\n"))
    with pytest.raises(ConfigError):
        load_app(module(APP + "app.producer(every='often')(print)\n"))


def test_a_removed_working_directory_is_no_obstacle(module, here, monkeypatch):
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refusal("json:loads").endswith("it is a function, not a SqlQueue.")
