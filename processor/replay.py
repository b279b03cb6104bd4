"""Replay: run a pipeline again over what it has read, and compare with what it has written.

Nothing is written, and peeks see nothing. Results depend on the log and the journal alone, so a
replay must give the same records in the same order in every output partition. Where it does not, a
function depends on something else, its code has changed, somebody else writes to the topic, or a
disk has lied; the first difference tells which record.

A replay starts with nothing at the beginning of the input, or with the state of a checkpoint that
was kept (kept.py) or of a fork (fork.py). It ends where the pipeline stood at its last commit. If
only what comes of the input from some position on is asked for, it starts at the nearest such place
before it, and passes over what was written up to there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import msgspec

from millstream import (
    LogReader,
    OffsetOutOfRangeError,
    Position,
    Record,
    RecordBatch,
    Store,
    TopicPartition,
    UsageError,
)

from .changed_plan import plan_changes
from .checkpoint import EMPTY, Checkpoint
from .fork_diff import fork_point
from .kept import kept_checkpoint, read_kept
from .keyed_state import States
from .outputs import OutputBatch
from .plan import Plan
from .sink_replay import SinkComparison, SinkReplays, record_text, same_record
from .spilled_states import temporary_states
from .state_log import read_checkpoint, state_entries, state_topic
from .ticks import JournalEntry, decode_journal, journal_topic
from .topology import Topology

_INPUT_BYTES = 1 << 19
_INPUT_RECORDS = 1 << 16


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a replay gives something else."""

    topic: str
    partition: int
    offset: int | None
    """Of the record that was written; None where there is none."""
    written: Record | None
    """What the topic holds; None when it ends before."""
    replayed: Record | None
    """What the replay gives (its offset means nothing); None when it gives nothing more."""

    def __str__(self) -> str:
        place = f"{self.topic}/{self.partition}"
        if self.written is None:
            assert self.replayed is not None
            given = record_text(self.replayed)
            return f"{place}: nothing was written where the replay gives {given}"
        if self.replayed is None:
            return (
                f"{place}: offset {self.offset} holds {record_text(self.written)}, the replay gives"
                " nothing more"
            )
        return (
            f"{place}: offset {self.offset} holds {record_text(self.written)}, the replay gives"
            f" {record_text(self.replayed)}"
        )


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
    """Output partitions that were not compared, because their first records were removed."""
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


