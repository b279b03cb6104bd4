"""The sparse index: where to start reading, and never trusted when it is not whole and its own."""

from __future__ import annotations

import random

import pytest
from xxhash import xxh3_64_intdigest

from millstream.errors import CorruptBatchError
from millstream.format import NO_TIMESTAMP, SEGMENT_HEADER_BYTES
from millstream.index import INDEX_INTERVAL_BYTES, SparseIndex

UID = 0x0123_4567_89AB_CDEF


def filled(count: int = 10) -> SparseIndex:
    """Batches of 10 offsets and 4096 bytes; timestamps 0, 100, 200, ..."""
    index = SparseIndex()
    for number in range(count):
        index.append(10 * number, 128 + 4096 * number, 100 * number)
    return index


def rehashed(content: bytes) -> bytes:
    return content[:-8] + xxh3_64_intdigest(content[:-8], UID).to_bytes(8, "little")


# --- searching -----------------------------------------------------------------------------------


def test_empty_index_starts_at_the_first_batch() -> None:
    index = SparseIndex()

    assert index.find_offset(5) == SEGMENT_HEADER_BYTES
    assert index.find_timestamp(5) is None
    assert index.running_max_timestamp_ms == NO_TIMESTAMP


def test_offset_is_found_at_or_before() -> None:
    index = filled()

    assert index.find_offset(0) == 128
    assert index.find_offset(9) == 128
    assert index.find_offset(10) == 128 + 4096
    assert index.find_offset(95) == index.find_offset(1 << 62) == 128 + 9 * 4096


def test_offset_before_the_first_entry_starts_at_the_first_batch() -> None:
    index = SparseIndex()
    index.append(500, 128, 0)

    assert index.find_offset(3) == SEGMENT_HEADER_BYTES


def test_timestamp_is_found_in_the_first_range_that_reaches_it() -> None:
    index = filled()

    assert index.find_timestamp(-5) == 128
    assert index.find_timestamp(100) == 128 + 4096
    assert index.find_timestamp(101) == 128 + 2 * 4096
    assert index.find_timestamp(900) == 128 + 9 * 4096
    assert index.find_timestamp(901) is None


def test_entries_are_at_least_an_interval_apart() -> None:
    index = SparseIndex()
    for number in range(1000):
        index.append(number, 128 + 256 * number, number)

    assert len(index) == 1000 * 256 // INDEX_INTERVAL_BYTES + 1
    assert index.find_offset(15) == 128
    assert index.find_offset(16) == 128 + 4096


def test_search_in_a_sparse_index_never_starts_behind_the_answer() -> None:
    rng = random.Random(11)
    index = SparseIndex()
    batches = []
    position, offset, highest = 128, 0, NO_TIMESTAMP
    for _ in range(500):
        highest = max(highest, rng.randrange(1000))
        batches.append((offset, position, highest))
        index.append(offset, position, highest)
        position += 64 * rng.randrange(4, 120)
        offset += rng.randrange(1, 9)

    for wanted in range(offset):
        exact = max(at for base, at, _ in batches if base <= wanted)
        assert exact - INDEX_INTERVAL_BYTES < index.find_offset(wanted) <= exact
    for timestamp in range(1000):
        first = [at for _, at, reached in batches if reached >= timestamp]
        found = index.find_timestamp(timestamp)
        if first:
            assert found is not None
            assert first[0] - INDEX_INTERVAL_BYTES < found <= first[0]
        else:
            assert found is None


def test_running_maximum_never_falls() -> None:
    index = SparseIndex()
    index.append(0, 128, 50)
    index.append(1, 128 + 4096, 20)

    assert index.running_max_timestamp_ms == 50
    assert index.find_timestamp(21) == 128


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 10])
def test_index_file_is_read_back(count: int) -> None:
    content = filled(count).encode(UID, 128 + 4096 * count)

    index = SparseIndex.decode(content, UID)

    assert len(content) == 72 + 24 * count
    assert index.end_position == 128 + 4096 * count
    assert len(index) == count
    assert index.encode(UID, index.end_position) == content
    for wanted in range(-1, 120):
        assert index.find_offset(wanted) == filled(count).find_offset(wanted)
        assert index.find_timestamp(10 * wanted) == filled(count).find_timestamp(10 * wanted)


def test_every_flipped_bit_of_an_index_is_found() -> None:
    content = filled(3).encode(UID, 20_000)
    for bit in range(len(content) * 8):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatchError):
            SparseIndex.decode(broken, UID)


def test_cut_grown_empty_and_random_indexes_are_refused() -> None:
    content = filled(3).encode(UID, 20_000)
    broken = [content[:length] for length in range(len(content))]
    broken += [content + bytes(1), content + bytes(24), content + content, bytes(4096)]
    broken += [random.Random(size).randbytes(size) for size in range(200)]

    for wrong in broken:
        with pytest.raises(CorruptBatchError):
            SparseIndex.decode(wrong, UID)


def test_index_of_another_segment_is_refused() -> None:
    content = filled().encode(UID + 1, 50_000)

    with pytest.raises(CorruptBatchError, match="another segment"):
        SparseIndex.decode(content, UID)
    with pytest.raises(CorruptBatchError, match="not of this version or segment"):
        SparseIndex.decode(rehashed(content), UID)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (8, 2),  # version
        (12, 16),  # entry size
        (24, 9),  # count
        (32, 128 + 2 * 4096),  # ends before its last entry
        (40, 201),  # running maximum
        (48, 1),  # reserved
        (64, 10),  # first offset not below the second
        (64 + 24, 20),  # second offset not below the third
        (64 + 8, 64),  # before the first batch
        (64 + 8, 129),  # not aligned
        (64 + 8, 128 + 4096),  # not below the second
        (64 + 16, 101),  # maximum falls
        (64 + 48, 1 << 63),  # offset over the limit
    ],
)
def test_index_that_makes_no_sense_is_refused_although_its_hash_is_right(
    position: int, value: int
) -> None:
    content = bytearray(filled(3).encode(UID, 20_000))
    width = 4 if position in {8, 12} else 8
    content[position : position + width] = value.to_bytes(width, "little")

    with pytest.raises(CorruptBatchError):
        SparseIndex.decode(rehashed(bytes(content)), UID)
