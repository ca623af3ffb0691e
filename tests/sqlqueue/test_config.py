import math
import os
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlqueue import config
from sqlqueue.config import (
    Settings,
    database_url,
    duration_s,
    resolve,
    set_command_line,
    size_bytes,
    time_zone,
)
from sqlqueue.errors import ConfigError
from sqlqueue.text import escaped


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    """No settings file and no command line of somebody else."""
    monkeypatch.chdir(tmp_path)
    yield
    set_command_line({})


def settings(code=None, environ=None, **options):
    return resolve(code or {}, environ=environ or {}, **options).settings


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


# --- which source wins ----------------------------------------------------------------------------


def test_nothing_given_yields_the_defaults_and_says_so():
    resolved = resolve({}, environ={})
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.settings.task_max_attempts == 5
    assert resolved.settings.visibility_timeout == 3600.0
    assert resolved.settings.retention_dead == 30 * 86_400


def test_every_default_passes_its_own_check():
    defaults = Settings()
    given_in_code = {name: getattr(defaults, name) for name in Settings.__slots__}
    assert settings(given_in_code) == defaults


def test_later_sources_win_and_origins_name_them(tmp_path):
    write(
        tmp_path / "sqlqueue.toml",
        'worker_grace = "2s"\nsweep_interval = 3\nbeat_max_interval = 4\n',
    )
    resolved = resolve(
        {"task_max_attempts": 9, "worker_grace": 1, "sweep_interval": 1, "beat_max_interval": 1},
        environ={"SQLQUEUE_SWEEP_INTERVAL": "30ms", "SQLQUEUE_BEAT_MAX_INTERVAL": "40ms"},
        command_line={"beat_max_interval": "5m", "log_level": None},
    )
    in_force = resolved.settings
    assert (in_force.task_max_attempts, in_force.worker_grace) == (9, 2.0)
    assert (in_force.sweep_interval, in_force.beat_max_interval) == (0.03, 300.0)
    assert resolved.origins["task_max_attempts"] == "code"
    assert resolved.origins["worker_grace"] == "file sqlqueue.toml"
    assert resolved.origins["sweep_interval"] == "env SQLQUEUE_SWEEP_INTERVAL"
    assert resolved.origins["beat_max_interval"] == "command line"
    assert resolved.origins["log_level"] == "default"


def test_the_command_line_is_remembered_for_later_resolving(tmp_path):
    path = write(tmp_path / "elsewhere" / "my.toml", "task_max_attempts = 2\n")
    set_command_line({"log_level": "debug", "log_dir": None}, path)
    assert settings().log_level == "debug"
    assert settings().task_max_attempts == 2
    set_command_line({})
    assert settings().log_level == "info"
    assert settings().task_max_attempts == 5


def test_an_explicit_file_beats_the_environment_beats_the_usual_places(tmp_path):
    for name, attempts in (("sqlqueue.toml", 1), ("conf/sqlqueue.toml", 2), ("a", 3), ("b", 4)):
        write(tmp_path / name, f"task_max_attempts = {attempts}\n")
    of_env = {"SQLQUEUE_CONFIG": "a"}
    assert settings(environ=of_env, config_file=tmp_path / "b").task_max_attempts == 4
    assert settings(environ=of_env).task_max_attempts == 3
    assert settings().task_max_attempts == 1
    (tmp_path / "sqlqueue.toml").unlink()
    assert settings().task_max_attempts == 2
    assert resolve({}, environ={}).origins["task_max_attempts"] == "file conf/sqlqueue.toml"


def test_the_environment_of_the_process_is_read_by_default(monkeypatch):
    monkeypatch.setenv("SQLQUEUE_LOG_LEVEL", "error")
    assert resolve({}).settings.log_level == "error"


def test_tables_are_merged_key_by_key(tmp_path):
    write(
        tmp_path / "sqlqueue.toml",
        '[app]\ndirectory = "from-file"\nevery = "5s"\n[beat.nightly]\ntask = "a.b"\n'
        "[transport_options]\nprefetch = 3\n",
    )
    resolved = resolve(
        {"app": {"directory": "from-code", "own": 1}, "beat": {"hourly": {"task": "c.d"}}},
        environ={"SQLQUEUE_APP_EVERY": "1s", "SQLQUEUE_APP": "tasks.app:app"},
        command_line={"app": {"producers": 4}},
    )
    assert resolved.settings.app == {
        "directory": "from-file",
        "own": 1,
        "every": "1s",
        "producers": 4,
    }
    assert resolved.settings.beat == {"hourly": {"task": "c.d"}, "nightly": {"task": "a.b"}}
    assert resolved.settings.transport_options == {"prefetch": 3}
    assert resolved.origins["app.own"] == "code"
    assert resolved.origins["app.directory"] == "file sqlqueue.toml"
    assert resolved.origins["app.every"] == "env SQLQUEUE_APP_EVERY"
    assert resolved.origins["app.producers"] == "command line"


