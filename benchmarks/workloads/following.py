"""From an append to its receipt by a follower in another process, and what waiting costs."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import millstream
from benchmarks.harness import Context, Sample, Target, Workload, latencies

INTERVAL_SECONDS = 0.005


def _follow(path: str, count: int, idle_seconds: float, pipe: Connection) -> None:
    """In the other process: receive everything, then sit idle for a while."""
    with millstream.open(path) as store, store.consumer("t", follow=True) as consumer:
        pipe.send("ready")
        taken: list[int] = []
        while len(taken) < count:
            for record in consumer.poll(timeout=10.0):
                assert record.value is not None
                taken.append(time.monotonic_ns() - int(record.value))
        wall, cpu = time.perf_counter(), time.process_time()
        assert consumer.poll(timeout=idle_seconds) == []
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pipe.send((taken, cpu / wall))


def across_processes(context: Context) -> Sample:
    """The clock is CLOCK_MONOTONIC, which processes of one machine share."""
    count = 20 if context.quick else int(context.seconds / INTERVAL_SECONDS) * 4
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with millstream.open(context.directory, durability="os") as store:
        store.create_topic("t")
        idle_seconds = 0.2 if context.quick else 5.0
        arguments = (context.directory, count, idle_seconds, theirs)
        follower = spawn.Process(target=_follow, args=arguments)
        follower.start()
        try:
            assert ours.poll(30)
            ours.recv()
            for _ in range(count):
                time.sleep(INTERVAL_SECONDS)
                store.append("t", b"%d" % time.monotonic_ns())
            assert ours.poll(idle_seconds + 30)
            taken, share = ours.recv()
        finally:
            follower.join(30)
            if follower.is_alive():
                follower.kill()
    sample = latencies(taken)
    sample["idle_cpu_percent"] = share * 100
    return sample


WORKLOAD = Workload(
    name="follow",
    title="from append to receipt in another process",
    durability="os",
    contestants={"consumer": across_processes},
    targets=(Target("consumer", "p99_us", 5_000), Target("consumer", "idle_cpu_percent", 1.0)),
)
