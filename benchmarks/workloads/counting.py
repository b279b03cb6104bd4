"""P4, a table: a running count per user, every update of it written durably, exactly once.

The limit is the loop one would write by hand, in memory and without anything to recover: a dict of
counts, and a list with what each event made of its count.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event, copy_events, prepare
from millstream.processor import Pipeline


def plain_loop(context: Context) -> Sample:
    """The loop by hand."""
    values = Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")
    decode = msgspec.json.Decoder(Event).decode
    counts: dict[str, int] = {}
    updates: list[tuple[str, int]] = []
    with Stopwatch() as watch:
        for value in values:
            user = decode(value).user
            counts[user] = count = counts.get(user, 0) + 1
            updates.append((user, count))
    assert sum(counts.values()) == context.records
    return watch.sample(context.records)


def pipeline(context: Context) -> Sample:
    """Ours, from a copy of the store, so that each round starts fresh."""
    job = Pipeline("counts")
    job.source("events", type=Event, time="ts").key_by("user").count().to("counts")
    copy_events(context)
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            metrics = job.run(store, until="end")
        latest = {record.key: int(record.value or b"") for record in store.read("counts")}
    assert sum(latest.values()) == metrics.records_out == context.records
    return {**watch.sample(context.records), "epochs": float(metrics.epochs)}


WORKLOAD = Workload(
    name="P4",
    title="running count per user, every update durable, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"plain loop": plain_loop, "pipeline": pipeline},
    targets=(
        Target("pipeline", "rate", 0.25, "plain loop"),
        Target("pipeline", "rss_peak_mb", 150),
    ),
    prepare=prepare,
)
