"""Queues and what is around them: dead letters, transactions, the log, groups, durability."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jobs import floor, got, nothing, put, value
from simulated_stores import START_MS, abandon, kill, open_quietly

import millstream
from millstream import (
    FencedError,
    LockedError,
    Store,
    StoreClosedError,
    TopicPartition,
    UnknownTopicError,
    UsageError,
)
from millstream.claiming import LIVENESS_INTERVAL_SECONDS
from millstream.testing import ManualClock, MemoryStorage

T0 = TopicPartition("jobs", 0)
PROBE_MS = int(LIVENESS_INTERVAL_SECONDS * 1000) + 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    store = open_quietly(storage, clock)
    store.create_topic("jobs")
    yield store
    if not store.closed:
        store.close()


# Dead letters


def test_a_job_delivered_too_often_becomes_a_dead_letter(store: Store, clock: ManualClock) -> None:
    store.append("jobs", b"poison", key=b"k", timestamp_ms=77, headers=[("a", b"1"), ("b", None)])
    put(store, 1)
    with store.queue("jobs", max_deliveries=3, dead_letter="jobs.dead") as queue:
        got(queue.get()).nack()
        got(queue.get()).nack()
        clock.advance(5)
        got(queue.get()).nack(delay="1h")
        assert b"1" == value(queue.get())
        assert nothing(queue)

    (record,) = store.read("jobs.dead")
    assert (b"poison", b"k", 77) == (record.value, record.key, record.timestamp_ms)
    assert (
        ("a", b"1"),
        ("b", None),
        ("dead-letter-topic", b"jobs"),
        ("dead-letter-partition", b"0"),
        ("dead-letter-offset", b"0"),
        ("dead-letter-group", b"workers"),
        ("dead-letter-deliveries", b"3"),
        ("dead-letter-reason", b"delivered 3 times without an ack"),
    ) == record.headers


def test_so_does_one_whose_leases_pass(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    with store.queue("jobs", visibility="1s", max_deliveries=2, dead_letter="dead") as queue:
        first = got(queue.get())
        clock.advance(1_000)
        assert 2 == got(queue.get()).deliveries
        clock.advance(1_000)
        assert nothing(queue)
        with pytest.raises(FencedError):
            first.ack()
    assert [b"0"] == [record.value for record in store.read("dead")]
    assert 0 == store.queues("jobs")[0].depth


def test_a_lost_job_keeps_no_other_from_becoming_a_dead_letter(
    store: Store, clock: ManualClock
) -> None:
    put(store, 4)
    options = {"visibility": "1s", "max_deliveries": 2, "dead_letter": "dead"}
    with store.queue("jobs", **options) as mine, store.queue("jobs", **options) as theirs:
        mine.nack(*mine.get_many(2))
        jobs = mine.get_many(4)
        assert [2, 2, 1, 1] == [job.deliveries for job in jobs]
        mine.extend(*jobs[1:3], visibility="1h")
        clock.advance(1_000)
        assert [b"3"] == [job.value for job in theirs.get_many(9)]

        # Lost: the first, which their look has made a dead letter, and the last.
        with pytest.raises(FencedError, match="offset 3"):
            mine.nack(*jobs)

        assert ["lost", "rejected", "nacked", "lost"] == [job.state for job in jobs]
    assert [b"0", b"1"] == sorted(record.value or b"" for record in store.read("dead"))


def test_a_job_can_be_rejected_at_once(store: Store) -> None:
    put(store, 2)
    with store.queue("jobs", dead_letter="dead") as queue:
        job = got(queue.get())
        job.reject("no such customer")
        assert "rejected" == job.state
        assert b"1" == value(queue.get())
    (record,) = store.read("dead")
    assert ("dead-letter-reason", b"no such customer") == record.headers[-1]
    assert ("dead-letter-deliveries", b"1") == record.headers[-2]


def test_without_a_limit_a_job_comes_again_and_again(store: Store) -> None:
    put(store, 1)
    with store.queue("jobs") as queue:
        for deliveries in range(1, 20):
            job = got(queue.get())
            assert deliveries == job.deliveries
            job.nack()
        with pytest.raises(UsageError, match="no dead-letter topic"):
            got(queue.get()).reject()


def test_dead_letters_are_given_back(store: Store) -> None:
    put(store, 3)
    with store.queue("jobs", dead_letter="dead", follow=False) as queue:
        for job in queue:
            job.reject()
    store.append("dead", b"something else")
    assert [3] == floor(store)

    assert 4 == store.queues("jobs")[0].dead_letters
    assert (2, 0, 0) == store.redrive("dead", limit=2)
    assert 2 == store.queues("jobs")[0].dead_letters
    assert [0] == floor(store)
    assert (1, 0, 1) == store.redrive("dead")
    assert (0, 0, 1) == store.redrive("dead")

    with store.queue("jobs", follow=False) as queue:
        for job in queue:
            assert (1, ()) == (job.deliveries, job.headers)
            job.ack()
    assert [3] == floor(store)
    assert 3 == store.offsets("jobs")[0].end, "nothing was appended for it"


def test_dead_letters_whose_record_is_gone_come_back_as_copies(store: Store) -> None:
    store.append("jobs", b"old", key=b"k", timestamp_ms=5, headers=[("a", b"b")])
    put(store, 1)
    with store.queue("jobs", dead_letter="dead") as queue:
        got(queue.get()).reject()
        got(queue.get()).ack()
    store.trim("jobs", {0: 1})

    assert (0, 1, 0) == store.redrive("dead")

    with store.queue("jobs") as queue:
        job = got(queue.get())
        assert (b"old", b"k", 5, (("a", b"b"),), 2) == (
            job.value,
            job.key,
            job.timestamp_ms,
            job.headers,
            job.offset,
        )


def test_a_dead_letter_that_cannot_be_written_stays_a_job(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 2)
    with store.queue("jobs", max_deliveries=1, dead_letter="dead", visibility="1s") as queue:
        job = got(queue.get())
        storage.faults.fail["write"] = 28
        with pytest.raises(millstream.StorageError):
            job.nack()
        assert "leased" == job.state
        clock.advance(1_000)
        with pytest.raises(millstream.StorageError):
            queue.get()
        storage.faults.clear()
        storage.faults.fail.clear()
        assert b"1" == value(queue.get())
        clock.advance(1_000)
        assert nothing(queue)
    assert [b"0", b"1"] == [record.value for record in store.read("dead")]


# Transactions


def test_a_job_is_acked_with_the_transaction_of_its_results(store: Store) -> None:
    put(store, 2)
    store.create_topic("results")
    with store.queue("jobs") as queue:
        job = got(queue.get())
        with store.transaction() as transaction:
            transaction.append("results", b"done 0")
            transaction.ack(job)
            assert "leased" == job.state
        assert "acked" == job.state
        job = got(queue.get())
        with store.transaction() as transaction:
            transaction.ack(job)
            transaction.append("results", b"done 1")
            transaction.abort()
        assert "leased" == job.state
        job.nack()
        assert 2 == got(queue.get()).deliveries
    assert [b"done 0"] == [record.value for record in store.read("results")]


def test_a_transaction_with_a_lost_job_is_never_seen(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    store.create_topic("results")
    with store.queue("jobs", visibility="1s") as slow, store.queue("jobs") as quick:
        job = got(slow.get())
        with store.transaction() as transaction:
            transaction.append("results", b"late")
            transaction.ack(job)
            clock.advance(1_000)
            quick_job = got(quick.get())
            with pytest.raises(FencedError):
                transaction.commit()
        assert "lost" == job.state
        quick_job.ack()
    assert [] == list(store.read("results"))


def test_records_of_open_transactions_wait_and_aborted_ones_are_passed(store: Store) -> None:
    put(store, 1)
    with store.queue("jobs") as queue:
        got(queue.get()).ack()
        with store.transaction() as transaction:
            transaction.append("jobs", b"in a transaction")
            put(store, 1)
            assert nothing(queue)
        assert [b"in a transaction", b"1"] == [job.value for job in queue.get_many(5)]
        with store.transaction() as transaction:
            transaction.append_many("jobs", [b"never"] * 5)
            transaction.abort()
        assert nothing(queue)
        assert (2, 8) == (store.queues()[0].depth, store.queues()[0].partitions[0].next_offset)


# What the log does meanwhile


def test_all_partitions_are_worked_through(store: Store) -> None:
    store.create_topic("wide", partitions=5)
    for number in range(100):
        store.append("wide", b"%d" % number, key=b"%d" % (number % 17))
    with store.queue("wide", follow=False) as queue:
        seen = []
        for job in queue:
            seen.append(int(job.value or b""))
            job.ack()
    assert list(range(100)) == sorted(seen)
    assert [0] * 5 == [each.lag for each in store.group_lag("workers")]


def test_what_retention_removes_is_no_job_any_more(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, 10)
    with store.queue("jobs") as queue:
        jobs = queue.get_many(4)
        jobs[0].ack()
        jobs[1].nack(delay="1s")
        store.trim("jobs", {0: 7})
        assert b"7" == value(queue.get())
        with pytest.raises(FencedError):
            jobs[2].ack()
    assert "retention removed 6 offsets before the queue of group 'workers' was done" in caplog.text
    assert 7 == floor(store)[0]


def test_jobs_can_be_skipped(store: Store) -> None:
    put(store, 10)
    with store.queue("jobs") as queue:
        assert b"0" == value(queue.get())
        assert 4 == store.skip_jobs("jobs", "workers", 4, dry_run=True)
        assert 4 == store.skip_jobs("jobs", "workers", 4)
        assert b"4" == value(queue.get_many(1)[0])
        assert 6 == store.skip_jobs("jobs", "workers", "latest", partition=0)
        assert nothing(queue)
    with pytest.raises(millstream.UnknownGroupError):
        store.skip_jobs("jobs", "nobody", "latest")


def test_damage_is_named_and_can_be_skipped(storage: MemoryStorage, store: Store) -> None:
    for number in range(3):
        store.append("jobs", b"%d" % number)
    file = storage.open("topics/jobs/0/00000000000000000000.segment", "rw")
    file.write([b"X"], 128 + 256 + 200)
    with store.queue("jobs") as queue:
        assert b"0" == value(queue.get())
        for _ in range(2):
            with pytest.raises(millstream.DataError, match="offset 1") as caught:
                queue.get()
        assert caught.value.path == "topics/jobs/0/00000000000000000000.segment"
        assert caught.value.offset is not None
        store.skip_jobs("jobs", "workers", caught.value.offset + 1)
        assert b"2" == value(queue.get())


def test_a_queue_ends_with_its_topic(store: Store) -> None:
    put(store, 1)
    queue = store.queue("jobs")
    job = got(queue.get())
    store.delete_topic("jobs")
    store.create_topic("jobs")
    put(store, 1)
    with pytest.raises(UnknownTopicError):
        job.ack()
    with pytest.raises(UnknownTopicError):
        queue.get()
    queue.close()
    with store.queue("jobs") as queue:
        assert b"0" == value(queue.get())


def test_a_closed_store_ends_its_queues(storage: MemoryStorage, store: Store) -> None:
    put(store, 2)
    queue = store.queue("jobs")
    job = got(queue.get())
    store.close()
    for refused in (job.ack, lambda: queue.get(timeout=0), lambda: next(iter(queue))):
        with pytest.raises(StoreClosedError):
            refused()
    queue.close()
    with open_quietly(storage) as after, after.queue("jobs") as queue:
        assert (b"0", 2) == ((again := got(queue.get())).value, again.deliveries)


# Queues and other groups


def test_a_group_is_one_of_consumers_or_of_queues(store: Store) -> None:
    put(store, 1)
    with store.consumer("jobs", group="readers") as consumer:
        consumer.poll()
        consumer.commit()
    with pytest.raises(UsageError, match="group of consumers"):
        store.queue("jobs", group="readers")
    with store.queue("jobs", group="workers"):
        for refused in (
            lambda: store.consumer("jobs", group="workers"),
            lambda: store.plan_reset("workers", "earliest"),
        ):
            with pytest.raises(UsageError, match="group of a queue"):
                refused()
        with (
            pytest.raises(UsageError, match="group of a queue"),
            store.transaction() as transaction,
        ):
            transaction.commit_offsets("workers", {T0: 1})


def test_a_queue_is_deleted_with_its_group_unless_somebody_works(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 1)
    other = open_quietly(storage, clock)
    assert 1 == other.queue("jobs").worker_id
    with pytest.raises(LockedError, match="its queue has 1 live worker"):
        store.delete_group("workers")
    kill(other)
    store.delete_group("workers")
    assert [] == store.queues()
    assert [] == store.groups()
    with store.queue("jobs") as queue:
        assert b"0" == value(queue.get())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visibility": 0}, "visibility is 0"),
        ({"visibility": "soon"}, "not a duration"),
        ({"max_deliveries": 0, "dead_letter": "dead"}, "max_deliveries is 0"),
        ({"max_deliveries": 3}, "needs dead_letter"),
        ({"dead_letter": "jobs"}, "its own dead-letter topic"),
        ({"dead_letter": "a/b"}, "not a topic name"),
        ({"group": ""}, "not a group name"),
        ({"durability": "soon"}, "durability is"),
    ],
)
def test_wrong_options_are_refused(store: Store, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.queue("jobs", **options)  # type: ignore[arg-type]
    assert [] == store.queues()


def test_wrong_calls_are_refused(store: Store) -> None:
    with pytest.raises(UnknownTopicError):
        store.queue("nothing")
    with store.queue("jobs") as queue, pytest.raises(UsageError, match="count is 0"):
        queue.get_many(0)
    with pytest.raises(UsageError, match="limit is 0"):
        store.redrive("jobs", limit=0)


def test_a_queue_is_described(storage: MemoryStorage, store: Store, clock: ManualClock) -> None:
    put(store, 10)
    with store.queue("jobs", visibility="1m", max_deliveries=4, dead_letter="dead") as queue:
        jobs = queue.get_many(4)
        jobs[0].ack()
        jobs[1].nack()
        jobs[2].nack(delay="1h")
        (info,) = store.queues()
        assert ("jobs", "workers", 60_000, 4, "dead", 0) == info[:6]
        assert [(0, 4, 10, 7, 1, 1)] == [tuple(each) for each in info.partitions]
        assert 9 == info.depth
        assert 1 == len(info.workers)
        reader = open_quietly(storage, clock, read_only=True)
        assert [info] == reader.queues("jobs")
        assert [] == reader.queues("dead")
        with pytest.raises(UsageError, match="read-only"):
            reader.queue("jobs")
        reader.close()


# Durability


@pytest.mark.parametrize(("durability", "acked"), [("sync", True), ("os", False)])
def test_an_ack_is_as_durable_as_the_queue(
    storage: MemoryStorage, store: Store, clock: ManualClock, durability: str, acked: bool
) -> None:
    put(store, 2)
    queue = store.queue("jobs", durability=durability)  # type: ignore[arg-type]
    got(queue.get()).ack()

    after = open_quietly(storage.crash(keep="none"), clock)
    abandon(store)

    with after.queue("jobs") as queue:
        assert (b"1" if acked else b"0") == value(queue.get())
    after.close()


def test_acks_can_be_made_durable_later(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 2)
    queue = store.queue("jobs", durability="os")
    got(queue.get()).ack()
    store.sync()

    after = open_quietly(storage.crash(keep="none"), clock)
    abandon(store)

    with after.queue("jobs") as queue:
        assert b"1" == value(queue.get())
    after.close()
