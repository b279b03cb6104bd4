"""A stage: one node of a running pipeline, with all that each step asks of it settled before.

What operators do is theirs; which stages there are and in which order they run is said in
topology.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .columns import Rows
from .join_keys import KeyWatch
from .operators import Operator
from .stateful import MAIN, StatefulOperator, Step


@dataclass(slots=True)
class OperatorMetrics:
    """What one operator has done since its pipeline was started."""

    label: str
    records_in: int = 0
    records_out: int = 0
    busy_s: float = 0.0
    """Seconds spent in it."""
    late: int = 0
    """Rows it refused as too late."""
    skipped: int = 0
    """Rows that nothing came of: duplicates, and those in gaps between windows."""
    state_records: int = 0
    """About how many things it keeps."""
    watermark_ms: int | None = None
    """W of its input, UTC ms; None before the first row."""
    watermark_lag_ms: int | None = None
    """How far that is behind the newest event time of its sources: their disorder, and what the
    slowest of them and of their partitions is behind the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A node and its operator; one without, such as a source, only counts."""

    node: int
    """Id of the node."""
    inputs: Sequence[int]
    """Ids of those whose rows it takes."""
    operator: Operator | None
    stateful: StatefulOperator | None
    as_lists: bool
    """Whether the operator takes no columns."""
    ports: Sequence[tuple[int, str]]
    """Nodes that stand for other outputs of the operator."""
    timed_by: tuple[int, ...]
    """Ids of the sources whose W is that of the node."""
    spent: Sequence[int]
    """Ids of those whose rows nobody needs after this stage."""
    done: OperatorMetrics
    watch: KeyWatch | None
    """Of a join: looks at the keys of its inputs."""

    def run(self, chunks: dict[int, Rows], step: Step) -> None:
        """Take the rows of the inputs from `chunks`, and put there what becomes of them.

        Args:
            chunks: Rows by node.
            step: What the step is about; its rows do not matter.

        Raises:
            RecordError: A user function raised, or a row cannot be processed.
        """
        done = self.done
        if self.node in chunks:
            # Of a source, which counts what it reads, or of another output of an operator.
            count = chunks[self.node].row_count
            done.records_in += count if self.inputs else 0
            done.records_out += count
            return
        # Behind dead letters there are no rows.
        inputs = [chunks[each] for each in self.inputs if each in chunks]
        for each in inputs:
            done.records_in += each.row_count
        if self.watch is not None:
            self.watch.see(inputs)
        if self.operator is not None or self.stateful is not None:
            if self.as_lists:
                inputs = [each.as_chunk() for each in inputs]
            if self.operator is not None:
                made = self.operator.process(inputs, step.batch)
            else:
                assert self.stateful is not None
                made = self.stateful.process(step._replace(chunks=inputs))
            chunks[self.node] = made[MAIN]
            for node, port in self.ports:
                chunks[node] = made[port]
            done.records_out += chunks[self.node].row_count
