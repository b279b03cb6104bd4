"""What accumulators in arrays are, one number per key instead of one object, and what is added.

Which there are is said in frame_aggregates.py.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .frame_errors import NotInColumnsError
from .frame_turns import Turns
from .frames import Array, Mask, to_list

Slots: TypeAlias = "npt.NDArray[np.int32]"
Numbers: TypeAlias = "npt.NDArray[Any]"
"""Of int64 or float64."""
Places: TypeAlias = "slice | npt.NDArray[np.int64]"
"""Some rows of a chunk."""


class Inputs:
    """What an aggregate adds of some rows.

    Args:
        column: Int64, float64, bool, string, timestamp or null; None for an aggregate that asks for
            nothing.
        order: What rows are ordered by, where the aggregate looks at that and keeps the column.
    """

    def __init__(self, column: Array | None, order: Array | None = None) -> None:
        self._column = column
        self._order = order
        self._places: npt.NDArray[np.int64] | None = None
        """Which rows of the columns; None for all. They are taken when somebody asks."""
        self.numbers: Numbers | None = None
        """Without meaning where not `valid`; None if they are no numbers."""
        self.valid: Mask | None = None
        """Which rows lack nothing; None: all."""
        if column is None or len(column) == 0:
            return
        if column.null_count:
            self.valid = column.is_valid().to_numpy(zero_copy_only=False)
        if order is not None:
            if order.null_count:
                there = order.is_valid().to_numpy(zero_copy_only=False)
                self.valid = there if self.valid is None else self.valid & there
        elif pa.types.is_int64(column.type) or pa.types.is_float64(column.type):
            filled = column.fill_null(0) if column.null_count else column
            self.numbers = filled.to_numpy(zero_copy_only=False)

    def at(self, places: Places) -> Inputs:
        """Those of some rows."""
        part = Inputs(None)
        part._column, part._order = self.columns()
        if not isinstance(places, slice):
            part._places = places
        elif part._column is not None:
            part._column = part._column[places]
            part._order = None if part._order is None else part._order[places]
        part.numbers = None if self.numbers is None else self.numbers[places]
        part.valid = None if self.valid is None else self.valid[places]
        return part

    @property
    def dtype(self) -> Any:
        """Of the numbers; None where there are none."""
        return None if self.numbers is None else self.numbers.dtype

    @property
    def null_only(self) -> bool:
        """Whether there is nothing but nulls."""
        return self.valid is not None and not self.valid.any()

    def columns(self) -> tuple[Array | None, Array | None]:
        """What is added, and what it is ordered by."""
        if self._places is not None:
            places, self._places = pa.array(self._places), None
            self._column = None if self._column is None else self._column.take(places)
            self._order = None if self._order is None else self._order.take(places)
        return self._column, self._order

    def as_list(self, places: npt.NDArray[np.int64] | None = None) -> list[Any]:
        """Them as Python objects: all, or some."""
        column, order = self.columns()
        if column is None:
            return []
        if places is not None:
            chosen = pa.array(places)
            column, order = column.take(chosen), None if order is None else order.take(chosen)
        values = to_list(column)
        return values if order is None else list(zip(to_list(order), values, strict=True))

    def filled(self, other: Any) -> Numbers:
        """The numbers, `other` where there is none."""
        assert self.numbers is not None
        return self.numbers if self.valid is None else np.where(self.valid, self.numbers, other)

    def with_slots(self, slots: Slots) -> tuple[Slots, Numbers]:
        """The numbers that are valid, and where they belong."""
        assert self.numbers is not None
        if self.valid is None:
            return slots, self.numbers
        return slots[self.valid], self.numbers[self.valid]


class AddError(Exception):
    """An aggregate raised on one of the rows."""

    def __init__(self, index: int, aggregate: int = 0) -> None:
        super().__init__(index, aggregate)
        self.index = index
        """Of the row."""
        self.aggregate = aggregate
        """Which one raised, by its number in the window."""


class Accumulators(ABC):
    """Those of one aggregate, one per slot."""

    @abstractmethod
    def accepts(self, inputs: Inputs) -> bool:
        """Whether `add` will give what rows give."""

    @abstractmethod
    def grow(self, count: int) -> None:
        """Have at least `count` slots, new ones fresh."""

    @abstractmethod
    def add(self, slots: Slots, inputs: Inputs) -> None:
        """Add rows that are accepted, in their order.

        Raises:
            AddError: The aggregate raised; nothing else may be done with the accumulators.
        """

    @abstractmethod
    def results(self, slots: Slots) -> Array:
        """What the aggregate says of some slots.

        Raises:
            NotInColumnsError: It is no column.
        """

    @abstractmethod
    def state(self, slots: Slots) -> Sequence[Any]:
        """The accumulators as the aggregate itself has them."""

    @abstractmethod
    def restore(self, accumulators: Sequence[Any]) -> None:
        """Take the accumulators of the first slots, as the aggregate itself has them.

        Raises:
            NotInColumnsError: They do not fit.
        """

    @abstractmethod
    def reset(self, slots: Slots) -> None:
        """Make slots fresh again."""

    def can_merge(self, slots: Slots, inputs: Inputs) -> bool:
        """Whether slots may be merged with each other while rows are added to them, exactly.

        Args:
            slots: All that take part, each once.
            inputs: The rows, which are accepted.
        """
        del slots, inputs
        return True

    @abstractmethod
    def merge(self, left: Slots, right: Slots) -> None:
        """Add what the slots of `right` have to those of `left`; no slot is there twice.

        Raises:
            AddError: The aggregate raised; nothing else may be done with the accumulators.
        """

    def follow(self, turns: Turns, inputs: Inputs) -> Followed:
        """What the aggregate says after each row of accepted ones; nothing has changed then.

        Raises:
            NotInColumnsError: It is no column, or not found so.
        """
        del turns, inputs
        raise NotInColumnsError("a result for every row")


class Followed(NamedTuple):
    """What an aggregate says after each row."""

    results: Array
    apply: Callable[[], None]
    """Lets the accumulators be what they are after the last row."""


def grown(array: Numbers, count: int, fresh: Any = 0) -> Numbers:
    """The array with at least `count` entries, twice as many as it had where it is too short."""
    if count <= len(array):
        return array
    more = np.full(max(count - len(array), len(array)), fresh, array.dtype)
    return np.concatenate([array, more])


def as_array(values: Sequence[Any], dtype: Any, kind: type) -> Numbers:
    """Numbers as an array, if they all are of that type.

    Raises:
        NotInColumnsError: They are not, or too great.
    """
    if not set(map(type, values)) <= {kind}:
        raise NotInColumnsError("numbers of several types")
    try:
        return np.array(values, dtype)
    except OverflowError:
        raise NotInColumnsError("ints beyond 64 bits") from None
