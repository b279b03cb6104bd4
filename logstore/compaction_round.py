"""One round of a compaction: how far it goes, and which records of each segment stay.

First the dirty segments are measured by their headers, up to where the memory for keys may end or
a transaction is open. Then they are walked backwards, from the newest batch to the oldest: a record
stays if its key has not been met before. With all these keys at hand every older segment is looked
at. Nothing is written here; `compactor.py` acts on it.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from .batch_scan import scan_keys
from .compaction import ALL, LATER_ENTRY_BYTES, MAP_BYTES, NONE, LaterKeys, kept_records
from .errors import CorruptBatchError, StorageError, UnavailableError
from .format import BatchHeader, Buffer, SegmentHeader
from .log import Log
from .record_batch import RecordBatch, open_columns
from .segment import scan_headers
from .storage import File
from .transaction_states import TransactionStates

Steps: TypeAlias = Generator[None, None, None]

STEP_BYTES: Final = 1 << 20
STEP_BATCHES: Final = 256
"""A step ends after so much: some milliseconds in which other threads wait for the interpreter."""
DISTINCT_MIN: Final = 1 / 32


class ChangedError(UnavailableError):
    """A segment was removed or replaced by somebody else: look again."""


class FullError(UnavailableError):
    """There are more different keys than expected: begin the round again with fewer records."""


class Pace:
    """Says when a step has come to its end."""

    def __init__(self) -> None:
        self._work = 0

    def worked(self, size_bytes: int) -> bool:
        """Whether it is time to let others go on, after one more batch."""
        self._work += size_bytes + STEP_BYTES // STEP_BATCHES
        if self._work < STEP_BYTES:
            return False
        self._work = 0
        return True


class Sealed(NamedTuple):
    """A sealed segment, and the one behind it, which knows where it ends."""

    header: SegmentHeader
    following: SegmentHeader

    @property
    def base(self) -> int:
        """First offset it covers."""
        return self.header.base_offset

    @property
    def end(self) -> int:
        """One past the last offset it covers."""
        return self.following.base_offset

    @property
    def data_bytes(self) -> int:
        """Size of its data."""
        rewrite = self.header.rewrite
        return rewrite.data_bytes if rewrite else self.following.previous_bytes


def open_sealed(log: Log, segment: Sealed) -> File:
    """Open a segment that was listed; ChangedError if it is not there any more."""
    try:
        file, header = log.files.open(segment.base)
    except StorageError as error:
        if error.errno != errno.ENOENT:
            raise
        raise ChangedError("the segment was removed", path=log.directory) from None
    if header.segment_uid != segment.header.segment_uid:
        file.close()
        raise ChangedError("the segment was replaced", path=log.directory)
    return file


@dataclass(slots=True)
class Candidate:
    """A segment that has been looked at."""

    segment: Sealed
    masks: list[bytes | None] | None = None
    """What stays of each batch; None: it was not looked into, and all of it stays."""
    kept_bytes: int = 0
    dirty: bool = False
    """Whether rewriting it changes more than its size."""
    removed: int = 0
    """Records that go."""

    @property
    def created_ms(self) -> int:
        """When the segment was begun."""
        return self.segment.header.created_ms

    @property
    def sealed_ms(self) -> int:
        """When it was sealed."""
        return self.segment.following.created_ms

    def add(self, header: BatchHeader, mask: bytes | None, *, cleans: bool) -> None:
        """Count the next batch."""
        kept, count = kept_records(header.record_count, mask), header.record_count
        self.removed += count - kept
        self.kept_bytes += header.total_bytes * kept // max(count, 1)
        self.dirty = self.dirty or kept < count or (kept > 0 and cleans)


@dataclass(slots=True)
class Round:
    """One round; see the module docstring. Used by one thread.

    `end_offset` is where it ends and the next one begins, once it was measured; an open transaction
    that is met later may bring it down.
    """

    log: Log
    transactions: TransactionStates
    segments: list[Sealed]
    clean_offset: int
    """Each key below has one record."""
    now_ms: int
    pace: Pace
    map_bytes: int = MAP_BYTES
    distinct: float = 1.0
    """Expected share of the records whose key differs from all others."""
    by_key: bool = True
    """Whether records are replaced by later ones of their key."""
    recompress: bool = False
    """Whether everything is to be compressed anew once."""
    dry_run: bool = False
    seen: LaterKeys = field(default_factory=LaterKeys)
    end_offset: int = field(init=False)
    records: int = 0
    """Records that were walked."""
    _windows: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Per segment: positions [start, stop) of batches that are read at once."""
    _walked: dict[int, Candidate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.end_offset = self.clean_offset

    def measure(self) -> Steps:
        """Find where the round ends, and what to read at once on the way back."""
        budget = int(self.map_bytes / max(self.distinct, DISTINCT_MIN))
        for segment in self.segments:
            if segment.end <= self.clean_offset:
                continue
            file = open_sealed(self.log, segment)
            try:
                left = yield from self._measure(file, segment, budget)
            finally:
                file.close()
            if left is None:
                return
            budget = left

    def _measure(
        self, file: File, segment: Sealed, budget: int
    ) -> Generator[None, None, int | None]:
        """Measure one segment; what is left of the budget, None if the round ends in it."""
        windows = self._windows[segment.base] = []
        before, header, start, batches = self.end_offset, segment.header, -1, 0
        position = header.data_start
        full = False
        for position, batch in scan_headers(
            file, header.data_start, segment.data_bytes, header.segment_uid
        ):
            if self.state(batch) == "open":
                del self._windows[segment.base]
                self.end_offset = before
                return None
            if batch.last_offset < self.clean_offset:
                continue
            need = batch.record_count * LATER_ENTRY_BYTES + batch.sections[0].raw_bytes
            need = need if self.by_key else 0
            full = need > budget and self.end_offset > self.clean_offset
            if full:
                break
            budget -= need
            self.end_offset = batch.next_offset
            end = position + batch.total_bytes
            start = position if start < 0 else start
            batches += 1
            if end - start >= STEP_BYTES or batches >= STEP_BATCHES:
                windows.append((start, end))
                start, batches = -1, 0
            if self.pace.worked(0):
                yield
        if start >= 0:
            windows.append((start, position if full else segment.data_bytes))
        if not full and self.end_offset != segment.end:
            raise CorruptBatchError(
                f"the segment ends at offset {self.end_offset}, not at {segment.end}",
                path=file.path,
                offset=self.end_offset,
            )
        return None if full else budget

    def walk_back(self) -> Steps:
        """From the newest batch of the round to the oldest: what stays, and which keys there are.

        Raises:
            FullError: More different keys than the memory holds.
        """
        for segment in reversed(self.segments if self.by_key else ()):
            windows = self._windows.get(segment.base)
            if windows is None:
                continue
            found = self._walked[segment.base] = Candidate(segment)
            masks = found.masks = []
            file = open_sealed(self.log, segment)
            try:
                for start, stop in reversed(windows):
                    uid = segment.header.segment_uid
                    batches = list(scan_keys(file, start, stop, uid))
                    for header, section in reversed(batches):
                        mask = self._walk(header, section)
                        masks.append(mask)
                        found.add(header, mask, cleans=self.cleans(header))
                        if self.pace.worked(len(section)):
                            yield
                    if self.seen.size_bytes > 2 * self.map_bytes and self.distinct < 1:
                        raise FullError("more different keys than expected")
            finally:
                file.close()
            masks.reverse()

    def _walk(self, header: BatchHeader, section: Buffer) -> bytes | None:
        if not header.record_count or self.state(header) != "committed":
            return NONE
        self.records += header.record_count
        return self.seen.take(self.columns(header, section).keys)

    def look(self, segment: Sealed) -> Generator[None, None, Candidate | None]:
        """What stays of a segment; None if an open transaction is in it."""
        walked = self._walked.pop(segment.base, None)
        if walked and self.clean_offset <= segment.base and segment.end <= self.end_offset:
            walked.dirty = walked.dirty or self.recompress
            return walked
        rewrite = segment.header.rewrite
        if not self.seen and segment.end <= self.clean_offset:
            due = bool(rewrite and self.horizon_passed(rewrite.cleaned_ms))
            return Candidate(segment, None, segment.data_bytes, due)
        found = Candidate(segment, dirty=self.recompress and segment.end > self.clean_offset)
        masks = found.masks = []
        known = iter(walked.masks or ()) if walked else iter(())
        file = open_sealed(self.log, segment)
        try:
            for header, section in self._keys(file, segment):
                state = self.state(header)
                if state == "open":
                    return None
                mask = self._look(header, section, state, known)
                masks.append(mask)
                found.add(header, mask, cleans=self.cleans(header))
                if self.pace.worked(len(section)):
                    yield
        finally:
            file.close()
        return found

    def _look(
        self, header: BatchHeader, section: Buffer, state: str, known: Iterator[bytes | None]
    ) -> bytes | None:
        """The mask of a batch of a segment that was not walked, or in part: that is `known`."""
        in_round = self.clean_offset <= header.last_offset
        if in_round and header.next_offset <= self.end_offset and self.by_key:
            return next(known)
        if state == "aborted" or not header.record_count:
            return NONE
        if header.last_offset < self.clean_offset:
            return self.seen.mask(self.columns(header, section).keys)
        return ALL

    def _keys(self, file: File, segment: Sealed) -> Iterator[tuple[BatchHeader, Buffer]]:
        header = segment.header
        return scan_keys(file, header.data_start, segment.data_bytes, header.segment_uid)

    def columns(self, header: BatchHeader, body: Buffer) -> RecordBatch:
        """The columns of a batch; of its section A alone the keys, timestamps and offsets."""
        return open_columns(self.log.topic, self.log.partition, header, body)

    def state(self, header: BatchHeader) -> str:
        """Whether a batch is committed, aborted or in an open transaction."""
        transaction = header.transaction_id
        if not transaction:
            return "committed"
        state = self.transactions.state(transaction)
        began_ms = header.append_timestamp_ms
        if (
            state == "open"
            and not self.dry_run
            and self.transactions.abort_if_lost(transaction, began_ms)
        ):
            state = self.transactions.state(transaction)
        return state

    # --- tombstones ----------------------------------------------------------------------------

    def horizon_passed(self, cleaned_ms: int) -> bool:
        """Whether tombstones may go that have had nothing to hide since then; 0: they have."""
        horizon_ms = self.log.config.tombstone_retention_ms
        return cleaned_ms > 0 and self.now_ms - cleaned_ms >= horizon_ms

    def cleaned_since(self, header: BatchHeader) -> int:
        """Since when, after this round, tombstones of a batch have nothing to hide; 0: not yet."""
        return header.cleaned_ms or (self.now_ms if header.next_offset <= self.end_offset else 0)

    def cleans(self, header: BatchHeader) -> bool:
        """Whether there are tombstones which this round marks as cleaned, or removes."""
        if not header.has_tombstones or not self.by_key:
            return False
        since = self.cleaned_since(header)
        return since != header.cleaned_ms or self.horizon_passed(since)
