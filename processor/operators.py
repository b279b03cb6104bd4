"""Operators without state: a chunk in, a chunk out. Each works on whole columns.

Rows keep the number of the input row that caused them and their event time. Where a user function
raises, the row is an error that names its record, or one of the source's dead letters.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, Protocol

from .columns import Chunk, MicroBatch, Rows
from .errors import REJECTED, apply, convert, fail, reason, record_error, several
from .fields import field_getter
from .nodes import (
    BranchNode,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    MapBatchNode,
    MapNode,
    PeekNode,
)
from .serde import all_plain_keys, key_decoder, key_problem, plain_key
from .source import Rejects
from .stateful import MAIN
from .table_nodes import RecordKeyNode


class Operator(Protocol):
    """An operator whose output depends on the chunks alone."""

    def process(self, chunks: Sequence[Any], batch: MicroBatch) -> Mapping[str, Rows]:
        """The rows that follow from one chunk per input, by port.

        Raises:
            RecordError: A user function raised, or a row cannot be processed.
        """
        ...


def _results(
    node: MapNode | FilterNode | FlatMapNode,
    function: Callable[[Any], object],
    chunk: Chunk,
    batch: MicroBatch,
    rejects: Rejects | None,
) -> tuple[Chunk, list[Any]]:
    """`function` of every value, and the rows that have one.

    Args:
        node: What messages name.
        function: Of a value.
        chunk: The rows.
        batch: Where they come from.
        rejects: Takes the rows it raises on, if the node wants that; None where rows are not
            input records.
    """
    if node.on_error == "stop":
        return chunk, apply(function, chunk.values, node.label, batch, chunk)

    def reject(index: int, error: Exception) -> None:
        refuse_row(rejects, f"{node.label}: {reason(error)}", batch, chunk.rows[index], error)

    results = convert(chunk.values, function, reject)
    good = [result is not REJECTED for result in results]
    return (chunk, results) if all(good) else (chunk.kept(good), list(compress(results, good)))


def refuse_row(
    rejects: Rejects | None,
    message: str,
    batch: MicroBatch,
    row: int,
    cause: Exception | None = None,
) -> None:
    """Make a row a dead letter of its source.

    Raises:
        RecordError: There are none, or the row is no input record.
    """
    if rejects is None:
        raise record_error(message, batch, row) from cause
    rejects.reject(message, batch, row, cause)


class MapOperator:
    """One row for one row."""

    def __init__(self, node: MapNode, rejects: Rejects | None) -> None:
        self._node = node
        self._rejects = rejects

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The function of every value."""
        node = self._node
        chunk, values = _results(node, node.function, chunks[0], batch, self._rejects)
        return {MAIN: chunk.with_values(values)}


class MapBatchOperator:
    """One row for one row, by a function of many."""

    def __init__(self, node: MapBatchNode) -> None:
        self._node = node

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The function of the values of the chunk."""
        (chunk,) = chunks
        if not chunk.values:
            return {MAIN: chunk}
        label, row = self._node.label, chunk.rows[0]
        try:
            values = list(self._node.function(list(chunk.values)))
        except Exception as error:
            fail(label, error, batch, row)
        if len(values) != len(chunk.values):
            counts = f"{len(values)} values for {len(chunk.values)}"
            raise record_error(f"{label}: it returned {counts}: return one for each", batch, row)
        return {MAIN: chunk.with_values(values)}


class PeekOperator:
    """Shows rows and lets them pass."""

    def __init__(self, node: PeekNode) -> None:
        self._node = node

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The same rows, after the function has seen each."""
        (chunk,) = chunks
        apply(self._node.function, chunk.values, self._node.label, batch, chunk)
        return {MAIN: chunk}


