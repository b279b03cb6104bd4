"""Operators without state: a chunk in, a chunk out. Each works on whole columns.

Rows keep the number of the input row that caused them and their event time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from typing import Any, Protocol

from .columns import Chunk, MicroBatch
from .errors import REJECTED, apply, convert, reason, record_error
from .fields import field_getter
from .plan import FilterNode, FlatMapNode, KeyByNode, MapNode
from .serde import all_plain_keys, key_problem
from .source import Faults


class Operator(Protocol):
    """An operator whose output depends on the chunk alone."""

    def process(self, chunk: Chunk, batch: MicroBatch) -> Chunk:
        """The rows that follow from `chunk`.

        Raises:
            RecordError: A user function raised, or a row cannot be processed.
        """
        ...


class MapOperator:
    """One row for one row."""

    def __init__(self, node: MapNode) -> None:
        self._node = node

    def process(self, chunk: Chunk, batch: MicroBatch) -> Chunk:
        """The function of every value."""
        node = self._node
        values = apply(node.function, chunk.values, node.label, batch, chunk)
        return Chunk(chunk.rows, chunk.times, values, chunk.keys)


class FilterOperator:
    """Keeps some rows."""

    def __init__(self, node: FilterNode) -> None:
        self._node = node

    def process(self, chunk: Chunk, batch: MicroBatch) -> Chunk:
        """The rows the predicate holds for."""
        node = self._node
        keep = apply(node.predicate, chunk.values, node.label, batch, chunk)
        return Chunk(
            list(compress(chunk.rows, keep)),
            list(compress(chunk.times, keep)),
            list(compress(chunk.values, keep)),
            None if chunk.keys is None else list(compress(chunk.keys, keep)),
        )


class FlatMapOperator:
    """Any number of rows for one row."""

    def __init__(self, node: FlatMapNode) -> None:
        self._node = node

    def _all(self, value: Any) -> list[object]:
        # The iterable is exhausted here, so that what a generator raises is caught as well.
        many = self._node.function(value)
        if not isinstance(many, Iterable):
            raise TypeError(f"the function must return an iterable, not {type(many).__name__}")
        return list(many)

    def process(self, chunk: Chunk, batch: MicroBatch) -> Chunk:
        """All values of the iterables, in order."""
        groups = apply(self._all, chunk.values, self._node.label, batch, chunk)
        rows: list[int] = []
        times: list[int] = []
        values: list[object] = []
        keys: list[object] = []
        for index, group in enumerate(groups):
            count = len(group)
            rows += [chunk.rows[index]] * count
            times += [chunk.times[index]] * count
            values += group
            if chunk.keys is not None:
                keys += [chunk.keys[index]] * count
        return Chunk(rows, times, values, None if chunk.keys is None else keys)


class KeyByOperator:
    """Groups rows. Rows without a key that can group are rejected."""

    def __init__(self, node: KeyByNode, faults: Faults | None) -> None:
        self._node = node
        self._faults = faults
        """Where rejected rows go; None below a window, whose rows are no input records."""

    def process(self, chunk: Chunk, batch: MicroBatch) -> Chunk:
        """The rows with their keys."""
        getter = field_getter(self._node.key, chunk.values)
        assert getter is not None

        def reject(index: int, error: Exception) -> None:
            self._reject(reason(error), batch, chunk.rows[index], error)

        keys = convert(chunk.values, getter, reject)
        if all_plain_keys(keys):
            return Chunk(chunk.rows, chunk.times, chunk.values, keys)
        for index, key in enumerate(keys):
            problem = "the key is None" if key is None else key_problem(key)
            if key is not REJECTED and problem:
                self._reject(problem, batch, chunk.rows[index])
                keys[index] = REJECTED
        keep = [key is not REJECTED for key in keys]
        return Chunk(
            list(compress(chunk.rows, keep)),
            list(compress(chunk.times, keep)),
            list(compress(chunk.values, keep)),
            list(compress(keys, keep)),
        )

    def _reject(
        self, problem: str, batch: MicroBatch, row: int, cause: Exception | None = None
    ) -> None:
        message = f"{self._node.label}: {problem}"
        if self._faults is None:
            raise record_error(message, batch, row) from cause
        self._faults.reject(message, batch, row, cause)
