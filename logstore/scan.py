"""`Store.read`: a lazy, re-iterable range of one topic, as records or batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .engine import Engine
from .config import Isolation
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
        for batch in self.batches():
            yield from batch.records()

    def batches(
        self, max_records: int | None = None, max_bytes: int = 1 << 20
    ) -> Iterator[RecordBatch]:
        """The same as batches: columns of keys, values, timestamps and offsets.

        Raises:
            DataError: Damage, with topic, partition, offset, file and position.
        """
        stops = self._stops
        starts = self._starts
        if stops is not None:
            starts = {
                partition: start for partition, start in starts.items() if start < stops[partition]
            }
        with LogReader(self._engine, starts, isolation=self._isolation) as reader:
            open_partitions = set(starts)
            while open_partitions:
                batches = reader.poll(max_records, max_bytes)
                for batch in batches:
                    if stops is None:
                        yield batch
                        continue
                    partition = TopicPartition(batch.topic, batch.partition)
                    cut = batch.slice(0, batch.index_of(stops[partition]))
                    if cut.record_count:
                        yield cut
                if stops is not None:
                    for partition, position in reader.positions.items():
                        if position >= stops[partition] and partition in open_partitions:
                            open_partitions.discard(partition)
                            reader.remove(partition)
                    if not batches and open_partitions and reader.at_end():
                        return
                if not batches and open_partitions:
                    reader.wait(None if stops is None else END_PAUSE_SECONDS)
