"""`MemoryStorage`: the storage protocols in memory, with faults and power failures on demand.

It serves `millstream.open(":memory:")` and, through `millstream.testing`, crash tests. What a crash
may leave of files and names is decided in simulated_disk.py; when one happens in faults.py and
simulated_machine.py. The catalog lives in a shared in-memory SQLite database; its commits are
durable at once, but for those announced as unsynced, which a power failure may take back.

Threads and several stores may share one object: locks exclude each other, words are common.
"""

from __future__ import annotations

import contextlib
import errno
from random import Random

from .errors import StoreClosedError, UsageError
from .faults import FaultPlan, SimulatedCrash
from .memory_catalog import (
    MemoryJournal,
    copy_catalog,
    keep_catalog,
    restore_catalog,
    serialized_catalog,
)
from .memory_file import MemoryFile
from .memory_words import MemoryBell, MemoryWords
from .simulated_disk import (
    Entries,
    Inode,
    Keep,
    NameChange,
    NameTable,
    after_power_failure,
    table_of,
)
from .simulated_machine import ROOT, Machine
from .storage_protocols import OpenMode, checked_path, storage_error

FREE_BYTES = 1 << 40


class MemoryLock:
    """A lock between the users of one `MemoryStorage`. See `millstream.storage.Lock`."""

    __slots__ = ("_held", "_open", "_storage", "path")

    def __init__(self, storage: MemoryStorage, path: str) -> None:
        self.path = path
        self._storage = storage
        self._held: Inode | None = None
        self._open = True

    def try_acquire(self, *, shared: bool = False) -> bool:
        """See `Lock.try_acquire`."""
        with self._storage.machine.lock:
            self._ensure_open()
            if self._held is not None:
                return False
            # Looked up anew each time: the previous holder may have removed the file.
            inode = self._storage.lock_inode(self.path)
            if inode.holders and not (shared and all(inode.holders.values())):
                return False
            inode.holders[self] = shared
            self._held = inode
            return True

    def try_again(self) -> bool:
        """See `Lock.try_again`."""
        return self.try_acquire()

    def acquire(self) -> None:
        """See `Lock.acquire`."""
        machine = self._storage.machine
        with machine.lock:
            while not self.try_acquire():
                machine.changed.wait()

    def release(self) -> None:
        """See `Lock.release`."""
        machine = self._storage.machine
        with machine.lock:
            inode, self._held = self._held, None
            if inode is not None:
                del inode.holders[self]
                machine.changed.notify_all()

    def close(self) -> None:
        """See `Lock.close`."""
        self.release()
        self._open = False

    def _ensure_open(self) -> None:
        self._storage.machine.ensure_alive()
        if not self._open:
            raise StoreClosedError("the lock is closed: open the store again", path=self.path)


