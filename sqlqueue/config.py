"""Settings: where they come from, which of them wins, and what they must look like.

    code  <  TOML file  <  SQLQUEUE_* environment  <  command line

Every value is checked where it comes in, so that nothing further on meets a bad one, and each error
names the place it came from. Nothing is read at import; nothing is looked up twice by itself: an
application resolves its settings once (`SqlQueue.conf`). This module refuses to guess: an unknown
key is an error with a suggestion, a value of the wrong kind is an error with an example.

Of the environment only names that match a field are read, because the command line gives its own
options `SQLQUEUE_…` names too; a name that is *nearly* a field's is an error, any other is none of
our business. `SQLQUEUE_DB` (path or URL) overrides `broker_url`; `SQLQUEUE_APP_<KEY>` sets a key of
the free `[app]` table; `SQLQUEUE_CONFIG` names the TOML file.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sqlqueue import signing
from sqlqueue.errors import ConfigError
from sqlqueue.text import did_you_mean, escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import tzinfo

__all__ = [
    "Resolved",
    "Settings",
    "anchored",
    "database_url",
    "duration_s",
    "resolve",
    "set_command_line",
    "size_bytes",
    "time_zone",
]

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an application. Durations are seconds; tables are plain dictionaries.

    Build one through `resolve`: only that checks the values.
    """

    # The broker
    # A URL, the options and the application's own settings may hold passwords: not in the repr.
    broker_url: str = field(default="sqlqueue:///queue.db", repr=False)
    # Handed to Kombu as it is
    transport_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    durability: str = "publish"  # "publish", "full" or "process": what survives a power cut
    visibility_timeout: float = 3600.0  # a lease's length
    sweep_interval: float = 1.0  # how often a supervisor looks for dead consumers
    max_message_bytes: int = 1_048_576
    retention_done: float = 7 * _DAY_S  # 0 keeps for ever
    retention_dead: float = 30 * _DAY_S  # dead letters; 0 keeps for ever
    retention_audit: float = 180 * _DAY_S  # what operators did; 0 keeps for ever

    # Signatures. Who reads these keys may have workers run what he likes: not in the repr
    signing_key: str = field(default="", repr=False)  # empty: nothing is signed or verified
    signing_keys_accepted: tuple[str, ...] = field(default=(), repr=False)  # older keys
    # Instead of signing_key: a key a line, the first signs. A key may be here by mistake
    signing_key_file: str = field(default="", repr=False)

    # Tasks
    task_default_queue: str = "default"
    task_max_attempts: int = 5  # 0: no limit
    task_time_limit: float = 3600.0  # 0: none
    task_soft_time_limit: float = 0.0  # 0: none

    # Workers
    worker_concurrency: int = field(default_factory=lambda: os.cpu_count() or 1)
    worker_queues: tuple[str, ...] = ()  # empty: task_default_queue and the declared tasks' queues
    # By queue; those without have 1. Empty: the first queue first
    worker_queue_weights: Mapping[str, float] = field(default_factory=dict)
    # So many short jobs a child claims and settles together, at most 16; 1: one at a time
    worker_prefetch_multiplier: int = 16
    worker_grace: float = 30.0  # how long a drain waits for running jobs
    worker_max_jobs_per_child: int = 0  # a child is replaced after so many; 0: never
    worker_max_memory_per_child: int = 0  # resident bytes, looked at after each job; 0: no limit

    # The beat
    beat_max_interval: float = 5.0  # the longest sleep of a beat
    beat_producer_timeout: float = 60.0  # how long a producer function may take for one tick
    timezone: str = "UTC"  # of cron schedules that name none
    beat: Mapping[str, object] = field(default_factory=dict)  # schedule entries by name, as written

    # Logs
    log_level: str = "info"
    log_format: str = "auto"  # "console", "json", or "auto": console on a terminal
    log_dir: str = ""  # empty: standard error only

    # The application's own settings; never looked at
    app: Mapping[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where each came from.

    `origins` has every field, and every key of the tables as ``table.key``. Its values are
    ``"default"``, ``"code"``, ``"file conf/sqlqueue.toml"``, ``"env SQLQUEUE_…"`` or
    ``"command line"``.
    """

    settings: Settings
    origins: dict[str, str]


@dataclass(slots=True)
class _CommandLine:
    values: dict[str, object] = field(default_factory=dict)
    config_file: Path | None = None


# The one mutable thing here. The command line is read before the application is imported, and the
# application resolves its settings later, wherever it likes; there is one command line a process.
_command_line = _CommandLine()


def set_command_line(values: Mapping[str, object], config_file: Path | None = None) -> None:
    """Remember what the command line said, for every later `resolve` in this process.

    `values` are fields of `Settings` by name, None where an option was not given. Tables (``app``)
    are merged key by key. Called by the command line before it imports the application; calling it
    again replaces all, and ``set_command_line({})`` forgets.
    """
    _command_line.values = dict(values)
    _command_line.config_file = config_file


def resolve(
    code: Mapping[str, object],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    command_line: Mapping[str, object] | None = None,
) -> Resolved:
    """Return the settings in force, and the origin of each.

    None stands for what the process has: the remembered command line and its ``--config``,
    `os.environ`. The file is `config_file`, or SQLQUEUE_CONFIG, and must then exist; or
    ``./sqlqueue.toml``, or ``./conf/sqlqueue.toml``, or none.

    Raises ConfigError. Reads one file at most, writes nothing.
    """
    if environ is None:
        environ = os.environ
    if command_line is None:
        command_line = _command_line.values
    values: dict[str, object] = {}
    origins = dict.fromkeys(_PARSERS, "default")
    for origin, layer in (
        ("code", code),
        *_toml_layers(config_file or _command_line.config_file, environ),
        *_environment_layers(environ),
        ("command line", {key: value for key, value in command_line.items() if value is not None}),
    ):
        for key, value in layer.items():
            _take(values, origins, key, value=_parsed(key, value, origin), origin=origin)
    return Resolved(Settings(**values), origins)  # type: ignore[arg-type] # parsed one by one above


def mistakes(code: Mapping[str, object]) -> list[str]:
    """Return what is wrong with the settings: not the first mistake alone, as `resolve` tells it, but all.

    Looks where `resolve` looks. Raises nothing, and writes nothing.
    """
    found: list[str] = []

    def read(layers: Callable[[], Iterable[tuple[str, Mapping[str, object]]]]) -> None:
        try:
            for origin, layer in layers():
                for key, value in layer.items():
                    try:
                        _parsed(key, value, origin)
                    except ConfigError as error:
                        found.append(str(error))
        except ConfigError as error:  # the layer itself: a file, or a variable's name
            found.append(str(error))

    given = {key: value for key, value in _command_line.values.items() if value is not None}
    read(lambda: [("code", code)])
    read(lambda: _toml_layers(_command_line.config_file, os.environ))
    for variable, text in os.environ.items():
        # One by one: the first variable that is none would hide the others.
        read(lambda variable=variable, text=text: _environment_layers({variable: text}))  # type: ignore[misc]
    read(lambda: [("command line", given)])
    return found


def database_url(text: str) -> str:
    """Return the broker URL for what was given as ``--db`` or SQLQUEUE_DB: a path, or a URL already.

    ``./q.db`` becomes ``sqlqueue:///q.db``, relative as it was; ``/srv/q.db`` becomes
    ``sqlqueue:////srv/q.db``. Whatever a URL would misread in a path (a space, ``?``, ``#``, ``%``,
    and ``;``, at which Kombu splits) is percent-encoded. Raises ConfigError; touches no file.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+]*://", text):
        return text
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{quoted(text)} is no path. Give a database file, such as ./queue.db.")
    if text == ":memory:":
        raise ConfigError(
            "':memory:' is no file, and other processes could not see it. Give a path, or use the"
            " broker 'memory://' in tests."
        )
    if text.endswith(("/", "/.", "/..")) or text in {".", "..", "~"}:
        raise ConfigError(f"{quoted(text)} is a directory. Give a database file in it.")
    try:
        # Path drops "./" and doubled slashes, and leaves ".." alone, as a link may come before it.
        # os.fsencode gives back the bytes of a name that is not UTF-8, which quote() would refuse.
        path = os.fsencode(Path(text).expanduser())
    except (RuntimeError, UnicodeEncodeError):  # "~nobody"; half a surrogate pair
        raise ConfigError(f"{quoted(text)} cannot be a path here. Write the path out.") from None
    if path.startswith(b"//"):  # which POSIX lets a system read in its own way; none of ours does
        path = path[1:]
    return f"sqlqueue:///{quote(path)}"


