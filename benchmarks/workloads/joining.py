"""Interval join: two topics of JSON events, pairs of one user at most 10 seconds apart.

The limit is the loop one would write by hand, in memory: rows of both sides per user, matched with
those of the other that are near enough, dropped when event time has passed them. The pipeline reads
both topics, keeps what waits in its state, writes the pairs and commits durable epochs.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import msgspec

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event
from millstream.processor import Pipeline

WITHIN_MS = 10_000
BATCH = 1_000
TOPICS = ("left", "right")


def prepare(context: Context) -> None:
    """The events as two topics, for ours, and as lines with the side in front, for the loop."""
    events = data.events(context.records, context.seed)
    lines = []
    with millstream.open(Path(context.prepared, "store"), durability="os") as store:
        for topic in TOPICS:
            store.create_topic(topic)
        for number, start in enumerate(range(0, len(events), BATCH)):
            batch = events[start : start + BATCH]
            store.append_many(TOPICS[number % 2], batch)
            lines += [b"%d%s" % (number % 2, event) for event in batch]
    Path(context.prepared, "events.txt").write_bytes(b"\n".join(lines))


def plain_loop(context: Context) -> Sample:
    """The loop by hand. Results are tuples in a list."""
    lines = Path(context.prepared, "events.txt").read_bytes().split(b"\n")
    with Stopwatch() as watch:
        pairs = _join(lines)
    return {**watch.sample(context.records), "pairs": float(len(pairs))}


def _join(lines: list[bytes]) -> list[tuple[float, float, int]]:
    pairs: list[tuple[float, float, int]] = []
    decode = msgspec.json.Decoder(Event).decode
    held: tuple[dict[str, deque[Event]], ...] = ({}, {})
    newest = [-(1 << 62), -(1 << 62)]
    hold_ms = WITHIN_MS + data.DISORDER_MS
    for line in lines:
        side = line[0] - 48
        event = decode(line[1:])
        user, ts = event.user, event.ts
        newest[side] = max(newest[side], ts)
        oldest = min(newest) - hold_ms
        others = held[1 - side].get(user)
        if others is not None:
            while others and others[0].ts < oldest:
                others.popleft()
            for other in others:
                if -WITHIN_MS <= other.ts - ts <= WITHIN_MS:
                    left, right = (event, other) if side == 0 else (other, event)
                    pairs.append((left.amount, right.amount, max(ts, other.ts)))
        mine = held[side].get(user)
        if mine is None:
            held[side][user] = deque((event,))
        else:
            mine.append(event)
    return pairs


def pipeline(context: Context) -> Sample:
    """Ours, from a copy of the store, so that each round starts fresh."""
    job = Pipeline("pairs")
    left, right = (
        job.source(topic, type=Event, time="ts", disorder=data.DISORDER_MS).key_by(_user)
        for topic in TOPICS
    )
    left.join(right, within=WITHIN_MS, into=lambda one, two: [one.amount, two.amount]).to("pairs")
    with (
        millstream.open(Path(context.prepared, "store"), read_only=True) as before,
        millstream.open(Path(context.directory, "store"), durability="os") as after,
    ):
        for topic in TOPICS:
            after.create_topic(topic)
        streams = [before.read(topic).batches() for topic in TOPICS]
        for number in range(-(-context.records // BATCH)):
            topic = TOPICS[number % 2]
            after.append_many(topic, next(streams[number % 2]).values)
    with millstream.open(Path(context.directory, "store")) as store, Stopwatch() as watch:
        metrics = job.run(store, until="end")
    return {
        **watch.sample(context.records),
        "pairs": float(metrics.records_out),
        "late": float(metrics.late),
    }


def _user(event: Event) -> str:
    return event.user


WORKLOAD = Workload(
    name="join",
    title="pairs of a user's events at most 10 s apart, of two topics, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"plain loop": plain_loop, "pipeline": pipeline},
    targets=(
        Target("pipeline", "rate", 0.2, "plain loop"),
        Target("pipeline", "rss_peak_mb", 150),
    ),
    prepare=prepare,
)
