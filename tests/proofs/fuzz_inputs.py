"""What the fuzz proof feeds in: values made to hurt, and Celery's real messages, mutated.

Plain random bytes are refused by the first line of a parser. So most inputs here begin as something
valid, a message that Celery itself published or a settings file that works, and are then damaged in
one or two places with values that have broken queues before.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

# All can be named on a worker's command line, where commas part them.
QUEUES = ("fuzz", "a b;c", "ünïcode [bold] <script>")
TASK = "captured.task"  # known to the application under test; whatever it is given, it ends well
CONTENT_TYPES = (
    "application/json",
    "APPLICATION/JSON ",
    "application/x-python-serialize",
    "application/x-yaml",
    "application/data",
    "application/x-msgpack",
    "text/plain",
    "",
)
ENCODINGS = ("utf-8", "binary", "utf-16", "us-ascii", "base64", "idna", "no-such", "")


# -- values -------------------------------------------------------------------------------------------

NASTY_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "\r\nINJECTED: yes",
    "\x1b]0;title\x07\x1b[2J",
    "\u202egnp.exe",
    "\ud800",
    "\udfff\ud800",
    "<script>alert(1)</script>",
    "[bold red]x[/]",
    "=HYPERLINK(1)",
    "'; DROP TABLE message; --",
    "../../etc/passwd",
    "__import__('os').system('true')",
    "__class__",
    "{0.__class__}",
    "%s%n",
    "${HOME}",
    "x" * 256,
    "x" * 5_000,
    "ü" * 200,
    "NaN",
    "-1",
    "1e999",
    "9" * 5_000,
    "1970-01-01T00:00:00",
    "9999-12-31T23:59:59.999999-23:59",
    "0001-01-01T00:00:00+23:59",
    "2026-03-29T02:30:00",  # does not exist in Berlin
    "2026-11-22T05:11:07Z",
    "2026-W01-1",
)
NASTY_NUMBERS = (
    0,
    -1,
    1,
    9,
    10,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**400,
    10**5_000,
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    1e-320,
    1e308,
    0.1,
)


def _any_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy like `sampled_from`, which must be able to print what it samples from."""
    return st.integers(0, len(values) - 1).map(lambda at: values[at])


def nested(depth: int, *, key: str | None = None) -> Any:
    """Return lists in lists, or with `key` dictionaries, so deep."""
    found: Any = []
    for _ in range(depth):
        found = [found] if key is None else {key: found}
    return found


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


def _circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


TEXTS = st.sampled_from(NASTY_TEXTS) | st.text(max_size=40)
NUMBERS = _any_of(NASTY_NUMBERS) | st.integers() | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | st.binary(max_size=20)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)
MOMENTS = st.sampled_from(
    [
        datetime(1970, 1, 1, tzinfo=timezone.utc),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, timezone(-timedelta(hours=23))),
        datetime(2026, 1, 1),  # noqa: DTZ001 - naive on purpose
        datetime(2027, 3, 28, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),  # in the gap
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        date(2026, 1, 1),
        timedelta(days=999_999_999),
    ]
)
# Python objects that only a caller in the same process can hand over.
OBJECTS = _any_of(
    [
        *(object(), {1, 2}, b"\xff", {1: 2}, 1j, _circle(), _Unprintable(), range(3)),
        *(nested(100), nested(100_000), nested(5_000, key="a")),
    ]
)
ANYTHING = TREES | MOMENTS | OBJECTS


# -- messages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """Be a message as a program would publish it; `raw` goes around every check but the store's own."""

    headers: Any
    body: bytes
    content_type: str | None = "application/json"
    content_encoding: str | None = "utf-8"
    properties: dict[str, Any] = field(default_factory=dict)
    queue: str = QUEUES[0]
    raw: bool = False
    headers_text: str | None = None  # of a raw one: instead of its headers


