"""Bytewax: P1 to P4 as its users would write them, on one worker.

Rows come in batches of 10,000, and all at once for windows, which is best for them: every
activation looks at all live keys. Its watermark takes the system's time in, so a slow run has late
rows where a fast one has none; they are counted. What it recovers from is its own store of states.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Context, Sample, Stopwatch
from benchmarks.workloads.mapping import convert
from benchmarks.workloads.parsed import read_events
from benchmarks.workloads.pipeline import Event

STEP = 10_000


def _values(context: Context) -> list[bytes]:
    return Path(context.prepared, "events.jsonl").read_bytes().split(b"\n")


def _run(
    items: Iterable[object], batch: int, build: Callable[[Any], list[Any]], **options: Any
) -> tuple[Stopwatch, list[list[Any]]]:
    """Run a flow from a list into lists, one per stream that `build` makes."""
    import bytewax.operators as op  # noqa: PLC0415 - optional
    from bytewax.dataflow import Dataflow  # noqa: PLC0415
    from bytewax.testing import TestingSink, TestingSource, run_main  # noqa: PLC0415

    flow = Dataflow("flow")
    outputs: list[list[Any]] = []
    for number, stream in enumerate(build(op.input("in", flow, TestingSource(items, batch)))):
        outputs.append([])
        op.output(f"out{number}", stream, TestingSink(outputs[-1]))
    gc.collect()
    with Stopwatch() as watch:
        run_main(flow, **options)
    return watch, outputs


def mapping(context: Context) -> Sample:
    """P1: decode, filter, map."""
    import bytewax.operators as op  # noqa: PLC0415 - optional

    decode = msgspec.json.Decoder(Event).decode

    def build(lines: Any) -> list[Any]:
        events = op.map("decode", lines, decode)
        return [op.map("map", op.filter("filter", events, lambda one: one.amount > 50), convert)]

    watch, (rows,) = _run(_values(context), STEP, build)
    return {**watch.sample(context.records), "kept": float(len(rows))}


def _add(held: tuple[int, float], event: Event) -> tuple[int, float]:
    return held[0] + 1, held[1] + event.amount


def _windows(events: Any) -> list[Any]:
    import bytewax.operators as op  # noqa: PLC0415 - optional
    from bytewax.operators import windowing  # noqa: PLC0415

    windows = windowing.fold_window(
        "fold",
        op.key_on("key", events, lambda event: event.user),
        windowing.EventClock(
            ts_getter=lambda event: datetime.fromtimestamp(event.ts / 1000, UTC),
            wait_for_system_duration=timedelta(seconds=10),
        ),
        windowing.TumblingWindower(
            length=timedelta(minutes=1), align_to=datetime(2023, 1, 1, tzinfo=UTC)
        ),
        builder=lambda: (0, 0.0),
        folder=_add,
        merger=lambda one, two: (one[0] + two[0], one[1] + two[1]),
    )
    return [windows.down, windows.late]


def _windowed(context: Context, watch: Stopwatch, outputs: list[list[Any]]) -> Sample:
    rows, late = outputs
    assert sum(count for _, (_, (count, _)) in rows) + len(late) == context.records
    return {
        **watch.sample(context.records),
        "windows": float(len(rows)),
        "late": float(len(late)),
    }


def counting_windows(context: Context) -> Sample:
    """P2: decode, tumbling windows."""
    import bytewax.operators as op  # noqa: PLC0415 - optional

    decode = msgspec.json.Decoder(Event).decode
    values = _values(context)
    result = _run(values, len(values), lambda lines: _windows(op.map("decode", lines, decode)))
    return _windowed(context, *result)


def parsed_windows(context: Context) -> Sample:
    """P3: tumbling windows of objects."""
    events = read_events(context)
    return _windowed(context, *_run(events, len(events), _windows))


def counting(context: Context) -> Sample:
    """P4: a count per user, recoverable, an epoch a second."""
    import bytewax.operators as op  # noqa: PLC0415 - optional
    from bytewax.recovery import RecoveryConfig, init_db_dir  # noqa: PLC0415

    decode = msgspec.json.Decoder(Event).decode
    states = Path(context.directory, "recovery")
    states.mkdir()
    init_db_dir(states, 1)

    def count(held: int | None, _event: Event) -> tuple[int, int]:
        number = (held or 0) + 1
        return number, number

    def build(lines: Any) -> list[Any]:
        keyed = op.key_on("key", op.map("decode", lines, decode), lambda event: event.user)
        return [op.stateful_map("count", keyed, count)]

    watch, (updates,) = _run(
        _values(context),
        STEP,
        build,
        epoch_interval=timedelta(seconds=1),
        recovery_config=RecoveryConfig(str(states)),
    )
    assert len(updates) == context.records
    return watch.sample(context.records)
