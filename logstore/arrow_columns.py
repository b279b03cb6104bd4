"""Values of a batch as Arrow columns: to the chunks of section B and back, and as JSON rows.

The layout of the section is `column_section.py`, which does without pyarrow; what a topic's columns
are is `topic_schema.py`. A chunk is an Arrow record batch message of one column, or two for a
dictionary: its entries, and the numbers that stand for them. The bytes come from disk: everything
is validated before it is used, and what Arrow refuses is a CorruptBatchError.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from functools import partial
from itertools import islice
from math import isnan
from typing import Any, Final

import msgspec

from .arrow_messages import is_compressed
from .column_bounds import lower_bound, upper_bound
from .column_section import (
    DICTIONARY,
    Chunk,
    ColumnEntry,
    ColumnSection,
    Directory,
    Limits,
    PackedChunk,
    encode_section,
    open_chunk,
    pack,
)
from .compression import RAW_BYTES_MIN, compress, pays
from .errors import CorruptBatchError, DataError, RecordError, UsageError
from .format import CODEC_LZ4, Buffer
from .helpers import Helped, Helpers
from .topic_schema import message_schema, pyarrow, row_type, stored_schema

_DICTIONARY_ROWS_MIN: Final = 1024
_SAMPLE: Final = 8192
_DICTIONARY_SHARE: Final = 8
"""A dictionary pays if at most every so many-th value of the sample is a new one."""
_FIRST_SAMPLE: Final = 1024
_FIRST_SHARE: Final = 0.8
"""A column passes the second sample only if it has about 1,000 values; of these the first sample
finds two thirds of its size. Where it finds more than this share, the second is not taken."""
_TEXT_BOUNDS_ROWS_MIN: Final = 256
"""Who looks for rows reads smaller batches whatever their bounds are (batch_filter.py)."""
_TREND_PAIRS: Final = 32
"""Of values half a batch apart. Of a text without an order each rises or falls as a coin does, and
that few of 32 go against the others comes up once in 50,000 batches."""
_TREND_EXCEPTIONS: Final = 4
_EPOCH: Final = date(1970, 1, 1)
_FIRST_DAY: Final = (date.min - _EPOCH).days
_LAST_DAY: Final = (date.max - _EPOCH).days
_DAY_SECONDS: Final = 86_400
_PER_SECOND: Final = {"s": 1, "ms": 1000, "us": 1_000_000}
_ALIGNMENT_BYTES: Final = 8
_JOINED_BYTES_MAX: Final = 4096
_THREADS_BYTES_MIN: Final = 1 << 20
"""Smaller batches are compressed before threads have started."""
_THREADS_MAX: Final = 4
_BEGUN: Final = 3
"""Batches that are compressed at once: one is waited for, and nobody is idle at its end. More would
take memory, which costs more than it saves where it is fresh from the system."""


def compute() -> Any:
    """The module `pyarrow.compute`, or MissingExtraError."""
    pyarrow()
    from pyarrow import compute as module  # noqa: PLC0415 - an extra

    return module


def constant(value: object, kind: Any) -> Any:
    """A constant of a pyarrow.DataType, to compute with.

    Without a type Arrow takes it for what it may be, and looks for dateutil on the disk each time:
    a quarter of a millisecond where that is not installed.
    """
    return pyarrow().scalar(value, kind)


# --- writing -------------------------------------------------------------------------------------


def encode_columns(batch: Any, codec: int) -> ColumnSection:
    """Section B of a pyarrow.RecordBatch, which has the schema of its topic; see `encode_each`."""
    (section,) = encode_each([batch], codec)
    return section


def encode_each(batches: Sequence[Any], codec: int) -> Iterator[ColumnSection]:
    """Section B of each of some pyarrow.RecordBatches, which have the schema of their topic.

    Uncompressed, it refers to the memory of the batch and copies none of it. Compressed, it is made
    on several processors, and while the caller writes one, the next ones are begun.

    Raises:
        UsageError: One takes more bytes than a batch can hold.
    """
    wide = max((len(batch.schema) for batch in batches), default=0)
    threads = min(wide, os.cpu_count() or 1, _THREADS_MAX)
    if not codec or threads < 2 or sum(each.nbytes for each in batches) < _THREADS_BYTES_MIN:
        for batch in batches:
            numbers = range(len(batch.schema))
            yield _section(batch, [_packed(batch, number, codec) for number in numbers])
        return
    helpers = Helpers(threads)

    def begin(batch: Any) -> list[Helped[PackedChunk]]:
        sizes = [column.nbytes for column in batch.columns]
        # The largest first, so that none is left to one thread at the end.
        order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        begun = {number: helpers.begin(partial(_packed, batch, number, codec)) for number in order}
        return [begun[number] for number in range(len(sizes))]

    begun: deque[tuple[Any, list[Helped[PackedChunk]]]] = deque()
    following = iter(batches)
    with helpers:
        while True:
            begun += ((batch, begin(batch)) for batch in islice(following, _BEGUN - len(begun)))
            if not begun:
                return
            batch, chunks = begun.popleft()
            yield _section(batch, [chunk.wait() for chunk in chunks])


def _packed(batch: Any, number: int, codec: int) -> PackedChunk:
    chunk = _chunk(batch.column(number), batch.schema.field(number), codec)
    return pack(chunk, codec, _squeezed)


def _section(batch: Any, chunks: Sequence[PackedChunk]) -> ColumnSection:
    return encode_section(bytes(batch.schema.serialize()), chunks)


def join_rows(batches: Sequence[Any]) -> Any:
    """Batches of one schema as one pyarrow.RecordBatch."""
    pa, schema = pyarrow(), batches[0].schema
    whole = pa.Table.from_batches(batches, schema=schema).combine_chunks().to_batches()
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=schema)


def _chunk(column: Any, field: Any, codec: int) -> Chunk:
    if not codec:
        # Such a topic is to be written and read without copies, which rules a dictionary out:
        # making it was half of the cost of an append, and a reader has to undo it.
        return Chunk(_pieces(_alone(column, field)), column.null_count, _limits(column))
    numbered = _as_dictionary(column)
    if numbered is None:
        return Chunk((_whole(column, field),), column.null_count, _limits(column))
    entries, indices = numbered
    lead = _whole(entries, field.with_nullable(True))
    limits = _text_limits(entries)  # each of them is a value of a row
    both = (lead, _whole(indices, pyarrow().field("index", indices.type)))
    return Chunk(both, column.null_count, limits, len(lead))


def _squeezed(codec: int, parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """What `compress` makes of the parts together, in memory that Arrow keeps for the next column.

    Memory that is fresh from the system for each column took a third of the time.
    """
    joined = parts[0] if len(parts) == 1 else b"".join(parts)
    if codec != CODEC_LZ4 or len(joined) < RAW_BYTES_MIN:
        stored = compress(codec, joined)
        return parts if stored is joined else (stored,)
    found = memoryview(pyarrow().Codec("lz4_raw").compress(joined)).cast("B")
    return (found,) if pays(len(found), len(joined)) else parts


def _alone(column: Any, field: Any) -> Any:
    """A pyarrow.RecordBatch of one column."""
    pa = pyarrow()
    return pa.RecordBatch.from_arrays([column], schema=pa.schema([field]))


def _whole(column: Any, field: Any) -> memoryview:
    """The Arrow message of one column, in one piece."""
    return memoryview(_alone(column, field).serialize()).cast("B")


class _Pieces:
    """A file for an Arrow writer, which hands its buffers over as they are."""

    closed = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, part: Any) -> int:
        self.parts.append(part)
        return len(part)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to close."""


