"""The last record of a key, and of every key, from the segments as they are.

What counts is what is acknowledged and committed. Unlike a reader this does not stop at an open
transaction: its records count when it commits. Compaction is not needed, it only makes less to
look at. A point lookup goes through the key index; a scan reads the keys once into a bounded map,
or in several passes over a part of them each, and then the records that are left.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from xxhash import xxh3_64_intdigest

from . import topics
from .append import partition_of
from .batch import decode_batch
from .batch_scan import scan_keys
from .compaction import LatestOffsets
from .engine import Engine
from .errors import (
    CorruptBatchError,
    DataError,
    OffsetOutOfRangeError,
    StorageError,
    UnavailableError,
    UsageError,
)
from .format import BATCH_HEADER_BYTES, BatchHeader, Buffer, SegmentHeader
from .key_index import KeyIndex
from .log import Log
from .record import Record
from .record_batch import RecordBatch, open_columns
from .segment import scan_headers
from .storage import File
from .tail import Slot

ATTEMPTS_MAX: Final = 20
"""Compaction or retention may take away what is looked at; twenty times in a row is a loop."""
MAP_BYTES: Final = 64 << 20
"""Memory for the keys of one pass of a scan."""
SPLIT_BITS: Final = 2
"""A pass whose keys do not fit is done again as four."""

T = TypeVar("T")


class _ChangedError(UnavailableError):
    """What was looked at has been replaced meanwhile: look again."""


class LatestValues:
    """Latest values of the topics of an open store. Thread-safe."""

    def __init__(self, engine: Engine, *, map_bytes: int = MAP_BYTES) -> None:
        self._engine = engine
        self._map_bytes = map_bytes
        self._indexes: WeakKeyDictionary[Log, KeyIndex] = WeakKeyDictionary()

    def close(self) -> None:
        """Close the key files. The store is closed."""
        for index in list(self._indexes.values()):
            index.close()

    # --- one key -------------------------------------------------------------------------------

    def find(self, topic: str, key: bytes, partition: int | None = None) -> Record | None:
        """The last record of a key, a tombstone too; None if there is none."""
        if not isinstance(key, bytes):
            raise UsageError(f"key must be bytes, not {type(key).__name__}", topic=topic)
        if partition is None:
            partition = partition_of(key, self._engine.topic(topic).partitions)
        return self.find_in(self._engine.log(topic, partition), key)

    def find_in(self, log: Log, key: bytes) -> Record | None:
        """As `find`, in one partition."""
        return self._attempt(log, lambda: self._find(log, key, log.visible_offset))

    def _attempt(self, log: Log, look: Callable[[], T]) -> T:
        self._engine.ensure_open()
        for _ in range(ATTEMPTS_MAX):
            if self._engine.read_only:
                log.refresh_read_only()
            log.ensure_there()
            try:
                return look()
            except _ChangedError:
                continue
            except StorageError as error:
                if error.errno != errno.ENOENT:
                    raise
            except DataError as error:
                raise error.at(topic=log.topic, partition=log.partition) from None
        raise UnavailableError(
            "the segments change faster than they can be looked at: try again",
            topic=log.topic,
            partition=log.partition,
        )

    def last_locked(self, log: Log, key: bytes) -> tuple[Record | None, int]:
        """The last record of a key of all that was written, acknowledged or not.

        For a condition of an append: called with the append lock held, so that nobody writes
        between the answer and the append. Records of open transactions do not count; the second
        value is the id of one that has written the key behind that record, 0 if there is none.
        """

        def look() -> tuple[Record | None, int]:
            record = self._find(log, key, log.slot[Slot.LOG_END])
            above = -1 if record is None else record.offset
            return record, self._index(log).undecided(key, above)

        return self._attempt(log, look)

    def _index(self, log: Log) -> KeyIndex:
        index = self._indexes.get(log)
        if index is None:
            engine = self._engine
            write = not engine.read_only
            index = KeyIndex(engine.storage, log, engine.transactions, write=write)
            index = self._indexes.setdefault(log, index)
        return index

    def _find(self, log: Log, key: bytes, end: int) -> Record | None:
        index = self._index(log)
        start = log.start_offset
        for base, offsets in index.candidates(key, end):
            if offsets[0] >= end:
                offsets = self._hidden(log, base, key, end)  # noqa: PLW2901 - the right ones
            for offset in offsets:
                if offset < start:
                    return None
                record = self._read(log, offset)
                if record is None:
                    raise _ChangedError("a compaction was faster")
                if record.key == key:
                    return record
        return None

    def _hidden(self, log: Log, base: int, key: bytes, end: int) -> list[int]:
        """The last offset of `key` below `end` from `base` on, looked for among all keys."""
        found: list[int] = []
        for header, section in self._keys(log, base, end):
            batch = open_columns(log.topic, log.partition, header, section)
            if key in batch.keys:
                rows = zip(batch.keys, batch.offsets, strict=True)
                found = [max(offset for each, offset in rows if each == key)]
        return found

    def _read(self, log: Log, offset: int) -> Record | None:
        """The record at an offset below the log end; None if compaction has removed it."""
        file, segment, position = log.files.open_at(offset)
        try:
            for at, header in scan_headers(file, position, file.size(), segment.segment_uid):
                if header.next_offset > offset:
                    return self._record(log, file, at, header, offset)
        except DataError as error:
            raise error.at(path=file.path, offset=offset) from None
        finally:
            file.close()
        raise _ChangedError("the segment was replaced")

    def _record(
        self, log: Log, file: File, position: int, header: BatchHeader, offset: int
    ) -> Record | None:
        body = file.read(header.body_bytes, position + BATCH_HEADER_BYTES)
        batch = decode_batch(log.topic, log.partition, header, body, schema=log.config.schema)
        row = batch.index_of(offset)
        if row >= batch.record_count or batch.offsets[row] != offset:
            return None
        (value,) = batch.values_at([row])
        return Record(
            log.topic,
            log.partition,
            offset,
            batch.timestamps_ms[row],
            batch.keys[row],
            None if value is None else bytes(value),
            batch.headers[row],
        )

    # --- all keys ------------------------------------------------------------------------------

    def scan(self, topic: str, partition: int | None, *, tombstones: bool) -> Iterator[Record]:
        """The last record of every key, partition by partition."""
        for place in topics.partitions(self._engine, topic, partition):
            log = self._engine.log(*place)
            for record in self._scan(log):
                if tombstones or record.value is not None:
                    yield record

    def _scan(self, log: Log) -> Iterator[Record]:
        end = log.visible_offset
        parts = [(0, 0)]
        while parts:
            bits, number = parts.pop()
            latest = self._read_keys(log, end, bits, number)
            if latest is None:
                more = bits + SPLIT_BITS
                parts += [(more, number | part << bits) for part in range(1 << SPLIT_BITS)]
                continue
            yield from self._records(log, end, latest)
            # What compaction has removed meanwhile has a later record, behind `end`.
            for key in latest.remaining():
                record = self.find_in(log, key)
                if record is not None:
                    yield record

    def _read_keys(self, log: Log, end: int, bits: int, number: int) -> LatestOffsets | None:
        """The last offsets of the keys of one part, by the last bits of their hash; None: full."""
        latest = LatestOffsets(self._map_bytes)
        mask, start = (1 << bits) - 1, log.start_offset
        for header, section in self._keys(log, start, end):
            batch = open_columns(log.topic, log.partition, header, section).from_offset(start)
            keys, offsets = batch.keys, batch.offsets
            if mask:
                rows = [
                    row
                    for row, key in enumerate(keys)
                    if key is not None and xxh3_64_intdigest(key) & mask == number
                ]
                keys, offsets = [keys[row] for row in rows], [offsets[row] for row in rows]
            if keys:
                latest.add(keys, offsets)
            if latest.full and len(latest) > 1:
                return None
        return latest

    def _records(self, log: Log, end: int, latest: LatestOffsets) -> Iterator[Record]:
        for batch in self._batches(log, log.start_offset, end):
            rows = latest.take(batch.keys, batch.offsets)
            if rows:
                records = batch.records()
                yield from [records[row] for row in rows]

    def _batches(self, log: Log, start: int, end: int) -> Iterator[RecordBatch]:
        """Whole committed batches, verified."""
        for file, position, header, _ in self._walk(log, start, end):
            body = file.read(header.body_bytes, position + BATCH_HEADER_BYTES)
            yield decode_batch(log.topic, log.partition, header, body, schema=log.config.schema)

    def _keys(self, log: Log, start: int, end: int) -> Iterator[tuple[BatchHeader, Buffer]]:
        """The headers and sections A of committed batches with records."""
        for _, _, header, section in self._walk(log, start, end):
            yield header, section

    def _walk(
        self, log: Log, start: int, end: int
    ) -> Iterator[tuple[File, int, BatchHeader, Buffer]]:
        """(file, position, header, section A) of committed batches with records, in offset order.

        The file is open until the next one is asked for.
        """
        offset = start
        while offset < end:
            self._engine.ensure_open()
            try:
                file, segment, position = log.files.open_at(offset)
            except OffsetOutOfRangeError:
                log.ensure_there()
                offset = max(offset, log.start_offset)  # retention was here
                continue
            try:
                before = offset
                stop = min(end, self._end_of(log, segment))
                for header, section in scan_keys(
                    file, position, self._data_end(log, file, segment), segment.segment_uid
                ):
                    if header.next_offset > offset:
                        if header.record_count and self._committed(header):
                            yield file, position, header, section
                        offset = header.next_offset
                        if offset >= stop:
                            break
                    position += header.total_bytes
                if offset == before:
                    raise CorruptBatchError(
                        "a record below the log end is missing; restore the segment",
                        path=file.path,
                        position=position,
                        offset=offset,
                    )
            except DataError as error:
                raise error.at(topic=log.topic, partition=log.partition) from None
            finally:
                file.close()

    def _committed(self, header: BatchHeader) -> bool:
        transaction = header.transaction_id
        return not transaction or self._engine.transactions.state(transaction) == "committed"

    def _data_end(self, log: Log, file: File, segment: SegmentHeader) -> int:
        slot = log.slot
        # In this order: what is still active after that has that end.
        end = slot[Slot.END_POSITION]
        return end if slot[Slot.ACTIVE_BASE] == segment.base_offset else file.size()

    def _end_of(self, log: Log, segment: SegmentHeader) -> int:
        """One past the last offset of a segment; behind it there may be what a crash left."""
        if segment.rewrite:
            return segment.rewrite.end_offset
        bases = log.files.bases()
        following = bisect_right(bases, segment.base_offset)
        return bases[following] if following < len(bases) else log.slot[Slot.LOG_END]
