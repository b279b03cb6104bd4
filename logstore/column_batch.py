"""From what is appended to a topic with a schema to encoded batches.

Data comes as Arrow or as JSON rows; both become pyarrow.RecordBatches of exactly the schema of the
topic, or are refused before anything is written. Key and time come from the declared columns unless
they are given. Which partition a row goes to is `column_append.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

from .arrow_columns import (
    bad_value,
    compute,
    constant,
    encode_columns,
    encode_each,
    from_json,
    has_sayable_times,
    to_json,
)
from .arrow_leads import encode_keys, encode_times
from .batch import EncodedBatch, encode_batch, encode_columns_batch
from .column_casts import cast_exactly, first_infinite
from .column_section import ColumnSection
from .config import TopicConfig
from .errors import UsageError
from .format import (
    APPEND_TIME,
    CODEC_BY_NAME,
    COLUMNS,
    NO_TIMESTAMP,
    SECTION_RAW_BYTES_MAX,
    UNIFORM_TIMESTAMP,
)
from .record import Headers
from .topic_schema import pyarrow

BATCH_ROWS: Final = 1 << 17
"""Rows of one batch, at most: what a reader decodes at once."""
BATCH_BYTES: Final = 16 << 20
"""Bytes of one batch, about."""
_BATCH_BYTES_MAX: Final = SECTION_RAW_BYTES_MAX - (8 << 20)
"""At most; what is left is for what describes 4,096 columns."""


def encode_values(
    config: TopicConfig,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    timestamps_ms: Sequence[int] | None = None,
    headers: Sequence[Headers] | None = None,
    numbers: Sequence[int] | None = None,
) -> EncodedBatch:
    """One batch of records for a topic, whether it has a schema or not; see `encode_batch`.

    Args:
        config: Of the topic.
        values: Of the records, as the columns that follow.
        keys: See there.
        timestamps_ms: See there.
        headers: See there.
        numbers: What messages call the values, where these are some of those that were given.

    Raises:
        UsageError: As there; or a value does not fit the schema, the message names its index.
        MissingExtraError: The topic has a schema, and pyarrow is not installed.
    """
    codec = CODEC_BY_NAME[config.compression]
    if config.schema is None:
        return encode_batch(values, keys, timestamps_ms, headers, codec=codec)
    places, rows = _rows_of(config, values, numbers)
    count = len(values)
    if config.key_column is not None and (keys is None or None in keys):
        found = _spread(keys_of(config, rows).to_pylist(), places, count)
        if keys is not None:
            found = [own if key is None else key for key, own in zip(keys, found, strict=True)]
        keys = found
    if timestamps_ms is None and config.time_column is not None and rows.num_rows:
        timestamps_ms = _times_of_all(config, rows, places, numbers or range(count))
    if not config.columnar or not rows.num_rows:
        return encode_batch(values, keys, timestamps_ms, headers, codec=codec)
    present = b"\x01" * count
    if len(places) < count:
        present = bytes(value is not None for value in values)
    columns = encode_columns(rows, codec)
    return encode_columns_batch(columns, present, keys, timestamps_ms, headers, codec=codec)


def _rows_of(
    config: TopicConfig, values: Sequence[bytes | None], numbers: Sequence[int] | None = None
) -> tuple[Sequence[int], Any]:
    """The places of the values that are no tombstones, and these as a pyarrow.RecordBatch."""
    assert config.schema is not None
    places: Sequence[int] = range(len(values))
    rows: Sequence[bytes] = values  # type: ignore[assignment]  # if there is no tombstone among them
    if None in values:
        places = [place for place, value in enumerate(values) if value is not None]
        rows = [value for value in values if value is not None]
    called = numbers or range(len(values))
    refuse = lambda row, reason: bad_value(called[places[row]], reason)  # noqa: E731
    made = from_json(rows, config.schema, refuse)
    if config.columnar and (row := first_infinite(made)) is not None:
        raise bad_value(called[places[row]], "a number is beyond what a float32 can be")
    return places, made


def _spread(column: list[Any], places: Sequence[int], count: int) -> list[Any]:
    """What is there of a column of `count` entries, None for the others."""
    if len(places) == count:
        return column
    whole: list[Any] = [None] * count
    for place, entry in zip(places, column, strict=True):
        whole[place] = entry
    return whole


def _times_of_all(
    config: TopicConfig, rows: Any, places: Sequence[int], numbers: Sequence[int]
) -> list[int]:
    times = _spread(times_of(config, rows).to_pylist(), places, len(numbers))
    if None in times:
        number = numbers[times.index(None)]
        raise UsageError(
            f"values[{number}] is a tombstone, which has no {config.time_column!r}:"
            " give timestamps_ms, or append it by itself"
        )
    return times


class ArrowPart(NamedTuple):
    """Rows that become a batch, with what leads them."""

    batch: Any
    """A pyarrow.RecordBatch that conforms to the schema of the topic; not empty."""
    keys: Any
    """A binary array; None: no row has a key."""
    stamps: Any
    """An int64 array of UTC milliseconds; None: the time of the append."""


def encode_arrow(config: TopicConfig, parts: Sequence[ArrowPart]) -> Iterator[EncodedBatch]:
    """A batch of each part; the next ones are compressed while the caller writes one."""
    codec = CODEC_BY_NAME[config.compression]
    if config.columnar:
        sections = encode_each([part.batch for part in parts], codec)
        yield from map(_columns_batch, parts, sections, repeat(codec))
        return
    for batch, keys, stamps in parts:
        yield encode_batch(
            to_json(batch.columns, list(batch.schema)),
            None if keys is None else keys.to_pylist(),
            None if stamps is None else stamps.to_pylist(),
            codec=codec,
        )


def _columns_batch(part: ArrowPart, columns: ColumnSection, codec: int) -> EncodedBatch:
    flags, extremes, times = UNIFORM_TIMESTAMP | APPEND_TIME, (0, 0), b""
    if part.stamps is not None:
        flags, extremes, times = encode_times(part.stamps)
    more, keys = (0, b"") if part.keys is None else encode_keys(part.keys)
    rows = part.batch.num_rows
    sections = (times + keys, b"", b"")
    return EncodedBatch(
        (rows, rows - 1), flags | more | COLUMNS, extremes, sections, codec, columns
    )


# --- conforming ----------------------------------------------------------------------------------


def conforming(data: object, schema: Any) -> list[Any]:
    """What is to be appended as pyarrow.RecordBatches of the schema, each of a size for a batch.

    Args:
        data: A pyarrow Table or RecordBatch, or whatever speaks the Arrow C data interface: frames
            of Polars and pandas, relations of DuckDB.
        schema: The pyarrow.Schema of the topic.

    Raises:
        UsageError: The data does not fit the schema; nothing was converted.
    """
    pa = pyarrow()
    table = _table(pa, data)
    faults = [
        f"  - {name}: {table.schema.field(name).type} (no such column)"
        for name in table.schema.names
        if name not in schema.names
    ]
    columns = []
    for field in schema:
        column = _column(pa, table, field)
        if isinstance(column, str):
            faults.append(f"  ~ {field.name}: {column}")
        columns.append(column)
    if faults:
        lines = "\n".join(faults)
        raise UsageError(
            f"the data does not fit the schema:\n{lines}\n"
            "Mend these columns, or change the schema with configure_topic(schema=)"
        )
    fitting = pa.Table.from_arrays(columns, schema=schema).combine_chunks()
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * table.num_rows // max(fitting.nbytes, 1)))
    batches = [batch for batch in fitting.to_batches(max_chunksize=rows) if batch.num_rows]
    # Rows of very different sizes; it is found out before the first of the batches is written.
    if any(batch.nbytes > _BATCH_BYTES_MAX for batch in batches):
        raise UsageError(
            f"columns of one batch exceed {_BATCH_BYTES_MAX} bytes: append fewer rows at once"
        )
    return batches


def _table(pa: Any, data: object) -> Any:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
        try:
            return pa.table(data)
        except (pa.ArrowException, TypeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UsageError(
                f"data is a {type(data).__name__} that is no table of Arrow columns: {first}"
            ) from None
    raise UsageError(
        f"data is a {type(data).__name__}; give a pyarrow Table or RecordBatch, or a frame that"
        " speaks the Arrow C interface (Polars, pandas, DuckDB)"
    )


def _column(pa: Any, table: Any, field: Any) -> Any:
    """The column for a field, cast without loss; or why there is none."""
    names = table.schema.names
    if names.count(field.name) > 1:
        return "it is there twice"
    if field.name not in names:
        return pa.nulls(table.num_rows, field.type) if field.nullable else "it is missing"
    column = table.column(field.name)
    if column.null_count and not field.nullable:
        return f"{column.null_count} nulls in a column that is not nullable"
    try:
        column = cast_exactly(column, field.type)
    except (pa.ArrowException, ValueError) as error:
        return f"{column.type} is not {field.type}: {str(error).splitlines()[0]}"
    if not has_sayable_times(column):
        return "a time outside of the years 1 to 9999, which has no form in JSON"
    return column


def given_column(column: object, name: str, kind: str, rows: int) -> Any:
    """Keys or timestamps that are given beside the rows, as an array.

    Args:
        column: A pyarrow array, or what becomes one: a list, a NumPy array.
        name: Of the argument, for messages.
        kind: Of the array: "binary", or "int64", which has no nulls.
        rows: How many there must be.

    Raises:
        UsageError: Not that many, or of another type.
    """
    pa = pyarrow()
    wanted = pa.binary() if kind == "binary" else pa.int64()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    try:
        array = column if isinstance(column, pa.Array) else pa.array(column)
        if pa.types.is_null(array.type) or not array.type.equals(wanted):
            array = cast_exactly(pa.chunked_array([array]), wanted).combine_chunks()
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UsageError(f"{name} must be {kind}: {str(error).splitlines()[0]}") from None
    if len(array) != rows:
        raise UsageError(f"{name} has {len(array)} entries for {rows} rows")
    if kind == "int64" and (
        array.null_count
        or compute().any(compute().equal(array, constant(NO_TIMESTAMP, wanted))).as_py()
    ):
        raise UsageError(f"{name} has a null or -2**63; a timestamp cannot be missing")
    return array


# --- declared columns ----------------------------------------------------------------------------


def check_declared(schema: Any, key: str | None, time: str | None) -> None:
    """Refuse key and time columns that are not there or of a type that cannot be one.

    Raises:
        UsageError: Names the column.
    """
    t = pyarrow().types
    for role, name in (("key", key), ("time", time)):
        if name is None:
            continue
        if name not in schema.names:
            raise UsageError(f"{role}={name!r}: the schema has no such field")
        kind = schema.field(name).type
        if role == "key":
            good = t.is_integer(kind) or t.is_string(kind) or t.is_binary(kind)
            wanted = "an integer, string or binary field"
        else:
            good = t.is_timestamp(kind) or t.is_int64(kind)
            wanted = "a timestamp, or an integer of UTC milliseconds"
        if not good:
            raise UsageError(f"{role}={name!r} is {kind}; take {wanted}")
        if role == "time" and schema.field(name).nullable:
            raise UsageError(f"time={name!r} is nullable; a timestamp cannot be missing")


def keys_of(config: TopicConfig, batch: Any) -> Any:
    """The declared keys as a binary array: text in UTF-8, integers in decimal digits."""
    pa = pyarrow()
    column = batch.column(config.key_column)
    if pa.types.is_binary(column.type):
        return column
    return column.cast(pa.string()).cast(pa.binary())


def declared_keys(config: TopicConfig, values: Sequence[bytes | None]) -> list[bytes | None]:
    """The declared keys of JSON rows that are to be appended; None for tombstones.

    Raises:
        UsageError: A value does not fit the schema; the message names its index.
    """
    places, rows = _rows_of(config, values)
    return _spread(keys_of(config, rows).to_pylist(), places, len(values))


def declared_times(config: TopicConfig, values: Sequence[bytes | None]) -> list[int | None]:
    """The declared timestamps of JSON rows; errors and tombstones as `declared_keys`."""
    places, rows = _rows_of(config, values)
    return _spread(times_of(config, rows).to_pylist(), places, len(values))


def times_of(config: TopicConfig, batch: Any) -> Any:
    """The declared timestamps as an int64 array of UTC milliseconds, rounded down."""
    pa, functions = pyarrow(), compute()
    column = batch.column(config.time_column)
    kind = column.type
    if pa.types.is_timestamp(kind):
        column, thousand = column.view(pa.int64()), constant(1000, pa.int64())
        if kind.unit == "s":
            column = functions.multiply_checked(column, thousand)
        elif kind.unit == "us":
            # Division of integers rounds towards zero, which is up before 1970.
            towards = functions.divide(column, thousand)
            back = functions.multiply(towards, thousand)
            rounded_up = functions.greater(back, column)
            column = functions.subtract(towards, rounded_up.cast(pa.int64()))
    if functions.any(functions.equal(column, constant(NO_TIMESTAMP, pa.int64()))).as_py():
        raise UsageError(f"column {config.time_column!r} holds the timestamp -2**63, which is none")
    return column
