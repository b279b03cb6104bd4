"""Appends on a condition: of all who expect the same, one gets through."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from simulated_stores import open_quietly

import millstream
from millstream import ConflictError, Store, Transaction, UsageError
from millstream.clock import SystemClock
from millstream.testing import MemoryStorage


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


@pytest.mark.parametrize("durability", ["sync", "os", "interval"])
def test_an_append_gets_the_offset_it_expects_or_nothing(
    store: Store, durability: millstream.Durability
) -> None:
    first = store.append("t", b"a", expected_offset=0, durability=durability)
    with pytest.raises(ConflictError, match="end at 0, but it ends at 1") as caught:
        store.append("t", b"b", expected_offset=0, durability=durability)
    with pytest.raises(ConflictError, match="end at 2, but it ends at 1"):
        store.append("t", b"b", expected_offset=2, durability=durability)
    second = store.append("t", b"b", expected_offset=caught.value.offset, durability=durability)

    assert (0, 1) == (first.offset, second.offset)
    assert ("t", 0, 1) == (caught.value.topic, caught.value.partition, caught.value.offset)
    assert [b"a", b"b"] == values(store)


def test_a_batch_gets_the_offsets_it_expects_or_nothing(store: Store) -> None:
    store.append_many("t", [b"a", b"b"], expected_offset=0)
    with pytest.raises(ConflictError) as caught:
        store.append_many("t", [b"c", b"d"], expected_offset=1)
    assert 2 == caught.value.offset
    (metadata,) = store.append_many("t", [b"c", b"d"], expected_offset=2)

    assert 2 == metadata.base_offset
    assert [b"a", b"b", b"c", b"d"] == values(store)


def test_what_others_have_written_counts_before_it_is_seen(
    store: Store, storage: MemoryStorage
) -> None:
    with open_quietly(storage) as other, other.transaction() as transaction:
        transaction.append("t", b"not seen")
        with pytest.raises(ConflictError) as caught:
            store.append("t", b"a", expected_offset=0)
        assert 1 == caught.value.offset
        assert 1 == store.append("t", b"a", expected_offset=1).offset
    assert [b"not seen", b"a"] == values(store)


def test_a_condition_is_on_one_partition(store: Store) -> None:
    assert 0 == store.append("p", b"a", partition=2, expected_offset=0).offset
    assert 0 == store.append("p", b"a", key=b"key", expected_offset=0).offset
    assert 1 == store.append_many("p", [b"a"] * 2, [b"key"] * 2, expected_offset=1)[0].base_offset
    for wrong in (
        lambda: store.append("p", b"a", expected_offset=0),
        lambda: store.append_many("p", [b"a"], expected_offset=0),
        lambda: store.append_many(
            "p", [b"a"] * 9, [b"%d" % number for number in range(9)], expected_offset=0
        ),
    ):
        with pytest.raises(UsageError, match="one partition"):
            wrong()
    with pytest.raises(UsageError, match="a record to append"):
        store.append_many("t", [], expected_offset=0)
    assert 4 == len(values(store, "p"))


@pytest.mark.parametrize("wrong", [-1, "0", 1.5, True])
def test_an_expected_offset_is_an_offset(store: Store, wrong: int) -> None:
    with pytest.raises(UsageError, match="expected_offset must be an offset"):
        store.append("t", b"a", expected_offset=wrong)
    with pytest.raises(UsageError, match="match must be an offset"):
        store.append("t", b"a", key=b"k", match=wrong)


def test_a_key_is_written_if_its_last_record_is_the_one_expected(store: Store) -> None:
    first = store.append("t", b"1", key=b"k", match="absent")
    store.append("t", b"other", key=b"other")
    for wrong in ("absent", 1, 7):
        with pytest.raises(ConflictError, match="it is at 0") as caught:
            store.append("t", b"2", key=b"k", match=wrong)
        assert 0 == caught.value.offset
    second = store.append("t", b"2", key=b"k", match=first.offset)
    record = store.latest("t", b"k")
    assert record is not None
    assert record.offset == second.offset == 2
    assert 3 == store.append("t", None, key=b"k", match=record).offset
    assert 4 == store.append("t", b"3", key=b"k", match="absent").offset
    with pytest.raises(ConflictError, match="there is none") as caught:
        store.append("t", b"", key=b"new", match=0)
    assert -1 == caught.value.offset


def test_a_match_needs_a_key(store: Store) -> None:
    with pytest.raises(UsageError, match="give a key"):
        store.append("t", b"", match="absent")


def test_keys_are_compared_over_segments_and_compaction(store: Store) -> None:
    store.create_topic("c", compact=True, segment_bytes=4096)
    last = store.append("c", b"0" * 300, key=b"k", match="absent").offset
    for number in range(1, 60):
        store.append("c", b"x" * 300, key=b"other-%d" % (number % 3))
        last = store.append("c", b"%d" % number * 100, key=b"k", match=last).offset
        if number % 20 == 0:
            store.roll("c", 0)
            store.compact("c")
        with pytest.raises(ConflictError) as caught:
            store.append("c", b"late", key=b"k", match=last - 2)
        assert last == caught.value.offset


def test_a_key_in_an_open_transaction_is_in_conflict(store: Store, storage: MemoryStorage) -> None:
    store.append("t", b"0", key=b"k")
    with open_quietly(storage) as other:
        with other.transaction() as transaction:
            transaction.append("t", b"1", key=b"k", match=0)
            with pytest.raises(ConflictError, match="an open transaction") as caught:
                store.append("t", b"2", key=b"k", match=0)
            assert 0 == caught.value.offset
            store.append("t", b"free", key=b"other", match="absent")
            transaction.abort()
        assert 3 == store.append("t", b"2", key=b"k", match=0).offset
        with other.transaction() as transaction:
            transaction.append("t", b"3", key=b"k", match=3)
        with pytest.raises(ConflictError) as caught:
            store.append("t", b"4", key=b"k", match=3)
        assert 4 == caught.value.offset
    assert [b"0", b"free", b"2", b"3"] == values(store)


def test_an_open_transaction_in_an_older_segment_is_in_conflict(
    store: Store, storage: MemoryStorage
) -> None:
    store.append("t", b"0", key=b"k")
    store.append("t", b"other", key=b"other")
    store.roll("t", 0)
    with open_quietly(storage) as other, other.transaction() as transaction:
        transaction.append("t", b"1", key=b"k")
        store.roll("t", 0)
        store.append("t", b"between", key=b"other")
        store.roll("t", 0)
        with pytest.raises(ConflictError, match="an open transaction"):
            store.append("t", b"2", key=b"k", match=0)
    assert 4 == store.append("t", b"2", key=b"k", match=2).offset


def test_after_a_conflict_a_transaction_is_as_before(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.append("t", b"a", expected_offset=0)
        with pytest.raises(ConflictError):
            transaction.append("t", b"b", expected_offset=0)
        with pytest.raises(ConflictError):
            transaction.append_many("t", [b"b"], expected_offset=7)
        transaction.append_many("t", [b"b"], expected_offset=1)
    assert [b"a", b"b"] == values(store)


def test_a_conflict_in_a_transaction_aborts_it_if_it_is_not_caught(store: Store) -> None:
    conflict = pytest.raises(ConflictError)
    with conflict, store.transaction() as transaction:
        transaction.append("p", b"a", partition=0)
        transaction.append("t", b"a", expected_offset=1)
    assert [] == values(store, "p")
    assert "aborted" == transaction.state


def test_a_transaction_made_by_hand_takes_conditions(store: Store) -> None:
    transaction = Transaction(store._engine, store._owners.take())
    transaction.append("t", b"a", key=b"k", match="absent")
    transaction.commit()
    assert [b"a"] == values(store)


def count_with_offsets(store: Store) -> None:
    while True:
        end = store.offsets("t")[0].end
        last = next(iter(store.read("t", start=end - 1))) if end else None
        number = 1 + int(last.value or b"0") if last else 1
        try:
            store.append("t", b"%d" % number, key=b"k", expected_offset=end)
        except ConflictError:
            continue
        return


def count_with_keys(store: Store) -> None:
    while True:
        last = store.latest("t", b"k")
        number = 1 + int(last.value or b"0") if last else 1
        try:
            store.append("t", b"%d" % number, key=b"k", match=last or "absent")
        except ConflictError:
            continue
        return


@pytest.mark.parametrize("count", [count_with_offsets, count_with_keys])
def test_of_many_who_count_at_once_none_is_lost(
    storage: MemoryStorage, count: Callable[[Store], None]
) -> None:
    def work(mine: Store) -> None:
        for _ in range(10):
            count(mine)

    clock = SystemClock()
    with open_quietly(storage, clock) as store, open_quietly(storage, clock) as other:
        store.create_topic("t")
        threads = [
            threading.Thread(target=work, args=(each,)) for each in (store, other, store, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [b"%d" % number for number in range(1, 41)] == values(store)
