"""Values that are equal when they are made of equal parts: what plans are made of. Pure.

Parts are what a pickle takes them apart into. Expressions are among them, and `==` of those makes
another expression, so tuples and dataclasses that hold some cannot compare themselves.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from typing import Final

_COMPARED: Final = (partial, attrgetter, itemgetter, methodcaller)
"""Functions of Python's that are made of parts and do not compare themselves."""


class Parted:
    """Equal to another of its type that is made of the same."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _parts(self) == _parts(other)

    def __hash__(self) -> int:
        return hash(type(self))


def _parts(value: object) -> object:
    """What is equal where values are, down to what compares itself."""
    if isinstance(value, (Parted, *_COMPARED)):
        return _parts(value.__reduce_ex__(2))
    if isinstance(value, dict):
        return {key: _parts(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value), *map(_parts, value)
    return value
