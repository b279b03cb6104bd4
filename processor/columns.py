"""Rows between operators, as columns, and the way back from a row to the record it came from.

Operators work on one chunk at a time, not on one row at a time. Every row carries the number of
the input row that caused it; that number, not the position in some list, is what "before" and
"after" mean everywhere: it orders the outputs, and it says which W a row is judged against.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain, compress
from typing import NamedTuple, Protocol

from millstream import Headers, Record


class InputBatch(Protocol):
    """What the processor reads: `millstream.RecordBatch`, or rows given by a test."""

    @property
    def topic(self) -> str:
        """Topic name."""
        ...

    @property
    def partition(self) -> int:
        """Partition number."""
        ...

    @property
    def record_count(self) -> int:
        """Number of records."""
        ...

    @property
    def append_timestamp_ms(self) -> int | None:
        """When the log got the batch, UTC ms; None where that is not known."""
        ...

    @property
    def offsets(self) -> Sequence[int]:
        """Offset of each record."""
        ...

    @property
    def timestamps_ms(self) -> Sequence[int]:
        """Timestamp of each record, UTC ms."""
        ...

    @property
    def keys(self) -> Sequence[bytes | None]:
        """Key of each record."""
        ...

    @property
    def has_keys(self) -> bool:
        """Whether a record may have a key."""
        ...

    @property
    def values(self) -> Sequence[bytes | None]:
        """Value of each record; None is a tombstone."""
        ...

    @property
    def joined_values(self) -> tuple[bytes, Sequence[int]] | None:
        """The values put together, and where each begins, the end last; None where one is empty."""
        ...

    @property
    def headers(self) -> Sequence[Headers]:
        """Headers of each record."""
        ...


class Rows(Protocol):
    """Rows between operators: a `Chunk`, or the same as columns in a `FrameChunk` (frames.py)."""

    @property
    def rows(self) -> Sequence[int]:
        """See `Chunk`; a numpy array where they are columns."""
        ...

    @property
    def row_count(self) -> int:
        """Number of rows."""
        ...

    def as_chunk(self) -> Chunk:
        """The rows as lists."""
        ...

    def key_types(self) -> set[type]:
        """The types of the grouping keys; of none if there are none."""
        ...

    def followed_by(self, others: Sequence[Rows]) -> Rows | None:
        """All rows, if the others are of the same kind and lie behind; None if they cannot be."""
        ...


class _Kept(NamedTuple):
    """Row numbers that nobody has asked for yet: those whose flag is true."""

    rows: Sequence[int] | _Kept
    good: Sequence[object]

    def numbers(self) -> list[int]:
        """The row numbers. A row may have come through thousands of filters."""
        flags = [self.good]
        rows = self.rows
        while isinstance(rows, _Kept):
            flags.append(rows.good)
            rows = rows.rows
        for good in reversed(flags):
            rows = list(compress(rows, good))
        return list(rows)


class Chunk:
    """Columns of equal length. The lists may be shared; operators make new ones.

    Attributes:
        times: Event times, UTC ms.
        values: Of any type.
        keys: Grouping keys, or None for a stream that is not keyed.
        kind: The type of every value, where that is known without a look at each.
        plain_keys: Whether the keys are known to be text in ASCII.
    """

    __slots__ = ("_rows", "keys", "kind", "plain_keys", "times", "values")

    def __init__(
        self,
        rows: Sequence[int] | _Kept,
        times: Sequence[int],
        values: Sequence[object],
        keys: Sequence[object] | None,
        kind: type | None = None,
        plain_keys: bool = False,
    ) -> None:
        self._rows = rows
        self.times = times
        self.values = values
        self.keys = keys
        self.kind = kind
        self.plain_keys = plain_keys

    @property
    def rows(self) -> Sequence[int]:
        """Number of the input row that caused each row; never falls, may repeat."""
        if isinstance(self._rows, _Kept):
            self._rows = self._rows.numbers()
        return self._rows

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.values)

    def as_chunk(self) -> Chunk:
        """The rows as lists, which they are."""
        return self

    def key_types(self) -> set[type]:
        """The types of the keys."""
        if self.plain_keys:
            return {str} if self.keys else set()
        return set(map(type, self.keys or ()))

    def followed_by(self, others: Sequence[Rows]) -> Chunk | None:
        """Lists are joined by `join_chunks`."""
        return None if others else self

    def with_values(self, values: Sequence[object], kind: type | None = None) -> Chunk:
        """The same rows with other values, all of type `kind` if that is known."""
        return Chunk(self._rows, self.times, values, self.keys, kind, self.plain_keys)

    def with_keys(self, keys: Sequence[object] | None, *, plain: bool = False) -> Chunk:
        """The same rows with other keys; `plain` as `plain_keys`."""
        return Chunk(self._rows, self.times, self.values, keys, self.kind, plain)

    def kept(self, good: Sequence[object]) -> Chunk:
        """The rows whose flag in `good` is true."""
        return Chunk(
            # Most rows are never asked for their numbers.
            _Kept(self._rows, good),
            list(compress(self.times, good)),
            list(compress(self.values, good)),
            None if self.keys is None else list(compress(self.keys, good)),
            self.kind,
            self.plain_keys,
        )

    def cut(self, start: int, stop: int) -> Chunk:
        """Rows [start, stop) of the chunk."""
        if start == 0 and stop == len(self.values):
            return self
        return Chunk(
            self.rows[start:stop],
            self.times[start:stop],
            self.values[start:stop],
            None if self.keys is None else self.keys[start:stop],
            self.kind,
            self.plain_keys,
        )


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of keyed chunks that follow each other, as columns where all of them are."""
    joined = parts[0].followed_by(parts[1:]) if parts else None
    return joined or join_chunks([part.as_chunk() for part in parts], keyed=True)


