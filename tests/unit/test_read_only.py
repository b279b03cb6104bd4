"""A store opened read-only: beside live writers, after them, and after a power failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_stores import kill, log_of, open_quietly

import millstream
from millstream import Store, storage as storage_module
from millstream.batch import encode_batch
from millstream.errors import CorruptBatchError
from millstream.storage import PosixStorage
from millstream.tail import Slot
from millstream.testing import MemoryStorage


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def look(storage: MemoryStorage) -> Store:
    return open_quietly(storage.read_only_view(), read_only=True)


def test_what_retention_would_remove_can_be_asked() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t", retention_bytes=1)
        store.append("t", b"a")
        store.roll("t", 0)
        store.append("t", b"b")
        with look(storage) as onlooker:
            (gone,) = onlooker.apply_retention(dry_run=True).removed

    assert 0 == gone[1].base_offset


def test_a_partition_that_was_never_opened_is_empty() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("many", partitions=300)
        store.create_topic("t", retention_bytes=1)
        with look(storage) as onlooker:
            assert [] == values(onlooker)
            assert [] == onlooker.apply_retention(dry_run=True).removed
            reader = onlooker.reader({millstream.TopicPartition("t", 0): 0})

            store.append("t", b"a")

            assert [b"a"] == [r.value for batch in reader.poll() for r in batch.records()]
            assert [b"a"] == values(onlooker)


def test_words_from_before_a_restart_of_the_machine_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words may have reached the disk, the records they speak of not."""
    with open_quietly(PosixStorage(tmp_path), durability="os") as store:
        store.create_topic("t")
        store.append("t", b"synced", durability="sync")
        log_of(store).zero_fill()
        position = log_of(store).slot[Slot.END_POSITION]
        store.append("t", b"not")
        (segment,) = tmp_path.glob("topics/t/0/*.segment")
        with segment.open("r+b") as file:
            file.seek(position)
            file.write(bytes(256))
        monkeypatch.setattr(storage_module, "boot_identity", lambda: 7)

        with millstream.open(tmp_path, read_only=True) as onlooker:
            assert [b"synced"] == values(onlooker)


def test_damage_below_the_durable_watermark_is_an_error_here_too() -> None:
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"value")
    slot = log_of(store).slot
    file = storage.open("topics/t/0/00000000000000000000.segment", "rw")
    file.write([bytes(64)], slot[Slot.END_POSITION] - 64)
    slot[Slot.GENERATION] = 0  # as the next writer finds it before its recovery
    kill(store)

    with look(storage) as onlooker, pytest.raises(CorruptBatchError):
        values(onlooker)


def test_a_partition_that_is_recovered_while_it_is_examined_is_read_by_its_words() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.append("t", b"a")
        store.roll("t", 0)
        store.append("t", b"b")
        slot = log_of(store).slot
        generation, slot[Slot.GENERATION] = slot[Slot.GENERATION], 0
        view = storage.read_only_view()

        def trim_meanwhile(path: str) -> list[str]:
            if path == "topics/t/0" and slot[Slot.GENERATION] == 0:
                slot[Slot.GENERATION] = generation
                store.trim("t", {0: 1})
            return storage.list(path)

        view.list = trim_meanwhile  # type: ignore[method-assign]
        with open_quietly(view, read_only=True) as onlooker:
            assert [b"b"] == values(onlooker)


def test_batches_without_acknowledgement_are_not_shown() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
        store.append("t", b"a")
        store._engine.append([(log_of(store), encode_batch([b"b"]))])
        with look(storage) as onlooker:
            assert [b"a"] == values(onlooker)
