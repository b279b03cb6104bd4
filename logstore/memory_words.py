"""Shared words and bells of a `MemoryStorage`: what processes tell each other, between threads."""

from __future__ import annotations

import errno
import threading

from .errors import StoreClosedError
from .simulated_disk import Inode, SharedWords
from .simulated_machine import ROOT, Machine
from .storage_protocols import storage_error


class MemoryWords:
    """Words shared by the users of one `MemoryStorage`. See `millstream.storage.Words`."""

    __slots__ = ("_inode", "_machine", "_open", "_read_only", "inode", "path", "view")

    def __init__(self, machine: Machine, inode: Inode, path: str, *, read_only: bool) -> None:
        self.path = path
        self.inode = inode.number
        self.view = memoryview(b"").cast("q")
        self._machine = machine
        self._inode = inode
        self._read_only = read_only
        self._open = True

    def grow(self, count: int) -> None:
        """See `Words.grow`. At most 2 Mi words, the address space reserved for them."""
        machine = self._machine
        with machine.lock:
            machine.ensure_alive()
            if not self._open:
                raise StoreClosedError("the shared words are closed", path=self.path)
            inode = self._inode
            if inode.words is None:
                inode.words = SharedWords(bytes(inode.data))
            words = inode.words
            if words.count < count:
                if self._read_only or count > words.COUNT_MAX:
                    raise storage_error("extend shared words", ROOT, errno.EINVAL, self.path)
                with machine.operation("truncate", self.path, "extend shared words"):
                    words.count = count
            view = words.view()
            self.view = view.toreadonly() if self._read_only else view

    def close(self) -> None:
        """See `Words.close`. There is no word left, for writing either."""
        self._open = False
        self.view = memoryview(bytearray()).cast("q")


class MemoryBell:
    """A bell between threads. See `millstream.storage.Bell`.

    Args:
        silent: Held until it is rung. A lock of C: an interrupted wait leaves nothing held with it.
    """

    __slots__ = ("_silent",)

    def __init__(self, silent: threading.Lock) -> None:
        self._silent = silent

    def wait(self, seconds: float) -> None:
        """See `Bell.wait`."""
        self._silent.acquire(timeout=seconds)

    def close(self) -> None:
        """See `Bell.close`."""
