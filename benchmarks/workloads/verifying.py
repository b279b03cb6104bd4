"""`verify --deep`: every hash and every length of a log, beside reading the same files.

Batches of 1,000 records, as programs write them that collect a little; page caches are warm.
"""

from __future__ import annotations

from pathlib import Path

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload

CALL_RECORDS = 1_000
READ_BYTES = 1 << 18
REPEATS = 3
"""The log is looked at so often in one run."""


def prepare(context: Context) -> None:
    """The log, sealed."""
    keys, values = data.records(context.records, context.seed)
    with millstream.open(context.prepared, durability="os") as store:
        store.create_topic("t")
        for start in range(0, context.records, CALL_RECORDS):
            stop = start + CALL_RECORDS
            store.append_many("t", values[start:stop], keys[start:stop])
        store.roll("t", 0)


def _files(context: Context) -> list[Path]:
    return sorted(Path(context.prepared, "topics/t/0").glob("*.segment"))


def _rates(watch: Stopwatch, size: int) -> Sample:
    return {**watch.sample(REPEATS * size), "gb_per_s": REPEATS * size / watch.seconds / 1e9}


def read(context: Context) -> Sample:
    """The limit: the files are read, and nobody looks at the bytes."""
    files = _files(context)
    size = 0
    for path in files:
        size += len(path.read_bytes())  # into the page cache, if it is not there
    with Stopwatch() as watch:
        for path in files * REPEATS:
            with path.open("rb", buffering=0) as file:
                while file.read(READ_BYTES):
                    pass
    return _rates(watch, size)


def verify(context: Context) -> Sample:
    """Ours, the whole store with its catalog and indexes."""
    size = sum(len(path.read_bytes()) for path in _files(context))
    with millstream.open(context.prepared, read_only=True) as store:
        with Stopwatch() as watch:
            reports = [store.verify(deep=True) for _ in range(REPEATS)]
        assert all(report.ok and report.records == context.records for report in reports)
        assert reports[0].data_bytes > 0.9 * size - (1 << 16)
    return _rates(watch, size)


WORKLOAD = Workload(
    name="verify",
    title="verify --deep of 1,000,000 records in batches of 1,000",
    durability="nothing is written",
    contestants={"read the files": read, "verify --deep": verify},
    targets=(Target("verify --deep", "rate", 0.2, "read the files"),),
    prepare=prepare,
)
