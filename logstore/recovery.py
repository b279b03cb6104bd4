"""What a partition is after a crash: where its log ends, what is torn and what is corrupt.

This is the place where a torn write is handled. The rule needs one number, the durable watermark:
records below it were acknowledged as synced.

1. Segment headers must be whole, of this partition, and linked without a hole. Of those for which
   a chain file vouches only the names are looked at: all have to be there.
2. From the last checkpoint on, batch headers are walked; the chain of hashes, offsets and
   sequences must hold. Bodies are verified only above the watermark.
3. At the first batch that is not whole, the rest of the log is searched for valid headers: each
   carries the watermark its writer knew. Damage below the highest known watermark is corruption:
   a typed error, nothing on disk is touched. Damage above it is a torn write: the tail is copied
   to `quarantine/`, then cut, and the cut is synced.

This module reads and decides, torn_tail.py acts. A valid batch after a hole proves nothing above
the watermark, because the operating system writes pages back in any order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .backup_manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest
from .batch import verify_body
from .catalog import LogCheckpoint
from .catalog_age import check_transaction
from .chain_file import known_segments
from .errors import (
    CorruptBatchError,
    CorruptSegmentError,
    DataError,
    FormatVersionError,
)
from .format import (
    ALIGNMENT_BYTES,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    NO_TIMESTAMP,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    SegmentHeader,
    parse_header,
)
from .owner_catalog import NUMBER_BITS
from .retention import SegmentInfo
from .segment import base_offset_of, scan_headers, segment_path
from .segment_chain import (
    PartitionFacts,
    Tear,
    check_first,
    check_links,
    obsolete,
    read_headers,
    superseded,
)
from .storage import File, Storage

_PROBE_BYTES = 1 << 20


@dataclass(slots=True)
class Named:
    """Whom the batches behind the checkpoint name, as far as was looked."""

    producers: bool = False
    """Whether one names a producer, or may have done before it was rewritten."""
    transactions: dict[int, int] = field(default_factory=dict)
    """The highest number of a transaction of each owner."""

    def note(self, batch: BatchHeader) -> None:
        """Take in a batch that is part of the log."""
        if batch.producer_id:
            self.producers = True
        if batch.transaction_id:
            owner_id, number = divmod(batch.transaction_id, 1 << NUMBER_BITS)
            self.transactions[owner_id] = max(number, self.transactions.get(owner_id, 0))


@dataclass(slots=True)
class Examination:
    """Result of `examine`: the segments, the end of the log and how to get there."""

    segments: list[tuple[int, SegmentHeader]]
    end: LogCheckpoint
    file_bytes: int
    """Size of the active segment file; beyond the end it is zero."""
    scanned_bytes: int = 0
    unsynced: list[tuple[int, int]] = field(default_factory=list)
    """(segment base, position) from where a segment holds batches not known to be synced."""
    tear: Tear | None = None
    later_segments: list[int] = field(default_factory=list)
    obsolete_segments: list[int] = field(default_factory=list)
    """Left over by an interrupted retention, wholly below the start offset, or by an interrupted
    compaction, inside what a rewritten segment covers."""
    named: Named = field(default_factory=Named)
    known: list[SegmentInfo] = field(default_factory=list)
    """The segments before `segments`, whose headers were not read; see `chain_file.py`."""


def examine(storage: Storage, facts: PartitionFacts) -> Examination:
    """Decide where the log of a partition ends. Reads only; changes nothing.

    Raises:
        CorruptBatchError, CorruptSegmentError: damage below the durable watermark.
        FormatVersionError: written by a newer version of the format.
        DataError: the catalog is older than the log.
    """
    try:
        found = _examine(storage, facts)
        if storage.exists(MANIFEST):
            _refuse_rotten_backup(storage, facts, found)
        _refuse_older_catalog(facts, found)
    except DataError as error:
        raise error.at(topic=facts.topic, partition=facts.partition) from None
    return found


def _refuse_older_catalog(facts: PartitionFacts, found: Examination) -> None:
    """All that was written since the catalog was as it is lies behind its checkpoint."""
    end = found.end
    try:
        if facts.check_sequence is not None:
            facts.check_sequence(end.sequence)
        if facts.last_possible is not None:
            for owner_id, number in found.named.transactions.items():
                check_transaction(owner_id, number, facts.last_possible(owner_id))
    except DataError as error:
        raise error.at(path=facts.directory, offset=end.next_offset) from None


def _examine(storage: Storage, facts: PartitionFacts) -> Examination:
    bases = sorted(
        base for name in storage.list(facts.directory) if (base := base_offset_of(name)) is not None
    )
    gone = obsolete(storage, facts, bases)
    bases = bases[len(gone) :]
    check_first(facts, bases)
    known = _before_checkpoint(storage, facts, bases)
    segments, tear = read_headers(storage, facts, bases[len(known) :])
    gone += superseded(segments)
    check_links(storage, facts, segments)
    if not segments:
        assert tear is not None
        return Examination(
            segments,
            _fresh_position(tear.segment_base),
            0,
            tear=tear,
            obsolete_segments=gone,
        )
    result = _scan(storage, facts, segments)
    result.obsolete_segments, result.known = gone, known
    if tear is not None:
        end = result.end
        result.tear = result.tear or Tear(end.segment_base, end.position, tear.reason, blank=True)
        result.later_segments.append(tear.segment_base)
    return result


def _refuse_rotten_backup(storage: Storage, facts: PartitionFacts, found: Examination) -> None:
    """A backup that is used as a store began with whole batches: there is no torn tail in them.

    Its catalog need not know that the last of them were synced. Its manifest does.
    """
    base, position = found.end.segment_base, found.end.position
    if found.tear is not None:
        base, position = found.tear.segment_base, found.tear.position
    path = segment_path(facts.directory, base)
    file = storage.open(MANIFEST, "r")
    try:
        manifest = Manifest.from_json(file.read(min(file.size(), MANIFEST_BYTES_MAX), 0))
    finally:
        file.close()
    for each in manifest.files:
        if each.path == path and position < each.size_bytes:
            raise CorruptBatchError(
                f"this store is a backup that was opened as it is, and {path} has been damaged"
                f" since: {each.size_bytes} bytes of it were whole. Use another backup; or, if"
                f" you have repaired this one, or made the topic anew, remove {MANIFEST}",
                path=path,
                position=position,
            )


def _before_checkpoint(
    storage: Storage, facts: PartitionFacts, bases: Sequence[int]
) -> list[SegmentInfo]:
    """Segments that are known and end before the checkpoint, so that no scan meets them."""
    if facts.checkpoint is None:
        return []
    known = known_segments(storage, facts.directory, bases)
    return known[: max(0, bisect_right(bases, facts.checkpoint.segment_base) - 1)]


def _fresh_position(base: int) -> LogCheckpoint:
    return LogCheckpoint(base, 0, SEGMENT_HEADER_BYTES, base, 0, NO_TIMESTAMP, 0)


def _start_of(segments: list[tuple[int, SegmentHeader]], index: int) -> LogCheckpoint:
    base, header = segments[index]
    return LogCheckpoint(
        base,
        header.segment_uid,
        header.data_start,
        base,
        header.header_hash,
        header.prior_max_timestamp_ms,
        0,
    )


def _scan(
    storage: Storage, facts: PartitionFacts, segments: list[tuple[int, SegmentHeader]]
) -> Examination:
    """Walk from the checkpoint (or the last segment that may be unsynced) to the end."""
    index, state = _scan_start(storage, facts, segments)
    # What was not looked at because it was rewritten may name one.
    skipped = facts.checkpoint is not None and state.next_offset > facts.checkpoint.next_offset
    named = Named(producers=skipped)
    scanned = 0
    unsynced: list[tuple[int, int]] = []
    while True:
        base, header = segments[index]
        path = segment_path(facts.directory, base)
        file = storage.open(path, "r")
        try:
            size = file.size()
            began = state.position
            last = index + 1 == len(segments)
            known = facts
            if header.rewrite:
                stop = min(size, header.rewrite.data_bytes)
                # It was synced as a whole before it got its name.
                known = replace(
                    facts, durable_offset=max(facts.durable_offset, header.rewrite.end_offset)
                )
            else:
                # Behind the end of a sealed segment there may be what a crash left of the zeros.
                stop = size if last else min(size, segments[index + 1][1].previous_bytes)
            state, damage, doubtful = _walk(file, stop, known, header, state, named)
            scanned += state.position - began
            if doubtful is not None:
                unsynced.append((base, doubtful))
            if damage is None and (header.rewrite or not last):
                damage = _misfit(state, header, segments[index + 1 : index + 2], path)
            if damage is not None:
                found = _judge(storage, facts, segments[index:], state, damage)
                found.segments = segments[: index + 1]
                found.scanned_bytes, found.unsynced = scanned, unsynced
                found.named = named
                return found
            if last:
                break
        finally:
            file.close()
        index += 1
        state = _start_of(segments, index)._replace(sequence=state.sequence)
    if state.next_offset < facts.durable_offset:
        raise CorruptBatchError(
            f"the log ends at offset {state.next_offset} but records up to"
            f" {facts.durable_offset} were durable. Restore the segment from a backup",
            path=path,
            position=state.position,
            offset=state.next_offset,
        )
    return Examination(segments, state, size, scanned, unsynced, named=named)


def _scan_start(
    storage: Storage, facts: PartitionFacts, segments: list[tuple[int, SegmentHeader]]
) -> tuple[int, LogCheckpoint]:
    checkpoint = facts.checkpoint
    if checkpoint is None:
        return 0, _start_of(segments, 0)
    for index, (base, header) in enumerate(segments):
        rewrite = header.rewrite
        if rewrite and base <= checkpoint.segment_base < rewrite.end_offset:
            # All of it was durable. What is not known to be durable begins behind it.
            if index + 1 == len(segments):
                return index, _start_of(segments, index)
            start = _start_of(segments, index + 1)
            return index + 1, start._replace(sequence=rewrite.last_sequence)
        if base == checkpoint.segment_base:
            path = segment_path(facts.directory, base)
            if header.segment_uid != checkpoint.segment_uid:
                raise CorruptSegmentError(
                    "the segment is not the one the catalog knows", path=path, position=0
                )
            size = storage.size(path)
            if size < checkpoint.position:
                raise CorruptSegmentError(
                    f"the segment has {size} bytes but {checkpoint.position} were durable",
                    path=path,
                    position=size,
                    offset=checkpoint.next_offset,
                )
            return index, checkpoint
    if segments[0][0] >= checkpoint.next_offset:
        return 0, _start_of(segments, 0)
    raise CorruptSegmentError(
        "the segment the catalog knows as the last durable one is missing",
        path=segment_path(facts.directory, checkpoint.segment_base),
        offset=checkpoint.segment_base,
    )


def _walk(
    file: File,
    size: int,
    facts: PartitionFacts,
    header: SegmentHeader,
    state: LogCheckpoint,
    named: Named,
) -> tuple[LogCheckpoint, DataError | None, int | None]:
    """Follow the chain from `state` to the end of the valid batches of one segment.

    Returns where that is, what is wrong there, and the position of the first batch that is not
    known to be synced. Whom the batches name goes to `named`.
    """
    scan = scan_headers(file, state.position, size, header.segment_uid)
    doubtful: int | None = None
    while True:
        try:
            position, batch = next(scan)
        except StopIteration:
            return state, _leftover(file, size, state), doubtful
        except CorruptBatchError as error:
            return state, error, doubtful
        reason = _chain_break(batch, facts, state)
        end = position + BATCH_HEADER_BYTES + batch.body_bytes
        if reason is None and end > size:
            reason = "the batch is cut"
        if reason is None and batch.last_offset >= facts.durable_offset:
            try:
                verify_body(batch, file.read(batch.body_bytes, position + BATCH_HEADER_BYTES))
            except CorruptBatchError as error:
                reason = error.message
        if reason is not None:
            damage = CorruptBatchError(reason, path=file.path, position=position)
            return state, damage, doubtful
        if doubtful is None and batch.last_offset >= facts.durable_offset:
            doubtful = position
        named.note(batch)
        state = LogCheckpoint(
            state.segment_base,
            state.segment_uid,
            end,
            batch.next_offset,
            batch.header_hash,
            max(state.max_timestamp_ms, batch.max_timestamp_ms),
            batch.sequence,
        )


def _chain_break(batch: BatchHeader, facts: PartitionFacts, state: LogCheckpoint) -> str | None:
    """Why this batch cannot follow `state`, or None."""
    if batch.partition_uid != facts.partition_uid:
        return "the batch belongs to another partition"
    if batch.base_offset != state.next_offset:
        return f"found offset {batch.base_offset} where {state.next_offset} was expected"
    if batch.previous_hash != state.previous_hash:
        return "the batch does not link to the one before it"
    if batch.sequence <= state.sequence:
        return "the sequence of the batch does not rise"
    return None


def _leftover(file: File, size: int, state: LogCheckpoint) -> DataError | None:
    """The header scan ended on zeros: fine if only zeros follow."""
    position = state.position
    while position < size:
        chunk = file.read(_PROBE_BYTES, position)
        if not chunk:
            break
        if chunk.count(0) != len(chunk):
            return CorruptBatchError(
                "zeros, then other bytes", path=file.path, position=state.position
            )
        position += len(chunk)
    return None


def _misfit(
    state: LogCheckpoint,
    header: SegmentHeader,
    following: list[tuple[int, SegmentHeader]],
    path: str,
) -> DataError | None:
    """What is wrong where a segment that is walked to its end meets the one behind it."""
    rewrite = header.rewrite
    end = state.next_offset
    expected, link = end, state.previous_hash
    if rewrite:
        expected, link = rewrite.end_offset, rewrite.replaced_hash
    right = end == expected and (not rewrite or state.previous_hash == rewrite.last_hash)
    if following:
        base, next_header = following[0]
        expected = base
        right = right and end == base and link == next_header.previous_hash
    if right:
        return None
    return CorruptBatchError(
        f"the segment ends at offset {end} but the next one starts at {expected}",
        path=path,
        position=state.position,
    )


def _judge(
    storage: Storage,
    facts: PartitionFacts,
    rest: list[tuple[int, SegmentHeader]],
    state: LogCheckpoint,
    damage: DataError,
) -> Examination:
    """Torn or corrupt? Ask every valid header after the damage for the watermark it knew."""
    # A rewritten segment was synced as a whole before it got its name.
    rewritten = [header.rewrite.end_offset for _, header in rest if header.rewrite]
    watermark = max([facts.durable_offset, *rewritten])
    blank = True
    file_bytes = state.position
    for number, (base, header) in enumerate(rest):
        file = storage.open(segment_path(facts.directory, base), "r")
        try:
            begin = state.position if number == 0 else header.data_start
            known, only_zeros = _probe(file, begin, header.segment_uid, facts.partition_uid)
            if number == 0:
                blank, file_bytes = only_zeros, file.size()
            watermark = max(watermark, known)
        finally:
            file.close()
    if state.next_offset < watermark:
        raise CorruptBatchError(
            f"{damage.message}; records up to {watermark} were durable, so this is damage and not"
            " a torn write. Nothing was changed. Restore the segment from a backup",
            path=damage.path,
            position=damage.position,
            offset=state.next_offset,
        ) from None
    tear = Tear(rest[0][0], state.position, damage.message, blank)
    return Examination(
        rest[:1], state, file_bytes, tear=tear, later_segments=[base for base, _ in rest[1:]]
    )


def _probe(file: File, start: int, segment_uid: int, partition_uid: int) -> tuple[int, bool]:
    """Highest durable watermark in the valid headers from `start` on; and whether all is zero."""
    known, blank = 0, True
    position, size = start, file.size()
    while position < size:
        chunk = file.read(_PROBE_BYTES + BATCH_HEADER_BYTES, position)
        if not chunk:
            break
        blank = blank and chunk.count(0) == len(chunk)
        at = chunk.find(BATCH_MAGIC_BYTES)
        while at != -1:
            aligned = (position + at) % ALIGNMENT_BYTES == 0
            if aligned and at + BATCH_HEADER_BYTES <= len(chunk):
                try:
                    header = parse_header(chunk, at, segment_uid)
                except (CorruptBatchError, FormatVersionError):
                    pass  # bytes of a record that look like a magic, or a torn header
                else:
                    if header.partition_uid == partition_uid:
                        known = max(known, header.durable_offset)
            at = chunk.find(BATCH_MAGIC_BYTES, at + 1)
        position += _PROBE_BYTES
    return known, blank
