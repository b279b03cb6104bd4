"""The epoch: outputs, state, offsets and checkpoint of some micro-batches, in one commit.

What an epoch holds is taken out of the operators here, as data that changes no more; epoch_write.py
puts it into the store. That may happen on a thread beside the one that goes on with the next epoch:
never two at a time, and none after one that failed.

The state topic of an operator grows by its changes. Once they outnumber what is alive, everything
alive is written again, a bounded piece with each epoch, from the beginning of a new segment on;
when the last piece has committed, what lies before is trimmed. So restoring reads a bounded number
of records, and the pipeline never stops for it. A crash in a sweep only means a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

from millstream import (
    DataError,
    OffsetOutOfRangeError,
    OffsetRange,
    Ownership,
    Store,
    TopicInfo,
    TopicPartition,
    UsageError,
)

from .changed_plan import refuse_changed_plan
from .checkpoint import Checkpoint, OperatorState, source_state
from .commit_thread import Begun, CommitThread
from .epoch_write import EpochContent, EpochWriter, StateContent
from .ingest import ensure_topic
from .kept import NOTHING_KEPT, Keeping
from .keyed_state import IN_MEMORY, StateMark, States
from .lanes import column_topics
from .plan import Plan
from .spilled_states import open_states
from .state import StateRecords
from .state_log import state_entries, state_topic
from .stateful import SWEEP_RECORDS, StatefulOperator
from .ticks import JournalEntry, Tick
from .topology import Topology

SNAPSHOT_RECORDS_MIN: Final = 10_000
"""A changelog shorter than this is read back in milliseconds: not worth a sweep."""

_logger = logging.getLogger("millstream")

_START_ANEW: Final = "Run the pipeline under another name to start with what is there"


@dataclass(slots=True)
class _Sweep:
    """Everything alive, being written again."""

    pieces: Iterator[StateRecords]
    count: int = 0
    """Records written since, changes included."""


class Epochs:
    """Commits the epochs of one running pipeline. Not thread-safe; a context manager.

    Args:
        store: Where everything is.
        plan: What runs.
        ownership: The exclusive right to run it.
        beside: Where commits are written while the caller goes on; None: by `commit`.
        keeping: Which checkpoints are kept, beside the last one.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        ownership: Ownership,
        beside: CommitThread | None = None,
        keeping: Keeping = NOTHING_KEPT,
    ) -> None:
        self._store = store
        self._plan = plan
        self._owner = ownership.epoch
        self._identities = plan.identities()
        self._writer = EpochWriter(store, plan.name, ownership, keeping)
        self._beside = beside
        self._writing: Begun[Checkpoint] | None = None
        """The commit that is not finished; one that failed never is."""
        self._prepared_s = 0.0
        self.checkpoint = self._writer.checkpoint
        """That of the last commit that is finished."""
        self.commit_s = 0.0
        """Seconds that commit took."""
        self._topics: dict[str, int] = {}
        """Ids of the input and state topics of this run."""
        self._sweeps: dict[str, _Sweep] = {}
        """Those under way, by operator."""
        self._change_counts = {
            name: known.change_count
            for name, identity in self._identities.items()
            if (known := self.checkpoint.state_of(name, identity)) is not None
        }
        """State records a restart reads after the last commit that was begun."""
        self._journal: list[JournalEntry] = []
        """Ticks of the epoch that has not been committed."""
        self._states: States = IN_MEMORY
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
                    f" read it. {_START_ANEW}; or, to read it from its start into the state there"
                    f" is, migrate(store, same=[{topic!r}])",
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
        partitions = {topic: ensure_topic(self._store, topic).partitions for topic in outputs}
        self._states = open_states(self._store, self._plan.name, self._plan.holding, self._owner)
        topology = Topology(
            self._plan,
            self.checkpoint.resumed(),
            partitions,
            self._store.clock.monotonic,
            self._states,
            column_topics(self._store, self._plan),
        )
        for operator in topology.stateful.values():
            name = operator.name
            topic = state_topic(self._plan.name, name)
            if not self._is_known(ensure_topic(self._store, topic)):
                raise DataError(
                    f"the state of {name!r} in pipeline {self._plan.name!r} was deleted with its"
                    f" topic: restore the store from a backup. {_START_ANEW}",
                    topic=topic,
                )
            known = self.checkpoint.state_of(name, self._identities[name])
            mark = None if known is None else self._mark(name, known)
            with self._states.restoring(name, mark, whole=operator.keyed_only) as start:
                if known is not None:
                    operator.restore(state_entries(self._store, topic, known, start))
        self._states.forget_others()
        return topology

    def _mark(self, operator: str, known: OperatorState) -> StateMark:
        topic = self._topics[state_topic(self._plan.name, operator)]
        return StateMark(known.identity, topic, known.snapshot_offset, known.end_offset)

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

    @property
    def busy(self) -> bool:
        """Whether a commit is being written right now."""
        return self._writing is not None and not self._writing.done

    def commit(self, topology: Topology, positions: Mapping[TopicPartition, int]) -> None:
        """Make what the topology has done up to `positions` visible, all at once.

        With a `beside` that is only begun: the content is settled when this returns, `finish` tells
        when it is visible. A commit begun before is finished first.

        Raises:
            FencedError: A newer run of the pipeline owns it; nothing was made visible.
            UsageError: State that cannot be kept.
            MillstreamError: What the commit before came to.
        """
        self.finish()
        started_s = self._store.clock.monotonic()
        write = partial(self._writer.write, self._prepare(topology, positions))
        self._prepared_s = self._store.clock.monotonic() - started_s
        if self._beside is not None:
            self._writing = self._beside.begin(write)
            return
        self._writing = Begun(write)
        self._writing.run()
        self.finish()

    def finish(self) -> None:
        """Wait until the commit that was begun is done, if there is one.

        Raises:
            MillstreamError: What `commit` raises where it writes itself; nothing of the epoch was
                made visible. From then on always the same: nothing can follow what is missing.
        """
        if self._writing is not None:
            self.checkpoint = self._writing.result()
            self._writing = None
            self.commit_s = self._prepared_s + self._writer.write_s
            operators = self.checkpoint.operators
            self._states.committed({name: self._mark(name, operators[name]) for name in operators})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the commit that is being written; raise what nobody has been told about it."""
        failure = None if self._writing is None else self._writing.error()
        self._states.__exit__(kind or type(failure) if failure else kind, error, traceback)
        if failure is None or failure is error:
            return
        if error is None or isinstance(error, Exception):
            raise failure
        # Who interrupts has not asked; the next run does the epoch again.
        _logger.warning("the last commit of pipeline %r failed: %s", self._plan.name, failure)

    def note(self, tick: Tick, positions: Mapping[TopicPartition, int]) -> None:
        """Write a tick into the journal at the next commit: no row behind `positions` was seen."""
        places = [(*place, offset) for place, offset in sorted(positions.items())]
        self._journal.append(JournalEntry(places, tick))

    def _prepare(self, topology: Topology, positions: Mapping[TopicPartition, int]) -> EpochContent:
        """Take what was done since the last commit out of the topology."""
        self._begin_sweeps(topology)
        self._states.changing()
        journal, self._journal = self._journal, []
        return EpochContent(
            topology.outputs.take(),
            {operator.name: self._state(operator) for operator in topology.stateful.values()},
            dict(positions),
            {source.node.topic: source_state(source) for source in topology.sources.values()},
            dict(self._topics),
            dict(topology.shared),
            topology.now_ms,
            journal,
        )

    def _begin_sweeps(self, topology: Topology) -> None:
        """Begin to write again the state of the operators whose changes have become many."""
        for operator in topology.stateful.values():
            count = self._change_counts.get(operator.name)
            if count is None or operator.name in self._sweeps:
                continue
            if count > max(SNAPSHOT_RECORDS_MIN, 2 * operator.live_count):
                self._sweeps[operator.name] = _Sweep(operator.sweep())

    def _state(self, operator: StatefulOperator) -> StateContent:
        """What changed, and a piece of the sweep that is under way."""
        name = operator.name
        records = operator.changes()
        sweep, begins, swept = self._sweeps.get(name), False, False
        if sweep is not None:
            begins = sweep.count == 0
            # At least as much as changed, or the sweep would never catch up.
            piece_count = len(records.keys) + SWEEP_RECORDS
            while len(records.keys) < piece_count and not swept:
                piece = next(sweep.pieces, None)
                swept = piece is None
                records.extend(piece or StateRecords([], []))
            sweep.count += len(records.keys)
        count = self._change_counts.get(name, 0) + len(records.keys)
        if sweep is not None and swept:
            count = sweep.count
            del self._sweeps[name]
        self._change_counts[name] = count
        identity = self._identities[name]
        return StateContent(identity, records, count, operator.live_count, begins, swept)
