"""From Arrow data to encoded batches with their logs: which row goes to which partition.

Rows whose topic has a declared key go where the key belongs, as with `append`; others together to
one partition, in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from datetime import date, datetime
from types import NoneType
from typing import Any, Final

from .append import partition_of
from .arrow_columns import compute, constant
from .batch import EncodedBatch
from .column_batch import ArrowPart, conforming, encode_arrow, given_column, keys_of, times_of
from .config import TopicInfo
from .engine import Engine
from .errors import UsageError, missing_key
from .log import Log
from .topic_schema import no_schema, pyarrow, stored_schema

_PIECE_BYTES: Final = 4 << 20
"""Bytes that are written at once, at least: smaller batches share a hold of the append lock."""


class ColumnAppender:
    """Encodes Arrow data for an engine. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = itertools.count()

    def encode(
        self,
        topic: str,
        data: object,
        partition: int | None,
        keys: object = None,
        timestamps_ms: object = None,
    ) -> Generator[list[tuple[Log, EncodedBatch]], None, None]:
        """Batches in the order of partitions, in pieces to be written; see `Store.append_arrow`.

        What is wrong with the data is an error before the first piece. While a piece is written the
        next is compressed, and no more than these are in memory.
        """
        info = self._engine.topic(topic)
        try:
            parts = _parts(info, data, keys, timestamps_ms)
        except UsageError as error:
            raise error.at(topic=topic) from None
        if partition is None and (info.partitions == 1 or all(part.keys is None for part in parts)):
            partition = next(self._turn) % info.partitions
        places: Iterable[tuple[int, list[ArrowPart]]]
        if partition is None:
            places = enumerate(_spread(parts, info.partitions))
        else:
            places = [(partition, parts)]
        encoded = (
            (self._engine.log(topic, number), batch)
            for number, chosen in places
            for batch in encode_arrow(info.config, chosen)
        )
        if not info.config.columnar:
            yield list(encoded)  # a row that cannot be JSON is found only here
            return
        piece: list[tuple[Log, EncodedBatch]] = []
        for each in encoded:
            piece.append(each)
            if sum(batch.total_bytes for _, batch in piece) >= _PIECE_BYTES:
                yield piece
                piece = []
        if piece:
            yield piece

    def table_of(self, topic: str, columns: Mapping[str, Sequence[object]]) -> Any:
        """The columns of a mapping as a pyarrow.Table; see `Store.append_columns`."""
        schema = self._engine.topic(topic).schema
        if schema is None:
            raise no_schema(topic, "append columns")
        if not hasattr(columns, "items"):
            raise UsageError(
                f"columns is a {type(columns).__name__}; give a mapping of names to columns, or a"
                " frame to append_arrow",
                topic=topic,
            )
        pa, arrays, names = pyarrow(), [], []
        for name, column in columns.items():
            if name not in schema.names:
                known = ", ".join(schema.names)
                raise UsageError(f"there is no column {name!r}; there are {known}", topic=topic)
            kind = schema.field(name).type
            try:
                arrays.append(_array_of(column, kind))
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                first = str(error).splitlines()[0]
                raise UsageError(
                    f"column {name!r} does not fit its type {kind}: {first}", topic=topic
                ) from None
            names.append(name)
        lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"columns are of different lengths: {lengths}", topic=topic)
        return pa.Table.from_arrays(arrays, names=names)


def _array_of(column: Any, kind: Any) -> Any:
    """A column as an array: of the type it is to have, or one that is cast to it exactly.

    Raises:
        TypeError, ValueError, OverflowError: It cannot be; an ArrowException, too.
    """
    pa = pyarrow()
    if isinstance(column, str | bytes | Mapping | AbstractSet):
        raise TypeError(f"a {type(column).__name__} is no list of values")
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    if isinstance(column, Iterator):
        column = list(column)  # it may be looked at twice
    t = pa.types
    text = t.is_string(kind) or t.is_large_string(kind)
    exact = text or t.is_binary(kind) or t.is_large_binary(kind)
    if exact or t.is_boolean(kind) or t.is_float64(kind):
        return pa.array(column, kind)
    ints = t.is_integer(kind) and isinstance(column, list | tuple | range)
    if ints and set(map(type, column)) <= {int, NoneType}:  # of others Arrow finds out, slower
        return pa.array(column, kind)
    # Arrow makes 1 of 1.5 and a day of noon where it is told the type.
    try:
        array = pa.array(column)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        array = pa.array(column, kind)  # ints of 64 bits without a sign; or it says why not
        alike = False
    else:
        alike = _are_alike(column, array.type)
    if not alike and not all(map(_is_kept, column, array.to_pylist())):
        raise TypeError("values of several types, of which some would become others: give one type")
    plain = t.is_integer(array.type) or t.is_floating(array.type) or t.is_nested(array.type)
    return array if plain or t.is_temporal(array.type) else pa.array(column, kind)


