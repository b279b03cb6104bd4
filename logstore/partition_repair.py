"""Carry out what `partition_plan.py` decided, so that a crash at any moment costs nothing.

Files are moved to quarantine, never deleted; a segment that is written anew is complete and synced
before it takes the place of the old one, which has a second name by then. Whatever was done when
a crash comes, planning again finds the rest.
"""

from __future__ import annotations

import contextlib
from typing import Final

from . import catalog_repair
from .catalog import Catalog
from .chain_file import forget_chain
from .clock import Clock
from .errors import StorageError
from .format import (
    BATCH_HEADER_BYTES,
    BATCH_VERSION,
    CODEC_NONE,
    CONTROL,
    EMPTY_SECTION,
    NO_TIMESTAMP,
    BatchHeader,
    SegmentHeader,
)
from .partition_plan import MoveStart, PartitionPlan, Rename, Rewrite, SetAside
from .quarantine import keep_another_name, set_aside
from .rewrite import SegmentRewriter
from .salvage import PatientFile, State, after, pieces
from .segment import INDEX_SUFFIX, KEYS_SUFFIX, SEGMENT_SUFFIX, TEMPORARY_SUFFIX, segment_path
from .segment_chain import PartitionFacts
from .storage import Storage

GAP_OFFSETS_MAX: Final = 1 << 32


class PartitionRepair:
    """Repairs one partition. Nobody may be using the store.

    Args:
        storage: The store.
        catalog: Its catalog.
        clock: For the times in headers.
        topic_id: Of the topic.
        plan: What to do.
    """

    def __init__(
        self, storage: Storage, catalog: Catalog, clock: Clock, topic_id: int, plan: PartitionPlan
    ) -> None:
        self._storage = storage
        self._catalog = catalog
        self._clock = clock
        self._topic_id = topic_id
        self._facts: PartitionFacts = plan.facts
        self._plan = plan
        self._directory = plan.facts.directory

    def run(self) -> None:
        """Do all steps.

        Raises:
            StorageError: The operating system refused. What has been done stays done.
        """
        self._sweep()
        for step in self._plan.steps:
            if isinstance(step, SetAside):
                self._set_aside(step.name)
            elif isinstance(step, Rename):
                self._rename(step)
            elif isinstance(step, Rewrite):
                self._rewrite(step)
            elif isinstance(step, MoveStart):
                number = self._facts.partition
                self._catalog.set_start_offset(self._topic_id, number, step.offset)
            else:
                database = self._catalog.database
                catalog_repair.forget_checkpoint(database, self._topic_id, self._facts.partition)

    def _sweep(self) -> None:
        """Remove what a repair that was cut off had not finished."""
        for name in self._storage.list(self._directory):
            if name.endswith(TEMPORARY_SUFFIX):
                self._storage.remove(f"{self._directory}/{name}")
        forget_chain(self._storage, self._directory)

    def _set_aside(self, name: str) -> None:
        stem = name.removesuffix(SEGMENT_SUFFIX)
        for each in (stem + INDEX_SUFFIX, stem + KEYS_SUFFIX, name):
            if self._storage.exists(f"{self._directory}/{each}"):
                set_aside(self._storage, self._directory, each)

    def _rename(self, step: Rename) -> None:
        source = f"{self._directory}/{step.name}"
        self._storage.rename(source, segment_path(self._directory, step.base))
        self._storage.sync_directory(self._directory)

    def _rewrite(self, step: Rewrite) -> None:
        storage, directory = self._storage, self._directory
        base = step.first.base_offset
        path = segment_path(directory, base)
        rewriter = SegmentRewriter(storage, directory, step.first)
        try:
            state = self._copy(rewriter, step)
            _fill(rewriter, state, step.end_offset, state.sequence + 1, step.first)
            following = step.first._replace(
                base_offset=step.end_offset,
                previous_segment_uid=step.link_uid,
                previous_hash=step.link_hash,
            )
            rewriter.finish(following, self._clock.now_ms())
            if storage.exists(path):
                keep_another_name(storage, directory, path.rpartition("/")[2])
            storage.rename(rewriter.path, path)
        except BaseException:
            with contextlib.suppress(StorageError):
                rewriter.discard()
            raise
        storage.sync_directory(directory)

    def _copy(self, rewriter: SegmentRewriter, step: Rewrite) -> State:
        """Copy the batches that were accepted, with gaps between them; the state behind."""
        source, first = step.source, step.first
        if source is None:
            prior = first.prior_max_timestamp_ms
            return State(0, first.base_offset, step.sequence, 0, prior)
        state = source.start
        file = self._storage.open(segment_path(self._directory, source.base), "r")
        try:
            uid = source.segment.segment_uid
            whole = PatientFile(file)
            for piece in pieces(whole, uid, self._facts.partition_uid, state, source.stop):
                header = piece.header
                if header is None:
                    continue
                if header.next_offset > source.end.next_offset:
                    break  # behind a tear
                _fill(rewriter, state, header.base_offset, header.sequence - 1, first)
                rewriter.keep(header, (piece.body,))
                state = after(piece.state, header)
        finally:
            file.close()
        return state


def _fill(
    rewriter: SegmentRewriter, state: State, end_offset: int, sequence: int, first: SegmentHeader
) -> None:
    """Cover the offsets from `state` to `end_offset`, if there are any, with gaps.

    Args:
        rewriter: Takes them.
        state: Behind the batch before.
        end_offset: Where batches go on.
        sequence: Of the last gap.
        first: Header of the segment.
    """
    starts = range(state.next_offset, end_offset, GAP_OFFSETS_MAX)
    for number, start in enumerate(starts):
        end = min(end_offset, start + GAP_OFFSETS_MAX)
        gap = BatchHeader(
            version=BATCH_VERSION,
            codec=CODEC_NONE,
            header_bytes=BATCH_HEADER_BYTES,
            partition_uid=first.partition_uid,
            base_offset=start,
            last_offset_delta=end - start - 1,
            record_count=0,
            body_bytes=0,
            flags=CONTROL,
            min_timestamp_ms=NO_TIMESTAMP,
            max_timestamp_ms=NO_TIMESTAMP,
            append_timestamp_ms=state.append_ms or first.created_ms,
            producer_id=0,
            producer_epoch=0,
            producer_sequence=0,
            schema_id=0,
            previous_hash=0,
            durable_offset=state.durable_offset,
            sequence=sequence - (len(starts) - 1 - number),
            transaction_id=0,
            prior_max_timestamp_ms=state.max_timestamp_ms,
            sections=(EMPTY_SECTION, EMPTY_SECTION, EMPTY_SECTION),
            cleaned_ms=0,
            header_hash=0,
        )
        rewriter.keep(gap, ())
