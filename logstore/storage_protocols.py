"""What the log needs of a place to keep its files: protocols, their errors, and no operation.

`File`, `Lock`, `Words` and `Storage` are what everything above is written against. They are
implemented on a directory by `storage.PosixStorage` and in memory by `memory.MemoryStorage`. What
the bytes mean is in docs/log-format.md, the promises made with them in docs/guarantees.md.

Paths are relative to the store's root, "/" between names, without "." and ".."; "" is the root.
Every refusal of the operating system is a `StorageError` that carries errno, path and position and
says what to do about it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from .errors import StorageError, UsageError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What can be written. A memoryview must be contiguous; its item format does not matter."""

OpenMode: TypeAlias = Literal["r", "rw", "x"]
"""r: existing, read only; rw: existing, read and write; x: create, fails if it exists."""


class File(Protocol):
    """One open file. Positional, so threads may share it; closing it while in use may not."""

    @property
    def path(self) -> str:
        """Path relative to the root of its storage."""
        ...

    def read(self, length: int, position: int) -> bytes:
        """Return `length` bytes from `position`; fewer only where the file ends."""
        ...

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write the buffers one after another from `position`: all of them, or StorageError.

        After an error any part may have been written. A write past the end fills with zeros.
        """
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Cut to, or extend with zeros to, `size` bytes."""
        ...

    def sync(self) -> None:
        """Return when the content and the size are durable. Does not cover the file's name.

        After an error nobody knows what is on the disk: reopen and verify, do not sync again.
        """
        ...

    def start_sync(self, length: int, position: int) -> None:
        """Let the system begin to write these bytes to the disk, so that a later `sync` is short.

        Promises nothing; without effect where a system has no such call.
        """
        ...

    def close(self) -> None:
        """Close; again is fine. Does not sync."""
        ...


class Lock(Protocol):
    """An advisory lock between processes and threads that dies with the process holding it.

    One holder per object: a second acquisition, by any thread, finds it taken until `release`.
    """

    @property
    def path(self) -> str:
        """Path relative to the root of its storage."""
        ...

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, exclusive or shared with other shared holders; False if it is taken."""
        ...

    def try_again(self) -> bool:
        """As `try_acquire`, exclusively, of a lock file that nobody has removed since the last one.

        Two thirds of its cost: it does not look whether the file is still there.
        """
        ...

    def acquire(self) -> None:
        """Take the lock exclusively and wait for it as long as it takes.

        Only for locks held for moments: there is no timeout, and a stopped holder stops us.
        """
        ...

    def release(self) -> None:
        """Let go; without effect when it is not held."""
        ...

    def close(self) -> None:
        """Let go and close; again is fine. The lock file stays."""
        ...


class Words(Protocol):
    """64-bit integers shared between processes through memory; zero when new, never durable."""

    @property
    def view(self) -> memoryview:
        """The words, format "q". Assigning an item is one aligned store of 8 bytes.

        `grow` and `close` replace it: fetch it again afterwards, keep no slices of it.
        """
        ...

    @property
    def inode(self) -> int:
        """Identity of the file since the machine started, to notice that what others wrote is gone.

        After a restart some words may be older than others, and than the files they speak of.
        """
        ...

    def grow(self, count: int) -> None:
        """Make room for at least `count` words; new ones are zero. Never shrinks the file."""
        ...

    def close(self) -> None:
        """Unmap; again is fine. The file and its words stay."""
        ...


class Bell(Protocol):
    """Wakes one waiting process at the call of another."""

    def wait(self, seconds: float) -> None:
        """Return when somebody rings, or after `seconds`; sometimes earlier."""
        ...

    def close(self) -> None:
        """Stop listening; again is fine."""
        ...


class Journal(Protocol):
    """The commits of the catalog that are not in its own file yet."""

    def sync(self) -> None:
        """Make those durable that were not synced; others may commit meanwhile.

        Raises:
            StorageError: Those since the last sync are durable, or not.
        """
        ...

    def close(self) -> None:
        """Close; again is fine."""
        ...


class Storage(Protocol):
    """A directory tree that can be made durable. All methods are thread-safe."""

    @property
    def root(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def read_only(self) -> bool:
        """True if everything that changes something is refused (StorageError, EROFS)."""
        ...

    @property
    def in_memory(self) -> bool:
        """True if nothing is on a disk, so that no sync takes time."""
        ...

    def open(self, path: str, mode: OpenMode) -> File:
        """Open a file; a missing one is a StorageError with ENOENT, a present one for x EEXIST.

        A created file's name is durable after `sync_directory` of its directory.
        """
        ...

    def exists(self, path: str) -> bool:
        """True for a file or a directory."""
        ...

    def size(self, path: str) -> int:
        """Length of a file in bytes."""
        ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty if the directory is missing."""
        ...

    def make_directory(self, path: str) -> None:
        """Create a directory and its parents, durably; present ones are fine."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move a file or directory atomically, over a present file.

        Durable after syncing the directories of both names.
        """
        ...

    def link(self, source: str, target: str) -> None:
        """Give a file another name, which must be free; both stand for the same bytes from then on.

        Durable after syncing the directory of `target`. A file system without this answers
        EPERM or ENOTSUP.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file; a missing one is fine. Durable after syncing the directory."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory; a missing one is fine. Durable after syncing its parent."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory are durable."""
        ...

    def lock(self, path: str) -> Lock:
        """Open, and create if need be, a lock file. Does not take the lock."""
        ...

    def words(self, path: str, count: int) -> Words:
        """Map, and create if need be, a file of at least `count` shared words."""
        ...

    def bell(self, path: str) -> Bell | None:
        """Listen at `path`. None where there are no bells: then look at the words in turn."""
        ...

    def ring(self, path: str) -> None:
        """Wake who listens at `path`; nobody there is fine."""
        ...

    def catalog_filename(self) -> str:
        """What SQLite opens for the catalog: a file name or a URI."""
        ...

    def catalog_journal(self) -> Journal | None:
        """Open the journal of the catalog, which is open; None if it has none to be synced."""
        ...

    def sync_point(self, kind: str) -> None:
        """Announce a durable step taken outside this seam ("catalog.commit").

        Does nothing here; a fault plan in a test may fail or crash at it.
        """
        ...

    def free_bytes(self) -> int:
        """Bytes this process may still write."""
        ...

    def close(self) -> None:
        """Close; again is fine. Files, locks and words are closed by those who opened them."""
        ...


