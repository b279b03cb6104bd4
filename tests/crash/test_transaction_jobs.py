"""Jobs acked in one commit with results and rows in a database of the user's, cut anywhere.

What must hold: of each job there is one row and one result, and it is not handed out again, or
there is neither, and it is. The database alone decides, also for workers of other processes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from random import Random

import pytest
from interrupted_process import Killed, ProcessStorage
from kill_roles import check_jobs_in_rows, create
from restarts import explained
from simulated_stores import START_MS, abandon, kill, open_quietly, until_power_fails
from users_file import JOURNALS, UsersFile, cut_everywhere
from zygote import Report, Zygote

import millstream
from millstream import Queue, Store
from millstream.testing import ManualClock, MemoryStorage

SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "1"))
KILLS = int(os.environ.get("MILLSTREAM_KILLS", "60"))
COUNT = 5


def new_store(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("jobs")
        store.create_topic("done")
        store.append_many("jobs", [b"%d" % number for number in range(COUNT)])


def do(store: Store, queue: Queue, database: UsersFile) -> bool:
    """Take a job, write its row, append its result, and ack it; False if there is none."""
    job = queue.get(timeout=0)
    if job is None:
        return False
    assert job.value is not None
    with store.transaction(database=database.path) as transaction:
        transaction.execute("INSERT INTO rows VALUES (?)", (int(job.value),))
        transaction.append("done", job.value)
        transaction.ack(job)
    return True


def done(store: Store, database: UsersFile) -> int:
    """How many jobs are done: rows, results and the queue say the same."""
    rows = database.numbers()
    results = [int(record.value or b"") for record in store.read("done")]
    assert rows == results
    assert len(set(rows)) == len(rows)
    queues = store.queues("jobs")
    assert COUNT - len(rows) == (queues[0].depth if queues else COUNT)
    return len(rows)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("journal", JOURNALS)
def test_power_fails_at_each_step_of_a_commit_with_a_job(fast_path: Path, journal: str) -> None:
    database = UsersFile(fast_path / "my.db", journal)
    acknowledged = 0

    def work(storage: MemoryStorage) -> None:
        nonlocal acknowledged
        acknowledged = 0
        with until_power_fails(open_quietly(storage)) as store, store.queue("jobs") as queue:
            for _ in range(2):
                assert do(store, queue, database)
                acknowledged += 1
            aborted = pytest.raises(ZeroDivisionError)
            with aborted, store.transaction(database=database.path) as transaction:
                job = queue.get(timeout=0)
                assert job is not None
                transaction.execute("INSERT INTO rows VALUES (-1)")
                transaction.ack(job)
                raise ZeroDivisionError
            job.nack()

    finished_by_others = 0
    for case in cut_everywhere(database, new_store, work, seed=SEED, every=EVERY):
        with explained(f"{case}"):
            storage, committed = case.storage, acknowledged
            in_file = len(database.numbers())
            finished_by_others += in_file > committed
            for again in range(2):
                with contextlib.closing(open_quietly(storage)) as store:
                    assert in_file == done(store, database)
                    assert in_file in {committed, committed + 1}
                    with store.queue("jobs") as queue:
                        assert do(store, queue, database)
                    committed = in_file = in_file + 1
                    assert in_file == done(store, database)
                if not again:
                    storage = storage.crash(keep="none")
            with contextlib.closing(open_quietly(storage)) as store, store.queue("jobs") as queue:
                while do(store, queue, database):
                    pass
                assert COUNT == done(store, database)
    assert finished_by_others, "no crash between the two commits"


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("late", [False, True])
def test_who_takes_over_knows_which_jobs_a_dead_process_has_committed(
    fast_path: Path, late: bool
) -> None:
    """Killed at each operation while another worker lives, who also sees the leases run out."""
    database = UsersFile(fast_path / "my.db", "wal" if late else "delete")
    index, finished, decided = 0, False, 0
    while not finished:
        with explained(f"kill at operation {index}"):
            database.create()
            storage = MemoryStorage()
            new_store(storage)
            clock = ManualClock(START_MS)
            survivor = open_quietly(storage, clock)
            worker = survivor.queue("jobs")
            process = ProcessStorage(storage)
            process.interrupt(Killed(), at=index)
            dying = None
            with contextlib.suppress(Killed):
                dying = open_quietly(process, clock)
                queue = dying.queue("jobs")
                for _ in range(2):
                    assert do(dying, queue, database)
                dying.close()
            finished = process.operations <= index
            if dying is not None and not finished:
                kill(dying)  # also if it was closing: its locks may be held
            in_file = len(database.numbers())
            decided += not finished and in_file > 0
            clock.advance(60_000 if late else 1_000)
            while do(survivor, worker, database):
                clock.advance(1_000)
            assert COUNT == done(survivor, database)
            abandon(survivor)
        index += 1
    assert decided > 5


@pytest.mark.slow
@pytest.mark.crash
def test_jobs_rows_and_results_are_exact_after_random_kills(fast_path: Path) -> None:
    random = Random(SEED)
    kills = 0
    with Zygote() as zygote:
        while kills < KILLS:
            path = fast_path / f"store{kills}"
            create(path, random)
            reports: list[Report] = []
            for _ in range(min(20, KILLS - kills)):
                seeds = random.randrange(1 << 30), random.randrange(1 << 30)
                with (
                    zygote.spawn("jobs_in_rows", path, seeds[0]) as child,
                    zygote.spawn("jobs_in_rows", path, seeds[1]) as other,
                ):
                    child.hear(random.randrange(6))
                    reports += child.kill()
                    other.hear(random.randrange(3))
                    reports += other.kill()
                kills += 2
            with explained(f"{SEED=}, kill {kills}"), millstream.open(path) as store:
                check_jobs_in_rows(store, reports)
            assert reports
