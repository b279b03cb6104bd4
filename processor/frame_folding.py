"""Rows into slots of arrays, and slots into results: what sessions and windows by count share.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from .agg import Aggregate
from .columns import Chunk, MicroBatch, Rows
from .errors import fail
from .frame_accumulators import Accumulators, AddError, Inputs, Slots
from .frame_errors import NotInColumnsError
from .frame_fields import inputs_of
from .frame_levels import TIME_MAX
from .frames import Array, ColumnFrame, Frame, FrameChunk, Ints, to_list
from .nodes import AggregatingNode


@dataclass(frozen=True, slots=True)
class Closed:
    """Slots that have become results."""

    slots: Slots
    rows: Ints
    """The input row that causes each."""
    keys: Array
    start: Ints
    end: Ints
    """Exclusive; the event time of a result is the last millisecond before it."""


class Folding:
    """The aggregates of an operator, over arrays.

    Args:
        node: The operator.
    """

    def __init__(self, node: AggregatingNode) -> None:
        self._node = node
        self._make = node.result_type
        self._read = [inputs_of(aggregate.field) for _, aggregate in node.aggregates]

    def inputs(self, frame: Frame, times: Ints) -> list[Inputs]:
        """What each aggregate adds of rows, of which there are some.

        Raises:
            NotInColumnsError: Only rows can say.
        """
        if int(times.max()) > TIME_MAX or int(times.min()) < -TIME_MAX:
            raise NotInColumnsError("times at the end of time")
        return [read(frame) for read in self._read]

    def add(
        self,
        accumulators: Sequence[Accumulators],
        slots: Slots,
        inputs: Sequence[Inputs],
        batch: MicroBatch,
        row_of: Callable[[int], int],
    ) -> None:
        """Add rows that are accepted.

        Raises:
            RecordError: An aggregate raised on the input row that `row_of` gives for its index.
        """
        columns = zip(self._node.aggregates, accumulators, inputs, strict=True)
        for (name, _), held, one in columns:
            try:
                held.add(slots, one)
            except AddError as error:
                self._fail(f"agg {name}", error, batch, row_of(error.index))

    def merge(
        self,
        accumulators: Sequence[Accumulators],
        left: Slots,
        right: Slots,
        batch: MicroBatch,
        row_of: Callable[[int], int],
    ) -> None:
        """Add the slots of `right` to those of `left`; see `Accumulators.merge`.

        Raises:
            RecordError: An aggregate raised on the input row that `row_of` gives for its index.
        """
        for (name, _), held in zip(self._node.aggregates, accumulators, strict=True):
            try:
                held.merge(left, right)
            except AddError as error:
                self._fail(f"merge of {name}", error, batch, row_of(error.index))

    def results(
        self, accumulators: Sequence[Accumulators], closed: Closed, batch: MicroBatch
    ) -> Rows:
        """The results of slots, as columns where they are some.

        Raises:
            RecordError: An aggregate raised.
        """
        columns = {
            "key": closed.keys,
            "start": pa.array(closed.start),
            "end": pa.array(closed.end),
        }
        pairs = list(zip(self._node.aggregates, accumulators, strict=True))
        try:
            columns |= {name: held.results(closed.slots) for (name, _), held in pairs}
        except NotInColumnsError:
            lists: list[Any] = [to_list(closed.keys), closed.start.tolist(), closed.end.tolist()]
            for (name, aggregate), held in pairs:
                lists.append(self._said(name, aggregate, held.state(closed.slots), closed, batch))
            values = list(map(self._make, *lists))
            return Chunk(closed.rows.tolist(), (closed.end - 1).tolist(), values, lists[0])
        frame = ColumnFrame(len(closed.rows), tuple(columns), self._make, columns.__getitem__)
        return FrameChunk(closed.rows, closed.end - 1, frame, closed.keys)

    def _said(
        self,
        name: str,
        aggregate: Aggregate[Any, Any, Any],
        held: Sequence[Any],
        closed: Closed,
        batch: MicroBatch,
    ) -> Sequence[Any]:
        """What an aggregate says of accumulators, in a list.

        Raises:
            RecordError: It raised.
        """
        label = f"window {self._node.name}, result of {name}"
        try:
            return aggregate.result_column(list(held))
        except Exception as raised:
            for accumulator, row in zip(held, closed.rows.tolist(), strict=True):
                try:
                    aggregate.result(accumulator)
                except Exception as error:
                    fail(label, error, batch, row)
            fail(label, raised, batch, int(closed.rows[0]))

    def _fail(self, what: str, error: AddError, batch: MicroBatch, row: int) -> NoReturn:
        cause = error.__cause__
        assert isinstance(cause, Exception)
        fail(f"window {self._node.name}, {what}", cause, batch, row)


def as_slots(slots: Ints) -> Slots:
    """Slots as accumulators take them."""
    return slots.astype(np.int32)
