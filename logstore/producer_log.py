"""Keep up with what named producers write to a partition, whichever process they write in.

The state (`producer_states.py`) is a snapshot from the catalog and the batch headers behind it. The
slot's word PRODUCER_OFFSET tells whether headers have been written since that name a producer, so
nothing is read on the path of an append unless another process has done that. Partitions without
producers cost nothing at all.

Methods named `*_locked` are called with the append lock held.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from .catalog import LogCheckpoint
from .components import Components
from .errors import (
    CorruptBatchError,
    DataError,
    FormatVersionError,
    LockedError,
    MillstreamError,
    StorageError,
)
from .producer_catalog import ProducerCatalog, ProducerRow
from .producer_states import Numbering, ProducerState, ProducerStates
from .segment import scan_headers
from .segment_list import SegmentList
from .tail import Slot

_logger = logging.getLogger("millstream")


class Produced(Protocol):
    """What is needed of a `Log`."""

    topic: str
    topic_id: int
    partition: int
    partition_uid: int
    directory: str
    files: SegmentList

    @property
    def slot(self) -> Slot:
        """Its tail words."""
        ...


class ProducerLog:
    """The producers of one partition. Thread-safe."""

    def __init__(self, log: Produced, components: Components) -> None:
        self._log = log
        self._c = components
        self._catalog = ProducerCatalog(components.catalog)
        self._guard = threading.RLock()
        self._states: ProducerStates | None = None

    def recovered_locked(self, *, named: bool) -> None:
        """Start over after a recovery, which has seen batches that name a producer or none."""
        log = self._log
        with self._guard:
            self._states = None
            if named or self._catalog.snapshot(log.topic_id, log.partition) is not None:
                log.slot[Slot.PRODUCER_OFFSET] = log.slot[Slot.LOG_END]
            else:
                log.slot[Slot.PRODUCER_OFFSET] = 0

    # --- appending -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read what there is to read before the lock is taken, so that little is left for then."""
        with self._guard:
            self._caught_up()

    def state_locked(self, row: ProducerRow) -> ProducerState | None:
        """What is remembered of one producer; None: it has written nothing here.

        Raises:
            DataError: What it has written here is not known any more.
        """
        log = self._log
        with self._guard:
            states = self._caught_up()
            state = states.producers.get(row.id)
        if state is None and row.created_ms < states.lost_before_ms:
            raise DataError(
                "what this producer wrote here is not known: its snapshot in the catalog was"
                f" damaged, and records below {states.lost_below} are gone. Use another name, and"
                " begin behind what it has sent",
                topic=log.topic,
                partition=log.partition,
            )
        return state

    def check_locked(self, row: ProducerRow, numbering: Numbering, count: int) -> bool:
        """As `ProducerStates.check`; after True the batch has to be written.

        Raises:
            DataError: As `state_locked`.
        """
        log = self._log
        try:
            with self._guard:
                self.state_locked(row)
                append = self._caught_up().check(numbering, count)
        except MillstreamError as error:
            raise error.at(topic=log.topic, partition=log.partition) from None
        if append:
            # Before it is written: if this process dies right after, others read the header.
            log.slot[Slot.PRODUCER_OFFSET] = log.slot[Slot.LOG_END] + 1
        return append

    def appended_locked(
        self, numbering: Numbering, base_offset: int, last_offset_delta: int, now_ms: int
    ) -> None:
        """Remember a batch that was checked and written."""
        with self._guard:
            assert self._states is not None
            self._states.appended(numbering, base_offset, last_offset_delta, now_ms)

    # --- snapshots -----------------------------------------------------------------------------

    def snapshot_locked(self) -> bytes | MillstreamError | None:
        """A snapshot up to the log end, or why there is none; None: no producer has written."""
        log, slot = self._log, self._log.slot
        if not slot[Slot.PRODUCER_OFFSET]:
            return None
        try:
            with self._guard:
                states = self._caught_up()
                # Batches of others in between name no producer, or it would not be caught up.
                states.next_offset = slot[Slot.LOG_END]
                return states.encode(log.partition_uid)
        except (DataError, LockedError, StorageError) as error:
            return error

    def save(self, checkpoint: LogCheckpoint, snapshot: bytes | MillstreamError | None) -> None:
        """Remember where recovery may start, together with the snapshot taken there.

        Raises:
            MillstreamError: It was not saved, or there is no snapshot to save it with.
        """
        log = self._log
        if isinstance(snapshot, MillstreamError):
            raise snapshot
        if snapshot is None:
            self._c.catalog.save_checkpoint(log.topic_id, log.partition, checkpoint)
        else:
            self._catalog.save_checkpoint(log.topic_id, log.partition, checkpoint, snapshot)

    # --- reading headers -----------------------------------------------------------------------

    def _caught_up(self) -> ProducerStates:
        if self._states is None:
            self._states = self._load()
        states, slot = self._states, self._log.slot
        if states.next_offset < slot[Slot.PRODUCER_OFFSET]:
            self._read(states, slot[Slot.LOG_END])
        return states

    def _load(self) -> ProducerStates:
        log = self._log
        data = self._catalog.snapshot(log.topic_id, log.partition)
        if data is None:
            row = self._c.catalog.partition(log.topic_id, log.partition)
            return ProducerStates(row.checkpoint.next_offset) if row.checkpoint else self._none()
        try:
            states = ProducerStates.decode(data, log.partition_uid, log.slot[Slot.LOG_END])
        except FormatVersionError as error:
            raise error.at(topic=log.topic, partition=log.partition, path="catalog.db") from None
        except DataError as error:
            _logger.warning(
                "%s/%d: %s: made anew from all batch headers", log.topic, log.partition, error
            )
            states = self._none()
            self._read(states, log.slot[Slot.LOG_END])
        # One that the catalog does not know at all may be known again: it has lost its name.
        for forgotten in states.producers.keys() & self._catalog.forgotten():
            del states.producers[forgotten]
        return states

    def _none(self) -> ProducerStates:
        """The state before the first header there is."""
        start = self._log.slot[Slot.START_OFFSET]
        return ProducerStates(start, start, self._c.clock.now_ms() if start else 0)

    def _read(self, states: ProducerStates, end: int) -> None:
        """Take in the headers up to offset `end`.

        Raises:
            CorruptBatchError: A batch is damaged or missing.
        """
        log = self._log
        while states.next_offset < end:
            offset = max(states.next_offset, log.slot[Slot.START_OFFSET])
            try:
                self._read_segment(states, offset)
                if states.next_offset <= offset:
                    raise CorruptBatchError("a batch is missing")
            except DataError as error:
                raise error.at(
                    topic=log.topic, partition=log.partition, offset=offset, path=log.directory
                ) from None

    def _read_segment(self, states: ProducerStates, offset: int) -> None:
        """Take in the batches from `offset` to the end of its segment."""
        files, slot = self._log.files, self._log.slot
        file, header, position = files.open_at(offset)
        try:
            # The end first: if the segment is active after that, it is this segment's end.
            stop = slot[Slot.END_POSITION]
            if slot[Slot.ACTIVE_BASE] != header.base_offset:
                stop = file.size()
            for _, batch in scan_headers(file, position, stop, header.segment_uid):
                states.take(batch)
        except CorruptBatchError:
            # Behind the end of a sealed segment there may be what a crash left.
            if files.base_of(states.next_offset) == header.base_offset:
                raise
        finally:
            file.close()
