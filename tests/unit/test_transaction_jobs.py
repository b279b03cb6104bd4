"""Jobs acked in a transaction with rows in a database of the user's, and what goes wrong."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_stores import START_MS, kill, open_quietly

import millstream
from millstream import FencedError, Job, Queue, StorageError, Store, UsageError, UserDatabase
from millstream.catalog import GroupOffset
from millstream.decisions import decode_outcome, encode_outcome
from millstream.owner_catalog import Outcome
from millstream.queue_ranges import Lease, Range
from millstream.sql_values import SQLValue
from millstream.testing import ManualClock, MemoryStorage

VISIBILITY_MS = 31_000
"""More than the lease of a job and the time it may be fetched ahead."""


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as store:
        store.create_topic("jobs")
        store.create_topic("done")
        store.append_many("jobs", [b"%d" % number for number in range(3)])
        yield store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "my.db"
    with UserDatabase(path) as database, database.transaction("make a table"):
        database.query("CREATE TABLE rows (number INTEGER PRIMARY KEY)")
    return path


def numbers(path: Path) -> list[SQLValue]:
    with UserDatabase(path, read_only=True) as database:
        return [number for (number,) in database.query("SELECT number FROM rows")]


def results(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("done")]


def depth(store: Store) -> int:
    return store.queues("jobs")[0].depth


def take(queue: Queue) -> Job:
    job = queue.get(timeout=0)
    assert job is not None
    return job


def commit(store: Store, path: Path, *jobs: Job) -> None:
    """A row and a result for each job, and its ack."""
    with store.transaction(database=path) as transaction:
        for job in jobs:
            assert job.value is not None
            transaction.execute("INSERT INTO rows VALUES (?)", (int(job.value),))
            transaction.append("done", job.value)
        transaction.ack(*jobs)


def test_rows_results_and_acks_are_seen_together(store: Store, path: Path) -> None:
    with store.queue("jobs") as queue:
        jobs = queue.get_many(2, timeout=0)
        with store.transaction(database=path) as transaction:
            transaction.execute_many("INSERT INTO rows VALUES (?)", [(0,), (1,)])
            transaction.append_many("done", [b"0", b"1"])
            transaction.ack(*jobs)
            assert ([], [], 3, "leased") == (
                numbers(path),
                results(store),
                depth(store),
                jobs[0].state,
            )

        assert ([0, 1], [b"0", b"1"], 1) == (numbers(path), results(store), depth(store))
        assert ["acked", "acked"] == [job.state for job in jobs]


def test_after_an_abort_the_jobs_are_still_leased(store: Store, path: Path) -> None:
    with store.queue("jobs") as queue:
        job = take(queue)
        aborted = pytest.raises(ZeroDivisionError)
        with aborted, store.transaction(database=path) as transaction:
            transaction.execute("INSERT INTO rows VALUES (7)")
            transaction.ack(job)
            raise ZeroDivisionError
        assert ([], "leased", 3) == (numbers(path), job.state, depth(store))
        commit(store, path, job)

        assert ([0], [b"0"], 2) == (numbers(path), results(store), depth(store))


def test_of_a_job_that_was_lost_no_rows_are_committed(
    store: Store, path: Path, clock: ManualClock
) -> None:
    with store.queue("jobs") as queue, store.queue("jobs") as other:
        job = take(queue)
        clock.advance(VISIBILITY_MS)
        again = next(each for each in other.get_many(3, timeout=0) if each.value == job.value)
        with pytest.raises(FencedError, match="another worker"):
            commit(store, path, job)
        assert ("lost", [], []) == (job.state, numbers(path), results(store))
        commit(store, path, again)

        assert ([0], [b"0"], 2) == (numbers(path), results(store), depth(store))


def test_wrong_acks_are_refused(store: Store, path: Path, storage: MemoryStorage) -> None:
    with (
        store.queue("jobs") as queue,
        millstream.open(":memory:") as elsewhere,
        elsewhere.transaction() as foreign,
        store.transaction(database=path) as transaction,
    ):
        job = take(queue)
        with pytest.raises(UsageError, match="not of this store"):
            foreign.ack(job)
        with pytest.raises(UsageError, match="twice"):
            transaction.ack(job, job)
        transaction.ack(job)
        with pytest.raises(UsageError, match="twice"):
            transaction.ack(job)
    assert ("acked", 2) == (job.state, depth(store))


# --- between the two commits -------------------------------------------------------------------


class Stop(BaseException):
    """A process that dies, as far as the transaction can tell."""


def die_between(storage: MemoryStorage, clock: ManualClock, path: Path) -> None:
    """A process that has committed the row of the first job, and not its ack."""
    dying = open_quietly(storage, clock)
    die_committing(dying, take(dying.queue("jobs")), path)


def die_committing(dying: Store, job: Job, path: Path) -> None:
    def stop(kind: str) -> None:
        if kind == "catalog.commit" and int(job.value or b"") in numbers(path):
            raise Stop

    dying._engine.catalog.database._on_commit = stop
    with contextlib.suppress(Stop):
        commit(dying, path, job)
    kill(dying)


def test_a_job_whose_row_is_committed_is_not_handed_out_again(
    store: Store, storage: MemoryStorage, clock: ManualClock, path: Path
) -> None:
    with store.queue("jobs") as queue:
        die_between(storage, clock, path)
        assert [b"1", b"2"] == [job.value for job in queue.get_many(3, timeout=0)]
        assert ([0], [b"0"], 2) == (numbers(path), results(store), depth(store))


def test_a_process_that_commits_and_dies_while_its_lease_is_taken_back_keeps_the_job(
    store: Store, storage: MemoryStorage, clock: ManualClock, path: Path
) -> None:
    dying = open_quietly(storage, clock)
    job = take(dying.queue("jobs"))
    with store.queue("jobs") as queue:
        commit(dying, path, *dying.queue("jobs").get_many(1, timeout=0))
        clock.advance(VISIBILITY_MS)
        database = store._engine.catalog.database
        announce = database._on_commit
        assert announce is not None

        def die_first(kind: str) -> None:
            if kind == "catalog.unsynced":  # the lease is about to be taken back
                database._on_commit = announce
                die_committing(dying, job, path)
            announce(kind)

        database._on_commit = die_first
        assert [b"2"] == [each.value for each in queue.get_many(3, timeout=0)]
        clock.advance(1_000)
        assert queue.get(timeout=0) is None
        assert ([0, 1], [b"1", b"0"], 1) == (numbers(path), results(store), depth(store))


def test_while_the_database_is_gone_the_job_is_nobodys(
    store: Store, storage: MemoryStorage, clock: ManualClock, path: Path
) -> None:
    with store.queue("jobs") as queue:
        die_between(storage, clock, path)
        away = path.rename(path.with_name("away.db"))
        queue.ack(*queue.get_many(3, timeout=0))
        clock.advance(VISIBILITY_MS)
        assert queue.get(timeout=0) is None
        assert 1 == depth(store)
        away.rename(path)
        clock.advance(VISIBILITY_MS)

        assert queue.get(timeout=0) is None
        assert ([0], [b"0"], 0) == (numbers(path), results(store), depth(store))


def test_who_does_not_know_whether_a_job_is_acked_settles_it_no_other_way(
    store: Store, storage: MemoryStorage, clock: ManualClock, path: Path
) -> None:
    """The rows are committed, and a full disk keeps the catalog from following."""
    queue = store.queue("jobs")
    job = take(queue)
    full = pytest.raises(StorageError)
    with full, store.transaction(database=path) as transaction:
        transaction.execute("INSERT INTO rows VALUES (0)")
        transaction.append("done", b"0")
        transaction.ack(job)
        store._engine.catalog.sync()  # so that the commit has nothing to do before the rows
        storage.faults.fail[("catalog.commit", commits(storage))] = errno.ENOSPC
    assert ("unknown", "undecided", [0]) == (transaction.state, job.state, numbers(path))
    with pytest.raises(UsageError, match="state is unknown"):
        job.nack()
    storage.faults.clear()
    queue.close()

    with store.queue("jobs") as other:
        assert [b"1", b"2"] == [each.value for each in other.get_many(3, timeout=0)]
        assert ([0], [b"0"], 2) == (numbers(path), results(store), depth(store))


def commits(storage: MemoryStorage) -> int:
    return [kind for kind, _ in storage.trace].count("catalog.commit")


def test_a_lease_that_runs_out_waits_for_a_live_process_that_cannot_tell(
    store: Store, storage: MemoryStorage, clock: ManualClock, path: Path
) -> None:
    stuck = open_quietly(storage, clock)
    with store.queue("jobs") as other, stuck.queue("jobs") as queue:
        job = take(queue)
        full = pytest.raises(StorageError)
        with full, stuck.transaction(database=path) as transaction:
            transaction.execute("INSERT INTO rows VALUES (0)")
            transaction.append("done", b"0")
            transaction.ack(job)
            stuck._engine.catalog.sync()
            storage.faults.fail[("catalog.commit", commits(storage))] = errno.ENOSPC
        assert "unknown" == transaction.state
        storage.faults.clear()
        clock.advance(VISIBILITY_MS)

        assert [b"1", b"2"] == [each.value for each in other.get_many(3, timeout=0)]
        assert ([0], [b"0"], 2) == (numbers(path), results(store), depth(store))
    stuck.close()


def test_decisions_say_which_jobs_are_acked() -> None:
    offsets = [(GroupOffset("g", 1, 0, 5), None)]
    plain = Outcome(offsets, {"c": b"x"})
    acked = Outcome(offsets, {}, [Lease(1, 2, Range(0, 5, 6, 1))])
    assert plain == decode_outcome(encode_outcome(plain), "my.db")._replace(jobs=())
    assert acked == decode_outcome(encode_outcome(acked), "my.db")
    assert (1, 2) == (encode_outcome(plain)[1], encode_outcome(acked)[1])
