"""A queue as its workers see it: hand out, lease, settle. Time stands still unless told."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import floor, got, nothing, put, value
from simulated_stores import START_MS, kill, open_quietly

import millstream
from millstream import (
    FencedError,
    Job,
    StorageError,
    Store,
    StoreClosedError,
    TopicPartition,
    UsageError,
)
from millstream.claiming import (
    AHEAD_MAX,
    AHEAD_SECONDS,
    LIVENESS_INTERVAL_SECONDS,
    Claimer,
    Fetched,
)
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


# Handing out and settling


def test_jobs_are_handed_out_in_order_and_never_again_once_acked(store: Store) -> None:
    put(store, 5)
    with store.queue("jobs", follow=False) as queue:
        for number, job in enumerate(queue):
            assert (b"%d" % number, 1, number) == (job.value, job.deliveries, job.offset)
            assert ("jobs", 0, START_MS, None, ()) == (
                job.topic,
                job.partition,
                job.timestamp_ms,
                job.key,
                job.headers,
            )
            job.ack()
            assert "acked" == job.state
        assert 4 == number
    with store.queue("jobs") as queue:
        assert nothing(queue)
    assert [5] == floor(store)


def test_groups_get_every_record_each(store: Store) -> None:
    put(store, 2)
    for group in ("a", "b"):
        with store.queue("jobs", group=group, follow=False) as queue:
            assert [b"0", b"1"] == [job.value for job in queue]


def test_a_new_queue_begins_where_it_is_told(store: Store) -> None:
    put(store, 5)
    with store.queue("jobs", group="new", start="-2") as queue:
        assert b"3" == value(queue.get())
    with store.queue("jobs", group="new", start="earliest") as queue:
        assert b"3" == value(queue.get()), "it is not new any more"
    with pytest.raises(millstream.OffsetOutOfRangeError):
        store.queue("jobs", group="other", start=6)


def test_a_nacked_job_comes_again_and_counts(store: Store) -> None:
    put(store, 2)
    with store.queue("jobs") as queue:
        got(queue.get()).nack()
        again = got(queue.get())
        assert (b"0", 2) == (again.value, again.deliveries)
        again.nack()
        assert 3 == got(queue.get()).deliveries


def test_a_nack_with_a_delay_comes_again_after_it(store: Store, clock: ManualClock) -> None:
    put(store, 2)
    with store.queue("jobs") as queue:
        got(queue.get()).nack(delay="10s")
        got(queue.get()).ack()
        assert nothing(queue)
        clock.advance(9_999)
        assert nothing(queue)
        assert [(1, 0)] == [(each.delayed, each.ready) for each in store.queues()[0].partitions]
        clock.advance(1)
        assert b"0" == value(queue.get(timeout=0))


def test_a_worker_waits_exactly_until_a_delay_is_over(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    with store.queue("jobs") as queue:
        got(queue.get()).nack(delay="10s")
        assert b"0" == value(queue.get())
        assert START_MS + 10_000 <= clock.now_ms() < START_MS + 10_100


def test_many_are_handed_out_and_settled_at_once(store: Store) -> None:
    put(store, 10)
    with store.queue("jobs") as queue:
        jobs = queue.get_many(7)
        assert [b"%d" % number for number in range(7)] == [job.value for job in jobs]
        queue.ack(*jobs[:3])
        queue.nack(*jobs[3:])
        assert ["acked"] * 3 + ["nacked"] * 4 == [job.state for job in jobs]
        again = queue.get_many(100)
        assert [(b"%d" % n, 2 if n < 7 else 1) for n in range(3, 10)] == [
            (job.value, job.deliveries) for job in again
        ]
        queue.ack(*again)
        assert [] == queue.get_many(5, timeout=0)
    assert [10] == floor(store)


def test_a_block_acks_or_nacks_its_job(store: Store) -> None:
    put(store, 3)
    with store.queue("jobs") as queue:
        with got(queue.get()) as job:
            pass
        assert "acked" == job.state
        with pytest.raises(ZeroDivisionError), got(queue.get()) as job:
            raise ZeroDivisionError
        assert "nacked" == job.state
        with got(queue.get()) as job:
            job.nack(delay="1h")
        assert "nacked" == job.state


def test_a_job_is_settled_once(store: Store) -> None:
    put(store, 1)
    with store.queue("jobs") as queue:
        job = got(queue.get())
        job.ack()
        for settle in (job.ack, job.nack, job.reject, job.extend):
            with pytest.raises(UsageError, match=r"acked already .*offset 0"):
                settle()


# Leases


def test_a_job_is_settled_by_the_worker_that_has_it_alone(store: Store) -> None:
    with millstream.open(":memory:") as elsewhere:
        elsewhere.create_topic("jobs")
        put(store, 1)
        put(elsewhere, 1)
        with store.queue("jobs") as ours, elsewhere.queue("jobs") as theirs:
            job, foreign = got(ours.get()), got(theirs.get())
            assert ours.worker_id == theirs.worker_id
            assert job.range == foreign.range
            for settle in (ours.ack, ours.nack, ours.reject, ours.extend):
                with pytest.raises(UsageError, match="another queue"):
                    settle(foreign)
            assert "leased" == job.state == foreign.state
            assert [1] == [each.leased for each in store.queues()[0].partitions]
            foreign.ack()


def test_a_job_that_is_given_twice_is_refused_and_stays_leased(store: Store) -> None:
    put(store, 1)
    with store.queue("jobs") as queue:
        job = got(queue.get())
        for settle in (queue.ack, queue.nack, queue.extend):
            with pytest.raises(UsageError, match="twice"):
                settle(job, job)
        assert "leased" == job.state
        job.ack()


def test_while_a_lease_is_held_nobody_else_gets_the_job(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 1)
    other = open_quietly(storage, clock)
    with store.queue("jobs") as mine, other.queue("jobs") as theirs:
        job = got(mine.get())
        clock.advance(29_999)
        assert nothing(theirs)
        clock.advance(1)
        again = got(theirs.get(timeout=0))
        assert (b"0", 2) == (again.value, again.deliveries)

        with pytest.raises(FencedError, match="lease had passed") as caught:
            job.ack()
        assert ("jobs", 0, 0) == (caught.value.topic, caught.value.partition, caught.value.offset)
        assert "lost" == job.state
        with pytest.raises(FencedError):
            job.nack()
        again.ack()
        assert nothing(mine)
    other.close()


def test_an_ack_after_the_lease_counts_if_nobody_got_the_job(
    store: Store, clock: ManualClock
) -> None:
    put(store, 1)
    with store.queue("jobs", visibility="1s") as queue:
        job = got(queue.get())
        clock.advance(5_000)
        job.ack()
        assert nothing(queue)


def test_extending_keeps_the_lease(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    with store.queue("jobs", visibility="10s") as mine, store.queue("jobs") as theirs:
        job = got(mine.get())
        clock.advance(9_000)
        job.extend()
        clock.advance(9_000)
        job.extend("1m")
        clock.advance(59_000)
        assert nothing(theirs)
        assert "leased" == job.state
        clock.advance(1_000)
        assert b"0" == value(theirs.get(timeout=0))
        with pytest.raises(FencedError):
            job.extend()


def test_a_worker_can_lose_a_job_to_itself(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    with store.queue("jobs", visibility="1s") as queue:
        first = got(queue.get())
        clock.advance(1_000)
        second = got(queue.get())
        with pytest.raises(FencedError):
            first.ack()
        second.ack()


def test_some_of_many_can_be_lost(store: Store, clock: ManualClock) -> None:
    put(store, 4)
    with store.queue("jobs", visibility="1s") as mine, store.queue("jobs") as theirs:
        jobs = mine.get_many(4)
        jobs[1].extend("1h")
        clock.advance(1_000)
        assert [b"0"] == [job.value for job in theirs.get_many(1)]

        with pytest.raises(FencedError, match="offset 0"):
            mine.ack(*jobs)

        assert ["lost", "acked", "lost", "lost"] == [job.state for job in jobs]
        assert [b"2", b"3"] == [job.value for job in theirs.get_many(9)]


def test_closing_gives_back_what_is_not_settled(store: Store) -> None:
    put(store, 3)
    with store.queue("jobs") as queue:
        first, second = got(queue.get()), got(queue.get())
        assert "leased" == first.state
        second.ack()
    queue.close()
    for refused in (first.ack, lambda: queue.get(timeout=0), lambda: next(iter(queue))):
        with pytest.raises(StoreClosedError, match="the queue is closed"):
            refused()
    with store.queue("jobs") as queue:
        # The last one was fetched ahead and never handed out.
        assert [(b"0", 2), (b"2", 1)] == [
            (got(job).value, got(job).deliveries) for job in (queue.get(), queue.get())
        ]


def test_the_jobs_of_a_killed_process_are_others_at_once(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 3)
    dying = open_quietly(storage, clock)
    theirs = dying.queue("jobs", visibility="1h")
    got(theirs.get())
    with store.queue("jobs") as queue:
        assert b"1" == value(queue.get())
        kill(dying)
        clock.advance(PROBE_MS)
        again = got(queue.get(timeout=0))
        assert (b"0", 2) == (again.value, again.deliveries)
    assert 1 == len(storage.list("locks"))


def test_a_waiting_worker_notices_a_killed_one_soon(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    put(store, 1)
    dying = open_quietly(storage, clock)
    got(dying.queue("jobs", visibility="1h").get())
    with store.queue("jobs") as queue:
        assert nothing(queue)
        kill(dying)
        assert b"0" == value(queue.get())
    assert clock.now_ms() - START_MS <= 2 * PROBE_MS


def test_a_job_that_kills_its_workers_takes_no_other_with_it(
    storage: MemoryStorage, store: Store, clock: ManualClock
) -> None:
    """Each worker has fetched ahead when it dies; what it did not hand out counts once at most."""
    put(store, 100)
    processed = []
    for _ in range(3):
        dying = open_quietly(storage, clock)
        queue = dying.queue("jobs", max_deliveries=3, dead_letter="dead")
        clock.advance(PROBE_MS)
        while (job := got(queue.get())).value != b"50":
            processed.append(job.value)
            job.ack()
        kill(dying)
    clock.advance(PROBE_MS)
    with store.queue("jobs", max_deliveries=3, dead_letter="dead", follow=False) as queue:
        for job in queue:
            assert job.deliveries <= 2
            processed.append(job.value)
            job.ack()

    assert {b"%d" % number for number in range(100)} - {b"50"} == set(processed)
    assert 99 == len(processed)
    assert [b"50"] == [record.value for record in store.read("dead")]


def test_a_job_that_another_worker_has_buried_meanwhile_is_buried_once(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever claims it to bury it may stand still for longer than its lease."""
    put(store, 2)

    def queue() -> millstream.Queue:
        return store.queue("jobs", visibility="1s", max_deliveries=1, dead_letter="dead")

    with queue() as first, queue() as slow, queue() as other:
        assert 2 == len(first.get_many(2))
        clock.advance(2000)
        fetch, stands_still = Claimer.fetch, [True]

        def slow_fetch(claimer: Claimer, count: int, *, ahead: bool) -> Fetched:
            fetched = fetch(claimer, count, ahead=ahead)
            if fetched.exhausted and stands_still:
                stands_still.clear()
                clock.advance(2000)
                assert nothing(other)
            return fetched

        monkeypatch.setattr(Claimer, "fetch", slow_fetch)
        assert nothing(slow)
        assert not stands_still
        put(store, 1)
        assert b"2" == value(slow.get())
    assert [b"0", b"1"] == sorted(record.value or b"" for record in store.read("dead"))


