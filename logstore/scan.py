"""`Store.read`: a lazy, re-iterable range of one topic, as records or batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from .arrow_batch import chosen_fields
from .batch_filter import BatchFilter
from .config import Isolation
from .engine import Engine
from .errors import UsageError
from .reader import LogReader
from .record import Record, TopicPartition
from .record_batch import RecordBatch
from .topic_schema import no_schema, pyarrow

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
        columns: Read these columns only, of a topic with a schema; None reads records.
        where: Leave out batches without rows of this kind; needs `columns`.
    """

    def __init__(
        self,
        engine: Engine,
        starts: Mapping[TopicPartition, int],
        stops: Mapping[TopicPartition, int] | None,
        isolation: Isolation,
        columns: Sequence[str] | None = None,
        where: BatchFilter | None = None,
    ) -> None:
        self._engine = engine
        self._columns = None if columns is None else tuple(columns)
        self._where = where
        self._starts = dict(starts)
        self._stops = dict(stops) if stops is not None else None
        self._isolation: Isolation = isolation

    def __repr__(self) -> str:
        stops = self._stops or {}
        ranges = (
            f"{place.topic}/{place.partition} [{start}, {stops.get(place, '...')})"
            for place, start in islice(self._starts.items(), 3)
        )
        more = len(self._starts) - 3
        return f"<Scan {', '.join(ranges)}{f' and {more} more' if more > 0 else ''}>"

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

    def arrow(self, columns: Sequence[str] | None = None, where: Any = None) -> Any:
        """The values as a pyarrow.RecordBatchReader, which reads as it is iterated over.

        Polars, pandas and DuckDB take a scan as it is, by `__arrow_c_stream__`.

        Args:
            columns: These only, as in `RecordBatch.arrow`: no other is read from disk. None: those
                the scan was made with, else all fields.
            where: A pyarrow.compute expression; only rows for which it is true. It may be about any
                column, whether or not it is among `columns`. Of a batch whose bounds say that it
                has no such row, only header and directory are read.

        Raises:
            UsageError: The topic has no schema or no such column, the scan has no end, or `where`
                is no expression over the columns.
            MissingExtraError: pyarrow is not installed.
            DataError: While reading, as `batches`.
        """
        pa = pyarrow()
        (topic,) = {partition.topic for partition in self._starts}
        if self._stops is None:
            raise UsageError(
                "a scan that follows has no end: give it a stop, or take batches()", topic=topic
            )
        declared = self._engine.topic(topic).schema
        if declared is None:
            raise no_schema(topic, "read columns")
        try:
            fields = chosen_fields(declared, self._columns if columns is None else columns)
            condition = None if where is None else BatchFilter(where, declared)
        except UsageError as error:
            raise error.at(topic=topic) from None
        chosen = [field.name for field in fields]
        read = chosen
        if condition is not None:
            read = [*chosen, *(name for name in condition.names if name not in chosen)]
        scan = Scan(self._engine, self._starts, self._stops, self._isolation, read, condition)
        return pa.RecordBatchReader.from_batches(
            pa.schema(fields), scan._chosen(chosen, read, condition)
        )

    def _chosen(
        self, chosen: list[str], read: list[str], condition: BatchFilter | None
    ) -> Iterator[Any]:
        for batch in self.batches():
            if condition is None:
                yield batch.arrow(chosen)
            else:
                try:
                    rows = condition.keep(batch.arrow(read))
                except UsageError as error:
                    raise error.at(topic=batch.topic, partition=batch.partition) from None
                if rows.num_rows:
                    yield rows.select(chosen)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.arrow().__arrow_c_stream__(requested_schema)

    def _reader(self, starts: Mapping[TopicPartition, int]) -> LogReader:
        return LogReader(
            self._engine,
            starts,
            isolation=self._isolation,
            columns=self._columns,
            may_hold=None if self._where is None else self._where.may_hold,
        )

    def _follow(self, max_records: int | None, max_bytes: int) -> Iterator[RecordBatch]:
        with self._reader(self._starts) as reader:
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
        with self._reader(starts) as reader:
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
