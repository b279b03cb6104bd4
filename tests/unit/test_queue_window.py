"""A window of a queue reads what is about to be claimed, in whole batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jobs import put

import millstream
from millstream import Store
from millstream.queue_window import QueueWindow
from millstream.record import TopicPartition


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open() as store:
        store.create_topic("jobs")
        yield store


@pytest.fixture
def window(store: Store) -> Iterator[QueueWindow]:
    window = QueueWindow(store._engine, TopicPartition("jobs", 0))
    yield window
    window.close()


def test_about_as_much_is_read_as_is_asked_for(store: Store, window: QueueWindow) -> None:
    for _ in range(200):
        put(store, 1)
    ends = []
    for offset, count in ((0, 1), (1, 2), (3, 4), (7, 50), (57, 10)):
        window.fill(offset, count)
        ends.append(window.end)
        assert offset < window.stop_after(offset, count) <= offset + count
    assert [1, 3, 7, 57, 67] == ends
    window.fill(60, 7)
    assert 67 == window.end, "they are there already"


def test_a_batch_is_read_whole(store: Store, window: QueueWindow) -> None:
    put(store, 100)
    put(store, 100)
    window.fill(0, 1)
    assert (100, 1) == (window.end, window.stop_after(0, 1))


def test_records_that_take_less_than_a_byte_each_are_read_on(store: Store) -> None:
    store.create_topic("dense", compression="zstd")
    for _ in range(3):
        store.append_many("dense", [b""] * 100_000)
    dense = QueueWindow(store._engine, TopicPartition("dense", 0))
    for batch in range(3):
        dense.fill(batch * 100_000, 1)
        assert (batch + 1) * 100_000 == dense.end
    dense.close()