def _pieces(batch: Any) -> tuple[Buffer, ...]:
    """What `RecordBatch.serialize` makes of a batch, in pieces, without copying the buffers."""
    pieces = _Pieces()
    writer = pyarrow().ipc.new_stream(pieces, batch.schema)
    writer.write_batch(batch)
    parts = pieces.parts
    # The stream begins with a message of the schema: a mark, the size of what follows, and that.
    left = 8 + int.from_bytes(parts[1], "little")
    first = 0
    while left > 0:
        left -= len(parts[first])
        first += 1
    lead: list[bytes] = []
    body: list[Buffer] = []
    for part in parts[first:]:
        # Small pieces are joined: a call of the system takes only so many.
        if len(part) < _JOINED_BYTES_MAX:
            lead.append(bytes(part))
            continue
        body += (b"".join(lead), memoryview(part).cast("B"))
        lead = []
    return tuple(part for part in (*body, b"".join(lead)) if len(part))


def _as_dictionary(column: Any) -> tuple[Any, Any] | None:
    """The distinct texts of a column, and their numbers; None unless that is much smaller."""
    pa = pyarrow()
    if not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        return None
    if len(column) < _DICTIONARY_ROWS_MIN:
        return None
    first = _middle(column, _FIRST_SAMPLE).dictionary_encode()
    if len(first.dictionary) > len(first) * _FIRST_SHARE:
        return None
    sample = _middle(column, _SAMPLE).dictionary_encode()
    if len(sample.dictionary) * _DICTIONARY_SHARE > len(sample):
        return None
    entries, indices = sample.dictionary, sample.indices
    if len(sample) < len(column):
        # Most often the sample has all there are, and to look them up takes less.
        indices = compute().index_in(column, entries)
        if indices.null_count != column.null_count:
            numbered = column.dictionary_encode()
            entries, indices = numbered.dictionary, numbered.indices
    if len(entries) * _DICTIONARY_SHARE > len(column):
        return None
    width = pa.int8() if len(entries) <= 127 else pa.int16()
    if len(entries) > 32767:
        width = pa.int32()
    return entries, indices.cast(width)


