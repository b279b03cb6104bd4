"""Retention that waits for groups, and what readers and groups see when it does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from shaped import restarted
from simulated_stores import START_MS, abandon, log_of, open_quietly

from millstream import (
    OffsetOutOfRangeError,
    RetentionBlocker,
    Store,
    TopicPartition,
    UsageError,
)
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

HOUR_MS = 3_600_000
T0 = TopicPartition("t", 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as opened:
        yield opened


def fill(store: Store, segments: int, records: int = 10) -> None:
    """So many sealed segments of so many records."""
    for _ in range(segments):
        store.append_many("t", [b"x" * 100] * records)
        store.roll("t", 0)


def commit(store: Store, group: str, offset: int) -> None:
    with store.transaction() as transaction:
        transaction.commit_offsets(group, {T0: offset})


def test_a_segment_goes_when_all_groups_have_read_it(store: Store) -> None:
    store.create_topic("t", retention_groups=["billing", "audit"])
    fill(store, 4)
    size = store.segments("t", 0)[0].size_bytes
    commit(store, "billing", 35)

    held = store.apply_retention(dry_run=True)
    assert [] == held.removed
    assert [RetentionBlocker("t", 0, "audit", 0, 4 * size)] == [
        blocker for blocker in held.blockers if blocker.group == "audit"
    ]

    commit(store, "audit", 10)
    would = store.apply_retention(dry_run=True)
    report = store.apply_retention()
    assert would == report
    assert [(T0, 0)] == [(place, segment.base_offset) for place, segment in report.removed]
    assert [("audit", 10, 3 * size), ("billing", 35, size)] == [
        (blocker.group, blocker.offset, blocker.held_bytes) for blocker in report.blockers
    ]
    assert (10, 40) == store.offsets("t")[0]

    commit(store, "audit", 40)
    commit(store, "billing", 40)
    assert [] == store.apply_retention().blockers
    assert (40, 40) == store.offsets("t")[0]


def test_an_age_does_not_remove_what_a_group_has_not_read(store: Store, clock: ManualClock) -> None:
    store.create_topic("t", retention="1h", retention_groups=["g"])
    fill(store, 2)
    clock.advance(2 * HOUR_MS)

    assert [("g", 0)] == [(each.group, each.offset) for each in store.apply_retention().blockers]
    assert (0, 20) == store.offsets("t")[0]
    commit(store, "g", 20)
    store.apply_retention()
    assert (20, 20) == store.offsets("t")[0]


def test_a_limit_ends_the_waiting(store: Store) -> None:
    store.create_topic("t", retention_groups=["g"], retention_limit_bytes=5000)
    fill(store, 10)

    report = store.apply_retention()

    assert sum(segment.size_bytes for segment in store.segments("t", 0)) <= 5000
    assert report.removed
    assert store.offsets("t")[0].start == report.blockers[0].offset


def test_a_queue_is_a_group_that_holds_what_is_not_acked(store: Store) -> None:
    store.create_topic("t", retention_groups=["jobs"])
    fill(store, 3, records=2)
    with store.queue("t", group="jobs") as queue:
        first, second, *others = queue.get_many(6)
        queue.ack(first, *others)
        assert [1] == [each.offset for each in store.apply_retention(dry_run=True).blockers]
        queue.ack(second)
        store.apply_retention()
    assert 6 == store.offsets("t")[0].start


def test_a_trim_waits_for_nobody_and_says_who_is_passed(store: Store) -> None:
    store.create_topic("t", retention_groups=["g", "h"])
    fill(store, 3)
    commit(store, "h", 25)

    would = store.trim("t", {0: 25}, dry_run=True)
    assert (0, 30) == store.offsets("t")[0]
    report = store.trim("t", {0: 25})

    assert would == report
    assert [0, 10] == [segment.base_offset for _, segment in report.removed]
    assert ["g"] == [blocker.group for blocker in report.blockers]
    assert (25, 30) == store.offsets("t")[0]


def test_a_dry_run_works_on_a_store_that_is_only_read(store: Store, storage: MemoryStorage) -> None:
    store.create_topic("t", retention_groups=["g"])
    fill(store, 2)
    commit(store, "g", 10)
    before = len(storage.trace)

    with open_quietly(storage, read_only=True) as onlooker:
        report = onlooker.apply_retention(dry_run=True)
        assert [0] == [segment.base_offset for _, segment in report.removed]
        assert 1 == len(onlooker.trim("t", {0: 10}, dry_run=True).removed)
        with pytest.raises(UsageError, match="read-only"):
            onlooker.apply_retention()
    assert before == len(storage.trace)


@pytest.mark.parametrize(
    "options",
    [
        {"retention_groups": "\n"},
        {"retention_groups": [""]},
        {"retention_groups": 7},
        {"retention_limit_bytes": 100},
        {"retention_groups": ["g"], "retention_limit_bytes": 0},
    ],
)
def test_bad_options_are_refused(store: Store, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        store.create_topic("t", **options)  # type: ignore[arg-type] # bad on purpose


def test_options_come_back_as_they_were_given(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", retention_groups=["b", "a", "b"], retention_limit_bytes="1MiB")
    with open_quietly(storage) as store:
        config = store.topic("t").config
        assert (("b", "a"), 1 << 20) == (config.retention_groups, config.retention_limit_bytes)
        store.configure_topic("t", retention_limit_bytes=None, retention_groups="c,d")
        assert ("c", "d") == store.topic("t").config.retention_groups
        assert () == store.configure_topic("t", retention_groups=None).config.retention_groups


@pytest.mark.cells(segments=3)
def test_scenario_61_a_group_below_the_log_start_goes_on_at_the_earliest(
    store: Store, storage: MemoryStorage, cell: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    store.create_topic("t", compression=cell.codec)
    fill(store, 3)
    commit(store, "g", 5)
    reader = store.reader({T0: 5})
    store.trim("t", {0: 20})

    with pytest.raises(OffsetOutOfRangeError, match=r"removed by retention.*20"):
        reader.poll()
    reader.close()
    with caplog.at_level(logging.WARNING), store.consumer("t", group="g") as consumer:
        assert list(range(20, 30)) == [record.offset for record in consumer]
    assert "20" in caplog.text
    assert [10] == [lag.lag for lag in store.group_lag("g")]
    abandon(store)
    for _ in range(cell.restarts):
        storage = storage.crash(keep="none")
        with open_quietly(storage) as again, again.consumer("t", group="g") as consumer:
            assert list(range(20, 30)) == [record.offset for record in consumer]


def test_scenario_62_retention_removes_everything_and_offsets_go_on(
    storage: MemoryStorage, clock: ManualClock, cell: Cell
) -> None:
    end = 10 * cell.segments
    with open_quietly(storage, clock) as store:
        store.create_topic("t", retention="1h", compression=cell.codec)
        fill(store, cell.segments)
        clock.advance(2 * HOUR_MS)
        store.apply_retention()
        assert (end, end) == store.offsets("t")[0]
    for number in range(cell.restarts):
        storage = storage.crash(keep="none")
        with open_quietly(storage, clock) as store:
            assert end + number == store.append("t", b"x").offset
            assert [*range(end, end + 1 + number)] == [record.offset for record in store.read("t")]
            assert store.verify(deep=True).ok


@pytest.mark.cells(segments=3)
@pytest.mark.parametrize("stamp", [0, 1, START_MS - 10**12, START_MS + 10**12, -(10**15)])
def test_scenario_76_timestamps_of_records_do_not_make_segments_old_or_young(
    store: Store, storage: MemoryStorage, clock: ManualClock, stamp: int, cell: Cell
) -> None:
    store.create_topic("t", retention="1h", compression=cell.codec)
    for number in range(3):
        store.append("t", b"x" * 300, timestamp_ms=stamp - number)
        store.roll("t", 0)
    for again in restarted(store, storage, cell, clock):
        assert [] == again.apply_retention().removed

    clock.advance(HOUR_MS + 1)
    with open_quietly(storage, clock) as again:
        assert 3 == len(again.apply_retention().removed)


@pytest.mark.cells(segments=3)
def test_scenario_76_the_clock_is_set_back_while_records_are_appended(
    store: Store, storage: MemoryStorage, clock: ManualClock, cell: Cell
) -> None:
    store.create_topic("t", retention="2h", compression=cell.codec)
    store.append("t", b"before")
    store.roll("t", 0)
    clock.jump(-HOUR_MS)
    store.append("t", b"after")
    store.roll("t", 0)

    clock.advance(2 * HOUR_MS)
    assert [] == store.apply_retention().removed  # the first is as young as it says
    clock.advance(HOUR_MS)
    for again in restarted(store, storage, cell, clock):
        assert [] == again.apply_retention().removed
    clock.advance(1)
    with open_quietly(storage, clock) as again:
        assert 2 == len(again.apply_retention().removed)


def test_a_quiet_topic_is_looked_at_again_when_it_gets_old(
    storage: MemoryStorage, clock: ManualClock
) -> None:
    with open_quietly(storage, clock) as store:
        store.create_topic("t", retention="1h")
        store.append("t", b"x")
        engine = store._engine
        submitted: list[float] = []
        engine.background.submit = (  # type: ignore[method-assign] # to see when, not to replace
            lambda _key, _task, *, delay_seconds=0: submitted.append(delay_seconds)
        )

        engine.retention._look(log_of(store))
        assert [3600.0] == submitted
        clock.advance(HOUR_MS + 1)
        engine.retention._look(log_of(store))

        assert (1, 1) == store.offsets("t")[0]
        assert [3600.0] == submitted
