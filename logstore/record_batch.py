"""A batch as readers see it: columns and records, decoded when asked for. Pure.

Whoever reads only values never touches keys, and a section is decompressed at most once. How its
bytes are decoded is `batch_columns.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, repeat
from typing import Any

from .arrow_batch import Projection, chosen_fields
from .batch_columns import BatchColumns
from .errors import DataError, UsageError
from .format import COLUMNS, HAS_HEADERS, HAS_KEYS, UNIFORM_TIMESTAMP, BatchHeader, Buffer
from .record import Headers, Record
from .topic_schema import no_schema, pyarrow, stored_schema


class RecordBatch:
    """Records of one batch, or of a slice of it, as columns. Immutable and thread-safe.

    The lists it hands out are shared; do not change them.

    Attributes:
        topic: Topic name.
        partition: Partition number.
        header: The header of the whole batch, also for a slice.
        record_count: Number of records here; 0 for control batches.
        base_offset: First offset covered.
        last_offset: Last offset covered; reading goes on at the next. It may lie behind the last
            record where compaction or a control batch left offsets without records.
    """

    __slots__ = (
        "_columns",
        "_start",
        "_stop",
        "base_offset",
        "header",
        "last_offset",
        "partition",
        "record_count",
        "topic",
    )

    def __init__(
        self, topic: str, partition: int, columns: BatchColumns, start: int, stop: int
    ) -> None:
        header = columns.header
        self.topic = topic
        self.partition = partition
        self.header = header
        self.record_count = stop - start
        self._columns = columns
        self._start = start
        self._stop = stop
        self.base_offset = header.base_offset
        self.last_offset = header.last_offset
        if start > 0:
            # An empty slice at the end starts behind the batch.
            whole = start < header.record_count
            self.base_offset = columns.offsets[start] if whole else header.next_offset
        if stop < header.record_count:
            self.last_offset = columns.offsets[stop - 1] if stop > start else self.base_offset - 1

    def __repr__(self) -> str:
        return (
            f"<RecordBatch {self.topic}/{self.partition}"
            f" offsets [{self.base_offset}, {self.last_offset + 1}) records {self.record_count}>"
        )

    @property
    def _whole(self) -> bool:
        return self.record_count == self.header.record_count

    @property
    def sequence(self) -> int:
        """Store-wide append order of the batch; slices of a batch share it."""
        return self.header.sequence

    @property
    def append_timestamp_ms(self) -> int:
        """When the batch was appended, UTC milliseconds, by the clock of its writer."""
        return self.header.append_timestamp_ms

    @property
    def prior_max_timestamp_ms(self) -> int:
        """Running maximum timestamp of the partition before the first record here."""
        header = self.header
        prior = header.prior_max_timestamp_ms
        if self._start == 0:
            return prior
        if header.flags & UNIFORM_TIMESTAMP:
            return max(prior, header.min_timestamp_ms)
        return max([prior, *self._columns.timestamps_ms[: self._start]])

    @property
    def offsets(self) -> Sequence[int]:
        """Offset of each record: a range, or a list where compaction left holes."""
        try:
            offsets = self._columns.offsets
        except DataError as error:
            raise self._placed(error) from None
        return offsets if self._whole else offsets[self._start : self._stop]

    @property
    def timestamps_ms(self) -> list[int]:
        """Timestamp of each record, UTC milliseconds."""
        try:
            column = self._columns.timestamps_ms
        except DataError as error:
            raise self._placed(error) from None
        return column if self._whole else column[self._start : self._stop]

    @property
    def keys(self) -> list[bytes | None]:
        """Key of each record."""
        try:
            column = self._columns.keys
        except DataError as error:
            raise self._placed(error) from None
        return column if self._whole else column[self._start : self._stop]

    @property
    def has_keys(self) -> bool:
        """Whether a record of the whole batch has a key, by its header."""
        return bool(self.header.flags & HAS_KEYS)

    @property
    def values(self) -> list[bytes | None]:
        """Value of each record; None is a tombstone."""
        try:
            column = self._columns.values
        except UsageError as error:
            raise error.at(topic=self.topic) from None
        except DataError as error:
            raise self._placed(error) from None
        return column if self._whole else column[self._start : self._stop]

    @property
    def joined_values(self) -> tuple[bytes, Sequence[int]] | None:
        """All values put together, for those who take them in one call, without an object for each.

        Returns:
            Bytes, and where in them each value begins; one more place says where the last one ends.
            The places rise strictly; bytes outside of them belong to other records. None where
            a value is empty or a tombstone, or where the values are stored as columns.
        """
        try:
            joined = self._columns.joined_values
        except DataError as error:
            raise self._placed(error) from None
        if joined is None or self._whole:
            return joined
        data, bounds = joined
        return data, bounds[self._start : self._stop + 1]

    @property
    def headers(self) -> list[Headers]:
        """Headers of each record."""
        try:
            column = self._columns.headers
        except DataError as error:
            raise self._placed(error) from None
        return column if self._whole else column[self._start : self._stop]

    def _placed(self, error: DataError) -> DataError:
        return error.at(
            topic=self.topic or None, partition=self.partition, offset=self.header.base_offset
        )

    def __iter__(self) -> Iterator[Record]:
        """The records in offset order, each made when it is asked for.

        Faster than `records` where they are not kept: a record that is dropped at once costs the
        garbage collector nothing.

        Raises:
            CorruptBatchError: The verified bytes do not make sense; at the call, not in between.
        """
        flags = self.header.flags
        if self.record_count == 0:
            return iter(())
        return map(  # columns of one batch are equally long; repeat is endless
            Record,
            repeat(self.topic),
            repeat(self.partition),
            self.offsets,
            repeat(self.header.min_timestamp_ms)
            if flags & UNIFORM_TIMESTAMP
            else self.timestamps_ms,
            self.keys if flags & HAS_KEYS else repeat(None),
            self.values,
            self.headers if flags & HAS_HEADERS else repeat(()),
        )

    def records(self) -> list[Record]:
        """All records here, in offset order. Built anew at each call.

        Raises:
            CorruptBatchError: The verified bytes do not make sense.
        """
        return list(self)

    def values_at(self, indexes: Sequence[int]) -> list[Buffer | None]:
        """The values at `indexes` of a whole batch, as buffers; the others are not decoded."""
        assert self._whole
        return self._columns.values_at(indexes)

    @property
    def columnar(self) -> bool:
        """Whether the values are stored as columns."""
        return bool(self.header.flags & COLUMNS)

    @property
    def schema(self) -> Any:
        """The pyarrow.Schema of `arrow()`: that of the topic now, not that of the batch.

        Raises:
            UsageError: The topic has none.
            MissingExtraError: pyarrow is not installed.
        """
        columns = self._columns
        if columns.schema is not None:
            return stored_schema(columns.schema)
        if self.columnar:
            return columns.arrow.schema
        raise no_schema(self.topic, "read columns")

    def arrow(self, columns: Sequence[str] | None = None) -> Any:
        """The values as a pyarrow.RecordBatch, without a copy where they are stored as columns.

        Tombstones are no rows: where there are some, it has less rows than there are records.

        Args:
            columns: Names of fields, and `_offset`, `_partition`, `_timestamp_ms` (int64, UTC) or
                `_key` (binary). None: all fields.

        Raises:
            UsageError: The topic has no schema, or no such column.
            RecordError: A value of a JSON topic does not fit the schema; it names the offset.
            CorruptBatchError: The verified bytes do not make sense.
            MissingExtraError: pyarrow is not installed.
        """
        pa = pyarrow()
        try:
            fields = chosen_fields(self.schema, columns)
            arrays = [
                self._columns.record_column(field.name, self.partition)
                if field.name.startswith("_")
                else self._columns.column(field)
                for field in fields
            ]
        except UsageError as error:
            raise error.at(topic=self.topic) from None
        except DataError as error:
            raise self._placed(error) from None
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        if self._whole:
            return batch
        present = self._columns.present
        if present is None:
            return batch.slice(self._start, self.record_count)
        rows = present[self._start : self._stop].count(1)
        return batch.slice(present[: self._start].count(1), rows)

    @property
    def has_tombstones(self) -> bool:
        """Whether a record of the whole batch may be a tombstone, by its header."""
        return self.header.has_tombstones

    @staticmethod
    def parse_together(batches: Sequence[RecordBatch]) -> None:
        """Parse JSON values of a topic with a schema for `arrow`, faster than batch by batch."""
        from .json_columns import parse_together  # noqa: PLC0415 - an extra

        with suppress(DataError):  # who asks for the batch is told, with its place
            parse_together([batch._columns for batch in batches])  # noqa: SLF001 - its own kind

    def limits(self) -> dict[str, tuple[int | float, int | float]]:
        """Lowest and highest value of columns in the whole batch, by name, from its directory.

        Whoever looks for something outside of them can skip the batch. Times are counted in the
        unit of their type. Empty unless the values are stored as columns.
        """
        try:
            return self._columns.arrow.limits() if self.columnar else {}
        except DataError as error:
            raise self._placed(error) from None

    def stored_columns(self, indexes: Sequence[int] | None) -> Any:
        """The rows at `indexes` of a whole batch of columns, under the schema it was written with.

        As a pyarrow.RecordBatch, for compaction. Tombstones among them have none. None: all rows.
        """
        assert self._whole
        pa, arrow = pyarrow(), self._columns.arrow
        schema = arrow.schema
        batch = pa.RecordBatch.from_arrays([arrow.column(each) for each in schema], schema=schema)
        if indexes is None:
            return batch
        present = self._columns.present
        if present is not None:
            rows = [*accumulate(present, initial=0)]
            indexes = [rows[index] for index in indexes if present[index]]
        return batch.take(pa.array(indexes, pa.int64()))

    @property
    def stored_schema(self) -> Any:
        """The pyarrow.Schema a batch of columns was written with."""
        return self._columns.arrow.schema

    @property
    def present(self) -> bytes | None:
        """A byte per record of a whole batch: 1 where there is a value. None: everywhere."""
        assert self._whole
        return self._columns.present

    def stored_section(self) -> tuple[Buffer, int]:
        """Section B of a whole batch as stored, and its hash."""
        assert self._whole
        return self._columns.stored_values(), self.header.sections[1].hash

    def tombstones(self) -> bytes:
        """A byte per record of a whole batch: 1 for a tombstone. No value is decoded."""
        assert self._whole
        return self._columns.tombstones()

    def slice(self, start: int, stop: int | None = None) -> RecordBatch:
        """The records of index [start, stop) as a batch that shares the decoded columns.

        Indexes count the records here, as in `list[start:stop]`. A slice up to the end keeps
        `last_offset`, so a reader moves past offsets without records.
        """
        first, last, _ = slice(start, stop).indices(self.record_count)
        last = max(first, last)
        return RecordBatch(
            self.topic, self.partition, self._columns, self._start + first, self._start + last
        )

    def from_offset(self, offset: int) -> RecordBatch:
        """The records at `offset` and after."""
        if offset <= self.base_offset:
            return self
        return self.slice(self.index_of(offset))

    def index_of(self, offset: int) -> int:
        """Index of the first record whose offset is at least `offset`; record_count if none."""
        offsets = self.offsets
        if isinstance(offsets, range):
            return min(max(0, offset - offsets.start), len(offsets))
        return bisect_left(offsets, offset)


def open_columns(
    topic: str,
    partition: int,
    header: BatchHeader,
    body: Buffer,
    schema: str | None = None,
    projection: Projection | None = None,
) -> RecordBatch:
    """The whole batch of `header` and its verified `body`.

    Args:
        topic: For the records.
        partition: For the records.
        header: As parsed.
        body: Verified; with a `projection` section A is enough.
        schema: Stored form of the schema its topic has now.
        projection: The columns that were read.
    """
    columns = BatchColumns(header, body, schema, projection)
    return RecordBatch(topic, partition, columns, 0, header.record_count)
