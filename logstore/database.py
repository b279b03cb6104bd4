"""One SQLite database: its connection, its transactions, and its errors as ours.

Only this module imports apsw. What the tables of the catalog mean is in `catalog.py` and
`group_catalog.py`; a database that belongs to the user is opened by `user_database.py`, one that
can be made again at any time by `cache_database.py`.

A write is one `BEGIN IMMEDIATE` transaction with synchronous=FULL: when the block ends its changes
are durable, and when it raises nothing has changed. One that says so is not synced: a process that
dies loses nothing of it, a machine that dies may lose it and all such transactions after it, up to
the next one that is synced. Thread-safe: one connection behind one lock.
Not fork-safe: the engine refuses to be used in a child process; see `inherited.py`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, NoReturn, TypeAlias, cast

import apsw

from .clock import Clock
from .database_transaction import DatabaseTransaction, Turns
from .errors import (
    DataError,
    LockedError,
    MillstreamError,
    RecordError,
    StorageError,
    StoreClosedError,
    UnavailableError,
    UsageError,
)
from .inherited import is_inherited, watch

BUSY_TIMEOUT_SECONDS: Final = 10.0
"""A catalog transaction takes milliseconds; who waits longer waits for a stuck process."""

_logger = logging.getLogger("millstream")

SQLValue: TypeAlias = str | int | float | bytes | None
Row: TypeAlias = tuple[SQLValue, ...]


@dataclass(frozen=True, slots=True)
class DatabaseUse:
    """Whose database it is, which decides about its journal and about what an error means."""

    title: str
    """What messages call it."""
    absent: str
    """What to say where there is none to be read."""
    ours: bool
    """Its tables are of our making: its journal is set to WAL, and a statement that SQLite refuses
    means damage. Of another's database the journal stays, and the statement is at fault."""


CATALOG: Final = DatabaseUse("the catalog", "there is no store here", ours=True)


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
        self._connection = _connect(filename, clock, use, read_only=read_only)
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
        typed = _typed_error(error, self.filename, self._system_errno(), self._use)
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


CHECKED_VFS: Final = "cksmvfs"
RESERVED_BYTES: Final = 8
"""At the end of each page of a catalog, for its checksum."""


@cache
def _checked_vfs() -> str | None:
    """SQLite's own layer that writes and verifies a checksum per page; None if it is not there.

    It comes with apsw as a library to be loaded, which stays until the process ends. For databases
    without room for checksums it changes nothing, and it is not made the default.
    """
    library = os.path.join(os.path.dirname(apsw.__file__), "sqlite_extra_binaries", "cksumvfs")
    default = apsw.vfs_names()[0]
    connection = apsw.Connection(":memory:")
    try:
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1)
        connection.load_extension(library)
    except (apsw.Error, AttributeError):
        return None  # this build of apsw comes without it, or loads no libraries
    finally:
        connection.close()
    apsw.set_default_vfs(default)
    return CHECKED_VFS


@contextlib.contextmanager
def _typed(filename: str, use: DatabaseUse = CATALOG) -> Iterator[None]:
    """What SQLite raises, as an error of ours."""
    try:
        yield
    except apsw.Error as error:
        raise _typed_error(error, filename, 0, use) from error


def _open_file(filename: str, use: DatabaseUse, flags: int) -> apsw.Connection:
    """A connection; to a catalog in a file, one that verifies its pages."""
    checked = _checked_vfs() if use.ours and not filename.startswith("file:") else None
    return apsw.Connection(filename, flags=flags, vfs=checked)


def _check_pages(connection: apsw.Connection, filename: str) -> None:
    """Give a new catalog room for checksums; refuse to write one that has them without them."""
    if filename.startswith("file:"):
        return
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    if _checked_vfs() is None:
        if pages and connection.reserve_bytes("main") == RESERVED_BYTES:
            raise UnavailableError(
                "the pages of this catalog have checksums, which this build of apsw cannot write:"
                " install apsw from a wheel, or open the store read-only",
                path=filename,
            )
    elif not pages:
        connection.reserve_bytes("main", RESERVED_BYTES)


