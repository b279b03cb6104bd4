"""As-of joins and joins with tables, case by case."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from join_runs import Arrival, as_list, joined, left_and_right, records
from pipeline_runs import Run

from millstream import DataError, Record
from millstream.processor import Pipeline, agg, tumbling
from millstream.processor.asof_join import AsofJoinOperator
from millstream.processor.state import StateEntry
from millstream.processor.testkit import in_batches

# --- as of ---------------------------------------------------------------------------------------


def test_an_as_of_join_does_not_depend_on_which_side_came_first() -> None:
    for order in (1, -1):
        pipeline = Pipeline("p")
        left, right = left_and_right(pipeline, disorder=1000)
        left.join_asof(right, into=lambda left, right: [left["t"], right["t"]]).to("out")
        rows = {
            "l": [{"k": "a", "t": t} for t in (5, 15, 25)],
            "r": [{"k": "a", "t": t} for t in (10, 20)],
        }
        output = pipeline.test({topic: rows[topic] for topic in "lr"[::order]})
        assert [[15, 10], [25, 20]] == output["out"]


def test_e57_a_row_before_the_first_version_has_none_and_one_at_its_time_uses_it() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join_asof(right, how="left", into=as_list).to("out")
    arrivals = [("r", 10, "a"), ("l", 9, "a"), ("l", 10, "a"), ("l", 11, "a"), ("l", 11, "b")]
    assert [(9, 1, None), (10, 2, 0), (11, 3, 0), (11, 4, None)] == joined(pipeline, arrivals)


def test_e58_of_versions_of_one_time_the_last_to_come_counts() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join_asof(right, into=as_list).to("out")
    arrivals = [("r", 10, "a"), ("l", 12, "a"), ("r", 10, "a"), ("r", 9, "a")]
    assert [(12, 1, 2)] == joined(pipeline, arrivals)


def test_e58_looking_forward_it_is_the_first() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join_asof(right, direction="forward", within=5, into=as_list).to("out")
    arrivals = [("r", 15, "a"), ("r", 15, "a"), ("l", 10, "a"), ("l", 9, "a"), ("l", 16, "a")]
    assert [(10, 2, 0)] == joined(pipeline, arrivals)


def test_the_nearest_is_the_earlier_one_when_both_are_equally_far() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join_asof(right, direction="nearest", within=9, into=as_list).to("out")
    arrivals = [("r", 10, "a"), ("r", 20, "a"), *(("l", t, "a") for t in (0, 1, 15, 16, 29, 30))]
    assert [(1, 3, 0), (15, 4, 0), (16, 5, 1), (29, 6, 1)] == joined(pipeline, arrivals)


def test_within_is_inclusive_and_a_version_too_far_is_none() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline, disorder=100)
    left.join_asof(right, within=5, how="left", into=as_list).to("out")
    arrivals = [("r", 10, "a"), ("l", 15, "a"), ("l", 16, "a")]
    assert [(15, 1, 0), (16, 2, None)] == joined(pipeline, arrivals)


def test_a_row_waits_until_w_has_passed_its_time() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join_asof(right, into=as_list).to("out")
    arrivals: list[Arrival] = [("r", 5, "a"), ("l", 10, "a"), ("l", 20, "a"), ("r", 10, "b")]
    assert [] == joined(pipeline, arrivals, flush=False), "at 10 another version of a may come"
    assert [(10, 1, 0)] == joined(pipeline, [*arrivals, ("r", 11, "b")], flush=False)


def test_versions_that_no_row_can_match_any_more_are_freed_and_late() -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    results = left.join_asof(right, within=4, into=as_list)
    results.to("out")
    results.late.to("late")
    run = Run(pipeline)
    arrivals = [("r", t, "a") for t in (10, 11, 12)] + [("l", 30, "a"), ("r", 30, "b")]
    arrivals += [("r", 25, "c"), ("r", 26, "c"), ("l", 29, "c"), ("l", 31, "a"), ("r", 31, "d")]
    for batches in in_batches(records(arrivals), 1):
        run.topology.process(batches)
        run.commit()
        run.crash()
    (operator,) = run.topology.stateful.values()
    late = [msgspec.json.decode(each.value or b"")["n"] for each in run.out["late"]]
    assert [5, 7] == late, "26 may still be the version of a row at 30"
    # b and d, and the row at 31 that waits; 26 has gone when W reached 31.
    assert 3 == operator.live_count


# --- tables --------------------------------------------------------------------------------------


def table_pipeline(*, how: Any = "inner", **options: Any) -> Pipeline:
    pipeline = Pipeline("p")
    left = pipeline.source("l", time="t").key_by("k")
    table = pipeline.table("r", key="k", time="t", **options)
    left.join_table(table, how=how, into=as_list).to("out")
    return pipeline


def test_a_row_meets_what_the_table_holds_when_it_comes() -> None:
    arrivals = [("l", 5, "a"), ("r", 90, "a"), ("l", 6, "a"), ("r", 7, "a"), ("l", 1, "a")]
    assert [(6, 2, 1), (1, 4, 3)] == joined(table_pipeline(), arrivals, flush=False)
    assert [(5, 0, None), (6, 2, 1), (1, 4, 3)] == joined(
        table_pipeline(how="left"), arrivals, flush=False
    )


def test_e54_a_row_behind_a_tombstone_finds_nothing() -> None:
    for versioned, expected in ((False, [["v1"], []]), (True, [["v1"], []])):
        pipeline = Pipeline("p")
        left = pipeline.source("l").key_by(lambda row: row["k"])
        table = pipeline.table("r", type=str, versioned=versioned)
        left.join_table(table, how="left", into=lambda row, found: [found] if found else []).to(
            "out"
        )
        run = Run(pipeline)
        rows = [
            Record("r", 0, 0, 10, b"a", b"v1", ()),
            Record("l", 0, 0, 11, None, b'{"k": "a"}', ()),
            Record("r", 0, 1, 12, b"a", None, ()),
            Record("l", 0, 1, 13, None, b'{"k": "a"}', ()),
        ]
        for batches in in_batches([(row, None) for row in rows], 1):
            run.topology.process(batches)
            run.commit()
            run.crash()
        run.topology.flush()
        run.commit()
        assert expected == [msgspec.json.decode(each.value or b"") for each in run.out["out"]]


def test_e54_an_older_update_does_not_undo_a_deletion_in_a_versioned_table() -> None:
    pipeline = Pipeline("p")
    left = pipeline.source("l").key_by(lambda row: row["k"])
    table = pipeline.table("r", type=str, versioned=True)
    results = left.join_table(table, how="left", into=lambda row, found: [found])
    results.to("out")
    results.late.to("late")
    run = Run(pipeline)
    rows = [
        Record("l", 0, 0, 20, None, b'{"k": "b"}', ()),
        Record("r", 0, 0, 20, b"a", None, ()),
        Record("r", 0, 1, 21, b"b", b"x", ()),
        Record("r", 0, 2, 15, b"a", b"old", ()),
        Record("l", 0, 1, 20, None, b'{"k": "a"}', ()),
    ]
    for batches in in_batches([(row, None) for row in rows], 1):
        run.topology.process(batches)
        run.commit()
        run.crash()
    run.topology.flush()
    run.commit()
    assert [b"[null]", b"[null]"] == [each.value for each in run.out["out"]]
    assert [b'"old"'] == [each.value for each in run.out["late"]]


def test_e57_a_versioned_table_gives_the_version_of_the_rows_time() -> None:
    arrivals = [("r", 10, "a"), ("r", 20, "a"), *(("l", t, "a") for t in (9, 10, 19, 20, 21))]
    pipeline = table_pipeline(how="left", versioned=True, disorder=100)
    assert [(9, 2, None), (10, 3, 0), (19, 4, 0), (20, 5, 1), (21, 6, 1)] == joined(
        pipeline, arrivals
    )


def test_the_table_is_first_where_one_row_is_both() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("l", time="t").key_by("k")
    counts = rows.count()
    rows.join_table(counts, into=lambda row, n: [row["n"], n]).to("out")
    inputs = [{"k": "a", "t": 5, "n": n} for n in range(3)]
    for size in (None, 1, 2):
        output = pipeline.test({"l": inputs}, batch_records=size)
        assert [[0, 1], [1, 2], [2, 3]] == output["out"]


def test_a_table_without_new_rows_holds_no_window_back() -> None:
    pipeline = Pipeline("p")
    left = pipeline.source("l", time="t").key_by("k")
    table = pipeline.table("r", key="k", time="t")
    left.join_table(table).window(tumbling(10)).agg(n=agg.count()).to("out")
    run = Run(pipeline)
    for batches in in_batches(records([("r", 5, "a"), ("l", 11, "a"), ("l", 25, "a")]), 1):
        run.topology.process(batches)
    run.commit()
    (record,) = run.out["out"]
    assert 20 == msgspec.json.decode(record.value or b"")["window_end"]


def test_a_table_that_forgets_is_not_joined_with_what_it_forgot() -> None:
    arrivals: list[Arrival] = [("r", 10, "a"), ("l", 19, "a"), ("l", 20, "a"), ("l", 5, "a")]
    expected = [(19, 1, 0), (20, 2, None), (5, 3, None)]
    assert expected == joined(table_pipeline(how="left", ttl=10), arrivals)
    versioned = table_pipeline(how="left", ttl=10, versioned=True, disorder=100)
    assert [(19, 1, 0), (20, 2, None)] == joined(versioned, arrivals[:3])


def test_what_a_table_forgot_is_freed() -> None:
    pipeline = table_pipeline(ttl=10)
    run = Run(pipeline)
    counts = []
    arrivals: list[Arrival] = [("r", 10, "a"), ("r", 15, "b"), ("l", 20, "x"), ("l", 25, "x")]
    for batches in in_batches(records(arrivals), 1):
        run.topology.process(batches)
        run.commit()
        run.crash()
        (operator,) = run.topology.stateful.values()
        counts.append(operator.live_count)
    assert [1, 2, 1, 0] == counts


def test_e55_two_tables_put_together_follow_each_update() -> None:
    """The left side drives: each of its updates meets the right value of that moment."""
    pipeline = Pipeline("p")
    left = pipeline.table("l", key="k", time="t").updates()
    left.join_table(pipeline.table("r", key="k", time="t"), how="left", into=as_list).to("out")
    arrivals = [("l", 1, "a"), ("r", 2, "a"), ("l", 3, "a"), ("r", 4, "a"), ("l", 5, "a")]
    assert [(1, 0, None), (3, 2, 1), (5, 4, 3)] == joined(pipeline, arrivals)


@pytest.mark.parametrize("batch_records", [None, 1, 3])
def test_e55_deletions_of_either_table_take_their_turn(batch_records: int | None) -> None:
    """The null records of the case Kafka's joins are tested with: on both sides, and repeated."""
    pipeline = Pipeline("p")
    left = pipeline.table("l", type=str).updates(deletions=True)
    right = pipeline.table("r", type=str)
    joined = left.join_table(right, how="left", into=lambda *pair: pair)
    joined.to("out")
    steps = [
        "l-",
        "r-",
        "lA",
        "ra",
        "lB",
        "rb",
        "l-",
        "r-",
        "lC",
        "rc",
        "r-",
        "l-",
        "l-",
        "rd",
        "lD",
        "l-",
        "l-",
        "rD",
        "r-",
    ]
    run = Run(pipeline)
    arrivals: list[tuple[Record, int | None]] = []
    known: dict[str, str | None] = {"l": None, "r": None}
    expected = []
    for number, (side, value) in enumerate(steps):
        data = None if value == "-" else value.encode()
        offset = sum(record.topic == side for record, _ in arrivals)
        arrivals.append((Record(side, 0, offset, number, b"k", data, ()), None))
        known[side] = None if value == "-" else value
        if side == "l":
            expected.append([known["l"], known["r"]])
    for batches in in_batches(arrivals, batch_records):
        run.topology.process(batches)
        run.commit()
        run.crash()
    assert expected == [msgspec.json.decode(each.value or b"") for each in run.out["out"]]


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("batch_records", [None, 1, 3])
def test_e55_updates_and_deletions_that_come_out_of_order(
    versioned: bool, batch_records: int | None
) -> None:
    """As many inputs as Kafka's joins of tables are tested with: values and nulls, late and early.

    Each update of the left side meets what the right one has: last, or as of the update's time.
    """
    pipeline = Pipeline("p")
    left = pipeline.table("l", type=str, disorder=100).updates(deletions=True)
    right = pipeline.table("r", type=str, disorder=100, versioned=versioned)
    left.join_table(right, how="left", into=lambda *pair: pair).to("out")
    chance = random.Random(55)
    arrivals: list[tuple[Record, int | None]] = []
    ends, rights, expected = {"l": 0, "r": 0}, list[tuple[int, int, str | None]](), []
    lefts = []
    for number in range(47):
        side, time = chance.choice("lr"), number + chance.choice([0, 0, 1, -5, -20])
        value = None if chance.random() < 0.4 else f"{side}{number}"
        data = None if value is None else value.encode()
        arrivals.append((Record(side, 0, ends[side], time, b"k", data, ()), None))
        ends[side] += 1
        if side == "r":
            rights.append((time, number, value))
        else:
            lefts.append((time, number, value, rights[-1][2] if rights else None))
    for time, number, value, last in lefts:
        as_of = max((each for each in rights if each[0] <= time), default=(0, 0, None))[2]
        expected.append((time, number, [value, as_of if versioned else last]))
    run = Run(pipeline)
    for batches in in_batches(arrivals, batch_records):
        run.topology.process(batches)
        run.commit()
        run.crash()
    run.topology.flush()
    run.commit()
    said = [(each.timestamp_ms, msgspec.json.decode(each.value or b"")) for each in run.out["out"]]
    if versioned:
        expected.sort(key=lambda each: each[:2])
    assert [(time, pair) for time, _, pair in expected] == said


