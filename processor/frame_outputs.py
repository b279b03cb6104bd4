"""Rows of a sink as columns of the topic they are written to, where that is the same as JSON rows.

The topic takes its rows strictly: every field known, of the type declared, none missing that must
be there. Columns go that way only where JSON would give the very same columns; whatever the topic
would refuse is left to rows, which say which one it is.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from millstream import partition_of

from .columns import MicroBatch, Rows
from .frame_errors import NotInColumnsError
from .frames import Array, Frame, FrameChunk
from .outputs import OutputColumns


def written(
    rows: Rows, batch: MicroBatch, schema: Any, partitions: int
) -> Iterable[tuple[int, OutputColumns]] | None:
    """The rows of a sink by the partition they belong to, in order; None if rows have to say.

    Args:
        rows: What it gets.
        batch: Where that comes from.
        schema: The pyarrow.Schema of the topic.
        partitions: Number of its partitions.
    """
    assert isinstance(rows, FrameChunk)
    if not rows.row_count:
        return ()
    try:
        whole = _encoded(rows, batch, schema)
    except NotInColumnsError:
        return None
    if partitions == 1:
        return ((0, whole),)
    # Rows without keys go to the partition they come from: rows know which.
    return None if whole.keys is None or whole.keys.null_count else _split(whole, partitions)


def _encoded(chunk: FrameChunk, batch: MicroBatch, schema: Any) -> OutputColumns:
    """The rows as records of a topic.

    Raises:
        NotInColumnsError: It might make something else of JSON.
    """
    names = _json_names(chunk.frame.kind, chunk.frame.names)
    unknown = set(names) - set(schema.names)
    if unknown:
        raise NotInColumnsError(f"no column {sorted(unknown)}")
    columns = [_column(chunk.frame, names.get(field.name), field) for field in schema]
    stored = pa.RecordBatch.from_arrays(columns, schema=schema)
    return OutputColumns(stored, _keys(chunk, batch), pa.array(chunk.times))


def _split(whole: OutputColumns, partitions: int) -> Iterator[tuple[int, OutputColumns]]:
    encoded = whole.keys.dictionary_encode()
    of_key = [partition_of(key, partitions) for key in encoded.dictionary.to_pylist()]
    places = np.array(of_key, np.int64)[encoded.indices.to_numpy()]
    for partition in np.unique(places).tolist():
        mask = pa.array(places == partition)
        parts = (each.filter(mask) for each in (whole.rows, whole.keys, whole.timestamps_ms))
        yield partition, OutputColumns(*parts)


def joined(pieces: Iterable[OutputColumns]) -> Iterator[OutputColumns]:
    """The same records in few pieces: those with keys together, and those without."""
    for keyed, group in groupby(pieces, lambda piece: piece.keys is not None):
        parts = list(group)
        yield OutputColumns(
            pa.Table.from_batches([part.rows for part in parts]),
            pa.concat_arrays([part.keys for part in parts]) if keyed else None,
            pa.concat_arrays([part.timestamps_ms for part in parts]),
        )


@cache
def _json_names(kind: type, names: tuple[str, ...]) -> Mapping[str, str]:
    """Fields of values by what they are called in JSON.

    Raises:
        NotInColumnsError: JSON has more than the fields, or less.
    """
    if kind is dict:
        return {name: name for name in names}
    config = kind.__struct_config__  # type: ignore[attr-defined]  # a Struct
    if config.tag is not None or config.array_like or config.omit_defaults:
        raise NotInColumnsError("rows that are not objects of their fields")
    return {each.encode_name: each.name for each in msgspec.structs.fields(kind)}


def _column(frame: Frame, name: str | None, field: Any) -> Array:
    """What a topic stores for a field of the rows.

    Raises:
        NotInColumnsError: It might not be what it makes of JSON.
    """
    array = pa.nulls(frame.row_count) if name is None else frame.column(name)
    if array.null_count and not field.nullable:
        raise NotInColumnsError(f"{field.name} must not be null")
    kind, t = array.type, pa.types
    if kind.equals(field.type):
        return array
    wanted = field.type
    same = (
        t.is_null(kind)
        or (t.is_int64(kind) and (t.is_integer(wanted) or t.is_float64(wanted)))
        or (t.is_string(kind) and t.is_large_string(wanted))
    )
    if not same:
        raise NotInColumnsError(f"{field.name} is {kind}, not {wanted}")
    try:
        return array.cast(wanted)
    except pa.ArrowInvalid as error:
        raise NotInColumnsError(f"{field.name}: {error}") from None


def _keys(chunk: FrameChunk, batch: MicroBatch) -> Array | None:
    """The keys of the records, as `encode_key` makes them."""
    keys = chunk.keys
    if keys is not None:
        return keys.cast(pa.string()).cast(pa.binary())
    if not batch.has_keys:
        return None  # and no list of rows is made
    rows = chunk.rows if isinstance(chunk.rows, range) else chunk.rows.tolist()
    return pa.array(batch.keys(rows), pa.binary())
