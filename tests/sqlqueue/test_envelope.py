import contextlib
import enum
import json
import math
import os
import pickle
import time
import uuid
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from freezegun import freeze_time
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqlqueue import errors
from sqlqueue.envelope import (
    CONTENT_ENCODING,
    CONTENT_TYPE,
    Call,
    build,
    dump_result,
    new_job_id,
    parse,
)
from sqlqueue.errors import (
    EnvelopeError,
    UndecodableMessage,
    UnserializableArguments,
    UnserializableResult,
)
from sqlqueue.plain_json import MAX_DEPTH, MAX_INTEGER_DIGITS

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "celery_v2.json").read_text())
CELERYS = FIXTURE["messages"]
HEADERS = {"task": "a.b", "id": "1"}
EMBED = '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'


def ms(iso):
    return round(datetime.fromisoformat(iso).timestamp() * 1000)


def read(body='[[],{},{"chain":null}]', headers=None, **options):
    return parse({**HEADERS, **(headers or {})}, body, **options)


# --- beside Celery's own --------------------------------------------------------------------------


def ours_like(celerys):
    call = celerys["called_with"]
    options = call["options"]
    published_ms = ms(FIXTURE["published_at"])
    return build(
        "captured.task",
        tuple(call["args"]),
        call["kwargs"],
        job_id=celerys["headers"]["id"],
        eta_ms=published_ms + options["countdown"] * 1000 if "countdown" in options else None,
        expires_ms=published_ms + options["expires"] * 1000 if "expires" in options else None,
        time_limit_s=options.get("time_limit"),
        soft_time_limit_s=options.get("soft_time_limit"),
    )


@pytest.mark.parametrize("name", CELERYS)
def test_headers_have_the_names_types_and_values_of_celerys(name):
    celerys = CELERYS[name]["headers"]
    ours = ours_like(CELERYS[name]).headers
    assert ours.keys() == celerys.keys()
    for header, value in celerys.items():
        assert type(ours[header]) is type(value), header
        if header != "origin":  # pid and host
            assert ours[header] == value, header
    assert ours["origin"].startswith(f"gen{os.getpid()}@")


@pytest.mark.parametrize("name", CELERYS)
def test_body_and_properties_are_celerys_too(name):
    celerys = CELERYS[name]
    ours = ours_like(celerys)
    assert json.loads(ours.body) == json.loads(celerys["body"])
    assert (
        celerys["content_type"],
        celerys["content_encoding"],
    ) == (CONTENT_TYPE, CONTENT_ENCODING)
    assert ours.properties["correlation_id"] == celerys["properties"]["correlation_id"]
    assert type(ours.properties["reply_to"]) is type(celerys["properties"]["reply_to"])


@pytest.mark.parametrize("name", CELERYS)
def test_celerys_message_is_read_as_the_call_it_was(name):
    celerys = CELERYS[name]
    call = parse(
        celerys["headers"],
        celerys["body"].encode(),
        content_type=celerys["content_type"],
        content_encoding=celerys["content_encoding"],
    )
    assert call.task == "captured.task"
    assert call.id == call.root_id == celerys["headers"]["id"]
    assert call.args == tuple(celerys["called_with"]["args"])
    assert call.kwargs == celerys["called_with"]["kwargs"]
    options = celerys["called_with"]["options"]
    published_ms = ms(FIXTURE["published_at"])
    assert call.eta_ms == (published_ms + 90_000 if "countdown" in options else None)
    assert call.expires_ms == (published_ms + 3_600_000 if "expires" in options else None)
    assert call.time_limit_s == options.get("time_limit")
    assert call.soft_time_limit_s == options.get("soft_time_limit")


# --- there and back -------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.lists(PLAIN, max_size=4), st.dictionaries(st.text("abc_", min_size=1), PLAIN, max_size=4))
def test_what_is_written_is_read_back_as_it_was(args, kwargs):
    envelope = build("a.b", args, kwargs, job_id="7", eta_ms=-1, expires_ms=253_402_300_799_999)
    call = parse(envelope.headers, envelope.body.encode())
    assert call == Call(
        task="a.b",
        id="7",
        args=tuple(args),
        kwargs=kwargs,
        retries=0,
        eta_ms=-1,
        expires_ms=253_402_300_799_999,
        root_id="7",
        parent_id=None,
        time_limit_s=None,
        soft_time_limit_s=None,
    )


