"""Named producers: what is sent again is not written again, whoever sends it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from shaped import restarted, seal, shape
from simulated_stores import START_MS, abandon, log_of, open_quietly
from xxhash import xxh3_64_intdigest

import millstream
from millstream import (
    DataError,
    FencedError,
    NamedProducer,
    SequenceGapError,
    StorageError,
    Store,
    UnavailableError,
    UsageError,
)
from millstream.batch import encode_batch
from millstream.numbered_append import NumberedBatch, OpenProducer, append_numbered
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.create_topic("p", partitions=3)
        yield store


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def send_lines(producer: NamedProducer, numbers: range, topic: str = "t") -> list[int]:
    """Send numbered lines, some of them with keys; their offsets."""
    futures = [
        producer.send(
            topic,
            b"line %d" % number,
            key=b"k%d" % (number % 5) if number % 2 else None,
            sequence=number,
        )
        for number in numbers
    ]
    return [future.result().offset for future in futures]


def lines(numbers: range) -> list[bytes]:
    return [b"line %d" % number for number in numbers]


def test_scenario_64_records_sent_again_after_a_restart_are_written_once(store: Store) -> None:
    with store.producer(name="import") as producer:
        assert [0, 1, 2] == send_lines(producer, range(3))
    with store.producer(name="import") as producer:
        assert 2 == producer.last_sequence("t")
        futures = [producer.send("t", b"again", sequence=number) for number in range(5)]
        found = [future.result() for future in futures]

    assert [0, 1, 2, 3, 4] == [each.offset for each in found]
    assert [True, True, True, False, False] == [each.duplicate for each in found]
    assert [*lines(range(3)), b"again", b"again"] == values(store)


def test_records_over_several_partitions_are_sent_again_from_the_beginning(store: Store) -> None:
    with store.producer(name="import") as producer:
        send_lines(producer, range(50), "p")
    with store.producer(name="import") as producer:
        assert 0 < producer.resume_from("p") <= 50
        send_lines(producer, range(100), "p")

    assert sorted(lines(range(100))) == sorted(value or b"" for value in values(store, "p"))


def test_sending_goes_on_from_where_all_is_written(store: Store) -> None:
    with store.producer(name="import") as producer:
        assert 0 == producer.resume_from("p")
        send_lines(producer, range(10), "p")
    with store.producer(name="import") as producer:
        begin = producer.resume_from("p")
        send_lines(producer, range(begin, 20), "p")

    assert sorted(lines(range(20))) == sorted(value or b"" for value in values(store, "p"))


def test_without_sequences_records_are_counted(store: Store) -> None:
    for number in range(3):
        with store.producer(name="counter") as producer:
            assert 2 * number - 1 == producer.last_sequence("t")
            producer.send("t", b"a")
            producer.send("t", b"b").result()
            assert 2 * number + 1 == producer.last_sequence("t")
    assert [b"a", b"b"] * 3 == values(store)


def test_a_topic_is_counted_or_numbered(store: Store) -> None:
    with store.producer(name="mixed") as producer:
        producer.send("t", b"a", sequence=0)
        with pytest.raises(UsageError, match="with every record of a topic, or with none"):
            producer.send("t", b"b")
        producer.send("p", b"another topic")
        with pytest.raises(UsageError, match="with every record"):
            producer.send("p", b"b", sequence=1)


def test_scenario_65_a_sequence_that_leaves_records_out_is_refused(store: Store) -> None:
    with store.producer(name="import") as producer:
        none = "expected sequence 0, not 1: it has no record yet. Send those in between first"
        with pytest.raises(SequenceGapError, match=none) as caught:
            producer.send("t", b"b", sequence=1)
        assert (0, "t") == (caught.value.expected, caught.value.topic)
        producer.send("t", b"a", sequence=0)
        producer.send("t", b"b", sequence=1)
        with pytest.raises(SequenceGapError, match="not 3: its last record has sequence 1"):
            producer.send("t", b"d", sequence=3)
    with store.producer(name="import") as producer, pytest.raises(SequenceGapError):
        producer.send("t", b"d", sequence=3)
    assert [b"a", b"b"] == values(store)


def test_scenario_65_sequences_beyond_32_bits_and_up_to_the_last(store: Store) -> None:
    for numbers in ((3, 7, 2**32, 2**40), (3, 7, 8, 2**40, 2**40 + 5, 2**63 - 1)):
        with store.producer(name="import", gaps=True) as producer:
            found = [
                producer.send("t", b"%d" % number, sequence=number).result() for number in numbers
            ]
    assert [True, True, True, True, False, False] == [each.duplicate for each in found]
    assert [b"%d" % n for n in (3, 7, 2**32, 2**40, 2**40 + 5, 2**63 - 1)] == values(store)
    with (
        store.producer(name="import", gaps=True) as producer,
        pytest.raises(UsageError, match=r"2\*\*63"),
    ):
        producer.send("t", b"", sequence=2**63)


def test_a_record_sent_twice_by_one_producer_is_written_once(store: Store) -> None:
    with store.producer(name="import", linger_ms=10_000) as producer:
        first = producer.send("t", b"a", sequence=0)
        second = producer.send("t", b"a", sequence=0)
        assert (0, False) == (first.result().offset, first.result().duplicate)
        assert (0, True) == (second.result().offset, second.result().duplicate)
        assert 1 == producer.send("t", b"b", sequence=1).result().offset
    assert [b"a", b"b"] == values(store)


def test_a_duplicate_tells_the_time_it_was_given(store: Store) -> None:
    for _ in range(2):
        with store.producer(name="import") as producer:
            found = producer.send("t", b"a", timestamp_ms=5, sequence=0).result()
            other = producer.send("t", b"b", sequence=1).result()
    assert 5 == found.timestamp_ms
    assert [5, other.timestamp_ms] == [record.timestamp_ms for record in store.read("t")]


def test_scenario_65_an_offset_more_than_five_batches_back_is_not_known(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    shape(store, cell)
    with store.producer(name="import", linger_ms=0) as producer:
        for number in range(10):
            producer.send("t", b"%d" % number, sequence=number).result()
            if number % 4 == 3:
                seal(store, cell)
    for again in restarted(store, storage, cell):
        with again.producer(name="import") as producer:
            found = [producer.send("t", b"", sequence=number).result() for number in range(10)]
        assert [-1] * 5 + [5, 6, 7, 8, 9] == [each.offset for each in found]
        assert all(each.duplicate for each in found)
        assert 10 == len(values(again))


def test_scenario_65_opening_a_name_again_fences_who_has_it(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    shape(store, cell)
    with open_quietly(storage) as other:
        zombie = store.producer(name="import")
        zombie.send("t", b"a", sequence=0).result()
        with other.producer(name="import") as producer:
            assert zombie.epoch < producer.epoch
            late = zombie.send("t", b"zombie", sequence=1)
            with pytest.raises(FencedError, match="opened again by process"):
                late.result()
            with pytest.raises(FencedError):
                zombie.send("t", b"zombie", sequence=2)
            seal(store, cell)
            producer.send("t", b"b", sequence=1)
        with pytest.raises(FencedError):
            zombie.close()
    for again in restarted(store, storage, cell):
        assert [b"a", b"b"] == values(again)
        with again.producer(name="import") as producer:
            assert 1 == producer.last_sequence("t")


def test_scenario_65_a_name_that_was_forgotten_begins_anew(store: Store) -> None:
    producer = store.producer(name="import")
    producer.send("t", b"a", sequence=0).result()
    assert store.forget_producer("import")
    assert not store.forget_producer("import")
    with pytest.raises(FencedError, match="was forgotten"):
        producer.send("t", b"b", sequence=1).result()
    with pytest.raises(FencedError):
        producer.close()
    for _ in range(2):
        with store.producer(name="import") as producer:
            assert -1 == producer.last_sequence("t")
            assert not producer.send("t", b"a", sequence=0).result().duplicate
            assert 1 == producer.epoch
        assert store.forget_producer("import")
    assert [b"a", b"a", b"a"] == values(store)


def test_the_id_of_a_producer_follows_from_its_name(store: Store) -> None:
    """As docs/log-format.md says: a catalog that was lost gives the same one."""
    seed = int.from_bytes(store._engine.catalog.store_uid[:8], "little")
    for times in range(3):
        with store.producer(name="imp\u00f6rt") as producer:
            producer.send("t", b"a", sequence=0).result()
        *_, batch = store.read("t").batches()
        expected = xxh3_64_intdigest(f"imp\u00f6rt\n{times}".encode(), seed) >> 1
        assert expected == batch.header.producer_id
        store.forget_producer("imp\u00f6rt")


def test_forgotten_producers_leave_the_snapshot(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t")
        for number in range(10):
            with store.producer(name=f"once-{number}") as producer:
                producer.send("t", b"", sequence=0)
    with open_quietly(storage) as store:
        for number in range(9):
            store.forget_producer(f"once-{number}")
        with store.producer(name="once-9") as producer:
            assert 0 == producer.last_sequence("t")
        with store._engine.append_lock:
            assert 1 == len(log_of(store).producers._caught_up().producers)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 7])
def test_a_name_is_short_and_printable(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="not a producer name"):
        store.producer(name=name)


def test_behind_a_record_that_failed_nothing_is_written(
    store: Store, storage: MemoryStorage
) -> None:
    with store.producer(name="import", linger_ms=0) as producer:
        producer.send("t", b"a", sequence=0).result()
        storage.faults.fail["write"] = errno.ENOSPC
        lost = producer.send("t", b"b", sequence=1)
        with pytest.raises(StorageError, match="full"):
            lost.result()
        storage.faults.clear()
        with pytest.raises(UnavailableError, match="records before it were not written"):
            producer.send("t", b"c", sequence=2)
        assert 0 == producer.send("p", b"elsewhere", sequence=0).result().offset
        with pytest.raises(StorageError):
            producer.flush()
    with store.producer(name="import") as producer:
        send_lines(producer, range(producer.last_sequence("t") + 1, 3))
    assert [b"a", *lines(range(1, 3))] == values(store)


def test_records_that_wait_behind_one_that_failed_fail_too(
    store: Store, storage: MemoryStorage
) -> None:
    with store.producer(name="import", linger_ms=10_000, batch_bytes=100) as producer:
        assert -1 == producer.last_sequence("t")
        storage.faults.fail["write"] = errno.ENOSPC
        with store._engine.append_lock:  # nothing is written before all have been sent
            futures = [producer.send("t", b"x" * 90, sequence=number) for number in range(5)]
        errors = [future.exception() for future in futures]
        storage.faults.clear()
        with pytest.raises(StorageError):
            producer.flush()
    assert all(isinstance(error, UnavailableError) for error in errors)
    assert [] == values(store)


def test_a_record_that_cannot_be_encoded_stops_those_behind_it(store: Store) -> None:
    with store.producer(name="import", linger_ms=10_000) as producer:
        producer.send("t", b"a", sequence=0)
        store.configure_topic("t", compact=True)
        with pytest.raises(UsageError, match="compacted"):
            producer.flush()
        store.configure_topic("t", compact=False)
        with pytest.raises(UnavailableError, match="records before it"):
            producer.send("t", b"b", key=b"k", sequence=1)
    assert [] == values(store)


def test_other_processes_see_what_a_producer_has_written(
    store: Store, storage: MemoryStorage
) -> None:
    with open_quietly(storage) as other:
        with other.producer(name="import") as producer:
            send_lines(producer, range(4))
        other.append("t", b"between")
        with store.producer(name="import") as producer:
            assert 3 == producer.last_sequence("t")
            store.append("t", b"plain")
            send_lines(producer, range(4, 6))
        with other.producer(name="import") as producer:
            assert 5 == producer.last_sequence("t")
        with other.producer(name="another") as producer:
            assert -1 == producer.last_sequence("t")
            producer.send("t", b"other", sequence=0)
    expected = [*lines(range(4)), b"between", b"plain", *lines(range(4, 6)), b"other"]
    assert expected == values(store)


def test_what_a_dead_process_wrote_and_did_not_acknowledge_is_made_durable_first(
    storage: MemoryStorage,
) -> None:
    store = open_quietly(storage)
    store.create_topic("t")
    opened = OpenProducer(store._engine, "import")
    batch = NumberedBatch(encode_batch([b"a"]), -1, 0)
    append_numbered(store._engine, opened, log_of(store), [batch])
    assert [] == values(store), "it is not acknowledged"
    other = open_quietly(storage)
    with other.producer(name="import") as producer:
        assert producer.send("t", b"a", sequence=0).result().duplicate
    after = storage.crash(keep="none")
    abandon(store)
    abandon(other)
    with open_quietly(after) as again:
        assert [b"a"] == values(again)


def test_the_same_batches_again_are_found_where_they_are(store: Store) -> None:
    opened, log = OpenProducer(store._engine, "import"), log_of(store)
    batches = [
        NumberedBatch(encode_batch([b"%d" % row, b"x"]), 2 * row - 1, 2 * row + 1)
        for row in range(3)
    ]
    first = append_numbered(store._engine, opened, log, batches[:2])
    second = append_numbered(store._engine, opened, log, batches)

    assert [(1, False), (3, False)] == [(each.last_offset, each.duplicate) for each in first]
    assert [(1, True), (3, True), (5, False)] == [
        (each.last_offset, each.duplicate) for each in second
    ]
    with pytest.raises(SequenceGapError, match="6 to 7"):
        append_numbered(store._engine, opened, log, [NumberedBatch(encode_batch([b"late"]), 7, 8)])
    store.sync()
    assert [b"0", b"x", b"1", b"x", b"2", b"x"] == values(store)


def test_scenario_64_recovery_reads_the_snapshot_and_what_follows(storage: MemoryStorage) -> None:
    store = open_quietly(storage)
    store.create_topic("t", segment_bytes=4096)
    with store.producer(name="import", linger_ms=0) as producer:
        for number in range(40):
            producer.send("t", b"x" * 200, sequence=number).result()
    assert len(store.segments("t", 0)) > 3
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as again:
        log = log_of(again)
        states = log.producers._load()
        assert 0 < states.next_offset == log.facts().checkpoint.next_offset < 40
        with again.producer(name="import") as producer:
            assert 39 == producer.last_sequence("t")


def test_a_partition_without_producers_is_never_read_for_them(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", segment_bytes=4096)
        with store.producer(name="elsewhere") as producer:
            assert -1 == producer.last_sequence("t")
        for _ in range(40):
            store.append("t", b"x" * 200)
        assert 0 == log_of(store).slot[16]
        assert b"" == b"".join(
            data
            for (data,) in store._engine.catalog.database.query("SELECT data FROM producer_states")
        )


def damage_snapshot(store: Store, data: bytes) -> None:
    database = store._engine.catalog.database
    with database.transaction("damage"):
        database.query("UPDATE producer_states SET data = ?", (data,))


@pytest.mark.parametrize("damage", ["empty", "zeros", "flipped", "cut"])
def test_scenario_66_a_damaged_snapshot_is_made_anew(
    storage: MemoryStorage, damage: str, cell: Cell
) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", compression=cell.codec, segment_bytes=cell.segment_bytes)
        with store.producer(name="import", linger_ms=0) as producer:
            for number in range(40):
                producer.send("t", b"x" * 200, sequence=number).result()
    with open_quietly(storage) as store:
        (data,) = store._engine.catalog.database.query("SELECT data FROM producer_states")[0]
        assert isinstance(data, bytes)
        damaged = {
            "empty": b"",
            "zeros": bytes(len(data)),
            "flipped": data[:30] + bytes([data[30] ^ 1]) + data[31:],
            "cut": data[:-9],
        }
        damage_snapshot(store, damaged[damage])
        with store.producer(name="import") as producer:
            assert 39 == producer.last_sequence("t")
            send_lines(producer, range(35, 42))
    for _ in range(cell.restarts - 1):
        with open_quietly(storage) as store, store.producer(name="import") as producer:
            assert 41 == producer.last_sequence("t")
    with open_quietly(storage) as store:
        assert 42 == len(values(store))
        (data,) = store._engine.catalog.database.query("SELECT data FROM producer_states")[0]
        assert damaged[damage] != data, "it is whole again"


@pytest.mark.parametrize("damaged", [False, True])
def test_scenario_64_records_sent_again_after_a_compaction(
    storage: MemoryStorage, damaged: bool
) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True, segment_bytes=4096)
        with store.producer(name="import", linger_ms=0) as producer:
            for number in range(60):
                key = b"k%d" % (number % 3)
                producer.send("t", b"x" * 200, key=key, sequence=number).result()
        store.append("t", b"after", key=b"other")
        store.roll("t", 0)
        assert sum(each.removed_records for each in store.compact("t")) > 50
        found = store.segments("t", 0)
        assert sum(each.size_bytes for each in found) < 3000, "gaps of one producer become one"
    with open_quietly(storage) as store:
        if damaged:
            damage_snapshot(store, b"")
        with store.producer(name="import") as producer:
            assert 59 == producer.last_sequence("t")
            found = [
                producer.send("t", b"again", key=b"k%d" % (number % 3), sequence=number).result()
                for number in range(50, 61)
            ]
        assert [True] * 10 + [False] == [each.duplicate for each in found]
        assert 59 == found[9].offset


@pytest.mark.cells(segments=3)
def test_scenario_66_producers_of_a_part_that_is_gone_are_refused(
    storage: MemoryStorage, cell: Cell
) -> None:
    clock = ManualClock(START_MS)
    with open_quietly(storage, clock) as store:
        store.create_topic("t", compression=cell.codec, segment_bytes=cell.segment_bytes)
        with store.producer(name="old") as producer:
            producer.send("t", b"x", sequence=0)
        with store.producer(name="import", linger_ms=0) as producer:
            for number in range(40):
                producer.send("t", b"x" * 200, sequence=number).result()
        store.trim("t", {0: 30})
    with open_quietly(storage, clock) as store:
        damage_snapshot(store, b"garbage")
        clock.advance(1000)
        with store.producer(name="import") as producer:
            assert 39 == producer.last_sequence("t")
            assert producer.send("t", b"", sequence=39).result().duplicate
    for _ in range(cell.restarts):
        with open_quietly(storage, clock) as store:
            with store.producer(name="old") as producer:
                with pytest.raises(DataError, match="Use another name"):
                    producer.last_sequence("t")
                with pytest.raises(DataError, match="Use another name"):
                    producer.send("t", b"perhaps again", sequence=0)
            with store.producer(name="new") as producer:
                producer.send("t", b"new", sequence=0).result()
            assert b"new" == values(store)[-1]


def test_an_unnamed_producer_is_as_before(store: Store) -> None:
    with store.producer() as producer:
        assert not isinstance(producer, NamedProducer)
        producer.send("t", b"a")
        producer.send("t", b"a")
    assert [b"a", b"a"] == values(store)
    (batch,) = store.read("t").batches()
    assert (0, 0, 0) == batch.header[12:15]


def test_a_store_of_the_first_schema_takes_named_producers() -> None:
    with millstream.open() as store:
        assert {"producers", "producer_states"} <= {
            name
            for (name,) in store._engine.catalog.database.query(
                "SELECT name FROM sqlite_schema WHERE type = 'table'"
            )
        }
