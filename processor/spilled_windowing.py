"""Fixed windows that keep in memory the keys in use, and the rest in the SQLite file of state.

The operator is that of windowing.py, over windows that fetch a key before it is used. When there is
too much in memory, every key goes that the file has as it is: what changed since the last commit
stays, as in spilled_state.py. A window that closes comes into memory whole, with its results: it
is the open windows together that may be larger than memory, not the one that closes.

The file is filled from the state topic at each start, because windows end: there is seldom much
of it that a restart still needs. Updates before the final result look through windows as they
go, so windows with them (updating.py) spill by key (spilled_groups.py).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, count
from typing import Any

from millstream import DataError

from .accumulator_codec import AccumulatorCodec
from .aggregating import Aggregates
from .columns import MicroBatch, Rows
from .keyed_state import States
from .nodes import WindowNode
from .serde import encode_state
from .spill_room import RESTORE_BYTES, EntrySizes, Room
from .spill_tables import WindowRow, WindowTable
from .spilled_states import SpilledStates
from .state import (
    StateEntry,
    StateRecords,
    decode_contents,
    encode_content,
    encode_removed,
)
from .stateful import SWEEP_RECORDS
from .stored_keys import encoded_keys, stored_keys
from .updating import UpdatingWindowOperator
from .windowing import Window, WindowOperator


class SpilledWindow(Window):
    """A window of which memory has the keys in use.

    Args:
        aggregates: What it keeps of each key.
        codec: Of that.
        table: Has the others.
        end: Of the window, UTC ms.
    """

    __slots__ = ("_changed", "_codec", "_spilled", "_table", "_total", "name", "pending")

    def __init__(
        self, aggregates: Aggregates, codec: AccumulatorCodec, table: WindowTable, end: int
    ) -> None:
        super().__init__(aggregates)
        self._codec = codec
        self.name = encode_state(end)
        """What the rows of the file are filed under."""
        self.pending: dict[object, bytes | None] = {}
        """Keys with what state has of them and the file has not; None: it is gone."""
        self._table = table
        self._changed: dict[object, None] = {}
        """Keys of `touched` as far as they were looked at."""
        self._spilled = False
        """Whether the file may have keys that memory has not."""
        self._total = 0

    @property
    def key_count(self) -> int:
        """Number of keys, in memory or not."""
        return self._total

    @property
    def held_count(self) -> int:
        """Number of keys in memory."""
        return len(self.slots)

    @property
    def dirty_count(self) -> int:
        """About how many of them the file does not have as they are."""
        if not self.persisted:
            return len(self.slots)
        self._settle()
        return len(self._changed) + len(self.pending)

    def _settle(self) -> None:
        for keys in self.touched:
            self._changed.update(dict.fromkeys(keys))
        self.touched = []

    def slots_of(self, keys: Sequence[object]) -> list[int]:
        """See `Window.slots_of`. Fetches what the file has of the keys."""
        if self._spilled:
            missing = stored_keys(set(keys).difference(self.slots))
            self._hold(*self._table.find(self.name, sorted(missing)))
        before = len(self.slots)
        slots = super().slots_of(keys)
        self._total += len(self.slots) - before
        return slots

    def hold_all(self) -> None:
        """Fetch all keys."""
        if self._spilled:
            for keys, values in self._table.all_of(self.name):
                # Those that memory has changed since are here as they are.
                away = [key not in self.slots for key in keys]
                self._hold(list(compress(keys, away)), list(compress(values, away)))
            self._spilled = False

    def _hold(self, keys: Sequence[object], values: Sequence[bytes]) -> None:
        """Take keys that memory does not have."""
        if not keys:
            return
        contents: Sequence[Sequence[Any]] = decode_contents(values)
        if self._codec.typed:
            contents = list(map(self._codec.unpack, contents))
        # Looking a key up gives it the next slot, which is where its accumulators go.
        for _ in map(self.slots.__getitem__, keys):
            pass
        for column, accumulators in zip(self.columns, zip(*contents, strict=True), strict=True):
            column.extend(accumulators)

    def take_changed(self) -> tuple[list[object], list[tuple[Any, ...]]]:
        """See `Window.take_changed`."""
        if not self.persisted:
            return super().take_changed()
        self._settle()
        changed, self._changed = list(self._changed), {}
        return changed, self.accumulators(changed)

    def forget(self) -> None:
        """Leave to the file what it has as it is."""
        if not self.persisted:
            return
        self._settle()
        busy = self._changed.keys() | self.pending.keys()
        kept = list(filter(busy.__contains__, self.slots))
        if len(kept) == len(self.slots):
            return
        columns = list(zip(*self.accumulators(kept), strict=True)) or [()] * len(self.columns)
        self.slots = defaultdict(count().__next__)
        for key in kept:
            self.slots[key]
        self.columns = list(map(list, columns))
        self._spilled = True

    def restored(self, key: object, value: bytes | None) -> None:
        """Note what state has of a key, for the file; None: it is gone."""
        self.persisted = self._spilled = True
        self.pending[key] = value

    def recount(self) -> int:
        """Count the keys after a restart, when the file has all of them."""
        self._total = self._table.count(self.name)
        return self._total


class SpilledWindowOperator(WindowOperator):
    """Fixed windows that may be larger than memory together. Not thread-safe.

    Args:
        node: What to compute.
        delay_ms: See `WindowOperator`.
        table: Has what memory has no room for.
        room: How much may be kept in memory, with other states.
    """

    def __init__(self, node: WindowNode, delay_ms: int, table: WindowTable, room: Room) -> None:
        super().__init__(node, delay_ms)
        self.table = table
        self._room = room
        self._spilling: dict[int, SpilledWindow] = {}
        """The open windows, as what they are."""
        self._ended: list[bytes] = []
        """Windows that are over, but not gone from the file."""
        self._sizes = EntrySizes()

    # --- windows -------------------------------------------------------------------------------

    def _new_window(self, end: int) -> Window:
        window = self._spilling[end] = SpilledWindow(self._aggregates, self._codec, self.table, end)
        return window

    def _closed(self, end: int, row: int, batch: MicroBatch) -> Rows:
        window = self._spilling.pop(end)
        window.hold_all()
        if window.persisted:
            self._ended.append(window.name)
        return super()._closed(end, row, batch)

    # --- what memory holds ---------------------------------------------------------------------

    @property
    def young_bytes(self) -> int:
        """Memory that the keys in it take, about."""
        count = sum(window.held_count for window in self._spilling.values())
        return count * self._sizes.held_bytes

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        count = sum(window.dirty_count for window in self._spilling.values())
        return count * self._sizes.held_bytes

    def turn(self) -> None:
        """Forget what the file has."""
        for window in self._spilling.values():
            window.forget()

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """See `WindowOperator.changes`. The file gets them when they are committed: see `write`."""
        records = encode_removed((end,) for end in self._closed_persisted)
        self._closed_persisted = []
        for end, window in sorted(self._spilling.items()):
            keys, accumulators = window.take_changed()
            if not keys:
                continue
            filed = self._filed(end, keys, accumulators)
            window.pending.update(zip(keys, filed.values, strict=True))
            size = sum(map(len, filter(None, filed.values))) + 8 * len(keys)
            self._sizes.note(len(keys), size)
            records.extend(filed)
        return records

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        rows: list[WindowRow] = []
        gone: list[tuple[bytes, bytes]] = []
        for window in self._spilling.values():
            keys, values = encoded_keys(window.pending), window.pending.values()
            for (stored, shown), value in zip(keys, values, strict=True):
                if value is None:
                    gone.append((window.name, stored))
                else:
                    rows.append((window.name, stored, shown, value))
            window.pending = {}
        rows.sort()
        self.table.write(self._ended, gone, rows)
        self._ended = []

    def sweep(self) -> Iterator[StateRecords]:
        """See `WindowOperator.sweep`. What changes meanwhile has records of its own already."""
        for end, window in sorted(self._spilling.items()):
            given, known = window.key_list(), set[object]()
            for start in range(0, len(given), SWEEP_RECORDS):
                # What memory has forgotten since is in the file, which comes afterwards.
                piece = [key for key in given[start : start + SWEEP_RECORDS] if key in window.slots]
                if self._spilling.get(end) is window:
                    known.update(piece)
                    yield self._filed(end, piece, window.accumulators(piece))
            for keys, values in self.table.all_of(window.name):
                if self._spilling.get(end) is not window:
                    break
                rows = list(zip(keys, values, strict=True))
                yield self._swept(end, window, known, rows)

    def _swept(
        self, end: int, window: SpilledWindow, known: set[object], rows: list[tuple[object, bytes]]
    ) -> StateRecords:
        """What a sweep gives of rows of the file, but for keys that were given already."""
        held = [key for key, _ in rows if key in window.slots and key not in known]
        records = self._filed(end, held, window.accumulators(held))
        # What memory does not hold, the file has as it is.
        others = [
            (key, value) for key, value in rows if key not in window.slots and key not in known
        ]
        head = encode_state((end, None))[:-1]
        records.keys.extend(head + encode_state(key) for key, _ in others)
        records.values.extend(value for _, value in others)
        return records

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """See `WindowOperator.restore`. The file gets all of it."""
        size = 0
        for path, accumulators in entries:
            match path:
                case (int(end),) if accumulators is None:
                    window = self._spilling.pop(end, None)
                    if window is not None:
                        del self._open[end]
                        self._ended.append(window.name)
                case (int(end), key):
                    value = None
                    if accumulators is not None:
                        value = encode_content(accumulators)
                    self._window(end)
                    self._spilling[end].restored(key, value)
                    size += len(value or b"")
                case _:
                    raise DataError(f"not the state of windows: {path!r}")
            if size >= RESTORE_BYTES:
                self._room.write()
                size = 0
        self._room.write()
        for end, window in list(self._spilling.items()):
            if not window.recount():
                del self._open[end], self._spilling[end]
        self._ends = list(self._open)
        heapq.heapify(self._ends)


def window_operator(node: WindowNode, delay_ms: int, states: States) -> WindowOperator:
    """The operator for a window node: row by row only where rows have something to say."""
    if node.emission.updating:
        return UpdatingWindowOperator(node, delay_ms)  # its groups spill
    if not isinstance(states, SpilledStates):
        return WindowOperator(node, delay_ms)
    table = WindowTable(*states.place(node.name, ("windows",)))
    operator = SpilledWindowOperator(node, delay_ms, table, states)
    states.add(operator)
    return operator
