"""State by key: a dict that knows what changed and, where wanted, how long a value may stay.

Operators that keep something per key (tables, deduplication, process functions) keep it here, so
that how it is held can be changed in one place. It makes the records of `changes` and `sweep` and
takes them back; what a state record is, is said in state.py.

A key's value is filed under `[*prefix, key]` as `[value]`, or as `[value, time]` when it has a
time to live. It is over when event time has reached `time + ttl_ms`, where `time` is the greatest
the value was put with: the wall clock has no say, so that every run forgets at the same row.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from itertools import filterfalse, repeat
from operator import itemgetter
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from millstream import DataError

from .row_codec import PLAIN, RowCodec
from .serde import INT64_MAX, INT64_MIN, ordered_keys
from .state import (
    StateEntry,
    StateRecords,
    encode_entries,
    encode_removed,
    pieces_of,
)
from .stateful import SWEEP_RECORDS
from .stored_keys import as_held

V = TypeVar("V")

_PASSED_OVER: Final = 1_000
"""So many keys may be in the heap that wait no more, and as many as there are that do."""

_Contents: TypeAlias = Mapping[tuple[object, ...], dict[object, list[Any] | None]]
"""By prefix: what state kept of each key; None: it is gone."""


class Codec(Protocol):
    """How values become what state keeps: a `RowCodec`, or one built upon it."""

    def pack(self, rows: Sequence[Any]) -> Sequence[object]:
        """What state keeps of each value; proven to come back as it is."""
        ...

    def unpack(self, packed: object) -> Any:
        """The value from what state kept."""
        ...


class KeyedState(Generic[V]):
    """One value for each key. Not thread-safe.

    Args:
        name: Of the operator, for messages.
        codec: Packs the values; by default they must be plain.
        prefix: What the paths of its records begin with, for operators that keep several things.
        ttl_ms: How long after its newest event time a value stays; None for ever.

    >>> state = KeyedState[int]("orders.count")
    >>> state.put("u1", 1)
    >>> state.get("u1"), state.get("u2"), len(state), len(state.changes().keys)
    (1, None, 1, 1)
    """

    restore_records: int = 1
    """How many records to take at a time in a restart, at least: what was read together is taken
    together."""

    def __init__(
        self,
        name: str,
        codec: Codec = PLAIN,
        *,
        prefix: tuple[object, ...] = (),
        ttl_ms: int | None = None,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.ttl_ms = ttl_ms
        self._codec = codec
        self._values: dict[object, V] = {}
        self._changed: dict[object, None] = {}
        """Keys put or removed since `changes`."""
        self._fresh: set[object] = set()
        """Those of `_changed` that no record is about."""
        self._removed = False
        """Whether some of `_changed` may have no value."""
        self._times: dict[object, int] = {}
        """Newest event time of each key, with a time to live."""
        self._waits: dict[object, int] = {}
        """When to look whether a key is over. Its time may have moved on since."""
        self._due: list[int] = []
        """A heap of the times in `_waits`."""
        self._due_keys: dict[int, list[object]] = {}
        """Who waits for each time in `_due`; those whose entry in `_waits` differs do no more."""
        self._due_count = 0
        """How many keys that has, with those that wait no more."""

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    # --- one key -------------------------------------------------------------------------------

    def get(self, key: object, level: int | None = None) -> V | None:
        """The value of `key`, or None.

        Args:
            key: A grouping key.
            level: Where event time stands for who asks; what is over by then is not given.
        """
        if level is not None and self.ttl_ms is not None:
            time_ms = self._times.get(key)
            if time_ms is not None and time_ms + self.ttl_ms <= level:
                return None
        return self._values.get(key)

    def put(self, key: object, value: V, time_ms: int | None = None) -> None:
        """Set the value of `key`.

        Args:
            key: A grouping key.
            value: Must not be changed afterwards, but by way of `edit`.
            time_ms: Event time of the row that sets it; needed with a time to live.
        """
        if key not in self._changed:
            self._note(key)
        self._values[key] = value
        if self.ttl_ms is not None:
            assert time_ms is not None
            self.stamp(key, time_ms)

    def stamp(self, key: object, time_ms: int) -> None:
        """Let the value of `key`, which is being put or edited, live from `time_ms` on."""
        assert self.ttl_ms is not None
        known = self._times.get(key)
        if known is None or known < time_ms:
            self._times[key] = time_ms
        if known is None:
            self._wait(key, time_ms + self.ttl_ms)
            self._tidy()

    def pop(self, key: object) -> V | None:
        """Remove `key` and return its value, or None when there is none."""
        if key not in self._values:
            return None
        if key not in self._changed:
            self._note(key)
        self._removed = True
        self._times.pop(key, None)
        self._waits.pop(key, None)
        return self._values.pop(key)

    def ordered(self) -> list[object]:
        """The keys in the order of their bytes: the only order that a restart does not change."""
        return ordered_keys(list(self._values))

    # --- many keys -----------------------------------------------------------------------------

    def view(self, keys: Iterable[object]) -> Mapping[object, V]:
        """A mapping that has the values of those of `keys` that have one, for reading now."""
        del keys
        return self._values

    def edit(self, keys: Sequence[object], default: V | None = None) -> dict[object, V]:
        """The same as a dict in which those values may now be set, changed in place or removed.

        For `keys` and no others; not with a time to live.

        Args:
            keys: Of the values; may repeat.
            default: What keys without a value get, unless it is None.
        """
        assert self.ttl_ms is None
        # One pass in C; what has changed before has been looked at before.
        others = dict.fromkeys(filterfalse(self._changed.__contains__, keys))
        new = dict.fromkeys(filterfalse(self._values.__contains__, others))
        self._fresh.update(new)
        self._changed.update(others)
        if default is not None:
            if self._removed:
                new = dict.fromkeys(filterfalse(self._values.__contains__, keys))
            self._values.update(dict.fromkeys(new, default))
        return self._values

    def expire(self, level: int) -> list[object]:
        """Remove the values that are over when W is `level`.

        Returns:
            Their keys, in the order of (time they were over, bytes of the key).
        """
        if not self._due or self._due[0] > level:
            return []
        return self._remove(self._over(level))

    def _remove(self, over: Iterable[tuple[int, list[object]]]) -> list[object]:
        """Remove keys, of each time in the order of their bytes."""
        gone: list[object] = []
        for _, keys in over:
            for key in ordered_keys(keys):
                self.pop(key)
                gone.append(key)
        return gone

    def _over(self, level: int) -> Iterator[tuple[int, list[object]]]:
        """What is over, to be removed: when, and the keys, in the order of time."""
        while self._due and self._due[0] <= level:
            due = heapq.heappop(self._due)
            # A key that was removed and came back waits twice.
            gone: dict[object, None] = {}
            keys = self._due_keys.pop(due)
            self._due_count -= len(keys)
            for key in keys:
                if self._waits.get(key) != due:
                    continue
                ends = self._times[key] + (self.ttl_ms or 0)
                if ends > due:
                    self._wait(key, ends)
                else:
                    gone[key] = None
            yield due, list(gone)

    def _note(self, key: object) -> None:
        self._changed[key] = None
        if key not in self._values:
            self._fresh.add(key)

    def _wait(self, key: object, due: int) -> None:
        self._waits[key] = due
        self._due_count += 1
        waiting = self._due_keys.get(due)
        if waiting is None:
            self._due_keys[due] = [key]
            heapq.heappush(self._due, due)
        else:
            waiting.append(key)

    def _tidy(self) -> None:
        """Clear what nobody waits for, where it is too much.

        Keys that come and go long before they are over would fill it.
        """
        if self._due_count > 2 * len(self._waits) + _PASSED_OVER:
            self._wait_for(self._waits)

    def _wait_for(self, waits: dict[object, int]) -> None:
        """Let these wait, and no others."""
        self._waits, self._due, self._due_keys, self._due_count = {}, [], {}, 0
        for key, due in waits.items():
            self._wait(key, due)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Raises:
            UsageError: A value cannot be kept in state.
        """
        changed, fresh, values = self._changed, self._fresh, self._values
        self._changed, self._fresh, self._removed = {}, set(), False
        if changed.keys() <= values.keys():
            return self._entries(list(changed))
        removed = [key for key in changed if key not in values and key not in fresh]
        records = encode_removed((*self.prefix, key) for key in removed)
        records.extend(self._entries([key for key in changed if key in values]))
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All values, in bounded pieces; see `StatefulOperator.sweep`.

        Raises:
            UsageError: A value cannot be kept in state.
        """
        keys = list(self._values)
        for start in range(0, len(keys), SWEEP_RECORDS):
            piece = keys[start : start + SWEEP_RECORDS]
            yield self._entries([key for key in piece if key in self._values])

    def _entries(self, keys: Sequence[object]) -> StateRecords:
        paths = list(zip(*map(repeat, self.prefix), keys, strict=False))
        packed = self._codec.pack(list(map(self._values.__getitem__, keys)))
        values: list[tuple[object, ...]]
        if self.ttl_ms is None:
            values = list(zip(packed, strict=True))
        else:
            values = list(zip(packed, map(self._times.__getitem__, keys), strict=True))
        return encode_entries(self.name, paths, values, proven=True)

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take the values from records in the order they were written.

        Raises:
            DataError: A record is not one of this state.
        """
        restore_states([self], entries)

    def take(self, contents: Mapping[object, list[Any] | None]) -> None:
        """Take over what state kept of each key; None: it is gone.

        Raises:
            DataError: It is nothing that this state writes.
        """
        for key, content in contents.items():
            self._values.pop(key, None)
            self._times.pop(key, None)
            self._waits.pop(key, None)
            if content is not None:
                time_ms = self._time_of(key, content)
                self._values[key] = self._codec.unpack(content[0])
                if time_ms is not None:
                    self.stamp(key, time_ms)

    # --- groups --------------------------------------------------------------------------------

    @property
    def changed_keys(self) -> KeysView[object]:
        """Keys put or removed since `changes`."""
        return self._changed.keys()

    def records(self, keys: Iterable[object]) -> StateRecords:
        """The values of those of the keys that have one.

        Raises:
            UsageError: A value cannot be kept in state.
        """
        return self._entries(as_held(self._values, keys))

    def over_ms(self, key: object) -> int | None:
        """The W at which to look whether the value of a key is over; None if it never is."""
        return self._waits.get(key)

    def forget(self, keys: Iterable[object]) -> None:
        """Let go of values that have not changed, as state has them."""
        for key in keys:
            self._values.pop(key, None)
            self._times.pop(key, None)
            self._waits.pop(key, None)
        self._tidy()

    def take_columns(self, keys: Sequence[object], contents: Sequence[list[Any]]) -> None:
        """The same where nothing is gone. Errors as `take`."""
        if self.ttl_ms is not None or {1} != set(map(len, contents)):
            self.take(dict(zip(keys, contents, strict=True)))
            return
        self._values.update(zip(keys, self._unpacked(contents), strict=True))

    def _unpacked(self, contents: Iterable[list[Any]]) -> Iterable[V]:
        """The values in what state kept of keys."""
        packed = map(itemgetter(0), contents)
        plain = isinstance(self._codec, RowCodec) and self._codec.plain
        return packed if plain else map(self._codec.unpack, packed)

    def _time_of(self, key: object, content: list[Any]) -> int | None:
        """The event time in what state kept of a key; None without a time to live."""
        if len(content) != (1 if self.ttl_ms is None else 2):
            raise DataError(f"not the state of {self.name!r}: {content!r} for key {key!r}")
        if self.ttl_ms is None:
            return None
        time_ms = content[1]
        if type(time_ms) is not int or not INT64_MIN <= time_ms <= INT64_MAX:
            raise DataError(f"not the state of {self.name!r}: time {time_ms!r}")
        return time_ms


