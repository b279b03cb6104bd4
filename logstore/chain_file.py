"""What the headers of many sealed segments say, in one file: an opening need not read them all.

Derived data: if it is missing, damaged, or not of exactly the segments that are there, all headers
are read. It covers sealed, durable segments only, whose links were checked when they were new, and
a compaction removes it before the first of them becomes another. When it is written is decided in
`segment_list.py`; bytes are specified in docs/log-format.md, "Chain file".
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import repeat
from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .errors import DataError, StorageError
from .format import Buffer
from .retention import SegmentInfo
from .segment import TEMPORARY_SUFFIX, read_segment_header
from .storage import Storage

CHAIN_NAME: Final = "segments.chain"
CHAIN_MAGIC: Final = b"\x93MSC\r\n\x1a\n"
CHAIN_VERSION: Final = 1
CHAIN_BYTES_MAX: Final = 1 << 28
"""Eleven million segments; a longer file is not read."""

_HEADER: Final = Struct("<8sIIQQ32s")
_ENTRY_BYTES: Final = 24
_RESERVED: Final = bytes(32)
_HASH_BYTES: Final = 8


class _Columns(NamedTuple):
    """One entry per segment."""

    partition_uid: int
    bases: list[int]
    sizes: list[int]
    created_ms: list[int]


def chain_path(directory: str) -> str:
    """Path of the chain file of a partition."""
    return f"{directory}/{CHAIN_NAME}"


def known_segments(storage: Storage, directory: str, bases: Sequence[int]) -> list[SegmentInfo]:
    """Those of the first segments whose headers need not be read; empty if there are none.

    The file vouches for the segment behind them, too, whose header is compared.

    Args:
        storage: Where the partition is.
        directory: Its directory.
        bases: Base offsets of all segments that are there, rising.
    """
    columns = _load(storage, directory)
    if columns is None or not bases:
        return []
    first = bisect_left(columns.bases, bases[0])  # retention removes from the front
    starts, sizes = columns.bases[first:], columns.sizes[first:]
    created = columns.created_ms[first:]
    count = len(starts)
    if count < 2 or len(bases) <= count or bases[:count] != starts:
        return []
    try:
        border = read_segment_header(storage, directory, starts[-1])
    except (DataError, StorageError):
        return []  # whoever reads all headers gets the error
    if (border.partition_uid, border.created_ms) != (columns.partition_uid, created[-1]):
        return []
    rows = zip(starts, starts[1:], sizes, created[1:], created, repeat(True), strict=False)
    return list(map(SegmentInfo._make, rows))


def write_chain(
    storage: Storage, directory: str, partition_uid: int, sealed: Sequence[SegmentInfo]
) -> None:
    """Write atomically but unsynced: after a crash it is whole, old or rejected by its hash."""
    entries = array("q", bytes(_ENTRY_BYTES * len(sealed)))
    entries[0::3] = array("q", [info.base_offset for info in sealed])
    entries[1::3] = array("q", [info.size_bytes for info in sealed])
    entries[2::3] = array("q", [info.created_ms for info in sealed])
    header = _HEADER.pack(
        CHAIN_MAGIC, CHAIN_VERSION, _ENTRY_BYTES, partition_uid, len(sealed), _RESERVED
    )
    content = header + entries.tobytes()
    content += xxh3_64_intdigest(content).to_bytes(_HASH_BYTES, "little")
    path = chain_path(directory)
    temporary = path + TEMPORARY_SUFFIX
    try:
        storage.remove(temporary)
        file = storage.open(temporary, "x")
        try:
            file.write([content], 0)
        finally:
            file.close()
        storage.rename(temporary, path)
    except StorageError:
        storage.remove(temporary)  # a full disk: the headers are read, as without it


def forget_chain(storage: Storage, directory: str) -> None:
    """Remove the file, for good, because segments are going to become others."""
    if storage.exists(chain_path(directory)):
        storage.remove(chain_path(directory))
        storage.sync_directory(directory)


def _load(storage: Storage, directory: str) -> _Columns | None:
    path = chain_path(directory)
    if not storage.exists(path):
        return None
    try:
        file = storage.open(path, "r")
        try:
            size = file.size()
            return _decode(file.read(size, 0)) if size <= CHAIN_BYTES_MAX else None
        finally:
            file.close()
    except StorageError:
        return None  # derived data: all headers are read


def _decode(content: Buffer) -> _Columns | None:
    """The columns; None if this is not a whole, intact file of this version."""
    size = len(content) - _HEADER.size - _HASH_BYTES
    if size < 0 or size % _ENTRY_BYTES:
        return None
    stored = int.from_bytes(content[-_HASH_BYTES:], "little")
    if xxh3_64_intdigest(content[:-_HASH_BYTES]) != stored:
        return None
    magic, version, entry_bytes, partition_uid, count, reserved = _HEADER.unpack_from(content)
    expected = (CHAIN_MAGIC, CHAIN_VERSION, _ENTRY_BYTES, size // _ENTRY_BYTES, _RESERVED)
    if (magic, version, entry_bytes, count, reserved) != expected:
        return None
    entries = array("q", bytes(content[_HEADER.size : -_HASH_BYTES]))
    bases, sizes, created_ms = (entries[start::3].tolist() for start in range(3))
    return _Columns(partition_uid, bases, sizes, created_ms)
