"""What a pipeline has to write: rows as records, put into one order, kept until the epoch commits.

Several streams may write to one topic. Their records are ordered by the input row that caused
them, then by the order in which the sinks were declared: an order that no batch size can change.
The partition of a record is decided here for the same reason: by its key, or by the partition of
the input record when there is no key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Final, NamedTuple, TypeAlias

from millstream import Headers, JoinedBytes, JoinedTimes, Record, TopicPartition, partition_of

from .columns import Chunk, MicroBatch
from .cutting import cuts, fits, values_bytes
from .errors import apply
from .nodes import SinkNode
from .serde import encode_json, encode_keys, encode_value, joined_keys, json_values

_ORIGIN_HEADERS: Final = ("dead-letter-topic", "dead-letter-partition", "dead-letter-offset")
"""Those of the dead letters of queues, too. They are the last, as a record may bring its own."""


class _Piece(NamedTuple):
    """What one sink writes in one step, with the input rows that caused it."""

    rows: Sequence[int]
    """None at all where nobody asks: see `encode_rows`."""
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    """None where no record has a key, or where they are texts."""
    timestamps_ms: Sequence[int]
    headers: list[Headers] | None = None
    """None where no record has headers."""
    texts: Sequence[str] = ()
    """Keys in ASCII, not yet made bytes one by one."""
    joined_texts: bytes = b""
    """All of them put together."""

    def with_keys(self) -> _Piece:
        """The same with keys as bytes."""
        return self._replace(keys=encode_keys(self.texts), texts=()) if self.texts else self

    def cut(self, start: int, stop: int) -> _Piece:
        """The records [start, stop), of a piece without texts."""
        return _Piece(
            self.rows[start:stop],
            self.values[start:stop],
            None if self.keys is None else self.keys[start:stop],
            self.timestamps_ms[start:stop],
            None if self.headers is None else self.headers[start:stop],
        )


_WRITTEN_AS_THEY_ARE: Final = frozenset({bytes, type(None)})
"""Types of values that do not become JSON."""

_RECORD_BYTES: Final = 16
"""Memory of a buffered record beside its value and key: where they end, and its time."""


Column: TypeAlias = JoinedBytes | list[bytes | None]
"""Values or keys that wait: joined as long as none of them is None."""


@dataclass(slots=True)
class OutputBatch:
    """Columns of records that will be appended together."""

    values: Column = field(default_factory=JoinedBytes)
    keys: Column | None = None
    """None while no record has a key."""
    timestamps_ms: JoinedTimes = field(default_factory=JoinedTimes)
    headers: list[Headers] | None = None
    """None while no record has headers."""
    values_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Rough memory of the records: where one of many has no key, keys are not counted."""
        keys_bytes = self.keys.size_bytes if isinstance(self.keys, JoinedBytes) else 0
        return len(self.values) * _RECORD_BYTES + self.values_bytes + keys_bytes

    def rows(self) -> Iterator[tuple[int, bytes | None, bytes | None, Headers]]:
        """Timestamp, key, value and headers of each record."""
        keys = repeat(None) if self.keys is None else self.keys
        headers = repeat(()) if self.headers is None else self.headers
        return zip(self.timestamps_ms, keys, self.values, headers, strict=False)  # some are endless

    def has_room(self, piece: _Piece, values_bytes: int) -> bool:
        """Whether a piece, whose values have that size, can be appended with what is here."""
        return fits(len(self.values) + len(piece.values), self.values_bytes + values_bytes)

    def extend(self, piece: _Piece, joined: bytes | None) -> None:
        """Take in a piece; `joined` are its values put together, if none is None."""
        before, count = len(self.values), len(piece.values)
        if piece.headers is not None or self.headers is not None:
            headers = [()] * before if self.headers is None else self.headers
            self.headers = headers + ([()] * count if piece.headers is None else piece.headers)
        if piece.texts and before == 0:
            self.keys = JoinedBytes()
        if piece.texts and isinstance(self.keys, JoinedBytes):
            self.keys.extend(piece.texts, piece.joined_texts)
        elif piece.texts or piece.keys is not None or self.keys is not None:
            keys = _none(before) if self.keys is None else self.keys
            new = piece.with_keys().keys
            self.keys = _extended(keys, _none(count) if new is None else new)
        self.values = _extended(self.values, piece.values, joined)
        times = piece.timestamps_ms
        if times[0] is times[-1] and times.count(times[0]) == count:
            # The results of a window that closes.
            self.timestamps_ms.extend_same(times[0], count)
        else:
            self.timestamps_ms.extend(times)


