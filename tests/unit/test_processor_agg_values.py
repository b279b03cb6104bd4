"""Aggregates beyond sums: results against plain Python, merging, taking back, and refusals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from ddsketch import CubicallyInterpolatedMapping
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.store import DenseStore
from hypothesis import given, strategies as st

from millstream import UsageError
from millstream.processor import Aggregate, Pipeline, agg, col, tumbling
from millstream.processor.errors import REJECTED, convert
from millstream.processor.fields import FieldPair, field_getter, field_names
from millstream.processor.serde import decode_state, encode_state, same_plain

DESCRIBED = Aggregate.describe
"""Names the cases of a parametrized test."""

NAN = math.nan
BIG = 2**53

exact = st.none() | st.integers(-50, 50)
floats = st.none() | st.floats(-1e6, 1e6) | st.just(NAN)
pairs = st.tuples(st.none() | st.integers(-3, 3), st.none() | st.sampled_from("abcd"))


def accumulator_of(aggregate: Aggregate[Any, Any, Any], values: Sequence[object]) -> Any:
    column = [aggregate.init()]
    aggregate.add_column(column, [0] * len(values), iter(values))
    return column[0]


def result_of(aggregate: Aggregate[Any, Any, Any], values: Sequence[object]) -> Any:
    return aggregate.result(accumulator_of(aggregate, values))


def plain(values: Sequence[Any]) -> list[Any]:
    """What takes part where NaN is passed over."""
    return [value for value in values if value is not None and value == value]


def test_first_and_last_go_by_arrival() -> None:
    values = [None, 3, 1, 5, None]
    assert result_of(agg.first(), values) == 3
    assert result_of(agg.last(), values) == 5
    assert result_of(agg.first(), [None]) is None
    assert result_of(agg.last(), [0, None]) == 0


@given(st.lists(pairs))
def test_first_and_last_by_a_field_are_the_ends_of_a_stable_sort(
    rows: list[tuple[int | None, str | None]],
) -> None:
    whole = [row for row in rows if None not in row]
    ordered = sorted(whole, key=lambda row: row[0] or 0)

    first = result_of(agg.first("name", by="time"), rows)
    last = result_of(agg.last("name", by="time"), rows)

    assert (ordered[0][1] if whole else None) == first
    assert (ordered[-1][1] if whole else None) == last


def test_an_order_of_nan_is_no_order() -> None:
    rows = [(NAN, "a"), (2, "b"), (NAN, "c"), (1, "d")]
    assert result_of(agg.first("name", by="time"), rows) == "d"
    assert result_of(agg.last("name", by="time"), rows) == "b"
    assert result_of(agg.top_k(3, "name", by="time"), rows) == ["b", "d"]


@given(st.lists(st.none() | st.integers(-3, 3) | st.sampled_from(["a", b"a", 1.0, True, NAN])))
def test_distinct_counts_different_values_and_passes_over_none_e37(values: list[Any]) -> None:
    expected = len(set(plain(values))) + any(value != value for value in values)
    assert expected == result_of(agg.distinct(), values)


def test_distinct_takes_tuples_and_refuses_what_cannot_be_compared() -> None:
    assert result_of(agg.distinct(), [("a", 1), ("a", 2), ("a", 1)]) == 2
    with pytest.raises(TypeError, match="unhashable"):
        result_of(agg.distinct(), [["a"]])


def test_a_nan_restored_from_state_is_the_same_value_for_distinct() -> None:
    aggregate = agg.distinct()
    restored = decode_state(encode_state(accumulator_of(aggregate, [NAN, 1.5])))
    assert aggregate.result(aggregate.add(restored, float("nan"))) == 2


@given(st.lists(exact), st.integers(1, 5))
def test_collect_keeps_the_first_values_in_order(values: list[int | None], limit: int) -> None:
    assert plain(values)[:limit] == result_of(agg.collect(limit=limit), values)


@given(st.lists(floats), st.integers(1, 5))
def test_top_k_is_the_head_of_a_sort(values: list[float | None], k: int) -> None:
    assert sorted(plain(values), reverse=True)[:k] == result_of(agg.top_k(k), values)


@given(st.lists(pairs), st.integers(1, 5))
def test_top_k_by_a_field_prefers_the_first_to_arrive(
    rows: list[tuple[int | None, str | None]], k: int
) -> None:
    whole = [row for row in rows if None not in row]
    # sorted() keeps equal ones in their order, in reverse too.
    expected = sorted(whole, key=lambda row: row[0] or 0, reverse=True)[:k]
    assert [name for _, name in expected] == result_of(agg.top_k(k, "name", by="n"), rows)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_variance_is_that_of_the_textbook(values: list[float]) -> None:
    sample, population = statistics.variance(values), statistics.pvariance(values)
    assert result_of(agg.variance(), values) == pytest.approx(sample, rel=1e-9, abs=1e-6)
    assert result_of(agg.variance(population=True), values) == pytest.approx(
        population, rel=1e-9, abs=1e-6
    )


def test_standard_deviation_is_the_root_of_the_variance() -> None:
    assert result_of(agg.stddev(), [1, None, 3]) == math.sqrt(2)
    assert result_of(agg.stddev(population=True), [1, None, 3]) == 1.0


def test_variance_far_from_zero_keeps_its_digits() -> None:
    values = [1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16]
    assert result_of(agg.variance(), values) == 30.0
    squares = sum(value * value for value in values) - sum(values) ** 2 / 4
    assert squares / 3 != 30.0, "the case must tell the naive formula apart"


def test_a_variance_beyond_all_floats_is_infinite() -> None:
    values = [1e308, 1e308, -1e308]
    assert result_of(agg.variance(), values) == math.inf
    assert result_of(agg.stddev(population=True), values) == math.inf


def test_too_few_values_have_no_variance() -> None:
    assert result_of(agg.variance(), []) is None
    assert result_of(agg.variance(), [7]) is None
    assert result_of(agg.stddev(), [7]) is None
    assert result_of(agg.variance(population=True), [7]) == 0.0
    assert result_of(agg.stddev(population=True), [None]) is None


@pytest.mark.parametrize("values", [[NAN, 2.0, 1.0], [2.0, NAN, 1.0], [2.0, 1.0, NAN]])
def test_minimum_and_maximum_pass_over_nan_wherever_it_stands(values: list[float]) -> None:
    assert result_of(agg.min(), values) == 1.0
    assert result_of(agg.max(), values) == 2.0
    for aggregate in (agg.min(), agg.max()):
        one_by_one = aggregate.init()
        for value in values:
            one_by_one = aggregate.add(one_by_one, value)
        assert one_by_one == result_of(aggregate, values)
    assert result_of(agg.min(), [NAN]) is None
    assert result_of(agg.max(), [NAN]) is None


@given(st.lists(floats | st.just(0.0) | st.integers(-BIG, BIG), min_size=1), st.floats(0, 1))
def test_a_quantile_is_within_the_error_of_the_value_at_its_rank(
    values: list[float | None], q: float
) -> None:
    known = sorted(plain(values))
    result = result_of(agg.quantile(q, error=0.02), values)
    if not known:
        assert result is None
        return
    exact_value = known[math.floor(q * (len(known) - 1))]
    assert result == pytest.approx(exact_value, rel=0.02 * (1 + 1e-9), abs=1e-300)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_that_of_ddsketch_itself(values: list[float], q: float) -> None:
    sketch = BaseDDSketch(CubicallyInterpolatedMapping(0.01), DenseStore(), DenseStore(), 0.0)
    for value in values:
        sketch.add(value)
    assert sketch.get_quantile_value(q) == result_of(agg.quantile(q), values)


def test_quantiles_at_the_ends_of_the_floats() -> None:
    assert result_of(agg.quantile(0.5), [5e-324, -5e-324]) == 0.0
    assert result_of(agg.quantile(1), [1e307]) == pytest.approx(1e307, rel=0.01)
    assert result_of(agg.quantile(0), [-1e307]) == pytest.approx(-1e307, rel=0.01)
    for beyond in (math.inf, -math.inf):
        with pytest.raises(ValueError, match="no place among the quantiles"):
            result_of(agg.quantile(0.5), [beyond])


def test_reduce_starts_from_the_first_value() -> None:
    assert result_of(agg.reduce(lambda a, b: a | b), [None, 1, 6]) == 7
    assert result_of(agg.reduce(lambda a, b: a | b), [None]) is None
    with pytest.raises(TypeError, match="returned None"):
        result_of(agg.reduce(lambda _a, _b: None), [1, 2])


def test_fold_sees_every_value_and_starts_afresh_for_every_key() -> None:
    def step(seen: list[object], value: object) -> list[object]:
        seen.append(value)
        return seen

    aggregate = agg.fold(list, step, result=len)
    column = [aggregate.init(), aggregate.init()]
    aggregate.add_column(column, [0, 1, 0], iter([1, None, 2]))
    assert column == [[1, 2], [None]]
    assert aggregate.result_column(column) == [2, 1]


@pytest.mark.parametrize(
    ("described", "field", "values"),
    [
        ("fold('n', list, lambda())", "n", [1, None, 3]),
        ("fold(lambda('n'), list, lambda())", lambda row: row["n"], [1, None, 3]),
        ("fold(n * 10, list, lambda())", col("n") * 10, [10, None, 30]),
    ],
)
def test_a_fold_reads_a_name_a_function_or_an_expression(
    described: str, field: Any, values: list[int | None]
) -> None:
    fold = agg.fold(list, lambda seen, n: [*seen, n], field)
    pipeline = Pipeline("p")
    keyed = pipeline.source("rows", time="t").key_by("k")
    keyed.window(tumbling(5)).agg(seen=fold).to("windows")
    keyed.agg(seen=fold).to("running")

    rows = [{"k": "a", "t": time, "n": n} for time, n in ((0, 1), (1, None), (7, 3))]
    found = pipeline.test({"rows": rows})

    assert described == fold.describe()
    assert [values[:2], values[2:]] == [row["seen"] for row in found["windows"]]
    assert [values[:1], values[:2], values] == [row["seen"] for row in found["running"]]


EXACT_MERGES: list[tuple[Aggregate[Any, Any, Any], st.SearchStrategy[Any]]] = [
    (agg.count(), exact),
    (agg.count("x"), exact),
    (agg.sum(), exact),
    (agg.mean(), exact),
    (agg.min(), floats),
    (agg.max(), floats),
    (agg.first(), exact),
    (agg.last(), exact),
    (agg.first("name", by="n"), pairs),
    (agg.last("name", by="n"), pairs),
    (agg.distinct(), floats),
    (agg.collect(limit=4), exact),
    (agg.top_k(3), floats),
    (agg.top_k(3, "name", by="n"), pairs),
    (agg.quantile(0.3), floats),
    (agg.reduce(lambda a, b: a + b), exact),
    (agg.fold(int, lambda n, _: n + 1, merge=lambda a, b: a + b), exact),
]


@given(st.sampled_from(EXACT_MERGES), st.data())
def test_merging_is_adding_the_rows_of_the_later_session_after_those_of_the_earlier(
    case: tuple[Aggregate[Any, Any, Any], st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    aggregate, values = case
    left, right = data.draw(st.lists(values, max_size=8)), data.draw(st.lists(values, max_size=8))
    merged = aggregate.merge(accumulator_of(aggregate, left), accumulator_of(aggregate, right))
    assert same_plain(accumulator_of(aggregate, left + right), merged)


@given(st.lists(st.floats(-1e3, 1e3)), st.lists(st.floats(-1e3, 1e3)))
def test_variances_merge_as_if_seen_together(left: list[float], right: list[float]) -> None:
    aggregate = agg.variance(population=True)
    merged = aggregate.merge(accumulator_of(aggregate, left), accumulator_of(aggregate, right))
    together = result_of(aggregate, left + right)
    assert aggregate.result(merged) == (
        None if together is None else pytest.approx(together, rel=1e-9, abs=1e-9)
    )


def test_float_sums_of_sessions_are_added_earlier_to_later_e36() -> None:
    aggregate = agg.sum()
    left, right = [1e16, 1.0], [-1e16, 0.5]
    expected = ((0 + 1e16) + 1.0) + ((0 + -1e16) + 0.5)
    assert expected == aggregate.merge(
        accumulator_of(aggregate, left), accumulator_of(aggregate, right)
    )


INVERTIBLE = [agg.count(), agg.count("x"), agg.sum(), agg.mean(), agg.quantile(0.5)]


@given(st.sampled_from(INVERTIBLE), st.lists(exact, min_size=1), st.data())
def test_a_value_taken_back_was_never_there(
    aggregate: Aggregate[Any, Any, Any], values: list[int | None], data: st.DataObject
) -> None:
    gone = data.draw(st.integers(0, len(values) - 1))
    without = accumulator_of(aggregate, values[:gone] + values[gone + 1 :])
    assert without == aggregate.remove(accumulator_of(aggregate, values), values[gone])


@pytest.mark.parametrize("aggregate", [agg.sum(), agg.mean()], ids=DESCRIBED)
def test_a_float_cannot_be_taken_back_from_a_sum(aggregate: Aggregate[Any, Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"0\.5 cannot be taken back"):
        aggregate.remove(accumulator_of(aggregate, [1, 2]), 0.5)
    with pytest.raises(TypeError, match="cannot be taken back"):
        aggregate.remove(accumulator_of(aggregate, [1, 0.5]), 1)


class Longest(Aggregate[str, str, str]):
    def init(self) -> str:
        return ""

    def add(self, accumulator: str, value: str) -> str:
        return value if len(value) > len(accumulator) else accumulator

    def result(self, accumulator: str) -> str:
        return accumulator


@pytest.mark.parametrize(
    "aggregate", [Longest(), agg.fold(list, lambda seen, _: seen)], ids=DESCRIBED
)
def test_an_aggregate_without_merge_is_refused_where_sessions_merge(
    aggregate: Aggregate[Any, Any, Any],
) -> None:
    with pytest.raises(UsageError, match=r"agg n: .*has no merge\(\)"):
        agg.require_mergeable(aggregate, "agg n")
    with pytest.raises(UsageError):
        aggregate.merge(aggregate.init(), aggregate.init())


@pytest.mark.parametrize(
    "aggregate", [case for case, _ in EXACT_MERGES] + [agg.stddev()], ids=DESCRIBED
)
def test_built_in_aggregates_merge(aggregate: Aggregate[Any, Any, Any]) -> None:
    agg.require_mergeable(aggregate, "agg n")


@pytest.mark.parametrize(
    "aggregate", [agg.min(), agg.distinct(), agg.stddev(), Longest()], ids=DESCRIBED
)
def test_an_aggregate_that_takes_nothing_back_is_refused_over_retractions_e40(
    aggregate: Aggregate[Any, Any, Any],
) -> None:
    with pytest.raises(UsageError, match=r"agg n: .*has no remove\(\)"):
        agg.require_invertible(aggregate, "agg n")
    with pytest.raises(UsageError):
        aggregate.remove(aggregate.init(), "x")
    agg.require_invertible(agg.count(), "agg n")


@given(st.sampled_from(EXACT_MERGES), st.data())
def test_state_keeps_every_accumulator(
    case: tuple[Aggregate[Any, Any, Any], st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    aggregate, values = case
    accumulator = accumulator_of(aggregate, data.draw(st.lists(values, max_size=8)))
    assert same_plain(accumulator, decode_state(encode_state(accumulator)))


def test_the_result_leaves_the_accumulator_as_it_is() -> None:
    aggregate = agg.top_k(2)
    column = [accumulator_of(aggregate, [1, 3, 2])]
    assert aggregate.result_column(column) == aggregate.result_column(column) == [[3, 2]]


@dataclass
class Trade:
    name: str
    n: int


def test_two_fields_are_read_at_once_from_dicts_objects_and_both() -> None:
    objects: list[object] = [Trade("a", 1), Trade("b", 2)]
    dicts: list[object] = [{"name": "a", "n": 1}, {"name": "b", "n": 2}]
    mixed = [objects[0], dicts[1]]
    for values in (objects, dicts, mixed):
        getter = field_getter(FieldPair("n", "name"), values)
        assert getter is not None
        assert list(map(getter, values)) == [(1, "a"), (2, "b")]
    whole = field_getter(FieldPair("n", None), dicts)
    assert whole is not None
    assert whole(dicts[0]) == (1, {"name": "a", "n": 1})
    assert FieldPair("n", "name")(objects[0]) == (1, "a")


def test_a_field_of_structs_is_read_at_once_and_one_that_is_missing_is_told() -> None:
    kind = msgspec.defstruct("Row", ["n"])
    rows = [kind(1), kind(2), kind(3)]
    del rows[1].n
    getter = field_getter("n", rows, kind)
    assert getter is not None
    bad: dict[int, Exception] = {}
    assert [1, REJECTED, 3] == convert(rows, getter, bad.__setitem__)
    assert [(1, AttributeError)] == [(index, type(error)) for index, error in bad.items()]


@pytest.mark.parametrize("name", ["n", "class", chr(0xFB01)])
def test_a_field_of_structs_is_read_whatever_its_name(name: str) -> None:
    # To Python's parser the ligature in the list is the two letters it is made of.
    kind = msgspec.defstruct("Row", ["fi", name])
    rows = [kind(1, 2), kind(3, 4)]
    getter = field_getter(name, rows, kind)
    assert getter is not None
    assert [2, 4] == convert(rows, getter, {}.__setitem__) == list(map(getter, rows))


def test_the_names_a_field_reads_by_are_known() -> None:
    assert field_names("a") == ["a"]
    assert field_names(FieldPair("a", lambda value: value)) == ["a"]
    assert field_names(None) == []


@pytest.mark.parametrize(
    ("expected", "aggregate"),
    [
        ("variance('x')", agg.variance("x")),
        ("variance('x', population)", agg.variance("x", population=True)),
        ("stddev()", agg.stddev()),
        ("first('x')", agg.first("x")),
        ("last('x', by='t')", agg.last("x", by="t")),
        ("distinct('x')", agg.distinct("x")),
        ("collect('x', limit=3)", agg.collect("x", limit=3)),
        ("top_k('x', k=3)", agg.top_k(3, "x")),
        ("top_k(value, by='x', k=3)", agg.top_k(3, by="x")),
        ("quantile('x', q=0.5, error=0.01)", agg.quantile(0.5, "x")),
        ("reduce('x', max)", agg.reduce(max, "x")),
        ("fold(list, lambda(), result=len)", agg.fold(list, lambda seen, _: seen, result=len)),
        ("Longest()", Longest()),
    ],
)
def test_descriptions_hold_all_that_matters(
    expected: str, aggregate: Aggregate[Any, Any, Any]
) -> None:
    assert expected == aggregate.describe()


MISTAKES: dict[str, Callable[[], object]] = {
    "collect nothing": lambda: agg.collect(limit=0),
    "k is a bool": lambda: agg.top_k(True),
    "k is a float": lambda: agg.top_k(1.5),  # type: ignore[call-overload]
    "by is no field": lambda: agg.first("x", by=3),  # type: ignore[call-overload]
    "q above one": lambda: agg.quantile(1.1),
    "q is NaN": lambda: agg.quantile(NAN),
    "no error allowed": lambda: agg.quantile(0.5, error=0.0),
    "reduce without function": lambda: agg.reduce("x"),  # type: ignore[call-overload]
    "init is a value": lambda: agg.fold([], lambda seen, _: seen),  # type: ignore[call-overload]
    "merge is no function": lambda: agg.fold(list, lambda a, _: a, merge=1),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_where_they_are_made(mistake: str) -> None:
    with pytest.raises(UsageError, match="agg"):
        MISTAKES[mistake]()
