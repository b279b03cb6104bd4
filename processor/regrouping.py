"""Aggregates over a table by something else than its key: what is replaced is taken back.

For each update of the table, in the order of the input rows: the former value of the key leaves its
group, the new one enters its own, and each group that changed says what it has become; when both
are one group, once. A group without rows is deleted, and its accumulators with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from millstream import DataError, UsageError

from .aggregating import RowAggregates
from .columns import Chunk, MicroBatch
from .errors import apply, fail, reason, record_error
from .fields import field_getter
from .keyed_state import IN_MEMORY, KeyedState, States, restore_states
from .row_codec import RowCodec
from .row_shapes import aggregated_type
from .serde import key_problem, plain_key, restored_key
from .state import StateEntry, StateRecords
from .stateful import MAIN, StatefulOperator, Step
from .table_nodes import RegroupNode


class _Placed:
    """Packs pairs of a group and a row of the table."""

    def __init__(self, rows: RowCodec) -> None:
        self._rows = rows

    def pack(self, pairs: Sequence[tuple[object, object]]) -> list[list[object]]:
        """The group as it is, the row as its codec does it."""
        rows = self._rows.pack([row for _, row in pairs])
        return [[group, row] for (group, _), row in zip(pairs, rows, strict=True)]

    def unpack(self, packed: object) -> tuple[object, object]:
        """The pair.

        Raises:
            DataError: It is none.
        """
        if not isinstance(packed, list) or len(packed) != 2:
            raise DataError(f"not a group and a row: {packed!r}")
        return restored_key(packed[0]), self._rows.unpack(packed[1])


class RegroupOperator(StatefulOperator):
    """Groups the rows of a table. Not thread-safe.

    Its state is filed under ["row", key]: the group and the row; and under ["group", group]: the
    number of its rows, and its accumulators.

    Args:
        node: What to compute.
        delay_ms: See `StatefulOperator`; it does not matter here.
        states: Makes its state.
    """

    keyed_only = True

    def __init__(self, node: RegroupNode, delay_ms: int, states: States = IN_MEMORY) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        rows = _Placed(RowCodec(node.row_type, node.label))
        self._rows: KeyedState[tuple[Any, Any]] = states.make(node.name, rows, prefix=("row",))
        self._groups = states.make(node.name, prefix=("group",))
        self._aggregates = RowAggregates(node.label, node.aggregates)
        self._make = aggregated_type(tuple(name for name, _ in node.aggregates), None)

    @property
    def live_count(self) -> int:
        """Number of rows and groups."""
        return len(self._rows) + len(self._groups)

    @property
    def required_level(self) -> int | None:
        """None: nothing waits for time."""
        return None

    def process(self, step: Step) -> dict[str, Chunk]:
        """Take in updates; for each the groups it changed.

        Raises:
            RecordError: A function raised, a row has no group, or a value cannot be taken back.
        """
        (chunk,) = step.chunks
        assert chunk.keys is not None
        out = Chunk([], [], [], [])
        groups = self._groups_of(chunk, step.batch)
        self._rows.view(chunk.keys)
        self._groups.view(group for group in groups if group is not None)
        for row, time, key, value, group in zip(
            chunk.rows, chunk.times, chunk.keys, chunk.values, groups, strict=True
        ):
            changed: dict[object, object] = {}
            former = self._rows.pop(key)
            if former is not None:
                changed[former[0]] = self._leave(*former, step.batch, row)
            if value is not None:
                self._rows.put(key, (group, value))
                changed[group] = self._enter(group, value, step.batch, row)
            for each, result in changed.items():
                self._say(out, row, time, each, result)
        return {MAIN: out}

    def _say(self, out: Chunk, row: int, time: int, group: object, result: object) -> None:
        for column, item in (
            (out.rows, row),
            (out.times, time),
            (out.values, result),
            (out.keys, group),
        ):
            assert isinstance(column, list)
            column.append(item)

    def _groups_of(self, chunk: Chunk, batch: MicroBatch) -> list[object]:
        """The group of each row that is not a deletion."""
        getter = field_getter(self._node.key, [each for each in chunk.values if each is not None])
        assert getter is not None
        groups = apply(
            lambda value: None if value is None else plain_key(getter(value)),
            chunk.values,
            self._node.label,
            batch,
            chunk,
        )
        for row, value, group in zip(chunk.rows, chunk.values, groups, strict=True):
            problem = "the group is None" if group is None else key_problem(group)
            if problem is not None and value is not None:
                raise record_error(f"{self._node.label}: {problem}", batch, row)
        return groups

    def _enter(self, group: object, value: object, batch: MicroBatch, row: int) -> object:
        held = self._groups.get(group)
        count, *accumulators = held or (0, *self._aggregates.init())
        self._aggregates.add(accumulators, self._inputs(value, batch, row), batch, row)
        return self._keep(group, [count + 1, *accumulators], batch, row)

    def _leave(self, group: object, value: object, batch: MicroBatch, row: int) -> object:
        held = self._groups.get(group)
        assert held is not None
        count, *accumulators = held
        if count == 1:
            self._groups.pop(group)
            return None
        inputs = self._inputs(value, batch, row)
        for number, (name, aggregate) in enumerate(self._node.aggregates):
            try:
                accumulators[number] = aggregate.remove(accumulators[number], inputs[number])
            except Exception as error:
                fail(f"{self._node.label}, taking back {name}", error, batch, row)
        return self._keep(group, [count - 1, *accumulators], batch, row)

    def _keep(self, group: object, held: list[Any], batch: MicroBatch, row: int) -> object:
        self._groups.put(group, held)
        return self._make(group, *self._aggregates.results(held[1:], batch, row))

    def _inputs(self, value: object, batch: MicroBatch, row: int) -> tuple[object, ...]:
        (inputs,) = self._aggregates.inputs(Chunk([row], [0], [value], None), batch)
        return inputs

    # --- results that were added ---------------------------------------------------------------

    def extend(
        self,
        names: Collection[str],
        extended: Callable[[list[Any]], list[Any]],
        settle: Callable[[], None],
    ) -> None:
        """Make the accumulators of results that were added of the rows there are.

        Args:
            names: Of these results.
            extended: Makes what a group holds of what it held, with fresh accumulators for them.
            settle: Called now and then, to make room in memory.

        Raises:
            UsageError: A row cannot be added, or not be taken back exactly: what it adds up to
                would depend on the order in which the rows came, and that is not kept.
        """
        for group in self._groups.ordered():
            held = self._groups.get(group)
            assert held is not None
            self._groups.put(group, extended(held))
            settle()
        added = [number for number, (name, _) in enumerate(self._node.aggregates) if name in names]
        for key in self._rows.ordered():
            placed = self._rows.get(key)
            assert placed is not None
            group, row = placed
            held = self._groups.get(group)
            if held is None:
                raise DataError(f"not the state of {self.name!r}: group {group!r} has no count")
            changed = list(held)
            for number in added:
                changed[number + 1] = self._added(number, changed[number + 1], key, row)
            self._groups.put(group, changed)
            settle()

    def _added(self, number: int, accumulator: Any, key: object, row: object) -> Any:
        """An accumulator with a row more, if that could be taken back."""
        name, aggregate = self._node.aggregates[number]
        getter = field_getter(aggregate.field, [row])
        try:
            value = row if getter is None else getter(row)
            taken = aggregate.remove(aggregate.add(aggregate.init(), value), value)
            if taken == aggregate.init():
                return aggregate.add(accumulator, value)
            cause = f"{value!r} added and taken back leaves {taken!r}"
        except Exception as error:
            cause = reason(error)
        raise UsageError(
            f"{self._node.label}: {name} cannot be made of the rows of the table; of that of key"
            f" {key!r}: {cause}. Drop the state, or give the pipeline another name"
        )

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """The rows and groups that changed since the last call.

        Raises:
            UsageError: A row or an accumulator cannot be kept in state.
        """
        records = self._rows.changes()
        records.extend(self._groups.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows and groups.

        Raises:
            UsageError: A row or an accumulator cannot be kept in state.
        """
        yield from self._rows.sweep()
        yield from self._groups.sweep()

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take rows and groups from records.

        Raises:
            DataError: Not the state of a grouped table.
        """
        restore_states([self._rows, self._groups], entries)
