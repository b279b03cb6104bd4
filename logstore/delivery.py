"""What a consumer has fetched, and how much of it the user has seen. Pure.

The user takes records by lists (`take`), by batches (`take_batch`) or one by one from the iterators
of `chunk`. These make each record when it is asked for and run no Python code for it: a ticker, one
byte per record, is consumed in step, and how much of it is left is asked of it when somebody wants
to know.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator

from .errors import DataError
from .record import Record, TopicPartition
from .record_batch import RecordBatch


class Delivery:
    """Batches waiting for the user, in order. For one thread at a time.

    Invariant: the records of `_batch` from index `_next` on are undelivered, and so are as many
    before it as `_ticker` has left: those the iterator given out has not returned yet.
    """

    def __init__(self) -> None:
        self._queue: deque[RecordBatch] = deque()
        self._batch: RecordBatch | None = None
        self._next = 0
        self._ticks = bytearray()
        self._ticker = iter(self._ticks)

    def extend(self, batches: Iterable[RecordBatch]) -> None:
        """Add batches behind what waits."""
        self._queue.extend(batches)

    def __bool__(self) -> bool:
        """Whether a record waits."""
        return self._load() is not None

    def take(self, records_max: int) -> list[Record]:
        """The next records, delivered with this.

        Raises:
            DataError: The very next record cannot be decoded; it stays the next one.
        """
        taken: list[Record] = []
        while len(taken) < records_max and (batch := self._load()) is not None:
            stop = min(self._next + records_max - len(taken), batch.record_count)
            try:
                taken += batch.slice(self._next, stop)
            except DataError:
                if taken:
                    break  # these first; the next call raises
                raise
            self._next = stop
        return taken

    def take_batch(self) -> RecordBatch | None:
        """The next batch, or what is left of it, delivered with this; None if nothing waits."""
        batch = self._load()
        if batch is None:
            return None
        rest = batch.slice(self._next) if self._next else batch
        self._next = batch.record_count
        return rest

    def chunk(self, records_max: int) -> Iterator[Record] | None:
        """Iterator over the next records of one batch; None if nothing waits.

        A record is delivered when the iterator returns it. Any other call ends the iterator.
        """
        batch = self._load()
        if batch is None:
            return None
        stop = min(self._next + records_max, batch.record_count)
        part = batch.slice(self._next, stop)
        self._ticks = bytearray(b"\x01") * part.record_count
        self._ticker = iter(self._ticks)
        self._next = stop
        return itertools.compress(part, self._ticker)

    def undelivered(self) -> dict[TopicPartition, int]:
        """Offset of the first waiting record of each partition that has one."""
        waiting: dict[TopicPartition, int] = {}
        for batch in reversed(self._queue):
            waiting[TopicPartition(batch.topic, batch.partition)] = batch.base_offset
        if (current := self._batch) is not None:
            first = self._next - operator.length_hint(self._ticker)
            if first < current.record_count:
                place = TopicPartition(current.topic, current.partition)
                waiting[place] = current.slice(first).base_offset
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
            self._batch, self._next = None, 0

    def _load(self) -> RecordBatch | None:
        """The batch with the next record; None if nothing waits."""
        self._take_back()
        while self._batch is None or self._next >= self._batch.record_count:
            if not self._queue:
                return None
            self._batch, self._next = self._queue.popleft(), 0
        return self._batch

    def _take_back(self) -> None:
        """End the iterator given out; what it has not returned waits again."""
        self._next -= operator.length_hint(self._ticker)
        # The user may hold the iterator still: without ticks it ends.
        self._ticks.clear()
        self._ticker = iter(self._ticks)
