"""The segments of one partition as files: which there are, and where an offset or a time lies.

Follows what this and other processes roll, remove and rewrite by the version word of the
partition's slot. A file once opened stays what it was: its name may stand for another by now.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Final, NamedTuple

from .chain_file import known_segments, write_chain
from .errors import DataError, OffsetOutOfRangeError, StorageError
from .format import SEGMENT_HEADER_BYTES, BatchHeader, SegmentHeader
from .index import SparseIndex
from .retention import SegmentInfo
from .segment import (
    base_offset_of,
    read_header,
    read_segment_header,
    scan_headers,
    segment_path,
)
from .segment_index import IndexCache
from .storage import File, Storage
from .tail import Slot

UNSAVED_MIN: Final = 1024
"""Segments whose headers are rather read at the next opening than written down now."""


class _Known(NamedTuple):
    """What was read of segments that cannot have changed since."""

    version: int
    """The version word of rewrites before it was read."""
    sealed: list[SegmentInfo]
    """All up to `last`; 200 bytes for each. Never changed, only replaced."""
    last: SegmentHeader | None
    """Of the newest segment there was."""


_NOTHING = _Known(-1, [], None)


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
        """Never changed, only replaced: others may be looking at it."""
        self._known = _NOTHING
        self._saved_to = 0
        """Base offset of the last segment in the chain file, as far as is known."""

    def bases(self) -> list[int]:
        """Base offsets of the segments, rising; the last one is active."""
        version = self._slot()[Slot.SEGMENTS_VERSION]
        if version != self._version:
            with self._guard:
                self._bases = self._list()
                self._version = version
        return self._bases

    def listed(self) -> list[int]:
        """As `bases`, looked up anew."""
        with self._guard:
            self._bases = self._list()
            return self._bases

    def rolled(self, before: int, after: int, base: int) -> None:
        """Note a segment this process has just begun; looking up many others takes long.

        Args:
            before: Version word of the list until then.
            after: That word now.
            base: Base offset of the new segment.
        """
        with self._guard:
            if self._version == before:
                if not self._bases or self._bases[-1] < base:
                    self._bases = [*self._bases, base]
                self._version = after

    def examined(
        self, known: Sequence[SegmentInfo], segments: Sequence[tuple[int, SegmentHeader]]
    ) -> None:
        """Note what a recovery has found out about the segments, oldest first.

        Args:
            known: Those whose headers it did not have to read.
            segments: All others.
        """
        if segments:
            headers = [header for _, header in segments]
            version = self._slot()[Slot.REWRITTEN_VERSION]
            self._saved_to = segments[0][0] if known else 0
            self._known = _Known(version, [*known, *_sealed_infos(headers)], headers[-1])

    def save(self, lock: AbstractContextManager[object]) -> None:
        """Write down what is known, once many segments have come since the last time.

        Those who open the store next read the headers of the others only.

        Args:
            lock: The append lock, not held; no segment becomes another meanwhile.
        """
        bases = self.bases()
        if self._storage.read_only or not _many(bases, bisect_right(bases, self._saved_to)):
            return
        self.infos()
        with lock:
            known, slot = self._known, self._slot()
            if known.version != slot[Slot.REWRITTEN_VERSION] or slot[Slot.POISONED]:
                return  # changed since; or deleted, and the directory has to stay empty
            durable = bisect_right(
                known.sealed, slot[Slot.DURABLE_OFFSET], key=lambda info: info.end_offset
            )
            sealed = known.sealed[:durable]
            saved = bisect_right(sealed, self._saved_to, key=lambda info: info.base_offset)
            if known.last is not None and _many(sealed, saved):
                uid = known.last.partition_uid
                write_chain(self._storage, self._directory, uid, sealed)
                self._saved_to = sealed[-1].base_offset

    def _list(self) -> list[int]:
        names = self._storage.list(self._directory)
        return sorted(base for name in names if (base := base_offset_of(name)) is not None)

    def _moved_on(self, error: StorageError, seen: list[int]) -> bool:
        """Whether a segment is missing because it was removed or replaced since it was listed."""
        return error.errno == errno.ENOENT and self.listed() != seen

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
        file = self._storage.open(segment_path(self._directory, base), "r")
        try:
            return file, read_header(file, base)
        except BaseException:
            file.close()
            raise

    def open_at(self, offset: int) -> tuple[File, SegmentHeader, int]:
        """Open the segment that holds `offset`; also a position at or before its batch.

        The caller closes the file.

        Raises:
            OffsetOutOfRangeError: Retention has removed it.
        """
        while True:
            seen = self.bases()
            base = self.base_of(offset)
            try:
                file, header = self.open(base)
            except StorageError as error:
                if not self._moved_on(error, seen):
                    raise
                continue
            try:
                if offset == base:
                    return file, header, header.data_start
                return file, header, self._index(file, header).find_offset(offset)
            except BaseException:
                file.close()
                raise

    def replaced(self, segment: SegmentHeader) -> bool:
        """Whether the name of a segment that was opened stands for another one by now."""
        try:
            header = read_segment_header(self._storage, self._directory, segment.base_offset)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            return True
        return header.segment_uid != segment.segment_uid

    def active_end(self, base: int) -> int | None:
        """Where the data of the segment ends if it is the active one; None if it is sealed.

        The words are read one by one while others append and roll. A roll publishes the base of
        the new segment before its end, and the log end passes that base with the first append.
        """
        slot = self._slot()
        if slot[Slot.ACTIVE_BASE] != base:
            return None
        if slot[Slot.LOG_END] <= base:
            return SEGMENT_HEADER_BYTES
        end = slot[Slot.END_POSITION]
        return end if slot[Slot.ACTIVE_BASE] == base else None

    def _index(self, file: File, header: SegmentHeader) -> SparseIndex:
        """The sparse index of a segment, brought up to the log end if the segment is active."""
        end = self.active_end(header.base_offset)
        if end is not None:
            return self.indexes.active(file, header, end)
        write = not self._storage.read_only
        return self.indexes.get(file, header, lambda: self._sealed_end(header), write=write)

    def _sealed_end(self, header: SegmentHeader) -> int | None:
        """Where the data of a sealed segment ends; None if that cannot be told."""
        if header.rewrite:
            return header.rewrite.data_bytes
        bases = self.bases()
        number = bisect_right(bases, header.base_offset)
        if number == len(bases):
            return None
        try:
            following = read_segment_header(self._storage, self._directory, bases[number])
        except (DataError, StorageError):
            return None  # whoever reads that segment gets the error
        linked = following.previous_segment_uid == header.link_uid
        return following.previous_bytes if linked else None

    def offset_before_time(self, timestamp_ms: int, start: int, end: int) -> int | None:
        """The offset in [start, end) to search from for the first record at `timestamp_ms`.

        None if no record in there has reached it. The index holds running maxima, so this is the
        right place even where timestamps are out of order.
        """
        while True:
            seen = self.bases()
            try:
                return self._offset_before_time(timestamp_ms, start, end)
            except StorageError as error:
                if not self._moved_on(error, seen):
                    raise

    def _offset_before_time(self, timestamp_ms: int, start: int, end: int) -> int | None:
        bases = self.bases()
        bases = bases[max(0, bisect_right(bases, start) - 1) : bisect_left(bases, end)]
        for base in bases[self._first_to_reach(timestamp_ms, bases) :]:
            file, header = self.open(base)
            try:
                position = self._index(file, header).find_timestamp(timestamp_ms)
                if position is None:
                    continue
                first = base
                stop = position + 1
                for _, batch in scan_headers(file, position, stop, header.segment_uid):
                    first = batch.base_offset
                return max(start, first)
            finally:
                file.close()
        return None

    def _first_to_reach(self, timestamp_ms: int, bases: list[int]) -> int:
        """Which of the segments may be the first with a record at `timestamp_ms`.

        Each header says how far time had come before the segment.
        """
        low, high = 0, len(bases) - 1
        try:
            while low < high:
                middle = (low + high) // 2
                following = read_segment_header(self._storage, self._directory, bases[middle + 1])
                if following.prior_max_timestamp_ms < timestamp_ms:
                    low = middle + 1
                else:
                    high = middle
        except DataError:
            return 0  # one by one, then; the damage need not lie before the record
        return low

    def headers(self) -> list[SegmentHeader]:
        """The headers of all segments, oldest first."""
        while True:
            bases = self.bases()
            try:
                return self._read_headers(bases, 0)
            except StorageError as error:
                if not self._moved_on(error, bases):
                    raise

    def _read_headers(self, bases: list[int], covered: int) -> list[SegmentHeader]:
        """The headers of these segments, without those that one before stands for.

        Args:
            bases: Base offsets, rising.
            covered: Where what the segment before them stands for ends.
        """
        headers: list[SegmentHeader] = []
        for base in bases:
            if base < covered:
                continue  # a compaction has just put another in its place
            header = read_segment_header(self._storage, self._directory, base)
            covered = _end_of(header)
            headers.append(header)
        return headers

    def infos(self) -> list[SegmentInfo]:
        """All segments, oldest first. Reads the headers of those it has not seen before."""
        while True:
            seen = self.bases()
            known = self._catch_up()
            if known.last is None:
                return []
            try:
                return [*known.sealed, self._active_info(known.last)]
            except StorageError as error:
                if not self._moved_on(error, seen):
                    raise

    def _catch_up(self) -> _Known:
        """What is known of all segments there are now."""
        while True:
            bases = self.bases()
            version = self._slot()[Slot.REWRITTEN_VERSION]
            known = self._known if self._known.version == version else _NOTHING
            try:
                known = self._known = self._brought_up_to(bases, known)._replace(version=version)
            except StorageError as error:
                if not self._moved_on(error, bases):
                    raise
                continue
            if version == self._slot()[Slot.REWRITTEN_VERSION]:
                return known

    def _brought_up_to(self, bases: list[int], known: _Known) -> _Known:
        last = known.last
        if not bases or last is None or last.base_offset < bases[0]:
            before = known_segments(self._storage, self._directory, bases)
            headers = self._read_headers(bases[len(before) :], 0)
            self._saved_to = headers[0].base_offset if before else 0
            sealed = [*before, *_sealed_infos(headers)]
            return _Known(0, sealed, headers[-1] if headers else None)
        sealed = known.sealed
        if sealed and sealed[0].base_offset < bases[0]:
            sealed = sealed[bisect_left(sealed, bases[0], key=lambda info: info.base_offset) :]
        new = bases[bisect_right(bases, last.base_offset) :]
        if new:
            headers = [last, *self._read_headers(new, _end_of(last))]
            sealed = [*sealed, *_sealed_infos(headers)]
            last = headers[-1]
        return _Known(0, sealed, last)

    def active_info(self) -> SegmentInfo | None:
        """The newest segment; None if there is none. Reads no header but its own."""
        while True:
            bases = self.bases()
            if not bases:
                return None
            try:
                header = read_segment_header(self._storage, self._directory, bases[-1])
                return self._active_info(header)
            except StorageError as error:
                if not self._moved_on(error, bases):
                    raise

    def _active_info(self, active: SegmentHeader) -> SegmentInfo:
        slot = self._slot()
        return SegmentInfo(
            active.base_offset,
            slot[Slot.LOG_END],
            slot[Slot.END_POSITION],
            self._last_append_ms(active),
            active.created_ms,
            sealed=False,
        )

    def _last_append_ms(self, active: SegmentHeader) -> int:
        slot = self._slot()
        end = slot[Slot.END_POSITION]
        if end <= active.data_start:
            return active.created_ms
        file, segment = self.open(active.base_offset)
        last: BatchHeader | None = None
        try:
            start = self._index(file, segment).find_offset(slot[Slot.LOG_END] - 1)
            for _, header in scan_headers(file, start, end, segment.segment_uid):
                last = header
        finally:
            file.close()
        return last.append_timestamp_ms if last else active.created_ms


def _many(segments: Sequence[object], saved: int) -> bool:
    """Whether so many are not saved that it pays to write all of them: each is written rarely."""
    return len(segments) - saved > UNSAVED_MIN + len(segments) // 8


def _end_of(header: SegmentHeader) -> int:
    return header.rewrite.end_offset if header.rewrite else header.base_offset


def _sealed_infos(headers: list[SegmentHeader]) -> list[SegmentInfo]:
    """What these headers say about all of the segments but the last."""
    return [
        SegmentInfo(
            header.base_offset,
            following.base_offset,
            header.rewrite.data_bytes if header.rewrite else following.previous_bytes,
            # It was sealed when the next one was created, so nothing in it is younger.
            following.created_ms,
            header.created_ms,
            sealed=True,
        )
        for header, following in pairwise(headers)
    ]
