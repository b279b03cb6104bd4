"""A sparse index of one segment: offset or timestamp to byte position. Pure.

Derived data. It says where to start looking, never what is there: a lost or damaged index costs a
scan of batch headers, not an answer. The active segment's index lives in memory; a sealed one is
also a file (docs/log-format.md, "Index file").

One thread may append while others search: entries become visible last column first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from .errors import CorruptBatchError
from .format import ALIGNMENT_BYTES, NO_TIMESTAMP, OFFSET_MAX, SEGMENT_HEADER_BYTES, Buffer

INDEX_MAGIC: Final = b"\x93MSI\r\n\x1a\n"
INDEX_VERSION: Final = 1
INDEX_INTERVAL_BYTES: Final = 4096
"""At most one entry per this many bytes of segment; a search scans no more than that."""

_HEADER: Final = Struct("<8sIIQQQq16s")
_ENTRY_BYTES: Final = 24
_RESERVED: Final = bytes(16)
_HASH_BYTES: Final = 8


def index_bytes_max(segment_bytes: int) -> int:
    """How long the index file of a segment of that size can be.

    >>> index_bytes_max(0)
    96
    """
    entries = segment_bytes // INDEX_INTERVAL_BYTES + 1
    return _HEADER.size + _ENTRY_BYTES * entries + _HASH_BYTES


class SparseIndex:
    """Entries (base offset, position, running maximum timestamp), one per 4 KiB or more.

    An entry stands for the batches from its position up to the next entry's; its timestamp is the
    running maximum at the end of that range.

    >>> index = SparseIndex()
    >>> index.append(0, 128, 50)
    >>> index.append(10, 8320, 90)
    >>> index.find_offset(9), index.find_offset(10), index.find_timestamp(60)
    (128, 8320, 8320)
    """

    __slots__ = ("_maxima", "_offsets", "_positions", "damaged_at", "end_position")

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._positions = array("Q")
        self._maxima = array("q")
        self.end_position = 0
        """Size of the segment a decoded index was written for; 0 for one in memory."""
        self.damaged_at: int | None = None
        """Position of damage, behind which nothing could be indexed; None if there is none."""

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def running_max_timestamp_ms(self) -> int:
        """Running maximum after the last batch appended, or NO_TIMESTAMP."""
        return self._maxima[-1] if self._maxima else NO_TIMESTAMP

    def append(self, base_offset: int, position: int, max_timestamp_ms_so_far: int) -> None:
        """Note a batch, in log order. O(1).

        Args:
            base_offset: First offset of the batch.
            position: Where its header starts in the segment.
            max_timestamp_ms_so_far: Running maximum timestamp, this batch included.
        """
        maxima = self._maxima
        if maxima:
            max_timestamp_ms_so_far = max(max_timestamp_ms_so_far, maxima[-1])
            if position - self._positions[-1] < INDEX_INTERVAL_BYTES:
                maxima[-1] = max_timestamp_ms_so_far
                return
        self._positions.append(position)
        maxima.append(max_timestamp_ms_so_far)
        self._offsets.append(base_offset)

    def find_offset(self, offset: int) -> int:
        """Position to scan from for `offset`: the greatest entry at or before it. O(log n)."""
        found = bisect_right(self._offsets, offset)
        return self._positions[found - 1] if found else SEGMENT_HEADER_BYTES

    def find_timestamp(self, timestamp_ms: int) -> int | None:
        """Position to scan from for the first record at or after `timestamp_ms`. O(log n).

        None when no record so far has reached it. Where that cannot be told, because of damage,
        the damage is the place: whoever reads on there gets the error.
        """
        found = bisect_left(self._maxima, timestamp_ms)
        return self._positions[found] if found < len(self._positions) else self.damaged_at

    def encode(self, segment_uid: int, end_position: int) -> bytes:
        """The index file for a sealed segment of `end_position` bytes."""
        count = len(self._offsets)
        entries = array("Q", bytes(_ENTRY_BYTES * count))
        entries[0::3] = self._offsets[:count]
        entries[1::3] = self._positions[:count]
        entries[2::3] = array("Q", self._maxima[:count].tobytes())
        header = _HEADER.pack(
            INDEX_MAGIC,
            INDEX_VERSION,
            _ENTRY_BYTES,
            segment_uid,
            count,
            end_position,
            self.running_max_timestamp_ms,
            _RESERVED,
        )
        content = header + entries.tobytes()
        return content + xxh3_64_intdigest(content, segment_uid).to_bytes(_HASH_BYTES, "little")

    @classmethod
    def decode(cls, buffer: Buffer, segment_uid: int) -> SparseIndex:
        """Read an index file back.

        Raises:
            CorruptBatchError: Not a whole, intact index of this segment. Rebuild it from the
                segment's batch headers; nothing is lost.
        """
        size = len(buffer) - _HEADER.size - _HASH_BYTES
        if size < 0 or size % _ENTRY_BYTES:
            raise CorruptBatchError(f"index of {len(buffer)} bytes is cut or overlong")
        content = buffer[:-_HASH_BYTES]
        stored = int.from_bytes(buffer[-_HASH_BYTES:], "little")
        if xxh3_64_intdigest(content, segment_uid) != stored:
            raise CorruptBatchError("index fails its checksum or belongs to another segment")
        magic, version, entry_bytes, uid, count, end, maximum, reserved = _HEADER.unpack_from(
            content
        )
        expected = (INDEX_MAGIC, INDEX_VERSION, _ENTRY_BYTES, segment_uid, size // _ENTRY_BYTES)
        if (magic, version, entry_bytes, uid, count) != expected or reserved != _RESERVED:
            raise CorruptBatchError("index header is not of this version or segment")
        entries = array("Q", bytes(content[_HEADER.size :]))
        index = cls()
        index._offsets = entries[0::3]
        index._positions = entries[1::3]
        index._maxima = array("q", entries[2::3].tobytes())
        index.end_position = end
        if index.running_max_timestamp_ms != maximum or not index._plausible():
            raise CorruptBatchError("index entries do not rise within the segment")
        return index

    def _plausible(self) -> bool:
        """Whether offsets and positions rise, and everything lies in the segment."""
        offsets, positions = self._offsets.tolist(), self._positions.tolist()
        maxima = self._maxima.tolist()
        if not offsets:
            return True
        return (
            sorted(set(offsets)) == offsets
            and offsets[-1] <= OFFSET_MAX
            and sorted(set(positions)) == positions
            and positions[0] >= SEGMENT_HEADER_BYTES
            and positions[-1] < self.end_position
            and not any(position % ALIGNMENT_BYTES for position in positions)
            and sorted(maxima) == maxima
        )
