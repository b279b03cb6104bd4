"""Runs a pipeline with sources and sinks outside the store, and kills it, again and again.

`python killed_connectors.py DIRECTORY KILLS SEED` prints the number of runs, how many of them were
killed before they had finished, and at how many places of the output. Everything is imported once;
every run is a fork of this process.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import millstream
from millstream import Record
from millstream.processor import (
    Pipeline,
    agg,
    jsonl_files,
    sqlite_rows,
    to_callable,
    to_jsonl,
    to_sqlite,
    tumbling,
)

LINES: Final = 30
ROWS: Final = 10
"""What is added between two runs."""

DISORDER_MS: Final = 100


def pipeline(path: Path) -> Pipeline:
    """Files and a table into a table, sums of it, files, a function; dead letters beside."""

    def call(record: Record) -> None:
        with (path / "called").open("ab") as file:
            file.write((record.value or b"") + b"\n")

    made = Pipeline("killed")
    lines = made.source(
        jsonl_files(f"{path}/in*.jsonl", name="lines"), time="ts", disorder=DISORDER_MS
    )
    rows = made.source(sqlite_rows(f"{path}/in.db", "orders", name="rows"), time="ts")
    both = lines.merge(rows)
    numbers = both.map(lambda row: {"source": row["source"], "n": row["n"]})
    numbers.to(to_sqlite(f"{path}/out.db", "numbers"))
    numbers.to(to_jsonl(f"{path}/out", name="numbers-files"))
    numbers.to(to_callable(call))
    sums = both.key_by("source").window(tumbling(50)).agg(n=agg.count(), total=agg.sum("n"))
    key = ["key", "window_start"]
    sums.to(to_sqlite(f"{path}/out.db", "sums", mode="upsert", key=key))
    lines.dead_letters.to("bad")
    return made


def add_input(path: Path, number: int) -> None:
    """Add to what the pipeline reads: some lines end in the middle."""
    lines = [
        b'{"source":"lines","n":%d,"ts":%d}\n' % (n, n)
        for n in range(number * LINES, (number + 1) * LINES)
    ]
    lines.insert(number % LINES, b'{"bad":%d\n' % number)
    with (path / f"in{number // 40}.jsonl").open("ab") as file:
        file.writelines(lines)
    with closing(sqlite3.connect(path / "in.db")) as database:
        database.execute("CREATE TABLE IF NOT EXISTS orders (source, n, ts)")
        rows = [("rows", n, n) for n in range(number * ROWS, (number + 1) * ROWS)]
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        database.commit()


def run(path: Path) -> None:
    """Run to the end of what there is, in small epochs."""
    with millstream.open(path / "store", durability="os") as store:
        pipeline(path).run(store, until="end", batch_records=17, epoch_ms=0, keep_every=0)


def main(path: Path, kills: int, seed: int) -> None:
    """Run, kill, add, and run again; at the end once to the end."""
    chance = random.Random(seed)
    killed, number, places, longest_s = 0, 0, set(), 600.0
    while killed < kills:
        add_input(path, number)
        number += 1
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            run(path)
            os._exit(0)
        if number == 1:
            os.waitpid(child, 0)
            longest_s = 1.2 * (time.monotonic() - started)
            continue
        time.sleep(chance.random() * longest_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or status == 0
        places.add((path / "called").stat().st_size)
    run(path)
    sys.stdout.write(f"{number} {killed} {len(places)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