def test_a_family_of_jobs_keeps_its_root_and_parent():
    envelope = build("a.b", (), {}, job_id="3", root_id="1", parent_id="2", retries=4)
    call = parse(envelope.headers, envelope.body.encode())
    assert (call.root_id, call.parent_id, call.retries) == ("1", "2", 4)


def test_the_deepest_value_that_is_written_is_read_and_one_more_is_not_written():
    def nested(brackets):
        value = 1
        for _ in range(brackets):
            value = [value]
        return value

    envelope = build("a.b", [nested(MAX_DEPTH - 2)], {}, job_id="1")
    assert parse(envelope.headers, envelope.body.encode()).args == (nested(MAX_DEPTH - 2),)
    with pytest.raises(UnserializableArguments, match="nested more than"):
        build("a.b", [nested(MAX_DEPTH - 1)], {}, job_id="1")


def test_the_longest_integer_that_is_written_is_read_and_one_more_digit_is_not_written():
    for longest in (10**MAX_INTEGER_DIGITS - 1, -(10**MAX_INTEGER_DIGITS) + 1):
        envelope = build("a.b", [longest], {}, job_id="1")
        assert parse(envelope.headers, envelope.body.encode()).args == (longest,)
    with pytest.raises(UnserializableArguments, match=r"args\[0\] has more than 4300 digits"):
        build("a.b", [10**MAX_INTEGER_DIGITS], {}, job_id="1")


def test_the_largest_body_that_is_written_is_read_and_one_more_byte_is_not_written():
    overhead = len(build("a.b", [""], {}, job_id="1", max_bytes=200).body)
    envelope = build("a.b", ["x" * (200 - overhead)], {}, job_id="1", max_bytes=200)
    assert len(envelope.body) == 200
    parse(envelope.headers, envelope.body.encode(), max_bytes=200)
    with pytest.raises(EnvelopeError, match="200 bytes") as caught:
        build("a.b", ["x" * (201 - overhead)], {}, job_id="1", max_bytes=200)
    assert not isinstance(caught.value, TypeError)


def test_text_beyond_ascii_and_a_tagged_dictionary_travel_as_they_are():
    args = ["grün 😀 \u2028 \x00", {"__type__": "decimal", "__value__": "1e9"}]
    envelope = build("a.b", args, {}, job_id="1")
    assert parse(envelope.headers, envelope.body.encode()).args == tuple(args)


# --- ids ------------------------------------------------------------------------------------------


def test_job_ids_are_uuids_of_version_7_that_tell_their_time():
    with freeze_time("2026-11-22T05:11:07Z"):
        job_id = new_job_id()
    parsed = uuid.UUID(job_id)
    assert str(parsed) == job_id
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == ms("2026-11-22T05:11:07+00:00")


def test_job_ids_sort_by_time_and_never_repeat():
    ids = []
    with freeze_time("2026-11-22T05:11:07Z") as now:
        for _ in range(500):
            ids.append(new_job_id())
            now.tick(0.000_001)
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_a_clock_before_1970_still_yields_an_id():
    with freeze_time("1960-01-01"):
        assert uuid.UUID(new_job_id()).version == 7


# --- what is not written --------------------------------------------------------------------------


class _Colour(enum.Enum):
    RED = 1


class _Evil(dict):
    def items(self):
        raise OSError("boom")


class _Loud(str):
    __slots__ = ()

    def __repr__(self):
        raise OSError("boom")


def cyclic():
    value = []
    value.extend([value, value])
    return value


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (datetime(2026, 1, 1, tzinfo=timezone.utc), r"args\[0\] is a datetime"),
        (Decimal(1), r"args\[0\] is a Decimal"),
        ({"a": [1, {2}]}, r"args\[0\]\['a'\]\[1\] is a set"),
        (b"bytes", r"args\[0\] is a bytes"),
        (_Colour.RED, r"args\[0\] is a _Colour"),
        (object(), r"args\[0\] is a object"),
        (math.nan, r"args\[0\] is nan"),
        (-math.inf, r"args\[0\] is -inf"),
        ({1: 2}, r"args\[0\] has a key that is no text"),
        ({None: 2}, "a key that is no text"),
        ("\ud83d", "half a surrogate pair"),
        ({"\ud83d": 1}, "half a surrogate pair"),
        (cyclic(), "contains itself"),
        (_Evil(a=1), "cannot be|OSError"),
    ],
)
def test_arguments_that_json_would_lose_or_change_fail_at_the_call(bad, reason):
    with pytest.raises(UnserializableArguments, match=f"call of a.b: .*({reason})"):
        build("a.b", [bad], {}, job_id="1")
    with pytest.raises(TypeError):
        build("a.b", [], {"x": bad}, job_id="1")
    with pytest.raises(UnserializableResult):
        dump_result(bad)


