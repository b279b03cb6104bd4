"""Operators without state on columns: filter, select, key_by, merge. What they do: operators.py.

And how those with state turn to rows and back.

Each takes frames as far as it can, and hands rows to the operator it stands for: rows that came as
rows, and a frame on which columns would not surely give the same. Nothing has changed by then, so
the rows have the last word, errors and dead letters included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from .columns import MicroBatch, Rows
from .expressions import Expression
from .fields import Field
from .frame_errors import NotInColumnsError
from .frame_expressions import compile_columns, condition_mask
from .frame_fields import column_of
from .frames import Array, ColumnFrame, FrameChunk, join_frames
from .nodes import FilterNode, KeyByNode, MapBatchNode, MapNode, MergeNode, Node
from .operators import Operator
from .selection import Selection
from .stateful import MAIN

_KEY_TYPES: Final = (pa.string(), pa.int64(), pa.bool_())
"""Of floats 1.0 is the same key as 1: rows know that."""

T = TypeVar("T")


class FrameOperator(ABC):
    """An operator that takes frames, as far as `_on_columns` can.

    Args:
        rows: The same operator on rows.
    """

    def __init__(self, rows: Operator) -> None:
        self._rows = rows

    def process(self, chunks: Sequence[Rows], batch: MicroBatch) -> Mapping[str, Rows]:
        """The rows that follow, by port; see `Operator.process`."""
        (chunk,) = chunks
        if isinstance(chunk, FrameChunk):
            try:
                return {MAIN: self._on_columns(chunk)}
            except NotInColumnsError:
                pass  # the rows say what it is
        return self._rows.process([chunk.as_chunk()], batch)

    @abstractmethod
    def _on_columns(self, chunk: FrameChunk) -> FrameChunk:
        """The rows of `MAIN`.

        Raises:
            NotInColumnsError: Rows have to say.
        """


class TurningOperator(ABC):
    """What operators with state share that hold it in columns as long as these can say.

    Where only rows can, all of it turns into what rows have, and back once as many rows have come
    as there is state: so turning costs no row more than a constant.
    """

    _rows_left = 0
    """How many rows to take as such before columns are tried again."""

    @property
    @abstractmethod
    def live_count(self) -> int:
        """See `StatefulOperator`."""

    @abstractmethod
    def _to_rows(self) -> None:
        """All state as rows have it."""

    def _try_columns(self, chunk: Rows, take: Callable[[FrameChunk], T]) -> T | None:
        """What `take` makes of rows in columns; None where rows have to say, who may begin then.

        Args:
            chunk: The rows.
            take: Raises `NotInColumnsError` before anything has changed.
        """
        if isinstance(chunk, FrameChunk) and chunk.row_count and self._rows_left <= 0:
            try:
                with np.errstate(all="ignore"):  # what has overflowed is found in the result
                    return take(chunk)
            except NotInColumnsError:
                self._rows_left = self.live_count
        self._to_rows()
        self._rows_left -= chunk.row_count
        return None


class FrameFilterOperator(FrameOperator):
    """Keeps the rows that fulfil an expression."""

    def __init__(self, predicate: Expression, rows: Operator) -> None:
        super().__init__(rows)
        self._condition = compile_columns(predicate.tree)

    def _on_columns(self, chunk: FrameChunk) -> FrameChunk:
        return chunk.pick(condition_mask(self._condition(chunk.frame)))


class FrameSelectOperator(FrameOperator):
    """Makes rows of expressions."""

    def __init__(self, selection: Selection, rows: Operator) -> None:
        super().__init__(rows)
        self._keep = selection.keep
        self._columns = {
            name: compile_columns(field.tree) for name, field in selection.fields.items()
        }

    def _on_columns(self, chunk: FrameChunk) -> FrameChunk:
        frame = chunk.frame
        made: dict[str, Any] = {name: make(frame) for name, make in self._columns.items()}
        kept = frame.names if self._keep else ()
        frame.require(name for name in kept if name not in made)

        def load(name: str) -> Array:
            return made[name] if name in made else frame.column(name)

        selected = ColumnFrame(frame.row_count, tuple(dict.fromkeys((*kept, *made))), dict, load)
        return FrameChunk(chunk.rows, chunk.times, selected, chunk.keys)


class FrameKeyByOperator(FrameOperator):
    """Groups rows by a column without nulls."""

    def __init__(self, key: Field, rows: Operator) -> None:
        super().__init__(rows)
        self._key = column_of(key)

    def _on_columns(self, chunk: FrameChunk) -> FrameChunk:
        keys = self._key(chunk.frame)
        if keys.null_count or keys.type not in _KEY_TYPES:
            raise NotInColumnsError(f"keys of {keys.type}")
        return FrameChunk(chunk.rows, chunk.times, chunk.frame, keys)


class FrameMergeOperator:
    """Puts streams together whose rows are the same columns.

    Args:
        rows: The same operator on rows.
        keyed: Whether the rows keep their keys.
    """

    def __init__(self, rows: Operator, *, keyed: bool) -> None:
        self._rows = rows
        self._keyed = keyed

    def process(self, chunks: Sequence[Rows], batch: MicroBatch) -> Mapping[str, Rows]:
        """All rows in the order of their input rows, then of the streams."""
        filled = [chunk for chunk in chunks if chunk.row_count]
        frames = [chunk for chunk in filled if isinstance(chunk, FrameChunk)]
        if frames and len(frames) == len(filled):
            if not self._keyed:
                frames = [FrameChunk(each.rows, each.times, each.frame) for each in frames]
            joined = join_frames(frames)
            if joined is not None:
                # Sorting is stable and the chunks come in order, so the row alone decides.
                falls = len(frames) > 1 and bool((joined.rows[1:] < joined.rows[:-1]).any())
                order = np.argsort(joined.rows, kind="stable") if falls else None
                return {MAIN: joined if order is None else joined.take(order)}
        return self._rows.process([chunk.as_chunk() for chunk in chunks], batch)


def on_columns(node: Node, rows: Operator) -> Operator:
    """The operator of a node that runs on columns (lanes.py says which do)."""
    if isinstance(node, MapBatchNode):
        return rows
    if isinstance(node, MergeNode):
        return FrameMergeOperator(rows, keyed=node.keyed)
    if isinstance(node, FilterNode):
        assert isinstance(node.predicate, Expression)
        return FrameFilterOperator(node.predicate, rows)
    if isinstance(node, MapNode):
        assert isinstance(node.function, Selection)
        return FrameSelectOperator(node.function, rows)
    assert isinstance(node, KeyByNode)
    return FrameKeyByOperator(node.key, rows)