class StateMark(NamedTuple):
    """Where the state of an operator is, as of a checkpoint."""

    identity: str
    """What the operator computes."""
    topic: int
    """Id of its state topic."""
    snapshot_offset: int
    """Where everything alive begins in the topic."""
    end_offset: int | None
    """Behind its last record; None if that is not known."""


class States:
    """Makes the keyed states of a pipeline, and knows of its commits: here, all are in memory.

    A context manager. `SpilledStates` makes others, which keep in memory what is in use.
    """

    def make(
        self,
        name: str,
        codec: Codec = PLAIN,
        *,
        prefix: tuple[object, ...] = (),
        ttl_ms: int | None = None,
    ) -> KeyedState[Any]:
        """A state; see `KeyedState`."""
        return KeyedState(name, codec, prefix=prefix, ttl_ms=ttl_ms)

    @property
    def full(self) -> bool:
        """Whether what has changed must be committed before more changes."""
        return False

    def trim(self) -> None:
        """Forget what memory has too much of; between two steps."""

    @contextmanager
    def restoring(self, name: str, mark: StateMark | None, *, whole: bool) -> Iterator[int]:
        """Restore an operator, within this.

        Args:
            name: Of the operator.
            mark: Where its state is; None: it has none yet.
            whole: Whether all its state is in keyed states made here.

        Yields:
            The offset in the state topic from which on records are needed.
        """
        del name, whole
        yield 0 if mark is None else mark.snapshot_offset

    def forget_others(self) -> None:
        """All operators of the pipeline have been restored."""

    def changing(self) -> None:
        """Changes are about to be taken from the states; they are not committed."""

    def committed(self, marks: Mapping[str, StateMark]) -> None:
        """All changes taken are committed.

        Args:
            marks: Where the state of each operator is with the commit.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of what they are kept in."""


