"""Group commit of one partition: one fdatasync serves everybody who waits for it.

The first thread that needs durability syncs for all who have written by then; those who write
meanwhile share the next sync. Between processes the durable end in the tail words saves syncs
somebody else has done. A failed sync poisons the partition for every process: the kernel may have
dropped the dirty pages, so trying again would report a success that means nothing.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from .errors import PoisonedError, StorageError, StoreClosedError
from .segment import segment_path
from .storage import File, Storage
from .tail import POISONED_BY_SYNC, Slot

WAIT_SECONDS: Final = 1.0
"""Who waits for a sync looks by itself now and then."""


class GroupCommit:
    """Syncs the segments of one partition. Thread-safe.

    Args:
        storage: Where the segments are.
        directory: Directory of the partition.
        slot: Its tail words.
        bases: Gives the base offsets of the segments.
        publish: Called with (durable end, sequence) after a sync.
        poisoned: Makes the error for a poisoned partition.
    """

    def __init__(
        self,
        storage: Storage,
        directory: str,
        slot: Slot,
        *,
        bases: Callable[[], list[int]],
        publish: Callable[[int, int], None],
        poisoned: Callable[[], PoisonedError],
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._slot = slot
        self._bases = bases
        self._publish = publish
        self._poisoned = poisoned
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._leading = False
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
        while self._slot[Slot.DURABLE_OFFSET] < end:
            self._lead_or_wait(end)

    def _lead_or_wait(self, end: int) -> None:
        slot, leading = self._slot, False
        try:
            with self._lock:
                while slot[Slot.DURABLE_OFFSET] < end and not leading:
                    if slot[Slot.POISONED] == POISONED_BY_SYNC:
                        raise self._poisoned()
                    if self._closed:
                        raise StoreClosedError("the store was closed before the sync")
                    if self._leading:
                        # Bounded: a leader interrupted at the worst moment may not have called.
                        self._condition.wait(WAIT_SECONDS)
                    else:
                        self._leading = leading = True
            if leading:
                self._lead()
        finally:
            if leading:
                with self._lock:
                    self._leading = False
                    self._condition.notify_all()

    def _lead(self) -> None:
        """Sync everything written so far and publish it; one thread at a time."""
        slot = self._slot
        if self._stale:
            self._stale = False
            self.close_files()
        # The sequence first: it may belong to an earlier batch than the end, never to a later.
        sequence = slot[Slot.SEQUENCE]
        target = slot[Slot.LOG_END]
        bases = self._bases()
        first = max(0, bisect_right(bases, slot[Slot.DURABLE_OFFSET]) - 1)
        unsynced = [base for base in bases[first:] if base <= target]
        files = [self._file(base) for base in unsynced]
        try:
            for file in files:
                if file is not None:
                    file.sync()
        except StorageError as error:
            slot[Slot.POISONED] = POISONED_BY_SYNC
            raise self._poisoned() from error
        for base in [base for base in self._files if base < unsynced[-1]]:
            self._files.pop(base).close()
        self._publish(target, sequence)

    def _file(self, base: int) -> File | None:
        """The segment, opened once; None if retention removed it since it was listed."""
        file = self._files.get(base)
        if file is None:
            try:
                file = self._storage.open(segment_path(self._directory, base), "rw")
            except StorageError as error:
                if error.errno == errno.ENOENT and base < self._slot[Slot.START_OFFSET]:
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
        with self._lock:
            self._closed = True
            while self._leading:
                self._condition.wait(WAIT_SECONDS)
            self._condition.notify_all()
        self.close_files()

    def close_files(self) -> None:
        """Close the files; for the leader, or where there is none."""
        while self._files:
            _, file = self._files.popitem()
            file.close()
