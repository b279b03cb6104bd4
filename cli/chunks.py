"""Columns of records on their way into a topic, cut by the partitions they are to go to. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from millstream import Headers

from .envelope import LineError

T = TypeVar("T")


class Chunk(NamedTuple):
    """Columns of records on their way into the topic."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None = None
    timestamps_ms: Sequence[int] | None = None
    partitions: Sequence[int | None] | None = None
    headers: Sequence[Headers] | None = None
    error: LineError | None = None
    """The line after the last record that could not be read."""

    @property
    def value_bytes(self) -> int:
        """Length of all values."""
        return sum(map(len, filter(None, self.values)))


def take(chunk: Chunk, indexes: Sequence[int]) -> Chunk:
    """The records at `indexes`, in this order.

    >>> take(Chunk([b"a", b"b"], [None, b"k"]), [1])[:2]
    ([b'b'], [b'k'])
    """
    return Chunk(
        [chunk.values[index] for index in indexes],
        _pick(chunk.keys, indexes),
        _pick(chunk.timestamps_ms, indexes),
        _pick(chunk.partitions, indexes),
        _pick(chunk.headers, indexes),
        chunk.error,
    )


def _pick(column: Sequence[T] | None, indexes: Sequence[int]) -> list[T] | None:
    return None if column is None else [column[index] for index in indexes]


def by_partition(
    chunk: Chunk, wanted: int | None, partition_count: int
) -> Iterator[tuple[int | None, Chunk]]:
    """The parts of a chunk with their partitions; None where the key shall decide.

    Args:
        chunk: Whose `partitions` count where the topic has them.
        wanted: All records go there, whatever they say; None: as they say.
        partition_count: Of the topic.
    """
    if not chunk.values:
        return
    if wanted is not None or chunk.partitions is None:
        yield wanted, chunk
        return
    indexes: dict[int | None, list[int]] = {}
    for index, named in enumerate(chunk.partitions):
        has_it = named is not None and 0 <= named < partition_count
        indexes.setdefault(named if has_it else None, []).append(index)
    for partition, chosen in indexes.items():
        yield partition, chunk if len(indexes) == 1 else take(chunk, chosen)
