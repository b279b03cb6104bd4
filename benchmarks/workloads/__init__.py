"""The named workloads, in the order of the report."""

from __future__ import annotations

from benchmarks.harness import Workload
from benchmarks.workloads import (
    bulk,
    columns,
    compaction,
    counting,
    durable,
    epochs,
    following,
    joining,
    mapping,
    nexmark,
    opening,
    parsed,
    pipeline,
    queue,
    reading,
    restoring,
    single,
    transacting,
    verifying,
    visiting,
)

WORKLOADS: tuple[Workload, ...] = (
    single.WORKLOAD,
    bulk.WORKLOAD,
    reading.WORKLOAD,
    durable.SINGLES,
    durable.GROUPS,
    durable.THREADS,
    opening.WORKLOAD,
    opening.SEGMENTS,
    following.WORKLOAD,
    queue.WORKLOAD,
    transacting.WORKLOAD,
    verifying.WORKLOAD,
    columns.WORKLOAD,
    compaction.COMPACT,
    compaction.BESIDE,
    mapping.WORKLOAD,
    pipeline.WORKLOAD,
    epochs.WORKLOAD,
    parsed.WORKLOAD,
    counting.WORKLOAD,
    restoring.WORKLOAD,
    visiting.WORKLOAD,
    joining.WORKLOAD,
    nexmark.WORKLOAD,
)
