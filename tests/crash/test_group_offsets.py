"""Scenarios 57 to 59 and 63: what groups have committed, and logs that lost or hide their end.

Over the matrix of `support/matrix.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from simulated_stores import START_MS, abandon, kill, log_of, open_quietly

from millstream import (
    FencedError,
    OffsetOutOfRangeError,
    Store,
    TopicPartition,
    Transaction,
    UnknownTopicError,
    UsageError,
)
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

    from millstream.config import Compression

T0 = TopicPartition("t", 0)
LEASE_MS = 10 * 60_000


@dataclass(frozen=True)
class Case:
    """How the log is made, and how often the machine restarts."""

    codec: Compression
    segments: int
    restarts: int

    def make(self, storage: MemoryStorage, clock: ManualClock | None = None) -> Store:
        """A store with ten durable records in so many segments."""
        store = open_quietly(storage, clock)
        store.create_topic("t", compression=self.codec)
        for number in range(10):
            if self.segments == 3 and number in {3, 6}:
                store.roll("t", 0)
            store.append("t", b"%d" % number * 90)
        return store

    def restart(self, storage: MemoryStorage) -> MemoryStorage:
        """Lose power and start again; each time the partition is opened and left."""
        for _ in range(self.restarts - 1):
            storage = storage.crash(keep="none")
            with_log(storage)
        return storage.crash(keep="none")


def with_log(storage: MemoryStorage) -> None:
    store = open_quietly(storage)
    log_of(store)
    abandon(store)


@pytest.fixture
def case(cell: Cell) -> Case:
    return Case(cell.codec, cell.segments, cell.restarts)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def commit(store: Store, offset: int) -> None:
    with store.consumer("t", group="g") as consumer:
        consumer.commit({T0: offset})


def committed(store: Store) -> int | None:
    return store.group("g").offsets.get(T0)


def test_scenario_57_a_group_is_ahead_of_what_a_power_failure_left(
    case: Case, storage: MemoryStorage
) -> None:
    """It is not stuck, and gets every record that comes after."""
    store = case.make(storage)
    store.append_many("t", [b"lost"] * 5, durability="os")
    commit(store, 15)
    abandon(store)
    storage = case.restart(storage)

    store = open_quietly(storage)
    assert (0, 15) == store.offsets("t")[0]
    assert 15 == committed(store)
    with store.consumer("t", group="g", follow=False) as consumer:
        assert [] == list(consumer)
        assert {T0: 0} == consumer.lag()
        assert 15 == store.append("t", b"next").offset
        assert [b"next"] == [record.value for record in consumer]
        consumer.commit()
    assert 16 == committed(store)
    assert [*range(10), 15] == [record.offset for record in store.read("t")]
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as store:
        assert [*range(10), 15] == [record.offset for record in store.read("t")]
        assert store.verify(deep=True).ok


@pytest.mark.parametrize("seen_by", ["commit", "trim", "queue"])
@pytest.mark.parametrize("end", ["kill", "power"])
def test_scenario_58_offsets_that_were_seen_are_not_given_out_again(
    case: Case, storage: MemoryStorage, end: str, seen_by: str
) -> None:
    store = case.make(storage)
    if seen_by == "queue":
        with store.queue("t") as queue:
            store.append_many("t", [b"seen"] * 4, durability="os")
            queue.ack(*queue.get_many(14, timeout=0))
    else:
        store.append_many("t", [b"seen"] * 4, durability="os")
    if seen_by == "commit":
        commit(store, 14)
    if seen_by == "trim":
        store.trim("t", {0: 14})
    if end == "kill":
        kill(store)
    else:
        abandon(store)
        storage = case.restart(storage)

    with open_quietly(storage) as store:
        assert 14 == store.append("t", b"new").offset
        assert b"new" == list(store.read("t"))[-1].value


def test_scenario_59_commits_that_go_back_repeat_and_miss(
    case: Case, storage: MemoryStorage
) -> None:
    store = case.make(storage)
    for offset in (4, 4, 2, 0, 10):
        commit(store, offset)
        assert offset == committed(store)
    with store.consumer("t", group="g") as consumer:
        for wrong, error in (
            ({T0: 11}, OffsetOutOfRangeError),
            ({T0: -1}, UsageError),
            ({TopicPartition("t", 1): 0}, (FencedError, UnknownTopicError, UsageError)),
            ({TopicPartition("nope", 0): 0}, (FencedError, UnknownTopicError, UsageError)),
        ):
            with pytest.raises(error):
                consumer.commit(wrong)
    assert 10 == committed(store)
    abandon(store)
    with open_quietly(case.restart(storage)) as store:
        assert 10 == committed(store)


def test_scenario_59_a_member_whose_lease_ran_out_commits_nothing(
    case: Case, storage: MemoryStorage
) -> None:
    clock = ManualClock(START_MS)
    store = case.make(storage, clock)
    other = open_quietly(storage, clock)
    with store.consumer("t", group="g", start="earliest", follow=False) as stuck:
        assert stuck.poll(timeout=0, max_records=3)
        clock.advance(LEASE_MS)
        with other.consumer("t", group="g", start="earliest", follow=False) as newer:
            assert 10 == len(list(newer))
            newer.commit()
            with pytest.raises(FencedError):
                stuck.commit()
    assert 10 == committed(store)
    abandon(other)
    abandon(store)
    with open_quietly(case.restart(storage)) as store:
        assert 10 == committed(store)


@pytest.mark.parametrize("end", ["abort", "gap", "open and dead"])
def test_scenario_63_an_end_without_records_is_reached(
    case: Case, storage: MemoryStorage, end: str
) -> None:
    """Whoever waits for the end position gets there, though no record comes."""
    store = case.make(storage)
    if end == "abort":
        with store.transaction() as transaction:
            transaction.append_many("t", [b"never"] * 3)
            transaction.abort()
        store.sync()
    elif end == "gap":
        store.append_many("t", [b"lost"] * 3, durability="os")
        commit(store, 13)
    else:
        dying = open_quietly(storage)
        transaction = Transaction(dying._engine, dying._owners.take())
        transaction.append_many("t", [b"never"] * 3)
        dying.sync()
        kill(dying)
    abandon(store)

    with open_quietly(case.restart(storage)) as store:
        assert 13 == store.offsets("t")[0].end
        assert list(range(10)) == [record.offset for record in store.read("t")]
        with store.reader({T0: 8}) as reader:
            while batches := reader.poll():
                assert {each.base_offset for each in batches} <= {8, 9}
            assert {T0: 13} == reader.positions
            assert reader.at_end()
        with store.consumer("t", group="new", start="earliest", follow=False) as consumer:
            assert 10 == len(list(consumer))
            consumer.commit()
        assert 13 == store.group("new").offsets[T0]
        assert 0 == store.group_lag("new")[0].lag
