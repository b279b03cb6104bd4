"""Joins of streams with streams and with tables, case by case."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from join_runs import Arrival, as_list, joined, left_and_right, records
from pipeline_runs import Run

import millstream
from millstream import DataError, RecordError, UsageError
from millstream.processor import Joined, Pipeline, agg, tumbling
from millstream.processor.interval_join import IntervalJoinOperator
from millstream.processor.state import StateEntry
from millstream.processor.testkit import in_batches


class Order(msgspec.Struct):
    k: str
    t: int


class Payment(msgspec.Struct):
    k: str
    t: int


# --- intervals -----------------------------------------------------------------------------------


def test_e49_both_bounds_are_inclusive() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join(right, lower=-5, upper=10, into=as_list).to("out")
    arrivals = [("l", 50, "a"), *(("r", t, "a") for t in (44, 45, 60, 61))]
    assert [(50, 0, 2), (60, 0, 3)] == joined(pipeline, arrivals)


def test_e49_within_is_as_far_either_way() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join(right, within=5, into=as_list).to("out")
    arrivals = [("l", 50, "a"), *(("r", t, "a") for t in (44, 45, 55, 56))]
    assert [(50, 0, 2), (55, 0, 3)] == joined(pipeline, arrivals)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"lower": 5, "upper": 4}, "nothing could ever match"),
        ({"lower": "1m", "upper": "-1m"}, "nothing could ever match"),
        ({}, "give within="),
        ({"lower": 5}, "give within="),
        ({"within": 5, "lower": 1}, "give within=, or"),
        ({"within": -5}, "duration"),
        ({"within": 5, "grace": 5}, "unknown options"),
    ],
)
def test_e49_bounds_that_match_nothing_or_say_nothing_are_refused(
    bounds: dict[str, Any], message: str
) -> None:
    left, right = left_and_right(Pipeline("p"))
    with pytest.raises(UsageError, match=message):
        left.join(right, **bounds)


def test_bounds_may_be_negative_text() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, lower="-1m", upper="-500ms", how="outer").to("out")
    assert "join within [-1m, -500ms], outer  [state l.join]" in pipeline.explain()
    (identity,) = pipeline.plan.identities().values()
    assert "source l + r; key_by 'k'; join within [-1m, -500ms] of rows by 'k', outer" == identity


def test_e50_late_rows_of_both_sides_go_to_the_late_rows() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    results = left.join(right, lower=0, upper=10, into=as_list)
    results.to("out")
    results.late.to("late")
    run = Run(pipeline)
    # W is 30 after the first two: a left row may wait for 10 more, a right one for none.
    arrivals = [("l", 30, "a"), ("r", 30, "a"), ("l", 20, "b"), ("l", 19, "b"), ("r", 29, "c")]
    for batches in in_batches(records(arrivals), None):
        run.topology.process(batches)
    run.commit()
    late = [(each.key, each.timestamp_ms) for each in run.out["late"]]
    assert [(b"b", 19), (b"c", 29)] == late
    assert 2 == run.topology.late_count


def test_e51_a_row_without_a_match_is_said_once_and_never_too_early() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, lower=0, upper=10, how="left", into=as_list).to("out")
    arrivals: list[Arrival] = [("l", 50, "a"), ("l", 51, "b"), ("r", 60, "x"), ("l", 70, "a")]
    assert [] == joined(pipeline, [*arrivals, ("r", 60, "y")], flush=False), "W is 60: 60 may come"
    assert [(50, 0, None)] == joined(pipeline, [*arrivals, ("r", 61, "y")], flush=False)
    assert [(60, 0, 4)] == joined(pipeline, [*arrivals, ("r", 60, "a")], flush=False)
    assert [(50, 0, None), (51, 1, None), (70, 3, None)] == joined(pipeline, arrivals)


def test_e51_outer_rows_come_in_the_order_of_their_last_possible_match() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=50)
    left.join(right, lower=-10, upper=0, how="outer", into=as_list).to("out")
    arrivals = [("r", 50, "b"), ("l", 60, "a"), ("l", 55, "c"), ("r", 45, "d"), ("l", 55, "b")]
    assert [(55, 4, 0), (55, 2, None), (45, None, 3), (60, 1, None)] == joined(pipeline, arrivals)


def test_e51_what_no_row_can_match_when_it_comes_is_said_at_once() -> None:
    """The right side ends 5 before the left row: nothing is waited for."""
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, lower=-10, upper=-5, how="left", into=as_list).to("out")
    arrivals = [("l", 50, "a"), ("r", 50, "a"), ("l", 52, "b"), ("l", 57, "a")]
    assert [(50, 0, None), (52, 2, None), (57, 3, 1)] == joined(pipeline, arrivals, flush=False)


def test_e51_a_restart_says_nothing_twice() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within="16s", how="outer", into=as_list).to("out")
    seconds = [("l", 0, "a"), ("r", 1, "b"), ("l", 17, "x"), ("r", 17, "y"), ("l", 18, "x")]
    arrivals = [(topic, time * 1000, key) for topic, time, key in seconds]
    arrivals += [("r", 18_000, "y"), ("l", 18_001, "x"), ("r", 18_001, "y")]
    said = joined(pipeline, arrivals, flush=False)
    assert [(0, 0, None), (1000, None, 1)] == said


def test_e52_rows_without_a_key_never_match() -> None:
    pipeline = Pipeline("p")
    lefts = pipeline.source("l", time="t")
    rights = pipeline.source("r", time="t")
    lefts.dead_letters.to("bad")
    rights.dead_letters.to("bad")
    lefts.key_by("k").join(rights.key_by("k"), within=5, how="outer", into=as_list).to("out")
    assert [] == joined(pipeline, [("l", 5, None), ("r", 5, None)])


def test_e53_duplicates_on_both_sides_give_the_product() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within=5, into=as_list).to("out")
    arrivals = [("l", 5, "a"), ("l", 5, "a"), ("r", 5, "a"), ("r", 5, "a")]
    assert [(5, 0, 2), (5, 1, 2), (5, 0, 3), (5, 1, 3)] == joined(pipeline, arrivals)


def test_pairs_of_a_row_come_by_time_and_then_by_arrival() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join(right, within=50, into=as_list).to("out")
    arrivals = [*(("r", t, "a") for t in (30, 20, 30, 10)), ("l", 25, "a")]
    assert [(25, 4, 3), (25, 4, 1), (30, 4, 0), (30, 4, 2)] == joined(pipeline, arrivals)


def test_rows_of_other_keys_do_not_match() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within=5, into=as_list).to("out")
    assert [] == joined(pipeline, [("l", 5, "a"), ("r", 5, "b"), ("r", 5, 1), ("l", 5, "1")])


def test_e56_a_row_meets_itself_and_those_before_and_after_it() -> None:
    pipeline = Pipeline("p")
    stream = pipeline.source("l", time="t").key_by("k")
    stream.join(stream, within=5, into=as_list).to("out")
    assert [(5, 0, 0), (8, 1, 0), (8, 0, 1), (8, 1, 1)] == joined(
        pipeline, [("l", 5, "a"), ("l", 8, "a")]
    )


def test_e56_without_zero_in_the_interval_it_does_not_meet_itself() -> None:
    pipeline = Pipeline("p")
    stream = pipeline.source("l", time="t").key_by("k")
    stream.join(stream, lower=1, upper=5, into=as_list).to("out")
    assert [(8, 0, 1)] == joined(pipeline, [("l", 5, "a"), ("l", 8, "a"), ("l", 8, "b")])


def test_state_is_freed_when_w_has_passed_the_last_possible_match() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, lower=0, upper=8, into=as_list).to("out")
    run = Run(pipeline)
    counts = []
    arrivals = [("l", 10, "a"), ("r", 10, "b"), ("l", 11, "c"), ("r", 18, "d")]
    arrivals += [("l", 19, "e"), ("r", 19, "f"), ("l", 40, "g"), ("r", 40, "h")]
    for batches in in_batches(records(arrivals), 1):
        run.topology.process(batches)
        run.commit()
        run.crash()
        (operator,) = run.topology.stateful.values()
        counts.append(operator.live_count)
    # At the end W is 40: of the rows before it none is left.
    assert [1, 2, 3, 3, 4, 3, 4, 2] == counts


def test_a_pair_is_written_with_both_sides_and_can_be_taken_apart() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    pairs = left.join(right, within=5)
    pairs.to("out")
    pairs.map(lambda pair: [row["t"] for row in pair]).to("times")
    output = pipeline.test({"l": [{"k": "a", "t": 5}], "r": [{"k": "a", "t": 7}]})
    assert [{"left": {"k": "a", "t": 5}, "right": {"k": "a", "t": 7}}] == output["out"]
    assert [[5, 7]] == output["times"]
    assert [b"a"] == [record.key for record in output.records("out")]


def test_rows_come_back_from_state_as_what_they_were() -> None:
    """And the pairs of a join are rows that another join can keep."""
    pipeline = Pipeline("p")
    orders = pipeline.source("l", type=Order, time="t", disorder=100).key_by("k")
    payments = pipeline.source("r", type=Payment, time="t", disorder=100).key_by("k")
    pairs = orders.join(payments, within=50, how="left")
    again = pairs.join(payments, within=50, into=lambda pair, row: (pair, row))

    def kinds(both: tuple[Joined[Order, Payment | None], Payment]) -> list[str]:
        (left, right), third = both
        return [type(each).__name__ for each in (left, right, third)]

    again.map(kinds).to("out")
    run = Run(pipeline)
    for batches in in_batches(records([("l", 5, "a"), ("r", 6, "a"), ("r", 7, "a")]), 1):
        run.topology.process(batches)
        run.commit()
        run.crash()
    run.topology.flush()
    run.commit()
    found = {record.value for record in run.out["out"]}
    assert {b'["Order","Payment","Payment"]'} == found


def test_windows_can_be_joined() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    counts = [stream.window(tumbling(10)).agg(n=agg.count()) for stream in (left, right)]
    counts[0].join(counts[1], within=0, into=lambda one, two: [one["n"], two["n"], one.end]).to(
        "out"
    )
    run = Run(pipeline)
    for batches in in_batches(
        records([("l", 1, "a"), ("r", 2, "a"), ("l", 3, "a"), ("l", 15, "a"), ("r", 16, "a")]), 1
    ):
        run.topology.process(batches)
        run.commit()
        run.crash()
    run.topology.flush()
    run.commit()
    assert [b"[2,1,10]", b"[1,1,20]"] == [record.value for record in run.out["out"]]


def test_results_are_not_late_for_a_window_behind_the_join() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    pairs = left.join(right, lower=-5, upper=20, how="outer")
    windows = pairs.window(tumbling(10)).agg(n=agg.count())
    windows.to("out")
    windows.late.to("late")
    arrivals = [(side, time, "a") for time in range(0, 100, 7) for side in "lr"]
    run = Run(pipeline)
    for batches in in_batches(records(arrivals), 2):
        run.topology.process(batches)
    run.topology.flush()
    run.commit()
    assert [] == run.out["late"]


def test_a_function_that_raises_is_named_with_the_record() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within=5, into=lambda left, right: left["x"]).to("out")
    with pytest.raises(RecordError, match=r"join within .*into: KeyError: 'x'") as raised:
        joined(pipeline, [("l", 5, "a"), ("r", 5, "b"), ("r", 5, "a")])
    assert ("r", 1) == (raised.value.topic, raised.value.offset)


def test_what_cannot_be_joined_is_refused() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    other = Pipeline("q").source("x").key_by("k")
    with pytest.raises(UsageError, match=r"takes a keyed stream.*call key_by"):
        left.join(pipeline.source("x"), within=5)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="belongs to pipeline 'q'"):
        left.join(other, within=5)
    with pytest.raises(UsageError, match="takes a stream"):
        left.join([1], within=5)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="how='full': use 'inner' or 'left' or 'right' or 'outer'"):
        left.join(right, within=5, how="full")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="into= takes a function"):
        left.join(right, within=5, into=5)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"join_table.. takes a table"):
        left.join_table(right)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="how='right': use 'inner' or 'left'"):
        left.join_asof(right, how="right")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="direction='up'"):
        left.join_asof(right, direction="up")  # type: ignore[call-overload]
    for direction in ("forward", "nearest"):
        with pytest.raises(UsageError, match="needs within="):
            left.join_asof(right, direction=direction)  # type: ignore[call-overload]


def test_rows_that_state_can_never_keep_are_refused_when_declared() -> None:
    class Foreign:
        def __init__(self, row: object) -> None:
            pass

    left, right = left_and_right(Pipeline("p"))
    with pytest.raises(UsageError, match=r"left rows: rows of .*Foreign cannot be kept in state"):
        left.map(Foreign).join(right, within=5)


# --- over a store --------------------------------------------------------------------------------


def test_a_join_runs_over_a_store_and_goes_on_after_a_stop() -> None:
    pipeline = Pipeline("p")
    orders = pipeline.source("l", type=Order, time="t").key_by("k")
    payments = pipeline.source("r", type=Payment, time="t").key_by("k")
    orders.join(payments, within="1m", how="left").to("out")
    with millstream.open(":memory:") as store:
        for topic in "lr":
            store.create_topic(topic)
        store.append("l", msgspec.json.encode(Order("a", 5)))
        store.append("l", msgspec.json.encode(Order("b", 5)))
        pipeline.run(store, until="end")
        (waiting,) = pipeline.query(store, "l.join", key="b")
        assert [5, False, {"k": "b", "t": 5}] == waiting.value, "seen from outside, by its key"
        store.append("r", msgspec.json.encode(Payment("a", 9)))
        pipeline.run(store, until="end", on_end="flush")
        values = [msgspec.json.decode(record.value or b"") for record in store.read("out")]
    assert [
        {"left": {"k": "a", "t": 5}, "right": {"k": "a", "t": 9}},
        {"left": {"k": "b", "t": 5}, "right": None},
    ] == values


@pytest.mark.parametrize(
    "entry",
    [
        StateEntry(("left", 10), [5, False, {}]),
        StateEntry(("middle", 10, "a", 1), [5, False, {}]),
        StateEntry(("left", 10, "a", 1), ["5", False, {}]),
        StateEntry(("left", 10, "a", 1), [5, 0, {}]),
        StateEntry(("left", 10, "a", 1), [500, False, {}]),
        StateEntry(("left", 10, "a", 1), [5, False]),
        StateEntry(("left", 10, "a", 1), None),
    ],
)
def test_foreign_state_of_an_interval_join_is_a_data_error(entry: StateEntry) -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within=5).to("out")
    (node,) = pipeline.plan.stateful()
    with pytest.raises(DataError, match=r"l\.join|interval join"):
        IntervalJoinOperator(node, 0).restore([entry])  # type: ignore[arg-type]


def test_a_row_that_has_its_match_waits_for_nothing() -> None:
    """Or the end of the input would raise W higher than after a restart, and more would be late."""
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join(right, within=100, how="left").to("out")
    run = Run(pipeline)
    arrivals: list[Arrival] = [("l", 0, "a"), ("r", 1, "a")]
    for batches in in_batches(records(arrivals), None):
        run.topology.process(batches)
    run.commit()
    assert [None] == [each.required_level for each in run.topology.stateful.values()]
    run.crash()
    assert [None] == [each.required_level for each in run.topology.stateful.values()]
