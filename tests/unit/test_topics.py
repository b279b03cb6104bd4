"""Topics of a store: positions and times as offsets, rolls, retention."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from simulated_stores import START_MS, log_of, open_quietly

from millstream import (
    OffsetOutOfRangeError,
    Position,
    Store,
    TopicExistsError,
    TopicPartition,
    UnknownTopicError,
    UsageError,
)
from millstream.testing import ManualClock, MemoryStorage

T0 = TopicPartition("t", 0)
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with open_quietly(MemoryStorage(), clock) as store:
        yield store


def values(store: Store, start: int | str = "earliest", stop: int | str = "latest") -> list[bytes]:
    return [record.value or b"" for record in store.read("t", start, stop)]


# --- positions ---------------------------------------------------------------------------------


@pytest.fixture
def filled(store: Store) -> Store:
    """Ten records in three segments, of which the first two are trimmed away."""
    store.create_topic("t")
    for number in range(10):
        if number in (4, 8):
            store.roll("t", 0)
        store.append("t", b"%d" % number)
    store.trim("t", {0: 2})
    return store


@pytest.mark.parametrize(
    ("position", "offset"),
    [
        ("earliest", 2),
        ("beginning", 2),
        ("latest", 10),
        ("end", 10),
        (6, 6),
        ("5", 5),
        ("-3", 7),
        ("-100", 2),
        ("+1", 3),
        ("+100", 10),
    ],
)
def test_a_position_is_an_offset(filled: Store, position: int | str, offset: int) -> None:
    assert offset == filled.offset_at("t", 0, position)
    assert [b"%d" % number for number in range(offset, 10)] == values(filled, position)


def test_a_range_stops_before_its_end(filled: Store) -> None:
    assert [b"3", b"4"] == values(filled, 3, 5)
    assert [] == values(filled, 5, 5)
    assert [] == values(filled, 7, 5)


@pytest.mark.parametrize("start", [0, 1, 11])
def test_an_offset_that_is_not_there_is_refused(filled: Store, start: int) -> None:
    with pytest.raises(OffsetOutOfRangeError) as caught:
        values(filled, start)
    assert ("t", 0, start) == (caught.value.topic, caught.value.partition, caught.value.offset)


def test_a_partition_that_is_shorter_than_others_is_no_error(store: Store) -> None:
    store.create_topic("t", partitions=2)
    store.append_many("t", [b"0", b"1"], partition=0)

    assert [b"1"] == values(store, 1)
    with pytest.raises(OffsetOutOfRangeError):
        values(store, 3)


# --- times -------------------------------------------------------------------------------------


def first_at(stamps: list[int], start: int, timestamp_ms: int) -> int:
    """The first offset from `start` whose stamp is not before `timestamp_ms`, else the end."""
    found = (offset for offset in range(start, len(stamps)) if stamps[offset] >= timestamp_ms)
    return next(found, len(stamps))


@pytest.mark.parametrize("seed", range(6))
def test_a_time_is_the_first_record_not_before_it_in_any_order_of_stamps(
    store: Store, seed: int
) -> None:
    random = Random(seed)
    store.create_topic("t", segment_bytes=4096)
    stamps: list[int] = []
    for _ in range(random.randrange(5, 60)):
        batch = [random.randrange(-50, 1000) for _ in range(random.randrange(1, 6))]
        stamps += batch
        store.append_many("t", [b"x" * random.choice((10, 400))] * len(batch), None, batch)
    start = random.randrange(len(stamps) // 2)
    store.trim("t", {0: start})
    for timestamp_ms in (-99, 0, *random.sample(stamps, 4), max(stamps), max(stamps) + 1):
        offset = store.offset_at("t", 0, Position("timestamp", timestamp_ms))
        assert first_at(stamps, start, timestamp_ms) == offset, timestamp_ms


def test_a_time_relative_to_now(store: Store, clock: ManualClock) -> None:
    store.create_topic("t")
    for _ in range(5):
        store.append("t", b"x")
        clock.advance(HOUR_MS)

    assert 3 == store.offset_at("t", 0, "@-2h")
    assert 0 == store.offset_at("t", 0, "@-2d")


def test_a_time_in_an_empty_topic_is_its_end(store: Store) -> None:
    store.create_topic("t")

    assert 0 == store.offset_at("t", 0, "@-1h")


# --- retention ---------------------------------------------------------------------------------


def bases(store: Store) -> list[int]:
    return [info.base_offset for info in store.segments("t", 0)]


def test_retention_by_age_removes_what_is_older_but_not_the_active_segment(
    store: Store, clock: ManualClock
) -> None:
    store.create_topic("t", retention=f"{2 * HOUR_MS}ms")
    for number in range(4):
        store.append("t", b"%d" % number)
        store.roll("t", 0)
        clock.advance(HOUR_MS)
    would = store.apply_retention(dry_run=True)
    assert [0, 1, 2, 3, 4] == bases(store)
    assert [(T0, 0), (T0, 1)] == [
        (partition, info.base_offset) for partition, info in would.removed
    ]

    assert would == store.apply_retention()
    assert [2, 3, 4] == bases(store)
    assert (2, 4) == store.offsets("t")[0]


def test_retention_by_age_empties_a_quiet_topic_and_offsets_go_on(
    store: Store, clock: ManualClock
) -> None:
    store.create_topic("t", retention="1h")
    store.append_many("t", [b"x"] * 5)
    clock.advance(2 * HOUR_MS)
    store.apply_retention()

    assert (5, 5) == store.offsets("t")[0]
    assert [] == values(store)
    assert 5 == store.append("t", b"y").offset


def test_retention_by_bytes_keeps_at_least_that_much(store: Store) -> None:
    store.create_topic("t", segment_bytes=4096, retention_bytes=10_000)
    for _ in range(40):
        store.append("t", b"x" * 1000)
    store.apply_retention()
    sizes = [info.size_bytes for info in store.segments("t", 0)]

    assert 10_000 <= sum(sizes)
    assert sum(sizes[1:]) < 10_000
    assert store.offsets("t")[0].start > 0


def test_a_clock_that_was_set_back_removes_nothing_too_early(
    store: Store, clock: ManualClock
) -> None:
    store.create_topic("t", retention="1h")
    store.append("t", b"x")
    store.roll("t", 0)
    clock.jump(-10 * HOUR_MS)
    assert [] == store.apply_retention().removed
    clock.jump(10 * HOUR_MS + 1)
    assert [] == store.apply_retention().removed


def test_old_timestamps_do_not_make_a_segment_old(store: Store) -> None:
    store.create_topic("t", retention="1h")
    store.append("t", b"history", timestamp_ms=5)
    store.roll("t", 0)

    assert [] == store.apply_retention().removed


def test_a_segment_is_rolled_when_it_is_old(store: Store, clock: ManualClock) -> None:
    store.create_topic("t", segment_ms=HOUR_MS)
    store.append("t", b"0")
    clock.advance(HOUR_MS)
    store.append("t", b"1")

    assert [0, 1] == bases(store)


def test_a_trim_removes_no_record_at_or_after_it_and_nothing_unacknowledged(store: Store) -> None:
    store.create_topic("t")
    store.append_many("t", [b"0", b"1"])
    store.roll("t", 0)
    store.append_many("t", [b"2", b"3"])
    store.trim("t", {0: 1})
    assert ([0, 2], [b"1", b"2", b"3"]) == (bases(store), values(store))
    store.trim("t", {0: 0})
    assert [b"1", b"2", b"3"] == values(store)
    store.trim("t", {0: 99})
    assert ([2], []) == (bases(store), values(store))
    assert 4 == store.append("t", b"4").offset


def test_a_roll_of_an_empty_segment_does_nothing(store: Store) -> None:
    store.create_topic("t")
    for _ in range(3):
        store.roll("t", 0)
    assert [0] == bases(store)


# --- names -------------------------------------------------------------------------------------


def test_a_topic_is_created_once(store: Store) -> None:
    info = store.create_topic("t", partitions=2)
    assert info == store.create_topic("t", partitions=2, exist_ok=True)
    with pytest.raises(TopicExistsError):
        store.create_topic("t", partitions=2)
    with pytest.raises(TopicExistsError, match="2 partitions"):
        store.create_topic("t", partitions=3, exist_ok=True)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "@state", "x" * 201, "\u00e4", "a b"])
def test_a_bad_name_is_refused_before_anything_happens(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.create_topic(name)
    assert [] == store.topics(internal=True)


def test_what_is_unknown_is_said_by_its_name(store: Store) -> None:
    with pytest.raises(UnknownTopicError, match="create_topic"):
        store.append("t", b"x")
    store.create_topic("t", partitions=2)
    with pytest.raises(UnknownTopicError, match="partitions 0 to 1") as caught:
        store.append("t", b"x", partition=2)
    assert ("t", 2) == (caught.value.topic, caught.value.partition)


def test_another_handle_follows_what_this_one_does(store: Store) -> None:
    with open_quietly(store._engine.storage) as other:  # type: ignore[arg-type]  # it is one
        store.create_topic("t", segment_bytes=4096)
        other.append("t", b"0")
        store.configure_topic("t", segment_bytes=8192)
        assert 8192 == other.topic("t").config.segment_bytes
        other.roll("t", 0)
        store.append("t", b"1")
        assert [0, 1] == bases(store) == bases(other)
        store.trim("t", {0: 1})
        assert [1] == bases(other)
        assert log_of(other).start_offset == 1
        store.delete_topic("t")
        with pytest.raises(UnknownTopicError):
            other.append("t", b"x")
