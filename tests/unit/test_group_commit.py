"""Group commit: who syncs, what it covers, and what a failure means."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest
from simulated_stores import abandon, log_of, open_quietly

from millstream import PoisonedError, StorageError, Store
from millstream.batch import encode_batch
from millstream.segment import segment_path
from millstream.tail import Slot
from millstream.testing import FaultPlan, MemoryStorage

TIMEOUT = 30


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    store = open_quietly(storage)
    store.create_topic("t", segment_bytes=4096)
    yield store
    abandon(store)


def write(store: Store, count: int = 1) -> int:
    """Append without a sync; the log end."""
    log = log_of(store)
    for _ in range(count):
        store._engine.append([(log, encode_batch([b"x" * 1000]))])
    return log.slot[Slot.LOG_END]


def syncs(storage: MemoryStorage, since: int) -> list[str]:
    return [path for kind, path in storage.trace[since:] if kind == "sync"]


def test_one_sync_serves_all_that_was_written(store: Store, storage: MemoryStorage) -> None:
    end = write(store, 3)
    before = len(storage.trace)
    log = log_of(store)
    for wanted in range(1, end + 1):
        log.wait_durable(wanted)

    assert 1 == len(syncs(storage, before))
    assert (end, end) == (log.slot[Slot.DURABLE_OFFSET], log.visible_offset)


def test_segments_that_were_sealed_meanwhile_are_synced_too(
    store: Store, storage: MemoryStorage
) -> None:
    write(store, 12)
    assert len(store.segments("t", 0)) > 3
    before = len(storage.trace)
    log_of(store).wait_durable(12)

    assert [f"topics/t/0/{info.base_offset:020d}.segment" for info in store.segments("t", 0)] == (
        syncs(storage, before)
    )
    abandon(store)
    with open_quietly(storage.crash(keep="none")) as again:
        assert 12 == again.offsets("t")[0].end


def test_a_sync_of_another_process_serves_as_well(store: Store, storage: MemoryStorage) -> None:
    write(store)
    with open_quietly(storage) as other:
        log_of(other).wait_durable(1)
        before = len(storage.trace)
        log_of(store).wait_durable(1)
        assert [] == syncs(storage, before)


def test_a_segment_that_cannot_be_opened_poisons_nothing(store: Store) -> None:
    write(store, 2)
    log = log_of(store)
    log._group_commit.reopen()
    real, log._group_commit._storage = log._group_commit._storage, NoDescriptors()  # type: ignore[assignment]  # opens nothing
    with pytest.raises(StorageError, match="too many"):
        log.wait_durable(2)
    log._group_commit._storage = real

    log.wait_durable(2)
    assert 2 == log.visible_offset


class NoDescriptors:
    """A storage that can open no more files."""

    def open(self, path: str, mode: str) -> object:
        raise StorageError("too many open files", errno=errno.EMFILE, path=path)


def test_a_segment_that_retention_removed_needs_no_sync(
    store: Store, storage: MemoryStorage
) -> None:
    write(store, 12)
    store._engine.acknowledge([(log_of(store), 12)], "os")
    log = log_of(store)
    bases = list(log.files.bases())
    store.trim("t", {0: 11})
    log._group_commit._bases = lambda: bases  # as listed before the trim
    log.wait_durable(12)

    assert 12 == log.slot[Slot.DURABLE_OFFSET]


@pytest.mark.parametrize("synced", [True, False])
def test_a_segment_that_was_synced_and_compacted_meanwhile_needs_no_sync(
    store: Store, storage: MemoryStorage, synced: bool
) -> None:
    """Another process has done both since this one looked what there is to sync."""
    write(store, 12)
    log = log_of(store)
    bases = list(log.files.bases())
    missing = segment_path(log.directory, bases[1])

    def listed() -> list[int]:
        if synced:
            with open_quietly(storage) as other:
                log_of(other).wait_durable(12)
        storage.remove(missing)
        return bases

    log._group_commit._bases = listed
    if synced:
        log.wait_durable(12)
        assert 12 == log.slot[Slot.DURABLE_OFFSET]
    else:
        with pytest.raises(StorageError, match="does not exist") as caught:
            log.wait_durable(12)
        assert missing == caught.value.path


def test_threads_share_syncs(store: Store, storage: MemoryStorage) -> None:
    before = len(storage.trace)
    calls, threads = 50, 8

    def work() -> None:
        for _ in range(calls):
            store.append_many("t", [b"x"])

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT)
        assert not worker.is_alive()

    assert len(syncs(storage, before)) <= calls * threads + 2 * len(store.segments("t", 0))
    assert calls * threads == store.offsets("t")[0].end


def test_a_failure_reaches_everybody_and_what_was_durable_stays(
    store: Store, storage: MemoryStorage
) -> None:
    log = log_of(store)
    log.wait_durable(write(store))
    end = write(store)
    storage.faults = FaultPlan(fail={("sync", 0): errno.EIO})
    storage.machine._counts.clear()
    for _ in range(2):
        with pytest.raises(PoisonedError) as caught:
            log.wait_durable(end)
        assert ("t", 0, 1) == (caught.value.topic, caught.value.partition, caught.value.offset)
    log.wait_durable(1)
    assert 1 == log.visible_offset
