"""What a consumer has fetched, and how much of it the user has seen. Pure.

The user takes records by lists (`take`), by batches (`take_batch`) or one by one from the iterators
of `chunk`. The latter cost nothing per record: how far the user has come is asked of the list
iterator itself, when somebody wants to know.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator

from .record import Record, TopicPartition
from .record_batch import RecordBatch


class Delivery:
    """Batches waiting for the user, in order. For one thread at a time.

    Invariant: `_records[_next:]` are undelivered, and so is what is left in `_iterator`, which
    goes over `_chunk`, the records just before `_next`.
    """

    def __init__(self) -> None:
        self._queue: deque[RecordBatch] = deque()
        self._batch: RecordBatch | None = None
        self._records: list[Record] = []
        self._next = 0
        self._chunk: list[Record] = []
        self._iterator: Iterator[Record] = iter(())

    def extend(self, batches: Iterable[RecordBatch]) -> None:
        """Add batches behind what waits."""
        self._queue.extend(batches)

    def __bool__(self) -> bool:
        """Whether a record waits."""
        self._take_back()
        return self._next < len(self._records) or bool(self._queue)

    def take(self, records_max: int) -> list[Record]:
        """The next records, delivered with this."""
        self._take_back()
        taken: list[Record] = []
        while len(taken) < records_max and self._load():
            part = self._records[self._next : self._next + records_max - len(taken)]
            self._next += len(part)
            taken += part
        return taken

    def take_batch(self) -> RecordBatch | None:
        """The next batch, or what is left of it, delivered with this; None if nothing waits."""
        self._take_back()
        if self._batch is not None and self._next < len(self._records):
            batch = self._batch.slice(self._next)
            self._next = len(self._records)
            return batch
        return self._queue.popleft() if self._queue else None

    def chunk(self, records_max: int) -> Iterator[Record] | None:
        """Iterator over the next records of one partition; None if nothing waits.

        A record is delivered when the iterator returns it. Any other call ends the iterator.
        """
        self._take_back()
        if not self._load():
            return None
        self._chunk = self._records[self._next : self._next + records_max]
        self._next += len(self._chunk)
        self._iterator = iter(self._chunk)
        return self._iterator

    def undelivered(self) -> dict[TopicPartition, int]:
        """Offset of the first waiting record of each partition that has one."""
        waiting: dict[TopicPartition, int] = {}
        for batch in reversed(self._queue):
            waiting[TopicPartition(batch.topic, batch.partition)] = batch.base_offset
        first = self._next - operator.length_hint(self._iterator)
        if first < len(self._records):
            record = self._records[first]
            waiting[TopicPartition(record.topic, record.partition)] = record.offset
        return waiting

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget what waits of these partitions; the user will not see it."""
        gone = set(partitions)
        self._take_back()
        self._queue = deque(
            batch
            for batch in self._queue
            if TopicPartition(batch.topic, batch.partition) not in gone
        )
        batch = self._batch
        if batch is not None and TopicPartition(batch.topic, batch.partition) in gone:
            self._batch, self._records, self._next = None, [], 0

    def _load(self) -> bool:
        """Decode the next batch if the current one is used up; False if nothing waits."""
        while self._next >= len(self._records):
            if not self._queue:
                return False
            self._batch = self._queue.popleft()
            self._records, self._next = self._batch.records(), 0
        return True

    def _take_back(self) -> None:
        """End the iterator given out; what it has not returned waits again."""
        self._next -= operator.length_hint(self._iterator)
        # The user may hold the iterator still: over an empty list it ends.
        self._chunk.clear()
        self._iterator = iter(())
