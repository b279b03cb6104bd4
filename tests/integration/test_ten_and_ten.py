"""Ten processes append to a topic while ten follow it: order, no gap, exact content, no busy wait.

Two seconds by default; `MILLSTREAM_SECONDS=60` takes the full minute.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

import millstream
from millstream import Record, SystemClock, TopicPartition

COUNT = 10
PARTITIONS = 3
SECONDS = float(os.environ.get("MILLSTREAM_SECONDS", "2"))
IDLE_SECONDS = 1.0
TIMEOUT = 120 + SECONDS
END = b"end"


def append(path: str, name: str) -> None:
    """In a child: numbered records, singly and in batches, until the time is over; then the end."""
    with millstream.open(path, durability="os") as store:
        tell("ready")
        sys.stdin.readline()
        clock = SystemClock()
        deadline = clock.monotonic() + SECONDS
        number = calls = 0
        while clock.monotonic() < deadline:
            size = 1 + number % 7
            values = [b"%s %d " % (name.encode(), number + row) + b"x" * row for row in range(size)]
            store.append_many("t", values, partition=number % PARTITIONS)
            number += size
            calls += 1
        for partition in range(PARTITIONS):
            store.append("t", END, partition=partition)
        tell(json.dumps([number, calls + PARTITIONS]))


def follow(path: str) -> None:
    """In a child: check and hash all there is until everybody has ended; then idle for a while."""
    with millstream.open(path) as store, store.consumer("t", follow=True) as consumer:
        tell("ready")
        seen = Seen()
        before = switches()
        while not seen.ended:
            seen.add(consumer.poll(timeout=TIMEOUT))
        working = switches() - before
        before = switches()
        assert consumer.poll(timeout=IDLE_SECONDS) == []
        idle = switches() - before
        tell(json.dumps([seen.digest(), seen.records, working, idle]))


def tell(text: str) -> None:
    """In a child: a line for the parent."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def switches() -> int:
    """How often this process went to sleep by itself: for a bell, a lock, a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


class Seen:
    """What a follower has been given, and whether it is right."""

    def __init__(self) -> None:
        self.records = 0
        self._next = Counter[int]()
        self._numbers = Counter[tuple[bytes, int]]()
        self._ends = 0
        self.numbers: dict[str, list[int]] = {}
        self._hashes = [hashlib.sha256() for _ in range(PARTITIONS)]

    @property
    def ended(self) -> bool:
        return self._ends == COUNT * PARTITIONS

    def add(self, records: list[Record]) -> None:
        for record in records:
            partition = record.partition
            assert record.offset == self._next[partition], "offsets without a gap"
            self._next[partition] += 1
            value = record.value or b""
            self._hashes[partition].update(b"%d %s\n" % (len(value), value))
            self.records += 1
            if value == END:
                self._ends += 1
                continue
            name, number, _ = value.split(b" ")
            last = self._numbers[name, partition]
            assert int(number) >= last, "the records of one appender in its order"
            self._numbers[name, partition] = int(number) + 1
            self.numbers.setdefault(name.decode(), []).append(int(number))

    def digest(self) -> list[str]:
        return [each.hexdigest() for each in self._hashes]


def child(stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.communicate)
    stack.callback(process.kill)
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    stack.callback(watchdog.cancel)
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.slow
def test_ten_append_and_ten_follow(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    with millstream.open(path) as store, ExitStack() as stack:
        store.create_topic("t", partitions=PARTITIONS, segment_bytes="256KiB")
        followers = [child(stack, "follow", path) for _ in range(COUNT)]
        appenders = [child(stack, "append", path, f"a{number}") for number in range(COUNT)]
        for process in (*followers, *appenders):
            assert "ready\n" == line(process)
        for process in appenders:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        written = [json.loads(line(process)) for process in appenders]
        followed = [json.loads(line(process)) for process in followers]

        mine = Seen()
        for batch in store.read("t").batches():
            mine.add(batch.records())
        ends = {TopicPartition("t", n): each.end for n, each in store.offsets("t").items()}

    count = sum(number for number, _ in written) + COUNT * PARTITIONS
    appends = sum(calls for _, calls in written)
    assert mine.ended
    assert count == mine.records == sum(ends.values())
    for name, (number, _) in enumerate(written):
        assert list(range(number)) == sorted(mine.numbers[f"a{name}"]), "each record once"
    for digest, records, working, idle in followed:
        assert (mine.digest(), count) == (digest, records), "exactly what was appended, in order"
        # Each append may wake a follower once, and waking may take a lock or two; between appends
        # it looks by itself twenty times a second.
        assert working < 4 * appends + 50 * SECONDS + 500
        assert idle < 40 * IDLE_SECONDS + 20, "an idle follower sleeps"


if __name__ == "__main__":
    {"append": append, "follow": follow}[sys.argv[1]](*sys.argv[2:])
