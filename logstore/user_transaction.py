"""The part of a transaction that is in a SQLite database of the user's: rows, and the decision.

Two files cannot commit as one, so one of them decides: the user's. The commit of the rows carries a
row of the table `millstream_transactions`, and the transaction is committed if and only if it is
there. What it holds is in docs/log-format.md, "Transactions with a database"; whoever finds a
transaction open whose owner died reads it (`decisions.py`).

Not here: what the transaction does in the catalog, which is for `transaction.py`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .clock import Clock
from .config import path_text
from .errors import DataError, UsageError
from .sql_values import Row, SQLValue
from .user_database import UserDatabase

DECISION_BYTES_MAX: Final = 64 << 20
"""What a decision may hold of offsets and checkpoints."""

_DECISIONS: Final = "millstream_transactions"
"""The table. A statement of the user's that changed it could undo a commit."""
_IDENTITY: Final = "database"
"""In the place of a mark: the row whose data is the uid of the file."""
_UID_BYTES: Final = 16

_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS millstream_transactions ("
    "mark TEXT PRIMARY KEY, number INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID"
)


class Decision(NamedTuple):
    """The last transaction of an owner that the file says is committed."""

    number: int
    data: bytes
    """What of it is for the catalog."""


def checked_place(path: str | os.PathLike[str], catalog: str) -> str:
    """The absolute path of a database that a transaction can write to.

    Args:
        path: As the user gives it.
        catalog: What SQLite opens for the catalog, which is none.

    Raises:
        UsageError: It is no file, or Millstream's own.
    """
    place = path_text(path)
    if not place or place.startswith((":", "file:")):
        raise UsageError(f"a transaction needs a database in a file, not {place!r}")
    place = os.path.abspath(place)
    if os.path.realpath(place) == os.path.realpath(catalog):
        raise UsageError("the catalog is Millstream's own: name a database of yours", path=place)
    return place


class UserTransaction:
    """The rows of one transaction. Used by one thread; errors as in `Database`.

    Args:
        path: The database, absolute; made if it is missing.
        clock: For waiting only.
        on_commit: Called with "database.commit" before each commit of rows; for tests.
    """

    def __init__(
        self, path: str, *, clock: Clock, on_commit: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self.begun = False
        """Whether there may be rows."""
        self.attempted = False
        """Whether they may be committed."""
        self._on_commit = on_commit
        self._database = UserDatabase(path, clock=clock)
        try:
            # Also the directory is synced, where a journal that came back would undo the commit.
            self._database.query("PRAGMA synchronous = EXTRA")
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Undo what is not committed, and let go. Idempotent."""
        self._database.close()

    # --- the file ------------------------------------------------------------------------------

    def uid(self) -> str | None:
        """Identity of the file, 32 hexadecimal digits; None: no transaction ever wrote to it.

        Raises:
            DataError: The table of that name is not ours.
        """
        if not self._database.columns(_DECISIONS):
            return None
        found = self._read(_IDENTITY)
        if found is None:
            return None
        if len(found.data) != _UID_BYTES:
            raise self._strange()
        return found.data.hex()

    def identify(self) -> str:
        """As `uid`; an identity is made, durably, if there is none."""
        uid = self.uid()
        if uid is not None:
            return uid
        database = self._database
        with database.transaction("prepare for transactions"):
            database.query(_CREATE)
            database.query(
                "INSERT INTO millstream_transactions VALUES (?, 0, ?) ON CONFLICT DO NOTHING",
                (_IDENTITY, secrets.token_bytes(_UID_BYTES)),
            )
        uid = self.uid()
        assert uid is not None
        return uid

    def wait_for_nobody(self) -> None:
        """From now on a lock of another connection is an error at once."""
        self._database.query("PRAGMA busy_timeout = 0")

    # --- writing -------------------------------------------------------------------------------

    def execute(self, sql: str, bindings: Sequence[SQLValue] = ()) -> list[Row]:
        """Run one statement in the transaction and return its rows."""
        self._begin()
        rows = self._database.query(sql, bindings)
        self._check()
        return rows

    def execute_many(self, sql: str, rows: Sequence[Sequence[SQLValue]]) -> None:
        """Run one statement for each of `rows`."""
        self._begin()
        self._database.execute_many(sql, rows)
        self._check()

    def _begin(self) -> None:
        if not self.begun:
            self._database.query("BEGIN IMMEDIATE")
            self._database.guard(_DECISIONS)
            self.begun = True
        elif not self._database.in_transaction:
            raise self._lost()

    def _check(self) -> None:
        """After some errors, such as a full disk, SQLite has undone everything by itself."""
        if not self._database.in_transaction:
            raise self._lost()

    def _lost(self) -> UsageError:
        return UsageError(
            "the database has rolled the transaction back, so nothing of it can be committed:"
            " start anew",
            path=self.path,
        )

    def flush(self) -> None:
        """Do before the commit what may take long: write pages, and wait for readers in the way.

        Raises:
            LockedError: They read for longer than 10 s.
        """
        self._check()
        self._database.flush()

    def commit(self, mark: str, number: int, data: bytes) -> None:
        """Commit the rows, durably, and with them the transaction.

        After an error they may be committed or not.

        Args:
            mark: Of the owner in this file.
            number: Of the transaction.
            data: What of it is for the catalog.
        """
        database = self._database
        self._check()
        if len(data) > DECISION_BYTES_MAX:
            raise UsageError(
                f"offsets and checkpoints of a transaction exceed {DECISION_BYTES_MAX} bytes"
            )
        database.end_guard()
        database.query(
            "INSERT INTO millstream_transactions VALUES (?, ?, ?) ON CONFLICT (mark)"
            " DO UPDATE SET number = excluded.number, data = excluded.data",
            (mark, number, data),
        )
        if self._on_commit is not None:
            self._on_commit("database.commit")
        self.attempted = True
        database.query("COMMIT")

    def roll_back(self) -> None:
        """Undo the rows, unless they are committed."""
        self._database.end_guard()
        self._database.roll_back()

    # --- deciding ------------------------------------------------------------------------------

    def decision(self, mark: str) -> Decision | None:
        """The last transaction of an owner that is committed; None: none is.

        Raises:
            DataError: The row is not what a commit writes.
        """
        return self._read(mark)

    def _read(self, mark: str) -> Decision | None:
        rows = self._database.query(
            "SELECT number, typeof(data), length(data) FROM millstream_transactions WHERE mark = ?",
            (mark,),
        )
        if not rows:
            return None
        number, kind, size = rows[0]
        if not isinstance(number, int) or kind != "blob" or not isinstance(size, int):
            raise self._strange()
        if size > DECISION_BYTES_MAX:
            raise self._strange()
        ((data,),) = self._database.query(
            "SELECT data FROM millstream_transactions WHERE mark = ?", (mark,)
        )
        assert isinstance(data, bytes)
        return Decision(number, data)

    def _strange(self) -> DataError:
        return DataError(
            "the table millstream_transactions is not as Millstream writes it: restore the"
            " database",
            path=self.path,
        )

    def make_durable(self, mark: str) -> None:
        """Sync the decision: who committed it may have died before it could."""
        with self._database.transaction("sync a decision"):
            # Something has to change, or SQLite has nothing to sync.
            self._database.query(
                "UPDATE millstream_transactions SET number = number WHERE mark = ?", (mark,)
            )

    def forget(self, mark: str, number: int) -> None:
        """Remove a decision up to that number, which the catalog has followed."""
        with self._database.transaction("forget a decision"):
            self._database.query(
                "DELETE FROM millstream_transactions WHERE mark = ? AND number <= ?",
                (mark, number),
            )
