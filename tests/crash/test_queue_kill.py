"""Workers of a queue in processes of their own, killed with SIGKILL while they work.

Each worker writes a line to a file before it acks, and one after. So whatever was acked for sure is
known, and so is whatever was handed out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

import millstream
from millstream import Store

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))
KILLS = int(os.environ.get("MILLSTREAM_KILLS", "3"))
JOBS = 150 * KILLS

WORKER = """
import os, sys, threading
import millstream
output = os.open(f"{sys.argv[2]}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
store = millstream.open(sys.argv[1], durability=sys.argv[3])

def note(what, jobs):
    lines = (f"{what} {job.partition} {job.offset} {job.deliveries}\\n" for job in jobs)
    os.write(output, "".join(lines).encode())

def work():
    with store.queue("jobs", visibility="1h") as queue:
        while True:
            jobs = queue.get_many(7) if sys.argv[4] == "many" else [queue.get()]
            note("got", jobs)
            queue.ack(*jobs)
            note("acked", jobs)

threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
threads[0].join()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("jobs", partitions=2)
        yield store


@contextmanager
def workers(tmp_path: Path, durability: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [start(tmp_path, durability, how) for how in ("one", "many", "one")]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start(tmp_path: Path, durability: str, how: str) -> subprocess.Popen[bytes]:
    arguments = [str(tmp_path / "store"), str(tmp_path / "seen"), durability, how]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments])


def lines(tmp_path: Path) -> list[tuple[int, str, tuple[int, int], int]]:
    """Process, what, place, deliveries."""
    found = []
    for path in sorted(tmp_path.glob("seen.*")):
        # What follows the last newline is being written, or was when its process died.
        for line in path.read_text().split("\n")[:-1]:
            what, partition, offset, deliveries = line.split()
            place = int(partition), int(offset)
            found.append((int(path.suffix[1:]), what, place, int(deliveries)))
    return found


def wait_until(store: Store, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        store._engine.wait(store._engine.tail.get("wake_version"), 0.02)


@pytest.mark.parametrize("durability", ["sync", "os"])
def test_with_workers_killed_and_replaced_every_job_is_done(
    store: Store, tmp_path: Path, durability: str
) -> None:
    random = Random(SEED)
    for number in range(JOBS // 50):
        store.append_many("jobs", [b"x"] * 50, partition=number % 2)
    with workers(tmp_path, durability) as processes:
        for number in range(KILLS):
            goal = JOBS * (number + 1) // (KILLS + 2)
            wait_until(store, lambda goal=goal: len(lines(tmp_path)) >= goal)  # type: ignore[misc]
            victim = random.randrange(len(processes))
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()
            how = random.choice(("one", "many"))
            processes[victim] = start(tmp_path, durability, how)
        wait_until(store, lambda: store.queues("jobs")[0].depth == 0)
        seen = lines(tmp_path)
        alive = {process.pid for process in processes}

    everything = {
        (number, offset)
        for number, (_, end) in store.offsets("jobs").items()
        for offset in range(end)
    }
    acked = Counter(place for _, what, place, _ in seen if what == "acked")
    got = [(pid, place, deliveries) for pid, what, place, deliveries in seen if what == "got"]
    # An ack that returned is never forgotten by a process that dies; one that did not may be done.
    assert everything == {place for _, place, _ in got}
    assert set(acked.values()) == {1}
    sure = {(pid, place) for pid, what, place, _ in seen if what == "acked"}
    again = Counter(place for _, place, _ in got)
    for pid, place, _ in got:
        if again[place] > 1 and (pid, place) not in sure:
            assert pid not in alive, "only the killed leave a job for others"
    last = {place: max(d for _, other, d in got if other == place) for place in again}
    assert {(place, deliveries) for _, what, place, deliveries in seen if what == "acked"} <= set(
        last.items()
    ), "nobody got it after it was acked"
    assert len(store._engine.storage.list("locks")) <= len(alive) + 1