def test_a_value_walked_more_often_than_memory_has_bytes_is_just_too_large():
    value = []
    for _ in range(50):
        value = [value, value]
    with pytest.raises(EnvelopeError, match="more than 1,048,576 values"):
        build("a.b", [value], {}, job_id="1")


def test_arguments_of_the_wrong_shape_are_refused():
    with pytest.raises(UnserializableArguments, match="Pass a list"):
        build("a.b", "text", {}, job_id="1")
    with pytest.raises(UnserializableArguments, match="Pass a list"):
        build("a.b", [], [("a", 1)], job_id="1")


def test_subclasses_with_a_will_of_their_own_do_not_break_the_call():
    envelope = build("a.b", [_Loud("x")], {}, job_id="1")
    assert json.loads(envelope.body)[0] == ["x"]
    assert envelope.headers["argsrepr"] == "..."


def test_what_monitors_are_shown_of_large_arguments_is_short():
    headers = build("a.b", ["x" * 500_000], {"k": list(range(10_000))}, job_id="1").headers
    assert len(headers["argsrepr"]) <= 1024
    assert len(headers["kwargsrepr"]) <= 1024


@pytest.mark.parametrize(
    "bad", ["", " ", "x" * 256, "a\x1b[2J", "a\nb", "\u202eb", "\ud800", None, 7]
)
def test_names_and_ids_that_cannot_be_shown_are_refused(bad):
    with pytest.raises(EnvelopeError, match="is no task name"):
        build(bad, [], {}, job_id="1")
    with pytest.raises(EnvelopeError, match="is no job id"):
        build("a.b", [], {}, job_id=bad)


@pytest.mark.parametrize("bad", [2**63, -(2**63), math.nan, math.inf, "soon"])
def test_times_beyond_the_calendar_are_refused(bad):
    with pytest.raises(EnvelopeError, match="eta is"):
        build("a.b", [], {}, job_id="1", eta_ms=bad)
    with pytest.raises(EnvelopeError, match="expires is"):
        build("a.b", [], {}, job_id="1", expires_ms=bad)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "30", True, 10**400])
def test_limits_that_are_no_time_are_refused(bad):
    with pytest.raises(EnvelopeError, match="time_limit = "):
        build("a.b", [], {}, job_id="1", time_limit_s=bad)


def test_no_limit_is_written_as_none():
    assert build("a.b", [], {}, job_id="1", time_limit_s=0).headers["timelimit"] == [None, None]


def test_a_result_is_written_as_compact_json():
    assert dump_result({"a": (1, None, "ü")}) == '{"a":[1,null,"ü"]}'
    assert dump_result(None) == "null"
    with pytest.raises(UnserializableResult, match="keep large data in a file"):
        dump_result("x" * 1_048_577)


