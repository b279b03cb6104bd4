"""One process of several, interrupted at a chosen file operation: killed there, or hit by Ctrl-C.

`ProcessStorage` is what one process sees of a storage that others use too. At the operation asked
for it raises, before or after the operation has taken effect, and the machine runs on.
"""

from __future__ import annotations

from collections.abc import Sequence

from millstream.storage_protocols import Buffer, File, Lock, OpenMode, Storage, Words


class Killed(BaseException):
    """The process ends here. Follow it with `simulated_stores.kill`."""


class ProcessStorage:
    """Passes everything on to `storage`, and counts and interrupts what changes it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.root = storage.root
        self.read_only = storage.read_only
        self.in_memory = storage.in_memory
        self.operations = 0
        self._at: int | None = None
        self._kind = ""
        self._after = False
        self._error: BaseException = Killed()

    def interrupt(
        self,
        error: BaseException,
        *,
        at: int | None = None,
        kind: str = "",
        after: bool = False,
    ) -> None:
        """Raise `error` at operation number `at`, or at the next one of `kind`, once."""
        self._error, self._at, self._kind, self._after = error, at, kind, after

    def begin(self, kind: str) -> bool:
        """Raise if it is time; else say whether to raise when the operation is done."""
        number = self.operations
        self.operations += 1
        if number != self._at and kind != self._kind:
            return False
        self._at, self._kind = None, ""
        if not self._after:
            raise self._error
        return True

    def end(self, hit: bool) -> None:
        if hit:
            raise self._error

    def open(self, path: str, mode: OpenMode) -> File:
        if mode != "x":
            return ProcessFile(self, self.storage.open(path, mode))
        hit = self.begin("create")
        file = ProcessFile(self, self.storage.open(path, mode))
        if hit:
            file.close()
        self.end(hit)
        return file

    def exists(self, path: str) -> bool:
        return self.storage.exists(path)

    def size(self, path: str) -> int:
        return self.storage.size(path)

    def list(self, path: str) -> list[str]:
        return self.storage.list(path)

    def make_directory(self, path: str) -> None:
        self.storage.make_directory(path)

    def rename(self, source: str, target: str) -> None:
        hit = self.begin("rename")
        self.storage.rename(source, target)
        self.end(hit)

    def remove(self, path: str) -> None:
        hit = self.begin("remove")
        self.storage.remove(path)
        self.end(hit)

    def remove_directory(self, path: str) -> None:
        hit = self.begin("remove_directory")
        self.storage.remove_directory(path)
        self.end(hit)

    def sync_directory(self, path: str) -> None:
        hit = self.begin("sync_directory")
        self.storage.sync_directory(path)
        self.end(hit)

    def lock(self, path: str) -> Lock:
        return self.storage.lock(path)

    def words(self, path: str, count: int) -> Words:
        return self.storage.words(path, count)

    def catalog_filename(self) -> str:
        return self.storage.catalog_filename()

    def sync_point(self, kind: str) -> None:
        hit = self.begin(kind)
        self.storage.sync_point(kind)
        # The step itself follows; to interrupt after it, interrupt before what comes next.
        self.end(hit)

    def free_bytes(self) -> int:
        return self.storage.free_bytes()

    def close(self) -> None:
        self.storage.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.storage, name)


class ProcessFile:
    """An open file of that process."""

    def __init__(self, storage: ProcessStorage, file: File) -> None:
        self.path = file.path
        self._storage = storage
        self._file = file

    def read(self, length: int, position: int) -> bytes:
        return self._file.read(length, position)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        hit = self._storage.begin("write")
        self._file.write(buffers, position)
        self._storage.end(hit)

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        hit = self._storage.begin("truncate")
        self._file.truncate(size)
        self._storage.end(hit)

    def sync(self) -> None:
        hit = self._storage.begin("sync")
        self._file.sync()
        self._storage.end(hit)

    def start_sync(self, length: int, position: int) -> None:
        self._file.start_sync(length, position)

    def close(self) -> None:
        self._file.close()
