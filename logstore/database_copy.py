"""What a catalog holds, taken out of its file: as of one moment, or as far as it can be read.

For backups and repairs; the file is only read.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import cast

import apsw

from .database_errors import CATALOG, typed
from .database_file import READ_WRITE, RESERVED_BYTES, checked_vfs, open_database, open_file
from .errors import UsageError
from .sql_values import Row, as_text


def page_checksums(filename: str) -> bool:
    """Whether the pages of a database in a file have checksums.

    Raises:
        As `Database`.
    """
    with (
        typed(filename, CATALOG),
        closing(open_database(filename, CATALOG, read_only=True)) as connection,
    ):
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return connection.reserve_bytes("main") == RESERVED_BYTES


class Snapshot:
    """The content of a database at one moment, to be copied while others go on writing.

    Args:
        filename: What SQLite opens.

    Raises:
        As `Database`.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        with typed(filename, CATALOG):
            self._connection = open_database(filename, CATALOG, read_only=True)

    def take(self) -> None:
        """This is the moment."""
        with typed(self._filename, CATALOG):
            self._connection.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()

    def copy_to(self, filename: str) -> None:
        """Write it to a new database, durably but for the name of the file."""
        with typed(filename, CATALOG), closing(open_file(filename, CATALOG, READ_WRITE)) as target:
            target.execute("PRAGMA synchronous = FULL; PRAGMA fullfsync = ON")
            with target.backup("main", self._connection, "main") as backup:
                backup.step()
            _add_checksums(target, filename)

    def close(self) -> None:
        """Let go. Idempotent."""
        self._connection.close()


def _add_checksums(connection: apsw.Connection, filename: str) -> None:
    """Give the pages of a copy checksums, if the database had none."""
    if filename.startswith("file:") or checked_vfs() is None:
        return
    if connection.reserve_bytes("main") != RESERVED_BYTES:
        connection.reserve_bytes("main", RESERVED_BYTES)
        # In a WAL the layout of pages cannot change; whoever opens the copy sets it again.
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("VACUUM").fetchall()


def readable_rows(filename: str) -> dict[str, tuple[list[str], list[Row]]]:
    """What can be read of a damaged database: by table, the columns and rows up to the damage.

    Tables are read from both ends, so what one bad page hides is what lies in it. Nothing, if not
    even the list of tables can be read.
    """
    found: dict[str, tuple[list[str], list[Row]]] = {}
    try:
        connection = open_database(filename, CATALOG, read_only=True)
    except (apsw.Error, UsageError):
        return found
    with closing(connection):
        tables = _rows(connection, "SELECT name FROM sqlite_schema WHERE type = 'table'")
        for table in (as_text(row[0]) for row in tables):
            columns = [as_text(row[1]) for row in _rows(connection, f"PRAGMA table_info({table})")]
            names = ", ".join(columns)
            rows = _rows(connection, f"SELECT {names} FROM {table}")  # noqa: S608 - no user's
            order = f"ORDER BY {columns[0]} DESC" if columns else ""
            rows += _rows(connection, f"SELECT {names} FROM {table} {order}")  # noqa: S608
            found[table] = columns, list(dict.fromkeys(rows))
    return found


def _rows(connection: apsw.Connection, sql: str) -> list[Row]:
    """The rows up to the first that cannot be read."""
    rows: list[Row] = []
    with suppress(apsw.Error):
        rows.extend(cast("Row", row) for row in connection.execute(sql))
    return rows
