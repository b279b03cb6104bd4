"""`map_batch(..., columns=True)`: rows as Arrow data through a function of the user's.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .columns import Chunk, MicroBatch, Rows
from .errors import fail, record_error
from .frame_errors import NotInColumnsError
from .frames import ColumnFrame, Frame, FrameChunk, normal
from .nodes import MapBatchNode
from .selection import own_fields
from .stateful import MAIN


class ColumnMapOperator:
    """One row for one row, by a function of columns. Takes rows as well, and gives what it gets."""

    def __init__(self, node: MapBatchNode) -> None:
        self._node = node

    def process(self, chunks: Sequence[Rows], batch: MicroBatch) -> Mapping[str, Rows]:
        """The rows that the function makes of those of the chunk."""
        (chunk,) = chunks
        if not chunk.row_count:
            return {MAIN: chunk.as_chunk()}
        label, row = self._node.label, int(chunk.rows[0])
        try:
            made = _table(self._node.function(_data(chunk)))
        except Exception as error:
            fail(label, error, batch, row)
        if made.num_rows != chunk.row_count:
            counts = f"{made.num_rows} rows for {chunk.row_count}"
            raise record_error(f"{label}: it returned {counts}: return one for each", batch, row)
        if isinstance(chunk, FrameChunk):
            frame = _frame(made)
            if frame is not None:
                return {MAIN: FrameChunk(chunk.rows, chunk.times, frame, chunk.keys)}
        rows = chunk.as_chunk()
        return {MAIN: Chunk(rows.rows, rows.times, made.to_pylist(), rows.keys)}


def _data(chunk: Rows) -> Any:
    """The fields of rows as a pyarrow.RecordBatch."""
    if isinstance(chunk, FrameChunk):
        try:
            return _record_batch(chunk.frame)
        except NotInColumnsError:
            pass  # a column of values that are not used, NaN say
    return pa.RecordBatch.from_pylist(list(map(own_fields, chunk.as_chunk().values)))


def _record_batch(frame: Frame) -> Any:
    names = list(frame.names)
    return pa.RecordBatch.from_arrays([frame.column(name) for name in names], names)


def _table(made: object) -> Any:
    """What the function returned, as a table.

    Raises:
        TypeError: It is no Arrow data.
    """
    if isinstance(made, pa.RecordBatch):
        return pa.Table.from_batches([made])
    if isinstance(made, pa.Table):
        return made
    if not hasattr(made, "__arrow_c_stream__"):
        raise TypeError(
            f"return Arrow data, such as a pyarrow.Table or a polars.DataFrame, not"
            f" {type(made).__name__}"
        )
    return pa.table(made)


def _frame(table: Any) -> ColumnFrame | None:
    """The rows of a table, if its columns are those of the lane."""
    columns = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            whole = column.combine_chunks()
            if isinstance(whole, pa.ChunkedArray):
                whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else None
            columns[name] = normal(_plain(whole), name)
        except NotInColumnsError:
            return None
    if len(columns) < table.num_columns:
        return None  # a name comes twice
    return ColumnFrame(table.num_rows, tuple(columns), dict, columns.__getitem__)


def _plain(column: Any) -> Any:
    """Text as plain strings: Polars gives views of them."""
    t, kind = pa.types, column.type
    if t.is_string_view(kind) or t.is_large_string(kind):
        return column.cast(pa.string())
    if t.is_dictionary(kind) and t.is_string(kind.value_type):
        return column.dictionary_decode()
    return column
