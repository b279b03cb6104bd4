"""The epoch: outputs, state, offsets and checkpoint of some micro-batches, in one commit.

Order of a commit: outputs and state changes are appended under one transaction, synced, and one
SQLite commit makes them visible together with the input offsets and the checkpoint. A crash
anywhere before it leaves nothing behind; after it everything is done.

The state topic of an operator grows by its changes. Once they outnumber what is alive, the epoch
writes everything as a snapshot into a new segment instead, and when it has committed, what lies
before is trimmed: so restoring reads a bounded number of records.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from millstream import (
    DataError,
    Ownership,
    RecordBatch,
    Store,
    TopicExistsError,
    TopicPartition,
    Transaction,
)

from .checkpoint import (
    Checkpoint,
    OperatorState,
    decode_checkpoint,
    encode_checkpoint,
    refuse_changed_plan,
    source_state,
)
from .plan import Plan
from .state import StateEntry, decode_entry
from .topology import Topology

SNAPSHOT_RECORDS_MIN: Final = 10_000
"""A changelog shorter than this is read back in milliseconds: not worth a snapshot."""

BATCH_BYTES_MAX: Final = 1 << 20
BATCH_RECORDS_MAX: Final = 1 << 16
"""Outputs are appended in batches of at most this much: a reader decodes a batch as a whole."""


def checkpoint_name(pipeline: str) -> str:
    """The name of a pipeline's lock and checkpoint in a store."""
    return f"pipeline/{pipeline}"


def state_topic(pipeline: str, operator: str) -> str:
    """The internal topic that holds the state of an operator."""
    return f"@state/{pipeline}/{operator}"


