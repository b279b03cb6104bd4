"""`python -m benchmarks.peers`: Millstream beside lmdb, rocksdict and duckdb.

    python -m pip install -r benchmarks/peers/requirements.txt

Peers that are not installed are left out. Durability is the peer's for the workload named; what a
peer does not do (no watermark, no recovery) is said at its function.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import data, report
from benchmarks.harness import Context, Sample, Stopwatch, Workload, run, work
from benchmarks.workloads import bulk, durable, pipeline, single

MAP_BYTES = 4 << 30


def lmdb_bulk(context: Context) -> Sample:
    """lmdb, 10,000 puts per transaction, one sync at the end. Keys are record numbers."""
    import lmdb  # noqa: PLC0415 - optional

    keys, values = data.records(context.records, context.seed)
    with lmdb.open(context.directory, map_size=MAP_BYTES, sync=False) as peer, Stopwatch() as watch:
        for start in range(0, len(keys), 10_000):
            with peer.begin(write=True) as transaction:
                for number in range(start, min(start + 10_000, len(keys))):
                    record = keys[number] + values[number]
                    transaction.put(number.to_bytes(8, "big"), record, append=True)
        peer.sync(True)
    return watch.sample(context.records)


def lmdb_singles(context: Context) -> Sample:
    """lmdb, one durable transaction per record."""
    import lmdb  # noqa: PLC0415 - optional

    keys, values = data.records(durable.POOL_RECORDS, context.seed)
    with lmdb.open(context.directory, map_size=MAP_BYTES) as peer:
        count = 0

        def append(number: int) -> None:
            nonlocal count
            count += 1
            number %= len(keys)
            with peer.begin(write=True) as transaction:
                transaction.put(count.to_bytes(8, "big"), keys[number] + values[number])

        return durable.sample(context, append, 1)


def rocksdict_puts(context: Context) -> Sample:
    """rocksdict, one put per record into the write-ahead log, synced by the flush at the end."""
    import rocksdict  # noqa: PLC0415 - optional

    keys, values = data.records(context.records, context.seed)
    peer = rocksdict.Rdict(context.directory, rocksdict.Options(raw_mode=True))
    with Stopwatch() as watch:
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            peer[number.to_bytes(8, "big")] = key + value
        peer.flush()
    peer.close()
    return watch.sample(context.records)


def duckdb_windows(context: Context) -> Sample:
    """duckdb over the file of JSON lines: the same totals, as one query over a closed file.

    No watermark, no state to recover, nothing incremental: what a batch costs at its best.
    """
    import duckdb  # noqa: PLC0415 - optional

    path = Path(context.prepared, "events.jsonl")
    query = f"""
        select "user", ts - ts % 60000 as window_start, count(*), sum(amount)
        from read_json('{path}', format='newline_delimited',
                       columns={{"user": 'varchar', amount: 'double', ts: 'bigint'}})
        group by all"""
    peer = duckdb.connect()
    with Stopwatch() as watch:
        rows = peer.execute(query).fetchall()
    peer.close()
    assert sum(row[2] for row in rows) == context.records
    return watch.sample(context.records)


Contestant = Callable[[Context], Sample]


def _beside(base: Workload, ours: str, peers: dict[str, tuple[str, Contestant]]) -> Workload:
    """`base` with our contestant and those peers that are installed."""
    contestants = {ours: base.contestants[ours]}
    for name, (package, contestant) in peers.items():
        if importlib.util.find_spec(package) is not None:
            contestants[name] = contestant
    return Workload(
        name=base.name,
        title=base.title,
        durability=base.durability,
        contestants=contestants,
        prepare=base.prepare,
        module="benchmarks.peers",
    )


WORKLOADS = (
    _beside(single.WORKLOAD, "producer", {"rocksdict": ("rocksdict", rocksdict_puts)}),
    _beside(bulk.WORKLOAD, "append_many", {"lmdb": ("lmdb", lmdb_bulk)}),
    _beside(durable.SINGLES, "append", {"lmdb": ("lmdb", lmdb_singles)}),
    _beside(pipeline.WORKLOAD, "pipeline", {"duckdb, batch": ("duckdb", duckdb_windows)}),
)


def main() -> None:
    """Measure and print; nothing is kept."""
    if sys.argv[1:2] == ["--worker"]:
        work(WORKLOADS, *sys.argv[2:5])
        return
    quick = "--quick" in sys.argv
    records, seconds = (2_000, 0.05) if quick else (1_000_000, 1.5)
    place = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="millstream-peers-", dir=place) as directory:
        base = Context(directory, "", records, seconds, 0, quick)
        outcomes = [run(each, base, 1 if quick else 3, inline=quick) for each in WORKLOADS]
    print(report.table(report.document(outcomes, 0, records)))


if __name__ == "__main__":
    main()
