"""A sink of rows in a SQLite table: exactly once, into a database of the user's own.

The rows of a delivery and the offset of the outbox behind them are one transaction of that
database. The offset is in its table `millstream_positions`, whose definition is in
docs/log-format.md; so whoever has the rows of an offset has its position too, and none comes twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter, itemgetter
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from millstream import DataError, FencedError, Record, RecordError, UsageError, UserDatabase

from .connectors import (
    OUTSIDE,
    DeliveryKind,
    Outside,
    RefusedRecords,
    Replayed,
    Sink,
    SinkDifference,
)
from .file_formats import all_of, object_of, objects_of
from .serde import INT64_MAX, INT64_MIN, UNDECODABLE, Json, encode_json
from .sqlite_comparison import HeldTable, compare_table

POSITIONS: Final = "millstream_positions"

_CREATE_POSITIONS: Final = (
    "CREATE TABLE IF NOT EXISTS millstream_positions ("
    "outbox TEXT PRIMARY KEY, next_offset INTEGER NOT NULL) WITHOUT ROWID"
)

TableMode: TypeAlias = Literal["append", "upsert"]

SQLField: TypeAlias = str | int | float | None


class _Change(NamedTuple):
    """One record as a statement."""

    sql: str
    bindings: tuple[SQLField, ...]
    offset: int


@dataclass(frozen=True)
class SqliteSink(Sink):
    """Rows of a table."""

    name: str
    path: str
    table: str
    mode: TableMode
    key: tuple[str, ...]
    """In "upsert": the columns that say which row it is."""
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    delivery: DeliveryKind = "transactional"

    def open(self, outbox: str) -> SqliteWriter:
        """See `Sink`. Creates the database and the table of positions if they are missing.

        Raises:
            StorageError: The directory is missing, or the database cannot be written.
            UsageError: The table has no such key.
            DataError: The database is damaged.
        """
        database = self.outside.database(self.path)
        try:
            return SqliteWriter(database, self, outbox)
        except BaseException:
            database.close()
            raise

    def compare(self, outbox: str, replayed: Replayed) -> SinkDifference | None:
        """See `ComparableSink`. Rows of somebody else's in the table are differences, too.

        Raises:
            As `compare_table`.
        """
        try:
            with self.outside.database(self.path, read_only=True) as database:
                filename = database.filename
        except UsageError as error:  # there is none
            return SinkDifference(self.path, "a database", error.message)
        held = HeldTable(
            filename,
            self.path,
            self.table,
            self.key,
            outbox,
            lambda scratch: SqliteWriter(scratch, self, outbox),
            self.condition,
        )
        return compare_table(held, replayed)

    def check(self, records: Sequence[Record]) -> None:
        """See `CheckingSink`. What the table has for columns is not known."""
        all_of(records, self._check)

    def _check(self, record: Record) -> None:
        if record.value is None:
            self.condition(self.deleted_key(record))
        else:
            list(map(_sql_field, self.fields_of(record).values()))

    def fields_of(self, record: Record) -> dict[str, Json]:
        """The fields of the row that a record is, those of the key among them.

        Raises:
            ValueError: It is no such row.
        """
        fields = object_of(record)
        missing = [name for name in self.key if name not in fields]
        if missing:
            raise ValueError(f"there are no fields {missing}, which are the key")
        if None in map(fields.get, self.key):
            raise ValueError(f"a field of the key {list(self.key)} is null")
        return fields

    def deleted_key(self, record: Record) -> bytes:
        """The key of the row that a tombstone deletes.

        Raises:
            ValueError: It deletes none.
        """
        if self.mode == "append":
            raise ValueError("a tombstone is no row")
        if record.key is None:
            raise ValueError("a tombstone without a key")
        return record.key

    def condition(self, key: bytes) -> tuple[str, list[SQLField]]:
        """The condition, with bindings, for the row of a record's key.

        Raises:
            ValueError: The key does not have as many fields.
        """
        conditions = []
        bindings: list[SQLField] = []
        for name, choices in zip(self.key, _key_fields(key, len(self.key)), strict=True):
            marks = ", ".join("?" * len(choices))
            conditions.append(f"{UserDatabase.quoted(name)} IN ({marks})")
            bindings += choices
        return " AND ".join(conditions), bindings


class SqliteWriter:
    """Writes to one table; see `SinkWriter`."""

    def __init__(self, database: UserDatabase, sink: SqliteSink, outbox: str) -> None:
        self._database = database
        self._sink = sink
        self._outbox = outbox
        self._statements: dict[tuple[str, ...], str] = {}
        """By the fields of a row; of this delivery, for the table may be altered in between."""
        with database.transaction("prepare the sink"):
            database.query(_CREATE_POSITIONS)
        self._check_key()

    def _check_key(self) -> None:
        sink, keys = self._sink, self._database.unique_keys(self._sink.table)
        if (
            sink.mode == "upsert"
            and self._database.columns(sink.table)
            and not any(set(key) == set(sink.key) for key in keys)
        ):
            raise UsageError(
                f"table {sink.table!r} has no unique key {list(sink.key)}; it has"
                f" {[list(key) for key in keys]}: add one with CREATE UNIQUE INDEX",
                path=self._database.filename,
            )

    def position(self) -> int | None:
        """See `SinkWriter`."""
        rows = self._database.query(
            "SELECT next_offset FROM millstream_positions WHERE outbox = ?", (self._outbox,)
        )
        if not rows:
            return None
        (offset,) = rows[0]
        if not isinstance(offset, int) or offset < 0:
            raise DataError(
                f"{POSITIONS} has {offset!r} for {self._outbox}", path=self._database.filename
            )
        return offset

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        """See `SinkWriter`. Creates the table for the first records if it is missing.

        Raises:
            FencedError: Another process has delivered in between.
        """
        database = self._database
        with database.transaction("deliver rows"):
            position = self.position() or 0
            if position == following:
                return  # a commit that seemed to fail
            if position != first:
                raise FencedError(
                    f"{self._outbox} has been delivered up to {position}, not {first}: by another"
                    " process, or into another copy of the database",
                    path=database.filename,
                )
            if records and not self._run_alike(records):
                self._run(self._changes(records))
            database.query(
                "INSERT INTO millstream_positions VALUES (?, ?) ON CONFLICT (outbox)"
                " DO UPDATE SET next_offset = excluded.next_offset",
                (self._outbox, following),
            )

    def close(self) -> None:
        """See `SinkWriter`."""
        self._database.close()

    # --- records as statements -----------------------------------------------------------------

    def _run_alike(self, records: Sequence[Record]) -> bool:
        """Write rows that all have the same fields with simple values, in one pass over them.

        False: nothing was written, for some are not such rows, or the database refuses some.
        """
        objects = objects_of(records)
        columns = [column.name for column in self._database.columns(self._sink.table)]
        if objects is None or not columns:
            return False
        (names, *others) = set(map(tuple, objects))
        if others or not names or not set(self._sink.key) <= set(names):
            return False
        rows = list(map(tuple, map(dict.values, objects)))
        plain = set(map(type, chain.from_iterable(rows))) <= _SIMPLE
        keys = [list(map(itemgetter(name), objects)) for name in self._sink.key]
        if not plain or any(None in each for each in keys):
            return False
        try:
            with self._database.savepoint():
                self._database.execute_many(self._insertion(names, columns), rows)
        except (RecordError, ValueError, OverflowError):
            return False  # to be looked at one by one
        return True

    def _changes(self, records: Sequence[Record]) -> list[_Change]:
        """All records as statements.

        Raises:
            RefusedRecords: Some are no rows of the table.
        """
        self._statements.clear()
        columns = [column.name for column in self._database.columns(self._sink.table)]

        def change(record: Record) -> _Change:
            nonlocal columns
            if record.value is None:
                return self._deletion(record)
            fields = self._sink.fields_of(record)
            if not columns:
                self._create_table(fields)
                columns = list(fields)
            names = tuple(fields)
            sql = self._statements.get(names)
            if sql is None:
                sql = self._statements[names] = self._insertion(names, columns)
            return _Change(sql, tuple(map(_sql_field, fields.values())), record.offset)

        return all_of(records, change)

    def _create_table(self, fields: Mapping[str, Json]) -> None:
        """A table with these columns. Without types, so that every value is kept as it is."""
        sink = self._sink
        if not fields:
            raise ValueError("there are no fields")
        parts = list(map(UserDatabase.quoted, fields))
        if sink.mode == "upsert":
            parts.append(f"PRIMARY KEY ({_names(sink.key)})")
        self._database.query(f"CREATE TABLE {UserDatabase.quoted(sink.table)} ({', '.join(parts)})")

    def _insertion(self, names: Sequence[str], columns: Sequence[str]) -> str:
        sink = self._sink
        unknown = [name for name in names if name not in columns]
        if unknown:
            raise ValueError(f"table {sink.table!r} has no columns {unknown}; it has {columns}")
        table = UserDatabase.quoted(sink.table)
        if not names:
            return f"INSERT INTO {table} DEFAULT VALUES"
        marks = ", ".join("?" * len(names))
        insert = f"INSERT INTO {table} ({_names(names)}) VALUES ({marks})"  # noqa: S608 - quoted
        if sink.mode == "append":
            return insert
        others = [UserDatabase.quoted(name) for name in names if name not in sink.key]
        action = ", ".join(f"{name} = excluded.{name}" for name in others)
        action = f"UPDATE SET {action}" if others else "NOTHING"
        return f"{insert} ON CONFLICT ({_names(sink.key)}) DO {action}"

    def _deletion(self, record: Record) -> _Change:
        """The row of a key is gone: its record is a tombstone."""
        sink = self._sink
        where, bindings = sink.condition(sink.deleted_key(record))
        table = UserDatabase.quoted(sink.table)
        return _Change(f"DELETE FROM {table} WHERE {where}", tuple(bindings), record.offset)  # noqa: S608 - quoted

    def _run(self, changes: Sequence[_Change]) -> None:
        """Run statements, equal ones next to each other at once.

        Raises:
            RefusedRecords: The database takes some of the rows not.
        """
        database = self._database
        try:
            with database.savepoint():
                for sql, group in groupby(changes, key=attrgetter("sql")):
                    database.execute_many(sql, [change.bindings for change in group])
        except RecordError:
            pass
        else:
            return
        # Once more one by one, to find out which.
        refused: dict[int, str] = {}
        for change in changes:
            try:
                with database.savepoint():
                    database.query(change.sql, change.bindings)
            except RecordError as error:
                refused[change.offset] = error.message
        raise RefusedRecords(refused)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(UserDatabase.quoted, names))


_SIMPLE: Final = frozenset({str, int, float, type(None)})
_PLAIN: Final = frozenset({str, float, type(None)})


def _sql_field(value: Json) -> SQLField:
    if type(value) in _PLAIN:
        return value  # type: ignore[no-any-return]  # one of SQLField
    if isinstance(value, int):  # True and False are 1 and 0 there
        if not INT64_MIN <= value <= INT64_MAX:
            raise ValueError(f"{value} does not fit into the 64 bits of an integer")
        return int(value)
    return encode_json(value).decode()


def _key_fields(key: bytes, count: int) -> list[list[SQLField]]:
    """What the fields of a key may be, from the key of a record.

    A single key is written as it is or as JSON: both are possible. Several are a JSON array.
    """
    try:
        parsed = msgspec.json.decode(key)
    except UNDECODABLE:
        parsed = None
    if count == 1:
        choices: list[SQLField] = [key.decode()]
        if isinstance(parsed, int | float):
            choices.append(_sql_field(parsed))
        return [choices]
    if not isinstance(parsed, list) or len(parsed) != count:
        raise ValueError(f"the key {key!r} does not have {count} fields")
    return [[_sql_field(part)] for part in parsed]
