"""A queue: put jobs, get each, ack each. What is acknowledged is durable, on both sides."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import millstream
from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from millstream import Durability, Store

JOBS_COUNT = 5_000
BATCH_COUNT = 500
THREADS_COUNT = 8


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
            done = 0
            with store.queue("jobs", follow=False) as queue:
                for job in queue:
                    job.ack()
                    done += 1
            return done

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
            _run(lambda number: _put(store, values[number::THREADS_COUNT]))
        done: list[int] = []
        with store.queue("jobs", follow=False) as queue, Stopwatch() as working:

            def work(number: int) -> None:
                del number
                count = 0
                for job in queue:
                    job.ack()
                    count += 1
                done.append(count)

            _run(work)
        assert sum(done) == context.records
    return sample(context, putting, working)


def _put(store: Store, values: list[bytes]) -> None:
    for value in values:
        store.append("jobs", value)


def _run(work: Callable[[int], None]) -> None:
    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS_COUNT)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


WORKLOAD = Workload(
    name="queue",
    title="put, get and ack jobs",
    durability="sync; os where it says so",
    contestants={
        "write + fdatasync": plain_files,
        "one by one": one_by_one,
        "one by one, os": one_by_one_os,
        "threads": threads,
        "many": many,
    },
    targets=(
        Target("one by one", "rate", 0.7, "write + fdatasync"),
        Target("many", "rate", 10, "write + fdatasync"),
    ),
    records=JOBS_COUNT,
)
