"""The short way of a durable append writes what the general way writes, or leaves it alone."""

from __future__ import annotations

import errno
import operator
from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from hypothesis import given, settings, strategies as st
from simulated_stores import START_MS, abandon, log_of, open_quietly

import millstream
from millstream import Durability, PoisonedError, StorageError, Store
from millstream.batch import encode_one, parse_header
from millstream.format import BATCH_HEADER_BYTES, INT64_MAX, NO_TIMESTAMP, BatchHeader
from millstream.log import Log
from millstream.lone_append import ORDINARY_BYTES_MAX, LoneAppend, Row
from millstream.tail import Slot
from millstream.testing import ManualClock, MemoryStorage, crash_cases

ROW: Row = (b"value", b"key", None, ())


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    store = ready(storage)
    yield store
    abandon(store)


def ready(storage: MemoryStorage, clock: ManualClock | None = None, **config: object) -> Store:
    """A store whose topic has a record, and zeros ahead."""
    store = open_quietly(storage, clock)
    prepare(store, **config)
    return store


def prepare(store: Store, **config: object) -> None:
    store.create_topic("t", **config)
    store.append("t", b"first")
    log_of(store).zero_fill()


def lone(store: Store) -> LoneAppend:
    return LoneAppend(store._engine, log_of(store))


def written_between(log: Log, start: int, stop: int) -> tuple[BatchHeader, bytes]:
    """The batch at a place of the active segment; what depends on the place is left out."""
    assert log.active is not None
    content = log.active.file.read(stop - start, start)
    header = parse_header(content, 0, log.active.header.segment_uid)
    assert len(content) == header.total_bytes
    header = header._replace(
        base_offset=0,
        previous_hash=0,
        durable_offset=0,
        sequence=0,
        prior_max_timestamp_ms=0,
        header_hash=0,
    )
    return header, content[BATCH_HEADER_BYTES:]


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


@settings(max_examples=60, deadline=None)
@given(
    value=st.binary(max_size=200),
    key=st.none() | st.binary(max_size=40),
    timestamp_ms=st.none() | st.integers(NO_TIMESTAMP + 1, INT64_MAX),
    mode=st.sampled_from(get_args(Durability)),
)
def test_both_ways_write_the_same(
    value: bytes, key: bytes | None, timestamp_ms: int | None, mode: Durability
) -> None:
    store = ready(MemoryStorage(crashable=False))
    log, slot = log_of(store), log_of(store).slot
    first = slot[Slot.END_POSITION]
    stamp_ms = START_MS if timestamp_ms is None else timestamp_ms
    before_counts = store.metrics().handle[:3]
    assert (1, stamp_ms) == lone(store).append((value, key, timestamp_ms, ()), mode)
    lone_words = slot.read()
    second = slot[Slot.END_POSITION]
    lone_counts = store.metrics().handle[:3]
    encoded = encode_one(value, key, timestamp_ms)
    assert ([2], START_MS) == store._engine.append([(log, encoded)])
    store._engine.acknowledge([(log, 3)], mode)
    counts = store.metrics().handle[:3]
    assert [1, 1, second - first] == list(map(operator.sub, lone_counts, before_counts))
    third = slot[Slot.END_POSITION]
    assert [1, 1, third - second] == list(map(operator.sub, counts, lone_counts))

    assert written_between(log, first, second) == written_between(
        log, second, slot[Slot.END_POSITION]
    )
    durable = 2 if mode == "sync" else 1
    assert (durable, 2) == (lone_words.durable_offset, lone_words.visible_offset)
    assert lone_words.max_timestamp == slot[Slot.MAX_TIMESTAMP]
    records = list(store.read("t", start=1))
    assert 2 == len(records)
    for record in records:
        assert (value, key, stamp_ms) == (record.value, record.key, record.timestamp_ms)
    store.close()


def test_many_in_turn_of_both_ways_make_one_chain(store: Store, storage: MemoryStorage) -> None:
    short = lone(store)
    for number in range(1, 200):
        value = str(number).encode()
        if number % 3:
            assert short.append((value, None, None, ())) == (number, START_MS)
        else:
            store.append_many("t", [value])
    assert [b"first", *(str(number).encode() for number in range(1, 200))] == values(store)
    assert store.verify().ok
    # The index knows them all, so that nothing has to be scanned.
    assert START_MS == store.append("t", b"x", timestamp_ms=START_MS).timestamp_ms
    assert 150 == next(iter(store.read("t", start=150))).offset


@pytest.mark.parametrize(
    "row",
    [
        (None, b"k", None, ()),
        (bytearray(b"v"), b"k", None, ()),
        (b"v", bytearray(b"k"), None, ()),
        (b"v", 7, None, ()),
        ("v", b"k", None, ()),
        (b"v", b"k", True, ()),
        (b"v", b"k", NO_TIMESTAMP, ()),
        (b"v", b"k", INT64_MAX + 1, ()),
        (b"v", b"k", None, (("name", b"x"),)),
        (bytes(ORDINARY_BYTES_MAX + 1), b"k", None, ()),
        (b"v", bytes(ORDINARY_BYTES_MAX + 1), None, ()),
    ],
    ids=[
        "tombstone",
        "buffer",
        "buffer as key",
        "number as key",
        "text",
        "bool as time",
        "no time",
        "time too large",
        "headers",
        "large value",
        "large key",
    ],
)
def test_a_record_out_of_the_ordinary_is_left_alone(
    store: Store, storage: MemoryStorage, row: Row
) -> None:
    assert_left_alone(store, storage, row)


