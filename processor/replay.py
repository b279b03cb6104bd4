"""Replay: run a pipeline again over what it has read, and compare with what it has written.

Nothing is written, and peeks see nothing. Results depend on the log and the journal alone, so a
replay must give the same records in the same order in every output partition. Where it does not, a
function depends on something else, its code has changed, somebody else writes to the topic, or a
disk has lied; the first difference tells which record.

Where a replay starts is in replay_start.py; it ends where the pipeline stood at its last commit. If
only what comes of the input from some position on is asked for, it passes over what was written up
to there. How records are compared is in replay_comparison.py, and those of sinks in sink_replay.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from millstream import (
    LogReader,
    Position,
    RecordBatch,
    Store,
    TopicPartition,
    UnknownPipelineError,
    UsageError,
)

from .changed_plan import plan_changes
from .checkpoint import Checkpoint
from .kept import read_kept
from .keyed_state import States
from .outputs import OutputBatch
from .plan import Plan
from .replay_comparison import Difference, Written
from .replay_start import (
    Start,
    find_start,
    input_positions,
    journal_entries,
    positions_at,
    with_own_journal,
)
from .sink_replay import SinkComparison, SinkReplays
from .spilled_states import temporary_states
from .state_log import read_checkpoint, state_entries, state_topic
from .topology import Topology

_INPUT_BYTES = 1 << 19
_INPUT_RECORDS = 1 << 16


@dataclass(slots=True)
class Replay:
    """What a replay found."""

    records_in: int = 0
    records_compared: int = 0
    started_at: str = "the beginning"
    """With whose state it started, in words."""
    differences: list[Difference] = field(default_factory=list)
    """The first of each output partition that differs."""
    skipped: list[TopicPartition] = field(default_factory=list)
    """Output partitions that were not compared, because records of them were removed."""
    sinks: list[SinkComparison] = field(default_factory=list)
    """What came of comparing each sink outside the store, or why it was not compared."""
    hint: str = ""
    """Why something may differ though nothing is wrong, and where to start; mostly empty."""

    @property
    def ok(self) -> bool:
        """Whether everything written is what a replay gives."""
        return not self.differences and all(each.difference is None for each in self.sinks)


class _Input:
    """The input in store-wide order, cut exactly where the journal says."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._held: deque[RecordBatch] = deque()

    def before(self, positions: Mapping[TopicPartition, int]) -> Iterator[list[RecordBatch]]:
        """The batches up to `positions`, in steps."""
        while True:
            if not self._held:
                self._held.extend(self._reader.poll(_INPUT_RECORDS, _INPUT_BYTES))
            step: list[RecordBatch] = []
            while self._held:
                batch = self._held.popleft()
                stop = positions.get(TopicPartition(batch.topic, batch.partition), 0)
                if batch.last_offset < stop:
                    step.append(batch)
                    continue
                if batch.base_offset < stop:
                    step.append(batch.slice(0, batch.index_of(stop)))
                    batch = batch.from_offset(stop)
                self._held.appendleft(batch)
                break
            if not step:
                return
            yield step


def replay(
    plan: Plan,
    store: Store,
    *,
    since: str | int | None = None,
    start: int | str | Position | None = None,
) -> Replay:
    """Run a plan again over what its pipeline has read; see `Pipeline.verify`."""
    plan.check()
    plan = plan.unseen()
    end = read_checkpoint(store, plan.name)
    if end.epoch == 0:
        raise UnknownPipelineError(
            f"pipeline {plan.name!r} has never run here: there is nothing to verify"
        )
    end = with_own_journal(store, plan.name, end)
    begin = find_start(plan, store, since, start)
    changes = plan_changes(plan, begin.checkpoint)
    if changes:
        raise UsageError(f"{begin.text} has state of another plan:\n{changes}")
    with temporary_states(plan.holding) as states:
        topology = _topology(plan, store, begin.checkpoint, begin.pipeline, states)
        found = _replay(topology, store, begin, end)
    if not found.ok and begin.checkpoint.epoch < end.migrated_epoch:
        found.hint = _migration_hint(store, plan.name, end.migrated_epoch)
    elif not found.ok:
        found.hint = _compaction_hint(plan, store)
    return found


