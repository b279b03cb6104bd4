"""One side of an interval join: the rows that may still find a match.

Per key they lie in the order of time, so that matches are a slice. They leave in buckets of event
time: one record of state ends a whole bucket, and a row may be kept somewhat longer than needed;
what is let go already is excluded where rows are joined, so that nobody can tell.

State is filed under [side, end of bucket, key, number]: time, whether it has had a match, row.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from millstream import DataError

from .join_nodes import IntervalJoinNode
from .row_codec import RowCodec
from .serde import INT64_MAX, INT64_MIN
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import SWEEP_RECORDS


class Held:
    """A row that is held. Rows are told apart by their numbers, which rise as rows come."""

    __slots__ = ("key", "matched", "number", "time", "value")

    def __init__(self, number: int, key: object, time: int, value: Any, matched: bool) -> None:
        self.number = number
        self.key = key
        self.time = time
        self.value = value
        self.matched = matched


Lane: TypeAlias = tuple[list[int], list[Held]]
"""The rows of one key, with their times, by time; of one time, as they came."""


class _Bucket:
    """The rows that leave together."""

    __slots__ = ("matched", "rows", "written")

    def __init__(self) -> None:
        self.rows: list[Held] = []
        """As they came."""
        self.written = 0
        """How many of them the state has."""
        self.matched: list[Held] = []
        """Those that have had their first match since the state was written."""

    def changed(self) -> list[Held]:
        """What the state does not have as it is."""
        new = self.rows[self.written :]
        first = new[0].number if new else self.rows[-1].number + 1
        return [held for held in self.matched if held.number < first] + new


class Side:
    """The rows of one side. Not thread-safe.

    Args:
        node: The join.
        name: "left" or "right".
        ahead_ms: How far after a row its last possible match may be; may be negative.
        width_ms: Of a bucket.
        kept: Whether rows without a match are said: then state has to know who has had one.
    """

    def __init__(
        self, node: IntervalJoinNode, name: str, ahead_ms: int, width_ms: int, *, kept: bool
    ) -> None:
        self.name = name
        self.ahead_ms = ahead_ms
        self.kept = kept
        self.lanes: dict[object, Lane] = {}
        self.count = 0
        self._operator = node.name
        self._width_ms = width_ms
        row_type = node.left_type if name == "left" else node.right_type
        self._codec = RowCodec(row_type, f"{node.label}: {name} rows")
        self._buckets: dict[int, _Bucket] = {}
        """By their ends: W at which no row of them can find a match any more."""
        self._ends: list[int] = []
        """A heap of the ends."""
        self._ended: list[int] = []
        """Ends of buckets that are gone, but not from the state yet."""

    def _end(self, time: int) -> int:
        last = time + self.ahead_ms
        return last - last % self._width_ms + self._width_ms

    def hold(self, held: Held) -> None:
        """Take in a row."""
        time = held.time
        lane = self.lanes.get(held.key)
        if lane is None:
            self.lanes[held.key] = [time], [held]
        else:
            times, rows = lane
            if times[-1] <= time:
                times.append(time)
                rows.append(held)
            else:
                index = bisect_right(times, time)
                times.insert(index, time)
                rows.insert(index, held)
        last = time + self.ahead_ms
        end = last - last % self._width_ms + self._width_ms
        bucket = self._buckets.get(end)
        if bucket is None:
            bucket = self._buckets[end] = _Bucket()
            heapq.heappush(self._ends, end)
        bucket.rows.append(held)
        self.count += 1

    def match(self, held: Held) -> None:
        """Note the first match of a row."""
        held.matched = True
        self._buckets[self._end(held.time)].matched.append(held)

    def free(self, level: int) -> None:
        """Drop the buckets that W = `level` has passed."""
        while self._ends and self._ends[0] <= level:
            end = heapq.heappop(self._ends)
            bucket = self._buckets.pop(end)
            if bucket.written:
                self._ended.append(end)
            self.count -= len(bucket.rows)
            before = end - self.ahead_ms
            for key in {held.key for held in bucket.rows}:
                times, rows = self.lanes[key]
                if times[-1] < before:
                    del self.lanes[key]
                else:
                    count = bisect_left(times, before)
                    del times[:count], rows[:count]

    def held(self) -> Iterator[Held]:
        """All rows, in the order they came."""
        rows = [held for bucket in self._buckets.values() for held in bucket.rows]
        return iter(sorted(rows, key=lambda held: held.number))

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = encode_removed((self.name, end) for end in self._ended)
        self._ended = []
        for end, bucket in sorted(self._buckets.items()):
            changed = bucket.changed()
            if changed:
                records.extend(self._entries(end, changed))
                bucket.written = len(bucket.rows)
                bucket.matched = []
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows, in bounded pieces.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        for end, bucket in sorted(self._buckets.items()):
            rows = list(bucket.rows)
            for start in range(0, len(rows), SWEEP_RECORDS):
                if end in self._buckets:
                    yield self._entries(end, rows[start : start + SWEEP_RECORDS])

    def _entries(self, end: int, rows: Sequence[Held]) -> StateRecords:
        paths = [(self.name, end, held.key, held.number) for held in rows]
        packed = self._codec.pack([held.value for held in rows])
        values = [(held.time, held.matched, row) for held, row in zip(rows, packed, strict=True)]
        return encode_entries(self._operator, paths, values, proven=True)

    def take(self, end: int, key: object, number: int, content: Sequence[Any]) -> None:
        """Take over a row as state kept it.

        Raises:
            DataError: It is none of this side.
        """
        match content:
            case [int(time), bool(matched), packed] if (
                INT64_MIN <= time <= INT64_MAX and end == self._end(time)
            ):
                self.hold(Held(number, key, time, self._codec.unpack(packed), matched))
            case _:
                raise DataError(f"not a row of {self._operator!r}: {content!r}")
        self._buckets[end].written += 1


def restore_sides(sides: Sequence[Side], entries: Iterable[StateEntry]) -> None:
    """Take the rows of both sides from the records of their operator.

    Args:
        sides: With different names.
        entries: In the order they were written.

    Raises:
        DataError: A record belongs to none of them.
    """
    found: dict[str, dict[int, dict[int, tuple[object, list[Any]]]]] = {
        side.name: {} for side in sides
    }
    for entry in entries:
        match entry:
            case (str(name), int(end)), None if name in found:
                found[name].pop(end, None)
            case (str(name), int(end), key, int(number)), [*content] if name in found:
                found[name].setdefault(end, {})[number] = key, content
            case _:
                raise DataError(f"not the state of an interval join: {entry!r}")
    for side in sides:
        # In the order they came: it decides between rows of one time.
        rows = [
            (number, end, key, content)
            for end, numbers in found[side.name].items()
            for number, (key, content) in numbers.items()
        ]
        for number, end, key, kept in sorted(rows, key=lambda row: row[0]):
            side.take(end, key, number, kept)
