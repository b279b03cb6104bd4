"""A running count of rows per key, in memory: for every row in, how many its key has had by then.

The same as `RunningOperator` counting rows, and the same records of state; here each key has a slot
in a list of counts, so that a row costs one look into a dictionary of keys. That is what a count
costs: keys are texts of many rows, each an object of its own, and comparing them is most of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Final

from millstream import DataError

from .columns import Chunk
from .keyed_state import KeyedState, States
from .numeric_aggregates import Count
from .row_codec import RowCodec
from .running import RunningOperator
from .serde import encode_state
from .state import STATE_VERSION, StateEntry, StatePiece, StateRecords, pieces_of
from .stateful import MAIN, SWEEP_RECORDS, StatefulOperator, Step
from .table_nodes import RunningNode

_HEAD: Final = STATE_VERSION + encode_state((None,))[:-1]
"""What the value of a record begins with: `[count]` behind it is a list of one entry."""


def running_operator(node: RunningNode, delay_ms: int, states: States) -> StatefulOperator:
    """The operator of a node: this one where it counts rows that are never forgotten, in memory."""
    if node.single and node.ttl_ms is None and type(states) is States:
        aggregate = node.aggregates[0][1]
        if type(aggregate) is Count and aggregate.field is None:
            return RunningCountOperator(node, delay_ms)
    return RunningOperator(node, delay_ms, states)


class RunningCountOperator(StatefulOperator):
    """Counts rows per key. Not thread-safe.

    Args:
        node: What to compute: a single count of rows, without a time to live.
        delay_ms: See `StatefulOperator`; here it does not matter.
    """

    keyed_only = True

    def __init__(self, node: RunningNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        self._slots: dict[object, int] = defaultdict(count().__next__)
        """Slot of each key. A new key takes the next one by being looked up."""
        self._keys: list[object] = []
        self._counts: list[int] = []
        self._changed: set[int] = set()
        """Slots counted up since `changes`."""

    @property
    def live_count(self) -> int:
        """Number of keys."""
        return len(self._counts)

    @property
    def required_level(self) -> int | None:
        """None: nothing waits for time."""
        return None

    @property
    def judges_rows(self) -> bool:
        """No row is late."""
        return False

    def process(self, step: Step) -> dict[str, Chunk]:
        """Count rows; for each the count of its key."""
        chunk: Chunk = step.chunks[0]
        assert chunk.keys is not None
        slots = self._slots_of(chunk.keys)
        self._changed.update(slots)
        counts = self._counts
        values: list[object] = []
        append = values.append
        for slot in slots:
            counts[slot] = value = counts[slot] + 1
            append(value)
        return {MAIN: chunk.with_values(values, int)}

    def _slots_of(self, keys: Sequence[object]) -> list[int]:
        slots = list(map(self._slots.__getitem__, keys))
        new_count = len(self._slots) - len(self._counts)
        if new_count:
            newest = list(islice(reversed(self._slots), new_count))
            self._keys += reversed(newest)
            self._counts += [0] * new_count
        return slots

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """The keys that got rows since the last call."""
        slots = sorted(self._changed)
        self._changed = set()
        return self._entries(
            list(map(self._keys.__getitem__, slots)), list(map(self._counts.__getitem__, slots))
        )

    def sweep(self) -> Iterator[StateRecords]:
        """All keys there are when it begins."""
        end = len(self._keys)
        for start in range(0, end, SWEEP_RECORDS):
            stop = min(start + SWEEP_RECORDS, end)
            yield self._entries(self._keys[start:stop], self._counts[start:stop])

    def _entries(self, keys: Sequence[object], counts: Sequence[int]) -> StateRecords:
        """The records `encode_entries` makes of [key] and [count], in half of the time."""
        return StateRecords(
            list(map(encode_state, zip(keys, strict=True))),
            [_HEAD + value for value in map(encode_state, counts)],
        )

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take the keys from records.

        Raises:
            DataError: Not the state of running aggregates.
        """
        pieces = pieces_of(entries)
        for paths, values in pieces:
            there = [value for value in values if value is not None]
            counts = list(chain.from_iterable(there))
            each_has_one = {1} == {*map(len, paths), *map(len, there)}
            if not each_has_one or len(there) < len(values) or {int} != set(map(type, counts)):
                rest = chain([StatePiece(paths, values)], pieces)
                self._restore_kept(entry for piece in rest for entry in map(StateEntry, *piece))
                return
            self._set(list(chain.from_iterable(paths)), counts)

    def _set(self, keys: Sequence[object], values: Sequence[int]) -> None:
        known_count = len(self._counts)
        slots = self._slots_of(keys)
        if len(self._counts) - known_count == len(keys):
            self._counts[known_count:] = values
            return
        for slot, value in zip(slots, values, strict=True):
            self._counts[slot] = value

    def _restore_kept(self, entries: Iterable[StateEntry]) -> None:
        """The same, where some keys are gone or a record is not ours: as any state is restored."""
        state = KeyedState[int](self.name, RowCodec(self._node.value_type, self._node.label))
        state.take({key: [value] for key, value in zip(self._keys, self._counts, strict=True)})
        state.restore(entries)
        held = state.view(())
        if not {int}.issuperset(map(type, held.values())):
            raise DataError(f"not the state of {self.name!r}: a count that is no number")
        self._slots, self._keys, self._counts = defaultdict(count().__next__), [], []
        self._set(list(held), list(held.values()))
