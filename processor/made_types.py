"""Types that are made for the rows of operators, and how another process makes the same ones.

Such a type is in no module, so a pickle cannot name it. But a function that is in one made it, of
names and other types, and so it is named: by what made it, of what. Pure.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import wraps
from threading import RLock
from types import UnionType
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple, Union
from weakref import WeakKeyDictionary, WeakValueDictionary

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class _Made(NamedTuple):
    """Stands for a type that was made."""

    make: Callable[..., Any]
    arguments: tuple[Any, ...]


class _Applied(NamedTuple):
    """Stands for a generic type of such types: `Joined[...]`, `... | None`."""

    origin: Any
    arguments: tuple[Any, ...]


_MADE: Final[WeakKeyDictionary[Any, _Made]] = WeakKeyDictionary()
"""How each type was made that is still in use."""

_LOCK: Final = RLock()


def made_once(make: Callable[[*Arguments], T]) -> Callable[[*Arguments], T]:
    """Make `make` return the same type for the same arguments, as long as that is in use.

    So rows that come back, from state or another process, are of the type that they were of. Types
    that nothing holds go: a program that declares types and pipelines again and again has an end.

    Args:
        make: A function of a module. Its arguments can be hashed.
    """
    types: WeakValueDictionary[Any, Any] = WeakValueDictionary()

    @wraps(make)
    def once(*arguments: *Arguments) -> T:
        made: T | None = types.get(arguments)
        if made is None:
            with _LOCK:  # two threads would make two of a kind
                made = types.get(arguments)
                if made is None:
                    made = make(*arguments)
                    _MADE[made] = _Made(once, arguments)
                    types[arguments] = made
        return made

    return once


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
