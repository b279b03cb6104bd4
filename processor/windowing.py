"""The window operator: rows in, one row per closed window and key out.

Open windows are held by window end, so a close takes a whole window away and no step ever looks at
all live keys. A chunk is cut where W passes the next window end (found by bisection in the few
steps W makes); between two cuts no window closes, hence rows are added in bulk.

What happens at one input row, in this order: the row is judged against W as it was before the row,
late or added; then the row moves W; then the windows W has passed close, in the order of (end,
bytes of the key), as rows caused by this input row. So the output is the same for any cut of the
input into batches.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, count, repeat
from operator import itemgetter, not_
from typing import Any, NamedTuple, NoReturn, Protocol

from millstream import DataError

from .accumulator_codec import AccumulatorCodec
from .aggregate import Aggregate
from .aggregating import Aggregates, fresh
from .columns import Chunk, MicroBatch, Rows, join_rows
from .detached import CONSTANT
from .errors import convert, fail, failed_index
from .fields import field_getter
from .nodes import LATE, WindowNode
from .serde import INT64_MAX, key_order
from .state import StateEntry, StateRecords, encode_filed, encode_removed, pieces_of
from .stateful import MAIN, SWEEP_RECORDS, StatefulOperator, Step
from .windows import FixedWindows


class Window:
    """The accumulators of one window: one column per aggregate, one slot per key.

    A list per key would cost more than the sums in it, and make work for the garbage collector.
    """

    __slots__ = ("_aggregates", "columns", "persisted", "slots", "touched")

    def __init__(self, aggregates: Aggregates) -> None:
        self._aggregates = aggregates
        self.slots: dict[object, int] = defaultdict(count().__next__)
        """Slot of each key. A new key takes the next one by being looked up."""
        self.columns: list[list[Any]] = [[] for _ in aggregates]
        self.persisted = False
        """Whether the state topic has entries of it. Until then every key is a change."""
        self.touched: list[Sequence[object]] = []
        """Keys of rows added since the state was written, when persisted."""

    @property
    def key_count(self) -> int:
        """Number of keys."""
        return len(self.slots)

    def key_list(self) -> list[object]:
        """All keys."""
        return list(self.slots)

    def take_changed(self) -> tuple[list[object], list[tuple[Any, ...]]]:
        """Keys with what state must keep for each: it does not know them, or not as they are."""
        changed = self.key_list()
        if self.persisted:
            changed = list(dict.fromkeys(chain.from_iterable(self.touched)))
        self.persisted = True
        self.touched = []
        return changed, self.accumulators(changed)

    def slots_of(self, keys: Sequence[object]) -> list[int]:
        """The slots of `keys`, with fresh accumulators for new ones."""
        slots = list(map(self.slots.__getitem__, keys))
        new_count = len(self.slots) - len(self.columns[0])
        if new_count:
            for column, (_, aggregate) in zip(self.columns, self._aggregates, strict=True):
                first = fresh(aggregate)
                if type(first) in CONSTANT:
                    column.extend([first] * new_count)
                else:
                    column.extend([fresh(aggregate) for _ in range(new_count)])
        return slots

    def accumulators(self, keys: Sequence[object]) -> list[tuple[Any, ...]]:
        """What state keeps for each of `keys`."""
        slots = list(map(self.slots.__getitem__, keys))
        columns = [map(column.__getitem__, slots) for column in self.columns]
        return list(zip(*columns, strict=True))

    def restore(self, content: Mapping[object, Sequence[Any]]) -> None:
        """Take over what state kept."""
        self.slots_of(list(content))
        for number, column in enumerate(self.columns):
            column[:] = [accumulators[number] for accumulators in content.values()]
        self.persisted = True


class OpenWindow(Protocol):
    """What state needs of a window; see `Window`, and `ArrayWindow` of the column lane."""

    @property
    def key_count(self) -> int:
        """Number of keys."""
        ...

    def key_list(self) -> list[Any]:
        """All keys."""
        ...

    def take_changed(self) -> tuple[list[Any], list[tuple[Any, ...]]]:
        """Keys with what state must keep for each: it does not know them, or not as they are."""
        ...

    def accumulators(self, keys: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What state keeps for each of `keys`."""
        ...


