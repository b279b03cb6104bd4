"""Indexes over damage, indexes that are too large, and words that change while they are read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from simulated_stores import START_MS, log_of, open_quietly

from millstream import CorruptBatchError, Store
from millstream.format import SEGMENT_HEADER_BYTES
from millstream.index import SparseIndex, index_bytes_max
from millstream.segment_list import SegmentList
from millstream.storage import PosixStorage, Storage
from millstream.tail import Slot
from millstream.testing import ManualClock, MemoryStorage

STEP_MS = 1000


def filled(storage: Storage, batches: int = 40) -> Store:
    """A record a second, two segments at least."""
    store = open_quietly(storage, ManualClock(START_MS))
    store.create_topic("t", segment_bytes="16KiB")
    for number in range(batches):
        store.append("t", b"x" * 900, timestamp_ms=START_MS + number * STEP_MS)
    return store


def without_indexes(storage: MemoryStorage) -> None:
    for name in storage.list("topics/t/0"):
        if name.endswith(".index"):
            storage.remove(f"topics/t/0/{name}")


def at(number: int) -> str:
    return f"@{START_MS + number * STEP_MS}"


@pytest.mark.parametrize("damage", [b"\xff" * 64, bytes(192)], ids=["garbage", "zeros"])
@pytest.mark.parametrize("where", ["sealed", "active"])
def test_a_time_that_may_lie_behind_damage_is_an_error_and_no_later_place(
    where: str, damage: bytes
) -> None:
    storage = MemoryStorage()
    with filled(storage) as store:
        bases = log_of(store).files.bases()
        assert len(bases) > 2
        base = bases[-1] if where == "active" else bases[0]
        # Each batch is a header and a body of the same size: the third one of the segment.
        path = f"topics/t/0/{base:020d}.segment"
        size = (storage.size(path) if where == "sealed" else 0) or 1152 * 3
        position = SEGMENT_HEADER_BYTES + 2 * 1152
        assert position < size
        storage.open(path, "rw").write([damage], position)
        without_indexes(storage)
        with open_quietly(storage) as other:
            assert base + 1 == other.offset_at("t", 0, at(base + 1))
            for number in (base + 2, base + 3):
                with pytest.raises(CorruptBatchError) as caught:
                    other.offset_at("t", 0, at(number))
                error = caught.value
                assert ("t", 0, path) == (error.topic, error.partition, error.path)
                assert position == error.position
            if where == "sealed":
                assert bases[1] + 2 == other.offset_at("t", 0, at(bases[1] + 2)), "known by headers"


def test_what_a_crash_left_behind_a_sealed_segment_is_no_damage() -> None:
    storage = MemoryStorage()
    with filled(storage) as store:
        bases = log_of(store).files.bases()
        path = f"topics/t/0/{bases[0]:020d}.segment"
        storage.open(path, "rw").write([b"half a batch" * 20], storage.size(path))
        without_indexes(storage)
        with open_quietly(storage) as other:
            for number in range(40):
                assert number == other.offset_at("t", 0, at(number))
            assert 40 == other.offset_at("t", 0, at(40))
            assert f"{bases[0]:020d}.index" in storage.list("topics/t/0"), "it was rebuilt"


def test_an_index_file_larger_than_an_index_can_be_is_not_read(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path)
    with filled(storage) as store:
        base = log_of(store).files.bases()[0]
        path = f"topics/t/0/{base:020d}.index"
        whole = storage.size(path)
        limit = index_bytes_max(storage.size(path.replace("index", "segment")))
        assert whole <= limit < 2 * whole
        file = storage.open(path, "rw")
        file.truncate(1 << 40)  # sparse, and more than there is memory for
        file.close()
        with open_quietly(storage) as other:
            assert 3 == other.offset_at("t", 0, at(3))
            assert whole == storage.size(path), "it was rebuilt"


def test_no_index_is_larger_than_it_can_be() -> None:
    index = SparseIndex()
    for number in range(100):
        index.append(number, 128 + 4096 * number, number)
        end = 128 + 4096 * number + 256
        assert len(index.encode(7, end)) <= index_bytes_max(end)


class Changing:
    """Tail words that another process changes between any two reads."""

    def __init__(self, states: Sequence[dict[int, int]]) -> None:
        self.states = list(states)

    def __getitem__(self, word: int) -> int:
        return self.states.pop(0)[word]


def states_of_a_roll() -> list[dict[int, int]]:
    """The words one after another, in the order in which they are written."""
    words = {Slot.ACTIVE_BASE: 0, Slot.END_POSITION: 5000, Slot.LOG_END: 10}
    states = [dict(words)]
    for word, value in (
        (Slot.ACTIVE_BASE, 10),
        (Slot.END_POSITION, SEGMENT_HEADER_BYTES),
        (Slot.LOG_END, 10),
        (Slot.END_POSITION, 1000),
        (Slot.LOG_END, 11),
        (Slot.ACTIVE_BASE, 11),
        (Slot.END_POSITION, SEGMENT_HEADER_BYTES),
        (Slot.LOG_END, 11),
    ):
        words[word] = value
        states.append(dict(words))
    return states


def test_the_end_of_a_segment_is_never_that_of_another_whenever_a_roll_comes() -> None:
    # The data of segment 10 ends there at some time; an end is never beyond what was written.
    ends = {0: {5000, None}, 10: {SEGMENT_HEADER_BYTES, 1000, None}}
    states = states_of_a_roll()
    for base, allowed in ends.items():
        for moments in itertools.combinations_with_replacement(states, 4):
            words = Changing(moments)
            files = SegmentList(MemoryStorage(), "t", lambda words=words: words)  # type: ignore[misc, return-value]
            assert files.active_end(base) in allowed
