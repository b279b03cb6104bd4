"""From Arrow data to encoded batches with their logs: which row goes to which partition.

Rows whose topic has a declared key go where the key belongs, as with `append`; others together to
one partition, in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from .append import partition_of
from .batch import EncodedBatch
from .column_batch import conforming, encode_arrow, keys_of
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
        self, topic: str, data: object, partition: int | None
    ) -> list[tuple[Log, EncodedBatch]]:
        """Batches in the order of partitions; see `Store.append_arrow`."""
        info = self._engine.topic(topic)
        batches = conforming(data, topic, info.config)
        if info.config.compact and info.config.key_column is None:
            raise missing_key(topic)
        if partition is None and (info.config.key_column is None or info.partitions == 1):
            partition = next(self._turn) % info.partitions
        if partition is not None:
            log = self._engine.log(topic, partition)
            return [(log, self._encode(info, batch)) for batch in batches]
        encoded = []
        for number in range(info.partitions):
            log = self._engine.log(topic, number)
            for batch in batches:
                part = _rows_of(info, batch, number)
                if part.num_rows:
                    encoded.append((log, self._encode(info, part)))
        return encoded

    def _encode(self, info: TopicInfo, batch: Any) -> EncodedBatch:
        keys = None if info.config.key_column is None else keys_of(info.config, batch)
        if keys is not None and keys.null_count and info.config.compact:
            raise missing_key(info.name)
        return encode_arrow(info.config, batch, keys)

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


def _rows_of(info: TopicInfo, batch: Any, partition: int) -> Any:
    """The rows of a batch whose keys belong to a partition; each key is hashed once."""
    pa = pyarrow()
    numbered = keys_of(info.config, batch).dictionary_encode()
    places = [partition_of(key, info.partitions) for key in numbered.dictionary.to_pylist()]
    chosen = pa.array([place == partition for place in places], pa.bool_())
    mask = chosen.take(numbered.indices).fill_null(partition == 0)
    return batch.filter(mask)
