"""Write the golden stores of the formats this code writes.

    export PYTHONPATH=tests/support
    python tests/compat/write_golden.py tests/compat/golden/v1
    python tests/compat/write_golden.py tests/compat/golden/v1-rewritten
    python tests/compat/write_golden.py tests/compat/golden/v1-columns
    python tests/compat/write_golden.py tests/compat/golden/v1-column-bounds
    python tests/compat/write_golden.py tests/compat/golden/v1-column-tombstones
    python tests/compat/write_golden.py tests/compat/golden/v1-typed-state

Run once per format, never again: what a released version wrote is what the tests read for ever.
Beside each is a JSON file with what it must say (`test_golden.content`). Derived files (tail words,
locks, bells) are left out.
"""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
from typed_state import write_typed_state

import millstream
from millstream.testing import ManualClock

DERIVED = ("tail", "append.lock", "open.lock", "locks", "wake")


def write_golden(directory: Path) -> None:
    clock = ManualClock(1_357_000_000_000)
    with millstream.open(directory, clock=clock) as store:
        for compression in ("none", "lz4", "zstd"):
            store.create_topic(compression, compression=compression, segment_bytes="4KiB")
            for batch in range(6):
                clock.advance(1000)
                numbers = range(batch * 20, batch * 20 + 20)
                store.append_many(
                    compression,
                    [
                        None if n % 7 == 0 else b'{"n": %d, "pad": "%s"}' % (n, b"x" * 40)
                        for n in numbers
                    ],
                    [None if n % 5 == 0 else b"key-%d" % (n % 3) for n in numbers],
                    [1_356_000_000_000 + n * 10 - n % 4 for n in numbers] if batch % 2 else None,
                    headers=[[("n", b"%d" % n), ("none", None)] if n % 2 else () for n in numbers]
                    if batch == 3
                    else None,
                )
            store.append(compression, b"", key=b"")
            store.append(compression, None)
        store.create_topic("partitioned", partitions=3)
        store.append_many(
            "partitioned", [b"%d" % n for n in range(30)], [b"k%d" % n for n in range(30)]
        )
        store.create_topic("transactions")
        with store.transaction() as transaction:
            transaction.append("transactions", b"committed")
            transaction.put_checkpoint("golden", b"checkpoint")
            transaction.commit_offsets("readers", {millstream.TopicPartition("none", 0): 17})
        with store.transaction() as transaction:
            transaction.append("transactions", b"aborted")
            transaction.abort()
        store.append("transactions", b"after")
        store.create_topic("trimmed", segment_bytes="4KiB")
        for n in range(20):
            store.append("trimmed", b"%d" % n * 200)
        store.trim("trimmed", {0: 12})
    _remove_derived(directory)


def write_rewritten(directory: Path) -> None:
    """Segments that compaction wrote: copied, cut and emptied batches, gaps, tombstones, aborts."""
    clock = ManualClock(1_357_000_000_000)
    with millstream.open(directory, clock=clock) as store:
        for compression in ("none", "lz4", "zstd"):
            store.create_topic(
                compression, compression=compression, compact=True, segment_bytes="4KiB"
            )
            for number in range(3):
                _keyed(store, compression, number)
                clock.advance(1000)
            with store.transaction() as transaction:
                transaction.append(compression, b"aborted", key=b"key-0")
                transaction.abort()
            with store.transaction() as transaction:
                transaction.append(compression, b"committed", key=b"key-1")
                transaction.put_checkpoint("golden", b"checkpoint")
                transaction.commit_offsets("readers", {millstream.TopicPartition("none", 0): 17})
            store.compact(compression)
            clock.advance(3_600_000)
            _keyed(store, compression, 3)
            store.compact(compression)
            store.append(compression, b"active", key=b"key-2")
        store.trim("zstd", {0: 30})
        # The tables of the first schema: only the segments are new.
        store._engine.catalog.database.query("DROP TABLE compactions")
        store._engine.catalog.database.query("PRAGMA user_version = 1")
    _remove_derived(directory)


class Bid(msgspec.Struct):
    auction: int
    price: float
    ts: datetime
    channel: str | None = None
    tags: list[str] | None = None


