"""P2, the first pipeline: JSON events to count and sum per user and minute, exactly once.

The limit is the loop one would write by hand: the same watermark and windows, in memory, from a
list of values, with the same JSON library, and nothing durable. The pipeline reads the topic, keeps
its state in the log and commits durable epochs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from millstream.processor import Pipeline, agg, tumbling

MINUTE_MS = 60_000


class Event(msgspec.Struct):
    """One event."""

    user: str
    amount: float
    ts: int


def prepare(context: Context) -> None:
    """The events as a topic, for ours, and as lines, for the loop."""
    events = data.events(context.records, context.seed)
    with millstream.open(Path(context.prepared, "store"), durability="os") as store:
        store.create_topic("events")
        for start in range(0, len(events), 10_000):
            store.append_many("events", events[start : start + 10_000])
    Path(context.prepared, "events.jsonl").write_bytes(b"\n".join(events))


def plain_loop(context: Context) -> Sample:
    """The loop by hand. Results are tuples in a list."""
    values = Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")
    decode = msgspec.json.Decoder(Event).decode
    with Stopwatch() as watch:
        results = count_and_sum(map(decode, values))
    assert sum(row[3] for row in results) == context.records
    return {**watch.sample(context.records), "windows": float(len(results))}


def count_and_sum(events: Iterable[Event]) -> list[tuple[str, int, int, int, float]]:
    """Count and sum per user and minute; windows close by the watermark."""
    results: list[tuple[str, int, int, int, float]] = []
    windows: dict[int, dict[str, list[float]]] = {}
    watermark = newest = -(1 << 62)
    closing = 1 << 62
    for event in events:
        ts = event.ts
        end = ts - ts % MINUTE_MS + MINUTE_MS
        if end > watermark:
            window = windows.get(end)
            if window is None:
                window = windows[end] = {}
                closing = min(windows)
            cell = window.get(event.user)
            if cell is None:
                window[event.user] = [1, event.amount]
            else:
                cell[0] += 1
                cell[1] += event.amount
        if ts > newest:
            newest = ts
            watermark = ts - data.DISORDER_MS
            if watermark >= closing:
                for due in sorted(end for end in windows if end <= watermark):
                    _close(due, windows.pop(due), results)
                closing = min(windows, default=1 << 62)
    for due in sorted(windows):
        _close(due, windows[due], results)
    return results


def _close(
    end: int, window: dict[str, list[float]], results: list[tuple[str, int, int, int, float]]
) -> None:
    for user in sorted(window):
        count, total = window[user]
        results.append((user, end - MINUTE_MS, end, int(count), total))


def totals_job() -> Pipeline:
    """The same as a pipeline."""
    job = Pipeline("totals")
    events = job.source("events", type=Event, time="ts", disorder=data.DISORDER_MS)
    totals = (
        events.key_by("user").window(tumbling("1m")).agg(n=agg.count(), total=agg.sum("amount"))
    )
    totals.to("totals")
    return job


def pipeline(context: Context) -> Sample:
    """Ours, from a copy of the store, so that each round starts fresh."""
    job = totals_job()
    copy_events(context)
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            job.run(store, until="end")
        windows = counted = 0
        for record in store.read("totals"):
            assert record.value is not None
            windows += 1
            counted += json.loads(record.value)["n"]
    sample = watch.sample(context.records)
    # The last windows stay open, for what may still come.
    assert 0.9 * context.records <= counted <= context.records or context.quick
    return {**sample, "windows": float(windows), "counted": float(counted)}


def copy_events(context: Context) -> None:
    """A fresh store with the same events, because files of a store know which they are."""
    with (
        millstream.open(Path(context.prepared, "store"), read_only=True) as before,
        millstream.open(Path(context.directory, "store"), durability="os") as after,
    ):
        after.create_topic("events")
        for batch in before.read("events").batches():
            after.append_many("events", batch.values)


WORKLOAD = Workload(
    name="P2",
    title="count and sum per user and minute from JSON, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"plain loop": plain_loop, "pipeline": pipeline},
    targets=(
        Target("pipeline", "rate", 0.5, "plain loop"),
        Target("pipeline", "rss_peak_mb", 150),
    ),
    prepare=prepare,
)
