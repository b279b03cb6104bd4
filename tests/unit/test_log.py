"""One partition: what a write leaves that did not go through, offsets never given twice, rolls."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from interrupted_process import Killed, ProcessStorage
from simulated_stores import abandon, kill, log_of, make_visible, open_quietly

from millstream import (
    OffsetOutOfRangeError,
    PoisonedError,
    StorageError,
    Store,
    TopicPartition,
)
from millstream.segment import segment_path
from millstream.tail import Slot
from millstream.testing import FaultPlan, MemoryStorage
from millstream.zero_fill import ZeroFill

T0 = TopicPartition("t", 0)


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def reopen(storage: MemoryStorage, store: Store) -> Store:
    """Close the store and open it again."""
    store.close()
    return open_quietly(storage)


# --- writers that die --------------------------------------------------------------------------


def two_processes(storage: MemoryStorage) -> tuple[Store, Store, ProcessStorage]:
    """A store in a process that will not live long, and one that will."""
    survivor = open_quietly(storage)
    survivor.create_topic("t", segment_bytes=4096)
    survivor.append("t", b"first")
    process = ProcessStorage(storage)
    return open_quietly(process), survivor, process


def test_the_sequence_goes_on_after_a_batch_whose_writer_died() -> None:
    """It was given to the batch, but the writer died before it could say so."""
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    process.interrupt(Killed(), kind="write", after=True)
    with pytest.raises(Killed):
        doomed.append("t", b"adopted")
    kill(doomed)

    assert 2 == survivor.append("t", b"next").offset

    sequences = [batch.sequence for batch in survivor.read("t").batches()]
    assert sorted(set(sequences)) == sequences
    survivor = reopen(storage, survivor)
    assert [b"first", b"adopted", b"next"] == values(survivor)
    survivor.close()


def test_a_batch_whose_writer_died_before_the_write_leaves_nothing() -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    process.interrupt(Killed(), kind="write")
    with pytest.raises(Killed):
        doomed.append("t", b"never")
    kill(doomed)

    assert 1 == survivor.append("t", b"next").offset
    assert [b"first", b"next"] == values(survivor)
    survivor.close()


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "sync_directory"])
@pytest.mark.parametrize("after", [False, True])
def test_a_roll_is_undone_or_finished_for_a_writer_that_died(kind: str, after: bool) -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    process.interrupt(Killed(), kind=kind, after=after)
    with pytest.raises(Killed):
        doomed.roll("t", 0)
    kill(doomed)

    survivor.append("t", b"next")
    abandon(survivor)

    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"first", b"next"] == values(store)


@pytest.mark.parametrize("number", range(8))
def test_a_trim_is_finished_for_a_process_that_died(number: int) -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    for letter in b"abcd":
        doomed.roll("t", 0)
        doomed.append("t", bytes([letter]))
    process.interrupt(Killed(), at=process.operations + number)
    with pytest.raises(Killed):
        doomed.trim("t", {0: 3})
    kill(doomed)

    survivor.append("t", b"next")
    assert [b"c", b"d", b"next"] == values(survivor)[-3:]
    assert [info.base_offset for info in survivor.segments("t", 0)][-2:] == [3, 4]
    survivor = reopen(storage, survivor)
    assert [b"c", b"d", b"next"] == values(survivor)[-3:]
    survivor.close()


def test_a_segment_whose_name_was_not_durable_is_made_so_before_anything_is_acknowledged() -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    survivor.create_topic("u")
    process.interrupt(Killed(), kind="sync_directory")
    with pytest.raises(Killed):
        doomed.append("u", b"never")
    kill(doomed)
    survivor.append("u", b"acknowledged")
    abandon(survivor)

    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"acknowledged"] == values(store, "u")


# --- offsets are not given twice ---------------------------------------------------------------


def test_offsets_that_a_trim_has_passed_are_not_given_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = MemoryStorage()
    store = open_quietly(storage, durability="os")
    store.create_topic("t")
    store.append_many("t", [b"a", b"b", b"c"])
    store.trim("t", {0: 2})
    abandon(store)

    with open_quietly(storage.crash(keep="none")) as store:
        assert 2 == store.append("t", b"d").offset
        assert [b"d"] == values(store)
    assert "offsets 0 to 1 are lost" in caplog.text


def test_offsets_that_a_group_has_read_are_not_given_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = MemoryStorage()
    store = open_quietly(storage, durability="os")
    store.create_topic("t", partitions=2)
    store.append_many("t", [b"a", b"b", b"c"], partition=0)
    with store.transaction() as transaction:
        transaction.append("t", b"output", partition=1)
        transaction.commit_offsets("g", {T0: 3})
    abandon(store)

    storage = storage.crash(keep="none")
    for count in (1, 2):
        store = open_quietly(storage)
        assert 2 + count == store.append("t", b"d", partition=0).offset
        assert [b"output", *[b"d"] * count] == values(store)
        abandon(store)
        storage = storage.crash(keep="none")
    assert "offsets 0 to 2 are lost" in caplog.text


def test_an_offset_past_the_log_end_cannot_be_committed() -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        past_the_end = pytest.raises(OffsetOutOfRangeError, match="the log ends at 0")
        with past_the_end, store.transaction() as transaction:
            transaction.commit_offsets("g", {T0: 1})


# --- writes and syncs that fail ----------------------------------------------------------------


def test_a_sync_of_zeros_that_fails_poisons_the_partition() -> None:
    """The pages it gives up may be those of appended batches."""
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    store.append("t", b"b", durability="os")
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(StorageError):
        log_of(store).zero_fill()

    with pytest.raises(PoisonedError):
        store.append("t", b"c")

    store = reopen(storage, store)
    assert [b"a", b"b"] == values(store)
    store.append("t", b"d")
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"a", b"b", b"d"] == values(store)


def test_what_a_failed_sync_gave_up_is_written_again_when_the_store_is_reopened() -> None:
    """A sync alone would succeed, and the pages would still be on no disk."""
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(PoisonedError):
        store.append("t", b"b")

    store = reopen(storage, store)
    assert [b"a", b"b"] == values(store)
    store.append("t", b"c")
    abandon(store)

    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"a", b"b", b"c"] == values(store)


def test_a_poisoned_partition_stays_so_when_another_writer_dies() -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    survivor.append("t", b"in memory", durability="os")
    process.interrupt(Killed(), kind="write", after=True)
    with pytest.raises(Killed):
        doomed.append("t", b"never")
    kill(doomed)
    log_of(survivor).slot[Slot.POISONED] = 1

    with pytest.raises(PoisonedError):
        survivor.append("t", b"next")
    survivor.close()


class SealedMeanwhile:
    """A log whose active segment is sealed and compacted away before its zeros are synced."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = log_of(store)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def sync_segments(self, bases: list[int]) -> None:
        """As that of the log."""
        self._store.roll("t", 0)
        self._store._engine.storage.remove(segment_path(self._log.directory, bases[0]))
        self._log.sync_segments(bases)


