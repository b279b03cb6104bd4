"""Who is alive: each open store holds a lock file, and the lock dies with its process.

No heartbeat and no timeout: asking for the lock of a dead process succeeds at once, whatever way
it died. Members of groups and owners of transactions name their lock file in the catalog.
"""

from __future__ import annotations

import contextlib
import os
import threading

from .errors import StorageError
from .storage import Lock, Storage

LOCKS_DIRECTORY = "locks"
_SUFFIX = ".lock"
_NAME_LENGTH = 16 + len(_SUFFIX)
"""Of a process. Locks with other names in this directory belong to names that are owned."""


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
                self._bury_all()
                self._lock, self._path = self._take()
            return self._path

    def _take(self) -> tuple[Lock, str]:
        while True:
            path = f"{LOCKS_DIRECTORY}/{os.urandom(8).hex()}{_SUFFIX}"
            lock = self._storage.lock(path)
            # Between these two lines it looks dead, and another process may bury it.
            if lock.try_acquire() and self._storage.exists(path):
                return lock, path
            lock.close()

    def _bury_all(self) -> None:
        """Remove what nobody else asks for: the locks of dead processes that left no open work.

        Done by everyone who adds a file, so there are never more than have been alive at once.
        """
        for name in self._storage.list(LOCKS_DIRECTORY):
            if len(name) == _NAME_LENGTH and name.endswith(_SUFFIX):
                self.bury(f"{LOCKS_DIRECTORY}/{name}")

    def is_alive(self, path: str) -> bool:
        """Whether the holder of the lock file `path` lives."""
        if path == self._path:
            return True
        lock = self._existing(path)
        if lock is None:
            return False
        try:
            return not lock.try_acquire()
        finally:
            lock.close()

    def bury(self, path: str) -> None:
        """Remove the lock file of a dead process."""
        lock = self._existing(path)
        if lock is None:
            return
        try:
            # While holding it, so that nobody can take it for his own in between.
            if lock.try_acquire():
                self._storage.remove(path)
        finally:
            lock.close()

    def _existing(self, path: str) -> Lock | None:
        if not self._storage.exists(path):
            return None
        try:
            return self._storage.lock(path)
        except StorageError:
            if self._storage.exists(path):
                raise
            return None  # removed by its owner just now

    def close(self) -> None:
        """Give the lock up and remove its file, or leave it, as a process does that is killed."""
        with self._guard:
            if self._lock is not None:
                # In a directory that was moved away, say, it is not to be found.
                with contextlib.suppress(StorageError):
                    self._storage.remove(self._path)
                self._lock.close()
                self._lock = None
                self._path = ""
