"""Which segments a partition has, and whether they follow each other. Reads headers only.

Every segment names the one before it as that was sealed. A rewritten segment stands for one or
several of them and shows both neighbours the links they know (docs/log-format.md, "Rewritten
segments"). What lies in the segments, and where the log ends, is for `recovery.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from .catalog import LogCheckpoint
from .errors import CorruptSegmentError, FormatVersionError
from .format import BATCH_MAGIC_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader
from .segment import read_segment_header, segment_path
from .storage import Storage

_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """What is known about a partition before its files are looked at."""

    directory: str
    topic: str
    partition: int
    partition_uid: int
    store_uid: bytes
    start_offset: int
    durable_offset: int
    """Highest durable watermark known from outside the log: catalog and tail words."""
    checkpoint: LogCheckpoint | None
    check_sequence: Callable[[int], None] | None = None
    """Refuses the sequence of its last batch, if nothing was written to the partition in the
    store's generation yet."""
    last_possible: Callable[[int], int | None] | None = None
    """The highest number of a transaction of an owner that the log may hold, as the catalog says;
    None if it knows no such owner."""


@dataclass(frozen=True, slots=True)
class Tear:
    """A torn write: everything from `position` of `segment_base` on, and all later segments."""

    segment_base: int
    position: int
    reason: str
    blank: bool
    """The rest of the file is zero: nothing to save."""
    header_torn: bool = False
    """Not even the segment header is whole; the segment is made anew."""


def obsolete(storage: Storage, facts: PartitionFacts, bases: list[int]) -> list[int]:
    """The segments from the front that lie below the start offset."""
    obsolete = []
    for base, following in itertools.pairwise(bases):
        if following > facts.start_offset:
            break
        try:
            rewrite = read_segment_header(storage, facts.directory, base).rewrite
        except (CorruptSegmentError, FormatVersionError):
            rewrite = None  # damaged, and to be removed all the same
        if rewrite is not None and rewrite.end_offset > facts.start_offset:
            break  # what follows is a leftover of its compaction
        obsolete.append(base)
    return obsolete


def superseded(segments: list[tuple[int, SegmentHeader]]) -> list[int]:
    """Take out the segments which a rewritten one before them stands for."""
    kept, gone, covered = [], [], 0
    for base, header in segments:
        if base < covered:
            gone.append(base)
            continue
        kept.append((base, header))
        covered = header.rewrite.end_offset if header.rewrite else covered
    segments[:] = kept
    return gone


def check_first(facts: PartitionFacts, bases: list[int]) -> None:
    """The first segment must cover the start offset the catalog knows."""
    if not bases:
        if max(facts.durable_offset, facts.start_offset) > facts.start_offset or facts.checkpoint:
            raise CorruptSegmentError(
                f"all segments are missing; records up to {facts.durable_offset} were durable."
                " Restore the directory from a backup",
                path=facts.directory,
                offset=facts.start_offset,
            )
        return
    if bases[0] > facts.start_offset:
        raise CorruptSegmentError(
            f"the segments of records {facts.start_offset} to {bases[0]} are missing and no"
            " retention removed them. Restore them from a backup",
            path=segment_path(facts.directory, facts.start_offset),
            offset=facts.start_offset,
        )


def read_headers(
    storage: Storage, facts: PartitionFacts, bases: list[int]
) -> tuple[list[tuple[int, SegmentHeader]], Tear | None]:
    """Headers of all segments; the last one may be torn if nothing durable was in it."""
    segments: list[tuple[int, SegmentHeader]] = []
    for base in bases:
        path = segment_path(facts.directory, base)
        try:
            header = read_segment_header(storage, facts.directory, base)
        except CorruptSegmentError as error:
            # A fresh segment is made whole before its name exists, so only a disk that lost
            # synced bytes or a copy cut short gets here; harmless while it held nothing durable.
            if base != bases[-1] or base < facts.durable_offset or holds_batches(storage, path):
                raise
            return segments, Tear(base, 0, error.message, blank=False, header_torn=True)
        if header.partition_uid != facts.partition_uid or header.store_uid != facts.store_uid:
            raise CorruptSegmentError(
                "the segment belongs to another partition or store", path=path, position=0
            )
        segments.append((base, header))
    if not segments:
        return segments, Tear(facts.start_offset, 0, "no segment yet", True, header_torn=True)
    return segments, None


def holds_batches(storage: Storage, path: str) -> bool:
    """Whether anything that looks like a batch follows the (damaged) segment header."""
    file = storage.open(path, "r")
    try:
        return BATCH_MAGIC_BYTES in file.read(_PROBE_BYTES, SEGMENT_HEADER_BYTES)
    finally:
        file.close()


def check_links(
    storage: Storage, facts: PartitionFacts, segments: list[tuple[int, SegmentHeader]]
) -> None:
    """Each segment names the one before it: a missing one leaves a hole, a foreign one a misfit."""
    for (base, header), (following_base, following) in itertools.pairwise(segments):
        path = segment_path(facts.directory, base)
        if following.previous_segment_uid != header.link_uid:
            raise CorruptSegmentError(
                f"the segment before offset {following_base} is missing or is not the one that"
                f" was sealed there (found the segment of offset {base})",
                path=segment_path(facts.directory, following_base),
                offset=base,
            )
        size, rewrite = storage.size(path), header.rewrite
        sealed_bytes = rewrite.data_bytes if rewrite else following.previous_bytes
        if size < sealed_bytes and (rewrite or following_base <= facts.durable_offset):
            raise CorruptSegmentError(
                f"the sealed segment has {size} of its {sealed_bytes} bytes",
                path=path,
                position=size,
            )
