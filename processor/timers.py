"""The timers of a process function: who is to be called when, as a dict that can be restored.

Timers are called in the order of (time, bytes of the key, name). There is one at most for each
time, key and name. State is filed under `["t", clock, time, name, key]`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from millstream import DataError

from .process import Timer
from .serde import encode_key
from .state import StateRecords, encode_entries, encode_removed
from .stateful import SWEEP_RECORDS

PREFIX: Final = "t"

Due: TypeAlias = tuple[Timer, object]
"""A timer and its key."""


class Timers:
    """Timers of all keys. Not thread-safe.

    Args:
        name: Of the operator, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[Due, bool | None] = {}
        """For each timer whether a row set it, not another timer; None while it is postponed."""
        self._postponed: dict[Due, None] = {}
        self._queues: dict[str, list[tuple[int, bytes, str, str, Due]]] = {"event": [], "wall": []}
        """Heaps; those that are not in `_waiting` any more are passed over."""
        self._changed: dict[Due, None] = {}
        self._written: set[Due] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def set(self, timer: Timer, key: object, *, by_row: bool) -> None:
        """Add a timer, unless it is there."""
        due = timer, key
        if due not in self._waiting:
            self._waiting[due] = by_row
            self._changed[due] = None
            self._enqueue(due)

    def postpone(self, timer: Timer, key: object) -> None:
        """Add a timer that is not due before `release`, whatever its time, unless it is there."""
        due = timer, key
        if due not in self._waiting:
            self._waiting[due] = None
            self._postponed[due] = None
            self._changed[due] = None

    def release(self, clock: str) -> None:
        """Time has moved on: postponed timers are timers like all others from now on."""
        if self._postponed:
            for due in [due for due in self._postponed if due[0].clock == clock]:
                del self._postponed[due]
                if due in self._waiting:
                    self._waiting[due] = False
                    self._changed[due] = None
                    self._enqueue(due)

    def cancel(self, timer: Timer, key: object) -> None:
        """Remove a timer, if it is there."""
        due = timer, key
        if due in self._waiting:
            del self._waiting[due]
            self._postponed.pop(due, None)
            self._changed[due] = None

    def pop_due(self, clock: str, until_ms: int) -> Due | None:
        """Remove the first timer that is due, if there is one."""
        queue = self._queues[clock]
        while queue and queue[0][0] <= until_ms:
            due = heapq.heappop(queue)[-1]
            if self._waiting.get(due) is not None:
                del self._waiting[due]
                self._changed[due] = None
                return due
        return None

    def first_ms(self, clock: str) -> int | None:
        """The time of the first timer; None when there is none."""
        queue = self._queues[clock]
        while queue and self._waiting.get(queue[0][-1]) is None:
            heapq.heappop(queue)
        return queue[0][0] if queue else None

    def last_by_row_ms(self) -> int | None:
        """The latest event time a row asked for; None when there is none.

        What timers ask for does not count: one that always sets itself again would never end.
        """
        times = (
            timer.at_ms
            for (timer, _), by_row in self._waiting.items()
            if by_row and timer.clock == "event"
        )
        return max(times, default=None)

    def _enqueue(self, due: Due) -> None:
        timer, key = due
        order = timer.at_ms, encode_key(key), type(key).__name__, timer.name
        heapq.heappush(self._queues[timer.clock], (*order, due))

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written."""
        gone = [due for due in self._changed if due not in self._waiting and due in self._written]
        there = [due for due in self._changed if due in self._waiting]
        records = encode_removed(map(_path, gone))
        records.extend(self._entries(there))
        self._written.difference_update(gone)
        self._written.update(there)
        self._changed = {}
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All timers that are waiting now, as long as they are."""
        waiting = iter(list(self._waiting))
        while piece := list(islice(waiting, SWEEP_RECORDS)):
            yield self._entries([due for due in piece if due in self._waiting])

    def _entries(self, timers: list[Due]) -> StateRecords:
        values = [(self._waiting[due],) for due in timers]
        return encode_entries(self._name, list(map(_path, timers)), values)

    def restore(self, entries: Iterable[tuple[tuple[object, ...], list[object] | None]]) -> None:
        """Take timers from records in the order they were written.

        Raises:
            DataError: A record is none of a timer.
        """
        for path, value in entries:
            match path:
                case (_, ("event" | "wall") as clock, int(at_ms), str(name), key):
                    due = Timer(at_ms, name, clock), key
                case _:
                    raise DataError(f"not a timer: {path!r}")
            match value:
                case None:
                    self._waiting.pop(due, None)
                case [bool() | None as by_row]:
                    self._waiting[due] = by_row
                case _:
                    raise DataError(f"not a timer: {value!r}")
        for due, by_row in self._waiting.items():
            if by_row is None:
                self._postponed[due] = None
            else:
                self._enqueue(due)
        self._written = set(self._waiting)


def _path(due: Due) -> tuple[object, ...]:
    timer, key = due
    return PREFIX, timer.clock, timer.at_ms, timer.name, key
