"""However a transaction ends, no reader waits for it longer than its owner lives."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest
from simulated_stores import kill, log_of, open_quietly

from millstream import LogReader, Store, TopicPartition
from millstream.errors import DataError, StorageError, UnknownTopicError, UsageError
from millstream.owner_catalog import NUMBERS_MAX
from millstream.storage_protocols import Lock
from millstream.tail import Slot
from millstream.testing import ManualClock, MemoryStorage
from millstream.transaction import Ownership, Transaction

P0 = TopicPartition("t", 0)


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
        store.create_topic("other")
        yield store


def begin(store: Store, owner: Ownership | None = None) -> Transaction:
    return Transaction(store._engine, owner or store._owners.take())


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


def follow(reader: LogReader) -> list[bytes | None]:
    found = []
    for _ in range(20):
        reader.wait(0.1)
        found += [record.value for batch in reader.poll() for record in batch.records()]
    return found


def test_a_commit_that_fails_aborts(store: Store) -> None:
    transaction = begin(store)
    transaction.append("t", b"never", partition=0)
    transaction.commit_offsets("g", {TopicPartition("other", 0): 0})
    store.delete_topic("other")

    with pytest.raises(UnknownTopicError):
        transaction.commit()

    assert "aborted" == transaction.state
    store.append("t", b"after", partition=0)
    assert [b"after"] == values(store)


def test_after_an_append_that_failed_there_is_no_commit(
    store: Store, storage: MemoryStorage
) -> None:
    assert not any(ends(store).values())
    written = sum(kind == "write" for kind, _ in storage.trace)
    storage.faults.fail[("write", written + 1)] = errno.EIO
    transaction = begin(store)
    with pytest.raises(StorageError):
        transaction.append_many("t", [b"a", b"b", b"c"], keys=[b"u1", b"", b"u3"])
    assert [P0] == [place for place, end in ends(store).items() if end], "one of two was written"

    with pytest.raises(UsageError, match="aborted"):
        transaction.commit()

    store.append("t", b"after", partition=0)
    assert [b"after"] == values(store)


def ends(store: Store) -> dict[TopicPartition, int]:
    return {
        TopicPartition("t", number): log_of(store, "t", number).slot[Slot.LOG_END]
        for number in range(2)
    }


def test_a_generator_that_is_closed_within_a_transaction_aborts_it(store: Store) -> None:
    def work() -> Iterator[None]:
        with store.transaction() as transaction:
            transaction.append("t", b"never", partition=0)
            yield

    working = work()
    next(working)
    working.close()  # type: ignore[attr-defined]  # a generator

    store.append("t", b"after", partition=0)
    assert [b"after"] == values(store)


def test_one_owner_serves_a_store_whose_transactions_come_one_after_another(store: Store) -> None:
    for number in range(3):
        with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
            transaction.append("t", b"%d" % number, partition=0)
            _ = 1 / (number - 2)

    assert 1 == store._owners._made
    assert [b"0", b"1"] == values(store)


def test_an_owner_that_has_used_its_numbers_up_is_followed_by_another(store: Store) -> None:
    owner = store._owners.take()
    owner.decided = NUMBERS_MAX
    with pytest.raises(DataError, match="Acquire its name again"):
        begin(store, owner).append("t", b"never", partition=0)
    store._owners.give_back(owner, "committed")

    with store.transaction() as transaction:
        transaction.append("t", b"next", partition=0)
    assert owner.owner_id != store._owners.take().owner_id
    assert [b"next"] == values(store)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_commit_is_noticed_although_its_process_died_before_saying_so(
    store: Store, storage: MemoryStorage, clock: ManualClock, read_only: bool
) -> None:
    other = open_quietly(storage, clock)
    owner = other.own("pipeline")
    transaction = begin(other, owner)
    transaction.append("t", b"committed", partition=0)
    store.append("t", b"after", partition=0)
    onlooker = open_quietly(
        storage.read_only_view() if read_only else storage, clock, read_only=read_only
    )
    with onlooker, onlooker.reader({P0: 0}) as reader:
        assert [] == follow(reader)

        other._engine.catalog.decide(owner.owner_id, owner.epoch, 1, committed=True)
        owner.close()
        kill(other)

        assert [b"committed", b"after"] == follow(reader)


def test_a_name_is_not_taken_because_somebody_asks_whether_its_owner_lives(
    storage: MemoryStorage,
) -> None:
    class Asking(ManualClock):
        lock: Lock | None = None

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.lock is not None:
                self.lock.release()

    clock = Asking()
    with open_quietly(storage, clock) as store:
        store.own("pipeline").close()
        (path,) = [name for name in storage.list("locks") if name.startswith("owner-")]
        clock.lock = storage.lock(f"locks/{path}")
        assert clock.lock.try_acquire()

        store.own("pipeline").close()