def assert_left_alone(store: Store, storage: MemoryStorage, row: Row = ROW) -> None:
    log = log_of(store)
    short, before, steps = lone(store), log.slot.read(), len(storage.trace)
    assert short.append(row) is None
    assert (before, steps) == (log.slot.read(), len(storage.trace))
    assert 0 == store._engine.tail.get("in_progress")


def new_generation(store: Store) -> None:
    log_of(store).slot[Slot.GENERATION] = 1 << 20


def poisoned(store: Store) -> None:
    log_of(store).slot[Slot.POISONED] = 1


def rolled_by_another_process(store: Store) -> None:
    log_of(store).slot[Slot.ACTIVE_UID] = 1


def no_zeros_left(store: Store) -> None:
    slot = log_of(store).slot
    slot[Slot.ZERO_FILLED] = slot[Slot.END_POSITION] + 128


def topics_changed(store: Store) -> None:
    store._engine.tail.bump("topics_version")


def deleted(store: Store) -> None:
    log_of(store).deleted = True


def closed_segment(store: Store) -> None:
    log_of(store).close()


@pytest.mark.parametrize(
    "change",
    [
        new_generation,
        poisoned,
        rolled_by_another_process,
        no_zeros_left,
        topics_changed,
        deleted,
        closed_segment,
    ],
)
def test_a_log_out_of_the_ordinary_is_left_alone(
    store: Store, storage: MemoryStorage, change: Callable[[Store], None]
) -> None:
    short = lone(store)
    assert short.append(ROW) is not None
    log = log_of(store)
    change(store)
    before, steps = log.slot.read(), len(storage.trace)

    assert short.append(ROW) is None
    assert (before, steps) == (log.slot.read(), len(storage.trace))
    assert 0 == store._engine.tail.get("in_progress")


def test_what_is_not_synced_needs_no_zeros_ahead(store: Store) -> None:
    short, slot = lone(store), log_of(store).slot
    no_zeros_left(store)
    assert (1, START_MS) == short.append(ROW, "os")
    assert slot[Slot.ZERO_FILLED] == slot[Slot.END_POSITION]
    assert [b"first", b"value"] == values(store)


def test_what_is_not_synced_waits_behind_a_commit_that_is_being_synced(store: Store) -> None:
    log = log_of(store)
    assert (1, START_MS) == lone(store).append(ROW, "sync")
    store._engine.append([(log, encode_one(b"decided", None, None))])
    assert log.slot.hide(3)
    assert (3, START_MS) == lone(store).append(ROW, "os")
    # It was synced with what had to be, before any of it was shown.
    assert (4, 4) == (log.slot[Slot.DURABLE_OFFSET], log.slot[Slot.VISIBLE_OFFSET])


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({"compression": "lz4"}, ROW),
        ({"segment_bytes": 4096}, (bytes(4000), None, None, ())),
        ({"segment_ms": 1000}, ROW),
    ],
)
def test_a_topic_out_of_the_ordinary_is_left_alone(
    storage: MemoryStorage, config: dict[str, object], row: Row
) -> None:
    clock = ManualClock(START_MS)
    store = ready(storage, clock, **config)
    clock.advance(1000)
    assert_left_alone(store, storage, row)
    abandon(store)


def test_a_compacted_topic_takes_records_with_a_key_only(storage: MemoryStorage) -> None:
    store = open_quietly(storage)
    store.create_topic("t", compact=True)
    store.append("t", b"v", key=b"k")
    log_of(store).zero_fill()

    assert_left_alone(store, storage, (b"v", None, None, ()))
    assert (1, START_MS) == lone(store).append(ROW)
    abandon(store)


def test_what_a_failed_write_left_is_cut_off(store: Store, storage: MemoryStorage) -> None:
    storage.faults.partial_writes = True
    storage.faults.fail["write"] = errno.EIO
    with pytest.raises(StorageError):
        lone(store).append((bytes(1000), None, None, ()))
    assert 0 == store._engine.tail.get("in_progress")
    storage.faults.clear()

    assert 1 == store.append("t", b"next").offset
    assert [b"first", b"next"] == values(store)
    assert store.verify().ok


def test_a_failed_sync_poisons_the_partition(store: Store, storage: MemoryStorage) -> None:
    storage.faults.fail["sync"] = errno.EIO
    short = lone(store)
    with pytest.raises(PoisonedError):
        short.append(ROW)
    storage.faults.clear()

    assert [b"first"] == values(store)
    assert short.append(ROW) is None
    with pytest.raises(PoisonedError):
        store.append("t", b"next")


@pytest.mark.crash
def test_a_crash_at_any_step_loses_nothing_acknowledged() -> None:
    acknowledged: list[bytes] = []

    def work(storage: MemoryStorage) -> None:
        acknowledged.clear()
        store = open_quietly(storage)
        try:
            prepare(store)
            acknowledged.append(b"first")
            short = lone(store)
            for number in range(4):
                value = bytes([number]) * 700
                assert short.append((value, b"key", None, ())) is not None
                acknowledged.append(value)
        finally:
            abandon(store)

    cases = 0
    for case in crash_cases(work, seeds=(1, 2, 3)):
        expected = list(acknowledged)
        with open_quietly(case.storage) as after:
            after.create_topic("t", exist_ok=True)
            found = values(after)
            assert expected == found[: len(expected)]
            assert len(expected) + 1 >= len(found)
            after.append("t", b"after")
            assert [*found, b"after"] == values(after)
            assert after.verify().ok
        cases += 1
    assert 100 < cases


def test_a_store_that_was_closed_is_refused(storage: MemoryStorage) -> None:
    store = ready(storage)
    short = lone(store)
    store.close()
    with pytest.raises(millstream.StoreClosedError):
        short.append(ROW)
