"""A cursor walks the segments of one partition and hands out its verified batches, in order.

It stops at what is not visible yet. How cursors of several partitions are merged is in reader.py.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Final

from .batch import decode_batch
from .batch_facts import ROWS_MIN, BatchFacts, MayHold
from .chunk_reader import ChunkReader
from .config import Isolation
from .engine import Engine
from .errors import (
    CorruptBatchError,
    DataError,
    OffsetOutOfRangeError,
    StorageError,
)
from .format import (
    ALIGNMENT_BYTES,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    COLUMNS,
    CONTROL,
    BatchHeader,
    Buffer,
    SegmentHeader,
    parse_header,
)
from .log import Log
from .record_batch import RecordBatch, open_columns
from .storage import File

CHUNK_BYTES: Final = 1 << 20
"""Bytes read at once, where batches are small."""

LARGE_BATCH_BYTES: Final = 1 << 16
"""A batch of this size is read alone: what is behind it in a chunk would mostly be read twice."""

HEADERS_BYTES: Final = 16 << 10
"""Read at once where most of a batch is not wanted: its header and the directory of its columns."""

UNLIMITED: Final = 1 << 62


class PartitionCursor:
    """Walks the batches of one partition. Used by one thread."""

    def __init__(
        self,
        engine: Engine,
        log: Log,
        offset: int,
        isolation: Isolation,
        columns: Sequence[str] | None = None,
        may_hold: MayHold | None = None,
    ) -> None:
        self.log = log
        self.next_offset = offset
        """Next offset to hand out."""
        self.blocked_by = 0
        """Open transaction at the next batch, 0 if none."""
        self.blocked_sequence = 0
        self.blocked_ms = 0
        """When that batch was written."""
        self._engine = engine
        self._isolation = isolation
        self._columns = columns
        self._may_hold = may_hold
        self._chunk_bytes = HEADERS_BYTES if self._in_parts else CHUNK_BYTES
        self._file: File | None = None
        self._segment: SegmentHeader | None = None
        self._position = 0
        self._scan_offset = offset
        """Next offset to parse; runs ahead of next_offset by what is queued."""
        self._chunk = b""
        self._chunk_start = 0
        self.queue: deque[RecordBatch] = deque()

    def fill(self, visible: int, max_bytes: int, max_records: int = UNLIMITED) -> None:
        """Queue batches below `visible` up to either limit, at least one if there is."""
        try:
            self._fill(visible, max_bytes, max_records)
        except OffsetOutOfRangeError as error:
            raise error.at(topic=self.log.topic, partition=self.log.partition) from None
        except DataError:
            if not self.queue:
                raise
            # First what was read before the damage; the next call meets it again.

    def _fill(self, visible: int, max_bytes: int, max_records: int) -> None:
        self.blocked_by = 0
        taken = 0
        while self._scan_offset < visible and taken < max_bytes:
            if self._file is None:
                self._open()
            header = self._next_header()
            if header is None:
                self._next_segment()
                continue
            self._check_place(header)
            if header.transaction_id and self._isolation == "committed":
                state = self._engine.transactions.state(header.transaction_id)
                if state == "open":
                    self.blocked_by = header.transaction_id
                    self.blocked_sequence = header.sequence
                    self.blocked_ms = header.append_timestamp_ms
                    return
                if state == "aborted":
                    self._skip(header)
                    continue
            if header.flags & CONTROL:
                self._skip(header)
                continue
            if max_records <= 0:
                return  # behind what holds no records, so that the position passes it
            size_bytes = self._take(header)
            if size_bytes:
                taken += size_bytes
                max_records -= self.queue[-1].record_count

    def filled(self, visible: int) -> bool:
        """Whether everything below `visible` has been queued."""
        return self._scan_offset >= visible

    def pending_sequence(self) -> int:
        """Sequence of the batch behind the visible end, which is still to be acknowledged.

        0 if it cannot be told: in the next segment, or damaged, which is for its reader to report.
        """
        try:
            if self._file is None:
                self._open()
            header = self._next_header()
        except DataError:
            return 0
        return header.sequence if header is not None else 0

    def _open(self) -> None:
        """Open the segment of the scan offset and find the batch it lies in."""
        log = self.log
        try:
            self._file, self._segment, position = log.files.open_at(self._scan_offset)
        except StorageError:
            # Retention may have removed the file since it was listed.
            if self._scan_offset < log.start_offset:
                log.files.base_of(self._scan_offset)  # raises OffsetOutOfRangeError
            raise
        self._position = position
        self._chunk = b""
        while (header := self._next_whole_header()) is not None:
            if header.next_offset > self._scan_offset:
                return
            self._position += header.total_bytes
        # The offset is the first of the next segment: fill goes there.

    def _next_whole_header(self) -> BatchHeader | None:
        """As `_next_header`, past damage: a reader may have been told to go on behind it."""
        try:
            return self._next_header()
        except DataError:
            damaged = self._position
            header = None
            while header is None and self._find_magic():
                with contextlib.suppress(DataError):
                    header = self._next_header()
            if header is not None and header.base_offset <= self._scan_offset:
                return header
            self._position = damaged  # what is wanted would be there
            raise

    def _find_magic(self) -> bool:
        """Move to the next place where a batch may begin; False at the end of the data."""
        assert self._file is not None
        position = self._position + ALIGNMENT_BYTES
        while chunk := self._read(CHUNK_BYTES, position):
            at = chunk.find(BATCH_MAGIC_BYTES)
            while at != -1 and (position + at) % ALIGNMENT_BYTES:
                at = chunk.find(BATCH_MAGIC_BYTES, at + 1)
            if at != -1:
                self._position = position + at
                return True
            position += len(chunk)
        return False

    def _next_header(self) -> BatchHeader | None:
        """Header at the current position, None at the end of the segment's data."""
        assert self._file is not None
        assert self._segment is not None
        at = self._position - self._chunk_start
        if not self._chunk or at < 0 or at + BATCH_HEADER_BYTES > len(self._chunk):
            self._chunk = self._read(self._chunk_bytes, self._position)
            self._chunk_start, at = self._position, 0
        if not any(self._chunk[at : at + BATCH_HEADER_BYTES]):
            return None
        try:
            return parse_header(self._chunk, at, self._segment.segment_uid)
        except DataError as error:
            files = self.log.files
            if files.base_of(self._scan_offset) != self._segment.base_offset:
                return None  # behind the end of a sealed segment: what a crash left, no record
            if files.replaced(self._segment):
                return None  # the same, or damage: a rewritten segment goes on from here
            raise self._at(error) from None

    def _read(self, length: int, position: int) -> bytes:
        """Bytes of the segment; of the active one only what has been written as a whole.

        What lies behind may be zeros or half a batch now and whole batches at the next look.
        """
        assert self._file is not None
        assert self._segment is not None
        end = self.log.files.active_end(self._segment.base_offset)
        if end is not None:
            length = max(0, min(length, end - position))
        return self._file.read(length, position)

    def _check_place(self, header: BatchHeader) -> None:
        """A whole batch may still be a foreign one, a copy, or the one behind a lost one."""
        follows = header.base_offset <= self._scan_offset < header.next_offset
        if not follows or header.partition_uid != self.log.partition_uid:
            raise self._at(
                CorruptBatchError(
                    f"found offset {header.base_offset} where {self._scan_offset} was expected"
                )
            )

    @property
    def _in_parts(self) -> bool:
        """Whether some batches of columns, or some columns of them, are not read."""
        return self._columns is not None or self._may_hold is not None

    def _take(self, header: BatchHeader) -> int:
        """Verify and queue the batch at the current position; its size in bytes, 0 if left out."""
        size_bytes = 0
        try:
            batch = self._open_batch(header)
        except DataError as error:
            raise self._at(error) from None
        if batch is not None:
            self.queue.append(batch.from_offset(self._scan_offset))
            size_bytes = header.total_bytes
        self._skip(header)
        return size_bytes

    def _open_batch(self, header: BatchHeader) -> RecordBatch | None:
        """The batch at the current position, of columns perhaps only some, verified.

        None: by its header and directory no record of it is wanted; nothing else was read.
        """
        log, schema = self.log, self.log.config.schema
        chunks = directory = None
        if self._in_parts and header.flags & COLUMNS:
            chunks = ChunkReader(self._bytes, self._position + BATCH_HEADER_BYTES, header)
            directory = chunks.directory()
        if self._may_hold is not None and header.record_count >= ROWS_MIN:
            facts = BatchFacts(log.topic, log.partition, header, schema, directory)
            if not self._may_hold(facts):
                return None
        if chunks is None or directory is None or self._columns is None:
            body = self._body(header)
            return decode_batch(log.topic, log.partition, header, body, schema=schema)
        projection = chunks.project(directory, self._columns)
        section = chunks.leading()
        return open_columns(log.topic, log.partition, header, section, schema, projection)

    def _body(self, header: BatchHeader) -> Buffer:
        """What follows the header at the current position."""
        start = self._position + BATCH_HEADER_BYTES
        at = start - self._chunk_start
        if at + header.body_bytes <= len(self._chunk):
            return memoryview(self._chunk)[at : at + header.body_bytes]
        # With the header of the next one, which says how much to read then.
        length = header.body_bytes + BATCH_HEADER_BYTES
        large = header.body_bytes >= LARGE_BATCH_BYTES
        self._chunk = self._read(length if large else CHUNK_BYTES, start)
        self._chunk_start = start
        return memoryview(self._chunk)[: header.body_bytes]

    def _bytes(self, position: int, length: int) -> Buffer:
        """Bytes of the segment, from what was read already if they are there."""
        at = position - self._chunk_start
        if at >= 0 and at + length <= len(self._chunk):
            return memoryview(self._chunk)[at : at + length]
        return self._read(length, position)

    def _skip(self, header: BatchHeader) -> None:
        if not self.queue:
            # Nothing is waiting before it, so the position may pass the gap.
            self.next_offset = max(self.next_offset, header.next_offset)
        self._position += header.total_bytes
        self._scan_offset = header.next_offset

    def _next_segment(self) -> None:
        segment = self._segment
        assert segment is not None
        files = self.log.files
        same = files.base_of(self._scan_offset) == segment.base_offset
        if same and not files.replaced(segment):
            raise self._at(
                CorruptBatchError("a record below the log end is missing; restore the segment")
            )
        self._close_file()
        self._open()

    def _at(self, error: DataError) -> DataError:
        log = self.log
        return error.at(
            topic=log.topic,
            partition=log.partition,
            offset=self._scan_offset,
            path=self._file.path if self._file else log.directory,
            position=self._position,
        )

    def seek(self, offset: int) -> None:
        """Continue at `offset`."""
        self._close_file()
        self.queue.clear()
        self.blocked_by = 0
        self.next_offset = self._scan_offset = offset

    def hand_out(self, max_records: int) -> RecordBatch:
        """The first queued batch, cut to `max_records`; the rest stays queued."""
        batch = self.queue.popleft()
        if batch.record_count > max_records:
            self.queue.appendleft(batch.slice(max_records))
            batch = batch.slice(0, max_records)
        self.next_offset = batch.last_offset + 1 if self.queue else self._scan_offset
        return batch

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._segment = None
        self._chunk = b""

    def close(self) -> None:
        """Close the segment file."""
        self._close_file()
        self.queue.clear()
