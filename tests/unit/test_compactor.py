"""Compaction keeps the last record of each key, as it was, and disturbs nobody.

How it dies is in `crash/test_compaction_crash.py`, random lives in `property/test_compaction.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from compacted_model import CompactedModel, compactor, fill
from shaped import restarted, seal, shape
from simulated_stores import START_MS, kill, log_of, open_quietly

import millstream
from millstream import (
    MissingKeyError,
    Record,
    Store,
    TopicPartition,
    Transaction,
    UsageError,
)
from millstream.compaction import ALL, NONE, LaterKeys
from millstream.format import CONTROL, OFFSET_DELTAS, BatchHeader
from millstream.segment import scan_headers
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

DAY = 86_400_000
DIRECTORY = "topics/t/0"


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as opened:
        opened.create_topic("t", compact=True, segment_bytes=4096)
        yield opened


@pytest.fixture
def model() -> CompactedModel:
    return CompactedModel()


def batches(store: Store) -> list[BatchHeader]:
    """The headers of all batches, by segment and position."""
    found = []
    log = log_of(store)
    for base in log.files.bases():
        file, header = log.files.open(base)
        stop = file.size()
        found += [
            each for _, each in scan_headers(file, header.data_start, stop, header.segment_uid)
        ]
        file.close()
    return found


def content(records: list[Record]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(record.offset, record.key, record.value) for record in records]


# --- what stays ----------------------------------------------------------------------------------


def test_the_last_record_of_each_key_stays_as_it_was(store: Store, model: CompactedModel) -> None:
    fill(store, model)

    (result,) = store.compact("t")

    assert 7 == len(model.check(store, compacted=True))
    assert (53, 60) == (result.removed_records, result.end_offset)
    assert result.bytes_after < result.bytes_before
    assert 60 == store.append("t", b"next", key=b"key-0").offset


def test_everything_about_a_record_is_kept(store: Store) -> None:
    rows = [(b"old", b"a", ()), (None, b"b", (("h", None),)), (b"", b"", (("h", b"v"),) * 2)]
    values, keys, headers = (list(column) for column in zip(*rows, strict=True))
    store.append_many("t", values, keys, [30, -20, 10], headers=headers)
    store.append_many("t", [b"new"], [b"a"], [5], headers=[[("n", b"")]])

    store.compact("t")

    assert [
        Record("t", 0, 1, -20, b"b", None, (("h", None),)),
        Record("t", 0, 2, 10, b"", b"", (("h", b"v"), ("h", b"v"))),
        Record("t", 0, 3, 5, b"a", b"new", (("n", b""),)),
    ] == list(store.read("t"))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_batch_that_survives_whole_is_copied_as_it_is_stored(compression: str) -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t", compact=True, compression=compression)
        noise = Random(1).randbytes
        keys = [b"%d" % number for number in range(5)]
        store.append_many("t", [noise(2000) for _ in keys], keys)
        store.append_many("t", [b"gone", noise(6000)], [b"x", b"y"])
        store.append_many("t", [noise(6000)], [b"x"])
        before = batches(store)

        store.compact("t")

        after = batches(store)
        assert [each.sections for each in before[::2]] == [each.sections for each in after[::2]]
        assert (1, 1) == (after[1].record_count, after[1].last_offset_delta)
        assert after[1].flags & OFFSET_DELTAS
        for name in ("sequence", "append_timestamp_ms", "prior_max_timestamp_ms", "codec"):
            assert [getattr(each, name) for each in before] == [
                getattr(each, name) for each in after
            ]


def test_offsets_stay_covered_and_a_reader_reaches_the_end(store: Store) -> None:
    for number in range(30):
        store.append("t", b"%d" % number, key=b"same")
    store.append_many("t", [b"a", None], [b"a", b"b"])
    store.compact("t")
    (gap, *rest) = batches(store)

    assert (CONTROL, 0, 28) == (gap.flags, gap.base_offset, gap.last_offset)
    assert [(29, 31)] == [(each.base_offset, each.last_offset) for each in rest]
    with store.reader({TopicPartition("t", 0): 0}) as reader:
        assert [29, 30, 31] == [r.offset for batch in reader.poll() for r in batch]
        assert {TopicPartition("t", 0): 32} == reader.positions
    with store.consumer("t", group="g") as consumer:
        assert 3 == len(list(consumer))
        consumer.commit()
        assert [0] == [lag.lag for lag in store.group_lag("g")]


def test_scenario_63_the_last_record_is_removed_and_a_reader_still_reaches_the_end(
    store: Store, clock: ManualClock
) -> None:
    store.append("t", b"v", key=b"k")
    store.append("t", None, key=b"k")
    store.configure_topic("t", tombstone_retention=0)

    store.compact("t")

    assert [] == list(store.read("t"))
    with store.reader({TopicPartition("t", 0): 0}) as reader:
        assert [] == reader.poll()
        assert {TopicPartition("t", 0): 2} == reader.positions
        assert reader.at_end()


def test_several_rounds_with_little_memory_leave_the_same(
    store: Store, model: CompactedModel
) -> None:
    fill(store, model, count=300, keys=40)
    store.roll("t", 0)

    small = compactor(store, map_bytes=2000)
    steps = list(small.run())

    model.check(store, compacted=True)
    assert 300 == small.result.end_offset
    assert steps == [None] * len(steps)


def test_rounds_that_meet_more_keys_than_expected_begin_again_smaller(
    store: Store, model: CompactedModel
) -> None:
    for stretch in range(6):
        for number in range(150):
            key = b"same" if stretch % 2 == 0 else b"%d %d" % (stretch, number)
            model.append(store, key, b"v")
    store.roll("t", 0)

    small = compactor(store, map_bytes=2000)
    for _ in small.run():
        pass

    assert not small._adapts
    model.check(store, compacted=True)
    assert 900 == small.result.end_offset


def test_a_second_compaction_finds_nothing_to_do(store: Store, model: CompactedModel) -> None:
    fill(store, model)
    store.compact("t")
    uids = [header.segment_uid for header in log_of(store).files.headers()]

    (result,) = store.compact("t")

    assert (0, result.bytes_before) == (result.removed_records, result.bytes_after)
    assert uids == [header.segment_uid for header in log_of(store).files.headers()]


def test_segments_without_replaced_records_are_not_written_again(store: Store) -> None:
    for number in range(40):
        store.append("t", b"v" * 300, key=b"%d" % number)
    store.compact("t")
    uids = {header.base_offset: header.segment_uid for header in log_of(store).files.headers()}
    store.append("t", b"new", key=b"39")

    store.compact("t")

    kept = {
        header.base_offset
        for header in log_of(store).files.headers()
        if uids.get(header.base_offset) == header.segment_uid
    }
    assert len(kept) >= len(uids) - 3


def test_small_neighbours_become_one_segment(store: Store, model: CompactedModel) -> None:
    for _ in range(10):
        fill(store, model, count=3, keys=3)
        store.roll("t", 0)
    before = len(store.segments("t", 0))

    store.compact("t")

    assert (11, 2) == (before, len(store.segments("t", 0)))
    model.check(store, compacted=True)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the handles of a process")
def test_no_handle_on_a_replaced_segment_stays_open(tmp_path: Path) -> None:
    with millstream.open(tmp_path, durability="os") as store:
        store.create_topic("t", compact=True, segment_bytes=4096)
        for round_ in range(3):
            for number in range(20):
                store.append("t", bytes(300), key=b"%d" % number)
            store.compact("t")
            assert not deleted(tmp_path), f"round {round_}"


def deleted(directory: Path) -> list[str]:
    """Files of a directory that are open and have no name any more."""
    names = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(each.readlink()))
    return [name for name in names if name.startswith(str(directory)) and "(deleted)" in name]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    store: Store, storage: MemoryStorage, model: CompactedModel
) -> None:
    fill(store, model)
    store.roll("t", 0)
    before = len(storage.trace)

    (would,) = store.compact("t", dry_run=True)

    assert before == len(storage.trace)
    with open_quietly(storage, read_only=True) as onlooker:
        assert [would] == onlooker.compact("t", dry_run=True)
    (result,) = store.compact("t")
    assert (result.removed_records, result.end_offset) == (would.removed_records, would.end_offset)


def test_only_compacted_topics_can_be_compacted(store: Store) -> None:
    store.create_topic("plain")

    with pytest.raises(UsageError, match="configure `compact`"):
        store.compact("plain")


def test_compaction_and_retention_go_together(
    store: Store, model: CompactedModel, clock: ManualClock
) -> None:
    store.configure_topic("t", retention="1d")
    fill(store, model)
    store.compact("t")
    clock.advance(DAY + 1)
    model.append(store, b"young", b"v")
    store.compact("t")

    store.apply_retention()

    model.start = store.offsets("t")[0].start
    assert [b"young"] == [record.key for record in store.read("t")]
    assert store.verify().ok


# --- keys ----------------------------------------------------------------------------------------


def test_a_record_without_a_key_is_refused_by_every_way_in(store: Store) -> None:
    with pytest.raises(MissingKeyError, match=r"key.*topic t"):
        store.append("t", b"v")
    with pytest.raises(MissingKeyError):
        store.append("t", b"v", durability="os")
    with pytest.raises(MissingKeyError):
        store.append_many("t", [b"v", b"v"], [b"k", None])
    with pytest.raises(MissingKeyError):
        store.append_many("t", [b"v"])
    with store.transaction() as transaction, pytest.raises(MissingKeyError):
        transaction.append("t", b"v")
    with store.producer() as producer, pytest.raises(MissingKeyError):
        producer.send("t", b"v")
    assert 0 == store.offsets("t")[0].end


def test_a_producer_learns_that_its_topic_is_compacted_now(store: Store) -> None:
    store.create_topic("later")
    with store.producer() as producer:
        producer.send("later", b"v").result()
        store.configure_topic("later", compact=True)
        with pytest.raises(MissingKeyError):
            producer.send("later", b"v").result()
        with pytest.raises(MissingKeyError):
            producer.flush()


def test_scenario_73_records_without_a_key_from_before_stay(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    store.delete_topic("t")
    store.create_topic("t", compression=cell.codec, segment_bytes=cell.segment_bytes)
    for value, key in ((b"1", None), (b"2", b"k"), (b"3", None), (b"4", b"k")):
        store.append("t", value * 300, key=key)
        seal(store, cell)
    store.configure_topic("t", compact=True)

    store.compact("t")

    for again in restarted(store, storage, cell):
        found = [(record.offset, record.value) for record in again.read("t")]
        assert [(0, b"1" * 300), (2, b"3" * 300), (3, b"4" * 300)] == found


def test_scenario_73_empty_and_huge_keys(store: Store, storage: MemoryStorage, cell: Cell) -> None:
    shape(store, cell)
    long, longer = b"k" * 65, b"k" * 100_000
    for number, key in enumerate((b"", long, longer, b"k" * 64, b"", long, longer)):
        store.append("t", b"%d" % number, key=key)
        seal(store, cell)

    store.compact("t")

    for again in restarted(store, storage, cell):
        assert [(3, b"k" * 64), (4, b""), (5, long), (6, longer)] == [
            (record.offset, record.key) for record in again.read("t")
        ]


def test_long_keys_are_told_apart_and_none_is_no_key() -> None:
    later, keys = LaterKeys(), [b"k" * 64 + b"%d" % number for number in range(500)]
    assert ALL == later.take(keys[:250])
    assert ALL == later.take(keys[250:])
    assert NONE == later.mask(keys)
    assert ALL == later.take([None, b"a"])
    assert b"\x01\x00" == later.mask([None, b"a"])


def test_scenario_73_a_gap_of_more_than_2_to_the_31_offsets_in_a_segment(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    from millstream.batch import encode_gap  # noqa: PLC0415

    shape(store, cell)
    log = log_of(store)
    store.append("t", b"1" * 300, key=b"a")
    for _ in range(3):
        store._engine.acknowledge([(log, 0)])
        store._engine.append([(log, encode_gap(1 << 32))])
        seal(store, cell)
    store.append("t", b"2" * 300, key=b"b")
    store.append("t", b"3" * 300, key=b"a")

    store.compact("t")

    far = 1 + (3 << 32)
    for again in restarted(store, storage, cell):
        found = content(list(again.read("t")))
        assert [(far, b"b", b"2" * 300), (far + 1, b"a", b"3" * 300)] == found
        some = again.read("t", start=1 << 33, stop=far + 1)
        assert [far] == [record.offset for record in some]
        assert again.verify().ok


# --- tombstones ----------------------------------------------------------------------------------


def test_scenario_72_a_tombstone_is_seen_until_its_horizon(
    store: Store, storage: MemoryStorage, clock: ManualClock, cell: Cell
) -> None:
    shape(store, cell)
    for key, value in ((b"k", b"v" * 300), (b"other", b"w" * 300), (b"k", None)):
        store.append("t", value, key=key)
        seal(store, cell)
    slow = store.reader({TopicPartition("t", 0): 0})

    clock.advance(10 * DAY)  # the horizon counts from the first cleaning, not from the append
    store.compact("t")
    assert [(1, b"other", b"w" * 300), (2, b"k", None)] == content(list(store.read("t")))

    clock.advance(DAY - 1)
    store.compact("t")
    assert [1, 2] == [record.offset for record in store.read("t")]
    assert [1, 2] == [record.offset for batch in slow.poll() for record in batch]
    slow.close()
    for again in restarted(store, storage, cell, clock):
        again.compact("t")
        assert [1, 2] == [record.offset for record in again.read("t")]

    clock.advance(1)
    with open_quietly(storage, clock) as again:
        again.compact("t")
        assert [1] == [record.offset for record in again.read("t")]


def test_a_later_compaction_does_not_put_the_horizon_off(store: Store, clock: ManualClock) -> None:
    store.append("t", None, key=b"k")
    for number in range(4):
        store.append("t", b"%d" % number, key=b"other")
        store.compact("t")
        clock.advance(DAY // 3)

    store.compact("t")

    assert [b"other"] == [record.key for record in store.read("t")]


def test_a_tombstone_that_was_replaced_goes_at_once(store: Store) -> None:
    store.append("t", None, key=b"k")
    store.append("t", b"back", key=b"k")

    store.compact("t")

    assert [(1, b"k", b"back")] == content(list(store.read("t")))


def test_a_clock_set_back_keeps_tombstones_longer(store: Store, clock: ManualClock) -> None:
    store.append("t", None, key=b"k")
    store.compact("t")
    clock.jump(-10 * DAY)

    store.compact("t")

    assert 1 == len(list(store.read("t")))


# --- transactions --------------------------------------------------------------------------------


def test_scenario_68_aborted_records_are_dropped_and_hide_nothing(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    shape(store, cell)
    store.append("t", b"before" * 100, key=b"k")
    seal(store, cell)
    with store.transaction() as transaction:
        transaction.append("t", b"never" * 100, key=b"k")
        transaction.abort()
    seal(store, cell)
    with store.transaction() as transaction:
        transaction.append("t", b"committed" * 100, key=b"c")

    store.compact("t")

    expected = [(0, b"k", b"before" * 100), (2, b"c", b"committed" * 100)]
    for again in restarted(store, storage, cell):
        assert expected == content(list(again.read("t")))
        assert expected == content(list(again.read("t", isolation="uncommitted")))


def test_scenario_68_an_open_transaction_holds_compaction_back(
    store: Store, storage: MemoryStorage, cell: Cell
) -> None:
    shape(store, cell)
    for value in (b"1" * 300, b"2" * 300):
        store.append("t", value, key=b"k")
        seal(store, cell)
    store.roll("t", 0)
    with store.transaction() as transaction:
        transaction.append("t", b"3" * 300, key=b"k")
        (result,) = store.compact("t")
        assert (1, 2) == (result.removed_records, result.end_offset)
        assert [1] == [record.offset for record in store.read("t")]
        assert [1, 2] == [record.offset for record in store.read("t", isolation="uncommitted")]

    (result,) = store.compact("t")
    assert (1, 3) == (result.removed_records, result.end_offset)
    for again in restarted(store, storage, cell):
        assert [(2, b"k", b"3" * 300)] == content(list(again.read("t")))


def test_scenario_68_a_dead_owner_holds_nothing_back(storage: MemoryStorage, cell: Cell) -> None:
    dying = open_quietly(storage)
    dying.create_topic("t", compact=True)
    shape(dying, cell)
    dying.append("t", b"1" * 300, key=b"k")
    seal(dying, cell)
    Transaction(dying._engine, dying._owners.take()).append("t", b"never" * 100, key=b"k")
    kill(dying)

    for _ in range(cell.restarts):
        with open_quietly(storage) as store:
            (result,) = store.compact("t")
            assert 2 == result.end_offset
            uncommitted = store.read("t", isolation="uncommitted")
            assert [(0, b"k", b"1" * 300)] == content(list(uncommitted))