def test_settings_do_not_change_when_the_callers_table_does():
    mine = {"a": 1}
    in_force = settings({"app": mine})
    mine["b"] = 2
    assert in_force.app == {"a": 1}


def test_sqlqueue_db_takes_a_path_or_a_url_and_overrides_the_broker_url():
    both = {"SQLQUEUE_DB": "./my queue.db", "SQLQUEUE_BROKER_URL": "sqlqueue:///other.db"}
    resolved = resolve({"broker_url": "memory://"}, environ=both)
    assert resolved.settings.broker_url == "sqlqueue:///my%20queue.db"
    assert resolved.origins["broker_url"] == "env SQLQUEUE_DB"
    assert settings(environ={"SQLQUEUE_DB": "redis://h/0"}).broker_url == "redis://h/0"


def test_values_may_come_as_text_from_the_environment():
    in_force = settings(
        environ={
            "SQLQUEUE_WORKER_QUEUES": "a, b,,a",
            "SQLQUEUE_WORKER_QUEUE_WEIGHTS": "a=6, b=0.5,,",
            "SQLQUEUE_WORKER_CONCURRENCY": "3",
            "SQLQUEUE_MAX_MESSAGE_BYTES": "2_000",
            "SQLQUEUE_TRANSPORT_OPTIONS": '{"wait": 1}',
            "SQLQUEUE_DURABILITY": "FULL",
            "SQLQUEUE_RETENTION_DONE": "1d",
            "SQLQUEUE_LOG_LEVEL": "",
        }
    )
    assert in_force.worker_queues == ("a", "b")
    assert in_force.worker_queue_weights == {"a": 6.0, "b": 0.5}
    assert (in_force.worker_concurrency, in_force.max_message_bytes) == (3, 2000)
    assert in_force.transport_options == {"wait": 1}
    assert (in_force.durability, in_force.retention_done) == ("full", 86_400.0)
    assert in_force.log_level == "info"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["task_max_atempts", "visibility-timeout", "Log_Level"])
def test_an_unknown_key_is_an_error_with_a_suggestion(key, tmp_path):
    for refused in (
        lambda: settings({key: 1}),
        lambda: settings(command_line={key: 1}),
        lambda: settings(config_file=write(tmp_path / "c.toml", f'"{key}" = 1\n')),
    ):
        with pytest.raises(ConfigError, match=r"is no setting .*Did you mean '[a-z_]+'"):
            refused()


