"""One partition: append under the store-wide lock, roll, sync in groups, find.

The log end, the durable end and the link to the next batch live in the partition's slot of the tail
words, so that every process continues where the last one stopped. What a crash left is decided by
`recovery.py`, how a segment file looks by `segment.py`. Reading batches is `reader.py`.

Methods named `*_locked` are called with the append lock held.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from .batch import BatchPlacement, EncodedBatch, buffers, encode_gap, seal
from .catalog import LogCheckpoint
from .catalog_age import check_partition
from .components import Components, partition_directory
from .config import TopicConfig, TopicInfo
from .errors import (
    DataError,
    LockedError,
    MillstreamError,
    PoisonedError,
    StorageError,
    UnknownTopicError,
    full_partition,
)
from .format import APPEND_TIME, INT64_MAX, SEGMENT_HEADER_BYTES, SegmentHeader
from .group_commit import GroupCommit
from .id_log import IdLog
from .producer_log import ProducerLog
from .recovery import examine
from .segment import (
    TEMPORARY_SUFFIX,
    check_writable,
    create_segment,
    read_segment_header,
    segment_path,
)
from .segment_chain import PartitionFacts
from .segment_list import SegmentList
from .storage import File
from .tail import (
    DELETED,
    GENERATION_WORD,
    IN_PROGRESS_WORD,
    POISONED_BY_SYNC,
    POISONED_BY_WRITE,
    SEQUENCE_WORD,
    Slot,
    SlotWords,
    durable_check,
    private_slot,
    to_signed,
    to_unsigned,
)
from .torn_tail import carry_out, rewrite_unsynced
from .zero_fill import ZeroFill, runs_low

_logger = logging.getLogger("millstream")


class _Active(NamedTuple):
    """The segment that is written to, open."""

    file: File
    header: SegmentHeader


class _Sealed(NamedTuple):
    """Where a segment ends that was sealed, and what producers had written by then."""

    end: LogCheckpoint
    producers: bytes | MillstreamError | None


class Log:
    """One partition of an open store. Thread-safe; any number of processes share the files."""

    def __init__(self, components: Components, topic: TopicInfo, partition: int) -> None:
        self.topic = topic.name
        self.topic_id = topic.id
        self.partition = partition
        self.partitions = topic.partitions
        """Of the topic."""
        self.configure(topic.config)
        self.directory = partition_directory(topic.name, partition)
        self._c = components
        row = components.catalog.partition(topic.id, partition)
        self.slot_number = row.slot
        self.partition_uid = row.uid
        self.deleted = False
        """Set when this handle is out of use because the topic is gone; see also `gone`."""
        self.slot: Slot = components.tail.slot(row.slot)
        self._live_slot: Slot | None = None
        self.dirty = False
        """Whether this process appended since the last saved checkpoint."""
        self.zeros_run_low = False
        """Set by the last append when `zero_fill` is due."""
        self.active: _Active | None = None
        self.files = SegmentList(components.storage, self.directory, lambda: self.slot)
        self.counters = components.counters
        self._group_commit = GroupCommit(
            components.storage, self, self.files.bases, self.counters.sync
        )
        self._zeros = ZeroFill(self, components.append_lock)
        self.producers = ProducerLog(self, components)
        self.ids = IdLog(self, components)
        self.sealed_unsynced: _Sealed | None = None
        """The segment which this process sealed before it was synced."""

    def configure(self, config: TopicConfig) -> None:
        """Take the configuration of the topic as it is now."""
        self.config = config
        self.needs_upkeep = config.removes_segments or config.rewrites_segments
        """Whether appends make something due in the background."""

    @property
    def gone(self) -> bool:
        """Whether the topic was deleted, by whatever process: the files are not this log's."""
        return (self._live_slot or self.slot)[Slot.POISONED] == DELETED

    def ensure_there(self) -> None:
        """Raise UnknownTopicError if the topic was deleted."""
        if self.gone:
            raise UnknownTopicError("the topic was deleted", topic=self.topic)

    # --- recovery ------------------------------------------------------------------------------

    def put_off_recovery_locked(self) -> None:
        """Recover at the next use; nobody can append before that."""
        self.slot[Slot.GENERATION] = -self._c.tail.get("generation")

    def prepare_locked(self) -> None:
        """Recover unless somebody has done it since the store was opened by a first process."""
        if self.slot[Slot.GENERATION] != self._c.tail.get("generation"):
            self.recover_locked()

    def examine_read_only(self) -> None:
        """Find the end of the log without changing anything, for a handle that may not write.

        The words of a live writer are used if they fit the files; otherwise the end is what a
        recovery would find, a torn tail left in place.
        """
        if self.words_fit():
            return
        facts = self.facts()
        try:
            found = examine(self._c.storage, facts)
        except MillstreamError:
            if self.words_fit():
                return  # a writer has come up meanwhile and changed the files
            raise
        start = facts.start_offset
        self._live_slot, self.slot = self.slot, private_slot()
        self._publish_end(found.end)
        self.slot[Slot.START_OFFSET] = start
        self.slot[Slot.VISIBLE_OFFSET] = max(start, found.end.next_offset)
        self.slot[Slot.VISIBLE_SEQUENCE] = found.end.sequence
        self.slot[Slot.REWRITTEN_VERSION] = self._c.tail.stamp()
        self.slot[Slot.SEGMENTS_VERSION] = self._c.tail.stamp()
        self.files.examined(found.known, found.segments)

    def refresh_read_only(self) -> None:
        """Switch to the words of a writer that has come up since."""
        if self._live_slot is not None:
            private = self.slot
            self.slot = self._live_slot = self._c.tail.slot(self.slot_number)
            if self.words_fit():
                self._live_slot = None
            else:
                self.slot = private

    def words_fit(self) -> bool:
        """Whether the tail words are those of a live writer, or of one that closed just now."""
        tail, slot = self._c.tail, self.slot
        if not tail.usable or slot[Slot.GENERATION] != tail.get("generation"):
            return False
        path = segment_path(self.directory, slot[Slot.ACTIVE_BASE])
        storage = self._c.storage
        return storage.exists(path) and storage.size(path) >= slot[Slot.END_POSITION]

    def facts(self) -> PartitionFacts:
        """What the catalog and the tail words know about this partition."""
        row = self._c.catalog.partition(self.topic_id, self.partition)
        durable = row.checkpoint.next_offset if row.checkpoint else 0
        claimed = self.slot[Slot.DURABLE_OFFSET]
        if claimed > 0 and self.slot[Slot.DURABLE_CHECK] == durable_check(row.uid, claimed):
            durable = max(durable, claimed)
        place = self.directory, self.topic, self.partition, row.uid, self._c.store_uid
        possible = self._c.catalog.last_possible_transaction
        return PartitionFacts(
            *place, row.start_offset, durable, row.checkpoint, last_possible=possible
        )

    def recover_locked(self) -> None:
        """Find the end of the log, repair a torn tail, make what is kept durable, publish it.

        Raises:
            DataError: damage below the durable watermark, or an older catalog; nothing was changed.
        """
        slot, generation = self.slot, self._c.tail.get("generation")
        if slot[Slot.POISONED] == POISONED_BY_SYNC and slot[Slot.GENERATION] == generation:
            return  # decided by the next generation, from what is on the disk
        storage, facts = self._c.storage, self.facts()
        if slot[Slot.GENERATION] not in {generation, -generation}:
            place = self._c.catalog, self.topic_id, self.partition, generation
            facts = replace(facts, check_sequence=partial(check_partition, *place))
        storage.make_directory(self.directory)
        found = examine(storage, facts)
        for base, header in found.segments[-1:]:  # the one that may be cut
            path = segment_path(self.directory, base)
            check_writable(header, path, self.topic, self.partition)
        carry_out(storage, facts, found)
        self._close_active()
        self._group_commit.reopen()
        self.files.indexes.clear()
        if not found.segments:
            end = self._create_locked(found.end, None, 0)
            file_bytes = SEGMENT_HEADER_BYTES
        elif rewrite := found.segments[-1][1].rewrite:
            # What followed was torn off, and nothing is ever written to a rewritten segment.
            end = found.end._replace(previous_hash=rewrite.replaced_hash)
            end = self._create_locked(end, found.segments[-1][1], rewrite.data_bytes)
            file_bytes = SEGMENT_HEADER_BYTES
        else:
            end, file_bytes = found.end, found.file_bytes
            if found.tear is not None:
                file_bytes = end.position
            rewrite_unsynced(storage, facts, found)
            if facts.checkpoint is None or facts.checkpoint.segment_base != end.segment_base:
                # Its creator may have died before the name was durable.
                storage.sync_directory(self.directory)
        self._publish_recovered(end, file_bytes, facts)
        self.files.examined(found.known, found.segments)
        self._skip_lost_locked(facts.start_offset)
        self.ids.recovered_locked()
        self.producers.recovered_locked(named=found.named.producers)
        slot[Slot.GENERATION] = generation

    def _skip_lost_locked(self, start_offset: int) -> None:
        """Cover offsets that were seen but are lost, so that no other record ever gets them.

        A trim or a group may have passed records which a machine that died in mode `os` or
        `interval` lost. One gap covers 2**32 offsets; more were never lost at once.
        """
        slot = self.slot
        seen = max(start_offset, self._c.catalog.committed_end(self.topic_id, self.partition))
        lost = seen - slot[Slot.LOG_END]
        if lost <= 0:
            return
        _logger.warning(
            "%s/%d: offsets %d to %d are lost; the log continues at %d",
            *(self.topic, self.partition, slot[Slot.LOG_END], seen - 1, seen),
        )
        gap = encode_gap(min(lost, 1 << 32))
        self._write_locked(slot.read(), gap, 0, self._c.clock.now_ms())
        self.sync_segments([slot[Slot.ACTIVE_BASE]])
        end = slot[Slot.LOG_END]
        slot.synced(end, self.durable_word(end), slot[Slot.SEQUENCE])

    def sync_segments(self, bases: Iterable[int]) -> None:
        """Sync whole segment files."""
        for base in bases:
            file = self._c.storage.open(segment_path(self.directory, base), "rw")
            try:
                file.sync()
            except StorageError:
                self.slot[Slot.POISONED] = POISONED_BY_SYNC
                raise
            finally:
                file.close()

    def _publish_recovered(
        self, end: LogCheckpoint, file_bytes: int, facts: PartitionFacts
    ) -> None:
        slot = self.slot
        self._publish_end(end)
        slot[Slot.ZERO_FILLED] = max(file_bytes, end.position)
        slot[Slot.POISONED] = slot[Slot.COMMIT_END] = 0
        slot[Slot.START_OFFSET] = facts.start_offset
        slot[Slot.REWRITTEN_VERSION] = self._c.tail.stamp()
        slot[Slot.SEGMENTS_VERSION] = self._c.tail.stamp()
        slot[Slot.DURABLE_CHECK] = self.durable_word(end.next_offset)
        slot[Slot.DURABLE_OFFSET] = slot[Slot.VISIBLE_OFFSET] = end.next_offset
        slot[Slot.VISIBLE_SEQUENCE] = end.sequence
        # A batch whose writer died before it could say so has been adopted with its sequence.
        tail = self._c.tail
        tail.set("sequence", max(tail.get("sequence"), end.sequence))
        self.dirty = end != facts.checkpoint

    def _publish_end(self, end: LogCheckpoint) -> None:
        slot = self.slot
        slot[Slot.ACTIVE_BASE] = end.segment_base
        slot[Slot.ACTIVE_UID] = to_signed(end.segment_uid)
        slot[Slot.END_POSITION] = end.position
        slot[Slot.PREVIOUS_HASH] = to_signed(end.previous_hash)
        slot[Slot.MAX_TIMESTAMP] = end.max_timestamp_ms
        slot[Slot.SEQUENCE] = end.sequence
        slot[Slot.LOG_END] = end.next_offset

    def end_locked(self) -> LogCheckpoint:
        """The end of the log and what the next batch links to."""
        slot = self.slot
        return LogCheckpoint(
            slot[Slot.ACTIVE_BASE],
            to_unsigned(slot[Slot.ACTIVE_UID]),
            slot[Slot.END_POSITION],
            slot[Slot.LOG_END],
            to_unsigned(slot[Slot.PREVIOUS_HASH]),
            slot[Slot.MAX_TIMESTAMP],
            slot[Slot.SEQUENCE],
        )

    # --- append --------------------------------------------------------------------------------

    def append_locked(self, encoded: EncodedBatch, transaction_id: int, now_ms: int) -> int:
        """Write one batch at the log end and return its base offset. Not synced, not visible.

        Recovers the partition first if nobody has since the store was opened.

        Raises:
            PoisonedError: a sync of this partition failed earlier.
            StorageError: nothing was appended; the partial write was cut off again.
        """
        words = self._c.tail.words
        # As `Engine.changing_locked`, without its cost.
        words[IN_PROGRESS_WORD] = self.slot_number + 1
        try:
            before = self.slot.read()
            if before.generation != words[GENERATION_WORD]:
                self.recover_locked()
                before = self.slot.read()
            base_offset = self._write_locked(before, encoded, transaction_id, now_ms)
        except Exception:
            words[IN_PROGRESS_WORD] = 0
            raise
        words[IN_PROGRESS_WORD] = 0
        return base_offset

    def _write_locked(
        self, before: SlotWords, encoded: EncodedBatch, transaction_id: int, now_ms: int
    ) -> int:
        slot = self.slot
        active = self.active
        if active is None or active.header.segment_uid != before.active_uid:
            active = self.open_active_locked()
        file, segment = active
        if before.poisoned:
            self._clean_or_refuse_locked(file)
            before = slot.read()
        position = before.end_position
        if position > SEGMENT_HEADER_BYTES and (
            position + encoded.total_bytes > self.config.segment_bytes
            or now_ms - segment.created_ms >= self.config.segment_ms
        ):
            self.roll_locked()
            before = slot.read()
            file, segment = self.open_active_locked()
            position = before.end_position
        base_offset, newest = before.log_end, before.max_timestamp
        log_end = base_offset + encoded.last_offset_delta + 1
        if log_end > INT64_MAX:
            raise full_partition(self.topic, self.partition, base_offset)
        words = self._c.tail.words
        sequence = words[SEQUENCE_WORD] + 1
        placement = BatchPlacement(
            segment.segment_uid,
            self.partition_uid,
            base_offset,
            now_ms,
            before.previous_hash,
            before.durable_offset,
            sequence,
            transaction_id,
            newest,
        )
        header, header_hash = seal(encoded, placement)
        try:
            file.write(buffers(encoded, header), position)
        except StorageError:
            self.undo_locked(file, position)
            raise
        end_position = position + encoded.total_bytes
        latest = now_ms if encoded.flags & APPEND_TIME else encoded.max_timestamp_ms
        newest = max(newest, latest)
        slot.appended(before, end_position, (header_hash, newest), log_end, sequence)
        # After the log end: a reader that sees this sequence sees the batch.
        words[SEQUENCE_WORD] = sequence
        self.files.indexes.appended(before.active_base, base_offset, position, end_position, newest)
        self.counters.appended_locked(encoded.record_count, encoded.total_bytes)
        self.dirty = True
        self.zeros_run_low = runs_low(before.zero_filled, end_position, encoded.total_bytes)
        return base_offset

    def undo_locked(self, file: File, position: int) -> None:
        """Cut a partial write off, durably. If that fails, the next append tries again."""
        failed = POISONED_BY_WRITE
        try:
            file.truncate(position)
            self.slot[Slot.ZERO_FILLED], failed = position, POISONED_BY_SYNC
            file.sync()
        except StorageError:
            self.slot[Slot.POISONED] = failed
            raise

    def _clean_or_refuse_locked(self, file: File) -> None:
        if self.slot[Slot.POISONED] != POISONED_BY_WRITE:
            raise self.poisoned()
        self.slot[Slot.POISONED] = 0
        self.undo_locked(file, self.slot[Slot.END_POSITION])

    def open_active_locked(self) -> _Active:
        """The active segment, open for writing."""
        slot, active = self.slot.read(), self.active
        if active is None or active.header.segment_uid != slot.active_uid:
            self._close_active()
            header = read_segment_header(self._c.storage, self.directory, slot.active_base)
            path = segment_path(self.directory, slot.active_base)
            check_writable(header, path, self.topic, self.partition)
            active = self.active = _Active(self._c.storage.open(path, "rw"), header)
        return active

    def roll_locked(self) -> None:
        """Seal the active segment and start a new one. Does nothing to an empty segment."""
        slot = self.slot
        file, segment = self.open_active_locked()
        if slot[Slot.POISONED]:
            self._clean_or_refuse_locked(file)
        position = slot[Slot.END_POSITION]
        if position <= SEGMENT_HEADER_BYTES:
            return
        if slot[Slot.ZERO_FILLED] > position:
            file.truncate(position)
            slot[Slot.ZERO_FILLED] = position
        try:
            end = self._create_locked(self.end_locked(), segment, position)
        except StorageError:
            self._undo_roll_locked()
            raise
        self._publish_end(end)
        slot[Slot.ZERO_FILLED] = SEGMENT_HEADER_BYTES
        before = slot[Slot.SEGMENTS_VERSION]
        slot[Slot.SEGMENTS_VERSION] = self._c.tail.stamp()
        self.files.rolled(before, slot[Slot.SEGMENTS_VERSION], end.segment_base)
        self.sealed_unsynced = _Sealed(end, self.producers.snapshot_locked())
        # Not before the next one is there: who dies in between leaves this one to be appended to.
        self.files.indexes.sealed(segment, position)
        self._close_active()

    def _undo_roll_locked(self) -> None:
        """Remove what may be there of a segment that could not be created durably.

        The active segment goes on past its base offset, so it must not come back, ever.
        """
        storage, path = self._c.storage, segment_path(self.directory, self.slot[Slot.LOG_END])
        try:
            storage.remove(path + TEMPORARY_SUFFIX)
            if storage.exists(path):
                storage.remove(path)
                storage.sync_directory(self.directory)
        except StorageError:
            self.slot[Slot.POISONED] = POISONED_BY_SYNC

    def _create_locked(
        self, end: LogCheckpoint, previous: SegmentHeader | None, previous_bytes: int
    ) -> LogCheckpoint:
        """Create the segment that starts where `end` says; the position in it."""
        header = SegmentHeader(
            store_uid=self._c.store_uid,
            segment_uid=(int.from_bytes(os.urandom(8), "little") >> 1) or 1,
            partition_uid=self.partition_uid,
            base_offset=end.next_offset,
            created_ms=self._c.clock.now_ms(),
            previous_segment_uid=previous.link_uid if previous else 0,
            previous_hash=end.previous_hash,
            previous_bytes=previous_bytes,
            prior_max_timestamp_ms=end.max_timestamp_ms,
        )
        header_hash = create_segment(self._c.storage, self.directory, header)
        return LogCheckpoint(
            end.next_offset,
            header.segment_uid,
            SEGMENT_HEADER_BYTES,
            end.next_offset,
            header_hash,
            end.max_timestamp_ms,
            end.sequence,
        )

    # --- durability ----------------------------------------------------------------------------

    def wait_durable(self, end: int) -> None:
        """Return when every record below `end` is synced; see `GroupCommit.wait`.

        Raises:
            UnknownTopicError: The topic was deleted.
        """
        try:
            self._group_commit.wait(end)
        except (PoisonedError, StorageError):
            self.ensure_there()  # its files went away, or its partition counts as poisoned
            raise

    def publish_durable(self, durable_offset: int, word: int, sequence: int) -> None:
        """Tell everybody that the records below `durable_offset` are synced, and show them."""
        lock = self._c.append_lock
        done = None
        try:
            with lock:
                self.slot.synced(durable_offset, word, sequence)
                sealed = self.sealed_unsynced
                if sealed and self.slot[Slot.DURABLE_OFFSET] >= sealed.end.next_offset:
                    done, self.sealed_unsynced = sealed, None
        except BaseException:
            lock.let_go()  # if it was interrupted on the way out
            raise
        if done:
            self._save(done)

    def _save(self, sealed: _Sealed) -> None:
        """Remember where recovery may start. Without it the next open only scans more."""
        try:
            self.producers.save(*sealed)
            self.files.save(self._c.append_lock)
        except (StorageError, LockedError, DataError) as error:
            _logger.warning("%s/%d: no checkpoint: %s", self.topic, self.partition, error)

    def durable_word(self, durable_offset: int) -> int:
        """The word that vouches for a durable end."""
        return durable_check(self.partition_uid, durable_offset)

    def poisoned(self) -> PoisonedError:
        """The error for a partition whose sync failed."""
        return PoisonedError(
            "a sync of this partition failed, so what is on disk is unknown. Nothing more is"
            " accepted here; close every handle of the store and open it again",
            topic=self.topic,
            partition=self.partition,
            offset=self.slot[Slot.DURABLE_OFFSET],
            path=self.directory,
        )

    def checkpoint(self) -> None:
        """Sync and remember the end of the log, so that the next open has nothing to scan."""
        if not self.dirty or self.slot[Slot.POISONED]:
            return
        self.wait_durable(self.slot[Slot.LOG_END])
        with self._c.append_lock.let_go_at_interrupt, self._c.append_lock:
            end = self.end_locked()
            if self.slot[Slot.DURABLE_OFFSET] != end.next_offset:
                return  # another process has appended since; its close saves the checkpoint
            file = self.open_active_locked().file
            if self.slot[Slot.ZERO_FILLED] > end.position:
                file.truncate(end.position)
                self.slot[Slot.ZERO_FILLED] = end.position
            sealed = _Sealed(end, self.producers.snapshot_locked())
        self._save(sealed)
        self.dirty = False

    def zero_fill(self) -> None:
        """See `ZeroFill.fill`."""
        self._zeros.fill(self.config.segment_bytes)

    # --- reading -------------------------------------------------------------------------------

    @property
    def start_offset(self) -> int:
        """First offset that retention has left."""
        return self.slot[Slot.START_OFFSET]

    @property
    def visible_offset(self) -> int:
        """One past the last acknowledged record."""
        return self.slot[Slot.VISIBLE_OFFSET]

    # --- closing -------------------------------------------------------------------------------

    def stop_syncing(self) -> None:
        """Let a sync under way end and begin no other; before `close`."""
        self._group_commit.close()

    def close(self) -> None:
        """Close the files of this handle; nobody may be using them. Does not sync."""
        self._close_active()
        self._group_commit.close_files()
        self.files.indexes.clear()

    def _close_active(self) -> None:
        if self.active is not None:
            self.active.file.close()
        self.active = None