_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space and try again, nothing acknowledged was lost",
    errno.EDQUOT: "the quota is used up: free space and try again, nothing acknowledged was lost",
    errno.EFBIG: "the file size limit (ulimit -f) is reached: raise it and try again",
    errno.EROFS: "it is read-only: open the store with read_only=True, or make it writable",
    errno.EACCES: "permission denied: check who owns the files, or open with read_only=True",
    errno.EPERM: "not permitted: check who owns the files, or open with read_only=True",
    errno.ENOENT: "it does not exist",
    errno.ENOTDIR: "a part of the path is a file: give that of a directory",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.EXDEV: "source and target are on different file systems",
    errno.EMFILE: "too many open files in this process: raise `ulimit -n`, or open fewer stores",
    errno.ENFILE: "too many open files on this machine: close some and try again",
    errno.EIO: "the device failed: check the disk and its log, then close and reopen the store",
    errno.ESTALE: "the network mount is stale: mount it again, then close and reopen the store",
    errno.EBADF: "it is closed",
}


def storage_error(
    action: str, root: str, number: int, path: str, position: int | None = None
) -> StorageError:
    """The error for a refused operation: what, where, why, and what to do.

    >>> print(storage_error("write", "/data/store", 28, "topics/a/0/0.segment", 4096).errno)
    28
    """
    reason = _REMEDIES.get(number) or f"{os.strerror(number)} (errno {number})"
    message = f"cannot {action} in {root}: {reason}"
    return StorageError(message, errno=number, path=path or ".", position=position)


def checked_path(path: str, *, root_allowed: bool = False) -> str:
    """Return `path` if it is a relative path that stays below the root, else UsageError.

    >>> checked_path("topics/a/0")
    'topics/a/0'
    """
    if not path:
        if root_allowed:
            return path
        raise UsageError("a storage path must not be empty")
    if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise UsageError(f"{path!r} does not stay inside the store: use names joined by '/'")
    return path


def byte_length(buffers: Sequence[Buffer]) -> int:
    """Sum of the buffers' lengths in bytes, whatever their item formats."""
    if memoryview in map(type, buffers):  # its len() counts items, which may be wider
        return sum([memoryview(buffer).nbytes for buffer in buffers])
    return sum(map(len, buffers))
