"""Reading several partitions at once: what holds records back, and never for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_stores import kill, log_of, open_quietly

from millstream import LogReader, Store, TopicPartition
from millstream.batch import encode_batch
from millstream.testing import ManualClock, MemoryStorage
from millstream.transaction import Transaction

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000_000)


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as store:
        store.create_topic("t", partitions=2)
        yield store


def values(reader: LogReader) -> list[bytes | None]:
    return [record.value for batch in reader.poll() for record in batch.records()]


def follow(reader: LogReader, *, polls: int = 20) -> list[bytes | None]:
    """What a follower gets within a few waits."""
    found = values(reader)
    for _ in range(polls):
        reader.wait(0.1)
        found += values(reader)
    return found


def test_an_aborted_transaction_holds_nothing_back(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"aborted", partition=0)
        transaction.abort()
    store.append("t", b"after", partition=1)

    with store.reader({P0: 0, P1: 0}) as reader:
        assert [b"after"] == values(reader)
        assert reader.at_end()
        assert {P0: 1, P1: 1} == reader.positions


def test_a_writer_that_died_before_its_sync_holds_others_back_for_a_moment_only(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    other = open_quietly(storage, clock)
    other._engine.append([(log_of(other, "t", 0), encode_batch([b"unsynced"]))])
    kill(other)
    store.append("t", b"after", partition=1)

    with store.reader({P0: 0, P1: 0}) as reader:
        assert [] == values(reader), "a sync may be under way"
        assert [b"unsynced", b"after"] == follow(reader)
        assert reader.at_end()


def test_a_transaction_whose_owner_died_before_its_sync_is_aborted(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    other = open_quietly(storage, clock)
    Transaction(other._engine, other._owners.take()).append("t", b"lost", partition=0)
    kill(other)
    store.append("t", b"after", partition=1)

    with store.reader({P0: 0, P1: 0}) as reader:
        assert [b"after"] == follow(reader)
        assert reader.at_end()


def test_a_draining_consumer_ends_although_a_writer_died_before_its_sync(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    other = open_quietly(storage, clock)
    other._engine.append([(log_of(other, "t", 0), encode_batch([b"unsynced"]))])
    kill(other)
    store.append("t", b"after", partition=1)

    with store.consumer("t") as consumer:
        assert [b"unsynced", b"after"] == [record.value for record in consumer]


def test_a_read_only_consumer_ends_where_only_a_writer_could_decide(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    store.append("t", b"first", partition=0)
    other = open_quietly(storage, clock)
    other._engine.append([(log_of(other, "t", 0), encode_batch([b"unsynced"]))])
    kill(other)
    store.append("t", b"after", partition=1)

    with (
        open_quietly(storage.read_only_view(), clock, read_only=True) as onlooker,
        onlooker.consumer("t") as consumer,
    ):
        assert [b"first"] == [record.value for record in consumer]
