"""JSON that reads back as what was written, within bounds; arguments and results are stored as it.

Used by `envelope.py` on both ways of a message. Whoever can publish chooses the text that is read
here, so size, depth, digits and duplicate keys are bounded before anything is run; and nothing is
written that would not be read again. No type is ever revived: what comes out is made of dict, list,
str, int, float, bool and None.

The errors are private to the package. Their texts are the second half of a sentence, which the
caller begins ("its body …", "call of add: …").
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from sqlqueue.text import escaped, quoted

if TYPE_CHECKING:
    from typing import TypeAlias

    # Where a value stands inside another: (the trail of its container, its key there).
    _Trail: TypeAlias = "tuple[_Trail, str | int] | None"

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_INTEGER_DIGITS",
    "TooLarge",
    "Unreadable",
    "Unwritable",
    "read",
    "write",
]

MAX_BYTES: Final = 1_048_576
MAX_DEPTH: Final = 64  # brackets inside brackets
MAX_INTEGER_DIGITS: Final = 4300  # what Python itself reads by default, and calls an attack above


class Unwritable(Exception):
    """JSON would lose or change this value, or not read it back."""


class TooLarge(Unwritable):
    """The value could be written, were it smaller."""


class Unreadable(Exception):
    """A text that is not JSON, or more of it than we take."""


def write(value: object, *, where: str, depth: int = 0, max_bytes: int = MAX_BYTES) -> str:
    """Return the value as compact JSON text.

    `where` is what an error calls the value; `depth` is how many brackets will be put around the
    text. Tuples become lists, as everywhere. Raises Unwritable; TooLarge above `max_bytes` of UTF-8.
    """
    if (empty := _EMPTY.get(type(value))) and not value:
        return empty
    try:
        _refuse_what_json_changes(value, where=where, depth=depth, max_bytes=max_bytes)
        text = _ENCODER.encode(value)
        size = len(text.encode())
    except Unwritable:
        raise
    except UnicodeEncodeError:
        raise Unwritable(f"{where} has text with half a surrogate pair in it") from None
    except Exception as error:  # noqa: BLE001
        # What only an odd subclass can do: its items() raises anything, it changes while it is read.
        raise Unwritable(f"{where} cannot be written as JSON ({type(error).__name__})") from None
    if size > max_bytes:
        raise TooLarge(f"{where} is {size:,} bytes, above {max_bytes:,}")
    return text


def read(body: bytes) -> object:
    """Return what JSON text in UTF-8 means. The caller has checked its length.

    Raises Unreadable and nothing else, and never quotes the text.
    """
    if not body:
        raise Unreadable("is empty")
    _refuse_deep(body)
    try:
        text = body.decode()
        value: object = _DECODER.decode(text)
        if _HALF_PAIR.search(text):  # "\ud83d\ude00" is a face, "\ud83d" alone is no character
            _ENCODER.encode(value).encode()
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    except UnicodeEncodeError:
        raise Unreadable("has text with half a surrogate pair in it") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON: {error}") from None
    except (ValueError, RecursionError):  # an application may have lowered Python's own limits
        raise Unreadable("is beyond the limits of this Python") from None
    return value


# --- writing --------------------------------------------------------------------------------------

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_EMPTY: Final[dict[type, str]] = {list: "[]", tuple: "[]", dict: "{}"}
_INTEGER_LIMIT: Final = 10**MAX_INTEGER_DIGITS


def _refuse_what_json_changes(value: object, *, where: str, depth: int, max_bytes: int) -> None:
    """Walk a value before the encoder does.

    json.dumps is too kind: it writes the key 1 as "1" (beside a "1" that was there already), NaN as
    something no other reader takes, and a deep value ends it in RecursionError, or in a crash where
    somebody has raised the recursion limit. So this walk uses no recursion. It also counts: every
    node is a byte of text at least, so that a value which contains itself twice, and would be
    walked 2^64 times, is just too large.
    """
    nodes = 0
    todo: list[tuple[object, int, _Trail]] = [(value, depth, None)]
    while todo:
        each, its_depth, trail = todo.pop()
        nodes += 1
        if nodes > max_bytes:
            raise TooLarge(f"{where} has more than {max_bytes:,} values")
        if each is None or isinstance(each, (str, bool)):
            continue
        if isinstance(each, (list, tuple, dict)):
            if its_depth >= MAX_DEPTH:
                raise Unwritable(
                    f"{where} is nested more than {MAX_DEPTH} deep, or contains itself"
                )
            inner = each.items() if isinstance(each, dict) else enumerate(each)
            todo.extend((below, its_depth + 1, (trail, key)) for key, below in inner)
            if isinstance(each, dict) and not all(isinstance(key, str) for key in each):
                raise Unwritable(f"{_place(where, trail)} has a key that is no text")
        elif problem := _problem(each):
            raise Unwritable(f"{_place(where, trail)} {problem}")


def _problem(value: object) -> str | None:
    if isinstance(value, int):
        if value.bit_length() > 64 and abs(value) >= _INTEGER_LIMIT:
            return f"has more than {MAX_INTEGER_DIGITS} digits"
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which JSON cannot hold"
    return f"is a {escaped(type(value).__name__)}, which JSON cannot hold"


def _place(where: str, trail: _Trail) -> str:
    """Return where a value stands, as Python would write it: ``kwargs['when'][0]``."""
    keys: list[str] = []
    while trail is not None:
        trail, key = trail
        keys.append(f"[{quoted(key, limit=40)}]")
    return where + "".join(reversed(keys))


# --- reading --------------------------------------------------------------------------------------

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_STEP))
_HALF_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_deep(body: bytes) -> None:
    """Count brackets before json does, which ends in RecursionError at some depth.

    Nearly every body has too few brackets to be deep at all. Of the others the strings are removed
    first. The pattern takes a string to its end or to the end of the body, so it never has to step
    back, and a megabyte of unclosed strings costs a single pass.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(None, delete=_NO_BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise Unreadable(f"is nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of two equal keys json keeps the last, other readers the first: they would run different jobs.
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unreadable("has an object with the same key twice")
    return value


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_INTEGER_DIGITS:
        raise Unreadable(f"has an integer of {digits:,} digits")
    return int(text)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999 is JSON, and infinity in Python
        raise Unreadable("has a number beyond all floats")
    return value


def _constant(name: str) -> object:
    raise Unreadable(f"has {name}, which is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_constant
)