def _replay(topology: Topology, store: Store, start: Start, end: Checkpoint) -> Replay:
    plan = topology.plan
    positions = input_positions(plan, store, start)
    with (
        SinkReplays(store, plan, start.checkpoint, end) as sinks,
        store.reader(positions) as reader,
    ):
        written = Written(store, sinks, start.checkpoint, end)
        steps = _Steps(topology, written, start.compared)
        source = _Input(reader)
        journal_end = start.checkpoint.journal_end
        for entry in journal_entries(store, plan.name, journal_end, end.journal_end):
            steps.process(source, entry.next_offsets())
            topology.tick(entry.tick)
            steps.compare()
        steps.process(source, end.next_offsets())
        written.finish()
        return Replay(
            records_in=topology.row_count,
            records_compared=written.records_compared,
            started_at=start.text,
            differences=written.differences,
            skipped=written.skipped,
            sinks=sinks.compare(),
        )


class _Steps:
    """The steps of a replay: first those whose results are passed over, then those compared."""

    def __init__(
        self, topology: Topology, written: Written, compared: Mapping[TopicPartition, int]
    ) -> None:
        self._topology = topology
        self._written = written
        self._compared = compared
        self._comparing = not compared

    def process(self, source: _Input, until: Mapping[TopicPartition, int]) -> None:
        """Process the input up to some positions."""
        if not self._comparing:
            before = {place: min(at, self._compared.get(place, at)) for place, at in until.items()}
            for batches in source.before(before):
                self._step(batches)
        for batches in source.before(until):
            self._comparing = True
            self._step(batches)

    def _step(self, batches: list[RecordBatch]) -> None:
        self._topology.process(batches)
        self.compare()

    def compare(self) -> None:
        """Hold what has come out against what was written, or pass over it."""
        outputs = self._topology.outputs
        (self._written.compare if self._comparing else self._written.skip)(outputs.batches())
        outputs.clear()
        self._topology.settle()


def _topology(plan: Plan, store: Store, start: Checkpoint, name: str, states: States) -> Topology:
    partitions = {topic: store.topic(topic).partitions for topic in plan.output_topics()}
    topology = Topology(plan, start.resumed(), partitions, states=states)
    for operator in topology.stateful.values():
        known = start.operators.get(operator.name)
        with states.restoring(operator.name, None, whole=False):
            if known is not None:
                operator.restore(state_entries(store, state_topic(name, operator.name), known))
    return topology


def _migration_hint(store: Store, pipeline: str, migrated: int) -> str:
    epochs = [each.checkpoint.epoch for each in read_kept(store, pipeline)]
    behind = ", ".join(str(epoch) for epoch in epochs if epoch >= migrated)
    return (
        f"state was migrated in epoch {migrated}: what was written before came of another plan."
        " Start from a checkpoint that was kept behind it (since=): there is"
        f" {f'epoch {behind}' if behind else 'none; keep_checkpoint keeps the last'}"
    )


def _compaction_hint(plan: Plan, store: Store) -> str:
    """Of input that is no longer what was read of it."""
    compacted = [each for each in plan.input_topics() if store.topic(each).config.compact]
    if not compacted:
        return ""
    return (
        f"the input {', '.join(sorted(compacted))} is compacted: what was read of it and replaced"
        " since is gone, and a replay cannot give what came of that. Start from a checkpoint that"
        " was kept behind it (since=); keep_checkpoint keeps the last"
    )


def dry_run(
    plan: Plan, store: Store, start: int | str | Position
) -> Iterator[tuple[TopicPartition, OutputBatch]]:
    """Run a plan over what is there now, write nothing, and give what it would write, in steps.

    It begins with nothing at `start` of every input partition, and ends at the end of the input
    as it is now, with all windows closed.

    Args:
        plan: What to run.
        store: May be open read-only.
        start: A position: "earliest", an offset, "@<time>", "-10".
    """
    plan.check()
    plan = plan.unseen()
    positions = positions_at(plan, store, start)
    ends = {
        TopicPartition(topic, partition): held.end
        for topic in plan.input_topics()
        for partition, held in store.offsets(topic).items()
    }
    with temporary_states(plan.holding) as states, store.reader(positions) as reader:
        topology = Topology(plan, states=states)
        for batches in _Input(reader).before(ends):
            topology.process(batches)
            yield from topology.outputs.batches()
            topology.outputs.clear()
            topology.settle()
        topology.flush()
        yield from topology.outputs.batches()
