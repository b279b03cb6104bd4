"""Our queue beside persist-queue and litequeue, each in every way it is used, and synced alike.

Each way of ours stands beside the same way of theirs: one job after another, eight threads, four
processes, 500 jobs at a time. Of what a peer does not have there is what comes next to it, and its
function says so.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from benchmarks import data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads import queue

JOBS_COUNT = 2_000
"""Few, because theirs look for the next job among all that wait, or among those that are done."""
TIMES = 10
"""So many times as fast is wanted."""


class Message(Protocol):
    """A job of litequeue."""

    message_id: str


class LiteQueue(Protocol):
    """What we use of litequeue, which comes without types."""

    def put(self, data: str) -> Message: ...
    def pop(self) -> Message | None: ...
    def done(self, message_id: str) -> object: ...
    def transaction(self, mode: str = ...) -> AbstractContextManager[object]: ...
    def close(self) -> None: ...


def persist_queue(context: Context) -> Sample:
    """persist-queue's SQLiteAckQueue; each call is a commit, WAL and synchronous=FULL."""
    import persistqueue  # noqa: PLC0415 - optional

    peer = persistqueue.SQLiteAckQueue(context.directory, multithreading=True)

    def work() -> int:
        for _ in range(context.records):
            peer.ack(peer.get(block=False, raw=True))
        return context.records

    sample = queue.cycle(context, peer.put, work)
    assert peer.ready_count() == peer.unack_count() == 0
    peer.close()
    return sample


def persist_queue_threads(context: Context) -> Sample:
    """The same in eight threads, which wait for each other."""
    import persistqueue  # noqa: PLC0415 - optional

    _, values = data.records(context.records, context.seed)
    peer = persistqueue.SQLiteAckQueue(context.directory, multithreading=True)

    def put(number: int) -> int:
        mine = values[number :: queue.THREADS_COUNT]
        for value in mine:
            peer.put(value)
        return len(mine)

    def work(_: int) -> int:
        done = 0
        while True:
            try:
                job = peer.get(block=False, raw=True)
            except persistqueue.Empty:
                return done
            peer.ack(job)
            done += 1

    with Stopwatch() as putting:
        queue.in_threads(put)
    with Stopwatch() as working:
        done = queue.in_threads(work)
    peer.close()
    assert done == context.records
    return queue.sample(context, putting, working)


def persist_queue_many(context: Context) -> Sample:
    """persist-queue's SQLiteQueue, 500 jobs per `task_done`, which is as an ack of all up to there.

    Its ack queue knows no batches. This one knows them for taking only: each put is a commit.
    """
    import persistqueue  # noqa: PLC0415 - optional

    peer = persistqueue.SQLiteQueue(context.directory, multithreading=True, auto_commit=False)

    def work() -> int:
        done = 0
        while done < context.records:
            for _ in range(min(queue.BATCH_COUNT, context.records - done)):
                peer.get(block=False)
                done += 1
            peer.task_done()
        return done

    sample = queue.cycle(context, peer.put, work)
    peer.close()
    return sample


def litequeue_as_it_comes(context: Context) -> Sample:
    """litequeue with synchronous=NORMAL: what it has done is not synced."""
    return _one_by_one(context, "NORMAL")


def litequeue(context: Context) -> Sample:
    """litequeue, told to sync its commits as ours are."""
    return _one_by_one(context, "FULL")


def _one_by_one(context: Context, synchronous: str) -> Sample:
    peer = _litequeue(context.directory, synchronous)
    sample = queue.cycle(context, lambda value: peer.put(value.decode()), lambda: _work(peer))
    peer.close()
    return sample


def litequeue_threads(context: Context) -> Sample:
    """litequeue, synced, in eight threads, each with a connection of its own."""
    _, values = data.records(context.records, context.seed)
    peers = [_litequeue(context.directory, "FULL") for _ in range(queue.THREADS_COUNT)]
    with Stopwatch() as putting:
        queue.in_threads(lambda number: _put(peers[number], values[number :: len(peers)]))
    with Stopwatch() as working:
        done = queue.in_threads(lambda number: _work(peers[number]))
    for peer in peers:
        peer.close()
    assert done == context.records
    return queue.sample(context, putting, working)


