"""Reading: what is visible, in which order, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_stores import log_of, open_quietly

from millstream import LogReader, Store, TopicPartition
from millstream.testing import MemoryStorage

T0 = TopicPartition("t", 0)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        yield store


def values(reader: LogReader) -> list[bytes | None]:
    return [record.value for batch in reader.poll() for record in batch.records()]


def test_a_follower_does_not_keep_the_zeros_it_read_ahead(store: Store) -> None:
    store.append("t", b"a")
    log_of(store).zero_fill()
    with store.reader({T0: 0}) as reader:
        assert [b"a"] == values(reader)

        store.append("t", b"b")

        assert [b"b"] == values(reader)
