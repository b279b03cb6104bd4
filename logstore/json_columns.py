"""JSON objects of a batch as Arrow columns, without a Python object per row.

Those that are written alike are taken apart by `uniform_json.py`, others by Arrow's own parser.

Both take what `from_json` in arrow_columns.py takes, and no more: wherever the two might differ, it
gives nothing, and the strict way decides and says what is wrong. That Arrow's parser cannot be led
over the border between two records is seen to here: every value begins with { and ends with },
and a newline, which no text in JSON holds, goes between them. Outside of a text } may be followed
by { only where an object has ended, so as many objects as values means one object each.

This module needs the extra `arrow`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from .columns import padded
from .errors import CorruptBatchError
from .format import Buffer
from .helpers import Helpers
from .topic_schema import stored_schema
from .uniform_json import Bytes, Places, parse_uniform

_Values: TypeAlias = "tuple[Bytes, Places]"
"""The values of a batch behind each other, and where each begins and the last ends."""

_JOINED_BYTES_MAX: Final = 1 << 30
_BLOCK_BYTES: Final = 1 << 17
_BLOCK_BYTES_MAX: Final = 1 << 20
_THREADS_MAX: Final = 4
_THREADS_BYTES_MIN: Final = 1 << 20
"""Less is parsed before threads have started."""
_BEGIN, _END = ord("{"), ord("}")


class JsonBatch(Protocol):
    """A batch whose values may be JSON objects."""

    schema: str | None
    """The stored form of the schema of its topic."""
    parsed: Any
    """Its values as a pyarrow.RecordBatch, or None."""

    @property
    def objects(self) -> tuple[Buffer, int] | None:
        """Section B and the number of its values, if they are objects to be parsed."""
        ...


def parse_together(batches: Sequence[JsonBatch]) -> None:
    """Set `parsed` of batches of one topic, if Arrow can; else each has to be parsed strictly.

    Raises:
        CorruptBatchError: The buffers do not fit a section.
    """
    found = [(each, part) for each in dict.fromkeys(batches) if (part := each.objects) is not None]
    if not found:
        return
    declared = found[0][0].schema
    assert declared is not None
    whole = parse_objects([part for _, part in found], stored_schema(declared))
    start = 0
    for batch, (_, count) in found:
        if whole is not None and batch.schema == declared:
            batch.parsed = whole.slice(start, count)
        start += count


def parse_objects(parts: Sequence[tuple[Buffer, int]], schema: Any) -> Any | None:
    """The values of batches, none of which is a tombstone, as one pyarrow.RecordBatch.

    Args:
        parts: Of each batch section B, decompressed, and the number of its values. Together they
            are parsed on all processors, which a small one by itself is not.
        schema: The pyarrow.Schema they were checked against.

    Returns:
        None where the strict way has to say.

    Raises:
        CorruptBatchError: The buffers do not fit a section.
    """
    if not all(map(_is_plain, schema)):
        return None
    values = [_values(section, number) for section, number in parts]
    found = _uniform(values, schema)
    if found is None:
        found = _parsed(values, schema)
    if found is None:
        return None
    pairs = zip(found.columns, schema, strict=True)
    return found if all(_is_same(column, field) for column, field in pairs) else None


def _uniform(values: Sequence[_Values], schema: Any) -> Any | None:
    """The columns, if the objects of each batch are written alike."""

    def parse(part: _Values) -> list[Any] | None:
        return parse_uniform(*part, schema)

    first = parse(values[0])
    if first is None:
        return None
    rest = values[1:]
    threads = min(os.cpu_count() or 1, len(rest), _THREADS_MAX)
    if threads < 2 or sum(len(data) for data, _ in rest) < _THREADS_BYTES_MIN:
        found = list(map(parse, rest))
    else:
        # Most of it runs without the interpreter lock.
        with Helpers(threads) as helpers:
            begun = [helpers.begin(partial(parse, part)) for part in rest]
            found = [each.wait() for each in begun]
    columns = [first, *(part for part in found if part is not None)]
    if len(columns) < len(values):
        return None
    whole = [pa.concat_arrays(pieces) for pieces in zip(*columns, strict=True)]
    return pa.RecordBatch.from_arrays(whole, schema=schema)


def _parsed(values: Sequence[_Values], schema: Any) -> Any | None:
    """The columns, as Arrow's parser finds them."""
    count = sum(len(offsets) - 1 for _, offsets in values)
    found = _lines(values)
    if found is None:
        return None
    whole, longest_bytes = found
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    # Blocks are parsed side by side; a value must not be longer than one.
    block_bytes = min(max(_BLOCK_BYTES, whole.size // 4), _BLOCK_BYTES_MAX)
    reading = pj.ReadOptions(block_size=max(block_bytes, 2 * longest_bytes))
    try:
        table = pj.read_json(pa.BufferReader(whole), reading, options).combine_chunks()
        table.validate(full=True)
    except pa.ArrowException:
        return None
    if table.num_rows != count or table.schema.names != schema.names:
        return None
    (batch,) = table.to_batches()
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _lines(values: Sequence[_Values]) -> tuple[Any, int] | None:
    """All values with a newline between them, as one buffer, and the size of the longest."""
    joined, longest_bytes = [], 0
    for data, offsets in values:
        lines = _joined(data, offsets)
        if lines is None:
            return None
        joined.append(lines)
        longest_bytes = max(longest_bytes, int((offsets[1:] - offsets[:-1]).max()))
    if not joined or sum(lines.size + 1 for lines in joined) > _JOINED_BYTES_MAX:
        return None
    return joined[0] if len(joined) == 1 else pa.py_buffer(b"\n".join(joined)), longest_bytes


def _is_plain(field: Any) -> bool:
    """Whether both ways read a type alike. A float32 is rounded twice by one of them."""
    t, kind = pa.types, field.type
    number = t.is_float64(kind) or (t.is_integer(kind) and not t.is_uint64(kind))
    return number or t.is_boolean(kind) or t.is_string(kind)


def _values(section: Buffer, count: int) -> _Values:
    """The values of section B behind each other, and where each begins and the last ends."""
    view = memoryview(section)
    start = padded(4 * (count + 1))
    if start > len(view):
        raise CorruptBatchError("column offsets run past their section")
    offsets = np.frombuffer(view[: 4 * (count + 1)], "<i4")
    total = int(offsets[-1])
    if offsets[0] != 0 or total < 0 or (offsets[1:] < offsets[:-1]).any():
        raise CorruptBatchError("column offsets do not rise from zero")
    if start + padded(total) != len(view):
        raise CorruptBatchError("a section does not end with its column")
    return np.frombuffer(view[start : start + total], np.uint8), offsets


def _joined(data: Bytes, offsets: Places) -> Any | None:
    """The values with a newline between them, as an Arrow buffer."""
    count = len(offsets) - 1
    if len(data) + count > _JOINED_BYTES_MAX or (offsets[1:] - offsets[:-1] < 2).any():
        return None
    if (data[offsets[:-1]] != _BEGIN).any() or (data[offsets[1:] - 1] != _END).any():
        return None
    values = pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    whole = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), values)
    return pc.binary_join(whole, b"\n")[0].as_buffer()


def _is_same(column: Any, field: Any) -> bool:
    """Whether a column is surely what the strict way would give."""
    if column.null_count and not field.nullable:
        return False
    if not pa.types.is_float64(field.type):
        return True
    numbers = (column.fill_null(1.0) if column.null_count else column).to_numpy()
    with np.errstate(all="ignore"):
        # The sum is finite only if all are; where it is not, it may have overflowed.
        finite = np.isfinite(numbers.sum()) or np.isfinite(numbers).all()
    zeros = numbers == 0
    # -0 is an int, and so 0.0 as a float.
    return bool(finite and not np.signbit(numbers[zeros]).any())