_UNITS_S: Final = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# Each unit once, the longest first; or a bare number. float() would also take 'nan', 'inf', '1e3',
# '1_000' and digits of other scripts, which no other duration of ours looks like.
_DURATION: Final = re.compile(
    " *".join(rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?) *{unit})?" for unit in _UNITS_S)
    + r"|(?P<bare>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
# Ten times a long life. Above it somebody has mixed up units, and sums of milliseconds would
# sooner or later leave the 64 bits a column has.
_LONGEST_S: Final = 1000 * 366 * _DAY_S


def anchored(url: str) -> str:
    """Return a broker URL whose relative path is made absolute, from the directory of this moment.

    Of several URLs, parted by semicolons, each. Other brokers' URLs stay as they are.
    """
    relative, absolute = "sqlqueue:///", "sqlqueue:////"
    return ";".join(
        f"{relative}{quote(os.fsencode(Path.cwd()))}/{one.removeprefix(relative)}"
        if one.startswith(relative) and not one.startswith(absolute)
        else one
        for one in url.split(";")
    )


def duration_s(value: object, *, name: str) -> float:
    """Return a duration in seconds: a number, or a text like ``200ms``, ``2s``, ``10m``, ``1h30m``.

    `name` is the setting or option the error is about. Raises ConfigError for anything else: empty,
    negative, NaN, infinite, longer than a thousand years, units twice or in the wrong order.
    """
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Clamped first: float() of an integer of 400 digits raises. In this order NaN stays NaN.
        seconds = float(min(max(value, -1), _LONGEST_S + 1))
    elif isinstance(value, str) and len(value) <= 40:
        seconds = _seconds_in(value.strip())
    if 0 <= seconds <= _LONGEST_S:
        return seconds
    what = "is negative" if seconds < 0 else "is too long" if seconds > 0 else "is no duration"
    raise ConfigError(
        f"{name} = {quoted(value)} {what}. Write seconds (90, 0.5) or a text such as '200ms', '2s',"
        " '10m', '1h30m', '7d'."
    )


