"""The indexes of one partition's segments: kept, caught up, loaded or rebuilt.

The active segment's index is in memory and follows the appends of this process; what others
appended is caught up by walking batch headers. A sealed segment's index is a file beside it, used
only if its hash and segment uid fit, otherwise rebuilt. An index changes speed, never answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from .errors import CorruptBatchError, FormatVersionError, StorageError
from .format import SEGMENT_HEADER_BYTES, SegmentHeader
from .index import SparseIndex, index_bytes_max
from .segment import TEMPORARY_SUFFIX, index_path, scan_headers
from .storage import File, Storage

NOTED_BATCHES_MAX: Final = 64
CACHED_INDEXES_MAX: Final = 64
"""Sealed indexes kept in memory; one of a 64 MiB segment takes at most 400 KiB."""


class IndexCache:
    """Indexes of the segments of one partition. Thread-safe."""

    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._directory = directory
        self._lock = threading.Lock()
        self._active = SparseIndex()
        self._active_base = -1
        self._scanned = 0
        """Position in the active segment up to which `_active` is complete."""
        self._noted: list[tuple[int, int, int, int, int]] = []
        """Batches not entered yet: an append only notes them, without the lock."""
        self._sealed: OrderedDict[int, tuple[int, SparseIndex]] = OrderedDict()
        """By base offset: the uid of the segment, which changes when it is rewritten; its index."""

    def appended(
        self, base: int, base_offset: int, position: int, end_position: int, running_max_ms: int
    ) -> None:
        """Note a batch this process appended; ignored if earlier ones have not been seen."""
        noted = self._noted
        noted.append((base, base_offset, position, end_position, running_max_ms))
        if len(noted) >= NOTED_BATCHES_MAX:
            with self._lock:
                self._enter_noted()

    def _enter_noted(self) -> None:
        """Enter what was noted. More may be noted meanwhile: it stays for the next time."""
        noted = self._noted
        count = len(noted)
        for base, base_offset, position, end_position, running_max_ms in noted[:count]:
            if position == SEGMENT_HEADER_BYTES:
                self._active, self._active_base, self._scanned = SparseIndex(), base, position
            if base == self._active_base and position == self._scanned:
                self._active.append(base_offset, position, running_max_ms)
                self._scanned = end_position
        del noted[:count]

    def sealed(self, segment: SegmentHeader, end_position: int) -> None:
        """Write the index file of the segment just sealed, if it is complete in memory."""
        with self._lock:
            self._enter_noted()
            if self._active_base == segment.base_offset and self._scanned == end_position:
                self.write(segment, self._active, end_position)

    def active(self, file: File, header: SegmentHeader, stop: int) -> SparseIndex:
        """The index of the active segment, which is open and whose data ends at `stop`."""
        with self._lock:
            self._enter_noted()
            return self._catch_up(file, header, stop)

    def get(
        self, file: File, header: SegmentHeader, stop: Callable[[], int | None], *, write: bool
    ) -> SparseIndex:
        """The index of a sealed segment.

        Args:
            file: The segment, open. Another may have taken its name since.
            header: Its header.
            stop: Gives the end of its data, if that is known; behind it is what a crash left.
            write: Whether a rebuilt index may be written to its file.
        """
        base = header.base_offset
        with self._lock:
            known = self._sealed.get(base)
            if known is not None and known[0] == header.segment_uid:
                self._sealed.move_to_end(base)
                return known[1]
            index = self._load(file, header)
            if index is None:
                index = self._rebuild(file, header, stop(), write=write)
            self._sealed[base] = header.segment_uid, index
            self._sealed.move_to_end(base)
            if len(self._sealed) > CACHED_INDEXES_MAX:
                self._sealed.popitem(last=False)
            return index

    def forget(self, base: int) -> None:
        """Drop the index of a removed segment."""
        with self._lock:
            self._sealed.pop(base, None)

    def clear(self) -> None:
        """Forget everything, for example after a recovery has cut the active segment."""
        with self._lock:
            self._sealed.clear()
            self._noted.clear()
            self._active_base = -1

    def _catch_up(self, file: File, header: SegmentHeader, stop: int) -> SparseIndex:
        base = header.base_offset
        if base != self._active_base or self._scanned > stop:
            self._active, self._active_base = SparseIndex(), base
            self._scanned = header.data_start
        if self._scanned < stop:
            self._scanned, _ = _scan(file, header, self._active, self._scanned, stop)
            self._active.damaged_at = None if self._scanned >= stop else self._scanned
        return self._active

    def _load(self, segment: File, header: SegmentHeader) -> SparseIndex | None:
        path = index_path(self._directory, header.base_offset)
        if not self._storage.exists(path):
            return None
        try:
            file = self._storage.open(path, "r")
            try:
                length = file.size()
                if length > index_bytes_max(segment.size()):
                    return None  # whatever it is, it is not worth reading
                index = SparseIndex.decode(file.read(length, 0), header.segment_uid)
            finally:
                file.close()
        except (CorruptBatchError, StorageError):
            return None  # rebuilt: an index is derived data
        return index if _ends_with(segment, header, index.end_position) else None

    def _rebuild(
        self, file: File, header: SegmentHeader, stop: int | None, *, write: bool
    ) -> SparseIndex:
        index = SparseIndex()
        end, whole = _scan(
            file, header, index, header.data_start, file.size() if stop is None else stop
        )
        if stop is not None and end < stop:
            index.damaged_at = end
        elif write and whole:
            self.write(header, index, end)
        return index

    def write(self, segment: SegmentHeader, index: SparseIndex, end_position: int) -> None:
        """Write atomically but unsynced: after a crash it is whole, old or rejected by its hash."""
        path = index_path(self._directory, segment.base_offset)
        temporary = path + TEMPORARY_SUFFIX
        try:
            self._storage.remove(temporary)
            file = self._storage.open(temporary, "x")
            try:
                file.write([index.encode(segment.segment_uid, end_position)], 0)
            finally:
                file.close()
            self._storage.rename(temporary, path)
        except StorageError:
            self._storage.remove(temporary)  # a full disk: the index is rebuilt when needed


def _ends_with(file: File, header: SegmentHeader, end_position: int) -> bool:
    """Whether the data of a sealed segment end there: an index may be older than the last of it."""
    if end_position > file.size():
        return False
    with contextlib.suppress(CorruptBatchError):  # what a crash left behind the end
        for _ in scan_headers(file, end_position, end_position + 1, header.segment_uid):
            return False
    return True


def _scan(
    file: File, header: SegmentHeader, index: SparseIndex, start: int, stop: int
) -> tuple[int, bool]:
    """Append the batches in [start, stop) to `index`; (end reached, all of it was valid)."""
    end = start
    try:
        for position, batch in scan_headers(file, start, stop, header.segment_uid):
            index.append(batch.base_offset, position, batch.running_max_timestamp_ms)
            end = position + batch.total_bytes
    except (CorruptBatchError, FormatVersionError):
        # The index ends before the damage; whoever reads on gets the error with its place.
        return end, False
    return end, True
