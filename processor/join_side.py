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
from .state import StateRecords, encode_entries, encode_removed
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

    __slots__ = ("fresh", "matched", "persisted", "rows")

    def __init__(self) -> None:
        self.rows: list[Held] = []
        self.fresh: list[Held] = []
        """Those that have come since the state was written, as they came."""
        self.matched: list[Held] = []
        """Those that have had their first match since then."""
        self.persisted = False
        """Whether state has rows of it."""

    def changed(self) -> list[Held]:
        """What the state does not have as it is."""
        if not self.matched:
            return self.fresh
        fresh = {held.number for held in self.fresh}
        return [held for held in self.matched if held.number not in fresh] + self.fresh


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
        self._first_end = INT64_MIN + -INT64_MIN % width_ms
        """The end of the first bucket: W is never before it, and state could not hold it."""
        row_type = node.left_type if name == "left" else node.right_type
        self._codec = RowCodec(row_type, f"{node.label}: {name} rows")
        self._buckets: dict[int, _Bucket] = {}
        """By their ends: W at which no row of them can find a match any more."""
        self._ends: list[int] = []
        """A heap of the ends."""
        self.ended: list[int] = []
        """Ends of buckets that are gone, but not from the state yet."""

    def _end(self, time: int) -> int:
        last = time + self.ahead_ms
        return max(last - last % self._width_ms + self._width_ms, self._first_end)

    def hold(self, held: Held, *, fresh: bool = True) -> None:
        """Take in a row, which state does not have if it is fresh."""
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
        end = self._end(time)
        bucket = self._buckets.get(end)
        if bucket is None:
            bucket = self._buckets[end] = _Bucket()
            heapq.heappush(self._ends, end)
        bucket.rows.append(held)
        if fresh:
            bucket.fresh.append(held)
        else:
            bucket.persisted = True
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
            if bucket.persisted:
                self.ended.append(end)
            self.count -= len(bucket.rows)
            before = end - self.ahead_ms
            for key in {held.key for held in bucket.rows}:
                times, rows = self.lanes[key]
                if times[-1] < before:
                    del self.lanes[key]
                else:
                    count = bisect_left(times, before)
                    del times[:count], rows[:count]

    def unmatched(self, key: object, level: int) -> list[int]:
        """The last possible matches of rows without one that W = `level` has not let go."""
        if not self.kept or key not in self.lanes:
            return []
        first = level - self.ahead_ms
        rows = self.lanes[key][1]
        return [
            held.time + self.ahead_ms for held in rows if not held.matched and held.time >= first
        ]

    def changed(self) -> set[object]:
        """Keys of the rows that the state does not have as they are."""
        return {held.key for bucket in self._buckets.values() for held in bucket.changed()}

    @property
    def changed_count(self) -> int:
        """About how many they are."""
        return sum(len(each.fresh) + len(each.matched) for each in self._buckets.values())

    def forget(self, keys: Iterable[object]) -> None:
        """Let go of the rows of keys. Looks at all rows."""
        gone = {key for key in keys if self.lanes.pop(key, None) is not None}
        if gone:
            for bucket in self._buckets.values():
                before = len(bucket.rows)
                bucket.rows = [held for held in bucket.rows if held.key not in gone]
                self.count -= before - len(bucket.rows)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = encode_removed((self.name, end) for end in self.ended)
        self.ended = []
        for end, bucket in sorted(self._buckets.items()):
            changed = bucket.changed()
            if changed:
                records.extend(self._entries(end, changed))
                bucket.fresh, bucket.matched, bucket.persisted = [], [], True
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

    def records(self, keys: Iterable[object]) -> StateRecords:
        """All rows of keys.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = encode_removed(())
        for end, rows in self._by_bucket(keys).items():
            records.extend(self._entries(end, rows))
        return records

    def _by_bucket(self, keys: Iterable[object]) -> dict[int, list[Held]]:
        found: dict[int, list[Held]] = {}
        for key in keys:
            if key in self.lanes:
                for held in self.lanes[key][1]:
                    found.setdefault(self._end(held.time), []).append(held)
        return found

    def _entries(self, end: int, rows: Sequence[Held]) -> StateRecords:
        paths = [(self.name, end, held.key, held.number) for held in rows]
        packed = self._codec.pack([held.value for held in rows])
        values = [(held.time, held.matched, row) for held, row in zip(rows, packed, strict=True)]
        return encode_entries(self._operator, paths, values, proven=True)

    def take(self, end: int, key: object, number: int, content: Sequence[Any]) -> Held:
        """Take over, and return, a row as state kept it. Those of one key come in order.

        Raises:
            DataError: It is none of this side.
        """
        match content:
            case [int(time), bool(matched), packed] if (
                INT64_MIN <= time <= INT64_MAX and end == self._end(time)
            ):
                held = Held(number, key, time, self._codec.unpack(packed), matched)
                self.hold(held, fresh=False)
                return held
            case _:
                raise DataError(f"not a row of {self._operator!r}: {content!r}")
