"""How a SQLite database is opened: with checksums of its pages, and so that readers never wait.

Pages of catalogs have checksums, which SQLite's own layer verifies. A catalog that may only be read
is read beside its writers, or copied into memory where that cannot be. Transactions on what is
opened here are in `database.py`.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing
from functools import cache
from typing import Final

import apsw

from .clock import Clock
from .database_errors import BUSY_TIMEOUT_SECONDS, DatabaseUse, typed, typed_error
from .errors import UnavailableError, UsageError

CHECKED_VFS: Final = "cksmvfs"
RESERVED_BYTES: Final = 8
"""At the end of each page of a catalog, for its checksum."""

READ_WRITE: Final = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


@cache
def checked_vfs() -> str | None:
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


def open_file(filename: str, use: DatabaseUse, flags: int) -> apsw.Connection:
    """A connection; to a catalog in a file, one that verifies its pages."""
    checked = checked_vfs() if use.ours and not filename.startswith("file:") else None
    return apsw.Connection(filename, flags=flags, vfs=checked)


def _check_pages(connection: apsw.Connection, filename: str) -> None:
    """Give a new catalog room for checksums; refuse to write one that has them without them."""
    if filename.startswith("file:"):
        return
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    if checked_vfs() is None:
        if pages and connection.reserve_bytes("main") == RESERVED_BYTES:
            raise UnavailableError(
                "the pages of this catalog have checksums, which this build of apsw cannot write:"
                " install apsw from a wheel, or open the store read-only",
                path=filename,
            )
    elif not pages:
        connection.reserve_bytes("main", RESERVED_BYTES)


def connect(filename: str, clock: Clock, use: DatabaseUse, *, read_only: bool) -> apsw.Connection:
    """A connection that waits for others and syncs each commit; errors as `Database`."""
    with typed(filename, use):
        connection = open_database(filename, use, read_only=read_only)
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
        raise typed_error(error, filename, number, use) from error
    except BaseException:
        connection.close()
        raise
    return connection


def open_database(filename: str, use: DatabaseUse, *, read_only: bool) -> apsw.Connection:
    """A connection as SQLite makes it, with its own errors; UsageError where there is none."""
    if not read_only:
        return open_file(filename, use, READ_WRITE)
    if filename.startswith("file:"):
        return apsw.Connection(filename, flags=_READ_ONLY)
    if not exists(filename):
        raise UsageError(use.absent, path=filename)
    connection = open_file(filename, use, _READ_ONLY)
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


def _snapshot(filename: str) -> apsw.Connection:
    """A copy in memory of a database in a directory that cannot be written, as of now."""
    # A copy, because SQLite would take no notice if a process with more rights began to write.
    escaped = filename.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    uri, checked = f"file:{escaped}?immutable=1", checked_vfs()
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
