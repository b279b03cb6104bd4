"""A source of rows of a SQLite table: those added since, in the order of a column that only grows.

The database is the user's and is only read. A row changed or deleted after it was taken in goes
unnoticed: this is for tables that are appended to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from millstream import DataError, UsageError, UserDatabase

from .connectors import OUTSIDE, Outside, Position, Rejected, Source, SourceBatch
from .serde import encode_objects

BATCH_ROWS_MAX: Final = 1024
BATCH_BYTES: Final = 1 << 20
"""Rows read at once: fewer if they are large. SQLite lets others write between two batches."""

ROWID: Final = "rowid"


@dataclass(frozen=True)
class SqliteSource(Source):
    """Rows of a table as JSON objects. BLOBs are base64 text, as JSON has no bytes."""

    name: str
    path: str
    table: str
    by: str
    """A column without nulls and without equal values, or "rowid"."""
    columns: tuple[str, ...] | None
    """None: all of them."""
    follow: bool
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    blocking = False

    def partitions(self) -> Sequence[str]:
        """See `Source`: the table."""
        return [self.table]

    def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
        """See `Source`. A position is the value of the column in the last row.

        Raises:
            UsageError: No such database, table or column; the column may have nulls or equals.
            LockedError: The database stayed locked for 10 s.
            DataError: It is damaged.
        """
        while True:
            # Opened anew: somebody may have replaced the file, or made one in another mode.
            with self.outside.database(self.path, read_only=True) as database:
                columns = self._columns(database, partition)
                statement = self._statement(partition, columns)
                limit = 16
                while rows := self._rows(database, statement, position, limit):
                    position = rows[-1][0]
                    batch = self._batch(rows, columns, position)
                    size_bytes = sum(map(len, filter(None, batch.values)))
                    limit = max(1, limit // 2) if size_bytes > BATCH_BYTES else limit * 2
                    limit = min(limit, BATCH_ROWS_MAX)
                    yield batch
            if not self.follow:
                return
            yield None

    def _columns(self, database: UserDatabase, table: str) -> list[str]:
        known = {column.name: column for column in database.columns(table)}
        if not known:
            raise UsageError(f"there is no table {table!r}", path=self.path)
        columns = list(known if self.columns is None else self.columns)
        missing = [name for name in [*columns, *self._named_column()] if name not in known]
        if missing:
            raise UsageError(
                f"table {table!r} has no columns {missing}; it has {list(known)}", path=self.path
            )
        if self.by == ROWID and ROWID not in known:
            return columns
        column = known[self.by]
        if (self.by,) not in database.unique_keys(table):
            raise UsageError(
                f"column {self.by!r} of {table!r} may hold equal values, and rows would be missed:"
                " make it UNIQUE, or read by rowid",
                path=self.path,
            )
        is_rowid = column.key_position and column.type == "INTEGER"
        if not column.required and not is_rowid:
            raise UsageError(
                f"column {self.by!r} of {table!r} may be null, and rows would be missed:"
                " make it NOT NULL, or read by rowid",
                path=self.path,
            )
        return columns

    def _named_column(self) -> list[str]:
        return [] if self.by == ROWID else [self.by]

    def _statement(self, table: str, columns: Sequence[str]) -> tuple[str, str]:
        """The statement for the beginning, and the one for what follows a value."""
        # SQLite takes a quoted name that is no column for a text; rowid may not be one.
        by = ROWID if self.by == ROWID else UserDatabase.quoted(self.by)
        chosen = ", ".join([by, *map(UserDatabase.quoted, columns)])
        select = f"SELECT {chosen} FROM {UserDatabase.quoted(table)}"  # noqa: S608 - quoted
        order = f"ORDER BY {by} LIMIT ?"
        return f"{select} {order}", f"{select} WHERE {by} > ? {order}"

    def _rows(
        self, database: UserDatabase, statement: tuple[str, str], position: Position, limit: int
    ) -> list[tuple[str | int | float | bytes | None, ...]]:
        first, following = statement
        if position is None:
            return database.query(first, (limit,))
        return database.query(following, (position, limit))

    def _batch(
        self,
        rows: Sequence[tuple[str | int | float | bytes | None, ...]],
        columns: Sequence[str],
        position: Position,
    ) -> SourceBatch:
        by, *fields = zip(*rows, strict=True)
        if None in by:
            raise DataError(f"column {self.by!r} of {self.table!r} is null", path=self.path)
        values = encode_objects(columns, fields)
        infinite = {
            number
            for column in fields
            if float in set(map(type, column))
            for number, field in enumerate(column)
            if isinstance(field, float) and not math.isfinite(field)
        }
        problem = "JSON has no infinite numbers"
        rejected = [
            Rejected(values[number], f"row with {self.by} {by[number]!r}: {problem}")
            for number in sorted(infinite)
        ]
        if infinite:
            values = [value for number, value in enumerate(values) if number not in infinite]
        return SourceBatch(values, position, rejected=rejected, path=self.path)
