"""Running aggregates: for every row in, the value of its key as it is now.

The rows that come out are updates of a table: of a key the last one counts, and None means that
the key is gone. No row is late here, and none waits: what a row changes is said at once, in the
order of the input rows. With a time to live a key is forgotten, without a word, when W or its next
row is that much later than its newest row; with its next row it begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn

from .accumulator_codec import AccumulatorCodec, result_types
from .aggregating import RowAggregates
from .columns import Chunk, MicroBatch
from .detached import detached
from .errors import fail
from .keyed_state import IN_MEMORY, Codec, KeyedState, States
from .numeric_aggregates import Count
from .row_codec import RowCodec
from .row_shapes import aggregated_type
from .state import StateEntry, StateRecords
from .stateful import MAIN, StatefulOperator, Step
from .table_nodes import RunningNode

_NONE: Final = object()
"""Stands for the accumulator of a key that has none."""


class RunningOperator(StatefulOperator):
    """Aggregates without windows. Not thread-safe.

    Its state is filed under [key]: the accumulator of a plain value, a list of them otherwise.

    Args:
        node: What to compute.
        delay_ms: See `StatefulOperator`; it matters to the time to live alone.
        states: Makes its state.
    """

    keyed_only = True

    def __init__(self, node: RunningNode, delay_ms: int, states: States = IN_MEMORY) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        self._states = states
        self._state = self._empty()
        self._aggregates = RowAggregates(node.label, node.aggregates)
        names = tuple(name for name, _ in node.aggregates)
        self._make = aggregated_type(names, result_types(node.aggregates, node.row_type))
        (_, self._first), *others = node.aggregates
        self._counts = (
            node.single
            and isinstance(self._first, Count)
            and self._first.field is None
            and not others
        )

    def _empty(self) -> KeyedState[Any]:
        """State without keys."""
        node = self._node
        what = f"the state of {node.name!r}"
        codec: Codec = RowCodec(node.value_type if node.single else None, what)
        if not node.single:
            kept = AccumulatorCodec(what, node.aggregates, node.row_type)
            codec = kept if kept.typed else codec
        return self._states.make(node.name, codec, ttl_ms=node.ttl_ms)

    @property
    def live_count(self) -> int:
        """Number of keys."""
        return len(self._state)

    @property
    def required_level(self) -> int | None:
        """None: nothing waits for time."""
        return None

    @property
    def judges_rows(self) -> bool:
        """Only where keys are forgotten: their time may be over at any row."""
        return self._node.ttl_ms is not None

    def process(self, step: Step) -> dict[str, Chunk]:
        """Add rows; for each the value of its key.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        (chunk,) = step.chunks
        keys = chunk.keys
        assert keys is not None
        if self._node.ttl_ms is not None:
            values = self._add_mortal(chunk, step)
            self._state.expire(step.progress.end - self.delay_ms)
        elif self._counts:
            values = self._count(keys)
        elif self._node.single:
            values = self._add_single(chunk, step.batch)
        else:
            values = self._add_many(chunk, step.batch)
        return {MAIN: chunk.with_values(values)}

    def _count(self, keys: Sequence[object]) -> list[object]:
        counts = self._state.edit(keys, 0)
        values: list[object] = []
        append = values.append
        for key in keys:
            counts[key] = count = counts[key] + 1
            append(count)
        return values

    def _add_single(self, chunk: Chunk, batch: MicroBatch) -> list[object]:
        """A value of None takes the key away: its next row begins anew."""
        assert chunk.keys is not None
        name, aggregate = self._node.aggregates[0]
        add, result = aggregate.add, aggregate.result
        held = self._state.edit(chunk.keys)
        values: list[object] = []
        try:
            for key, (value,) in zip(
                chunk.keys, self._aggregates.inputs(chunk, batch), strict=True
            ):
                before = held.get(key, _NONE)
                after = add(aggregate.init() if before is _NONE else before, value)
                if after is None:
                    held.pop(key, None)
                else:
                    held[key] = after
                values.append(detached(result(after)))
        except Exception as error:
            self._fail(name, error, batch, chunk.rows[len(values)])
        return values

    def _add_many(self, chunk: Chunk, batch: MicroBatch) -> list[object]:
        """One aggregate after the other over all rows."""
        keys = chunk.keys
        assert keys is not None
        cells = self._state.edit(keys)
        for key in keys:
            if key not in cells:
                cells[key] = self._aggregates.init()
        held = list(map(cells.__getitem__, keys))
        columns: list[list[object]] = []
        inputs = zip(*self._aggregates.inputs(chunk, batch), strict=True)
        # Without rows there are no columns of inputs.
        for number, column in enumerate(inputs):
            name, aggregate = self._node.aggregates[number]
            add, result = aggregate.add, aggregate.result
            results: list[object] = []
            try:
                for cell, value in zip(held, column, strict=True):
                    cell[number] = after = add(cell[number], value)
                    results.append(detached(result(after)))
            except Exception as error:
                self._fail(name, error, batch, chunk.rows[len(results)])
            columns.append(results)
        return list(map(self._make, keys, *columns)) if columns else []

    def _add_mortal(self, chunk: Chunk, step: Step) -> list[object]:
        """Row by row: with W before each it is known whether its key was still there."""
        assert chunk.keys is not None
        values: list[object] = []
        inputs = self._aggregates.inputs(chunk, step.batch)
        self._state.view(chunk.keys)
        for row, key, time, level, given in zip(
            chunk.rows,
            chunk.keys,
            chunk.times,
            step.progress.before(chunk.rows),
            inputs,
            strict=True,
        ):
            # Over by W, or because this row itself comes so much later.
            held = self._state.get(key, max(time, level - self.delay_ms))
            cell: list[Any]
            if held is None:
                cell = self._aggregates.init()
            else:
                cell = [held] if self._node.single else held
            self._aggregates.add(cell, given, step.batch, row)
            results = self._aggregates.results(cell, step.batch, row)
            if not self._node.single:
                self._state.put(key, cell, time)
                values.append(self._make(key, *results))
                continue
            if cell[0] is None:
                self._state.pop(key)
            else:
                self._state.put(key, cell[0], time)
            values.append(results[0])
        return values

    def _fail(self, name: str, error: Exception, batch: MicroBatch, row: int) -> NoReturn:
        what = self._node.label if self._node.single else f"{self._node.label}, {name}"
        fail(what, error, batch, row)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """The keys that got rows since the last call.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        return self._state.changes()

    def sweep(self) -> Iterator[StateRecords]:
        """All keys.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        return self._state.sweep()

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take the keys from records.

        Raises:
            DataError: Not the state of running aggregates.
        """
        self._state.restore(entries)
