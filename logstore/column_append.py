"""From Arrow data to encoded batches with their logs: which row goes to which partition.

Rows whose topic has a declared key go where the key belongs, as with `append`; others together to
one partition, in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .append import partition_of
from .arrow_columns import compute
from .batch import EncodedBatch
from .column_batch import conforming, encode_arrow, given_column, keys_of
from .config import TopicInfo
from .engine import Engine
from .errors import UsageError, missing_key
from .log import Log
from .topic_schema import pyarrow


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
    ) -> list[tuple[Log, EncodedBatch]]:
        """Batches in the order of partitions; see `Store.append_arrow`."""
        info = self._engine.topic(topic)
        batches = conforming(data, topic, info.config)
        rows = sum(batch.num_rows for batch in batches)
        given_keys = None if keys is None else given_column(keys, "keys", "binary", rows)
        stamps = None
        if timestamps_ms is not None:
            stamps = given_column(timestamps_ms, "timestamps_ms", "int64", rows)
        parts, start = [], 0
        for batch in batches:
            count = batch.num_rows
            own = None if given_keys is None else given_keys.slice(start, count)
            times = None if stamps is None else stamps.slice(start, count)
            parts.append(_Part(batch, _keys(info, batch, own), times))
            start += count
        if partition is None and (info.partitions == 1 or all(part.keys is None for part in parts)):
            partition = next(self._turn) % info.partitions
        if partition is not None:
            log = self._engine.log(topic, partition)
            return [(log, encode_arrow(info.config, *part)) for part in parts]
        encoded = []
        for number in range(info.partitions):
            log = self._engine.log(topic, number)
            for part in parts:
                chosen = _rows_of(info, part, number)
                if chosen.batch.num_rows:
                    encoded.append((log, encode_arrow(info.config, *chosen)))
        return encoded

    def table_of(self, topic: str, columns: Mapping[str, Sequence[object]]) -> Any:
        """The columns of a mapping as a pyarrow.Table; see `Store.append_columns`."""
        pa, info = pyarrow(), self._engine.topic(topic)
        schema = info.schema
        if schema is None:
            raise UsageError(
                f"topic {topic!r} has no schema: create it with schema= to append columns",
                topic=topic,
            )
        arrays, names = [], []
        for name, column in columns.items():
            kind = schema.field(name).type if name in schema.names else None
            try:
                arrays.append(pa.array(column, kind))
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                first = str(error).splitlines()[0]
                raise UsageError(f"column {name!r} does not fit its type {kind}: {first}") from None
            names.append(name)
        lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"columns are of different lengths: {lengths}")
        return pa.Table.from_arrays(arrays, names=names)


class _Part(NamedTuple):
    """Rows that become a batch, with what leads them."""

    batch: Any
    keys: Any
    """A binary array; None: no row has a key."""
    stamps: Any
    """An int64 array; None: as declared, or the time of the append."""


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


def _rows_of(info: TopicInfo, part: _Part, partition: int) -> _Part:
    """The rows whose keys belong to a partition; each key is hashed once."""
    pa = pyarrow()
    numbered = part.keys.dictionary_encode()
    places = [partition_of(key, info.partitions) for key in numbered.dictionary.to_pylist()]
    chosen = pa.array([place == partition for place in places], pa.bool_())
    mask = chosen.take(numbered.indices).fill_null(partition == 0)
    stamps = None if part.stamps is None else part.stamps.filter(mask)
    return _Part(part.batch.filter(mask), part.keys.filter(mask), stamps)