@cache
def celery_messages() -> tuple[Wire, ...]:
    """Return what the installed Celery publishes for many kinds of calls, before anybody decodes it."""
    from celery import Celery, chain, chord, group

    app = Celery("captured", broker="memory://", backend="cache+memory://")
    app.conf.update(task_default_queue="captured", broker_transport_options={"polling_interval": 1})

    @app.task(name=TASK, typing=False)
    def task(*_: Any, **__: Any) -> None:
        pass

    found = []
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        app.amqp.queues["captured"](channel).declare()
        args, kwargs = ("job-1.txt", 7, 1.5, None, True, {"deep": ["ä", 2]}), {"colour": "grün"}
        calls: list[Any] = [
            lambda: task.apply_async(args, kwargs),
            lambda: task.apply_async((), {}, countdown=90, expires=3600, priority=7),
            lambda: task.apply_async(args, kwargs, time_limit=30, soft_time_limit=20.5),
            lambda: task.apply_async(args, {}, compression="gzip"),
            lambda: task.apply_async(args, {}, serializer="pickle"),
            lambda: task.apply_async(args, {}, link=task.s(1), link_error=task.s(2)),
            lambda: task.apply_async(args, {}, headers={"mine": "yes"}, ignore_result=True),
            lambda: task.apply_async(args, {}, task_id="not a uuid", shadow="other", retries=3),
            lambda: chain(task.s(1), task.s(2)).apply_async(),
            lambda: group(task.s(1), task.s(2)).apply_async(),
            lambda: chord([task.s(1), task.s(2)], task.s()).apply_async(),
        ]
        for call in calls:
            call()
            while channel._size("captured"):
                message = channel._get("captured")
                headers = message["headers"]
                headers["origin"] = "gen1@host"
                properties = {
                    name: message["properties"][name]
                    for name in ("correlation_id", "reply_to", "delivery_mode", "priority")
                }
                body = base64.b64decode(message["body"])
                kind, encoding = message["content-type"], message["content-encoding"]
                found.append(Wire(headers, body, kind, encoding, properties))
    app.close()
    return tuple(found)


_BOMBS = (
    b"",
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"[[" + b"1" * 5_000 + b"],{},{}]",
    b"[[NaN],{},{}]",
    b'[[],{"a":1,"a":2},{}]',
    b'[["\\ud800"],{},{}]',
    b'[["\xff\xfe"],{},{}]',
    b'[[{"__type__":"decimal","__value__":"1e1000000000"}],{},{}]',
    b'[[{"__type__":"bytes","__value__":{"a":[]}}],{},{}]',
    b"[[],{}," + b" " * 1_048_577 + b"{}]",
    b"cos\nsystem\n(S'true'\ntR.",
    b"!!python/object/apply:os.system ['true']",
)


def _damaged_bytes(body: bytes) -> st.SearchStrategy[bytes]:
    at = st.integers(0, max(len(body) - 1, 0))
    return st.one_of(
        at.map(lambda i: body[:i]),
        st.tuples(at, st.integers(0, 255)).map(
            lambda p: body[: p[0]] + bytes([p[1]]) + body[p[0] + 1 :]
        ),
        st.tuples(
            at, st.sampled_from([b"[" * 200, b"NaN", b'"\\ud800"', b"\0", b"1e999", b","])
        ).map(lambda p: body[: p[0]] + p[1] + body[p[0] :]),
        st.tuples(at, at).map(lambda p: body[: p[0]] + body[p[1] :]),
    )


@st.composite
def _bodies(draw: st.DrawFn, body: bytes) -> bytes:
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.sampled_from(_BOMBS) | st.binary(max_size=60))
    if kind == 1:
        return draw(_damaged_bytes(body))
    if kind == 2:
        whole = [draw(st.lists(TREES, max_size=3)), draw(st.dictionaries(TEXTS, TREES, max_size=3))]
        embed = draw(st.just({}) | st.fixed_dictionaries({"chain": TREES}) | TREES)
        return _as_json([*whole, embed])
    return body


def _as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, default=lambda _: None).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):  # an integer too long for Python; keys that are no text
        return b"[[" + b"9" * 5_000 + b"],{},{}]"


@st.composite
def _header_changes(draw: st.DrawFn, headers: Any) -> Any:
    changed = dict(headers)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*headers, "compression", "x-death", "x-delay"]) | TEXTS)
        if draw(st.booleans()):
            changed.pop(name, None)
        else:
            changed[name] = draw(ANYTHING)
    if draw(st.integers(0, 15)) == 0:
        changed |= {f"h{number}": number for number in range(10_000)}
    return changed


