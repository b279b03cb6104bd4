"""State by key that keeps in memory what is in use, and the rest in a SQLite file.

The file holds what the state topic says as of a commit, and nothing that is not committed: it is a
cache, and the topic is the truth. Which files are trusted is said in spilled_states.py.

Of a key that has changed since the file was written, memory alone knows: what was put, and that it
is gone. Of others the values looked at lately are in memory in two generations. When the younger
has grown too large, the older is forgotten and the younger becomes the older, without what the
file does not know. So what a step needs is read with one statement, and kept without a list of
who was used when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, TypeVar

from .keyed_state import Codec, KeyedState
from .serde import INT64_MAX, INT64_MIN, encode_state, ordered_keys
from .spill_room import EntrySizes, Room
from .spill_tables import KeyRow, KeyTable
from .state import StateRecords, decode_contents, encode_content, encode_removed
from .stateful import SWEEP_RECORDS
from .stored_keys import are_plain, encoded_keys, shown_key, stored_keys

V = TypeVar("V")
U = TypeVar("U")

_EXPIRE_ROWS: Final = 5_000
"""Rows taken from the file at a time that are over."""


class SpilledState(KeyedState[V]):
    """One value for each key. Not thread-safe; see the module docstring and `KeyedState`.

    Args:
        table: Where what memory has no room for is.
        room: How much may be kept in memory, with other states.
        name: See `KeyedState`, as the others.
        codec: Packs the values.
        prefix: What the paths of its records begin with.
        ttl_ms: How long a value stays.
    """

    restore_records = 20_000

    def __init__(
        self,
        table: KeyTable,
        room: Room,
        name: str,
        codec: Codec,
        *,
        prefix: tuple[object, ...] = (),
        ttl_ms: int | None = None,
    ) -> None:
        super().__init__(name, codec, prefix=prefix, ttl_ms=ttl_ms)
        self.table = table
        self._room = room
        self._head = encode_state((*prefix, None))[:-1]
        """What a path begins with, before the bytes of the key."""
        self._old: dict[object, V] = {}
        """The older generation; the younger is `_values`."""
        self._old_times: dict[object, int] = {}
        self._absent: set[object] = set()
        """Keys that the file does not have."""
        self._pending: dict[object, KeyRow | None] = {}
        """What the file does not have of what `changes` has given, as its rows; None: gone."""
        self._plain = True
        """Whether those of these keys that are equal have had equal bytes."""
        self._count: int | None = None
        """Keys as of the last `changes`; None: to be counted."""
        self._expired_to = (INT64_MIN, b"")
        """(time, key) of the row up to which the file was looked through for what is over."""
        self._stored_due: int | None = INT64_MIN
        """No row behind that place has an earlier time; None: there is none."""
        self._overdrawn = False
        """Whether more is over than memory has room for before the next `changes`."""
        self._sizes = EntrySizes()

    def __len__(self) -> int:
        if self._count is None:
            self._count = self.table.count()
        values, fresh = self._values, self._fresh
        added = sum(map(values.__contains__, fresh))
        return self._count + added - len(self._gone())

    def _gone(self) -> list[object]:
        values, fresh = self._values, self._fresh
        if self._changed.keys() <= values.keys():
            return []
        return [key for key in self._changed if key not in values and key not in fresh]

    def __contains__(self, key: object) -> bool:
        self.load((key,))
        return key in self._values

    # --- what memory holds ---------------------------------------------------------------------

    @property
    def young_bytes(self) -> int:
        """Memory that the younger generation takes, about."""
        return (len(self._values) + len(self._absent)) * self._entry_bytes

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        return (len(self._changed) + len(self._pending)) * self._entry_bytes

    @property
    def _entry_bytes(self) -> int:
        return self._sizes.held_bytes

    def turn(self) -> None:
        """Forget the older generation; the younger is the older from here on."""
        dirty = (self._changed.keys() | self._pending.keys()) & self._values.keys()
        self._values, self._old = _parted(self._values, dirty)
        if self.ttl_ms is not None:
            self._times, self._old_times = _parted(self._times, dirty)
        self._absent = set()

    def load(self, keys: Iterable[object]) -> None:
        """Bring what there is of these keys into the younger generation."""
        values, old = self._values, self._old
        missing = set(keys).difference(values)
        # Each of these looks for the few in the many; with several arguments it would not.
        for known in (self._changed, self._pending, self._absent):
            if not missing:
                return
            missing = missing.difference(known)
        unknown = missing.difference(old)
        if len(unknown) < len(missing):
            held = missing - unknown
            values.update(zip(held, map(old.pop, held), strict=True))
            if self.ttl_ms is not None:
                self._times.update(zip(held, map(self._old_times.pop, held), strict=True))
        if unknown:
            self._read(unknown)

    def _read(self, keys: AbstractSet[object]) -> None:
        wanted = dict(zip(stored_keys(keys), keys, strict=True))
        rows = self.table.find(sorted(wanted))
        if rows:
            stored, packed = zip(*rows, strict=True)
            found = list(map(wanted.pop, stored))
            contents = decode_contents(packed)
            if self.ttl_ms is not None or {1} != set(map(len, contents)):
                for key, content in zip(found, contents, strict=True):
                    self._times[key] = self._time_of(key, content)  # type: ignore[assignment]
            self._values.update(zip(found, self._unpacked(contents), strict=True))
            self._sizes.note(len(rows), sum(map(len, stored)) + sum(map(len, packed)))
        self._absent.update(wanted.values())

    # --- keys ----------------------------------------------------------------------------------

    def get(self, key: object, level: int | None = None) -> V | None:
        """See `KeyedState.get`."""
        if key not in self._values:
            self.load((key,))
        return super().get(key, level)

    def stamp(self, key: object, time_ms: int) -> None:
        """See `KeyedState.stamp`. Of keys that the file has, the file knows when they are over."""
        assert self.ttl_ms is not None
        known = self._times.get(key)
        if known is None or known < time_ms:
            self._times[key] = time_ms
        if key not in self._waits:
            self._wait(key, self._times[key] + self.ttl_ms)

    def pop(self, key: object) -> V | None:
        """See `KeyedState.pop`."""
        if key not in self._values:
            self.load((key,))
        return super().pop(key)

    def ordered(self) -> list[object]:
        """See `KeyedState.ordered`. All of them, in memory."""
        stored, after = list[object](), b""
        while rows := self.table.after(after):
            after = rows[-1][0]
            stored += [shown_key(shown or key) for key, shown, _ in rows]
        known = [key for key in stored if key not in self._pending and key not in self._changed]
        changed = dict.fromkeys([*self._pending, *self._changed])
        return ordered_keys(known + [key for key in changed if key in self._values])

    def view(self, keys: Iterable[object]) -> Mapping[object, V]:
        """See `KeyedState.view`."""
        self.load(keys)
        return self._values

    def edit(self, keys: Sequence[object], default: V | None = None) -> dict[object, V]:
        """See `KeyedState.edit`."""
        each = dict.fromkeys(keys)
        self.load(each)
        values = super().edit(list(each), default)
        if default is not None:
            self._absent.difference_update(each)  # they are here from now on
        return values

    def _note(self, key: object) -> None:
        if key not in self._values:
            self.load((key,))
            self._absent.discard(key)
        super()._note(key)

    # --- time to live --------------------------------------------------------------------------

    def expire(self, level: int) -> list[object]:
        """See `KeyedState.expire`. What makes memory full is left for the next time."""
        if self.ttl_ms is None:
            return []
        over, gone = dict(self._over(level)), list[object]()
        last = level - self.ttl_ms
        while self._stored_due is not None and self._stored_due <= last and not self._overdrawn:
            rows = self.table.over(self._expired_to, last, _EXPIRE_ROWS)
            keys = [(time, shown_key(shown or key)) for time, key, shown in rows]
            keys = [each for each in keys if not self._is_dirty(each[1])]
            self.load(key for _, key in keys)
            for time, key in keys:
                over.setdefault(time + self.ttl_ms, []).append(key)
            if rows:
                self._expired_to = rows[-1][:2]
            gone += self._remove(sorted(over.items()))
            over = {}
            # What is over is given to nobody: it matters to no result when it goes.
            self._overdrawn = len(rows) == _EXPIRE_ROWS and self._room.full
            following = self.table.over(self._expired_to, INT64_MAX, 1)
            self._stored_due = following[0][0] if following else None
        return gone + self._remove(sorted(over.items()))

    def _is_dirty(self, key: object) -> bool:
        return key in self._changed or key in self._pending

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """See `KeyedState.changes`. The file gets them when they are committed: see `write`."""
        self._overdrawn = False
        self._count = len(self)
        removed, present = self._gone(), list(self._changed)
        if not self._changed.keys() <= self._values.keys():
            present = list(filter(self._values.__contains__, present))
        records = super().changes()
        self._pending.update(dict.fromkeys(removed))
        paths, written = records.keys[len(removed) :], records.values[len(removed) :]
        self._pending.update(zip(present, self._rows(present, paths, written), strict=True))
        size = sum(map(len, filter(None, written))) + 8 * len(present)
        self._sizes.note(len(present), size)
        return records

    def _rows(
        self, keys: Sequence[object], paths: Sequence[bytes], values: Sequence[bytes | None]
    ) -> Iterable[KeyRow]:
        """The rows of the file for records of keys."""
        times = repeat(None) if self.ttl_ms is None else map(self._times.__getitem__, keys)
        self._plain &= are_plain(keys)
        if self._plain:
            head = len(self._head)
            stored = [path[head:] for path in paths]
            return zip(stored, repeat(None), values, times, strict=False)  # type: ignore[arg-type]
        # Until it is written a key is shown as it came first.
        first = dict(zip(self._pending, self._pending, strict=True))
        each = encoded_keys([first.get(key, key) for key in keys])
        return [(*key, value, time) for key, value, time in zip(each, values, times, strict=False)]  # type: ignore[misc]

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        rows = list(filter(None, self._pending.values()))
        gone = [key for key, row in self._pending.items() if row is None]
        rows.sort(key=itemgetter(0))
        self.table.write(rows, sorted(stored_keys(gone)))
        if self.ttl_ms is not None and rows:
            self._look_again(min(time or 0 for *_, time in rows))
        self._pending, self._plain = {}, True
        if self.ttl_ms is not None:
            times = self._times
            self._wait_for({key: times[key] + self.ttl_ms for key in self._changed if key in times})

    def _look_again(self, time: int) -> None:
        """The file has got a row of this time."""
        self._expired_to = min(self._expired_to, (time, b""))
        self._stored_due = time if self._stored_due is None else min(self._stored_due, time)

    def sweep(self) -> Iterator[StateRecords]:
        """See `KeyedState.sweep`. What changes meanwhile has records of its own already."""
        waiting = list(self._pending)
        for start in range(0, len(waiting), SWEEP_RECORDS):
            records = encode_removed(())
            for key in waiting[start : start + SWEEP_RECORDS]:
                packed = self._pending.get(key)
                # What has come into the file since is found there.
                if packed is not None:
                    records.keys.append(encode_state((*self.prefix, key)))
                    records.values.append(packed[2])
            yield records
        after = b""
        while rows := self.table.after(after):
            after = rows[-1][0]
            if self._pending:
                rows = [row for row in rows if shown_key(row[0]) not in self._pending]
            yield StateRecords(
                [self._head + (shown or key) for key, shown, _ in rows],
                [value for _, _, value in rows],
            )

    def take(self, contents: Mapping[object, list[Any] | None]) -> None:
        """See `KeyedState.take`. The file gets it at once."""
        present = {key: each for key, each in contents.items() if each is not None}
        self._pending.update(dict.fromkeys(contents.keys() - present.keys()))
        for key, content in zip(encoded_keys(present), present.items(), strict=True):
            time_ms = self._time_of(*content)
            self._pending[content[0]] = *key, encode_content(content[1]), time_ms
        self._count = None
        self._room.write()


def _parted(
    held: dict[object, U], some: AbstractSet[object]
) -> tuple[dict[object, U], dict[object, U]]:
    """What is held of some keys, and of all others. Moves what is less."""
    if 2 * len(some) <= len(held):
        return dict(zip(some, map(held.pop, some), strict=True)), held
    others = held.keys() - some
    return held, dict(zip(others, map(held.pop, others), strict=True))
