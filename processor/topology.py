"""A plan turned into operators that run: one step takes a micro-batch through all of them.

The operators run one after the other in the order they were declared, each over all rows of the
step. Nothing here knows a store: rows come in as batches and leave in `outputs`, so the same
topology runs a pipeline and its test. Which operator runs which kind of node is said in
`_STATELESS` and `_STATEFUL`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .columns import Chunk, InputBatch, MicroBatch
from .nodes import (
    LATE,
    BranchNode,
    DeadLettersNode,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    MapBatchNode,
    MapNode,
    MergeNode,
    Node,
    PeekNode,
    PortNode,
    SinkNode,
    SourceNode,
    StatefulNode,
    WindowNode,
)
from .operators import (
    BranchOperator,
    FilterOperator,
    FlatMapOperator,
    KeyByOperator,
    MapBatchOperator,
    MapOperator,
    MergeOperator,
    Operator,
    PeekOperator,
)
from .outputs import Outputs, dead_letters, encode_rows
from .plan import Plan
from .source import Faults, Rejects, RoutedFaults, SourceStage
from .stateful import MAIN, StatefulOperator, Step
from .watermark import Progress, Watermark, least
from .windowing import WindowOperator

_NOTHING: Final = MicroBatch(())

# A factory takes the node and what its operator needs of the rest of the topology.
_STATELESS: Final[Mapping[type[Node], Callable[[Any, Topology], Operator]]] = {
    MapNode: lambda node, topology: MapOperator(node, topology.rejects(node)),
    MapBatchNode: lambda node, _: MapBatchOperator(node),
    PeekNode: lambda node, _: PeekOperator(node),
    FilterNode: lambda node, topology: FilterOperator(node, topology.rejects(node)),
    FlatMapNode: lambda node, topology: FlatMapOperator(node, topology.rejects(node)),
    KeyByNode: lambda node, topology: KeyByOperator(node, topology.rejects(node)),
    BranchNode: lambda node, _: BranchOperator(node),
    MergeNode: lambda node, _: MergeOperator(node, keyed=node.keyed),
}
_STATEFUL: Final[Mapping[type[Node], Callable[[Any, int], StatefulOperator]]] = {
    WindowNode: WindowOperator,
}


class Topology:
    """The running form of a plan. Not thread-safe.

    Args:
        plan: What to run.
        watermarks: W of each source by topic, from a checkpoint; fresh where missing.
        partitions: Number of partitions of each output topic.
    """

    def __init__(
        self,
        plan: Plan,
        watermarks: Mapping[str, Watermark] | None = None,
        partitions: Mapping[str, int] | None = None,
    ) -> None:
        plan.check()
        self.plan = plan
        self.outputs = Outputs(partitions)
        self.sources: dict[int, SourceStage] = {}
        self.stateful: dict[int, StatefulOperator] = {}
        self._operators: dict[int, Operator] = {}
        self._sinks: dict[str, list[SinkNode]] = {topic: [] for topic in plan.output_topics()}
        self._sources_of: list[tuple[int, ...]] = []
        """Ids of the sources above each node."""
        self._delay_ms: list[int] = []
        """How far behind the W of its sources the rows of each node may lie."""
        self.row_count = 0
        for node in plan.nodes:
            above = tuple(source.id for source in plan.sources_of(node))
            self._sources_of.append(above)
            delay_ms = max((self._delay_ms[each] for each in node.inputs), default=0)
            self._add(node, delay_ms, (watermarks or {}))
            self._delay_ms.append(delay_ms + self._own_delay_ms(node))

    def _add(self, node: Node, delay_ms: int, watermarks: Mapping[str, Watermark]) -> None:
        kind = type(node)
        if isinstance(node, SourceNode):
            self._add_source(node, watermarks.get(node.topic))
        elif kind in _STATELESS:
            self._operators[node.id] = _STATELESS[kind](node, self)
        elif kind in _STATEFUL:
            self.stateful[node.id] = _STATEFUL[kind](node, delay_ms)
        elif isinstance(node, SinkNode):
            self._sinks[node.topic].append(node)

    def _own_delay_ms(self, node: Node) -> int:
        """What `node` adds to the delay of its rows."""
        if isinstance(node, StatefulNode):
            return node.delay_ms
        if isinstance(node, PortNode) and node.port == LATE:
            # Late rows are not held back: they are as they came.
            above = self.plan.nodes[node.parent]
            return -above.delay_ms if isinstance(above, StatefulNode) else 0
        return 0

    def _add_source(self, node: SourceNode, watermark: Watermark | None) -> None:
        wanted = any(isinstance(child, DeadLettersNode) for child in self.plan.children(node.id))
        if watermark is None:
            watermark = Watermark(node.disorder_ms)
        watermark.disorder_ms = node.disorder_ms
        self.sources[node.id] = SourceStage(node, watermark, Faults(keep=wanted))

    def rejects(self, node: Node) -> Rejects | None:
        """Where `node` puts rows it cannot process; None where they are not input records."""
        if self._is_derived(node):
            return None
        stages = [self.sources[each] for each in self._sources_of[node.id]]
        if len(stages) == 1:
            return stages[0].faults
        return RoutedFaults({stage.node.topic: stage.faults for stage in stages})

    def _is_derived(self, node: Node) -> bool:
        """Whether results of an operator with state, not just its late rows, reach `node`."""
        if isinstance(node, PortNode) and node.port == LATE:
            return any(map(self._is_derived, self._read_by(self.plan.nodes[node.parent])))
        return any(
            isinstance(above, StatefulNode) or self._is_derived(above)
            for above in self._read_by(node)
        )

    def _read_by(self, node: Node) -> list[Node]:
        return [self.plan.nodes[each] for each in node.inputs]

    @property
    def late_count(self) -> int:
        """Rows that came too late for an operator, so far."""
        return sum(operator.late_count for operator in self.stateful.values())

    @property
    def dead_letter_count(self) -> int:
        """Records rejected, so far."""
        return sum(source.faults.count for source in self.sources.values())

    @property
    def level(self) -> int:
        """W of the whole pipeline: the least of its sources."""
        return min(source.watermark.level for source in self.sources.values())

    def process(self, batches: Sequence[InputBatch]) -> None:
        """Take a micro-batch through all operators; what they write is in `outputs`.

        Raises:
            RecordError: A record or row cannot be processed. The topology must not be used
                again: some operators have seen the step and some have not.
        """
        batch = MicroBatch(batches)
        self.row_count += batch.row_count
        chunks: dict[int, Chunk] = {}
        progress: dict[int, Progress] = {}
        for source in self.sources.values():
            chunks[source.node.id], progress[source.node.id] = source.process(batch)
        self._step(chunks, progress, batch)

    def flush(self) -> None:
        """End everything that waits for time: the input has ended and no row will come.

        W rises just as far as that needs, so that rows after all are judged like any that come
        late. What gets rows from what ended is ended in another turn.
        """
        while waiting := {
            node_id: operator.required_level + operator.delay_ms
            for node_id, operator in self.stateful.items()
            if operator.required_level is not None
        }:
            progress: dict[int, Progress] = {}
            for node_id, source in self.sources.items():
                before = source.watermark.level
                wanted = [
                    level for each, level in waiting.items() if node_id in self._sources_of[each]
                ]
                source.watermark.raise_to(max(wanted, default=before))
                moved = source.watermark.level > before
                progress[node_id] = Progress(before, [0] * moved, [source.watermark.level] * moved)
            chunks = {node_id: Chunk(range(0), [], [], None) for node_id in self.sources}
            self._step(chunks, progress, _NOTHING)

    def _step(
        self, chunks: dict[int, Chunk], progress: Mapping[int, Progress], batch: MicroBatch
    ) -> None:
        """Take the rows of the sources through everything else."""
        reached: dict[tuple[int, ...], Progress] = {}
        ports: dict[int, Mapping[str, Chunk]] = {}
        for node in self.plan.nodes:
            inputs = [chunks[each] for each in node.inputs if each in chunks]
            if node.id in self._operators:
                ports[node.id] = self._operators[node.id].process(inputs, batch)
            elif node.id in self.stateful:
                above = self._sources_of[node.id]
                if above not in reached:
                    reached[above] = least([progress[each] for each in above])
                step = Step(inputs, reached[above], batch)
                ports[node.id] = self.stateful[node.id].process(step)
            elif isinstance(node, PortNode):
                chunks[node.id] = ports[node.parent][node.port]
            if node.id in ports:
                chunks[node.id] = ports[node.id][MAIN]
        self._write(chunks, batch)

    def _write(self, chunks: Mapping[int, Chunk], batch: MicroBatch) -> None:
        for topic, sinks in self._sinks.items():
            pieces = []
            for sink in sinks:
                above = self.plan.nodes[sink.parent]
                if isinstance(above, DeadLettersNode):
                    faults = self.sources[above.parent].faults
                    pieces.append(dead_letters(faults.messages, batch))
                else:
                    pieces.append(encode_rows(sink, chunks[sink.parent], batch))
            self.outputs.add(topic, pieces, batch)
        for source in self.sources.values():
            source.faults.messages.clear()
