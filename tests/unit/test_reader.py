"""Reading: what is visible, in which order, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from simulated_stores import log_of, open_quietly

from millstream import CorruptBatchError, LogReader, Store, TopicPartition
from millstream.batch import encode_batch
from millstream.memory_file import MemoryFile
from millstream.partition_cursor import CHUNK_BYTES
from millstream.tail import Slot
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


def test_a_batch_that_waits_for_its_sync_holds_back_only_what_follows_it(store: Store) -> None:
    store.create_topic("u", partitions=2)
    engine = store._engine
    first, second = engine.log("u", 0), engine.log("u", 1)
    store.append("u", b"1", partition=1)
    engine.append([(first, encode_batch([b"2"]))])
    store.append("u", b"3", partition=1)

    with store.reader({TopicPartition("u", number): 0 for number in range(2)}) as reader:
        assert [b"1"] == values(reader)
        assert [] == values(reader)
        engine.acknowledge([(first, 1)])
        assert [b"2", b"3"] == values(reader)
        assert (1, 2) == (first.visible_offset, second.visible_offset)


def test_large_batches_are_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        store.append_many("t", [b"%06d" % number * 100] * 1_000)
    lengths: list[int] = []
    read = MemoryFile.read

    def counted(file: MemoryFile, length: int, position: int) -> bytes:
        data = read(file, length, position)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(MemoryFile, "read", counted)
    with store.reader({T0: 0}) as reader:
        batches = reader.poll(max_bytes=1 << 30)

    assert [b"%06d" % number * 100 for number in range(5)] == [each.values[7] for each in batches]
    # The first chunk holds one whole batch; of each other the header comes with the one before.
    rest = sum(each.header.total_bytes for each in batches[1:])
    assert sum(lengths) <= CHUNK_BYTES + rest + 10_000


@pytest.mark.parametrize("isolation", ["committed", "uncommitted"])
def test_the_records_before_damage_come_before_the_error(store: Store, isolation: str) -> None:
    for value in (b"1", b"2", b"3"):
        store.append("t", value)
    log = log_of(store)
    file, _ = log.files.open(0)
    file.close()
    file = log._c.storage.open(file.path, "rw")
    file.write([b"x"], log.slot[Slot.END_POSITION] - 256)
    file.close()

    with store.reader({T0: 0}, isolation=isolation) as reader:
        assert [b"1", b"2"] == values(reader)
        for _ in range(2):
            with pytest.raises(CorruptBatchError) as caught:
                reader.poll()
            assert 2 == caught.value.offset
        reader.seek(T0, 3)
        assert [] == values(reader)
        store.append("t", b"4")
        assert [b"4"] == values(reader)
