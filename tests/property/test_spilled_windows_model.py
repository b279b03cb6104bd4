"""Windows and dedup that spill are those in memory: the same results and state."""

from __future__ import annotations

from typing import Any

from hypothesis import given, strategies as st
from pipeline_runs import Run, as_batches
from spilled_runs import compare, hashable

from millstream.processor import FixedWindows, Pipeline, Row, agg
from millstream.processor.holding import StatePlace
from millstream.processor.spilled_dedup import SpilledDedupOperator
from millstream.processor.spilled_windowing import SpilledWindowOperator

FAR = (1 << 63) - 41
"""The last windows end beyond what SQLite has for integers."""

# 1, 1.0 and True are one key, which is shown as it came first.
KEYS: list[Any] = ["a", "\u00e9", 1, 1.0, True, 2, 2.5, ("a", 1), ("a", 1.0), *map(str, range(9))]

events = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(KEYS)), max_size=80)
windows = st.builds(FixedWindows, st.integers(1, 30), st.integers(1, 20), st.integers(0, 9))
marks = st.lists(st.sampled_from(["", "sweep", "crash", "step"]), min_size=1, max_size=9)


def inputs(events: list[tuple[int, Any]], base: int) -> dict[str, list[Row]]:
    return {
        "in": [
            Row({"n": number, "k": key, "t": time + base}, timestamp_ms=time + base)
            for number, (time, key) in enumerate(events)
        ]
    }


def pipeline_of(state: StatePlace, fixed: FixedWindows, grace: int) -> Pipeline:
    pipeline = Pipeline("p", state=state)
    rows = pipeline.source("in", time="t", disorder=grace)
    keyed = rows.key_by(lambda row: hashable(row["k"]))
    results = keyed.window(fixed, grace=grace).agg(
        n=agg.count(), ids=agg.collect("n", limit=5), most=agg.max("n"), mean=agg.mean("n")
    )
    results.map(lambda row: [repr(row.key), row.end, row.n, row.ids, row.most, row.mean]).to("out")
    results.late.to("late")
    return pipeline


def dedup_of(state: StatePlace, within: int, grace: int, *, keyed: bool) -> Pipeline:
    pipeline = Pipeline("p", state=state)
    rows = pipeline.source("in", time="t", disorder=grace)
    stream: Any = rows.key_by(lambda row: row["n"] % 2) if keyed else rows
    once = stream.dedup(lambda row: hashable(row["k"]), within=within)
    once.map(lambda row: row["n"]).to("out")
    once.late.map(lambda row: row["n"]).to("late")
    return pipeline


@given(events, windows, st.integers(0, 20), st.integers(1, 20), marks, st.sampled_from([0, FAR]))
def test_windows_that_spill_are_windows_in_memory(
    events: list[tuple[int, Any]],
    fixed: FixedWindows,
    grace: int,
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    compare(
        lambda state: pipeline_of(state, fixed, grace), inputs(events, base), batch_records, marks
    )


@given(
    events,
    st.integers(1, 20),
    st.integers(0, 12),
    st.booleans(),
    st.integers(1, 20),
    marks,
    st.sampled_from([0, FAR]),
)
def test_dedup_that_spills_is_dedup_in_memory(
    events: list[tuple[int, Any]],
    within: int,
    grace: int,
    keyed: bool,
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    def pipeline(state: StatePlace) -> Pipeline:
        return dedup_of(state, within, grace, keyed=keyed)

    compare(pipeline, inputs(events, base), batch_records, marks)


def test_only_what_is_in_use_stays_in_memory() -> None:
    run = Run(pipeline_of("sqlite", FixedWindows(100, 100, 0), 0))
    rows = [Row({"n": n, "k": f"k{n}", "t": n % 50}, timestamp_ms=n % 50) for n in range(500)]
    for batches in as_batches({"in": rows}, 10):
        run.topology.process(batches)
        run.commit()
    (operator,) = run.topology.stateful.values()
    assert isinstance(operator, SpilledWindowOperator)
    assert 500 == operator.live_count
    assert sum(window.held_count for window in operator._spilling.values()) <= 20
    run.topology.flush()
    run.commit()
    assert 500 == len(run.out["out"])


def test_only_what_dedup_looks_at_stays_in_memory() -> None:
    run = Run(dedup_of("sqlite", 1_000, 0, keyed=False))
    rows = [Row({"n": n, "k": f"k{n % 500}", "t": n % 50}, timestamp_ms=n % 50) for n in range(600)]
    for batches in as_batches({"in": rows}, 10):
        run.topology.process(batches)
        run.commit()
    (operator,) = run.topology.stateful.values()
    assert isinstance(operator, SpilledDedupOperator)
    assert (500, 100) == (operator.live_count, operator.skipped_count)
    assert operator.held_count <= 20
    assert 500 == len(run.out["out"])
