"""Rows made of fields: `select` and `with_columns`, as a function of a row that knows its fields.

The result is a dict, whatever the row was. Each field is an expression, computed for many rows at
once; see expressions.py for what they mean. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import msgspec

from millstream import UsageError

from .expression_tree import Column
from .expressions import Expression, col
from .fields import ComputedField, require_named
from .made_types import made_once
from .row_codec import needed_type
from .row_types import field_type


class Selection(ComputedField):
    """Makes a dict of a row.

    Args:
        fields: By their names in the result.
        keep: Whether the row's own fields come first; a field of the same name takes its place.

    >>> Selection({"double": col("n") * 2}, keep=True)({"n": 4})
    {'n': 4, 'double': 8}
    """

    __slots__ = ("fields", "keep")

    def __init__(self, fields: Mapping[str, Expression], *, keep: bool) -> None:
        self.fields = dict(fields)
        self.keep = keep

    def __call__(self, value: object) -> dict[str, Any]:
        """The fields of one row.

        Raises:
            TypeError: The row has no fields, and they are to be kept.
        """
        row = own_fields(value) if self.keep else {}
        for name, field in self.fields.items():
            row[name] = field(value)
        return row

    def evaluate(self, values: Sequence[object]) -> list[dict[str, Any]]:
        """The fields of many rows."""
        columns = [field.evaluate(values) for field in self.fields.values()]
        names = tuple(self.fields)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if not self.keep:
            return rows
        return [own_fields(value) | row for value, row in zip(values, rows, strict=True)]

    def describe(self) -> str:
        """Names and expressions."""
        parts = [
            name if field.tree == col(name).tree else f"{name}={field}"
            for name, field in self.fields.items()
        ]
        return f"{'with_columns' if self.keep else 'select'} {', '.join(parts)}"

    def columns(self) -> list[str]:
        """The fields that are read."""
        return list(dict.fromkeys(one for each in self.fields.values() for one in each.columns()))

    def result_type(self, value_type: object) -> object:
        """The type of the dicts, where state needs it to bring back what is in them."""
        known: dict[str, Any] = {}
        missing: frozenset[str] = getattr(value_type, "__optional_keys__", frozenset())
        if self.keep:
            if not isinstance(value_type, type):
                return dict
            known = {name: field_type(value_type, name) for name in _own_names(value_type)}
        kept = missing & (known.keys() - self.fields.keys())
        for name, field in self.fields.items():
            found: Any = field.result_type(value_type)
            absent = isinstance(field.tree, Column) and field.tree.name in missing
            known[name] = found | None if absent and found is not None else found
        if all(needed_type(each) is None for each in known.values()):
            return dict
        fields: dict[str, Any] = {
            name: Any if each is None else each for name, each in known.items()
        }
        fields.update({name: NotRequired[fields[name]] for name in kept})
        return _row_type(tuple(fields.items()))

    def require_types(self, value_type: object, what: str) -> None:
        """Refuse a field that cannot be computed from the types of the row's.

        Raises:
            UsageError: There is one.
        """
        for name, field in self.fields.items():
            field.require_types(value_type, f"{what} {name}")


def own_fields(value: object) -> dict[str, Any]:
    """The fields of a row as a dict of its own.

    Raises:
        TypeError: It is no dict, Struct or dataclass.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} has no fields to keep: use select()")


@made_once
def _row_type(fields: tuple[tuple[str, Any], ...]) -> object:
    """A TypedDict; the same one for the same fields, so that streams of both can be merged."""
    make: Any = TypedDict
    return make("Row", dict(fields))


def _own_names(value_type: type) -> Iterable[str]:
    """The names of the fields that `own_fields` gives of rows of a type."""
    if dataclasses.is_dataclass(value_type):
        return [each.name for each in dataclasses.fields(value_type)]
    if issubclass(value_type, msgspec.Struct):
        return value_type.__struct_fields__
    return getattr(value_type, "__annotations__", ())  # of a TypedDict


def selection(names: Sequence[str], fields: Mapping[str, object], *, keep: bool) -> Selection:
    """What `select` and `with_columns` were given, checked.

    Raises:
        UsageError: Nothing to select, a name given twice, or a field that is no expression.
    """
    what = "with_columns()" if keep else "select()"
    if keep:
        require_named(names, f"{what} takes expressions by name, such as total=col('n') + 1")
    if not names and not fields:
        raise UsageError(f"{what} takes at least one field")
    chosen: dict[str, Expression] = {}
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{what} takes names, and expressions by name (total=...): {name!r}")
        if name in chosen or name in fields:
            raise UsageError(f"{what} got {name!r} twice")
        chosen[name] = col(name)
    for name, field in fields.items():
        if not isinstance(field, Expression):
            raise UsageError(
                f"{what}: {name}= takes an expression such as col('n') + 1; constants"
                f" are lit(value), functions go to map(); not {field!r}"
            )
        chosen[name] = field
    return Selection(chosen, keep=keep)
