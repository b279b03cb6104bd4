"""columns: append tables to a column topic, and read one column of ten.

The limit of the appends is an Arrow IPC file of the same table with the same compression, which
has no checksums, no bounds and no log around it. Two appends look for the bounds of every text, to
show what that costs. A scan of one column is held against one of all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import millstream
from benchmarks import arrow as pa
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload

ROWS_PER_BATCH = 1 << 17
GOES = 5


def table(context: Context) -> Any:
    """Ten columns: numbers that compress and that do not, times, flags, and texts few and many."""
    rng, count = random.Random(context.seed), context.records
    kinds = ("click", "view", "purchase", "refund", "signup")
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "user": pa.array([rng.randrange(10_000) for _ in range(count)], pa.int64()),
            "price": pa.array([rng.random() * 100 for _ in range(count)], pa.float64()),
            "quantity": pa.array([rng.randrange(50) for _ in range(count)], pa.int32()),
            "kind": pa.array(rng.choices(kinds, k=count), pa.string()),
            "url": pa.array([f"https://example.org/{rng.randrange(10**6)}" for _ in range(count)]),
            "at": pa.array(range(1_700_000_000_000, 1_700_000_000_000 + count), pa.timestamp("ms")),
            "good": pa.array([rng.random() < 0.5 for _ in range(count)], pa.bool_()),
            "score": pa.array([rng.random() for _ in range(count)], pa.float64()),
            "note": pa.array([f"note {rng.randrange(10**9)}" for _ in range(count)]),
        }
    )


def prepare(context: Context) -> None:
    """The table as a file to load, and as a topic to scan."""
    rows = table(context)
    with pa.ipc.new_file(str(Path(context.prepared, "rows.arrow")), rows.schema) as writer:
        writer.write_table(rows, ROWS_PER_BATCH)
    with millstream.open(Path(context.prepared, "store"), durability="os") as store:
        store.create_topic("t", schema=rows.schema)
        store.append_arrow("t", rows)


def _load(context: Context) -> Any:
    with pa.OSFile(str(Path(context.prepared, "rows.arrow"))) as file:
        return pa.ipc.open_file(file).read_all().combine_chunks()


def _best(write: Callable[[int], Sample]) -> Sample:
    """The best of several goes at what takes a tenth of a second, of each figure by itself."""
    samples = [write(number) for number in range(GOES)]
    most = {name: max(each[name] for each in samples) for name in samples[0]}
    return {**most, "wall_s": min(each["wall_s"] for each in samples)}


def _file(context: Context, compression: str | None) -> Sample:
    rows, options = _load(context), pa.ipc.IpcWriteOptions(compression=compression)

    def write(number: int) -> Sample:
        path = str(Path(context.directory, f"{number}.arrow"))
        with Stopwatch() as watch, pa.ipc.new_file(path, rows.schema, options=options) as writer:
            writer.write_table(rows, ROWS_PER_BATCH)
        return watch.sample(context.records)

    return _best(write)


def _append(context: Context, compression: str) -> Sample:
    rows = _load(context)
    with millstream.open(Path(context.directory, "store"), durability="os") as store:

        def write(number: int) -> Sample:
            topic = f"t{number}"
            store.create_topic(topic, schema=rows.schema, compression=compression)
            # The first append of a process imports what it needs, and the first to a topic syncs
            # its new directories, which is no part of an append; the file syncs nothing.
            store.append_arrow(topic, rows.slice(0, 1))
            with Stopwatch() as watch:
                done = store.append_arrow(topic, rows)
            assert sum(each.record_count for each in done) == context.records
            return watch.sample(context.records)

        return _best(write)


def file_plain(context: Context) -> Sample:
    """The limit, without compression."""
    return _file(context, None)


def append_plain(context: Context) -> Sample:
    """Ours, without compression."""
    return _append(context, "none")


def file_lz4(context: Context) -> Sample:
    """The limit with lz4, on all processors."""
    return _file(context, "lz4")


def append_lz4(context: Context) -> Sample:
    """Ours with lz4."""
    return _append(context, "lz4")


def file_zstd(context: Context) -> Sample:
    """The limit with zstd, on all processors."""
    return _file(context, "zstd")


def append_zstd(context: Context) -> Sample:
    """Ours with zstd."""
    return _append(context, "zstd")


def append_bounded(context: Context) -> Sample:
    """Ours with lz4, as if all texts rose or fell: bounds of each are looked for."""
    with mock.patch("millstream.arrow_columns._has_trend", return_value=True):
        return _append(context, "lz4")


def append_bounded_plain(context: Context) -> Sample:
    """The same without compression."""
    with mock.patch("millstream.arrow_columns._has_trend", return_value=True):
        return _append(context, "none")


def _scan(context: Context, columns: list[str] | None) -> Sample:
    store = millstream.open(Path(context.prepared, "store"), read_only=True)
    with store:
        next(store.read("t", columns=columns).batches()).arrow(columns)
        with Stopwatch() as watch:
            count = sum(
                batch.arrow(columns).num_rows
                for batch in store.read("t", columns=columns).batches()
            )
    assert count == context.records
    return watch.sample(count)


def scan_all(context: Context) -> Sample:
    """All ten columns as Arrow."""
    return _scan(context, None)


def scan_one(context: Context) -> Sample:
    """One column of the ten."""
    return _scan(context, ["price"])


WORKLOAD = Workload(
    name="columns",
    title="append Arrow tables of ten columns, scan one of them",
    durability="os",
    contestants={
        "file": file_plain,
        "append": append_plain,
        "append bounded": append_bounded_plain,
        "file lz4": file_lz4,
        "append lz4": append_lz4,
        "append lz4 bounded": append_bounded,
        "file zstd": file_zstd,
        "append zstd": append_zstd,
        "scan all": scan_all,
        "scan one": scan_one,
    },
    targets=(
        Target("append", "rate", 0.8, "file"),
        Target("append lz4", "rate", 0.8, "file lz4"),
        Target("append zstd", "rate", 0.8, "file zstd"),
        Target("scan one", "rate", 5.0, "scan all"),
    ),
    prepare=prepare,
    records=500_000,
)
