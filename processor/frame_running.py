"""Running aggregates on columns: what running.py does, with accumulators in arrays.

For every row the aggregates say what they are after it: the rows of a step are sorted by key, and
each aggregate follows them (frame_turns.py). All of them do before one changes, so that a step that
only rows can take is left to them as it came. Then all keys turn into those of `RunningOperator`,
and back once as many rows have come as there are keys. State is the same records for both.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from millstream import UsageError

from .columns import Rows
from .frame_accumulators import Accumulators, Inputs
from .frame_aggregates import accumulators_for
from .frame_errors import NotInColumnsError
from .frame_fields import inputs_of
from .frame_keys import KeyNumbers
from .frame_operators import TurningOperator
from .frame_turns import Turns
from .frames import ColumnFrame, FrameChunk, Ints, Mask, to_list
from .row_codec import PLAIN
from .running import RunningOperator
from .state import StateRecords, encode_entries
from .stateful import MAIN, SWEEP_RECORDS, Step
from .table_nodes import RunningNode


class _Arrays:
    """The aggregates of all keys, whose numbers are their slots.

    Args:
        accumulators: Of each aggregate.
        single: Whether there is one, and its accumulator is all that is kept of a key.
    """

    def __init__(self, accumulators: Sequence[Accumulators], *, single: bool) -> None:
        self.accumulators = accumulators
        self._single = single
        self.changed: Mask = np.zeros(0, np.bool_)
        """By key: whether state does not say what is so."""

    def know(self, key_count: int) -> None:
        """Have room for all keys."""
        missing = key_count - len(self.changed)
        if missing > 0:
            more = np.zeros(max(missing, len(self.changed) // 4), np.bool_)
            self.changed = np.concatenate([self.changed, more])
            for each in self.accumulators:
                each.grow(len(self.changed))

    def cells(self, numbers: Ints) -> list[Any]:
        """What is kept of keys."""
        slots = numbers.astype(np.int32)
        columns = [each.state(slots) for each in self.accumulators]
        return list(columns[0]) if self._single else list(map(list, zip(*columns, strict=True)))

    def restore(self, cells: Collection[Any]) -> None:
        """Take what is kept of the first keys, of which there is at least one.

        Raises:
            NotInColumnsError: It does not fit.
        """
        columns = [cells] if self._single else zip(*cells, strict=True)
        for each, column in zip(self.accumulators, columns, strict=True):
            each.restore(list(column))


class FrameRunningOperator(RunningOperator, TurningOperator):
    """Aggregates without windows, on columns as far as possible. Not thread-safe.

    Args:
        node: What to compute: aggregates that can be followed, without a time to live.
        delay_ms: See `StatefulOperator`; here it does not matter.
    """

    def __init__(self, node: RunningNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._read = [inputs_of(aggregate.field) for _, aggregate in node.aggregates]
        self._names = ("key", *(name for name, _ in node.aggregates))
        self._table = KeyNumbers()
        self._arrays: _Arrays | None = None
        """None while the keys are those of `RunningOperator`."""

    @property
    def live_count(self) -> int:
        """Number of keys."""
        return super().live_count if self._arrays is None else len(self._table)

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> Mapping[str, Rows]:  # type: ignore[override]  # or columns
        """Add rows; for each the aggregates of its key. See `RunningOperator.process`."""
        (chunk,) = step.chunks
        if not chunk.row_count:
            return {MAIN: chunk.as_chunk().with_values([])}
        found = self._try_columns(chunk, self._process_columns)
        if found is not None:
            return {MAIN: found}
        return super().process(step._replace(chunks=[chunk.as_chunk()]))

    def _process_columns(self, chunk: FrameChunk) -> Rows:
        """Take rows as columns. Single values are no column of anything: they are a list.

        Raises:
            NotInColumnsError: Only rows can say; nothing has changed.
        """
        inputs = [read(chunk.frame) for read in self._read]
        arrays = self._arrays or self._as_arrays(chunk, inputs)
        assert chunk.keys is not None
        numbers = self._table.numbers_of(chunk.keys)
        arrays.know(len(self._table))
        turns = Turns(numbers)
        followed = []
        for each, one in zip(arrays.accumulators, inputs, strict=True):
            if not each.accepts(one):
                raise NotInColumnsError("a value that arrays cannot add")
            followed.append(each.follow(turns, one))
        for done in followed:
            done.apply()
        arrays.changed[turns.slots] = True
        if self._node.single:
            return chunk.with_values(to_list(followed[0].results), int)
        columns = dict(
            zip(self._names, (chunk.keys, *(each.results for each in followed)), strict=True)
        )
        frame = ColumnFrame(chunk.row_count, self._names, self._make, columns.__getitem__)
        return FrameChunk(chunk.rows, chunk.times, frame, chunk.keys)

    # --- lists and arrays ----------------------------------------------------------------------

    def _as_arrays(self, chunk: FrameChunk, inputs: Sequence[Inputs]) -> _Arrays:
        """All keys in arrays; those of `RunningOperator` are gone then.

        Raises:
            NotInColumnsError: They cannot be; nothing has changed.
        """
        pairs = zip(self._node.aggregates, inputs, strict=True)
        made = [accumulators_for(aggregate, one) for (_, aggregate), one in pairs]
        arrays = _Arrays(made, single=self._node.single)
        self._table.clear()
        held, changed = self._state.view(()), self._state.changed_keys
        keys = list(held)
        try:
            PLAIN.pack([held[key] for key in changed])
        except UsageError as error:  # which rows raise when it is to be kept
            raise NotInColumnsError(str(error)) from None
        if keys:
            self._table.begin(keys)
            self._table.numbers_of_list(keys)
            arrays.restore(held.values())
        assert chunk.keys is not None
        self._table.numbers_of(chunk.keys)
        arrays.changed = np.zeros(len(keys), np.bool_)
        arrays.changed[:] = [key in changed for key in keys]
        arrays.know(len(self._table))
        self._state = self._empty()
        self._arrays = arrays
        return arrays

    def _to_rows(self) -> None:
        """All keys as those of `RunningOperator`."""
        arrays, self._arrays = self._arrays, None
        if arrays is None:
            return
        numbers = np.arange(len(self._table))
        keys = self._keys_of(numbers)
        self._state.take(
            {key: [cell] for key, cell in zip(keys, arrays.cells(numbers), strict=True)}
        )
        self._state.edit(self._keys_of(np.flatnonzero(arrays.changed)))
        self._table.clear()

    def _keys_of(self, numbers: Ints) -> list[Any]:
        return to_list(self._table.keys_of(numbers)) if len(numbers) else []

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """The keys that got rows since the last call; see `RunningOperator.changes`."""
        arrays = self._arrays
        if arrays is None:
            return super().changes()
        numbers = np.flatnonzero(arrays.changed)
        records = self._encoded(self._keys_of(numbers), arrays.cells(numbers))
        arrays.changed[:] = False
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All keys there are when it begins; arrays may turn into lists in between.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        keys = list(self._state.view(()))
        if self._arrays is not None:
            keys = self._keys_of(np.arange(len(self._table)))
        for start in range(0, len(keys), SWEEP_RECORDS):
            piece = keys[start : start + SWEEP_RECORDS]
            arrays = self._arrays
            if arrays is None:
                cells = PLAIN.pack(list(map(self._state.view(piece).__getitem__, piece)))
            else:
                cells = arrays.cells(self._table.numbers_of_list(piece).astype(np.int64))
            yield self._encoded(piece, cells)

    def _encoded(self, keys: Sequence[Any], cells: list[Any]) -> StateRecords:
        """What state keeps of keys, as `KeyedState` has it: what is in arrays is plain."""
        values = list(zip(cells, strict=True))
        return encode_entries(self.name, [(key,) for key in keys], values, proven=True)
