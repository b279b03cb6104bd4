"""Scenarios 64 and 65: a named producer sends everything again, whatever happened before.

What must hold: every record is in the log once, and in order. The machine loses power at every
operation of a producer's life, and processes that send are killed at random moments.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from restarts import explained
from simulated_stores import abandon, open_quietly, until_power_fails
from store_children import hear, spawn

import millstream
from millstream import Store
from millstream.config import Compression
from millstream.testing import MemoryStorage, SimulatedCrash, crash_cases

if TYPE_CHECKING:
    from matrix import Cell

SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "0"))
"""Crash before each n-th operation only; 0: as the cases say."""
KILLS = int(os.environ.get("MILLSTREAM_KILLS", "8"))
NAME = "import"


class Life:
    """Sends lines 0, 1, 2, ... under one name, in sessions; others append in between."""

    def __init__(self, compression: Compression, segment_bytes: int) -> None:
        self.compression = compression
        self.segment_bytes = segment_bytes
        self.acknowledged = 0
        """So many lines were."""

    def run(self, storage: MemoryStorage) -> None:
        self.acknowledged = 0
        with until_power_fails(self.open(storage)) as store:
            for stop in (7, 10):
                self.send(store, max(0, self.acknowledged - 4), stop)
                store.append("t", b"plain")
        with until_power_fails(self.open(storage)) as store:
            self.send(store, 0, 14)
            store.roll("t", 0)
            self.send(store, 11, 17)

    def open(self, storage: MemoryStorage) -> Store:
        store = open_quietly(storage)
        config = {"compression": self.compression, "segment_bytes": self.segment_bytes}
        try:
            store.create_topic("t", exist_ok=True, **config)
        except SimulatedCrash:
            abandon(store)
            raise
        return store

    def send(self, store: Store, start: int, stop: int) -> None:
        """One session: these lines in batches of three, each waited for."""
        producer = store.producer(name=NAME, linger_ms=60_000)
        try:
            for first in range(start, stop, 3):
                numbers = range(first, min(first + 3, stop))
                futures = [producer.send("t", line(n), sequence=n) for n in numbers]
                error = futures[-1].exception()
                if isinstance(error, SimulatedCrash):
                    raise error
                assert error is None
                self.acknowledged = max(self.acknowledged, numbers[-1] + 1)
        finally:
            with contextlib.suppress(SimulatedCrash, millstream.MillstreamError):
                producer.close()

    def check(self, storage: MemoryStorage, total: int, acknowledged: int) -> None:
        """Open what is left, send all again up to `total`, and look."""
        with contextlib.closing(self.open(storage)) as store:
            before = lines_of(store)
            assert before == [line(n) for n in range(len(before))]
            assert len(before) >= acknowledged
            with store.producer(name=NAME) as producer:
                begin = producer.resume_from("t")
                assert len(before) <= begin
                if total % 2:
                    begin = 0
                for number in range(begin, total):
                    producer.send("t", line(number), sequence=number)
            assert lines_of(store) == [line(n) for n in range(total)]


def line(number: int) -> bytes:
    return b"line %d " % number * (40 if number % 4 else 1)


def lines_of(store: Store) -> list[bytes]:
    values = [record.value or b"" for record in store.read("t")]
    return [value for value in values if value != b"plain"]


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_64_power_fails_at_any_operation_and_all_is_sent_again(cell: Cell) -> None:
    life = Life(cell.codec, cell.segment_bytes)
    every = EVERY or 4
    cases = 0
    for case in crash_cases(life.run, seeds=(SEED,), every=every):
        with explained(f"{case}"):
            storage, acknowledged, total = case.storage, life.acknowledged, 20 + case.index % 2
            for _ in range(cell.restarts):
                life.check(storage, total, acknowledged)
                storage, acknowledged, total = storage.crash(keep="none"), total, 24
        cases += 1
    assert cases * every > 100


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("partitions", [1, 3])
def test_scenario_64_producers_are_killed_at_random_moments(
    tmp_path: Path, partitions: int
) -> None:
    random, path = Random(SEED), tmp_path / "store"
    total = 1500
    with millstream.open(path) as store:
        store.create_topic("t", partitions=partitions, segment_bytes=1 << 16)
    for number in range(KILLS // 2):
        with explained(f"{SEED=}, kill {number}"), spawn("send_lines", path, total) as child:
            assert b"r" == hear(child), child.stderr and child.stderr.read().decode()
            hear(child, random.randrange(12))
            child.kill()
        if number % 4 == 0:
            with millstream.open(path) as store:
                store.append("t", b"plain")
    with spawn("send_lines", path, total) as child:
        hear(child, 1 << 20)
    with millstream.open(path) as store:
        found = lines_of(store)
        expected = [b"%d" % number for number in range(total)]
        if partitions == 1:
            assert expected == found
        assert sorted(expected) == sorted(found)
        for partition in range(partitions):
            numbers = [
                int(record.value or b"")
                for record in store.read("t", partition=partition)
                if record.value != b"plain"
            ]
            assert numbers == sorted(numbers)


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_65_a_producer_that_was_stopped_and_replaced_is_fenced(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t")
        with spawn("send_when_told", path) as zombie:
            assert b"r" == hear(zombie)
            with store.producer(name=NAME) as producer:
                assert 1 == producer.resume_from("t")
                producer.send("t", b"new", sequence=1)
            assert zombie.stdin is not None
            zombie.stdin.write(b".")
            assert b"f" == hear(zombie), zombie.stderr and zombie.stderr.read().decode()
        assert [b"old", b"new"] == lines_of(store)
