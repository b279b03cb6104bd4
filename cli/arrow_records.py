"""Records as Parquet and Arrow IPC files, and back.

Columns: partition, offset, timestamp (UTC milliseconds), key and value (binary), headers (a list of
name and value). When reading only `value` has to be there; keys and values may be text, timestamps
of any unit or whole milliseconds. Needs the extra `arrow`, imported when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import click

from millstream import Headers, Record, UsageError, missing_extra

from .chunks import Chunk, take
from .input import BLOCK_BYTES

ArrowKind: TypeAlias = Literal["parquet", "arrow"]

ROWS: Final = 10_000
_GROUP_ROWS: Final = 131_072
"""Rows of a group of Parquet, which is what readers skip or read."""


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("A file of Parquet or Arrow", "pyarrow", "arrow") from None
    return pyarrow


def _parquet() -> Any:
    _pyarrow()
    from pyarrow import parquet  # noqa: PLC0415 - an extra

    return parquet


class ArrowWriter:
    """Writes records to a file of one of the two kinds.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, descriptor: int, kind: ArrowKind) -> None:
        self._pa = pa = _pyarrow()
        header = pa.struct(
            [pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())]
        )
        self._schema = pa.schema(
            [
                pa.field("partition", pa.int32(), nullable=False),
                pa.field("offset", pa.int64(), nullable=False),
                pa.field("timestamp", pa.timestamp("ms", tz="UTC"), nullable=False),
                pa.field("key", pa.binary()),
                pa.field("value", pa.binary()),
                pa.field("headers", pa.list_(header), nullable=False),
            ]
        )
        self._file = os.fdopen(descriptor, "wb", closefd=False)
        if kind == "parquet":
            self._writer = _parquet().ParquetWriter(self._file, self._schema, compression="zstd")
        else:
            self._writer = pa.ipc.new_file(self._file, self._schema)
        self._gathers = kind == "parquet"
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, records: Sequence[Record]) -> None:
        """Append records."""
        pa, schema = self._pa, self._schema
        times = pa.array([record.timestamp_ms for record in records], pa.int64())
        columns = [
            pa.array([record.partition for record in records], pa.int32()),
            pa.array([record.offset for record in records], pa.int64()),
            times.cast(schema.field("timestamp").type),
            pa.array([record.key for record in records], pa.binary()),
            pa.array([record.value for record in records], pa.binary()),
            pa.array(
                [[{"name": n, "value": v} for n, v in record.headers] for record in records],
                schema.field("headers").type,
            ),
        ]
        batch = pa.record_batch(columns, schema=schema)
        if not self._gathers:
            self._writer.write_batch(batch)
            return
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= 8 * BLOCK_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        table = self._pa.Table.from_batches(self._batches, self._schema)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._batches, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write what makes the file whole."""
        if self._batches:
            self._write_group()
        self._writer.close()
        self._file.close()


def read_arrow(path: str, kind: ArrowKind, now_ms: int) -> Iterator[Chunk]:
    """Chunks of the records in a file.

    Args:
        path: The file.
        kind: What it is; an Arrow IPC stream is read as well as a file.
        now_ms: The time of records without one.

    Raises:
        MissingExtraError: pyarrow is not installed.
        UsageError: A column is missing or of the wrong type.
        click.ClickException: The file is damaged, or of another kind; it says where.
    """
    pa = _pyarrow()
    row = 0
    try:
        with pa.OSFile(path, "rb") as file:
            for batch in _batches(pa, file, kind):
                for start in range(0, batch.num_rows, ROWS):
                    chunk = _chunk(pa, batch.slice(start, ROWS), now_ms, row)
                    row += len(chunk.values)
                    yield from _cut(chunk)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.ClickException(f"{path}, after row {row}: {first}") from None


def _batches(pa: Any, file: Any, kind: ArrowKind) -> Iterator[Any]:
    if kind == "parquet":
        yield from _parquet().ParquetFile(file).iter_batches(ROWS)
        return
    try:
        reader = pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        yield from pa.ipc.open_stream(file)
        return
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate(full=True)  # what a file says of itself is not to be trusted
        yield batch


def _chunk(pa: Any, batch: Any, now_ms: int, first_row: int) -> Chunk:
    names = batch.schema.names
    if "value" not in names:
        raise UsageError(f'no column is called "value"; there are {", ".join(names) or "none"}')
    values = _binary(pa, batch, "value", first_row)
    keys = _binary(pa, batch, "key", first_row) if "key" in names else None
    times: list[int] = [now_ms] * batch.num_rows
    if "timestamp" in names:
        found = _times(pa, batch, first_row).to_pylist()
        times = [now_ms if each is None else each for each in found]
    partitions = None
    if "partition" in names:
        partitions = _cast(batch, "partition", pa.int64(), first_row).to_pylist()
    headers = _headers(batch, first_row) if "headers" in names else None
    return Chunk(values, keys, times, partitions, headers)


def _times(pa: Any, batch: Any, first_row: int) -> Any:
    """The timestamps as whole milliseconds, rounded down."""
    kind = batch.schema.field("timestamp").type
    if pa.types.is_timestamp(kind):
        column = batch.column("timestamp")
        if kind.unit in {"us", "ns"}:
            whole = column.cast(pa.int64())
            divisor = 1000 if kind.unit == "us" else 1_000_000
            return pa.array(
                [None if each is None else each // divisor for each in whole.to_pylist()],
                pa.int64(),
            )
        return _cast(batch, "timestamp", pa.timestamp("ms", kind.tz), first_row).cast(pa.int64())
    return _cast(batch, "timestamp", pa.int64(), first_row)


def _binary(pa: Any, batch: Any, name: str, first_row: int) -> list[bytes | None]:
    kind = batch.schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string()):
        raise UsageError(f'the column "{name}" is {kind}: not binary and not text')
    found: list[bytes | None] = _cast(batch, name, pa.large_binary(), first_row).to_pylist()
    return found


def _cast(batch: Any, name: str, kind: Any, first_row: int) -> Any:
    column = batch.column(name)
    try:
        return column.cast(kind)
    except (ValueError, NotImplementedError) as error:
        where = f"rows {first_row} to {first_row + batch.num_rows - 1}"
        raise UsageError(
            f'the column "{name}" is {column.type}, {where}: {str(error).splitlines()[0]}'
        ) from None


def _headers(batch: Any, first_row: int) -> list[Headers]:
    rows: list[Headers] = []
    for row, pairs in enumerate(batch.column("headers").to_pylist(), first_row):
        try:
            rows.append(tuple((_name(pair["name"]), _value(pair["value"])) for pair in pairs or ()))
        except (KeyError, TypeError):
            raise UsageError(
                f"row {row}: headers are not a list of a name and a binary value"
            ) from None
    return rows


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name


def _value(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    if value is not None and not isinstance(value, bytes):
        raise TypeError
    return value


def _cut(chunk: Chunk) -> Iterator[Chunk]:
    """Pieces that are not much larger than a block."""
    first = size = 0
    for row, value in enumerate(chunk.values):
        size += len(value or b"")
        if size > BLOCK_BYTES:
            yield take(chunk, range(first, row + 1))
            first, size = row + 1, 0
    if first < len(chunk.values):
        yield take(chunk, range(first, len(chunk.values)))