class OutputColumns(NamedTuple):
    """Records for one partition of a topic that stores columns, as Arrow data."""

    rows: Any
    """A pyarrow.RecordBatch of the schema of the topic."""
    keys: Any
    """A binary array, or None."""
    timestamps_ms: Any
    """An int64 array."""


Output: TypeAlias = OutputBatch | OutputColumns


def _none(count: int) -> Column:
    """So many keys that are none."""
    return [None] * count if count else JoinedBytes()


def encode_rows(node: SinkNode, chunk: Chunk, batch: MicroBatch, *, alone: bool = False) -> _Piece:
    """The rows of a sink as records.

    Args:
        node: The sink.
        chunk: Its rows.
        batch: Where they come from.
        alone: Whether this is the only sink of a topic with one partition: there the records need
            no numbers of input rows.

    Raises:
        RecordError: A value cannot be written as JSON.
    """
    plain = _WRITTEN_AS_THEY_ARE.isdisjoint(_kinds(chunk))
    encoded = json_values(chunk.values) if plain else None
    if encoded is None:
        encode = encode_json if plain else encode_value
        encoded = apply(encode, chunk.values, node.label, batch, chunk)  # type: ignore[arg-type]  # of any value
    rows: Sequence[int] = () if alone else chunk.rows
    if chunk.keys is None:
        keys = batch.keys(chunk.rows) if batch.has_keys else None
        return _Piece(rows, encoded, keys, chunk.times)
    joined = joined_keys(chunk.keys, plain=chunk.plain_keys)
    if joined is None:
        return _Piece(rows, encoded, encode_keys(chunk.keys), chunk.times)
    texts: Sequence[str] = chunk.keys  # type: ignore[assignment]  # joined_keys has seen to that
    return _Piece(rows, encoded, None, chunk.times, None, texts, joined)


def _kinds(chunk: Chunk) -> Collection[type]:
    """The types of the values; only one if all are the same."""
    if chunk.kind is not None:
        return (chunk.kind,)
    kinds = list(map(type, chunk.values))
    # Almost always so, and told by comparing addresses.
    return kinds[:1] if kinds and kinds.count(kinds[0]) == len(kinds) else kinds


def dead_letters(messages: Mapping[int, str], batch: MicroBatch) -> _Piece:
    """The records of rejected rows as they were, with headers that say why, and where they are."""
    rows = sorted(messages)
    records = [batch.record(row) for row in rows]
    return _Piece(
        rows,
        [record.value for record in records],
        [record.key for record in records],
        [record.timestamp_ms for record in records],
        [
            (*record.headers, ("error", messages[row].encode(errors="replace")), *_origin(record))
            for row, record in zip(rows, records, strict=True)
        ],
    )


def _origin(record: Record) -> Headers:
    place = record.topic, str(record.partition), str(record.offset)
    return tuple(zip(_ORIGIN_HEADERS, map(str.encode, place), strict=True))


def same_record(left: Record, right: Record) -> bool:
    """Whether two records say the same, wherever they are.

    Early versions did not say where dead letters come from.
    """
    if (left.timestamp_ms, left.key, left.value) != (right.timestamp_ms, right.key, right.value):
        return False
    some, others = tuple(left.headers), tuple(right.headers)
    return some == others or _without_origin(some) == others or some == _without_origin(others)


def _without_origin(headers: Headers) -> Headers:
    count = len(_ORIGIN_HEADERS)
    names = tuple(name for name, _ in headers[-count:])
    return headers[:-count] if names == _ORIGIN_HEADERS else headers


