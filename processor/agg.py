"""The built-in aggregates, to be read as `agg.count()`, `agg.sum("amount")`.

    orders.key_by("user").window(tumbling("1m")).agg(n=agg.count(), total=agg.sum("amount"))

They take a field name, a function of the value, or nothing for the value itself, and follow SQL: a
value of None is passed over, also by `count` of a field. `fold` alone sees it. What they compute is
in numeric_aggregates.py, value_aggregates.py and quantile_aggregate.py; what an aggregate is, for
your own, in aggregate.py.
"""
# ruff: noqa: A001 - the functions are read as agg.sum, agg.min, agg.max

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from .aggregate import Aggregate, require_invertible, require_mergeable
from .fields import Field, require_readable
from .numeric_aggregates import Count, Max, Mean, Min, StandardDeviation, Sum, Variance
from .quantile_aggregate import Quantile
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

__all__ = [
    "Aggregate",
    "collect",
    "count",
    "distinct",
    "first",
    "fold",
    "last",
    "max",
    "mean",
    "min",
    "quantile",
    "reduce",
    "require_invertible",
    "require_mergeable",
    "stddev",
    "sum",
    "top_k",
    "variance",
]

T = TypeVar("T")
R = TypeVar("R")
A = TypeVar("A")
V = TypeVar("V")


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
def variance(
    field: str | None = None, *, population: bool = False
) -> Aggregate[object, list[float], float | None]: ...
@overload
def variance(
    field: Callable[[T], float | None], *, population: bool = False
) -> Aggregate[T, list[float], float | None]: ...
def variance(
    field: Field = None, *, population: bool = False
) -> Aggregate[Any, list[float], float | None]:
    """Variance of a sample (divided by n - 1), or of a whole population (by n).

    None when there are fewer than two values; of a population, when there is none.
    """
    return Variance(field, population=population)


@overload
def stddev(
    field: str | None = None, *, population: bool = False
) -> Aggregate[object, list[float], float | None]: ...
@overload
def stddev(
    field: Callable[[T], float | None], *, population: bool = False
) -> Aggregate[T, list[float], float | None]: ...
def stddev(
    field: Field = None, *, population: bool = False
) -> Aggregate[Any, list[float], float | None]:
    """Standard deviation: the root of `variance`, and None where that is."""
    return StandardDeviation(field, population=population)


@overload
def min(field: str | None = None) -> Aggregate[object, float | None, float | None]: ...
@overload
def min(field: Callable[[T], R]) -> Aggregate[T, R, R]: ...
def min(field: Field = None) -> Aggregate[Any, Any, Any]:
    """Least value of a field, None when there is none. NaN is passed over."""
    return Min(field)


@overload
def max(field: str | None = None) -> Aggregate[object, float | None, float | None]: ...
@overload
def max(field: Callable[[T], R]) -> Aggregate[T, R, R]: ...
def max(field: Field = None) -> Aggregate[Any, Any, Any]:
    """Greatest value of a field, None when there is none. NaN is passed over."""
    return Max(field)


