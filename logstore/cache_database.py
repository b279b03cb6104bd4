"""A SQLite file beside the store for what can be made again: never synced, in doubt thrown away.

What it is about is in the log; whoever keeps something here must be able to make it anew from
there. A process that is killed loses nothing that was committed here. After a restart of the
machine, on a system that does not tell one start from the next, and where the file was copied or
is damaged, it is empty again: unsynced pages may be lost one by one, and nobody could tell.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final, Self

from . import posix_facts
from .clock import Clock
from .database import Database
from .database_errors import DatabaseUse
from .errors import DataError, MillstreamError, UsageError
from .storage_protocols import Storage

CACHE_DIRECTORY: Final = "cache"

_USE: Final = DatabaseUse("the cache of state", "there is no cache here", ours=True)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


class CacheDatabase(Database):
    """An open database that may be empty each time it is opened. Thread-safe; see `Database`.

    Its pages have checksums. Where one is damaged the error is a DataError, and the file is
    removed: the next one begins empty. Made by `Store.cache_database`.

    Args:
        filename: "" for a temporary one, which vanishes with the connection.
        clock: For waiting only.
        remove: Removes the file.
    """

    def __init__(
        self, filename: str, *, clock: Clock, remove: Callable[[], None] | None = None
    ) -> None:
        self._remove = remove
        super().__init__(filename, clock=clock, use=_USE)
        self.query("PRAGMA synchronous = OFF")

    @property
    def temporary(self) -> bool:
        """Whether it vanishes when it is closed."""
        return not self.filename

    def set_cache_bytes(self, cache_bytes: int) -> None:
        """How much memory SQLite may use for pages."""
        self.query(f"PRAGMA cache_size = -{max(64, cache_bytes >> 10)}")

    def _explained(self, error: MillstreamError) -> MillstreamError:
        if self._remove is None or not isinstance(error, DataError):
            return error
        self.close()
        self._remove()
        return DataError(
            f"{error.message}. It was removed: run again, and it is made anew from the log",
            path=self.filename,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_cache(storage: Storage, clock: Clock, name: str) -> CacheDatabase:
    """Open a cache by its name; one that cannot be trusted is made anew.

    Where there are no files, or none that may be written, it is temporary.

    Raises:
        UsageError: Not a name: 1 to 100 of A-Z a-z 0-9 . _ -
        LockedError: Another process kept it locked for 10 s.
        StorageError: The operating system refused.
    """
    path = _path(name)
    if storage.read_only or _is_memory(storage):
        return CacheDatabase("", clock=clock)
    if not storage.exists(CACHE_DIRECTORY):
        storage.make_directory(CACHE_DIRECTORY)
    filename = f"{storage.root}/{path}"

    def remove() -> None:
        remove_cache(storage, name)

    with contextlib.suppress(DataError):  # damaged, and so closed and removed: see `_explained`
        database = CacheDatabase(filename, clock=clock, remove=remove)
        if _is_whole(database, posix_facts.file_identity(filename)):
            return database
        database.close()
    remove()
    database = CacheDatabase(filename, clock=clock, remove=remove)
    with database.transaction("make a cache"):
        database.query("CREATE TABLE cache_origin (identity INTEGER NOT NULL) STRICT")
        identity = posix_facts.file_identity(filename)
        database.query("INSERT INTO cache_origin VALUES (?)", (identity,))
    return database


def remove_cache(storage: Storage, name: str) -> None:
    """Remove a cache, if there is one. Nobody may have it open."""
    path = _path(name)
    if not storage.read_only and not _is_memory(storage):
        # The database last: a log of changes must never be found with another database.
        for suffix in ("-wal", "-shm", ""):
            storage.remove(path + suffix)


def _path(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"a cache is called 1 to 100 of A-Z a-z 0-9 . _ -, not {name!r:.300}")
    return f"{CACHE_DIRECTORY}/{name}.db"


def _is_memory(storage: Storage) -> bool:
    return storage.catalog_filename().startswith("file:")


def _is_whole(database: CacheDatabase, identity: int) -> bool:
    """Whether all that was committed is there: the file is the one it was, since the last boot."""
    if not database.query("SELECT 1 FROM sqlite_schema WHERE name = 'cache_origin'"):
        return False
    return identity != 0 and database.query("SELECT identity FROM cache_origin") == [(identity,)]