def test_an_environment_name_nearly_right_is_an_error_and_any_other_is_not_ours():
    with pytest.raises(ConfigError, match="Did you mean 'SQLQUEUE_VISIBILITY_TIMEOUT'"):
        settings(environ={"SQLQUEUE_VISIBILTY_TIMEOUT": "1h"})
    names_of_command_line_options = (
        "WORKER_VISIBILITY_TIMEOUT",
        "WORKER_TIME_LIMIT",
        "WORKER_LOG_LEVEL",
        "WORKER_LOG_FILE",
        "DEMO_COUNT",
        "DEMO_EVERY",
        "INSPECT_JOBS_QUEUE",
        "BEAT_LOG_FILE",
        "OUTPUT",
    )
    settings(environ=dict.fromkeys((f"SQLQUEUE_{n}" for n in names_of_command_line_options), "1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("worker_concurrency", 0),
        ("task_max_attempts", -1),
        ("task_max_attempts", True),
        ("task_max_attempts", 2.5),
        ("task_max_attempts", 2**63),
        ("worker_concurrency", "many"),
        ("visibility_timeout", 0),
        ("visibility_timeout", "soon"),
        ("visibility_timeout", math.nan),
        ("sweep_interval", "-1s"),
        ("durability", "most"),
        ("durability", None),
        ("log_level", "verbose"),
        ("log_format", "xml"),
        ("log_dir", 5),
        ("timezone", "Europe/Berln"),
        ("timezone", "../../etc/passwd"),
        ("broker_url", "queue.db"),
        ("broker_url", ""),
        ("task_default_queue", ""),
        ("task_default_queue", "a\x1b[2J"),
        ("task_default_queue", "a,b"),
        ("task_default_queue", "x" * 300),
        ("worker_queues", 7),
        ("worker_queues", ["ok", 7]),
        ("worker_queues", ["\u202egpj.exe"]),
        ("worker_queue_weights", 7),
        ("worker_queue_weights", "high"),
        ("worker_queue_weights", "high=many"),
        ("worker_queue_weights", "high=-1"),
        ("worker_queue_weights", "=1"),
        ("worker_queue_weights", {"high": 0}),
        ("worker_queue_weights", {"high": True}),
        ("worker_queue_weights", {"high": "6"}),
        ("worker_queue_weights", {"high": math.nan}),
        ("worker_queue_weights", {"high": math.inf}),
        ("worker_queue_weights", {"high": 1e-300}),
        ("worker_queue_weights", {"a\x1b[2J": 1}),
        ("worker_queue_weights", {7: 1}),
        ("app", 7),
        ("app", {1: 2}),
        ("beat", "nightly"),
        ("transport_options", "{"),
        ("transport_options", "[" * 100_000),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_origin(key, value):
    with pytest.raises(ConfigError) as caught:
        settings({key: value})
    assert str(caught.value).startswith(key)
    assert "(from: code)" in str(caught.value)
    assert escaped(str(caught.value)) == str(caught.value)
    assert len(str(caught.value)) < 400


def test_errors_and_the_repr_do_not_show_passwords():
    with pytest.raises(ConfigError) as caught:
        settings({"broker_url": "hunter2"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        settings(environ={"SQLQUEUE_TRANSPORT_OPTIONS": "hunter2"})
    assert "hunter2" not in str(caught.value)
    secret = settings({"broker_url": "amqp://me:hunter2@h", "app": {"key": "hunter2"}})
    assert "hunter2" not in repr(secret)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"task_max_attempts = ", "is not valid TOML"),
        (b"a = 1\na = 2\n", "is not valid TOML"),
        (b"log_dir = '\xff'", "is not UTF-8"),
        (b"x = " + b"[" * 100_000, "TOML"),
        (None, "no settings file at"),
        ("directory", "cannot read"),
    ],
)
def test_a_bad_settings_file_is_refused_with_its_path(tmp_path, content, reason):
    path = tmp_path / "bad.toml"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        settings(config_file=path)
    assert "bad.toml" in str(caught.value)


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("200MB", 200_000_000),
        ("200 mb", 200_000_000),
        ("512KiB", 524_288),
        ("1.5GiB", 1_610_612_736),
        (" 1 TB ", 10**12),
        ("7b", 7),
    ],
)
def test_a_size_is_a_number_of_bytes_or_a_text_with_a_unit(value, size):
    assert size_bytes(value, name="x") == size


@pytest.mark.parametrize(
    "value",
    ["", "MB", "-1", -1, "1M", "1 parsec", "1e6", "0x10", "٣MB", True, None, 1.5, [1], "9" * 5000],
)
def test_anything_else_is_no_size(value):
    with pytest.raises(ConfigError, match=r"x = .* is no size\. Write bytes"):
        size_bytes(value, name="x")


@pytest.mark.parametrize("value", [2**63, 10**400, "9" * 30, "99999999999999TiB"])
def test_a_size_no_machine_has_is_refused(value):
    with pytest.raises(ConfigError, match="is too large"):
        size_bytes(value, name="x")


@pytest.mark.parametrize("value", [200_000, "200000", "1kB"])
def test_a_memory_limit_in_celerys_unit_is_refused_with_the_right_one(value):
    with pytest.raises(ConfigError, match=r"less than any Python process takes.*bytes.*'200MB'"):
        resolve({"worker_max_memory_per_child": value}, environ={})
    assert resolve({"worker_max_memory_per_child": 0}, environ={}).settings


@pytest.mark.parametrize("value", [-1, 0.5, "many", None, True, [0]])
def test_jobs_of_a_child_are_a_count_or_0(value):
    with pytest.raises(ConfigError, match=r"worker_max_jobs_per_child.*whole number from 0 up"):
        resolve({"worker_max_jobs_per_child": value}, environ={})
    for right in (0, "0", 7, "7"):
        found = resolve({"worker_max_jobs_per_child": right}, environ={}).settings
        assert found.worker_max_jobs_per_child == int(right)