# --- what is not read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b"\xff", "is not UTF-8"),
        ("\ud800", "is not UTF-8"),
        (b"\xef\xbb\xbf[[],{},{}]", "is not JSON"),
        (b"[[],{},{}", "is not JSON"),
        (b"[[],{},{}] ", None),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 deep"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"[[" + b"1" * 5000 + b"],{},{}]", "an integer of 5,000 digits"),
        (b"[[-" + b"1" * 4301 + b"],{},{}]", "an integer of 4,301 digits"),
        (b"[[NaN],{},{}]", "has NaN"),
        (b"[[Infinity],{},{}]", "has Infinity"),
        (b"[[-Infinity],{},{}]", "has -Infinity"),
        (b"[[1e999],{},{}]", "beyond all floats"),
        (b'[[],{"a":1,"a":1},{}]', "the same key twice"),
        (b'[["\\ud83d"],{},{}]', "half a surrogate pair"),
        (b'[[],{"\\uDE00":1},{}]', "half a surrogate pair"),
        (b'[["\\ud83d\\ude00"],{},{}]', None),
        (b'[["' + b"[" * 100 + b'"],{},{}]', None),
        (b'[["\\"' + b"[" * 100 + b'"],{},{}]', None),
        (b"{}", "is not .args, kwargs, embed."),
        (b'{"task":"a.b","id":"1","args":[]}', "is not .args, kwargs, embed."),
        (b"[[],{}]", "is not .args, kwargs, embed."),
        (b"[[],{},{},{}]", "is not .args, kwargs, embed."),
        (b"[{},{},{}]", "args are no list"),
        (b"[[],[],{}]", "kwargs no object"),
        (b"[[],{},[]]", "no object"),
        (b"null", "is not .args, kwargs, embed."),
        (b'[[],{},{"chain":[{"task":"c.d"}]}]', "asks for chain"),
        (b'[[],{},{"chord":{},"errbacks":[1],"callbacks":[1]}]', "asks for callbacks and errbacks"),
        (pickle.dumps([[], {}, {}]), "is not"),
        (None, "no body"),
        ({"a": 1}, "no body"),
        (b"[[],{},{}]" + b" " * 1_048_567, "its body is 1,048,577 bytes; the limit is 1,048,576"),
        (b"[[],{},{}]" + b" " * 1_048_566, None),
        (bytearray(b"[[],{},{}]"), None),
        pytest.param(memoryview(b"[[],{},{}]"), None, id="a memoryview"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_is_read_within_bounds_or_refused_with_a_reason(body, reason):
    if reason is None:
        assert read(body).task == "a.b"
    else:
        with pytest.raises(UndecodableMessage, match=reason) as caught:
            read(body)
        assert caught.value.reason == str(caught.value)
        assert len(caught.value.reason) < 200


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"task": None}, "no 'task' header"),
        ({"task": 7}, "is no task name"),
        ({"task": ""}, "is no task name"),
        ({"task": "x" * 300}, "is no task name"),
        ({"task": "a\r\nb"}, "is no task name"),
        ({"id": None}, "is no job id"),
        ({"id": ["1"]}, "is no job id"),
        ({"id": "\ud800"}, "is no job id"),
        ({"root_id": 5}, "root_id header 5 is no job id"),
        ({"parent_id": ""}, "parent_id header '' is no job id"),
        ({"compression": "application/x-gzip"}, "compressed"),
        ({"retries": -1}, "is no count"),
        ({"retries": "1"}, "is no count"),
        ({"retries": True}, "is no count"),
        ({"retries": 2**63}, "is no count"),
        ({"eta": 1_795_324_267}, "eta header 1795324267 is no ISO 8601 time"),
        ({"eta": "soon"}, "eta header 'soon'"),
        ({"eta": ""}, "eta header ''"),
        ({"eta": "2026-02-30T00:00:00"}, "is no ISO 8601 time"),
        ({"eta": "2026-01-01T00:00:00" + "0" * 1000}, "is no ISO 8601 time"),
        ({"expires": math.nan}, "expires header nan"),
        ({"timelimit": 5}, "timelimit header 5"),
        ({"timelimit": [1]}, "timelimit header"),
        ({"timelimit": [-1, None]}, "timelimit header"),
        ({"timelimit": [math.nan, None]}, "timelimit header"),
        ({"timelimit": [10**400, None]}, "timelimit header"),
        ({"timelimit": [True, None]}, "timelimit header"),
        ({str(n): n for n in range(10_000)}, "10002 headers"),
        ({"task": "__import__('os')", "id": "../../etc/passwd"}, None),
        ({"task": "'; DROP TABLE message; --"}, None),
        ({"retries": None, "timelimit": None, "root_id": None, "unknown": object()}, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_headers_are_read_or_refused_with_a_reason(headers, reason):
    if reason is None:
        read(headers=headers)
    else:
        with pytest.raises(UndecodableMessage, match=reason):
            read(headers=headers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T05:11:07.123+00:00", "2026-11-22T05:11:07.123+00:00"),
        ("2026-11-22T05:11:07Z", "2026-11-22T05:11:07+00:00"),
        ("2026-11-22T05:11:07.123456", "2026-11-22T05:11:07.123+00:00"),
        ("2026-11-22T05:11:07+05:30", "2026-11-21T23:41:07+00:00"),
        ("1970-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"),
    ],
)
def test_times_are_read_to_the_millisecond_and_naive_ones_as_utc(text, expected):
    assert read(headers={"eta": text}).eta_ms == ms(expected)


