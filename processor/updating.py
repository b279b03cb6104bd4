"""Fixed windows that speak before they close: updates while they fill, corrections afterwards.

The same windows as windowing.py, one row at a time, because every row may have something to say.
Each result has a status: "update", or "final" for the last one, which comes when the window closes.

What happens at one input row, in this order: it is judged, late or added; the keys and windows it
touched are said if their turn has come; then it moves W, and what W has passed is said, in the
order of (end, bytes of the key): first results of windows that take corrections, then what is due
by the interval, then final results.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from typing import Any, Final

from millstream import DataError

from .aggregate import Aggregate
from .aggregating import FINAL_RESULT, UPDATE, Aggregates, Results, RowAggregates
from .columns import Chunk, MicroBatch, Rows
from .detached import detached
from .key_groups import Filed, GroupedOperator, Path, Wake
from .nodes import LATE, WindowNode
from .serde import INT64_MAX, ordered_keys
from .state import StateEntry, StateRecords, encode_removed
from .stateful import MAIN, Step
from .stored_keys import as_held
from .watermark import BEFORE_TIME
from .windowing import Window, WindowOperator, pick

_SINCE: Final = -1
"""The last column of a window: rows of a key since its last result."""


class _Since(Aggregate[object, int, int]):
    """Counts rows; set back from outside."""

    def init(self) -> int:
        return 0

    def add(self, accumulator: int, value: object) -> int:
        return accumulator + 1

    def result(self, accumulator: int) -> int:
        return accumulator


class UpdatingWindowOperator(WindowOperator, GroupedOperator):
    """Fixed windows with results before the final one. Not thread-safe."""

    def __init__(self, node: WindowNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        emission = node.emission
        self._corrections_ms = emission.corrections_ms
        self._every_rows = emission.every_rows
        self._every_ms = emission.every_ms
        # Windows close only after the time for corrections.
        self._first_ms = node.grace_ms + delay_ms
        self._hold_ms = self._first_ms + self._corrections_ms
        self._dirty: dict[tuple[int, object], None] = {}
        """(end, key) with rows that have not been said, where W says when that is."""
        self._row_aggregates = RowAggregates(f"window {node.name}", self._aggregates)
        self._out = Results()
        self._level = BEFORE_TIME
        """W after the last step, as rows are judged by it."""

    def _kept(self) -> Aggregates:
        return (*self.node.aggregates, ("rows since the last result", _Since()))

    @property
    def required_level(self) -> int | None:
        """The W that closes every open window for good; None when none is open."""
        if not self._open:
            return None
        return max(self._open) + self.node.grace_ms + self._corrections_ms

    def process(self, step: Step) -> dict[str, Rows]:
        """Add rows, say what has changed, close windows.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        (chunk,), progress, batch = step.chunks, step.progress, step.batch
        inputs = self._row_aggregates.inputs(chunk, batch)
        late: list[int] = []
        level, done = progress.start, 0
        for row, reached in zip(progress.rows, progress.levels, strict=True):
            stop = bisect_right(chunk.rows, row, done)
            self._take_rows(chunk, inputs, range(done, stop), level, batch, late)
            self._advance(level, reached, row, batch)
            level, done = reached, stop
        self._take_rows(chunk, inputs, range(done, len(chunk.rows)), level, batch, late)
        self._level = level - self.delay_ms
        self.late_count += len(late)
        return {MAIN: self._out.take(), LATE: pick(chunk, late)}

    def _take_rows(
        self,
        chunk: Chunk,
        inputs: list[tuple[object, ...]],
        indexes: range,
        level: int,
        batch: MicroBatch,
        late: list[int],
    ) -> None:
        """Add rows among which W does not move."""
        keys = chunk.keys
        assert keys is not None
        closed_end = self._windows.closed_end(level - self._hold_ms)
        said_end = self._windows.closed_end(level - self._first_ms)
        for index in indexes:
            ends = self._windows.ends(chunk.times[index])
            if not ends:
                self.skipped_count += 1
            elif ends[-1] <= closed_end:
                late.append(index)
            for end in ends:
                if end > closed_end:
                    key, row = keys[index], chunk.rows[index]
                    self._add_row(end, key, inputs[index], row, batch)
                    self._row_added(end, key, row, said_end, batch)

    def _add_row(
        self, end: int, key: object, inputs: Sequence[object], row: int, batch: MicroBatch
    ) -> None:
        window = self._window(end)
        if window.persisted:
            window.touched.append((key,))
        (slot,) = window.slots_of((key,))
        accumulators = [column[slot] for column in window.columns]
        self._row_aggregates.add(accumulators, inputs, batch, row)
        for column, accumulator in zip(window.columns, accumulators, strict=True):
            column[slot] = accumulator

    def _row_added(self, end: int, key: object, row: int, said_end: int, batch: MicroBatch) -> None:
        """Say what a key has, if its turn has come with this row."""
        if self._corrections_ms:
            if end <= said_end:
                self._say(end, [key], UPDATE, row, batch)
        elif self._every_rows is not None:
            window = self._open[end]
            if window.columns[_SINCE][window.slots[key]] >= self._every_rows:
                self._say(end, [key], UPDATE, row, batch)
        else:
            self._dirty[end, key] = None

    def _advance(self, before: int, level: int, row: int, batch: MicroBatch) -> None:
        """W has moved with input `row`: say what it has passed."""
        if self._corrections_ms:
            said_end = self._windows.closed_end(before - self._first_ms)
            for end in sorted(end for end in self._open if said_end < end):
                if end + self._first_ms <= level:
                    self._say(end, ordered_keys(list(self._open[end].slots)), UPDATE, row, batch)
        every_ms, delay_ms = self._every_ms, self.delay_ms
        if every_ms and (before - delay_ms) // every_ms != (level - delay_ms) // every_ms:
            by_end: dict[int, list[object]] = {}
            for end, key in self._dirty:
                if end in self._open:
                    by_end.setdefault(end, []).append(key)
            for end in sorted(by_end):
                keys = as_held(self._open[end].slots, by_end[end])
                self._say(end, ordered_keys(keys), UPDATE, row, batch)
            self._dirty = {}
        chunks: list[Rows] = []
        self._close(level - self._hold_ms, row, chunks, batch)
        for chunk in chunks:
            self._out.extend(chunk.as_chunk())

    def _say(self, end: int, keys: list[object], status: str, row: int, batch: MicroBatch) -> None:
        """Emit what keys of a window have, as results caused by input `row`."""
        window = self._open[end]
        start, time = self._windows.start_of(end), min(end - 1, INT64_MAX)
        slots = list(map(window.slots.__getitem__, keys))
        columns = self._results(window, slots, batch, row)
        for number, key in enumerate(keys):
            results = [detached(column[number]) for column in columns]
            value = self._make(key, start, end, *results, status)  # type: ignore[call-arg]  # its fields follow
            self._out.add(row, time, value, key)
            window.columns[_SINCE][window.slots[key]] = 0
        if window.persisted:
            window.touched.append(list(keys))

    def _values_of(
        self, keys: Sequence[object], end: int, columns: Sequence[Sequence[object]]
    ) -> list[object]:
        columns = [*columns, [FINAL_RESULT] * len(keys)]
        return super()._values_of(keys, end, columns)

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take state from records in the order they were written.

        Raises:
            DataError: Not the state of windows.
        """
        super().restore(entries)
        for end, window in self._open.items():
            self._note_dirty(end, window, list(window.slots))

    def _note_dirty(self, end: int, window: Window, keys: Iterable[object]) -> None:
        """Keys of a window have come from state: those with something to say wait again."""
        if self._every_ms:
            since = window.columns[_SINCE]
            self._dirty.update(((end, key), None) for key in keys if since[window.slots[key]])

    # --- groups --------------------------------------------------------------------------------

    removes_single = True

    @property
    def divisible(self) -> bool:
        """Not where what is said depends on how far W has risen at once."""
        return self._every_ms is None and not self._corrections_ms

    def ended(self) -> list[Path]:
        """See `GroupedOperator`."""
        return [(end,) for end in self._closed_persisted]

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        match path:
            case (int(),):
                return Filed(None, path)
            case (int() as end, key):
                return Filed(key, (end,))
        raise DataError(f"not the state of windows: {path!r}")

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        records = encode_removed(())
        for end, window in self._open.items():
            held = as_held(window.slots, keys)
            records.extend(self._filed(end, held, window.accumulators(held)))
        return records

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        came: dict[int, dict[object, list[Any]]] = {}
        for (end, key), accumulators in entries:
            came.setdefault(end, {})[key] = accumulators or []
        for end, content in came.items():
            window = self._window(end)
            if not window.persisted:
                # State does not have those that are here.
                window.touched.append(window.key_list())
                window.persisted = True
            for key, accumulators in self._unpacked(content).items():
                # Looking it up gives it the next slot, which is where its accumulators go.
                window.slots[key]
                for column, accumulator in zip(window.columns, accumulators, strict=True):
                    column.append(accumulator)
            self._note_dirty(end, window, content)

    def wakes(self, keys: Sequence[object]) -> Iterator[Wake | None]:
        """See `GroupedOperator`: windows wait to be said, and to close."""
        grace_ms, level, every_ms = self.node.grace_ms, self._level, self._every_ms
        asked = set(keys)
        dues: dict[object, list[int]] = {}
        for end, window in self._open.items():
            last = end + grace_ms + self._corrections_ms
            first = end + grace_ms if level < end + grace_ms else last
            for key in window.slots.keys() & asked:
                dues.setdefault(key, []).extend((last, first))
        said = {key for _, key in self._dirty} if every_ms else set[object]()
        for key in keys:
            if key not in dues:
                yield None
                continue
            due = min(dues[key])
            if every_ms and key in said:
                due = min(due, (level // every_ms + 1) * every_ms)
            yield Wake(due, max(dues[key]))

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        found: set[object] = set()
        for window in self._open.values():
            found.update(chain.from_iterable(window.touched) if window.persisted else window.slots)
        return found

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return sum(
            min(len(window.touched), len(window.slots)) if window.persisted else len(window.slots)
            for window in self._open.values()
        )

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        gone = set(keys)
        for end, window in list(self._open.items()):
            if not window.slots.keys() & gone:
                continue
            kept = [key for key in window.slots if key not in gone]
            columns = list(zip(*window.accumulators(kept), strict=True))
            window.slots = defaultdict(count().__next__)
            for key in kept:
                window.slots[key]
            window.columns = list(map(list, columns or [()] * len(window.columns)))
            if not kept:
                del self._open[end]
        self._ends = list(self._open)
        heapq.heapify(self._ends)
        self._dirty = {each: None for each in self._dirty if each[1] not in gone}
