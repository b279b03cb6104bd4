"""Compaction beside readers, writers, retention, deletion and damage; and what is on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from compacted_model import CompactedModel, compactor, fill
from shaped import restarted, shape
from simulated_stores import START_MS, log_of, open_quietly
from xxhash import xxh3_64_intdigest

from millstream import (
    CorruptBatchError,
    FormatVersionError,
    LockedError,
    StorageError,
    Store,
    TopicPartition,
    UsageError,
)
from millstream.format import REWRITTEN
from millstream.segment import segment_path
from millstream.testing import FaultPlan, ManualClock, MemoryStorage

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


# --- while others read, write and remove ---------------------------------------------------------


def test_scenario_74_readers_in_old_segments_go_on(
    store: Store, storage: MemoryStorage, model: CompactedModel, cell: Cell
) -> None:
    shape(store, cell)
    fill(store, model, count=90)
    readers = []
    for offset in range(0, 90, 7):
        reader = store.reader({TopicPartition("t", 0): offset})
        first = reader.poll(max_records=1)
        readers.append((reader, [record for batch in first for record in batch]))

    store.compact("t")
    model.append(store, b"key-0", b"newer")
    store.compact("t")

    for reader, seen in readers:
        while found := reader.poll(max_records=3):
            seen += [record for batch in found for record in batch]
        offsets = [record.offset for record in seen]
        assert sorted(set(offsets)) == offsets
        assert [model.written[offset] for offset in offsets] == seen
        last = {record.key: record for record in seen}
        assert last.items() <= model.latest(91).items()
        assert b"newer" == last[b"key-0"].value
        reader.close()
    for again in restarted(store, storage, cell):
        model.check(again, compacted=True)


def test_scenario_74_one_compaction_at_a_time(
    store: Store, storage: MemoryStorage, model: CompactedModel, cell: Cell
) -> None:
    shape(store, cell)
    fill(store, model)
    store.roll("t", 0)
    steps = compactor(store).run()
    running = compactor(store)._lock()

    with pytest.raises(LockedError, match="compacts this partition"):
        next(steps, None)

    running.close()
    store.compact("t")
    for again in restarted(store, storage, cell):
        model.check(again, compacted=True)


def test_scenario_74_retention_removes_what_is_being_rewritten(
    store: Store,
    storage: MemoryStorage,
    model: CompactedModel,
    monkeypatch: pytest.MonkeyPatch,
    cell: Cell,
) -> None:
    monkeypatch.setattr("millstream.compaction_round.STEP_BYTES", 256)
    shape(store, cell)
    fill(store, model)
    store.roll("t", 0)

    for number, _ in enumerate(compactor(store).run()):
        if number % 10 == 9 and model.start < 50:
            model.start += 10
            store.trim("t", {0: model.start})
            model.append(store, b"key-1", b"%d" % number)

    model.check(store)
    store.compact("t")
    for again in restarted(store, storage, cell):
        model.check(again, compacted=True)
        assert 50 == again.offsets("t")[0].start


def test_scenario_74_what_retention_removes_at_any_step_does_not_come_back(
    store: Store,
    storage: MemoryStorage,
    model: CompactedModel,
    monkeypatch: pytest.MonkeyPatch,
    cell: Cell,
) -> None:
    monkeypatch.setattr("millstream.compaction_round.STEP_BYTES", 1024)
    shape(store, cell)
    for part in range(8):  # a segment each, and a compaction whose every step is interrupted once
        fill(store, model, count=12)
        store.roll("t", 0)
        for number, _ in enumerate(compactor(store).run()):
            sealed = store.segments("t", 0)[:-1]
            if number % 8 == part and sealed and model.start < sealed[0].end_offset:
                model.start = sealed[0].end_offset
                store.trim("t", {0: model.start})
        assert all(each.end_offset > model.start for each in store.segments("t", 0)[:-1])

    for again in restarted(store, storage, cell):
        model.check(again)


def test_scenario_74_the_topic_is_deleted_meanwhile(
    store: Store,
    storage: MemoryStorage,
    model: CompactedModel,
    monkeypatch: pytest.MonkeyPatch,
    cell: Cell,
) -> None:
    monkeypatch.setattr("millstream.compaction_round.STEP_BYTES", 256)
    shape(store, cell)
    fill(store, model)
    store.roll("t", 0)
    steps = compactor(store).run()
    for _ in range(25):
        next(steps)

    store.delete_topic("t")

    with pytest.raises(UsageError, match="deleted"):
        list(steps)
    for again in restarted(store, storage, cell):
        assert [] == storage.list("topics")
        assert [] == again.topics()


def test_giving_up_in_the_middle_leaves_nothing(
    store: Store, storage: MemoryStorage, model: CompactedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.compaction_round.STEP_BYTES", 256)
    fill(store, model)
    store.roll("t", 0)
    total = sum(1 for _ in compactor(store, dry_run=True).run())
    for count in range(0, 3 * total, 7):
        steps = compactor(store).run()
        for _ in zip(range(count), steps, strict=False):
            pass
        steps.close()

        assert not [name for name in storage.list(DIRECTORY) if name.endswith(".tmp")]
        model.check(store)


def test_times_are_found_in_rewritten_segments(store: Store, clock: ManualClock) -> None:
    for number in range(50):
        clock.advance(1000)
        store.append("t", b"v" * 200, key=b"%d" % (number % 9))
    store.compact("t")

    for number in range(0, 50, 4):
        wanted = START_MS + 1000 * (number + 1)
        found = store.offset_at("t", 0, f"@{wanted}")
        assert max(number, 41) == found


def test_records_are_compacted_in_the_background_when_it_pays(
    storage: MemoryStorage, clock: ManualClock
) -> None:
    with open_quietly(storage, clock) as store:
        store.create_topic("t", compact=True, segment_ms=1000)
        store.append_many("t", [b"1", b"2", b"3"], [b"a", b"a", b"b"])
        engine, log = store._engine, log_of(store)
        clock.advance(1000)

        engine.compactions._look(log)
        while log in engine.compactions._running:
            engine.compactions._step(log)

        assert [1, 2] == [record.offset for record in store.read("t")]
        assert 2 == len(store.segments("t", 0))


# --- what is on the disk -------------------------------------------------------------------------


def test_neighbours_of_a_rewritten_segment_are_not_touched(
    storage: MemoryStorage, model: CompactedModel
) -> None:
    store = open_quietly(storage)
    store.create_topic("t", compact=True, segment_bytes=4096)
    fill(store, model)
    headers = log_of(store).files.headers()

    store.compact("t")
    fill(store, model)

    files = log_of(store).files
    rewritten = files.headers()[0]
    assert rewritten.incompatible & REWRITTEN
    assert headers[0].base_offset == rewritten.base_offset
    (following,) = [
        header
        for header in files.headers()
        if rewritten.rewrite and header.base_offset == rewritten.rewrite.end_offset
    ]
    assert following.previous_segment_uid == rewritten.link_uid
    store.close()
    for forget in (False, True):
        with open_quietly(storage) as again:
            model.check(again)
            if forget:  # then the next start walks the whole log
                again._engine.catalog.database.query("UPDATE partitions SET segment_base = NULL")
                log_of(again).dirty = False


def test_damage_in_a_segment_stops_the_compaction_and_changes_nothing(
    storage: MemoryStorage, model: CompactedModel
) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True, segment_bytes=4096)
        fill(store, model)
        store.roll("t", 0)
        base = log_of(store).files.bases()[2]
        path = segment_path(DIRECTORY, base)
        file = storage.open(path, "rw")
        byte = file.read(1, 500)[0]
        file.write([bytes([byte ^ 1])], 500)
        file.close()

        with pytest.raises(CorruptBatchError) as caught:
            store.compact("t")

        assert ("t", 0, path) == (caught.value.topic, caught.value.partition, caught.value.path)
        assert not [name for name in storage.list(DIRECTORY) if name.endswith(".tmp")]
        before = list(store.read("t", stop=base))
        assert [model.written[record.offset] for record in before] == before


def test_a_segment_that_newer_versions_alone_write_is_not_compacted(
    store: Store, storage: MemoryStorage, clock: ManualClock, model: CompactedModel
) -> None:
    fill(store, model)
    store.roll("t", 0)
    store.close()
    file = storage.open(segment_path(DIRECTORY, 0), "rw")
    header = bytearray(file.read(128, 0))
    header[16] = 4
    header[120:] = xxh3_64_intdigest(header[:120]).to_bytes(8, "little")
    file.write([bytes(header)], 0)
    file.close()

    with open_quietly(storage, clock) as again:
        with pytest.raises(FormatVersionError, match="newer versions may write") as caught:
            again.compact("t")
        assert ("t", 0) == (caught.value.topic, caught.value.partition)
        assert list(model.written.values()) == list(again.read("t"))


def test_scenario_42_a_full_disk_stops_it_and_with_space_it_goes_on(
    store: Store, storage: MemoryStorage, model: CompactedModel
) -> None:
    import errno  # noqa: PLC0415

    fill(store, model)
    store.roll("t", 0)
    storage.faults = FaultPlan(fail={"write": errno.ENOSPC})

    with pytest.raises(StorageError, match="full"):
        store.compact("t")
    assert not [name for name in storage.list(DIRECTORY) if name.endswith(".tmp")]

    storage.faults.clear()
    model.check(store)
    store.compact("t")
    model.check(store, compacted=True)


def test_the_active_segment_is_lost_behind_a_rewritten_one(storage: MemoryStorage) -> None:
    """Only a disk that loses synced bytes gets here; the rewritten segment is never appended to."""
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True)
        store.append_many("t", [b"1", b"2"], [b"k", b"k"])
        store.compact("t")
        log = log_of(store)
        active = segment_path(DIRECTORY, log.files.bases()[-1])
        store._engine.catalog.database.query("UPDATE partitions SET segment_base = NULL")
        log.dirty = False
    file = storage.open(active, "rw")
    file.truncate(50)
    file.close()

    for number in range(2):
        with open_quietly(storage) as store:
            assert 2 + number == store.append("t", b"%d" % number, key=b"new").offset
            assert [1, *range(2, 3 + number)] == [record.offset for record in store.read("t")]
            assert 2 == len(store.segments("t", 0))
            assert store.verify().ok
