"""The join of a stream with a table as it is: each row meets what the table holds when it comes.

"When" is the order in which the store got the records. Where one input row causes both an update
of the table and a row of the stream, the table is first. The operator holds its own copy of the
table, made of the updates.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

from .columns import Chunk, Rows
from .join_nodes import TableJoinNode
from .join_results import Pairs
from .keyed_state import IN_MEMORY, States
from .nodes import LATE
from .row_codec import RowCodec
from .state import StateEntry, StateRecords
from .stateful import MAIN, StatefulOperator, Step


class TableJoinOperator(StatefulOperator):
    """Looks rows up in a table. Not thread-safe.

    Its state is filed under [key]: the row of the table.

    Args:
        node: What to look up.
        delay_ms: See `StatefulOperator`; it matters to the time to live alone.
        states: Makes its state.
    """

    keyed_only = True

    def __init__(self, node: TableJoinNode, delay_ms: int, states: States = IN_MEMORY) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        codec = RowCodec(node.right_type, f"{node.label}: rows of the table")
        self._table = states.make(node.name, codec, ttl_ms=node.ttl_ms)

    @property
    def live_count(self) -> int:
        """Number of keys of the table."""
        return len(self._table)

    @property
    def required_level(self) -> int | None:
        """None: nothing waits for time."""
        return None

    def process(self, step: Step) -> dict[str, Rows]:
        """Look up rows and take in updates, in the order of the input rows.

        Returns:
            The results. No row is late.

        Raises:
            RecordError: The function that makes results raised.
        """
        rows, updates = step.chunks
        assert rows.keys is not None
        assert updates.keys is not None
        levels: Iterable[int] = repeat(0, len(rows.rows))
        if self._node.ttl_ms is not None:
            levels = step.progress.before(rows.rows)
        reached = list(levels)
        self._table.view(chain(rows.keys, updates.keys))
        pairs, done = Pairs(), 0
        for row, time, key, value in zip(
            updates.rows, updates.times, updates.keys, updates.values, strict=True
        ):
            stop = bisect_left(rows.rows, row, done)
            if stop > done:
                self._look_up(rows.cut(done, stop), reached[done:stop], pairs)
                done = stop
            if value is None:
                self._table.pop(key)
            else:
                self._table.put(key, value, time)
        self._look_up(rows.cut(done, len(rows.rows)), reached[done:], pairs)
        self._table.expire(step.progress.end - self.delay_ms)
        results = pairs.chunk(self._node.into, self._node.label, step.batch)
        return {MAIN: results, LATE: Chunk([], [], [], [])}

    def _look_up(self, rows: Chunk, levels: Iterable[int], pairs: Pairs) -> None:
        """Rows between which the table does not change."""
        keys = rows.keys
        assert keys is not None
        found: list[Any]
        if self._node.ttl_ms is None:
            found = list(map(self._table.view(keys).get, keys))
        else:
            # Over by W, or too old for a row that is so much later.
            ages = [
                max(time, level - self.delay_ms)
                for time, level in zip(rows.times, levels, strict=True)
            ]
            found = list(map(self._table.get, keys, ages))
        columns = [rows.rows, rows.times, keys, list(zip(rows.values, found, strict=True))]
        if self._node.how == "inner" and None in found:
            good = [each is not None for each in found]
            columns = [
                [each for each, is_good in zip(column, good, strict=True) if is_good]
                for column in columns
            ]
        pairs.rows += columns[0]  # type: ignore[arg-type]
        pairs.times += columns[1]  # type: ignore[arg-type]
        pairs.keys += columns[2]
        pairs.pairs += columns[3]  # type: ignore[arg-type]

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """The rows of the table that changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        return self._table.changes()

    def sweep(self) -> Iterator[StateRecords]:
        """All rows of the table.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        return self._table.sweep()

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take the table from records.

        Raises:
            DataError: Not the state of a table join.
        """
        self._table.restore(entries)
