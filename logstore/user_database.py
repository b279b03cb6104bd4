"""A SQLite database that belongs to the user: read from and written to, beside the store.

For sources and sinks, whose rows are the user's. Tables, journal mode and everything else in it
stay as they were found. Connection, transactions and errors are those of `database.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from .clock import Clock, SystemClock
from .config import path_text
from .database import Database
from .database_errors import DatabaseUse
from .errors import MillstreamError, StoreClosedError, UsageError
from .sql_values import Row, SQLValue, as_int, as_text

USER_DATABASE: Final = DatabaseUse("the database", "there is no database here", ours=False)


@dataclass(frozen=True, slots=True)
class DatabaseColumn:
    """One column of a table, as declared."""

    name: str
    type: str
    """Upper case, such as INTEGER; empty if none was declared."""
    required: bool
    """NOT NULL."""
    key_position: int
    """1 for the first column of the primary key, and so on; 0 for the others."""


class UserDatabase(Database):
    """An open SQLite database of the user's. Thread-safe; see `Database` for errors.

    Every commit is durable (`synchronous=FULL`), and foreign keys are enforced. It is not put into
    WAL mode if it is not.

    Args:
        path: File, created if it is missing unless `read_only`; or a "file:" URI.
        clock: For waiting only.
        read_only: Write nothing.
        on_commit: Called right before each commit, with its kind; for tests.

    >>> with UserDatabase(":memory:") as database:
    ...     with database.transaction("make a table"):
    ...         _ = database.query("CREATE TABLE users (name TEXT PRIMARY KEY, age)")
    ...         database.execute_many("INSERT INTO users VALUES (?, ?)", [("ann", 40)])
    ...     database.query("SELECT * FROM users"), database.unique_keys("users")
    ([('ann', 40)], [('name',)])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        read_only: bool = False,
        on_commit: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            path_text(path),
            clock=clock or SystemClock(),
            read_only=read_only,
            on_commit=on_commit,
            use=USER_DATABASE,
        )

    def query(self, sql: str, bindings: Sequence[SQLValue] = ()) -> list[Row]:
        """Run one statement and return all its rows; see `Database.query`."""
        with self._telling():
            return super().query(sql, bindings)

    def execute_many(self, sql: str, rows: Sequence[Sequence[SQLValue]]) -> None:
        """Run one statement for each of `rows`; see `Database.execute_many`."""
        with self._telling():
            super().execute_many(sql, rows)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What SQL cannot say is the caller's mistake, as a wrong statement is."""
        if self.inherited:
            raise StoreClosedError(
                "the database was opened before a fork: open it again in the child",
                path=self.filename,
            )
        try:
            yield
        except MillstreamError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"the database cannot do this: {error}. A statement is a str without NUL; values"
                " are a list or tuple of str, int of 64 bits, float, bytes or None",
                path=self.filename,
            ) from error

    def columns(self, table: str) -> list[DatabaseColumn]:
        """The columns of a table or view, in order; empty if there is none of that name.

        Generated columns are among them: they can be read.
        """
        rows = self.query('SELECT name, type, "notnull", pk FROM pragma_table_xinfo(?)', (table,))
        return [
            DatabaseColumn(as_text(name), as_text(kind).upper(), bool(required), as_int(position))
            for name, kind, required, position in rows
        ]

    def unique_keys(self, table: str) -> list[tuple[str, ...]]:
        """Names of the columns that make a row of the table unique; the primary key comes first.

        Indexes of expressions and of some rows only do not count.
        """
        keyed = sorted(
            (column.key_position, column.name)
            for column in self.columns(table)
            if column.key_position
        )
        keys = [tuple(name for _, name in keyed)] if keyed else []
        indexes = self.query(
            'SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial ORDER BY seq',
            (table,),
        )
        for (index,) in indexes:
            names = [
                name
                for (name,) in self.query(
                    "SELECT name FROM pragma_index_info(?) ORDER BY seqno", (index,)
                )
            ]
            if None not in names and tuple(names) not in keys:
                keys.append(tuple(map(as_text, names)))
        return keys

    @staticmethod
    def quoted(name: str) -> str:
        """A table or column name as SQL takes it, whatever is in it.

        >>> UserDatabase.quoted('a "b" c')
        '"a ""b"" c"'
        """
        return '"' + name.replace('"', '""') + '"'

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: if the block raises, what it did is undone and nothing else."""
        self.query("SAVEPOINT millstream")
        try:
            yield
        except BaseException:
            # After some errors SQLite has undone the whole transaction and knows no savepoint.
            with contextlib.suppress(MillstreamError):
                self.query("ROLLBACK TO millstream")
                self.query("RELEASE millstream")
            raise
        self.query("RELEASE millstream")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
