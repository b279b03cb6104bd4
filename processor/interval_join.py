"""The interval join: rows of two sides and of one key whose event times are near enough.

A right row belongs to a left one when its time is in [left + lower, left + upper]. A pair is a
result when the later of the two *comes*, with the greater of their times; a row that comes makes
its pairs in the order of (time of the other row, arrival). Where one input row is a row of both
sides, the left one is first.

A row is held until W has passed its last possible match, left + upper or right - lower: then it is
dropped and, if it has had no match and the join keeps such rows, said once. A row that comes when W
has passed both that and its own time is late.

What happens at one input row, in this order: the row is judged against W as it was before it, late
or joined and held; then it moves W; then the rows that W lets go are said, in the order of (last
possible match, left before right, arrival).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from millstream import DataError

from .columns import Chunk
from .join_nodes import IntervalJoinNode
from .join_results import LateRows, Pairs
from .join_side import Held, Side
from .key_groups import Filed, GroupedOperator, Path, Wake
from .nodes import LATE
from .operators import merged
from .state import StateEntry, StateRecords
from .stateful import MAIN, Step
from .watermark import BEFORE_TIME

_NO_ROW: Final = 1 << 62
"""After every row."""


class IntervalJoinOperator(GroupedOperator):
    """Joins rows as they come. Not thread-safe.

    Its state is that of its sides; see join_side.py.

    Args:
        node: Which rows belong together.
        delay_ms: W - delay_ms is what rows are judged against.
    """

    def __init__(self, node: IntervalJoinNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        width_ms = max(1, (node.upper_ms - node.lower_ms) // 8)
        left_kept, right_kept = node.how in {"left", "outer"}, node.how in {"right", "outer"}
        self._left = Side(node, "left", node.upper_ms, width_ms, kept=left_kept)
        self._right = Side(node, "right", -node.lower_ms, width_ms, kept=right_kept)
        self._sides = self._left, self._right
        self._level = BEFORE_TIME
        """W after the last step."""
        self._numbers = 0
        """How many rows have come: their order of arrival."""
        self._waiting: list[tuple[int, int, int, Held]] = []
        """A heap of (last possible match, side, number, row): those said if nothing matches."""
        self._restored = False

    @property
    def live_count(self) -> int:
        """Number of rows held."""
        return self._left.count + self._right.count

    @property
    def required_level(self) -> int | None:
        """The W that says every row that waits; None when none does."""
        # Those with a match lie in the heap until W gets there, but wait for nothing.
        lasts = (last for last, _, _, held in self._waiting if not held.matched)
        last = max(lasts, default=None)
        return None if last is None else last + 1

    def process(self, step: Step) -> dict[str, Chunk]:
        """Take in rows of both sides.

        Returns:
            The results, and the late rows of both sides.

        Raises:
            RecordError: The function that makes results raised.
        """
        pairs, late_left, late_right = Pairs(), LateRows(), LateRows()
        level = step.progress.start - self.delay_ms
        self._skip_said(level)
        arrivals = _arrivals(step.chunks)
        row, is_left, index = next(arrivals)
        left, right = step.chunks
        moves = [*zip(step.progress.rows, step.progress.levels, strict=True), (_NO_ROW - 1, None)]
        for moved, reached in moves:
            while row <= moved:
                chunk = left if is_left else right
                assert chunk.keys is not None
                if not self._take(chunk, index, level, pairs, is_left=is_left):
                    late = late_left if is_left else late_right
                    late.add(row, chunk.times[index], chunk.keys[index], chunk.values[index])
                row, is_left, index = next(arrivals)
            if reached is not None:
                level = reached - self.delay_ms
                if self._waiting and self._waiting[0][0] < level:
                    self._say(level, moved, pairs)
        self._level = level
        self._left.free(level)
        self._right.free(level)
        self.late_count += len(late_left.rows) + len(late_right.rows)
        return {
            MAIN: pairs.chunk(self._node.into, self._node.label, step.batch),
            LATE: merged([late_left.chunk(), late_right.chunk()], keyed=True),
        }

    def _take(self, chunk: Chunk, index: int, level: int, pairs: Pairs, *, is_left: bool) -> bool:
        """Join a row and hold it; False when it is late."""
        own, other = (self._left, self._right) if is_left else (self._right, self._left)
        time = chunk.times[index]
        last = time + own.ahead_ms
        if last < level and time < level:
            return False
        key, value, row = chunk.keys[index], chunk.values[index], chunk.rows[index]  # type: ignore[index]
        matched = False
        lane = other.lanes.get(key)
        if lane is not None:
            times, rows = lane
            # Of the other side what W has not let go, and near enough.
            first = max(time - other.ahead_ms, level - other.ahead_ms)
            start = bisect_left(times, first)
            stop = bisect_right(times, last, start)
            if start < stop:
                matched = True
                for held in rows[start:stop]:
                    pair = (value, held.value) if is_left else (held.value, value)
                    pairs.add(row, max(time, held.time), key, pair)
                    if other.kept and not held.matched:
                        other.match(held)
        if last < level:
            # Nothing that comes can match it: it is said at once, or not at all.
            if own.kept and not matched:
                pairs.add(row, time, key, (value, None) if is_left else (None, value))
            return True
        self._numbers += 1
        held = Held(self._numbers, key, time, value, matched)
        own.hold(held)
        if own.kept and not matched:
            self._wait(held, last, is_left=is_left)
        return True

    def _wait(self, held: Held, last: int, *, is_left: bool) -> None:
        heapq.heappush(self._waiting, (last, 0 if is_left else 1, held.number, held))

    def _say(self, level: int, row: int, pairs: Pairs) -> None:
        """Say the rows without a match that W = `level` lets go, as caused by `row`."""
        while self._waiting and self._waiting[0][0] < level:
            _, side, _, held = heapq.heappop(self._waiting)
            if not held.matched:
                pair = (held.value, None) if side == 0 else (None, held.value)
                pairs.add(row, held.time, held.key, pair)

    def _skip_said(self, level: int) -> None:
        """Rows that W had let go when they came back were said before."""
        if self._restored:
            self._restored = False
            while self._waiting and self._waiting[0][0] < level:
                heapq.heappop(self._waiting)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = self._left.changes()
        records.extend(self._right.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows that are held.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        yield from self._left.sweep()
        yield from self._right.sweep()

    # --- groups --------------------------------------------------------------------------------

    ends_whole = False

    def ended(self) -> list[Path]:
        """See `GroupedOperator`."""
        return [(side.name, end) for side in self._sides for end in side.ended]

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        match path:
            case ("left" | "right", int()):
                return Filed(None, path)
            case ("left" | "right", int(), key, int()):
                return Filed(key, path[:2])
        raise DataError(f"not the state of an interval join: {path!r}")

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        records = self._left.records(keys)
        records.extend(self._right.records(keys))
        return records

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        # In the order they came: it decides between rows of one time.
        for path, content in sorted(entries, key=_number):
            name, end, key, number = path
            side = self._left if name == "left" else self._right
            held = side.take(end, key, number, content or ())
            self._numbers = max(self._numbers, number)
            if side.kept and not held.matched:
                self._wait(held, held.time + side.ahead_ms, is_left=side is self._left)
        self._restored = True

    def wakes(self, keys: Sequence[object]) -> Iterator[Wake | None]:
        """See `GroupedOperator`: rows without a match wait to be said."""
        for key in keys:
            lasts = [last for side in self._sides for last in side.unmatched(key, self._level)]
            yield Wake(min(lasts) + 1, max(lasts) + 1) if lasts else None

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        return self._left.changed() | self._right.changed()

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return self._left.changed_count + self._right.changed_count

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        self._left.forget(keys)
        self._right.forget(keys)
        gone = set(keys)
        self._waiting = [each for each in self._waiting if each[-1].key not in gone]
        heapq.heapify(self._waiting)


def _number(entry: StateEntry) -> int:
    number: int = entry.path[-1]
    return number


def _arrivals(chunks: Sequence[Chunk]) -> Iterator[tuple[int, bool, int]]:
    """(input row, whether left, index) of the rows of both chunks, in order; then one past all."""
    left, right = chunks
    index, count, other, other_count = 0, len(left.rows), 0, len(right.rows)
    while index < count or other < other_count:
        if other == other_count or (index < count and left.rows[index] <= right.rows[other]):
            yield left.rows[index], True, index
            index += 1
        else:
            yield right.rows[other], False, other
            other += 1
    yield _NO_ROW, True, 0
