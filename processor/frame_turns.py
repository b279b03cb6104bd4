"""The rows of a step by slot, and what becomes of a slot row by row: for results of every row.

A fold over the rows of a slot goes from one row to the next, as rows do it, so that sums of floats
come out alike. It is done for the first rows of all slots at once, then for the second ones; slots
with many rows are folded one by one, each in one call.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .frame_keys import Numbers, run_heads, sorted_by_key
from .frames import Ints, Mask

_MANY: Final = 32
"""A slot with so many rows in a step is folded by itself."""


class Turns:
    """The rows of a step, sorted by slot; those of a slot stay in their order.

    Args:
        slots: Of each row; there is at least one.
    """

    def __init__(self, slots: Numbers) -> None:
        self._order, groups = sorted_by_key(slots)
        self.heads = run_heads(groups)
        """Where, in that order, the rows of each slot begin."""
        self._sizes = np.diff(np.append(self.heads, len(groups)))
        self.tails = self.heads + self._sizes - 1
        """Where the last one of each is."""
        self.slots = groups[self.heads].astype(np.int32)
        """Each slot once."""

    def sorted(self, values: Any) -> Any:
        """Values of rows in the order that all else here is in."""
        return values[self._order]

    def in_row_order(self, values: Any) -> Any:
        """The same the other way."""
        found = np.empty_like(values)
        found[self._order] = values
        return found

    def ends(self, values: Any) -> Any:
        """Of sorted values that of the last row of each slot."""
        return values[self.tails]

    def spread(self, values: Any) -> Any:
        """What slots have, for each of their rows."""
        return np.repeat(values, self._sizes)

    def counted(self, flags: Mask | None, before: Ints) -> Ints:
        """How many rows of its slot, up to each, have a flag; None: all have.

        Args:
            flags: Sorted.
            before: What each slot counts from.
        """
        if flags is None:
            return np.arange(1, len(self._order) + 1) + np.repeat(before - self.heads, self._sizes)
        return self.added(flags.astype(np.int64), before)

    def added(self, numbers: Ints, before: Ints) -> Ints:
        """Sums of ints, which fit in 64 bits, up to each row."""
        sums: Ints = np.cumsum(numbers)
        sums += self.spread(before - (sums[self.heads] - numbers[self.heads]))
        return sums

    def folded(self, function: np.ufunc, numbers: Any, before: Any) -> Any:
        """A function of what there was and the next number, up to each row.

        Args:
            function: np.add, np.minimum, np.maximum.
            numbers: Sorted.
            before: What each slot begins with.
        """
        found = np.empty_like(numbers)
        many = self._sizes >= _MANY
        triples = zip(*(x[many].tolist() for x in (self.heads, self._sizes)), strict=True)
        for (head, size), first in zip(triples, before[many], strict=True):
            part = numbers[head : head + size].copy()
            part[0] = function(first, part[0])
            function.accumulate(part, out=found[head : head + size])
        at, sizes, held = self.heads[~many], self._sizes[~many], before[~many]
        while len(at):
            held = function(held, numbers[at])
            found[at] = held
            more = sizes > 1
            at, sizes, held = at[more] + 1, sizes[more] - 1, held[more]
        return found

    def newest(self, flags: Mask) -> Ints:
        """Where, among the rows of its slot up to each, the last one with a flag is; -1 for none.

        Args:
            flags: Sorted.
        """
        places = np.where(flags, np.arange(len(flags)), -1)
        np.maximum.accumulate(places, out=places)
        return np.where(places >= self.spread(self.heads), places, -1)

    def first(self, flags: Mask) -> Ints:
        """The same of the first one: it is that for all rows from it on."""
        counts = self.counted(flags, np.zeros(len(self.slots), np.int64))
        return self.newest(flags & (counts == 1))
