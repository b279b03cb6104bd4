"""Files, locks and shared words of the operating system: the only module that asks it for them.

`PosixStorage` implements the protocols of storage_protocols.py, which are offered from here too,
on a directory of Linux or macOS. Nothing here knows what the bytes mean, and nothing here decides
when to sync.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import warnings
from collections.abc import Sequence

from .config import path_text
from .errors import StorageError, StoreClosedError
from .posix_bell import PosixBell, ring
from .posix_facts import boot_identity
from .posix_lock import PosixLock, fork_gate
from .storage_protocols import (
    Buffer,
    File,
    Lock,
    OpenMode,
    Storage,
    Words,
    byte_length,
    checked_path,
    storage_error,
)

__all__ = [
    "CATALOG_NAME",
    "Buffer",
    "File",
    "Lock",
    "OpenMode",
    "PosixFile",
    "PosixLock",
    "PosixStorage",
    "PosixWords",
    "Storage",
    "Words",
]

CATALOG_NAME = "catalog.db"
"""File of the SQLite catalog, directly under the root."""

IOV_MAX = 1024
"""Buffers per pwritev call: the limit of Linux and macOS."""

WRITE_BYTES_MAX = 256 * 1024
"""Bytes per pwritev call, which ends at a multiple of it. For more Linux takes pages of 2 MiB for
its cache, which are rarely at hand: in a virtual machine each had to be fetched from the host, and
50 MB took 80 ms instead of 11."""

_ZEROS = bytes(64 * 1024)


def _sync_descriptor(descriptor: int) -> None:
    if sys.platform == "darwin":
        # fsync on macOS leaves the data in the drive's cache. Some network and FUSE file
        # systems do not know F_FULLFSYNC; there fsync is the best there is.
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}:
                raise
            os.fsync(descriptor)
    else:
        os.fdatasync(descriptor)


def _first_bytes(views: Sequence[memoryview], position: int) -> list[memoryview]:
    """As much of buffers, the last one first, as one call of the system is given at a position."""
    taken: list[memoryview] = []
    # Calls end where pages do, so that none is begun by one call and finished by the next.
    left = WRITE_BYTES_MAX - position % WRITE_BYTES_MAX
    for view in reversed(views[-IOV_MAX:]):
        taken.append(view[:left])
        left -= len(taken[-1])
        if not left:
            break
    return taken


class PosixFile:
    """A file descriptor and where it came from. See `File`."""

    __slots__ = ("_descriptor", "_root", "path")

    def __init__(self, descriptor: int, root: str, path: str) -> None:
        self._descriptor = descriptor
        self._root = root
        self.path = path

    def read(self, length: int, position: int) -> bytes:
        """See `File.read`."""
        try:
            chunk = os.pread(self._descriptor, length, position)
            if len(chunk) == length or not chunk:
                return chunk
            # One call returns at most 2 GiB, and less when a signal interrupts it.
            chunks = [chunk]
            done = len(chunk)
            while done < length:
                chunk = os.pread(self._descriptor, length - done, position + done)
                if not chunk:
                    break
                chunks.append(chunk)
                done += len(chunk)
            return b"".join(chunks)
        except OSError as error:
            raise self._error("read", error, position) from error

    def write(self, buffers: Sequence[Buffer], position: int) -> None:
        """See `File.write`."""
        try:
            size_bytes = sum(map(len, buffers))
            written = 0
            if size_bytes <= WRITE_BYTES_MAX:
                first = buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX]
                written = os.pwritev(self._descriptor, first, position)
            # Counted in bytes only where the quick count differs: items of a view may be wider.
            if written != size_bytes and written != byte_length(buffers):
                self._write_rest(buffers, written, position)
        except OSError as error:
            raise self._error("write", error, position) from error

    def _write_rest(self, buffers: Sequence[Buffer], written: int, position: int) -> None:
        """Go on after `written` bytes: too many for one call, or the system took a part only."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        views.reverse()
        position += written
        while True:
            # The next buffer is the last of `views`; drop what has been written.
            while views and written >= len(views[-1]):
                written -= len(views.pop())
            if not views:
                return
            views[-1] = views[-1][written:]
            written = os.pwritev(self._descriptor, _first_bytes(views, position), position)
            if not written:
                raise OSError(errno.EIO, "the system accepted no byte of a write")
            position += written

    def size(self) -> int:
        """See `File.size`."""
        try:
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise self._error("get the size of a file", error) from error

    def truncate(self, size: int) -> None:
        """See `File.truncate`."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._error("truncate", error, size) from error

    def sync(self) -> None:
        """See `File.sync`: fdatasync, or F_FULLFSYNC on macOS."""
        try:
            if self._descriptor < 0:
                raise OSError(errno.EBADF, "")  # noqa: TRY301 - becomes the same error below
            _sync_descriptor(self._descriptor)
        except OSError as error:
            raise self._error("sync", error) from error

    def start_sync(self, length: int, position: int) -> None:
        """See `File.start_sync`.

        Linux begins to write dirty pages that are not needed any more, and as it is still writing
        them it forgets none.
        """
        if not hasattr(os, "posix_fadvise"):
            return  # macOS
        try:
            os.posix_fadvise(self._descriptor, position, length, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._error("begin to sync", error, position) from error

    def close(self) -> None:
        """See `File.close`."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()  # first: the warning may be an error
            warnings.warn(f"unclosed file {self.path}", ResourceWarning, source=self, stacklevel=2)

    def _error(self, action: str, error: OSError, position: int | None = None) -> StorageError:
        # Systems disagree about what is wrong with descriptor -1; we know that it is closed.
        number = errno.EBADF if self._descriptor < 0 else error.errno or errno.EIO
        return storage_error(action, self._root, number, self.path, position)


