"""Opening a store must not depend on how much is in it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

import millstream
from benchmarks.harness import Context, Sample, Target, Workload

VALUE_BYTES = 1 << 20
BATCH_RECORDS = 16
LARGE_BYTES = 10_000_000_000
SMALL_BYTES = 100_000_000
REPEATS = 5
DYING_RECORDS = 5_000
SEGMENTS_COUNT = 5_000
CHAIN_FILE = "topics/t/0/segments.chain"


def _large_bytes(context: Context) -> int:
    """10 GB, or less where the disk is small (the sample says how much)."""
    if context.quick:
        return 64 << 20
    return min(LARGE_BYTES, shutil.disk_usage(context.prepared).free // 2)


def prepare(context: Context) -> None:
    """Real segments, written by the store."""
    for name, size in (("large", _large_bytes(context)), ("small", SMALL_BYTES)):
        with millstream.open(Path(context.prepared, name), durability="os") as store:
            store.create_topic("t")
            values = [bytes([number]) * VALUE_BYTES for number in range(BATCH_RECORDS)]
            for _ in range(
                max(1, min(size, _large_bytes(context)) // VALUE_BYTES // BATCH_RECORDS)
            ):
                store.append_many("t", values)
            store.roll("t", 0)


def _open(context: Context, name: str) -> Sample:
    path = Path(context.prepared, name)
    opened: list[float] = []
    usable: list[float] = []
    for number in range(REPEATS):
        before = time.perf_counter()
        with millstream.open(path) as store:
            opened.append(time.perf_counter() - before)
            store.append("t", b"%d" % number, durability="os")
            last = list(store.read("t", start="-1"))
            usable.append(time.perf_counter() - before)
            assert last[0].value == b"%d" % number
            segments = store.segments("t", 0)
    return {
        "open_ms": statistics.median(opened) * 1000,
        "first_append_and_read_ms": statistics.median(usable) * 1000,
        "first_open_ms": opened[0] * 1000,
        "size_gb": sum(segment.size_bytes for segment in segments) / 1e9,
        "segments": float(len(segments)),
    }


def large(context: Context) -> Sample:
    """The store of 10 GB."""
    return _open(context, "large")


def small(context: Context) -> Sample:
    """The store of 100 MB, to show what size costs."""
    return _open(context, "small")


def _die(path: str) -> None:
    """In a process of its own: append durably, then die without closing anything."""
    store = millstream.open(path)
    for number in range(DYING_RECORDS):
        store.append("t", b"%0100d" % number, durability="os" if number % 100 else "sync")
    os._exit(0)


def killed(context: Context) -> Sample:
    """The store of 10 GB, each time after a writer died: the open recovers, first of all."""
    path = Path(context.prepared, "large")
    opened: list[float] = []
    for _ in range(1 if context.quick else REPEATS):
        writer = multiprocessing.get_context("spawn").Process(target=_die, args=(str(path),))
        writer.start()
        writer.join()
        before = time.perf_counter()
        with millstream.open(path) as store:
            last = list(store.read("t", start="-1"))
            opened.append(time.perf_counter() - before)
            assert last[0].value == b"%0100d" % (DYING_RECORDS - 1)
            store.roll("t", 0)  # the next run finds an empty active segment again
    return {
        "open_and_read_ms": statistics.median(opened) * 1000,
        "worst_ms": max(opened) * 1000,
    }


def prepare_many(context: Context) -> None:
    """A partition of many small segments."""
    count = min(SEGMENTS_COUNT, context.records)
    with millstream.open(context.prepared, durability="os") as store:
        store.create_topic("t")
        for number in range(count):
            store.append("t", b"%d" % number)
            store.roll("t", 0)


def _first_use(context: Context) -> Sample:
    """Until the end of the log is known, each time by a store opened anew."""
    used: list[float] = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        with millstream.open(context.prepared) as store:
            end = store.offsets("t")[0].end
            used.append(time.perf_counter() - before)
        assert end == min(SEGMENTS_COUNT, context.records)
    return {
        "rate": end / statistics.median(used),
        "first_use_ms": statistics.median(used) * 1000,
        "worst_ms": max(used) * 1000,
    }


def every_header(context: Context) -> Sample:
    """The limit: the header of every segment is read."""
    chain, aside = Path(context.prepared, CHAIN_FILE), Path(context.prepared, "aside")
    there = chain.exists()
    assert there or context.quick, "the store has not written the chain file"
    if there:
        chain.rename(aside)
    try:
        return _first_use(context)
    finally:
        if there:
            aside.rename(chain)


WORKLOAD = Workload(
    name="opening",
    title="open a store with 10 GB of sealed segments",
    durability="os",
    contestants={"100 MB": small, "10 GB": large, "10 GB, killed": killed},
    targets=(
        Target("10 GB", "first_open_ms", 100),
        Target("10 GB", "first_append_and_read_ms", 100),
    ),
    prepare=prepare,
)

SEGMENTS = Workload(
    name="segments",
    title="first use of a partition of 5,000 segments, segments per second",
    durability="nothing is written",
    contestants={"every header": every_header, "chain file": _first_use},
    targets=(Target("chain file", "rate", 2, "every header"),),
    prepare=prepare_many,
    records=SEGMENTS_COUNT,
)