def write_columns(directory: Path) -> None:
    """Batches of columns: plain, with dictionaries, compacted; JSON rows under a schema."""
    clock = ManualClock(1_357_000_000_000)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    with millstream.open(directory, clock=clock) as store:
        for compression in ("none", "lz4", "zstd"):
            store.create_topic(
                compression, schema=Bid, key="auction", time="ts", compression=compression
            )
            rows = range(1100 if compression == "lz4" else 90)  # many: with dictionaries
            store.append_columns(
                compression,
                {
                    "auction": [n % 50 for n in rows],
                    "price": [n / 4 for n in rows],
                    "ts": [start + timedelta(milliseconds=n) for n in rows],
                    "channel": [None if n % 9 == 0 else f"channel-{n % 7}" for n in rows],
                },
            )
            clock.advance(1000)
            store.append(
                compression,
                b'{"auction":7,"price":-0.5,"ts":"2013-01-01T00:00:09Z","tags":["a",""]}',
                headers=[("n", b"1")],
            )
        store.configure_topic("none", compact=True)
        store.roll("none", 0)
        store.compact("none")
        store.create_topic("json", schema=Bid, values="json")
        store.append("json", b'{"price":1,"auction":2,"ts":"2013-01-01T00:00:00Z"}', key=b"k")
        with store.transaction() as transaction:
            transaction.put_checkpoint("golden", b"checkpoint")
            transaction.commit_offsets("readers", {millstream.TopicPartition("none", 0): 17})
    _remove_derived(directory)


def write_column_bounds(directory: Path) -> None:
    """Batches whose directory has bounds of texts, bytes and large unsigned integers."""
    schema = pa.schema([("text", pa.string()), ("code", pa.binary()), ("count", pa.uint64())])
    clock = ManualClock(1_357_000_000_000)
    with millstream.open(directory, clock=clock) as store:
        for compression in ("none", "lz4", "zstd"):
            store.create_topic(compression, schema=schema, compression=compression)
            rows = range(300)
            store.append_columns(
                compression,
                {
                    "text": [None if n % 9 == 0 else "\u00e9" * 40 + str(n % 7) for n in rows],
                    "code": [bytes([255 - n % 3]) * (n % 80) for n in rows],
                    "count": [(1 << 63) + n % 5 for n in rows],
                },
            )
        with store.transaction() as transaction:
            transaction.put_checkpoint("golden", b"checkpoint")
            transaction.commit_offsets("readers", {millstream.TopicPartition("none", 0): 17})
    _remove_derived(directory)


def write_column_tombstones(directory: Path) -> None:
    """Tombstones among columns: with and without keys and times, and merged by compaction."""
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False), ("text", pa.string())])
    clock = ManualClock(1_357_000_000_000)
    with millstream.open(directory, clock=clock) as store:
        for compression in ("none", "lz4", "zstd"):
            store.create_topic(compression, schema=schema, compression=compression)
            rows = [
                None if n % 7 == 0 else b'{"n":%d,"text":"t%d"}' % (n, n % 3) for n in range(60)
            ]
            keys = [b"key-%d" % (n % 13) for n in range(60)]
            store.append_many(compression, rows, keys, [1_356_000_000_000 + n for n in range(60)])
            store.append_many(compression, rows[:9])
            store.append(compression, None, key=b"key-1")
            clock.advance(1000)
            if compression == "lz4":
                continue
            store.trim(compression, {0: 69})  # what has no key
            store.configure_topic(compression, compact=True)
            for n in range(30):
                store.append(compression, rows[n], key=keys[n])
            store.roll(compression, 0)
            store.compact(compression)
        with store.transaction() as transaction:
            transaction.put_checkpoint("golden", b"checkpoint")
            transaction.commit_offsets("readers", {millstream.TopicPartition("none", 0): 17})
    _remove_derived(directory)


def write_typed(directory: Path) -> None:
    """State of a pipeline that holds values of declared types, in windows and without."""
    with millstream.open(directory, clock=ManualClock(1_357_000_000_000)) as store:
        write_typed_state(store)
        with store.transaction() as transaction:
            transaction.put_checkpoint("golden", b"checkpoint")
            transaction.commit_offsets("readers", {millstream.TopicPartition("in", 0): 3})
    _remove_derived(directory)


def _keyed(store: millstream.Store, topic: str, batch: int) -> None:
    numbers = range(batch * 20, batch * 20 + 20)
    store.append_many(
        topic,
        [None if n % 7 == 0 else b'{"n": %d, "pad": "%s"}' % (n, b"x" * 90) for n in numbers],
        [b"key-%d" % (n % 23) for n in numbers],
        [1_356_000_000_000 + n * 10 - n % 4 for n in numbers] if batch % 2 else None,
        headers=[[("n", b"%d" % n), ("none", None)] if n % 2 else () for n in numbers]
        if batch == 1
        else None,
    )
    for n in range(5):
        store.append(topic, b"%d" % n * 100, key=b"own-%d" % (n + batch))


def _remove_derived(directory: Path) -> None:
    for name in DERIVED:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    writers = {
        "v1": write_golden,
        "v1-rewritten": write_rewritten,
        "v1-columns": write_columns,
        "v1-column-bounds": write_column_bounds,
        "v1-column-tombstones": write_column_tombstones,
        "v1-typed-state": write_typed,
    }
    writers[target.name](target)