def test_e55_the_updates_of_a_key_keep_their_order_over_restarts() -> None:
    pipeline = Pipeline("p")
    pipeline.table("l", key="k", time="t").map(lambda row: [row, None]).to("out")
    arrivals: list[Arrival] = [("l", 50 - n, "ab"[n % 2]) for n in range(9)]
    assert [(50 - n, n, None) for n in range(9)] == joined(pipeline, arrivals)


@pytest.mark.parametrize(
    "entry",
    [
        StateEntry(("waiting", 6, "a", 1), [6, {}]),
        StateEntry(("waiting", 6), [5, {}]),
        StateEntry(("waiting", 6, "a", 1), ["5", {}]),
        StateEntry(("version", "a", 5), [{}]),
        StateEntry(("version", "a", 5, 1), [{}, 1]),
        StateEntry(("version", "a", 2**63, 1), [{}]),
        StateEntry((1,), None),
    ],
)
def test_foreign_state_of_an_as_of_join_is_a_data_error(entry: StateEntry) -> None:
    pipeline = Pipeline("p")
    left, right = left_and_right(pipeline)
    left.join_asof(right).to("out")
    (node,) = pipeline.plan.stateful()
    with pytest.raises(DataError, match=r"not (the state|a version) of"):
        AsofJoinOperator(node, 0).restore([entry])  # type: ignore[arg-type]
