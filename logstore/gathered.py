"""Columns that are gathered for one append: bytes and times, packed as the log holds them. Pure.

Where many records wait for their append, as those of a pipeline's epoch do, lists of them take
several times the memory, and the append has to look at each again. Here each is looked at once,
when it is added, while it is still in the processor's caches. Per-record work happens in C loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import accumulate, chain, pairwise
from struct import error as StructError, pack, unpack  # noqa: N812 - it is a class
from typing import Any, Final, overload

from .errors import UsageError
from .format import INT64_MAX, NO_TIMESTAMP

_BYTES_MAX: Final = (1 << 31) - 1
"""The ends of entries are int32 in the log."""


TIMESTAMPS: Final = "-(2**63) + 1 to 2**63 - 1"
"""The least int64 stands for no timestamp."""


class JoinedBytes(Sequence[bytes]):
    """A column of bytes that is gathered for an append, kept as a few long pieces and the lengths.

    It can be given wherever a column of values or keys can. Entries are found by unpacking all that
    was packed, so iterate instead of indexing. At most 2 GiB. Not thread-safe.

    >>> column = JoinedBytes([b"ab", b""])
    >>> column.extend([b"c"])
    >>> len(column), list(column), column.size_bytes, list(column[1:])
    (3, [b'ab', b'', b'c'], 3, [b'', b'c'])
    """

    __slots__ = ("_count", "ends", "pieces", "size_bytes")

    def __init__(self, values: Sequence[bytes] = ()) -> None:
        self.ends: list[bytes] = []
        """Where the entries end, as int32; put together they are one column of all entries."""
        self.pieces: list[bytes] = []
        """Put together they are all entries put together."""
        self.size_bytes = 0
        """Of all entries."""
        self._count = 0
        if values:
            self.extend(values)

    @overload
    def extend(self, values: Sequence[bytes]) -> None: ...
    @overload
    def extend(self, values: Sequence[Sized], joined: bytes) -> None: ...
    def extend(self, values: Sequence[Any], joined: bytes | None = None) -> None:
        """Append many entries.

        Args:
            values: The entries; anything as long as they are will do, where `joined` is given.
            joined: All of them put together, if that is known.

        Raises:
            TypeError: One is no bytes, None for example. Nothing was appended.
            UsageError: More than 2 GiB. Nothing was appended.
        """
        if not values:
            return
        piece = b"".join(values) if joined is None else joined
        size_bytes = self.size_bytes + len(piece)
        if size_bytes > _BYTES_MAX:
            raise UsageError(f"a JoinedBytes holds {_BYTES_MAX} bytes, not {size_bytes}")
        ends = list(accumulate(map(len, values), initial=self.size_bytes))
        if ends[-1] != size_bytes:
            raise TypeError("an entry is a buffer of items that are no bytes")
        self.ends.append(pack(f"<{len(ends)}i", *ends)[4:])
        self.pieces.append(piece)
        self.size_bytes = size_bytes
        self._count += len(values)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bytes) and any(map(value.__eq__, self))

    def __iter__(self) -> Iterator[bytes]:
        data = b"".join(self.pieces)
        for start, end in pairwise(self._bounds()):
            yield data[start:end]

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> JoinedBytes: ...
    def __getitem__(self, index: int | slice) -> bytes | JoinedBytes:
        """An entry, or the entries of a slice as such a column."""
        entries = list(self)[index]
        return JoinedBytes(entries) if isinstance(entries, list) else entries

    def _bounds(self) -> tuple[int, ...]:
        return unpack(f"<{self._count + 1}i", b"".join([bytes(4), *self.ends]))


class JoinedTimes(Sequence[int]):
    """A column of timestamps, UTC milliseconds, that is gathered for an append.

    It can be given wherever a column of timestamps can. Entries are found by unpacking all of them,
    so iterate instead of indexing. Not thread-safe.

    >>> column = JoinedTimes([5, 3])
    >>> column.extend([9])
    >>> len(column), list(column), column.minimum, column.maximum, list(column[1:])
    (3, [5, 3, 9], 3, 9, [3, 9])
    """

    __slots__ = ("_count", "maximum", "minimum", "pieces")

    def __init__(self, times: Sequence[int] = ()) -> None:
        self.pieces: list[bytes] = []
        """Put together they are the entries as int64."""
        self.minimum = INT64_MAX
        """The least entry; INT64_MAX while there is none."""
        self.maximum = NO_TIMESTAMP
        """The greatest entry; INT64_MIN while there is none."""
        self._count = 0
        if times:
            self.extend(times)

    def extend(self, times: Sequence[int]) -> None:
        """Append many entries.

        Raises:
            UsageError: One is no int64, or the least one, which stands for none. Nothing was
                appended.
        """
        if not times:
            return
        try:
            piece = pack(f"<{len(times)}q", *times)
            minimum, maximum = int(min(times)), int(max(times))
        except (TypeError, StructError):
            raise wrong_timestamp(times) from None
        if minimum == NO_TIMESTAMP:
            raise wrong_timestamp(times)
        self.pieces.append(piece)
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)
        self._count += len(times)

    def extend_same(self, time_ms: int, count: int) -> None:
        """Append an entry `count` times, in next to no time. Errors as `extend`.

        >>> times = JoinedTimes([5])
        >>> times.extend_same(7, 2)
        >>> list(times), times.maximum
        ([5, 7, 7], 7)
        """
        before = len(self.pieces)
        self.extend((time_ms,))
        self.pieces[before] *= count
        self._count += count - 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(unpack(f"<{len(piece) // 8}q", piece) for piece in self.pieces)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> JoinedTimes: ...
    def __getitem__(self, index: int | slice) -> int | JoinedTimes:
        """An entry, or the entries of a slice as such a column."""
        entries = list(self)[index]
        return JoinedTimes(entries) if isinstance(entries, list) else entries


def wrong_timestamp(timestamps_ms: Sequence[object]) -> UsageError:
    """Name the first entry of a column that is no timestamp."""
    for index, timestamp in enumerate(timestamps_ms):
        if not isinstance(timestamp, int) or not NO_TIMESTAMP < timestamp <= INT64_MAX:
            return UsageError(
                f"timestamps_ms[{index}] must be an int of UTC milliseconds, {TIMESTAMPS}, not"
                f" {timestamp!r:.50}"
            )
    return UsageError("timestamps_ms must be a sequence of ints")
