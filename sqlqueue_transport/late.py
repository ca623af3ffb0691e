"""A part of an object that is made when it is first asked for: with its module, for who needs neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Late"]

_Part = TypeVar("_Part")


class Late(Generic[_Part]):
    """Decorate the method that makes the part; it is called once, and its answer kept.

    As `functools.cached_property`, but without the lock which that holds before Python 3.12: a child
    forked at that moment would wait for it for ever. Of two threads that come at once both may make
    one, and both get the first.
    """

    def __init__(self, make: Callable[[Any], _Part]) -> None:
        """Take the method."""
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, owner: object, _: object = None) -> _Part:
        """Make the part; found in the object's own dictionary it is not asked for again."""
        if owner is None:  # asked of the class, as tools do that look at everything
            return self  # type: ignore[return-value]
        kept: _Part = owner.__dict__.setdefault(self._name, self._make(owner))
        return kept