# Fetching ahead


def test_quick_workers_fetch_ahead_and_slow_ones_do_not(store: Store, clock: ManualClock) -> None:
    put(store, 5000)
    with store.queue("jobs") as queue:
        for _ in range(3000):
            got(queue.get()).ack()
        assert AHEAD_MAX == queue._claimer._count_ahead
    with store.queue("jobs", group="slow") as queue:
        for _ in range(10):
            got(queue.get()).ack()
            clock.advance(500)
        assert 1 == queue._claimer._count_ahead
        assert [0] == [each.leased for each in store.queues()[0].partitions]


def test_what_was_fetched_ahead_and_not_handed_out_soon_is_given_back(
    store: Store, clock: ManualClock
) -> None:
    put(store, 100)
    with store.queue("jobs") as slow, store.queue("jobs") as idle:
        for _ in range(8):
            got(slow.get()).ack()
        last = int(got(slow.get()).value or b"")
        assert last < int(value(idle.get()) or b"") - 1
        clock.advance(int(AHEAD_SECONDS * 1000) + 1)

        job = got(slow.get())

        assert (b"%d" % (last + 1), 1) == (job.value, job.deliveries)
        assert (b"%d" % (last + 2), 1) == (value(idle.get()), 1)
        clock.advance(29_999)
        job.ack()


