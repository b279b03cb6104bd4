"""Read verified batches of any number of partitions in the order they were appended.

Each partition has a cursor (partition_cursor.py). Batches of several partitions are merged by the
store-wide sequence. So that the merge is final, nothing is handed out before every partition
is known to hold no earlier batch: a partition whose next batch is not visible yet (a sync under
way, an open transaction) holds back what was appended after it. Hence the order is the same for
every reader, at any speed, which is what makes a pipeline's result a pure function of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Self

from .batch_facts import MayHold
from .config import Isolation, checked_place, whole_number
from .engine import Engine
from .errors import (
    UsageError,
    outside_log,
)
from .log import Log
from .partition_cursor import CHUNK_BYTES, UNLIMITED, PartitionCursor
from .record import TopicPartition
from .record_batch import RecordBatch
from .tail import Slot

HELD_BACK_SECONDS: Final = 0.2
"""A sync takes milliseconds; one that takes longer may be that of a process that died."""


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

    def __repr__(self) -> str:
        places = ", ".join(f"{topic}/{partition}" for topic, partition in self._cursors)
        return f"<LogReader {places or 'of nothing'}>"

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