@overload
def first(
    field: str | None = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[object, Any, Any]: ...
@overload
def first(
    field: Callable[[T], R], *, by: str | Callable[[T], object] | None = None
) -> Aggregate[T, Any, R]: ...
def first(
    field: Field = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[Any, Any, Any]:
    """Value of the first row in the order of the log, None when there is none.

    Args:
        field: What to read.
        by: The order instead, a field or function: give the field that holds the event time for
            the first row in event time. Of equal ones the first to arrive counts.
    """
    return First(field) if by is None else FirstBy(field, _order(by, "first"))


@overload
def last(
    field: str | None = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[object, Any, Any]: ...
@overload
def last(
    field: Callable[[T], R], *, by: str | Callable[[T], object] | None = None
) -> Aggregate[T, Any, R]: ...
def last(
    field: Field = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[Any, Any, Any]:
    """Value of the last row in the order of the log, None when there is none.

    Args:
        field: What to read.
        by: The order instead, a field or function: give the field that holds the event time for
            the last row in event time. Of equal ones the last to arrive counts.
    """
    return Last(field) if by is None else LastBy(field, _order(by, "last"))


@overload
def distinct(field: str | None = None) -> Aggregate[object, dict[Any, None], int]: ...
@overload
def distinct(field: Callable[[T], object]) -> Aggregate[T, dict[Any, None], int]: ...
def distinct(field: Field = None) -> Aggregate[Any, dict[Any, None], int]:
    """Exact number of different values; the state holds them all. Values must be hashable."""
    return Distinct(field)


@overload
def collect(field: str | None = None, *, limit: int) -> Aggregate[object, list[Any], list[Any]]: ...
@overload
def collect(field: Callable[[T], R], *, limit: int) -> Aggregate[T, list[R], list[R]]: ...
def collect(field: Field = None, *, limit: int) -> Aggregate[Any, list[Any], list[Any]]:
    """The first `limit` values in the order of the log, as a list."""
    return Collect(field, limit=limit)


@overload
def top_k(
    k: int, field: str | None = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[object, list[Any], list[Any]]: ...
@overload
def top_k(
    k: int, field: Callable[[T], R], *, by: str | Callable[[T], object] | None = None
) -> Aggregate[T, list[Any], list[R]]: ...
def top_k(
    k: int, field: Field = None, *, by: str | Callable[[Any], object] | None = None
) -> Aggregate[Any, list[Any], list[Any]]:
    """The k greatest values as a list, greatest first; of equal ones the first to arrive.

    Args:
        k: The longest list.
        field: What the list holds.
        by: What makes a row great, a field or function; the value itself by default.
    """
    return TopK(k, field) if by is None else TopKBy(k, field, _order(by, "top_k"))


@overload
def quantile(
    q: float, field: str | None = None, *, error: float = 0.01
) -> Aggregate[object, list[dict[int, int]], float | None]: ...
@overload
def quantile(
    q: float, field: Callable[[T], float | None], *, error: float = 0.01
) -> Aggregate[T, list[dict[int, int]], float | None]: ...
def quantile(
    q: float, field: Field = None, *, error: float = 0.01
) -> Aggregate[Any, list[dict[int, int]], float | None]:
    """Approximately the value at rank `q` (0.5: the median), None when there is none.

    Of n values in order the one at index floor(q * (n - 1)) is meant; the result is at most
    `error` of its size away from it. Needs the extra `quantile`.
    """
    return Quantile(q, field, error=error)


@overload
def reduce(function: Callable[[Any, Any], Any], field: str) -> Aggregate[object, Any, Any]: ...
@overload
def reduce(function: Callable[[T, T], T]) -> Aggregate[T, T | None, T]: ...
@overload
def reduce(function: Callable[[R, R], R], field: Callable[[T], R]) -> Aggregate[T, R | None, R]: ...
def reduce(function: Callable[[Any, Any], Any], field: Field = None) -> Aggregate[Any, Any, Any]:
    """All values put together by `function(so_far, value)`, starting from the first.

    Args:
        function: Must be associative: sessions are merged by it, too. Must not return None. It may
            change and return what there is so far, but must not change the value.
        field: What to read.
    """
    return Reduce(function, field)


@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, Any], A],
    field: str,
    *,
    merge: Callable[[A, A], A] | None = None,
) -> Aggregate[object, A, A]: ...
@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, Any], A],
    field: str,
    *,
    merge: Callable[[A, A], A] | None = None,
    result: Callable[[A], R],
) -> Aggregate[object, A, R]: ...
@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, V], A],
    field: Callable[[T], V],
    *,
    merge: Callable[[A, A], A] | None = None,
) -> Aggregate[T, A, A]: ...
@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, V], A],
    field: Callable[[T], V],
    *,
    merge: Callable[[A, A], A] | None = None,
    result: Callable[[A], R],
) -> Aggregate[T, A, R]: ...
@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, T], A],
    *,
    merge: Callable[[A, A], A] | None = None,
) -> Aggregate[T, A, A]: ...
@overload
def fold(
    init: Callable[[], A],
    step: Callable[[A, T], A],
    *,
    merge: Callable[[A, A], A] | None = None,
    result: Callable[[A], R],
) -> Aggregate[T, A, R]: ...
def fold(
    init: Callable[[], Any],
    step: Callable[[Any, Any], Any],
    field: Field = None,
    *,
    merge: Callable[[Any, Any], Any] | None = None,
    result: Callable[[Any], Any] | None = None,
) -> Aggregate[Any, Any, Any]:
    """An aggregate of your own from functions; a subclass of `Aggregate` can do more.

    Args:
        init: Makes the accumulator of a window without rows: `list`, `lambda: {"n": 0}`.
        step: Takes the accumulator and a value, which may be None; returns the accumulator. It
            may change and return the one it is given, but must not change the value, at once or
            later.
        field: What to read: a name, an expression or a function; the value itself by default.
        merge: Puts together the accumulators of two sessions, the earlier one first. Session
            windows need it.
        result: Takes the accumulator, returns what the window says. By default the accumulator.
    """
    return Fold(init, step, field, merge=merge, result=result)


def _order(by: str | Callable[[Any], object], what: str) -> str | Callable[[Any], object]:
    require_readable(by, f"agg.{what}(): by")
    return by
