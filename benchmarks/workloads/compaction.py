"""C1 and C2: compact 256 MiB of values of 1 KiB that do not compress, half of them replaced.

C1 beside copying the same files: read and write in pieces of 1 MiB, synced at the end. C2 is what
it costs those who append meanwhile: 1 KiB records in calls of 100 while the background compacts,
beside the same calls with nothing to compact.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload

VALUE_BYTES = 1024
CALL_RECORDS = 1000
COPY_BYTES = 1 << 20
FOREGROUND_RECORDS = 100


def _fill(store: millstream.Store, context: Context, topic: str) -> int:
    """Values from a pool, random keys; the bytes that are in the log after it."""
    random = Random(context.seed)
    pool = random.randbytes(1 << 20)
    keys = max(context.records // 2, 1)
    for _ in range(0, context.records, CALL_RECORDS):
        starts = [random.randrange(len(pool) - VALUE_BYTES) for _ in range(CALL_RECORDS)]
        store.append_many(
            topic,
            [pool[start : start + VALUE_BYTES] for start in starts],
            [b"key-%010d" % random.randrange(keys) for _ in range(CALL_RECORDS)],
        )
    store.roll(topic, 0)
    store.sync()
    return sum(segment.size_bytes for segment in store.segments(topic, 0))


def copy(context: Context) -> Sample:
    """The limit: the same files, copied."""
    with millstream.open(context.directory, durability="os") as store:
        store.create_topic("t")
        size = _fill(store, context, "t")
    sources = sorted(Path(context.directory, "topics/t/0").glob("*.segment"))
    target = Path(context.directory, "copy")
    with Stopwatch() as watch:
        for source in sources:
            with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
                while chunk := read.read(COPY_BYTES):
                    write.write(chunk)
                os.fdatasync(write.fileno())
    return watch.sample(size)


def compact(context: Context) -> Sample:
    """Ours, by bytes read; about 43 percent of them are written again."""
    with millstream.open(context.directory, durability="os") as store:
        store.create_topic("t")
        size = _fill(store, context, "t")
        store.configure_topic("t", compact=True)
        with Stopwatch() as watch:
            (result,) = store.compact("t")
        assert result.removed_records > context.records // 3
    return watch.sample(size)


def _append_beside(context: Context, *, compacts: bool) -> Sample:
    with millstream.open(context.directory, durability="os") as store:
        store.create_topic("t")
        store.create_topic("foreground")
        _fill(store, context, "t")
        store.configure_topic("t", compact=True)
        engine = store._engine  # noqa: SLF001 - to begin now, not 15 s after an append
        if compacts:
            engine.compactions._look(engine.log("t", 0))  # noqa: SLF001
        values = [os.urandom(VALUE_BYTES)] * FOREGROUND_RECORDS
        keys = [b"key-%010d" % number for number in range(FOREGROUND_RECORDS)]
        records = 0
        deadline = time.perf_counter() + context.seconds
        with Stopwatch() as watch:
            while time.perf_counter() < deadline:
                store.append_many("foreground", values, keys)
                records += FOREGROUND_RECORDS
        running = engine.log("t", 0) in engine.compactions._running  # noqa: SLF001
        assert running == compacts or context.quick, "the compaction ended before the appends"
    return watch.sample(records)


def append_alone(context: Context) -> Sample:
    """The limit: nobody compacts."""
    return _append_beside(context, compacts=False)


def append_beside(context: Context) -> Sample:
    """Ours, with a compaction in the background all the time."""
    return _append_beside(context, compacts=True)


COMPACT = Workload(
    name="C1",
    title="compact 256 MiB of 1 KiB values that do not compress, half of them replaced",
    durability="synced at the end",
    contestants={"copy": copy, "compact": compact},
    targets=(Target("compact", "rate", 0.5, "copy"),),
    records=250_000,
)

BESIDE = Workload(
    name="C2",
    title="append 1 KiB records, 100 per call, while the background compacts",
    durability="os",
    contestants={"nothing to compact": append_alone, "compacting": append_beside},
    targets=(Target("compacting", "rate", 0.9, "nothing to compact"),),
    records=250_000,
)
