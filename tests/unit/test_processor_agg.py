"""Aggregates: results, nulls, exactness, and one meaning for the row and the column form."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st

from millstream import RecordError
from millstream.processor import (
    Aggregate,
    Pipeline,
    agg,
    col,
    counting,
    hopping,
    session,
    tumbling,
    when,
)

BUILT_IN = [
    agg.count(),
    agg.count("x"),
    agg.sum(),
    agg.mean(),
    agg.min(),
    agg.max(),
    agg.variance(),
    agg.stddev(population=True),
    agg.first(),
    agg.last(),
    agg.distinct(),
    agg.collect(limit=3),
    agg.top_k(2),
    agg.quantile(0.5),
    agg.reduce(operator.add),
    agg.fold(list, lambda so_far, value: [*so_far, value]),
]


def result_of(aggregate: Aggregate[Any, Any, Any], values: Sequence[object]) -> object:
    column = [aggregate.init()]
    aggregate.add_column(column, [0] * len(values), iter(values))
    return aggregate.result_column(column)[0]


numbers = st.none() | st.integers(-1000, 1000) | st.floats(-1e30, 1e30)


@given(
    st.sampled_from(BUILT_IN),
    st.lists(st.tuples(st.integers(0, 3), numbers), max_size=30),
)
def test_adding_a_column_is_adding_one_by_one(
    aggregate: Aggregate[Any, Any, Any], rows: list[tuple[int, float | None]]
) -> None:
    one_by_one = [aggregate.init() for _ in range(4)]
    for slot, value in rows:
        one_by_one[slot] = aggregate.add(one_by_one[slot], value)

    column = [aggregate.init() for _ in range(4)]
    aggregate.add_column(column, [slot for slot, _ in rows], iter([value for _, value in rows]))

    assert repr(column) == repr(one_by_one)
    results = [aggregate.result(one) for one in one_by_one]
    assert repr(aggregate.result_column(column)) == repr(results)


def test_results_of_built_in_aggregates() -> None:
    values = [3, None, 1, 5]
    assert result_of(agg.count(), values) == 4
    assert result_of(agg.count("x"), values) == 3
    assert result_of(agg.sum(), values) == 9
    assert result_of(agg.mean(), values) == 3.0
    assert result_of(agg.min(), values) == 1
    assert result_of(agg.max(), values) == 5


def test_of_nothing_but_none_there_is_no_mean_minimum_or_maximum() -> None:
    values = [None, None]
    assert result_of(agg.sum(), values) == 0
    assert result_of(agg.mean(), values) is None
    assert result_of(agg.min(), values) is None
    assert result_of(agg.max(), values) is None


def test_a_sum_of_floats_is_a_plain_left_fold_e36() -> None:
    values = [0.1] * 10 + [1e16, 1.0, -1e16]
    expected = 0.0
    for value in values:
        expected += value
    assert result_of(agg.sum(), values) == expected
    assert expected != math.fsum(values), "the case must tell a compensated sum apart"


def test_the_mean_of_ints_is_exact_e37() -> None:
    values = [2**60 + 1, 2**60 + 3, 7]
    assert result_of(agg.mean(), values) == float(Fraction(sum(values), 3))
    assert result_of(agg.sum(), values) == sum(values)


def test_a_value_that_is_no_number_is_an_error_and_not_skipped() -> None:
    with pytest.raises(TypeError):
        result_of(agg.sum(), [1, "2"])


def test_minimum_and_maximum_take_anything_that_has_an_order() -> None:
    assert result_of(agg.min(), ["b", "a"]) == "a"
    assert result_of(agg.max(), ["b", "a"]) == "b"


class Longest(Aggregate[str, str, int]):
    def init(self) -> str:
        return ""

    def add(self, accumulator: str, value: str) -> str:
        return value if len(value) > len(accumulator) else accumulator

    def result(self, accumulator: str) -> int:
        return len(accumulator)


def test_an_aggregate_of_ones_own_needs_three_methods() -> None:
    assert result_of(Longest(), ["a", "ccc", "bb"]) == 3
    assert Longest().describe() == "Longest()"


def test_descriptions_name_function_and_field() -> None:
    assert agg.sum("amount").describe() == "sum('amount')"
    assert agg.count().describe() == "count()"
    assert agg.max(lambda order: order.amount).describe() == "max(lambda(amount))"


@pytest.mark.parametrize("windows", [tumbling(100), session(50), counting(3)])
def test_expressions_in_windows_are_judged_row_by_row_where_columns_cannot(windows: Any) -> None:
    """By columns 1 / 0 is computed, too; `when` asks no row for it that does not need it."""

    def inverted(field: Any) -> Pipeline:
        pipeline = Pipeline("p")
        keyed = pipeline.source("rows", time="t").key_by("k")
        keyed.window(windows).agg(total=agg.sum(field)).to("out")
        return pipeline

    rows = [{"k": "a", "t": number, "x": number} for number in range(3)]
    safe = when(col("x") == 0).then(0).otherwise(1 / col("x"))
    (result,) = inverted(safe).test({"rows": rows})["out"]
    assert 1.5 == result["total"]

    with pytest.raises(RecordError, match=r"agg total: ZeroDivisionError") as caught:
        inverted(1 / (1 - col("x"))).test({"rows": rows})
    assert 1 == caught.value.offset


def _add_to_first(so_far: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    if so_far is None:
        return row
    so_far["n"] += row["n"]
    return so_far


@pytest.mark.parametrize(
    "made", [agg.reduce(_add_to_first), agg.fold(lambda: None, _add_to_first)], ids=repr
)
def test_what_changes_in_place_changes_no_row(made: Aggregate[Any, Any, Any]) -> None:
    """A row is in two windows, in a table, and goes on by itself."""
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", type=dict, time="ts").key_by("k")
    keyed.window(hopping(20, 10)).agg(v=made).to("windows")
    keyed.agg(v=made).to("table")
    keyed.to("rows")
    inputs = [{"k": "a", "ts": ts, "n": 1} for ts in range(0, 40, 5)]

    found = pipeline.test({"in": inputs})

    assert [2, 4, 4, 4, 2] == [row["v"]["n"] for row in found["windows"]]
    assert [1, 2, 3, 4, 5, 6, 7, 8] == [row["v"]["n"] for row in found["table"]]
    assert {1} == {row["n"] for row in found["rows"]}
