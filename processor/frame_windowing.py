"""The window operator on columns: what windowing.py does, with accumulators in arrays.

Nothing is decided here: the loop over the moves of W, what is late and when a window closes are
those of `WindowOperator`. Rows that come as columns are added to an `ArrayWindow`, whose results
are columns again. A window turns into one of lists as soon as something comes that arrays cannot
hold exactly, and stays so until it closes; state is the same records for both, so a restart may go
on in either lane.

This module needs the extra `arrow`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .aggregating import Aggregates
from .calendar_windows import DAY_MS
from .columns import MicroBatch, Rows
from .frame_accumulators import Accumulators, AddError, Inputs, Places, Slots
from .frame_aggregates import accumulators_for
from .frame_errors import NotInColumnsError
from .frame_fields import inputs_of
from .frame_keys import KeyNumbers, Numbers
from .frames import Array, ColumnFrame, FrameChunk, Ints
from .nodes import WindowNode
from .numeric_aggregates import Count, Max, Mean, Min, Sum
from .serde import INT64_MAX, INT64_MIN
from .stateful import Step
from .windowing import OpenWindow, Part, Window, WindowOperator
from .windows import FixedWindows

_TIME_MAX: Final = 1 << 61
"""Times beyond are left to rows, so that no end of a window leaves 64 bits."""

_CELLS_MAX: Final = 1 << 25
"""Entries of the arrays that find the slots of keys, in all windows together: 128 MiB. Windows that
are open beside so many keep their keys in a dict."""

_NUMERIC: Final = (Sum, Mean, Min, Max)
"""Aggregates of numbers are in arrays, where slots that are not used cost next to nothing."""

_WIDE_CELLS_MAX: Final = 1 << 20
"""Slots in all windows together that have one for each key of the table: some 24 MiB."""

_WIDE_KEYS_MIN: Final = 1024
"""So many keys more than at first are no reason to look for slots."""

_TABLE_KEYS_MIN: Final = 1 << 16
"""A table with fewer keys is not made anew."""

_MASKED_ENDS: Final = 64
"""Up to so many windows, each is looked for in all rows."""


class ArrayWindow:
    """The accumulators of one window in arrays, one slot per key.

    Args:
        table: Numbers the keys; shared by all windows of an operator.
        accumulators: Of each aggregate, without slots.
        keys_max: While the table has at most so many keys, the slot of a key is its number: all
            keys of the table have slots, and none has to be found.
    """

    def __init__(
        self, table: KeyNumbers, accumulators: Sequence[Accumulators], keys_max: int = 0
    ) -> None:
        self._table = table
        self.accumulators_of = accumulators
        self._keys_max = keys_max
        self._seen = np.zeros(0, np.bool_)
        """By number, whether the window has the key, where slots are numbers."""
        self._slot_of = np.full(0, -1, np.int32)
        """By number of the key; -1 where it has none."""
        self._keys = np.zeros(0, np.int32)
        """Number of the key by slot, and room for more."""
        self._count = 0
        self.persisted = False
        self._changed = np.zeros(0, np.bool_)
        """By slot, when persisted; it may be too short."""

    @property
    def key_count(self) -> int:
        """Number of keys."""
        return int(np.count_nonzero(self._seen)) if self._keys_max else self._count

    @property
    def numbers(self) -> Numbers:
        """Numbers of the keys, by slot."""
        return self.all_slots() if self._keys_max else self._keys[: self._count]

    def renumber(self, numbers: Numbers) -> None:
        """Take other numbers for the same keys: the table has been made anew."""
        self._pack()
        self._number(numbers)

    def _pack(self) -> None:
        """Have slots for the keys of the window alone, which need numbers then."""
        if self._keys_max:
            slots = self.all_slots()
            for each in self.accumulators_of:
                each.restore(each.state(slots))
            self._changed = _as_long(self._changed, len(self._seen))[slots]
            self._keys_max, self._count = 0, len(slots)
            self._seen = self._seen[:0]

    def _number(self, numbers: Numbers) -> None:
        self._keys = numbers
        self._slot_of = np.full(0, -1, np.int32)
        self._find()
        self._slot_of[numbers] = np.arange(self._count, dtype=np.int32)

    def _find(self) -> None:
        """Have an entry for each key of the table."""
        missing = len(self._table) - len(self._slot_of)
        if missing > 0:
            more = np.full(max(missing, len(self._slot_of) // 4), -1, np.int32)
            self._slot_of = np.concatenate([self._slot_of, more])

    def _slots(self, numbers: Numbers) -> Slots:
        """The slots of keys, with fresh accumulators for new ones."""
        known = len(self._table)
        if known <= self._keys_max:
            if known > len(self._seen):
                self._seen = _as_long(self._seen, known)
                for each in self.accumulators_of:
                    each.grow(known)
            self._seen[numbers] = True
            return numbers
        if self._keys_max:
            own = self.all_slots()
            self._pack()
            self._number(own)
        self._find()
        slots = self._slot_of[numbers]
        fresh = np.flatnonzero(slots < 0)
        if len(fresh):
            new = numbers[fresh]
            # Of equal keys the one that was written last is taken, without sorting them.
            places = np.arange(len(new), dtype=np.int32)
            self._slot_of[new] = places
            distinct = new[self._slot_of[new] == places]
            first, self._count = self._count, self._count + len(distinct)
            self._slot_of[distinct] = np.arange(first, self._count, dtype=np.int32)
            if self._count > len(self._keys):
                room = np.zeros(max(self._count, 2 * len(self._keys)), np.int32)
                room[:first] = self._keys[:first]
                self._keys = room
            self._keys[first : self._count] = distinct
            for each in self.accumulators_of:
                each.grow(self._count)
            slots[fresh] = self._slot_of[new]
        return slots

    def accepts(self, inputs: Sequence[Inputs]) -> bool:
        """Whether rows can be added so that they give what they give in lists."""
        pairs = zip(self.accumulators_of, inputs, strict=True)
        return all(each.accepts(one) for each, one in pairs)

    def add(self, numbers: Numbers, inputs: Sequence[Inputs]) -> None:
        """Add rows that are accepted.

        Args:
            numbers: Of their keys.
            inputs: What each aggregate adds of them.

        Raises:
            AddError: An aggregate raised; its position is in `inputs`.
        """
        slots = self._slots(numbers)
        if self.persisted:
            self._changed = _as_long(self._changed, max(len(self._keys), len(self._seen)))
            self._changed[slots] = True
        for number, (each, one) in enumerate(zip(self.accumulators_of, inputs, strict=True)):
            try:
                each.add(slots, one)
            except AddError as error:
                raise AddError(error.index, number) from error.__cause__

    def all_slots(self) -> Slots:
        """Those of all keys."""
        if self._keys_max:
            return np.flatnonzero(self._seen).astype(np.int32)
        return np.arange(self._count, dtype=np.int32)

    def ordered(self) -> Slots:
        """Those of all keys, in the order of the keys' bytes."""
        if self._keys_max:
            return self._table.ordered_numbers(self._seen)
        return self._table.ordered(self.numbers).astype(np.int32)

    def keys_at(self, slots: Slots) -> Array:
        """The keys of slots, as a column."""
        return self._table.keys_of(slots if self._keys_max else self._keys[slots])

    def key_list(self) -> list[Any]:
        """All keys."""
        return self.keys_at(self.all_slots()).to_pylist()  # type: ignore[no-any-return]

    def take_changed(self) -> tuple[list[Any], list[tuple[Any, ...]]]:
        """Keys with what state must keep for each: it does not know them, or not as they are."""
        slots = self.all_slots()
        if self.persisted:
            slots = np.flatnonzero(self._changed).astype(np.int32)
        self.persisted = True
        self._changed = np.zeros(0, np.bool_)
        return self.keys_at(slots).to_pylist(), self._state(slots)

    def accumulators(self, keys: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What state keeps for each of `keys`."""
        numbers = self._table.numbers_of_list(list(keys))
        return self._state(numbers if self._keys_max else self._slot_of[numbers])

    def _state(self, slots: Slots) -> list[tuple[Any, ...]]:
        columns = [each.state(slots) for each in self.accumulators_of]
        return list(zip(*columns, strict=True))

    def as_lists(self, aggregates: Aggregates) -> Window:
        """The same window with lists."""
        window = Window(aggregates)
        keys = self.key_list()
        persisted = self.persisted
        changed = self.keys_at(np.flatnonzero(self._changed).astype(np.int32))
        window.restore(dict(zip(keys, self._state(self.all_slots()), strict=True)))
        window.persisted = persisted
        window.touched = [changed.to_pylist()] if persisted else []
        return window

    def take(self, window: Window) -> None:
        """Become what a window with lists is, whose keys are of the table's type.

        For a window without keys that has slots for its own alone.

        Raises:
            NotInColumnsError: It cannot be; nothing may be added then.
        """
        keys = window.key_list()
        self._slots(self._table.numbers_of_list(keys))
        columns = zip(*window.accumulators(keys), strict=True)
        for each, column in zip(self.accumulators_of, columns, strict=True):
            each.restore(column)
        self.persisted = window.persisted
        if self.persisted:
            changed = np.zeros(len(self._keys), np.bool_)
            touched = [key for part in window.touched for key in part]
            changed[self._slot_of[self._table.numbers_of_list(touched)]] = True
            self._changed = changed


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Rows of a step, as arrays."""

    chunk: FrameChunk
    numbers: Numbers
    """Of the keys."""
    inputs: Sequence[Inputs]
    """What each aggregate adds."""


class FrameWindowOperator(WindowOperator):
    """Windows that are the same for all keys, on columns as far as possible. Not thread-safe."""

    def __init__(self, node: WindowNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._grid = node.windows
        self._table = KeyNumbers()
        self._read = [inputs_of(aggregate.field) for _, aggregate in node.aggregates]
        self._arrays: dict[int, ArrayWindow] = {}
        """Those of the open windows that are in arrays, by end; `_open` has the others."""
        self._stays_rows: set[int] = set()
        """Ends of windows that have turned into lists."""
        self._prepared: _Prepared | None = None

    def _all_open(self) -> Mapping[int, OpenWindow]:
        return {**self._open, **self._arrays}

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Add rows and close windows; see `WindowOperator.process`."""
        (chunk,) = step.chunks
        self._prepared = None
        if isinstance(chunk, FrameChunk) and chunk.row_count:
            try:
                self._prepared = self._prepare(chunk)
            except NotInColumnsError:
                chunk = chunk.as_chunk()
        elif isinstance(chunk, FrameChunk):
            chunk = chunk.as_chunk()
        with np.errstate(all="ignore"):  # what has overflowed is found in the result
            return super().process(step._replace(chunks=[chunk]))

    def _prepare(self, chunk: FrameChunk) -> _Prepared:
        """What the rows of a chunk are about, with nothing changed.

        Raises:
            NotInColumnsError: Only rows can say.
        """
        assert chunk.keys is not None
        times = chunk.times
        if int(times.max()) > _TIME_MAX or int(times.min()) < -_TIME_MAX:
            raise NotInColumnsError("times at the end of time")
        inputs = [read(chunk.frame) for read in self._read]
        self._compact_table()
        return _Prepared(chunk, self._table.numbers_of(chunk.keys), inputs)

    def _compact_table(self) -> None:
        """Forget keys of windows that have closed, once they are the most of the table."""
        table, known = self._table, len(self._table)
        if known < _TABLE_KEYS_MIN:
            return
        live = sum(window.key_count for window in self._arrays.values())
        if known < 4 * live:
            return
        keys = {end: window.keys_at(window.all_slots()) for end, window in self._arrays.items()}
        table.clear()
        for end, column in keys.items():
            self._arrays[end].renumber(table.numbers_of(column))

    def _take(
        self,
        chunk: Rows,
        places: range,
        closed_end: int,
        batch: MicroBatch,
        late: list[Rows],
    ) -> None:
        """Add rows among which no window closes. Windows up to `closed_end` are closed."""
        prepared = self._prepared
        if prepared is None:
            super()._take(chunk, places, closed_end, batch, late)
            return
        grid = self._grid
        times = prepared.chunk.times[places.start : places.stop]
        first, last = grid.next_end(int(times.min())), grid.next_end(int(times.max()))
        if grid.overlapping:
            self._take_overlapping(prepared, places, closed_end, batch, late)
        elif first == last and first > closed_end:
            self._add_columns(first, slice(places.start, places.stop), prepared, batch)
        else:
            ends = self._next_ends(times)
            tardy = ends <= closed_end
            if tardy.any():
                self._refuse(prepared, places, tardy, late)
            for end in self._distinct(ends, max(first, grid.next_end(closed_end)), last):
                chosen = np.flatnonzero(ends == end)
                if len(chosen):
                    self._add_columns(end, chosen + places.start, prepared, batch)

    def _take_overlapping(
        self,
        prepared: _Prepared,
        places: range,
        closed_end: int,
        batch: MicroBatch,
        late: list[Rows],
    ) -> None:
        """The same where a row may be in several windows or in none."""
        assert isinstance(self._grid, FixedWindows)
        times = prepared.chunk.times[places.start : places.stop]
        size, slide = self._grid.size_ms, self._grid.slide_ms
        firsts = self._next_ends(times)
        beyond = times + size
        lasts = firsts + (beyond - firsts) // slide * slide
        in_gap = firsts > beyond
        self.skipped_count += int(np.count_nonzero(in_gap))
        tardy = (lasts <= closed_end) & ~in_gap
        if tardy.any():
            self._refuse(prepared, places, tardy, late)
        start = max(int(firsts.min()), closed_end + slide)
        for end in range(start, int(lasts.max()) + 1, slide):
            chosen = np.flatnonzero((firsts <= end) & (end <= beyond))
            if len(chosen):
                self._add_columns(end, chosen + places.start, prepared, batch)

    def _next_ends(self, times: Ints) -> Ints:
        """See `FixedWindows.next_end`."""
        grid = self._grid
        if isinstance(grid, FixedWindows):
            return times - (times - (grid.offset_ms + grid.size_ms)) % grid.slide_ms + grid.slide_ms
        days = np.unique(times // DAY_MS).tolist()
        edges = np.unique(np.concatenate([grid.edges_near(day) for day in days]))
        ends: Ints = edges[np.searchsorted(edges, times, side="right")]
        return ends

    def _distinct(self, ends: Ints, first: int, last: int) -> Sequence[int]:
        """The ends from `first` to `last` that may be among `ends`."""
        grid = self._grid
        if isinstance(grid, FixedWindows) and (last - first) // grid.slide_ms < _MASKED_ENDS:
            return range(first, last + 1, grid.slide_ms)
        found: list[int] = np.unique(ends[ends >= first]).tolist()
        return found

    def _refuse(
        self, prepared: _Prepared, places: range, tardy: npt.NDArray[np.bool_], late: list[Rows]
    ) -> None:
        mask = np.zeros(prepared.chunk.row_count, np.bool_)
        mask[places.start : places.stop] = tardy
        self.late_count += int(np.count_nonzero(tardy))
        late.append(prepared.chunk.pick(mask))

    # --- windows -------------------------------------------------------------------------------

    def _add_columns(
        self, end: int, places: Places, prepared: _Prepared, batch: MicroBatch
    ) -> None:
        """Add rows to the window that ends at `end`."""
        inputs = [each.at(places) for each in prepared.inputs]
        window = self._as_arrays(end, inputs)
        if window is None or not window.accepts(inputs):
            rows = prepared.chunk.as_chunk()
            part = _part(rows, places)
            self._add(end, part, batch)
            return
        try:
            window.add(prepared.numbers[places], inputs)
        except AddError as error:
            name = self._aggregates[error.aggregate][0]
            cause = error.__cause__
            assert isinstance(cause, Exception)
            self._fail(name, cause, batch, _part(prepared.chunk.as_chunk(), places), error.index)

    def _as_arrays(self, end: int, inputs: Sequence[Inputs]) -> ArrayWindow | None:
        """The window as arrays; None if it stays in lists."""
        window = self._arrays.get(end)
        if window is not None or end in self._stays_rows:
            return window
        former = self._open.get(end)
        if (len(self._arrays) + 1) * len(self._table) > _CELLS_MAX:
            return None
        pairs = zip(self._aggregates, inputs, strict=True)
        made = [accumulators_for(aggregate, one) for (_, aggregate), one in pairs]
        window = ArrayWindow(self._table, made, self._keys_max(inputs) if former is None else 0)
        if former is None:
            heapq.heappush(self._ends, end)
        else:
            try:
                self._table.begin(former.slots)
                window.take(former)
            except NotInColumnsError:
                self._stays_rows.add(end)
                return None
            del self._open[end]
        self._arrays[end] = window
        return window

    def _keys_max(self, inputs: Sequence[Inputs]) -> int:
        """How many keys the table may have before a new window has slots for its own alone."""
        known = len(self._table)
        cells = (len(self._arrays) + 1) * known
        pairs = zip(self._aggregates, inputs, strict=True)
        cheap = all(
            type(aggregate) is Count or (type(aggregate) in _NUMERIC and one.numbers is not None)
            for (_, aggregate), one in pairs
        )
        return 2 * known + _WIDE_KEYS_MIN if cheap and cells <= _WIDE_CELLS_MAX else 0

    def _window(self, end: int) -> Window:
        """The window, in lists from now on."""
        arrays = self._arrays.pop(end, None)
        if arrays is not None:
            self._open[end] = arrays.as_lists(self._aggregates)
            self._stays_rows.add(end)
        return super()._window(end)

    def _closed(self, end: int, row: int, batch: MicroBatch) -> Rows:
        """The results of a window that closes, caused by input `row`."""
        self._stays_rows.discard(end)
        window = self._arrays.get(end)
        if window is None:
            return super()._closed(end, row, batch)
        try:
            results = self._result_frame(end, window, row)
        except NotInColumnsError:
            self._window(end)
            self._stays_rows.discard(end)
            return super()._closed(end, row, batch)
        del self._arrays[end]
        if window.persisted:
            self._closed_persisted.append(end)
        return results

    def _result_frame(self, end: int, window: ArrayWindow, row: int) -> FrameChunk:
        start, slots = self._windows.start_of(end), window.ordered()
        if start < INT64_MIN or end > INT64_MAX:
            raise NotInColumnsError("a window at the end of time")
        keys, count = window.keys_at(slots), len(slots)
        columns = {"key": keys, "start": _constant(start, count), "end": _constant(end, count)}
        pairs = zip(self.node.aggregates, window.accumulators_of, strict=True)
        columns |= {name: held.results(slots) for (name, _), held in pairs}
        frame = ColumnFrame(count, tuple(columns), self._make, columns.__getitem__)
        return FrameChunk(np.full(count, row), np.full(count, end - 1), frame, keys)


def _as_long(flags: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    """At least `count` flags, false where there were none."""
    missing = count - len(flags)
    return flags if missing <= 0 else np.concatenate([flags, np.zeros(missing, np.bool_)])


def _constant(number: int, count: int) -> Array:
    return pa.array(np.full(count, number, np.int64))


def _part(rows: Any, places: Places) -> Part:
    """Rows of a chunk that belong to one window, as lists."""
    chosen = range(rows.row_count)[places] if isinstance(places, slice) else places.tolist()

    def of(column: Sequence[Any]) -> list[Any]:
        return [column[index] for index in chosen]

    return Part(of(rows.keys), of(rows.values), rows.kind, of(rows.rows))
