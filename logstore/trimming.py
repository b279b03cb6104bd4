"""Remove the oldest records of a partition: first the start moves, then files go, one by one.

The new start is in the catalog before a file goes, so an interrupted trim is finished by the next
one, or by a recovery, and never looks like a lost segment. The append lock is held for one file at
a time, because freeing the blocks of a large file takes milliseconds, and never for a sync.
"""

from __future__ import annotations

import itertools

from .components import Components
from .errors import CorruptSegmentError, FormatVersionError, StorageError
from .log import Log
from .segment import derived_paths, read_segment_header, segment_path
from .tail import Slot


def trim(components: Components, log: Log, before: int) -> list[int]:
    """Forget the records below `before`; remove segments wholly below it, return their bases.

    Raises:
        UnknownTopicError: The topic was deleted.
        StorageError: The operating system refused; the start has moved or not.
    """
    log.ensure_there()
    slot = log.slot
    before = min(before, slot[Slot.VISIBLE_OFFSET])
    if before <= slot[Slot.START_OFFSET]:
        return []
    components.catalog.set_start_offset(log.topic_id, log.partition, before)
    with components.append_lock.let_go_at_interrupt, components.append_lock:
        log.ensure_there()
        slot[Slot.START_OFFSET] = max(before, slot[Slot.START_OFFSET])
        bases = log.files.listed()
    below = [base for base, following in itertools.pairwise(bases) if following <= before]
    try:
        gone = [base for base in below if _remove(components, log, base, before)]
    finally:
        # Tells a roll that more has changed than the end of the list.
        with components.append_lock.let_go_at_interrupt, components.append_lock:
            slot[Slot.SEGMENTS_VERSION] = components.tail.stamp()
    if gone:
        try:
            components.storage.sync_directory(log.directory)
        except StorageError:
            if not log.gone:
                raise
    return gone


def _remove(components: Components, log: Log, base: int, before: int) -> bool:
    storage, path = components.storage, segment_path(log.directory, base)
    with components.append_lock.let_go_at_interrupt, components.append_lock:
        if log.gone or not storage.exists(path):
            return False
        try:
            rewrite = read_segment_header(storage, log.directory, base).rewrite
        except (CorruptSegmentError, FormatVersionError):
            rewrite = None  # it can go all the same
        if rewrite and rewrite.end_offset > before:
            return False  # a compaction has just put it there, for others that follow too
        for derived in derived_paths(log.directory, base):
            storage.remove(derived)
        storage.remove(path)
        log.files.indexes.forget(base)
        return True
