"""Scenarios 1 to 15: a crash left a torn tail. docs/robustness.md has the list.

What was not known to be synced may be lost, but only from the end; what is left is exact, and the
log goes on behind it (P). The same damage to what was synced is refused (E).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import pytest
from damaged_log import (
    DIRECTORY,
    DamagedLog,
    assert_prefix,
    assert_refused,
    image,
    prepare,
    prepare_cell,
    quarantined,
    read_all,
    using,
)
from simulated_stores import log_of, open_quietly

from millstream.errors import CorruptBatchError, CorruptSegmentError
from millstream.testing import FaultPlan, MemoryStorage, SimulatedCrash

if TYPE_CHECKING:
    from matrix import Cell

SECTOR = 512


@pytest.fixture
def log(any_cell: Cell) -> DamagedLog:
    """One durable batch and two that are not, in one segment or behind two sealed ones."""
    return prepare_cell(any_cell)


def batches(log: DamagedLog) -> int:
    return len(log.places)


# --- cuts --------------------------------------------------------------------------------------


@pytest.mark.cells(count=3)
def test_scenario_01_the_active_segment_is_cut_at_every_byte_of_its_last_batch(cell: Cell) -> None:
    whole = prepare_cell(cell, value_bytes=24, records=2)
    last = whole.places[-1]
    for size in range(last.position, last.end):
        log = whole.copy()
        log.cut(last.path, size)
        for _ in range(cell.restarts):
            with using(log.storage) as store:
                assert log.records(batches(whole) - 1) == read_all(store), size
                assert (size > last.position) == bool(quarantined(log.storage)), size
            log.storage = log.storage.crash(keep="none")


def test_scenario_01_a_cut_batch_is_followed_by_others_for_good(log: DamagedLog) -> None:
    last = log.places[-1]
    log.cut(last.path, last.end - 1)

    assert_prefix(log, batches(log) - 1, saved=True)


def test_scenario_01_a_cut_of_what_was_durable_is_refused(log: DamagedLog) -> None:
    durable = log.places[log.durable - 1]
    log.cut(durable.path, durable.end - 64)

    error = assert_refused(log)

    assert (durable.path, durable.position) == (error.path, error.position)
    assert error.offset == durable.header.base_offset


@pytest.mark.parametrize("size", [0, 1, 8, 64, 127])
def test_scenario_02_a_fresh_segment_is_cut_inside_its_header(any_cell: Cell, size: int) -> None:
    log = prepare_cell(any_cell, durable=0, unsynced=0)
    log.cut(log.active, size)

    assert_prefix(log, batches(log), saved=size > 0 or None)


def test_scenario_03_an_active_segment_of_zero_bytes(any_cell: Cell) -> None:
    log = prepare_cell(any_cell, durable=0, unsynced=1)
    log.cut(log.active, 0)

    assert_prefix(log, 2 * any_cell.sealed)


def test_scenario_03_an_active_segment_of_zero_bytes_that_held_durable_records(
    any_cell: Cell,
) -> None:
    log = prepare_cell(any_cell, durable=1, unsynced=1)
    log.cut(log.active, 0)

    assert_refused(log, CorruptSegmentError)


# --- what follows the data ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 63, 64, 65, 191, 192, 193, 1000, 4095, 4096])
def test_scenario_04_random_bytes_follow(log: DamagedLog, size: int) -> None:
    log.overwrite(log.active, log.places[-1].end, Random(size).randbytes(size))

    assert_prefix(log, batches(log), saved=True)


def test_scenario_05_forty_bytes_follow(log: DamagedLog) -> None:
    log.overwrite(log.active, log.places[-1].end, b"\x4d\x53\x42\x9c" + bytes(35) + b"x")

    assert_prefix(log, batches(log), saved=True)


@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_scenario_06_zeros_follow(log: DamagedLog, size: int) -> None:
    log.overwrite(log.active, log.places[-1].end, bytes(size))

    assert_prefix(log, batches(log), saved=False)


def test_scenario_06_zeros_and_then_other_bytes_follow(log: DamagedLog) -> None:
    log.overwrite(log.active, log.places[-1].end, bytes(8192) + b"x")

    assert_prefix(log, batches(log), saved=True)


# --- sectors -----------------------------------------------------------------------------------


def test_scenario_07_the_last_sector_of_the_last_batch_is_zero(log: DamagedLog) -> None:
    last = log.places[-1]
    log.overwrite(last.path, (last.end - 1) // SECTOR * SECTOR, bytes(last.end % SECTOR or SECTOR))

    assert_prefix(log, batches(log) - 1, saved=True)


def test_scenario_08_a_sector_is_zero_and_a_later_unsynced_batch_is_whole(log: DamagedLog) -> None:
    hole = log.places[-2]
    log.overwrite(hole.path, hole.body // SECTOR * SECTOR + SECTOR, bytes(SECTOR))

    assert_prefix(log, batches(log) - 2, saved=True)


def test_scenario_09_a_sector_of_a_durable_batch_is_zero(log: DamagedLog) -> None:
    hole = log.places[log.durable - 1]
    log.overwrite(hole.path, hole.body // SECTOR * SECTOR + SECTOR, bytes(SECTOR))

    error = assert_refused(log, readable=log.durable - 1)

    assert (hole.path, hole.position) == (error.path, error.position)


def test_scenario_09_later_headers_know_what_was_durable_when_the_words_are_lost(
    log: DamagedLog,
) -> None:
    hole = log.places[log.durable - 1]
    log.overwrite(hole.path, hole.position // SECTOR * SECTOR + SECTOR, bytes(SECTOR))
    log.forget_words()

    error = assert_refused(log)

    assert (hole.path, hole.position) == (error.path, error.position)


# --- headers -----------------------------------------------------------------------------------


def test_scenario_10_a_valid_header_without_its_body(log: DamagedLog) -> None:
    last = log.places[-1]
    log.cut(last.path, last.body)

    assert_prefix(log, batches(log) - 1, saved=True)


def test_scenario_10_a_valid_header_before_zeros(log: DamagedLog) -> None:
    last = log.places[-1]
    log.overwrite(last.path, last.body, bytes(last.end - last.body))

    assert_prefix(log, batches(log) - 1, saved=True)


@pytest.mark.cells(count=3)
def test_scenario_11_a_header_is_cut_after_any_number_of_bytes(cell: Cell) -> None:
    whole = prepare_cell(cell, value_bytes=24, records=1)
    last = whole.places[-1]
    for size in range(1, last.header.header_bytes):
        log = whole.copy()
        log.overwrite(last.path, last.position + size, bytes(last.end - last.position - size))
        for _ in range(cell.restarts):
            with using(log.storage) as store:
                assert log.records(batches(whole) - 1) == read_all(store), size
                assert quarantined(log.storage), size
            log.storage = log.storage.crash(keep="none")


# --- bytes that look like ours -----------------------------------------------------------------


def test_scenario_12_a_whole_batch_of_another_segment_follows(log: DamagedLog) -> None:
    """A recycled block: its hash is seeded with the uid of the segment it was written to."""
    other = prepare()
    content = other.read(other.active)[other.places[1].position : other.places[1].end]
    log.overwrite(log.active, log.places[-1].end, content)

    assert_prefix(log, batches(log), saved=True)


def test_scenario_12_an_old_batch_of_the_same_segment_follows(log: DamagedLog) -> None:
    old = log.places[-2]
    content = log.read(old.path)[old.position : old.end]
    log.overwrite(log.active, log.places[-1].end, content)

    assert_prefix(log, batches(log), saved=True)


def test_scenario_13_a_value_holds_a_copy_of_its_own_segment(cell: Cell) -> None:
    log = prepare_cell(cell)
    before = batches(log)
    with using(log.storage) as store:
        value = log.read(log.active)
        # The copies lie as batches do, at a multiple of 64.
        log.values.append([bytes(64 - 16) + value])
        store.append_many("t", log.values[-1], durability="os")
    log = log.copy()
    start, size = log.places[-1].end, len(log.read(log.active))
    for left in (200, (size - start) // 2, size - start - 1000, size - start - 1):
        torn = log.copy()
        torn.cut(torn.active, start + left)
        assert_prefix(torn, before, saved=True)


# --- crashes during the repair -----------------------------------------------------------------

TEARS: dict[str, Callable[[DamagedLog], object]] = {
    "cut": lambda log: log.cut(log.active, log.places[-1].end - 1),
    "hole": lambda log: log.overwrite(log.active, log.places[-2].body, bytes(SECTOR)),
    "garbage": lambda log: log.overwrite(log.active, log.places[-1].end, b"x" * 5000),
    "header": lambda log: log.cut(log.active, 100),
}


@pytest.mark.parametrize("keep", ["none", "all", "random"])
@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.cells(count=3)
def test_scenario_14_a_crash_at_each_step_of_the_repair(cell: Cell, keep: str, tear: str) -> None:
    whole = prepare_cell(cell, durable=tear != "header", unsynced=2 * (tear != "header"))
    left = {"cut": 2, "hole": 1, "garbage": 3, "header": 0}[tear] + 2 * cell.sealed
    TEARS[tear](whole)
    starts = [place.position for place in whole.places[left:]]
    starts.append(0 if tear == "header" else whole.places[-1].end)
    torn = image(whole.storage)[whole.active][starts[0] :]
    for step in range(100):
        log = whole.copy()
        log.storage.faults = FaultPlan(crash_at=len(log.storage.trace) + step)
        with contextlib.suppress(SimulatedCrash), using(log.storage) as store:
            log_of(store)
        done = not log.storage.is_dead
        log.storage = log.storage.crash(seed=step, keep=keep)
        assert_prefix(log, left)
        saved = b"".join(quarantined(log.storage.crash(keep="all")).values())
        assert torn.strip(b"\0") in saved
        if done:
            break
    assert step > 3


def test_scenario_14_two_crashes_in_a_row_without_a_write(log: DamagedLog) -> None:
    log.cut(log.active, log.places[-1].end - 1)
    for keep in ("none", "random", "all")[: log.restarts + 1]:
        with using(log.storage) as store:
            assert log.records(batches(log) - 1) == read_all(store)
        log.storage = log.storage.crash(keep=keep)

    assert_prefix(log, batches(log) - 1)


def test_scenario_15_a_crash_after_the_repair_before_the_first_append(log: DamagedLog) -> None:
    """Appending behind a tail that was not really cut would lose the records at the next start."""
    log.overwrite(log.active, log.places[-1].end, b"x" * 10_000)
    with using(log.storage) as store:
        log_of(store)
    storage = log.storage.crash(keep="none")
    expected = log.records(batches(log))
    for number in range(log.restarts + 1):
        with using(storage) as store:
            value = b'{"text":"%s"}' % (b"%d" % number * 100 * number)
            store.append("t", value)
            expected.append(value)
        storage = storage.crash(keep="none")
    with open_quietly(storage) as store:
        assert expected == read_all(store)


def test_a_torn_tail_is_left_alone_by_a_reader_that_may_not_write(log: DamagedLog) -> None:
    log.cut(log.active, log.places[-1].end - 1)
    before = image(log.storage)
    view: MemoryStorage = log.storage.read_only_view()

    with open_quietly(view, read_only=True) as store:
        assert log.records(batches(log) - 1) == read_all(store)

    assert before == image(log.storage)


def test_the_directory_of_a_partition_holds_segments_and_what_was_saved(log: DamagedLog) -> None:
    log.overwrite(log.active, log.places[-1].end, b"torn")
    assert_prefix(log, batches(log))

    names = {path.removeprefix(f"{DIRECTORY}/") for path in quarantined(log.storage.crash())}
    base = log.places[-1].path[-28:-8]
    assert {f"quarantine/{base}-{log.places[-1].end}.torn.0"} == names


def test_damage_below_the_watermark_does_not_stop_other_topics(log: DamagedLog) -> None:
    hole = log.places[log.durable - 1]
    log.overwrite(hole.path, hole.position + 20, b"x")
    with using(log.storage) as store:
        store.create_topic("u")
        store.append("u", b"works")
        with pytest.raises(CorruptBatchError):
            store.append("t", b"refused")
        assert [b"works"] == [record.value for record in store.read("u")]