class PosixWords:
    """A shared mapping of a file. See `Words`."""

    __slots__ = ("_descriptor", "_read_only", "_root", "inode", "path", "view")

    def __init__(self, full_path: str, root: str, path: str, *, read_only: bool) -> None:
        self.path = path
        self.view = memoryview(b"").cast("q")
        self._root = root
        self._read_only = read_only
        self._descriptor = -1
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            self._descriptor = os.open(full_path, flags | os.O_CLOEXEC, 0o666)
            number = os.fstat(self._descriptor).st_ino
            self.inode = (number ^ boot_identity()) & 0x7FFF_FFFF_FFFF_FFFF
        except OSError as error:
            raise self._error("open shared words", error) from error

    def grow(self, count: int) -> None:
        """See `Words.grow`. A read-only mapping finds longer files, but cannot make them so."""
        if self._descriptor < 0:
            raise StoreClosedError("the shared words are closed", path=self.path)
        needed = max(count, 1) * 8
        try:
            size = os.fstat(self._descriptor).st_size
            if size < needed and not self._read_only:
                size = self._extend(needed)
        except OSError as error:
            raise self._error("extend shared words", error) from error
        if size < needed:
            raise StorageError(
                f"cannot map {count} shared words in {self._root}: the file has {size // 8};"
                " a process that may write has to open the store first",
                errno=errno.EINVAL,
                path=self.path,
            )
        access = mmap.ACCESS_READ if self._read_only else mmap.ACCESS_WRITE
        try:
            mapping = mmap.mmap(self._descriptor, size // 8 * 8, access=access)
        except OSError as error:
            raise self._error("map shared words", error) from error
        # The old mapping shows the same memory and is unmapped when its last view goes, so that
        # a thread which is just using it comes to no harm.
        self.view = memoryview(mapping).cast("q")

    def _extend(self, needed: int) -> int:
        """Fill with zeros up to `needed` bytes, unless another process did it first.

        The zeros are written, not implied by a longer size: storing into a hole of a mapped file
        on a full disk kills the process, a refused write is an error.
        """
        with fork_gate:  # a child must not inherit the descriptor while it is locked
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                size = os.fstat(self._descriptor).st_size
                while size < needed:
                    zeros = _ZEROS[: needed - size]
                    size += os.pwrite(self._descriptor, zeros, size)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return size

    def close(self) -> None:
        """See `Words.close`. There is no word left, for writing either."""
        self.view = memoryview(bytearray()).cast("q")
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()  # first: the warning may be an error
            warnings.warn(f"unclosed words {self.path}", ResourceWarning, source=self, stacklevel=2)

    def _error(self, action: str, error: OSError) -> StorageError:
        return storage_error(action, self._root, error.errno or errno.EIO, self.path)


class PosixStorage:
    """A directory of the operating system. See `Storage`.

    Args:
        root: The store's directory; created with its parents unless `read_only`.
        read_only: Refuse everything that would change something, creation of `root` included.

    Locks are flock and words are mmap: the directory must be on a local file system.
    """

    in_memory = False

    def __init__(self, root: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.root = os.path.abspath(path_text(root))
        self.read_only = read_only
        if read_only:
            if not os.path.isdir(self.root):
                raise storage_error("open a store", self.root, errno.ENOENT, "")
        else:
            self._make_root()
        self._identity = self._root_identity()

    def __repr__(self) -> str:
        return f"<PosixStorage {self.root}{' read-only' if self.read_only else ''}>"

    def _make_root(self) -> None:
        missing = []
        directory = self.root
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        try:
            for directory in reversed(missing):
                os.mkdir(directory)
                _sync_directory(os.path.dirname(directory))
        except OSError as error:
            # Several processes may create the store at once; one of them comes first.
            if not os.path.isdir(self.root):
                if error.errno == errno.EEXIST:  # a file has the name of a directory
                    error.errno = errno.ENOTDIR
                raise self._error("create a store", error, "") from error

    def open(self, path: str, mode: OpenMode) -> PosixFile:
        """See `Storage.open`."""
        flags = {"r": os.O_RDONLY, "rw": os.O_RDWR, "x": os.O_RDWR | os.O_CREAT | os.O_EXCL}[mode]
        if mode != "r":
            self._ensure_writable("open a file for writing", path)
        else:
            self._require_root(path)
        try:
            descriptor = os.open(self._full_path(path), flags | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._error("create" if mode == "x" else "open", error, path) from error
        return PosixFile(descriptor, self.root, path)

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        try:
            os.stat(self._full_path(path, root_allowed=True))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._error("look for a file", error, path) from error
        return True

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        try:
            return os.stat(self._full_path(path)).st_size
        except OSError as error:
            raise self._error("get the size of a file", error, path) from error

    def list(self, path: str) -> list[str]:
        """See `Storage.list`."""
        try:
            return sorted(os.listdir(self._full_path(path, root_allowed=True)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error("list a directory", error, path) from error

    def make_directory(self, path: str) -> None:
        """See `Storage.make_directory`."""
        self._ensure_writable("create a directory", path)
        full_path = self._full_path(path, root_allowed=True)
        try:
            parent = self.root
            for name in full_path[len(self.root) :].split("/")[1:]:
                directory = f"{parent}/{name}"
                if not os.path.isdir(directory):
                    try:
                        os.mkdir(directory)
                    except FileExistsError:
                        if not os.path.isdir(directory):
                            raise
                # Also if it was there: its creator may have died before the sync.
                _sync_directory(parent)
                parent = directory
        except OSError as error:
            raise self._error("create a directory", error, path) from error

    def rename(self, source: str, target: str) -> None:
        """See `Storage.rename`."""
        self._ensure_writable("rename", source)
        try:
            os.rename(self._full_path(source), self._full_path(target))
        except OSError as error:
            raise self._error(f"rename to {target}", error, source) from error

    def link(self, source: str, target: str) -> None:
        """See `Storage.link`."""
        self._ensure_writable("link", source)
        try:
            os.link(self._full_path(source), self._full_path(target))
        except OSError as error:
            raise self._error(f"link to {target}", error, source) from error

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        self._ensure_writable("remove", path)
        try:
            os.unlink(self._full_path(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error("remove", error, path) from error

    def remove_directory(self, path: str) -> None:
        """See `Storage.remove_directory`."""
        self._ensure_writable("remove a directory", path)
        try:
            os.rmdir(self._full_path(path))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            if not os.path.islink(self._full_path(path)):
                raise self._error("remove a directory", error, path) from error
            os.unlink(self._full_path(path))  # to where somebody has moved it
        except OSError as error:
            raise self._error("remove a directory", error, path) from error

    def sync_directory(self, path: str) -> None:
        """See `Storage.sync_directory`."""
        self._ensure_writable("sync a directory", path)
        try:
            _sync_directory(self._full_path(path, root_allowed=True))
        except OSError as error:
            raise self._error("sync a directory", error, path) from error

    def lock(self, path: str) -> PosixLock:
        """See `Storage.lock`. Read-only, the lock file must exist."""
        self._require_root(path)
        return PosixLock(self._full_path(path), self.root, path, create=not self.read_only)

    def words(self, path: str, count: int) -> PosixWords:
        """See `Storage.words`. Read-only, the file must exist and be long enough."""
        self._require_root(path)
        full_path = self._full_path(path)
        words = PosixWords(full_path, self.root, path, read_only=self.read_only)
        try:
            words.grow(count)
        except BaseException:
            words.close()
            raise
        return words

    def bell(self, path: str) -> PosixBell | None:
        """See `Storage.bell`. A named pipe; None if read-only or if the file system has none."""
        if self.read_only:
            return None
        try:
            return PosixBell(self._full_path(path))
        except OSError:
            return None

    def ring(self, path: str) -> None:
        """See `Storage.ring`."""
        ring(f"{self.root}/{path}")

    def catalog_filename(self) -> str:
        """See `Storage.catalog_filename`."""
        self._require_root(CATALOG_NAME)
        return f"{self.root}/{CATALOG_NAME}"

    def catalog_journal(self) -> PosixFile | None:
        """See `Storage.catalog_journal`: SQLite's write-ahead log, which stays while it is open."""
        path = f"{CATALOG_NAME}-wal"
        return self.open(path, "rw") if self.exists(path) else None

    def sync_point(self, kind: str) -> None:
        """See `Storage.sync_point`."""

    def free_bytes(self) -> int:
        """See `Storage.free_bytes`. Without the blocks reserved for root."""
        try:
            status = os.statvfs(self.root)
        except OSError as error:
            raise self._error("get the free space", error, "") from error
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """See `Storage.close`. Holds nothing itself."""

    def _full_path(self, path: str, *, root_allowed: bool = False) -> str:
        checked_path(path, root_allowed=root_allowed)
        return f"{self.root}/{path}" if path else self.root

    def _root_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.root)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _require_root(self, path: str) -> None:
        """Refuse to go on in a directory that has taken the place of the one that was opened.

        Open files are still those of that one: two stores would get a part of the records each.
        """
        if self._root_identity() != self._identity:
            raise StorageError(
                f"{self.root} was moved, removed or replaced since it was opened: close the store,"
                " put the right directory in its place, and open it again",
                errno=errno.ESTALE,
                path=path or ".",
            )

    def _ensure_writable(self, action: str, path: str) -> None:
        if self.read_only:
            raise storage_error(action, self.root, errno.EROFS, path)
        self._require_root(path)

    def _error(self, action: str, error: OSError, path: str) -> StorageError:
        return storage_error(action, self.root, error.errno or errno.EIO, path)


def _sync_directory(full_path: str) -> None:
    descriptor = os.open(full_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        if sys.platform == "darwin":
            _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
