"""L1: append 1,000,000 records one at a time through the normal call, durable once at the end."""

from __future__ import annotations

import os
from pathlib import Path

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload


def plain_file(context: Context) -> Sample:
    """The limit: one buffered write per record, no index, no checksum, one fdatasync."""
    keys, values = data.records(context.records, context.seed)
    with Path(context.directory, "file").open("wb") as file, Stopwatch() as watch:
        write = file.write
        for key, value in zip(keys, values, strict=True):
            write(key + value)
        file.flush()
        os.fdatasync(file.fileno())
    return watch.sample(context.records)


def producer(context: Context) -> Sample:
    """Ours, doing the same durable work: acknowledged by the kernel, one sync at the end."""
    keys, values = data.records(context.records, context.seed)
    with millstream.open(context.directory) as store:
        store.create_topic("t")
        with Stopwatch() as watch:
            with store.producer(durability="os") as handle:
                send = handle.send
                for key, value in zip(keys, values, strict=True):
                    send("t", value, key=key)
            store.sync()
        assert store.offsets("t")[0].end == context.records
    return watch.sample(context.records)


def producer_synced(context: Context) -> Sample:
    """Ours as it comes: every batch durable before it is acknowledged."""
    keys, values = data.records(context.records, context.seed)
    with millstream.open(context.directory) as store:
        store.create_topic("t")
        with Stopwatch() as watch, store.producer() as handle:
            send = handle.send
            for key, value in zip(keys, values, strict=True):
                send("t", value, key=key)
        assert store.offsets("t")[0].end == context.records
    return watch.sample(context.records)


WORKLOAD = Workload(
    name="L1",
    title="append one at a time, durable at the end",
    durability="os, one sync at the end; synced: sync",
    contestants={
        "file.write": plain_file,
        "producer": producer,
        "producer synced": producer_synced,
    },
    targets=(Target("producer", "rate", 0.5, "file.write"),),
)
