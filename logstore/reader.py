"""Read verified batches of any number of partitions in the order they were appended.

Each partition has a cursor that walks its segments. Batches of several partitions are merged by
the store-wide sequence. So that the merge is final, nothing is handed out before every partition
is known to hold no earlier batch: a partition whose next batch is not visible yet (a sync under
way, an open transaction) holds back what was appended after it. Hence the order is the same for
every reader, at any speed, which is what makes a pipeline's result a pure function of the log.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Self

from .batch import decode_batch
from .batch_facts import ROWS_MIN, BatchFacts, MayHold
from .chunk_reader import ChunkReader
from .config import Isolation, checked_place, whole_number
from .engine import Engine
from .errors import (
    CorruptBatchError,
    DataError,
    OffsetOutOfRangeError,
    StorageError,
    UsageError,
    outside_log,
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
from .record import TopicPartition
from .record_batch import RecordBatch, open_columns
from .storage import File
from .tail import Slot

CHUNK_BYTES: Final = 1 << 20
"""Bytes read at once, where batches are small."""

LARGE_BATCH_BYTES: Final = 1 << 16
"""A batch of this size is read alone: what is behind it in a chunk would mostly be read twice."""

HEADERS_BYTES: Final = 16 << 10
"""Read at once where most of a batch is not wanted: its header and the directory of its columns."""

UNLIMITED: Final = 1 << 62

HELD_BACK_SECONDS: Final = 0.2
"""A sync takes milliseconds; one that takes longer may be that of a process that died."""


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


class LogReader:
    """Reads partitions from given offsets, merged in append order. Used by one thread at a time.

    Made by `Store.reader`. A batch of at least 256 records that `may_hold` says no of, see
    `BatchFacts`, is passed over: only its header and the directory of its columns are read.
    """

    def __init__(
        self,
        engine: Engine,
        positions: Mapping[TopicPartition, int],
        *,
        isolation: Isolation,
        columns: Sequence[str] | None = None,
        may_hold: MayHold | None = None,
    ) -> None:
        if isolation not in ("committed", "uncommitted"):
            raise UsageError(f"isolation is {isolation!r}; choose committed or uncommitted")
        self._engine = engine
        self._isolation: Isolation = isolation
        self._columns = columns
        self._may_hold = may_hold
        self._cursors: dict[TopicPartition, PartitionCursor] = {}
        self._held_since: float | None = None
        """Since when nothing was handed out although some partition has unacknowledged records."""
        self._seen = engine.tail.get("wake_version")
        for partition, offset in positions.items():
            self.add(partition, offset)

    # --- positions -----------------------------------------------------------------------------

    def add(self, partition: TopicPartition, offset: int) -> None:
        """Read this partition too, from `offset` on.

        Raises:
            OffsetOutOfRangeError: The offset is outside [log start, visible end].
        """
        place = checked_place(partition)
        log = self._engine.log(*place)
        offset = self._checked_offset(log, offset)
        self._cursors[place] = PartitionCursor(
            self._engine, log, offset, self._isolation, self._columns, self._may_hold
        )

    def remove(self, partition: TopicPartition) -> None:
        """Stop reading this partition; UsageError if it is not read."""
        self._cursor(partition).close()
        del self._cursors[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue this partition at `offset`; errors as `add` and `remove`."""
        cursor = self._cursor(partition)
        cursor.seek(self._checked_offset(cursor.log, offset))

    def _cursor(self, partition: TopicPartition) -> PartitionCursor:
        place = checked_place(partition)
        if (cursor := self._cursors.get(place)) is None:
            error = UsageError("this reader does not read the partition: add() it first")
            raise error.at(topic=place.topic, partition=place.partition)
        return cursor

    def _checked_offset(self, log: Log, offset: int) -> int:
        offset = whole_number(offset, "an offset")
        start, end = log.start_offset, log.visible_offset
        if not start <= offset <= end:
            raise outside_log(log.topic, log.partition, offset, start, end)
        return offset

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """Next offset of each partition: all before has been handed out, or holds no record."""
        return {partition: cursor.next_offset for partition, cursor in self._cursors.items()}

    def at_end(self) -> bool:
        """Whether everything visible now has been read.

        An open transaction is an end too: nobody knows when it will be decided. So are, to a
        store open read-only, records that a dead process left unacknowledged in one partition:
        whether those of others come before them will be known when a writer opens the store.
        """
        cursors = self._cursors.values()
        return (
            any(cursor.blocked_by and not cursor.queue for cursor in cursors)
            or all(
                not cursor.queue and cursor.next_offset >= cursor.log.visible_offset
                for cursor in cursors
            )
            or (self._engine.read_only and self._held_too_long())
        )

    # --- reading -------------------------------------------------------------------------------

    def poll(
        self, max_records: int | None = None, max_bytes: int = CHUNK_BYTES
    ) -> list[RecordBatch]:
        """The next batches in append order, empty when nothing more is visible.

        Args:
            max_records: At most that many records; the last batch is cut to fit.
            max_bytes: Stop after about this many stored bytes; at least one batch is returned.

        Raises:
            DataError: Damage; the position stays before it. `seek` past it to go on.
            OffsetOutOfRangeError: Retention removed what was to be read next.
            UnknownTopicError: A topic was deleted.
        """
        self._engine.ensure_open()
        limit = UNLIMITED if max_records is None else whole_number(max_records, "max_records")
        if limit < 1:
            raise UsageError("max_records must be at least 1")
        self._seen = self._engine.tail.get("wake_version")
        if self._engine.read_only:
            for cursor in self._cursors.values():
                cursor.log.refresh_read_only()
        for cursor in self._cursors.values():
            cursor.log.ensure_there()
        if len(self._cursors) == 1:
            return self._poll_one(limit, max_bytes)
        batches = self._poll_merged(limit, max_bytes)
        if batches:
            self._held_since = None
        else:
            self._settle()
        return batches

    def _poll_one(self, limit: int, max_bytes: int) -> list[RecordBatch]:
        (cursor,) = self._cursors.values()
        if not cursor.queue:
            self._fill(cursor, cursor.log.visible_offset, max_bytes, limit)
        batches: list[RecordBatch] = []
        while cursor.queue and limit > 0:
            batches.append(cursor.hand_out(limit))
            limit -= batches[-1].record_count
        return batches

    def _poll_merged(self, limit: int, max_bytes: int) -> list[RecordBatch]:
        share = max(max_bytes // max(len(self._cursors), 1), 1)
        bounds = {cursor: self._bound(cursor, share) for cursor in self._cursors.values()}
        batches: list[RecordBatch] = []
        while limit > 0 and max_bytes > 0:
            first: PartitionCursor | None = None
            lowest = min(bounds.values(), default=0) + 1
            for cursor in bounds:
                if cursor.queue and cursor.queue[0].sequence < lowest:
                    first, lowest = cursor, cursor.queue[0].sequence
            if first is None:
                break
            batches.append(first.hand_out(limit))
            limit -= batches[-1].record_count
            max_bytes -= batches[-1].header.total_bytes
            if not first.queue:
                # What follows in that partition has to be known before others may go on.
                bounds[first] = self._bound(first, share)
        return batches

    def _bound(self, cursor: PartitionCursor, max_bytes: int) -> int:
        """Fill an empty queue; the sequence up to which the partition's batches are all known.

        The store's sequence is read before the ends, so a batch up to it is either below the
        visible end or known to be pending.
        """
        slot = cursor.log.slot
        store_sequence = self._engine.tail.get("sequence")
        visible_sequence = slot[Slot.VISIBLE_SEQUENCE]
        visible = slot[Slot.VISIBLE_OFFSET]
        complete = visible == slot[Slot.LOG_END]
        if not cursor.queue:
            self._fill(cursor, visible, max_bytes)
        queued = cursor.queue[-1].sequence if cursor.queue else 0
        if cursor.blocked_by:
            return max(cursor.blocked_sequence - 1, queued)
        if not cursor.filled(visible):
            return queued
        if complete:
            return max(store_sequence, queued)
        return max(visible_sequence, cursor.pending_sequence() - 1, queued)

    def _settle(self) -> None:
        """Acknowledge what a process left that died before it could, or the merge never goes on."""
        held = [
            (cursor.log, cursor.log.slot[Slot.LOG_END])
            for cursor in self._cursors.values()
            if cursor.log.visible_offset < cursor.log.slot[Slot.LOG_END]
        ]
        if not held:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = self._engine.clock.monotonic()
        elif self._held_too_long() and not self._engine.read_only:
            self._held_since = None
            self._engine.acknowledge(held, "sync")

    def _held_too_long(self) -> bool:
        since = self._held_since
        return since is not None and self._engine.clock.monotonic() - since >= HELD_BACK_SECONDS

    def _fill(
        self, cursor: PartitionCursor, visible: int, max_bytes: int, max_records: int = UNLIMITED
    ) -> None:
        """Fill an empty queue, past the open transactions of owners that are dead or stuck."""
        cursor.fill(visible, max_bytes, max_records)
        states = self._engine.transactions
        while (
            cursor.blocked_by
            and not cursor.queue
            and states.abort_if_lost(cursor.blocked_by, cursor.blocked_ms)
        ):
            cursor.fill(visible, max_bytes, max_records)

    def wait(self, timeout: float | None) -> bool:
        """Block until something may have become visible since the last poll; False on timeout.

        Args:
            timeout: Seconds; None waits for ever.
        """
        blocked = self._held_since is not None or any(
            cursor.blocked_by for cursor in self._cursors.values()
        )
        pause = HELD_BACK_SECONDS if blocked else timeout
        if timeout is not None and pause is not None:
            pause = min(pause, timeout)
        now = self._engine.wait(self._seen, pause)
        return now != self._seen or blocked

    def close(self) -> None:
        """Close the files."""
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_cursors"):  # not if it was never made
            self.close()
