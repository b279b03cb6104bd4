"""Reading a field of many values: by name, by a function, or the value itself.

A name is an attribute of a Struct or dataclass and an item of a dict. Which one is decided per
column, from the values that are really there: a `map` may have turned one into the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial
from keyword import iskeyword
from operator import attrgetter, itemgetter
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

import msgspec

from millstream import UsageError

from .parts import Parted

Field: TypeAlias = str | Callable[[Any], object] | None
"""A field name, a function of the value, or None for the value itself. Public signatures that take
one tie the function's argument to the stream's type; here it can be any."""


MARK: Final = "\1"
"""Stands on both sides of a field in what `describe` says within `fields_marked`."""

_marking: Final[ContextVar[bool]] = ContextVar("marking", default=False)


def field_getter(
    field: Field, values: Sequence[object], kind: type | None = None
) -> Callable[[object], object] | None:
    """The function that reads `field` of each of `values`; None for the value itself.

    Args:
        field: What to read.
        values: What it is read of.
        kind: The type of all of them, if that is known.
    """
    if isinstance(field, FieldPair):
        return field.getter(values)
    if not isinstance(field, str):
        return field
    types = set(map(type, values)) if kind is None else {kind}
    if types == {dict}:
        return itemgetter(field)  # type: ignore[return-value]  # every value is a dict
    if any(issubclass(one, Mapping) for one in types):
        return _MixedGetter(field)
    if kind is not None and field in getattr(kind, "__struct_fields__", ()) and _is_name(field):
        return _struct_field(kind, field)
    return attrgetter(field)


def _is_name(text: str) -> bool:
    """Whether Python code reads an attribute by this name, and takes it for no other.

    Of letters beyond ASCII some are the same to the parser.
    """
    return text.isascii() and text.isidentifier() and not iskeyword(text)


class ComputedField(Parted, ABC):
    """A function of a value that can say what it reads and what it is, and take many at once."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, value: object) -> Any:
        """Its result for one value."""

    @abstractmethod
    def evaluate(self, values: Sequence[object]) -> list[Any]:
        """Its results for many values, in order.

        Raises what one of them would raise by itself; which one is found by calling for each.
        """

    @abstractmethod
    def describe(self) -> str:
        """What it computes, in words that stay the same; part of the plan's identity."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the fields it reads."""

    def require_types(self, value_type: object, what: str) -> None:
        """Refuse what has no meaning for the types its fields are declared with.

        Raises:
            UsageError: A field is of such a type.
        """

    def result_type(self, value_type: object) -> object:
        """The type of its results for values of a type; None if it is unknown."""
        del value_type
        return None


class _StructField(ComputedField):
    """A field of Structs of one type, read in two thirds of the time of an attrgetter.

    Code compiled for it finds the field of one type by its place, without a look at the name.
    """

    __slots__ = ("_name", "_read")

    def __init__(self, name: str) -> None:
        self._name = name
        code = f"lambda values: [value.{name} for value in values]"
        self._read: Callable[[Sequence[object]], list[Any]] = eval(code)  # noqa: S307 - a checked name

    def __call__(self, value: object) -> Any:
        """The field of one value."""
        return getattr(value, self._name)

    def evaluate(self, values: Sequence[object]) -> list[Any]:
        """The field of each value."""
        return self._read(values)

    def describe(self) -> str:
        """As a field name is described."""
        return repr(self._name)

    def columns(self) -> list[str]:
        """The name."""
        return [self._name]


@lru_cache(maxsize=256)
def _struct_field(kind: type, name: str) -> _StructField:
    """One for each type: code that has seen several of them has to look at the name again."""
    del kind
    return _StructField(name)


class FieldPair(Parted):
    """Two fields read at once, as a tuple; for aggregates that look at one and keep the other.

    Args:
        first: The one that is looked at.
        second: The one that is kept.
    """

    def __init__(self, first: Field, second: Field) -> None:
        self.first = first
        self.second = second

    def __call__(self, value: object) -> tuple[object, object]:
        """Both, of one value."""
        return self.getter((value,))(value)

    def getter(self, values: Sequence[object]) -> Callable[[object], tuple[object, object]]:
        """The function that reads both of each of `values`: one call in C where both are names."""
        first, second = self.first, self.second
        if isinstance(first, str) and isinstance(second, str):
            types = set(map(type, values))
            if types == {dict}:
                return itemgetter(first, second)  # type: ignore[return-value]  # every value is a dict
            if not any(issubclass(one, Mapping) for one in types):
                return attrgetter(first, second)
        one, other = field_getter(first, values), field_getter(second, values)
        return lambda value: (
            value if one is None else one(value),
            value if other is None else other(value),
        )


