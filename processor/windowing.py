"""The window operator: rows in, one row per closed window and key out.

Open windows are dictionaries by window end, so a close takes a whole window away and no step ever
looks at all live keys. A chunk is cut where W passes the next window end (found by bisection in the
few steps W makes); between two cuts no window closes, hence rows are added in bulk.

What happens at one input row, in this order: the row is judged against W as it was before the row,
late or added; then the row moves W; then the windows W has passed close, in the order of (end,
bytes of the key), as rows caused by this input row. So the output is the same for any cut of the
input into batches.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import msgspec

from .agg import Aggregate
from .columns import Chunk, MicroBatch, join_chunks
from .errors import fail, failed_index
from .fields import field_getter
from .plan import WindowNode
from .serde import INT64_MAX, ordered_keys
from .state import StateEntry, StateRecords, encode_closed, encode_entries
from .watermark import Progress
from .windows import Windowed

Accumulators = list[Any]

_PLAIN_CONSTANTS = (int, float, str, bytes, bool, type(None))


class _Window(dict[Any, Accumulators]):
    """The accumulators of one window by key; a key that is new gets fresh ones."""

    __slots__ = ("fresh", "persisted", "touched")

    def __init__(self, fresh: Callable[[], Accumulators]) -> None:
        self.fresh = fresh
        self.persisted = False
        """Whether the state topic has entries of it. Until then every key is a change."""
        self.touched: list[Sequence[object]] = []
        """Keys of rows added since the state was written, when persisted."""

    def __missing__(self, key: object) -> Accumulators:
        accumulators = self[key] = self.fresh()
        return accumulators


class _OpenWindows(dict[int, _Window]):
    """Windows by end. `ends` is a heap of the same ends."""

    __slots__ = ("ends", "fresh")

    def __init__(self, fresh: Callable[[], Accumulators]) -> None:
        self.fresh = fresh
        self.ends: list[int] = []

    def __missing__(self, end: int) -> _Window:
        window = self[end] = _Window(self.fresh)
        heapq.heappush(self.ends, end)
        return window


class WindowOperator:
    """Fixed windows with aggregates. Not thread-safe.

    Args:
        node: What to compute.
        delay_ms: Sum of the graces of the windows above. A window above that ends at e emits when
            W reaches e + grace, with event time e - 1: so behind it no row is older than
            W - grace, and that is the W of this operator.
    """

    def __init__(self, node: WindowNode, delay_ms: int) -> None:
        self.node = node
        self.late_count = 0
        self.gap_count = 0
        """Rows that lie in no window, because windows leave gaps."""
        self._windows = node.windows
        self._hold_ms = node.grace_ms + delay_ms
        aggregates = [aggregate for _, aggregate in node.aggregates]
        self._aggregates: list[Aggregate[Any, Any, Any]] = aggregates
        self._open = _OpenWindows(fresh_maker(aggregates))
        self._closed_persisted: list[int] = []
        self._make = result_type(node)

    @property
    def live_count(self) -> int:
        """Number of keys of open windows."""
        return sum(map(len, self._open.values()))

    @property
    def required_level(self) -> int | None:
        """The W that closes every open window; None when none is open."""
        return max(self._open) + self._hold_ms if self._open else None

    def process(self, chunk: Chunk, progress: Progress, batch: MicroBatch) -> tuple[Chunk, Chunk]:
        """Add rows and close windows.

        Returns:
            The results of closed windows, and the late rows.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        results: list[Chunk] = []
        late: list[Chunk] = []
        level, done, step = progress.start, 0, 0
        while True:
            closing_end = self._windows.next_end(level - self._hold_ms)
            step = bisect_left(progress.levels, closing_end + self._hold_ms, step)
            at_end = step == len(progress.levels)
            count = (
                len(chunk.rows)
                if at_end
                # Up to and with the row that moves W: it is judged against W before it.
                else bisect_right(chunk.rows, progress.rows[step], done)
            )
            if count > done:
                closed_end = closing_end - self._windows.slide_ms
                self._take(chunk.cut(done, count), closed_end, batch, late)
                done = count
            if at_end:
                break
            level = progress.levels[step]
            self._close(level - self._hold_ms, progress.rows[step], results, batch)
        return join_chunks(results, keyed=True), join_chunks(late, keyed=True)

    def _take(self, rows: Chunk, closed_end: int, batch: MicroBatch, late: list[Chunk]) -> None:
        """Add rows among which no window closes. Windows up to `closed_end` are closed."""
        if self._windows.overlapping:
            self._take_overlapping(rows, closed_end, batch, late)
            return
        next_end = self._windows.next_end
        first = next_end(min(rows.times))
        if first == next_end(max(rows.times)) and first > closed_end:
            self._add_one_window(rows, first, batch)
            return
        slide, anchor = self._windows.slide_ms, self._windows.offset_ms
        ends = [time - (time - anchor) % slide + slide for time in rows.times]
        if first <= closed_end:
            is_late = [end <= closed_end for end in ends]
            late.append(_pick(rows, [index for index, bad in enumerate(is_late) if bad]))
            good = [index for index, bad in enumerate(is_late) if not bad]
            rows = _pick(rows, good)
            ends = [ends[index] for index in good]
            self.late_count += len(is_late) - len(good)
        if ends:
            self._add(rows, ends, batch)

    def _take_overlapping(
        self, rows: Chunk, closed_end: int, batch: MicroBatch, late: list[Chunk]
    ) -> None:
        """The same where a row may be in several windows or in none."""
        expanded: list[int] = []
        ends: list[int] = []
        late_indexes: list[int] = []
        for index, time in enumerate(rows.times):
            all_ends = self._windows.ends(time)
            open_ends = [end for end in all_ends if end > closed_end]
            if open_ends:
                expanded += [index] * len(open_ends)
                ends += open_ends
            elif all_ends:
                late_indexes.append(index)
            else:
                self.gap_count += 1
        if late_indexes:
            late.append(_pick(rows, late_indexes))
            self.late_count += len(late_indexes)
        if ends:
            self._add(_pick(rows, expanded), ends, batch)

    def _add_one_window(self, rows: Chunk, end: int, batch: MicroBatch) -> None:
        assert rows.keys is not None
        window = self._open[end]
        if window.persisted:
            window.touched.append(rows.keys)
        self._fold(list(map(window.__getitem__, rows.keys)), rows, batch)

    def _add(self, rows: Chunk, ends: Sequence[int], batch: MicroBatch) -> None:
        """Add rows of several windows, each to the window that ends at its place in `ends`."""
        keys = rows.keys
        assert keys is not None
        windows = self._open
        accumulators = [windows[end][key] for end, key in zip(ends, keys, strict=True)]
        for end in set(ends):
            window = windows[end]
            if window.persisted:
                window.touched.append(
                    [key for one, key in zip(ends, keys, strict=True) if one == end]
                )
        self._fold(accumulators, rows, batch)

    def _fold(self, accumulators: list[Accumulators], rows: Chunk, batch: MicroBatch) -> None:
        """Add each row to its accumulators, one aggregate after the other."""
        for slot, aggregate in enumerate(self._aggregates):
            remaining = iter(rows.values)
            try:
                getter = field_getter(aggregate.field, rows.values)
                column = remaining if getter is None else list(map(getter, remaining))
                if getter is not None:
                    remaining = iter(column)
                aggregate.add_column(accumulators, slot, remaining)
            except Exception as error:
                name = self.node.aggregates[slot][0]
                row = rows.rows[failed_index(rows.values, remaining)]
                fail(f"window {self.node.name}, agg {name}", error, batch, row)

    def _close(self, reached: int, row: int, results: list[Chunk], batch: MicroBatch) -> None:
        """Close the windows that end at or before `reached`, as results caused by input `row`."""
        windows = self._open
        while windows.ends and windows.ends[0] <= reached:
            end = heapq.heappop(windows.ends)
            window = windows.pop(end)
            if window.persisted:
                self._closed_persisted.append(end)
            keys = ordered_keys(list(window))
            columns = self._result_columns(list(map(window.__getitem__, keys)), batch, row)
            values = list(
                map(self._make, keys, repeat(end - self._windows.size_ms), repeat(end), *columns)
            )
            count = len(keys)
            # The last window of time ends beyond int64, its rows must not.
            time = min(end - 1, INT64_MAX)
            results.append(Chunk([row] * count, [time] * count, values, keys))

    def _result_columns(
        self, accumulators: list[Accumulators], batch: MicroBatch, row: int
    ) -> list[list[object]]:
        columns = []
        for slot, aggregate in enumerate(self._aggregates):
            try:
                columns.append(aggregate.result_column(list(map(itemgetter(slot), accumulators))))
            except Exception as error:
                name = self.node.aggregates[slot][0]
                fail(f"window {self.node.name}, result of {name}", error, batch, row)
        return columns

    def changes(self) -> StateRecords:
        """What changed since the last call of this or of `snapshot`, and take it for written.

        Windows that opened and closed in between leave nothing.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        records = encode_closed(self._closed_persisted)
        self._closed_persisted = []
        for end, window in sorted(self._open.items()):
            keys: Iterable[object] = window
            if window.persisted:
                keys = dict.fromkeys(chain.from_iterable(window.touched))
            self._write(records, end, window, list(keys))
        return records

    def snapshot(self) -> StateRecords:
        """Everything, and take it for written.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        records = StateRecords([], [])
        self._closed_persisted = []
        for end, window in sorted(self._open.items()):
            self._write(records, end, window, list(window))
        return records

    def _write(self, records: StateRecords, end: int, window: _Window, keys: list[object]) -> None:
        window.persisted = True
        window.touched = []
        accumulators = list(map(window.__getitem__, keys))
        records.extend(encode_entries(self.node.name, end, keys, accumulators))

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take state from records in the order they were written."""
        windows: dict[int, dict[object, Accumulators]] = {}
        for end, key, accumulators in entries:
            if key is None:
                windows.pop(end, None)
            elif accumulators is None:
                windows.get(end, {}).pop(key, None)
            else:
                windows.setdefault(end, {})[key] = accumulators
        for end, content in windows.items():
            window = self._open[end]
            window.update(content)
            window.persisted = True


def _pick(chunk: Chunk, indexes: Sequence[int]) -> Chunk:
    """The rows of `chunk` at `indexes`."""
    assert chunk.keys is not None
    return Chunk(
        [chunk.rows[index] for index in indexes],
        [chunk.times[index] for index in indexes],
        [chunk.values[index] for index in indexes],
        [chunk.keys[index] for index in indexes],
    )


def fresh_maker(aggregates: Sequence[Aggregate[Any, Any, Any]]) -> Callable[[], Accumulators]:
    """A function that makes the accumulators of a new key."""
    template = [aggregate.init() for aggregate in aggregates]
    if all(type(part) in _PLAIN_CONSTANTS for part in template):
        return template.copy
    makers = [aggregate.init for aggregate in aggregates]
    return lambda: [make() for make in makers]


def result_type(node: WindowNode) -> type[Windowed[object, object]]:
    """A Struct with the fields of `Windowed` and one per aggregate."""
    return msgspec.defstruct(  # type: ignore[return-value]  # its base says what it is
        "Windowed",
        [(name, object) for name, _ in node.aggregates],
        bases=(Windowed,),
        frozen=True,
        gc=False,
    )
