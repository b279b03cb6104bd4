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

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from itertools import chain, repeat
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from millstream import CacheDatabase

from .keyed_state import Codec, KeyedState
from .serde import INT64_MAX, INT64_MIN, decode_state, encode_state, ordered_keys, restored_key
from .state import StateRecords, decode_content, encode_content, encode_removed
from .stateful import SWEEP_RECORDS

V = TypeVar("V")
U = TypeVar("U")

_ENTRY_BYTES: Final = 300
"""What a key costs in memory beside its own bytes and those of its value, about."""

_OBJECT_FACTOR: Final = 4
"""How much larger Python objects are than their msgpack, about."""

_EXPIRE_ROWS: Final = 5_000
"""Rows taken from the file at a time that are over."""

FIND_KEYS: Final = 500
"""Keys looked up with one statement."""

PLAIN_TYPES: Final = frozenset({str, bytes, int})
"""Types of keys, or of their parts, that have equal bytes where they are equal."""

RESTORE_BYTES: Final = 2 << 20
"""Records of a restart that are written to the file together."""


class Room(Protocol):
    """What the states of a pipeline share."""

    @property
    def full(self) -> bool:
        """Whether no more should change before a commit."""
        ...

    def write(self) -> None:
        """Give the file what `changes` and `take` have given."""
        ...


_Row: TypeAlias = tuple[bytes, bytes | None, bytes, int | None]
"""A row of the file: a key and its state.

The key is msgpack, and equal keys have equal bytes; then comes msgpack of the key as it was put,
where that differs (1.0 is the key 1), the value as in the record of the state topic, and the newest
event time, with a time to live.
"""


