"""Aggregates row by row, for operators that look at every row: what to add, what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache
from itertools import repeat
from typing import Any, Final, TypeAlias

import msgspec

from .agg import Aggregate
from .columns import Chunk, MicroBatch
from .errors import apply, fail
from .fields import field_getter
from .nodes import AggregatingNode
from .windows import Windowed

UPDATE: Final = "update"
FINAL_RESULT: Final = "final"
RETRACTED: Final = "retracted"

Aggregates: TypeAlias = Sequence[tuple[str, Aggregate[Any, Any, Any]]]


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
        """Fresh accumulators."""
        return [aggregate.init() for _, aggregate in self._aggregates]

    def inputs(self, chunk: Chunk, batch: MicroBatch) -> list[tuple[object, ...]]:
        """For each row what each aggregate adds of it.

        Raises:
            RecordError: A field cannot be read.
        """
        columns: list[Iterable[object]] = []
        for name, aggregate in self._aggregates:
            getter = field_getter(aggregate.field, chunk.values, chunk.kind)
            if getter is None:
                columns.append(chunk.values)
            else:
                label = f"{self._label}, agg {name}"
                columns.append(apply(getter, chunk.values, label, batch, chunk))
        return list(zip(*columns, strict=True)) if columns else list(repeat((), len(chunk.values)))

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


def detached(result: object) -> object:
    """A result that stays as it is when the accumulator it may share goes on."""
    return deepcopy(result) if isinstance(result, list | dict) else result


def result_type(node: AggregatingNode) -> type[Windowed[object, object]]:
    """A Struct with the fields of `Windowed`, one per aggregate, and the status of updates.

    The same one for the same fields: so rows that come back from state are what they were.
    """
    return _result_type(tuple(name for name, _ in node.aggregates), node.emission.updating)


@cache
def _result_type(names: tuple[str, ...], updating: bool) -> type[Windowed[object, object]]:
    fields: list[tuple[str, Any]] = [(name, Any) for name in names]
    if updating:
        fields.append(("status", str))
    return msgspec.defstruct(  # type: ignore[return-value]  # its base says what it is
        "Windowed", fields, bases=(Windowed,), frozen=True, gc=False
    )


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
