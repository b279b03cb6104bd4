"""Aggregates for operators that look at every row: what to add, what comes out.

Rows are added one by one where each may have something to say; otherwise their places are noted
and they are added together, a column at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final, TypeAlias

from millstream import RecordError

from .agg import Aggregate
from .columns import Chunk, MicroBatch
from .detached import CONSTANT, detached
from .errors import apply, fail, failed_index, reason
from .fields import field_getter

UPDATE: Final = "update"
FINAL_RESULT: Final = "final"
RETRACTED: Final = "retracted"

Aggregates: TypeAlias = Sequence[tuple[str, Aggregate[Any, Any, Any]]]


def fresh(aggregate: Aggregate[Any, Any, Any]) -> Any:
    """What an aggregate begins with.

    Raises:
        RecordError: Its `init` raised. No record is to blame.
    """
    try:
        return aggregate.init()
    except Exception as error:
        raise RecordError(f"init of {aggregate.describe()}: {reason(error)}") from error


class RowAggregates:
    """The aggregates of an operator, applied to one row at a time. Not thread-safe.

    Args:
        label: Of the operator, for messages.
        aggregates: By the names of their results.
    """

    def __init__(self, label: str, aggregates: Aggregates) -> None:
        self._label = label
        self._aggregates = aggregates

    def init(self) -> list[Any]:
        """Fresh accumulators.

        Raises:
            RecordError: An aggregate raised.
        """
        return [fresh(aggregate) for _, aggregate in self._aggregates]

    def inputs(self, chunk: Chunk, batch: MicroBatch) -> list[tuple[object, ...]]:
        """For each row what each aggregate adds of it.

        Raises:
            RecordError: A field cannot be read.
        """
        columns = self.input_columns(chunk, batch)
        return list(zip(*columns, strict=True)) if columns else list(repeat((), len(chunk.values)))

    def input_columns(self, chunk: Chunk, batch: MicroBatch) -> list[Sequence[object]]:
        """What each aggregate adds of the rows.

        Raises:
            RecordError: A field cannot be read.
        """
        columns: list[Sequence[object]] = []
        for name, aggregate in self._aggregates:
            getter = field_getter(aggregate.field, chunk.values, chunk.kind)
            if getter is None:
                columns.append(chunk.values)
            else:
                label = f"{self._label}, agg {name}"
                columns.append(apply(getter, chunk.values, label, batch, chunk))
        return columns

    def add(
        self, accumulators: list[Any], inputs: Sequence[object], batch: MicroBatch, row: int
    ) -> None:
        """Add one row to accumulators, in place.

        Raises:
            RecordError: An aggregate raised.
        """
        number = 0
        try:
            for number, (_, aggregate) in enumerate(self._aggregates):
                accumulators[number] = aggregate.add(accumulators[number], inputs[number])
        except Exception as error:
            self._fail(f"agg {self._aggregates[number][0]}", error, batch, row)

    def merge(self, left: list[Any], right: list[Any], batch: MicroBatch, row: int) -> None:
        """Add the accumulators of later rows to those of earlier ones, in place.

        Raises:
            RecordError: An aggregate raised.
        """
        for number, (name, aggregate) in enumerate(self._aggregates):
            try:
                left[number] = aggregate.merge(left[number], right[number])
            except Exception as error:
                self._fail(f"merge of {name}", error, batch, row)

    def results(self, accumulators: Sequence[Any], batch: MicroBatch, row: int) -> list[object]:
        """What each aggregate says.

        Raises:
            RecordError: An aggregate raised.
        """
        values: list[object] = []
        for (name, aggregate), held in zip(self._aggregates, accumulators, strict=True):
            try:
                values.append(detached(aggregate.result(held)))
            except Exception as error:
                self._fail(f"result of {name}", error, batch, row)
        return values

    def _fail(self, what: str, error: Exception, batch: MicroBatch, row: int) -> None:
        fail(f"{self._label}, {what}", error, batch, row)


class SlottedAggregates:
    """Accumulators in columns, one per aggregate, with a slot for each that has some.

    Rows are noted and added together, in their order: before anything else is done with the
    accumulators they touch, `flush` must be called. Not thread-safe.

    Args:
        label: Of the operator, for messages.
        aggregates: By the names of their results.
    """

    def __init__(self, label: str, aggregates: Aggregates) -> None:
        self._label = label
        self._aggregates = aggregates
        self._by_row = RowAggregates(label, aggregates)
        self._columns: list[list[Any]] = [[] for _ in aggregates]
        self._constants: list[Any] | None = None
        """Fresh accumulators, where all slots can share them."""
        self._slot_count = 0
        self._free: list[int] = []
        self._chunk = Chunk(range(0), [], [], None)
        self._inputs: list[Sequence[object]] = []
        self.slots: list[int] = []
        """Where the noted rows belong."""
        self.indexes: list[int] = []
        """Which rows they are."""

    def begin(self, chunk: Chunk, batch: MicroBatch) -> None:
        """Take the rows of a step, which `slots` and `indexes` are about from now on.

        Raises:
            RecordError: A field cannot be read.
        """
        self._chunk = chunk
        self._inputs = self._by_row.input_columns(chunk, batch)

    def open(self) -> int:
        """A slot with fresh accumulators."""
        fresh = self._constants or self._by_row.init()
        if not self._slot_count and all(type(first) in CONSTANT for first in fresh):
            self._constants = fresh
        if self._free:
            slot = self._free.pop()
            for column, first in zip(self._columns, fresh, strict=True):
                column[slot] = first
            return slot
        for column, first in zip(self._columns, fresh, strict=True):
            column.append(first)
        self._slot_count += 1
        return self._slot_count - 1

    def close(self, slots: Iterable[int]) -> None:
        """The slots are not needed any more."""
        self._free += slots

    def get(self, slot: int) -> list[Any]:
        """The accumulators of a slot."""
        return [column[slot] for column in self._columns]

    def put(self, slot: int, accumulators: Sequence[Any]) -> None:
        """Replace the accumulators of a slot."""
        for column, accumulator in zip(self._columns, accumulators, strict=True):
            column[slot] = accumulator

    def add_one(self, slot: int, index: int, batch: MicroBatch) -> None:
        """Add a row at once.

        Raises:
            RecordError: An aggregate raised.
        """
        accumulators = self.get(slot)
        inputs = [column[index] for column in self._inputs]
        self._by_row.add(accumulators, inputs, batch, self._chunk.rows[index])
        self.put(slot, accumulators)

    def flush(self, batch: MicroBatch) -> None:
        """Add the rows that are noted.

        Raises:
            RecordError: An aggregate raised.
        """
        slots, indexes = self.slots, self.indexes
        if not slots:
            return
        self.slots, self.indexes = [], []
        for number, (name, aggregate) in enumerate(self._aggregates):
            values = self._inputs[number]
            if len(indexes) < len(values):
                values = list(map(values.__getitem__, indexes))
            remaining = iter(values)
            try:
                aggregate.add_column(self._columns[number], slots, remaining)
            except Exception as error:
                row = self._chunk.rows[indexes[failed_index(values, remaining)]]
                fail(f"{self._label}, agg {name}", error, batch, row)

    def merge(self, slot: int, later: int, batch: MicroBatch, row: int) -> None:
        """Add the accumulators of later rows, whose slot is free then, to those of earlier ones.

        Raises:
            RecordError: An aggregate raised.
        """
        self.flush(batch)
        accumulators = self.get(slot)
        self._by_row.merge(accumulators, self.get(later), batch, row)
        self.put(slot, accumulators)
        self.close([later])

    def results(self, slot: int, batch: MicroBatch, row: int) -> list[object]:
        """What each aggregate says of a slot.

        Raises:
            RecordError: An aggregate raised.
        """
        return self._by_row.results(self.get(slot), batch, row)

    def result_columns(
        self, slots: Sequence[int], batch: MicroBatch, rows: Sequence[int]
    ) -> list[list[object]]:
        """What each aggregate says of many slots, which are not used any more.

        Args:
            slots: Of which.
            batch: Where the rows come from.
            rows: The input row that causes each result.

        Raises:
            RecordError: An aggregate raised.
        """
        self.flush(batch)
        columns = []
        for column, (name, aggregate) in zip(self._columns, self._aggregates, strict=True):
            try:
                columns.append(aggregate.result_column(list(map(column.__getitem__, slots))))
            except Exception as error:
                for slot, row in zip(slots, rows, strict=True):
                    self.results(slot, batch, row)  # raises where it does
                fail(f"{self._label}, result of {name}", error, batch, rows[0])
        return columns

    def accumulators(self, slots: Sequence[int]) -> list[tuple[Any, ...]]:
        """What state keeps of many slots."""
        columns = [map(column.__getitem__, slots) for column in self._columns]
        return list(zip(*columns, strict=True)) if columns else list(repeat((), len(slots)))


class Results:
    """Rows on their way out of an operator, as columns."""

    def __init__(self) -> None:
        self._chunk = Chunk([], [], [], [])

    def add(self, row: int, time_ms: int, value: object, key: object) -> None:
        """One row, caused by input `row`."""
        rows, times, values, keys = self._lists()
        rows.append(row)
        times.append(time_ms)
        values.append(value)
        keys.append(key)

    def extend(self, chunk: Chunk) -> None:
        """All rows of a keyed chunk."""
        rows, times, values, keys = self._lists()
        rows += chunk.rows
        times += chunk.times
        values += chunk.values
        keys += chunk.keys or ()

    def take(self) -> Chunk:
        """All rows so far; begin anew."""
        chunk, self._chunk = self._chunk, Chunk([], [], [], [])
        return chunk

    def _lists(self) -> tuple[list[int], list[int], list[object], list[object]]:
        chunk = self._chunk
        return chunk.rows, chunk.times, chunk.values, chunk.keys  # type: ignore[return-value]  # lists of its own
