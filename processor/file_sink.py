"""A sink of files: a new one for every delivery, complete and synced before its name appears.

A file is named after the offsets it holds. A delivery that is done again after a crash has the same
records, so it replaces the file by its equal. What a file looks like says file_formats.py; how they
are compared with a replay is in file_comparison.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from millstream import Record, Storage, StorageError

from .connectors import OUTSIDE, DeliveryKind, Outside, Replayed, Sink, SinkDifference
from .file_comparison import SinkFiles
from .file_formats import FileFormat, by_folder


@dataclass(frozen=True)
class FileSink(Sink):
    """Files in a directory."""

    name: str
    directory: str
    format: FileFormat
    folders: tuple[str, ...] = ()
    """Fields by which records are put into folders of their own, the outermost first."""
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    delivery: DeliveryKind = "idempotent"

    def open(self, outbox: str) -> FileWriter:
        """See `Sink`. Creates the directory.

        Raises:
            StorageError: It cannot be created or written.
        """
        try:
            storage = self.outside.directory(self.directory)
        except StorageError as error:
            # Opened like a store, it would be called one.
            number = error.errno or errno.EIO
            message = f"sink {self.name!r} cannot have its directory: {os.strerror(number)}"
            raise StorageError(message, errno=number, path=self.directory) from error
        return FileWriter(storage, self._stem(outbox), self.format.suffix, self._contents)

    def check(self, records: Sequence[Record]) -> None:
        """See `CheckingSink`."""
        self._contents(records)

    def _contents(self, records: Sequence[Record]) -> dict[str, bytes]:
        """The files of a delivery, by folder.

        Raises:
            RefusedRecords: Some records are no rows of a file.
        """
        by_name = by_folder(records, self.folders)
        return {folder: self.format.content(some) for folder, some in by_name.items()}

    def _stem(self, outbox: str) -> str:
        """What the names of the files begin with."""
        # Outboxes of different stores number their records alike.
        return f"{self.name}-{xxhash.xxh3_64_hexdigest(outbox.encode())[:8]}"

    def compare(self, outbox: str, replayed: Replayed) -> SinkDifference | None:
        """See `ComparableSink`. A file that was moved away is missing.

        Raises:
            StorageError: A file cannot be read.
            NotComparable: One is larger than is read at once.
        """
        try:
            storage = self.outside.directory(self.directory, read_only=True)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            storage = None
        try:
            stem = self._stem(outbox)
            files = SinkFiles(storage, self.directory, stem, self.format, self.folders)
            return files.compare(replayed)
        finally:
            if storage is not None:
                storage.close()


class FileWriter:
    """Writes the files of one sink; see `SinkWriter`."""

    def __init__(
        self,
        storage: Storage,
        stem: str,
        suffix: str,
        contents: Callable[[Sequence[Record]], dict[str, bytes]],
    ) -> None:
        self._storage = storage
        self._stem = stem
        self._suffix = suffix
        self._contents = contents

    def position(self) -> None:
        """See `SinkWriter`: the store keeps it."""

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        """See `SinkWriter`: one file for each folder, or none if there are no records."""
        name = f"{self._stem}-{first:020d}-{following:020d}.{self._suffix}"
        # All of them are made before the first is written: what is refused leaves nothing behind.
        for folder, content in self._contents(records).items():
            self._write_file(folder, name, content)

    def _write_file(self, folder: str, name: str, content: bytes) -> None:
        storage = self._storage
        if folder:
            storage.make_directory(folder)
            folder += "/"
        unfinished = f"{folder}.{name}.unfinished"
        storage.remove(unfinished)  # of a process that died
        file = storage.open(unfinished, "x")
        try:
            file.write([content], 0)
            file.sync()
        finally:
            file.close()
        storage.rename(unfinished, f"{folder}{name}")
        storage.sync_directory(folder.rstrip("/"))

    def close(self) -> None:
        """See `SinkWriter`."""
        self._storage.close()
