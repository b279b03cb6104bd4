"""The join with a table on columns: what table_join.py does, with the stream left in columns.

The table is that of `TableJoinOperator`, rows under their keys. Each key of a step is looked up
once; which update comes before which row is found for all rows together. State is the same records.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from .columns import Chunk, Rows
from .frame_pairs import PairFrame, latest
from .frames import FrameChunk, to_list
from .nodes import LATE
from .stateful import MAIN, Step
from .table_join import TableJoinOperator


class FrameTableJoinOperator(TableJoinOperator):
    """Looks rows up in a table, the rows in columns. Not thread-safe."""

    def process(self, step: Step) -> dict[str, Rows]:
        """Look up rows and take in updates; see `TableJoinOperator.process`."""
        rows, updates = step.chunks
        if not isinstance(rows, FrameChunk) or not rows.row_count:
            return super().process(step._replace(chunks=[rows.as_chunk(), updates.as_chunk()]))
        found, places = self._find(rows, updates.as_chunk())
        there = np.array([each is not None for each in found], np.bool_)
        frame = PairFrame(rows.frame, found, np.where(there[places], places, -1))
        pairs = FrameChunk(rows.rows, rows.times, frame, rows.keys)
        if self._node.how == "inner":
            pairs = pairs.pick(there[places])
        return {MAIN: pairs, LATE: Chunk([], [], [], [])}

    def _find(self, rows: FrameChunk, updates: Chunk) -> tuple[list[Any], Any]:
        """Rows of the table, None where a key has none, and which of them each row meets."""
        assert rows.keys is not None
        assert updates.keys is not None
        encoded = rows.keys.dictionary_encode()
        keys = to_list(encoded.dictionary)
        places = encoded.indices.to_numpy().astype(np.int64)
        found = list(map(self._table.view(chain(keys, updates.keys)).get, keys))
        number_of = dict(zip(keys, range(len(keys)), strict=True))
        update_keys, update_rows = [], []
        for row, time, key, value in zip(
            updates.rows, updates.times, updates.keys, updates.values, strict=True
        ):
            if value is None:
                self._table.pop(key)
            else:
                self._table.put(key, value, time)
            number = number_of.get(key)
            if number is not None:
                update_keys.append(number)
                update_rows.append(row)
                found.append(value)
        if update_keys:
            numbers = rows.rows
            if isinstance(numbers, range):
                numbers = np.arange(numbers.start, numbers.stop)
            updated = latest(
                places, numbers, np.array(update_keys, np.int64), np.array(update_rows, np.int64)
            )
            places = np.where(updated < 0, places, updated + len(keys))
        return found, places
