"""What type rows have, where it is known: from a source's declaration and functions' annotations.

Known types check field names before anything runs, and bring rows that are kept in state back as
what they were. An unknown type is None, never a guess.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Union

_UNIONS: Final = (Union, types.UnionType)


def returned_type(function: Callable[..., object]) -> object:
    """The type of what `function` returns: a class makes instances of itself, else what it says.

    >>> returned_type(str.upper), returned_type(int), returned_type(list[int])
    (None, <class 'int'>, list[int])
    """
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type | types.GenericAlias):
        return function
    if not inspect.isroutine(function):
        function = type(function).__call__
    function = inspect.unwrap(function)
    said = getattr(function, "__annotations__", {})
    # Others than that of the result may name what only type checkers import.
    result = types.SimpleNamespace(__annotations__={k: said[k] for k in said if k == "return"})
    try:
        found = typing.get_type_hints(
            result, getattr(function, "__globals__", {}), _enclosed(function)
        ).get("return")
    except (NameError, TypeError, AttributeError):
        return None  # annotations that name what is not there say nothing
    return None if _is_open(found) else found


def _enclosed(function: Any) -> dict[str, object]:
    """What a function sees of those around it: classes that a test declares, say."""
    function = getattr(function, "__func__", function)
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found: dict[str, object] = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        with suppress(ValueError):  # it is not there yet
            found[name] = cell.cell_contents
    return found


def _is_open(found: object) -> bool:
    """Whether a type says nothing."""
    return found is Any or found is object or isinstance(found, typing.TypeVar)


def field_type(row_type: object, name: str) -> object:
    """The type of a field or property of a class, or of an item of a TypedDict.

    >>> class Point(typing.NamedTuple):
    ...     x: int
    >>> field_type(Point, "x"), field_type(Point, "y"), field_type(dict, "x")
    (<class 'int'>, None, None)
    >>> field_type(Point | None, "x")
    <class 'int'>
    """
    origin, arguments = typing.get_origin(row_type), typing.get_args(row_type)
    if origin in _UNIONS:
        return union_of([field_type(each, name) for each in arguments if each is not type(None)])
    kind = row_type if origin is None else origin
    if not isinstance(kind, type):
        return None
    try:
        found = typing.get_type_hints(kind).get(name)
    except (NameError, TypeError, AttributeError):
        return None  # as above
    if found is not None:
        return _filled_in(found, kind, arguments)
    member = inspect.getattr_static(kind, name, None)
    return returned_type(member.fget) if isinstance(member, property) and member.fget else None


def _filled_in(found: Any, kind: type, arguments: tuple[Any, ...]) -> object:
    """The type of a field of a generic class, for these arguments."""
    if not arguments:
        return None if isinstance(found, typing.TypeVar) else found
    known = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    if isinstance(found, typing.TypeVar):
        return known.get(found)
    inner = [known.get(each, Any) for each in getattr(found, "__parameters__", ())]
    return found[tuple(inner)] if inner else found


def union_of(parts: Sequence[Any]) -> Any:
    """The type of what is of one of these; None if one is not known."""
    known = parts and None not in parts
    return Union[tuple(parts)] if known else None  # noqa: UP007 - made at run time


def members(found: Any) -> list[Any]:
    """The types that values of a type may have, None among them; none if one is not known.

    >>> members(int | None), members(typing.Literal["a", 1]), members(typing.Any)
    ([<class 'int'>, <class 'NoneType'>], [<class 'str'>, <class 'int'>], [])
    """
    while isinstance(found, typing.NewType):
        found = found.__supertype__
    origin, arguments = typing.get_origin(found), typing.get_args(found)
    if origin is typing.Annotated:
        return members(arguments[0])
    if origin is typing.Literal:
        return [type(each) for each in arguments]
    if origin in _UNIONS:
        parts = [members(each) for each in arguments]
        return [member for part in parts for member in part] if all(parts) else []
    return [] if found is None or _is_open(found) else [found]


def element_type(iterable_type: object) -> object:
    """The type of the elements of an annotated iterable: int of `list[int]`.

    >>> element_type(list[int]), element_type(dict[str, int]), element_type(None)
    (<class 'int'>, <class 'str'>, None)
    >>> element_type(tuple[int, int]), element_type(list[int] | None)
    (<class 'int'>, <class 'int'>)
    """
    origin = typing.get_origin(iterable_type)
    arguments = typing.get_args(iterable_type)
    if origin in _UNIONS:
        # A function of rows may return None for no rows.
        return union_of([element_type(each) for each in arguments if each is not type(None)])
    if not (isinstance(origin, type) and issubclass(origin, Iterable) and arguments):
        return None
    if origin is tuple:
        parts = [each for each in arguments if each is not Ellipsis]
        return None if any(map(_is_open, parts)) else union_of(parts)
    return None if _is_open(arguments[0]) else arguments[0]
