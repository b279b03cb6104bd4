"""The operator of windows by count: rows in, one row per full window out.

Where windows of a key end is decided in count_windows.py. State is filed under [key]: how many rows
it holds, their least and greatest time, and the accumulators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

from millstream import DataError

from .accumulator_codec import AccumulatorCodec
from .aggregating import Results, RowAggregates
from .columns import Chunk
from .key_groups import Filed, GroupedOperator, Path
from .nodes import LATE, CountNode
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step
from .stored_keys import as_held
from .windowing import pick


@dataclass(slots=True)
class Content:
    """What a window that is not full holds."""

    accumulators: list[Any]
    count: int
    least_ms: int
    greatest_ms: int


class CountOperator(GroupedOperator):
    """Windows of a number of rows, with aggregates. Not thread-safe.

    Args:
        node: What to compute.
        delay_ms: Of no concern here: no row is late.
    """

    def __init__(self, node: CountNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self.node = node
        self._size = node.windows.size
        self._aggregates = RowAggregates(f"window {node.name}", node.aggregates)
        self._codec = AccumulatorCodec(
            f"the state of {node.name!r}", node.aggregates, node.row_type
        )
        self._open: dict[object, Content] = {}
        """By key."""
        self._changed: dict[object, None] = {}
        self._make = node.result_type
        self._out = Results()

    @property
    def live_count(self) -> int:
        """Number of keys with a window that is not full."""
        return len(self._open)

    @property
    def required_level(self) -> int | None:
        """Nothing waits for time: what is not full stays open."""
        return None

    def process(self, step: Step) -> dict[str, Chunk]:
        """Add rows; a window that is full becomes a result of the row that filled it.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        (chunk,), batch = step.chunks, step.batch
        assert chunk.keys is not None
        inputs = self._aggregates.inputs(chunk, batch)
        for key, time, row, added in zip(chunk.keys, chunk.times, chunk.rows, inputs, strict=True):
            held = self._open.get(key)
            if held is None:
                held = self._open[key] = Content(self._aggregates.init(), 0, time, time)
            held.count += 1
            held.least_ms = min(held.least_ms, time)
            held.greatest_ms = max(held.greatest_ms, time)
            self._aggregates.add(held.accumulators, added, batch, row)
            self._changed[key] = None
            if held.count == self._size:
                del self._open[key]
                results = self._aggregates.results(held.accumulators, batch, row)
                value = self._make(key, held.least_ms, held.greatest_ms + 1, *results)
                self._out.add(row, held.greatest_ms, value, key)
        return {MAIN: self._out.take(), LATE: pick(chunk, ())}

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        records = encode_removed((key,) for key in self._changed if key not in self._open)
        records.extend(self._entries([key for key in self._changed if key in self._open]))
        self._changed = {}
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """What every key holds now, as long as it does.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        keys = iter(list(self._open))
        while piece := list(islice(keys, SWEEP_RECORDS)):
            yield self._entries([key for key in piece if key in self._open])

    def _entries(self, keys: list[object]) -> StateRecords:
        contents = list(map(self._open.__getitem__, keys))
        kept: Sequence[Sequence[Any]] = [held.accumulators for held in contents]
        if self._codec.typed:
            kept = self._codec.pack(kept)
        values = [
            (held.count, held.least_ms, held.greatest_ms, *accumulators)
            for held, accumulators in zip(contents, kept, strict=True)
        ]
        paths = [(key,) for key in keys]
        return encode_entries(self.name, paths, values, proven=self._codec.typed)

    # --- groups --------------------------------------------------------------------------------

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        match path:
            case (key,):
                return Filed(key, None)
        raise DataError(f"not the state of windows by count: {path!r}")

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        return self._entries(as_held(self._open, keys))

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        kept_count = len(self.node.aggregates)
        for path, value in entries:
            match value:
                case [int(count), int(least), int(greatest), *held] if len(held) == kept_count:
                    if self._codec.typed:
                        held = self._codec.unpack(held)
                    self._open[path[0]] = Content(held, count, least, greatest)
                case _:
                    raise DataError(f"not the state of windows by count: {path!r} {value!r}")

    def wakes(self, keys: Sequence[object]) -> Iterator[None]:
        """See `GroupedOperator`: they wait for rows alone."""
        return repeat(None, len(keys))

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        return set(self._changed)

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return len(self._changed)

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        for key in keys:
            self._open.pop(key, None)
