"""The first stage on columns: a batch of a column topic becomes a frame, event time an array.

Only batches of which every record is surely good are taken: fields of the types that the source
declares, no null where it wants a value, no NaN. Anything else is left to source.py, which decodes
record by record and knows what is to be rejected. What moves W is said in watermark.py; here it is
found for many rows at once.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from millstream import RecordBatch, RecordError

from .columns import Chunk, MicroBatch, Rows
from .frame_errors import NotInColumnsError
from .frame_fields import column_of
from .frames import (
    Array,
    ColumnFrame,
    FrameChunk,
    Ints,
    PlainField,
    ValueFrame,
    normal,
    plain_fields,
)
from .nodes import SourceNode
from .watermark import BEFORE_TIME, Watermark

_TIME_MAX: Final = 1 << 61


class FrameReader:
    """Reads batches of one source as columns, where that is the same as reading records.

    Args:
        node: The source, for which `lanes.source_reason` has nothing to say.
    """

    def __init__(self, node: SourceNode) -> None:
        self._node = node
        self._fields: dict[str, PlainField] | None = None
        """What the type of the rows declares; None for dicts, which take any."""
        self._kind: type = dict
        if isinstance(node.type, type) and issubclass(node.type, msgspec.Struct):
            self._kind = node.type
            self._fields = plain_fields(node.type)
        self._time = None if node.time is None else column_of(node.time)

    def read(self, batch: MicroBatch, number: int) -> FrameChunk | None:
        """The records of one batch; None if they have to be read one by one."""
        part = batch.batches[number]
        if not isinstance(part, RecordBatch) or not part.record_count or part.has_tombstones:
            return None
        try:
            frame = self._frame(part)
            if self._time is None:
                times = part.arrow(["_timestamp_ms"]).column(0)
            else:
                times = self._time(frame)
        except (NotInColumnsError, RecordError):
            return None
        found = None if times.null_count else _times_ms(times)
        if found is None:
            return None
        ahead_ms = self._node.max_ahead_ms
        if ahead_ms is not None and int(found.max()) > part.append_timestamp_ms + ahead_ms:
            return None
        first = batch.first_rows[number]
        return FrameChunk(range(first, first + part.record_count), found, frame)

    def prepare(self, batch: MicroBatch) -> None:
        """Look at all batches of the source at once, for what takes less time together."""
        parts = [part for part in batch.batches if part.topic == self._node.topic]
        found = [part for part in parts if isinstance(part, RecordBatch) and not part.columnar]
        if self._fields is not None and len(found) > 1:
            RecordBatch.parse_together(found)

    def framed(self, chunk: Chunk) -> Rows:
        """Rows that were decoded one by one, as columns if they can be."""
        if self._fields is None or not isinstance(chunk.values, list):
            return chunk
        try:
            times = np.array(chunk.times, np.int64)
        except OverflowError:
            return chunk
        rows = chunk.rows
        numbers = rows if isinstance(rows, range) else np.array(rows, np.int64)
        return FrameChunk(numbers, times, ValueFrame(chunk.values, self._kind))

    def advance(
        self, watermark: Watermark, partition: int, piece: Rows, *, exact: bool
    ) -> tuple[Sequence[int], Sequence[int]]:
        """As `Watermark.advance`, for rows that `read` gave; not `exact` is as `jump`."""
        assert isinstance(piece, FrameChunk)
        if exact:
            return _advance(watermark, partition, piece.rows[0], piece.times)
        before, last = watermark.level, piece.rows[-1]
        watermark.jump(partition, [last], [int(piece.times.max())])
        return ([last], [watermark.level]) if watermark.level > before else ([], [])

    def _frame(self, part: RecordBatch) -> ColumnFrame:
        """The values of a batch.

        Raises:
            NotInColumnsError: Not all of them are surely good.
        """
        schema, limits = part.schema, part.limits()
        known = {field.name: field for field in schema}
        names = list(self._fields or known)
        # A dict of JSON has only the fields that are there, and ints where a float is declared.
        any_fields = self._kind is dict and part.columnar
        if not set(names) <= set(known) or (self._fields is None and not any_fields):
            raise NotInColumnsError("other fields")

        def load(name: str) -> Array:
            return normal(part.arrow([name]).column(0), name)

        # In JSON they may have zones, which a column does not keep; and in a dict they are text.
        times = part.columnar and self._fields is not None
        if not part.columnar:
            load(names[0])  # all of them are parsed at once, or none
        for name in names:
            kind = known[name].type
            _require_plain(name, kind, times=times)
            array = None
            if _may_have_others(kind, known=name in limits):
                array = load(name)
            elif pa.types.is_floating(kind) and not np.isfinite(limits[name]).all():
                raise NotInColumnsError(f"{name} has infinity")
            if self._fields is None:
                continue
            wanted = self._fields[name]
            if not _same_kind(wanted.type, kind):
                raise NotInColumnsError(f"{name} is {kind}")
            # JSON may have left a field out, for which the type may have a default.
            nullable = wanted.nullable and (part.columnar or wanted.absent_is_null)
            if known[name].nullable and not nullable and (array or load(name)).null_count:
                raise NotInColumnsError(f"{name} has nulls")
        types = tuple(known[name].type for name in names)
        return ColumnFrame(part.record_count, names, self._kind, load, types)


def _may_have_others(kind: Any, *, known: bool) -> bool:
    """Whether some values of a column may be none of the lane; `known`: whether it has limits."""
    if pa.types.is_timestamp(kind):
        return bool(kind.unit != "us")  # some seconds are no microseconds
    # NaN leaves a column without limits, and so do nulls alone.
    return bool(pa.types.is_floating(kind)) and not known


def _times_ms(times: Array) -> Ints | None:
    """Event times as UTC milliseconds, rounded down; None if they are neither ints nor times."""
    if pa.types.is_timestamp(times.type):
        microseconds: Ints = times.view(pa.int64()).to_numpy()
        return microseconds // 1000
    return times.to_numpy() if pa.types.is_int64(times.type) else None


def _require_plain(name: str, kind: Any, *, times: bool) -> None:
    t = pa.types
    text = t.is_string(kind) or t.is_large_string(kind)
    number = t.is_floating(kind) or (t.is_integer(kind) and not t.is_uint64(kind))
    time = times and t.is_timestamp(kind) and kind.tz == "UTC"
    if not (text or number or time or t.is_boolean(kind)):
        raise NotInColumnsError(f"{name} is {kind}")


def _same_kind(wanted: Any, kind: Any) -> bool:
    """Whether a JSON value of a column is decoded as the type that is wanted, and as it is."""
    t = pa.types
    if t.is_floating(wanted):
        return bool(t.is_floating(kind))
    if t.is_integer(wanted):
        return bool(t.is_integer(kind))
    if t.is_timestamp(wanted):
        return bool(t.is_timestamp(kind))
    if t.is_boolean(wanted):
        return bool(t.is_boolean(kind))
    return bool(t.is_string(kind) or t.is_large_string(kind))


def _advance(
    watermark: Watermark, partition: int, first_row: int, times: Ints
) -> tuple[Sequence[int], Sequence[int]]:
    """As `Watermark.advance`, for rows that follow each other from `first_row` on.

    Returns:
        The rows after which W was higher than before, and W after them.
    """
    before, disorder_ms = watermark.level, watermark.disorder_ms
    top = watermark.maxima.get(partition, BEFORE_TIME)
    greatest = int(times.max())
    small = int(times.min()) > -_TIME_MAX and greatest < _TIME_MAX and disorder_ms < _TIME_MAX
    if not small:
        rows = range(first_row, first_row + len(times))
        return watermark.advance(partition, rows, times.tolist())
    if greatest <= top:
        watermark.jump(partition, [first_row], [greatest])
        return (), ()
    # W moves where a time is greater than all before; the rest is for few of them.
    tops = np.maximum.accumulate(times)
    rises = np.empty(len(times), np.bool_)
    rises[0] = times[0] > top
    np.greater(tops[1:], np.maximum(tops[:-1], max(top, -_TIME_MAX)), out=rises[1:])
    moving = np.flatnonzero(rises)
    watermark.jump(partition, [first_row], [greatest])
    # What it has come to caps all: the least of the others does not change on the way.
    levels = np.minimum(tops[moving] - disorder_ms, watermark.level)
    risen = np.empty(len(levels), np.bool_)
    risen[0] = int(levels[0]) > before
    np.greater(levels[1:], np.maximum(levels[:-1], max(before, -_TIME_MAX)), out=risen[1:])
    numbers = moving[risen].astype(np.int64) + first_row
    return numbers.data, levels[risen].data
