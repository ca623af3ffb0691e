"""Values of strangers in our error texts.

An error that refuses a value names it, and must not become another error by that: the repr of an
integer of 5,000 digits raises, as does that of a list nested a thousand deep, or of any object with a
`__repr__` of its own. And a value of a megabyte must not make an error of a megabyte.
"""

from __future__ import annotations

_LONGEST = 120  # characters; names are shorter, and of more nobody reads on


def shown(value: object) -> str:
    """Return the repr of a value, cut where it is long; never raises."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the repr of a stranger's object is user code
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