class _MixedGetter:
    """Reads a field of values of several types."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: object) -> object:
        return value[self.name] if isinstance(value, Mapping) else getattr(value, self.name)


def require_field(value_type: object, name: str, what: str) -> None:
    """Refuse a field name that a declared type does not have, before anything runs.

    Raises:
        UsageError: The type is a Struct or dataclass without that field.
    """
    known: list[str]
    if isinstance(value_type, type) and issubclass(value_type, msgspec.Struct):
        known = list(value_type.__struct_fields__)
    elif isinstance(value_type, type) and dataclasses.is_dataclass(value_type):
        known = [entry.name for entry in dataclasses.fields(value_type)]
    else:
        return
    if name not in known and not hasattr(value_type, name):
        raise UsageError(
            f"{what}: {value_type.__name__} has no field {name!r}; it has {', '.join(known)}"
        )


def require_fields(value_type: object, field: Field, what: str) -> None:
    """The same of all fields that `field` reads, as far as they are known, and of their types.

    Raises:
        UsageError: See `require_field` and `ComputedField.require_types`.
    """
    for name in field_names(field):
        require_field(value_type, name, what)
    for part in (field.first, field.second) if isinstance(field, FieldPair) else (field,):
        if isinstance(part, ComputedField):
            part.require_types(value_type, what)


def field_names(field: Field) -> list[str]:
    """The names by which `field` reads a value, as far as they are known without calling it."""
    if isinstance(field, FieldPair):
        return field_names(field.first) + field_names(field.second)
    if isinstance(field, ComputedField):
        return field.columns()
    return [field] if isinstance(field, str) else []


def require_named(unnamed: Sequence[object], what: str) -> None:
    """Refuse what was given without a name where names matter.

    Raises:
        UsageError: Something was.
    """
    if unnamed:
        raise UsageError(f"{what}; {unnamed[0]!r} has no name")


def require_function(function: object, what: str) -> None:
    """Refuse what cannot be called, where it is declared and not at the first row.

    Raises:
        UsageError: It is no function, or gives what has to be awaited, which nobody does.
    """
    if not callable(function):
        raise UsageError(f"{what} takes a function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(
            f"{what} takes an ordinary function: {describe(function)} is async, and nobody awaits"
            " what it gives"
        )


def require_readable(field: object, what: str) -> None:
    """Refuse what is neither a field name nor a function.

    Raises:
        UsageError: It is neither, or an async function.
    """
    if callable(field):
        require_function(field, what)
    elif not isinstance(field, str):
        raise UsageError(
            f"{what} takes a field name or a function, not {field!r}; a function can return"
            " several fields as a tuple"
        )


def made_of_fields(kind: type) -> bool:
    """Whether values of a type have fields to choose from: Structs, dataclasses and dicts."""
    return issubclass(kind, msgspec.Struct | dict) or dataclasses.is_dataclass(kind)


def require_identity(value_type: object, what: str) -> None:
    """Refuse rows of a type whose values are never keys, where the whole value has to be one.

    Raises:
        UsageError: Such as dicts, lists, Structs and dataclasses.
    """
    kind = typing.get_origin(value_type) or value_type
    if not isinstance(kind, type):
        return
    if made_of_fields(kind) or issubclass(kind, list):
        raise UsageError(
            f"{what}: a value of type {kind.__name__} cannot be compared as a whole; name a field,"
            " or give a function that returns several as a tuple"
        )


def describe(field: str | Callable[..., object] | None) -> str:
    """A field in words that stay the same when unrelated code moves; part of the plan's identity.

    A lambda has no name, so the names and the text it uses stand for it: fields are read by
    either. Two lambdas that differ in numbers or operators alone look the same, and so do two
    functions of one name. A partial is its function, and what it was given.
    """
    if isinstance(field, FieldPair):
        return f"{describe(field.second)}, by={describe(field.first)}"
    text = _described(field)
    return f"{MARK}{text}{MARK}" if _marking.get() else text


@contextlib.contextmanager
def fields_marked() -> Iterator[None]:
    """Within, `describe` puts fields between marks: they may read differently and mean the same."""
    token = _marking.set(True)
    try:
        yield
    finally:
        _marking.reset(token)


def _described(field: str | Callable[..., object] | None) -> str:
    if field is None or isinstance(field, str):
        return repr(field) if field else "value"
    if isinstance(field, ComputedField):
        return field.describe()
    if isinstance(field, partial):
        given = [_argument(each) for each in field.args]
        given += [f"{name}={_argument(each)}" for name, each in sorted(field.keywords.items())]
        return f"partial({', '.join([_described(field.func), *given])})"
    name = getattr(field, "__qualname__", None) or type(field).__qualname__
    name = name.rsplit("<locals>.", 1)[-1]
    if isinstance(field, FunctionType) and field.__name__ == "<lambda>":
        return f"lambda({', '.join(sorted(_words(field.__code__) | _held(field)))})"
    return name


def _argument(value: object) -> str:
    """What a partial was given, if its words stay the same from run to run; else of what type."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_argument, value))})"
    if callable(value):
        return _described(value)
    plain = value is None or isinstance(value, bool | int | float | str | bytes)
    return repr(value) if plain else type(value).__qualname__


def _words(code: CodeType) -> set[str]:
    """Names and text in the code, comprehensions included: they are code of their own or not."""
    words = {*code.co_names, *code.co_freevars} | _texts(code.co_consts)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            words |= _words(constant)
    return words


def _texts(constants: Iterable[object]) -> set[str]:
    texts = set()
    for constant in constants:
        if isinstance(constant, str):
            texts.add(repr(constant))
        elif isinstance(constant, tuple | frozenset):
            texts |= _texts(constant)
    return texts


def _held(function: FunctionType) -> set[str]:
    """Text in the variables of enclosing functions that a function uses."""
    return _texts(inspect.getclosurevars(function).nonlocals.values())


def label(kind: str, field: Field) -> str:
    """An operator in words for messages: a lambda is shown with the line it stands in."""
    if isinstance(field, FunctionType) and field.__name__ == "<lambda>":
        code = field.__code__
        file_name = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
        return f"{kind} {describe(field)} at {file_name}:{code.co_firstlineno}"
    return f"{kind} {describe(field)}"
