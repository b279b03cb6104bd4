"""Windows by count on columns: what count_windowing.py does, with accumulators in arrays.

Rows are sorted by key, so that the place of each in its window is known at once. What arrays cannot
hold exactly turns all windows into those of `CountOperator`, and back once as many rows have come
as there are windows. State is the same records for both.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .columns import Chunk, Rows
from .count_windowing import Content, CountOperator
from .frame_accumulators import Accumulators, Inputs
from .frame_aggregates import accumulators_for
from .frame_errors import NotInColumnsError
from .frame_folding import Closed, Folding, as_slots
from .frame_keys import KeyNumbers, Numbers, run_heads, sorted_by_key
from .frame_levels import TIME_MAX
from .frame_operators import TurningOperator
from .frames import FrameChunk, Ints, Mask, to_list
from .nodes import LATE, CountNode
from .state import StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step

_TABLE_KEYS_MIN: Final = 1 << 16
"""A table with fewer keys is not made anew."""


@dataclass(slots=True)
class _Windows:
    """The windows that rows of a step are in, by key and then in their order."""

    of_row: Ints
    """The window of each row, in the order of the log."""
    keys: Ints
    """Number of the key of each."""
    begun: Mask
    """Whether it was there before the step."""
    row_count: Ints
    """Rows of the step in each."""
    least_ms: Ints
    greatest_ms: Ints
    last_row: Ints
    """Index of the last row of each."""


class _Arrays:
    """The windows that are not full, in arrays.

    Args:
        accumulators: Of each aggregate.
    """

    def __init__(self, accumulators: Sequence[Accumulators]) -> None:
        self.accumulators = accumulators
        self.counts = np.zeros(0, np.int64)
        """Rows in each, by slot; 0 where there is no window."""
        self.least_ms = np.zeros(0, np.int64)
        self.greatest_ms = np.zeros(0, np.int64)
        self.slot_of = np.full(0, -1, np.int64)
        """By number of the key; -1 where no window is open."""
        self.changed = np.zeros(0, np.bool_)
        """By key: whether state does not say what is so."""
        self.written = np.zeros(0, np.bool_)
        """By key: whether state holds a window."""
        self._free = np.zeros(0, np.int64)
        self.count = 0
        """Number of windows."""

    def know(self, key_count: int) -> None:
        """Have an entry for each key."""
        missing = key_count - len(self.slot_of)
        if missing > 0:
            more = max(missing, len(self.slot_of) // 4)
            self.slot_of = np.concatenate([self.slot_of, np.full(more, -1, np.int64)])
            self.changed = np.concatenate([self.changed, np.zeros(more, np.bool_)])
            self.written = np.concatenate([self.written, np.zeros(more, np.bool_)])

    def take(self, count: int) -> Ints:
        """Slots for new windows."""
        missing = count - len(self._free)
        if missing > 0:
            known = len(self.counts)
            more = max(missing, known)
            nothing = np.zeros(more, np.int64)
            self.counts = np.concatenate([self.counts, nothing])
            self.least_ms = np.concatenate([self.least_ms, nothing])
            self.greatest_ms = np.concatenate([self.greatest_ms, nothing])
            self._free = np.concatenate([np.arange(known + more - 1, known - 1, -1), self._free])
            for each in self.accumulators:
                each.grow(known + more)
        taken, self._free = self._free[len(self._free) - count :], self._free[: -count or None]
        self.count += count
        return taken[::-1]

    def release(self, slots: Ints) -> None:
        """The windows are no more."""
        self.counts[slots] = 0
        self._free = np.concatenate([self._free, slots])
        self.count -= len(slots)
        for each in self.accumulators:
            each.reset(as_slots(slots))

    def states(self, slots: Ints) -> list[tuple[Any, ...]]:
        """What state keeps of windows."""
        held = [each.state(as_slots(slots)) for each in self.accumulators]
        columns = (self.counts[slots], self.least_ms[slots], self.greatest_ms[slots])
        return list(zip(*(column.tolist() for column in columns), *held, strict=True))


class FrameCountOperator(CountOperator, TurningOperator):
    """Windows of a number of rows, on columns as far as possible. Not thread-safe."""

    def __init__(self, node: CountNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._folding = Folding(node)
        self._table = KeyNumbers()
        self._arrays: _Arrays | None = None
        """None while the windows are those of `CountOperator`."""

    @property
    def live_count(self) -> int:
        """Number of keys with a window that is not full."""
        return super().live_count if self._arrays is None else self._arrays.count

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:  # type: ignore[override]  # or columns
        """Add rows; see `CountOperator.process`."""
        (chunk,) = step.chunks
        if not chunk.row_count:
            return {MAIN: Chunk([], [], [], []), LATE: Chunk([], [], [], [])}
        found = self._try_columns(chunk, lambda chunk: self._process_columns(chunk, step))
        if found is not None:
            return found
        return {**super().process(step._replace(chunks=[chunk.as_chunk()]))}

    def _process_columns(self, chunk: FrameChunk, step: Step) -> dict[str, Rows]:
        """Take rows as columns.

        Raises:
            NotInColumnsError: Only rows can say; nothing has changed.
        """
        inputs = self._folding.inputs(chunk.frame, chunk.times)
        arrays = self._arrays or self._as_arrays(chunk, inputs)
        assert chunk.keys is not None
        numbers = self._table.numbers_of(chunk.keys)
        for each, one in zip(arrays.accumulators, inputs, strict=True):
            if not each.accepts(one):
                raise NotInColumnsError("a value that arrays cannot add")
        arrays.know(len(self._table))
        windows = self._windows(arrays, numbers, chunk.times)
        slots = self._add(arrays, windows)
        rows = chunk.rows
        where = as_slots(slots[windows.of_row])
        self._folding.add(
            arrays.accumulators, where, inputs, step.batch, lambda index: int(rows[index])
        )
        return {MAIN: self._close(arrays, windows, slots, chunk, step), LATE: chunk.cut(0, 0)}

    def _windows(self, arrays: _Arrays, numbers: Numbers, times: Ints) -> _Windows:
        """Which windows the rows are in."""
        order, keys = sorted_by_key(numbers)
        times = times[order]
        heads = run_heads(keys)
        sizes = np.diff(np.append(heads, len(keys)))
        slots = arrays.slot_of[keys[heads]]
        held = np.where(slots >= 0, arrays.counts[slots], 0) if arrays.count else 0 * heads
        place = np.arange(len(keys)) - np.repeat(heads - held, sizes)
        begins = place % self._size == 0
        begins[heads] = True
        index = np.cumsum(begins) - 1
        starts = np.flatnonzero(begins)
        stops = np.append(starts[1:], len(keys))
        begun = np.zeros(len(starts), np.bool_)
        begun[index[heads]] = held > 0
        of_row = np.empty_like(index)
        of_row[order] = index
        return _Windows(
            of_row,
            keys[starts],
            begun,
            stops - starts,
            np.minimum.reduceat(times, starts),
            np.maximum.reduceat(times, starts),
            order[stops - 1],
        )

    def _add(self, arrays: _Arrays, windows: _Windows) -> Ints:
        """Have a slot for each window, with what it holds but for the accumulators."""
        begun = windows.begun
        slots = np.empty(len(windows.keys), np.int64)
        slots[begun] = arrays.slot_of[windows.keys[begun]]
        slots[~begun] = arrays.take(int(np.count_nonzero(~begun)))
        least, greatest = windows.least_ms.copy(), windows.greatest_ms.copy()
        there = slots[begun]
        least[begun] = np.minimum(least[begun], arrays.least_ms[there])
        greatest[begun] = np.maximum(greatest[begun], arrays.greatest_ms[there])
        arrays.least_ms[slots], arrays.greatest_ms[slots] = least, greatest
        arrays.counts[slots] += windows.row_count
        arrays.changed[windows.keys] = True
        return slots

    def _close(
        self, arrays: _Arrays, windows: _Windows, slots: Ints, chunk: FrameChunk, step: Step
    ) -> Rows:
        """The results of the windows that are full, in the order of the rows that filled them."""
        arrays.slot_of[windows.keys] = -1
        is_full = arrays.counts[slots] == self._size
        arrays.slot_of[windows.keys[~is_full]] = slots[~is_full]
        full = np.flatnonzero(is_full)
        full = full[np.argsort(windows.last_row[full])]
        gone = slots[full]
        numbers = chunk.rows
        if isinstance(numbers, range):
            numbers = np.arange(numbers.start, numbers.stop)
        closed = Closed(
            as_slots(gone),
            numbers[windows.last_row[full]],
            self._table.keys_of(windows.keys[full]),
            arrays.least_ms[gone],
            arrays.greatest_ms[gone] + 1,
        )
        results = self._folding.results(arrays.accumulators, closed, step.batch)
        arrays.release(gone)
        return results

    # --- lists and arrays ----------------------------------------------------------------------

    def _as_arrays(self, chunk: FrameChunk, inputs: Sequence[Inputs]) -> _Arrays:
        """All windows in arrays; those of `CountOperator` are gone then.

        Raises:
            NotInColumnsError: They cannot be; nothing has changed.
        """
        pairs = zip(self.node.aggregates, inputs, strict=True)
        arrays = _Arrays([accumulators_for(aggregate, one) for (_, aggregate), one in pairs])
        self._table.clear()
        # Those that state may still hold, and those that are open.
        keys = list(dict.fromkeys([*self._open, *self._changed]))
        if keys:
            self._table.begin(keys)
            self._table.numbers_of_list(keys)
        assert chunk.keys is not None
        self._table.numbers_of(chunk.keys)
        windows = list(self._open.values())
        if windows:
            held = zip(*(each.accumulators for each in windows), strict=True)
            for accumulators, column in zip(arrays.accumulators, held, strict=True):
                accumulators.restore(column)
            times = [(each.least_ms, each.greatest_ms) for each in windows]
            if not all(-TIME_MAX <= least <= most <= TIME_MAX for least, most in times):
                raise NotInColumnsError("times at the end of time")
            slots = arrays.take(len(windows))
            arrays.counts[slots] = [each.count for each in windows]
            arrays.least_ms[slots], arrays.greatest_ms[slots] = np.array(times, np.int64).T
        arrays.know(len(self._table))
        arrays.slot_of[: len(windows)] = np.arange(len(windows))
        arrays.changed[: len(keys)] = [key in self._changed for key in keys]
        arrays.written[: len(keys)] = True
        self._open, self._changed = {}, {}
        self._arrays = arrays
        return arrays

    def _to_rows(self) -> None:
        """All windows as those of `CountOperator`."""
        arrays, self._arrays = self._arrays, None
        if arrays is None:
            return
        numbers = np.flatnonzero(arrays.slot_of >= 0)
        columns = self._keys_of(numbers), arrays.states(arrays.slot_of[numbers])
        for key, (count, least, greatest, *held) in zip(*columns, strict=True):
            self._open[key] = Content(held, count, least, greatest)
        self._changed = dict.fromkeys(self._keys_of(np.flatnonzero(arrays.changed)))
        self._table.clear()

    def _keys_of(self, numbers: Ints) -> list[Any]:
        return to_list(self._table.keys_of(numbers)) if len(numbers) else []

    def _compact_table(self, arrays: _Arrays) -> None:
        """Forget keys without a window, once they are the most of the table."""
        known = len(self._table)
        if known < _TABLE_KEYS_MIN or known < 4 * arrays.count:
            return
        numbers = np.flatnonzero(arrays.slot_of >= 0)
        slots, keys = arrays.slot_of[numbers], self._table.keys_of(numbers)
        self._table.clear()
        new = self._table.numbers_of(keys)
        for name in ("slot_of", "changed", "written"):
            setattr(arrays, name, getattr(arrays, name)[:0])
        arrays.know(len(self._table))
        arrays.slot_of[new] = slots
        arrays.written[new] = True

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call; see `CountOperator.changes`."""
        arrays = self._arrays
        if arrays is None:
            return super().changes()
        open_now = arrays.slot_of >= 0
        gone = np.flatnonzero(arrays.changed & arrays.written & ~open_now)
        records = encode_removed((key,) for key in self._keys_of(gone))
        records.extend(self._array_entries(arrays, np.flatnonzero(arrays.changed & open_now)))
        arrays.written = open_now
        arrays.changed[:] = False
        self._compact_table(arrays)
        return records

    def _array_entries(self, arrays: _Arrays, numbers: Ints) -> StateRecords:
        paths = [(key,) for key in self._keys_of(numbers)]
        return encode_entries(self.name, paths, arrays.states(arrays.slot_of[numbers]))

    def sweep(self) -> Iterator[StateRecords]:
        """What every key holds now, as long as it does; arrays may turn into lists in between.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        keys: list[Any] = list(self._open)
        if self._arrays is not None:
            keys = self._keys_of(np.flatnonzero(self._arrays.slot_of >= 0))
        for start in range(0, len(keys), SWEEP_RECORDS):
            piece = keys[start : start + SWEEP_RECORDS]
            arrays = self._arrays
            if arrays is None:
                yield self._entries([key for key in piece if key in self._open])
            else:
                numbers = self._table.numbers_of_list(piece).astype(np.int64)
                arrays.know(len(self._table))
                yield self._array_entries(arrays, numbers[arrays.slot_of[numbers] >= 0])
