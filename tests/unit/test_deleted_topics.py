"""A topic that is deleted while somebody uses it, and a new one that takes its name.

Handles of the old topic must not touch the files of the new one: they have the same names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import millstream
from millstream import Store, TopicPartition, UnknownTopicError
from millstream.log import Log
from millstream.processor import Pipeline
from millstream.testing import MemoryStorage

T0 = TopicPartition("t", 0)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage(crashable=False)


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with millstream.open(storage=storage) as store:
        store.create_topic("t", segment_bytes=4096)
        yield store


@pytest.fixture
def other(storage: MemoryStorage, store: Store) -> Iterator[Store]:
    """The same store opened by another process, as it were."""
    with millstream.open(storage=storage) as other:
        yield other


def fill(store: Store, mark: bytes, count: int = 20) -> list[bytes | None]:
    values: list[bytes | None] = [mark * 500 + b"%d" % number for number in range(count)]
    for value in values:
        store.append("t", value)
    return values


def replace_topic(store: Store) -> list[bytes | None]:
    """Delete the topic, create it again and fill it; what is in it."""
    store.delete_topic("t")
    store.create_topic("t", segment_bytes=4096)
    return fill(store, b"new")


@pytest.mark.parametrize("by", ["store", "other"])
def test_work_in_the_background_does_not_touch_the_topic_that_came_after(
    store: Store, other: Store, by: str
) -> None:
    """Zeros ahead of the old log end once went over the records of the new topic."""
    fill(store, b"old")
    log = store._engine.log("t", 0)
    values = replace_topic(store if by == "store" else other)
    before = store.segments("t", 0)

    log.zero_fill()
    log.config = millstream.TopicConfig(retention_bytes=1)
    assert store._engine.retention.retain(log).removed == []
    log.checkpoint()

    assert [record.value for record in store.read("t")] == values
    assert [each.base_offset for each in store.segments("t", 0)] == [
        each.base_offset for each in before
    ]
    assert store.verify().ok


def test_a_handle_of_the_deleted_topic_says_so(store: Store, other: Store) -> None:
    fill(store, b"old", 1)
    log: Log = store._engine.log("t", 0)
    replace_topic(other)
    with pytest.raises(UnknownTopicError, match="the topic was deleted"):
        log.wait_durable(10)
    with (
        pytest.raises(UnknownTopicError, match="the topic was deleted"),
        store._engine.append_lock,
        store._engine.changing_locked(log),
    ):
        raise AssertionError


def test_nothing_is_logged_about_work_that_is_void(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "millstream")
    for _ in range(20):
        store.append("t", b"x", durability="interval")
        store.delete_topic("t")
        store.create_topic("t")
    store.close()
    assert caplog.messages == []


@pytest.mark.parametrize("again", [False, True])
def test_a_reader_of_a_deleted_topic_is_told(store: Store, other: Store, again: bool) -> None:
    fill(store, b"old", 3)
    with store.reader({T0: 0}) as reader, other.consumer("t", follow=True) as consumer:
        assert reader.poll(max_records=1)
        replace_topic(other) if again else other.delete_topic("t")
        with pytest.raises(UnknownTopicError, match="the topic was deleted"):
            reader.poll()
        with pytest.raises(UnknownTopicError, match="the topic was deleted"):
            consumer.poll(timeout=5)


def test_a_group_goes_on_with_the_topics_that_are_left(store: Store, other: Store) -> None:
    other.create_topic("u")
    fill(store, b"old", 3)
    other.append_many("u", [b"1", b"2"])
    with other.consumer(["t", "u"], group="g") as consumer:
        assert len(consumer.poll(max_records=1)) == 1
        store.delete_topic("t")
        consumer._delivery.drop([T0])
        assert [record.value for record in consumer] == [b"1", b"2"]
        consumer.commit()
        assert [place.topic for place in consumer.assignment] == ["u"]


def test_a_group_reads_the_topic_made_anew_from_its_start(store: Store, other: Store) -> None:
    fill(store, b"old", 3)
    with other.consumer("t", group="g") as consumer:
        assert len(consumer.poll()) == 3
        consumer.commit()
        values = replace_topic(store)
        assert [record.value for record in consumer] == values


def test_a_pipeline_stops_when_its_input_is_deleted(store: Store) -> None:
    pipeline = Pipeline("copy")
    pipeline.source("t", type=bytes).to("out")
    fill(store, b"old", 6)

    def replace_it(metrics: object) -> None:
        if len(store.topics()) == 2 and metrics.epochs == 2:  # type: ignore[attr-defined]  # Metrics
            replace_topic(store)

    with pytest.raises(UnknownTopicError, match="the topic was deleted"):
        pipeline.run(store, until="end", batch_records=1, epoch_ms=0, on_progress=replace_it)
    assert len(list(store.read("out"))) == 2
