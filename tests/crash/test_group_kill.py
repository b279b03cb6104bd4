"""Members of a group in processes of their own, killed with SIGKILL while they work."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from millstream import groups
from millstream.consumer import Consumer
from millstream.record import TopicPartition
from millstream.store import Store, open_store

pytestmark = [pytest.mark.crash, pytest.mark.slow]

PARTITIONS = 6

MEMBER = """
import os, sys, time
from millstream.consumer import Consumer
from millstream.store import open_store
output = os.open(f"{sys.argv[2]}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
store = open_store(sys.argv[1], durability="os")
consumer = Consumer(store._engine, "t", group="g")
while True:
    records = consumer.poll(timeout=10, max_records=100)
    now = time.monotonic_ns()
    lines = [f"{now} {os.getpid()} {r.partition} {r.offset}\\n" for r in records]
    os.write(output, "".join(lines).encode())
    consumer.commit()
"""

PRODUCER = """
import sys
from millstream.store import open_store
with open_store(sys.argv[1], durability="os") as store:
    for n in range(100):
        for partition in range(6):
            store.append_many("t", [b"x"] * 25, partition=partition)
"""


class Seen:
    """What the members have processed: each writes a line per record to its file, then commits."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[int, int, TopicPartition, int]]:
        """Time in ns, process, partition, offset."""
        found = []
        for path in sorted(self.path.parent.glob(f"{self.path.name}.*")):
            # What follows the last newline is being written, or was when its process died.
            for line in path.read_text().split("\n")[:-1]:
                at, pid, number, offset = map(int, line.split())
                found.append((at, pid, TopicPartition("t", number), offset))
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store", durability="os") as store:
        store.create_topic("t", partitions=PARTITIONS)
        yield store


@contextmanager
def members(tmp_path: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [start(tmp_path) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start(tmp_path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(tmp_path / "store"), str(tmp_path / "seen")]
    )


def wait_until(store: Store, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        store._engine.wait(store._engine.tail.get("wake_version"), 0.05)


def assigned(store: Store) -> dict[int, int]:
    """How many partitions each member process owns."""
    if groups.names(store._engine) == []:
        return {}
    info = groups.describe(store._engine, "g")
    return {member.pid: len(member.partitions) for member in info.members}


def test_a_killed_members_partitions_are_read_by_others_within_a_second(
    store: Store, tmp_path: Path
) -> None:
    seen = Seen(tmp_path / "seen")
    with members(tmp_path, 2) as (victim, survivor):
        wait_until(store, lambda: assigned(store) == {victim.pid: 3, survivor.pid: 3})
        victims = next(
            member.partitions
            for member in groups.describe(store._engine, "g").members
            if member.pid == victim.pid
        )

        victim.send_signal(signal.SIGKILL)
        killed_ns = time.monotonic_ns()
        for partition in victims:
            store.append("t", b"x", partition=partition.partition)
        wait_until(store, lambda: {p for _, _, p, _ in seen.lines()} == set(victims))

    assert {pid for _, pid, _, _ in seen.lines()} == {survivor.pid}
    assert max(at for at, *_ in seen.lines()) - killed_ns < 1_000_000_000
    assert len(store._engine.storage.list("locks")) <= 2


def test_with_members_killed_and_replaced_nothing_is_lost_or_skipped(
    store: Store, tmp_path: Path
) -> None:
    seen = Seen(tmp_path / "seen")
    with members(tmp_path, 3) as processes:
        producers = [
            subprocess.Popen([sys.executable, "-c", PRODUCER, str(tmp_path / "store")])
            for _ in range(2)
        ]
        for round_number in range(6):
            goal = (round_number + 1) * 3000
            wait_until(store, lambda goal=goal: len(seen.lines()) >= goal)  # type: ignore[misc]
            victim = processes[round_number % 3]
            victim.kill()
            victim.wait()
            processes[round_number % 3] = start(tmp_path)
        assert [producer.wait(30) for producer in producers] == [0, 0]
        everything = {
            (TopicPartition("t", number), offset)
            for number, (_, end) in store.offsets("t").items()
            for offset in range(end)
        }
        assert len(everything) == 2 * 100 * 25 * PARTITIONS
        wait_until(
            store,
            lambda: all(line.lag == 0 for line in groups.lag(store._engine, "g")),
        )
        processed = seen.lines()

    assert {(partition, offset) for _, _, partition, offset in processed} == everything
    with Consumer(store._engine, "t", group="g") as consumer:
        assert consumer.lag() == dict.fromkeys(consumer.assignment, 0)
