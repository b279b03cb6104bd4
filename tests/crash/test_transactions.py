"""Scenarios 60, 67 and 69: transactions of several partitions, offsets and a group, cut anywhere.

What must hold: all of a transaction is seen or nothing, wherever the power fails and whatever part
of what was not synced survives; and what a group reads comes out once, whoever dies in between.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from interrupted_process import Killed, ProcessStorage
from restarts import explained
from simulated_stores import abandon, kill, open_quietly, until_power_fails
from store_children import hear, say, spawn

import millstream
from millstream import Store, TopicPartition
from millstream.testing import MemoryStorage, crash_cases

if TYPE_CHECKING:
    from matrix import Cell

SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "3"))
PARTITIONS = 3
IN0 = TopicPartition("in", 0)


def several_partitions(store: Store, number: int) -> None:
    """One transaction over all partitions, a group's offset and a checkpoint."""
    with store.transaction() as transaction:
        for partition in range(PARTITIONS):
            transaction.append("out", b"%d" % number, partition=partition)
        transaction.commit_offsets("g", {IN0: number + 1})
        transaction.put_checkpoint("c", b"%d" % number)


def seen(store: Store) -> list[list[bytes | None]]:
    return [
        [
            record.value
            for record in store.read("out", partition=partition)
            if record.value != b"before"
        ]
        for partition in range(PARTITIONS)
    ]


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_67_power_fails_at_each_step_of_a_commit_over_partitions(cell: Cell) -> None:
    """With many outcomes for each: any of the partitions may have lost what was not synced."""
    acknowledged = 0

    def start() -> MemoryStorage:
        storage = MemoryStorage()
        with open_quietly(storage) as store:
            store.create_topic("in")
            store.create_topic("out", partitions=PARTITIONS, compression=cell.codec)
            for sealed in range(cell.sealed * PARTITIONS):
                store.append("out", b"before", partition=sealed % PARTITIONS)
                store.roll("out", sealed % PARTITIONS)
            store.append_many("in", [b"x"] * 9)
        return storage

    def work(storage: MemoryStorage) -> None:
        nonlocal acknowledged
        acknowledged = 0
        with until_power_fails(open_quietly(storage)) as store:
            for number in range(2):
                several_partitions(store, number)
                acknowledged = number + 1
            with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
                for partition in range(PARTITIONS):
                    transaction.append("out", b"aborted", partition=partition)
                raise ZeroDivisionError

    torn = 0
    seeds = range(SEED, SEED + 2**PARTITIONS)
    for case in crash_cases(work, start=start, seeds=seeds, every=EVERY):
        with explained(f"{case}"):
            storage, committed = case.storage, acknowledged
            for _ in range(cell.restarts):
                with open_quietly(storage) as store:
                    found = seen(store)
                    assert all(each == found[0] for each in found), found
                    done = len(found[0])
                    assert found[0] == [b"%d" % number for number in range(done)]
                    assert done in {committed, committed + 1}
                    checkpoint = b"%d" % (done - 1) if done else None
                    assert store.checkpoint("c") == checkpoint
                    if done:
                        (lag,) = store.group_lag("g")
                        assert lag.committed == done
                    torn += done == committed and not case.finished
                    several_partitions(store, done)
                    assert [b"%d" % number for number in range(done + 1)] == seen(store)[0]
                    committed = done + 1
                storage = storage.crash(keep="none")
    assert torn * EVERY > 100


def copy_in_a_group(store: Store, batch: int = 3) -> None:
    """What a member of a group does: read, write elsewhere, and commit both at once."""
    with store.consumer("in", group="copy", start="earliest") as consumer:
        while records := consumer.poll(0, max_records=batch):
            with store.transaction() as transaction:
                for record in records:
                    transaction.append("out", record.value, partition=record.partition)
                ends = {
                    TopicPartition(each.topic, each.partition): each.offset + 1 for each in records
                }
                transaction.commit_offsets("copy", ends)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_60_a_member_is_killed_between_processing_and_commit(cell: Cell) -> None:
    """At each of its operations, before and after; another member goes on where it stood."""
    index, finished, taken_over = 0, False, 0
    expected = [b"%d" % number for number in range(12)]
    while not finished:
        for after in (False, True):
            with explained(f"kill at operation {index}, {after=}"):
                storage = MemoryStorage()
                survivor = open_quietly(storage)
                survivor.create_topic("in", partitions=2, compression=cell.codec)
                survivor.create_topic("out", partitions=2, compression=cell.codec)
                for number, value in enumerate(expected):
                    if cell.sealed and number in {4, 8}:
                        survivor.roll("in", 0)
                        survivor.roll("in", 1)
                    survivor.append("in", value, partition=number % 2)
                process = ProcessStorage(storage)
                process.interrupt(Killed(), at=index, after=after)
                member = None
                try:
                    member = open_quietly(process)
                    copy_in_a_group(member)
                    member.close()
                except Killed:
                    if member is not None:
                        kill(member)
                copied = len(list(survivor.read("out")))
                copy_in_a_group(survivor)
                assert sorted(expected) == sorted(
                    record.value or b"" for record in survivor.read("out")
                )
                taken_over += 0 < copied < len(expected)
                finished = process.operations <= index
                abandon(survivor)
                for _ in range(cell.restarts):
                    storage = storage.crash(keep="none")
                    with open_quietly(storage) as store:
                        copy_in_a_group(store)
                        found = [record.value or b"" for record in store.read("out")]
                    assert sorted(expected) == sorted(found)
        index += 1
    assert taken_over > 5


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_69_a_stopped_owner_is_aborted_and_fenced_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t")
        with spawn("commit_when_told", path, "1s") as stuck:
            assert b"r" == hear(stuck), stuck.stderr and stuck.stderr.read().decode()
            stuck.send_signal(signal.SIGSTOP)
            store.append("t", b"after")
            with store.consumer("t", follow=True) as consumer:
                record = next(iter(consumer))
            assert b"after" == record.value
            stuck.send_signal(signal.SIGCONT)
            say(stuck)
            assert b"f" == hear(stuck), stuck.stderr and stuck.stderr.read().decode()
        assert [b"after"] == [record.value for record in store.read("t")]
        everything = store.read("t", isolation="uncommitted")
        assert [b"never", b"after"] == [record.value for record in everything]
