"""A million records through two producers and three members which are killed while they work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import million_children
import pytest
from million_children import (
    GROUP,
    TOPIC,
    Entry,
    digest_of,
    key_of,
    read_diaries,
    value_of,
)

import millstream
from millstream import Store, partition_of

RECORDS = int(os.environ.get("MILLSTREAM_RECORDS", "1000000"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))
PARTITIONS = 6
PRODUCERS = 2
MEMBERS = 3
KILLS = 30
TIMEOUT = 240
TAKEOVER_SECONDS_MAX = 5.0
"""A bound for a machine under any load; a second is what it takes at most otherwise."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]

Child = subprocess.Popen[bytes]


class Processes:
    """The producers, the members, and a store opened read-only to watch them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._deadline = time.monotonic() + TIMEOUT
        self.members = [self.start_member() for _ in range(MEMBERS)]
        per_producer = RECORDS // PRODUCERS
        self.producers = [
            self._start("produce", number, per_producer, KILLS) for number in range(PRODUCERS)
        ]
        # A writer would remove dead members itself, whenever it looks.
        self.watcher = stack.enter_context(millstream.open(directory / "store", read_only=True))

    def _start(self, what: str, *arguments: object) -> Child:
        command = [sys.executable, million_children.__file__, what, str(self._directory / "store")]
        child = self._stack.enter_context(
            subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE, bufsize=0)
        )
        self._stack.callback(child.kill)  # comes before the waiting of the line above
        return child

    def start_member(self) -> Child:
        return self._start("consume", self._directory)

    def let_producers_go_on(self) -> None:
        """One more chunk each."""
        for producer in self.producers:
            assert producer.stdin is not None
            producer.stdin.write(b".")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        engine = self.watcher._engine
        while not condition():
            assert time.monotonic() < self._deadline
            assert all(child.poll() in (None, 0) for child in (*self.members, *self.producers))
            engine.wait(engine.tail.get("wake_version"), 0.05)

    def committed(self) -> int:
        """How many records the group has behind it."""
        if GROUP not in self.watcher.groups():
            return 0
        return sum(self.watcher.group(GROUP).offsets.values())

    def assigned(self) -> dict[int, list[int]]:
        """The partitions of each member process."""
        if GROUP not in self.watcher.groups():
            return {}
        return {
            member.pid: [place.partition for place in member.partitions]
            for member in self.watcher.group(GROUP).members
        }

    def is_balanced(self) -> bool:
        shares = {pid: len(partitions) for pid, partitions in self.assigned().items()}
        return shares == {member.pid: PARTITIONS // MEMBERS for member in self.members}

    def kill(self, index: int) -> tuple[int, int, list[int]]:
        """Kill a member and start another: pid, time in ns, its partitions."""
        victim = self.members[index]
        partitions = self.assigned()[victim.pid]
        victim.kill()
        killed_ns = time.monotonic_ns()
        victim.wait()
        self.members[index] = self.start_member()
        return victim.pid, killed_ns, partitions


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic(TOPIC, partitions=PARTITIONS)
    with ExitStack() as stack:
        yield Processes(tmp_path, stack)


def test_a_million_records_with_members_killed_and_replaced(
    processes: Processes, tmp_path: Path
) -> None:
    """MILLSTREAM_RECORDS of them (1,000,000), thirty kills at moments drawn from MILLSTREAM_SEED.

    The producers stay at most two kills ahead, so that every kill happens while they work.
    """
    choice = Random(SEED)
    per_kill = RECORDS // KILLS
    begun = time.monotonic()
    processes.let_producers_go_on()
    kills = []
    for number in range(KILLS):
        if number < KILLS - 1:
            processes.let_producers_go_on()
        goal = int(per_kill * (number + choice.random()))
        processes.wait_until(lambda goal=goal: processes.committed() >= goal)  # type: ignore[misc]
        processes.wait_until(processes.is_balanced)
        kills.append(processes.kill(choice.randrange(MEMBERS)))
    processes.wait_until(lambda: processes.committed() == RECORDS)
    seconds = time.monotonic() - begun
    for child in (*processes.producers, *processes.members):
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(TIMEOUT) == 0
    entries = read_diaries(tmp_path)

    with millstream.open(tmp_path / "store") as store:
        log = [values_of(store, partition) for partition in range(PARTITIONS)]
        check_log(log)
        check_processing(entries, log)
        assert store.verify(deep=True).ok
        assert store.group(GROUP).members == ()
        assert all(line.lag == 0 for line in store.group_lag(GROUP))
        # This store has taken no lock yet, and of the others nothing is left.
        assert [] == list((tmp_path / "store" / "locks").iterdir())
    takeovers = takeover_seconds(entries, kills)
    repeated = sum(each.stop - each.first for each in entries if each.what == "processed") - RECORDS
    print(  # noqa: T201 - for the table of robustness, shown with -rP
        f"{RECORDS} records in {seconds:.1f} s, {KILLS} kills, {repeated} records came again;"
        f" takeover {min(takeovers):.3f} to {max(takeovers):.3f} s of {len(takeovers)} partitions"
    )
    assert len(takeovers) >= KILLS
    assert max(takeovers) < TAKEOVER_SECONDS_MAX


def values_of(store: Store, partition: int) -> list[bytes | None]:
    """All values of a partition, whose offsets must have no gaps."""
    values: list[bytes | None] = []
    for batch in store.read(TOPIC, partition=partition).batches():
        assert list(batch.offsets) == list(range(len(values), len(values) + batch.record_count))
        values += batch.values
    return values


def check_log(log: list[list[bytes | None]]) -> None:
    """Per partition exactly what each producer sent, in its order."""
    per_producer = RECORDS // PRODUCERS
    homes = [partition_of(key_of(number), PARTITIONS) for number in range(per_producer)]
    sent: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for producer in range(PRODUCERS):
        for number, partition in enumerate(homes):
            sent[partition, producer].append(value_of(producer, number))
    for partition, values in enumerate(log):
        for producer in range(PRODUCERS):
            mark = b"%d:" % producer
            arrived = [value for value in values if value is not None and value.startswith(mark)]
            assert sent[partition, producer] == arrived
    assert RECORDS == sum(map(len, log))


def check_processing(entries: list[Entry], log: list[list[bytes | None]]) -> None:
    """Everything was processed, nothing skipped; what came again had not been committed."""
    done = [0] * PARTITIONS
    committed = [0] * PARTITIONS
    for entry in entries:
        if entry.what == "committed":
            committed[entry.partition] = max(committed[entry.partition], entry.stop)
            continue
        assert entry.first <= done[entry.partition], f"skipped: {entry}"
        assert entry.first >= committed[entry.partition], f"again after its commit: {entry}"
        assert digest_of(log[entry.partition][entry.first : entry.stop]) == entry.digest
        done[entry.partition] = max(done[entry.partition], entry.stop)
    assert [len(values) for values in log] == done == committed


def takeover_seconds(entries: list[Entry], kills: list[tuple[int, int, list[int]]]) -> list[float]:
    """Per partition of a killed member: from the kill to its first record at another member."""
    return [
        (next_ns - killed_ns) / 1e9
        for pid, killed_ns, partitions in kills
        for partition in partitions
        if (
            next_ns := next(
                (
                    entry.at_ns
                    for entry in entries
                    if entry.partition == partition and entry.at_ns > killed_ns and entry.pid != pid
                ),
                None,
            )
        )
    ]
