"""Segment files: names, creation, walking their headers."""

from __future__ import annotations

import contextlib
import errno

import pytest

from millstream.batch import BatchPlacement, buffers, encode_batch, seal
from millstream.errors import CorruptBatchError, CorruptSegmentError, StorageError
from millstream.format import SEGMENT_HEADER_BYTES, SegmentHeader
from millstream.segment import (
    base_offset_of,
    create_segment,
    read_segment_header,
    scan_headers,
    segment_path,
)
from millstream.testing import FaultPlan, MemoryStorage

UID = 77


def header(base: int = 5) -> SegmentHeader:
    return SegmentHeader(bytes(16), UID, 1, base, 0)


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    storage.make_directory("p")
    return storage


def batch(offset: int, values: int = 1, size: int = 10) -> bytes:
    encoded = encode_batch([b"x" * size] * values)
    placement = BatchPlacement(UID, 1, offset, 0, 0, 0, 1, 0, 0)
    return b"".join(buffers(encoded, seal(encoded, placement)[0]))


def write(storage: MemoryStorage, content: bytes) -> None:
    with contextlib.closing(storage.open(segment_path("p", 5), "rw")) as file:
        file.write([content], SEGMENT_HEADER_BYTES)


def scan(storage: MemoryStorage, *, start: int = SEGMENT_HEADER_BYTES) -> list[tuple[int, int]]:
    with contextlib.closing(storage.open(segment_path("p", 5), "r")) as file:
        found = scan_headers(file, start, file.size(), UID)
        return [(position, each.base_offset) for position, each in found]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("00000000000000000007.segment", 7),
        ("99999999999999999999.segment", 10**20 - 1),
        ("0000000000000000007.segment", None),
        ("000000000000000000007.segment", None),
        ("+0000000000000000007.segment", None),
        ("\u0661" * 20 + ".segment", None),
        ("00000000000000000007.index", None),
        ("00000000000000000007.segment.tmp", None),
        (".segment", None),
        ("quarantine", None),
    ],
)
def test_only_names_of_twenty_digits_are_segments(name: str, base: int | None) -> None:
    assert base == base_offset_of(name)


def test_a_created_segment_is_durable(storage: MemoryStorage) -> None:
    create_segment(storage, "p", header())

    after = storage.crash(keep="none")
    assert header() == read_segment_header(after, "p", 5)._replace(header_hash=0)
    assert ["00000000000000000005.segment"] == after.list("p")


@pytest.mark.parametrize("operation", range(5))
def test_a_segment_that_cannot_be_created_leaves_no_half(
    storage: MemoryStorage, operation: int
) -> None:
    storage.faults = FaultPlan(fail={len(storage.trace) + operation: errno.EIO})
    with pytest.raises(StorageError):
        create_segment(storage, "p", header())
    for name in storage.list("p"):
        assert base_offset_of(name) is None or read_segment_header(storage, "p", 5)

    storage.faults.clear()
    with contextlib.suppress(StorageError):
        storage.remove(segment_path("p", 5))
    create_segment(storage, "p", header())
    assert ["00000000000000000005.segment"] == storage.list("p")


def test_a_header_under_the_wrong_name_is_refused(storage: MemoryStorage) -> None:
    create_segment(storage, "p", header())
    storage.rename(segment_path("p", 5), segment_path("p", 6))

    with pytest.raises(CorruptSegmentError, match="says base offset 5") as caught:
        read_segment_header(storage, "p", 6)
    assert segment_path("p", 6) == caught.value.path


def test_headers_are_walked_without_their_bodies(storage: MemoryStorage) -> None:
    create_segment(storage, "p", header())
    first, second = batch(5, 3, size=100_000), batch(8)
    write(storage, first + second)

    where = SEGMENT_HEADER_BYTES + len(first)
    assert [(SEGMENT_HEADER_BYTES, 5), (where, 8)] == scan(storage)
    assert [(where, 8)] == scan(storage, start=where)


@pytest.mark.parametrize("zeros", [0, 1, 64, 191, 192, 100_000])
def test_the_walk_ends_where_zeros_begin(storage: MemoryStorage, zeros: int) -> None:
    create_segment(storage, "p", header())
    write(storage, batch(5) + bytes(zeros))

    assert [5] == [offset for _, offset in scan(storage)]


@pytest.mark.parametrize("rest", [b"x", b"x" * 191, b"x" * 500, bytes(100) + b"x" * 100])
def test_the_walk_stops_at_other_bytes(storage: MemoryStorage, rest: bytes) -> None:
    create_segment(storage, "p", header())
    whole = batch(5)
    write(storage, whole + rest)

    with pytest.raises(CorruptBatchError) as caught:
        scan(storage)
    assert SEGMENT_HEADER_BYTES + len(whole) == caught.value.position
