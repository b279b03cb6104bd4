"""Any operator of groups with the groups in use in memory, and the others in the file of state.

The operator is the one that runs in memory. Around it, of each key memory has all or nothing.
Before a step come the groups of its rows and those that W, or the wall clock, wakes in it; what a
group waits for is written down when it leaves. When there is too much in memory, the groups go that
were not used lately and that the file has as they are. What changed since the last commit stays,
as in spilled_state.py, and so do its keys until the file has it.

Where many groups wake at once, the step is cut where W reaches them, so that they need not be in
memory together. An operator says whether that would change its results (`divisible`).

The file is filled from the state topic at each start, as that of windows is: groups come and go
with event time, and what they wait for is not among their records.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

from millstream import CacheDatabase

from .columns import Rows, join_rows
from .key_groups import Filed, GroupedOperator, Wake
from .keyed_state import States
from .serde import INT64_MAX, INT64_MIN, encode_state
from .spilled_state import (
    FIND_KEYS,
    PLAIN_TYPES,
    RESTORE_BYTES,
    entry_bytes,
    shown_key,
    stored_key,
    stored_keys,
)
from .spilled_states import SpilledStates
from .state import (
    StateEntry,
    StateRecords,
    decode_content,
    decode_paths,
    encode_content,
    encode_removed,
)
from .stateful import SWEEP_RECORDS, StatefulOperator, Step
from .watermark import Progress

_PAGE_BYTES: Final = 1 << 20
"""About how much of the file is looked through at a time."""

_WOKEN_GROUPS: Final = 1_000
"""About how many groups that wake are brought into memory together, where that is possible."""


class GroupRow(NamedTuple):
    """A row of the file: one path of one group."""

    key: bytes
    """msgpack of the key of the group; equal keys have equal bytes."""
    path: bytes
    """msgpack; equal paths have equal bytes."""
    shown: bytes | None
    """msgpack of the path as state has it, where that differs: 1.0 is the key 1."""
    bucket: bytes | None
    """msgpack of the path that removes it with others."""
    value: bytes
    """As in the record of the state topic."""


class GroupTable:
    """The tables of the groups of one operator: what they hold, and what those away wait for.

    Args:
        database: Where they are.
        number: Of the state.
        wakes_number: Of what groups wait for.
    """

    def __init__(self, database: CacheDatabase, number: int, wakes_number: int) -> None:
        self._database = database
        table, wakes = f"state_{number}", f"state_{wakes_number}"
        # The names are made of numbers, so these statements hold nothing from outside.
        self._create = (
            f"CREATE TABLE IF NOT EXISTS {table} (key BLOB NOT NULL, path BLOB NOT NULL,"
            " shown BLOB, bucket BLOB, value BLOB NOT NULL, PRIMARY KEY (key, path))"
            " STRICT, WITHOUT ROWID",
            f"CREATE INDEX IF NOT EXISTS {table}_bucket ON {table} (bucket)"
            " WHERE bucket IS NOT NULL",
            f"CREATE TABLE IF NOT EXISTS {wakes} (key BLOB PRIMARY KEY, due INTEGER, last INTEGER,"
            " wall INTEGER) STRICT, WITHOUT ROWID",
            f"CREATE INDEX IF NOT EXISTS {wakes}_due ON {wakes} (due) WHERE due IS NOT NULL",
            f"CREATE INDEX IF NOT EXISTS {wakes}_wall ON {wakes} (wall) WHERE wall IS NOT NULL",
        )
        self._drop = (f"DROP TABLE IF EXISTS {table}", f"DROP TABLE IF EXISTS {wakes}")
        every = f"SELECT key, path, shown, bucket, value FROM {table} WHERE "  # noqa: S608
        self._find = f"{every} key IN "
        self._after = f"{every} (key, path) > (?, ?) ORDER BY key, path LIMIT ?"
        self._called = f"SELECT coalesce(shown, path) FROM {table} WHERE key = ? AND path = ?"  # noqa: S608
        self._bucket = f"SELECT key, count(*) FROM {table} WHERE bucket = ? GROUP BY key"  # noqa: S608
        self._end = f"DELETE FROM {table} WHERE bucket = ?"  # noqa: S608
        self._remove = f"DELETE FROM {table} WHERE key = ? AND path = ?"  # noqa: S608
        self._write = (
            f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?) ON CONFLICT (key, path)"  # noqa: S608
            " DO UPDATE SET value = excluded.value"
        )
        self._wake = f"REPLACE INTO {wakes} VALUES (?, ?, ?, ?)"  # noqa: S608
        self._woken = f"DELETE FROM {wakes} WHERE key IN "  # noqa: S608
        self._due = f"SELECT key FROM {wakes} WHERE due <= ?"  # noqa: S608
        self._wall = f"SELECT key FROM {wakes} WHERE wall <= ?"  # noqa: S608
        self._nth = f"SELECT due FROM {wakes} WHERE due IS NOT NULL ORDER BY due LIMIT 1 OFFSET ?"  # noqa: S608
        self._last = f"SELECT max(last) FROM {wakes}"  # noqa: S608
        self._lasts = f"SELECT key FROM {wakes} WHERE last = ?"  # noqa: S608
        self._first_wall = f"SELECT min(wall) FROM {wakes} WHERE wall IS NOT NULL"  # noqa: S608

    def create(self) -> None:
        """Make them, if they are not there; in a transaction."""
        for statement in self._create:
            self._database.query(statement)

    def clear(self) -> None:
        """Make them empty; in a transaction."""
        for statement in self._drop:
            self._database.query(statement)
        self.create()

    # --- what groups hold ----------------------------------------------------------------------

    def find(self, keys: Sequence[bytes]) -> Iterator[GroupRow]:
        """What groups hold."""
        for piece, marks in _marked(keys):
            yield from map(GroupRow._make, self._database.query(f"{self._find} ({marks})", piece))

    def after(self, place: tuple[bytes, bytes], count: int) -> list[GroupRow]:
        """So many rows behind a place of (key, path)."""
        rows = self._database.query(self._after, (*place, count))
        return list(map(GroupRow._make, rows))

    def called(self, key: bytes, path: bytes) -> bytes | None:
        """What state calls a path; None if the file does not have it."""
        rows = self._database.query(self._called, (key, path))
        return rows[0][0] if rows else None  # type: ignore[return-value]

    def of_bucket(self, bucket: bytes) -> list[tuple[bytes, int]]:
        """How many rows of a bucket each group has."""
        return self._database.query(self._bucket, (bucket,))  # type: ignore[return-value]

    def write(
        self,
        ended: Sequence[bytes],
        gone: Sequence[tuple[bytes, bytes]],
        rows: Sequence[GroupRow],
    ) -> None:
        """Remove buckets and (key, path), then set rows; in a transaction."""
        self._database.execute_many(self._end, [(bucket,) for bucket in ended])
        self._database.execute_many(self._remove, gone)
        self._database.execute_many(self._write, rows)

    # --- what those away wait for --------------------------------------------------------------

    def sleep(self, wakes: Sequence[tuple[bytes, int | None, int | None, int | None]]) -> None:
        """Note what groups wait for: key, due, last, wall."""
        with self._database.transaction("note what state waits for"):
            self._database.execute_many(self._wake, wakes)

    def wake(self, keys: Sequence[bytes]) -> None:
        """Groups are in memory, which knows what they wait for."""
        for piece, marks in _marked(keys):
            self._database.query(f"{self._woken} ({marks})", piece)

    def due(self, level: int) -> list[bytes]:
        """The groups that wait for a level up to this."""
        return [key for (key,) in self._database.query(self._due, (_int64(level),))]  # type: ignore[misc]

    def due_by_wall(self, now_ms: int) -> list[bytes]:
        """The groups that wait for the wall clock up to this."""
        return [key for (key,) in self._database.query(self._wall, (_int64(now_ms),))]  # type: ignore[misc]

    def nth_due(self, number: int) -> int | None:
        """The level that so many groups wait for, and one more; None if there are fewer."""
        rows = self._database.query(self._nth, (number,))
        return rows[0][0] if rows else None  # type: ignore[return-value]

    def last(self) -> int | None:
        """The greatest `Wake.last`, as far as int64 goes."""
        return self._database.query(self._last)[0][0]  # type: ignore[return-value]

    def lasting(self, level: int) -> list[bytes]:
        """The groups of which `Wake.last` is that."""
        return [key for (key,) in self._database.query(self._lasts, (level,))]  # type: ignore[misc]

    def first_wall(self) -> int | None:
        """The earliest `Wake.wall_ms`."""
        return self._database.query(self._first_wall)[0][0]  # type: ignore[return-value]


def _marked(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    """Keys in pieces, each with as many question marks."""
    for start in range(0, len(keys), FIND_KEYS):
        piece = keys[start : start + FIND_KEYS]
        yield piece, ",".join("?" * len(piece))


def _int64(level: int) -> int:
    """A level as SQLite can hold it. What lies beyond wakes early, which changes nothing."""
    return max(INT64_MIN, min(INT64_MAX, level))


class SpilledGroups(StatefulOperator):
    """An operator of groups that may be larger than memory together. Not thread-safe.

    Args:
        operator: What runs; with nothing in it.
        table: Has what memory has no room for.
        room: How much may be kept in memory, with other states.
    """

    def __init__(self, operator: GroupedOperator, table: GroupTable, room: SpilledStates) -> None:
        self.operator = operator
        self.name = operator.name
        self.delay_ms = operator.delay_ms
        self.late_count = self.skipped_count = 0
        self.table = table
        self._room = room
        self._young: dict[object, None] = {}
        """Groups in memory that were used since the last turn."""
        self._old: dict[object, None] = {}
        """The others."""
        self._pending: dict[bytes, bytes | None] = {}
        """By path, as the file has it: what state has of it and the file has not; None: gone."""
        self._filed: dict[bytes, Filed] = {}
        """Where each of these belongs."""
        self._shown: dict[bytes, bytes] = {}
        """Those of the paths that state has with other bytes."""
        self._anew: set[bytes] = set()
        """Those that were gone and came back: the file must not go on with the former bytes."""
        self._plain = True
        """Whether equal paths have had equal bytes so far."""
        self._ended: dict[bytes, None] = {}
        """Buckets that are over, but not gone from the file."""
        self._away_count = 0
        """State records of groups that are away."""
        self._asleep = False
        """Whether some of them may wait for something."""
        self._spilled = False
        """Whether the file may have groups that memory has not."""
        self._last: int | None = None
        """The level that ends what those away wait for."""
        self._last_known = True
        self._sized = [1, 100]
        """Entries of which the encoded size is known, and their bytes."""

    @property
    def live_count(self) -> int:
        """See `StatefulOperator`."""
        return self.operator.live_count + self._away_count

    @property
    def held_count(self) -> int:
        """Number of groups in memory."""
        return len(self._young) + len(self._old)

    @property
    def judges_rows(self) -> bool:
        """See `StatefulOperator`."""
        return self.operator.judges_rows

    @property
    def required_level(self) -> int | None:
        """See `StatefulOperator`."""
        away = self._last_away()
        here = self.operator.required_level
        return max((each for each in (away, here) if each is not None), default=None)

    def _last_away(self) -> int | None:
        if not self._asleep:
            return None
        if not self._last_known:
            self._last, self._last_known = self.table.last(), True
        if self._last == INT64_MAX:
            # It may be later: those in memory know.
            self._bring(map(shown_key, self.table.lasting(INT64_MAX)))
            self._last, self._last_known = self.table.last(), True
        return self._last

    @property
    def required_wall_ms(self) -> int | None:
        """See `StatefulOperator`."""
        away = self.table.first_wall() if self._asleep else None
        here = self.operator.required_wall_ms
        return min((each for each in (away, here) if each is not None), default=None)

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> Mapping[str, Rows]:
        """See `StatefulOperator`."""
        found: list[Mapping[str, Rows]] = []
        for piece in self._pieces(step):
            for chunk in piece.chunks:
                self._bring(dict.fromkeys(chunk.keys or ()))
            level = piece.progress.end - self.delay_ms
            if self._asleep:
                woken = self.table.due(level)
                if step.ticked:
                    woken += self.table.due_by_wall(step.now_ms)
                self._bring(map(shown_key, woken))
            found.append(self.operator.process(piece))
            for bucket in self.operator.ended():
                self._end(stored_key(bucket))
        self.late_count = self.operator.late_count
        self.skipped_count = self.operator.skipped_count
        if len(found) == 1:
            return found[0]
        return {port: join_rows([each[port] for each in found]) for port in found[0]}

    def _pieces(self, step: Step) -> Iterator[Step]:
        """The step, cut where W wakes too many groups to have them in memory together."""
        room = self._room.cache_bytes // 8 // entry_bytes(*self._sized)
        count = max(1, min(_WOKEN_GROUPS, room))
        while self._asleep and self.operator.divisible:
            start, _, levels = step.progress
            due = self.table.nth_due(count)
            if due is None:
                break
            level = max(due + self.delay_ms, start + 1)
            if level >= step.progress.end:
                break
            first, step = _cut(step, bisect_left(levels, level), level)
            yield first
            self._room.trim()
        yield step

    def _bring(self, keys: Iterable[object]) -> None:
        """Have groups in memory, as used."""
        young, old = self._young, self._old
        missing = [key for key in keys if key not in young]
        if not missing:
            return
        young.update(dict.fromkeys(missing))
        if old:
            missing = [key for key in missing if old.pop(key, self) is self]
        if missing and self._spilled:
            self._fetch(sorted(set(stored_keys(missing))))

    def _fetch(self, keys: Sequence[bytes]) -> None:
        """Take groups out of the file."""
        rows = [row for row in self.table.find(keys) if row.bucket not in self._ended]
        if rows:
            before = self.operator.live_count
            self.operator.take(_entries(rows))
            self._away_count -= self.operator.live_count - before
        if self._asleep:
            self.table.wake(keys)
            self._last_known = False

    # --- what memory holds ---------------------------------------------------------------------

    @property
    def young_bytes(self) -> int:
        """Memory that the groups used lately take, about."""
        groups = len(self._young)
        records = self.operator.live_count * groups // max(1, self.held_count)
        return max(groups, records) * entry_bytes(*self._sized)

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        count = self.operator.changed_count + len(self._pending)
        return count * entry_bytes(*self._sized)

    def turn(self) -> None:
        """Let go of the groups that were not used lately, where the file has them."""
        busy = self._busy() if self._old else set[object]()
        gone = [key for key in self._old if key not in busy]
        kept = [key for key in self._old if key in busy] if busy else []
        self._old, self._young = self._young, {}
        self._old.update(dict.fromkeys(kept))
        if gone:
            self._forget(gone)

    def _busy(self) -> set[object]:
        """The groups that the file does not have as they are."""
        return self.operator.changed().union(filed.key for filed in self._filed.values())

    def _forget(self, keys: Sequence[object]) -> None:
        self._note_wakes(keys)
        before = self.operator.live_count
        self.operator.forget(keys)
        self._away_count += before - self.operator.live_count
        self._spilled = True

    def _note_wakes(self, keys: Sequence[object]) -> None:
        """Write down what groups wait for that go now."""
        noted = [
            (stored, *_clamped(wake))
            for stored, wake in zip(stored_keys(keys), self.operator.wakes(keys), strict=True)
            if wake is not None
        ]
        if noted:
            self.table.sleep(sorted(noted, key=itemgetter(0)))
            self._asleep, self._last_known = True, False

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """See `StatefulOperator`. The file gets them when they are committed: see `write`."""
        records = self.operator.changes()
        self._keep(records)
        self._size_up(records)
        return records

    def _keep(self, records: StateRecords) -> None:
        """Note what the file has to get."""
        paths, pending, filed = decode_paths(records.keys), self._pending, self._filed
        self._plain &= PLAIN_TYPES.issuperset(map(type, chain.from_iterable(paths)))
        if self._plain:
            pending.update(zip(records.keys, records.values, strict=True))
            new = [pair for pair in zip(records.keys, paths, strict=True) if pair[0] not in filed]
            filed.update({stored: self.operator.filed(path) for stored, path in new})
            return
        for path, shown, value in zip(paths, records.keys, records.values, strict=True):
            stored = stored_key(path)
            # As long as a path is there it is shown as it was first.
            if pending.get(stored) is None:
                self._shown.pop(stored, None)
                if stored != shown:
                    self._shown[stored] = shown
                if stored in pending:
                    self._anew.add(stored)
            pending[stored] = value
            filed[stored] = self.operator.filed(path)

    def _end(self, bucket: bytes) -> None:
        """A bucket is over."""
        if bucket in self._ended:
            return
        self._ended[bucket] = None
        if self._spilled and not self.operator.ends_whole:
            for key, count in self.table.of_bucket(bucket):
                held = shown_key(key)
                if held not in self._young and held not in self._old:
                    self._away_count -= count

    def _waiting(self) -> list[tuple[bytes, Filed, bytes | None]]:
        """What the file has to get, but for what is in buckets that are over."""
        filed, ended = self._filed, self._ended
        waiting = [(path, filed[path], value) for path, value in self._pending.items()]
        if not ended:
            return waiting
        return [
            each
            for each in waiting
            if each[1].bucket is None or stored_key(each[1].bucket) not in ended
        ]

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        rows: list[GroupRow] = []
        gone: list[tuple[bytes, bytes]] = []
        waiting = self._waiting()
        keys = stored_keys([filed.key for _, filed, _ in waiting])
        for key, (path, (_, bucket), value) in zip(keys, waiting, strict=True):
            if value is None or path in self._anew:
                gone.append((key, path))
            if value is not None:
                under = None if bucket is None else stored_key(bucket)
                rows.append(GroupRow(key, path, self._shown.get(path), under, value))
        rows.sort(key=itemgetter(0, 1))
        self.table.write(list(self._ended), sorted(gone), rows)
        self._pending, self._filed, self._shown = {}, {}, {}
        self._ended, self._anew = {}, set()

    def sweep(self) -> Iterator[StateRecords]:
        """See `StatefulOperator`: what was committed last, wherever it is."""
        waiting = [(path, filed.key) for path, filed, value in self._waiting() if value is not None]
        for start in range(0, len(waiting), SWEEP_RECORDS):
            records = encode_removed(())
            for path, key in waiting[start : start + SWEEP_RECORDS]:
                value = self._pending.get(path)
                # What has come into the file since is found there.
                if value is not None:
                    records.keys.append(self._called(path, key))
                    records.values.append(value)
            yield records
        place = b"", b""
        while rows := self.table.after(place, self._page_rows):
            place = rows[-1][:2]
            alive = [row for row in rows if self._is_current(row)]
            keys = [row.shown or row.path for row in alive]
            yield StateRecords(keys, [row.value for row in alive])

    def _called(self, path: bytes, key: object) -> bytes:
        """A path that the file has to get, as state calls it: by the first of equal keys."""
        known = None
        if not self._plain and path not in self._anew:
            known = self.table.called(stored_key(key), path)
        return known or self._shown.get(path, path)

    def _is_current(self, row: GroupRow) -> bool:
        """Whether a row of the file is what was committed last."""
        return row.bucket not in self._ended and row.path not in self._pending

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """See `StatefulOperator`. The file gets all of it."""
        records, size = encode_removed(()), 0
        for path, content in entries:
            if self.operator.bucket_of(path, content) == path:
                self._end(stored_key(path))
            value = None if content is None else encode_content(content)
            records.keys.append(encode_state(path))
            records.values.append(value)
            size += len(records.keys[-1]) + len(value or b"")
            if size >= RESTORE_BYTES:
                self._restored(records)
                records, size = encode_removed(()), 0
        self._restored(records)
        for groups in self._all_groups():
            keys = dict.fromkeys(self.operator.filed(path).key for path, _ in groups)
            self.operator.take(groups)
            # Some may have to stay.
            busy = self.operator.changed()
            self._young.update(dict.fromkeys(key for key in keys if key in busy))
            self._forget([key for key in keys if key not in busy])

    def _restored(self, records: StateRecords) -> None:
        """Let the file have some of what state has."""
        self._keep(records)
        self._size_up(records)
        self._room.write()

    def _size_up(self, records: StateRecords) -> None:
        self._sized[0] += len(records.keys)
        self._sized[1] += sum(map(len, records.keys)) + sum(map(len, filter(None, records.values)))

    @property
    def _page_rows(self) -> int:
        """How many rows of the file to look through at a time."""
        return max(1, min(SWEEP_RECORDS, _PAGE_BYTES * self._sized[0] // self._sized[1]))

    def _all_groups(self) -> Iterator[list[StateEntry]]:
        """What the file has, some whole groups at a time."""
        place = b"", b""
        held: list[GroupRow] = []
        while rows := self.table.after(place, self._page_rows):
            place = rows[-1][:2]
            # The last group may go on in what follows.
            held += rows
            whole = [row for row in held if row.key != place[0]]
            if whole:
                yield _entries(whole)
                held = held[len(whole) :]
        if held:
            yield _entries(held)


def _entries(rows: Sequence[GroupRow]) -> list[StateEntry]:
    paths = decode_paths([row.shown or row.path for row in rows])
    return list(map(StateEntry, paths, [decode_content(row.value) for row in rows]))


def _clamped(wake: Wake) -> tuple[int | None, int | None, int | None]:
    due, last, wall_ms = (None if each is None else _int64(each) for each in wake)
    return due, last, wall_ms


def _cut(step: Step, move: int, level: int) -> tuple[Step, Step]:
    """A step in two: before and after W reaches a level, by its move of that number."""
    start, rows, levels = step.progress
    row = rows[move]
    begun = Progress(start, rows[: move + 1], [*levels[:move], level])
    rest = 0 if level < levels[move] else 1
    ended = Progress(level, rows[move + rest :], levels[move + rest :])
    stops = [bisect_right(chunk.rows, row) for chunk in step.chunks]
    cuts = list(zip(step.chunks, stops, strict=True))
    return (
        step._replace(chunks=[chunk.cut(0, stop) for chunk, stop in cuts], progress=begun),
        step._replace(
            chunks=[chunk.cut(stop, chunk.row_count) for chunk, stop in cuts], progress=ended
        ),
    )


def spilled(operator: StatefulOperator, states: States) -> StatefulOperator:
    """The operator, with its groups where the states are."""
    if not isinstance(states, SpilledStates) or not isinstance(operator, GroupedOperator):
        return operator
    database, number = states.place(operator.name, ("groups",))
    _, wakes_number = states.place(operator.name, ("wakes",))
    made = SpilledGroups(operator, GroupTable(database, number, wakes_number), states)
    states.add(made)
    return made
