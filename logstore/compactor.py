"""Compact one partition in bounded steps, beside appends and reads.

A round takes as many of the dirty sealed segments as its memory for keys allows, and looks, oldest
first, at every segment up to there (`compaction_round.py`). In groups of neighbours those are
rewritten in which a later record has replaced something. The active segment is never touched, nor
anything from the first open transaction on.

Whoever dies in between leaves a whole log: see `swap.py`. What a round had done is found done by
the next one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import compress, pairwise, repeat, takewhile
from typing import Final, NamedTuple

from .batch_scan import scan_bodies
from .compaction import ALL, MAP_BYTES, NONE, Backlog, Grouping, without
from .compaction_catalog import CompactionCatalog
from .compaction_round import (
    Candidate,
    ChangedError,
    FullError,
    Pace,
    Round,
    Sealed,
    Steps,
    open_sealed,
)
from .components import Components
from .errors import DataError, LockedError
from .format import CODEC_BY_NAME, CONTROL, BatchHeader, Buffer, SegmentHeader
from .freeing import Freeing
from .liveness import LOCKS_DIRECTORY
from .log import Log
from .merge import SAVING_MIN_PERCENT, Merger, Piece
from .record_batch import RecordBatch
from .rewrite import SegmentRewriter
from .segment import REWRITE_SUFFIX, check_writable, segment_path
from .storage import Lock
from .swap import remove_superseded, swap
from .tail import Slot
from .transaction_states import TransactionStates

AGES_PER_RETENTION: Final = 8
"""Segments that become one delay the removal by age of the oldest record by an eighth at most."""
ATTEMPTS_MAX: Final = 10
"""Rounds begun again because somebody else removed what was being rewritten."""


class CompactionResult(NamedTuple):
    """What a compaction of one partition did, or with `dry_run` would do."""

    topic: str
    partition: int
    segments_before: int
    """Sealed ones; the active segment takes no part."""
    segments_after: int
    bytes_before: int
    bytes_after: int
    removed_records: int
    end_offset: int
    """Up to here (exclusive) each key has one record, and aborted transactions have none. What
    follows is in the active segment, not durable yet, or behind an open transaction."""


class Compactor:
    """Compacts one partition. Used by one thread at a time.

    Args:
        components: Of the open store.
        transactions: Says which batches are committed.
        log: The partition.
        dry_run: Look, and write nothing.
        map_bytes: Memory for the keys of one round; None takes 128 MiB.
    """

    def __init__(
        self,
        components: Components,
        transactions: TransactionStates,
        log: Log,
        *,
        dry_run: bool = False,
        map_bytes: int | None = None,
    ) -> None:
        self._c = components
        self._transactions = transactions
        self._log = log
        self._dry_run = dry_run
        self._map_bytes = map_bytes or MAP_BYTES
        self._distinct = 1.0
        self._adapts = True
        """Whether the share of distinct keys seen in one round is expected in the next."""
        self._pace = Pace()
        self._freeing = Freeing()
        self._catalog = CompactionCatalog(components.catalog)
        config = log.config
        purposes = {"compact": config.compact, config.recompress or "": config.recompress}
        self._purpose = "+".join(purpose for purpose, wanted in purposes.items() if wanted)
        self.result = CompactionResult(log.topic, log.partition, 0, 0, 0, 0, 0, 0)
        """What was done so far."""

    def backlog(self) -> Backlog:
        """What there is to do, by the segment headers."""
        sealed, clean_offset = self._sealed(), self._clean_offset()
        dirty = [segment for segment in sealed if segment.end > clean_offset]
        rewrites = [segment.header.rewrite for segment in sealed]
        cleaned = [rewrite.cleaned_ms for rewrite in rewrites if rewrite and rewrite.cleaned_ms]
        dirty_bytes = sum(segment.data_bytes for segment in dirty)
        return Backlog(
            sum(segment.data_bytes for segment in sealed) - dirty_bytes,
            dirty_bytes,
            dirty[0].following.created_ms if dirty else None,
            min(cleaned, default=None),
        )

    def run(self) -> Steps:
        """Compact in steps of some milliseconds; closing the iterator gives up cleanly.

        Raises:
            LockedError: Somebody else compacts the partition.
            DataError: Damage; nothing from there on is rewritten.
            StorageError: The disk is full, or refuses; what was begun is removed again.
            UnknownTopicError: The topic was deleted.
        """
        lock = None if self._dry_run else self._lock()
        try:
            if lock is not None:
                self._sweep()
            yield from self._rounds()
        except DataError as error:
            raise error.at(topic=self._log.topic, partition=self._log.partition) from None
        finally:
            self._freeing.wait()
            if lock is not None:
                lock.close()
                done = self.result
                self._c.counters.compacted(
                    done.removed_records, done.bytes_before - done.bytes_after
                )

    def _lock(self) -> Lock:
        storage = self._c.storage
        storage.make_directory(LOCKS_DIRECTORY)
        lock = storage.lock(f"{LOCKS_DIRECTORY}/compaction.{self._log.slot_number}")
        if not lock.try_acquire():
            lock.close()
            raise LockedError(
                "another thread or process compacts this partition: wait for it",
                topic=self._log.topic,
                partition=self._log.partition,
            )
        return lock

    def _sweep(self) -> None:
        """Remove what a compaction has left that was killed or met an error."""
        storage, log = self._c.storage, self._log
        for name in storage.list(log.directory):
            if name.endswith(REWRITE_SUFFIX):
                storage.remove(f"{log.directory}/{name}")
        headers = log.files.headers()
        if len(headers) < len(log.files.listed()):
            for header in headers:
                if header.rewrite:
                    remove_superseded(self._c, log, header.base_offset)

    def _clean_offset(self) -> int:
        log = self._log
        return self._catalog.clean_offset(log.topic_id, log.partition, self._purpose)

    def _sealed(self) -> list[Sealed]:
        """The sealed segments that are durable and acknowledged."""
        slot = self._log.slot
        limit = min(slot[Slot.DURABLE_OFFSET], slot[Slot.VISIBLE_OFFSET])
        sealed = [Sealed(*pair) for pair in pairwise(self._log.files.headers())]
        durable = [segment for segment in sealed if segment.end <= limit]
        dedup_ms = self._log.config.dedup_ms
        if dedup_ms is None:
            return durable
        # Ids are remembered by their records, each of which says when it was appended.
        before_ms = self._c.clock.now_ms() - dedup_ms
        return list(takewhile(lambda segment: segment.following.created_ms <= before_ms, durable))

    # --- rounds --------------------------------------------------------------------------------

    def _rounds(self) -> Steps:
        clean_offset = self._clean_offset()
        segments = self._sealed()
        count, total = len(segments), sum(segment.data_bytes for segment in segments)
        self.result = self.result._replace(
            segments_before=count, segments_after=count, bytes_before=total, bytes_after=total
        )
        attempts, more = 0, True
        while more and attempts < ATTEMPTS_MAX:
            try:
                clean_offset, more = yield from self._round(clean_offset)
            except ChangedError:
                self._log.ensure_there()
                attempts += 1
            except FullError:
                self._distinct, self._adapts = 1.0, False
        if not more:
            self.result = self.result._replace(end_offset=clean_offset)
            return
        raise LockedError(
            "others remove segments faster than they can be compacted: try later",
            topic=self._log.topic,
            partition=self._log.partition,
        )

    def _round(self, clean_offset: int) -> Generator[None, None, tuple[int, bool]]:
        """One round; where the next one begins, and whether there is more for it to do."""
        now = Round(
            self._log,
            self._transactions,
            self._sealed(),
            clean_offset,
            max(self._c.clock.now_ms(), 1),
            self._pace,
            map_bytes=self._map_bytes,
            distinct=self._distinct,
            by_key=self._log.config.compact,
            recompress=self._log.config.recompress is not None,
            dry_run=self._dry_run,
        )
        yield from now.measure()
        yield from now.walk_back()
        yield from self._rewrite_round(now)
        if now.records and self._adapts:
            self._distinct = min(1.2 * len(now.seen) / now.records, 1.0)
        if now.end_offset > clean_offset and not self._dry_run:
            log = self._log
            self._catalog.set_clean_offset(
                log.topic_id, log.partition, self._purpose, now.end_offset
            )
        ended = max((segment.end for segment in now.segments), default=0)
        return now.end_offset, clean_offset < now.end_offset < ended

    def _rewrite_round(self, now: Round) -> Steps:
        """Look at every segment up to the end of the round, and rewrite where it is worth it."""
        config = self._log.config
        span_ms = None if config.retention_ms is None else config.retention_ms // AGES_PER_RETENTION
        grouping: Grouping[Candidate] = Grouping(config.segment_bytes, span_ms)
        for segment in now.segments:
            if segment.base >= now.end_offset and segment.end > now.clean_offset:
                break
            candidate = yield from now.look(segment)
            if candidate is None:
                now.end_offset = max(segment.base, now.clean_offset)
                break
            if group := grouping.add(candidate):
                yield from self._rewrite(now, group)
        if group := grouping.close():
            yield from self._rewrite(now, group)

    # --- rewriting -----------------------------------------------------------------------------

    def _rewrite(self, now: Round, group: Sequence[Candidate]) -> Steps:
        """Write one segment for a group of them, and put it in their place."""
        segments = [candidate.segment for candidate in group]
        size_bytes = sum(candidate.kept_bytes for candidate in group)
        removed = sum(candidate.removed for candidate in group)
        if not self._dry_run:
            writer = self._begin(segments[0].header)
            config = self._log.config
            codec = CODEC_BY_NAME.get(config.recompress or "")
            merger = Merger(writer, codec, CODEC_BY_NAME[config.compression])
            try:
                for candidate in group:
                    yield from self._copy(now, candidate, merger)
                merger.flush()
                written = writer.finish(segments[-1].following, now.now_ms)
                yield
                if not now.by_key and not _pays(segments, writer):
                    return
                if not swap(self._c, self._log, [each.header for each in segments], writer.path):
                    raise ChangedError("a segment was removed", path=self._log.directory)
            finally:
                writer.discard()
                self._freeing.release()
            assert written.rewrite is not None
            self._log.files.indexes.write(written, writer.index, written.rewrite.data_bytes)
            size_bytes, removed = written.rewrite.data_bytes, writer.removed
        done = self.result
        self.result = done._replace(
            segments_after=done.segments_after + 1 - len(segments),
            bytes_after=done.bytes_after + size_bytes - sum(each.data_bytes for each in segments),
            removed_records=done.removed_records + removed,
        )

    def _begin(self, first: SegmentHeader) -> SegmentRewriter:
        # With the lock, so that the directory of a deleted topic stays as empty as it has to be.
        with self._c.append_lock.let_go_at_interrupt, self._c.append_lock:
            self._log.ensure_there()
            return SegmentRewriter(self._c.storage, self._log.directory, first)

    def _copy(self, now: Round, candidate: Candidate, merger: Merger) -> Steps:
        segment = candidate.segment
        header = segment.header
        path = segment_path(self._log.directory, segment.base)
        check_writable(header, path, self._log.topic, self._log.partition)
        masks: Iterator[bytes | None] = repeat(ALL)
        if candidate.masks is not None:
            masks = iter(candidate.masks)
        file = open_sealed(self._log, segment)
        try:
            batches = scan_bodies(file, header.data_start, segment.data_bytes, header.segment_uid)
            for (batch, body), mask in zip(batches, masks, strict=False):
                self._place(now, batch, body, mask, merger)
                if self._pace.worked(batch.total_bytes):
                    yield
        finally:
            self._freeing.hold(file)  # its name is removed under the append lock

    def _place(
        self, now: Round, header: BatchHeader, body: Buffer, mask: bytes | None, merger: Merger
    ) -> None:
        """Write what stays of one batch."""
        if mask == NONE or header.flags & CONTROL:
            merger.drop(header)
            return
        batch = now.columns(header, body)
        cleaned_ms = header.cleaned_ms
        if header.has_tombstones and now.by_key:
            mask, cleaned_ms = self._clean(now, batch, mask)
        if mask == NONE:
            merger.drop(header)
            return
        indexes = None if mask is ALL else list(compress(range(header.record_count), mask))
        merger.keep(Piece(header._replace(cleaned_ms=cleaned_ms), batch, body, indexes))

    def _clean(
        self, now: Round, batch: RecordBatch, mask: bytes | None
    ) -> tuple[bytes | None, int]:
        """The mask without tombstones that may go, and since when the others are cleaned."""
        tombstones = batch.tombstones()
        since = now.cleaned_since(batch.header)
        rest = without(mask, tombstones)
        if now.horizon_passed(since):
            return rest, 0
        return mask, 0 if rest == mask else since  # equal: none of them stays


def _pays(segments: Sequence[Sealed], writer: SegmentRewriter) -> bool:
    """Whether segments that were only compressed anew have become so much smaller."""
    before = sum(segment.data_bytes for segment in segments)
    return len(segments) > 1 or writer.data_bytes * 100 <= before * (100 - SAVING_MIN_PERCENT)
