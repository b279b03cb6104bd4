"""Operators of groups that spill are those in memory: the same results and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from pipeline_runs import Run, as_batches
from spilled_runs import compare, hashable

import millstream
from millstream import DataError
from millstream.processor import (
    Context,
    FixedWindows,
    Pipeline,
    Row,
    Timer,
    agg,
    counting,
    session,
    spill_tables,
    spilled_groups,
    tumbling,
)
from millstream.processor.holding import StatePlace
from millstream.processor.spilled_groups import SpilledGroups
from millstream.processor.state import StateEntry

FAR = (1 << 63) - 41
"""Sessions close at levels beyond what SQLite has for integers."""

# 1, 1.0 and True are one key, which is shown as it came first.
KEYS: list[Any] = ["a", "\u00e9", 1, 1.0, True, 2, 2.5, ("a", 1), ("a", 1.0), *map(str, range(9))]

events = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(KEYS)), max_size=80)
marks = st.lists(st.sampled_from(["", "sweep", "crash", "step"]), min_size=1, max_size=9)
bases = st.sampled_from([0, FAR])
emissions_of_windows: list[dict[str, Any]] = [{"every": 1}, {"every": 3}, {"every": "5ms"}]
emissions = st.sampled_from([{}, *emissions_of_windows])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are cut where a few groups wake, and pages of the file are short."""
    monkeypatch.setattr(spilled_groups, "_WOKEN_GROUPS", 2)
    monkeypatch.setattr(spilled_groups, "SWEEP_RECORDS", 3)
    monkeypatch.setattr(spill_tables, "FIND_KEYS", 2)


def rows(events: list[tuple[int, Any]], base: int) -> list[Row]:
    return [
        Row({"n": number, "k": key, "t": time + base}, timestamp_ms=time + base)
        for number, (time, key) in enumerate(events)
    ]


def keyed(pipeline: Pipeline, topic: str = "in", disorder: int = 0) -> Any:
    source = pipeline.source(topic, time="t", disorder=disorder)
    return source.key_by(lambda row: hashable(row["k"]))


