"""Group commit of one partition: one fdatasync serves everybody who waits for it.

Who has written and waits joins the round whose sync has not begun. The first of them syncs for all
when the sync before is over; the others wait for a lock that is passed on from one to the next, so
one that is interrupted leaves nobody behind. Between processes the durable end in the tail words
saves syncs somebody else has done. A failed sync poisons the partition for every process: the
kernel may have dropped the dirty pages, so trying again would report a success that means nothing.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from .errors import PoisonedError, StorageError, StoreClosedError
from .segment import segment_path
from .storage import File, Storage
from .tail import DELETED, POISONED_BY_SYNC, Slot, SlotWords


class Syncable(Protocol):
    """What group commit needs of a `Log`."""

    directory: str
    slot: Slot

    def durable_word(self, durable_offset: int) -> int:
        """The word that vouches for a durable end."""
        ...

    def publish_durable(self, durable_offset: int, word: int, sequence: int) -> None:
        """Tell everybody about a sync."""
        ...

    def poisoned(self) -> PoisonedError:
        """The error for a partition whose sync failed, or that is gone."""
        ...


class GroupCommit:
    """Syncs the segments of one partition. Thread-safe.

    Args:
        storage: Where the segments are.
        log: The partition.
        bases: Gives the base offsets of its segments.
        sync: Syncs a file.
    """

    def __init__(
        self,
        storage: Storage,
        log: Syncable,
        bases: Callable[[], list[int]],
        sync: Callable[[File], None],
    ) -> None:
        self._storage = storage
        self._log = log
        self._directory = log.directory
        self._slot = log.slot
        self._bases = bases
        self._sync_file = sync
        self._turn = threading.Lock()
        """Held by the one who syncs."""
        self._round = threading.Lock()
        """Held by the one who will sync for all who come until then; then replaced."""
        self._closed = False
        # Descriptors of their own, because a roll closes the one used for writing.
        self._files: dict[int, File] = {}
        self._stale = False

    def wait(self, end: int) -> None:
        """Return when every record below `end` is synced.

        Raises:
            PoisonedError: A sync failed; nothing that was not synced before counts as durable.
            StorageError: A segment cannot be opened; nothing was synced, a later call may be.
            StoreClosedError: The store was closed first.
        """
        slot = self._slot
        with self._round:
            if slot[Slot.DURABLE_OFFSET] >= end and slot[Slot.POISONED] != DELETED:
                return
            with self._turn:
                self._round = threading.Lock()
                # Everything written so far, unless somebody has synced it while we waited.
                sequence, at = slot.read_end()
                if at.poisoned == DELETED:
                    raise self._log.poisoned()
                if at.durable_offset >= end:
                    return
                if at.poisoned == POISONED_BY_SYNC:
                    raise self._log.poisoned()
                if self._closed:
                    raise StoreClosedError("the store was closed before the sync")
                # Before the sync, because Python runs at a third of its speed right after it.
                word = self._log.durable_word(at.log_end)
                self._sync(at)
                self._log.publish_durable(at.log_end, word, sequence)

    def _sync(self, at: SlotWords) -> None:
        """Sync everything written so far. The turn is held."""
        if self._stale:
            self._stale = False
            self.close_files()
        files = self._unsynced(at)
        try:
            for file in files:
                self._sync_file(file)
        except StorageError as error:
            self._slot[Slot.POISONED] = POISONED_BY_SYNC
            raise self._log.poisoned() from error
        if len(self._files) > 1:
            for base in [base for base in self._files if base < at.active_base]:
                self._files.pop(base).close()

    def _unsynced(self, at: SlotWords) -> list[File]:
        """The segments with records that have not been synced."""
        if at.active_base <= at.durable_offset:
            bases = [at.active_base]
        else:
            bases = self._bases()
            bases = bases[max(0, bisect_right(bases, at.durable_offset) - 1) :]
        segments = pairwise([*bases, at.log_end])
        return [file for each in segments if (file := self._file(*each)) is not None]

    def _file(self, base: int, end: int) -> File | None:
        """The segment of the records up to `end`, opened once.

        None if it has gone since it was listed: retention removed it, or another process synced it,
        and a compaction put what it holds into another.
        """
        file = self._files.get(base)
        if file is None:
            try:
                file = self._storage.open(segment_path(self._directory, base), "rw")
            except StorageError as error:
                gone = error.errno == errno.ENOENT
                if gone and base < self._slot[Slot.START_OFFSET]:
                    return None
                if gone and end <= self._slot[Slot.DURABLE_OFFSET]:
                    return None
                raise
            self._files[base] = file
        return file

    def reopen(self) -> None:
        """From the next sync on use new descriptors: a recovery may have replaced the files.

        May be called while another thread syncs.
        """
        self._stale = True

    def close(self) -> None:
        """Let the sync under way end, and close; who waits on gets StoreClosedError."""
        self._closed = True
        with self._turn:
            self.close_files()

    def close_files(self) -> None:
        """Close the files; for the one who syncs, or where there is none."""
        while self._files:
            _, file = self._files.popitem()
            file.close()
