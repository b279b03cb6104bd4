"""Aggregates: what a window keeps of its rows, and what it says at the end. Pure.

    orders.key_by("user").window(tumbling("1m")).agg(n=agg.count(), total=agg.sum("amount"))

An aggregate is `init() -> accumulator`, `add(accumulator, value) -> accumulator` and
`result(accumulator)`. Rows are added one by one in the order of the log, so a sum of floats is the
same whatever the batches were. The accumulator is kept in state as msgpack: it must be made of
None, bool, int, float, str, bytes, list, and dict with str keys. Subclass `Aggregate` for your own.

The built-in ones follow SQL: a value of None is passed over, also by `count` of a field.
They take a field name, a function of the value, or nothing for the value itself.
"""
# ruff: noqa: A001 - the functions are read as agg.sum, agg.min, agg.max

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from .fields import Field, describe

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")
A = TypeVar("A")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Aggregate(ABC, Generic[T_contra, A, R_co]):
    """An aggregate of values of type T, with accumulator A and result R.

    Methods must depend on their arguments alone.

    >>> class Longest(Aggregate[str, str, str]):
    ...     def init(self) -> str:
    ...         return ""
    ...
    ...     def add(self, accumulator: str, value: str) -> str:
    ...         return value if len(value) > len(accumulator) else accumulator
    ...
    ...     def result(self, accumulator: str) -> str:
    ...         return accumulator
    """

    field: Field = None
    """What of a row is added; None for the row's value."""

    @abstractmethod
    def init(self) -> A:
        """The accumulator of a window without rows."""

    @abstractmethod
    def add(self, accumulator: A, value: T_contra) -> A:
        """The accumulator with one more row. May change and return the one it is given."""

    @abstractmethod
    def result(self, accumulator: A) -> R_co:
        """What the window says when it closes."""

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Add many values, in order.

        Built-in aggregates replace this loop by one without calls.

        Args:
            accumulators: Of all keys of a window.
            slots: For each value the index of its key's accumulator.
            values: What to add.
        """
        add = self.add
        for slot, value in zip(slots, values, strict=True):
            accumulators[slot] = add(accumulators[slot], value)

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """The result of each accumulator. Where the accumulator is the result, a plain return."""
        return list(map(self.result, accumulators))

    def describe(self) -> str:
        """What it computes, in words that stay the same; part of the plan's identity."""
        name = type(self).__qualname__.rsplit("<locals>.", 1)[-1]
        if type(self).__module__ == __name__:
            name = name.lower()
        return f"{name}({describe(self.field) if self.field else ''})"


class _Own(Aggregate[Any, A, A]):
    """An aggregate whose accumulator is its result."""

    def __init__(self, field: Field = None) -> None:
        self.field = field

    def result(self, accumulator: A) -> A:
        """The accumulator."""
        return accumulator

    def result_column(self, accumulators: list[Any]) -> list[Any]:
        """The accumulators."""
        return accumulators


class Count(_Own[int]):
    """Number of rows, or of rows whose field is not None."""

    def init(self) -> int:
        """Zero."""
        return 0

    def add(self, accumulator: int, value: object) -> int:
        """One more."""
        return accumulator if self.field and value is None else accumulator + 1

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Count all rows, or those that have a value."""
        if self.field is None:
            for slot in slots:
                accumulators[slot] += 1
        else:
            for slot, value in zip(slots, values, strict=True):
                if value is not None:
                    accumulators[slot] += 1


class Sum(_Own[float]):
    """Sum in row order, starting from 0; ints stay exact."""

    def init(self) -> float:
        """Zero, an int: the sum of ints is an int."""
        return 0

    def add(self, accumulator: float, value: float | None) -> float:
        """The plain sum of two numbers."""
        return accumulator if value is None else accumulator + value

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """A plain left fold per key: never a compensated sum, which would depend on the cuts."""
        pairs = zip(slots, values, strict=True)
        value: object = None
        while True:
            try:
                for slot, value in pairs:
                    accumulators[slot] += value
            except TypeError:
                # Nothing was added; the loop goes on behind the None.
                if value is not None:
                    raise
            else:
                return


class Mean(Aggregate[Any, "list[float]", "float | None"]):
    """Arithmetic mean; of ints it is the exact quotient, rounded once."""

    def __init__(self, field: Field = None) -> None:
        self.field = field

    def init(self) -> list[float]:
        """Number of values and their sum."""
        return [0, 0]

    def add(self, accumulator: list[float], value: float | None) -> list[float]:
        """One more value."""
        if value is not None:
            accumulator[1] += value
            accumulator[0] += 1
        return accumulator

    def result(self, accumulator: list[float]) -> float | None:
        """The mean, or None when no row had a value."""
        count, total = accumulator
        return total / count if count else None

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """A left fold, as for the sum."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                pair = accumulators[slot]
                pair[1] += value
                pair[0] += 1


class Min(_Own[Any]):
    """The least value; of equal ones the first."""

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The lesser of both."""
        if value is None or (accumulator is not None and not value < accumulator):
            return accumulator
        return value

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what is greater."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                least = accumulators[slot]
                if least is None or value < least:
                    accumulators[slot] = value


class Max(_Own[Any]):
    """The greatest value; of equal ones the first."""

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The greater of both."""
        if value is None or (accumulator is not None and not value > accumulator):
            return accumulator
        return value

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what is less."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                greatest = accumulators[slot]
                if greatest is None or value > greatest:
                    accumulators[slot] = value


@overload
def count(field: str | None = None) -> Aggregate[object, int, int]: ...
@overload
def count(field: Callable[[T], object]) -> Aggregate[T, int, int]: ...
def count(field: Field = None) -> Aggregate[Any, int, int]:
    """Number of rows; with a field, of rows where it is not None."""
    return Count(field)


@overload
def sum(field: str | None = None) -> Aggregate[object, float, float]: ...
@overload
def sum(field: Callable[[T], float | None]) -> Aggregate[T, float, float]: ...
def sum(field: Field = None) -> Aggregate[Any, float, float]:
    """Sum of a field in row order, 0 when there is nothing to add. Ints are exact."""
    return Sum(field)


@overload
def mean(field: str | None = None) -> Aggregate[object, list[float], float | None]: ...
@overload
def mean(field: Callable[[T], float | None]) -> Aggregate[T, list[float], float | None]: ...
def mean(field: Field = None) -> Aggregate[Any, list[float], float | None]:
    """Mean of a field, None when there is nothing to average. Of ints it is rounded only once."""
    return Mean(field)


@overload
def min(field: str | None = None) -> Aggregate[object, float | None, float | None]: ...
@overload
def min(field: Callable[[T], R]) -> Aggregate[T, R, R]: ...
def min(field: Field = None) -> Aggregate[Any, Any, Any]:
    """Least value of a field, None when there is none."""
    return Min(field)


@overload
def max(field: str | None = None) -> Aggregate[object, float | None, float | None]: ...
@overload
def max(field: Callable[[T], R]) -> Aggregate[T, R, R]: ...
def max(field: Field = None) -> Aggregate[Any, Any, Any]:
    """Greatest value of a field, None when there is none."""
    return Max(field)