def litequeue_processes(context: Context) -> Sample:
    """litequeue, synced, in four processes."""
    _litequeue(context.directory, "FULL").close()
    return queue.in_processes(context, _process)


def _process(directory: str, values: Sequence[bytes], begin: queue.Begin) -> int:
    peer = _litequeue(directory, "FULL")
    begin()
    _put(peer, values)
    begin()
    done = _work(peer)
    peer.close()
    return done


def litequeue_many(context: Context) -> Sample:
    """litequeue, synced, 500 puts and 500 acks per transaction; it pops jobs one by one only."""
    _, values = data.records(context.records, context.seed)
    peer = _litequeue(context.directory, "FULL")
    with Stopwatch() as putting:
        for start in range(0, len(values), queue.BATCH_COUNT):
            with peer.transaction(mode="IMMEDIATE"):
                _put(peer, values[start : start + queue.BATCH_COUNT])
    done = 0
    with Stopwatch() as working:
        while done < context.records:
            jobs = [peer.pop() for _ in range(min(queue.BATCH_COUNT, context.records - done))]
            with peer.transaction(mode="IMMEDIATE"):
                for job in jobs:
                    assert job is not None
                    peer.done(job.message_id)
            done += len(jobs)
    peer.close()
    return queue.sample(context, putting, working)


def _litequeue(directory: str, synchronous: str) -> LiteQueue:
    import litequeue as package  # noqa: PLC0415 - optional

    peer = package.LiteQueue(os.path.join(directory, "queue.db"), timeout=60)
    peer.conn.execute(f"PRAGMA synchronous = {synchronous}")
    opened: LiteQueue = peer
    return opened


def _put(peer: LiteQueue, values: Sequence[bytes]) -> int:
    for value in values:
        peer.put(value.decode())
    return len(values)


def _work(peer: LiteQueue) -> int:
    done = 0
    while (message := peer.pop()) is not None:
        peer.done(message.message_id)
        done += 1
    return done


_BESIDE: dict[str, dict[str, tuple[str, Callable[[Context], Sample]]]] = {
    "one by one": {
        "persist-queue": ("persistqueue", persist_queue),
        "litequeue": ("litequeue", litequeue),
    },
    "one by one, os": {"litequeue, NORMAL": ("litequeue", litequeue_as_it_comes)},
    "threads": {
        "persist-queue, threads": ("persistqueue", persist_queue_threads),
        "litequeue, threads": ("litequeue", litequeue_threads),
    },
    "processes": {"litequeue, processes": ("litequeue", litequeue_processes)},
    "many": {
        "persist-queue, many": ("persistqueue", persist_queue_many),
        "litequeue, many": ("litequeue", litequeue_many),
    },
}
"""Ways of ours, and for each the same way of the peers: their packages and what runs."""


def workload() -> Workload:
    """All ways of ours and of the peers that are installed."""
    contestants, targets = {}, []
    for ours, peers in _BESIDE.items():
        contestants[ours] = queue.WORKLOAD.contestants[ours]
        for name, (package, contestant) in peers.items():
            if importlib.util.find_spec(package) is not None:
                contestants[name] = contestant
                targets.append(Target(ours, "rate", TIMES, name))
    # It has no like among theirs: nobody else lets a thread go on before its job is durable.
    contestants["not waiting"] = queue.WORKLOAD.contestants["not waiting"]
    targets += [
        Target("not waiting", "rate", TIMES, name)
        for name in _BESIDE["one by one"]
        if name in contestants
    ]
    return replace(
        queue.WORKLOAD,
        contestants=contestants,
        targets=tuple(targets),
        records=JOBS_COUNT,
        module="benchmarks.peers",
    )
