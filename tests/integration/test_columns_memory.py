"""A topic of columns larger than the memory there is: worked through, scanned, asked by SQL.

A child process gets little more address space than it has after its imports. To show that this is
less than the topic takes, it first tries to read all of it at once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import millstream

ROWS = 8_000_000
ROWS_PER_APPEND = 1_000_000
MORE_BYTES = 80 << 20

EVERY = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("total", pa.float64(), nullable=False),
        pa.field("different", pa.int64(), nullable=False),
    ]
)
"""What is written for every row of some users."""

CHILD = """
import resource, sys
import msgspec, numpy, pyarrow, pyarrow.compute
import duckdb
import millstream
from millstream import sql
from millstream.processor import Pipeline, agg, col, hopping, session, tumbling

class Event(msgspec.Struct):
    user: int
    amount: float
    ts: int

class Known(msgspec.Struct):
    rate: float

def used_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

pyarrow.set_cpu_count(1)
pyarrow.set_memory_pool(pyarrow.system_memory_pool())
job = Pipeline("totals")
source = job.source("events", type=Event, time="ts").filter(col("amount") >= 0)
source.key_by("user").window(tumbling("1s")).agg(n=agg.count()).to("totals")
every = Pipeline("every")
events = every.source("events", type=Event, time="ts")
some = events.filter(col("user") == 0).merge(events.filter(col("user") == 1)).key_by("user")
seconds = agg.distinct(col("ts") // 1000)
some.agg(n=agg.count(), total=agg.sum("amount"), different=seconds).to("every")
kept = Pipeline("kept")
keyed = kept.source("events", type=Event, time="ts").key_by("user")
keyed.window(tumbling("1s")).agg(n=agg.distinct("amount"), top=agg.top_k(3, "amount")).to("kept")
joined = Pipeline("joined")
known = joined.table("known", type=Known, key_type=int)
one = joined.source("events", type=Event, time="ts").filter(col("user") == 1)
seen = one.dedup("ts", within="1s")
left, right = col("left"), col("right")
users = seen.key_by("user")
for name, pairs in (
    ("now", users.join_table(known)),
    ("then", users.join_asof(known.updates())),
):
    chosen = pairs.select(user=left.field("user"), worth=left.field("amount") * right.field("rate"))
    keyed = chosen.key_by("user")
    keyed.window(session("1m"), name=name).agg(n=agg.count(), most=agg.max("worth")).to(name)
seen.key_by("user").window(hopping("4s", "2s"), name="twice").agg(n=agg.count()).to("twice")
with millstream.open(sys.argv[1]) as store:
    with sql.query(store, "select 1") as found:
        list(found.rows())
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes() + int(sys.argv[2]),) * 2)
    try:
        store.read("events").arrow().read_all()
    except (MemoryError, pyarrow.ArrowMemoryError):
        print("too large")
    if sys.argv[3] == "windows":
        rows = sum(batch.arrow(["user"]).num_rows for batch in store.read("events").batches())
        print(rows)
        job.run(store, until="end", on_end="flush")
        counts = (msgspec.json.decode(each.value)["n"] for each in store.read("totals"))
        print(sum(counts))
        with sql.query(store, "select count(*), max(ts) from events") as found:
            print(list(found.rows()))
    elif sys.argv[3] == "joins":
        joined.run(store, until="end", on_end="flush")
        for topic in ("now", "then", "twice"):
            print(sum(msgspec.json.decode(each.value)["n"] for each in store.read(topic)))
    else:
        every.run(store, until="end")
        print(sum(batch.record_count for batch in store.read("every").batches()))
        kept.run(store, until="end", on_end="flush")
        print(sum(msgspec.json.decode(each.value)["n"] for each in store.read("kept")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_topic_may_be_larger_than_memory(tmp_path: Path) -> None:
    schema = pa.schema([("user", pa.int64()), ("amount", pa.float64()), ("ts", pa.int64())])
    schema = pa.schema([field.with_nullable(False) for field in schema])
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("events", schema=schema)
        store.create_topic("every", schema=EVERY)
        store.create_topic("known")
        for user, time in ((0, 0), (1, 0), (9, ROWS)):  # the last one ends the wait for others
            store.append("known", b'{"rate": 0.5}', key=b"%d" % user, timestamp_ms=time)
        for start in range(0, ROWS, ROWS_PER_APPEND):
            numbers = np.arange(start, start + ROWS_PER_APPEND)
            columns = {"user": numbers % 7, "amount": numbers / 8, "ts": numbers // 100}
            store.append_columns("events", columns)

    assert ["too large", str(ROWS), str(ROWS), f"[({ROWS}, {(ROWS - 1) // 100})]"] == _work(
        tmp_path, "windows"
    )
    every = sum(len(range(user, ROWS, 7)) for user in (0, 1))
    assert ["too large", str(every), str(ROWS)] == _work(tmp_path, "every row")
    different = ROWS // 100
    once, twice = str(different), str(2 * different)
    assert ["too large", once, once, twice] == _work(tmp_path, "joins")


def _work(directory: Path, part: str) -> list[str]:
    """What a child says that does this part; one each, as stacks of threads count as used, too."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, directory / "store", str(MORE_BYTES), part],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ("", 0) == (done.stderr, done.returncode)
    return done.stdout.splitlines()