def test_a_job_fetched_ahead_is_leased_in_full_when_it_is_handed_out(
    store: Store, clock: ManualClock
) -> None:
    put(store, 100)
    with store.queue("jobs", visibility="1s") as mine, store.queue("jobs") as theirs:
        for _ in range(4):
            got(mine.get()).ack()
        clock.advance(190)
        job = got(mine.get())
        clock.advance(1_000)
        while (taken := theirs.get(timeout=0)) is not None:
            assert taken.value != job.value
            taken.ack()
        job.ack()


# Threads


class SlowCommits(list[tuple[str, str]]):
    """A trace of operations in which a commit takes as long as on a disk."""

    def append(self, operation: tuple[str, str]) -> None:
        super().append(operation)
        if operation[0] == "catalog.sync":
            time.sleep(0.002)


def test_threads_share_a_queue_and_its_commits() -> None:
    count, workers = 400, 8
    storage = MemoryStorage()
    # Without a disk to wait for, threads may come one after the other and share nothing.
    storage.machine.trace = SlowCommits()
    with millstream.open(storage=storage) as store:
        store.create_topic("jobs")
        put(store, count)
        seen: list[bytes | None] = []
        before = len(storage.trace)
        with store.queue("jobs", follow=False) as queue:

            def work() -> None:
                for job in queue:
                    seen.append(job.value)
                    job.ack()

            threads = [threading.Thread(target=work) for _ in range(workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(b"%d" % number for number in range(count)) == sorted(map(bytes, seen))
        assert 0 == store.queues()[0].depth
        syncs = [kind for kind, _ in storage.trace[before:]].count("catalog.sync")
        assert 0 < syncs < count / 4


def test_an_ack_is_synced_after_its_commit_so_that_others_can_commit_meanwhile(
    store: Store, storage: MemoryStorage
) -> None:
    put(store, 2)
    with store.queue("jobs") as queue:
        first, second = queue.get_many(2)
        before = len(storage.trace)
        first.ack()
        assert ["catalog.unsynced", "catalog.sync"] == [kind for kind, _ in storage.trace[before:]]
        storage.machine.faults.fail_next("catalog.sync", errno.EIO)
        with pytest.raises(StorageError, match="sync the catalog"):
            second.ack()


def test_an_ack_that_needs_not_be_durable_is_not_synced(
    store: Store, storage: MemoryStorage
) -> None:
    put(store, 2)
    with store.queue("jobs", durability="os") as queue:
        first, last = queue.get_many(2)
        before = len(storage.trace)
        first.ack()
        assert ["catalog.unsynced"] == [kind for kind, _ in storage.trace[before:]]
        last.ack()
        assert {"catalog.unsynced"} == {kind for kind, _ in storage.trace[before:]}
        assert 0 == store.queues()[0].depth


def test_acks_of_several_handles_are_all_kept(tmp_path: Path) -> None:
    """Each syncs the journal of the catalog, which holds the commits of both."""
    with millstream.open(tmp_path) as one, millstream.open(tmp_path) as two:
        one.create_topic("jobs")
        put(one, 4)
        with one.queue("jobs") as queue, two.queue("jobs") as other:
            jobs = [*queue.get_many(2), *other.get_many(2)]
            for job in jobs:
                job.ack()
            assert 0 == one.queues()[0].depth
    with millstream.open(tmp_path) as store:
        assert 0 == store.queues()[0].depth


def test_closing_ends_the_loops_of_other_threads() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("jobs")
        put(store, 3)
        queue = store.queue("jobs")
        seen = []
        idle = threading.Event()

        def work() -> None:
            for job in queue:
                seen.append(job.value)
                job.ack()
                if job.value == b"2":
                    idle.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert idle.wait(10)
        queue.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [b"0", b"1", b"2"] == seen


def test_a_waiting_worker_is_woken_by_an_append_and_by_a_nack() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("jobs")
        with store.queue("jobs") as mine, store.queue("jobs") as theirs:
            found: list[Job | None] = []
            for wake in (lambda: store.append("jobs", b"new"), lambda: got(found[0]).nack()):
                thread = threading.Thread(target=lambda: found.append(theirs.get(timeout=20)))
                thread.start()
                wake()
                thread.join()
            assert [(b"new", 1), (b"new", 2)] == [
                (got(job).value, got(job).deliveries) for job in found
            ]
            got(found[1]).ack()
            assert nothing(mine)