_UNITS_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)")
_MOST_BYTES: Final = 2**62


def size_bytes(value: object, *, name: str) -> int:
    """Return a size in bytes: a whole number, or a text like ``200MB``, ``512KiB``, ``1.5 GiB``.

    MB are 1000 · 1000 bytes, MiB are 1024 · 1024; capitals do not matter. `name` is the setting or
    option the error is about. Raises ConfigError for anything else, and for what no machine has.
    """
    size = -1.0
    if isinstance(value, int) and not isinstance(value, bool):
        size = min(max(value, -1), _MOST_BYTES + 1)
    elif isinstance(value, str) and len(value) <= 40:
        match = _SIZE.fullmatch(value.strip().lower())
        if match and match[2] in _UNITS_BYTES:
            size = float(match[1]) * _UNITS_BYTES[match[2]]
    if 0 <= size <= _MOST_BYTES:
        return round(size)
    what = "is too large" if size > 0 else "is no size"
    raise ConfigError(
        f"{name} = {quoted(value)} {what}. Write bytes (200000000) or a text such as '200MB',"
        " '512KiB', '1.5GiB'."
    )


def time_zone(value: object, *, name: str) -> tzinfo:
    """Return the time zone of that IANA name; ``UTC`` needs no zone database.

    Raises ConfigError, with a suggestion where one is near.
    """
    if value == "UTC":
        return timezone.utc
    near = ""
    if isinstance(value, str):
        import zoneinfo  # noqa: PLC0415 - late: few have another zone, and it takes 3 ms

        try:
            return zoneinfo.ZoneInfo(value)
        except (KeyError, ValueError, OSError):  # not found; no relative name; a directory
            pass
        near = did_you_mean(value, zoneinfo.available_timezones())
    raise ConfigError(
        f"{name} = {quoted(value)} is no known time zone.{near} Write a name of the IANA database,"
        " such as 'UTC' or 'Europe/Berlin'."
    )


