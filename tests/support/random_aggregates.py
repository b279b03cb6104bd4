"""Aggregates drawn at random beside the rows they saw, and what each must say of them.

A random pipeline collects the rows of every window; models check those. Here the other aggregates
of the same window are computed again from these rows, by the words of the documentation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from millstream.processor import agg

Rows = Sequence[dict[str, Any]]


def _xs(rows: Rows) -> list[int]:
    return [row["x"] for row in rows]


def _spread(compute: Callable[[list[int]], float], least: int) -> Callable[[Rows], float | None]:
    return lambda rows: compute(_xs(rows)) if len(rows) >= least else None


def _appended(held: list[int], x: int) -> list[int]:
    held.append(x)
    return held


AGGREGATES: Final[dict[str, tuple[Callable[[], Any], Callable[[Rows], Any]]]] = {
    "a_count": (agg.count, len),
    "a_sum": (lambda: agg.sum("x"), lambda rows: sum(_xs(rows))),
    "a_mean": (lambda: agg.mean("x"), lambda rows: sum(_xs(rows)) / len(rows)),
    "a_min": (lambda: agg.min("x"), lambda rows: min(_xs(rows))),
    "a_max": (lambda: agg.max("x"), lambda rows: max(_xs(rows))),
    "a_variance": (lambda: agg.variance("x"), _spread(statistics.variance, 2)),
    "a_pvariance": (
        lambda: agg.variance("x", population=True),
        _spread(statistics.pvariance, 1),
    ),
    "a_stddev": (lambda: agg.stddev("x"), _spread(statistics.stdev, 2)),
    "a_first": (lambda: agg.first("x"), lambda rows: _xs(rows)[0]),
    "a_last": (lambda: agg.last("x"), lambda rows: _xs(rows)[-1]),
    # Of equal times the first to arrive is the first, and the last one the last.
    "a_first_by": (
        lambda: agg.first("x", by="t"),
        lambda rows: min(rows, key=lambda row: row["t"])["x"],
    ),
    "a_last_by": (
        lambda: agg.last("x", by="t"),
        lambda rows: max(reversed(rows), key=lambda row: row["t"])["x"],
    ),
    "a_distinct": (lambda: agg.distinct("x"), lambda rows: len(set(_xs(rows)))),
    "a_collect": (lambda: agg.collect("k", limit=2), lambda rows: [row["k"] for row in rows[:2]]),
    "a_top": (lambda: agg.top_k(2, "x"), lambda rows: sorted(_xs(rows), reverse=True)[:2]),
    "a_top_by": (
        lambda: agg.top_k(2, "t", by="x"),
        lambda rows: [row["t"] for row in sorted(rows, key=lambda row: -row["x"])[:2]],
    ),
    "a_reduce": (
        lambda: agg.reduce(lambda left, right: f"{left}|{right}", "k"),
        lambda rows: "|".join(row["k"] for row in rows),
    ),
    "a_fold": (
        lambda: agg.fold(list, _appended, "x", merge=lambda left, right: left + right),
        _xs,
    ),
    "a_quantile": (
        lambda: agg.quantile(0.5, "x"),
        lambda rows: sorted(_xs(rows))[math.floor(0.5 * (len(rows) - 1))],
    ),
}
"""By the name of the result: what makes the aggregate, and what it must say."""


def drawn(random: Random) -> dict[str, Any]:
    """Some aggregates, by the names of their results."""
    names = random.sample(sorted(AGGREGATES), random.randrange(4))
    return {name: AGGREGATES[name][0]() for name in names}


def check_aggregates(result: Any, rows: Rows) -> int:
    """Hold the drawn aggregates of a result against its rows; how many there were.

    Raises:
        AssertionError: One says something else.
    """
    count = 0
    for name, (_, say) in AGGREGATES.items():
        if hasattr(result, name):
            found, right = getattr(result, name), say(rows)
            assert _same(name, found, right), f"{name}: {found}, not {right}, of {rows}"
            count += 1
    return count


def _same(name: str, found: Any, right: Any) -> bool:
    if found is None or right is None:
        return found is right
    if name == "a_quantile":
        return math.isclose(found, right, rel_tol=0.010001, abs_tol=1e-9)
    if isinstance(right, float) or isinstance(found, float):
        return math.isclose(found, right, rel_tol=1e-9, abs_tol=1e-9)
    return bool(found == right)
