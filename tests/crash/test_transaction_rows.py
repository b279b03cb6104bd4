"""Scenarios 60 and 67: transactions with rows in a database of the user's, cut anywhere.

What must hold: records, group offset, checkpoint and rows say the same, at once for whoever opens
the store next, wherever the power fails or the process dies; the database alone decides.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from interrupted_process import Killed, ProcessStorage
from kill_roles import check_rows, create
from restarts import explained
from simulated_stores import abandon, kill, open_quietly, until_power_fails
from users_file import JOURNALS, UsersFile, cut_everywhere
from zygote import Report, Zygote

import millstream
from millstream import Store, TopicPartition
from millstream.testing import MemoryStorage

SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "2"))
KILLS = int(os.environ.get("MILLSTREAM_KILLS", "100"))
IN0 = TopicPartition("in", 0)


def write(store: Store, database: UsersFile, number: int) -> None:
    """One number everywhere."""
    with store.transaction(database=database.path) as transaction:
        transaction.append_many("out", [b"%d" % number] * 2, partition=0)
        transaction.execute("INSERT INTO rows VALUES (?)", (number,))
        transaction.append("out", b"%d" % number, partition=1)
        transaction.commit_offsets("g", {IN0: number + 1})
        transaction.put_checkpoint("c", b"%d" % (number + 1))


def count_of(store: Store, database: UsersFile) -> int:
    """How many numbers there are, everywhere the same."""
    done = int(store.checkpoint("c") or b"0")
    expected = [b"%d" % number for number in range(done)]
    first = [record.value for record in store.read("out", partition=0)]
    assert [value for value in expected for _ in range(2)] == first
    assert expected == [record.value for record in store.read("out", partition=1)]
    assert list(range(done)) == database.numbers()
    if done:
        (lag,) = store.group_lag("g")
        assert done == lag.committed
    return done


def new_store(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("in")
        store.create_topic("out", partitions=2)
        store.append_many("in", [b"x"] * 9)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("journal", JOURNALS)
def test_scenario_67_power_fails_at_each_step_of_a_commit_with_rows(
    fast_path: Path, journal: str
) -> None:
    database = UsersFile(fast_path / "my.db", journal)
    acknowledged = 0

    def work(storage: MemoryStorage) -> None:
        nonlocal acknowledged
        acknowledged = 0
        with until_power_fails(open_quietly(storage)) as store:
            for number in range(2):
                write(store, database, number)
                acknowledged = number + 1
            aborted = pytest.raises(ZeroDivisionError)
            with aborted, store.transaction(database=database.path) as transaction:
                transaction.append("out", b"aborted", partition=0)
                transaction.execute("INSERT INTO rows VALUES (-1)")
                raise ZeroDivisionError

    finished_by_others = 0
    for case in cut_everywhere(database, new_store, work, seed=SEED, every=EVERY):
        with explained(f"{case}"):
            storage, committed = case.storage, acknowledged
            in_file = len(database.numbers())
            finished_by_others += case.kind == "catalog.commit" and in_file > committed
            for again in range(2):
                with contextlib.closing(open_quietly(storage)) as store:
                    done = count_of(store, database)
                    assert in_file == done
                    assert done in {committed, committed + 1}
                    write(store, database, done)
                    assert done + 1 == count_of(store, database)
                committed, in_file = done + 1, done + 1
                if not again:
                    storage = storage.crash(keep="none")
    assert finished_by_others, "no crash between the two commits"


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize(("journal", "read_first"), [("delete", False), ("wal", True)])
def test_scenario_60_who_takes_over_decides_what_a_dead_process_left(
    fast_path: Path, journal: str, read_first: bool
) -> None:
    """Killed at each operation while others live: a plain reader, or a member of the group."""
    database = UsersFile(fast_path / "my.db", journal)
    index, finished, decided = 0, False, 0
    while not finished:
        with explained(f"kill at operation {index}"):
            database.create()
            storage = MemoryStorage()
            new_store(storage)
            survivor = open_quietly(storage)
            process = ProcessStorage(storage)
            process.interrupt(Killed(), at=index)
            dying = None
            with contextlib.suppress(Killed):
                dying = open_quietly(process)
                consumer = dying.consumer("in", group="g")
                for number in range(2):
                    consumer.poll(0, max_records=1)
                    write(dying, database, number)
                consumer.close()
                dying.close()
            if dying is not None and not dying.closed:
                kill(dying)
            in_file = len(database.numbers())
            if read_first:
                assert in_file == len(list(survivor.read("out", partition=1)))
            with survivor.consumer("in", group="g") as newcomer:
                offsets = [record.offset for record in newcomer.poll(0)]
                assert list(range(in_file, 9)) == offsets
            assert in_file == count_of(survivor, database)
            write(survivor, database, in_file)
            assert in_file + 1 == count_of(survivor, database)
            decided += process.operations > index and in_file > 0
            finished = process.operations <= index
            abandon(survivor)
        index += 1
    assert decided > 5


@pytest.mark.slow
@pytest.mark.crash
def test_scenario_60_rows_and_offsets_are_exact_after_random_kills(fast_path: Path) -> None:
    random = Random(SEED)
    kills = 0
    with Zygote() as zygote:
        while kills < KILLS:
            path = fast_path / f"store{kills}"
            create(path, random)
            reports: list[Report] = []
            for _ in range(min(20, KILLS - kills)):
                with zygote.spawn("writes_rows", path, random.randrange(1 << 30)) as child:
                    child.hear(random.randrange(6))
                    reports += child.kill()
                kills += 1
                if random.random() < 0.3:
                    with explained(f"{SEED=}, kill {kills}"), millstream.open(path) as store:
                        check_rows(store, reports)
            with explained(f"{SEED=}, kill {kills}"), millstream.open(path) as store:
                check_rows(store, reports)
            assert max(number for number, *_ in reports) > 0
