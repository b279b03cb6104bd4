"""The count with a slot per key is the count that any running aggregate makes, state included."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

import millstream
from millstream import DataError, Record
from millstream.processor import Pipeline
from millstream.processor.columns import Chunk, MicroBatch
from millstream.processor.keyed_state import IN_MEMORY
from millstream.processor.running import RunningOperator
from millstream.processor.running_count import RunningCountOperator, running_operator
from millstream.processor.state import StateEntry, StateRecords, decode_entry
from millstream.processor.stateful import MAIN, StatefulOperator, Step
from millstream.processor.table_nodes import RunningNode
from millstream.processor.watermark import Progress

KEYS = ["a", "b", "\u00e4", b"a", 1, 1.0, True, ("a", 2), -0.0, 0]


def counts(**options: str) -> Pipeline:
    pipeline = Pipeline("p", **options)  # type: ignore[arg-type]  # where state is kept
    pipeline.source("in").key_by(lambda row: row["k"]).count().to("out")
    return pipeline


def node() -> RunningNode:
    (found,) = (each for each in counts().plan.nodes if isinstance(each, RunningNode))
    return found


def count(operator: StatefulOperator, keys: Sequence[object]) -> list[object]:
    numbers = range(len(keys))
    chunk = Chunk(numbers, [0] * len(keys), [None] * len(keys), keys)
    step = Step([chunk], Progress(0, [], []), MicroBatch(()))
    made = operator.process(step)[MAIN].as_chunk()
    assert (keys, numbers) == (made.keys, made.rows)
    return list(made.values)


def entries(records: StateRecords) -> list[StateEntry]:
    return list(map(decode_entry, *records))


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(KEYS)), st.sampled_from(["", "commit", "crash"])))
)
def test_it_counts_and_keeps_what_the_other_operator_does(
    steps: list[tuple[list[object], str]],
) -> None:
    mine: StatefulOperator = RunningCountOperator(node(), 0)
    other: StatefulOperator = RunningOperator(node(), 0)
    log: list[StateEntry] = []
    for keys, then in steps:
        assert count(other, keys) == count(mine, keys)
        if then == "commit":
            records = entries(mine.changes())
            assert dict(entries(other.changes())) == dict(records)
            log += records
            assert mine.live_count == other.live_count
        elif then == "crash":
            mine, other = RunningCountOperator(node(), 0), RunningOperator(node(), 0)
            mine.restore(log)
            other.restore(log)
    everything = [entry for piece in mine.sweep() for entry in entries(piece)]
    assert dict(everything) == dict(entry for piece in other.sweep() for entry in entries(piece))


def test_keys_that_come_during_a_sweep_are_left_to_the_changes() -> None:
    operator = RunningCountOperator(node(), 0)
    count(operator, list(range(5_001)))
    operator.changes()
    pieces = operator.sweep()
    first = entries(next(pieces))
    count(operator, [0, 7_000])
    rest = [entry for piece in pieces for entry in entries(piece)]
    assert 5_000 == len(first)
    assert [StateEntry((5_000,), [1])] == rest
    assert [StateEntry((0,), [2]), StateEntry((7_000,), [1])] == entries(operator.changes())


def test_a_key_that_is_gone_begins_anew() -> None:
    """As another plan over the same state may have left it, which forgets keys."""
    log = [StateEntry((key,), value) for key, value in [("a", [2]), ("b", [3]), ("a", [4])]]
    log += [StateEntry(("b",), None), StateEntry(("c",), [1])]
    operator = RunningCountOperator(node(), 0)
    operator.restore(iter(log))
    assert operator.live_count == 2
    assert count(operator, ["a", "b", "c", "b"]) == [5, 1, 2, 2]


@pytest.mark.parametrize(
    "values", [[[1, 2], []], [[], [1]], [[1], [True]], [[1], [2.0]], [[1], ["1"]]]
)
def test_a_record_that_is_no_count_is_refused(values: list[list[object]]) -> None:
    log = [StateEntry((key,), value) for key, value in zip("ab", values, strict=True)]
    with pytest.raises(DataError, match="not the state of"):
        RunningCountOperator(node(), 0).restore(log)


def test_a_state_of_something_else_is_refused() -> None:
    operator = RunningCountOperator(node(), 0)
    with pytest.raises(DataError, match=r"not the state of 'in\.count': a count that is no number"):
        operator.restore([StateEntry(("a",), ["b"])])


def test_only_counts_of_rows_that_nobody_forgets_are_counted_so() -> None:
    assert RunningCountOperator is type(running_operator(node(), 0, IN_MEMORY))
    pipeline = Pipeline("p")
    keyed = pipeline.source("in").key_by("k")
    keyed.count(ttl="1h").to("mortal")
    keyed.fold(int, lambda total, _: total + 1, name="folded").to("folded")
    nodes = [each for each in pipeline.plan.nodes if isinstance(each, RunningNode)]
    kinds = [type(running_operator(each, 0, IN_MEMORY)) for each in nodes]
    assert [RunningOperator, RunningOperator] == kinds


def test_a_count_goes_on_where_its_state_moves_from_memory_into_a_file_and_back() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        for options in ({}, {"state": "sqlite"}, {}):
            store.append_many("in", [b'{"k":"a"}', b'{"k":"b"}', b'{"k":"a"}'])
            counts(**options).run(store, until="end")
        written: list[Record] = list(store.read("out"))
    assert [b"1", b"1", b"2", b"3", b"2", b"4", b"5", b"3", b"6"] == [
        each.value for each in written
    ]
    assert [b"a", b"b", b"a"] * 3 == [each.key for each in written]
