"""Numbers for what has a row of its own on a page, so that a row keeps its place and its buttons.

A button is known to the browser by its key. Were keys positions, a queue that comes or goes between
the drawing of a page and the click would hand the click to its neighbour. So every name gets the next
number when it is first seen, keeps it as long as the session lasts, and rows stand in that order:
what is new comes last, and nothing moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["Numbers"]

T = TypeVar("T")


class Numbers:
    """Number things by what names them; one object belongs to one session and one kind of thing."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._numbers: dict[Hashable, int] = {}

    def ordered(self, things: Iterable[T], name_of: Callable[[T], Hashable]) -> list[tuple[int, T]]:
        """Return the things with their numbers, lowest first; new ones in the order they come."""
        numbered = [
            (self._numbers.setdefault(name_of(one), len(self._numbers)), one) for one in things
        ]
        return sorted(numbered, key=lambda pair: pair[0])
