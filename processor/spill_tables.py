"""The tables that state spills to, in the SQLite file beside the store, and their statements.

There is one class for each shape that state has: by key, by window and key, and by group and path.
What memory holds beside them, and when they are written, is for their users: spilled_state.py,
spilled_windowing.py, spilled_dedup.py and spilled_groups.py. All of them call keys by the bytes of
stored_keys.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from millstream import CacheDatabase

from .serde import INT64_MAX, INT64_MIN, decode_state
from .stateful import SWEEP_RECORDS
from .stored_keys import shown_keys

FIND_KEYS: Final = 500
"""Keys looked up with one statement."""


class StateTable:
    """What all of them can do. Their names are made of numbers, so no statement needs escapes.

    Args:
        database: Where it is.
        tables: Columns by name; none has an id of its own for rows.
        indexes: Each as "name ON table (column)".
    """

    def __init__(
        self, database: CacheDatabase, tables: Mapping[str, str], indexes: Sequence[str]
    ) -> None:
        self._database = database
        self._tables = tables
        self._indexes = indexes

    def create(self) -> None:
        """Make it, if it is not there; in a transaction."""
        for table, columns in self._tables.items():
            self._database.query(
                f"CREATE TABLE IF NOT EXISTS {table} {columns} STRICT, WITHOUT ROWID"
            )
        for index in self._indexes:
            self._database.query(f"CREATE INDEX IF NOT EXISTS {index}")

    def clear(self) -> None:
        """Make it empty; in a transaction."""
        for table in self._tables:
            self._database.query(f"DROP TABLE IF EXISTS {table}")
        self.create()

    def _of_keys(
        self, statement: str, keys: Sequence[bytes], *first: bytes
    ) -> Iterator[tuple[object, ...]]:
        """What a statement that ends in `key IN` gives, run for some of the keys at a time."""
        for start in range(0, len(keys), FIND_KEYS):
            piece = keys[start : start + FIND_KEYS]
            marks = ",".join("?" * len(piece))
            yield from self._database.query(f"{statement} ({marks})", (*first, *piece))

    def _run(self, statement: str, keys: Sequence[bytes]) -> None:
        """The same for a statement that gives nothing."""
        for _ in self._of_keys(statement, keys):
            pass


KeyRow: TypeAlias = tuple[bytes, bytes | None, bytes, int | None]
"""A row of the file: a key and its state.

The key is msgpack, and equal keys have equal bytes; then comes msgpack of the key as it was put,
where that differs (1.0 is the key 1), the value as in the record of the state topic, and the newest
event time, with a time to live.
"""


class KeyTable(StateTable):
    """The table of one state by key.

    Args:
        database: Where it is.
        number: Of the state.
    """

    def __init__(self, database: CacheDatabase, number: int) -> None:
        table = f"state_{number}"
        super().__init__(
            database,
            {table: "(key BLOB PRIMARY KEY, shown BLOB, value BLOB NOT NULL, time INTEGER)"},
            [f"{table}_time ON {table} (time) WHERE time IS NOT NULL"],
        )
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

    def find(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """The values of those of the keys that are there."""
        return list(self._of_keys(self._find, keys))  # type: ignore[arg-type]

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

    def write(self, rows: Sequence[KeyRow], gone: Sequence[bytes]) -> None:
        """Set and remove rows, in a transaction."""
        self._database.execute_many(self._write, rows)
        self._database.execute_many(self._remove, [(key,) for key in gone])


WindowRow: TypeAlias = tuple[bytes, bytes, bytes | None, bytes]
"""A row of the file: one key of one window.

