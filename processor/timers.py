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

_PASSED_OVER: Final = 1_000
"""So many may be in a queue that nobody waits for, and as many as there are timers."""

Due: TypeAlias = tuple[Timer, object]
"""A timer and its key."""

_Queued: TypeAlias = tuple[int, bytes, str, str, Due]
"""The order in which it is called: time, bytes of the key, type of the key, name."""


class Timers:
    """Timers of all keys. Not thread-safe.

    Args:
        name: Of the operator, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[Due, bool | None] = {}
        """For each timer whether a row set it, not another timer; None while it is postponed."""
        self._of_key: dict[object, dict[Due, None]] | None = None
        """The same by key. None until keys leave: where none do, nobody asks for it."""
        self._postponed: dict[str, dict[Due, None]] = {"event": {}, "wall": {}}
        """By clock."""
        self._queues: dict[str, list[_Queued]] = {"event": [], "wall": []}
        """Heaps; those that are not in `_waiting` any more are passed over."""
        self._last_by_row: int | None = None
        """See `last_by_row_ms`, if that is known."""
        self._last_known = True
        self._changed: dict[Due, None] = {}
        self._written: set[Due] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def set(self, timer: Timer, key: object, *, by_row: bool) -> None:
        """Add a timer, unless it is there."""
        due = timer, key
        if due not in self._waiting:
            self._add(due, by_row)
            self._changed[due] = None
            self._enqueue(due)

    def postpone(self, timer: Timer, key: object) -> None:
        """Add a timer that is not due before `release`, whatever its time, unless it is there."""
        due = timer, key
        if due not in self._waiting:
            self._add(due, None)
            self._changed[due] = None

    def release(self, clock: str) -> None:
        """Time has moved on: postponed timers are timers like all others from now on."""
        if self._postponed[clock]:
            released, self._postponed[clock] = self._postponed[clock], {}
            for due in released:
                self._waiting[due] = False
                self._changed[due] = None
                self._enqueue(due)

    def cancel(self, timer: Timer, key: object) -> None:
        """Remove a timer, if it is there."""
        due = timer, key
        if due in self._waiting:
            self._drop(due)
            self._changed[due] = None
            self._tidy(timer.clock)

    def pop_due(self, clock: str, until_ms: int) -> Due | None:
        """Remove the first timer that is due, if there is one."""
        queue = self._queues[clock]
        while queue and queue[0][0] <= until_ms:
            due = heapq.heappop(queue)[-1]
            if self._waiting.get(due) is not None:
                self._drop(due)
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
        if not self._last_known:
            times = (
                timer.at_ms
                for (timer, _), by_row in self._waiting.items()
                if by_row and timer.clock == "event"
            )
            self._last_by_row, self._last_known = max(times, default=None), True
        return self._last_by_row

    def _add(self, due: Due, by_row: bool | None) -> None:
        """A timer waits that did not."""
        self._waiting[due] = by_row
        timer, key = due
        if by_row:
            last = self._last_by_row
            if (last is None or timer.at_ms > last) and timer.clock == "event":
                self._last_by_row = timer.at_ms
        elif by_row is None:
            self._postponed[timer.clock][due] = None
        if self._of_key is not None:
            self._of_key.setdefault(key, {})[due] = None

    def _drop(self, due: Due) -> None:
        """A timer waits no more."""
        timer, key = due
        if self._waiting.pop(due) is None:
            del self._postponed[timer.clock][due]
        if timer.at_ms == self._last_by_row:
            self._last_known = False
        if self._of_key is not None:
            timers = self._of_key[key]
            del timers[due]
            if not timers:
                del self._of_key[key]

    def _enqueue(self, due: Due) -> None:
        timer, key = due
        order = timer.at_ms, encode_key(key), type(key).__name__, timer.name
        heapq.heappush(self._queues[timer.clock], (*order, due))

    def _tidy(self, clock: str) -> None:
        """Clear a queue, where too much of it waits no more.

        A timer far ahead that is set and taken back at every row would fill it.
        """
        queue = self._queues[clock]
        if len(queue) > 2 * len(self._waiting) + _PASSED_OVER:
            alive = {each[-1]: each for each in queue if self._waiting.get(each[-1]) is not None}
            queue[:] = alive.values()
            heapq.heapify(queue)

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
                    self._add(due, by_row)
                case _:
                    raise DataError(f"not a timer: {value!r}")
            self._written.add(due)
            if by_row is not None:
                self._enqueue(due)

    def records(self, keys: Iterable[object]) -> StateRecords:
        """The timers of keys."""
        of_key = self._by_key()
        return self._entries(list(chain.from_iterable(of_key.get(key, ()) for key in keys)))

    def changed(self) -> AbstractSet[object]:
        """The keys of which state has not all as it is, or with a timer for when time moves on."""
        return {key for _, key in chain(self._changed, *self._postponed.values())}

    @property
    def changed_count(self) -> int:
        """Timers that have changed."""
        return len(self._changed)

    def wakes(self, keys: AbstractSet[object]) -> dict[object, Wake]:
        """What those of the keys with timers wait for."""
        found: dict[object, Wake] = {}
        of_key, waiting = self._by_key(), self._waiting
        for key in keys:
            due: int | None = None
            last: int | None = None
            wall: int | None = None
            for each in of_key.get(key, ()):
                at_ms, _, clock = each[0]
                if clock == "wall":
                    wall = at_ms if wall is None or at_ms < wall else wall
                    continue
                due = at_ms if due is None or at_ms < due else due
                if waiting[each] and (last is None or at_ms > last):
                    last = at_ms
            if due is not None or wall is not None:
                found[key] = Wake(due, last, wall)
        return found

    def forget(self, keys: AbstractSet[object]) -> None:
        """Let go of the timers of keys, as state has them. None of those is postponed."""
        of_key, waiting, written = self._by_key(), self._waiting, self._written
        for key in keys:
            for due in of_key.pop(key, ()):
                del waiting[due]
                written.discard(due)
                if due[0].at_ms == self._last_by_row:
                    self._last_known = False
        for clock in self._queues:
            self._tidy(clock)

    def _by_key(self) -> dict[object, dict[Due, None]]:
        """The timers of each key that has any. Looks at all timers the first time."""
        if self._of_key is None:
            self._of_key = {}
            for due in self._waiting:
                self._of_key.setdefault(due[1], {})[due] = None
        return self._of_key


def _due_of(path: tuple[object, ...]) -> Due:
    match path:
        case (_, ("event" | "wall") as clock, int(at_ms), str(name), key):
            return Timer(at_ms, name, clock), key
    raise DataError(f"not a timer: {path!r}")


def _path(due: Due) -> tuple[object, ...]:
    timer, key = due
    return PREFIX, timer.clock, timer.at_ms, timer.name, key
