"""Whether the columns of a batch decode, without decoding them. Pure.

`check_columns` raises where reading every record of the batch would, and costs a few nanoseconds
per record instead of hundreds: a column of integers is read as one large number, whose lanes are
compared by one subtraction. What the columns are is in record_batch.py and columns.py.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack
from typing import Final

from .arrow_batch import section_columns
from .column_section import open_chunk, open_directory
from .columns import decode_bitmap, padded
from .compression import decompress
from .errors import CorruptBatchError, MissingExtraError
from .format import (
    COLUMNS,
    CONTROL,
    HAS_HEADERS,
    HAS_KEYS,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_DELTAS,
    TOMBSTONES,
    UNIFORM_TIMESTAMP,
    BatchHeader,
    Buffer,
)

_LANES_MAX: Final = 1 << 14
"""Entries compared at once; longer columns are compared in pieces that overlap by one."""
_TOP: Final = b"\x00\x00\x00\x80"
_ONE_WIDE: Final = b"\x01" + bytes(7)
_TOP_WIDE: Final = bytes(7) + b"\x80"


def check_columns(header: BatchHeader, body: Buffer) -> None:
    """Check that every record of a batch, whose hashes have been verified, can be read.

    Also that no timestamp lies outside of what the header says, by which searches skip batches.

    Raises:
        CorruptBatchError: A buffer runs past its section, lengths fall or disagree.
        FormatVersionError: The codec is unknown or not installed.
    """
    if header.flags & CONTROL:
        return
    sections = _sections(header, memoryview(body))
    rows = _check_leading(header, sections[0])
    if header.flags & HAS_HEADERS:
        _check_headers(sections[2], header.record_count)
    if header.flags & COLUMNS:
        _check_arrow(header, sections[1], rows)
        return
    nullable = bool(header.flags & NULL_VALUES)
    _require_end(sections[1], _binary_end(sections[1], 0, header.record_count, nullable))


def _check_arrow(header: BatchHeader, section: Buffer, rows: int) -> None:
    """A section of columns: that each chunk decompresses and, with pyarrow, makes sense."""
    directory_hash = header.sections[1].hash
    try:
        columns = section_columns(section, directory_hash, rows)
        for field in columns.schema:
            columns.column(field)
    except MissingExtraError:
        view = memoryview(section)
        for entry in open_directory(view, directory_hash).entries:
            open_chunk(entry, view[entry.position : entry.position + entry.stored_bytes])


def _sections(header: BatchHeader, body: memoryview) -> list[Buffer]:
    sections: list[Buffer] = []
    start = 0
    for number, (stored_bytes, raw_bytes, _) in enumerate(header.sections):
        stored = body[start : start + stored_bytes]
        start += stored_bytes
        columns = number == 1 and header.flags & COLUMNS  # each chunk is compressed by itself
        raw = stored_bytes == raw_bytes or columns
        sections.append(stored if raw else decompress(header.codec, stored, raw_bytes))
    return sections


def _check_leading(header: BatchHeader, section: Buffer) -> int:
    """Section A: timestamps, offset deltas, keys, tombstones; how many rows its columns have."""
    count, position = header.record_count, 0
    if not header.flags & UNIFORM_TIMESTAMP:
        end = 8 * count
        if end > len(section):
            raise CorruptBatchError("column runs past its section")
        if not _all_between(section[:end], header.min_timestamp_ms, header.max_timestamp_ms):
            raise CorruptBatchError("timestamps are not what the header of the batch says")
        position = end
    if header.flags & OFFSET_DELTAS:
        end = position + 4 * count
        if end > len(section):
            raise CorruptBatchError("column runs past its section")
        deltas = unpack(f"<{count}I", section[position:end])
        if sorted(set(deltas)) != list(deltas) or deltas[-1] > header.last_offset_delta:
            raise CorruptBatchError("offset deltas do not rise within the batch")
        position += padded(4 * count)
    if header.flags & HAS_KEYS:
        position = _binary_end(section, position, count, bool(header.flags & NULL_KEYS))
    if not header.flags & TOMBSTONES:
        _require_end(section, position)
        return count
    present = decode_bitmap(section, position, count)
    _require_end(section, position + padded(count + 7 >> 3))
    return present.count(1)


def _check_headers(section: Buffer, count: int) -> None:
    """Section C: how many headers each record has, their names, their values."""
    total, position = _offsets_end(section, 0, count)
    names, start = _offsets_end(section, position, total)
    _check_texts(section, position, start, total, names)
    end = _binary_end(section, position, total, nullable=False)
    _require_end(section, _binary_end(section, end, total, nullable=True))


def _check_texts(section: Buffer, offsets: int, start: int, count: int, length: int) -> None:
    if start + length > len(section):
        raise CorruptBatchError("column runs past its section")
    data = bytes(section[start : start + length])
    if data.isascii():
        return
    bounds = unpack(f"<{count + 1}i", section[offsets : offsets + 4 * (count + 1)])
    try:
        for index in range(count):
            str(data[bounds[index] : bounds[index + 1]], "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptBatchError("header name is not UTF-8") from error


def _binary_end(section: Buffer, position: int, count: int, nullable: bool) -> int:
    """Where the column of `count` entries at `position` ends."""
    total, start = _offsets_end(section, position, count)
    end = start + padded(total)
    if end > len(section):
        raise CorruptBatchError("column runs past its section")
    if nullable:
        end += padded(count + 7 >> 3)
        if end > len(section):
            raise CorruptBatchError("validity bitmap runs past its section")
    return end


def _offsets_end(section: Buffer, position: int, count: int) -> tuple[int, int]:
    """The last of the `count + 1` offsets at `position`, and where their buffer ends."""
    end = position + 4 * (count + 1)
    if end > len(section):
        raise CorruptBatchError("column offsets run past their section")
    column = section[position:end]
    if any(column[:4]):
        raise CorruptBatchError("column offsets do not start at zero")
    if not _never_falls(column, count + 1):
        raise CorruptBatchError("column offsets fall")
    return int.from_bytes(column[-4:], "little"), position + padded(4 * (count + 1))


def _require_end(section: Buffer, position: int) -> None:
    if position != len(section):
        raise CorruptBatchError(f"section of {len(section)} bytes ends at {position}")


def _never_falls(column: Buffer, count: int) -> bool:
    """Whether `count` int32 are all positive or zero, and each at least the one before.

    >>> _never_falls(bytes([1, 0, 0, 0, 2, 0, 0, 0]), 2)
    True
    >>> _never_falls(bytes([2, 0, 0, 0, 1, 0, 0, 0]), 2)
    False
    """
    for first in range(0, count, _LANES_MAX - 1):
        last = min(count, first + _LANES_MAX)
        lanes = int.from_bytes(column[4 * first : 4 * last], "little")
        top = _repeated(_TOP, last - first)
        if lanes & top:
            return False
        # Each lane becomes 2**31 + the next entry - this one, which borrows from no other lane;
        # the uppermost has no next entry and is left out.
        rises = ((lanes >> 32) | top) - lanes
        lower = _repeated(_TOP, last - first - 1)
        if rises & lower != lower:
            return False
    return True


def _all_between(column: Buffer, lowest: int, highest: int) -> bool:
    """Whether all int64 of `column` are in [lowest, highest].

    >>> _all_between((5).to_bytes(8, "little") + (7).to_bytes(8, "little"), 5, 7)
    True
    >>> _all_between((5).to_bytes(8, "little") + (8).to_bytes(8, "little"), 5, 7)
    False
    """
    count = len(column) // 8
    for first in range(0, count, _LANES_MAX):
        last = min(count, first + _LANES_MAX)
        piece = column[8 * first : 8 * last]
        if lowest < 0:  # before 1970: the sign is in the way of the other test
            entries = unpack(f"<{last - first}q", piece)
            if min(entries) < lowest or max(entries) > highest:
                return False
            continue
        # A lane below `lowest` borrows, which sets its own uppermost bit, and so does one above
        # `highest` in the second step; the first one of all is not changed by any other.
        one = _repeated(_ONE_WIDE, last - first)
        above = int.from_bytes(piece, "little") - one * lowest
        below = one * (highest - lowest) - above
        if above < 0 or below < 0 or (above | below) & _repeated(_TOP_WIDE, last - first):
            return False
    return True


@lru_cache(maxsize=64)
def _repeated(lane: bytes, count: int) -> int:
    return int.from_bytes(lane * count, "little")
