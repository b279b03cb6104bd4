"""The world outside a store, simulated: files on a `MemoryStorage`, databases in memory, a clock.

A database commits through `MemoryStorage.sync_point`, so a crash plan reaches its commits too, and
its content can be kept aside and put back: each outcome of a crash begins with the same one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from millstream import Storage, Store, UserDatabase
from millstream.processor.connectors import Outside, Source, SourceBatch
from millstream.testing import ManualClock, MemoryStorage

_numbers = itertools.count()


class SimulatedDatabase:
    """One database in memory, which lives as long as this object."""

    def __init__(self, content: bytes | None = None) -> None:
        self.filename = f"file:/user-{next(_numbers)}?vfs=memdb"
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        self._keeper = apsw.Connection(self.filename, flags=flags)
        if content is not None:
            source = apsw.Connection(":memory:")
            source.deserialize("main", content)
            with self._keeper.backup("main", source, "main") as backup:
                backup.step(-1)

    def content(self) -> bytes:
        """All of it, as of the last commit."""
        return self._keeper.serialize("main")

    def query(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement; a write commits at once."""
        return self._keeper.execute(sql, bindings).fetchall()


class SimulatedOutside(Outside):
    """Files, a database and time for sources and sinks; what they print."""

    def __init__(
        self,
        storage: MemoryStorage | None = None,
        database: SimulatedDatabase | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.storage = storage or MemoryStorage()
        self.simulated = database or SimulatedDatabase()
        self.clock = clock or ManualClock(1_000_000)
        self.printed: list[str] = []

    def directory(self, path: str, *, read_only: bool = False) -> Storage:
        """The storage, whatever the path."""
        return self.storage.read_only_view() if read_only else self.storage

    def database(self, path: str, *, read_only: bool = False) -> UserDatabase:
        """The database, whatever the path."""
        return UserDatabase(
            self.simulated.filename,
            clock=self.clock,
            read_only=read_only,
            on_commit=self.storage.sync_point,
        )

    def print_lines(self, lines: Any) -> None:
        """Keep the lines."""
        self.printed += lines


def put(storage: Storage, path: str, content: bytes) -> None:
    """Write a file anew, as another program would."""
    if "/" in path:
        storage.make_directory(path.rpartition("/")[0])
    storage.remove(path)
    file = storage.open(path, "x")
    file.write([content], 0)
    file.sync()
    file.close()


def extend(storage: Storage, path: str, content: bytes) -> None:
    """Append to a file."""
    file = storage.open(path, "rw")
    file.write([content], file.size())
    file.close()


def content_of(storage: Storage, path: str) -> bytes:
    """The whole file."""
    file = storage.open(path, "r")
    try:
        return file.read(file.size(), 0)
    finally:
        file.close()


def values_of(store: Store, topic: str) -> list[bytes | None]:
    """The values of a topic, in order."""
    return [record.value for record in store.read(topic)]


def rows(source: Source, partition: str | None = None, position: Any = None) -> list[Any]:
    """The values of a partition, decoded, up to its end or to where there is nothing now."""
    name = partition or source.partitions()[0]
    return [
        json.loads(value) for batch in batches(source, name, position) for value in batch.values
    ]


def batches(source: Source, partition: str, position: Any = None) -> list[SourceBatch]:
    """The batches of a partition, up to its end or to where there is nothing now."""
    found = []
    for batch in source.open(partition, position):
        if batch is None:
            break
        found.append(batch)
    return found


def plain(position: Any) -> Any:
    """A position as it comes back from the store."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(position))


def last_position(source: Source, partition: str, position: Any = None) -> Any:
    """Where a partition stands when all there is now was read."""
    found = batches(source, partition, position)
    return plain(found[-1].position) if found else position
