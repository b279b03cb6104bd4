"""Records with ids are sent again whatever happened before: each is in the log once.

What must hold: an id that is in the log within the window is not written again, one that was lost
or aborted is. The machine loses power at every operation, and processes that send the same records
are killed at random moments.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from restarts import explained
from simulated_stores import START_MS, abandon, open_quietly, until_power_fails
from store_children import finish, hear, spawn

import millstream
from millstream import Store
from millstream.config import Compression
from millstream.testing import ManualClock, MemoryStorage, SimulatedCrash, crash_cases

SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "0"))
"""Crash before each n-th operation only; 0: as the cases say."""
KILLS = int(os.environ.get("MILLSTREAM_KILLS", "6"))
TOTAL = 16
WINDOW_MS = 3_600_000


def identified(numbers: range) -> list[list[tuple[str, bytes]]]:
    return [[("record-id", b"%d" % number)] for number in numbers]


class Life:
    """Sends records 0, 1, 2, ... in every way there is, and some of them again."""

    def __init__(self, compression: Compression) -> None:
        self.compression = compression
        self.acknowledged: set[int] = set()
        """Durably."""

    def open(self, storage: MemoryStorage, now_ms: int = START_MS) -> Store:
        store = open_quietly(storage, ManualClock(now_ms))
        try:
            store.create_topic(
                *("t",), exist_ok=True, dedup="1h", segment_bytes=4096, compression=self.compression
            )
        except SimulatedCrash:
            abandon(store)
            raise
        return store

    def run(self, storage: MemoryStorage) -> None:
        self.acknowledged = set()
        for session in range(2):
            with until_power_fails(self.open(storage)) as store:
                self.send(store, session)

    def send(self, store: Store, session: int) -> None:
        for number in range(3):
            self.one(store, number)
        self.many(store, range(1, 6))
        aborted = contextlib.suppress(ZeroDivisionError)
        with aborted, store.transaction() as transaction:
            transaction.append_many(
                "t", [value(n) for n in range(4, 9)], headers=identified(range(4, 9))
            )
            if not session:
                raise ZeroDivisionError
        with store.transaction() as transaction:
            numbers = range(7, 10)
            transaction.append_many("t", list(map(value, numbers)), headers=identified(numbers))
        self.acknowledged |= set(numbers)
        store.append("t", value(10), headers=identified(range(10, 11))[0], durability="os")
        if session:
            self.one(store, 10)

    def one(self, store: Store, number: int) -> None:
        store.append("t", value(number), headers=identified(range(number, number + 1))[0])
        self.acknowledged.add(number)

    def many(self, store: Store, numbers: range) -> None:
        store.append_many("t", list(map(value, numbers)), headers=identified(numbers))
        self.acknowledged |= set(numbers)

    def check(self, storage: MemoryStorage, acknowledged: set[int], later_ms: int) -> None:
        """Open what is left, look, and send everything again, later but within the window."""
        with contextlib.closing(self.open(storage, START_MS + later_ms)) as store:
            before = numbers_of(store)
            assert len(before) == len(set(before))
            assert acknowledged <= set(before)
            with store.producer(linger_ms=60_000) as producer:
                futures = [
                    producer.send("t", value(n), headers=identified(range(n, n + 1))[0])
                    for n in range(TOTAL)
                ]
                duplicates = {n for n, each in enumerate(futures) if each.result().duplicate}
            assert set(before) == duplicates
            after = numbers_of(store)
            assert sorted(after) == list(range(TOTAL))
            assert before == after[: len(before)]
            self.many(store, range(TOTAL))
            assert after == numbers_of(store)


def value(number: int) -> bytes:
    return b"%d " % number * (60 if number % 3 else 1)


def numbers_of(store: Store) -> list[int]:
    return [int((record.value or b"").split()[0]) for record in store.read("t")]


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize(("compression", "every"), [("none", 2), ("zstd", 5)])
def test_scenario_64_power_fails_anywhere_and_ids_are_told_apart(
    compression: Compression, every: int
) -> None:
    life = Life(compression)
    every = EVERY or every
    cases = 0
    for case in crash_cases(life.run, seeds=(SEED,), every=every):
        with explained(f"{case}"):
            acknowledged = set(life.acknowledged)
            life.check(case.storage, acknowledged, WINDOW_MS // 2)
            life.check(case.storage.crash(keep="none"), set(range(TOTAL)), WINDOW_MS - 1)
            life.acknowledged = acknowledged
        cases += 1
    assert cases * every > 100


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("partitions", [1, 3])
def test_scenario_64_processes_send_the_same_records_and_are_killed(
    tmp_path: Path, partitions: int
) -> None:
    random, path, total = Random(SEED), tmp_path / "store", 400
    with millstream.open(path) as store:
        store.create_topic("t", partitions=partitions, segment_bytes=1 << 14, dedup="1h")
    for number in range(KILLS // 2):
        with (
            explained(f"{SEED=}, kill {number}"),
            spawn("send_identified", path, total, number) as first,
            spawn("send_identified", path, total, number + 1) as second,
        ):
            for child in (first, second):
                assert b"r" == hear(child), child.stderr and child.stderr.read().decode()
            hear(first, random.randrange(20))
            first.kill()
            hear(second, random.randrange(20))
            second.kill()
    with spawn("send_identified", path, total, 0) as child:
        finish(child)
    with millstream.open(path) as store:
        assert sorted(numbers_of(store)) == list(range(total))