def _middle(column: Any, rows: int) -> Any:
    return column if len(column) <= rows else column.slice((len(column) - rows) // 2, rows)


def _limits(column: Any) -> Limits | None:
    """Lowest and highest value, of texts bounds; None if there are none, or a NaN."""
    pa, t = pyarrow(), pyarrow().types
    kind, functions = column.type, compute()
    if t.is_floating(kind):
        if len(column) and not column.null_count:
            # Five times as fast as Arrow's, and a NaN comes out by itself.
            numbers = column.to_numpy()
            low, high = float(numbers.min()), float(numbers.max())
            return None if isnan(low) else (low, high)
        if functions.any(functions.is_nan(column)).as_py():
            return None
    elif t.is_timestamp(kind):
        column = column.view(pa.int64())
    elif t.is_date32(kind):
        column = column.view(pa.int32())
    elif _is_text(kind) or t.is_binary(kind) or t.is_large_binary(kind):
        if len(column) < _TEXT_BOUNDS_ROWS_MIN or not _has_trend(column):
            return None
        return _text_limits(column)
    elif not t.is_integer(kind):
        return None
    found = functions.min_max(column)
    low, high = found["min"].as_py(), found["max"].as_py()
    return None if low is None else (low, high)


def _text_limits(column: Any) -> tuple[bytes, bytes] | None:
    """Bounds of a column of texts or bytes."""
    text = _is_text(column.type)
    found = compute().min_max(_as_bytes(column))
    low, high = found["min"].as_py(), found["max"].as_py()
    if low is None:
        return None
    try:
        above = upper_bound(high, text=text)
    except UnicodeDecodeError:
        return None
    return None if above is None else (lower_bound(low, text=text), above)


def _has_trend(column: Any) -> bool:
    """Whether texts rise or fall from one half of a column to the other, all in all.

    To look for their bounds takes as long as half of their compression, or, without it, as all the
    rest of an append. It is worth that only if other batches have other values.
    """
    content = _as_bytes(column)
    half = len(column) // 2
    step = half // _TREND_PAIRS
    pairs = []
    for number in range(_TREND_PAIRS):
        # Not at equal distances: values may come in a cycle, as those of a few devices do.
        before = number * step + number * number % step
        after = half + number * step + (number + 1) * (number + 3) % step
        pairs.append((content[before].as_py(), content[after].as_py()))
    present = [pair for pair in pairs if None not in pair]
    rising = len([low for low, high in present if low < high])
    falling = len([low for low, high in present if low > high])
    return min(rising, falling) <= _TREND_EXCEPTIONS


def _as_bytes(column: Any) -> Any:
    """Texts as bytes, the same buffers: not even what is no UTF-8 is an error here."""
    pa = pyarrow()
    if not _is_text(column.type):
        return column
    return column.view(pa.large_binary() if column.type.equals(pa.large_string()) else pa.binary())


def _is_text(kind: Any) -> bool:
    t = pyarrow().types
    return bool(t.is_string(kind) or t.is_large_string(kind))


# --- reading -------------------------------------------------------------------------------------


def read_column(directory: Directory, number: int, stored: Buffer, rows: int) -> Any:
    """One column as a pyarrow.Array, without a copy where it is stored uncompressed.

    Args:
        directory: Checked.
        number: Of the column.
        stored: Its chunk, whose hash was checked.
        rows: How many rows the batch has.

    Raises:
        CorruptBatchError: The bytes do not make sense as this column.
        MissingExtraError: pyarrow is not installed.
    """
    pa = pyarrow()
    schema, entry = directory_schema(directory), directory.entries[number]
    field = schema.field(number)
    raw = memoryview(open_chunk(entry, stored))
    try:
        if entry.encoding == DICTIONARY:
            column = _read_dictionary(pa, entry, field, raw, rows)
        else:
            column = _read_message(pa, raw, field, rows)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise CorruptBatchError(f"column {field.name!r} does not decode: {error}") from None
    if column.null_count != entry.null_count:
        raise CorruptBatchError(f"column {field.name!r} has other nulls than its directory says")
    return column


def directory_schema(directory: Directory) -> Any:
    """The schema of a batch, checked against its directory."""
    try:
        schema = message_schema(directory.schema)
    except DataError as error:
        raise CorruptBatchError(error.message) from None
    if len(schema) != len(directory.entries):
        raise CorruptBatchError("the schema of a batch does not name its columns")
    return schema


def _read_message(pa: Any, raw: memoryview, field: Any, rows: int | None) -> Any:
    buffer = pa.py_buffer(raw)
    if buffer.address % _ALIGNMENT_BYTES:
        buffer = pa.py_buffer(bytes(raw))
    message = pa.ipc.read_message(buffer)
    if is_compressed(memoryview(message.metadata)):
        raise CorruptBatchError(
            f"column {field.name!r} is compressed inside of its chunk, which no writer does"
        )
    (column,) = pa.ipc.read_record_batch(message, pa.schema([field])).columns
    column.validate(full=True)
    if rows is not None and len(column) != rows:
        raise CorruptBatchError(f"column {field.name!r} has {len(column)} rows, not {rows}")
    return column


def _read_dictionary(pa: Any, entry: ColumnEntry, field: Any, raw: memoryview, rows: int) -> Any:
    values = _read_message(pa, raw[: entry.dictionary_bytes], field.with_nullable(True), None)
    width = pa.int8() if len(values) <= 127 else pa.int16() if len(values) <= 32767 else pa.int32()
    indices = _read_message(pa, raw[entry.dictionary_bytes :], pa.field("index", width), rows)
    found = compute().min_max(indices)
    low, high = found["min"].as_py(), found["max"].as_py()
    if low is not None and not 0 <= low <= high < len(values):
        raise CorruptBatchError(f"column {field.name!r} has numbers outside of its dictionary")
    return values.take(indices)


# --- rows ----------------------------------------------------------------------------------------


def to_json(columns: Sequence[Any], fields: Sequence[Any]) -> list[bytes]:
    """Each row as a JSON object, its fields in the order of the schema.

    Bytes are base64, times RFC 3339. JSON knows no NaN and no infinity: they become null.

    Raises:
        OverflowError: A column does not pass `has_sayable_times`.
    """
    encode = msgspec.json.Encoder().encode
    batch = pyarrow().RecordBatch.from_arrays(columns, schema=pyarrow().schema(fields))
    return [encode(row) for row in batch.to_pylist()]


def has_sayable_times(column: Any) -> bool:
    """Whether dates and timestamps, also those inside of lists and structs, have a form in JSON.

    RFC 3339 and Python know the years 1 to 9999; Arrow knows more of them.
    """
    t = pyarrow().types
    kind = column.type
    if t.is_struct(kind):
        return all(has_sayable_times(each) for each in column.flatten())
    if t.is_list(kind) or t.is_large_list(kind):
        return has_sayable_times(compute().list_flatten(column))
    if t.is_date32(kind):
        numbers, per_day = column.cast(pyarrow().int32()), 1
    elif t.is_timestamp(kind):
        numbers, per_day = column.cast(pyarrow().int64()), _DAY_SECONDS * _PER_SECOND[kind.unit]
    else:
        return True
    found = compute().min_max(numbers)
    low, high = found["min"].as_py(), found["max"].as_py()
    return low is None or (_FIRST_DAY * per_day <= low and high < (_LAST_DAY + 1) * per_day)


def from_json(
    values: Sequence[Buffer], declared: str, refuse: Callable[[int, str], Exception]
) -> Any:
    """JSON objects as a pyarrow.RecordBatch of a stored schema, strictly.

    Args:
        values: One object each. A field may be left out if it is nullable; others are refused.
        declared: The stored form of the schema.
        refuse: Makes the error for the value at an index.
    """
    pa, schema = pyarrow(), stored_schema(declared)
    decode: Callable[[Any], object] = msgspec.json.Decoder(row_type(declared)).decode
    rows: list[Any] = []
    try:
        rows.extend(map(decode, values))  # those before a wrong one stay, and tell its number
    except TypeError:
        kind = type(values[len(rows)]).__name__
        raise refuse(
            len(rows),
            f"a value is JSON in bytes, not {kind}: encode it, msgspec.json.encode(...) say, or"
            " give columns to append_columns, a frame to append_arrow",
        ) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise refuse(len(rows), str(error)) from None
    plain = msgspec.to_builtins(rows, builtin_types=(bytes, datetime, date))
    try:
        return pa.RecordBatch.from_pylist(plain, schema=schema)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        for index, row in enumerate(plain):
            try:
                pa.RecordBatch.from_pylist([row], schema=schema)
            except (pa.ArrowException, OverflowError, ValueError, TypeError) as reason:
                raise refuse(index, str(reason)) from None
        raise refuse(0, str(error)) from None


def bad_value(index: int, reason: str) -> UsageError:
    """The error for a value that is to be appended."""
    return UsageError(f"values[{index}] does not fit the schema of the topic: {reason}")


def bad_record(offset: int, reason: str) -> RecordError:
    """The error for a stored value that does not fit the declared schema."""
    return RecordError(f"the value does not fit the schema of the topic: {reason}", offset=offset)
