"""What committing ten times a second costs: the pipeline of P2 beside itself with one long epoch.

The limit has to write the same outputs and in the end the same state. It commits earlier than the
end only where the outputs kept in memory have become many, as the pipeline beside it does too.
"""

from __future__ import annotations

from pathlib import Path

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads.pipeline import copy_events, prepare, totals_job
from millstream.processor.runtime import run_over_store

EPOCH_MS = 100
LONG_MS = 24 * 3_600_000


def one_epoch(context: Context) -> Sample:
    """Commit at the end."""
    return _run(context, LONG_MS, overlap=True)


def at_once(context: Context) -> Sample:
    """Commit every 100 ms, and wait for each commit."""
    return _run(context, EPOCH_MS, overlap=False)


def pipeline(context: Context) -> Sample:
    """Commit every 100 ms beside the next epoch, as every run does."""
    return _run(context, EPOCH_MS, overlap=True)


def _run(context: Context, epoch_ms: int, *, overlap: bool) -> Sample:
    copy_events(context)
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            metrics = run_over_store(
                totals_job().plan, store, {"until": "end", "epoch_ms": epoch_ms}, overlap=overlap
            )
        assert metrics.records_in == context.records
    return {**watch.sample(context.records), "epochs": float(metrics.epochs)}


WORKLOAD = Workload(
    name="epochs",
    title="the same as P2, an epoch every 100 ms beside one at the end",
    durability="sync",
    contestants={"one epoch": one_epoch, "at once": at_once, "pipeline": pipeline},
    targets=(Target("pipeline", "rate", 0.91, "one epoch"),),
    prepare=prepare,
)
