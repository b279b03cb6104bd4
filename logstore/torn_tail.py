"""Carry out what a recovery has decided: save and cut a torn tail, make durable what is kept.

What is torn is decided in recovery.py. May be interrupted anywhere and run again; records are moved
or copied before they are cut, and never deleted.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from .errors import StorageError
from .helpers import Helped, Helpers
from .quarantine import COPY_BYTES, free_name, set_aside
from .recovery import Examination
from .segment import QUARANTINE, TEMPORARY_SUFFIX, derived_paths, segment_path
from .segment_chain import PartitionFacts, Tear
from .storage import File, Storage

UNSYNCED_SEGMENTS_MANY: Final = 64
"""From so many on they are synced by several threads."""
SYNC_THREADS: Final = 8


def carry_out(storage: Storage, facts: PartitionFacts, found: Examination) -> None:
    """Carry out what `examine` decided: save and cut the torn tail, sweep leftovers; all synced.

    The active segment is synced afterwards, so all that is kept is durable.
    """
    directory = facts.directory
    for name in storage.list(directory):
        if name.endswith(TEMPORARY_SUFFIX):
            storage.remove(f"{directory}/{name}")
    for base in found.obsolete_segments:
        _remove_derived(storage, directory, base)
        storage.remove(segment_path(directory, base))
    if found.tear is not None:
        # Later segments go first: if we stop here, the tear is still there to be found.
        for base in reversed(found.later_segments):
            _remove_derived(storage, directory, base)
            _set_aside(storage, directory, base)
        _cut(storage, directory, found.tear)
        storage.sync_directory(directory)


def rewrite_unsynced(storage: Storage, facts: PartitionFacts, found: Examination) -> None:
    """Make durable what is kept of the log above the durable watermark: write it again, and sync.

    A sync alone would not do. After one that failed, the kernel may hold pages which can be read
    and are on no disk, and count them as clean; only writing them again brings them there.
    """

    def rewrite(base: int, start: int) -> None:
        position = start
        file = storage.open(segment_path(facts.directory, base), "rw")
        try:
            stop = found.end.position if base == found.end.segment_base else file.size()
            while chunk := file.read(min(COPY_BYTES, stop - position), position):
                file.write([chunk], position)
                position += len(chunk)
            file.sync()
        finally:
            file.close()

    if len(found.unsynced) < UNSYNCED_SEGMENTS_MANY:
        for base, start in found.unsynced:
            rewrite(base, start)
        return
    # Each sync waits for the disk, which answers several at once: a log of very many segments
    # without a checkpoint would spend almost all of its first opening waiting for one at a time.
    with Helpers(SYNC_THREADS) as helpers:
        begun: list[Helped[None]] = []
        for base, start in found.unsynced:
            if len(begun) == 2 * SYNC_THREADS:
                begun.pop(0).wait()  # not all at once: one that fails ends it
            begun.append(helpers.begin(partial(rewrite, base, start)))
        for each in begun:
            each.wait()


def _remove_derived(storage: Storage, directory: str, base: int) -> None:
    for path in derived_paths(directory, base):
        storage.remove(path)


def _cut(storage: Storage, directory: str, tear: Tear) -> None:
    path = segment_path(directory, tear.segment_base)
    _remove_derived(storage, directory, tear.segment_base)
    if tear.header_torn:
        if storage.exists(path):
            _set_aside(storage, directory, tear.segment_base)
        return
    file = storage.open(path, "rw")
    try:
        if not tear.blank:
            _copy_to_quarantine(storage, directory, file, tear)
        file.truncate(tear.position)
        file.sync()
    finally:
        file.close()


def _set_aside(storage: Storage, directory: str, base: int) -> None:
    set_aside(storage, directory, segment_path(directory, base).rpartition("/")[2])


def _copy_to_quarantine(storage: Storage, directory: str, file: File, tear: Tear) -> None:
    name = f"{tear.segment_base:020d}-{tear.position}.torn"
    copy = storage.open(free_name(storage, directory, name), "x")
    try:
        position, size = tear.position, file.size()
        while position < size:
            chunk = file.read(COPY_BYTES, position)
            if not chunk:
                raise StorageError(
                    "the file shrank while its torn tail was saved",
                    errno=0,
                    path=file.path,
                    position=position,
                )
            copy.write([chunk], position - tear.position)
            position += len(chunk)
        copy.sync()
    finally:
        copy.close()
    storage.sync_directory(f"{directory}/{QUARANTINE}")