# --- what a value may look like: one parser a kind, (value, name) -> the checked value ------------


def _text(value: object, name: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and "\0" not in value:
        return value
    raise ConfigError(f"{name} = {quoted(value)} is no text. Write it in quotes.")


def _url(value: object, name: str) -> str:
    url = _text(value, name)
    if "://" not in url:  # The text itself may hold a password: not shown.
        raise ConfigError(
            f"{name} is no URL. Write 'sqlqueue:///queue.db' for a file here,"
            " 'sqlqueue:////srv/queue.db' for one elsewhere; SQLQUEUE_DB and --db take plain paths."
        )
    return url


def _queue(value: object, name: str) -> str:
    queue = _text(value, name).strip()
    if not queue or len(queue) > 200 or queue != escaped(queue) or "," in queue:
        raise ConfigError(
            f"{name} = {quoted(value)} is no queue name. Use 1 to 200 visible characters, no comma."
        )
    return queue


def _queues(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return tuple(dict.fromkeys(_queue(each, name) for each in value))
    raise ConfigError(f'{name} = {quoted(value)} is no list of queues. Write ["a", "b"] or "a,b".')


def _key(value: object, name: str) -> str:
    if not isinstance(value, str):  # whatever it is may be a secret: not shown
        raise ConfigError(f"{name} is no text. Write it in quotes.")
    return signing.checked(value, name=name) if value else ""


def _key_file(value: object, name: str) -> str:
    try:
        return _text(value, name)
    except ConfigError:  # it may be a key, in a list or with a zero: not shown
        raise ConfigError(f"{name} is no text. Write the path of a file in quotes.") from None


def _keys(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f'{name} is no list of keys. Write ["…", "…"], or "…,…".')
    return tuple(_key(each, name) for each in value)


def _weights(value: object, name: str) -> dict[str, float]:
    if isinstance(value, str):
        parts = [part.rpartition("=") for part in value.split(",") if part.strip()]
        value = {queue: _number_in(weight) for queue, _, weight in parts}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} = {quoted(value)} is no table of weights. Write {{high = 6, low = 1}}, or"
            ' "high=6,low=1".'
        )
    found = {}
    for key, weight in value.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not (is_number and 0 < weight <= _LARGEST_WEIGHT and 1 / weight <= _LARGEST_WEIGHT):
            raise ConfigError(
                f"{name}: {quoted(weight)} is no weight of the queue {quoted(key)}. Write a positive"
                " number such as 1, 6 or 0.5; to leave a queue out, do not serve it."
            )
        found[_queue(key, name)] = float(weight)
    return found


_LARGEST_WEIGHT: Final = 1e6  # in both directions; nobody would live to see a smaller share


def _number_in(text: str) -> object:
    """Return the number that a text is, or the text, for whoever refuses it."""
    return float(text) if re.fullmatch(r" *[0-9]{1,9}(\.[0-9]{1,9})? *", text) else text


