"""A queue: put jobs, get each, ack each. What is acknowledged is durable, on both sides.

What makes threads, processes and peers work at once is here, too: `in_threads`, `in_processes`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeAlias

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from millstream import Durability, Queue, Store

JOBS_COUNT = 5_000
BATCH_COUNT = 500
THREADS_COUNT = 8
PROCESSES_COUNT = 4

Begin: TypeAlias = Callable[[], object]
"""Waits until all processes are ready for the next half."""
Half: TypeAlias = Callable[[str, Sequence[bytes], Begin], int]
"""What a process does: open what is in a directory, begin, put jobs, begin, and work until there
are none; how many jobs it has done."""


def cycle(context: Context, put: Callable[[bytes], object], work: Callable[[], int]) -> Sample:
    """Put all jobs, then work through all; jobs per second of both together, and of each."""
    _, values = data.records(context.records, context.seed)
    with Stopwatch() as putting:
        for value in values:
            put(value)
    with Stopwatch() as working:
        done = work()
    assert done == context.records
    return sample(context, putting, working)


def sample(context: Context, putting: Stopwatch, working: Stopwatch) -> Sample:
    """The rates of both halves, and of the whole."""
    count = context.records
    return {
        "rate": count / (putting.seconds + working.seconds),
        "put_rate": count / putting.seconds,
        "work_rate": count / working.seconds,
    }


def plain_files(context: Context) -> Sample:
    """The limit: a line and an fdatasync per put, and a mark and an fdatasync per ack."""
    directory = Path(context.directory)
    with (
        directory.joinpath("jobs").open("wb", buffering=0) as jobs,
        directory.joinpath("acks").open("wb", buffering=0) as acks,
    ):

        def put(value: bytes) -> None:
            jobs.write(value)
            os.fdatasync(jobs.fileno())

        def work() -> int:
            for number in range(context.records):
                acks.write(b"%16d" % number)
                os.fdatasync(acks.fileno())
            return context.records

        return cycle(context, put, work)


def _one_by_one(context: Context, durability: Durability) -> Sample:
    with millstream.open(context.directory, durability=durability) as store:
        store.create_topic("jobs")

        def work() -> int:
            with store.queue("jobs", follow=False) as queue:
                return _work(queue)

        return cycle(context, lambda value: store.append("jobs", value), work)


def one_by_one(context: Context) -> Sample:
    """Ours, each append and each ack durable when it returns, one thread."""
    return _one_by_one(context, "sync")


def one_by_one_os(context: Context) -> Sample:
    """The same, surviving the process but not the machine, as litequeue comes."""
    return _one_by_one(context, "os")


def many(context: Context) -> Sample:
    """Ours, 500 at a time: durable too."""
    _, values = data.records(context.records, context.seed)
    with millstream.open(context.directory) as store:
        store.create_topic("jobs")
        with Stopwatch() as putting:
            for start in range(0, len(values), BATCH_COUNT):
                store.append_many("jobs", values[start : start + BATCH_COUNT])
        with Stopwatch() as working:
            done = 0
            with store.queue("jobs") as queue:
                while jobs := queue.get_many(BATCH_COUNT, timeout=0):
                    queue.ack(*jobs)
                    done += len(jobs)
        assert done == context.records
    return sample(context, putting, working)


def threads(context: Context) -> Sample:
    """Ours, one by one in eight threads, which share syncs and commits."""
    _, values = data.records(context.records, context.seed)
    with millstream.open(context.directory) as store:
        store.create_topic("jobs")
        with Stopwatch() as putting:
            in_threads(lambda number: _put(store, values[number::THREADS_COUNT]))
        with store.queue("jobs", follow=False) as queue, Stopwatch() as working:
            done = in_threads(lambda _: _work(queue))
        assert done == context.records
    return sample(context, putting, working)


def processes(context: Context) -> Sample:
    """Ours, one by one in four processes, which share syncs."""
    with millstream.open(context.directory) as store:
        store.create_topic("jobs")
    return in_processes(context, _process)


def not_waiting(context: Context) -> Sample:
    """Ours, one by one in one thread that waits for no sync: all of it is durable at the end."""
    _, values = data.records(context.records, context.seed)
    with millstream.open(context.directory) as store:
        store.create_topic("jobs")
        with Stopwatch() as putting, store.producer() as producer:
            for value in values:
                producer.send("jobs", value)
        with Stopwatch() as working:
            with store.queue("jobs", follow=False, durability="interval") as queue:
                done = _work(queue)
            store.sync()
        assert done == context.records
    return sample(context, putting, working)


def _put(store: Store, values: Sequence[bytes]) -> int:
    for value in values:
        store.append("jobs", value)
    return len(values)


def _work(queue: Queue) -> int:
    done = 0
    for job in queue:
        job.ack()
        done += 1
    return done


def _process(directory: str, values: Sequence[bytes], begin: Begin) -> int:
    with millstream.open(directory) as store, store.queue("jobs", follow=False) as queue:
        begin()
        _put(store, values)
        begin()
        return _work(queue)


def in_threads(work: Callable[[int], int]) -> int:
    """Run `work` in eight threads, given their numbers; the sum of what they return."""
    done: list[int] = []
    workers = [
        threading.Thread(target=lambda number=number: done.append(work(number)))
        for number in range(THREADS_COUNT)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done)


def in_processes(context: Context, half: Half) -> Sample:
    """Run `half` in four processes over what is in the directory; all start each half at once."""
    spawn = multiprocessing.get_context("spawn")
    ready, counts = spawn.Barrier(PROCESSES_COUNT + 1), spawn.SimpleQueue()
    workers = [
        spawn.Process(target=_child, args=(context, half, number, ready, counts.put))
        for number in range(PROCESSES_COUNT)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    with Stopwatch() as putting:
        ready.wait()
    with Stopwatch() as working:
        done = sum(counts.get() for _ in workers)
    for worker in workers:
        worker.join()
    assert done == context.records
    return sample(context, putting, working)


def _child(
    context: Context, half: Half, number: int, ready: Barrier, report: Callable[[int], None]
) -> None:
    _, values = data.records(context.records, context.seed)
    report(half(context.directory, values[number::PROCESSES_COUNT], ready.wait))


WORKLOAD = Workload(
    name="queue",
    title="put, get and ack jobs",
    durability="sync; os where it says so",
    contestants={
        "write + fdatasync": plain_files,
        "one by one": one_by_one,
        "one by one, os": one_by_one_os,
        "threads": threads,
        "processes": processes,
        "not waiting": not_waiting,
        "many": many,
    },
    targets=(
        Target("one by one", "rate", 0.7, "write + fdatasync"),
        Target("many", "rate", 10, "write + fdatasync"),
    ),
    records=JOBS_COUNT,
)
