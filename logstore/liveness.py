"""Who is alive: each open store holds a lock file, and the lock dies with its process.

No heartbeat and no timeout: asking for the lock of a dead process succeeds at once, whatever way
it died. Members of groups and owners of transactions name their lock file in the catalog.
"""

from __future__ import annotations

import os
import threading

from .errors import StorageError
from .storage import Lock, Storage

LOCKS_DIRECTORY = "locks"


class Liveness:
    """The liveness lock of one open store, taken at first use. Thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock: Lock | None = None
        self._guard = threading.Lock()
        self._path = ""

    @property
    def path(self) -> str:
        """Path of the lock file this process holds while the store is open."""
        with self._guard:
            if self._lock is None:
                self._storage.make_directory(LOCKS_DIRECTORY)
                path = f"{LOCKS_DIRECTORY}/{os.urandom(8).hex()}.lock"
                lock = self._storage.lock(path)
                if not lock.try_acquire():
                    lock.close()
                    raise AssertionError(f"fresh lock {path} is taken")
                self._lock, self._path = lock, path
            return self._path

    def is_alive(self, path: str) -> bool:
        """Whether the holder of the lock file `path` lives."""
        if path == self._path:
            return True
        if not self._storage.exists(path):
            return False
        try:
            lock = self._storage.lock(path)
        except StorageError:
            if self._storage.exists(path):
                raise
            return False  # removed by its owner just now
        try:
            return not lock.try_acquire()
        finally:
            lock.close()

    def bury(self, path: str) -> None:
        """Remove the lock file of a dead process."""
        if not self.is_alive(path):
            self._storage.remove(path)

    def close(self) -> None:
        """Give the lock up and remove its file."""
        with self._guard:
            if self._lock is not None:
                self._storage.remove(self._path)
                self._lock.close()
                self._lock = None
                self._path = ""