class Part(NamedTuple):
    """Rows of one window."""

    keys: Sequence[object]
    values: Sequence[object]
    kind: type | None
    """See `Chunk`."""
    rows: Iterable[int]
    """Numbers of the input rows, to be read once: for the message when something fails."""


class WindowOperator(StatefulOperator):
    """Fixed windows with aggregates. Not thread-safe.

    Its state is filed under [window end, key].

    Args:
        node: What to compute.
        delay_ms: Sum of the graces of the windows above. A window above that ends at e emits when
            W reaches e + grace, with event time e - 1: so behind it no row is older than
            W - grace, and that is the W of this operator.
    """

    def __init__(self, node: WindowNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self.node = node
        self._windows = node.windows
        self._hold_ms = node.grace_ms + delay_ms
        self._aggregates = self._kept()
        self._codec = AccumulatorCodec(
            f"the state of {node.name!r}", self._aggregates, node.row_type
        )
        self._open: dict[int, Window] = {}
        self._ends: list[int] = []
        """A heap of the ends of the open windows."""
        self._closed_persisted: list[int] = []
        self._make = node.result_type

    def _kept(self) -> Aggregates:
        """What state keeps of each key and window."""
        return self.node.aggregates

    @property
    def live_count(self) -> int:
        """Number of keys of open windows."""
        return sum(window.key_count for window in self._all_open().values())

    def _all_open(self) -> Mapping[int, OpenWindow]:
        """The open windows by end."""
        return self._open

    @property
    def required_level(self) -> int | None:
        """The W that closes every open window; None when none is open."""
        return max(self._ends) + self.node.grace_ms if self._ends else None

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Add rows and close windows.

        Returns:
            The results of closed windows, and the late rows.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        (chunk,), progress, batch = step.chunks, step.progress, step.batch
        results: list[Rows] = []
        late: list[Rows] = []
        level, done, moved = progress.start, 0, 0
        while True:
            closing_end = self._windows.next_end(level - self._hold_ms)
            moved = bisect_left(progress.levels, closing_end + self._hold_ms, moved)
            at_end = moved == len(progress.levels)
            # Up to and with the row that moves W: it is judged against W before it.
            stop = len(chunk.rows)
            if not at_end:
                stop = bisect_right(chunk.rows, progress.rows[moved], done)
            if stop > done:
                closed_end = self._windows.closed_end(level - self._hold_ms)
                self._take(chunk, range(done, stop), closed_end, batch, late)
                done = stop
            if at_end:
                break
            level = progress.levels[moved]
            self._close(level - self._hold_ms, progress.rows[moved], results, batch)
        return {MAIN: join_rows(results), LATE: join_rows(late)}

    def _take(
        self, chunk: Rows, places: range, closed_end: int, batch: MicroBatch, late: list[Rows]
    ) -> None:
        """Add rows among which no window closes. Windows up to `closed_end` are closed."""
        rows = chunk.as_chunk().cut(places.start, places.stop)
        if self._windows.overlapping:
            groups, late_indexes = self._group_overlapping(rows.times, closed_end)
        else:
            next_end = self._windows.next_end
            first, last = next_end(min(rows.times)), next_end(max(rows.times))
            if first > closed_end and last in {first, next_end(first)}:
                self._take_near(rows, first, last, batch)
                return
            groups, late_indexes = self._group(rows.times, closed_end)
        if late_indexes:
            self.late_count += len(late_indexes)
            late.append(pick(rows, late_indexes))
        keys = rows.keys
        assert keys is not None
        for end, indexes in groups.items():
            part = Part(
                [keys[index] for index in indexes],
                [rows.values[index] for index in indexes],
                rows.kind,
                [rows.rows[index] for index in indexes],
            )
            self._add(end, part, batch)

    def _take_near(self, rows: Chunk, first: int, last: int, batch: MicroBatch) -> None:
        """Add rows that lie in one window, or in two that follow each other: most chunks do."""
        keys = rows.keys
        assert keys is not None
        if first == last:
            self._add(first, Part(keys, rows.values, rows.kind, rows.rows), batch)
            return
        earlier = list(map(first.__gt__, rows.times))
        later = list(map(not_, earlier))
        parts = [(first, earlier), (last, later)]
        # The window of the first row comes first, as it does where there are more than two.
        for end, chosen in parts if earlier[0] else reversed(parts):
            part = Part(
                list(compress(keys, chosen)),
                list(compress(rows.values, chosen)),
                rows.kind,
                compress(rows.rows, chosen),
            )
            self._add(end, part, batch)

    def _group(
        self, times: Sequence[int], closed_end: int
    ) -> tuple[dict[int, list[int]], list[int]]:
        """Indexes of rows by the end of their window, and of late rows."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        if isinstance(self._windows, FixedWindows):
            # As `next_end`, without a call per row.
            slide, anchor = self._windows.slide_ms, self._windows.offset_ms
            for index, time in enumerate(times):
                groups[time - (time - anchor) % slide + slide].append(index)
        else:
            for index, end in enumerate(map(self._windows.next_end, times)):
                groups[end].append(index)
        late = [groups.pop(end) for end in sorted(groups) if end <= closed_end]
        return groups, sorted(chain.from_iterable(late))

    def _group_overlapping(
        self, times: Sequence[int], closed_end: int
    ) -> tuple[dict[int, list[int]], list[int]]:
        """The same where a row may be in several windows or in none.

        A row is late only when all of its windows are closed; otherwise the open ones get it.
        """
        groups: defaultdict[int, list[int]] = defaultdict(list)
        late: list[int] = []
        for index, time in enumerate(times):
            ends = self._windows.ends(time)
            if not ends:
                self.skipped_count += 1
            elif ends[-1] <= closed_end:
                late.append(index)
            for end in ends:
                if end > closed_end:
                    groups[end].append(index)
        return groups, late

    def _add(self, end: int, part: Part, batch: MicroBatch) -> None:
        """Add rows to the window that ends at `end`."""
        window = self._window(end)
        if window.persisted:
            window.touched.append(part.keys)
        slots = window.slots_of(part.keys)
        for column, (name, aggregate) in zip(window.columns, self._aggregates, strict=True):
            inputs = self._inputs(part, name, aggregate, batch)
            remaining = iter(inputs)
            try:
                aggregate.add_column(column, slots, remaining)
            except Exception as error:
                self._fail(name, error, batch, part, failed_index(inputs, remaining))

    def _inputs(
        self, part: Part, name: str, aggregate: Aggregate[Any, Any, Any], batch: MicroBatch
    ) -> Sequence[object]:
        """What an aggregate adds of each row."""
        getter = field_getter(aggregate.field, part.values, part.kind)
        if getter is None:
            return part.values

        def reject(index: int, error: Exception) -> NoReturn:
            self._fail(name, error, batch, part, index)

        return convert(part.values, getter, reject)

    def _fail(
        self, name: str, error: Exception, batch: MicroBatch, part: Part, index: int
    ) -> NoReturn:
        fail(f"window {self.node.name}, agg {name}", error, batch, list(part.rows)[index])

    def _new_window(self, end: int) -> Window:
        """A window of no keys."""
        del end
        return Window(self._aggregates)

    def _window(self, end: int) -> Window:
        window = self._open.get(end)
        if window is None:
            window = self._open[end] = self._new_window(end)
            heapq.heappush(self._ends, end)
        return window

    # --- closing -------------------------------------------------------------------------------

    def _close(self, reached: int, row: int, results: list[Rows], batch: MicroBatch) -> None:
        """Close the windows that end at or before `reached`, as results caused by input `row`."""
        while self._ends and self._ends[0] <= reached:
            results.append(self._closed(heapq.heappop(self._ends), row, batch))

    def _closed(self, end: int, row: int, batch: MicroBatch) -> Rows:
        """The results of a window that closes, caused by input `row`."""
        window = self._open.pop(end)
        if window.persisted:
            self._closed_persisted.append(end)
        unordered = window.key_list()
        order = key_order(unordered)
        keys = list(map(unordered.__getitem__, order))
        # The slots of all keys are their places.
        columns = self._results(window, order, batch, row)
        values = self._values_of(keys, end, columns)
        # The last window of time ends beyond int64, its rows must not.
        time = min(end - 1, INT64_MAX)
        return Chunk([row] * len(keys), [time] * len(keys), values, keys, self._make)

    def _values_of(
        self, keys: Sequence[object], end: int, columns: Sequence[Sequence[object]]
    ) -> list[object]:
        """The final results of a window, one per key."""
        start = self._windows.start_of(end)
        return list(map(self._make, keys, repeat(start), repeat(end), *columns))

    def _results(
        self, window: Window, slots: Sequence[int], batch: MicroBatch, row: int
    ) -> list[list[object]]:
        """The result columns of a window, in the order of `slots`."""
        results = []
        for column, (name, aggregate) in zip(window.columns, self.node.aggregates, strict=False):
            try:
                results.append(aggregate.result_column(list(map(column.__getitem__, slots))))
            except Exception as error:
                fail(f"window {self.node.name}, result of {name}", error, batch, row)
        return results

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Windows that opened and closed in between leave nothing.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        records = encode_removed((end,) for end in self._closed_persisted)
        self._closed_persisted = []
        for end, window in sorted(self._all_open().items()):
            records.extend(self._filed(end, *window.take_changed()))
        return records

    def _filed(
        self, end: int, keys: Sequence[object], accumulators: Sequence[tuple[Any, ...]]
    ) -> StateRecords:
        """The records of keys of a window."""
        typed = self._codec.typed
        packed = self._codec.pack(accumulators) if typed else accumulators
        return encode_filed(self.name, (end,), keys, packed, proven=typed)

    def sweep(self) -> Iterator[StateRecords]:
        """The keys of all windows that are open now, as long as they stay open.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        for end, window in sorted(self._all_open().items()):
            keys = window.key_list()
            for start in range(0, len(keys), SWEEP_RECORDS):
                now = self._all_open().get(end)
                if now is not None:
                    piece = keys[start : start + SWEEP_RECORDS]
                    yield self._filed(end, piece, now.accumulators(piece))

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take state from records in the order they were written.

        Raises:
            DataError: Not the state of windows.
        """
        windows: dict[int, dict[object, list[Any]]] = {}
        for paths, values in pieces_of(entries):
            if {2} == set(map(len, paths)) and None not in values:
                # Most records are those of many keys of one window, one after the other.
                ends = list(map(itemgetter(0), paths))
                if {int} == set(map(type, ends)) and ends.count(ends[0]) == len(ends):
                    keys = map(itemgetter(1), paths)
                    there: list[Any] = values
                    windows.setdefault(ends[0], {}).update(zip(keys, there, strict=True))
                    continue
            for path, accumulators in zip(paths, values, strict=True):
                _take_entry(windows, path, accumulators)
        for end, content in windows.items():
            if content:
                self._window(end).restore(self._unpacked(content))

    def _unpacked(self, content: dict[object, list[Any]]) -> dict[object, list[Any]]:
        """Accumulators by key, from what state kept of them."""
        if not self._codec.typed:
            return content
        return {key: self._codec.unpack(packed) for key, packed in content.items()}


def _take_entry(
    windows: dict[int, dict[object, list[Any]]],
    path: tuple[Any, ...],
    accumulators: list[Any] | None,
) -> None:
    """Take one record of state into what windows hold of each key, by their ends."""
    match path:
        case (int(end),) if accumulators is None:
            windows.pop(end, None)
        case (int(end), key):
            if accumulators is None:
                windows.get(end, {}).pop(key, None)
            else:
                windows.setdefault(end, {})[key] = accumulators
        case _:
            raise DataError(f"not the state of windows: {path!r}")


def pick(chunk: Chunk, indexes: Sequence[int]) -> Chunk:
    """The rows of a keyed chunk at `indexes`."""
    assert chunk.keys is not None
    return Chunk(
        [chunk.rows[index] for index in indexes],
        [chunk.times[index] for index in indexes],
        [chunk.values[index] for index in indexes],
        [chunk.keys[index] for index in indexes],
    )