class MemoryStorage:
    """A store's files in memory, which can lose power. See `millstream.storage.Storage`.

    Give it to `millstream.open(storage=...)`, let it work, and take `crash()`: another storage that
    holds what a power failure at that moment could have left. Open a store on that and check what
    you promised. `close()` loses nothing, so one object serves several stores, one after another
    and at once.

    Args:
        faults: When to fail or crash; never, if not given. Also an attribute.
        crashable: Keep what `crash` and `trace` need. Without it memory holds the content only.

    >>> storage = MemoryStorage()
    >>> file = storage.open("data", "x")
    >>> storage.sync_directory("")
    >>> file.write([b"synced"], 0)
    >>> file.sync()
    >>> file.write([b" and not"], 6)
    >>> storage.crash(keep="none").open("data", "r").read(100, 0)
    b'synced'
    >>> storage.trace[:3]
    [('create', 'data'), ('sync_directory', '.'), ('write', 'data')]
    """

    in_memory = True

    def __init__(self, faults: FaultPlan | None = None, *, crashable: bool = True) -> None:
        self.root = ROOT
        self.read_only = False
        self.machine = Machine(
            faults or FaultPlan(), NameTable(tracked=crashable), crashable=crashable
        )

    def __repr__(self) -> str:
        files = sum(map(len, self.machine.names.entries.values()))
        return f"<MemoryStorage {files} files>"

    @property
    def faults(self) -> FaultPlan:
        """The plan in force. Change it, or put another one in its place, at any time."""
        return self.machine.faults

    @faults.setter
    def faults(self, plan: FaultPlan) -> None:
        self.machine.faults = plan

    @property
    def trace(self) -> list[tuple[str, str]]:
        """Every operation so far as (kind, path): the operation with number k is `trace[k]`."""
        return self.machine.trace

    @property
    def is_dead(self) -> bool:
        """True once it crashed."""
        return self.machine.dead

    def crash(
        self, seed: int = 0, keep: Keep = "random", *, faults: FaultPlan | None = None
    ) -> MemoryStorage:
        """Lose power, and return the storage as the next start of the machine finds it.

        This object is dead afterwards: every use raises `SimulatedCrash`. `crash` itself may be
        called again, for another of the possible outcomes.

        Args:
            seed: Decides in "random". The same operations and seed give the same outcome.
            keep: What survives of all that was not synced. "none": nothing. "all": everything, as
                when only the process dies. "random": of every file any subset of its pages in any
                of their versions, some torn at sectors, any of its sizes; of the names any
                changes in a possible order; of the shared words any.
            faults: The plan of the returned storage, to crash it again during its recovery.

        Raises:
            UsageError: The storage was made with `crashable=False`, or somebody has a transaction
                open on the catalog.
        """
        machine = self.machine
        if not machine.crashable:
            raise UsageError("this storage keeps no history: use MemoryStorage(crashable=True)")
        with machine.lock:
            with contextlib.suppress(SimulatedCrash):
                machine.die()
            random = Random(seed)  # noqa: S311 - repeatable, no secrets
            entries: Entries = after_power_failure(machine.names, keep, random)
            survivor = MemoryStorage(faults)
            survivor.machine.names = table_of(entries)
            if machine.catalog_keeper is not None:
                survivor.catalog_filename()
                synced = machine.synced_catalog
                if synced is None or keep == "all" or (keep == "random" and random.random() < 0.5):
                    copy_catalog(machine, survivor.machine)
                else:
                    restore_catalog(synced, survivor.machine)
        return survivor

    def read_only_view(self) -> MemoryStorage:
        """The same storage through which nothing can be changed, as for a second process."""
        view = MemoryStorage.__new__(MemoryStorage)
        view.root = self.root
        view.read_only = True
        view.machine = self.machine
        return view

    def open(self, path: str, mode: OpenMode) -> MemoryFile:
        """See `Storage.open`."""
        machine = self.machine
        action = "create" if mode == "x" else "open"
        with machine.lock:
            machine.ensure_alive()
            if mode != "r":
                self._ensure_writable("open a file for writing", path)
            checked_path(path)
            inode = self._create(path) if mode == "x" else self._find(path, action)
            return MemoryFile(machine, inode, path, writable=mode != "r")

    def _find(self, path: str, action: str) -> Inode:
        inode = self.machine.names.find(path)
        if inode is None:
            number = self._parent_problem(path) or errno.ENOENT
            if self.machine.names.is_directory(path):
                number = errno.EISDIR
            raise storage_error(action, ROOT, number, path)
        return inode

    def _parent_problem(self, path: str) -> int:
        """Errno for a path whose directory is missing or a file; 0 if it is there."""
        names = self.machine.names
        directory = path.rpartition("/")[0]
        if names.is_directory(directory):
            return 0
        while not names.is_directory(directory):
            if names.find(directory) is not None:
                return errno.ENOTDIR
            directory = directory.rpartition("/")[0]
        return errno.ENOENT

    def _create(self, path: str) -> Inode:
        machine = self.machine
        names = machine.names
        if names.find(path) is not None or names.is_directory(path):
            raise storage_error("create", ROOT, errno.EEXIST, path)
        if number := self._parent_problem(path):
            raise storage_error("create", ROOT, number, path)
        inode = Inode(tracked=machine.crashable)
        with machine.operation("create", path, "create"):
            names.change(NameChange("create", path, inode=inode))
        return inode

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        checked_path(path, root_allowed=True)
        with self.machine.lock:
            self.machine.ensure_alive()
            names = self.machine.names
            return names.find(path) is not None or names.is_directory(path)

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        checked_path(path)
        with self.machine.lock:
            self.machine.ensure_alive()
            return self._find(path, "get the size of a file").size

    def list(self, path: str) -> list[str]:
        """See `Storage.list`."""
        checked_path(path, root_allowed=True)
        with self.machine.lock:
            self.machine.ensure_alive()
            if self.machine.names.find(path) or self._parent_problem(path) == errno.ENOTDIR:
                raise storage_error("list a directory", ROOT, errno.ENOTDIR, path)
            return sorted(self.machine.names.entries.get(path, ()))

    def make_directory(self, path: str) -> None:
        """See `Storage.make_directory`. One operation for each new directory."""
        checked_path(path, root_allowed=True)
        machine = self.machine
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("create a directory", path)
            parts = path.split("/")
            for end in range(1, len(parts) + 1) if path else ():
                directory = "/".join(parts[:end])
                if machine.names.find(directory) is not None:
                    number = errno.EEXIST if directory == path else errno.ENOTDIR
                    raise storage_error("create a directory", ROOT, number, path)
                if not machine.names.is_directory(directory):
                    with machine.operation("make_directory", directory, "create a directory"):
                        machine.names.make_directory(directory)

    def rename(self, source: str, target: str) -> None:
        """See `Storage.rename`."""
        checked_path(source)
        checked_path(target)
        machine = self.machine
        action = f"rename to {target}"
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("rename", source)
            self._check_rename(source, target, action)
            if source == target:
                return
            with machine.operation("rename", source, action):
                machine.names.change(NameChange("rename", source, target))

    def _check_rename(self, source: str, target: str, action: str) -> None:
        names = self.machine.names
        is_directory = names.is_directory(source)
        number = self._parent_problem(source) or self._parent_problem(target)
        if number:
            pass
        elif names.find(source) is None and not is_directory:
            number = errno.ENOENT
        elif target.startswith(source + "/"):
            number = errno.EINVAL
        elif source.startswith(target + "/"):
            number = errno.ENOTEMPTY
        elif is_directory and names.find(target) is not None:
            number = errno.ENOTDIR
        elif names.is_directory(target) and target != source:
            if not is_directory:
                number = errno.EISDIR
            elif names.entries[target]:
                number = errno.ENOTEMPTY
        if number:
            raise storage_error(action, ROOT, number, source)

    def link(self, source: str, target: str) -> None:
        """See `Storage.link`."""
        checked_path(source)
        checked_path(target)
        machine = self.machine
        action = f"link to {target}"
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("link", source)
            inode = self._find(source, action)
            number = self._parent_problem(target)
            if machine.names.find(target) is not None or machine.names.is_directory(target):
                number = errno.EEXIST
            if number:
                raise storage_error(action, ROOT, number, source)
            with machine.operation("create", target, action):
                machine.names.change(NameChange("create", target, inode=inode))

    def remove(self, path: str) -> None:
        """See `Storage.remove`. A missing file is no operation."""
        checked_path(path)
        machine = self.machine
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("remove", path)
            if machine.names.is_directory(path):
                raise storage_error("remove", ROOT, errno.EISDIR, path)
            if machine.names.find(path) is not None:
                with machine.operation("remove", path, "remove"):
                    machine.names.change(NameChange("remove", path))

    def remove_directory(self, path: str) -> None:
        """See `Storage.remove_directory`. A missing directory is no operation."""
        checked_path(path)
        machine = self.machine
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("remove a directory", path)
            if machine.names.find(path) is not None:
                raise storage_error("remove a directory", ROOT, errno.ENOTDIR, path)
            if machine.names.is_directory(path):
                if machine.names.entries[path]:
                    raise storage_error("remove a directory", ROOT, errno.ENOTEMPTY, path)
                with machine.operation("remove_directory", path, "remove a directory"):
                    machine.names.change(NameChange("remove_directory", path))

    def sync_directory(self, path: str) -> None:
        """See `Storage.sync_directory`."""
        checked_path(path, root_allowed=True)
        machine = self.machine
        with machine.lock:
            machine.ensure_alive()
            self._ensure_writable("sync a directory", path)
            if not machine.names.is_directory(path):
                number = errno.ENOENT if machine.names.find(path) is None else errno.ENOTDIR
                raise storage_error("sync a directory", ROOT, number, path)
            with machine.operation("sync_directory", path or ".", "sync a directory"):
                machine.names.sync(path)

    def lock(self, path: str) -> MemoryLock:
        """See `Storage.lock`."""
        checked_path(path)
        with self.machine.lock:
            self.machine.ensure_alive()
            self.lock_inode(path)
            return MemoryLock(self, path)

    def lock_inode(self, path: str) -> Inode:
        """The lock file of that name, created if it is missing. For `MemoryLock`."""
        return self._find_or_create(path, "open a lock")

    def words(self, path: str, count: int) -> MemoryWords:
        """See `Storage.words`."""
        checked_path(path)
        with self.machine.lock:
            self.machine.ensure_alive()
            inode = self._find_or_create(path, "open shared words")
            words = MemoryWords(self.machine, inode, path, read_only=self.read_only)
            words.grow(count)
            return words

    def _find_or_create(self, path: str, action: str) -> Inode:
        inode = self.machine.names.find(path)
        if inode is not None:
            return inode
        return self._find(path, action) if self.read_only else self._create(path)

    def bell(self, path: str) -> MemoryBell:
        """See `Storage.bell`."""
        return MemoryBell(self.machine.bells[path])

    def ring(self, path: str) -> None:
        """See `Storage.ring`."""
        if (silent := self.machine.bells.get(path)) is not None and silent.locked():
            with contextlib.suppress(RuntimeError):  # another thread has rung it in the meantime
                silent.release()

    def catalog_filename(self) -> str:
        """See `Storage.catalog_filename`: a URI of SQLite's memdb, shared within the process."""
        machine = self.machine
        with machine.lock:
            machine.ensure_alive()
            if machine.catalog_keeper is None:
                machine.catalog_keeper = keep_catalog(machine.catalog_filename)
            return machine.catalog_filename

    def catalog_journal(self) -> MemoryJournal:
        """See `Storage.catalog_journal`; its sync is an operation "catalog.sync"."""
        return MemoryJournal(self.machine)

    def sync_point(self, kind: str) -> None:
        """See `Storage.sync_point`: one operation of that kind."""
        machine = self.machine
        if kind == "catalog.unsynced" and machine.crashable and machine.synced_catalog is None:
            # Not with the machine's lock held: another thread may be about to commit.
            machine.synced_catalog = serialized_catalog(machine)
        with machine.lock:
            index = machine.begin(kind, "", f"take the step {kind}")
            if kind == "catalog.commit":
                machine.synced_catalog = None
            # The caller takes the step after this returns, so it must return.
            with contextlib.suppress(SimulatedCrash):
                machine.end(index)

    def free_bytes(self) -> int:
        """See `Storage.free_bytes`: much, or nothing once the plan has filled the disk."""
        self.machine.ensure_alive()
        return 0 if self.machine.faults.is_full else FREE_BYTES

    def close(self) -> None:
        """See `Storage.close`. The content stays as long as this object."""

    def _ensure_writable(self, action: str, path: str) -> None:
        if self.read_only:
            raise storage_error(action, ROOT, errno.EROFS, path)