First comes msgpack of the end of the window, which may be beyond what SQLite has for integers. The
others are as in `KeyRow`: the key, the key as it was first, and the value.
"""

KeyValues: TypeAlias = tuple[list[object], list[bytes]]
"""Keys as they were first, with their values."""


class WindowTable(StateTable):
    """The table of the windows of one operator.

    Args:
        database: Where it is.
        number: Of the state.
        indexes: See `StateTable`.
    """

    def __init__(self, database: CacheDatabase, number: int, indexes: Sequence[str] = ()) -> None:
        table = f"state_{number}"
        super().__init__(
            database,
            {
                table: "(window BLOB NOT NULL, key BLOB NOT NULL, shown BLOB, value BLOB NOT NULL,"
                " PRIMARY KEY (window, key))"
            },
            indexes,
        )
        self._find = f"SELECT key, shown, value FROM {table} WHERE window = ? AND key IN "  # noqa: S608
        self._after = (
            f"SELECT key, shown, value FROM {table} WHERE window = ? AND key > ?"  # noqa: S608
            " ORDER BY key LIMIT ?"
        )
        self._count = f"SELECT count(*) FROM {table} WHERE window = ?"  # noqa: S608
        self._write = (
            f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (window, key)"  # noqa: S608
            " DO UPDATE SET value = excluded.value"
        )
        self._remove = f"DELETE FROM {table} WHERE window = ? AND key = ?"  # noqa: S608
        self._end = f"DELETE FROM {table} WHERE window = ?"  # noqa: S608

    def find(self, window: bytes, keys: Sequence[bytes]) -> KeyValues:
        """Those of the keys that are there."""
        return _key_values(list(self._of_keys(self._find, keys, window)))

    def all_of(self, window: bytes) -> Iterator[KeyValues]:
        """All keys of a window, some at a time."""
        after = b""
        while rows := self._database.query(self._after, (window, after, SWEEP_RECORDS)):
            after = rows[-1][0]  # type: ignore[assignment]
            yield _key_values(rows)

    def count(self, window: bytes) -> int:
        """Number of keys of a window."""
        ((number,),) = self._database.query(self._count, (window,))
        assert isinstance(number, int)
        return number

    def write(
        self, ended: Sequence[bytes], gone: Sequence[tuple[bytes, bytes]], rows: Sequence[WindowRow]
    ) -> None:
        """Remove windows and keys, then set rows; in a transaction."""
        self._database.execute_many(self._end, [(window,) for window in ended])
        self._database.execute_many(self._remove, gone)
        self._database.execute_many(self._write, rows)


def _key_values(rows: Sequence[tuple[Any, ...]]) -> KeyValues:
    return shown_keys([shown or key for key, shown, _ in rows]), [row[2] for row in rows]


class BucketTable(WindowTable):
    """The table of one deduplication: a `WindowTable` of buckets, found by identity, too.

    Args:
        database: Where it is.
        number: Of the state.
    """

    def __init__(self, database: CacheDatabase, number: int) -> None:
        table = f"state_{number}"
        super().__init__(database, number, [f"{table}_key ON {table} (key)"])
        self._anywhere = f"SELECT window, key, shown, value FROM {table} WHERE key IN "  # noqa: S608

    def anywhere(self, keys: Sequence[bytes]) -> tuple[list[int], list[object], list[bytes]]:
        """What buckets have of keys: ends of the buckets, identities as they were first, values."""
        rows: list[tuple[Any, ...]] = list(self._of_keys(self._anywhere, keys))
        ends: dict[bytes, Any] = {end: decode_state(end) for end in {row[0] for row in rows}}
        return [ends[row[0]] for row in rows], *_key_values([row[1:] for row in rows])


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


GroupColumns: TypeAlias = tuple[bytes, bytes, bytes | None, bytes | None, bytes]
"""The same without names, which takes half the time where there are many."""


class GroupTable(StateTable):
    """The tables of the groups of one operator: what they hold, and what those away wait for.

    Args:
        database: Where they are.
        number: Of the state.
        wakes_number: Of what groups wait for.
    """

    def __init__(self, database: CacheDatabase, number: int, wakes_number: int) -> None:
        table, wakes = f"state_{number}", f"state_{wakes_number}"
        super().__init__(
            database,
            {
                table: "(key BLOB NOT NULL, path BLOB NOT NULL, shown BLOB, bucket BLOB,"
                " value BLOB NOT NULL, PRIMARY KEY (key, path))",
                wakes: "(key BLOB PRIMARY KEY, due INTEGER, last INTEGER, wall INTEGER)",
            },
            [
                f"{table}_bucket ON {table} (bucket) WHERE bucket IS NOT NULL",
                f"{wakes}_due ON {wakes} (due) WHERE due IS NOT NULL",
                f"{wakes}_wall ON {wakes} (wall) WHERE wall IS NOT NULL",
            ],
        )
        every = f"SELECT key, path, shown, bucket, value FROM {table} WHERE "  # noqa: S608
        self._find = f"{every} key IN "
        self._after = f"{every} (key, path) > (?, ?) ORDER BY key, path LIMIT ?"
        self._bucket = f"SELECT key, count(*) FROM {table} WHERE bucket = ? GROUP BY key"  # noqa: S608
        self._end = f"DELETE FROM {table} WHERE bucket = ?"  # noqa: S608
        self._remove = f"DELETE FROM {table} WHERE key = ? AND path = ?"  # noqa: S608
        self._write = (
            f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?) ON CONFLICT (key, path)"  # noqa: S608
            " DO UPDATE SET value = excluded.value"
        )
        self._wake = f"REPLACE INTO {wakes} VALUES (?, ?, ?, ?)"  # noqa: S608
        self._clear = f"DELETE FROM {table} WHERE key IN "  # noqa: S608
        self._woken = f"DELETE FROM {wakes} WHERE key IN "  # noqa: S608
        self._due = f"SELECT key FROM {wakes} WHERE due <= ?"  # noqa: S608
        self._wall = f"SELECT key FROM {wakes} WHERE wall <= ?"  # noqa: S608
        self._nth = f"SELECT due FROM {wakes} WHERE due IS NOT NULL ORDER BY due LIMIT 1 OFFSET ?"  # noqa: S608
        self._last = f"SELECT max(last) FROM {wakes}"  # noqa: S608
        self._lasts = f"SELECT key FROM {wakes} WHERE last = ?"  # noqa: S608
        self._first_wall = f"SELECT min(wall) FROM {wakes} WHERE wall IS NOT NULL"  # noqa: S608

    # --- what groups hold ----------------------------------------------------------------------

    def find(self, keys: Sequence[bytes]) -> list[GroupColumns]:
        """What groups hold."""
        return list(self._of_keys(self._find, keys))  # type: ignore[arg-type]

    def after(self, place: tuple[bytes, bytes], count: int) -> list[GroupRow]:
        """So many rows behind a place of (key, path)."""
        rows = self._database.query(self._after, (*place, count))
        return list(map(GroupRow._make, rows))

    def of_bucket(self, bucket: bytes) -> list[tuple[bytes, int]]:
        """How many rows of a bucket each group has."""
        return self._database.query(self._bucket, (bucket,))  # type: ignore[return-value]

    def write(
        self,
        ended: Sequence[bytes],
        gone: Sequence[tuple[bytes, bytes]],
        rows: Sequence[GroupColumns],
    ) -> None:
        """Remove buckets and (key, path), then set rows; in a transaction."""
        self._database.execute_many(self._end, [(bucket,) for bucket in ended])
        self._database.execute_many(self._remove, gone)
        self._database.execute_many(self._write, rows)

    def replace(self, keys: Sequence[bytes], rows: Sequence[GroupColumns]) -> None:
        """Remove what groups held, then set rows; in a transaction."""
        self._run(self._clear, keys)
        self._database.execute_many(self._write, rows)

    # --- what those away wait for --------------------------------------------------------------

    def sleep(self, wakes: Sequence[tuple[bytes, int | None, int | None, int | None]]) -> None:
        """Note what groups wait for, in a transaction: key, due, last, wall."""
        self._database.execute_many(self._wake, wakes)

    def wake(self, keys: Sequence[bytes]) -> None:
        """Groups are in memory, which knows what they wait for; in a transaction."""
        self._run(self._woken, keys)

    def due(self, level: int) -> list[bytes]:
        """The groups that wait for a level up to this."""
        return [key for (key,) in self._database.query(self._due, (as_int64(level),))]  # type: ignore[misc]

    def due_by_wall(self, now_ms: int) -> list[bytes]:
        """The groups that wait for the wall clock up to this."""
        return [key for (key,) in self._database.query(self._wall, (as_int64(now_ms),))]  # type: ignore[misc]

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


def as_int64(level: int) -> int:
    """A level as SQLite can hold it. What lies beyond wakes early, which changes nothing."""
    return max(INT64_MIN, min(INT64_MAX, level))
