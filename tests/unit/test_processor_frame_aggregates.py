"""Accumulators in arrays hold what those of the aggregates hold, to the last bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millstream.processor import agg
from millstream.processor.aggregate import Aggregate
from millstream.processor.fields import FieldPair
from millstream.processor.frame_accumulators import AddError, Inputs
from millstream.processor.frame_aggregates import accumulators_for
from millstream.processor.frame_objects import Objects, objects_of
from millstream.processor.frame_turns import Turns
from millstream.processor.numeric_aggregates import Variance

SLOTS = 400

AGGREGATES: list[Aggregate[Any, Any, Any]] = [
    agg.count("x"),
    agg.sum("x"),
    agg.mean("x"),
    agg.min("x"),
    agg.max("x"),
    agg.first("x"),
    agg.last("x"),
    agg.variance("x"),
    agg.stddev("x", population=True),
]


def column(rng: random.Random, count: int, *, ints: bool) -> list[Any]:
    """Numbers and nulls."""

    def number() -> Any:
        return rng.randrange(-(2**40), 2**40) if ints else rng.uniform(-1e6, 1e6)

    return [None if rng.random() < 0.2 else number() for _ in range(count)]


def slots(rng: random.Random, count: int) -> list[int]:
    """Some have a row, some have many more than others."""
    return [rng.randrange(rng.choice((3, SLOTS, SLOTS, SLOTS))) for _ in range(count)]


@pytest.mark.parametrize("ints", [True, False])
@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda one: one.describe())
def test_arrays_hold_what_the_aggregate_holds(
    aggregate: Aggregate[Any, Any, Any], ints: bool
) -> None:
    rng = random.Random(repr(aggregate.describe()))
    kind = pa.int64() if ints else pa.float64()
    held = [aggregate.init() for _ in range(SLOTS)]
    arrays = accumulators_for(aggregate, Inputs(pa.array([1], kind)))
    assert not isinstance(arrays, Objects)
    arrays.grow(SLOTS)
    every = np.arange(SLOTS, dtype=np.int32)
    for count in (5, 700, 3_000):
        values, places = column(rng, count, ints=ints), slots(rng, count)
        inputs = Inputs(pa.array(values, kind))
        assert arrays.accepts(inputs)
        arrays.add(np.array(places, np.int32), inputs)
        aggregate.add_column(held, places, values)

        chosen = rng.sample(range(SLOTS), 40)
        left, right, gone = chosen[:15], chosen[15:30], chosen[30:]
        assert arrays.can_merge(np.array(left + right), inputs)
        arrays.merge(np.array(left, np.int32), np.array(right, np.int32))
        for one, other in zip(left, right, strict=True):
            held[one] = aggregate.merge(held[one], held[other])
        arrays.reset(np.array([*right, *gone], np.int32))
        for slot in (*right, *gone):
            held[slot] = aggregate.init()

        assert list(map(repr, held)) == list(map(repr, arrays.state(every)))
        if not ints and isinstance(held[0], int) and aggregate.word == "sum":
            continue  # a sum of floats in which there is none
        some = [slot for slot in range(SLOTS) if result(aggregate, held[slot]) is not None]
        found = arrays.results(np.array(some, np.int32)).to_pylist()
        assert found == [result(aggregate, held[slot]) for slot in some]

    again = accumulators_for(aggregate, inputs)
    again.restore(arrays.state(every))
    assert list(map(repr, held)) == list(map(repr, again.state(every)))


def result(aggregate: Aggregate[Any, Any, Any], held: Any) -> Any:
    """What an aggregate says, None where a sum of floats has had none."""
    return None if held == 0 and type(held) is int else aggregate.result(held)


def test_an_aggregate_derived_from_a_known_one_is_asked_itself() -> None:
    class Mine(Variance):
        def add(self, accumulator: list[float], value: float | None) -> list[float]:
            return [1, 2.0, 3.0]

    made = accumulators_for(Mine("x", population=False), Inputs(pa.array([1.5])))
    assert isinstance(made, Objects)


def test_the_bound_of_sums_falls_with_what_is_gone() -> None:
    """Sums that have been taken out do not count for ever."""
    sums = accumulators_for(agg.sum("x"), Inputs(pa.array([1])))
    sums.grow(1)
    slot = np.zeros(1, np.int32)
    for _ in range(10):
        large = Inputs(pa.array([2**62]))
        assert sums.accepts(large)
        sums.add(slot, large)
        assert not sums.accepts(large)
        sums.reset(slot)


# --- aggregates whose accumulators are objects ---------------------------------------------------

OBJECTS: list[Aggregate[Any, Any, Any]] = [
    agg.distinct("x"),
    agg.first("x"),
    agg.last("x"),
    agg.min("x"),
    agg.max("x"),
    agg.collect("x", limit=3),
    agg.top_k(3, "x"),
    agg.quantile(0.5, "x"),
    agg.first("x", by="y"),
    agg.last("x", by="y"),
    agg.top_k(3, "x", by="y"),
    agg.reduce(max, "x"),
]
SOME = range(20_000)
DRAWN: dict[str, tuple[Any, list[Any]]] = {
    "ints": (pa.int64(), [*range(-5, 40), 2**62, -(2**63), 2**53 + 1, 2**53]),
    "floats": (pa.float64(), [0.0, -0.0, 1.5, -2.5, 1e300, 5e-324, *(n / 7 for n in range(30))]),
    "texts": (pa.string(), ["", "a", "b", "ab", "\u00e4", "z" * 20, "\u65e5", "\U0001f600"]),
    "flags": (pa.bool_(), [True, False]),
}


def drawn(rng: random.Random, values: list[Any], count: int) -> list[Any]:
    """Some of the values, and nulls."""
    return [None if rng.random() < 0.2 else rng.choice(values) for _ in range(count)]


@pytest.mark.parametrize(
    ("aggregate", "kind"),
    [
        pytest.param(each, kind, id=f"{each.describe()}-{kind}")
        for each in OBJECTS
        for kind in DRAWN
        if each.word != "quantile" or kind != "texts"  # it takes numbers alone
    ],
)
def test_objects_are_what_rows_leave(aggregate: Aggregate[Any, Any, Any], kind: str) -> None:
    rng = random.Random(repr((aggregate.describe(), kind)))
    type_, values = DRAWN[kind]
    is_pair = isinstance(aggregate.field, FieldPair)
    held = [aggregate.init() for _ in range(SLOTS)]
    arrays = objects_of(aggregate)
    arrays.grow(SLOTS)
    for count in (5, 300, 3_000, 100):
        column, order = drawn(rng, values, count), drawn(rng, values, count)
        places = slots(rng, count)
        whole = Inputs(pa.array(column, type_), pa.array(order, type_) if is_pair else None)
        chosen = np.array(sorted(rng.sample(range(count), count - 3)))
        arrays.add(np.array(places, np.int32)[chosen], whole.at(chosen))
        added: list[Any] = list(zip(order, column, strict=True)) if is_pair else column
        aggregate.add_column(held, [places[one] for one in chosen], [added[one] for one in chosen])

        assert list(map(repr, held)) == list(map(repr, arrays.state(np.arange(SLOTS))))


@pytest.mark.parametrize("error", [0.5, 0.01, 1e-5])
def test_buckets_of_quantiles_are_found_together_as_one_by_one(error: float) -> None:
    rng = random.Random(error)
    values = [rng.choice((-1, 1)) * rng.random() * 10.0 ** rng.randrange(-320, 308) for _ in SOME]
    values += [0.0, -0.0, 5e-324, 2.3e-308, 3e-308, 1.7e308, *(2.0**n for n in range(-1070, 1020))]
    aggregate = agg.quantile(0.5, "x", error=error)
    held = [aggregate.init()]
    arrays = objects_of(aggregate)
    arrays.grow(1)

    aggregate.add_column(held, [0] * len(values), values)
    arrays.add(np.zeros(len(values), np.int32), Inputs(pa.array(values)))

    assert repr(held) == repr(arrays.state(np.zeros(1, np.int32)))


def test_only_rows_that_may_count_become_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    as_list = Inputs.as_list
    monkeypatch.setattr(
        Inputs, "as_list", lambda self, places: made.append(len(places)) or as_list(self, places)
    )
    values = pa.array([number % 7 for number in range(20_000)])
    of_slots = (np.arange(20_000) % 3).astype(np.int32)
    for aggregate in OBJECTS[:7]:
        arrays = objects_of(aggregate)
        arrays.grow(3)
        arrays.add(of_slots, Inputs(values))
    assert [21, 3, 3, 3, 3, 9] == made[:-1]
    assert made[-1] < 3_000  # all sevens are as great


@pytest.mark.parametrize("aggregate", OBJECTS[3:5], ids=lambda one: one.describe())
def test_the_first_row_that_cannot_be_compared_is_to_blame(
    aggregate: Aggregate[Any, Any, Any],
) -> None:
    arrays = objects_of(aggregate)
    arrays.grow(2)
    arrays.add(np.array([1], np.int32), Inputs(pa.array(["text"])))

    with pytest.raises(AddError) as raised:
        arrays.add(np.array([0] * 90 + [1] * 30, np.int32), Inputs(pa.array(range(120))))

    assert 90 == raised.value.index
    assert isinstance(raised.value.__cause__, TypeError)


# --- what they say after every row ---------------------------------------------------------------

FOLLOWED: list[Aggregate[Any, Any, Any]] = [
    agg.count("x"),
    agg.sum("x"),
    agg.mean("x"),
    agg.min("x"),
    agg.max("x"),
    agg.first("x"),
    agg.last("x"),
    agg.distinct("x"),
    agg.first("x", by="y"),
    agg.last("x", by="y"),
    agg.variance("x"),
    agg.variance("x", population=True),
    agg.stddev("x"),
    agg.quantile(0.5, "x", error=0.05),
]
OF_NUMBERS = {"sum", "mean", "variance", "stddev", "quantile"}


@pytest.mark.parametrize(
    ("aggregate", "kind"),
    [
        pytest.param(each, kind, id=f"{each.describe()}-{kind}")
        for each in FOLLOWED
        for kind in DRAWN
        if each.word not in OF_NUMBERS or kind in {"ints", "floats"}
    ],
)
def test_after_every_row_they_say_what_rows_say(
    aggregate: Aggregate[Any, Any, Any], kind: str
) -> None:
    rng = random.Random(repr((aggregate.describe(), kind)))
    type_, values = DRAWN[kind]
    if kind in {"ints", "floats"}:
        values = [value for value in values if 0 <= value < 2**40 and repr(value) != "-0.0"]
    is_pair = isinstance(aggregate.field, FieldPair)
    held = [aggregate.init() for _ in range(SLOTS)]
    arrays = accumulators_for(
        aggregate, Inputs(pa.array(values[:1], type_), pa.array([1]) if is_pair else None)
    )
    for count in (700, 5, 3_000):
        column, order = drawn(rng, values, count), drawn(rng, [*range(9), -(2**63)], count)
        if aggregate.word == "sum":
            column = [each or values[0] for each in column]  # a sum of none is an int
        places = slots(rng, count)
        whole = Inputs(pa.array(column, type_), pa.array(order, pa.int64()) if is_pair else None)
        assert arrays.accepts(whole)
        arrays.grow(SLOTS)
        there = np.unique(places).astype(np.int32)
        followed = arrays.follow(Turns(np.array(places, np.int32)), whole)
        # Rows may have to say instead, so nothing changes yet.
        assert [repr(held[slot]) for slot in there] == list(map(repr, arrays.state(there)))
        followed.apply()

        expected = []
        for row, slot in enumerate(places):
            added = (order[row], column[row]) if is_pair else column[row]
            held[slot] = aggregate.add(held[slot], added)
            expected.append(aggregate.result(held[slot]))
        assert list(map(repr, expected)) == list(map(repr, followed.results.to_pylist()))
        assert [repr(held[slot]) for slot in there] == list(map(repr, arrays.state(there)))
