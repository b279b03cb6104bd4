"""A plan turned into operators that run: one step takes a micro-batch through all of them.

The operators run one after the other in the order they were declared, each over all rows of the
step. Nothing here knows a store: rows come in as batches and leave in `outputs`, so the same
topology runs a pipeline and its test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .columns import Chunk, InputBatch, MicroBatch
from .operators import FilterOperator, FlatMapOperator, KeyByOperator, MapOperator, Operator
from .outputs import Outputs, dead_letters, encode_rows
from .plan import (
    AnyNode,
    ChildNode,
    DeadLettersNode,
    FilterNode,
    FlatMapNode,
    KeyByNode,
    LateNode,
    MapNode,
    Plan,
    SinkNode,
    SourceNode,
    WindowNode,
)
from .source import Faults, SourceStage
from .watermark import Progress, Watermark
from .windowing import WindowOperator

_NOTHING: Final = MicroBatch(())


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
        self.windows: dict[int, WindowOperator] = {}
        self._operators: dict[int, Operator] = {}
        self._sinks: dict[str, list[int]] = {topic: [] for topic in plan.output_topics()}
        self._source_of: list[int] = []
        self.row_count = 0
        given = watermarks or {}
        for node in plan.nodes:
            if isinstance(node, SourceNode):
                self._source_of.append(node.id)
                self._add_source(node, given.get(node.topic))
            else:
                self._source_of.append(self._source_of[node.parent])
                self._add(node)

    def _add_source(self, node: SourceNode, watermark: Watermark | None) -> None:
        keep = any(isinstance(child, DeadLettersNode) for child in self.plan.children(node.id))
        if watermark is None:
            watermark = Watermark(node.disorder_ms)
        watermark.disorder_ms = node.disorder_ms
        self.sources[node.id] = SourceStage(node, watermark, Faults(keep=keep))

    def _add(self, node: AnyNode) -> None:
        if isinstance(node, MapNode):
            self._operators[node.id] = MapOperator(node)
        elif isinstance(node, FilterNode):
            self._operators[node.id] = FilterOperator(node)
        elif isinstance(node, FlatMapNode):
            self._operators[node.id] = FlatMapOperator(node)
        elif isinstance(node, KeyByNode):
            derived = bool(self._emitting_windows(node))
            faults = None if derived else self.sources[self._source_of[node.id]].faults
            self._operators[node.id] = KeyByOperator(node, faults)
        elif isinstance(node, WindowNode):
            graces = [above.grace_ms for above in self._emitting_windows(node)]
            self.windows[node.id] = WindowOperator(node, sum(graces))
        elif isinstance(node, SinkNode):
            self._sinks[node.topic].append(node.id)

    def _emitting_windows(self, node: AnyNode) -> list[WindowNode]:
        """The windows whose results, not whose late rows, reach `node`."""
        windows = []
        below: AnyNode = node
        for above in self.plan.ancestors(node):
            if isinstance(above, WindowNode) and not isinstance(below, LateNode):
                windows.append(above)
            below = above
        return windows

    @property
    def late_count(self) -> int:
        """Rows that came too late for a window, so far."""
        return sum(window.late_count for window in self.windows.values())

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
        """Close every open window: the input has ended and no row will come.

        W rises just as far as the open windows need, so that rows after all are judged like any
        that come late. Windows that get rows from windows are closed in a second turn.
        """
        while any(window.required_level is not None for window in self.windows.values()):
            progress: dict[int, Progress] = {}
            for node_id, source in self.sources.items():
                before = source.watermark.level
                levels = [
                    window.required_level
                    for window_id, window in self.windows.items()
                    if self._source_of[window_id] == node_id and window.required_level is not None
                ]
                source.watermark.raise_to(max(levels, default=before))
                moved = source.watermark.level > before
                progress[node_id] = Progress(before, [0] * moved, [source.watermark.level] * moved)
            chunks = {node_id: Chunk(range(0), [], [], None) for node_id in self.sources}
            self._step(chunks, progress, _NOTHING)

    def _step(
        self, chunks: dict[int, Chunk], progress: Mapping[int, Progress], batch: MicroBatch
    ) -> None:
        for node in self.plan.nodes:
            if isinstance(node, WindowNode):
                results, late = self.windows[node.id].process(
                    chunks[node.parent], progress[self._source_of[node.id]], batch
                )
                chunks[node.id] = results
                for child in self.plan.children(node.id):
                    if isinstance(child, LateNode):
                        chunks[child.id] = late
            elif isinstance(node, ChildNode) and node.id in self._operators:
                chunks[node.id] = self._operators[node.id].process(chunks[node.parent], batch)
        self._write(chunks, batch)

    def _write(self, chunks: Mapping[int, Chunk], batch: MicroBatch) -> None:
        for topic, sink_ids in self._sinks.items():
            pieces = []
            for sink_id in sink_ids:
                node = self.plan.nodes[sink_id]
                assert isinstance(node, SinkNode)
                if isinstance(self.plan.nodes[node.parent], DeadLettersNode):
                    faults = self.sources[self._source_of[sink_id]].faults
                    pieces.append(dead_letters(faults.messages, batch))
                else:
                    pieces.append(encode_rows(node, chunks[node.parent], batch))
            self.outputs.add(topic, pieces, batch)
        for source in self.sources.values():
            source.faults.messages.clear()
