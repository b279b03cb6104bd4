"""Scenario 47 with real processes: writers are killed at random moments, again and again.

Each child takes the steps of a random workload; it is killed, what it left is compared with a
model, and the next one goes on from there. Every other time the parent has the store open too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from imagined_store import imagine
from log_model import Model
from restarts import explained
from simulated_stores import START_MS, make_visible
from store_children import hear, say, spawn
from workload import TOPICS, Workload

import millstream
from millstream import Store
from millstream.testing import ManualClock

KILLS = 30
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("segment_bytes", [4096, 1 << 26], ids=["many segments", "one segment"])
def test_scenario_47_writers_are_killed_at_random_moments(
    tmp_path: Path, segment_bytes: int
) -> None:
    path, kills = tmp_path / "store", KILLS // 2

    assert kill_again_and_again(path, seed=SEED, kills=kills, segment_bytes=segment_bytes) > kills


def kill_again_and_again(path: Path, *, seed: int, kills: int, segment_bytes: int) -> int:
    """Kill that many writers one after another; the number of records that are left."""
    random = Random(seed)
    model = Model(TOPICS)
    with millstream.open(path) as store:
        Workload(seed=0, segment_bytes=segment_bytes).create_topics(store)
    for number in range(kills):
        workload = Workload(seed=random.randrange(1 << 30), segment_bytes=segment_bytes)
        now_ms = START_MS + number * 1_000_000
        beside = random.random() < 0.5
        with explained(f"{seed=}, kill {number}, {workload}, {beside=}"):
            bystander = millstream.open(path) if beside else None
            with contextlib.closing(bystander) if bystander else contextlib.nullcontext():
                steps = random.choice((0, 1, 5, random.randrange(40)))
                finished = live_and_die(path, workload, model, now_ms, steps)
                imagine(workload, model, ManualClock(now_ms), finished)
                if bystander:
                    check(bystander, model)
            with millstream.open(path) as store:
                check(store, model)
    with millstream.open(path) as store:
        assert store.verify(deep=True).ok
        return store.verify(deep=True).records


def live_and_die(path: Path, workload: Workload, model: Model, now_ms: int, steps: int) -> int:
    """Let a child live for about that many steps; how many it finished."""
    arguments = (workload.seed, workload.segment_bytes, now_ms, model.summary())
    with spawn("live", path, *arguments) as child:
        assert b"r" == hear(child), child.stderr and child.stderr.read().decode()
        finished = len(hear(child, steps))
        assert finished == steps, child.stderr and child.stderr.read().decode()
        child.kill()
        return finished + len(hear(child, 1 << 20))


def check(store: Store, model: Model) -> None:
    for partition in model.partitions:
        make_visible(store, *partition)
    model.check(store, "acknowledged")


@pytest.mark.crash
@pytest.mark.parametrize("durability", ["os", "interval", "sync"])
def test_scenario_48_a_killed_writer_leaves_all_it_was_told_and_nothing_to_clean_up(
    tmp_path: Path, durability: str
) -> None:
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t", segment_bytes=16384)
    with spawn("append", path, "w", 1_000_000, durability, 1) as writer:
        assert b"r" == hear(writer)
        say(writer)
        hear(writer, 100)
        writer.kill()
        acknowledged = 100 + len(hear(writer, 1 << 20))
        writer.wait()
        for _ in range(2):
            with millstream.open(path) as store:
                written = [record.value for record in store.read("t")]
                count = len(written)
                assert [b"w %d" % number for number in range(count)] == written
                assert acknowledged <= count <= acknowledged + 1
        with millstream.open(path) as store:
            assert count == store.append("t", b"next").offset
            assert store.verify(deep=True).ok
