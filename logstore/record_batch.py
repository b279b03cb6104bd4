"""A batch as readers see it: columns and records, decoded when asked for. Pure.

Whoever reads only values never touches keys, and a section is decompressed at most once. The bytes
were verified before (batch.verify_body); the buffers inside are still checked against each other,
because a hash says that bytes are what was written, not that they make sense.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, Final

from .arrow_batch import ArrowColumns, Projection, chosen_fields, section_columns
from .arrow_columns import bad_record, from_json, to_json
from .columns import (
    decode_binary,
    decode_bitmap,
    decode_headers,
    decode_integers,
    decode_joined,
    decode_offsets,
    decode_selected,
    padded,
    require_end,
)
from .compression import decompress
from .errors import CorruptBatchError, DataError, UsageError
from .format import (
    COLUMNS,
    HAS_HEADERS,
    HAS_KEYS,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_DELTAS,
    UNIFORM_TIMESTAMP,
    BatchHeader,
    Buffer,
)
from .record import Headers, Record
from .topic_schema import pyarrow, stored_schema

_SECTION_A: Final = 0
_SECTION_B: Final = 1
_SECTION_C: Final = 2
_INVERTED: Final = bytes.maketrans(b"\x00\x01", b"\x01\x00")


class _Columns:
    """The decoded columns of one whole batch, shared by all slices of it.

    Two threads may decode the same column at once; both get the same answer.
    """

    __slots__ = (
        "_arrow",
        "_body",
        "_headers",
        "_joined",
        "_joined_known",
        "_keys",
        "_lead",
        "_projection",
        "_values",
        "header",
        "parsed",
        "schema",
    )

    def __init__(
        self,
        header: BatchHeader,
        body: Buffer,
        schema: str | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.header = header
        self.schema = schema
        self._projection = projection
        self._arrow: ArrowColumns | None = None
        self.parsed: Any = None
        # Slices of a view copy nothing; only the entries of a column become bytes of their own.
        self._body = memoryview(body)
        self._lead: tuple[list[int], Sequence[int], int, Buffer] | None = None
        self._keys: list[bytes | None] | None = None
        self._values: list[bytes | None] | None = None
        self._joined: tuple[bytes, Sequence[int]] | None = None
        self._joined_known = False
        self._headers: list[Headers] | None = None

    def _section(self, number: int) -> Buffer:
        if self._projection is not None and number != _SECTION_A:
            raise UsageError("only some columns were read: read without columns= for records")
        sections = self.header.sections
        start = sum(section.stored_bytes for section in sections[:number])
        stored_bytes, raw_bytes, _ = sections[number]
        stored = self._body[start : start + stored_bytes]
        if stored_bytes == raw_bytes or (number == _SECTION_B and self.header.flags & COLUMNS):
            return stored
        return decompress(self.header.codec, stored, raw_bytes)

    def _leading(self) -> tuple[list[int], Sequence[int], int, Buffer]:
        """Timestamps, offsets, where the keys start in section A, and section A."""
        if self._lead is not None:
            return self._lead
        header = self.header
        count = header.record_count
        section = self._section(_SECTION_A)
        position = 0
        if header.flags & UNIFORM_TIMESTAMP:
            timestamps = [header.min_timestamp_ms] * count
        else:
            timestamps = decode_integers("q", section, position, count)
            position += 8 * count
        base = header.base_offset
        offsets: Sequence[int] = range(base, base + count)
        if header.flags & OFFSET_DELTAS:
            deltas = decode_integers("I", section, position, count)
            position += padded(4 * count)
            if sorted(set(deltas)) != deltas or deltas[-1] > header.last_offset_delta:
                raise CorruptBatchError("offset deltas do not rise within the batch")
            offsets = [base + delta for delta in deltas]
        if not header.flags & HAS_KEYS:
            require_end(section, position)
        self._lead = (timestamps, offsets, position, section)
        return self._lead

    @property
    def timestamps_ms(self) -> list[int]:
        return self._leading()[0]

    @property
    def offsets(self) -> Sequence[int]:
        header = self.header
        if not header.flags & OFFSET_DELTAS:
            return range(header.base_offset, header.base_offset + header.record_count)
        return self._leading()[1]

    @property
    def keys(self) -> list[bytes | None]:
        if self._keys is None:
            header = self.header
            if header.flags & HAS_KEYS:
                _, _, position, section = self._leading()
                nullable = bool(header.flags & NULL_KEYS)
                keys, end = decode_binary(section, position, header.record_count, nullable=nullable)
                require_end(section, end)
                self._keys = keys
            else:
                self._keys = [None] * header.record_count
        return self._keys

    @property
    def values(self) -> list[bytes | None]:
        if self._values is None:
            header = self.header
            if header.record_count == 0:
                self._values = []
                return self._values
            section = self._section(_SECTION_B)
            if header.flags & COLUMNS:
                arrow = self.arrow
                fields = list(arrow.schema)
                self._values = [*to_json([arrow.column(field) for field in fields], fields)]
                return self._values
            nullable = bool(header.flags & NULL_VALUES)
            values, end = decode_binary(section, 0, header.record_count, nullable=nullable)
            require_end(section, end)
            self._values = values
        return self._values

    @property
    def joined_values(self) -> tuple[bytes, Sequence[int]] | None:
        if not self._joined_known:
            header = self.header
            if header.record_count and not header.flags & (COLUMNS | NULL_VALUES):
                self._joined = decode_joined(self._section(_SECTION_B), header.record_count)
            # Also that there are none: a batch may be handed out a record at a time.
            self._joined_known = True
        return self._joined

    @property
    def arrow(self) -> ArrowColumns:
        """Of a batch of columns."""
        if self._arrow is None:
            header = self.header
            if self._projection is not None:
                self._arrow = ArrowColumns(self._projection, header.record_count)
            else:
                section, directory_hash = self._section(_SECTION_B), header.sections[1].hash
                self._arrow = section_columns(section, directory_hash, header.record_count)
        return self._arrow

    def column(self, field: Any) -> Any:
        """One column of the values as a pyarrow.Array."""
        if self.header.flags & COLUMNS:
            return self.arrow.column(field)
        if self.parsed is None:
            self.parsed = self._parse()
        return self.parsed.column(field.name)

    @property
    def objects(self) -> tuple[Buffer, int] | None:
        """Section B and its count where values are JSON that Arrow may parse; else None."""
        header = self.header
        if self.parsed is not None or self._values is not None or not header.record_count:
            return None
        strict = self.schema is None or header.flags & (COLUMNS | NULL_VALUES)
        return None if strict else (self._section(_SECTION_B), header.record_count)

    def _parse(self) -> Any:
        """The JSON values as a pyarrow.RecordBatch of the schema of the topic."""
        from .json_columns import parse_together  # noqa: PLC0415 - an extra

        parse_together([self])
        if self.parsed is not None:
            return self.parsed
        assert self.schema is not None
        offsets = self.offsets
        return from_json(self.values, self.schema, lambda row, why: bad_record(offsets[row], why))

    def record_column(self, name: str, partition: int) -> Any:
        """One column of what records have beside their values."""
        pa, header = pyarrow(), self.header
        if name == "_partition":
            return pa.repeat(pa.scalar(partition, pa.int32()), header.record_count)
        if name == "_key":
            return pa.array(self.keys, pa.binary())
        if name == "_timestamp_ms":
            if header.flags & UNIFORM_TIMESTAMP:
                return pa.repeat(
                    pa.scalar(header.min_timestamp_ms, pa.int64()), header.record_count
                )
            section = self._leading()[3]
            buffer = pa.py_buffer(bytes(section[: 8 * header.record_count]))
            return pa.Array.from_buffers(pa.int64(), header.record_count, [None, buffer])
        import numpy  # noqa: PLC0415 - an extra

        offsets = self.offsets
        if isinstance(offsets, range):
            return pa.array(numpy.arange(offsets.start, offsets.stop))
        return pa.array(offsets, pa.int64())

    def tombstones(self) -> bytes:
        count = self.header.record_count
        if not self.header.flags & NULL_VALUES:
            return bytes(count)
        section = self._section(_SECTION_B)
        offsets, start = decode_offsets(section, 0, count)
        return decode_bitmap(section, start + padded(offsets[-1]), count).translate(_INVERTED)

    def stored_values(self) -> Buffer:
        """Section B as it is stored."""
        a_bytes, b_bytes = (section.stored_bytes for section in self.header.sections[:2])
        return self._body[a_bytes : a_bytes + b_bytes]

    def values_at(self, indexes: Sequence[int]) -> list[Buffer | None]:
        """Some values, without decoding the others."""
        if self.header.flags & COLUMNS:
            return [self.values[index] for index in indexes]
        nullable = bool(self.header.flags & NULL_VALUES)
        section = self._section(_SECTION_B)
        return decode_selected(section, self.header.record_count, indexes, nullable=nullable)

    @property
    def headers(self) -> list[Headers]:
        if self._headers is None:
            header = self.header
            if header.flags & HAS_HEADERS:
                self._headers = decode_headers(self._section(_SECTION_C), header.record_count)
            else:
                self._headers = [()] * header.record_count
        return self._headers


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
        self, topic: str, partition: int, columns: _Columns, start: int, stop: int
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
    def values(self) -> list[bytes | None]:
        """Value of each record; None is a tombstone."""
        try:
            column = self._columns.values
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
        raise UsageError(
            "the topic has no schema: create it with schema= to read columns", topic=self.topic
        )

    def arrow(self, columns: Sequence[str] | None = None) -> Any:
        """The values as a pyarrow.RecordBatch, without a copy where they are stored as columns.

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
        fields = chosen_fields(self.schema, columns)
        try:
            arrays = [
                self._columns.record_column(field.name, self.partition)
                if field.name.startswith("_")
                else self._columns.column(field)
                for field in fields
            ]
        except DataError as error:
            raise self._placed(error) from None
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        return batch if self._whole else batch.slice(self._start, self.record_count)

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

    def stored_columns(self, indexes: Sequence[int]) -> Any:
        """The rows at `indexes` of a whole batch of columns, under the schema it was written with.

        As a pyarrow.RecordBatch, for compaction.
        """
        assert self._whole
        pa, arrow = pyarrow(), self._columns.arrow
        schema = arrow.schema
        batch = pa.RecordBatch.from_arrays([arrow.column(each) for each in schema], schema=schema)
        return batch.take(pa.array(indexes, pa.int64()))

    def stored_section(self) -> tuple[Buffer, int]:
        """Section B of a whole batch as stored, and its hash."""
        assert self._whole
        return self._columns.stored_values(), self.header.sections[_SECTION_B].hash

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
    columns = _Columns(header, body, schema, projection)
    return RecordBatch(topic, partition, columns, 0, header.record_count)
