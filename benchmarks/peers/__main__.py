"""`python -m benchmarks.peers`: Millstream beside lmdb, rocksdict, duckdb, Bytewax and queues.

    python -m pip install -r benchmarks/peers/requirements.txt

Peers that are not installed are left out. Durability is the peer's for the workload named; what a
peer does not do (no watermark, no recovery) is said at its function.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import data, report
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload, run, work
from benchmarks.peers import flows, queues
from benchmarks.workloads import bulk, counting, durable, mapping, parsed, pipeline, single

MAP_BYTES = 4 << 30
WINDOW_RECORDS = 200_000
"""Bytewax needs ten seconds for so many, all in one batch."""


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


def _beside(
    base: Workload,
    ours: str,
    peers: dict[str, tuple[str, Contestant]],
    times: float | None = None,
    records: int = 1_000_000,
) -> Workload:
    """`base` with our contestant and those peers that are installed.

    With `times`, ours shall be so many times as fast as the last of them, and need less memory.
    """
    contestants = {ours: base.contestants[ours]}
    for name, (package, contestant) in peers.items():
        if importlib.util.find_spec(package) is not None:
            contestants[name] = contestant
    return Workload(
        name=base.name,
        title=base.title,
        durability=base.durability,
        contestants=contestants,
        targets=()
        if times is None or len(contestants) == 1
        else (
            Target(ours, "rate", times, list(contestants)[-1]),
            Target(ours, "rss_peak_mb", 1, list(contestants)[-1], most=True),
        ),
        prepare=base.prepare,
        records=records,
        module="benchmarks.peers",
    )


WORKLOADS = (
    _beside(single.WORKLOAD, "producer", {"rocksdict": ("rocksdict", rocksdict_puts)}),
    _beside(bulk.WORKLOAD, "append_many", {"lmdb": ("lmdb", lmdb_bulk)}),
    _beside(durable.SINGLES, "append", {"lmdb": ("lmdb", lmdb_singles)}),
    queues.workload(),
    _beside(mapping.WORKLOAD, "pipeline", {"bytewax": ("bytewax", flows.mapping)}, 1),
    _beside(
        pipeline.WORKLOAD,
        "pipeline",
        {
            "duckdb, batch": ("duckdb", duckdb_windows),
            "bytewax": ("bytewax", flows.counting_windows),
        },
        15,
        WINDOW_RECORDS,
    ),
    _beside(
        parsed.WORKLOAD,
        "pipeline",
        {"bytewax": ("bytewax", flows.parsed_windows)},
        15,
        WINDOW_RECORDS,
    ),
    _beside(counting.WORKLOAD, "pipeline", {"bytewax": ("bytewax", flows.counting)}, 4),
)


def main() -> None:
    """Measure and print, all or the workloads named; nothing is kept."""
    if sys.argv[1:2] == ["--worker"]:
        work(WORKLOADS, *sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", help="names of workloads, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    options = parser.parse_args()
    quick = options.quick
    chosen = [each for each in WORKLOADS if each.name in (options.only or each.name).split(",")]
    records, seconds = (2_000, 0.05) if quick else (1_000_000, 1.5)
    rounds = 1 if quick else options.rounds
    place = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="millstream-peers-", dir=place) as directory:
        base = Context(directory, "", records, seconds, 0, quick)
        outcomes = [run(each, base, rounds, inline=quick) for each in chosen]
    print(report.table(report.document(outcomes, 0, records)))


if __name__ == "__main__":
    main()
