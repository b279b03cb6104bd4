"""The type of what a field reads, and what is refused for it where it is declared. Pure."""

from __future__ import annotations

import inspect
import typing
from enum import Enum
from types import NoneType
from typing import Any, Final

from millstream import UsageError

from .fields import ComputedField, Field, describe, made_of_fields
from .row_types import field_type, members, returned_type

_KEY_TYPES: Final = (str, bytes, bool, int, float, tuple)


def read_type(row_type: object, field: Field) -> object:
    """The type of a field of rows of a type; None if it is unknown.

    >>> read_type(dict, str.upper), read_type(list[int], len), read_type(int, None)
    (None, None, <class 'int'>)
    """
    if field is None:
        return row_type
    if isinstance(field, str):
        return field_type(row_type, field)
    if isinstance(field, ComputedField):
        return field.result_type(row_type)
    return returned_type(field)


def require_key_type(row_type: object, field: Field, what: str) -> None:
    """Refuse a field whose values are never keys, whatever the rows are.

    Raises:
        UsageError: Such as a UUID, a datetime, an enum of neither texts nor numbers.
    """
    found = read_type(row_type, field)
    kinds = [each for each in members(found) if each is not NoneType]
    if kinds and all(map(_is_no_key, kinds)):
        (first, *_) = kinds
        name = getattr(first, "__name__", str(first))
        raise UsageError(
            f"{what}: {describe(field)} is a {name}, which is no key: that is str, bytes, int,"
            f" float, bool or a tuple of them, such as {_instead(first, field)}"
        )


def _is_no_key(kind: Any) -> bool:
    """Whether no value of a type groups rows; see serde.py."""
    origin = typing.get_origin(kind) or kind
    if typing.is_typeddict(origin):
        return True
    if origin is tuple:
        parts = [members(each) for each in typing.get_args(kind) if each is not Ellipsis]
        return any(each and all(map(_is_no_key, each)) for each in parts)
    if not isinstance(origin, type) or origin in _KEY_TYPES:
        return False
    if issubclass(origin, Enum):
        return len(origin) > 0 and not issubclass(origin, str | int | float)
    if getattr(origin, "_is_protocol", False) or inspect.isabstract(origin):
        return False
    return not any(issubclass(each, origin) for each in _KEY_TYPES)


def _instead(kind: Any, field: Field) -> str:
    """What is a key instead of a value of a type."""
    value = f"row.{field}" if isinstance(field, str) else "..."
    origin = typing.get_origin(kind) or kind
    if issubclass(origin, Enum):
        return f"lambda row: {value}.value"
    if made_of_fields(origin):
        return "one of its fields"
    made = "tuple" if issubclass(origin, list | tuple) else "str"
    return f"lambda row: {made}({value})"