# --- durations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("200ms", 0.2),
        ("2s", 2.0),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("7d", 604_800.0),
        ("1h30m", 5400.0),
        (" 1d 1h 1m 1s 1ms ", 90_061.001),
        ("1.5h", 5400.0),
        ("90", 90.0),
        ("0.5", 0.5),
        (0, 0.0),
        (2.5, 2.5),
    ],
)
def test_a_duration_is_a_number_or_a_text_with_units(value, seconds):
    assert duration_s(value, name="x") == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "no duration"),
        ("-3", "negative"),
        ("-1h", "negative"),
        (-0.5, "negative"),
        (-math.inf, "negative"),
        (-(10**400), "negative"),
        (math.nan, "no duration"),
        ("nan", "no duration"),
        ("1e3", "no duration"),
        ("inf", "no duration"),
        (math.inf, "too long"),
        (10**400, "too long"),
        ("9" * 39, "too long"),
        ("9" * 5000, "no duration"),
        ("1m1m", "no duration"),
        ("1s1h", "no duration"),
        ("1.2.3s", "no duration"),
        ("٣s", "no duration"),
        ("5 parsecs", "no duration"),
        (True, "no duration"),
        (None, "no duration"),
        (b"1s", "no duration"),
    ],
)
def test_anything_else_is_no_duration(value, reason):
    with pytest.raises(ConfigError, match=f"^grace = .* is {reason}. Write seconds"):
        duration_s(value, name="grace")


@hypothesis.settings(deadline=None)
@given(st.one_of(st.text(), st.text("0123456789.dhms -+_e"), st.floats(), st.integers(), st.none()))
def test_a_duration_is_finite_or_a_config_error(value):
    try:
        seconds = duration_s(value, name="x")
    except ConfigError as error:
        assert escaped(str(error)) == str(error)  # noqa: PT017 - either outcome is fine
    else:
        assert 0 <= seconds < math.inf


# --- paths and zones ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("q.db", "sqlqueue:///q.db"),
        ("./q.db", "sqlqueue:///q.db"),
        ("../q.db", "sqlqueue:///../q.db"),
        ("link/../q.db", "sqlqueue:///link/../q.db"),
        ("/srv/q.db", "sqlqueue:////srv/q.db"),
        ("//srv//q.db", "sqlqueue:////srv/q.db"),
        ("my q?#%;.db", "sqlqueue:///my%20q%3F%23%25%3B.db"),
        ("ü.db", "sqlqueue:///%C3%BC.db"),
        (os.fsdecode(b"\xff.db"), "sqlqueue:///%FF.db"),
        ("memory://", "memory://"),
        ("sqlqueue:////srv/q.db", "sqlqueue:////srv/q.db"),
    ],
)
def test_a_path_becomes_a_url_and_a_url_stays(text, url):
    assert database_url(text) == url


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "dir/", ".", "..", "a/..", "~", ":memory:"])
def test_what_is_no_file_is_refused(text):
    with pytest.raises(ConfigError):
        database_url(text)


def test_half_a_surrogate_pair_is_refused_as_a_path():
    with pytest.raises(ConfigError):
        database_url("\ud800")


@hypothesis.settings(deadline=None)
@given(st.text())
def test_any_text_is_a_url_or_a_config_error(text):
    try:
        url = database_url(text)
    except ConfigError as error:
        assert escaped(str(error)) == str(error)  # noqa: PT017 - either outcome is fine
    else:
        assert "://" in url


@pytest.mark.parametrize("name", ["", ".", "Europe", "/etc/localtime", "\0", "x" * 5000, 5, None])
def test_what_is_no_time_zone_is_refused(name):
    with pytest.raises(ConfigError, match="is no known time zone"):
        time_zone(name, name="timezone")


def test_a_misspelt_time_zone_gets_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'Europe/Berlin'"):
        time_zone("Europe/Berln", name="timezone")
    assert time_zone("Europe/Berlin", name="timezone").key == "Europe/Berlin"


def test_importing_settings_reads_nothing(tmp_path):
    write(tmp_path / "sqlqueue.toml", "this is no TOML")
    program = "import sqlqueue.config"
    path = os.path.dirname(os.path.dirname(config.__file__))  # noqa: PTH120
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, env={"PYTHONPATH": path}
    )
