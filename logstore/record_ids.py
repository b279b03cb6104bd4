"""Which record ids were appended to a partition within a window of time. Pure.

A record's id is the value of its header `record-id`. What is remembered is bounded: the ids of the
window, and at most `IDS_MAX` of them, the oldest being forgotten an eighth at a time. Where the ids
come from is `id_log.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from .errors import UsageError
from .record import Headers

RECORD_ID: Final = "record-id"
"""Name of the header that holds the id of a record."""
ID_BYTES_MAX: Final = 512
IDS_MAX: Final = 1 << 20
"""Per partition; about 150 bytes of memory each, and the id."""
_GENERATIONS: Final = 8
_OFFSET_BITS: Final = 64
_OFFSET_MASK: Final = (1 << _OFFSET_BITS) - 1


class Place(NamedTuple):
    """Where the record of an id is."""

    offset: int
    append_ms: int
    """When it was appended."""


def record_id(headers: Headers) -> bytes | None:
    """The id of a record, None if it has none.

    >>> record_id([("trace", b"1"), ("record-id", b"order-7")])
    b'order-7'
    """
    for name, value in headers:
        if name == RECORD_ID:
            if value is not None and not isinstance(value, (bytes, bytearray, memoryview)):
                raise UsageError(f"a record-id must be bytes, not {type(value).__name__}")
            return value or None
    return None


class _Generation:
    """Ids that came one after another, and are forgotten together."""

    __slots__ = ("first_ms", "last_ms", "places")

    def __init__(self, append_ms: int) -> None:
        self.first_ms = self.last_ms = append_ms
        self.places: dict[bytes, int] = {}
        """Append time and offset as one integer, which takes half of the memory of two."""


class IdWindow:
    """The ids of the last `window_ms`, in the order of their appends. Not thread-safe.

    >>> window = IdWindow(1000)
    >>> window.add(b"a", 7, append_ms=5000)
    >>> window.find(b"a", 5999), window.find(b"a", 6000)
    (Place(offset=7, append_ms=5000), None)
    """

    def __init__(self, window_ms: int, ids_max: int = IDS_MAX) -> None:
        self.window_ms = window_ms
        self.forgotten = 0
        """Ids that were forgotten for want of room."""
        self._size_max = max(1, ids_max // _GENERATIONS)
        self._span_ms = max(1, window_ms // _GENERATIONS)
        self._generations: deque[_Generation] = deque()

    def __len__(self) -> int:
        return sum(len(generation.places) for generation in self._generations)

    def add(self, record_id: bytes, offset: int, append_ms: int) -> None:
        """Remember an id."""
        generations = self._generations
        last = generations[-1] if generations else None
        if (
            last is None
            or len(last.places) >= self._size_max
            or append_ms - last.first_ms >= self._span_ms
        ):
            self._forget(append_ms)
            last = _Generation(append_ms)
            generations.append(last)
        last.places[record_id] = append_ms << _OFFSET_BITS | offset
        last.last_ms = max(last.last_ms, append_ms)

    def _forget(self, now_ms: int) -> None:
        generations = self._generations
        while generations and now_ms - generations[0].last_ms >= self.window_ms:
            generations.popleft()
        while len(self) > self._size_max * (_GENERATIONS - 1):
            self.forgotten += len(generations.popleft().places)

    def find(self, record_id: bytes, now_ms: int) -> Place | None:
        """Where the last record with that id is, if it was appended within the window."""
        for generation in reversed(self._generations):
            found = generation.places.get(record_id)
            if found is not None:
                place = Place(found & _OFFSET_MASK, found >> _OFFSET_BITS)
                return place if now_ms - place.append_ms < self.window_ms else None
        return None
