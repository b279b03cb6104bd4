"""Replay: run a pipeline again over what it has read, and compare with what it has written.

Nothing is written. Results depend on the log and the journal alone, so a replay must give the same
records in the same order in every output partition. Where it does not, a function depends on
something else, its code has changed, somebody else writes to the topic, or a disk has lied; the
first difference tells which record.

A replay starts with nothing at the beginning of the input, or where a fork was made, with its
state (fork.py). It ends where the pipeline stood at its last commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

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
from .keyed_state import States
from .outputs import OutputBatch
from .plan import Plan
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
            return f"{place}: the replay gives a record more: {self.replayed}"
        if self.replayed is None:
            return f"{place}: the replay does not give the record at offset {self.offset}"
        return (
            f"{place}: offset {self.offset} holds {self.written}, the replay gives {self.replayed}"
        )


@dataclass(slots=True)
class Replay:
    """What a replay found."""

    records_in: int = 0
    records_compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first of each output partition that differs."""
    skipped: list[TopicPartition] = field(default_factory=list)
    """Output partitions that were not compared, because their first records are gone: removed by
    retention, or trimmed when they had been delivered to a sink outside the store."""

    @property
    def ok(self) -> bool:
        """Whether everything written is what a replay gives."""
        return not self.differences


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

    def __init__(self, store: Store, start: Checkpoint, end: Checkpoint, result: Replay) -> None:
        self._store = store
        self._start = start.output_ends()
        self._end = end.output_ends()
        self._result = result
        self._readers: dict[TopicPartition, Iterator[Record]] = {}
        self._differing: set[TopicPartition] = set()
        self._columnar: dict[str, bool] = {}
        for place in self._end:
            if store.offsets(place.topic)[place.partition].start > self._start.get(place, 0):
                self._differing.add(place)
                result.skipped.append(place)

    def compare(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Hold what one step gives against what was written."""
        for place, batch in outputs:
            if place in self._differing:
                continue
            replayed = [
                Record(place.topic, place.partition, 0, time, key, value, headers)
                for time, key, value, headers in batch.rows()
            ]
            written = list(islice(self._reader(place), len(replayed)))
            self._result.records_compared += len(written)
            same = _same_row if self._stores_columns(place.topic) else _same
            for number, each in enumerate(replayed):
                found = written[number] if number < len(written) else None
                if found is None or not same(found, each):
                    self._differ(place, found, each)
                    break

    def finish(self) -> None:
        """Note what was written that no step gave."""
        for place in self._end:
            if place not in self._differing:
                left = next(self._reader(place), None)
                if left is not None:
                    self._differ(place, left, None)

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


def _same(left: Record, right: Record) -> bool:
    return (left.timestamp_ms, left.key, left.value, tuple(left.headers)) == (
        right.timestamp_ms,
        right.key,
        right.value,
        tuple(right.headers),
    )


def replay(plan: Plan, store: Store, *, since: str | None = None) -> Replay:
    """Run a plan again over what its pipeline has read; see `Pipeline.verify`."""
    plan.check()
    end = read_checkpoint(store, plan.name)
    if end.epoch == 0:
        raise UsageError(f"pipeline {plan.name!r} has never run here: there is nothing to verify")
    start = EMPTY if since is None else read_checkpoint(store, since)
    if since is not None and start.epoch == 0:
        raise UsageError(f"there is no pipeline {since!r} here to start from: fork one first")
    changes = plan_changes(plan, start)
    if changes:
        raise UsageError(f"fork {since!r} has state of another plan:\n{changes}")
    with temporary_states(plan.holding) as states:
        topology = _topology(plan, store, start, since or plan.name, states)
        return _replay(topology, store, start, end)


def _replay(topology: Topology, store: Store, start: Checkpoint, end: Checkpoint) -> Replay:
    plan = topology.plan
    result = Replay()
    written = _Written(store, start, end, result)
    positions = _start_positions(plan, store, start)
    with store.reader(positions) as reader:
        source = _Input(reader)
        for entry in _journal(store, plan.name, start.journal_end, end.journal_end):
            _steps(topology, source, entry.next_offsets(), written)
            topology.tick(entry.tick)
            _compare(topology, written)
        _steps(topology, source, end.next_offsets(), written)
    written.finish()
    result.records_in = topology.row_count
    return result


def _steps(
    topology: Topology, source: _Input, until: Mapping[TopicPartition, int], written: _Written
) -> None:
    for batches in source.before(until):
        topology.process(batches)
        _compare(topology, written)


def _compare(topology: Topology, written: _Written) -> None:
    written.compare(topology.outputs.batches())
    topology.outputs.clear()
    topology.settle()


def _topology(plan: Plan, store: Store, start: Checkpoint, name: str, states: States) -> Topology:
    partitions = {topic: store.topic(topic).partitions for topic in plan.output_topics()}
    topology = Topology(plan, start.resumed(), partitions, states=states)
    for operator in topology.stateful.values():
        known = start.operators.get(operator.name)
        with states.restoring(operator.name, None, whole=False):
            if known is not None:
                operator.restore(state_entries(store, state_topic(name, operator.name), known))
    return topology


def _start_positions(plan: Plan, store: Store, start: Checkpoint) -> dict[TopicPartition, int]:
    known = start.next_offsets()
    positions = {}
    for topic in plan.input_topics():
        for partition, held in store.offsets(topic).items():
            place = TopicPartition(topic, partition)
            positions[place] = known.get(place, 0)
            if positions[place] < held.start:
                raise OffsetOutOfRangeError(
                    f"the input from offset {positions[place]} to {held.start} is gone: a replay"
                    " from the beginning is not possible any more; start from a fork",
                    topic=topic,
                    partition=partition,
                    offset=positions[place],
                )
    return positions


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
    positions = {
        TopicPartition(topic, partition): store.offset_at(topic, partition, start)
        for topic in plan.input_topics()
        for partition in store.offsets(topic)
    }
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