def join_chunks(chunks: Sequence[Chunk], *, keyed: bool) -> Chunk:
    """All rows of chunks that follow each other."""
    if len(chunks) == 1:
        return chunks[0]
    rows: list[int] = []
    times: list[int] = []
    values: list[object] = []
    keys: list[object] = []
    for chunk in chunks:
        rows += chunk.rows
        times += chunk.times
        values += chunk.values
        keys += chunk.keys or ()
    kinds = {chunk.kind for chunk in chunks}
    kind = kinds.pop() if len(kinds) == 1 else None
    return Chunk(rows, times, values, keys if keyed else None, kind)


class Place(NamedTuple):
    """Where an input row lies in the log."""

    topic: str
    partition: int
    offset: int


class MicroBatch:
    """The input of one step: batches in store-wide order, their rows numbered from 0."""

    def __init__(self, batches: Sequence[InputBatch]) -> None:
        self.batches = batches
        self.first_rows: list[int] = []
        count = 0
        for batch in batches:
            self.first_rows.append(count)
            count += batch.record_count
        self.row_count = count
        self._keys: list[bytes | None] | None = None
        """Of all rows, or none at all where no record has a key; None: not known yet."""

    def _find(self, row: int) -> tuple[InputBatch, int]:
        # The last batch that starts at or before the row; empty batches share their start.
        number = bisect_right(self.first_rows, row) - 1
        return self.batches[number], row - self.first_rows[number]

    def place(self, row: int) -> Place | None:
        """Where input row `row` lies; None for the step that ends bounded input."""
        if row >= self.row_count:
            return None
        batch, index = self._find(row)
        return Place(batch.topic, batch.partition, batch.offsets[index])

    def record(self, row: int) -> Record:
        """The input record of row `row`."""
        batch, index = self._find(row)
        return Record(
            batch.topic,
            batch.partition,
            batch.offsets[index],
            batch.timestamps_ms[index],
            batch.keys[index],
            batch.values[index],
            batch.headers[index],
        )

    @property
    def has_keys(self) -> bool:
        """Whether a record of the step has a key."""
        if self._keys is None:
            columns: list[Sequence[bytes | None]] = []
            if any(batch.has_keys for batch in self.batches):
                columns = [batch.keys for batch in self.batches]
            if all(column.count(None) == len(column) for column in columns):
                columns = []
            self._keys = list(chain.from_iterable(columns))
        return bool(self._keys)

    def keys(self, rows: Sequence[int]) -> list[bytes | None] | None:
        """Keys of the input records of `rows`; None where no record of the step has one."""
        if not self.has_keys:
            return None
        assert self._keys is not None
        if rows == range(self.row_count):
            return self._keys
        # The step that ends bounded input has a row without a record.
        return list(map([*self._keys, None].__getitem__, rows))

    def partitions(self, rows: Sequence[int]) -> list[int]:
        """Partitions of the input records of `rows`."""
        return [0 if row >= self.row_count else self._find(row)[0].partition for row in rows]
