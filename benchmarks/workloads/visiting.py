"""Sessions: JSON events to count and sum per user and visit, which ends after a quiet minute.

The limit is the loop one would write by hand: the same sessions, rows out of order and merges
included, closed by the same watermark, in memory. The pipeline reads the topic, keeps its state in
the log and commits durable epochs.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event, copy_events, prepare
from millstream.processor import Pipeline, agg, session

GAP_MS = 60_000
Visit = list[float]
"""First and last time, number of events, sum."""


def plain_loop(context: Context) -> Sample:
    """The loop by hand. Results are tuples in a list."""
    values = Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")
    decode = msgspec.json.Decoder(Event).decode
    with Stopwatch() as watch:
        results, visits = _visits(map(decode, values))
    counted = sum(row[3] for row in results)
    assert counted + sum(one[2] for mine in visits.values() for one in mine) == context.records
    return {**watch.sample(context.records), "sessions": float(len(results)), "counted": counted}


def _visits(
    events: Iterable[Event],
) -> tuple[list[tuple[str, float, float, float, float]], dict[str, list[Visit]]]:
    results: list[tuple[str, float, float, float, float]] = []
    visits: dict[str, list[Visit]] = {}
    queue: list[tuple[float, str]] = []
    newest = -(1 << 62)
    for event in events:
        ts, user = event.ts, event.user
        mine = visits.get(user)
        if mine is None:
            visits[user] = [[ts, ts, 1, event.amount]]
            heapq.heappush(queue, (ts + GAP_MS, user))
        else:
            visit = mine[-1]
            if visit[0] <= ts < visit[1] + GAP_MS:
                if ts > visit[1]:  # noqa: PLR1730 - max() is slower
                    visit[1] = ts
                visit[2] += 1
                visit[3] += event.amount
            else:
                _place(mine, [ts, ts, 1, event.amount])
        if ts > newest:
            newest = ts
            if queue and queue[0][0] <= ts - data.DISORDER_MS:
                _close(ts - data.DISORDER_MS, queue, visits, results)
    return results, visits


def _place(mine: list[Visit], new: Visit) -> None:
    """Put an event beside the visits of its user, or make one of it and those it touches."""
    near = [one for one in mine if one[0] - GAP_MS < new[0] < one[1] + GAP_MS]
    for one in near:
        mine.remove(one)
        new = [min(one[0], new[0]), max(one[1], new[1]), one[2] + new[2], one[3] + new[3]]
    mine.append(new)
    mine.sort()


def _close(
    watermark: int,
    queue: list[tuple[float, str]],
    visits: dict[str, list[Visit]],
    results: list[tuple[str, float, float, float, float]],
) -> None:
    while queue and queue[0][0] <= watermark:
        _, user = heapq.heappop(queue)
        mine = visits[user]
        while mine and mine[0][1] + GAP_MS <= watermark:
            first, last, count, total = mine.pop(0)
            results.append((user, first, last + GAP_MS, count, total))
        if mine:
            heapq.heappush(queue, (mine[0][1] + GAP_MS, user))
        else:
            del visits[user]


def visits() -> Pipeline:
    """The pipeline."""
    job = Pipeline("visits")
    events = job.source("events", type=Event, time="ts", disorder=data.DISORDER_MS)
    found = events.key_by("user").window(session(GAP_MS))
    found.agg(n=agg.count(), total=agg.sum("amount")).to("visits")
    return job


def pipeline(context: Context) -> Sample:
    """Ours, from a copy of the store, so that each round starts fresh."""
    job = visits()
    copy_events(context)
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            metrics = job.run(store, until="end")
        counted = sum(json.loads(record.value or b"")["n"] for record in store.read("visits"))
    return {
        **watch.sample(context.records),
        "sessions": float(metrics.records_out),
        "counted": float(counted),
    }


WORKLOAD = Workload(
    name="sessions",
    title="count and sum per user and visit from JSON, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"plain loop": plain_loop, "pipeline": pipeline},
    targets=(
        Target("pipeline", "rate", 0.2, "plain loop"),
        Target("pipeline", "rss_peak_mb", 150),
    ),
    prepare=prepare,
)
