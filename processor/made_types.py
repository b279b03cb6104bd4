"""Types that are made for the rows of operators, and how another process makes the same ones.

Such a type is in no module, so a pickle cannot name it. But a function that is in one made it, of
names and other types, and so it is named: by what made it, of what. Pure.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import UnionType
from typing import Any, Final, NamedTuple, TypeVar, Union

T = TypeVar("T")


class _Made(NamedTuple):
    """Stands for a type that was made."""

    make: Callable[..., Any]
    arguments: tuple[Any, ...]


class _Applied(NamedTuple):
    """Stands for a generic type of such types: `Joined[...]`, `... | None`."""

    origin: Any
    arguments: tuple[Any, ...]


_MADE: Final[dict[object, _Made]] = {}
"""How each type was made. No more than their makers keep, who make one of its kind only once."""


def made_by(make: Callable[..., T], arguments: tuple[Any, ...], made: T) -> T:
    """The type, which `named` names from now on.

    Args:
        make: A function of a module, which returns the same type for the same arguments.
        arguments: What it was called with.
        made: What it returns.
    """
    _MADE[made] = _Made(make, arguments)
    return made


def named(value: Any) -> Any:
    """What stands for a type in a pickle; what is of a module, and what is no type, as it is."""
    if isinstance(value, type) and value in _MADE:
        make, arguments = _MADE[value]
        return _Made(make, _each(named, arguments))
    arguments = typing.get_args(value)
    names = _each(named, arguments)
    return value if names == arguments else _Applied(typing.get_origin(value), names)


def typed(value: Any) -> Any:
    """The type that `value` stands for; see `named`."""
    if isinstance(value, _Made):
        return value.make(*_each(typed, value.arguments))
    if isinstance(value, _Applied):
        arguments = _each(typed, value.arguments)
        origin = Union if value.origin is UnionType else value.origin
        return origin[arguments[0] if len(arguments) == 1 else arguments]
    return value


def _each(function: Callable[[Any], Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of the arguments, of which some are tuples of names and types."""
    return tuple(_each(function, one) if type(one) is tuple else function(one) for one in arguments)
