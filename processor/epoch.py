"""The epoch: outputs, state, offsets and checkpoint of some micro-batches, in one commit.

Order of a commit: outputs and state changes are appended under one transaction, synced, and one
SQLite commit makes them visible together with the input offsets and the checkpoint. A crash
anywhere before it leaves nothing behind; after it everything is done.

The state topic of an operator grows by its changes. Once they outnumber what is alive, everything
alive is written again, a bounded piece with each epoch, from the beginning of a new segment on;
when the last piece has committed, what lies before is trimmed. So restoring reads a bounded number
of records, and the pipeline never stops for it. A crash in a sweep only means a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from millstream import (
    DataError,
    OffsetOutOfRangeError,
    OffsetRange,
    Ownership,
    Store,
    TopicExistsError,
    TopicInfo,
    TopicPartition,
    Transaction,
    UsageError,
)

from .changed_plan import refuse_changed_plan
from .checkpoint import Checkpoint, OperatorState, encode_checkpoint, source_state
from .plan import Plan
from .state import StateRecords
from .state_log import (
    checkpoint_name,
    cuts,
    read_checkpoint,
    state_entries,
    state_topic,
    write_state_records,
)
from .stateful import SWEEP_RECORDS, StatefulOperator
from .ticks import JournalEntry, Tick, encode_entry, journal_topic
from .topology import Topology

SNAPSHOT_RECORDS_MIN: Final = 10_000
"""A changelog shorter than this is read back in milliseconds: not worth a sweep."""

_START_ANEW: Final = "Run the pipeline under another name to start with what is there"


@dataclass(slots=True)
class _Sweep:
    """Everything alive, being written again."""

    pieces: Iterator[StateRecords]
    offset: int
    """Where it began in the state topic: from here on everything alive will be found."""
    count: int = 0
    """Records written since, changes included."""


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
        self.checkpoint = read_checkpoint(store, plan.name)
        """The last committed one."""
        self._topics: dict[str, int] = {}
        """Ids of the input and state topics of this run."""
        self._sweeps: dict[str, _Sweep] = {}
        """Those under way, by operator."""
        self._journal: list[JournalEntry] = []
        """Ticks of the epoch that has not been committed."""
        refuse_changed_plan(plan, self.checkpoint)

    # --- starting ------------------------------------------------------------------------------

    def positions(self) -> dict[TopicPartition, int]:
        """Where to go on reading: the checkpoint's offsets, the log start for what is new.

        Raises:
            UnknownTopicError: A source topic is missing.
            UsageError: One was deleted and created again since it was read.
            OffsetOutOfRangeError: The log does not hold the next record to be read.
        """
        committed = self.checkpoint.next_offsets()
        positions = {}
        for topic in self._plan.input_topics():
            if not self._is_known(self._store.topic(topic)):
                raise UsageError(
                    f"the topic was deleted and created again since pipeline {self._plan.name!r}"
                    f" read it. {_START_ANEW}",
                    topic=topic,
                )
            for partition, offsets in self._store.offsets(topic).items():
                place = TopicPartition(topic, partition)
                positions[place] = committed.get(place, offsets.start)
                self._check_position(place, positions[place], offsets)
        return positions

    def topology(self) -> Topology:
        """The pipeline's operators with their state as of the last checkpoint.

        Output topics and state topics that are missing are created.

        Raises:
            DataError: The state is damaged or gone.
        """
        outputs = self._plan.output_topics()
        partitions = {topic: self._ensure_topic(topic).partitions for topic in outputs}
        topology = Topology(
            self._plan, self.checkpoint.resumed(), partitions, self._store.clock.monotonic
        )
        for operator in topology.stateful.values():
            name = operator.name
            topic = state_topic(self._plan.name, name)
            if not self._is_known(self._ensure_topic(topic)):
                raise DataError(
                    f"the state of {name!r} in pipeline {self._plan.name!r} was deleted with its"
                    f" topic: restore the store from a backup. {_START_ANEW}",
                    topic=topic,
                )
            known = self._known(name)
            if known is not None:
                operator.restore(state_entries(self._store, topic, known))
        return topology

    def _known(self, operator: str) -> OperatorState | None:
        """Where the last commit left the state of an operator.

        State of another identity is dead, or the plan would have been refused: it is nobody's.
        """
        known = self.checkpoint.operators.get(operator)
        fits = known is not None and known.identity == self._identities[operator]
        return known if fits else None

    def _ensure_topic(self, topic: str) -> TopicInfo:
        try:
            return self._store.create_topic(topic, exist_ok=True)
        except TopicExistsError:
            return self._store.topic(topic)  # with more than one partition

    def _is_known(self, topic: TopicInfo) -> bool:
        """Note the topic; False if the checkpoint is about another one of its name."""
        self._topics[topic.name] = topic.id
        return self.checkpoint.topics.get(topic.name, topic.id) == topic.id

    def _check_position(self, place: TopicPartition, offset: int, held: OffsetRange) -> None:
        if offset < held.start:
            reason = f"retention or a trim removed the records up to {held.start}"
        elif offset > held.end:
            reason = (
                f"the log ends at {held.end}: records were lost with a machine that died in a"
                " weaker durability mode, or by restoring an older copy"
            )
        else:
            return
        raise OffsetOutOfRangeError(
            f"pipeline {self._plan.name!r} goes on at offset {offset}, but {reason}. {_START_ANEW}",
            topic=place.topic,
            partition=place.partition,
            offset=offset,
        )

    # --- committing ----------------------------------------------------------------------------

    def commit(self, topology: Topology, positions: Mapping[TopicPartition, int]) -> None:
        """Make what the topology has done up to `positions` visible, all at once.

        Raises:
            FencedError: A newer run of the pipeline owns it; nothing was made visible.
            UsageError: State that cannot be kept.
        """
        store, name = self._store, self._plan.name
        self._begin_sweeps(topology)
        ends = self.checkpoint.output_ends()
        with store.transaction(owner=self._ownership) as transaction:
            for place, records in topology.outputs.records.items():
                for start, stop in cuts(records.values):
                    written = transaction.append_many(
                        place.topic,
                        records.values[start:stop],
                        records.keys[start:stop],
                        records.timestamps_ms[start:stop],
                        place.partition,
                        headers=records.headers and records.headers[start:stop],
                    )
                    ends[place] = written[-1].base_offset + written[-1].record_count
            operators = {
                operator.name: self._write_state(operator, transaction)
                for operator in topology.stateful.values()
            }
            checkpoint = Checkpoint(
                self.checkpoint.epoch + 1,
                [(*place, offset) for place, offset in sorted(positions.items())],
                {source.node.topic: source_state(source) for source in topology.sources.values()},
                operators,
                self._topics,
                topology.shared,
                topology.now_ms,
                [(*place, end) for place, end in sorted(ends.items())],
                self._write_journal(transaction),
            )
            transaction.commit_offsets(name, positions)
            transaction.put_checkpoint(checkpoint_name(name), encode_checkpoint(checkpoint))
        self._journal.clear()
        former, self.checkpoint = self.checkpoint, checkpoint
        topology.outputs.clear()
        for operator, state in checkpoint.operators.items():
            known = former.operators.get(operator)
            if known is not None and known.snapshot_offset < state.snapshot_offset:
                store.trim(state_topic(name, operator), {0: state.snapshot_offset})

    def note(self, tick: Tick, positions: Mapping[TopicPartition, int]) -> None:
        """Write a tick into the journal at the next commit: no row behind `positions` was seen."""
        places = [(*place, offset) for place, offset in sorted(positions.items())]
        self._journal.append(JournalEntry(places, tick))

    def _write_journal(self, transaction: Transaction) -> int:
        """Write the ticks of the epoch; returns where the journal ends."""
        if not self._journal:
            return self.checkpoint.journal_end
        topic = self._ensure_topic(journal_topic(self._plan.name)).name
        times = [entry.tick.now_ms for entry in self._journal]
        values = list(map(encode_entry, self._journal))
        written = transaction.append_many(topic, values, None, times, 0)
        return written[-1].base_offset + written[-1].record_count

    def _begin_sweeps(self, topology: Topology) -> None:
        """Begin to write again the state of the operators whose changes have become many.

        Each gets a new segment, so that what lies before can be removed as whole files.
        """
        for operator in topology.stateful.values():
            known = self._known(operator.name)
            if known is None or operator.name in self._sweeps:
                continue
            if known.change_count > max(SNAPSHOT_RECORDS_MIN, 2 * operator.live_count):
                topic = state_topic(self._plan.name, operator.name)
                self._store.roll(topic, 0)
                # Pieces are taken after the changes of an epoch are written, the first included.
                offset = self._store.offsets(topic)[0].end
                self._sweeps[operator.name] = _Sweep(operator.sweep(), offset)

    def _write_state(self, operator: StatefulOperator, transaction: Transaction) -> OperatorState:
        """Write what changed, and a piece of the sweep that is under way."""
        name = operator.name
        records = operator.changes()
        sweep, swept = self._sweeps.get(name), False
        if sweep is not None:
            # At least as much as changed, or the sweep would never catch up.
            piece_count = len(records.keys) + SWEEP_RECORDS
            while len(records.keys) < piece_count and not swept:
                piece = next(sweep.pieces, None)
                swept = piece is None
                records.extend(piece or StateRecords([], []))
            sweep.count += len(records.keys)
        known = self._known(name) or OperatorState(self._identities[name], 0, 0, 0, 0)
        topic = state_topic(self._plan.name, name)
        written = write_state_records(transaction, topic, records)
        offset, end = known.snapshot_offset, known.end_offset
        if written is not None:
            # What a topic holds before the first record of its operator is another one's.
            offset, end = offset if known.change_count else written[0], written[1]
        count = known.change_count + len(records.keys)
        if sweep is not None and swept:
            offset, count = sweep.offset, sweep.count
            end = max(offset, end or 0)
            del self._sweeps[name]
        return OperatorState(self._identities[name], offset, count, operator.live_count, end)