def _are_alike(column: Iterable[Any], kind: Any) -> bool:
    """Whether values of which Arrow has found the type are all of one, where it would not mind.

    Of days and times together it makes days, and of times with and without a zone those of one.
    """
    t = pyarrow().types
    if not _has_times(kind):
        return True
    if t.is_temporal(kind):
        if getattr(column, "dtype", None) not in (None, object):
            return True
        kinds = {(type(each), getattr(each, "tzinfo", None) is None) for each in _present(column)}
        return len(kinds) <= 1
    if t.is_struct(kind):
        rows = list(_present(column))
        return all(isinstance(row, Mapping) for row in rows) and all(
            _are_alike([row.get(field.name) for row in rows], field.type) for field in kind
        )
    return _are_alike(list(itertools.chain.from_iterable(_present(column))), kind.value_type)


def _present(column: Iterable[Any]) -> Iterator[Any]:
    return (each for each in column if each is not None)


def _has_times(kind: Any) -> bool:
    """Whether there are times in values of a type."""
    if pyarrow().types.is_temporal(kind):
        return True
    return any(_has_times(kind.field(each).type) for each in range(kind.num_fields))


def _is_kept(given: Any, kept: Any) -> bool:
    """Whether what Arrow has made of a value says the same, but for the places of a float."""
    if kept is None:
        return True  # whether that may be is asked of the whole column
    if isinstance(given, Mapping):
        return all(name in kept and _is_kept(value, kept[name]) for name, value in given.items())
    if isinstance(given, list | tuple) and isinstance(kept, list):
        return len(given) == len(kept) and all(map(_is_kept, given, kept))
    if isinstance(given, date):
        return isinstance(given, datetime) == isinstance(kept, datetime) and bool(given == kept)
    if isinstance(given, float) and isinstance(kept, float):
        return math.isinf(given) == math.isinf(kept)
    return not isinstance(given, float) or bool(given == kept)


def _parts(info: TopicInfo, data: object, keys: object, timestamps_ms: object) -> list[ArrowPart]:
    """The rows in parts of a size for a batch, with their keys and timestamps."""
    if info.config.schema is None:
        raise no_schema(info.name, "append columns")
    batches = conforming(data, stored_schema(info.config.schema))
    rows = sum(batch.num_rows for batch in batches)
    given_keys = None if keys is None else given_column(keys, "keys", "binary", rows)
    given_times = None
    if timestamps_ms is not None:
        given_times = given_column(timestamps_ms, "timestamps_ms", "int64", rows)
    parts, start = [], 0
    for batch in batches:
        count = batch.num_rows
        own = None if given_keys is None else given_keys.slice(start, count)
        times = None if given_times is None else given_times.slice(start, count)
        if times is None and info.config.time_column is not None:
            times = times_of(info.config, batch)
        parts.append(ArrowPart(batch, _keys(info, batch, own), times))
        start += count
    return parts


def _keys(info: TopicInfo, batch: Any, given: Any) -> Any:
    """The keys of rows: those given, and the declared ones where there is none."""
    keys = given
    if info.config.key_column is not None and (given is None or given.null_count):
        keys = keys_of(info.config, batch)
        if given is not None:
            keys = compute().coalesce(given, keys)
    if info.config.compact and (keys is None or keys.null_count):
        raise missing_key(info.name)
    return keys


def _spread(parts: Sequence[ArrowPart], partitions: int) -> Iterator[list[ArrowPart]]:
    """For each partition the rows whose keys belong to it; each key is hashed once."""
    pa = pyarrow()
    placed = []
    for part in parts:
        numbered = part.keys.dictionary_encode()
        places = [partition_of(key, partitions) for key in numbered.dictionary.to_pylist()]
        placed.append(pa.array(places, pa.int32()).take(numbered.indices).fill_null(0))
    for partition in range(partitions):
        wanted = constant(partition, pa.int32())
        masks = [compute().equal(places, wanted) for places in placed]
        chosen = [_chosen(part, mask) for part, mask in zip(parts, masks, strict=True)]
        yield [part for part in chosen if part.batch.num_rows]


def _chosen(part: ArrowPart, mask: Any) -> ArrowPart:
    stamps = None if part.stamps is None else part.stamps.filter(mask)
    return ArrowPart(part.batch.filter(mask), part.keys.filter(mask), stamps)
