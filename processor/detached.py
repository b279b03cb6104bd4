"""Values that stay as they are when others who hold them go on to change theirs. Pure.

A row belongs to all who read it: to each window it is in, to each operator behind its stream. An
accumulator belongs to its aggregate, which may change it. What goes from one to the other is
detached; a copy is made only of what can change.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

CONSTANT: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Of these nothing can change."""


def detached(value: T) -> T:
    """The value, or a copy where it may change.

    >>> row = {"n": 1}
    >>> detached(row) == row, detached(row) is row
    (True, False)
    """
    kind = type(value)
    parts: Iterable[object]
    if kind in CONSTANT:
        return value
    if isinstance(value, dict) and kind is dict:
        parts = value.values()
    elif isinstance(value, list) and kind is list:
        parts = value
    elif isinstance(value, msgspec.Struct):
        parts = msgspec.structs.astuple(value)
    else:
        return deepcopy(value)
    if not CONSTANT.issuperset(map(type, parts)):
        return deepcopy(value)
    frozen = isinstance(value, msgspec.Struct) and value.__struct_config__.frozen
    return value if frozen else copy(value)
