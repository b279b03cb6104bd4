"""Values that are equal when they are made of equal parts: what plans are made of. Pure.

Parts are what a pickle takes them apart into. Expressions are among them, and `==` of those makes
another expression, so tuples and dataclasses that hold some cannot compare themselves. What refuses
to be compared is not known to be equal.
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
        return _same(self, other)

    def __hash__(self) -> int:
        return hash(type(self))


def _same(one: object, other: object) -> bool:
    """Whether two are made of equal parts, down to what compares itself."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, (Parted, *_COMPARED)):
        return _same(one.__reduce_ex__(2), other.__reduce_ex__(2))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    try:
        return bool(one == other)
    except Exception:  # of the user's: arrays have no truth, and others raise what they like
        return False
