"""P1, rows one by one: JSON events, half of them kept, each made into another row.

The limit is the loop one would write by hand, from a list of values into a list of rows. The
pipeline reads a topic, writes a topic as JSON, and commits durable epochs. So there is a second
loop, which comes nearer to that: it reads lines of a file, writes lines of JSON into another, and
syncs that once, at the end. It has no checksum, no event time and nothing to go on from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event, copy_events, prepare
from millstream.processor import Pipeline

FILE_LOOP_ROWS = 1_000


def convert(event: Event) -> dict[str, Any]:
    """What becomes of an event."""
    return {"user": event.user, "cents": round(event.amount * 100), "ts": event.ts}


def plain_loop(context: Context) -> Sample:
    """The loop by hand."""
    values = Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")
    decode = msgspec.json.Decoder(Event).decode
    rows = []
    with Stopwatch() as watch:
        for value in values:
            event = decode(value)
            if event.amount > 50:
                rows.append(convert(event))
    return {**watch.sample(context.records), "kept": float(len(rows))}


def file_loop(context: Context) -> Sample:
    """The loop by hand from a file into a file, a chunk of rows at a time."""
    decode = msgspec.json.Decoder(Event).decode
    encode_lines = msgspec.json.Encoder().encode_lines
    rows: list[dict[str, Any]] = []
    kept = 0
    with (
        Stopwatch() as watch,
        Path(context.prepared, "events.jsonl").open("rb") as lines,
        Path(context.directory, "large.jsonl").open("wb") as large,
    ):
        for line in lines:
            event = decode(line)
            if event.amount > 50:
                rows.append(convert(event))
                if len(rows) == FILE_LOOP_ROWS:
                    kept += len(rows)
                    large.write(encode_lines(rows))
                    rows.clear()
        kept += len(rows)
        large.write(encode_lines(rows))
        large.flush()
        os.fdatasync(large.fileno())
    return {**watch.sample(context.records), "kept": float(kept)}


def pipeline(context: Context) -> Sample:
    """Ours, from a copy of the store, so that each round starts fresh."""
    job = Pipeline("large")
    events = job.source("events", type=Event, time="ts")
    events.filter(lambda event: event.amount > 50).map(convert).to("large")
    copy_events(context)
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            metrics = job.run(store, until="end")
        assert metrics.records_out == store.offsets("large")[0].end
    return {**watch.sample(context.records), "kept": float(metrics.records_out)}


WORKLOAD = Workload(
    name="P1",
    title="filter and map of JSON events, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"plain loop": plain_loop, "file to file": file_loop, "pipeline": pipeline},
    targets=(Target("pipeline", "rate", 0.7, "plain loop"),),
    prepare=prepare,
)