_PROPERTIES = (
    *("priority", "expiration", "delivery_mode", "correlation_id", "reply_to", "message_id"),
    *("timestamp", "type", "user_id", "app_id", "sqlqueue_job_id", "sqlqueue_max_attempts"),
)


@st.composite
def wires(draw: st.DrawFn) -> Wire:
    """Draw a message of Celery's, damaged or not."""
    wire = draw(st.sampled_from(celery_messages()))
    if draw(st.integers(0, 9)) == 0:  # a second copy of the same id with another body is allowed
        return replace(wire, queue=draw(st.sampled_from(QUEUES)))
    properties = dict(wire.properties)
    for _ in range(draw(st.integers(0, 1))):
        properties[draw(st.sampled_from(_PROPERTIES))] = draw(ANYTHING)
    raw = draw(st.booleans())
    return Wire(
        headers=draw(_header_changes(wire.headers)),
        body=draw(_bodies(wire.body)),
        content_type=draw(st.just(wire.content_type) | st.sampled_from(CONTENT_TYPES)),
        content_encoding=draw(st.just(wire.content_encoding) | st.sampled_from(ENCODINGS)),
        properties=properties,
        queue=draw(st.sampled_from(QUEUES)),
        raw=raw,
        headers_text=draw(_headers_texts(wire.headers)) if raw else None,
    )


def _headers_texts(headers: Any) -> st.SearchStrategy[str]:
    """Return headers as only somebody who writes the file himself can store them."""
    good = json.dumps(headers)
    bombs = ("", "null", "[]", "7", '"text"', "[" * 100_000, '{"a":' * 5_000, '{"task":1,"task":2}')
    more = (
        f'{good[:-1]},"eta":NaN}}',
        f'{good[:-1]},"n":{"9" * 5_000}}}',
        f'{good[:-1]},"t":"\\ud800"}}',
        f'{good[:-1]},"deep":{"[" * 990}{"]" * 990}}}',
    )
    damaged = _damaged_bytes(good.encode()).map(lambda data: data.decode("utf-8", "replace"))
    return st.just(good) | st.sampled_from(bombs + more) | damaged


# -- calls, names and settings ----------------------------------------------------------------------------

CALL_OPTIONS = st.dictionaries(
    st.sampled_from(
        [
            *("countdown", "eta", "expires", "priority", "queue", "job_id"),
            *("time_limit", "soft_time_limit", "retries", "prio"),
        ]
    ),
    ANYTHING,
    max_size=3,
)
CALLS = st.tuples(
    st.just(TASK) | TEXTS | ANYTHING,
    st.lists(TREES, max_size=3) | ANYTHING,
    st.dictionaries(st.text("abc", min_size=1), TREES, max_size=3) | ANYTHING,
    CALL_OPTIONS,
)
NAMES = TEXTS | st.sampled_from(["q", "e", "a.b.c", "#", "*.#.*", "." * 100, "q"]) | ANYTHING
QUEUE_ARGUMENTS = st.dictionaries(
    st.sampled_from(
        [
            *("x-message-ttl", "x-expires", "x-max-length", "x-max-priority", "x-overflow"),
            *("x-dead-letter-exchange", "x-dead-letter-routing-key", "x-other"),
        ]
    ),
    ANYTHING,
    max_size=2,
)
TOPOLOGY = st.lists(
    st.tuples(
        st.sampled_from(
            ["queue", "exchange", "bind", "unbind", "publish", "get", "purge", "delete"]
        ),
        NAMES,
        NAMES,
        st.sampled_from(["direct", "topic", "fanout", "headers", ""]) | NAMES,
        QUEUE_ARGUMENTS,
    ),
    max_size=6,
)
_TOML_VALUES = (
    *("1", "-1", "nan", "inf", "9223372036854775808", "1e400", "true", "''", '"x"', "[]", "{}"),
    *("1979-05-27T07:32:00Z", "1979-05-27T07:32:00", "1979-05-27", "07:32:00", '"\\u0000"'),
    *('"10m"', '"-5s"', '"1h30m"', '"5 0 * * *"', '"* * * * *"', '"60 24 32 13 8"', "[[[[[]]]]]"),
    *("[" * 3_000 + "]" * 3_000, '"' + "x" * 5_000 + '"', "9" * 5_000, "'\u202e'", '["a", "b"]'),
    *('"Europe/Berlin"', '"../../etc/passwd"', '"9999-12-31T23:59:59Z"', "'sqlqueue:///q.db'"),
)
_TOML_KEYS = (
    *("broker_url", "transport_options", "durability", "visibility_timeout", "sweep_interval"),
    *("max_message_bytes", "retention_done", "task_default_queue", "task_max_attempts"),
    *("task_time_limit", "task_soft_time_limit", "worker_concurrency", "worker_queues"),
    *("worker_queue_weights", "worker_grace", "beat_max_interval", "timezone", "log_level"),
    *("log_format", "log_dir", "broker_ulr", "worker_max_memory_per_child"),
)
_ENTRY_KEYS = (
    *("task", "args", "kwargs", "queue", "priority", "expires", "every", "cron", "at", "timezone"),
    *("catch_up", "catch_up_limit", "jitter", "overlap", "evry"),
)


