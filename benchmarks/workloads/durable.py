"""L4, L5 and group commit: appends that are durable before they return.

The limits write the same bytes into a growing file. That a store can beat them is due to writing
into zeros, where the sync has no file size to record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apsw

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Target, Workload, latencies

GROUP_RECORDS = 1_000
THREADS_COUNT = 8
POOL_RECORDS = 20_000


def _repeat(seconds: float, append: Callable[[int], object]) -> tuple[int, float, list[int]]:
    """Call `append(number)` for so long; calls, seconds and nanoseconds of each call."""
    now = time.perf_counter_ns
    taken: list[int] = []
    for number in range(20):
        append(number)  # opens files, fills the first zeros
    begin = before = now()
    end = begin + int(seconds * 1e9)
    while before < end:
        append(len(taken))
        after = now()
        taken.append(after - before)
        before = after
    return len(taken), (before - begin) / 1e9, taken


def sample(context: Context, append: Callable[[int], object], records: int) -> Sample:
    """Records per second and latencies of `append`, which adds so many records per call."""
    count, seconds, taken = _repeat(context.seconds, append)
    return {"rate": count * records / seconds, **latencies(taken)}


def _pool(context: Context) -> tuple[list[bytes], list[bytes]]:
    return data.records(POOL_RECORDS, context.seed)


def groups(context: Context) -> list[tuple[list[bytes], list[bytes]]]:
    """Keys and values of some groups of 1,000 records."""
    keys, values = _pool(context)
    return [
        (keys[start : start + GROUP_RECORDS], values[start : start + GROUP_RECORDS])
        for start in range(0, POOL_RECORDS, GROUP_RECORDS)
    ]


def _table(context: Context) -> apsw.Connection:
    table = apsw.Connection(str(Path(context.directory, "table.db")))
    table.pragma("journal_mode", "wal")
    table.pragma("synchronous", "full")
    table.execute("create table t(id integer primary key, key blob, value blob)")
    return table


def file_singles(context: Context) -> Sample:
    """Write and fdatasync, one record at a time, into a growing file."""
    keys, values = _pool(context)
    with Path(context.directory, "file").open("wb", buffering=0) as file:
        descriptor = file.fileno()

        def append(number: int) -> None:
            number %= POOL_RECORDS
            os.write(descriptor, keys[number] + values[number])
            os.fdatasync(descriptor)

        return sample(context, append, 1)


def apsw_singles(context: Context) -> Sample:
    """One autocommitted insert per record, synchronous=FULL."""
    keys, values = _pool(context)
    table = _table(context)
    insert = "insert into t(key, value) values(?, ?)"

    def append(number: int) -> None:
        number %= POOL_RECORDS
        table.execute(insert, (keys[number], values[number]))

    measured = sample(context, append, 1)
    table.close()
    return measured


def store_singles(context: Context) -> Sample:
    """store.append, durable."""
    keys, values = _pool(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t")

        def append(number: int) -> None:
            number %= POOL_RECORDS
            store.append("t", values[number], key=keys[number])

        return sample(context, append, 1)


def file_groups(context: Context) -> Sample:
    """Join 1,000 records, write and fdatasync, into a growing file."""
    pool = groups(context)
    with Path(context.directory, "file").open("wb", buffering=0) as file:
        descriptor = file.fileno()

        def append(number: int) -> None:
            keys, values = pool[number % len(pool)]
            pairs = zip(keys, values, strict=True)
            os.write(descriptor, b"".join([part for pair in pairs for part in pair]))
            os.fdatasync(descriptor)

        return sample(context, append, GROUP_RECORDS)


def apsw_groups(context: Context) -> Sample:
    """1,000 inserts per transaction, synchronous=FULL."""
    pool = groups(context)
    table = _table(context)

    def append(number: int) -> None:
        keys, values = pool[number % len(pool)]
        with table:
            table.executemany(
                "insert into t(key, value) values(?, ?)", zip(keys, values, strict=True)
            )

    measured = sample(context, append, GROUP_RECORDS)
    table.close()
    return measured


def store_groups(context: Context) -> Sample:
    """store.append_many, durable."""
    pool = groups(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t")

        def append(number: int) -> None:
            keys, values = pool[number % len(pool)]
            store.append_many("t", values, keys)

        return sample(context, append, GROUP_RECORDS)


def store_threads(context: Context, count: int) -> Sample:
    """Threads that share a store, each appending durably, one record at a time."""
    keys, values = _pool(context)
    with millstream.open(context.directory) as store:
        store.create_topic("t")

        def append(number: int) -> None:
            number %= POOL_RECORDS
            store.append("t", values[number], key=keys[number])

        return _in_threads(context, append, count)


def bare_threads(context: Context, count: int) -> Sample:
    """The limit: threads that share syncs of a zero-filled file, and nothing else."""
    path = Path(context.directory, "file")
    path.write_bytes(bytes(64 << 20))
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        return _in_threads(context, _BareGroup(file.fileno()).append, count)


class _BareGroup:
    """The leanest group commit there is: the first thread writes and syncs for all who queue."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()
        self._queue: list[tuple[threading.Lock, list[bool]]] = []
        self._leading = False
        self._position = 0

    def append(self, _number: int) -> None:
        wake, done = threading.Lock(), [False]
        with self._guard:
            self._queue.append((wake, done))
            follows, self._leading = self._leading, True
            if follows:
                wake.acquire()
        if follows:
            wake.acquire()
        if not done[0]:
            self._lead(wake)

    def _lead(self, own: threading.Lock) -> None:
        with self._guard:
            group, self._queue = self._queue, []
        os.pwrite(self._descriptor, bytes(384 * len(group)), self._position)
        os.fdatasync(self._descriptor)
        self._position = (self._position + 384 * len(group)) % (60 << 20)
        with self._guard:
            for _, done in group:
                done[0] = True
            successor = self._queue[0][0] if self._queue else None
            self._leading = successor is not None
        for wake, _ in group:
            if wake is not own:
                wake.release()
        if successor is not None:
            successor.release()


def _in_threads(context: Context, append: Callable[[int], None], count: int) -> Sample:
    taken: list[list[int]] = []

    def work() -> None:
        taken.append(_repeat(context.seconds, append)[2])

    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Each thread counts its own time, so a thread that starts late does not lower the rate.
    rate = sum(len(each) / (sum(each) / 1e9) for each in taken)
    return {"rate": rate, **latencies([each for one in taken for each in one])}


SINGLES = Workload(
    name="L4",
    title="durable append of single records",
    durability="sync",
    contestants={
        "write + fdatasync": file_singles,
        "apsw FULL": apsw_singles,
        "append": store_singles,
    },
    targets=(
        Target("append", "rate", 1.0, "write + fdatasync"),
        Target("append", "rate", 1.0, "apsw FULL"),
    ),
)

GROUPS = Workload(
    name="L5",
    title="durable groups of 1,000 records",
    durability="sync",
    contestants={
        "write + fdatasync": file_groups,
        "apsw FULL": apsw_groups,
        "append_many": store_groups,
    },
    targets=(Target("append_many", "rate", 1.0, "write + fdatasync"),),
)

THREADS = Workload(
    name="threads",
    title="eight threads appending durably, one partition",
    durability="sync",
    contestants={
        "bare, one": lambda context: bare_threads(context, 1),
        "bare, eight": lambda context: bare_threads(context, THREADS_COUNT),
        "one thread": lambda context: store_threads(context, 1),
        "eight threads": lambda context: store_threads(context, THREADS_COUNT),
    },
    targets=(Target("eight threads", "rate", 5.0, "one thread"),),
)