def _count(value: object, name: str, *, least: int = 1) -> int:
    if isinstance(value, str) and re.fullmatch(r" *[0-9_]{1,12} *", value):
        value = int(value.replace("_", "") or "0")
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31:
        return value
    raise ConfigError(
        f"{name} = {quoted(value)} is no count. Write a whole number from {least} up."
    )


def _count_or_none(value: object, name: str) -> int:
    return _count(value, name, least=0)


# Celery's setting of this name counts in KiB, so somebody will write 200000 and mean 200 MB. Without
# this his children would end after each job.
_LEAST_MEMORY: Final = 2**20


def _memory(value: object, name: str) -> int:
    size = size_bytes(value, name=name)
    if 0 < size < _LEAST_MEMORY:
        raise ConfigError(
            f"{name} = {quoted(value)} is less than any Python process takes. A bare number means"
            " bytes; write a text such as '200MB', or 0 for no limit."
        )
    return size


def _duration(value: object, name: str) -> float:
    return duration_s(value, name=name)


def _positive_duration(value: object, name: str) -> float:
    seconds = duration_s(value, name=name)
    if seconds < 0.001:
        raise ConfigError(f"{name} = {quoted(value)} is too short. The least is 1ms.")
    return seconds


def _choice(*choices: str) -> Callable[[object, str], str]:
    def parsed(value: object, name: str) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ConfigError(
            f"{name} = {quoted(value)} is not known.{near} Choose one of: {', '.join(choices)}."
        )

    return parsed


def _zone_name(value: object, name: str) -> str:
    time_zone(value, name=name)
    return str(value)


def _table(value: object, name: str) -> dict[str, object]:
    if isinstance(value, str):  # from the environment; the text may hold passwords: not shown
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ConfigError(f"""{name} is no JSON. Write a table as '{{"key": 1}}'.""") from None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ConfigError(f"{name} is no table. Write [{name}] in TOML, or a dict with text keys.")


_PARSERS: Final[dict[str, Callable[[object, str], object]]] = {
    "broker_url": _url,
    "transport_options": _table,
    "durability": _choice("publish", "full", "process"),
    "visibility_timeout": _positive_duration,
    "sweep_interval": _positive_duration,
    "max_message_bytes": _count,
    "retention_done": _duration,
    "retention_dead": _duration,
    "retention_audit": _duration,
    "signing_key": _key,
    "signing_keys_accepted": _keys,
    "signing_key_file": _key_file,
    "task_default_queue": _queue,
    "task_max_attempts": _count_or_none,
    "task_time_limit": _duration,
    "task_soft_time_limit": _duration,
    "worker_concurrency": _count,
    "worker_queues": _queues,
    "worker_queue_weights": _weights,
    "worker_prefetch_multiplier": _count,
    "worker_grace": _duration,
    "worker_max_jobs_per_child": _count_or_none,
    "worker_max_memory_per_child": _memory,
    "beat_max_interval": _positive_duration,
    "beat_producer_timeout": _positive_duration,
    "timezone": _zone_name,
    "beat": _table,
    "log_level": _choice("debug", "info", "warning", "error", "critical"),
    "log_format": _choice("auto", "console", "json"),
    "log_dir": _text,
    "app": _table,
}
if set(_PARSERS) != {each.name for each in fields(Settings)}:  # pragma: no cover
    raise AssertionError("a field of Settings without a parser, or the other way round")

_TABLES: Final = frozenset({"app", "beat", "transport_options"})


def _parsed(key: str, value: object, origin: str) -> object:
    """Check one value, and let an error say where it came from."""
    parser = _PARSERS.get(key)
    if parser is None:
        raise ConfigError(
            f"{quoted(key)} is no setting ({origin}).{did_you_mean(key, _PARSERS)}"
            " 'sqlqueue config show' lists all; an application's own go into the [app] table."
        )
    try:
        return parser(value, key)
    except ConfigError as error:
        raise ConfigError(f"{error} (from: {origin})") from None