class _Written:
    """What a pipeline has written, read beside the replay. Not thread-safe."""

    def __init__(
        self,
        store: Store,
        sinks: SinkReplays,
        span: tuple[Checkpoint, Checkpoint],
        result: Replay,
    ) -> None:
        start, end = span
        self._store = store
        self._sinks = sinks
        self._start = start.output_ends()
        self._end = end.output_ends()
        self._result = result
        self._readers: dict[TopicPartition, Iterator[Record]] = {}
        self._differing: set[TopicPartition] = set()
        self._columnar: dict[str, bool] = {}
        self._end = {place: end for place, end in self._end.items() if place not in sinks}
        for place in self._end:
            if store.offsets(place.topic)[place.partition].start > self._start.get(place, 0):
                self._differing.add(place)
                result.skipped.append(place)

    def compare(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Hold what one step gives against what was written."""
        for place, batch in outputs:
            if place in self._sinks:
                self._sinks.add(place, batch, passed=False)
                continue
            if place in self._differing:
                continue
            replayed = [
                Record(place.topic, place.partition, 0, time, key, value, headers)
                for time, key, value, headers in batch.rows()
            ]
            written = list(islice(self._reader(place), len(replayed)))
            self._result.records_compared += len(written)
            same = _same_row if self._stores_columns(place.topic) else same_record
            for number, each in enumerate(replayed):
                found = written[number] if number < len(written) else None
                if found is None or not same(found, each):
                    self._differ(place, found, each)
                    break

    def skip(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Pass over what one step gives: as many records were written."""
        for place, batch in outputs:
            if place in self._sinks:
                self._sinks.add(place, batch, passed=True)
            elif place not in self._differing:
                count = sum(1 for _ in batch.rows())
                deque(islice(self._reader(place), count), 0)

    def finish(self) -> None:
        """Note what was written that no step gave, and compare the sinks."""
        for place in self._end:
            if place not in self._differing:
                left = next(self._reader(place), None)
                if left is not None:
                    self._differ(place, left, None)
        self._result.sinks = self._sinks.compare()

    def _differ(self, place: TopicPartition, found: Record | None, given: Record | None) -> None:
        offset = None if found is None else found.offset
        self._differing.add(place)
        self._result.differences.append(Difference(*place, offset, found, given))

    def _stores_columns(self, topic: str) -> bool:
        if topic not in self._columnar:
            self._columnar[topic] = self._store.topic(topic).config.columnar
        return self._columnar[topic]

    def _reader(self, place: TopicPartition) -> Iterator[Record]:
        if place not in self._readers:
            end = self._end.get(place, 0)
            start = self._start.get(place, 0)
            records = self._store.read(place.topic, start, end, partition=place.partition)
            self._readers[place] = iter(records if start < end else ())
        return self._readers[place]


def _same_row(written: Record, given: Record) -> bool:
    """The same for a topic of columns: rows come in the order of its fields, nulls among them."""
    value = None if given.value is None else msgspec.json.decode(given.value)
    row = None if written.value is None else msgspec.json.decode(written.value)
    if not isinstance(value, dict) or not isinstance(row, dict):
        return False
    key = written.key if given.key is None else given.key  # the declared one
    told = {name: part for name, part in value.items() if part is not None}
    kept = {name: part for name, part in row.items() if part is not None}
    return (written.timestamp_ms, written.key, kept) == (given.timestamp_ms, key, told)


class _Start(NamedTuple):
    """Where a replay starts, and where it begins to compare."""

    checkpoint: Checkpoint
    pipeline: str
    """In whose name the state is kept."""
    text: str
    compared: dict[TopicPartition, int]
    """Passes over what was written before a record at or behind these offsets is processed."""


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
        raise UsageError(f"pipeline {plan.name!r} has never run here: there is nothing to verify")
    end = _with_own_journal(store, plan.name, end)
    begin = _start(plan, store, since, start)
    changes = plan_changes(plan, begin.checkpoint)
    if changes:
        raise UsageError(f"{begin.text} has state of another plan:\n{changes}")
    with temporary_states(plan.holding) as states:
        topology = _topology(plan, store, begin.checkpoint, begin.pipeline, states)
        found = _replay(topology, store, begin, end)
    if not found.ok and begin.checkpoint.epoch < end.migrated_epoch:
        found.hint = _migration_hint(store, plan.name, end.migrated_epoch)
    return found


def _start(
    plan: Plan, store: Store, since: str | int | None, start: int | str | Position | None
) -> _Start:
    compared = {} if start is None else _positions(plan, store, start)
    if isinstance(since, int):
        checkpoint = kept_checkpoint(store, plan.name, since)
        checkpoint = _with_own_journal(store, plan.name, checkpoint)
        return _Start(checkpoint, plan.name, f"the checkpoint of epoch {since}", compared)
    if since is not None:
        checkpoint = read_checkpoint(store, since)
        if checkpoint.epoch == 0:
            raise UsageError(
                f"there is no pipeline {since!r} here to start from: fork one first, or give the"
                " epoch of a checkpoint that is kept"
            )
        point = fork_point(store, since)
        if point is not None and point.journal_end is not None:
            checkpoint = msgspec.structs.replace(checkpoint, journal_end=point.journal_end)
        return _Start(checkpoint, since, f"fork {since!r}", compared)
    for kept in reversed(read_kept(store, plan.name)) if compared else ():
        checkpoint = kept.checkpoint
        reached = checkpoint.next_offsets()
        before = all(reached.get(place, 0) <= offset for place, offset in compared.items())
        if before and not plan_changes(plan, checkpoint):
            return _start(plan, store, checkpoint.epoch, start)
    if fork_point(store, plan.name) is not None:
        raise UsageError(
            f"{plan.name!r} is a fork: what came before was written by its original, so it cannot"
            f" be verified from the beginning. {_elsewhere(store, plan.name)}; or keep_checkpoint"
        )
    return _Start(EMPTY, plan.name, "the beginning", compared)


def _with_own_journal(store: Store, pipeline: str, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the end of the journal of its pipeline, though a fork may have kept it.

    In forks of early versions a checkpoint says where the journal of the original ended, until the
    first tick of the fork. What it calls the last tick must be one of the past.
    """
    point, end = fork_point(store, pipeline), checkpoint.journal_end
    if point is None or point.journal_end is not None or not end:
        return checkpoint
    topic, reached = journal_topic(pipeline), checkpoint.next_offsets()
    known = {info.name for info in store.topics(internal=True)}
    if topic in known and store.offsets(topic)[0].end >= end:
        (last,) = _journal(store, pipeline, end - 1, end)
        passed = (at <= reached.get(place, 0) for place, at in last.next_offsets().items())
        if last.tick.now_ms <= checkpoint.now_ms and all(passed):
            return checkpoint
    return msgspec.structs.replace(checkpoint, journal_end=0)


def _positions(plan: Plan, store: Store, start: int | str | Position) -> dict[TopicPartition, int]:
    return {
        TopicPartition(topic, partition): store.offset_at(topic, partition, start)
        for topic in plan.input_topics()
        for partition in store.offsets(topic)
    }


def _replay(topology: Topology, store: Store, start: _Start, end: Checkpoint) -> Replay:
    plan = topology.plan
    result = Replay(started_at=start.text)
    positions = _start_positions(plan, store, start)
    with (
        SinkReplays(store, plan, start.checkpoint, end) as sinks,
        store.reader(positions) as reader,
    ):
        written = _Written(store, sinks, (start.checkpoint, end), result)
        steps = _Steps(topology, written, start.compared)
        source = _Input(reader)
        journal_end = start.checkpoint.journal_end
        for entry in _journal(store, plan.name, journal_end, end.journal_end):
            steps.process(source, entry.next_offsets())
            topology.tick(entry.tick)
            steps.compare()
        steps.process(source, end.next_offsets())
        written.finish()
    result.records_in = topology.row_count
    return result


class _Steps:
    """The steps of a replay: first those whose results are passed over, then those compared."""

    def __init__(
        self, topology: Topology, written: _Written, compared: Mapping[TopicPartition, int]
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


def _start_positions(plan: Plan, store: Store, start: _Start) -> dict[TopicPartition, int]:
    known = start.checkpoint.next_offsets()
    positions = {}
    for topic in plan.input_topics():
        for partition, held in store.offsets(topic).items():
            place = TopicPartition(topic, partition)
            positions[place] = known.get(place, 0)
            if positions[place] < held.start:
                raise OffsetOutOfRangeError(
                    f"the input from offset {positions[place]} to {held.start} is gone: a replay"
                    f" from {start.text} is not possible any more. {_elsewhere(store, plan.name)}",
                    topic=topic,
                    partition=partition,
                    offset=positions[place],
                )
    return positions


def _elsewhere(store: Store, pipeline: str) -> str:
    epochs = ", ".join(str(kept.checkpoint.epoch) for kept in read_kept(store, pipeline))
    if epochs:
        return f"Start from a checkpoint that is kept (since=): there is epoch {epochs}"
    return "Start from a fork (since=NAME); runs with keep_every keep checkpoints to start from"


def _migration_hint(store: Store, pipeline: str, migrated: int) -> str:
    epochs = [each.checkpoint.epoch for each in read_kept(store, pipeline)]
    behind = ", ".join(str(epoch) for epoch in epochs if epoch >= migrated)
    return (
        f"state was migrated in epoch {migrated}: what was written before came of another plan."
        " Start from a checkpoint that was kept behind it (since=): there is"
        f" {f'epoch {behind}' if behind else 'none; keep_checkpoint keeps the last'}"
    )


def _journal(store: Store, pipeline: str, start: int, end: int) -> Iterator[JournalEntry]:
    if start < end:
        for record in store.read(journal_topic(pipeline), start, end):
            yield decode_journal(record.value)


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
    positions = _positions(plan, store, start)
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
