"""A lock between processes, the operating system's part of `Storage.lock`: flock.

Apart from storage.py because of what a fork does to it: see `fork_gate`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import warnings
import weakref
from fcntl import LOCK_UN, flock
from os import fstat

from .errors import StorageError, StoreClosedError
from .storage_protocols import storage_error

# A descriptor inherited through fork keeps the parent's flock alive after the parent died. The
# child therefore closes the descriptors of all live locks, and no fork happens between opening
# one and registering it. Reentrant, because a finalizer may close a lock at any allocation.
fork_gate = threading.RLock()
_live_locks: weakref.WeakSet[PosixLock] = weakref.WeakSet()


_SHARED_NOW = fcntl.LOCK_SH | fcntl.LOCK_NB
_EXCLUSIVE_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


class PosixLock:
    """flock on a descriptor of its own. See `Lock`."""

    __slots__ = (
        "__weakref__",
        "_create",
        "_descriptor",
        "_forked",
        "_full_path",
        "_holder",
        "_root",
        "path",
    )

    def __init__(self, full_path: str, root: str, path: str, *, create: bool) -> None:
        self._create = create
        self._descriptor = -1
        self._forked = False
        self._full_path = full_path
        self._holder = threading.Lock()
        self._root = root
        self.path = path
        self._open()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT if self._create else os.O_RDONLY
        with fork_gate:
            self._close_descriptor()
            try:
                self._descriptor = os.open(self._full_path, flags | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise self._error("open a lock", error) from error
            _live_locks.add(self)

    def try_acquire(self, *, shared: bool = False) -> bool:
        """See `Lock.try_acquire`."""
        if not self._holder.acquire(blocking=False):
            if self._descriptor < 0:
                raise self._closed()
            return False
        taken = False
        try:
            taken = self._flock(_SHARED_NOW if shared else _EXCLUSIVE_NOW)
        finally:
            if not taken:
                self._holder.release()
        return taken

    def try_again(self) -> bool:
        """See `Lock.try_again`."""
        if not self._holder.acquire(blocking=False):
            if self._descriptor < 0:
                raise self._closed()
            return False
        try:
            flock(self._descriptor, _EXCLUSIVE_NOW)
        except BaseException as error:
            self._holder.release()
            if isinstance(error, BlockingIOError):
                return False
            if self._descriptor < 0:
                raise self._closed() from None
            if isinstance(error, OSError):
                raise self._error("lock", error) from error
            raise
        return True

    def acquire(self) -> None:
        """See `Lock.acquire`."""
        if self._descriptor < 0:
            raise self._closed()
        self._holder.acquire()
        try:
            self._flock(fcntl.LOCK_EX)
        except BaseException:
            self._holder.release()
            raise

    def _flock(self, operation: int) -> bool:
        descriptor = self._descriptor
        if descriptor < 0:
            raise self._closed()
        try:
            flock(descriptor, operation)
            # A lock file removed by its previous holder locks nothing any more: others would
            # create and lock a new one. Take that one instead.
            while not fstat(descriptor).st_nlink:
                self._open()
                descriptor = self._descriptor
                flock(descriptor, operation)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._error("lock", error) from error
        return True

    def release(self) -> None:
        """See `Lock.release`."""
        if self._descriptor < 0 or not self._holder.locked():
            return
        try:
            flock(self._descriptor, LOCK_UN)
        except OSError as error:
            raise self._error("unlock", error) from error
        finally:
            self._holder.release()

    def close(self) -> None:
        """See `Lock.close`."""
        with fork_gate:
            self._close_descriptor()

    def abandon(self) -> None:
        """In the child of a fork: drop the descriptor without unlocking what the parent holds."""
        self._forked = True
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _closed(self) -> StoreClosedError:
        reason = "belongs to the process before the fork" if self._forked else "is closed"
        return StoreClosedError(f"the lock {reason}: open the store again", path=self.path)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()  # first: the warning may be an error
            warnings.warn(f"unclosed lock {self.path}", ResourceWarning, source=self, stacklevel=2)

    def _error(self, action: str, error: OSError) -> StorageError:
        return storage_error(action, self._root, error.errno or errno.EIO, self.path)


def _abandon_locks_in_child() -> None:
    for lock in list(_live_locks):
        lock.abandon()
    _live_locks.clear()
    fork_gate.release()


os.register_at_fork(
    before=fork_gate.acquire,
    after_in_parent=fork_gate.release,
    after_in_child=_abandon_locks_in_child,
)