class SpillTable:
    """The table of one state.

    Args:
        database: Where it is.
        number: Of the state.
    """

    def __init__(self, database: CacheDatabase, number: int) -> None:
        self._database = database
        table = f"state_{number}"
        # The name is made of a number, so these statements hold nothing from outside.
        self._create = (
            f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, shown BLOB,"
            " value BLOB NOT NULL, time INTEGER) STRICT, WITHOUT ROWID"
        )
        self._index = f"CREATE INDEX IF NOT EXISTS {table}_time ON {table} (time)"
        self._index += " WHERE time IS NOT NULL"
        self._drop = f"DROP TABLE IF EXISTS {table}"
        self._find = f"SELECT key, value FROM {table} WHERE key IN "  # noqa: S608
        self._after = f"SELECT key, shown, value FROM {table} WHERE key > ? ORDER BY key LIMIT ?"  # noqa: S608
        self._over = (
            f"SELECT time, key, shown FROM {table} WHERE (time, key) > (?, ?) AND time <= ?"  # noqa: S608
            " ORDER BY time, key LIMIT ?"
        )
        self._count = f"SELECT count(*) FROM {table}"  # noqa: S608
        self._write = (
            f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (key)"  # noqa: S608
            " DO UPDATE SET value = excluded.value, time = excluded.time"
        )
        self._remove = f"DELETE FROM {table} WHERE key = ?"  # noqa: S608

    def create(self) -> None:
        """Make it, if it is not there; in a transaction."""
        self._database.query(self._create)
        self._database.query(self._index)

    def clear(self) -> None:
        """Make it empty; in a transaction."""
        self._database.query(self._drop)
        self.create()

    def find(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """The values of those of the keys that are there."""
        for start in range(0, len(keys), FIND_KEYS):
            piece = keys[start : start + FIND_KEYS]
            marks = ",".join("?" * len(piece))
            yield from self._database.query(f"{self._find} ({marks})", piece)  # type: ignore[misc]

    def after(self, key: bytes) -> list[tuple[bytes, bytes | None, bytes]]:
        """Some rows behind a key: key, shown, value."""
        return self._database.query(self._after, (key, SWEEP_RECORDS))  # type: ignore[return-value]

    def over(
        self, place: tuple[int, bytes], time: int, limit: int
    ) -> list[tuple[int, bytes, bytes | None]]:
        """Rows behind a place of (time, key) up to a time: time, key, shown."""
        return self._database.query(self._over, (*place, time, limit))  # type: ignore[return-value]

    def count(self) -> int:
        """Number of rows."""
        ((count,),) = self._database.query(self._count)
        assert isinstance(count, int)
        return count

    def write(self, rows: Sequence[_Row], gone: Sequence[bytes]) -> None:
        """Set and remove rows, in a transaction."""
        self._database.execute_many(self._write, rows)
        self._database.execute_many(self._remove, [(key,) for key in gone])


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
        table: SpillTable,
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
        self._pending: dict[object, tuple[bytes, int | None] | None] = {}
        """What the file does not have of what `changes` has given: value and time; None: gone."""
        self._count: int | None = None
        """Keys as of the last `changes`; None: to be counted."""
        self._expired_to = (INT64_MIN, b"")
        """(time, key) of the row up to which the file was looked through for what is over."""
        self._stored_due: int | None = INT64_MIN
        """No row behind that place has an earlier time; None: there is none."""
        self._overdrawn = False
        """Whether more is over than memory has room for before the next `changes`."""
        self._sized = [1, 100]
        """Entries of which the encoded size is known, and their bytes."""

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
        return entry_bytes(*self._sized)

    def turn(self) -> None:
        """Forget the older generation; the younger is the older from here on."""
        values, times = self._values, self._times
        dirty = {key for key in (*self._changed, *self._pending) if key in values}
        rest = values.keys() - dirty
        self._values, self._old = _parted(values, dirty, rest)
        if self.ttl_ms is not None:
            self._times, self._old_times = _parted(times, dirty, rest)
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
        for key in missing - unknown:
            values[key] = old.pop(key)
            if self.ttl_ms is not None:
                self._times[key] = self._old_times.pop(key)
        if unknown:
            self._read(unknown)

    def _read(self, keys: AbstractSet[object]) -> None:
        wanted = dict(zip(stored_keys(keys), keys, strict=True))
        for stored, value in self.table.find(sorted(wanted)):
            key = wanted.pop(stored)
            content = decode_content(value)
            time_ms = self._time_of(key, content)
            self._values[key] = self._codec.unpack(content[0])
            if time_ms is not None:
                self._times[key] = time_ms
            self._sized[0] += 1
            self._sized[1] += len(stored) + len(value)
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
        return super().edit(list(each), default)

    def _note(self, key: object) -> None:
        if key not in self._values:
            self.load((key,))
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
        removed, values = self._gone(), self._values
        present = [key for key in self._changed if key in values]
        records = super().changes()
        self._pending.update(dict.fromkeys(removed))
        times: Iterable[int | None] = [None] * len(present)
        if self.ttl_ms is not None:
            times = map(self._times.__getitem__, present)
        written = records.values[len(removed) :]
        self._pending.update(zip(present, zip(written, times, strict=True), strict=True))  # type: ignore[arg-type]
        self._sized[0] += len(present)
        self._sized[1] += sum(map(len, filter(None, written))) + 8 * len(present)
        return records

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        each = list(zip(encoded_keys(self._pending), self._pending.values(), strict=True))
        rows = [(*key, *packed) for key, packed in each if packed is not None]
        gone = [stored for (stored, _), packed in each if packed is None]
        rows.sort()
        self.table.write(rows, sorted(gone))
        if self.ttl_ms is not None and rows:
            self._look_again(min(time or 0 for *_, time in rows))
        self._pending = {}
        self._waits, self._due, self._due_keys = {}, [], {}
        for key in self._changed:
            if self.ttl_ms is not None and key in self._times:
                self._wait(key, self._times[key] + self.ttl_ms)

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
                    records.values.append(packed[0])
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
        for key, content in contents.items():
            if content is None:
                self._pending[key] = None
            else:
                time_ms = self._time_of(key, content)
                self._pending[key] = encode_content(content), time_ms
        self._count = None
        self._room.write()


def _parted(
    held: Mapping[object, U], some: Iterable[object], others: Iterable[object]
) -> tuple[dict[object, U], dict[object, U]]:
    """What is held of some keys, and of others."""
    return {key: held[key] for key in some}, {key: held[key] for key in others}


def entry_bytes(count: int, size: int) -> int:
    """What an entry costs in memory, about, when `count` of them are `size` bytes of msgpack."""
    return _ENTRY_BYTES + _OBJECT_FACTOR * size // count


def stored_key(key: object) -> bytes:
    """A key as the file has it."""
    if type(key) in PLAIN_TYPES:
        return encode_state(key)
    return encode_state(_plain_key(key))


def stored_keys(keys: Collection[object]) -> list[bytes]:
    """Each key as the file has it."""
    return list(map(encode_state if _are_plain(keys) else stored_key, keys))


def encoded_keys(keys: Collection[object]) -> Iterable[tuple[bytes, bytes | None]]:
    """Each key as the file has it, and as it was put where that differs: 1.0 is the key 1.

    >>> dict(encoded_keys([1.0])) == {encode_state(1): encode_state(1.0)}
    True
    """
    if _are_plain(keys):
        return zip(map(encode_state, keys), repeat(None), strict=False)
    encoded = [(stored_key(key), encode_state(key)) for key in keys]
    return [(stored, None if shown == stored else shown) for stored, shown in encoded]


def _are_plain(keys: Collection[object]) -> bool:
    """Whether equal keys surely have equal bytes, found without looking at each in Python."""
    kinds = set(map(type, keys))
    if kinds == {tuple}:
        kinds = set(map(type, chain.from_iterable(keys)))  # type: ignore[arg-type]  # all are tuples
    return kinds <= PLAIN_TYPES


def _plain_key(key: object) -> object:
    """The one of all equal keys whose bytes stand for it."""
    if isinstance(key, tuple):
        return tuple(map(_plain_key, key))
    if isinstance(key, bool):
        return int(key)
    if isinstance(key, float) and key.is_integer() and INT64_MIN <= key <= INT64_MAX:
        return int(key)
    return key


def shown_key(data: bytes) -> object:
    """A key from its bytes."""
    return restored_key(decode_state(data))
