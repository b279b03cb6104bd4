"""A source taken into its topic: once, in order, with what is wrong named or set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from outside_world import SimulatedOutside, extend, put, values_of
from simulated_stores import START_MS

import millstream
from millstream import (
    ConnectorError,
    DataError,
    FencedError,
    FormatVersionError,
    LockedError,
    RecordError,
    Store,
    UsageError,
)
from millstream.processor.connectors import Position, Rejected, Source, SourceBatch, SourceRecord
from millstream.processor.ingest import Ingestor, rejection
from millstream.processor.sources import csv_files, from_iterable, jsonl_files
from millstream.testing import ManualClock, MemoryStorage


@pytest.fixture
def store() -> Iterator[Store]:
    # Time stands still, so that what one transaction takes in is bounded by bytes alone.
    with millstream.open(storage=MemoryStorage(), clock=ManualClock(START_MS)) as store:
        yield store


def take(store: Store, source: Source, **options: Any) -> int:
    with Ingestor(store, "p", source, **options) as ingestor:
        return ingestor.drain()


class Parts(Source):
    """Partitions of numbers; None stands for a moment without any."""

    name = "parts"

    def __init__(self, **parts: Sequence[int | None]) -> None:
        self.parts = parts

    def partitions(self) -> Sequence[str]:
        return list(self.parts)

    def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
        taken = position or 0
        while taken < len(self.parts[partition]):
            number = self.parts[partition][taken]
            taken += 1
            yield None if number is None else SourceBatch([b"%d" % number], taken)


def test_a_second_run_goes_on_where_the_first_stopped(store: Store) -> None:
    items = [1, 2]
    assert 2 == take(store, from_iterable(items))
    items += [3]
    assert 1 == take(store, from_iterable(items))
    assert 0 == take(store, from_iterable(items))

    assert [b"1", b"2", b"3"] == values_of(store, "@source/p/items")


def test_keys_times_and_headers_are_kept_beside_records_without(store: Store) -> None:

    class Mixed(Parts):
        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            yield SourceBatch([b"1"], 1)
            yield SourceBatch([b"2"], 2, keys=[b"k"])
            yield SourceBatch([None], 3, timestamps_ms=[7])
            yield SourceBatch([b"4"], 4, headers=[(("h", b"v"),)])

    take(store, Mixed(a=[]))
    records = list(store.read("@source/p/parts"))

    assert [b"1", b"2", None, b"4"] == [record.value for record in records]
    assert [None, b"k", None, None] == [record.key for record in records]
    assert [(), (), (), (("h", b"v"),)] == [record.headers for record in records]
    assert 7 == records[2].timestamp_ms
    assert records[0].timestamp_ms == records[3].timestamp_ms > 7


def test_one_transaction_takes_in_many_small_batches(store: Store) -> None:
    numbers = list(range(500))
    with Ingestor(store, "p", Parts(a=numbers)) as ingestor:
        assert ingestor.pump()
        assert not ingestor.pump()
        assert ingestor.exhausted
        assert (500, 0) == (ingestor.records, ingestor.rejected)

    assert [b"%d" % number for number in numbers] == values_of(store, "@source/p/parts")
    assert 1 == len(list(store.read("@source/p/parts").batches()))


def test_a_transaction_is_bounded_in_bytes(store: Store) -> None:
    items = (b"x" * 1000 for _ in range(5000))
    with Ingestor(store, "p", from_iterable(items)) as ingestor:
        pumps = 0
        while ingestor.pump():
            pumps += 1

    assert 10 > pumps > 1


def test_partitions_follow_each_other_and_new_ones_are_found(store: Store) -> None:
    source = Parts(a=[1, 2, None, 3], b=[10, None, 11])
    with Ingestor(store, "p", source) as ingestor:
        ingestor.pump()
        assert (3, False) == (ingestor.records, ingestor.exhausted)
        ingestor.pump()
        assert (5, True) == (ingestor.records, ingestor.exhausted)
    source.parts["c"] = [20]
    with Ingestor(store, "p", source) as ingestor:
        assert 1 == ingestor.drain()

    assert [1, 2, 10, 3, 11, 20] == [int(v or b"") for v in values_of(store, "@source/p/parts")]


def test_while_nothing_comes_new_partitions_are_looked_for(store: Store) -> None:
    source = Parts(a=[1, None, None, None, 3])
    with Ingestor(store, "p", source) as ingestor:
        ingestor.pump()
        source.parts["b"] = [10]
        while not ingestor.exhausted:
            ingestor.pump()

    assert {1, 3, 10} == {int(v or b"") for v in values_of(store, "@source/p/parts")}


def test_a_source_may_have_a_partition_of_the_topic_for_each_of_its_own(store: Store) -> None:
    source = Parts(a=[1, 2], b=[10], c=[20])
    source.topic_partitions = 2
    take(store, source)

    found = sorted((record.partition, record.value) for record in store.read("@source/p/parts"))
    assert [(0, b"1"), (0, b"2"), (0, b"20"), (1, b"10")] == found


def test_what_a_source_raises_is_told_with_its_name(store: Store) -> None:
    def failing() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("amount")

    with Ingestor(store, "p", from_iterable(failing)) as ingestor:
        with pytest.raises(
            ConnectorError, match="source 'failing' of pipeline 'p' failed"
        ) as caught:
            ingestor.drain()
        assert "failing" == caught.value.connector
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(ConnectorError):
            ingestor.pump()

    # What was read with it in one batch comes again.
    assert [] == values_of(store, "@source/p/failing")


def test_what_came_before_a_failure_is_taken_in(store: Store) -> None:
    class Failing(Parts):
        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            yield from super().open(partition, position)
            raise OSError("gone")

    with Ingestor(store, "p", Failing(a=[1, 2])) as ingestor:
        assert ingestor.pump()
        with pytest.raises(ConnectorError, match="in partition 'a': OSError: gone"):
            ingestor.pump()

    assert [b"1", b"2"] == values_of(store, "@source/p/parts")


def test_a_pump_that_was_interrupted_cannot_go_on(store: Store) -> None:
    class Interrupted(Parts):
        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            yield from super().open(partition, position)
            raise KeyboardInterrupt

    with Ingestor(store, "p", Interrupted(a=[1, 2])) as ingestor:
        with pytest.raises(KeyboardInterrupt):
            ingestor.pump()
        with pytest.raises(UsageError, match="use another Ingestor"):
            ingestor.pump()
    take(store, Parts(a=[1, 2]))

    assert [b"1", b"2"] == values_of(store, "@source/p/parts")


# --- rows that cannot be used ------------------------------------------------------------------


def test_a_line_that_is_no_json_is_named_and_stops(store: Store) -> None:
    outside = SimulatedOutside()
    put(outside.storage, "a.jsonl", b'{"n":1}\n')
    put(outside.storage, "b.jsonl", b'{"n":2}\n\n{"n":\n')
    source = replace(jsonl_files("in/*.jsonl", name="in"), outside=outside)
    check = msgspec.json.Decoder(dict[str, int]).decode
    with Ingestor(store, "p", source, check=check) as ingestor:
        assert ingestor.pump()
        with pytest.raises(RecordError, match=r"source 'in': DecodeError.*line 3") as caught:
            ingestor.pump()

    assert "in/b.jsonl" == caught.value.path
    assert [b'{"n":1}'] == values_of(store, "@source/p/in")


def test_what_is_no_record_may_be_kept_in_its_place_with_the_reason(store: Store) -> None:
    outside = SimulatedOutside()
    put(outside.storage, "a.csv", b"n,m\n1,1\n2\nx,2\n3,3\n")
    source = replace(csv_files("a.csv", types={"n": int}, name="csv"), outside=outside)
    with Ingestor(store, "p", source, keep_rejected=True) as ingestor:
        assert 4 == ingestor.drain()
        assert (4, 2) == (ingestor.records, ingestor.rejected)
    records = list(store.read("@source/p/csv"))

    assert [b'{"n":1,"m":"1"}', b"2", b"x,2", b'{"n":3,"m":"3"}'] == [r.value for r in records]
    assert [
        None,
        "1 fields where there are 2 columns (file a.csv, line 3)",
        "column 'n': 'x' is not an integer (file a.csv, line 4)",
        None,
    ] == [rejection(record.headers) for record in records]


def test_values_that_fail_a_check_are_kept_without_key_and_time(store: Store) -> None:
    items = [SourceRecord(number, b"%d" % number, number) for number in range(1, 4)]

    def odd(value: bytes) -> None:
        if int(value) % 2 == 0:
            raise ValueError("even")

    take(store, from_iterable(items), keep_rejected=True, check=odd)
    records = list(store.read("@source/p/items"))

    assert [(b"1", b"1", 1), (b"3", b"3", 3)] == [
        (record.value, record.key, record.timestamp_ms)
        for record in records
        if rejection(record.headers) is None
    ]
    assert ["ValueError: even (item 2)"] == [
        why for record in records if (why := rejection(record.headers)) is not None
    ]


def test_rejected_rows_alone_move_the_position(store: Store) -> None:
    class Bad(Source):
        name = "bad"

        def partitions(self) -> Sequence[str]:
            return ["0"]

        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            if position is None:
                yield SourceBatch([], 1, rejected=[Rejected(b"?", "no good")])

    assert 1 == take(store, Bad(), keep_rejected=True)
    assert 0 == take(store, Bad(), keep_rejected=True)
    assert [b"?"] == values_of(store, "@source/p/bad")


# --- positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [None, True, -1, 2.5, "x", b"y", [1, {"a": [None]}]])
def test_a_position_comes_back_as_it_was(store: Store, position: Any) -> None:
    seen = []

    class One(Source):
        name = "one"

        def partitions(self) -> Sequence[str]:
            return ["a/b c"]

        def open(self, partition: str, position_now: Position) -> Iterator[SourceBatch | None]:
            seen.append(position_now)
            yield SourceBatch([b""], position)

    take(store, One())
    take(store, One())

    assert [None, position] == seen


def test_a_position_that_is_no_plain_data_is_refused(store: Store) -> None:
    class One(Parts):
        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            yield SourceBatch([b""], object())

    with pytest.raises(UsageError, match="the position of 'a' is not plain data"):
        take(store, One(a=[]))
    assert [] == values_of(store, "@source/p/parts")


def test_columns_that_are_not_equally_long_are_refused(store: Store) -> None:
    class Skewed(Parts):
        def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
            yield SourceBatch([b"1", b"2"], 1, keys=[b"k"])

    with pytest.raises(UsageError, match="columns that are not equally long"):
        take(store, Skewed(a=[]))


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", FormatVersionError), (b"\x02", FormatVersionError), (b"\x01\xc1", DataError)],
)
def test_a_damaged_position_is_an_error(store: Store, data: bytes, error: type[Exception]) -> None:
    with store.transaction() as transaction:
        transaction.put_checkpoint("source/p/items/0", data)
    with pytest.raises(error, match="position"):
        take(store, from_iterable([1]))


def test_a_topic_made_anew_is_refused(store: Store) -> None:
    take(store, from_iterable([1]))
    store.delete_topic("@source/p/items")

    with pytest.raises(UsageError, match="deleted and created again"):
        take(store, from_iterable([1]))


def test_a_topic_of_other_partitions_is_refused(store: Store) -> None:
    take(store, Parts(a=[1]))
    source = Parts(a=[1])
    source.topic_partitions = 2

    with pytest.raises(UsageError, match="has topic_partitions 2, its topic was made with 1"):
        take(store, source)


def test_only_one_takes_a_source_in(store: Store) -> None:
    with Ingestor(store, "p", from_iterable([1])):
        with pytest.raises(LockedError):
            Ingestor(store, "p", from_iterable([1]))
        take(store, from_iterable([1], name="other"))
    assert 1 == take(store, from_iterable([1]))


def test_one_that_was_replaced_takes_nothing_in() -> None:
    storage = MemoryStorage()
    with (
        millstream.open(storage=storage, clock=ManualClock(1)) as stalled,
        millstream.open(storage=storage, clock=ManualClock(1)) as other,
        Ingestor(stalled, "p", from_iterable([1, 2])) as ingestor,
    ):
        ingestor._ownership.close()  # its lock is lost while it sleeps
        assert 2 == take(other, from_iterable([1, 2]))
        with pytest.raises(FencedError):
            ingestor.pump()
        assert [b"1", b"2"] == values_of(other, "@source/p/items")


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 81, "@x"])
def test_a_name_that_is_none_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a source"):
        from_iterable([], name=name)
    source = Parts()
    source.name = name
    with pytest.raises(UsageError, match="is not the name of a source"):
        Ingestor(store, "p", source)


def test_files_that_grow_are_followed_over_runs(store: Store) -> None:
    outside = SimulatedOutside()
    put(outside.storage, "a", b"1\n")
    source = replace(jsonl_files("*", name="f", follow=True), outside=outside)
    with Ingestor(store, "p", source) as ingestor:
        ingestor.drain()
        extend(outside.storage, "a", b"2\n3")
        put(outside.storage, "b", b"10\n")
        ingestor.drain()
        assert not ingestor.exhausted
    extend(outside.storage, "a", b"\n")
    with Ingestor(store, "p", source) as ingestor:
        assert 1 == ingestor.drain()

    assert [b"1", b"2", b"10", b"3"] == values_of(store, "@source/p/f")
