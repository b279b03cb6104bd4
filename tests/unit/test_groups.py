from collections.abc import Iterator

import pytest

from millstream import groups
from millstream.consumer import Consumer
from millstream.errors import (
    LockedError,
    UnknownGroupError,
    UsageError,
)
from millstream.record import TopicPartition
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


def test_a_group_is_described_with_members_and_offsets(store: Store, other: Store) -> None:
    fill(store, 0, 5)
    engine = store._engine
    assert groups.names(engine) == []
    with pytest.raises(UnknownGroupError):
        groups.describe(engine, "g")

    with consumer(store, group="g") as first, consumer(other, group="g") as second:
        first.poll(max_records=2)
        second.poll()
        first.commit()
        info = groups.describe(engine, "g")

    assert groups.names(engine) == ["g"]
    by_id = {member.member_id: member for member in info.members}
    assert by_id[str(first.member_id)].partitions == (T0,)
    assert by_id[str(second.member_id)].partitions == (T1,)
    assert by_id[str(first.member_id)].topics == ("t",)
    assert info.offsets == {T0: 2}


def test_lag_is_counted_in_records_and_in_time(store: Store, clock: ManualClock) -> None:
    fill(store, 0, 3)
    clock.advance(5_000)
    fill(store, 0, 3)
    clock.advance(5_000)
    with consumer(store, group="g") as member:
        member.poll(max_records=2)
        before = groups.lag(store._engine, "g")
        member.commit()
        behind, idle = groups.lag(store._engine, "g")
        member.poll()
        member.commit()
        caught_up = groups.lag(store._engine, "g")[0]

    assert [(line.committed, line.lag, line.lag_ms) for line in before] == [(None, None, None)] * 2
    assert (behind.committed, behind.log_end, behind.lag, behind.lag_ms) == (2, 6, 4, 10_000)
    assert (idle.lag, idle.lag_ms) == (0, 0)
    assert behind.member_id == member.member_id
    assert (caught_up.lag, caught_up.lag_ms) == (0, 0)


def test_a_reset_is_planned_first_and_refused_while_members_live(store: Store) -> None:
    fill(store, 0, 10)
    engine = store._engine
    with consumer(store, group="g") as member:
        member.poll(max_records=4)
        member.commit()
        plan = groups.plan_reset(engine, "g", "earliest")
        with pytest.raises(LockedError, match="live member"):
            groups.reset(engine, plan)

    assert plan.changes[0] == ("t", 0, 4, 0)
    assert groups.describe(engine, "g").offsets[T0] == 4
    groups.reset(engine, plan)
    assert groups.describe(engine, "g").offsets[T0] == 0


@pytest.mark.parametrize(
    ("to", "shift_by", "new"),
    [
        ("latest", None, 10),
        (7, None, 7),
        (99, None, 10),
        ("-3", None, 7),
        ("stored", None, 4),
        (None, 2, 6),
        (None, -99, 0),
        ({T0: 1}, None, 1),
    ],
)
def test_a_planned_offset_lies_in_the_log(
    store: Store, to: object, shift_by: int | None, new: int
) -> None:
    fill(store, 0, 10)
    with consumer(store, group="g") as member:
        member.commit({T0: 4})

    plan = groups.plan_reset(store._engine, "g", to, shift_by=shift_by)  # type: ignore[arg-type]

    assert plan.changes[0] == ("t", 0, 4, new)


def test_a_plan_needs_something_to_do(store: Store) -> None:
    engine = store._engine
    with consumer(store, group="g"):
        pass
    for arguments in ({}, {"to": 1, "shift_by": 1}):
        with pytest.raises(UsageError, match="shift_by"):
            groups.plan_reset(engine, "g", **arguments)  # type: ignore[arg-type]
    with pytest.raises(UnknownGroupError):
        groups.plan_reset(engine, "nope", "latest")
    assert groups.plan_reset(engine, "g", "stored", topics=["t"]).changes == ()
    assert len(groups.plan_reset(engine, "g", "latest", topics=["t"]).changes) == 2


def test_a_group_is_deleted_when_nobody_is_in_it(store: Store) -> None:
    engine = store._engine
    with consumer(store, group="g"), pytest.raises(LockedError):
        groups.delete(engine, "g")

    groups.delete(engine, "g")

    assert groups.names(engine) == []
    with pytest.raises(UnknownGroupError):
        groups.delete(engine, "g")
