"""Counting, adding, averaging, and the least and the greatest. Pure.

None is passed over, as SQL does. NaN takes part in sums, means and variances, whose result is then
NaN; minimum and maximum pass it over like None, so they do not depend on where it stood.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

from .aggregate import Aggregate, OwnResult
from .fields import Field


class Count(OwnResult[int]):
    """Number of rows, or of rows whose field is not None."""

    word = "count"

    def init(self) -> int:
        """Zero."""
        return 0

    def add(self, accumulator: int, value: object) -> int:
        """One more."""
        return accumulator if self.field is not None and value is None else accumulator + 1

    def merge(self, left: int, right: int) -> int:
        """All rows of both."""
        return left + right

    def remove(self, accumulator: int, value: object) -> int:
        """One less."""
        return accumulator if self.field is not None and value is None else accumulator - 1

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


class Sum(OwnResult[float]):
    """Sum in row order, starting from 0; ints stay exact."""

    word = "sum"

    def init(self) -> float:
        """Zero, an int: the sum of ints is an int."""
        return 0

    def add(self, accumulator: float, value: float | None) -> float:
        """The plain sum of two numbers."""
        return accumulator if value is None else accumulator + value

    def merge(self, left: float, right: float) -> float:
        """The earlier sum plus the later one: one addition, whose order event time decides."""
        return left + right

    def remove(self, accumulator: float, value: float | None) -> float:
        """The difference of ints."""
        return accumulator if value is None else _int_difference(accumulator, value)

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

    word = "mean"

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

    def merge(self, left: list[float], right: list[float]) -> list[float]:
        """Both counts, and the earlier sum plus the later one."""
        return [left[0] + right[0], left[1] + right[1]]

    def remove(self, accumulator: list[float], value: float | None) -> list[float]:
        """One value less."""
        if value is None:
            return accumulator
        return [accumulator[0] - 1, _int_difference(accumulator[1], value)]

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


class Variance(Aggregate[Any, "list[float]", "float | None"]):
    """Mean squared distance from the mean, by Welford's recurrence in row order.

    It never subtracts two large sums, so it does not lose all digits far from zero.

    Args:
        field: What to read.
        population: Divide by n instead of n - 1.
    """

    word = "variance"

    def __init__(self, field: Field = None, *, population: bool) -> None:
        self.field = field
        self.population = population
        self._less = 0 if population else 1

    def init(self) -> list[float]:
        """Number of values, their mean, and the sum of squared distances from it."""
        return [0, 0.0, 0.0]

    def add(self, accumulator: list[float], value: float | None) -> list[float]:
        """One more value."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator

    def merge(self, left: list[float], right: list[float]) -> list[float]:
        """As if the values of both had been seen together (Chan, Golub and LeVeque)."""
        if not left[0] or not right[0]:
            return left if left[0] else right
        count = left[0] + right[0]
        distance = right[1] - left[1]
        return [
            count,
            left[1] + distance * (right[0] / count),
            left[2] + right[2] + distance * distance * (left[0] * right[0] / count),
        ]

    def result(self, accumulator: list[float]) -> float | None:
        """The variance, or None when there are too few values for one."""
        count, _, squares = accumulator
        # Distances too great for a float have either sign, their squares have none.
        return None if count <= self._less else abs(squares) / (count - self._less)

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """The recurrence, in row order."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                state = accumulators[slot]
                distance = value - state[1]
                state[0] += 1
                state[1] += distance / state[0]
                state[2] += distance * (value - state[1])

    def parameters(self) -> list[str]:
        """Whether of the population."""
        return ["population"] if self.population else []


class StandardDeviation(Variance):
    """The root of the variance."""

    word = "stddev"

    def result(self, accumulator: list[float]) -> float | None:
        """The root, or None when there are too few values for one."""
        variance = super().result(accumulator)
        return None if variance is None else sqrt(variance)


class Min(OwnResult[Any]):
    """The least value; of equal ones the first."""

    word = "min"

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The lesser of both."""
        if accumulator is None:
            return value if value == value else None  # noqa: PLR0124 - NaN is passed over
        return accumulator if value is None or not value < accumulator else value

    def merge(self, left: Any, right: Any) -> Any:
        """The lesser of both."""
        return self.add(left, right)

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what is greater. NaN is less than nothing."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                least = accumulators[slot]
                if least is None:
                    if value == value:  # noqa: PLR0124 - NaN is passed over
                        accumulators[slot] = value
                elif value < least:
                    accumulators[slot] = value


class Max(OwnResult[Any]):
    """The greatest value; of equal ones the first."""

    word = "max"

    def init(self) -> None:
        """Nothing seen."""

    def add(self, accumulator: Any, value: Any) -> Any:
        """The greater of both."""
        if accumulator is None:
            return value if value == value else None  # noqa: PLR0124 - NaN is passed over
        return accumulator if value is None or not value > accumulator else value

    def merge(self, left: Any, right: Any) -> Any:
        """The greater of both."""
        return self.add(left, right)

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Replace what is less. NaN is greater than nothing."""
        for slot, value in zip(slots, values, strict=True):
            if value is not None:
                greatest = accumulators[slot]
                if greatest is None:
                    if value == value:  # noqa: PLR0124 - NaN is passed over
                        accumulators[slot] = value
                elif value > greatest:
                    accumulators[slot] = value


def _int_difference(total: float, value: float) -> int:
    if not isinstance(total, int) or not isinstance(value, int):
        raise TypeError(
            f"{value!r} cannot be taken back from the sum {total!r}: only ints can, exactly"
        )
    return total - value
