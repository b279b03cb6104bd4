"""What a pipeline has to write: rows as records, put into one order, kept until the epoch commits.

Several streams may write to one topic. Their records are ordered by the input row that caused
them, then by the order in which the sinks were declared: an order that no batch size can change.
The partition of a record is decided here for the same reason: by its key, or by the partition of
the input record when there is no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from millstream import Headers, JoinedBytes, TopicPartition, partition_of

from .columns import Chunk, MicroBatch
from .errors import apply
from .nodes import SinkNode
from .serde import encode_json, encode_keys, encode_value, json_values

_RECORD_BYTES: Final = 64
"""Rough cost of a buffered record beside its value: key, timestamp, list slots."""


Column: TypeAlias = JoinedBytes | list[bytes | None]
"""Values or keys that wait: joined as long as none of them is None."""


@dataclass(slots=True)
class OutputRecords:
    """Columns of records for one partition."""

    values: Column = field(default_factory=JoinedBytes)
    keys: Column = field(default_factory=JoinedBytes)
    timestamps_ms: list[int] = field(default_factory=list)
    headers: list[Headers] | None = None
    """None while no record has headers."""


class _Piece(NamedTuple):
    """What one sink writes in one step, with the input rows that caused it."""

    rows: Sequence[int]
    values: list[bytes | None]
    keys: list[bytes | None]
    timestamps_ms: Sequence[int]
    headers: list[Headers] | None


def encode_rows(node: SinkNode, chunk: Chunk, batch: MicroBatch) -> _Piece:
    """The rows of a sink as records.

    Raises:
        RecordError: A value cannot be written as JSON.
    """
    plain = {bytes, type(None)}.isdisjoint(map(type, chunk.values))
    encoded = json_values(chunk.values) if plain else None
    if encoded is None:
        encode = encode_json if plain else encode_value
        encoded = apply(encode, chunk.values, node.label, batch, chunk)  # type: ignore[arg-type]  # of any value
    values: list[bytes | None] = encoded  # type: ignore[assignment]  # a wider type
    keys: list[bytes | None] = (
        batch.keys(chunk.rows) if chunk.keys is None else [*encode_keys(chunk.keys)]
    )
    return _Piece(chunk.rows, values, keys, chunk.times, None)


def dead_letters(messages: Mapping[int, str], batch: MicroBatch) -> _Piece:
    """The records of rejected rows as they were, with a header `error`."""
    rows = sorted(messages)
    records = [batch.record(row) for row in rows]
    return _Piece(
        rows,
        [record.value for record in records],
        [record.key for record in records],
        [record.timestamp_ms for record in records],
        [
            (*record.headers, ("error", messages[row].encode(errors="replace")))
            for row, record in zip(rows, records, strict=True)
        ],
    )


class Outputs:
    """Records waiting for the commit of their epoch, by topic and partition.

    Args:
        partitions: Number of partitions of each output topic; one where not given.
    """

    def __init__(self, partitions: Mapping[str, int] | None = None) -> None:
        self._partitions = partitions or {}
        self.records: dict[TopicPartition, OutputRecords] = {}
        self.record_count = 0
        self.size_bytes = 0
        """Rough memory of the records."""

    def add(self, topic: str, pieces: Sequence[_Piece], batch: MicroBatch) -> None:
        """Take in what the sinks of a topic write in one step, in the order of their nodes."""
        pieces = [piece for piece in pieces if piece.values]
        if not pieces:
            return
        piece = pieces[0] if len(pieces) == 1 else _merge(pieces)
        self.record_count += len(piece.values)
        self.size_bytes += len(piece.values) * _RECORD_BYTES
        count = self._partitions.get(topic, 1)
        if count == 1:
            self._extend(TopicPartition(topic, 0), piece)
            return
        places = [
            source % count if key is None else partition_of(key, count)
            for key, source in zip(piece.keys, batch.partitions(piece.rows), strict=True)
        ]
        for partition in sorted(set(places)):
            chosen = [index for index, place in enumerate(places) if place == partition]
            self._extend(TopicPartition(topic, partition), _choose(piece, chosen))

    def _extend(self, place: TopicPartition, piece: _Piece) -> None:
        records = self.records.get(place)
        if records is None:
            records = self.records[place] = OutputRecords()
        if piece.headers is not None or records.headers is not None:
            before = records.headers or [()] * len(records.values)
            new = piece.headers or [()] * len(piece.values)
            records.headers = before + new
        former = records.values
        known_bytes = former.size_bytes if isinstance(former, JoinedBytes) else 0
        records.values = values = _extended(former, piece.values)
        if isinstance(values, JoinedBytes):
            self.size_bytes += values.size_bytes - known_bytes
        else:
            self.size_bytes += sum(map(len, filter(None, piece.values)))
        records.keys = _extended(records.keys, piece.keys)
        records.timestamps_ms.extend(piece.timestamps_ms)

    def take(self) -> dict[TopicPartition, OutputRecords]:
        """Hand everything over, for the commit, and begin anew."""
        records = self.records
        self.clear()
        return records

    def clear(self) -> None:
        """Forget everything."""
        self.records = {}
        self.record_count = 0
        self.size_bytes = 0


def _extended(column: Column, values: list[bytes | None]) -> Column:
    """The column with more values behind."""
    if isinstance(column, JoinedBytes):
        try:
            column.extend(values)  # type: ignore[arg-type]  # None: TypeError
        except TypeError:
            column = list(column)
        else:
            return column
    column.extend(values)
    return column


def _merge(pieces: Sequence[_Piece]) -> _Piece:
    """The pieces as one, in order of (input row, piece)."""
    with_headers = any(piece.headers is not None for piece in pieces)
    rows = list(chain.from_iterable(piece.rows for piece in pieces))
    # Sorting is stable and the pieces come in order, so the row alone decides.
    order = sorted(range(len(rows)), key=rows.__getitem__)
    whole = _Piece(
        rows,
        list(chain.from_iterable(piece.values for piece in pieces)),
        list(chain.from_iterable(piece.keys for piece in pieces)),
        list(chain.from_iterable(piece.timestamps_ms for piece in pieces)),
        list(chain.from_iterable(piece.headers or [()] * len(piece.values) for piece in pieces))
        if with_headers
        else None,
    )
    return _choose(whole, order)


def _choose(piece: _Piece, indexes: Sequence[int]) -> _Piece:
    """The records of `piece` at `indexes`, in their order."""
    return _Piece(
        [piece.rows[index] for index in indexes],
        [piece.values[index] for index in indexes],
        [piece.keys[index] for index in indexes],
        [piece.timestamps_ms[index] for index in indexes],
        None if piece.headers is None else [piece.headers[index] for index in indexes],
    )