@st.composite
def toml(draw: st.DrawFn) -> bytes:
    """Draw a settings file: a few keys with odd values, a few schedule entries, or rubbish."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.binary(max_size=60)
            | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
        )
    values = st.sampled_from(_TOML_VALUES)
    lines = [
        f"{key} = {draw(values)}"
        for key in draw(st.lists(st.sampled_from(_TOML_KEYS), max_size=2, unique=True))
    ]
    if draw(st.booleans()):
        name = draw(st.sampled_from(["tick", '"a b"', '"\\u202e"', '""', '"<b>"']))
        lines += [f"[beat.{name}]", 'task = "captured.task"'] * draw(st.integers(0, 1))
        if lines and lines[-1].startswith("task"):
            lines += [
                f"{key} = {draw(values)}"
                for key in draw(st.lists(st.sampled_from(_ENTRY_KEYS[1:]), max_size=3, unique=True))
            ]
    return "\n".join(lines).encode()


ENVIRONMENTS = st.dictionaries(
    st.sampled_from([f"SQLQUEUE_{key.upper()}" for key in _TOML_KEYS])
    | st.sampled_from(["SQLQUEUE_DB", "SQLQUEUE_APP_X", "SQLQUEUE_NONE", "SQLQUEUE_BEAT"]),
    TEXTS | st.sampled_from(["5", "10m", "a,b", "{}", '{"a":1}', "[" * 3_000]),
    max_size=3,
)
CODE = st.dictionaries(st.sampled_from(_TOML_KEYS) | TEXTS, ANYTHING, max_size=2)
URLS = st.one_of(
    TEXTS,
    st.tuples(
        TEXTS,
        st.sampled_from(["", "?", "?visibility_timeout=", "?create=0&", "?durability="]),
        TEXTS,
    ).map("".join),
    st.sampled_from(
        ["%00", "%ff", "%2e%2e%2f", "a%3Fb.db", "dir/", "q.db#x", "q.db;sqlqueue:///r.db"]
    ),
)
TRANSPORT_OPTIONS = st.dictionaries(
    st.sampled_from(
        [
            *("visibility_timeout", "durability", "hold_eta", "create", "read_only", "keep_leases"),
            *("max_prefetch", "max_deliveries", "retention_done", "visibility_timout", "other"),
        ]
    ),
    ANYTHING,
    max_size=2,
)
# For the command line and the consoles: text, as a shell or an address bar can hold it.
WORDS = st.one_of(
    TEXTS.map(lambda text: text.replace("\0", "")),
    st.sampled_from(
        [
            *("#1", "#99999999999999999999", "#-1", "permanently_failed", "stalled,done", "1h ago"),
            *(
                "9999-12-31T23:59:59-23:59",
                "0001-01-01",
                "FAILURE",
                "fuzz",
                "-",
                "--",
                "10m",
                "[1]",
            ),
            *('{"a":1}', "0", "-5", "1e9", "999999999999999999", "json", "text", "csv"),
        ]
    ),
)
QUERIES = st.dictionaries(
    st.sampled_from(
        [
            *("state", "queue", "task", "worker", "error", "search", "within", "since", "until"),
            *("id", "window", "cursor"),
        ]
    ),
    WORDS,
    max_size=4,
)