def page_checksums(filename: str) -> bool:
    """Whether the pages of a database in a file have checksums.

    Raises:
        As `Database`.
    """
    with _typed(filename), closing(_open(filename, CATALOG, read_only=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return connection.reserve_bytes("main") == RESERVED_BYTES


def _connect(filename: str, clock: Clock, use: DatabaseUse, *, read_only: bool) -> apsw.Connection:
    with _typed(filename, use):
        connection = _open(filename, use, read_only=read_only)
    try:
        connection.set_busy_timeout(int(BUSY_TIMEOUT_SECONDS * 1000))
        connection.execute("PRAGMA foreign_keys = ON")
        # Every commit is synced, and on macOS past the disk's own cache.
        connection.execute("PRAGMA synchronous = FULL; PRAGMA fullfsync = ON")
        if use.ours and not read_only:
            _check_pages(connection, filename)
            _use_wal(connection, clock)
    except apsw.Error as error:
        number = connection.system_errno
        connection.close()
        raise _typed_error(error, filename, number, use) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _open(filename: str, use: DatabaseUse, *, read_only: bool) -> apsw.Connection:
    if not read_only:
        return _open_file(filename, use, _READ_WRITE)
    if filename.startswith("file:"):
        return apsw.Connection(filename, flags=_READ_ONLY)
    if not exists(filename):
        raise UsageError(use.absent, path=filename)
    connection = _open_file(filename, use, _READ_ONLY)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.IOError) as error:
        full = connection.system_errno == errno.ENOSPC
        connection.close()
        # Reading beside writers needs the files -wal and -shm. If this process cannot make them,
        # for want of rights or of space, and nobody else has, nobody writes; with a -wal left by
        # a crash, what it holds would be missing.
        if (isinstance(error, apsw.IOError) and not full) or _size(filename + "-wal"):
            raise
        return _snapshot(filename)
    except apsw.BusyError:
        pass  # to be waited for, once a timeout is set
    except BaseException:
        connection.close()
        raise
    return connection


class Snapshot:
    """The content of a database at one moment, to be copied while others go on writing.

    Args:
        filename: What SQLite opens.

    Raises:
        As `Database`.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        with _typed(filename):
            self._connection = _open(filename, CATALOG, read_only=True)

    def take(self) -> None:
        """This is the moment."""
        with _typed(self._filename):
            self._connection.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()

    def copy_to(self, filename: str) -> None:
        """Write it to a new database, durably but for the name of the file."""
        with _typed(filename), closing(_open_file(filename, CATALOG, _READ_WRITE)) as target:
            target.execute("PRAGMA synchronous = FULL; PRAGMA fullfsync = ON")
            with target.backup("main", self._connection, "main") as backup:
                backup.step()
            _add_checksums(target, filename)

    def close(self) -> None:
        """Let go. Idempotent."""
        self._connection.close()


def _add_checksums(connection: apsw.Connection, filename: str) -> None:
    """Give the pages of a copy checksums, if the database had none."""
    if filename.startswith("file:") or _checked_vfs() is None:
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
        connection = _open(filename, CATALOG, read_only=True)
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
    with contextlib.suppress(apsw.Error):
        rows.extend(cast("Row", row) for row in connection.execute(sql))
    return rows


_READ_WRITE: Final = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


def _snapshot(filename: str) -> apsw.Connection:
    """A copy in memory of a database in a directory that cannot be written, as of now."""
    # A copy, because SQLite would take no notice if a process with more rights began to write.
    escaped = filename.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri, checked = f"file:{escaped}?immutable=1", _checked_vfs()
    source = apsw.Connection(uri, flags=_READ_ONLY, vfs=checked)
    with closing(source):
        copy = apsw.Connection(":memory:")
        with copy.backup("main", source, "main") as backup:
            backup.step()
    return copy


def exists(filename: str) -> bool:
    """Whether there is a file of that name."""
    vfs = apsw.VFS("millstream", base="")
    return "\0" not in filename and vfs.xAccess(filename, apsw.SQLITE_ACCESS_EXISTS)


def _size(filename: str) -> int:
    if not exists(filename):
        return 0
    file = apsw.VFSFile("", filename, [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0])
    try:
        return file.xFileSize()
    finally:
        file.xClose()


def _use_wal(connection: apsw.Connection, clock: Clock) -> None:
    """Readers never wait for writers. A memory database has no WAL and keeps its own mode."""
    # SQLite does not wait when two processes switch a new database at once, so this does.
    deadline = clock.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except apsw.BusyError:
            if clock.monotonic() >= deadline:
                raise
            clock.sleep(0.01)
        else:
            return


_ERRNO: Final[Mapping[type[apsw.Error], tuple[int, str]]] = {
    apsw.FullError: (errno.ENOSPC, "the disk is full"),
    apsw.ReadOnlyError: (errno.EROFS, "{} cannot be written"),
    apsw.PermissionsError: (errno.EACCES, "{} cannot be accessed"),
    apsw.CantOpenError: (errno.ENOENT, "{} cannot be opened"),
    apsw.IOError: (errno.EIO, "reading or writing {} failed"),
    apsw.NoMemError: (errno.ENOMEM, "out of memory"),
}
_NO_ROOM: Final[Mapping[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file size limit (ulimit -f) is reached",
}
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)
_REFUSED_DATA: Final = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError)


def _typed_error(
    error: apsw.Error, filename: str, system_errno: int, use: DatabaseUse
) -> MillstreamError:
    """The error of ours that tells the caller what to do about SQLite's."""
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return LockedError(
            f"another process kept {use.title} locked for {BUSY_TIMEOUT_SECONDS:.0f} s",
            path=filename,
        )
    if isinstance(error, apsw.ConnectionClosedError):
        closed = "the store is closed" if use.ours else f"{use.title} is closed"
        return StoreClosedError(closed, path=filename)
    rotten = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
    if type(error) in _ERRNO and not rotten:
        number, message = _ERRNO[type(error)]
        # The system's number may be left over from an earlier call; only these two errors set it.
        if system_errno and isinstance(error, (apsw.IOError, apsw.CantOpenError)):
            number = system_errno
            message = _NO_ROOM.get(number, message)
        text = f"{message.format(use.title)}: {error}"
        return StorageError(text, errno=number, path=filename)
    if use.ours or rotten or isinstance(error, _DAMAGE):
        damage = "a page fails its checksum" if rotten else error
        return DataError(f"{use.title} is damaged: {damage}", path=filename)
    if isinstance(error, _REFUSED_DATA):
        return RecordError(f"{use.title} refuses the row: {error}", path=filename)
    own = "inside a transaction commit, roll back and attach nothing, and change no decisions"
    what = own if isinstance(error, apsw.AuthError) else error
    return UsageError(f"{use.title} cannot do this: {what}", path=filename)


# STRICT tables hold what their columns say, so these only tell the type checker.


def _unexpected(value: SQLValue) -> DataError:
    """For a damaged page that passes for a row: a catalog of an early version has no checksums."""
    return DataError(
        f"the catalog holds {value!r:.60} where something else is expected. Run: millstream repair"
    )


def as_int(value: SQLValue) -> int:
    """`value`, which is an integer."""
    if not isinstance(value, int):
        raise _unexpected(value)
    return value


def as_number(value: SQLValue, stop: int = 1 << 62) -> int:
    """`value`, which is an integer from 0 to below `stop`; by default with room to add to it."""
    if not isinstance(value, int) or not 0 <= value < stop:
        raise _unexpected(value)
    return value


def as_count(value: SQLValue, most: int) -> int:
    """`value`, which is an integer from 1 to `most`."""
    if (count := as_number(value, most + 1)) == 0:
        raise _unexpected(value)
    return count


def as_text(value: SQLValue) -> str:
    """`value`, which is a text."""
    if not isinstance(value, str):
        raise _unexpected(value)
    return value


def as_bytes(value: SQLValue) -> bytes:
    """`value`, which is a blob."""
    if not isinstance(value, bytes):
        raise _unexpected(value)
    return value
