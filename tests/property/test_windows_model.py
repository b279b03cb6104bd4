"""Windows held against a model that looks at one row at a time and knows no columns.

Random rows, partitions, disorder, grace, windows and cuts into batches; the records must be equal
one by one, in order, with everything in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import given, settings, strategies as st

from millstream.processor import FixedWindows, Pipeline, Row, SessionWindows, agg, session

Event = tuple[int, int, str | int, float]
"""Partition, time, key, amount."""

NEVER = -(10**30)


def key_bytes(key: str | int) -> bytes:
    return key.encode() if isinstance(key, str) else json.dumps(key).encode()


def model(
    events: Sequence[Event], windows: FixedWindows, disorder: int, grace: int
) -> tuple[list[object], list[object]]:
    """Results and late rows, each row judged alone."""
    level = NEVER
    maxima: dict[int, int] = {}
    open_windows: dict[tuple[int, str | int], list[float]] = {}
    results: list[object] = []
    late: list[object] = []

    def close(until: float) -> None:
        due = [place for place in open_windows if place[0] + grace <= until]
        for end, key in sorted(due, key=lambda place: (place[0], key_bytes(place[1]))):
            amounts = open_windows.pop((end, key))
            total = 0.0
            for amount in amounts:
                total += amount
            results.append(
                {
                    "key": key,
                    "window_start": end - windows.size_ms,
                    "window_end": end,
                    "n": len(amounts),
                    "total": total,
                    "mean": total / len(amounts),
                    "least": min(amounts),
                    "most": max(amounts),
                }
            )

    for partition, time, key, amount in events:
        start = (
            windows.offset_ms + (time - windows.offset_ms) // windows.slide_ms * windows.slide_ms
        )
        starts = []
        while start > time - windows.size_ms:
            starts.append(start)
            start -= windows.slide_ms
        accepted = False
        for start in starts:
            end = start + windows.size_ms
            if end + grace > level:
                accepted = True
                open_windows.setdefault((end, key), []).append(amount)
        if starts and not accepted:
            late.append({"p": partition, "t": time, "k": key, "x": amount})
        maxima[partition] = max(maxima.get(partition, NEVER), time)
        level = max(level, min(maxima.values()) - disorder)
        close(level)
    close(float("inf"))
    return results, late


def pipeline_of(windows: FixedWindows, disorder: int, grace: int) -> Pipeline:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", disorder=disorder)
    results = (
        rows.key_by("k")
        .window(windows, grace=grace)
        .agg(
            n=agg.count(),
            total=agg.sum("x"),
            mean=agg.mean("x"),
            least=agg.min("x"),
            most=agg.max("x"),
        )
    )
    results.to("out")
    results.late.to("late")
    return pipeline


events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(-60, 60),
        st.sampled_from(["a", "b", "\u00e9", "\uffff", "\U0001f600"]) | st.integers(1, 12),
        st.floats(-1e9, 1e9),
    ),
    max_size=60,
)
tumbling_windows = st.builds(
    lambda size, offset: FixedWindows(size, size, offset), st.integers(1, 30), st.integers(-40, 40)
)
hopping_windows = st.builds(
    FixedWindows, st.integers(1, 30), st.integers(1, 20), st.integers(-40, 40)
)


@given(
    events,
    tumbling_windows | hopping_windows,
    st.integers(0, 30),
    st.integers(0, 20),
    st.integers(1, 61),
)
def test_windows_equal_the_model_for_any_cut(
    rows: list[Event], windows: FixedWindows, disorder: int, grace: int, batch_records: int
) -> None:
    results, late = model(rows, windows, disorder, grace)
    output = pipeline_of(windows, disorder, grace).test(
        {"in": [Row({"p": p, "t": t, "k": k, "x": x}, partition=p) for p, t, k, x in rows]},
        batch_records=batch_records,
    )
    assert output["out"] == results
    assert output["late"] == late
    assert [record.timestamp_ms for record in output.records("out")] == [
        result["window_end"] - 1  # type: ignore[index]  # a dict
        for result in results
    ]
    assert [record.timestamp_ms for record in output.records("late")] == [
        row["t"]  # type: ignore[index]  # a dict
        for row in late
    ]


def several_streams() -> Pipeline:
    """Filters, several rows for one, windows on windows, and all streams in one topic."""
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", disorder=4)
    rows.dead_letters.to("out")
    first = (
        rows.filter(lambda row: row["x"] >= 0)
        .flat_map(lambda row: [row] * (row["t"] % 3))
        .key_by(lambda row: row["k"] if row["t"] % 7 else None)
        .window(FixedWindows(12, 5, 1), grace=8)
        .agg(n=agg.count(), total=agg.sum("x"))
    )
    first.to("out")
    first.late.to("out")
    second = (
        first.filter(lambda result: result["n"] < 9)
        .key_by(lambda result: result["n"])
        .window(FixedWindows(30, 30, -2), grace=2)
        .agg(n=agg.count(), total=agg.sum(lambda result: result["total"]))
    )
    second.to("out")
    second.late.to("late")
    rows.map(lambda row: row["t"]).to("out")
    return pipeline


@given(events, st.lists(st.integers(0, 60), max_size=3), st.integers(1, 20))
def test_no_stream_depends_on_where_batches_are_cut(
    rows: list[Event], bad: list[int], batch_records: int
) -> None:
    inputs: list[object] = [
        Row({"p": p, "t": t, "k": k, "x": x}, partition=p) for p, t, k, x in rows
    ]
    for index in bad:
        inputs.insert(index, b"{")
    whole = several_streams().test({"in": inputs})
    cut = several_streams().test({"in": inputs}, batch_records=batch_records)
    for topic in whole:
        assert cut.records(topic) == whole.records(topic)
    assert cut["late"] == [], "what a window emits is never late for the next"


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8), st.sampled_from("ab")), max_size=40),
    st.sampled_from([FixedWindows(10, 10, 0), FixedWindows(12, 5, 1), session(4)]),
    st.integers(0, 6),
)
def test_e3_disorder_within_the_bound_gives_the_results_of_sorted_input(
    steps: list[tuple[int, int, str]], windows: FixedWindows | SessionWindows, grace: int
) -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", disorder=8)
    results = rows.key_by("k").window(windows, grace=grace).agg(n=agg.count(), ts=agg.sum("t"))
    results.to("out")
    results.late.to("late")
    now, disordered = 0, []
    for step, behind, key in steps:
        now += step
        disordered.append({"t": now - behind, "k": key})
    output = pipeline.test({"in": disordered})
    assert output["late"] == []
    assert output == pipeline.test({"in": sorted(disordered, key=lambda row: row["t"])})
