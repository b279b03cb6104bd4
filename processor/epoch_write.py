"""Write an epoch into the store: everything it made, in one commit.

What is in an epoch has been decided before (epoch.py) and does not change any more; here it gets
its offsets. So an epoch can be written by another thread while the next one is being made.

Order of a commit: outputs and state changes are appended under one transaction, synced, and one
SQLite commit makes them visible together with the input offsets and the checkpoint. A crash
anywhere before it leaves nothing behind; after it everything is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from millstream import AppendMetadata, Ownership, Store, TopicPartition, Transaction

from .checkpoint import Checkpoint, OperatorState, SourceState, encode_checkpoint
from .ingest import ensure_topic
from .kept import Keeping, encode_kept, kept_name, kept_starts, read_kept
from .outputs import Output, OutputBatch, OutputColumns
from .serde import INT64_MAX
from .state import StateRecords
from .state_log import (
    checkpoint_name,
    read_checkpoint,
    state_topic,
    write_state_records,
)
from .ticks import JournalEntry, encode_entry, journal_topic


class StateContent(NamedTuple):
    """What an epoch writes for one operator."""

    identity: str
    """What the operator computes."""
    records: StateRecords
    change_count: int
    """State records a restart reads after this epoch."""
    live_count: int
    """About how many state records everything alive makes."""
    begins_sweep: bool
    """Whether everything alive will be found from the records of this epoch on."""
    ends_sweep: bool
    """Whether everything alive has been written since the last epoch that began a sweep."""


@dataclass(frozen=True, slots=True)
class EpochContent:
    """Everything one epoch commits, but for the offsets it will get. Nobody else changes it."""

    outputs: Mapping[TopicPartition, Sequence[Output]]
    states: Mapping[str, StateContent]
    """By operator."""
    positions: Mapping[TopicPartition, int]
    """Next offset of each input partition."""
    sources: dict[str, SourceState]
    """By topic."""
    topics: dict[str, int]
    """Ids of the input and state topics."""
    shared: dict[str, int]
    """W where several sources meet."""
    now_ms: int
    """The wall clock at the last tick, UTC ms."""
    journal: Sequence[JournalEntry]
    """The ticks of the epoch."""


class EpochWriter:
    """Writes the epochs of one running pipeline, one after the other.

    Used by one thread at a time. After an error it must not be used again: what the epoch held is
    in no other place.

    Args:
        store: Where everything is.
        pipeline: Its name.
        ownership: The exclusive right to run it.
        keeping: Which of its checkpoints it keeps.
    """

    def __init__(self, store: Store, pipeline: str, ownership: Ownership, keeping: Keeping) -> None:
        self.checkpoint = read_checkpoint(store, pipeline)
        """The last committed one."""
        self.write_s = 0.0
        """Seconds the last write took."""
        self._store = store
        self._name = pipeline
        self._ownership = ownership
        self._sweep_offsets: dict[str, int] = {}
        """Where the sweeps began that are under way, by operator."""
        self._keeping = keeping
        self._kept = read_kept(store, pipeline)
        self._kept_starts = kept_starts(self._kept, pipeline, self.checkpoint.topics)
        """State records that a kept checkpoint needs begin here, by operator."""

    def write(self, content: EpochContent) -> Checkpoint:
        """Make the epoch durable and visible, all at once. Returns its checkpoint.

        Raises:
            FencedError: A newer run of the pipeline owns it; nothing was made visible.
            StorageError: The disk refused; nothing was made visible, unless by a commit that
                came through without telling.
        """
        store, name = self._store, self._name
        started_s = store.clock.monotonic()
        for operator, state in content.states.items():
            if state.begins_sweep:
                self._sweep_offsets[operator] = self._new_segment(state_topic(name, operator))
        former = self.checkpoint
        with store.transaction(owner=self._ownership) as transaction:
            ends = former.output_ends() | _write_outputs(transaction, content.outputs)
            operators = {
                operator: self._write_state(transaction, operator, state)
                for operator, state in content.states.items()
            }
            checkpoint = Checkpoint(
                former.epoch + 1,
                [(*place, offset) for place, offset in sorted(content.positions.items())],
                content.sources,
                operators,
                content.topics,
                content.shared,
                content.now_ms,
                [(*place, end) for place, end in sorted(ends.items())],
                self._write_journal(transaction, content.journal),
                former.migrated_epoch,
            )
            transaction.commit_offsets(name, content.positions)
            data = encode_checkpoint(checkpoint)
            transaction.put_checkpoint(checkpoint_name(name), data)
            kept = self._keeping.extended(self._kept, store.clock.now_ms(), data)
            if kept is not None:
                transaction.put_checkpoint(kept_name(name), encode_kept(kept))
        if content.topics != former.topics:
            # An operator that was dropped is back, and its topic has what is kept of it.
            self._kept_starts = kept_starts(self._kept, name, content.topics)
        starts = self._needed_from()
        self.checkpoint = checkpoint
        if kept is not None:
            self._kept = kept
            self._kept_starts = kept_starts(kept, name, checkpoint.topics)
        self._trim(starts)
        self.write_s = store.clock.monotonic() - started_s
        return checkpoint

    def _new_segment(self, topic: str) -> int:
        """Begin a segment, so that what lies before can be removed as whole files; its offset."""
        self._store.roll(topic, 0)
        return self._store.offsets(topic)[0].end

    def _write_state(
        self, transaction: Transaction, operator: str, state: StateContent
    ) -> OperatorState:
        known = self.checkpoint.state_of(operator, state.identity)
        if known is None:
            known = OperatorState(state.identity, 0, 0, 0, 0)
        written = write_state_records(transaction, state_topic(self._name, operator), state.records)
        offset, end = known.snapshot_offset, known.end_offset
        if written is not None:
            # What a topic holds before the first record of its operator is another one's.
            offset, end = offset if known.change_count else written[0], written[1]
        if state.ends_sweep:
            offset = self._sweep_offsets.pop(operator)
            end = max(offset, end or 0)
        return OperatorState(state.identity, offset, state.change_count, state.live_count, end)

    def _write_journal(self, transaction: Transaction, journal: Sequence[JournalEntry]) -> int:
        """Write the ticks of the epoch; returns where the journal ends."""
        if not journal:
            return self.checkpoint.journal_end
        topic = ensure_topic(self._store, journal_topic(self._name)).name
        times = [entry.tick.now_ms for entry in journal]
        values = list(map(encode_entry, journal))
        written = transaction.append_many(topic, values, None, times, 0)
        return written[-1].base_offset + written[-1].record_count

    def _needed_from(self) -> dict[str, int]:
        """Before which offset nobody needs the state topic of each operator any more."""
        return {
            operator: min(state.snapshot_offset, self._kept_starts.get(operator, INT64_MAX))
            for operator, state in self.checkpoint.operators.items()
        }

    def _trim(self, former: Mapping[str, int]) -> None:
        """Remove the state records that a sweep, or a checkpoint kept no more, made superfluous."""
        for operator, start in self._needed_from().items():
            if former.get(operator, start) < start:
                self._store.trim(state_topic(self._name, operator), {0: start})


def _write_outputs(
    transaction: Transaction, outputs: Mapping[TopicPartition, Sequence[Output]]
) -> dict[TopicPartition, int]:
    """Append what the sinks got; where each partition ends then."""
    ends = {}
    for place, batches in outputs.items():
        for _, group in groupby(batches, type):
            for written in _write_group(transaction, place, list(group)):
                ends[place] = written.base_offset + written.record_count
    return ends


def _write_group(
    transaction: Transaction, place: TopicPartition, group: Sequence[Output]
) -> Iterator[AppendMetadata]:
    """Append what is of one kind."""
    for batch in group:
        if isinstance(batch, OutputBatch):
            yield from transaction.append_many(
                place.topic,
                batch.values,
                batch.keys,
                batch.timestamps_ms,
                place.partition,
                headers=batch.headers,
            )
    columns = [batch for batch in group if isinstance(batch, OutputColumns)]
    if columns:
        from .frame_outputs import joined  # noqa: PLC0415 - an extra

        # That of many steps together: readers are faster with large batches.
        for piece in joined(columns):
            yield from transaction.append_arrow(
                place.topic,
                piece.rows,
                keys=piece.keys,
                timestamps_ms=piece.timestamps_ms,
                partition=place.partition,
            )
