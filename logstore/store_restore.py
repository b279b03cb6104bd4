"""Bring a store back from a backup: a directory or one file, as `backup.py` writes them.

The copy is made beside its place and takes its name when it is whole: catalog and segments are
checked against each other and against every hash before that. The backup is not changed and shares
no file with the store.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Final

from .backup_archive import ArchiveReader
from .backup_manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest
from .clock import Clock, SystemClock
from .config import path_text
from .database_copy import Snapshot
from .engine import Engine
from .errors import DataError, UsageError
from .storage import CATALOG_NAME, PosixStorage, Storage
from .storage_copy import copy_between, overlaps
from .unfinished import PARTIAL_SUFFIX, made_beside
from .verify import verify
from .verify_report import VerifyReport

_REMEDY: Final = (
    "Restore another one; of a copy of this one `millstream repair` makes a store of all that can"
    " be read"
)


def restore(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    deep: bool = True,
    clock: Clock | None = None,
) -> VerifyReport:
    """Make a store at `path` from a backup, and say what was checked; durable when it returns.

    Args:
        source: Directory or archive that `Store.backup` wrote.
        path: Where the store shall be. Must not be there, or be an empty directory.
        deep: Check every byte of it; else headers, links and the catalog.
        clock: Source of time, for tests.

    Raises:
        UsageError: There is something at `path`, or nothing at `source`; or one is inside the
            other.
        DataError: The backup is not complete, damaged, or its parts do not fit each other. Nothing
            is left at `path`.
        FormatVersionError: Made by a newer version.
        StorageError: The operating system refused.
    """
    # A link to where the store shall be stays one.
    place, origin = os.path.realpath(path_text(path)), os.path.abspath(path_text(source))
    if not os.path.exists(origin):
        raise UsageError("there is no backup here", path=origin)
    _require_free(place)
    for taken in (place, place + PARTIAL_SUFFIX):
        if overlaps(taken, origin):
            raise UsageError(
                f"restoring to {place} would write to {taken}, over the backup {origin}: choose"
                " another place"
            )
    with made_beside(place, _require_free) as partial:
        target = PosixStorage(partial)
        if os.path.isdir(origin):
            manifest = _copy_directory(PosixStorage(origin, read_only=True), target)
        else:
            manifest = _unpack(origin, target)
        _make_durable(target, manifest)
        return _check(PosixStorage(partial, read_only=True), manifest, clock, deep=deep)


def _require_free(place: str) -> None:
    if os.path.lexists(place) and not (os.path.isdir(place) and not os.listdir(place)):
        raise UsageError(f"{place} is not empty: a store is restored to a new place")


def _copy_directory(source: Storage, target: Storage) -> Manifest:
    if not source.exists(MANIFEST):
        raise DataError(
            "this is no complete backup: it has no manifest. Take another one; what is a store is"
            " copied by `millstream backup`, or while nobody has it open",
            path=source.root,
        )
    file = source.open(MANIFEST, "r")
    try:
        manifest = Manifest.from_json(file.read(min(file.size(), MANIFEST_BYTES_MAX), 0))
    finally:
        file.close()
    if not source.exists(CATALOG_NAME) or not source.size(CATALOG_NAME):
        raise DataError(
            f"the backup has no catalog, or an empty one. {_REMEDY}",
            path=f"{source.root}/{CATALOG_NAME}",
        )
    snapshot = Snapshot(source.catalog_filename())
    try:
        snapshot.take()
        snapshot.copy_to(target.catalog_filename())
    finally:
        snapshot.close()
    for path, size_bytes in manifest.files:
        if not source.exists(path) or source.size(path) < size_bytes:
            raise DataError(
                f"{path} is missing in the backup, or shorter than {size_bytes} bytes. {_REMEDY}",
                path=source.root,
            )
        target.make_directory(path.rpartition("/")[0])
        copy_between(source, path, target, path, size_bytes)
    return manifest


def _unpack(origin: str, target: Storage) -> Manifest:
    storage = PosixStorage(os.path.dirname(origin), read_only=True)
    with ArchiveReader(storage, os.path.basename(origin)) as archive:
        with closing(_Writer(target, CATALOG_NAME)) as writer:
            archive.read_catalog(writer.write)
        for file, pieces in archive.read_segments():
            target.make_directory(file.path.rpartition("/")[0])
            with closing(_Writer(target, file.path)) as writer:
                for piece in pieces:
                    writer.write(piece)
    return archive.manifest


class _Writer:
    """Writes a new file from its beginning to its end."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._file = storage.open(path, "x")
        self._position = 0

    def write(self, piece: bytes) -> None:
        """The next piece."""
        self._file.write([piece], self._position)
        self._position += len(piece)

    def close(self) -> None:
        """There is no more."""
        self._file.close()


def _make_durable(storage: Storage, manifest: Manifest) -> None:
    directories = {""}
    for path in [CATALOG_NAME, *(file.path for file in manifest.files)]:
        file = storage.open(path, "rw")
        try:
            file.sync()
        finally:
            file.close()
        directories.add(path.rpartition("/")[0])
    for directory in sorted(directories):
        storage.sync_directory(directory)


def _check(
    storage: Storage, manifest: Manifest, clock: Clock | None, *, deep: bool
) -> VerifyReport:
    """See that catalog and log are those of one store and one moment."""
    engine = Engine(storage, clock or SystemClock(), durability="sync", read_only=True)
    try:
        if engine.components.store_uid != manifest.store_uid:
            raise DataError("catalog and manifest of the backup are of different stores")
        report = verify(engine, deep=deep)
    finally:
        engine.close()
    # In a store the trace of an append nobody was told of; a backup ends with whole batches. A note
    # without a position is of offsets that were lost before the backup: those are no damage.
    torn = [each for each in report.notes if each.kind == "torn" and each.position is not None]
    if torn:
        raise DataError(
            "the backup is damaged: its last records were whole when it was taken, and are not now."
            f" {_REMEDY}",
            topic=torn[0].topic,
            partition=torn[0].partition,
            path=torn[0].path,
            position=torn[0].position,
            offset=torn[0].offset,
        )
    if report.findings:
        first = report.findings[0]
        raise DataError(
            f"the backup is damaged: {first.problem} ({len(report.findings)} findings in all)."
            f" {_REMEDY}",
            topic=first.topic,
            partition=first.partition,
            path=first.path,
            position=first.position,
            offset=first.offset,
        )
    return report
