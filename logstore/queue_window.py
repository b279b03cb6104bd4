"""Records of one partition read for a queue, to be claimed piece by piece.

Reading comes before claiming, so that no lock is held meanwhile and damage is met before anything
is leased. What is read may be claimed by others first; then the window moves on to what is left. So
no more is read than is to be claimed, but for the rest of the last batch: of several workers each
would read what the others do.
The claim itself is in the catalog (`queue_catalog.py`).
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from .engine import Engine
from .reader import LogReader
from .record import Record, TopicPartition
from .record_batch import RecordBatch

WINDOW_BYTES: Final = 256 * 1024
"""Most stored bytes read at once; at least one batch."""


class Piece(NamedTuple):
    """One record, and the offsets [start, stop) it stands for."""

    record: Record
    start: int
    stop: int


class QueueWindow:
    """What was read of a partition, from `start` to `end`. For one thread at a time."""

    def __init__(self, engine: Engine, partition: TopicPartition) -> None:
        self._engine = engine
        self._partition = partition
        self._reader: LogReader | None = None
        self._batches: deque[RecordBatch] = deque()
        self._record_bytes = 1
        """What a record took in what was read last, stored."""
        self.start = 0
        self.end = 0
        """Below it, every offset has a record here or has none at all."""

    def fill(self, offset: int, count: int) -> None:
        """Let the window start at `offset`, with about `count` records behind it.

        There is one at least, unless there are none to see.

        Raises:
            OffsetOutOfRangeError: The offset is outside the log.
            DataError: Damage there.
            UnknownTopicError: The topic was deleted.
        """
        if self._reader is None:
            self._reader = LogReader(self._engine, {self._partition: offset}, isolation="committed")
            self.start = self.end = offset
        elif not self.start <= offset <= self.end:
            self._reader.seek(self._partition, offset)
            self._batches.clear()
            self.end = offset
        self.start = offset
        while self._batches and self._batches[0].last_offset < offset:
            self._batches.popleft()
        missing = count - sum(batch.from_offset(offset).record_count for batch in self._batches)
        while missing > 0:
            found = self._reader.poll(max_bytes=min(missing * self._record_bytes, WINDOW_BYTES))
            self.end = self._reader.positions[self._partition]
            if not found:
                break
            self._batches.extend(found)
            records = sum(batch.record_count for batch in found)
            stored_bytes = sum(batch.header.total_bytes for batch in found)
            self._record_bytes = max(1, stored_bytes // records)
            missing -= records

    def has_records(self, offset: int) -> bool:
        """Whether a record at or after `offset` has been read."""
        return any(batch.from_offset(offset).record_count for batch in self._batches)

    def stop_after(self, offset: int, count: int) -> int:
        """Where a piece ends that starts at `offset` and holds `count` records, or all there are.

        `offset` itself if the window does not cover it or holds no record behind it.
        """
        if not self.start <= offset < self.end or not self.has_records(offset):
            return offset
        for batch in self._batches:
            part = batch.from_offset(offset)
            if part.record_count > count:
                return part.offsets[count]
            count -= part.record_count
        return self.end

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The records in [start, stop), each with the offsets it stands for.

        Offsets without a record go with the record before them, the first ones with the first.
        """
        found: list[Record] = []
        for batch in self._batches:
            part = batch.from_offset(start)
            if not part.record_count:
                continue
            if part.base_offset >= stop:
                break
            found += part.slice(0, part.index_of(stop))
        begins = [record.offset for record in found[1:]]
        if not found:
            return []
        return list(map(Piece, found, [start, *begins], [*begins, stop]))

    def close(self) -> None:
        """Close the files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._batches.clear()
