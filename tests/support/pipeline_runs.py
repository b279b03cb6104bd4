"""Runs of a plan over lists, cut into steps and killed in between: what must change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from millstream import CacheDatabase, Record, SystemClock
from millstream.processor import Pipeline
from millstream.processor.checkpoint import (
    Checkpoint,
    decode_checkpoint,
    encode_checkpoint,
    source_state,
)
from millstream.processor.keyed_state import States
from millstream.processor.spilled_states import SpilledStates
from millstream.processor.state import decode_entry
from millstream.processor.testkit import as_batches
from millstream.processor.topology import Topology


class Run:
    """A topology with the state an epoch would have written, and everything it put out.

    Args:
        pipeline: To be run.
        cache_bytes: How much memory its state may take where it spills; by default none.
    """

    def __init__(self, pipeline: Pipeline, *, cache_bytes: int = 500) -> None:
        self.plan = pipeline.plan
        self._cache_bytes = cache_bytes
        self.spills = self.plan.holding.spills
        self.topology = Topology(self.plan, states=self.states())
        self.state: dict[str, list[tuple[bytes, bytes | None]]] = {}
        self.out: dict[str, list[Record]] = {topic: [] for topic in self.plan.output_topics()}
        self._kept = self._checkpoint()

    def states(self) -> States:
        """Where state is held, at first as the pipeline says."""
        if not self.spills:
            return States()
        return SpilledStates(CacheDatabase("", clock=SystemClock()), self._cache_bytes)

    def commit(self, *, sweep: bool = False) -> None:
        """Keep outputs and state, as the commit of an epoch does."""
        for place, batch in self.topology.outputs.batches():
            self.out[place.topic] += [Record(*place, 0, *row) for row in batch.rows()]
        self.topology.outputs.clear()
        self.topology.states.changing()
        for operator in self.topology.stateful.values():
            records = self.state.setdefault(operator.name, [])
            records += zip(*operator.changes(), strict=True)
            if sweep:
                # A whole sweep at once makes all that was written before superfluous.
                records.clear()
                for piece in operator.sweep():
                    records += zip(*piece, strict=True)
        self.topology.states.committed({})
        self._kept = self._checkpoint()

    def _checkpoint(self) -> bytes:
        topology = self.topology
        sources = {each.node.topic: source_state(each) for each in topology.sources.values()}
        return encode_checkpoint(
            Checkpoint(1, [], sources, {}, {}, topology.shared, topology.now_ms)
        )

    def crash(self) -> None:
        """Forget everything that no commit kept, and start again from what one did."""
        resumed = decode_checkpoint(self._kept).resumed()
        self.topology.states.__exit__(InterruptedError, None, None)
        self.topology = Topology(self.plan, resumed, states=self.states())
        for operator in self.topology.stateful.values():
            records = self.state.get(operator.name, [])
            with self.topology.states.restoring(operator.name, None, whole=False):
                operator.restore(decode_entry(key, value) for key, value in records)


def run_in_pieces(
    pipeline: Pipeline,
    inputs: Mapping[str, Iterable[object]],
    *,
    batch_records: int | None = None,
    crash_every: int = 0,
    flush: bool = True,
) -> dict[str, list[Record]]:
    """Every output record, by topic, of a run in steps that crashes after every so many of them."""
    run = Run(pipeline)
    for number, batches in enumerate(as_batches(inputs, batch_records), 1):
        run.topology.process(batches)
        run.commit(sweep=number % 3 == 0)
        if crash_every and number % crash_every == 0:
            run.crash()
    if flush:
        run.topology.flush()
    run.commit()
    return run.out
