"""Zeros ahead of the writer, so that a durable append changes no metadata.

Overwriting written pages makes single durable appends faster than growing a file, because their
sync records no new size (figures in docs/decisions). The zeros are written under the append lock,
a piece at a time, so they cannot overtake a writer; then they are synced without it. A full disk
only means that the file grows instead.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final, Protocol

from .append_lock import AppendLock
from .errors import StorageError
from .format import SegmentHeader
from .storage import File
from .tail import Slot

ZERO_FILL_BYTES_MIN: Final = 256 * 1024
ZERO_FILL_BYTES_MAX: Final = 8 * 1024 * 1024
ZERO_FILL_WRITE_BYTES: Final = 1024 * 1024
"""Zeros written per hold of the append lock: some 0.4 ms, so that appends hardly notice."""


BATCH_BYTES_MAX: Final = 32 * 1024
"""Zeros double what is written. For larger batches that costs more than it saves."""


def runs_low(zero_filled: int, end_position: int, batch_bytes: int) -> bool:
    """Whether more zeros would pay, after an append that had so many of them ahead.

    >>> runs_low(600_000, 500_000, 384), runs_low(900_000, 500_000, 384)
    (True, False)
    """
    ahead = zero_filled - end_position
    return (
        ahead < end_position // 2
        and ahead < ZERO_FILL_BYTES_MAX // 2
        and batch_bytes <= BATCH_BYTES_MAX
    )


class Fillable(Protocol):
    """What zero fill needs of a `Log`."""

    @property
    def slot(self) -> Slot:
        """Its tail words."""
        ...

    @property
    def gone(self) -> bool:
        """Whether its topic was deleted."""
        ...

    def open_active_locked(self) -> tuple[File, SegmentHeader]:
        """The active segment, open for writing."""
        ...

    def undo_locked(self, file: File, position: int) -> None:
        """Cut a partial write off."""
        ...

    def sync_segments(self, bases: Iterable[int]) -> None:
        """Sync whole segment files."""
        ...


class ZeroFill:
    """Keeps zeros ahead of the writer of one partition. Thread-safe."""

    def __init__(self, log: Fillable, append_lock: AppendLock) -> None:
        self._log = log
        self._append_lock = append_lock

    def fill(self, segment_bytes: int) -> None:
        """Write and sync zeros: as much as is written, between 256 KiB and 8 MiB.

        Args:
            segment_bytes: No zeros beyond this size, where the next segment begins.
        """
        log = self._log
        with self._append_lock.let_go_at_interrupt, self._append_lock:
            if log.gone:
                return
            base, uid = log.slot[Slot.ACTIVE_BASE], log.slot[Slot.ACTIVE_UID]
            end = log.slot[Slot.END_POSITION]
        goal = min(end + min(max(end, ZERO_FILL_BYTES_MIN), ZERO_FILL_BYTES_MAX), segment_bytes)
        while self._write_piece(uid, goal):
            pass
        try:
            log.sync_segments([base])
        except StorageError as error:
            # Sealed since, it has no zeros any more; a compaction may have merged it into another.
            missing = error.errno == errno.ENOENT and log.slot[Slot.ACTIVE_UID] != uid
            if not missing and not log.gone:
                raise

    def _write_piece(self, uid: int, goal: int) -> bool:
        """Write the next zeros below `goal`; False when there are enough, or no room."""
        log = self._log
        with self._append_lock.let_go_at_interrupt, self._append_lock:
            slot = log.slot
            start = slot[Slot.ZERO_FILLED]
            if slot[Slot.ACTIVE_UID] != uid or slot[Slot.POISONED] or start >= goal:
                return False  # `gone` is a case of poisoned
            file, _ = log.open_active_locked()
            length = min(goal - start, ZERO_FILL_WRITE_BYTES)
            try:
                file.write([bytes(length)], start)
            except StorageError:
                log.undo_locked(file, start)
                return False
            slot[Slot.ZERO_FILLED] = start + length
        return True
