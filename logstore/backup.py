"""Back up an open store while others write to it: one moment of all logs and of the catalog.

What makes it one moment is the append lock, held for microseconds: under it the ends of all logs
are read and a snapshot of the catalog begins. Whatever the catalog speaks of then (offsets,
checkpoints, committed transactions) lies below those ends, and what lies below them and is not
decided there is open, which whoever opens the copy aborts. Segments get a second name before that,
so that retention and compaction can go on; sealed ones are shared with the copy where the file
system allows it, the active ones are copied up to their ends.

The format is in docs/log-format.md, "Backups". Reading them back is `restore.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from .backup_archive import ARCHIVE_SUFFIXES, ArchiveWriter
from .backup_manifest import MANIFEST, Manifest, ManifestFile
from .config import TopicInfo, path_text
from .database_copy import Snapshot
from .engine import Engine
from .errors import LockedError, StorageError, UsageError
from .log import Log
from .segment import segment_path
from .storage import PosixStorage, Storage
from .storage_copy import copy_between, overlaps, remove_tree, take_over
from .tail import Slot
from .unfinished import PARTIAL_SUFFIX, made_beside

STAGE: Final = "backup.stage"
"""Directory of the second names, in the store; gone when the backup is done."""
LOCK: Final = "backup.lock"


class BackupReport(NamedTuple):
    """What a backup holds."""

    path: str
    partitions: int
    segments: int
    data_bytes: int
    """Bytes of all segments in it."""
    shared_bytes: int
    """Bytes of segments that are the same files as those of the store."""


class _Staged(NamedTuple):
    """The segments of one partition, under their second names."""

    log: Log
    version: int
    """Of the list of segments when they were linked."""
    bases: list[int]


class _Part(NamedTuple):
    """One partition at the moment of the backup."""

    log: Log
    bases: list[int]
    end_position: int
    """Where the data of the last segment end."""
    log_end: int


class BackupTarget(Protocol):
    """Where a backup goes."""

    def begin(self, manifest: Manifest) -> None:
        """Told first what is in it."""
        ...

    def put_catalog(self, snapshot: Snapshot) -> None:
        """The catalog."""
        ...

    def put_segment(self, source: Storage, path: str, file: ManifestFile, sealed: bool) -> bool:
        """A segment from its second name; whether the copy is the same file."""
        ...

    def finish(self) -> None:
        """Make it durable, and complete."""
        ...


_ARCHIVES: Final = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z")


def back_up(engine: Engine, path: str | os.PathLike[str]) -> BackupReport:
    """Write a backup to `path`; see `Store.backup`."""
    engine.ensure_writable()
    place = os.path.abspath(path_text(path))
    _require_free(place)
    root = None if engine.storage.in_memory else os.path.realpath(engine.storage.root)
    if root is not None and os.path.realpath(place).startswith(f"{root}{os.sep}"):
        raise UsageError(f"{place} is inside the store, and would be lost with it: choose another")
    if root is not None and overlaps(place + PARTIAL_SUFFIX, root):
        raise UsageError(
            f"while it is made, the backup is {place}{PARTIAL_SUFFIX}, where the store is: choose"
            " another name"
        )
    name = os.path.basename(place)
    if name.endswith(_ARCHIVES) and not name.endswith(ARCHIVE_SUFFIXES):
        raise UsageError(
            f"{place} looks like an archive: one file ends in {' or '.join(ARCHIVE_SUFFIXES)}, any"
            " other name is that of a directory"
        )
    with _alone(engine), made_beside(place, _require_free) as partial:
        if name.endswith(ARCHIVE_SUFFIXES):
            directory, name = os.path.split(partial)
            target: BackupTarget = ArchiveWriter(PosixStorage(directory), name)
        else:
            target = DirectoryTarget(PosixStorage(partial))
        return write_backup(engine, target)._replace(path=place)


def _require_free(place: str) -> None:
    if os.path.lexists(place):
        raise UsageError(f"{place} exists already: choose another name for the backup")


@contextlib.contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """One backup at a time: it removes what an earlier one has left."""
    lock = engine.storage.lock(LOCK)
    try:
        if not lock.try_acquire():
            raise LockedError("another backup of this store is under way: try again", path=LOCK)
        remove_tree(engine.storage, STAGE)
        yield
        remove_tree(engine.storage, STAGE)
    finally:
        lock.close()


def write_backup(engine: Engine, target: BackupTarget) -> BackupReport:
    """Bring one moment of the store to `target`.

    Raises:
        DataError: A partition is damaged below its durable watermark.
        StorageError: The operating system refused; the store is as it was.
    """
    storage = engine.storage
    snapshot = Snapshot(storage.catalog_filename())
    try:
        staged: dict[tuple[int, int], _Staged] = {}
        parts: list[_Part] | None = None
        while parts is None:
            for key, info in _partitions(engine).items():
                if key not in staged:
                    staged[key] = _stage(storage, engine.log(info.name, key[1]))
            parts = _cut(engine, staged, snapshot)
        manifest = Manifest(
            store_uid=engine.components.store_uid,
            created_ms=engine.clock.now_ms(),
            files=[file for part in parts for file in _files(storage, part)],
            log_ends={f"{part.log.topic}/{part.log.partition}": part.log_end for part in parts},
        )
        target.begin(manifest)
        target.put_catalog(snapshot)
    finally:
        snapshot.close()
    shared = 0
    active = {segment_path(part.log.directory, part.bases[-1]) for part in parts}
    for file in manifest.files:
        path = f"{STAGE}/{file.path}"
        if target.put_segment(storage, path, file, file.path not in active):
            shared += file.size_bytes
    target.finish()
    total = sum(file.size_bytes for file in manifest.files)
    return BackupReport("", len(parts), len(manifest.files), total, shared)


def _partitions(engine: Engine) -> dict[tuple[int, int], TopicInfo]:
    return {
        (info.id, number): info for info in engine.topics() for number in range(info.partitions)
    }


def _stage(storage: Storage, log: Log) -> _Staged:
    """Give the segments of a partition second names; those that go meanwhile are left out."""
    folder = f"{STAGE}/{log.directory}"
    storage.make_directory(folder)
    version = log.slot[Slot.SEGMENTS_VERSION]
    bases = []
    for base in log.files.listed():
        path = segment_path(log.directory, base)
        try:
            storage.link(path, f"{STAGE}/{path}")
        except StorageError as error:
            if error.errno == errno.ENOENT:
                continue
            if error.errno in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}:
                error.add_note("a backup needs a file system with hard links")
            raise
        bases.append(base)
    return _Staged(log, version, bases)


def _cut(
    engine: Engine, staged: dict[tuple[int, int], _Staged], snapshot: Snapshot
) -> list[_Part] | None:
    """The moment: under the append lock, the ends of all logs and the catalog.

    None if there is a partition by now that has not been staged.
    """
    parts = []
    with engine.append_lock.let_go_at_interrupt, engine.append_lock:
        for key in _partitions(engine):
            found = staged.get(key)
            if found is None or found.log.deleted:
                staged.pop(key, None)
                return None
            log = found.log
            log.prepare_locked()
            if found.version != log.slot[Slot.SEGMENTS_VERSION]:
                remove_tree(engine.storage, f"{STAGE}/{log.directory}")
                found = staged[key] = _stage(engine.storage, log)
            words = log.slot.read()
            parts.append(_Part(log, found.bases, words.end_position, words.log_end))
        snapshot.take()
    return parts


def _files(storage: Storage, part: _Part) -> Iterator[ManifestFile]:
    for number, base in enumerate(part.bases):
        path = segment_path(part.log.directory, base)
        last = number + 1 == len(part.bases)
        size = part.end_position if last else storage.size(f"{STAGE}/{path}")
        yield ManifestFile(path, size)


class DirectoryTarget:
    """A backup as a directory, which is a store itself."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._manifest: Manifest | None = None
        self._directories: set[str] = set()

    def begin(self, manifest: Manifest) -> None:
        """See `BackupTarget`."""
        self._manifest = manifest

    def put_catalog(self, snapshot: Snapshot) -> None:
        """See `BackupTarget`."""
        snapshot.copy_to(self._storage.catalog_filename())

    def put_segment(self, source: Storage, path: str, file: ManifestFile, sealed: bool) -> bool:
        """See `BackupTarget`."""
        target, directory = self._storage, file.path.rpartition("/")[0]
        if directory not in self._directories:
            target.make_directory(directory)
            self._directories.add(directory)
        shared = sealed and take_over(source, path, target, file.path)
        if not shared:
            copy_between(source, path, target, file.path, file.size_bytes)
        handle = target.open(file.path, "rw")
        try:
            handle.sync()
        finally:
            handle.close()
        return shared

    def finish(self) -> None:
        """See `BackupTarget`. The manifest comes last: a backup without one is not complete."""
        assert self._manifest is not None
        for directory in self._directories:
            self._storage.sync_directory(directory)
        file = self._storage.open(MANIFEST, "x")
        try:
            file.write([self._manifest.to_json()], 0)
            file.sync()
        finally:
            file.close()
        self._storage.sync_directory("")
