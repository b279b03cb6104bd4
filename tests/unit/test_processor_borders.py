"""Where it is easy to be wrong by one: changes of the engine that no test of E1 to E64 noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pipeline_runs import run_in_pieces

import millstream
from millstream import TopicPartition
from millstream.processor import Context, Pipeline, Row, Timer, agg, hopping, session, tumbling
from millstream.processor.ticker import Ticker
from millstream.processor.topology import Topology
from millstream.testing import ManualClock


def test_e5_of_three_partitions_the_slowest_rules() -> None:
    """Two partitions cannot tell the least of the others from the greatest."""
    pipeline = Pipeline("p")
    windows = pipeline.source("in", time="t").key_by("k").window(tumbling(10)).agg(n=agg.count())
    windows.to("out")
    windows.late.to("late")

    def run(*pairs: tuple[int, int]) -> tuple[list[int], list[int]]:
        rows = [Row({"k": "a", "t": time}, partition=partition) for partition, time in pairs]
        output = pipeline.test({"in": rows}, on_end="hold")
        return [row["window_end"] for row in output["out"]], [row["t"] for row in output["late"]]

    begun = ((0, 1), (1, 2), (2, 3))
    assert ([], []) == run(*begun, (0, 50), (1, 40), (2, 9), (2, 4))
    assert ([10], [4]) == run(*begun, (0, 50), (1, 40), (2, 12), (2, 4))
    assert ([10], []) == run(*begun, (0, 50), (2, 40), (1, 30))


@pytest.mark.parametrize("batch_records", [1, 100])
def test_timers_of_one_time_fire_by_key_and_then_by_name(batch_records: int) -> None:
    def remind(context: Context[str, None], row: dict[str, Any]) -> Iterator[dict[str, str]]:
        for name in row["names"]:
            context.set_timer(50, name)
        yield from ()

    def reminded(context: Context[str, None], timer: Timer) -> Iterator[dict[str, str]]:
        yield {"is": f"{context.key}{timer.name}"}

    pipeline = Pipeline("p")
    pipeline.source("in", time="t").key_by("k").process(remind, on_timer=reminded).to("out")
    rows = [
        {"k": "b", "t": 1, "names": ["y", "x"]},
        {"k": "a", "t": 2, "names": ["z", "y"]},
        {"k": "b", "t": 60, "names": []},
    ]
    output = pipeline.test({"in": rows}, batch_records=batch_records)
    assert ["ay", "az", "bx", "by"] == [row["is"] for row in output["out"]]


@pytest.mark.parametrize("batch_records", [1, 2, 100])
def test_e4_w_never_falls_when_a_slower_partition_joins(batch_records: int) -> None:
    """A partition whose first row is old holds W where it is, and does not take it back."""
    pipeline = Pipeline("p")
    windows = pipeline.source("in", time="t").key_by("k").window(tumbling(10)).agg(n=agg.count())
    windows.to("out")
    windows.late.to("late")
    times = ((0, 1), (0, 10), (1, 8), (1, 9), (0, 8), (1, 10), (1, 9))
    rows = [Row({"k": "a", "t": time}, partition=partition) for partition, time in times]
    output = pipeline.test({"in": rows}, batch_records=batch_records, on_end="hold")
    assert [8, 9, 8, 9] == [row["t"] for row in output["late"]]
    assert [(10, 1)] == [(row["window_end"], row["n"]) for row in output["out"]]


def test_e9_what_came_between_the_last_read_and_the_look_at_the_clock_is_no_idleness() -> None:
    """A look at the clock finds a record that the poll before it did not give."""
    pipeline = Pipeline("p")
    windows = pipeline.source("in", time="t", idle=500).key_by("k").window(tumbling(10))
    windows.agg(n=agg.count()).to("out")
    clock = ManualClock(1_000)
    with millstream.open(":memory:", clock=clock) as store:
        store.create_topic("in", partitions=2)
        clock.advance(600)
        starts = {TopicPartition("in", partition): 0 for partition in (0, 1)}
        with store.reader(starts) as reader:
            assert [] == reader.poll()
            store.append("in", b'{"k":"a","t":1}', partition=1)
            tick = Ticker(store, Topology(pipeline.plan), 1).due(reader, at_end=True)
        assert tick is not None
        assert ({"in": [0]}, []) == (tick.idle, tick.quiet)


def test_e11_a_time_just_as_far_ahead_as_allowed_beside_one_that_is_further() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", max_ahead=100)
    rows.to("out")
    rows.dead_letters.to("bad")
    with millstream.open(":memory:", clock=ManualClock(1_000)) as store:
        store.create_topic("in")
        store.append_many("in", [b'{"t":%d}' % time for time in (1_100, 1_101, 1_099)])
        pipeline.run(store, until="end")
        assert [b'{"t":1100}', b'{"t":1099}'] == [each.value for each in store.read("out")]
        assert [b'{"t":1101}'] == [each.value for each in store.read("bad")]


@pytest.mark.parametrize("batch_records", [1, 100])
def test_a_left_row_of_an_as_of_join_is_late_below_w_and_not_at_it(batch_records: int) -> None:
    pipeline = Pipeline("p")
    left = pipeline.source("left", time="t").key_by("k")
    right = pipeline.source("right", time="t").key_by("k")
    joined = left.join_asof(right, into=lambda row, price: [row["t"], price["t"]])
    joined.to("out")
    joined.late.to("late")
    inputs = {
        "right": [{"k": "a", "t": time} for time in (1, 20)],
        "left": [{"k": "a", "t": time} for time in (20, 19, 20, 30)],
    }
    output = pipeline.test(inputs, batch_records=batch_records)
    assert [19] == [row["t"] for row in output["late"]]
    assert [[20, 20], [20, 20], [30, 20]] == output["out"]


def test_e13_a_restart_at_the_limits_of_int64_changes_nothing() -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t", disorder="1d").key_by("k")
    keyed.window(hopping(10, 3), grace=5).agg(n=agg.count()).to("windows")
    keyed.window(session(10)).agg(n=agg.count()).to("sessions")
    keyed.join(keyed, lower=-10, upper=-5, how="outer", into=lambda *pair: pair).to("pairs")
    keyed.join_asof(keyed, how="left", into=lambda *pair: pair).to("versions")
    keyed.dedup("t", within=10).to("once")
    keyed.count(ttl=10).to("counts")
    least, day = -(2**63), 86_400_000
    times = (least + 1, least + 9, least + day - 1, least + day + 9, 0, 2**63 - 1)
    inputs = {"in": [{"k": "a", "t": time} for time in times]}
    whole = run_in_pieces(pipeline, inputs)
    assert whole == run_in_pieces(pipeline, inputs, batch_records=1, crash_every=1)
    assert [2, 1, 1, 1, 1] == [json.loads(each.value or b"")["n"] for each in whole["sessions"]]


@pytest.mark.parametrize("emit", ["final", "update"])
def test_e38_e47_sessions_go_on_over_cuts_and_restarts(emit: Literal["final", "update"]) -> None:
    """Sessions that grow, move their start and are joined by a row; the last update is final."""
    pipeline = Pipeline("p")
    sessions = pipeline.source("in", time="t", disorder=20).key_by("k").window(session(10), grace=5)
    sessions.agg(ts=agg.collect("t", limit=9)).emit(emit).to("out")
    times = (0, 16, 8, 30, 24, 60, 60, 45, 52, 95, 90)
    inputs = {"in": [{"k": "a", "t": time} for time in times]}
    whole = run_in_pieces(pipeline, inputs)
    for batch_records, crash_every in ((1, 1), (2, 1), (3, 2)):
        assert whole == run_in_pieces(
            pipeline, inputs, batch_records=batch_records, crash_every=crash_every
        )
    said = [json.loads(each.value or b"") for each in whole["out"]]
    final = [row["ts"] for row in said if row.get("status", "final") == "final"]
    assert [[0, 16, 8, 30, 24], [45, 60, 60, 52], [95, 90]] == final
    known: dict[int, list[int]] = {}
    for row in said:
        if row.get("status") == "retracted":
            assert known.pop(row["window_start"]) == row["ts"], "what was said is taken back"
        elif row.get("status") == "update":
            known[row["window_start"]] = row["ts"]
    assert emit == "final" or list(known.values()) == final
