"""A plan turned into operators that run: one step takes a micro-batch through all of them.

The operators run one after the other in the order they were declared, each over all rows of the
step. Nothing here knows a store: rows come in as batches and leave in `outputs`, so the same
topology runs a pipeline and its test. Which operator runs which kind of node is said in
node_operators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec

from millstream import TopicPartition, UsageError

from .columns import Chunk, InputBatch, MicroBatch, Rows
from .join_keys import KeyWatch
from .join_nodes import JoinNode
from .keyed_state import IN_MEMORY, States
from .lanes import NO_COLUMNS, ColumnTopics, runs_on_columns
from .node_operators import Place, stateful_operator, stateless_operator
from .nodes import DeadLettersNode, Node, PortNode, SinkNode, SourceNode
from .operators import Operator
from .outputs import Outputs, dead_letters, encode_rows
from .plan import Plan
from .source import Faults, Rejects, RoutedFaults, SourceStage
from .stages import OperatorMetrics, Stage
from .stateful import StatefulOperator, Step
from .ticks import Tick
from .watermark import BEFORE_TIME, LEVEL_MAX, Progress, Watermark, least

_NOTHING: Final = MicroBatch(())
_NO_MOVES: Final = Progress(BEFORE_TIME, [], [])

INPUT_RECORDS: Final = 5_000
"""Most records of one step on rows. Each becomes several objects, which every operator walks
through: as long as they fit into a processor's own cache, that takes a tenth less time than with
10,000. A step has costs of its own, too, so a batch of 10,000 makes two, without a third for a
rest."""

LANE_RECORDS: Final = 1 << 17
"""The same on columns, where a step has costs of its own and rows have hardly any."""


class Reached(NamedTuple):
    """How far a source has come in a step."""

    own: Progress
    contribution: Progress
    """To the W it shares with other sources."""


@dataclass(slots=True)
class Resumed:
    """What a checkpoint knows of event time; empty for a pipeline that has never run."""

    watermarks: Mapping[str, Watermark] = field(default_factory=dict)
    """W of each source by topic."""
    quiet: frozenset[str] = frozenset()
    """Topics of which every partition was idle."""
    appended_ms: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """When the last batch of each partition was appended, by topic."""
    shared: Mapping[str, int] = field(default_factory=dict)
    """W where several sources meet, by their topics."""
    now_ms: int = 0
    """The wall clock at the last tick."""


class Topology:
    """The running form of a plan. Not thread-safe.

    Args:
        plan: What to run.
        resumed: Event time as of a checkpoint.
        partitions: Number of partitions of each output topic.
        monotonic: Seconds, to measure how busy each operator is; by default nothing is measured.
        states: Makes keyed states; closed by whoever gives it.
        columns: Topics whose rows are taken and written as columns as far as operators can;
            results do not depend on it.
    """

    def __init__(
        self,
        plan: Plan,
        resumed: Resumed | None = None,
        partitions: Mapping[str, int] | None = None,
        monotonic: Callable[[], float] = float,
        states: States = IN_MEMORY,
        columns: ColumnTopics = NO_COLUMNS,
    ) -> None:
        plan.check()
        self.states = states
        self.lane = runs_on_columns(plan, columns)
        """Ids of the operators that take rows as columns."""
        self._monotonic = monotonic
        self._metrics = [OperatorMetrics(node.label) for node in plan.nodes]
        self.plan = plan
        self.outputs = Outputs(partitions)
        self._stored = columns.written
        self.sources: dict[int, SourceStage] = {}
        self.stateful: dict[int, StatefulOperator] = {}
        self._operators: dict[int, Operator] = {}
        self._sinks: dict[str, list[SinkNode]] = {topic: [] for topic in plan.output_topics()}
        self._sources_of = _ids(plan.sources_by_node())
        """Ids of the sources above each node."""
        self._timed_by = _ids(plan.timing_sources_by_node())
        """Ids of the sources whose W is that of each node."""
        resumed = resumed or Resumed()
        self.shared = dict(resumed.shared)
        self.now_ms = resumed.now_ms
        self.row_count = 0
        self._add_operators(resumed)
        self._source_ids = {source.node.topic: each for each, source in self.sources.items()}
        readers, spent = plan.readers(), self._spent()
        self._stages = [self._stage(node, readers[node.id], spent[node.id]) for node in plan.nodes]

    def _add_operators(self, resumed: Resumed) -> None:
        derived, delays_ms = self.plan.derived(), self.plan.delays_ms()
        for node in self.plan.nodes:
            if isinstance(node, SourceNode):
                self._add_source(node, resumed)
                continue
            if isinstance(node, SinkNode):
                self._sinks[node.topic].append(node)
                continue
            place = Place(
                delays_ms[node.id],
                None if derived[node.id] else self._rejects(node),
                self.states,
                on_columns=node.id in self.lane,
            )
            operator = stateless_operator(node, place)
            if operator is not None:
                self._operators[node.id] = operator
                continue
            stateful = stateful_operator(node, place)
            if stateful is not None:
                self.stateful[node.id] = stateful
                if stateful.judges_rows:
                    for each in self._sources_of[node.id]:
                        self.sources[each].exact = True

    def _spent(self) -> list[list[int]]:
        """By node: those whose rows nobody needs after it; see `Stage.spent`."""
        spent: list[list[int]] = [[] for _ in self.plan.nodes]
        for node, readers in zip(self.plan.nodes, self.plan.readers(), strict=True):
            last = _last_use(node, readers)
            if last is not None:
                spent[last].append(node.id)
        return spent

    def _stage(self, node: Node, readers: Sequence[Node], spent: Sequence[int]) -> Stage:
        """The node as it takes part in each step; see `Stage.spent`."""
        return Stage(
            node=node.id,
            inputs=node.inputs,
            operator=self._operators.get(node.id),
            stateful=self.stateful.get(node.id),
            as_lists=node.id not in self.lane,
            ports=[(each.id, each.port) for each in readers if isinstance(each, PortNode)],
            timed_by=self._timed_by[node.id],
            spent=spent,
            done=self._metrics[node.id],
            watch=KeyWatch(self.plan.name, node) if isinstance(node, JoinNode) else None,
        )

    def _add_source(self, node: SourceNode, resumed: Resumed) -> None:
        wanted = self.plan.keeps_dead_letters(node)
        watermark = resumed.watermarks.get(node.topic) or Watermark(node.disorder_ms)
        watermark.disorder_ms = node.disorder_ms
        stage = SourceStage(node, watermark, Faults(keep=wanted), quiet=node.topic in resumed.quiet)
        stage.appended_ms.update(resumed.appended_ms.get(node.topic, {}))
        if node.id in self.lane:
            stage.read_columns()
        stage.exact = False  # until an operator judges its rows
        self.sources[node.id] = stage

    def _rejects(self, node: Node) -> Rejects:
        """Where a node puts input records it cannot process."""
        stages = [self.sources[each] for each in self._sources_of[node.id]]
        if len(stages) == 1:
            return stages[0].faults
        return RoutedFaults({stage.node.topic: stage.faults for stage in stages})

    @property
    def late_count(self) -> int:
        """Rows that came too late for an operator, so far."""
        return sum(operator.late_count for operator in self.stateful.values())

    @property
    def dead_letter_count(self) -> int:
        """Records rejected, so far."""
        return sum(source.faults.count for source in self.sources.values())

    def metrics(self) -> list[OperatorMetrics]:
        """What each operator has done, in the order of the plan."""
        for node_id, operator in self.stateful.items():
            self._metrics[node_id].late = operator.late_count
            self._metrics[node_id].skipped = operator.skipped_count
            self._metrics[node_id].state_records = operator.live_count
        for node in self.plan.nodes:
            told = self._metrics[node.id]
            if isinstance(node, DeadLettersNode):
                told.records_in = told.records_out = self.sources[node.parent].faults.count
            elif isinstance(node, SinkNode) and isinstance(
                self.plan.nodes[node.parent], DeadLettersNode
            ):
                told.records_in = self._metrics[node.parent].records_out
            told.watermark_ms, told.watermark_lag_ms = self._time_at(node.id)
        return [replace(one) for one in self._metrics]

    def _time_at(self, node_id: int) -> tuple[int | None, int | None]:
        """W of the input of a node, and how far it is behind the newest row."""
        above = [self.sources[each] for each in self._timed_by[node_id]]
        level = min(source.watermark.level for source in above)
        name = " + ".join(source.node.topic for source in above)
        level = max(level, self.shared.get(name, level))
        newest = max((max(source.watermark.maxima.values(), default=level)) for source in above)
        return (None, None) if level == BEFORE_TIME else (level, max(0, newest - level))

    @property
    def step_records(self) -> int:
        """How many records one step takes best."""
        return LANE_RECORDS if self.works_on_columns else INPUT_RECORDS

    @property
    def works_on_columns(self) -> bool:
        """Whether some operator, not just a source, takes rows as columns."""
        if self.lane and self._stored:
            return True
        return any(not isinstance(self.plan.nodes[each], SourceNode) for each in self.lane)

    @property
    def level(self) -> int:
        """W of the whole pipeline: the least of its sources."""
        return min(source.watermark.level for source in self.sources.values())

    def waits(self) -> bool:
        """Whether something waits for event time."""
        return any(operator.required_level is not None for operator in self.stateful.values())

    def waits_until(self, now_ms: int) -> bool:
        """Whether something waits for the wall clock that is due at `now_ms`."""
        for node_id, operator in self.stateful.items():
            wall_ms = operator.required_wall_ms
            if wall_ms is not None and wall_ms <= now_ms:
                return True
            level = operator.required_level
            if level is None:
                continue
            sources = [self.sources[each] for each in self._timed_by[node_id]]
            if any(
                source.node.clock == "wall"
                and level + operator.delay_ms > source.watermark.level
                and now_ms - source.node.disorder_ms > source.watermark.level
                for source in sources
            ):
                return True
        return False

    def process(self, batches: Sequence[InputBatch]) -> None:
        """Take a micro-batch through all operators; what they write is in `outputs`.

        Raises:
            RecordError: A record or row cannot be processed. The topology must not be used
                again: some operators have seen the step and some have not.
        """
        batch = MicroBatch(batches)
        self.row_count += batch.row_count
        for each in batches:
            self._metrics[self._source_ids[each.topic]].records_in += each.record_count
        chunks: dict[int, Rows] = {}
        reached: dict[int, Reached] = {}
        for node_id, source in self.sources.items():
            chunks[node_id], *moves = source.process(batch)
            reached[node_id] = Reached(*moves)
        self._step(chunks, reached, batch)

    def tick(self, tick: Tick) -> None:
        """Let what a tick says have its effect, between two steps. The clock never goes back.

        Raises:
            RecordError: A user function raised.
        """
        if tick.flush:
            self.flush()
            return
        self.now_ms = max(self.now_ms, tick.now_ms)
        tick = msgspec.structs.replace(tick, now_ms=self.now_ms)
        reached = {node_id: Reached(*source.tick(tick)) for node_id, source in self.sources.items()}
        self._step(self._no_rows(), reached, _NOTHING, ticked=True)

    def settle(self) -> None:
        """Make room in memory, in a run that commits nothing."""
        if self.states.full:
            self.commit_nowhere()

    def commit_nowhere(self) -> None:
        """Let all changes count as written, in a run that commits nothing.

        Raises:
            UsageError: A state cannot be kept.
        """
        self.states.changing()
        for operator in self.stateful.values():
            operator.changes()
        self.states.committed({})

    def _no_rows(self) -> dict[int, Rows]:
        return {node_id: Chunk(range(0), [], [], None) for node_id in self.sources}

    def flush(self) -> None:
        """End everything that waits for time: the input has ended and no row will come.

        W rises just as far as that needs, so that rows after all are judged like any that come
        late. What gets rows from what ended is ended in another turn.

        Raises:
            UsageError: Something waits for a W that no checkpoint could hold.
        """
        while waiting := {
            node_id: operator.required_level + operator.delay_ms
            for node_id, operator in self.stateful.items()
            if operator.required_level is not None
        }:
            for node_id, level in waiting.items():
                if level > LEVEL_MAX:
                    raise UsageError(
                        f"{self.stateful[node_id].name!r} ends at W = {level} ms, beyond 64 bits:"
                        ' make its windows or graces shorter, or run it with on_end="hold"'
                    )
            reached: dict[int, Reached] = {}
            for node_id, source in self.sources.items():
                before = source.watermark.level
                wanted = [
                    level for each, level in waiting.items() if node_id in self._timed_by[each]
                ]
                source.watermark.raise_to(max(wanted, default=before))
                moved = source.watermark.level > before
                progress = Progress(before, [0] * moved, [source.watermark.level] * moved)
                # Idle or not: the end of the input concerns all sources.
                reached[node_id] = Reached(progress, progress)
            self._step(self._no_rows(), reached, _NOTHING)

    def _progress(self, above: tuple[int, ...], reached: Mapping[int, Reached]) -> Progress:
        """The W of the operators that the sources `above` reach."""
        if len(above) == 1:
            return reached[above[0]].own
        name = " + ".join(self.sources[each].node.topic for each in above)
        contributions = [reached[each].contribution for each in above]
        progress = least(contributions, self.shared.get(name, BEFORE_TIME))
        if progress.end != BEFORE_TIME:
            self.shared[name] = progress.end
        return progress

    def _step(
        self,
        chunks: dict[int, Rows],
        reached: Mapping[int, Reached],
        batch: MicroBatch,
        *,
        ticked: bool = False,
    ) -> None:
        """Take the rows of the sources through everything else."""
        progress: dict[tuple[int, ...], Progress] = {}
        before = self._monotonic()
        for stage in self._stages:
            if stage.stateful is not None and stage.timed_by not in progress:
                progress[stage.timed_by] = self._progress(stage.timed_by, reached)
            moves = progress.get(stage.timed_by, _NO_MOVES)
            stage.run(chunks, Step((), moves, batch, self.now_ms, ticked))
            # What nobody needs any more is let go while it is still in the processor's caches.
            for each in stage.spent:
                del chunks[each]
            now = self._monotonic()
            stage.done.busy_s += now - before
            before = now
        self._write(chunks, batch)
        self.states.trim()

    def _write_columns(
        self,
        topic: str,
        sinks: Sequence[SinkNode],
        chunks: Mapping[int, Rows],
        batch: MicroBatch,
    ) -> bool:
        """Write what the only sink of a topic with columns gets, as columns; False if it cannot."""
        rows = chunks.get(sinks[0].parent)
        if len(sinks) > 1 or rows is None or isinstance(rows, Chunk):
            return False
        from .frame_outputs import written  # noqa: PLC0415 - an extra

        pieces = written(rows, batch, self._stored[topic], self.outputs.partitions_of(topic))
        for partition, piece in pieces or ():
            self.outputs.add_columns(TopicPartition(topic, partition), piece)
        return pieces is not None

    def _write(self, chunks: Mapping[int, Rows], batch: MicroBatch) -> None:
        for topic, sinks in self._sinks.items():
            pieces = []
            if topic in self._stored and self._write_columns(topic, sinks, chunks, batch):
                continue
            alone = len(sinks) == 1 and self.outputs.partitions_of(topic) == 1
            for sink in sinks:
                above = self.plan.nodes[sink.parent]
                if isinstance(above, DeadLettersNode):
                    faults = self.sources[above.parent].faults
                    pieces.append(dead_letters(faults.messages, batch))
                else:
                    rows = chunks[sink.parent].as_chunk()
                    pieces.append(encode_rows(sink, rows, batch, alone=alone))
            self.outputs.add(topic, pieces, batch)
        for source in self.sources.values():
            source.faults.messages.clear()


def _ids(sources: Sequence[Sequence[Node]]) -> list[tuple[int, ...]]:
    return [tuple(each.id for each in some) for some in sources]


def _last_use(node: Node, readers: Sequence[Node]) -> int | None:
    """The last node that needs the rows of `node` in a step; None where they are written."""
    if isinstance(node, SinkNode | DeadLettersNode):
        return None  # without rows
    if any(isinstance(each, SinkNode) for each in readers):
        return None
    return max((each.id for each in readers), default=node.id)