def _take(
    values: dict[str, object], origins: dict[str, str], key: str, *, value: object, origin: str
) -> None:
    """Let one value win over what stood there; tables are merged key by key, not replaced."""
    origins[key] = origin
    if not isinstance(value, dict):
        values[key] = value
        return
    before = values.get(key)
    values[key] = {**before, **value} if isinstance(before, dict) else value
    origins.update({f"{key}.{name}": origin for name in value})


# --- the layers -----------------------------------------------------------------------------------


def _toml_layers(
    config_file: Path | None, environ: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    if config_file is None and environ.get("SQLQUEUE_CONFIG"):
        config_file = Path(environ["SQLQUEUE_CONFIG"])
    if config_file is not None:
        yield f"file {escaped(str(config_file))}", _read_toml(config_file)
        return
    for candidate in (Path("sqlqueue.toml"), Path("conf/sqlqueue.toml")):
        if candidate.is_file():
            yield f"file {candidate}", _read_toml(candidate)
            return


def _read_toml(path: Path) -> dict[str, object]:
    if sys.version_info >= (3, 11):  # late: most have no such file
        import tomllib  # noqa: PLC0415
    else:
        import tomli as tomllib  # noqa: PLC0415

    shown = quoted(str(path), limit=300)
    try:
        # Bytes, so that a file in another encoding is an error of ours and not of the locale.
        table: dict[str, object] = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(
            f"no settings file at {shown}. Check --config / SQLQUEUE_CONFIG."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {shown}: {error.strerror}. Make it a readable file."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} is not UTF-8. Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        why = escaped(str(error))
        raise ConfigError(f"{shown} is not valid TOML: {why}. Correct it there.") from None
    return table


_ENV: Final = "SQLQUEUE_"
# Read above, or options of the command line that are no settings. SQLQUEUE_APP is -A; the tables
# app and beat cannot be written whole into a variable for that reason, and for their size.
_ENV_NOT_FIELDS: Final = frozenset({"CONFIG", "APP", "BEAT"})


def _environment_layers(
    environ: Mapping[str, str],
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield one layer a variable, so that each error and each origin names its own."""
    of_fields = {key.upper() for key in _PARSERS} - _ENV_NOT_FIELDS
    for variable in sorted(environ):
        name = variable[len(_ENV) :]
        value = environ[variable]
        # An empty variable is how shells and compose files say "not set".
        if not variable.startswith(_ENV) or name in _ENV_NOT_FIELDS or not value:
            continue
        if name in of_fields:
            yield f"env {variable}", {name.lower(): value}
        elif name.startswith("APP_") and len(name) > 4:
            yield f"env {variable}", {"app": {name[4:].lower(): value}}
        elif name != "DB":
            _refuse_near_miss(name, of_fields)
    # Last: it overrides SQLQUEUE_BROKER_URL.
    if environ.get("SQLQUEUE_DB"):
        yield "env SQLQUEUE_DB", {"broker_url": database_url(environ["SQLQUEUE_DB"])}


def _refuse_near_miss(name: str, of_fields: set[str]) -> None:
    # 0.88 lets the command line's own names pass (SQLQUEUE_WORKER_VISIBILITY_TIMEOUT is 0.84 from a
    # field) and catches a letter lost, doubled or swapped in any field of ours.
    near = did_you_mean(name, of_fields, cutoff=0.88)
    if near:
        fields_name = near.split("'")[1]
        raise ConfigError(
            f"environment variable {quoted(_ENV + name)} is no setting."
            f" Did you mean '{_ENV}{fields_name}'? Rename it, or unset it."
        )


def _seconds_in(text: str) -> float:
    """Return the seconds a text means, NaN if it means none. A sign is read only to be refused."""
    match = _DURATION.fullmatch(text.removeprefix("-"))
    parts = {unit: part for unit, part in match.groupdict().items() if part} if match else {}
    if not parts:
        return math.nan
    seconds = math.fsum(float(part) * _UNITS_S.get(unit, 1.0) for unit, part in parts.items())
    return -1.0 if text.startswith("-") else seconds
