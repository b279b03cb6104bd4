"""The processes of the million-record test: producers that are paced, members that write a diary.

    python million_children.py produce STORE PRODUCER COUNT CHUNKS
    python million_children.py consume STORE DIARY

A producer sends its records in chunks and reads a byte from standard input before each one, so that
whoever holds the other end decides how far it may go. A member processes what it polls, which here
means to write down what it got, and commits after that; it ends in order when its standard input
ends, and in any other way when it is killed.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from xxhash import xxh3_64_intdigest

import millstream

TOPIC = "t"
GROUP = "g"
KEYS = 1000
POLL_SECONDS = 0.2
POLL_RECORDS = 2000


def key_of(number: int) -> bytes:
    """Key of a producer's `number`-th record: spread, and not in the order of the records."""
    return b"user-%d" % (number * 7919 % KEYS)


def value_of(producer: int, number: int) -> bytes:
    """The record says where it comes from."""
    return b"%d:%d" % (producer, number)


def digest_of(values: Sequence[bytes | None]) -> int:
    """Stands for the content of some records."""
    return xxh3_64_intdigest(b"\n".join(value or b"" for value in values))


class Entry(NamedTuple):
    """One line of a diary: some records of a partition were processed, or committed."""

    what: Literal["processed", "committed"]
    at_ns: int
    """Monotonic clock, the same one in all processes."""
    pid: int
    partition: int
    first: int
    stop: int
    digest: int


def read_diaries(directory: Path) -> list[Entry]:
    """What all members wrote down, in the order of time."""
    entries = []
    for path in directory.glob("*.diary"):
        # What follows the last newline is being written, or was when its process died.
        for line in path.read_text().split("\n")[:-1]:
            what, *numbers = line.split()
            assert what in ("processed", "committed")
            entries.append(Entry(what, *map(int, numbers)))  # type: ignore[arg-type]
    return sorted(entries, key=attrgetter("at_ns"))


def produce(directory: str, producer: int, count: int, chunks: int) -> None:
    """Send `count` records in so many chunks."""
    with millstream.open(directory) as store, store.producer() as sender:
        for chunk in range(chunks):
            os.read(0, 1)
            for number in range(count * chunk // chunks, count * (chunk + 1) // chunks):
                sender.send(TOPIC, value_of(producer, number), key=key_of(number))


def consume(directory: str, diaries: str) -> None:
    """Be a member of the group until standard input ends."""
    pid = os.getpid()
    diary = os.open(f"{diaries}/{pid}.diary", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(what: str, ranges: Sequence[tuple[int, int, int, int]]) -> None:
        now_ns = time.monotonic_ns()
        lines = [f"{what} {now_ns} {pid} " + " ".join(map(str, each)) for each in ranges]
        os.write(diary, "".join(f"{line}\n" for line in lines).encode())

    with millstream.open(directory) as store, store.consumer(TOPIC, group=GROUP) as consumer:
        while not select.select([0], [], [], 0)[0]:
            records = consumer.poll(POLL_SECONDS, POLL_RECORDS)
            ranges = []
            for partition, group in groupby(records, attrgetter("partition")):
                part = list(group)
                # A hole between two records is not in any range, and will be found missing.
                assert part[-1].offset - part[0].offset == len(part) - 1
                digest = digest_of([record.value for record in part])
                ranges.append((partition, part[0].offset, part[-1].offset + 1, digest))
            write("processed", ranges)
            consumer.commit()
            write("committed", ranges)


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        produce(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        consume(*sys.argv[2:])
