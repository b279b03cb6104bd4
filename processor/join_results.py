"""What joins put out: pairs of rows, collected first and made into results in one pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Any

from .columns import Chunk, MicroBatch
from .errors import fail, stopped


class Pairs:
    """The pairs of one step, in the order in which they become results."""

    __slots__ = ("keys", "pairs", "rows", "times")

    def __init__(self) -> None:
        self.rows: list[int] = []
        """Numbers of the input rows that caused them."""
        self.times: list[int] = []
        self.keys: list[object] = []
        self.pairs: list[tuple[Any, Any]] = []

    def add(self, row: int, time: int, key: object, pair: tuple[Any, Any]) -> None:
        """Append a pair."""
        self.rows.append(row)
        self.times.append(time)
        self.keys.append(key)
        self.pairs.append(pair)

    def chunk(self, into: Callable[[Any, Any], object], label: str, batch: MicroBatch) -> Chunk:
        """The results.

        Args:
            into: Makes one of two rows.
            label: Of the operator, for messages.
            batch: Where the rows come from.

        Raises:
            RecordError: `into` raised.
        """
        values: list[object] = []
        try:
            # Results are appended one by one: where it raises is known by how many there are.
            values += starmap(into, self.pairs)
        except Exception as error:
            fail(f"{label}: into", error, batch, self.rows[len(values)])
        if len(values) < len(self.pairs):
            fail(f"{label}: into", stopped(), batch, self.rows[len(values)])
        return Chunk(self.rows, self.times, values, self.keys)


class LateRows:
    """The late rows of one input of a step."""

    __slots__ = ("keys", "rows", "times", "values")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.times: list[int] = []
        self.values: list[object] = []
        self.keys: list[object] = []

    def add(self, row: int, time: int, key: object, value: object) -> None:
        """Append a row."""
        self.rows.append(row)
        self.times.append(time)
        self.values.append(value)
        self.keys.append(key)

    def chunk(self) -> Chunk:
        """All of them."""
        return Chunk(self.rows, self.times, self.values, self.keys)
