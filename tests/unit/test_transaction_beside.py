"""Transactions of one batch are decided while it is synced; all others afterwards."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from simulated_stores import abandon, log_of, open_quietly

from millstream import PoisonedError, Store, TopicPartition, Transaction
from millstream.errors import FencedError
from millstream.tail import Slot
from millstream.testing import MemoryStorage

BESIDE = ["catalog.commit", "sync"]
"""In memory the sync comes last, which is the order with more to go wrong."""
AFTERWARDS = ["sync", "catalog.commit"]


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.create_topic("ids", dedup="1h")
        store.append("t", b"before")
        store.append("ids", b"before", headers=(("record-id", b"1"),))
        with store.transaction() as transaction:  # makes the owner
            transaction.append("t", b"owned")
        yield store


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def steps_of_commit(storage: MemoryStorage, transaction: Transaction) -> list[str]:
    before = len(storage.trace)
    transaction.commit()
    return [kind for kind, _ in storage.trace[before:]]


def begin(store: Store) -> Transaction:
    return Transaction(store._engine, store._owners.take())


def test_one_batch_is_decided_while_it_is_synced(store: Store, storage: MemoryStorage) -> None:
    transaction = begin(store)
    transaction.append_many("t", [b"a", b"b"])
    assert BESIDE == steps_of_commit(storage, transaction)
    assert [b"before", b"owned", b"a", b"b"] == values(store)


def two_batches(transaction: Transaction) -> None:
    transaction.append("t", b"b")


def an_offset(transaction: Transaction) -> None:
    transaction.commit_offsets("g", {TopicPartition("t", 0): 1})


def a_checkpoint(transaction: Transaction) -> None:
    transaction.put_checkpoint("c", b"x")


def something_else(transaction: Transaction) -> None:
    transaction.also(lambda: None)


def a_duplicate(transaction: Transaction) -> None:
    transaction.append("ids", b"again", headers=(("record-id", b"1"),))


@pytest.mark.parametrize(
    "more", [two_batches, an_offset, a_checkpoint, something_else, a_duplicate]
)
def test_with_anything_more_the_log_is_synced_first(
    store: Store, storage: MemoryStorage, more: Callable[[Transaction], None]
) -> None:
    transaction = begin(store)
    transaction.append("t", b"a")
    more(transaction)
    assert AFTERWARDS == steps_of_commit(storage, transaction)


def test_a_batch_that_leaves_a_duplicate_out_is_synced_first(
    store: Store, storage: MemoryStorage
) -> None:
    """The record that is there already need not be durable, and the transaction stands for it."""
    store.append("ids", b"first", headers=(("record-id", b"2"),), durability="os")
    transaction = begin(store)
    headers = [(("record-id", b"%d" % number),) for number in (2, 3)]
    transaction.append_many("ids", [b"again", b"new"], headers=headers)
    assert AFTERWARDS == steps_of_commit(storage, transaction)


def test_what_was_shown_before_the_commit_is_synced_first(
    store: Store, storage: MemoryStorage
) -> None:
    transaction = begin(store)
    transaction.append("t", b"a")
    store.append("t", b"b", durability="os")
    assert AFTERWARDS == steps_of_commit(storage, transaction)


def test_nobody_shows_what_is_decided_and_not_yet_synced(
    store: Store, storage: MemoryStorage
) -> None:
    transaction = begin(store)
    transaction.append("t", b"a")
    assert transaction._sync_beside() is not None
    transaction._decide(committed=True)
    assert [b"before", b"owned"] == values(store), "the sync is under way"

    store.append("t", b"b", durability="os")

    seen = values(store)
    assert [b"before", b"owned", b"a", b"b"] == seen
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as again:
        assert b"a" in values(again), "what was seen of a transaction is durable"


def test_weak_appends_are_not_synced_once_the_commit_is_durable(
    store: Store, storage: MemoryStorage
) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"a")
    before = len(storage.trace)
    store.append("t", b"b", durability="os")
    assert ["write"] == [kind for kind, _ in storage.trace[before:]]


def test_a_sync_that_fails_beside_the_decision_leaves_it_to_the_disk(
    store: Store, storage: MemoryStorage
) -> None:
    transaction = begin(store)
    transaction.append_many("t", [b"a", b"b"])
    storage.faults.fail_next("sync", errno.EIO)

    with pytest.raises(PoisonedError):
        transaction.commit()

    assert "unknown" == transaction.state
    assert [b"before", b"owned"] == values(store)
    with store.transaction() as another:
        another.append("ids", b"of another partition")
    abandon(store)
    for keep, kept in (("none", []), ("all", [b"a", b"b"])):
        with open_quietly(storage.crash(keep=keep)) as again:  # type: ignore[arg-type] # it is one
            assert [b"before", b"owned", *kept] == values(again)
            assert [b"before", b"of another partition"] == values(again, "ids")


def test_a_partition_that_takes_no_sync_aborts(store: Store, storage: MemoryStorage) -> None:
    transaction = begin(store)
    transaction.append("t", b"a")
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(PoisonedError):
        store.append("t", b"b")

    with pytest.raises(PoisonedError):
        transaction.commit()

    assert "aborted" == transaction.state


def test_a_fenced_owner_commits_nothing_though_its_batch_is_whole(
    store: Store, storage: MemoryStorage
) -> None:
    zombie = store.own("p")
    transaction = Transaction(store._engine, zombie)
    transaction.append("t", b"never")
    zombie.close()
    with store.own("p") as owner, store.transaction(owner=owner) as newer:
        newer.append("t", b"newer")
    with pytest.raises(FencedError):
        transaction.commit()
    assert [b"before", b"owned", b"newer"] == values(store)
    abandon(store)
    with open_quietly(storage.crash(keep="all")) as again:
        assert [b"before", b"owned", b"newer"] == values(again)


def test_an_aborted_batch_that_another_has_synced_is_never_seen(store: Store) -> None:
    transaction = begin(store)
    transaction.append("t", b"never")
    store.append("t", b"after")
    assert log_of(store).slot[Slot.DURABLE_OFFSET] == log_of(store).slot[Slot.LOG_END]
    transaction.abort()
    assert [b"before", b"owned", b"after"] == values(store)
