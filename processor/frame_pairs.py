"""Pairs of rows as columns: what a join puts out, with the left rows in columns.

The right rows are few and each is in many pairs, so they stay what they are; their fields become
columns when somebody asks, one value for each right row and not for each pair.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .expression_scalar import read
from .frame_errors import NotInColumnsError
from .frames import Array, Frame, Ints, Mask, plain_column
from .row_shapes import Joined


class PairFrame(Frame):
    """Pairs of which the left rows are columns. They are no plain columns: their fields are.

    Args:
        left: The left rows.
        found: Right rows.
        places: For each left row the index of its right one in `found`; -1 for none.
    """

    __slots__ = (
        "_columns",
        "_found",
        "_left",
        "_places",
        "_values",
        "kind",
        "names",
        "row_count",
        "types",
    )

    def __init__(self, left: Frame, found: Sequence[Any], places: Ints) -> None:
        self.kind = Joined
        self.names = ("left", "right")
        self.types = None
        self._left = left
        self._found = found
        self._places = places
        self._columns: dict[str | None, Array] = {}
        self._values: list[Any] | None = None
        self.row_count = left.row_count

    def column(self, name: str) -> Array:
        """The right rows, where they are texts or numbers; see `Frame.column`."""
        if name != "right":
            raise NotInColumnsError(f"no column {name}")
        return self._of_right(None)

    def member(self, name: str, field: str) -> Array:
        """A field of the left or the right rows; see `Frame.member`."""
        if name == "right":
            return self._of_right(field)
        return self._left.column(field)

    def _of_right(self, field: str | None) -> Array:
        found = self._columns.get(field)
        if found is None:
            try:
                values = [each if field is None else read(each, field) for each in self._found]
            except Exception as error:  # rows find out which it is, and whether it is asked for
                raise NotInColumnsError(str(error)) from None
            places = pa.array(self._places, mask=self._places < 0)
            found = self._columns[field] = plain_column(values).take(places)
        return found

    @property
    def values(self) -> list[Any]:
        """The pairs."""
        if self._values is None:
            rights = [*self._found, None]  # which is at -1
            chosen = map(rights.__getitem__, self._places.tolist())
            self._values = list(map(Joined, self._left.values, chosen))
        return self._values

    def pick(self, mask: Mask) -> PairFrame:
        """Those whose flag is true."""
        return PairFrame(self._left.pick(mask), self._found, self._places[mask])

    def take(self, places: Ints) -> PairFrame:
        """Those at some places, in that order."""
        return PairFrame(self._left.take(places), self._found, self._places[places])

    def cut(self, start: int, stop: int) -> PairFrame:
        """Those from `start` on, before `stop`."""
        return PairFrame(self._left.cut(start, stop), self._found, self._places[start:stop])


def latest(keys: Ints, rows: Ints, update_keys: Ints, update_rows: Ints) -> Ints:
    """For each row the last update of its key that is caused by no later input row; -1 for none.

    Args:
        keys: Of the rows, as numbers from 0.
        rows: Numbers of the input rows that cause them; never fall.
        update_keys: Of the updates.
        update_rows: The same; never fall.
    """
    if not len(update_keys) or not len(keys):
        return np.full(len(keys), -1, np.int64)
    span = int(max(rows[-1], update_rows[-1])) + 1
    updates = update_keys * span + update_rows
    # Equal ones stay in their order, so the last of them counts.
    order = np.argsort(updates, kind="stable")
    places = np.searchsorted(updates[order], keys * span + rows, side="right") - 1
    found = order[places]
    return np.where((places >= 0) & (update_keys[found] == keys), found, -1)
