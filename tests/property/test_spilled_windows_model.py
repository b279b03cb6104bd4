"""Windows that spill are windows in memory: the same results and state, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, strategies as st
from pipeline_runs import Run, as_batches

from millstream.processor import FixedWindows, Pipeline, Row, agg
from millstream.processor.holding import StatePlace
from millstream.processor.spilled_windowing import SpilledWindowOperator
from millstream.processor.state import decode_entry

FAR = (1 << 63) - 41
"""The last windows end beyond what SQLite has for integers."""

# 1, 1.0 and True are one key, which is shown as it came first.
KEYS: list[Any] = ["a", "\u00e9", 1, 1.0, True, 2, 2.5, ("a", 1), ("a", 1.0), *map(str, range(9))]

events = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(KEYS)), max_size=80)
windows = st.builds(FixedWindows, st.integers(1, 30), st.integers(1, 20), st.integers(0, 9))
marks = st.lists(st.sampled_from(["", "sweep", "crash", "step"]), min_size=1, max_size=9)


def pipeline_of(state: StatePlace, fixed: FixedWindows, grace: int) -> Pipeline:
    pipeline = Pipeline("p", state=state)
    rows = pipeline.source("in", time="t", disorder=grace)
    keyed = rows.key_by(lambda row: tuple(row["k"]) if isinstance(row["k"], list) else row["k"])
    results = keyed.window(fixed, grace=grace).agg(
        n=agg.count(), ids=agg.collect("n", limit=5), most=agg.max("n"), mean=agg.mean("n")
    )
    results.map(lambda row: [repr(row.key), row.end, row.n, row.ids, row.most, row.mean]).to("out")
    results.late.to("late")
    return pipeline


def folded(records: Sequence[tuple[bytes, bytes | None]]) -> dict[Any, Any]:
    """What state records say, as a restart reads them."""
    known: dict[Any, Any] = {}
    for key, value in records:
        path, content = decode_entry(key, value)
        if content is None:
            known = {each: kept for each, kept in known.items() if each[: len(path)] != path}
        else:
            known[path] = content
    return known


@given(events, windows, st.integers(0, 20), st.integers(1, 20), marks, st.sampled_from([0, FAR]))
def test_windows_that_spill_are_windows_in_memory(
    events: list[tuple[int, Any]],
    fixed: FixedWindows,
    grace: int,
    batch_records: int,
    marks: list[str],
    base: int,
) -> None:
    inputs = {
        "in": [
            Row({"n": number, "k": key, "t": time + base}, timestamp_ms=time + base)
            for number, (time, key) in enumerate(events)
        ]
    }
    memory, spilled = (Run(pipeline_of(state, fixed, grace)) for state in ("memory", "sqlite"))
    for run in (memory, spilled):
        (operator,) = run.topology.stateful.values()
        assert (run is spilled) == isinstance(operator, SpilledWindowOperator)
    for number, batches in enumerate(as_batches(inputs, batch_records)):
        mark = marks[number % len(marks)]
        for run in (memory, spilled):
            run.topology.process(batches)
            if mark != "step":
                run.commit(sweep=mark == "sweep")
        left, right = memory.state.get("in.window", []), spilled.state.get("in.window", [])
        assert folded(left) == folded(right)
        if "crash" not in marks:
            # A restart finds keys in another order, and what was given twice shows nothing new.
            assert len(left) == len(right)
            assert "sweep" in marks or left == right
        lives = [next(iter(run.topology.stateful.values())).live_count for run in (memory, spilled)]
        assert lives[0] == lives[1]
        if mark == "crash":
            memory.crash()
            spilled.crash()
    for run in (memory, spilled):
        run.topology.flush()
        run.commit()
    assert memory.out == spilled.out
    assert folded(memory.state["in.window"]) == folded(spilled.state["in.window"])


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
