"""Accumulators as state keeps them, and back, where they hold values of a declared type. Pure.

Accumulators made of plain values go into state as they are. But some hold what rows hold: the
first, the greatest, all of them. Where that is a Struct, a datetime or a Decimal, a restart brings
it back by the type that the source, or a function's annotation, declares; see row_codec.py. So
here is said, for each aggregate that keeps values, where in its accumulator they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from millstream import DataError

from .agg import Aggregate
from .field_types import read_type
from .fields import Field, FieldPair
from .numeric_aggregates import Max, Mean, Min, Sum
from .row_codec import RowCodec, needed_type
from .state import decode_content, encode_content
from .value_aggregates import (
    Collect,
    Distinct,
    First,
    FirstBy,
    Fold,
    Last,
    LastBy,
    Reduce,
    TopK,
    TopKBy,
)


class _Value:
    """An accumulator that is a value, or None.

    Args:
        value: Of what is kept.
        order: Of what decides about it.
    """

    def __init__(self, value: RowCodec, order: RowCodec) -> None:
        self._value = value
        self._order = order

    @staticmethod
    def result(value_type: Any) -> Any:
        """The type of what the aggregate says, if its values are of that type."""
        return value_type | None

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        """What state keeps of many.

        Raises:
            UsageError: A value would not come back as it is.
        """
        return self._value.pack(accumulators)

    def unpack(self, packed: Any) -> Any:
        """The accumulator, from what state kept of it.

        Raises:
            DataError: A value is not of the type.
        """
        return self._value.unpack(packed)


class _Values(_Value):
    """A list of values."""

    @staticmethod
    def result(value_type: Any) -> Any:
        return list[value_type]

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        return list(map(self._value.pack, accumulators))

    def unpack(self, packed: Any) -> Any:
        return list(map(self._value.unpack, packed))


class _Keys(_Values):
    """A dict of which values are the keys. State has a list of them."""

    @staticmethod
    def result(value_type: Any) -> Any:
        del value_type
        return int

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        return super().pack(list(map(list, accumulators)))

    def unpack(self, packed: Any) -> Any:
        return dict.fromkeys(super().unpack(packed))


class _Total(_Value):
    """A sum, which begins as the int 0 whatever is added."""

    @staticmethod
    def result(value_type: Any) -> Any:
        return value_type | int

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        return [each if type(each) is int else self._value.pack([each])[0] for each in accumulators]

    def unpack(self, packed: Any) -> Any:
        return packed if type(packed) is int else self._value.unpack(packed)


class _Mean(_Total):
    """[count, sum]."""

    @staticmethod
    def result(value_type: Any) -> Any:
        return value_type | float | None  # of ints, and of what counts as such, it is a float

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        totals = super().pack([total for _, total in accumulators])
        return [[each[0], total] for each, total in zip(accumulators, totals, strict=True)]

    def unpack(self, packed: Any) -> Any:
        count, total = packed
        return [count, super().unpack(total)]


class _Ordered(_Value):
    """[order, value], or nothing."""

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        return [
            [self._order.pack(each[:1])[0], self._value.pack(each[1:])[0]] if each else each
            for each in accumulators
        ]

    def unpack(self, packed: Any) -> Any:
        if not packed:
            return packed
        order, value = packed
        return [self._order.unpack(order), self._value.unpack(value)]


class _AllOrdered(_Ordered):
    """A list of these."""

    @staticmethod
    def result(value_type: Any) -> Any:
        return list[value_type]

    def pack(self, accumulators: Sequence[Any]) -> Sequence[Any]:
        return list(map(super().pack, accumulators))

    def unpack(self, packed: Any) -> Any:
        return list(map(super().unpack, packed))


_FORMS: Final[dict[type, type[_Value]]] = {
    First: _Value,
    Last: _Value,
    Min: _Value,
    Max: _Value,
    Reduce: _Value,
    Sum: _Total,
    Mean: _Mean,
    Collect: _Values,
    TopK: _Values,
    Distinct: _Keys,
    FirstBy: _Ordered,
    LastBy: _Ordered,
    TopKBy: _AllOrdered,
}
"""By aggregate. Accumulators of all others are plain."""


class AccumulatorCodec:
    """Packs the accumulators of an operator.

    Args:
        what: Names the operator in messages.
        aggregates: What makes them, by the names of their results.
        row_type: What rows are; None where nobody said.
    """

    def __init__(
        self,
        what: str,
        aggregates: Sequence[tuple[str, Aggregate[Any, Any, Any]]],
        row_type: object,
    ) -> None:
        self._aggregates = [aggregate for _, aggregate in aggregates]
        plain = _Value(RowCodec(None, what), RowCodec(None, what))
        self._forms = [
            _form(aggregate, row_type, f"{what}, agg {name}") or plain
            for name, aggregate in aggregates
        ]
        self.typed = any(form is not plain for form in self._forms)
        """Whether any of them is kept by its type. Otherwise state takes all as they are."""

    def pack(self, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """What state keeps of the accumulators of many keys; proven to come back as it is.

        Raises:
            UsageError: A value would not come back as it is.
        """
        columns = list(zip(*rows, strict=True))
        packed = [form.pack(column) for form, column in zip(self._forms, columns, strict=False)]
        return list(zip(*packed, strict=True))

    def fresh(self) -> list[Any]:
        """What state would give for a key without rows."""
        made = [aggregate.init() for aggregate in self._aggregates]
        return decode_content(encode_content(self.pack([made])[0])) if self.typed else made

    def unpack(self, packed: Any) -> list[Any]:
        """The accumulators of a key, from what state kept of them.

        Raises:
            DataError: It is not that.
        """
        try:
            return [form.unpack(each) for form, each in zip(self._forms, packed, strict=True)]
        except (TypeError, ValueError) as error:
            raise DataError(f"not accumulators: {packed!r}: {error}") from error


def keeps_typed(aggregate: Aggregate[Any, Any, Any], row_type: object) -> bool:
    """Whether an aggregate of such rows keeps values that state knows by their type alone."""
    return _kept(aggregate, row_type) is not None


def result_types(
    aggregates: Sequence[tuple[str, Aggregate[Any, Any, Any]]], row_type: object
) -> tuple[Any, ...]:
    """The types of results that state knows by their type alone; Any for all others."""
    return tuple(_result(aggregate, row_type) for _, aggregate in aggregates)


def _result(aggregate: Aggregate[Any, Any, Any], row_type: object) -> Any:
    kept = _kept(aggregate, row_type)
    if kept is None:
        return Any
    found = None
    if isinstance(aggregate, Fold):
        found = needed_type(aggregate.result_type)
    elif kept.value is not None:
        found = needed_type(kept.form.result(kept.value))
    return Any if found is None else found


class _Kept(NamedTuple):
    """What an aggregate keeps that is not plain."""

    form: type[_Value]
    value: Any
    order: Any


def _kept(aggregate: Aggregate[Any, Any, Any], row_type: object) -> _Kept | None:
    if isinstance(aggregate, Fold):
        made = needed_type(aggregate.accumulator_type)
        return None if made is None else _Kept(_Value, made, None)
    form, field, order = _FORMS.get(type(aggregate)), aggregate.field, None
    if form is None:
        return None
    if isinstance(field, FieldPair):
        order, field = _type_of(field.first, row_type), field.second
    value = _type_of(field, row_type)
    return None if value is None and order is None else _Kept(form, value, order)


def _form(aggregate: Aggregate[Any, Any, Any], row_type: object, what: str) -> _Value | None:
    kept = _kept(aggregate, row_type)
    if kept is None:
        return None
    return kept.form(RowCodec(kept.value, what), RowCodec(kept.order, what))


def _type_of(field: Field, row_type: object) -> object:
    """The type of a field of rows; None if it is unknown, or state needs no type for it."""
    return needed_type(read_type(row_type, field))
