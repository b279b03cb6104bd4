"""What must come of repairing a damaged log: the rest at its offsets, gaps for what is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
from damaged_log import AFTER, DamagedLog, image, using
from simulated_stores import open_quietly

from millstream import DataError, RepairPlan, Store, plan_repair, repair
from millstream.testing import FaultPlan, Keep, MemoryStorage, SimulatedCrash

Content = dict[int, bytes | None]
"""Values by offset."""


def content_of(store: Store) -> Content:
    records = store.read("t", isolation="uncommitted")
    return {record.offset: record.value for record in records}


def expected_content(log: DamagedLog, lost: Sequence[tuple[int, int]], batches: int) -> Content:
    """What was written, without what is lost."""
    return {
        offset: value
        for offset, value in enumerate(log.records(batches))
        if not any(start <= offset < end for start, end in lost)
    }


def assert_repaired(
    log: DamagedLog,
    lost: Sequence[tuple[int, int]],
    *,
    batches: int | None = None,
    end: int | None = None,
    refused: bool = True,
) -> RepairPlan:
    """The plan names what is lost; after the repair all else is there, for good.

    Args:
        log: The damaged log.
        lost: Ranges of offsets that cannot be saved.
        batches: How many batches of what was written are looked for; all that were durable, if
            not given.
        end: Offset of the next record.
        refused: Opening or reading it fails before.
    """
    batches = log.durable if batches is None else batches
    expected = expected_content(log, lost, batches)
    before = image(log.storage)
    planned = plan_repair(storage=log.storage.read_only_view())
    assert before == image(log.storage)
    assert list(lost) == [(each.start, each.end) for each in planned.lost]
    if refused:
        with using(log.storage) as store, pytest.raises(DataError):
            content_of(store)
        log.storage = log.storage.crash(keep="all")

    done = repair(storage=log.storage)

    assert (planned.actions, planned.lost) == (done.actions, done.lost)
    assert [] == done.refused
    assert_nothing_is_gone(before, image(log.storage))
    assert_whole(log.storage.crash(keep="none"), expected, end)
    return done


def assert_whole(storage: MemoryStorage, expected: Content, end: int | None) -> None:
    """The content is that, appending goes on, over two restarts, and nothing is to be repaired."""
    expected = dict(expected)
    for _ in range(2):
        assert [] == plan_repair(storage=storage).lost
        with using(storage) as store:
            assert expected == content_of(store)
            offset = store.append("t", AFTER).offset
            assert end in {None, offset}
            end = offset + 1
            expected[offset] = AFTER
            assert [] == store.verify(deep=True).findings
        storage = storage.crash(keep="none")
    with open_quietly(storage) as store:
        assert expected == content_of(store)
    assert plan_repair(storage=storage).empty


def assert_nothing_is_gone(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Every file is still there, under some name."""
    left = set(after.values())
    for path, content in before.items():
        assert content in left or not path.endswith(".segment"), path


def crash_everywhere_in_repair(
    damaged: Callable[[], DamagedLog],
    lost: Sequence[tuple[int, int]],
    *,
    end: int | None = None,
    every: int = 1,
) -> int:
    """Lose power before each operation of a repair, in every manner; repair again; how often."""
    index = cases = 0
    finished = False
    while not finished:
        log = damaged()
        log.storage.faults = FaultPlan(crash_at=len(log.storage.trace) + index)
        with contextlib.suppress(SimulatedCrash):
            repair(storage=log.storage)
        finished = not log.storage.is_dead
        outcomes: list[tuple[Keep, int]] = [("none", 0), ("all", 0), ("random", index)]
        for keep, seed in outcomes:
            left = DamagedLog(log.storage.crash(seed, keep), log.values, log.durable)
            assert_refused_or_right(left, lost)
            repair(storage=left.storage)
            assert_whole(left.storage, expected_content(log, lost, log.durable), end)
            cases += 1
        index += every
    return cases


def assert_refused_or_right(log: DamagedLog, lost: Sequence[tuple[int, int]]) -> None:
    """A store whose repair was cut off never gives another record than that of an offset."""
    storage = log.storage
    copy, log.storage = storage.crash(keep="all"), storage.crash(keep="all")
    expected = expected_content(log, lost, log.durable)
    found: Content = {}
    with using(copy) as store, contextlib.suppress(DataError):
        for record in store.read("t", isolation="uncommitted"):
            found[record.offset] = record.value
    written = dict(enumerate(log.records(len(log.values))))
    assert found.items() <= written.items()
    del expected
