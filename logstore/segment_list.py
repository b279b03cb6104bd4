"""The segments of one partition as files: which there are, and where an offset or a time lies.

Follows what this and other processes roll and remove by the version word of the partition's slot.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

from .errors import OffsetOutOfRangeError
from .format import SEGMENT_HEADER_BYTES, BatchHeader, SegmentHeader
from .index import SparseIndex
from .retention import SegmentInfo
from .segment import base_offset_of, read_segment_header, scan_headers, segment_path
from .segment_index import IndexCache
from .storage import File, Storage
from .tail import Slot


class SegmentList:
    """Finds segments and positions in them. Thread-safe.

    Args:
        storage: Where the segments are.
        directory: Directory of the partition.
        slot: Gives its tail words, which a read-only handle may exchange.
    """

    def __init__(self, storage: Storage, directory: str, slot: Callable[[], Slot]) -> None:
        self.indexes = IndexCache(storage, directory)
        self._storage = storage
        self._directory = directory
        self._slot = slot
        self._guard = threading.Lock()
        self._version = 0
        self._bases: list[int] = []

    def bases(self) -> list[int]:
        """Base offsets of the segments, rising; the last one is active."""
        version = self._slot()[Slot.SEGMENTS_VERSION]
        if version != self._version:
            with self._guard:
                names = self._storage.list(self._directory)
                self._bases = sorted(
                    base for name in names if (base := base_offset_of(name)) is not None
                )
                self._version = version
        return self._bases

    def base_of(self, offset: int) -> int:
        """Base offset of the segment that holds `offset`.

        Raises:
            OffsetOutOfRangeError: Retention has removed it.
        """
        bases = self.bases()
        number = bisect_right(bases, offset) - 1
        start = self._slot()[Slot.START_OFFSET]
        if number < 0 or offset < start:
            raise OffsetOutOfRangeError(
                f"offset {offset} was removed by retention; the log starts at {start}",
                offset=offset,
                path=self._directory,
            )
        return bases[number]

    def open(self, base: int) -> tuple[File, SegmentHeader]:
        """Open a segment for reading. The caller closes the file."""
        header = read_segment_header(self._storage, self._directory, base)
        return self._storage.open(segment_path(self._directory, base), "r"), header

    def index(self, base: int) -> SparseIndex:
        """The sparse index of a segment, brought up to the log end if the segment is active."""
        slot = self._slot()
        # The end first: a roll in between would give that of the next segment.
        end = slot[Slot.END_POSITION]
        stop = end if base == slot[Slot.ACTIVE_BASE] else None
        return self.indexes.get(base, stop, write=not self._storage.read_only)

    def locate(self, offset: int) -> tuple[int, int]:
        """(segment base, position) of an index entry at or before the batch with `offset`."""
        base = self.base_of(offset)
        return base, self.index(base).find_offset(offset)

    def offset_at(self, base: int, position: int) -> int:
        """Base offset of the batch whose header is at `position` of a segment."""
        file, segment = self.open(base)
        try:
            for _, header in scan_headers(file, position, position + 1, segment.segment_uid):
                return header.base_offset
        finally:
            file.close()
        return base

    def infos(self) -> list[SegmentInfo]:
        """All segments, oldest first."""
        bases = self.bases()
        headers = [read_segment_header(self._storage, self._directory, base) for base in bases]
        infos = [
            SegmentInfo(
                header.base_offset,
                following.base_offset,
                following.previous_bytes,
                # It was sealed when the next one was created, so nothing in it is younger.
                following.created_ms,
                header.created_ms,
                sealed=True,
            )
            for header, following in pairwise(headers)
        ]
        if bases:
            slot, active = self._slot(), headers[-1]
            infos.append(
                SegmentInfo(
                    active.base_offset,
                    slot[Slot.LOG_END],
                    slot[Slot.END_POSITION],
                    self._last_append_ms(active),
                    active.created_ms,
                    sealed=False,
                )
            )
        return infos

    def _last_append_ms(self, active: SegmentHeader) -> int:
        slot = self._slot()
        end = slot[Slot.END_POSITION]
        if end <= SEGMENT_HEADER_BYTES:
            return active.created_ms
        start = self.index(active.base_offset).find_offset(slot[Slot.LOG_END] - 1)
        file, segment = self.open(active.base_offset)
        last: BatchHeader | None = None
        try:
            for _, header in scan_headers(file, start, end, segment.segment_uid):
                last = header
        finally:
            file.close()
        return last.append_timestamp_ms if last else active.created_ms
