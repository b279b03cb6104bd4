"""The right side of an as-of join: of each key the rows that may still be looked up, by time.

A row of the right side is a *version*. It is kept as long as a left row that is not late could
have it for its match; what that means depends on the direction of the join and is all said here.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence, Set as AbstractSet
from itertools import chain
from typing import Any, Final, NamedTuple

from millstream import DataError

from .join_nodes import AsofJoinNode
from .row_codec import RowCodec
from .serde import INT64_MAX, INT64_MIN
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import SWEEP_RECORDS
from .stored_keys import as_held

VERSION: Final = "version"
"""First part of the paths of versions."""

_PRUNE_MS: Final = 1000
"""Keys are looked through for what is not needed in steps of event time of this length, at most."""


class _Place(NamedTuple):
    """Where a version is: of its key, by time, then in the order they came."""

    key: object
    time: int
    number: int


class _Lane:
    """The versions of one key, by time; of one time, in the order they came."""

    __slots__ = ("rows", "times")

    def __init__(self) -> None:
        self.times: list[int] = []
        self.rows: list[tuple[int, Any]] = []
        """(number, row); a row of None deletes the key."""


class Versions:
    """All versions. Not thread-safe.

    Args:
        node: The join they are for.
    """

    def __init__(self, node: AsofJoinNode) -> None:
        self._node = node
        self._backward = node.direction == "backward"
        self._within_ms = node.within_ms
        # A version matches left rows up to `reach` after it, and those wait for `delay`: so a
        # version that is that far behind W can match none. None: it always can.
        reach_ms = 0 if node.direction == "forward" else node.within_ms
        self._hold_ms = None if reach_ms is None else reach_ms + node.delay_ms
        self._prune_ms = min(_PRUNE_MS, max(1, (node.within_ms or _PRUNE_MS) // 4))
        self._codec = RowCodec(node.right_type, f"{node.label}: right rows")
        self._lanes: dict[object, _Lane] = {}
        self._numbers = 0
        self._due: list[int] = []
        """A heap of the times in `_due_keys`."""
        self._due_keys: dict[int, dict[object, None]] = {}
        """Keys that have something to lose when W gets there."""
        self._fresh: dict[_Place, Any] = {}
        """Since the state was written."""
        self._removed: list[_Place] = []
        self.count = 0

    def add(self, key: object, time: int, row: Any, level: int) -> bool:
        """Take in a version; False when it is late: no left row could have it for its match.

        Args:
            key: Of the row.
            time: Its event time.
            row: None deletes the key from then on.
            level: W before the row.
        """
        if self._hold_ms is not None and time + self._hold_ms < level:
            return False
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        elif self._backward:
            floor = bisect_right(lane.times, level) - 1
            if floor >= 0 and lane.times[floor] > time:
                return False
        index = bisect_right(lane.times, time)
        self._numbers += 1
        place = _Place(key, time, self._numbers)
        lane.times.insert(index, time)
        lane.rows.insert(index, (place.number, row))
        self._fresh[place] = row
        self.count += 1
        self._schedule(lane, key, index)
        return True

    def _schedule(self, lane: _Lane, key: object, index: int) -> None:
        """Note when the version at `index`, or one that it replaces, is needed no more."""
        time = lane.times[index]
        if self._backward and len(lane.times) > 1:
            later = lane.times[index + 1] if index + 1 < len(lane.times) else time
            self._look_at(later, key)
        if self._hold_ms is not None:
            self._look_at(time + self._hold_ms + 1, key)

    def _look_at(self, level: int, key: object) -> None:
        due = level + -level % self._prune_ms
        keys = self._due_keys.get(due)
        if keys is None:
            keys = self._due_keys[due] = {}
            heapq.heappush(self._due, due)
        keys[key] = None

    def find(self, key: object, time: int) -> Any:
        """The match of a left row, or None.

        Of versions of one time the last to come counts, looking backward, and the first, looking
        forward. Of the nearest that are equally far, the earlier.
        """
        lane = self._lanes.get(key)
        if lane is None:
            return None
        before = after = -1
        if self._node.direction != "forward":
            before = bisect_right(lane.times, time) - 1
        if self._node.direction != "backward":
            after = bisect_left(lane.times, time)
            after = -1 if after == len(lane.times) else after
        index = before
        if before < 0 or (after >= 0 and lane.times[after] - time < time - lane.times[before]):
            index = after
        if index < 0:
            return None
        far = abs(lane.times[index] - time)
        return (
            None if self._within_ms is not None and far > self._within_ms else lane.rows[index][1]
        )

    def of(self, key: object) -> tuple[Sequence[int], Sequence[tuple[int, Any]]]:
        """Times of the versions of a key, rising, and the number and row of each."""
        lane = self._lanes.get(key)
        return ((), ()) if lane is None else (lane.times, lane.rows)

    @property
    def last_number(self) -> int:
        """That of the version that came last; they rise by one."""
        return self._numbers

    def prune(self, level: int) -> None:
        """Drop what no left row can match any more when W is `level`."""
        while self._due and self._due[0] <= level:
            for key in self._due_keys.pop(heapq.heappop(self._due)):
                lane = self._lanes.get(key)
                if lane is not None:
                    self._drop(key, lane, level)

    def _drop(self, key: object, lane: _Lane, level: int) -> None:
        count = 0
        if self._backward:
            count = max(0, bisect_right(lane.times, level) - 1)
        if self._hold_ms is not None:
            count = max(count, bisect_left(lane.times, level - self._hold_ms))
        for time, (number, _) in zip(lane.times[:count], lane.rows[:count], strict=True):
            place = _Place(key, time, number)
            if self._fresh.pop(place, self) is self:
                self._removed.append(place)
        del lane.times[:count], lane.rows[:count]
        self.count -= count
        if not lane.times:
            del self._lanes[key]

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = encode_removed((VERSION, *place) for place in self._removed)
        records.extend(self._entries(self._fresh))
        self._removed, self._fresh = [], {}
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All versions."""
        piece: dict[_Place, Any] = {}
        for key in list(self._lanes):
            piece.update(self._of(key))
            if len(piece) >= SWEEP_RECORDS:
                yield self._entries(piece)
                piece = {}
        yield self._entries(piece)

    def _of(self, key: object) -> Iterator[tuple[_Place, Any]]:
        """The versions of a key."""
        lane = self._lanes.get(key)
        if lane is not None:
            for time, (number, row) in zip(lane.times, lane.rows, strict=True):
                yield _Place(key, time, number), row

    def _entries(self, versions: dict[_Place, Any]) -> StateRecords:
        paths = [(VERSION, *place) for place in versions]
        rows = self._codec.pack(list(versions.values()))
        return encode_entries(self._node.name, paths, list(zip(rows, strict=True)), proven=True)

    # --- groups --------------------------------------------------------------------------------

    def records(self, keys: Iterable[object]) -> StateRecords:
        """All versions of keys."""
        return self._entries(dict(chain.from_iterable(map(self._of, as_held(self._lanes, keys)))))

    def take(self, entries: Iterable[StateEntry]) -> None:
        """Bring in all versions of some keys, from records whose paths begin with `VERSION`.

        Raises:
            DataError: They are none.
        """
        found: dict[_Place, Any] = {}
        for path, content in entries:
            match content:
                case [packed] if INT64_MIN <= path[2] <= INT64_MAX:
                    found[_Place(*path[1:])] = packed
                case _:
                    raise DataError(f"not a version of {self._node.name!r}: {path!r} {content!r}")
        for place in sorted(found, key=lambda each: (each.time, each.number)):
            lane = self._lanes.setdefault(place.key, _Lane())
            lane.times.append(place.time)
            lane.rows.append((place.number, self._codec.unpack(found[place])))
            self._schedule(lane, place.key, len(lane.times) - 1)
            self._numbers = max(self._numbers, place.number)
        self.count += len(found)

    def due(self, keys: AbstractSet[object]) -> dict[object, int]:
        """Of those keys that have something to lose: when W gets there. Looks at all keys."""
        found: dict[object, int] = {}
        for due in sorted(self._due_keys):
            for key in self._due_keys[due].keys() & keys:
                found.setdefault(key, due)
        return found

    def changed(self) -> set[object]:
        """The keys of which state has not all as it is."""
        return {place.key for place in chain(self._fresh, self._removed)}

    @property
    def changed_count(self) -> int:
        """About how many versions those are."""
        return len(self._fresh) + len(self._removed)

    def forget(self, keys: AbstractSet[object]) -> None:
        """Let go of the versions of keys that have not changed. Looks at all keys."""
        for key in keys:
            lane = self._lanes.pop(key, None)
            if lane is not None:
                self.count -= len(lane.times)
        for waiting in self._due_keys.values():
            for key in waiting.keys() & keys:
                del waiting[key]
