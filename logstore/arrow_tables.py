"""Tables for SQL: topics, and whatever else comes in batches of rows, as datasets of pyarrow.

DuckDB asks a dataset for a scanner with the columns it needs, as often as it needs them, so that a
query reads what it must and a join of a topic with itself sees both. Imports pyarrow (extra `sql`):
import it late, as sql.py does. What SQL is and which tables there are, sql.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import pyarrow as pa
from pyarrow import dataset

from .arrow_batch import RECORD_COLUMNS, chosen_fields
from .errors import MillstreamError, RecordError
from .record_batch import RecordBatch
from .scan import Scan

GATHER_RECORDS: Final = 1 << 16
"""Records of one Arrow batch. Much smaller ones cost DuckDB more than their rows do."""
GATHER_BYTES: Final = 4 << 20
"""Of the batches on disk that make one Arrow batch."""

Batches = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Makes a new pass over a table: batches of these columns, in this order."""
Filtered = Callable[[Sequence[str], Any], Iterator[pa.RecordBatch]]
"""The same of the rows for which a pyarrow.compute expression, if there is one, is true."""

_HEADERS: Final = pa.list_(
    pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())])
)


class ArrowTable(dataset.Dataset):  # type: ignore[misc] # pyarrow has no types
    """Something that can be scanned again and again, a few columns at a time.

    Args:
        schema: Of all its columns.
        batches: Makes one pass.
        failed: Told of our own errors in a pass, because Arrow hands on no more than their text.
        filtered: Makes a pass that filters by itself; else rows are filtered here.
    """

    def __init__(
        self,
        schema: pa.Schema,
        batches: Batches,
        failed: Callable[[MillstreamError], None],
        filtered: Filtered | None = None,
    ) -> None:
        # Not the constructor above: a dataset of pyarrow's own is one of its C++ objects.
        self._columns = schema
        self._batches = batches
        self._failed = failed
        self._filtered = filtered

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self._columns

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: Any = None,  # noqa: A002 - the name by which it is given
        **options: object,
    ) -> Any:
        """What reads these columns of the rows that pass the filter."""
        del options
        names = self._columns.names if columns is None else list(columns)
        if filter is None:
            return _Pass(self._reader(names))
        if self._filtered is not None:
            return _Pass(self._reader(names, filter))
        read = [each for each in self._columns.names if each in names or self._uses(filter, each)]
        return dataset.Scanner.from_batches(self._reader(read), columns=names, filter=filter)

    def _uses(self, condition: Any, name: str) -> bool:
        """Whether a condition is about a column; it cannot be asked, so it is tried without."""
        try:
            self._columns.empty_table().drop_columns([name]).filter(condition)
        except pa.ArrowInvalid:
            return True
        return False

    def _reader(self, names: Sequence[str], condition: Any = None) -> pa.RecordBatchReader:
        schema = pa.schema([self._columns.field(name) for name in names])
        return pa.RecordBatchReader.from_batches(schema, self._told(names, condition))

    def _told(self, names: Sequence[str], condition: Any) -> Iterator[pa.RecordBatch]:
        try:
            if condition is None or self._filtered is None:
                yield from self._batches(names)
            else:
                yield from self._filtered(names, condition)
        except MillstreamError as error:
            self._failed(error)
            raise


class _Pass:
    """What DuckDB needs of a scanner."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader

    def to_reader(self) -> pa.RecordBatchReader:
        return self._reader


def record_schema(*, text: bool) -> pa.Schema:
    """The columns of a topic; keys and values as text or as bytes."""
    content = pa.string() if text else pa.binary()
    return pa.schema(
        [
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp", pa.timestamp("us"), nullable=False),
            pa.field("key", content),
            pa.field("value", content),
            pa.field("headers", _HEADERS, nullable=False),
        ]
    )


def declared_schema(fields: pa.Schema) -> pa.Schema:
    """The columns of a topic with a schema: its fields, and what records have beside them."""
    return pa.schema(chosen_fields(fields, [*fields.names, *RECORD_COLUMNS]))


def text_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


def record_batches(scan: Scan, schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The records of a scan as Arrow batches; decodes no more than the columns named.

    Raises:
        RecordError: A key or value that was asked for as text is not UTF-8.
        DataError: Damage, with topic, partition, offset, file and position.
    """
    fields = pa.schema([schema.field(name) for name in names])
    for batches in _gathered(scan):
        arrays = [_column(batches, field) for field in fields]
        yield pa.RecordBatch.from_arrays(arrays, schema=fields)


def _gathered(scan: Scan) -> Iterator[list[RecordBatch]]:
    held: list[RecordBatch] = []
    records = size_bytes = 0
    for batch in scan.batches():
        if not batch.record_count:
            continue
        held.append(batch)
        records += batch.record_count
        size_bytes += sum(section.raw_bytes for section in batch.header.sections)
        if records >= GATHER_RECORDS or size_bytes >= GATHER_BYTES:
            yield held
            held, records, size_bytes = [], 0, 0
    if held:
        yield held


def _column(batches: Sequence[RecordBatch], field: pa.Field) -> pa.Array:
    parts = [_array(batch, field) for batch in batches]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _array(batch: RecordBatch, field: pa.Field) -> pa.Array:
    match field.name:
        case "partition":
            return pa.repeat(pa.scalar(batch.partition, field.type), batch.record_count)
        case "offset":
            return pa.array(list(batch.offsets), field.type)
        case "timestamp":
            return _times(batch, field.type)
        case "headers":
            pairs = [[{"name": n, "value": v} for n, v in each] for each in batch.headers]
            return pa.array(pairs, field.type)
        case name:
            entries = batch.keys if name == "key" else batch.values
            return _content(batch, name, pa.array(entries, pa.binary()), field.type)


def _times(batch: RecordBatch, kind: pa.DataType) -> pa.Array:
    times = pa.array(batch.timestamps_ms, pa.timestamp("ms"))
    try:
        return times.cast(kind)  # microseconds, the timestamps that DuckDB's functions take
    except pa.ArrowInvalid:
        raise RecordError(
            "a timestamp is beyond the year 294,246, which SQL cannot say: leave out the column",
            topic=batch.topic,
            partition=batch.partition,
            offset=batch.base_offset,
        ) from None


def _content(batch: RecordBatch, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        entries = batch.keys if name == "key" else batch.values
        row = next(row for row, entry in enumerate(entries) if not _is_text(entry))
        raise RecordError(
            f"a {name} is not UTF-8, and no text therefore: ask for it as bytes, from"
            f' bytes."{batch.topic}"',
            topic=batch.topic,
            partition=batch.partition,
            offset=batch.offsets[row],
        ) from None


def _is_text(entry: bytes | None) -> bool:
    try:
        (entry or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def row_batches(
    schema: pa.Schema, rows: Iterator[Sequence[object]], names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Rows, in the order of the schema, as Arrow batches of the columns named."""
    fields = pa.schema([schema.field(name) for name in names])
    places = [schema.names.index(name) for name in names]
    while held := list(islice(rows, GATHER_RECORDS)):
        arrays = [
            pa.array([row[place] for row in held], field.type)
            for place, field in zip(places, fields, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=fields)
