"""Scenario 69: a transaction whose owner lives and is stuck does not keep readers for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from simulated_stores import open_quietly

from millstream import FencedError, LogReader, Store, TopicPartition, Transaction, UsageError
from millstream.owners import Terms
from millstream.testing import ManualClock, MemoryStorage
from millstream.transaction_states import CONFIRM_SECONDS

T0 = TopicPartition("t", 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000_000)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as store:
        store.create_topic("t")
        yield store


@pytest.fixture
def other(storage: MemoryStorage, store: Store, clock: ManualClock) -> Iterator[Store]:
    """Another process."""
    with open_quietly(storage, clock) as other:
        other.append("t", b"before")
        yield other


def poll(reader: LogReader) -> list[bytes | None]:
    return [value for batch in reader.poll() for value in batch.values]


def begin(store: Store, timeout_ms: int | None) -> Transaction:
    transaction = Transaction(store._engine, store._owners.take(Terms(timeout_ms)))
    transaction.append("t", b"stuck")
    return transaction


def test_scenario_69_who_waits_aborts_what_was_open_for_too_long(
    store: Store, other: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    transaction = begin(store, 5000)
    other.append("t", b"after")
    with other.reader({T0: 0}) as reader, caplog.at_level(logging.WARNING):
        assert [b"before"] == poll(reader)
        clock.advance(5000)
        assert [] == poll(reader), "not a moment too early"
        clock.advance(1000)
        assert [] == poll(reader), "its owner gets a moment to come back"
        clock.advance(int(CONFIRM_SECONDS * 1000))
        assert [b"after"] == poll(reader)
    assert "open for 7 s, its timeout is 5 s" in caplog.text

    transaction.append("t", b"zombie")
    with pytest.raises(FencedError, match="aborted it"):
        transaction.commit()
    assert [b"before", b"after"] == [record.value for record in store.read("t")]


def test_an_owner_that_comes_back_in_time_commits(
    store: Store, other: Store, clock: ManualClock
) -> None:
    transaction = begin(store, 5000)
    other.append("t", b"after")
    with other.reader({T0: 0}) as reader:
        clock.jump(3_600_000)  # the machine has slept, or its clock was set
        assert [b"before"] == poll(reader)
        transaction.commit()
        clock.advance(10_000)
        assert [b"stuck", b"after"] == poll(reader)


def test_without_a_timeout_only_the_dead_are_aborted(
    store: Store, other: Store, clock: ManualClock
) -> None:
    transaction = begin(store, None)
    other.append("t", b"after")
    with other.reader({T0: 1}) as reader:
        for _ in range(5):
            clock.advance(3_600_000)
            assert [] == poll(reader)
        transaction.commit()
        assert [b"stuck", b"after"] == poll(reader)


def test_the_next_transaction_of_an_owner_that_was_too_slow_goes_through(
    store: Store, other: Store, clock: ManualClock
) -> None:
    fenced = pytest.raises(FencedError)
    with fenced, store.transaction(timeout="2s") as transaction:
        transaction.append("t", b"slow")
        other.append("t", b"after")
        with other.reader({T0: 1}) as reader:
            for _ in range(4):
                clock.advance(2000)
                poll(reader)
    assert "aborted" == transaction.state
    with store.transaction(timeout="2s") as transaction:
        transaction.append("t", b"fast")
    assert [b"before", b"after", b"fast"] == [record.value for record in other.read("t")]


def test_transactions_of_a_name_have_the_timeout_given_with_it(
    store: Store, other: Store, clock: ManualClock
) -> None:
    with store.own("job", timeout="2s") as owner:
        fenced = pytest.raises(FencedError)
        with fenced, store.transaction(owner=owner) as transaction:
            transaction.append("t", b"slow")
            other.append("t", b"after")
            with other.reader({T0: 1}) as reader:
                for _ in range(4):
                    clock.advance(2000)
                    poll(reader)
        with pytest.raises(UsageError, match="given to own"):
            store.transaction(owner=owner, timeout="1s").__enter__()
    with store.own("job") as owner, store.transaction(owner=owner) as transaction:
        transaction.append("t", b"for ever")
        other.append("t", b"last")
        with other.reader({T0: 3}) as reader:
            for _ in range(4):
                clock.advance(3_600_000)
                assert [] == poll(reader)
    assert [b"before", b"after", b"for ever", b"last"] == [
        record.value for record in other.read("t")
    ]


def test_terms_are_written_when_they_change(store: Store, storage: MemoryStorage) -> None:
    with store.transaction(timeout="2s") as transaction:
        transaction.append("t", b"a")

    def commits() -> int:
        return sum(kind == "catalog.commit" for kind, _ in storage.trace)

    before = commits()
    with store.transaction(timeout="2s") as transaction:
        transaction.append("t", b"b")
    assert 1 == commits() - before
    with store.transaction(timeout="3s") as transaction:
        transaction.append("t", b"c")
    assert 3 == commits() - before
    assert 1 == store._owners._made


def test_compaction_does_not_wait_for_a_stuck_transaction(
    store: Store, other: Store, clock: ManualClock
) -> None:
    store.create_topic("c", compact=True)
    transaction = Transaction(store._engine, store._owners.take(Terms(1000)))
    for _ in range(3):
        other.append("c", b"x", key=b"k")
    transaction.append("c", b"stuck", key=b"k")
    for _ in range(3):
        other.append("c", b"y", key=b"k")
    other.roll("c", 0)
    for _ in range(4):
        clock.advance(1000)
        other.compact("c")
    assert [b"y"] == [record.value for record in other.read("c")]
    with pytest.raises(FencedError):
        transaction.commit()