def test_times_at_the_calendars_ends_are_read():
    assert read(headers={"eta": "9999-12-31T23:59:59-12:00"}).eta_ms > 253_402_300_799_000
    assert read(headers={"eta": "0001-01-01T00:00:00+12:00"}).eta_ms < 0


@pytest.mark.parametrize(
    "content_type",
    ["application/x-python-serialize", "application/x-yaml", "", None, "application/json; x", 5],
)
def test_only_json_is_read(content_type):
    with pytest.raises(UndecodableMessage, match="content type"):
        read(content_type=content_type)


@pytest.mark.parametrize("content_encoding", ["binary", "utf-16", "base64", "", 5, b""])
def test_only_utf_8_is_read(content_encoding):
    with pytest.raises(UndecodableMessage, match="encoding"):
        read(content_encoding=content_encoding)
    read(content_type="Application/JSON", content_encoding="UTF-8")
    read(content_encoding=None)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from([*CELERYS["delay"]["headers"], "compression"])
JSONISH = st.text('[]{}",:0123456789.eE+-\\ud8ntrfalsNI ').map(lambda text: f"[[{text}],{{}},{{}}]")


@settings(max_examples=400, deadline=None)
@given(
    ANYTHING | st.dictionaries(NAMES, ANYTHING).map(lambda more: {**HEADERS, **more}),
    st.binary() | ANYTHING | JSONISH | st.lists(ANYTHING, max_size=4).map(repr),
    st.just(CONTENT_TYPE) | ANYTHING,
    st.just(CONTENT_ENCODING) | ANYTHING,
)
@example(HEADERS, b'"' + b"\\", CONTENT_TYPE, CONTENT_ENCODING)
@example(HEADERS, b"[" * 65 + b'"\\', CONTENT_TYPE, CONTENT_ENCODING)
def test_reading_anything_ends_in_a_call_or_in_undecodable(headers, body, content_type, encoding):
    try:
        call = parse(headers, body, content_type=content_type, content_encoding=encoding)
    except UndecodableMessage as error:
        error.reason.encode()
    else:
        # Whatever was read can be passed on.
        build(call.task, call.args, call.kwargs, job_id=call.id)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_writing_anything_ends_in_json_or_in_unserializable(value):
    try:
        text = dump_result(value)
    except UnserializableResult:
        return
    json.loads(text)


@pytest.mark.parametrize(
    "body",
    [
        b'["' + b'\\"' * 500_000,
        b"[" * 65 + b'"",' * 300_000,
        b"[]," * 349_000,
        b"[[" + b"1," * 500_000 + b"1],{},{}]",
        b'[["' + b"\\u00e4" * 170_000 + b'"],{},{}]',
        b'[["' + b"\\ud83d\\ude00" * 80_000 + b'"],{},{}]',
    ],
    ids=["unclosed", "strings", "brackets", "integers", "escapes", "pairs"],
)
def test_a_megabyte_made_to_be_slow_is_read_or_refused_in_a_second_or_two(body):
    before_s = time.perf_counter()
    with contextlib.suppress(UndecodableMessage):
        read(body)
    assert time.perf_counter() - before_s < 5


# --- the errors themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        errors.UndecodableMessage("why"),
        errors.UnserializableArguments("why"),
        errors.UnknownTask("a.b"),
        errors.NotAvailable("cancel"),
        errors.JobNotFound("1"),
        errors.JobFailed("1", "ValueError", error_message="no", traceback="Traceback …"),
        errors.ResultTimeout("late"),
        errors.Retry(3.0, "later"),
        errors.Reject("bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling_with_text_and_data(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_every_error_is_in_the_one_tree():
    for name in errors.__all__:
        # Those that a task must not catch by the way stand beside it.
        beside = name in {"JobCancelled", "TimeLimitExceeded"}
        assert issubclass(getattr(errors, name), BaseException if beside else errors.SqlQueueError)
        assert name in errors.__doc__
