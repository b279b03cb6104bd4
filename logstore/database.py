"""One SQLite database: its connection, its transactions, and its errors as ours.

How it is opened is in `database_file.py`, and which error means what in `database_errors.py`. What
the tables of the catalog mean is in `catalog.py` and `group_catalog.py`; a database that belongs to
the user is opened by `user_database.py`, one that can be made again at any time by
`cache_database.py`.

A write is one `BEGIN IMMEDIATE` transaction with synchronous=FULL: when the block ends its changes
are durable, and when it raises nothing has changed. One that says so is not synced: a process that
dies loses nothing of it, a machine that dies may lose it and all such transactions after it, up to
the next one that is synced. Thread-safe: one connection behind one lock.
Not fork-safe: the engine refuses to be used in a child process; see `inherited.py`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NoReturn, cast

import apsw

from .clock import Clock
from .database_errors import CATALOG, DatabaseUse, typed_error
from .database_file import connect
from .database_transaction import DatabaseTransaction, Turns
from .errors import MillstreamError, UsageError
from .inherited import is_inherited, watch
from .sql_values import Row, SQLValue

_logger = logging.getLogger("millstream")


def sqlite_version() -> str:
    """Of the library in use."""
    return apsw.sqlite_lib_version()


class Database:
    """An open SQLite database; see the module docstring.

    Args:
        filename: What SQLite opens: a path, or a "file:" URI.
        clock: For waiting only.
        read_only: Open what exists, write nothing.
        on_commit: Called with "catalog.commit" right before each COMMIT that is synced, and with
            "catalog.unsynced" before each transaction that is not; crash tests hook in here.
        use: Whose it is.

    Raises:
        UsageError: `read_only` and there is no such file.
        DataError: The file is damaged or not SQLite.
        StorageError: The operating system refused.
        LockedError: Another process kept the database locked for 10 s.
    """

    def __init__(
        self,
        filename: str,
        *,
        clock: Clock,
        read_only: bool = False,
        on_commit: Callable[[str], None] | None = None,
        use: DatabaseUse = CATALOG,
    ) -> None:
        self.filename = filename
        self.read_only = read_only
        self._use = use
        self._on_commit = on_commit
        self._lock = threading.RLock()
        self._turns = Turns(self._lock, self._begin, self._commit, self.roll_back)
        self._unsynced = False
        """Whether a transaction of this connection was not synced, nor any since."""
        self._syncing = True
        """Whether the connection is set to sync its commits, as it is opened."""
        self._connection = connect(filename, clock, use, read_only=read_only)
        watch(self._connection)

    def close(self) -> None:
        """Close the connection. Idempotent; in the child of a fork it is left to the parent."""
        if self.inherited:
            return
        with self._lock:
            self._connection.close()

    def query(self, sql: str, bindings: Sequence[SQLValue] = ()) -> list[Row]:
        """Run one statement and return all its rows.

        Raises:
            LockedError: The database stayed locked for 10 s.
            StorageError: Disk full, read-only, I/O.
            DataError: The database is damaged.
            RecordError: In a database of the user's: a row does not keep to a constraint.
            UsageError: In a database of the user's: the statement is wrong.
        """
        with self._lock:
            try:
                # SQLite has no more types than SQLValue.
                return cast("list[Row]", self._connection.execute(sql, bindings).fetchall())
            except apsw.Error as error:
                self._fail(error)

    def execute_many(self, sql: str, rows: Sequence[Sequence[SQLValue]]) -> None:
        """Run one statement for each of `rows`; call it inside a transaction. Errors as `query`."""
        with self._lock:
            try:
                self._connection.executemany(sql, rows)
            except apsw.Error as error:
                self._fail(error)

    def transaction(self, name: str, *, durable: bool = True) -> DatabaseTransaction:
        """Everything in the block happens, or, on any exception, not at all.

        Args:
            name: Says in messages what was attempted.
            durable: Whether it is synced when the block ends; see the module docstring.

        Not reentrant. Other threads wait.
        """
        if self.read_only:
            what = "the store" if self._use.ours else self._use.title
            raise UsageError(f"{what} is open read-only: cannot {name}", path=self.filename)
        return DatabaseTransaction(self._turns, durable=durable)

    def change(self, sql: str, bindings: Sequence[SQLValue]) -> int:
        """Run one statement as an unsynced transaction: rows changed. Errors as `query`."""
        with self._lock:
            if self._turns.begun:
                self.end_interrupted()
            self._set_durable(durable=False)
            self.query(sql, bindings)
            self._unsynced = True
            return self._connection.changes()

    def end_interrupted(self) -> None:
        """Roll back a transaction of this thread which an interrupt has left open."""
        self._turns.end_interrupted()

    def _begin(self, durable: bool) -> None:
        self._set_durable(durable=durable)
        self.query("BEGIN IMMEDIATE")

    def _set_durable(self, *, durable: bool) -> None:
        if not durable and self._on_commit is not None:
            self._on_commit("catalog.unsynced")
        if durable is not self._syncing:
            self.query(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._syncing = durable

    def _commit(self, durable: bool) -> None:
        if durable and self._on_commit is not None:
            self._on_commit("catalog.commit")
        self.query("COMMIT")
        self._unsynced = not durable

    @property
    def inherited(self) -> bool:
        """Whether a fork has taken it from another process, whose it is."""
        return is_inherited(self._connection)

    @property
    def in_transaction(self) -> bool:
        """Whether one is open; after some errors SQLite has ended it by itself."""
        try:
            return self._connection.in_transaction
        except apsw.ConnectionClosedError:
            return False

    def guard(self, table: str) -> None:
        """Refuse statements that begin or end transactions, attach files, or change `table`."""
        self._connection.authorizer = partial(_authorize, table)

    def end_guard(self) -> None:
        """Refuse nothing any more."""
        with contextlib.suppress(apsw.ConnectionClosedError):  # then nobody asks anything of it
            self._connection.authorizer = None

    def flush(self) -> None:
        """Write the changed pages of the open transaction, with the locks a commit needs.

        Raises:
            LockedError: Readers are in the way for 10 s.
        """
        with self._lock:
            try:
                self._connection.cache_flush()
            except apsw.Error as error:
                self._fail(error)

    @property
    def unsynced(self) -> bool:
        """Whether the last transaction of this connection was not synced."""
        return self._unsynced

    def roll_back(self) -> None:
        """Undo the open transaction, if there is one; whatever fails, nothing of it stays."""
        if self.inherited:
            return
        try:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except apsw.ConnectionClosedError:
            pass
        except apsw.Error as error:
            # Closing the connection is the one way left to be sure that nothing is half done.
            _logger.warning(
                "closed %s %s: rollback failed: %s", self._use.title, self.filename, error
            )
            self._connection.close()

    def _fail(self, error: apsw.Error) -> NoReturn:
        typed = typed_error(error, self.filename, self._system_errno(), self._use)
        raise self._explained(typed) from error

    def _explained(self, error: MillstreamError) -> MillstreamError:
        """The error as it is raised, for kinds of databases that have more to say."""
        return error

    def _system_errno(self) -> int:
        with contextlib.suppress(apsw.Error):  # the connection is closed
            return self._connection.system_errno
        return 0


_FORBIDDEN: Final = frozenset({apsw.SQLITE_TRANSACTION, apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH})


_LOOKS: Final = frozenset({apsw.SQLITE_READ, apsw.SQLITE_PRAGMA})


def _authorize(table: str, operation: int, *names: str | None) -> int:
    changes = table in names[:2] and operation not in _LOOKS
    return apsw.SQLITE_DENY if changes or operation in _FORBIDDEN else apsw.SQLITE_OK
