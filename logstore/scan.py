"""`Store.read`: a lazy, re-iterable range of one topic, as records or batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from .config import Isolation
from .engine import Engine
from .reader import LogReader
from .record import Record, TopicPartition
from .record_batch import RecordBatch

END_PAUSE_SECONDS = 0.01


class Scan:
    """Records of a topic between two positions, several partitions in append order.

    Iterating again starts again. Records that retention removes in between are an error, never
    a silent gap.

    Args:
        engine: The open store.
        starts: First offset per partition.
        stops: One past the last offset per partition; None follows for ever.
        isolation: committed or uncommitted.
    """

    def __init__(
        self,
        engine: Engine,
        starts: Mapping[TopicPartition, int],
        stops: Mapping[TopicPartition, int] | None,
        isolation: Isolation,
    ) -> None:
        self._engine = engine
        self._starts = dict(starts)
        self._stops = dict(stops) if stops is not None else None
        self._isolation: Isolation = isolation

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self.batches())

    def batches(
        self, max_records: int | None = None, max_bytes: int = 1 << 20
    ) -> Iterator[RecordBatch]:
        """The same as batches: columns of keys, values, timestamps and offsets.

        Raises:
            DataError: Damage, with topic, partition, offset, file and position.
        """
        if self._stops is None:
            yield from self._follow(max_records, max_bytes)
        else:
            yield from self._bounded(self._stops, max_records, max_bytes)

    def _follow(self, max_records: int | None, max_bytes: int) -> Iterator[RecordBatch]:
        with LogReader(self._engine, self._starts, isolation=self._isolation) as reader:
            while True:
                batches = reader.poll(max_records, max_bytes)
                yield from batches
                if not batches:
                    reader.wait(None)

    def _bounded(
        self, stops: Mapping[TopicPartition, int], max_records: int | None, max_bytes: int
    ) -> Iterator[RecordBatch]:
        starts = {
            partition: start
            for partition, start in self._starts.items()
            if start < stops[partition]
        }
        with LogReader(self._engine, starts, isolation=self._isolation) as reader:
            while reader.positions:
                left = sum(stops[each] - at for each, at in reader.positions.items())
                wanted = left if max_records is None else min(left, max_records)
                batches = reader.poll(wanted, max_bytes)
                for batch in batches:
                    stop = stops[TopicPartition(batch.topic, batch.partition)]
                    if batch.base_offset < stop:
                        yield batch.slice(0, batch.index_of(stop))
                for partition, position in reader.positions.items():
                    if position >= stops[partition]:
                        reader.remove(partition)
                if not batches and reader.positions:
                    if reader.at_end():
                        return
                    # A sync of another writer holds the merge back; that takes a moment.
                    reader.wait(END_PAUSE_SECONDS)