class FilterOperator:
    """Keeps some rows."""

    def __init__(self, node: FilterNode, rejects: Rejects | None) -> None:
        self._node = node
        self._rejects = rejects

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The rows the predicate holds for."""
        node = self._node
        chunk, flags = _results(node, node.predicate, chunks[0], batch, self._rejects)
        return {MAIN: chunk.kept(flags)}


class FlatMapOperator:
    """Any number of rows for one row."""

    def __init__(self, node: FlatMapNode, rejects: Rejects | None) -> None:
        self._node = node
        self._rejects = rejects

    def _all(self, value: Any) -> list[object]:
        # The iterable is exhausted here, so that what a generator raises is caught as well.
        return list(several(self._node.function(value)))

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """All values of the iterables, in order."""
        chunk, groups = _results(self._node, self._all, chunks[0], batch, self._rejects)
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
        return {MAIN: Chunk(rows, times, values, None if chunk.keys is None else keys)}


class KeyByOperator:
    """Groups rows. Rows without a key that can group are rejected."""

    def __init__(self, node: KeyByNode, rejects: Rejects | None) -> None:
        self._node = node
        self._rejects = rejects
        """Where rejected rows go; None below a window, whose rows are no input records."""

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The rows with their keys."""
        (chunk,) = chunks
        getter = field_getter(self._node.key, chunk.values, chunk.kind)
        assert getter is not None

        def reject(index: int, error: Exception) -> None:
            self._refuse(reason(error), batch, chunk.rows[index], error)

        keys = convert(chunk.values, getter, reject)
        if all_plain_keys(keys):
            return {MAIN: chunk.with_keys(keys, plain=True)}
        keys = list(map(plain_key, keys))
        for index, key in enumerate(keys):
            problem = "the key is None" if key is None else key_problem(key)
            if key is not REJECTED and problem:
                self._refuse(problem, batch, chunk.rows[index])
                keys[index] = REJECTED
        good = [key is not REJECTED for key in keys]
        return {MAIN: chunk.with_keys(keys).kept(good)}

    def _refuse(
        self, problem: str, batch: MicroBatch, row: int, cause: Exception | None = None
    ) -> None:
        refuse_row(self._rejects, f"{self._node.label}: {problem}", batch, row, cause)


class RecordKeyOperator:
    """Groups the records of a topic by their own keys, or by a field of their values.

    Rows without a key, or with one of another type than declared, are rejected: such a key would
    be another than that of the record's tombstone.
    """

    def __init__(self, node: RecordKeyNode, rejects: Rejects | None) -> None:
        self._node = node
        self._rejects = rejects
        self._decode = key_decoder(node.key_type)
        self._kind = typing.get_origin(node.key_type) or node.key_type

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The rows with their keys."""
        (chunk,) = chunks
        read = field_getter(self._node.key, [value for value in chunk.values if value is not None])
        records = batch.keys(chunk.rows) or [None] * len(chunk.rows)
        bad: dict[int, Exception] = {}

        def key_of(index: int) -> object:
            value = chunk.values[index]
            key = self._decode(records[index]) if value is None or read is None else read(value)
            key = plain_key(key)
            problem = "the key is None" if key is None else key_problem(key)
            if problem is None and not isinstance(key, self._kind):
                problem = f"the key {key!r} is no {self._kind.__name__}: give key_type="
            if problem is not None:
                raise ValueError(problem)
            return key

        keys = convert(range(len(chunk.values)), key_of, bad.__setitem__)
        for index, error in bad.items():
            message = f"{self._node.label}: {reason(error)}"
            refuse_row(self._rejects, message, batch, chunk.rows[index], error)
        whole = chunk.with_keys(keys)
        return {MAIN: whole.kept([key is not REJECTED for key in keys]) if bad else whole}


class BranchOperator:
    """Sends each row to one of several ports."""

    def __init__(self, node: BranchNode) -> None:
        self._node = node

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """The rows of each port."""
        (rest,) = chunks
        *ports, last = self._node.ports
        parts: dict[str, Chunk] = {MAIN: rest}
        for port, predicate in zip(ports, self._node.predicates, strict=True):
            flags = apply(predicate, rest.values, f"{self._node.label}: {port}", batch, rest)
            parts[port] = rest.kept(flags)
            rest = rest.kept([not flag for flag in flags])
        parts[last] = rest
        return parts


class MergeOperator:
    """Puts streams together."""

    def __init__(self, *, keyed: bool) -> None:
        self._keyed = keyed

    def process(self, chunks: Sequence[Chunk], batch: MicroBatch) -> dict[str, Chunk]:
        """All rows in the order of their input rows, then of the streams."""
        del batch
        return {MAIN: merged(chunks, keyed=self._keyed)}


def merged(chunks: Sequence[Chunk], *, keyed: bool) -> Chunk:
    """The rows of several chunks in the order of (input row, chunk)."""
    filled = [chunk for chunk in chunks if chunk.values]
    if len(filled) == 1:
        (one,) = filled
        return one if keyed else one.with_keys(None)
    rows = [row for chunk in filled for row in chunk.rows]
    # Sorting is stable and the chunks come in order, so the row alone decides.
    order = sorted(range(len(rows)), key=rows.__getitem__)
    times = [time for chunk in filled for time in chunk.times]
    values = [value for chunk in filled for value in chunk.values]
    keys = [key for chunk in filled for key in chunk.keys or ()] if keyed else None
    return Chunk(
        [rows[index] for index in order],
        [times[index] for index in order],
        [values[index] for index in order],
        None if keys is None else [keys[index] for index in order],
    )
