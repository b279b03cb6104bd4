"""Quantiles of many values in little memory, with a bound on the relative error. Pure.

The buckets are those of DDSketch (Masson, Rim and Lee, 2019), from the package `ddsketch`: the
extra `quantile` brings it. A bucket holds how many values fell into it. So the result does not
depend on the order of the rows, two sessions merge exactly, a value can be taken back, and the
state is plain numbers.

Of the mappings from values to buckets this takes the cubic one: it computes with the bits of a
float and three multiplications, and needs no logarithm, whose last bit depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from math import floor, inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from millstream import UsageError, missing_extra

from .aggregate import Aggregate
from .fields import Field

if TYPE_CHECKING:
    from ddsketch import CubicallyInterpolatedMapping

_REMEMBERED_MAX: Final = 1 << 16
"""Values whose bucket is looked up and not computed: many streams hold few different ones."""

Buckets: TypeAlias = "list[dict[int, int]]"
"""How many values are in each bucket, by its number: of positive, of negative values, of zeros."""


class Quantile(Aggregate[Any, Buckets, "float | None"]):
    """The value at a rank: of n values in order, the one at index floor(q * (n - 1)).

    NaN is passed over. A value closer to zero than 3e-308 counts as zero.

    Args:
        q: From 0 (the least value) to 1 (the greatest).
        field: What to read: ints and floats.
        error: How far the result may be from that value, as a part of it.

    Raises:
        UsageError: `q` or `error` is out of range.
        MissingExtraError: ddsketch is not installed.
    """

    word = "quantile"

    def __init__(self, q: float, field: Field, *, error: float) -> None:
        if not isinstance(q, int | float) or not 0 <= q <= 1:
            raise UsageError(f"agg.quantile(): q must be from 0 to 1, not {q!r}")
        if not isinstance(error, float) or not 1e-5 <= error <= 0.5:
            raise UsageError(f"agg.quantile(): error must be from 1e-5 to 0.5, not {error!r}")
        _mapping(error)  # here, so that a missing package is no surprise at the first row
        self.field = field
        self.q = q
        self.error = error

    def init(self) -> Buckets:
        """No value in any bucket."""
        return [{}, {}, {}]

    def add(self, accumulator: Buckets, value: float | None) -> Buckets:
        """One more value in its bucket."""
        self.add_column([accumulator], (0,), (value,))
        return accumulator

    def merge(self, left: Buckets, right: Buckets) -> Buckets:
        """The values of both."""
        for ours, theirs in zip(left, right, strict=True):
            for bucket, count in theirs.items():
                ours[bucket] = ours.get(bucket, 0) + count
        return left

    def remove(self, accumulator: Buckets, value: float | None) -> Buckets:
        """One value less in its bucket."""
        for ours, theirs in zip(accumulator, self.add(self.init(), value), strict=True):
            for bucket in theirs:
                ours[bucket] -= 1
                if not ours[bucket]:
                    del ours[bucket]
        return accumulator

    def add_column(
        self, accumulators: list[Any], slots: Iterable[int], values: Iterable[Any]
    ) -> None:
        """Count each value in its bucket."""
        place = _place(self.error)
        for slot, value in zip(slots, values, strict=True):
            if value is not None and value == value:  # noqa: PLR0124 - NaN is passed over
                sign, bucket = place(value)
                counts = accumulators[slot][sign]
                counts[bucket] = counts.get(bucket, 0) + 1

    @property
    def mapping(self) -> CubicallyInterpolatedMapping:
        """What says in which bucket a value is."""
        return _mapping(self.error)

    def result(self, accumulator: Buckets) -> float | None:
        """The middle of the bucket in which the value at the rank is; None without values."""
        positive, negative, zero = accumulator
        count = sum(map(sum, (one.values() for one in accumulator)))
        if not count:
            return None
        value_of = _mapping(self.error).value
        rank = floor(self.q * (count - 1))
        for bucket in sorted(negative, reverse=True):
            rank -= negative[bucket]
            if rank < 0:
                return -value_of(bucket)
        rank -= sum(zero.values())
        if rank < 0:
            return 0.0
        for bucket in sorted(positive):
            rank -= positive[bucket]
            if rank < 0:
                return value_of(bucket)
        raise AssertionError("a rank beyond all values")

    def parameters(self) -> list[str]:
        """Rank and error."""
        return [f"q={self.q}", f"error={self.error}"]


@cache
def _mapping(error: float) -> CubicallyInterpolatedMapping:
    """The mapping between values and buckets for a bound on the error.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        from ddsketch import CubicallyInterpolatedMapping  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("agg.quantile()", "ddsketch", "quantile") from None
    return CubicallyInterpolatedMapping(error)


@cache
def _place(error: float) -> Callable[[float], tuple[int, int]]:
    """The function that says in which of `Buckets`, and in which bucket there, a value is."""
    mapping = _mapping(error)
    key, least = mapping.key, mapping.min_possible

    @lru_cache(_REMEMBERED_MAX)
    def place(value: float) -> tuple[int, int]:
        if not -inf < value < inf:
            raise ValueError(f"{value} has no place among the quantiles")
        if value > least:
            return 0, key(value)
        return (1, key(-value)) if value < -least else (2, 0)

    return place
