"""Deduplication by event time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pipeline_runs import Run

from millstream import DataError, RecordError, UsageError
from millstream.processor import Pipeline, agg, tumbling
from millstream.processor.dedup import DedupOperator
from millstream.processor.nodes import DedupNode
from millstream.processor.state import StateEntry
from millstream.processor.testkit import as_batches


class Event(msgspec.Struct):
    id: str
    t: int


def passed(
    *rows: tuple[object, int], within: int | str = 10, disorder: int = 100, keyed: bool = False
) -> list[tuple[object, int]]:
    """(identity, time) of what passes; the same for any cut of the input."""
    pipeline = Pipeline("p")
    events = pipeline.source("in", time="t", disorder=disorder)
    events.dead_letters.to("bad")
    if keyed:
        events.key_by("k").dedup("id", within=within).to("out")
    else:
        events.dedup("id", within=within).to("out")
    inputs = [
        {"id": identity[1], "t": t, "k": identity[0]}
        if keyed and isinstance(identity, tuple)
        else {"id": identity, "t": t}
        for identity, t in rows
    ]
    whole = pipeline.test({"in": inputs})["out"]
    for size in (1, 2, 3):
        assert whole == pipeline.test({"in": inputs}, batch_records=size)["out"]
    return [((row["k"], row["id"]) if keyed else row["id"], row["t"]) for row in whole]


def test_e59_the_first_wins_within_the_time_and_the_next_after_it() -> None:
    assert [("a", 5), ("b", 6), ("a", 15)] == passed(
        ("a", 5), ("b", 6), ("a", 14), ("a", 15), ("a", 24)
    )


def test_e59_a_duplicate_that_is_older_is_one_too() -> None:
    assert [("a", 20), ("a", 10)] == passed(("a", 20), ("a", 11), ("a", 10), ("a", 29))


def test_e59_a_duplicate_is_near_to_what_passed_and_not_to_another_duplicate() -> None:
    assert [("a", 0), ("a", 10), ("a", 20)] == passed(
        ("a", 0), ("a", 9), ("a", 10), ("a", 19), ("a", 20)
    )


def test_e59_memory_ends_by_event_time_alone() -> None:
    """W far past: the same id is new again, and an old row is late, not new."""
    pipeline = Pipeline("p")
    events = pipeline.source("in", type=Event, time="t")
    once = events.dedup("id", within=10)
    once.map(lambda row: row.t).to("out")
    once.late.map(lambda row: row.t).to("late")
    inputs = [{"id": "a", "t": t} for t in (0, 9, 50, 41, 40, 0)]
    for size in (None, 1, 2):
        output = pipeline.test({"in": inputs}, batch_records=size)
        # W is 50: 41 is near the end, but might still be known; 40 and 0 might not.
        assert [0, 50] == output["out"]
        assert [40, 0] == output["late"]


def test_e59_state_is_freed_by_w() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=Event, time="t").dedup("id", within=8).to("out")
    run = Run(pipeline)
    counts = []
    for t in (0, 5, 17, 18, 22):
        for batches in as_batches({"in": [{"id": f"id{t}", "t": t}]}, None):
            run.topology.process(batches)
        run.commit()
        (operator,) = run.topology.stateful.values()
        run.crash()
        (restored,) = run.topology.stateful.values()
        assert operator.live_count == restored.live_count
        counts.append(operator.live_count)
    # Buckets of 2 ms, each freed when W is 2 * 8 past its end.
    assert [1, 2, 3, 3, 3] == counts


def test_a_keyed_stream_has_duplicates_within_a_key() -> None:
    assert [(("x", 1), 5), (("y", 1), 5), (("x", 2), 5)] == passed(
        (("x", 1), 5), (("y", 1), 5), (("x", 1), 6), (("x", 2), 5), keyed=True
    )


def test_the_value_itself_may_be_what_makes_duplicates() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=str).dedup(within="1m").to("out")
    assert ["a", "b"] == pipeline.test({"in": [b"a", b"b", b"a"]})["out"]


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("kind", [dict, dict[str, int], list, Event], ids=str)
def test_a_value_that_is_never_an_identity_is_refused_where_it_is_declared(
    kind: Any, keyed: bool
) -> None:
    """Each row would be a dead letter, or end the run."""
    rows = Pipeline("p").source("in", type=kind)
    stream = rows.key_by(str) if keyed else rows
    with pytest.raises(
        UsageError, match=r"dedup: a value of type (dict|list|Event) .*name a field"
    ):
        stream.dedup(within="1m")


def test_a_value_of_an_unknown_type_may_be_an_identity() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").map(lambda row: row["a"]).dedup(within="1m").to("out")
    assert [1, 2] == pipeline.test({"in": [{"a": 1}, {"a": 1}, {"a": 2}]})["out"]


def test_a_function_may_make_the_identity() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in").dedup(lambda row: (row["a"], row["b"]), within="1m")
    rows.map(lambda row: row["n"]).to("out")
    inputs = [{"a": a, "b": b, "n": n} for n, (a, b) in enumerate(["xx", "xy", "yx", "xy"])]
    assert [0, 1, 2] == pipeline.test({"in": inputs})["out"]


def test_e27_a_row_without_identity_is_a_dead_letter_or_stops_the_run() -> None:
    pipeline = Pipeline("p")
    events = pipeline.source("in")
    events.dedup("id", within=5).to("out")
    inputs: list[Any] = [{"id": 1}, {"id": None}, {"x": 1}, {"id": [1]}, {"id": 2}]
    with pytest.raises(RecordError, match=r"dedup 'id'.*: .*the identity is None") as raised:
        pipeline.test({"in": inputs})
    assert 1 == raised.value.offset
    events.dead_letters.to("bad")
    output = pipeline.test({"in": inputs})
    assert [{"id": 1}, {"id": 2}] == output["out"]
    assert inputs[1:4] == output["bad"]


def test_rows_that_passed_are_input_records_still() -> None:
    """What cannot be grouped behind it is a dead letter, as it is before it."""
    pipeline = Pipeline("p")
    events = pipeline.source("in")
    events.dead_letters.to("bad")
    keyed = events.dedup("id", within=5).key_by("k")
    keyed.window(tumbling(5)).agg(n=agg.count()).to("out")
    assert [{"id": 1}] == pipeline.test({"in": [{"id": 1}]})["bad"]


def test_late_rows_are_counted_and_keep_their_key() -> None:
    pipeline = Pipeline("p")
    once = pipeline.source("in", type=Event, time="t").key_by("id").dedup("t", within=1)
    once.to("out")
    once.filter(lambda row: True).late.to("late")
    (record,) = pipeline.test({"in": [{"id": "a", "t": 5}, {"id": "a", "t": 4}]}).records("late")
    assert (b"a", 4) == (record.key, record.timestamp_ms)


@pytest.mark.parametrize("within", [0, -5, "0s", "soon"])
def test_a_time_that_is_none_is_refused(within: int | str) -> None:
    with pytest.raises(UsageError, match=r"within|duration"):
        Pipeline("p").source("in").dedup("id", within=within)


def test_what_cannot_be_read_is_refused() -> None:
    events = Pipeline("p").source("in", type=Event)
    with pytest.raises(UsageError, match="no field 'nobody'"):
        events.dedup("nobody", within=5)
    with pytest.raises(UsageError, match="field name or a function"):
        events.dedup(5, within=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "entry",
    [
        StateEntry((8, "a", "b"), [7]),
        StateEntry(("8", "a"), [7]),
        StateEntry((8, "a"), []),
        StateEntry((8, "a"), [8]),
        StateEntry((8, "a"), [5]),
        StateEntry((8, "a"), ["7"]),
        StateEntry((8, "a"), None),
    ],
)
def test_foreign_state_is_a_data_error(entry: StateEntry) -> None:
    node = DedupNode(
        id=0, label="dedup", name="in.dedup", parents=(0,), on=None, within_ms=8, keyed=False
    )
    with pytest.raises(DataError, match=r"not the state of 'in\.dedup'"):
        DedupOperator(node, 0, None).restore([entry])


def test_the_state_is_named_after_its_source_and_belongs_to_its_parameters() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").dedup("id", within="1m").to("out")
    assert {"in.dedup": "source in; dedup on 'id' within 1m"} == pipeline.plan.identities()


def test_late_rows_of_windows_are_no_keyed_stream_and_have_one_identity() -> None:
    pipeline = Pipeline("p")
    windows = pipeline.source("in", time="t").key_by("k").window(tumbling(10)).agg(n=agg.count())
    windows.late.dedup("id", within=100).map(lambda row: row["k"]).to("late")
    rows = [{"k": k, "t": t, "id": 1} for k, t in (("a", 50), ("b", 3), ("c", 4))]
    assert pipeline.test({"in": rows})["late"] == ["b"]
