import contextlib
import logging
import threading
from collections.abc import Iterator

import pytest

from millstream import groups
from millstream.consumer import Consumer
from millstream.errors import (
    FencedError,
    OffsetOutOfRangeError,
    StoreClosedError,
    UnknownTopicError,
    UsageError,
)
from millstream.membership import LEASE_MS
from millstream.record import Record, TopicPartition
from millstream.store import Store, open_store
from millstream.testing import ManualClock, MemoryStorage

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_ms=1_000_000)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_store(storage=storage, clock=clock) as store:
        store.create_topic("t", partitions=2)
        yield store


@pytest.fixture
def other(storage: MemoryStorage, clock: ManualClock, store: Store) -> Iterator[Store]:
    """The same store opened by another process, as it were."""
    with open_store(storage=storage, clock=clock) as other:
        yield other


def consumer(store: Store, topics: str | list[str] = "t", **options: object) -> Consumer:
    return Consumer(store._engine, topics, **options)  # type: ignore[arg-type]  # forwarded


def fill(store: Store, partition: int, count: int) -> None:
    store.append_many("t", [b"%d" % n for n in range(count)], partition=partition)


def places(records: list[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


# Without a group


def test_iterating_reads_every_partition_in_append_order_and_stops(store: Store) -> None:
    for n in range(6):
        store.append("t", b"%d" % n, partition=n % 2)

    with consumer(store) as alone:
        records = list(alone)

    assert [record.value for record in records] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert groups.names(store._engine) == []


def test_a_new_loop_continues_where_the_last_one_stopped(store: Store) -> None:
    fill(store, 0, 3)
    with consumer(store) as alone:
        for record in alone:
            if record.offset == 1:
                break
        rest = [record.offset for record in alone]
        fill(store, 0, 2)
        more = [record.offset for record in alone]

    assert (rest, more) == ([2], [3, 4])


def test_poll_gives_at_most_so_many_records_and_nothing_at_the_end(store: Store) -> None:
    fill(store, 0, 5)
    with consumer(store) as alone:
        assert [len(alone.poll(max_records=2)) for _ in range(4)] == [2, 2, 1, 0]
        assert alone.position() == {T0: 5, T1: 0}


def test_poll_iteration_and_batches_can_be_mixed(store: Store) -> None:
    fill(store, 0, 10)
    with consumer(store) as alone:
        assert next(alone).offset == 0
        assert places(alone.poll(max_records=2)) == [(0, 1), (0, 2)]
        assert next(alone).offset == 3
        assert [list(batch.offsets) for batch in alone.batches()] == [[4, 5, 6, 7, 8, 9]]
        assert list(alone) == []


def test_poll_waits_for_a_record_of_another_thread(storage: MemoryStorage) -> None:
    with open_store(storage=storage) as store:
        store.create_topic("t")
        with consumer(store) as alone:
            threading.Timer(0.05, store.append, ("t", b"late")).start()

            assert [record.value for record in alone.poll(timeout=10)] == [b"late"]


def test_following_waits_for_more(storage: MemoryStorage) -> None:
    with open_store(storage=storage) as store:
        store.create_topic("t")
        with consumer(store, follow=True) as alone:
            threading.Timer(0.05, fill, (store, 0, 3)).start()

            assert [next(alone).offset for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("start", "offsets"), [("earliest", [0, 1, 2]), ("latest", []), ("-1", [2]), (1, [1, 2])]
)
def test_a_start_position_applies_to_each_partition(
    store: Store, start: int | str, offsets: list[int]
) -> None:
    fill(store, 0, 3)
    fill(store, 1, 3)
    with consumer(store, start=start) as alone:
        records = list(alone)

    for partition in (0, 1):
        assert [r.offset for r in records if r.partition == partition] == offsets


def test_seeking_moves_one_partition(store: Store) -> None:
    fill(store, 0, 4)
    fill(store, 1, 1)
    with consumer(store) as alone:
        alone.poll(max_records=3)

        alone.seek(T0, 1)

        assert alone.position() == {T0: 1, T1: 0}
        assert sorted(places(list(alone))) == [(0, 1), (0, 2), (0, 3), (1, 0)]
        alone.seek(("t", 0), "-1")
        assert places(list(alone)) == [(0, 3)]
        with pytest.raises(UsageError, match="not assigned"):
            alone.seek(("t", 5), 0)
        with pytest.raises(OffsetOutOfRangeError):
            alone.seek(T0, 9)
        with pytest.raises(UsageError, match="group"):
            alone.seek(T0, "stored")


def test_lag_counts_what_is_visible_and_not_yet_delivered(store: Store) -> None:
    fill(store, 0, 4)
    with consumer(store) as alone:
        assert alone.lag() == {T0: 4, T1: 0}
        next(alone)
        assert alone.lag() == {T0: 3, T1: 0}
        fill(store, 1, 2)
        assert alone.lag() == {T0: 3, T1: 2}


def test_only_groups_remember(store: Store) -> None:
    with consumer(store) as alone:
        for call in (alone.commit, alone.committed):
            with pytest.raises(UsageError, match="group"):
                call()
    with pytest.raises(UsageError, match="group"):
        consumer(store, start="stored")


def test_wrong_arguments_are_refused_at_once(store: Store) -> None:
    with pytest.raises(UnknownTopicError):
        consumer(store, "nope")
    with pytest.raises(UsageError, match="at least one topic"):
        consumer(store, [])
    with pytest.raises(UsageError):
        consumer(store, isolation="maybe")
    with pytest.raises(UsageError):
        consumer(store, start="whenever")
    with pytest.raises(UsageError, match="group name"):
        consumer(store, group="")
    with consumer(store) as alone, pytest.raises(UsageError, match="max_records"):
        alone.poll(max_records=0)


def test_concurrent_use_is_refused(storage: MemoryStorage) -> None:
    with open_store(storage=storage) as store:
        store.create_topic("t")
        alone = consumer(store)
        polling = threading.Event()
        results: list[Record] = []

        def poll() -> None:
            while not results:
                polling.set()
                with contextlib.suppress(UsageError):  # position() may have been first
                    results.extend(alone.poll(timeout=10))

        def position_until_refused() -> None:
            while True:  # until the thread has got into its poll
                alone.position()

        thread = threading.Thread(target=poll)
        thread.start()
        polling.wait()
        with pytest.raises(UsageError, match="one thread"):
            position_until_refused()
        store.append("t", b"x")
        thread.join()
        alone.close()

    assert len(results) == 1


def test_a_closed_consumer_says_so(store: Store) -> None:
    alone = consumer(store)
    alone.close()
    alone.close()

    with pytest.raises(StoreClosedError):
        alone.poll()
    with pytest.raises(StoreClosedError):
        next(alone)


def test_a_consumer_of_a_closed_store_can_be_closed(storage: MemoryStorage) -> None:
    store = open_store(storage=storage)
    store.create_topic("t")
    member = consumer(store, group="g")
    store.close()

    with pytest.raises(StoreClosedError):
        member.poll()
    member.close()


# Groups


def test_a_group_continues_where_it_committed(store: Store) -> None:
    fill(store, 0, 5)
    with consumer(store, group="g") as first:
        assert len(first.poll(max_records=2)) == 2
        first.commit()
        assert first.committed() == {T0: 2, T1: 0}
        first.poll(max_records=2)

    with consumer(store, group="g", start="latest") as second:
        assert [record.offset for record in second] == [2, 3, 4]
        second.seek(T0, "stored")
        assert next(second).offset == 2


def test_a_commit_within_a_loop_includes_the_record_at_hand(store: Store) -> None:
    fill(store, 0, 100)
    with consumer(store, group="g") as member:
        for record in member:
            if record.offset == 41:
                member.commit()
                break

    assert groups.describe(store._engine, "g").offsets[T0] == 42


def test_explicit_offsets_are_checked_against_the_log(store: Store) -> None:
    fill(store, 0, 5)
    with consumer(store, group="g") as member:
        member.commit({T0: 3})
        assert member.committed()[T0] == 3
        for offset in (6, -1):
            with pytest.raises(OffsetOutOfRangeError):
                member.commit({T0: offset})
        with pytest.raises(FencedError, match="does not own"):
            member.commit({TopicPartition("t", 7): 0})
        member.commit({T0: 1})
        assert member.committed()[T0] == 1


def test_stored_means_the_log_start_before_the_first_commit(store: Store) -> None:
    fill(store, 0, 2)
    with consumer(store, group="g", start="stored") as member:
        assert len(list(member)) == 2
        member.seek(T0, "stored")
        assert len(list(member)) == 2


def test_two_members_share_the_partitions_and_lose_nothing(store: Store, other: Store) -> None:
    fill(store, 0, 10)
    fill(store, 1, 10)
    with consumer(store, group="g") as first, consumer(other, group="g") as second:
        seen = first.poll(max_records=4)
        first.commit()
        seen += first.poll(max_records=3)  # hands over partition 1
        assert first.assignment == (T0,)
        seen += second.poll(max_records=100)
        assert second.assignment == (T1,)
        seen += first.poll(max_records=100)

    assert sorted(places(seen)) == [(p, o) for p in (0, 1) for o in range(10)]


def test_while_iterating_a_partition_is_handed_over_after_the_next_commit(
    store: Store, other: Store, clock: ManualClock
) -> None:
    fill(store, 0, 5000)
    fill(store, 1, 5000)
    seen: list[Record] = []
    with consumer(store, group="g") as first:
        records = iter(first)
        seen += [next(records) for _ in range(1000)]
        with consumer(other, group="g") as second:
            clock.advance(300)
            seen += [next(records) for _ in range(1000)]
            before = first.assignment

            first.commit()

            assert (before, first.assignment) == ((T0, T1), (T0,))
            seen += list(records)
            seen += list(second)

    assert sorted(places(seen)) == [(p, o) for p in (0, 1) for o in range(5000)]


def test_while_iterating_without_commits_a_partition_is_handed_over_in_time(
    store: Store, other: Store, clock: ManualClock
) -> None:
    fill(store, 0, 100_000)
    fill(store, 1, 100_000)
    with consumer(store, group="g") as first, consumer(other, group="g") as second:
        for record in first:
            if record.offset % 100 == 0:
                clock.advance(10)
            if len(first.assignment) == 1:
                break
        passed_ms = clock.now_ms() - 1_000_000

        assert second.poll()
        assert 1_000 <= passed_ms < 2_000
        # What was not committed comes again, from the start.
        assert second.position()[T1] > 0


def test_a_draining_member_waits_for_what_it_shall_get(storage: MemoryStorage) -> None:
    # On the system's clock: a manual one would let its patience run out in no time.
    with (
        open_store(storage=storage) as store,
        open_store(storage=storage) as other,
        contextlib.ExitStack() as members,
    ):
        store.create_topic("t", partitions=2)
        fill(store, 0, 5)
        fill(store, 1, 5)
        first = members.enter_context(consumer(store, group="g"))
        second = members.enter_context(consumer(other, group="g"))
        done = threading.Event()
        drained: list[Record] = []

        def drain() -> None:
            drained.extend(second)
            done.set()

        thread = threading.Thread(target=drain)
        thread.start()
        assert not done.wait(0.05)
        first.poll(max_records=1)
        thread.join(10)

    assert {record.partition for record in drained} == {1}
    assert len(drained) == 5


def test_a_member_without_partitions_ends_at_once(store: Store, other: Store) -> None:
    fill(store, 0, 5)
    with (
        consumer(store, group="g") as first,
        consumer(other, group="g") as second,
        consumer(other, group="g") as third,
    ):
        first.poll(max_records=1)
        second.poll(max_records=1)

        assert third.assignment == ()
        assert list(third) == []


def test_a_member_that_was_stuck_is_fenced_and_goes_on(
    store: Store, other: Store, clock: ManualClock
) -> None:
    fill(store, 0, 10)
    with consumer(store, group="g") as stuck, consumer(other, group="g") as alive:
        stuck.poll(max_records=5)
        for _ in range(LEASE_MS // 60_000 + 1):
            clock.advance(60_000)
            alive.poll(max_records=1)
        assert len(alive.assignment) == 2

        with pytest.raises(FencedError, match="Nothing was committed"):
            stuck.commit()

        assert stuck.poll() == []
        alive.commit()
        alive.poll(max_records=1)
        stuck.poll()
        assert len(stuck.assignment) == 1


def test_closing_leaves_the_group_without_a_commit(store: Store, other: Store) -> None:
    fill(store, 0, 3)
    first = consumer(store, group="g")
    second = consumer(other, group="g")
    first.poll()
    first.close()

    assert len(second.poll()) == 3
    second.close()
    assert groups.describe(store._engine, "g").members == ()
    assert groups.describe(store._engine, "g").offsets == {}


def test_a_committed_offset_below_the_log_start_goes_on_there_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 0, 10)
    with consumer(store, group="g") as member:
        member.poll(max_records=2)
        member.commit()
    store.trim("t", {0: 6})

    with caplog.at_level(logging.WARNING, "millstream"), consumer(store, group="g") as member:
        assert [record.offset for record in member] == [6, 7, 8, 9]

    assert "retention removed offsets 2 to 5" in caplog.text


def test_a_running_consumer_overtaken_by_retention_goes_on_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 0, 10)
    with consumer(store, group="g") as member:
        store.roll("t", 0)
        fill(store, 0, 2)
        store.trim("t", {0: 10})

        assert [record.offset for record in member] == [10, 11]

    assert "retention removed offsets 0 to 9" in caplog.text


def test_a_committed_offset_past_the_log_end_is_an_error(store: Store) -> None:
    fill(store, 0, 3)
    with consumer(store, group="g") as member:
        list(member)
        member.commit()
    catalog = store._engine.catalog
    catalog.database.query("UPDATE group_partitions SET committed_offset = 9 WHERE partition = 0")

    with pytest.raises(OffsetOutOfRangeError, match="Reset the group"):
        consumer(store, group="g")

    assert groups.describe(store._engine, "g").members == ()


def test_a_partition_that_cannot_be_taken_up_stays_an_error(store: Store, other: Store) -> None:
    fill(store, 1, 3)
    with consumer(store, group="g") as first, consumer(other, group="g") as second:
        catalog = store._engine.catalog
        catalog.database.query("UPDATE group_partitions SET committed_offset = 9")
        first.poll()

        for _ in range(2):
            with pytest.raises(OffsetOutOfRangeError):
                second.poll()


def test_records_of_a_transaction_come_after_its_commit(store: Store) -> None:
    with consumer(store) as alone:
        with store.transaction() as txn:
            txn.append("t", b"a", partition=0)
            assert alone.poll() == []
        assert [record.value for record in alone.poll()] == [b"a"]


def test_a_transaction_of_a_member_that_was_stuck_is_fenced(
    store: Store, other: Store, clock: ManualClock
) -> None:
    """Exactly once: what another member processes meanwhile must not be there twice."""
    fill(store, 0, 10)
    with consumer(store, group="g") as stuck, consumer(other, group="g") as alive:
        stuck.poll(max_records=5)
        for _ in range(LEASE_MS // 60_000 + 1):
            clock.advance(60_000)
            alive.poll(max_records=1)
        with store.transaction() as txn:
            txn.append("t", b"result", partition=1)
            txn.commit_offsets("g", {T0: 5})
            with pytest.raises(FencedError, match="owns the partition now"):
                txn.commit()
        assert list(store.read("t", partition=1)) == []
        with other.transaction() as txn:
            txn.commit_offsets("g", {T0: 7})
        assert alive.committed()[T0] == 7


def test_a_dead_member_does_not_fence_a_transaction(store: Store, storage: MemoryStorage) -> None:
    fill(store, 0, 10)
    dead = open_store(storage=storage)
    consumer(dead, group="g").poll()
    dead.close()
    with store.transaction() as txn:
        txn.commit_offsets("g", {T0: 5})
    assert groups.describe(store._engine, "g").offsets == {T0: 5}


def test_the_group_of_a_pipeline_cannot_be_joined(store: Store) -> None:
    with store.transaction() as txn:
        txn.put_checkpoint("pipeline/p", b"x")
    with pytest.raises(UsageError, match="'p' is a pipeline"):
        consumer(store, group="p")


def test_offsets_committed_with_results_in_a_transaction_count(store: Store) -> None:
    fill(store, 0, 3)
    with consumer(store, group="g") as member:
        member.poll(max_records=2)
        with store.transaction() as txn:
            txn.append("t", b"result", partition=1)
            txn.commit_offsets("g", member.position())

    with consumer(store, group="g") as member:
        assert sorted(places(list(member))) == [(0, 2), (1, 0)]