class Outputs:
    """Records waiting for the commit of their epoch, by topic and partition.

    Args:
        partitions: Number of partitions of each output topic; one where not given.
    """

    def __init__(self, partitions: Mapping[str, int] | None = None) -> None:
        self._partitions = partitions or {}
        self.records: dict[TopicPartition, list[Output]] = {}
        self.record_count = 0
        self.size_bytes = 0
        """Rough memory of the records."""

    def partitions_of(self, topic: str) -> int:
        """Number of partitions of an output topic."""
        return self._partitions.get(topic, 1)

    def add_columns(self, place: TopicPartition, piece: OutputColumns) -> None:
        """Take in what the only sink of a topic writes in one step into one partition."""
        self.records.setdefault(place, []).append(piece)
        self.record_count += piece.rows.num_rows
        self.size_bytes += piece.rows.nbytes + piece.rows.num_rows * _RECORD_BYTES

    def add(self, topic: str, pieces: Sequence[_Piece], batch: MicroBatch) -> None:
        """Take in what the sinks of a topic write in one step, in the order of their nodes."""
        pieces = [piece for piece in pieces if piece.values]
        if not pieces:
            return
        piece = pieces[0] if len(pieces) == 1 else _merge([each.with_keys() for each in pieces])
        self.record_count += len(piece.values)
        count = self.partitions_of(topic)
        if count == 1:
            self._extend(TopicPartition(topic, 0), piece)
            return
        piece = piece.with_keys()
        places = [
            source % count if key is None else partition_of(key, count)
            for key, source in zip(
                repeat(None) if piece.keys is None else piece.keys,
                batch.partitions(piece.rows),
                strict=False,  # repeat() is endless
            )
        ]
        for partition in sorted(set(places)):
            chosen = [index for index, place in enumerate(places) if place == partition]
            self._extend(TopicPartition(topic, partition), _choose(piece, chosen))

    def _extend(self, place: TopicPartition, piece: _Piece) -> None:
        joined, values_bytes = _joined(piece.values)
        if not fits(len(piece.values), values_bytes):
            ranges = list(cuts(piece.values))
            if len(ranges) > 1:
                piece = piece.with_keys()
                for start, stop in ranges:
                    self._extend(place, piece.cut(start, stop))
                return
        batches = self.records.setdefault(place, [])
        last = batches[-1] if batches else None
        if not isinstance(last, OutputBatch) or not last.has_room(piece, values_bytes):
            last = OutputBatch()
            batches.append(last)
        before = last.size_bytes
        last.extend(piece, joined)
        last.values_bytes += values_bytes
        self.size_bytes += last.size_bytes - before

    def batches(self) -> Iterator[tuple[TopicPartition, OutputBatch]]:
        """The records, as they will be appended, of a topology that writes no columns."""
        for place, batches in self.records.items():
            for batch in batches:
                assert isinstance(batch, OutputBatch)
                yield place, batch

    def take(self) -> dict[TopicPartition, list[Output]]:
        """Hand everything over, for the commit, and begin anew."""
        records = self.records
        self.clear()
        return records

    def clear(self) -> None:
        """Forget everything."""
        self.records = {}
        self.record_count = 0
        self.size_bytes = 0


def _joined(values: Sequence[bytes | None]) -> tuple[bytes | None, int]:
    """The values put together, unless one is None, and their size."""
    try:
        joined = b"".join(values)  # type: ignore[arg-type]  # None: TypeError
    except TypeError:
        return None, values_bytes(values)
    return joined, len(joined)


def _extended(
    column: Column, values: Sequence[bytes | None], joined: bytes | None = None
) -> Column:
    """The column with more values behind, which are `joined` put together, if that is known."""
    if isinstance(column, JoinedBytes):
        try:
            column.extend(values, joined)  # type: ignore[arg-type]  # None: TypeError
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
        None
        if all(piece.keys is None for piece in pieces)
        else list(chain.from_iterable(piece.keys or _none(len(piece.values)) for piece in pieces)),
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
        None if piece.keys is None else [piece.keys[index] for index in indexes],
        [piece.timestamps_ms[index] for index in indexes],
        None if piece.headers is None else [piece.headers[index] for index in indexes],
    )
