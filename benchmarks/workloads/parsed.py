"""P3: the windows of P2 from events that are objects already: what the operators alone cost.

The limit is the loop of P2 over a list of events. Ours is the topology of the pipeline, fed by hand
in steps as large as those of a run: event time, grouping, windows, and results as JSON, but no log,
no state kept and no epochs, which the loop does not have either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event, count_and_sum, prepare, totals_job
from millstream import Headers
from millstream.processor.source import SourceStage
from millstream.processor.topology import Topology


@dataclass
class ParsedBatch:
    """Events as a batch of a log would hold them, but that they are no bytes."""

    values: Sequence[Event]
    topic: str = "events"
    partition: int = 0
    append_timestamp_ms: int | None = None

    def __post_init__(self) -> None:
        self.record_count = len(self.values)
        self.joined_values: tuple[bytes, Sequence[int]] | None = None
        self.offsets: Sequence[int] = range(self.record_count)
        self.timestamps_ms: Sequence[int] = [0] * self.record_count
        self.keys: Sequence[bytes | None] = [None] * self.record_count
        self.has_keys = False
        self.headers: Sequence[Headers] = [()] * self.record_count


class ParsedStage(SourceStage):
    """A source whose values need no decoding."""

    def __init__(self, stage: SourceStage) -> None:
        super().__init__(stage.node, stage.watermark, stage.faults)
        self._decode = None  # type: ignore[assignment]

    def _convert(self, column, function, *others):  # type: ignore[no-untyped-def]
        """What is decoded already is left as it is."""
        return column if function is None else super()._convert(column, function, *others)


def read_events(context: Context) -> list[Event]:
    """The events, decoded."""
    values = Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")
    return list(map(msgspec.json.Decoder(Event).decode, values))


def plain_loop(context: Context) -> Sample:
    """The loop by hand."""
    events = read_events(context)
    with Stopwatch() as watch:
        results = count_and_sum(events)
    assert sum(row[3] for row in results) == context.records
    return {**watch.sample(context.records), "windows": float(len(results))}


def pipeline(context: Context) -> Sample:
    """Ours."""
    events = read_events(context)
    topology = Topology(totals_job().plan)
    ((node_id, stage),) = topology.sources.items()
    topology.sources[node_id] = ParsedStage(stage)
    with Stopwatch() as watch:
        step = topology.step_records
        for start in range(0, len(events), step):
            topology.process([ParsedBatch(events[start : start + step])])
        topology.flush()
    (batches,) = topology.outputs.records.values()
    counts = [msgspec.json.decode(value)["n"] for batch in batches for value in batch.values]
    assert sum(counts) == context.records
    return {**watch.sample(context.records), "windows": float(len(counts))}


WORKLOAD = Workload(
    name="P3",
    title="count and sum per user and minute from objects, operators alone",
    durability="none, in memory",
    contestants={"plain loop": plain_loop, "pipeline": pipeline},
    targets=(Target("pipeline", "rate", 0.5, "plain loop"),),
    prepare=prepare,
)
