"""L2: append 1,000,000 records in calls of 10,000, durable once at the end."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload

CALL_RECORDS = 10_000


def _calls(context: Context) -> list[tuple[list[bytes], list[bytes]]]:
    keys, values = data.records(context.records, context.seed)
    return [
        (keys[start : start + CALL_RECORDS], values[start : start + CALL_RECORDS])
        for start in range(0, len(keys), CALL_RECORDS)
    ]


def plain_file(context: Context) -> Sample:
    """The limit: keys and values joined in order, one write per call, one fdatasync."""
    calls = _calls(context)
    path = Path(context.directory, "file")
    with path.open("wb", buffering=0) as file, Stopwatch() as watch:
        for keys, values in calls:
            file.write(b"".join(chain.from_iterable(zip(keys, values, strict=True))))
        os.fdatasync(file.fileno())
    return watch.sample(context.records)


def append_many(context: Context) -> Sample:
    """Ours, doing the same durable work."""
    calls = _calls(context)
    with millstream.open(context.directory, durability="os") as store:
        store.create_topic("t")
        with Stopwatch() as watch:
            for keys, values in calls:
                store.append_many("t", values, keys)
            store.sync()
        assert store.offsets("t")[0].end == context.records
    return watch.sample(context.records)


WORKLOAD = Workload(
    name="L2",
    title="append_many, 10,000 per call, durable at the end",
    durability="os, one sync at the end",
    contestants={"join + write": plain_file, "append_many": append_many},
    targets=(Target("append_many", "rate", 0.55, "join + write"),),
)