class Epochs:
    """Commits the epochs of one running pipeline. Not thread-safe.

    Args:
        store: Where everything is.
        plan: What runs.
        ownership: The exclusive right to run it.
    """

    def __init__(self, store: Store, plan: Plan, ownership: Ownership) -> None:
        self._store = store
        self._plan = plan
        self._ownership = ownership
        self._identities = plan.identities()
        self.checkpoint = decode_checkpoint(store.checkpoint(checkpoint_name(plan.name)))
        """The last committed one."""
        refuse_changed_plan(plan.name, self.checkpoint, self._identities)

    # --- starting ------------------------------------------------------------------------------

    def topology(self) -> Topology:
        """The pipeline's operators with their state as of the last checkpoint."""
        partitions = {topic: self._ensure_topic(topic) for topic in self._plan.output_topics()}
        topology = Topology(self._plan, self.checkpoint.watermarks(), partitions)
        for window in topology.windows.values():
            name = window.node.name
            self._ensure_topic(state_topic(self._plan.name, name))
            known = self.checkpoint.operators.get(name)
            # State of another identity is dead, or the plan would have been refused.
            if known is not None and known.identity == self._identities[name]:
                window.restore(self._entries(name, known.snapshot_offset))
        return topology

    def _ensure_topic(self, topic: str) -> int:
        """Create a topic if it is missing; its number of partitions."""
        try:
            return self._store.create_topic(topic, exist_ok=True).partitions
        except TopicExistsError:
            return self._store.topic(topic).partitions

    def _entries(self, operator: str, snapshot_offset: int) -> Iterator[StateEntry]:
        topic = state_topic(self._plan.name, operator)
        for batch in self._store.read(topic, snapshot_offset).batches():
            yield from _decoded(batch)

    def positions(self) -> dict[TopicPartition, int]:
        """Where to go on reading: the checkpoint's offsets, the log start for what is new."""
        committed = self.checkpoint.next_offsets()
        positions = {}
        for topic in self._plan.input_topics():
            for partition, offsets in self._store.offsets(topic).items():
                place = TopicPartition(topic, partition)
                positions[place] = committed.get(place, offsets.start)
        return positions

    # --- committing ----------------------------------------------------------------------------

    def commit(self, topology: Topology, positions: Mapping[TopicPartition, int]) -> None:
        """Make what the topology has done up to `positions` visible, all at once.

        Raises:
            FencedError: A newer run of the pipeline owns it; nothing was made visible.
            UsageError: State that cannot be kept.
        """
        store, name = self._store, self._plan.name
        snapshots = self._rolled_for_snapshot(topology)
        with store.transaction(owner=self._ownership) as transaction:
            for place, records in topology.outputs.records.items():
                for start, stop in _cuts(records.values):
                    transaction.append_many(
                        place.topic,
                        records.values[start:stop],
                        records.keys[start:stop],
                        records.timestamps_ms[start:stop],
                        place.partition,
                        headers=records.headers and records.headers[start:stop],
                    )
            operators = self._write_state(topology, transaction, snapshots)
            checkpoint = Checkpoint(
                self.checkpoint.epoch + 1,
                [(*place, offset) for place, offset in sorted(positions.items())],
                {
                    source.node.topic: source_state(source.watermark)
                    for source in topology.sources.values()
                },
                operators,
            )
            transaction.commit_offsets(name, positions)
            transaction.put_checkpoint(checkpoint_name(name), encode_checkpoint(checkpoint))
        self.checkpoint = checkpoint
        topology.outputs.clear()
        for operator in snapshots:
            offset = checkpoint.operators[operator].snapshot_offset
            store.trim(state_topic(name, operator), {0: offset})

    def _rolled_for_snapshot(self, topology: Topology) -> frozenset[str]:
        """The operators to write whole this time, each with a new segment begun for it."""
        chosen = []
        for window in topology.windows.values():
            known = self.checkpoint.operators.get(window.node.name)
            if known is not None and known.change_count > max(
                SNAPSHOT_RECORDS_MIN, 2 * window.live_count
            ):
                chosen.append(window.node.name)
                self._store.roll(state_topic(self._plan.name, window.node.name), 0)
        return frozenset(chosen)

    def _write_state(
        self, topology: Topology, transaction: Transaction, snapshots: frozenset[str]
    ) -> dict[str, OperatorState]:
        operators = {}
        for window in topology.windows.values():
            name = window.node.name
            whole = name in snapshots
            topic = state_topic(self._plan.name, name)
            records = window.snapshot() if whole else window.changes()
            first: int | None = None
            for start, stop in _cuts(records.values):
                written = transaction.append_many(
                    topic, records.values[start:stop], records.keys[start:stop], None, 0
                )
                first = written[0].base_offset if first is None else first
            known = self.checkpoint.operators.get(name)
            snapshot_offset, before = (
                (known.snapshot_offset, known.change_count) if known else (0, 0)
            )
            if whole:
                # With nothing alive the snapshot is empty: everything so far is superseded.
                before = 0
                snapshot_offset = self._store.offsets(topic)[0].end if first is None else first
            operators[name] = OperatorState(
                self._identities[name],
                snapshot_offset,
                before + len(records.keys),
                window.live_count,
            )
        return operators


def _decoded(batch: RecordBatch) -> Iterator[StateEntry]:
    for offset, key, value in zip(batch.offsets, batch.keys, batch.values, strict=True):
        try:
            yield decode_entry(key, value)
        except DataError as error:
            raise error.at(topic=batch.topic, partition=batch.partition, offset=offset) from None


def _cuts(values: Sequence[bytes | None]) -> Iterator[tuple[int, int]]:
    """Ranges of at most BATCH_BYTES_MAX and BATCH_RECORDS_MAX; one record may be larger."""
    sizes = list(accumulate(map(len, [value or b"" for value in values])))
    start = 0
    while start < len(values):
        before = sizes[start - 1] if start else 0
        stop = bisect_left(sizes, before + BATCH_BYTES_MAX, start) + 1
        stop = min(stop, start + BATCH_RECORDS_MAX, len(values))
        yield start, stop
        start = stop
