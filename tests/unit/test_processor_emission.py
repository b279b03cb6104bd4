"""When windows speak: updates, corrections, retractions; and the windows beyond tumbling ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pipeline_runs import run_in_pieces

from millstream import UsageError
from millstream.processor import (
    KeyedStream,
    Pipeline,
    Row,
    WindowResults,
    agg,
    counting,
    daily,
    session,
    tumbling,
)

Rows = list[dict[str, Any]]
Keyed = KeyedStream[Any, dict[str, Any]]


def rows(*times: int) -> Rows:
    return [{"k": "a", "t": time} for time in times]


def run(
    declare: Callable[[Keyed], WindowResults[Any, Any, Any]], times: Rows, on_end: str = "hold"
) -> list[tuple[object, ...]]:
    """(start, end, count, status) of each result."""
    pipeline = Pipeline("p")
    results = declare(pipeline.source("in", time="t").key_by("k"))
    results.to("out")
    found = pipeline.test({"in": times}, on_end=on_end)["out"]  # type: ignore[arg-type]  # both are
    return [
        (one["window_start"], one["window_end"], one["n"], *filter(None, [one.get("status")]))
        for one in found
    ]


def test_e34_corrections_follow_the_first_result_and_the_last_is_final() -> None:
    def declare(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(tumbling(10), corrections="1m").agg(n=agg.count())

    times = rows(1, 12, 2, 3, 60_009, 4, 60_010, 5)
    found = run(declare, times)
    assert [
        (0, 10, 1, "update"),
        (0, 10, 2, "update"),
        (0, 10, 3, "update"),
        (10, 20, 1, "update"),
        (0, 10, 4, "update"),
        (60_000, 60_010, 1, "update"),
        (0, 10, 4, "final"),
    ] == found
    pipeline = Pipeline("p")
    declare(pipeline.source("in", time="t").key_by("k")).late.to("late")
    assert [5] == [row["t"] for row in pipeline.test({"in": times})["late"]], "behind the last word"


def test_e38_e39_updates_come_by_rows_or_by_event_time() -> None:
    def by_rows(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(tumbling(100)).agg(n=agg.count()).emit("update", every=2)

    def by_time(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(tumbling(100)).agg(n=agg.count()).emit("update", every="10ms")

    times = rows(1, 2, 3, 12, 13, 35, 100)
    final = [(0, 100, 6, "final")]
    assert [(0, 100, n, "update") for n in (2, 4, 6)] + final == run(by_rows, times)
    # W comes from before all time, passes 10 with the row at 12, 30 with that at 35, and 100.
    first = [(0, 100, n, "update") for n in (1, 4, 6)]
    assert [*first, (100, 200, 1, "update"), *final] == run(by_time, times)


def test_e46_what_was_said_of_merged_sessions_is_taken_back() -> None:
    def declare(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(session(10), grace=50).agg(n=agg.count()).emit("update")

    assert [
        (0, 10, 1, "update"),
        (15, 25, 1, "update"),
        (0, 10, 1, "retracted"),
        (15, 25, 1, "retracted"),
        (0, 25, 3, "update"),
        (0, 25, 3, "final"),
    ] == run(declare, rows(0, 15, 8), "flush")


def test_e47_sessions_close_when_w_reaches_their_end() -> None:
    def declare(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(session("10ms")).agg(n=agg.count())

    assert [(0, 15, 2)] == run(declare, rows(0, 5, 15))
    assert [(0, 15, 2), (15, 25, 1)] == run(declare, rows(0, 5, 15), "flush")


def test_e23_days_of_a_time_zone_as_windows() -> None:
    hour, midnight = 3_600_000, 1_711_839_600_000  # 2024-03-31 in Berlin, a day of 23 hours

    def declare(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(daily(tz="Europe/Berlin")).agg(n=agg.count())

    times = rows(midnight - 1, midnight, midnight + 23 * hour - 1, midnight + 23 * hour)
    assert [
        (midnight - 24 * hour, midnight, 1),
        (midnight, midnight + 23 * hour, 2),
        (midnight + 23 * hour, midnight + 47 * hour, 1),
    ] == run(declare, times, "flush")


def test_e35_windows_by_count_go_by_arrival_over_partitions_and_restarts() -> None:
    """Of each key by itself; what is left over is held, also at the end of the input."""

    def declare(keyed: Keyed) -> WindowResults[Any, Any, Any]:
        return keyed.window(counting(2)).agg(n=agg.count())

    assert [(1, 6, 2), (3, 10, 2)] == run(declare, rows(5, 1, 3, 9, 7), "flush")
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k")
    keyed.window(counting(3)).agg(ts=agg.collect("t", limit=9)).to("out")
    came = [("a", 0, 9), ("a", 1, 1), ("b", 0, 2), ("a", 0, 3), ("a", 1, 8), ("b", 1, 7)]
    came += [("a", 0, 5), ("b", 0, 0), ("b", 0, 4), ("a", 1, 6)]
    inputs = {"in": [Row({"k": key, "t": t}, partition=partition) for key, partition, t in came]}
    for size, crash_every in ((None, 0), (1, 1), (3, 1)):
        out = run_in_pieces(pipeline, inputs, batch_records=size, crash_every=crash_every)["out"]
        found = [json.loads(record.value or b"") for record in out]
        assert [("a", [9, 1, 3]), ("b", [2, 7, 0]), ("a", [8, 5, 6])] == [
            (one["key"], one["ts"]) for one in found
        ]


def test_results_that_may_change_do_not_share_what_they_hold() -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k").window(tumbling(10))
    keyed.agg(xs=agg.collect("t", limit=9)).emit("update").to("out")
    found = pipeline.test({"in": rows(1, 2)})["out"]
    assert [[1], [1, 2], [1, 2]] == [one["xs"] for one in found]


def keyed() -> Keyed:
    return Pipeline("p").source("in", time="t").key_by("k")


@pytest.mark.parametrize(
    ("declare", "problem"),
    [
        (lambda: keyed().window(session(5), corrections=5), "sessions have no corrections"),
        (lambda: keyed().window(counting(5), grace=5), "no grace"),
        (lambda: keyed().window("1m"), "window\\(\\) takes"),
        (
            lambda: keyed().window(counting(2)).agg(n=agg.count()).emit("update"),
            "emit once, when they are full",
        ),
        (lambda: keyed().window(tumbling(5)).agg(n=agg.count()).emit("early"), "'early'"),
        (
            lambda: keyed().window(tumbling(5)).agg(n=agg.count()).emit("final", every=3),
            "'update' with every",
        ),
        (
            lambda: keyed().window(tumbling(5)).agg(n=agg.count()).emit("update", every=0),
            "every=0",
        ),
        (
            lambda: keyed().window(tumbling(5), corrections=3).agg(n=agg.count()).emit("update"),
            "leave one of them out",
        ),
        (
            lambda: keyed().window(tumbling(5)).agg(n=agg.count()).filter(bool).emit("update"),
            "right after agg",
        ),
        (
            lambda: keyed().window(session(5)).agg(n=agg.fold(list, lambda a, b: a)),
            "has no merge",
        ),
        (lambda: keyed().window(tumbling(5)).agg(status=agg.count()), "'status'"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(
    declare: Callable[[], object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        declare()


def test_emit_comes_before_the_results_are_used() -> None:
    results = keyed().window(tumbling(5)).agg(n=agg.count())
    results.to("out")
    with pytest.raises(UsageError, match="right after agg"):
        results.emit("update")


def test_updates_by_interval_follow_the_time_of_the_rows_that_come_in() -> None:
    """Behind a window that holds its results back, W is that much less, as for sessions."""
    pipeline = Pipeline("p")
    first = pipeline.source("in", time="t").key_by("k").window(tumbling(10), grace=50)
    second = first.agg(n=agg.count()).window(tumbling(1000))
    second.agg(n=agg.count()).emit("update", every="100ms").to("out")
    found = pipeline.test({"in": rows(0, 60, 100, 149, 150)}, on_end="hold")["out"]
    # W of what comes in passes 0 with the row at 60, and 100 with that at 150.
    assert [one["n"] for one in found] == [1, 2]  # type: ignore[index,call-overload]  # dicts
