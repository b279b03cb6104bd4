"""A simulated machine whose disk makes the thread that writes commits wait.

So a test decides what happens while a commit is neither done nor undone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from millstream.memory import MemoryStorage
from millstream.memory_file import MemoryFile
from millstream.storage_protocols import Buffer, File, OpenMode

THREAD = "millstream-commit"
"""How the names begin of the threads that write commits."""

PATIENCE_S = 60.0


class Latch:
    """Holds the commit thread at its next sync of records, from `close` on until `open`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        """Set when the thread waits."""
        self._free = threading.Event()
        self._free.set()

    def close(self) -> None:
        """The next sync of a commit waits."""
        self.reached.clear()
        self._free.clear()

    def open(self) -> None:
        """Let it go on, and all that follow."""
        self._free.set()

    def await_commit(self) -> None:
        """Return when a commit waits."""
        assert self.reached.wait(PATIENCE_S), "no commit has come to its sync"

    def pass_by(self) -> None:
        """Called before each sync."""
        if threading.current_thread().name.startswith(THREAD) and not self._free.is_set():
            self.reached.set()
            assert self._free.wait(PATIENCE_S), "the latch was never opened"


class HeldFile:
    """A file in memory behind the latch."""

    def __init__(self, file: MemoryFile, latch: Latch) -> None:
        self._file = file
        self._latch = latch
        self.path = file.path

    def read(self, length: int, position: int) -> bytes:
        return self._file.read(length, position)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        self._file.write(buffers, position)

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        self._latch.pass_by()
        self._file.sync()

    def start_sync(self, length: int, position: int) -> None:
        self._file.start_sync(length, position)

    def close(self) -> None:
        self._file.close()


class HeldStorage(MemoryStorage):
    """A `MemoryStorage` with a latch, which is open at first."""

    def __init__(self) -> None:
        super().__init__()
        self.latch = Latch()

    def open(self, path: str, mode: OpenMode) -> File:  # type: ignore[override] # any file will do
        file = super().open(path, mode)
        # Syncs of records go through descriptors of their own. Those of new files do not: who
        # makes a file has the append lock, which the test needs itself.
        return HeldFile(file, self.latch) if mode == "rw" else file
