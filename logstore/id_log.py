"""Keep up with the ids of the records in a partition, whichever process appends them.

The ids of the window are read from the log at the first use, and what others append is read before
each check, so nothing about them is on disk but the records themselves: an id counts as long as its
record is there. Ids of open transactions wait aside for their end.

Methods named `*_locked` are called with the append lock held.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from .batch import decode_batch
from .components import Components
from .config import TopicConfig
from .errors import CorruptBatchError, DataError, StorageError
from .format import BATCH_HEADER_BYTES, HAS_HEADERS, BatchHeader
from .record_ids import ID_BYTES_MAX, IdWindow, Place, record_id
from .segment import scan_headers
from .segment_list import SegmentList
from .storage import File
from .tail import Slot
from .transaction_states import TransactionStates

SWEEP_AT: Final = 1024

_logger = logging.getLogger("millstream")


class Identified(Protocol):
    """What is needed of a `Log`."""

    topic: str
    partition: int
    directory: str
    config: TopicConfig
    files: SegmentList

    @property
    def slot(self) -> Slot:
        """Its tail words."""
        ...


class Undecided(NamedTuple):
    """An id in a transaction that was open when it was last asked."""

    transaction: int
    place: Place


class IdLog:
    """The record ids of one partition. Thread-safe."""

    def __init__(self, log: Identified, components: Components) -> None:
        self._log = log
        self._clock = components.clock
        self._guard = threading.RLock()
        self._window: IdWindow | None = None
        self._next_offset = 0
        """All records below have been taken in."""
        self._undecided: dict[bytes, Undecided] = {}
        self._sweep_at = SWEEP_AT
        self._complained = False

    def recovered_locked(self) -> None:
        """Start over: records may be gone."""
        with self._guard:
            self._window = None

    def prepare(self) -> None:
        """Read what there is to read before the lock is taken, so that little is left for then."""
        with self._guard:
            self._caught_up()

    def find_locked(
        self, record_id: bytes, now_ms: int, transaction: int, states: TransactionStates
    ) -> Place | Undecided | None:
        """Where the record of an id is; `Undecided` if it is that of an open transaction.

        Args:
            record_id: Which id.
            now_ms: Its record must have been appended less than the window before.
            transaction: Records of this open transaction count.
            states: Of the others.
        """
        with self._guard:
            window = self._caught_up()
            if len(self._undecided) > self._sweep_at:
                self._sweep(window, states)
            waiting = self._undecided.get(record_id)
            if waiting is not None:
                found = self._settle(record_id, waiting, window, transaction, states)
                if found is not None:
                    return found
            place = window.find(record_id, now_ms)
            if place is not None and place.offset < self._log.slot[Slot.START_OFFSET]:
                return None  # retention has removed it, and a restart would not know it
            return place

    def _sweep(self, window: IdWindow, states: TransactionStates) -> None:
        """Settle what has been decided meanwhile, so that it does not pile up."""
        for each, waiting in list(self._undecided.items()):
            self._settle(each, waiting, window, 0, states)
        self._sweep_at = max(SWEEP_AT, 2 * len(self._undecided))

    def _settle(
        self,
        record_id: bytes,
        waiting: Undecided,
        window: IdWindow,
        transaction: int,
        states: TransactionStates,
    ) -> Place | Undecided | None:
        if waiting.transaction == transaction:
            return waiting.place
        state = states.state(waiting.transaction)
        if state == "open":
            return waiting
        del self._undecided[record_id]
        if state == "committed":
            window.add(record_id, *waiting.place)
        return None

    def appended_locked(
        self, ids: Sequence[bytes | None], offsets: Sequence[int], now_ms: int, transaction: int
    ) -> None:
        """Take in a batch just appended, unless something before it is still to be read."""
        with self._guard:
            if self._window is not None and self._next_offset == offsets[0]:
                self._add(self._window, ids, offsets, now_ms, transaction)
                self._next_offset = offsets[-1] + 1

    def _add(
        self,
        window: IdWindow,
        ids: Sequence[bytes | None],
        offsets: Sequence[int],
        append_ms: int,
        transaction: int,
    ) -> None:
        for each, offset in zip(ids, offsets, strict=True):
            if each is None or len(each) > ID_BYTES_MAX:
                continue
            if transaction:
                self._undecided[each] = Undecided(transaction, Place(offset, append_ms))
            else:
                window.add(each, offset, append_ms)

    # --- reading -------------------------------------------------------------------------------

    def _caught_up(self) -> IdWindow:
        log = self._log
        wanted_ms = log.config.dedup_ms or 0
        end = log.slot[Slot.LOG_END]
        window = self._window
        if window is None or window.window_ms != wanted_ms or self._next_offset > end:
            window = self._window = IdWindow(wanted_ms)
            self._undecided.clear()
            self._next_offset = self._begin(self._clock.now_ms() - wanted_ms)
        while self._next_offset < end:
            self._read(window, end)
        if window.forgotten and not self._complained:
            self._complained = True
            _logger.warning(
                "%s/%d: more record ids within %d ms than are remembered: the window is cut short",
                *(log.topic, log.partition, wanted_ms),
            )
        return window

    def _begin(self, oldest_ms: int) -> int:
        """An offset before which everything was appended before `oldest_ms`."""
        log = self._log
        begin = 0
        for base in reversed(log.files.bases()):
            begin = base
            try:
                file, header = log.files.open(base)
            except StorageError as error:
                if error.errno != errno.ENOENT:
                    raise
                break  # retention was here
            file.close()
            if header.created_ms < oldest_ms:
                break
        return max(begin, log.slot[Slot.START_OFFSET])

    def _read(self, window: IdWindow, end: int) -> None:
        """Take in a segment, as far as offset `end`.

        Raises:
            CorruptBatchError: A batch is damaged or missing.
        """
        log = self._log
        offset = max(self._next_offset, log.slot[Slot.START_OFFSET])
        try:
            self._read_segment(window, offset)
            if self._next_offset <= offset:
                raise CorruptBatchError("a batch is missing")
        except DataError as error:
            raise error.at(
                topic=log.topic, partition=log.partition, offset=offset, path=log.directory
            ) from None

    def _read_segment(self, window: IdWindow, offset: int) -> None:
        files, slot = self._log.files, self._log.slot
        file, header, position = files.open_at(offset)
        oldest_ms = self._clock.now_ms() - window.window_ms
        try:
            # The end first: if the segment is active after that, it is this segment's end.
            stop = slot[Slot.END_POSITION]
            if slot[Slot.ACTIVE_BASE] != header.base_offset:
                stop = file.size()
            for at, batch in scan_headers(file, position, stop, header.segment_uid):
                if batch.next_offset <= self._next_offset:
                    continue
                if batch.flags & HAS_HEADERS and batch.append_timestamp_ms >= oldest_ms:
                    self._take(window, file, at, batch)
                self._next_offset = batch.next_offset
        except CorruptBatchError:
            # Behind the end of a sealed segment there may be what a crash left.
            if files.base_of(self._next_offset) == header.base_offset:
                raise
        finally:
            file.close()

    def _take(self, window: IdWindow, file: File, position: int, header: BatchHeader) -> None:
        body = file.read(header.body_bytes, position + BATCH_HEADER_BYTES)
        batch = decode_batch(self._log.topic, self._log.partition, header, body)
        ids = [record_id(headers) for headers in batch.headers]
        if any(each is not None for each in ids):
            append_ms, transaction = header.append_timestamp_ms, header.transaction_id
            self._add(window, ids, batch.offsets, append_ms, transaction)
