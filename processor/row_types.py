"""What type rows have, where it is known: from a source's declaration and functions' annotations.

Known types check field names before anything runs, and bring rows that are kept in state back as
what they were. An unknown type is None, never a guess.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any


def returned_type(function: Callable[..., object]) -> object:
    """The type of what `function` returns: a class makes instances of itself, else what it says.

    >>> returned_type(str.upper), returned_type(int)
    (None, <class 'int'>)
    """
    if isinstance(function, type):
        return function
    try:
        found = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None  # annotations that name what is not there say nothing
    return None if found in {Any, object} or isinstance(found, typing.TypeVar) else found


def field_type(row_type: object, name: str) -> object:
    """The type of a field or property of a class, or of an item of a TypedDict.

    >>> class Point(typing.NamedTuple):
    ...     x: int
    >>> field_type(Point, "x"), field_type(Point, "y"), field_type(dict, "x")
    (<class 'int'>, None, None)
    """
    if not isinstance(row_type, type):
        return None
    try:
        found = typing.get_type_hints(row_type).get(name)
    except (NameError, TypeError, AttributeError):
        return None  # as above
    if found is not None:
        return found
    member = inspect.getattr_static(row_type, name, None)
    return returned_type(member.fget) if isinstance(member, property) and member.fget else None


def element_type(iterable_type: object) -> object:
    """The type of the elements of an annotated iterable: int of `list[int]`.

    >>> element_type(list[int]), element_type(dict[str, int]), element_type(None)
    (<class 'int'>, <class 'str'>, None)
    """
    origin = typing.get_origin(iterable_type)
    arguments = typing.get_args(iterable_type)
    if not (isinstance(origin, type) and issubclass(origin, Iterable) and arguments):
        return None
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return None
    return None if arguments[0] is Any else arguments[0]
