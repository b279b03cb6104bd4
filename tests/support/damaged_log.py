"""A log of known batches on a simulated disk, ways to damage its bytes, and what must come of it.

`prepare` leaves a log as a power failure would: some segments, batches that were synced, and after
them batches that were not. Every test damages a copy of it and says what must come of it:

- `assert_prefix` (P): a prefix of the records is kept exactly, appending goes on behind it, and
  more power failures change nothing about that.
- `assert_refused` (E): a typed error that says where, and no byte of the log has changed; so it is
  after restarts, too.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest
from simulated_stores import abandon, log_of, open_quietly

from millstream import DataError, Store
from millstream.config import Compression
from millstream.errors import CorruptBatchError
from millstream.format import BatchHeader
from millstream.segment import QUARANTINE, base_offset_of, scan_headers
from millstream.simulated_disk import walk
from millstream.testing import MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

DIRECTORY = "topics/t/0"
AFTER = b'{"text":"after"}'
"""A value that goes into any log: bytes to most, a row to one of columns."""


class Text(msgspec.Struct):
    """A row of a log of columns."""

    text: str


@dataclass(frozen=True)
class Place:
    """Where a batch lies."""

    path: str
    position: int
    header: BatchHeader

    @property
    def body(self) -> int:
        """Where its body starts."""
        return self.position + self.header.header_bytes

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return self.position + self.header.total_bytes


@dataclass
class DamagedLog:
    """A log and what was written to it; `storage` may be damaged by the test that holds it."""

    storage: MemoryStorage
    values: list[list[bytes | None]]
    """Per batch, in order."""
    durable: int
    """How many of the batches are known to be synced."""
    places: list[Place] = field(default_factory=list)
    restarts: int = 2
    """How often the machine restarts in `assert_prefix` and `assert_refused`."""

    def copy(self) -> DamagedLog:
        """The same on a disk of its own, after a restart of the machine."""
        disk = self.storage
        self.storage = disk.crash(keep="all")
        return replace(self, storage=disk.crash(keep="all"), places=list(self.places))

    def records(self, batches: int) -> list[bytes | None]:
        """The values of that many batches."""
        return [value for batch in self.values[:batches] for value in batch]

    @property
    def active(self) -> str:
        """Path of the last segment."""
        return segments(self.storage)[-1]

    # --- damage --------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with contextlib.closing(self.storage.open(path, "r")) as file:
            return file.read(file.size(), 0)

    def overwrite(self, path: str, position: int, content: bytes) -> None:
        """Put other bytes there; the file grows if need be."""
        with contextlib.closing(self.storage.open(path, "rw")) as file:
            file.write([content], position)
            file.sync()

    def change(self, path: str, edit: Callable[[bytearray], object]) -> None:
        """Edit the whole content."""
        content = bytearray(self.read(path))
        edit(content)
        self.cut(path, 0)
        self.overwrite(path, 0, bytes(content))

    def cut(self, path: str, size: int) -> None:
        """Make the file that long."""
        with contextlib.closing(self.storage.open(path, "rw")) as file:
            file.truncate(size)
            file.sync()

    def forget_words(self) -> None:
        """Lose the tail words, as power failures do."""
        self.storage.remove("tail")
        self.storage.sync_directory("")


def prepare(
    *,
    codec: Compression = "none",
    sealed: int = 0,
    durable: int = 1,
    unsynced: int = 2,
    value_bytes: int = 700,
    records: int = 4,
    columns: bool = False,
    restarts: int = 2,
) -> DamagedLog:
    """A log of `sealed` segments of two batches each, then an active one.

    Args:
        codec: Of all batches.
        sealed: Number of sealed segments; all of them are durable.
        durable: Batches in the active segment that are synced.
        unsynced: Batches after them that are not.
        value_bytes: Size of a value, half of which is random.
        records: In each batch.
        columns: Whether the topic has a schema, and its values are stored as columns.
        restarts: How often the machine restarts afterwards.
    """
    random = Random(1)
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t", compression=codec, schema=Text if columns else None)
    values: list[list[bytes | None]] = []

    def value(content: bytes) -> bytes:
        return msgspec.json.encode(Text(base64.b64encode(content).decode())) if columns else content

    def append(mode: str) -> None:
        values.append(
            [
                value(random.randbytes(value_bytes // 2) + b"%06d" % number * (value_bytes // 12))
                for number in range(records)
            ]
        )
        store.append_many("t", values[-1], durability=mode)

    for _ in range(sealed):
        append("sync")
        append("sync")
        store.roll("t", 0)
    for _ in range(durable):
        append("sync")
    for _ in range(unsynced):
        append("os")
    log_of(store)
    abandon(store)
    log = DamagedLog(storage, values, sealed * 2 + durable, restarts=restarts).copy()
    log.places = places(log.storage)
    assert len(values) == len(log.places)
    return log


def prepare_cell(
    cell: Cell,
    *,
    durable: int = 1,
    unsynced: int = 2,
    value_bytes: int = 700,
    records: int = 4,
) -> DamagedLog:
    """A log as a cell of the matrix says: one segment, or the last of three."""
    return prepare(
        codec=cell.codec,
        sealed=cell.sealed,
        durable=durable,
        unsynced=unsynced,
        value_bytes=value_bytes,
        records=records,
        columns=cell.columns,
        restarts=cell.restarts,
    )


def segments(storage: MemoryStorage) -> list[str]:
    """Paths of the segments, oldest first."""
    names = storage.list(DIRECTORY)
    return [f"{DIRECTORY}/{name}" for name in names if base_offset_of(name) is not None]


def places(storage: MemoryStorage) -> list[Place]:
    """Where the batches of an undamaged log are."""
    found = []
    for path in segments(storage):
        with contextlib.closing(storage.open(path, "r")) as file:
            uid = int.from_bytes(file.read(8, 40), "little")
            for position, header in scan_headers(file, 128, file.size(), uid):
                found.append(Place(path, position, header))
    return found


def image(storage: MemoryStorage) -> dict[str, bytes]:
    """Every file below topics/, by path."""
    return {
        f"{directory}/{name}": bytes(inode.data)
        for directory, name, inode in walk(storage.machine.names.entries)
        if directory.startswith("topics/")
    }


def quarantined(storage: MemoryStorage) -> dict[str, bytes]:
    """What was saved of torn tails."""
    return {path: content for path, content in image(storage).items() if f"/{QUARANTINE}/" in path}


@contextlib.contextmanager
def using(storage: MemoryStorage) -> Iterator[Store]:
    """A store which is left behind without being closed."""
    store = open_quietly(storage)
    try:
        yield store
    finally:
        abandon(store)


def read_all(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t", isolation="uncommitted")]


def assert_prefix(log: DamagedLog, batches: int, *, saved: bool | None = None) -> None:
    """The first `batches` are there, exactly; the log goes on behind them, over all restarts.

    Args:
        log: The damaged log.
        batches: How many are left.
        saved: Whether something must have been put into quarantine.
    """
    expected = log.records(batches)
    before = image(log.storage)
    with using(log.storage) as store:
        assert expected == read_all(store)
        if saved is not None:
            assert saved == bool(quarantined(log.storage))
        assert_saved(before, log.storage)
    storage = log.storage.crash(keep="none")
    for _ in range(log.restarts):
        with using(storage) as store:
            assert expected == read_all(store)
            assert len(expected) == store.append("t", AFTER).offset
            expected.append(AFTER)
        storage = storage.crash(keep="none")
    with open_quietly(storage) as store:
        assert expected == read_all(store)
        assert store.verify(deep=True).ok


def assert_saved(before: dict[str, bytes], storage: MemoryStorage) -> None:
    """Every byte that was cut off is in quarantine; zeros need not be."""
    after = image(storage)
    saved = b"".join(quarantined(storage).values())
    for path, content in before.items():
        if path.endswith(".segment") and f"/{QUARANTINE}/" not in path:
            left = after.get(path, b"")
            if not content.startswith(left):
                left = b""  # made anew
            assert content[len(left) :].strip(b"\0") in saved, path


def assert_refused(
    log: DamagedLog,
    error: type[DataError] = CorruptBatchError,
    *,
    readable: int = 0,
    match: str | None = None,
    placed: bool = True,
) -> DataError:
    """Reading ends in a typed error after that many batches, and no byte of the log changes.

    The same after each restart of the machine.

    Args:
        log: The damaged log.
        error: Its type, of which the error of the reader is returned.
        readable: How many batches come before it.
        match: What the message says.
        placed: It names the file, too.
    """
    before = image(log.storage)
    for number in range(log.restarts):
        if number:
            log.storage = log.storage.crash(keep="none")
        found: list[bytes | None] = []
        with using(log.storage) as store:
            with pytest.raises(error, match=match) as caught:
                found.extend(record.value for record in store.read("t", isolation="uncommitted"))
            assert log.records(readable) == found
            assert before == image(log.storage)
    found_error = caught.value
    assert ("t", 0) == (found_error.topic, found_error.partition)
    if placed:
        assert found_error.path is not None
    return found_error
