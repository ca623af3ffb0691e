"""Text of strangers, made safe to show; and names that were nearly right.

Job ids, task names, arguments and error texts come from whoever can write to the queue. Logs, the
command line and error messages show them through `escaped`. Nothing here cuts or judges data: what
is stored stays as it was written.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HIDDEN", "did_you_mean", "escaped", "quoted", "without_passwords"]

#: What people see instead of what a sensitive task is called with, returns, or says in its errors.
HIDDEN: Final = "hidden: the task is sensitive"

# What moves a cursor, forges a line, hides, or turns text around when it is shown:
#   C0, DEL, C1                      ESC starts a terminal command, CR LF a new line
#   00AD 034F 061C 180E 200B-200F    invisible, zero-width, direction marks
#   2028-202E 2060-206F FEFF         line separators, bidirectional overrides and isolates, word joiner
#   D800-DFFF                        halves of a pair, which no stream can encode
#   FFF9-FFFB E0000-E0FFF            annotations and tags: invisible text inside text
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def escaped(text: str, *, keep_newlines: bool = False) -> str:
    r"""Return the text with control and invisible characters spelled out: ``\x1b``, ``\u202e``.

    For eyes, not for machines: a backslash in the text stays as it is, so the result cannot be
    turned back. ``keep_newlines`` leaves ``\n`` alone, for tracebacks, whose caller must then make
    sure that no line can be taken for one of his own.
    """
    if text.isascii() and text.isprintable():
        return text
    if keep_newlines:
        return "\n".join(_UNSAFE.sub(_spelled, line) for line in text.split("\n"))
    return _UNSAFE.sub(_spelled, text)


def quoted(value: object, *, limit: int = 80) -> str:
    """Return a value as an error message shows it: in quotes, escaped, cut after `limit` characters.

    Never raises, whatever the value's own ``__repr__`` does.
    """
    if isinstance(value, str):
        shown = f"'{value}'" if len(value) <= limit else f"'{value[:limit]}…'"
        return escaped(shown)
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - the repr of a stranger's object is user code
        shown = f"<{type(value).__name__}>"
    return escaped(shown if len(shown) <= limit else f"{shown[:limit]}…")


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or "" if none is near.

    `cutoff` is difflib's: 1.0 is equal, 0.6 its usual "near".
    """
    # difflib takes time with the product of the lengths; no name of ours is anywhere near 100.
    nearest = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=cutoff)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def without_passwords(url: str) -> str:
    """Return a broker URL that can be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:**@", url)
