"""An open file in memory: its bytes live in the simulated disk, which a crash decides about."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from .errors import StorageError
from .simulated_disk import (
    Inode,
)
from .simulated_machine import ROOT, Machine
from .storage_protocols import Buffer, storage_error


class MemoryFile:
    """An open file in memory. See `millstream.storage.File`."""

    __slots__ = ("_inode", "_machine", "_open", "_writable", "path")

    def __init__(self, machine: Machine, inode: Inode, path: str, *, writable: bool) -> None:
        self.path = path
        self._machine = machine
        self._inode = inode
        self._writable = writable
        self._open = True

    def read(self, length: int, position: int) -> bytes:
        """See `File.read`."""
        with self._machine.lock:
            self._ensure_open("read", position)
            self._machine.begin_read(self.path, "read", position)
            return self._inode.read(length, position)

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """See `File.write`."""
        content = b"".join(buffers)
        machine = self._machine
        with machine.lock:
            self._ensure_writable("write", position)
            if not content:
                return
            for piece in machine.pieces(content):
                try:
                    index = machine.begin("write", self.path, "write")
                except StorageError as error:
                    if machine.faults.partial_writes:
                        self._inode.write(machine.beginning(piece), position)
                    raise error.at(position=position) from None
                self._inode.write(piece, position)
                position += len(piece)
                machine.end(index)

    def size(self) -> int:
        """See `File.size`."""
        with self._machine.lock:
            self._ensure_open("get the size of a file")
            return self._inode.size

    def truncate(self, size: int) -> None:
        """See `File.truncate`."""
        with self._machine.lock:
            self._ensure_writable("truncate", size)
            with self._machine.operation("truncate", self.path, "truncate"):
                self._inode.truncate(size)

    def sync(self) -> None:
        """See `File.sync`. A sync made to fail gives up the unsynced pages, as Linux does."""
        with self._machine.lock:
            self._ensure_open("sync")
            try:
                index = self._machine.begin("sync", self.path, "sync")
            except StorageError:
                self._inode.fail_sync()
                raise
            self._inode.sync()
            self._machine.end(index)

    def start_sync(self, length: int, position: int) -> None:
        """See `File.start_sync`. Which unsynced pages survive a crash is chosen by the crash."""
        with self._machine.lock:
            self._ensure_open("begin to sync", position)

    def close(self) -> None:
        """See `File.close`."""
        self._open = False

    def _ensure_open(self, action: str, position: int | None = None) -> None:
        self._machine.ensure_alive()
        if not self._open:
            raise storage_error(action, ROOT, errno.EBADF, self.path, position)

    def _ensure_writable(self, action: str, position: int) -> None:
        self._ensure_open(action, position)
        if not self._writable:
            raise storage_error(action, ROOT, errno.EBADF, self.path, position)
        if self._inode.words is not None:
            raise storage_error(f"{action} shared words", ROOT, errno.EINVAL, self.path, position)
