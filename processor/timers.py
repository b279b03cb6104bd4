"""The timers of a process function: who is to be called when, as a dict that can be restored.

Timers are called in the order of (time, bytes of the key, name). There is one at most for each
time, key and name. State is filed under `["t", clock, time, name, key]`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Set as AbstractSet
from itertools import chain, islice
from typing import Final, TypeAlias

from millstream import DataError

from .key_groups import Wake
from .process import Timer
from .serde import encode_key
from .state import StateEntry, StateRecords, encode_entries, encode_removed
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

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take timers from records in the order they were written.

        Raises:
            DataError: A record is none of a timer.
        """
        alive: dict[Due, StateEntry] = {}
        for entry in entries:
            due = _due_of(entry.path)
            if entry.value is None:
                alive.pop(due, None)
            else:
                alive[due] = entry
        self.take(alive.values())

    # --- groups --------------------------------------------------------------------------------

    def take(self, entries: Iterable[StateEntry]) -> None:
        """Bring in timers that are there.

        Raises:
            DataError: A record is none of a timer.
        """
        for path, value in entries:
            due = _due_of(path)
            match value:
                case [bool() | None as by_row]:
                    self._waiting[due] = by_row
                case _:
                    raise DataError(f"not a timer: {value!r}")
            self._written.add(due)
            if by_row is None:
                self._postponed[due] = None
            else:
                self._enqueue(due)

    def changed(self) -> AbstractSet[object]:
        """The keys of which state has not all as it is, or with a timer for when time moves on."""
        return {key for _, key in chain(self._changed, self._postponed)}

    @property
    def changed_count(self) -> int:
        """Timers that have changed."""
        return len(self._changed)

    def wakes(self, keys: AbstractSet[object]) -> dict[object, Wake]:
        """What those of the keys with timers wait for. Looks at all timers."""
        found: dict[object, list[list[int]]] = {}
        for (timer, key), by_row in self._waiting.items():
            if key in keys:
                event, by_rows, wall = found.setdefault(key, [[], [], []])
                (event if timer.clock == "event" else wall).append(timer.at_ms)
                if by_row and timer.clock == "event":
                    by_rows.append(timer.at_ms)
        return {
            key: Wake(min(event, default=None), max(by_rows, default=None), min(wall, default=None))
            for key, (event, by_rows, wall) in found.items()
        }

    def forget(self, keys: AbstractSet[object]) -> None:
        """Let go of the timers of keys, as state has them. Looks at all timers."""
        for due in [due for due in self._waiting if due[1] in keys]:
            del self._waiting[due]
            self._written.discard(due)
        for queue in self._queues.values():
            queue[:] = [each for each in queue if each[-1] in self._waiting]
            heapq.heapify(queue)


def _due_of(path: tuple[object, ...]) -> Due:
    match path:
        case (_, ("event" | "wall") as clock, int(at_ms), str(name), key):
            return Timer(at_ms, name, clock), key
    raise DataError(f"not a timer: {path!r}")


def _path(due: Due) -> tuple[object, ...]:
    timer, key = due
    return PREFIX, timer.clock, timer.at_ms, timer.name, key