IN_MEMORY: Final = States()


def restore_states(states: Sequence[KeyedState[Any]], entries: Iterable[StateEntry]) -> None:
    """Take the values of several states of one operator from its records.

    Args:
        states: With prefixes of one length, none twice.
        entries: In the order they were written.

    Raises:
        DataError: A record belongs to none of them.
    """
    contents: _Contents = {state.prefix: {} for state in states}
    width, by_prefix = len(states[0].prefix), {state.prefix: state for state in states}
    at_once = rest = states[0].restore_records
    for paths, values in pieces_of(entries):
        state = None
        if {width + 1} == set(map(len, paths)) and None not in values:
            prefix, *others = _prefixes(paths, width)
            state = None if others else by_prefix.get(prefix)
        if state is None:
            _sort_in(states[0].name, contents, paths, values)
        elif at_once == 1:
            there: list[Any] = values
            state.take_columns(list(map(itemgetter(width), paths)), there)
            continue
        else:
            contents[state.prefix].update(zip(map(itemgetter(width), paths), values, strict=True))
        rest -= len(paths)
        if rest <= 0:
            rest = at_once
            _take(states, contents)
    _take(states, contents)


def _prefixes(paths: Sequence[tuple[Any, ...]], width: int) -> set[tuple[Any, ...]]:
    return set(map(itemgetter(slice(0, width)), paths)) if width else {()}


def _sort_in(
    name: str,
    contents: _Contents,
    paths: Sequence[tuple[Any, ...]],
    values: Sequence[list[Any] | None],
) -> None:
    """Entries of several states, or with some that are gone."""
    width = len(next(iter(contents)))
    for path, value in zip(paths, values, strict=True):
        known = contents.get(path[:width])
        if known is None or len(path) != width + 1:
            raise DataError(f"not the state of {name!r}: {path!r}")
        if value is None:
            known.pop(path[width], None)
        known[path[width]] = value


def _take(states: Sequence[KeyedState[Any]], contents: _Contents) -> None:
    for state in states:
        state.take(contents[state.prefix])
        contents[state.prefix].clear()
