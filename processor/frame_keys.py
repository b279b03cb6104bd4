"""Grouping keys as numbers, so that a row finds its accumulators in an array.

Keys get numbers in the order they come; the numbers mean nothing and are kept nowhere. Only keys of
one type are in a table: in rows 1 and True are the same key, and that must not depend on the lane.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .frame_errors import NotInColumnsError
from .frames import Array, Ints, to_list

Numbers: TypeAlias = "npt.NDArray[np.int32]"

KEYS_MAX: Final = 1 << 30
"""Beyond this a table is full. Long before, memory is."""

_TYPES: Final[Mapping[type, Any]] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}

_LARGE: Final = 2
"""With so many times more keys in the table than are asked about, a dict finds them faster."""

_SPARSE: Final = 8
"""With so many keys in the table for one that is asked about, those asked about are sorted."""


class KeyNumbers:
    """A table of keys and their numbers. Not thread-safe."""

    def __init__(self) -> None:
        self._column: Array | None = None
        """The keys by number."""
        self._numbers: dict[Any, int] = {}
        """The same the other way, for as many as have been asked about so."""
        self._order: Numbers | None = None
        """Numbers in the order of the keys' bytes; None if it has to be found."""

    def clear(self) -> None:
        """Forget all keys and their type."""
        self._column = self._order = None
        self._numbers = {}

    def __len__(self) -> int:
        return 0 if self._column is None else len(self._column)

    def numbers_of(self, keys: Array) -> Numbers:
        """The number of each key of a column without nulls; new keys get new ones.

        Raises:
            NotInColumnsError: The keys in the table are of another type, or it is full.
        """
        column = self._of_type(keys.type)
        if len(column) + len(keys) > KEYS_MAX:
            raise NotInColumnsError("too many keys")
        if len(column) > _LARGE * len(keys):
            # To look all keys of the table up costs more than to look these up in a dict.
            encoded = pc.dictionary_encode(keys)
            numbers = self.numbers_of_list(to_list(encoded.dictionary))
            return numbers[encoded.indices.to_numpy()]  # type: ignore[no-any-return]
        found = pc.index_in(keys, value_set=column)
        if found.null_count:
            self._extend(pc.unique(keys.filter(found.is_null())))
            found = pc.index_in(keys, value_set=self._column)
        return found.to_numpy()  # type: ignore[no-any-return]

    def numbers_of_list(self, keys: list[Any]) -> Numbers:
        """The number of each of these keys, all of the table's type; new ones get new ones."""
        column, numbers = self._column, self._numbers
        assert column is not None
        if len(numbers) < len(column):
            more = to_list(column.slice(len(numbers)))
            numbers.update(zip(more, range(len(numbers), len(column)), strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in numbers]
        if new:
            numbers.update(zip(new, count(len(numbers)), strict=False))
            self._extend(pa.array(new, column.type))
        return np.fromiter(map(numbers.__getitem__, keys), np.int32, len(keys))

    def begin(self, keys: Iterable[Any]) -> None:
        """Take the type of the table from keys, if it has none yet.

        Raises:
            NotInColumnsError: They are not all of one type, or of another than the table's, or of
                none that the lane knows.
        """
        types = set(map(type, keys))
        kind = _TYPES.get(types.pop()) if len(types) == 1 else None
        if kind is None:
            raise NotInColumnsError("keys of several types")
        self._of_type(kind)

    def _of_type(self, kind: Any) -> Array:
        """The keys, which are of this type.

        Raises:
            NotInColumnsError: They are not.
        """
        if self._column is None:
            self._column = pa.array([], kind)
        if not self._column.type.equals(kind):
            raise NotInColumnsError("keys of several types")
        return self._column

    def _extend(self, keys: Array) -> None:
        self._column = pa.concat_arrays([self._column, keys])
        self._order = None

    def keys_of(self, numbers: Numbers | Ints) -> Array:
        """The keys of these numbers, as a column."""
        return self._column.take(pa.array(numbers))  # type: ignore[union-attr]  # it has numbers

    def ordered(self, numbers: Numbers) -> npt.NDArray[np.int64]:
        """Where in `numbers`, which are distinct, the keys lie in the order of their bytes."""
        column = self._column
        assert column is not None
        if len(column) > _SPARSE * len(numbers):
            return _sorted_by_bytes(column.take(pa.array(numbers)))
        places = np.full(len(column), -1, np.int64)
        places[numbers] = np.arange(len(numbers))
        places = places[self._in_order(column)]
        return places[places >= 0]

    def ordered_numbers(self, chosen: npt.NDArray[np.bool_]) -> Numbers:
        """Numbers whose flag is true, in the order of the keys' bytes.

        Args:
            chosen: By number; the last ones may be missing.
        """
        column = self._column
        assert column is not None
        count = int(np.count_nonzero(chosen))
        if len(column) > _SPARSE * count:
            numbers = np.flatnonzero(chosen).astype(np.int32)
            return numbers[_sorted_by_bytes(column.take(pa.array(numbers)))]
        order = self._in_order(column)
        if len(chosen) < len(order):
            order = order[order < len(chosen)]
        return order[chosen[order]]

    def _in_order(self, column: Array) -> Numbers:
        if self._order is None:
            self._order = _sorted_by_bytes(column).astype(np.int32)
        return self._order


def _sorted_by_bytes(keys: Array) -> npt.NDArray[np.int64]:
    # A key that is no text is written as JSON, and these look the same in Arrow.
    texts = keys if pa.types.is_string(keys.type) else keys.cast(pa.string())
    indexes = pc.sort_indices(texts).to_numpy()
    return indexes.astype(np.int64)  # type: ignore[no-any-return]


def sorted_by_key(numbers: Numbers | Ints) -> tuple[Ints, Ints]:
    """The order of rows by key, those of a key as they were, and the keys in that order."""
    # A sort of numbers that say both is several times as fast as one of places by keys.
    bits = max(1, len(numbers) - 1).bit_length()
    both = (numbers.astype(np.int64) << bits) | np.arange(len(numbers))
    both.sort()
    return both & ((1 << bits) - 1), both >> bits


def run_heads(values: Numbers | Ints) -> Ints:
    """Where runs of equal values begin.

    >>> run_heads(np.array([4, 4, 7, 4])).tolist(), run_heads(np.array([], np.int64)).tolist()
    ([0, 2, 3], [])
    """
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