def test_zeros_of_a_segment_that_has_gone_since_need_no_sync() -> None:
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    beside: Any = SealedMeanwhile(store)
    ZeroFill(beside, store._engine.append_lock).fill(1 << 20)

    store.append("t", b"b")
    log = log_of(store)
    storage.remove(segment_path(log.directory, log.slot[Slot.ACTIVE_BASE]))
    with pytest.raises(StorageError, match="does not exist"):
        log.zero_fill()
    abandon(store)


def test_a_sealed_segment_keeps_no_zeros() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.append("t", b"a")
        log = log_of(store)
        path = segment_path(log.directory, 0)
        log.zero_fill()
        filled = storage.size(path)
        end = log.slot[Slot.END_POSITION]
        store.roll("t", 0)

        assert storage.size(path) == end < filled


@pytest.mark.parametrize("number", range(6))
def test_a_roll_that_fails_leaves_the_segment_as_it_was(number: int) -> None:
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    log_of(store).zero_fill()
    storage.faults = FaultPlan(fail={len(storage.trace) + number: errno.EIO})
    try:
        store.roll("t", 0)
    except StorageError:
        segments = 1
    else:
        segments = 2
    assert segments == len(store.segments("t", 0))

    store.append("t", b"b")
    assert [b"a", b"b"] == values(store)
    store.roll("t", 0)
    store.append("t", b"c")
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"a", b"b", b"c"] == values(store)


@pytest.mark.parametrize("order", ["roll cut off", "index of an earlier end"])
def test_an_index_from_before_the_end_of_its_segment_hides_nothing(order: str) -> None:
    """Whoever began to seal the segment died; another appended more, and sealed it without one."""
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    doomed.append_many("t", [b"early"] * 3, timestamps_ms=[10, 11, 12])
    log_of(doomed).files.open_at(1)[0].close()  # which completes its index
    if order == "roll cut off":
        process.interrupt(Killed(), kind="rename", after=True)
        with pytest.raises(Killed):
            doomed.roll("t", 0)
    else:
        log = log_of(doomed)
        file, header = log.files.open(0)
        end = log.end_locked().position
        log.files.indexes.write(header, log.files._index(file, header), end)
        file.close()
    kill(doomed)
    log_of(survivor).files.indexes.clear()
    survivor.append_many("t", [b"late"] * 3, timestamps_ms=[5_000_000_000_000] * 3)
    survivor.roll("t", 0)
    log_of(survivor).files.indexes.clear()

    assert [b"late"] * 3 == [r.value for r in survivor.read("t", start="@4000000000000")]
    assert survivor.verify(deep=True).ok
    survivor.close()


def test_a_roll_whose_failure_cannot_be_undone_poisons_the_partition() -> None:
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    storage.faults = FaultPlan(fail={"sync_directory": errno.EIO})
    with pytest.raises(StorageError):
        store.roll("t", 0)

    storage.faults.clear()
    with pytest.raises(PoisonedError):
        store.append("t", b"b")
    store = reopen(storage, store)
    store.append("t", b"c")
    assert [b"a", b"c"] == values(store)
    store.close()


def test_a_partial_write_that_cannot_be_cut_off_is_cut_before_the_next() -> None:
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"a")
    storage.faults = FaultPlan(
        fail={"write": errno.ENOSPC, "truncate": errno.EIO}, partial_writes=True
    )
    with pytest.raises(StorageError):
        store.append("t", b"b" * 1000)
    storage.faults.clear()

    assert 1 == store.append("t", b"c").offset
    abandon(store)
    storage = storage.crash(keep="all")
    with open_quietly(storage) as store:
        assert [b"a", b"c"] == values(store)
        assert [] == storage.list("topics/t/0/quarantine")


def test_a_partition_that_cannot_be_recovered_does_not_stop_the_others() -> None:
    storage = MemoryStorage()
    doomed, survivor, process = two_processes(storage)
    survivor.create_topic("u")
    survivor.append("u", b"a")
    process.interrupt(Killed(), kind="write", after=True)
    with pytest.raises(Killed):
        doomed.append("t", b"adopted")
    kill(doomed)
    storage.faults.fail_next("write", errno.EIO)

    assert 1 == survivor.append("u", b"b").offset
    make_visible(survivor, "t", 0)
    assert 2 == survivor.append("t", b"c").offset
    assert [b"first", b"adopted", b"c"] == values(survivor)
    survivor.close()
