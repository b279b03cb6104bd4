"""Spill: what state that spills to disk costs, beside the same pipeline with its state in memory.

The limit of each pipeline is itself: the same events, plan and results, with its state in memory.
Few keys fit into the cache together, so that spilling costs little more than to write the file; of
many keys the cache holds some, and each step has to read. Timers are many in either case: one for
each row, ten minutes ahead. The start of a run counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import Event
from millstream.processor import (
    Context as Call,
    KeyedStream,
    Pipeline,
    Timer,
    agg,
    session,
    tumbling,
)

FEW_KEYS = 2_000
CACHE = "8MiB"
LATER_MS = 600_000
"""How far ahead of its row a timer is, and how long a visit is waited for."""

Held = Literal["memory", "sqlite"]


def _windows(events: KeyedStream[str, Event]) -> None:
    windows = events.window(tumbling("30m"))
    windows.agg(n=agg.count(), total=agg.sum("amount")).to("results")


def _sessions(events: KeyedStream[str, Event]) -> None:
    visits = events.window(session(LATER_MS))
    visits.agg(n=agg.count(), total=agg.sum("amount")).to("results")


def _count(events: KeyedStream[str, Event]) -> None:
    events.count().to("results")


def _dedup(events: KeyedStream[str, Event]) -> None:
    events.dedup(on="user", within="30m").to("results")


def _timers(events: KeyedStream[str, Event]) -> None:
    events.process(_set_timer, state=int, on_timer=_tell).to("results")


def _set_timer(call: Call[str, int], event: Event) -> None:
    call.state += 1
    call.set_timer(event.ts + LATER_MS)


def _tell(call: Call[str, int], _timer: Timer) -> Iterable[int]:
    yield call.state


OPERATORS: dict[str, Callable[[KeyedStream[str, Event]], None]] = {
    "windows": _windows,
    "sessions": _sessions,
    "count": _count,
    "dedup": _dedup,
    "timers": _timers,
}


def _keys(context: Context, spread: str) -> int:
    return min(FEW_KEYS, context.records) if spread == "few" else context.records


def prepare(context: Context) -> None:
    """Events of one hour, up to 10 s out of order, of few keys and of many, in files of lines."""
    for spread in ("few", "many"):
        choose = Random(context.seed).randrange
        keys, step = _keys(context, spread), data.HOUR_MS / context.records
        lines = [
            b'{"user":"u%d","amount":%d.%02d,"ts":%d}'
            % (
                choose(keys),
                choose(100),
                choose(100),
                data.START_MS + int(index * step) + choose(data.DISORDER_MS),
            )
            for index in range(context.records)
        ]
        Path(context.prepared, f"{spread}.jsonl").write_bytes(b"\n".join(lines))


def _run(context: Context, operator: str, spread: str, held: Held) -> Sample:
    """One pipeline over its events, all of what it waits for ended."""
    options: dict[str, Any] = {} if held == "memory" else {"state_cache_bytes": CACHE}
    job = Pipeline("spill", state=held, **options)
    events = job.source("events", type=Event, time="ts", disorder=data.DISORDER_MS)
    OPERATORS[operator](events.key_by("user"))
    lines = Path(context.prepared, f"{spread}.jsonl").read_bytes().split(b"\n")
    with millstream.open(Path(context.directory, "store")) as store:
        store.create_topic("events")
        for start in range(0, len(lines), 10_000):
            store.append_many("events", lines[start : start + 10_000])
        del lines
        with Stopwatch() as watch:
            metrics = job.run(store, until="end", on_end="flush")
    return {**watch.sample(context.records), "results": float(metrics.records_out)}


def _name(operator: str, spread: str, held: Held) -> str:
    return f"{operator} {spread} {held}"


WORKLOAD = Workload(
    name="spill",
    title=f"state that spills, a cache of {CACHE}, few keys and many, beside state in memory",
    durability="sync, an epoch every 100 ms",
    contestants={
        _name(operator, spread, held): partial(_run, operator=operator, spread=spread, held=held)
        for operator in OPERATORS
        for spread in ("few", "many")
        for held in ("memory", "sqlite")
    },
    targets=[
        Target(
            _name(operator, spread, "sqlite"),
            "rate_per_cpu_s",
            bound,
            _name(operator, spread, "memory"),
        )
        for operator in OPERATORS
        for spread, bound in (("few", 0.67), ("many", 0.33))
    ],
    prepare=prepare,
    records=60_000,
)
