"""L3: read 1,000,000 records back as Python objects, from a warm page cache."""

from __future__ import annotations

from pathlib import Path

import apsw

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload


def prepare(context: Context) -> None:
    """The same records as a topic, as a table and as a file."""
    keys, values = data.records(context.records, context.seed)
    with millstream.open(Path(context.prepared, "store"), durability="os") as store:
        store.create_topic("t")
        for start in range(0, len(keys), 10_000):
            store.append_many("t", values[start : start + 10_000], keys[start : start + 10_000])
    table = apsw.Connection(str(Path(context.prepared, "table.db")))
    table.pragma("journal_mode", "wal")
    table.execute("create table t(id integer primary key, key blob, value blob)")
    with table:
        table.executemany("insert into t(key, value) values(?, ?)", zip(keys, values, strict=True))
    table.close()


def apsw_blobs(context: Context) -> Sample:
    """The peer to match: a table of blobs, read as (key, value) tuples."""
    table = apsw.Connection(str(Path(context.prepared, "table.db")))
    count = 0
    with Stopwatch() as watch:
        for _row in table.execute("select key, value from t order by id"):
            count += 1
    table.close()
    assert count == context.records
    return watch.sample(count)


def records(context: Context) -> Sample:
    """Ours: whole records (topic, partition, offset, time, key, value, headers), verified."""
    count = 0
    store = millstream.open(Path(context.prepared, "store"), read_only=True)
    with store, Stopwatch() as watch:
        for _record in store.read("t"):
            count += 1
    assert count == context.records
    return watch.sample(count)


def columns(context: Context) -> Sample:
    """Ours by batches: keys and values as lists, as the processor reads."""
    count = 0
    store = millstream.open(Path(context.prepared, "store"), read_only=True)
    with store, Stopwatch() as watch:
        for batch in store.read("t").batches():
            count += len(batch.values)
            assert len(batch.keys) == len(batch.values)
    assert count == context.records
    return watch.sample(count)


WORKLOAD = Workload(
    name="L3",
    title="read back as Python objects",
    durability="none (reading)",
    contestants={"apsw": apsw_blobs, "records": records, "columns": columns},
    targets=(Target("records", "rate", 1.0, "apsw"),),
    prepare=prepare,
)