@given(events, st.integers(1, 12), st.integers(0, 9), emissions, st.integers(1, 20), marks, bases)
def test_sessions_that_spill_are_sessions_in_memory(
    events: list[tuple[int, Any]],
    gap: int,
    grace: int,
    emission: dict[str, Any],
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        windows = keyed(made, disorder=grace).window(session(gap), grace=grace)
        results = windows.agg(n=agg.count(), ids=agg.collect("n", limit=5), most=agg.max("n"))
        if emission:
            results = results.emit("update", **emission)
        results.map(repr).to("out")
        results.late.to("late")
        return made

    compare(pipeline, {"in": rows(events, base)}, batch_records, marks)


@given(events, st.integers(1, 5), st.integers(1, 20), marks)
def test_count_windows_that_spill_are_those_in_memory(
    events: list[tuple[int, Any]], size: int, batch_records: int, marks: list[str]
) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        windows = keyed(made).window(counting(size))
        results = windows.agg(ids=agg.collect("n", limit=9), n=agg.count())
        results.map(repr).to("out")
        return made

    compare(pipeline, {"in": rows(events, 0)}, batch_records, marks)


two_sides = st.lists(
    st.tuples(st.booleans(), st.integers(0, 40), st.sampled_from(KEYS)), max_size=80
)


def sides(events: list[tuple[bool, int, Any]], base: int) -> dict[str, list[Row]]:
    """Rows of the left side, and others."""
    return {
        "in": [
            Row({"n": n, "k": key, "t": time + base, "left": is_left}, timestamp_ms=time + base)
            for n, (is_left, time, key) in enumerate(events)
        ]
    }


def two(pipeline: Pipeline, disorder: int) -> tuple[Any, Any]:
    """The left side and the right."""
    source = pipeline.source("in", time="t", disorder=disorder)
    left, right = source.filter(lambda row: row["left"]), source.filter(lambda row: not row["left"])
    return left.key_by(lambda row: hashable(row["k"])), right.key_by(lambda row: hashable(row["k"]))


def compare_joins(
    join: Callable[[Any, Any], Any],
    inputs: dict[str, list[Row]],
    disorder: int,
    batch_records: int,
    marks: list[str],
    *,
    ordered: bool = True,
) -> None:
    """What a join makes of both sides, in memory and spilled; see `compare`."""

    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        pairs = join(*two(made, disorder))
        pairs.map(repr).to("out")
        pairs.late.map(repr).to("late")
        return made

    compare(pipeline, inputs, batch_records, marks, ordered=ordered)


@given(
    two_sides,
    st.tuples(st.integers(-12, 12), st.integers(0, 20)),
    st.sampled_from(["inner", "left", "right", "outer"]),
    st.integers(0, 9),
    st.integers(1, 20),
    marks,
    bases,
)
def test_interval_joins_that_spill_are_those_in_memory(
    events: list[tuple[bool, int, Any]],
    bounds: tuple[int, int],
    how: Any,
    disorder: int,
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    lower, upper = bounds[0], sum(bounds)

    def join(left: Any, right: Any) -> Any:
        return left.join(right, lower=lower, upper=upper, how=how)

    compare_joins(join, sides(events, base), disorder, batch_records, marks)


def test_only_what_is_in_use_stays_in_memory() -> None:
    made = Pipeline("p", state="sqlite")
    keyed(made).window(session(1_000)).agg(n=agg.count()).map(repr).to("out")
    run = Run(made)
    many = rows([(number % 50, f"k{number}") for number in range(500)], 0)
    for batches in as_batches({"in": many}, 10):
        run.topology.process(batches)
        run.commit()
    (operator,) = run.topology.stateful.values()
    assert isinstance(operator, SpilledGroups)
    assert 500 == operator.live_count
    assert operator.held_count <= 20
    assert operator.operator.live_count <= 20
    run.topology.flush()
    run.commit()
    assert 500 == len(run.out["out"])


@pytest.mark.parametrize("path", [("left", 10), ("left", 10, "a", 1, 2)])
def test_foreign_state_is_a_data_error(path: tuple[object, ...]) -> None:
    made = Pipeline("p", state="sqlite")
    left, right = two(made, 0)
    left.join(right, within=5).map(repr).to("out")
    (operator,) = Run(made).topology.stateful.values()
    with pytest.raises(DataError, match=r"interval join|in\.join"):
        operator.restore([StateEntry(path, [5, False, {}])])


def test_sessions_of_a_topic_with_a_schema_spill_as_rows() -> None:
    class Visit(msgspec.Struct):
        user: str
        at: int

    for state in ("memory", "sqlite"):
        made = Pipeline("p", state=state)
        visits = made.source("visits", type=Visit, time="at")
        visits.key_by("user").window(session(10)).agg(n=agg.count()).to("out")
        with millstream.open(":memory:") as store:
            store.create_topic("visits", schema=Visit)
            assert (state == "sqlite") == ("its state may be on disk" in made.explain(store))


@given(
    two_sides,
    st.sampled_from([("backward", None), ("backward", 6), ("forward", 9), ("nearest", 5)]),
    st.sampled_from(["inner", "left"]),
    st.integers(0, 9),
    st.integers(1, 20),
    marks,
    bases,
)
def test_as_of_joins_that_spill_are_those_in_memory(
    events: list[tuple[bool, int, Any]],
    looks: tuple[Any, int | None],
    how: Any,
    disorder: int,
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    direction, within = looks

    def join(left: Any, right: Any) -> Any:
        return left.join_asof(right, direction=direction, within=within, how=how)

    compare_joins(join, sides(events, base), disorder, batch_records, marks, ordered=False)


def remember(context: Context[Any, list[int]], row: dict[str, Any]) -> list[str]:
    """Ask to be called by event time; some rows take that back, or ask for the past."""
    number = row["n"]
    context.state.append(number)
    context.set_timer(context.time_ms + number % 7, f"{number % 3}")
    if number % 5 == 0:
        context.cancel_timer(context.time_ms + 3, "1")
    return [f"{number} {context.state} {context.watermark_ms}"]


def remind(context: Context[Any, list[int]], timer: Timer) -> list[str]:
    if timer.name == "2" and len(context.state) < 9:
        context.state.append(-1)
        context.set_timer(timer.at_ms, "again")
        context.set_timer(timer.at_ms + 4, "0")
    return [f"{context.key!r} {timer} {context.state} {context.watermark_ms}"]


@given(events, st.sampled_from([None, 5, 20]), st.integers(0, 9), st.integers(1, 20), marks)
def test_timers_that_spill_are_those_in_memory(
    events: list[tuple[int, Any]],
    ttl: int | None,
    disorder: int,
    batch_records: int,
    marks: list[str],
) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        rows = keyed(made, disorder=disorder)
        said: Any = rows.process(remember, state=list[int], on_timer=remind, ttl=ttl)
        said.to("out")
        return made

    compare(pipeline, {"in": rows(events, 0)}, batch_records, marks, ordered=False)


@given(
    events,
    st.sampled_from([(6, 6), (10, 4), (3, 5)]),
    st.integers(0, 9),
    st.sampled_from([*emissions_of_windows, {"corrections": 7}]),
    st.integers(1, 20),
    marks,
    bases,
)
def test_windows_with_updates_that_spill_are_those_in_memory(
    events: list[tuple[int, Any]],
    shape: tuple[int, int],
    grace: int,
    emission: dict[str, Any],
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        rows = keyed(made, disorder=grace)
        fixed = FixedWindows(shape[0], shape[1], 0)
        later = {"corrections": emission["corrections"]} if "corrections" in emission else {}
        results = rows.window(fixed, grace=grace, **later).agg(
            n=agg.count(), ids=agg.collect("n", limit=5)
        )
        if not later:
            results = results.emit("update", **emission)
        results.map(repr).to("out")
        results.late.to("late")
        return made

    compare(pipeline, {"in": rows(events, base)}, batch_records, marks, ordered=False)


@pytest.mark.parametrize("other", [True, 1.0])
def test_a_sweep_shows_a_key_as_it_came_first(other: object) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        made = Pipeline("p", state=state)
        results = keyed(made).window(tumbling(50)).agg(n=agg.count()).emit("update", every=9)
        results.map(repr).to("out")
        return made

    events = [(1, 1), (2, other), (3, ("a", 1)), (4, ("a", other)), (5, "b")]
    # The file has the key 1; what has changed under another name of it is swept, and read again.
    compare(pipeline, {"in": rows(events, 0)}, 1, ["", "sweep", "", "sweep", "crash"])
