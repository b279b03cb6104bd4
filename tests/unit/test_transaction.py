"""Transactions of a store: owners that get into doubt, and out of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import (
    FencedError,
    StorageError,
    Store,
    TopicPartition,
    Transaction,
    UsageError,
)
from millstream.testing import ManualClock, MemoryStorage

T0 = TopicPartition("t", 0)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.create_topic("u")
        yield store


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def leave_in_doubt(store: Store, storage: MemoryStorage) -> None:
    """A commit on a full disk, which cannot be aborted either."""
    full = pytest.raises(StorageError)
    with full, store.transaction() as transaction:
        transaction.append("t", b"in doubt")
        storage.faults.fail["catalog.commit"] = errno.ENOSPC
    storage.faults.clear()
    store.append("t", b"after")


def test_a_transaction_in_doubt_is_aborted_by_the_next(
    store: Store, storage: MemoryStorage
) -> None:
    leave_in_doubt(store, storage)
    assert [] == values(store), "its owner lives"

    with store.transaction() as transaction:
        transaction.append("t", b"next")

    assert [b"after", b"next"] == values(store)


def test_a_transaction_in_doubt_is_aborted_by_hand_or_in_the_background(
    store: Store, storage: MemoryStorage
) -> None:
    leave_in_doubt(store, storage)
    storage.faults.fail["catalog.commit"] = errno.ENOSPC
    store._owners.settle()
    assert [] == values(store)
    storage.faults.clear()
    store._owners.settle()

    assert [b"after"] == values(store)


@pytest.mark.slow
def test_a_transaction_in_doubt_is_aborted_in_the_background(storage: MemoryStorage) -> None:
    with millstream.open(storage=storage) as store:
        store.create_topic("t")
        leave_in_doubt(store, storage)
        with store.reader({T0: 0}) as reader:
            found: list[bytes | None] = []
            while not found:
                assert reader.wait(10)
                found = [value for batch in reader.poll() for value in batch.values]
    assert [b"after"] == found


def test_a_transaction_in_doubt_is_aborted_after_its_process_died(
    store: Store, storage: MemoryStorage
) -> None:
    leave_in_doubt(store, storage)
    abandon(store)

    with open_quietly(storage.crash(keep="none")) as again:
        assert [b"after"] == values(again)


def test_transactions_at_once_have_owners_of_their_own(store: Store) -> None:
    with store.transaction() as first, store.transaction() as second:
        first.append("t", b"first")
        second.append("u", b"second")
    assert [b"first"] == values(store)
    assert [b"second"] == values(store, "u")
    with store.transaction() as third:
        third.append("t", b"third")
    assert 2 == store._owners._made


def test_what_a_transaction_holds_is_seen_at_once(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"1")
        transaction.append_many("u", [b"2", b"3"])
        transaction.commit_offsets("g", {T0: 0})
        transaction.put_checkpoint("c", b"state")
        assert ([], [], None) == (values(store), values(store, "u"), store.checkpoint("c"))
    assert ([b"1"], [b"2", b"3"]) == (values(store), values(store, "u"))
    assert b"state" == store.checkpoint("c")


def test_a_name_is_owned_by_one_and_fences_who_owned_it_before(store: Store) -> None:
    first = store.own("pipeline")
    with pytest.raises(millstream.LockedError, match="is run by process"):
        store.own("pipeline")
    first.close()
    with store.own("pipeline") as second:
        assert first.epoch < second.epoch
        fenced = pytest.raises(millstream.FencedError)
        with fenced, store.transaction(owner=first) as transaction:
            transaction.append("t", b"zombie")
        with store.transaction(owner=second) as transaction:
            transaction.append("t", b"current")
    assert [b"current"] == values(store)


def test_a_clock_that_stands_still_does_not_hold_a_dead_owner_up(storage: MemoryStorage) -> None:
    clock = ManualClock(1)
    store = open_quietly(storage, clock)
    store.create_topic("t")
    Transaction(store._engine, store._owners.take()).append("t", b"never")
    abandon(store)
    with open_quietly(storage.crash(keep="all"), clock) as again:
        again.append("t", b"after")
        assert [b"after"] == values(again)


def test_a_transaction_needs_two_syncs_and_no_third(store: Store, storage: MemoryStorage) -> None:
    with store.own("p") as owner:
        for first in (True, False):
            before = len(storage.trace)
            with store.transaction(owner=owner) as transaction:
                transaction.append_many("t", [b"x"] * 1000)
            if not first:  # which makes the segment
                kinds = [kind for kind, _ in storage.trace[before:]]
                assert ["write", "catalog.commit", "sync"] == kinds


def test_a_name_is_no_owner(store: Store) -> None:
    with pytest.raises(UsageError, match=r"what own\(\) returns, not 'me'"):
        store.transaction(owner="me").__enter__()  # type: ignore[arg-type] # wrong on purpose


def test_a_name_has_one_transaction_at_a_time(store: Store) -> None:
    """Two would have one number, and the commit of one would show records of the other."""
    with store.own("job") as owner:
        with store.transaction(owner=owner) as first:
            first.append("t", b"first")
            one = pytest.raises(UsageError, match="'job' has a transaction open")
            with one, store.transaction(owner=owner) as second:
                second.append("t", b"second")
            assert [] == values(store)
        with store.transaction(owner=owner) as third:
            third.append("t", b"third")
    assert [b"first", b"third"] == values(store)


def test_a_name_whose_last_transaction_is_in_doubt_is_acquired_again(
    store: Store, storage: MemoryStorage
) -> None:
    """The next one would have its number, and commit its records."""
    owner = store.own("job")
    full = pytest.raises(StorageError)
    with full, store.transaction(owner=owner) as transaction:
        transaction.append("t", b"in doubt")
        transaction.put_checkpoint("c", b"in doubt")
        storage.faults.fail["catalog.commit"] = errno.ENOSPC
    storage.faults.clear()
    assert "unknown" == transaction.state
    doubt = pytest.raises(UsageError, match="last transaction of 'job' is unknown: close it")
    with doubt, store.transaction(owner=owner):
        pass
    owner.close()
    with store.own("job") as owner, store.transaction(owner=owner) as transaction:
        transaction.append("t", b"next")
    assert [b"next"] == values(store)
    assert store.checkpoint("c") is None


def test_what_somebody_else_has_aborted_is_aborted(store: Store, storage: MemoryStorage) -> None:
    zombie = store.own("job")
    fenced = pytest.raises(FencedError)
    with fenced, store.transaction(owner=zombie) as transaction:
        transaction.append("t", b"never")
        zombie.close()
        store.own("job").close()
    assert "aborted" == transaction.state
    zombie = store.own("job")
    failed = pytest.raises(ZeroDivisionError)
    with failed, store.transaction(owner=zombie) as transaction:
        transaction.append("t", b"never")
        zombie.close()
        store.own("job").close()
        raise ZeroDivisionError
    assert "aborted" == transaction.state
    assert [] == values(store)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda txn: txn.put_checkpoint("c", "text"), "a checkpoint is bytes, not str"),
        (lambda txn: txn.put_checkpoint("c", None), "a checkpoint is bytes, not NoneType"),
        (lambda txn: txn.put_checkpoint(3, b""), "3 is not the name of a checkpoint"),
        (lambda txn: txn.put_checkpoint("\udc80", b""), "udc80' is not the name of a checkpoint"),
        (lambda txn: txn.commit_offsets("g", None), "offsets are given as {TopicPartition"),
        (lambda txn: txn.commit_offsets("g", {"t": 0}), "'t' is not a partition: give"),
        (lambda txn: txn.commit_offsets("g", {("t", "0"): 0}), "a partition must be a whole"),
        (lambda txn: txn.commit_offsets("g", {T0: "0"}), "an offset must be a whole number"),
        (lambda txn: txn.commit_offsets("g", {T0: 0.0}), "must be a whole number, not 0.0"),
        (lambda txn: txn.ack(3), "only jobs of a queue can be acked, not 3"),
    ],
)
def test_a_wrong_call_is_told_and_the_rest_is_committed(
    store: Store, call: Callable[[Any], object], message: str
) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"right")
        with pytest.raises(UsageError, match=message):
            call(transaction)
    assert [b"right"] == values(store)
    assert ([], []) == (store.checkpoint_names(), store.groups())
