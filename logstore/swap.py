"""Put a rewritten segment in the place of those it stands for, while others read and append.

Each step leaves a log that is whole, whoever dies after it (docs/log-format.md, "The swap"). The
append lock is held for a rename or a removal, never for a sync: what appends wait for here takes
microseconds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from .chain_file import chain_path, forget_chain
from .components import Components
from .errors import StorageError
from .format import SegmentHeader
from .log import Log
from .segment import derived_paths, read_segment_header, segment_path
from .tail import Slot


def swap(
    components: Components,
    log: Log,
    replaced: Sequence[SegmentHeader],
    path: str,
) -> bool:
    """Give the rewritten, synced segment at `path` its name, and remove those it stands for.

    False, and nothing has changed, if one of them is gone or another by now: retention, a
    deletion of the topic or somebody else's compaction came first.

    Raises:
        StorageError: The operating system refused. Either the old segments are the log or the new
            one is; what is left over is swept by the next compaction or recovery.
    """
    done = None
    while done is None:
        _forget_chain(components, log)
        with components.append_lock.let_go_at_interrupt, components.append_lock:
            done = _rename_locked(components, log, replaced, path)
    if done:
        remove_superseded(components, log, replaced[0].base_offset)
    return done


def _forget_chain(components: Components, log: Log) -> None:
    """What a chain file says of the segments ends now, and must not come back after a crash."""
    try:
        forget_chain(components.storage, log.directory)
    except StorageError:
        if not log.gone:
            raise


def _rename_locked(
    components: Components, log: Log, replaced: Sequence[SegmentHeader], path: str
) -> bool | None:
    """As `swap`, but for what is removed after it; None if there is a chain file again."""
    storage, base = components.storage, replaced[0].base_offset
    if log.gone or not all(_is_there(components, log, header) for header in replaced):
        return False
    if storage.exists(chain_path(log.directory)):
        return None
    try:
        storage.rename(path, segment_path(log.directory, base))
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return False  # a recovery has swept it
    log.files.indexes.forget(base)
    log.slot[Slot.REWRITTEN_VERSION] = components.tail.stamp()
    log.slot[Slot.SEGMENTS_VERSION] = components.tail.stamp()
    return True


def _is_there(components: Components, log: Log, header: SegmentHeader) -> bool:
    try:
        found = read_segment_header(components.storage, log.directory, header.base_offset)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return found.segment_uid == header.segment_uid


def remove_superseded(components: Components, log: Log, base: int) -> None:
    """Remove the segments which the rewritten one at `base` stands for, if it is there."""
    storage, directory = components.storage, log.directory
    # Its name first: the old ones must not go for good before it is there for good.
    try:
        storage.sync_directory(directory)
    except StorageError:
        if log.gone:
            return
        raise
    with components.append_lock.let_go_at_interrupt, components.append_lock:
        bases = [] if log.gone else log.files.listed()
        if base not in bases:
            return  # retention was here
        rewrite = read_segment_header(storage, directory, base).rewrite
        end = rewrite.end_offset if rewrite else base
        gone = [each for each in bases if base < each < end]
        for each in gone:
            for derived in derived_paths(directory, each):
                storage.remove(derived)
            storage.remove(segment_path(directory, each))
            log.files.indexes.forget(each)
        if gone:
            # For both: whoever gave the new one its name may have died before it said so.
            log.slot[Slot.REWRITTEN_VERSION] = components.tail.stamp()
            log.slot[Slot.SEGMENTS_VERSION] = components.tail.stamp()
    if gone:
        storage.sync_directory(directory)
