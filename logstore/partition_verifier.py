"""Check one partition: its segments, batches and indexes, and the catalog against them.

Changes nothing. Damage does not end it; what is checked of a whole store is in verify.py.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from dataclasses import replace
from typing import Final

from .catalog import LogCheckpoint
from .config import TopicInfo
from .engine import Engine, in_use
from .errors import (
    CorruptBatchError,
    CorruptSegmentError,
    DataError,
    FormatVersionError,
    StorageError,
)
from .format import BATCH_HEADER_BYTES, INT64_MAX, BatchHeader, Rewrite, SegmentHeader
from .index import SparseIndex
from .log import Log
from .owner_catalog import NUMBER_BITS
from .segment import base_offset_of, index_path, read_header, read_segment_header, segment_path
from .segment_chain import obsolete
from .segment_walk import (
    BODIES_BYTES,
    HEADERS_BYTES,
    PROBE_BYTES,
    Stretch,
    Window,
    body_problem,
    walk,
)
from .storage import File, Storage
from .tail import Slot
from .verify_report import HARMLESS, FindingKind, VerifyFinding, VerifyReport

INDEX_BYTES_MAX: Final = 1 << 30


def torn_bytes(storage: Storage, log: Log) -> int:
    """Size of the torn tail of a log open read-only; 0 if there is none or a writer lives."""
    path = segment_path(log.directory, log.slot[Slot.ACTIVE_BASE])
    if not storage.read_only or not storage.exists(path) or in_use(storage):
        return 0
    end = log.slot[Slot.END_POSITION]
    file = storage.open(path, "r")
    try:
        size = file.size()
        for position in range(end, size, PROBE_BYTES):
            chunk = file.read(PROBE_BYTES, position)
            if chunk.count(0) != len(chunk):
                return size - end
    finally:
        file.close()
    return 0


class PartitionVerifier:
    """Verifies one partition into a report, from its files and what the catalog says of it."""

    def __init__(
        self,
        engine: Engine,
        info: TopicInfo,
        partition: int,
        report: VerifyReport,
        transactions: dict[int, int],
    ) -> None:
        self._engine = engine
        self._storage = engine.storage
        self._report = report
        self._info = info
        self._partition = partition
        self._transactions = transactions
        self._refused: DataError | None = None
        """Why the partition cannot be opened, if it cannot."""
        try:
            self._log = engine.log(info.name, partition)
        except DataError as error:
            self._refused = error
            self._log = Log(engine.components, info, partition)
        self._facts = self._log.facts()
        self._path = self._log.directory
        self._watermark = self._facts.durable_offset
        self._expected: int | None = None
        """Next offset, None after damage."""
        self._link: int | None = None
        """What the next batch links to, None after damage."""
        self._sequence = 0
        self._found: list[VerifyFinding] = []
        self.log_end = 0
        self.last_sequence = 0
        self._active, self._end = 0, 0
        """Base offset of the active segment, and where its data end."""

    @property
    def whole(self) -> bool:
        """Whether nothing was found that costs a record."""
        return all(finding.kind in HARMLESS for finding in self._found)

    def run(self) -> None:
        """Check everything; what is found is in the report afterwards."""
        log = self._log
        # In this order: what is rolled after the first look is sealed at the second.
        end, active = log.slot[Slot.END_POSITION], log.slot[Slot.ACTIVE_BASE]
        if self._refused is not None:
            active = INT64_MAX
        self._active, self._end = active, end
        bases = self._bases()
        start = self._now_starts_at()
        if bases[:1] > [start]:
            self._add("missing", f"the records {start} to {bases[0]} are missing", offset=start)
            self._found[-1] = self._found[-1]._replace(next_offset=bases[0])
        next_base, previous = 0, None
        while (number := bisect_left(bases, next_base)) < len(bases):
            base = bases[number]
            following = bases[number + 1] if number + 1 < len(bases) else None
            self._path = segment_path(log.directory, base)
            try:
                previous = self._segment(base, following, previous)
            except StorageError as error:
                fresh = self._bases()
                if error.errno == errno.ENOENT and fresh != bases:
                    # Retention has removed it, or a compaction has put another into its place,
                    # or into that of one before it.
                    bases, previous = fresh, None
                    next_base = max([*(each for each in bases if each <= base), 0])
                    self._expected, self._link, self._sequence = None, None, 0
                    continue
                self._broken("unreadable", str(error), base, following)
                previous = None
            rewrite = previous.rewrite if previous else None
            next_base = rewrite.end_offset if rewrite else base + 1
        self._finish(bases)

    def _bases(self) -> list[int]:
        """Base offsets of the segments that count, without what is left over of a retention."""
        seen: list[str] = []
        while True:
            names = self._storage.list(self._log.directory)
            found = (base for name in names if (base := base_offset_of(name)) is not None)
            bases = sorted(base for base in found if base <= self._active)
            facts = replace(self._facts, start_offset=self._now_starts_at())
            try:
                return bases[len(obsolete(self._storage, facts, bases)) :]
            except StorageError as error:
                if error.errno != errno.ENOENT or names == seen:
                    raise
                seen = names  # retention has removed a segment since

    def _now_starts_at(self) -> int:
        return self._engine.catalog.partition(self._info.id, self._partition).start_offset

    def _segment(
        self, base: int, following: int | None, previous: SegmentHeader | None
    ) -> SegmentHeader | None:
        """Check one segment; its header, None if it cannot be read.

        Args:
            base: Its base offset.
            following: That of the next one.
            previous: Header of the segment before.
        """
        self._report.segments += 1
        file = self._storage.open(self._path, "r")
        try:
            try:
                segment = read_header(file, base)
                self._check_owner(segment)
            except DataError as error:
                kinds: dict[type[DataError], FindingKind] = {FormatVersionError: "newer"}
                self._broken(kinds.get(type(error), "header"), error.message, base, following)
                return None
            self._check_link(segment, previous)
            sealed = base != self._active or segment.rewrite is not None
            stop = self._sealed_end(file, segment, following) if sealed else self._end
            found = len(self._found)
            index, position = self._batches(file, segment, stop)
            if segment.rewrite:
                self._check_rewrite(segment.rewrite)
            if not sealed:
                self._check_tail(stop)
            elif len(self._found) == found and self._expected == following:
                self._check_index(segment, index, position)
        finally:
            file.close()
        return segment

    def _check_owner(self, header: SegmentHeader) -> None:
        facts = self._facts
        if (header.partition_uid, header.store_uid) != (facts.partition_uid, facts.store_uid):
            raise CorruptSegmentError("the segment belongs to another partition or store")

    def _sealed_end(self, file: File, segment: SegmentHeader, following: int | None) -> int:
        """Behind the end of a sealed segment there may be what a crash left of the zeros."""
        size = file.size()
        if segment.rewrite:
            return min(size, segment.rewrite.data_bytes)
        if following is None:
            return size
        try:
            after = read_segment_header(self._storage, self._log.directory, following)
        except (DataError, StorageError):
            return size  # reported when its turn comes
        sealed_by = after.previous_segment_uid == segment.link_uid
        return min(size, after.previous_bytes) if sealed_by else size

    def _check_rewrite(self, rewrite: Rewrite) -> None:
        """A rewritten segment says where it ends, and what the next one links to."""
        reached = (self._expected, self._link)
        if self._expected is not None and reached != (rewrite.end_offset, rewrite.last_hash):
            message = f"the segment does not reach its end offset {rewrite.end_offset}"
            self._add("missing", message, 0, offset=self._expected)
            self._found[-1] = self._found[-1]._replace(next_offset=rewrite.end_offset)
        self._expected, self._link = rewrite.end_offset, rewrite.replaced_hash
        self._close(rewrite.end_offset)

    def _check_link(self, segment: SegmentHeader, previous: SegmentHeader | None) -> None:
        base = segment.base_offset
        if self._expected is not None and base != self._expected:
            kind: FindingKind = "missing" if base > self._expected else "misplaced"
            what = "are missing" if base > self._expected else "are there twice"
            low, high = sorted((self._expected, base))
            self._add(kind, f"the records {low} to {high} {what}", 0, offset=self._expected)
        elif previous is not None and segment.previous_segment_uid != previous.link_uid:
            message = "the segment before is not the one that was sealed there"
            self._add("misplaced", message, 0, offset=base)
        elif self._link is not None and segment.previous_hash != self._link:
            message = "the segment does not link to the last batch of the one before it"
            self._add("misplaced", message, 0, offset=base)
        self._expected, self._link = base, segment.header_hash
        self._close(base)

    def _batches(self, file: File, segment: SegmentHeader, stop: int) -> tuple[SparseIndex, int]:
        """Check all batches in [header, stop); the index they should have, and where they end."""
        report, deep = self._report, self._report.deep
        checkpoint = self._facts.checkpoint
        if checkpoint is not None and checkpoint.segment_uid != segment.segment_uid:
            checkpoint = None  # in another one, or what it was in has been rewritten
        index = SparseIndex()
        newest = segment.prior_max_timestamp_ms
        window = Window(file, BODIES_BYTES if deep else HEADERS_BYTES)
        position = segment.data_start
        for stretch in walk(window, segment.segment_uid, segment.data_start, stop):
            position, header = stretch.position, stretch.header
            if checkpoint is not None and position >= checkpoint.position:
                self._check_checkpoint(checkpoint, position, header)
                checkpoint = None
            if header is None or stretch.problem is not None:
                self._bad_stretch(stretch)
                continue
            problem = self._misplaced(header) or (
                self._body(window, position, header) if deep else None
            )
            report.batches += 1
            report.records += header.record_count
            report.data_bytes += stretch.size_bytes
            newest = max(newest, header.running_max_timestamp_ms)
            index.append(header.base_offset, position, newest)
            self._note_batch(header)
            if problem is not None:
                kind: FindingKind = "rotten" if problem[1] else "misplaced"
                self._add(kind, problem[0], position, offset=header.base_offset)
                size, after = stretch.size_bytes, header.next_offset
                self._found[-1] = self._found[-1]._replace(size_bytes=size, next_offset=after)
            position += stretch.size_bytes
        return index, position

    def _note_batch(self, header: BatchHeader) -> None:
        self._close(header.base_offset)
        self._expected = max(self._expected or 0, header.next_offset)
        self._link = header.header_hash
        self._sequence = max(self._sequence, header.sequence)
        self.last_sequence = max(self.last_sequence, header.sequence)
        self._watermark = max(self._watermark, header.durable_offset)
        self.log_end = header.next_offset
        if header.transaction_id:
            owner, number = header.transaction_id >> NUMBER_BITS, header.transaction_id
            number &= (1 << NUMBER_BITS) - 1
            self._transactions[owner] = max(self._transactions.get(owner, 0), number)

    def _misplaced(self, header: BatchHeader) -> tuple[str, bool] | None:
        if header.partition_uid != self._facts.partition_uid:
            return "the batch belongs to another partition", False
        if self._expected is not None and header.base_offset != self._expected:
            found = f"found offset {header.base_offset} where {self._expected} was expected"
            return found, False
        if self._link is not None and header.previous_hash != self._link:
            return "the batch does not link to the one before it", False
        if header.sequence <= self._sequence:
            return "the sequence of the batch does not rise", False
        return None

    def _body(self, window: Window, position: int, header: BatchHeader) -> tuple[str, bool] | None:
        body = window.view(position + BATCH_HEADER_BYTES, header.body_bytes)
        problem = body_problem(header, body)
        return None if problem is None else (problem, True)

    def _bad_stretch(self, stretch: Stretch) -> None:
        kind: FindingKind = "newer" if stretch.newer else "rotten"
        problem = stretch.problem or "not a batch"
        offset = self._expected
        self._add(kind, problem, stretch.position, offset=offset)
        self._found[-1] = self._found[-1]._replace(size_bytes=stretch.size_bytes)
        self._expected = self._link = None

    def _check_checkpoint(
        self, checkpoint: LogCheckpoint, position: int, header: BatchHeader | None
    ) -> None:
        """Recovery starts at the checkpoint, so a batch must begin there."""
        expected = (checkpoint.position, checkpoint.next_offset, checkpoint.previous_hash)
        if header is not None and expected != (position, header.base_offset, header.previous_hash):
            message = f"the checkpoint in the catalog ({checkpoint.position}) is not at a batch"
            self._add("catalog", message, checkpoint.position, offset=checkpoint.next_offset)

    def _check_index(self, segment: SegmentHeader, index: SparseIndex, end: int) -> None:
        path = index_path(self._log.directory, segment.base_offset)
        storage = self._storage
        if not storage.exists(path):
            return
        file = storage.open(path, "r")
        try:
            content = file.read(min(file.size(), INDEX_BYTES_MAX), 0)
            found = SparseIndex.decode(content, segment.segment_uid)
            if found.end_position > end:
                raise CorruptBatchError("the index is ahead of the segment")  # noqa: TRY301
        except CorruptBatchError as error:
            message = f"{error.message}; it will be built again"
            self._add("index", message, 0, path=path)
            return
        finally:
            file.close()
        if content != index.encode(segment.segment_uid, end):
            message = "the index is whole but not that of these batches"
            self._add("misplaced", message, 0, path=path, offset=segment.base_offset)

    def _check_tail(self, stop: int) -> None:
        """Behind the end of a store nobody writes to, a crash may have left a torn append."""
        torn = torn_bytes(self._storage, self._log)
        if torn:
            message = "a torn append, never acknowledged: the next writer saves and cuts it"
            self._add("torn", message, stop, offset=self._expected)
            self._found[-1] = self._found[-1]._replace(size_bytes=torn)

    def _finish(self, bases: list[int]) -> None:
        """Tell torn from rotten, and see that the log reaches as far as it should."""
        found, watermark = self._found, self._watermark
        self.log_end = max(self.log_end, bases[-1] if bases else self._facts.start_offset)
        for number, finding in enumerate(found):
            open_end = finding.next_offset is None and finding.kind == "rotten"
            if open_end and finding.offset is not None and finding.offset >= watermark:
                found[number] = finding._replace(kind="torn")
        if self._refused is not None and self.whole:
            error = self._refused
            self._path = error.path or self._log.directory
            self._add("missing", error.message, error.position, offset=self.log_end)
            self._found[-1] = self._found[-1]._replace(next_offset=watermark)
        for finding in found:
            self._report.add(finding)

    # --- findings ------------------------------------------------------------------------------

    def _broken(self, kind: FindingKind, problem: str, base: int, following: int | None) -> None:
        """Nothing of this segment can be read."""
        self._add(kind, problem, 0, offset=base)
        self._found[-1] = self._found[-1]._replace(next_offset=following)
        self._expected = self._link = None

    def _add(
        self,
        kind: FindingKind,
        problem: str,
        position: int | None = None,
        *,
        offset: int | None = None,
        path: str | None = None,
    ) -> None:
        where = (self._info.name, self._partition, path or self._path, position, offset)
        self._found.append(VerifyFinding(*where, problem, kind))

    def _close(self, offset: int) -> None:
        """Whole batches go on at `offset`: that is where the damage before ends."""
        for number in range(len(self._found) - 1, -1, -1):
            finding = self._found[number]
            if finding.kind not in {"rotten", "newer"} or finding.next_offset is not None:
                return
            self._found[number] = finding._replace(next_offset=offset)
