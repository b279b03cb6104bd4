"""Repair of everything that opening and reading refuse. docs/robustness.md has the list."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from random import Random

import pytest
from damaged_log import DIRECTORY, DamagedLog, image, prepare
from repaired import assert_repaired, crash_everywhere_in_repair
from simulated_stores import log_of, open_quietly
from xxhash import xxh3_64_intdigest

from millstream import repair
from millstream.config import Compression
from millstream.format import encode_segment_header, parse_segment_header
from millstream.testing import MemoryStorage

EVERY = 1 if "MILLSTREAM_SEED" in os.environ else 3
"""A repair is cut off before each, or only each third, of its operations."""
CODECS: tuple[Compression, ...] = ("none", "lz4", "zstd")


def closed(log: DamagedLog) -> DamagedLog:
    """After a clean close: everything is durable, and there is a checkpoint at the end."""
    with open_quietly(log.storage) as store:
        log_of(store)
    log.storage = log.storage.crash(keep="none")
    log.durable = len(log.values)
    return log


def make(codec: Compression = "none", *, columns: bool = False) -> DamagedLog:
    """Two sealed segments of two batches of four records, then two batches; closed."""
    return closed(prepare(codec=codec, sealed=2, durable=2, unsynced=0, columns=columns))


@pytest.fixture(params=[*CODECS, "columns"])
def log(request: pytest.FixtureRequest) -> DamagedLog:
    columns = request.param == "columns"
    return make("lz4" if columns else request.param, columns=columns)


def flip(log: DamagedLog, path: str, position: int) -> None:
    log.overwrite(path, position, bytes([log.read(path)[position] ^ 4]))


def flip_batch(log: DamagedLog, number: int, inside: int) -> None:
    place = log.places[number]
    flip(log, place.path, place.position + inside)


def segment(log: DamagedLog, number: int) -> str:
    return sorted({place.path for place in log.places})[number]


def remove(log: DamagedLog, *numbers: int) -> None:
    for path in [segment(log, number) for number in numbers]:
        log.storage.remove(path)
    log.storage.sync_directory(DIRECTORY)


# --- nothing to do -----------------------------------------------------------------------------


def test_a_whole_log_needs_no_repair(log: DamagedLog) -> None:
    before = image(log.storage)

    done = repair(storage=log.storage)

    assert done.empty
    assert done.report_path is None
    assert before == image(log.storage)


@pytest.mark.parametrize("cut", [1, 100, 192, 500])
def test_a_torn_tail_is_left_to_recovery(cut: int) -> None:
    log = prepare(sealed=1, durable=1, unsynced=2)
    log.cut(log.active, log.places[-1].end - cut)
    before = image(log.storage)

    assert repair(storage=log.storage).empty
    assert before == image(log.storage)


# --- rotten batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [0, 100, 700])
@pytest.mark.parametrize("number", range(6))
def test_a_rotten_batch_becomes_a_gap(number: int, inside: int) -> None:
    log = make()
    flip_batch(log, number, inside)

    plan = assert_repaired(log, [(4 * number, 4 * number + 4)], end=24)

    assert [log.places[number].path] == [action.path for action in plan.actions]


def test_a_rotten_batch_of_any_codec(log: DamagedLog) -> None:
    flip_batch(log, 2, 400)

    assert_repaired(log, [(8, 12)], end=24)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 2), (0, 3, 5), (0, 1, 2, 3, 4, 5), (2, 3)])
def test_several_rotten_batches(numbers: tuple[int, ...]) -> None:
    log = make()
    for number in numbers:
        flip_batch(log, number, 50)
    lost = [[4 * number, 4 * number + 4] for number in numbers]
    for number in range(len(lost) - 1, 0, -1):
        one_segment = numbers[number] // 2 == numbers[number - 1] // 2
        if one_segment and lost[number][0] == lost[number - 1][1]:
            lost[number - 1][1] = lost.pop(number)[1]

    assert_repaired(log, [(start, end) for start, end in lost], end=24)


def test_damage_below_the_watermark_with_a_torn_tail_behind() -> None:
    """What was never acknowledged goes, as ever; what was becomes a gap."""
    log = prepare(sealed=1, durable=3, unsynced=2)
    flip_batch(log, 3, 30)
    log.cut(log.active, log.places[-1].end - 64)

    assert_repaired(log, [(12, 16)], batches=6, end=24)


def test_a_hole_of_zeros_below_the_watermark(log: DamagedLog) -> None:
    place = log.places[4]
    log.overwrite(place.path, place.position + 64, bytes(512))

    assert_repaired(log, [(16, 20)], end=24)


def test_a_value_with_a_copy_of_its_own_segment_brings_nothing_back() -> None:
    log = prepare(durable=2, unsynced=0)
    copy = log.read(log.active)[: log.places[-1].end]
    with open_quietly(log.storage) as store:
        position = log_of(store).end_locked().position
        store.append("t", copy)
        store.append("t", b"last")
    log.values += [[copy], [b"last"]]
    log.durable = 4
    log.storage = log.storage.crash(keep="none")
    flip(log, log.active, position + 20)

    assert_repaired(log, [(8, 9)], end=10)


# --- batches in the wrong place ----------------------------------------------------------------


def test_two_batches_are_exchanged(log: DamagedLog) -> None:
    first, second = log.places[2:4]
    content = log.read(first.path)
    parts = content[second.position : second.end] + content[first.position : first.end]
    log.overwrite(first.path, first.position, parts)

    assert_repaired(log, [(8, 12)], end=24)


def test_a_batch_is_there_twice(log: DamagedLog) -> None:
    first, second = log.places[0:2]
    content = log.read(first.path)
    copy = content[first.position : first.end]
    log.change(first.path, lambda file: file.__setitem__(slice(second.position, None), copy * 2))

    assert_repaired(log, [(4, 8)], end=24)


def test_a_batch_of_another_partition(log: DamagedLog) -> None:
    place, other = log.places[1], make()
    foreign = other.read(other.places[1].path)[other.places[1].position : other.places[1].end]
    log.overwrite(place.path, place.position, foreign)

    assert_repaired(log, [(4, 8)], end=24)


def test_a_batch_in_the_middle_is_missing(log: DamagedLog) -> None:
    place = log.places[2]
    log.change(place.path, lambda file: file.__delitem__(slice(place.position, place.end)))

    assert_repaired(log, [(8, 12)], end=24)


# --- segments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [3, 45, 125])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_segment_header_loses_nothing(number: int, position: int) -> None:
    log = make()
    flip(log, segment(log, number), position)

    assert_repaired(log, [], end=24)


@pytest.mark.parametrize("number", [0, 1])
def test_a_sealed_segment_without_a_beginning(log: DamagedLog, number: int) -> None:
    """Header and first batch are gone; the index, or the segment behind, knows its uid."""
    place = log.places[2 * number]
    log.overwrite(place.path, 0, bytes(place.position + 300))

    assert_repaired(log, [(8 * number, 8 * number + 4)], end=24)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_nothing_is_left_of_a_segment(number: int) -> None:
    log = make()
    size = len(log.read(segment(log, number)))
    log.overwrite(segment(log, number), 0, Random(1).randbytes(size))

    assert_repaired(log, [(8 * number, 8 * number + 8)], end=24)


@pytest.mark.parametrize("size", [0, 100, 128])
@pytest.mark.parametrize("number", [0, 1])
def test_a_sealed_segment_is_cut(number: int, size: int) -> None:
    log = make()
    log.cut(segment(log, number), size)

    assert_repaired(log, [(8 * number, 8 * number + 8)], end=24)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_segment_is_cut_between_batches(log: DamagedLog, number: int) -> None:
    log.cut(segment(log, number), log.places[2 * number].end)

    assert_repaired(log, [(8 * number + 4, 8 * number + 8)], end=24)


def test_a_segment_in_the_middle_is_missing(log: DamagedLog) -> None:
    remove(log, 1)

    assert_repaired(log, [(8, 16)], end=24)


def test_the_first_segments_are_missing(log: DamagedLog) -> None:
    remove(log, 0, 1)

    plan = assert_repaired(log, [(0, 16)], end=24)

    assert "let the log start at offset 16" == plan.actions[0].action


def test_the_last_segment_is_missing(log: DamagedLog) -> None:
    remove(log, 2)

    assert_repaired(log, [(16, 24)], end=24)


def test_all_segments_are_missing(log: DamagedLog) -> None:
    remove(log, 0, 1, 2)

    assert_repaired(log, [(0, 24)], end=24)


def test_segments_overlap(log: DamagedLog) -> None:
    """A copy under a name of its own, and one of an earlier time."""
    content = log.read(segment(log, 1))
    with contextlib.closing(log.storage.open(f"{DIRECTORY}/{4:020d}.segment", "x")) as file:
        file.write([content], 0)
        file.sync()
    log.storage.sync_directory(DIRECTORY)

    assert_repaired(log, [], end=24)


def test_a_segment_lies_under_a_wrong_name(log: DamagedLog) -> None:
    log.storage.rename(segment(log, 1), f"{DIRECTORY}/{9:020d}.segment")
    log.storage.sync_directory(DIRECTORY)

    assert_repaired(log, [], end=24)


def test_a_segment_of_another_partition(log: DamagedLog) -> None:
    other = make()
    content = other.read(segment(other, 1))
    log.change(segment(log, 1), lambda file: file.__setitem__(slice(None), content))

    assert_repaired(log, [(8, 16)], end=24)


def test_the_log_went_on_without_a_segment_that_came_back() -> None:
    """A torn segment was cut, the one behind it was put aside, and somebody puts it back."""
    log = prepare(sealed=1, durable=1, unsynced=0)
    with open_quietly(log.storage) as store:
        for number in range(6):
            log.values.append([b"%d" % number * 300])
            store.append("t", log.values[-1][0])
            if number == 1:
                position = log_of(store).end_locked().position
    log.storage = log.storage.crash(keep="none")
    log.durable = len(log.values)
    fields = parse_segment_header(log.read(log.active)[:128])
    header, _ = encode_segment_header(
        fields._replace(
            base_offset=14,
            segment_uid=77,
            previous_segment_uid=fields.segment_uid,
            previous_bytes=position,
            previous_hash=1,
        )
    )
    with contextlib.closing(log.storage.open(f"{DIRECTORY}/{14:020d}.segment", "x")) as file:
        file.write([header], 0)
        file.sync()
    log.storage.sync_directory(DIRECTORY)

    assert_repaired(log, [], end=18, refused=False)


def test_the_log_is_older_than_the_catalog(log: DamagedLog) -> None:
    """The last batches were durable once, and are not there."""
    log.cut(log.active, log.places[4].end)

    assert_repaired(log, [(20, 24)], end=24)


def test_the_catalog_is_older_than_the_log() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
    for number in range(3):
        with open_quietly(storage) as store:
            store.append("t", b"%d" % number)
    log = DamagedLog(storage, [[b"0"], [b"1"], [b"2"]], 3)
    log.storage = storage.crash(keep="all")
    with open_quietly(log.storage) as store:
        database = store._engine.catalog.database
        with database.transaction("go back in time"):
            database.query("UPDATE store SET generation = 1")
    log.storage.remove("tail")
    log.storage = log.storage.crash(keep="all")

    plan = assert_repaired(log, [], end=3)

    assert "raise the generation in the catalog" in {each.action for each in plan.actions}


def test_a_foreign_checkpoint_is_forgotten(log: DamagedLog) -> None:
    with open_quietly(log.storage) as store:
        database = store._engine.catalog.database
        database.query("UPDATE partitions SET position = position + 64")
    log.storage = log.storage.crash(keep="all")

    assert_repaired(log, [], end=24)


def test_data_of_a_newer_version_is_not_touched(log: DamagedLog) -> None:
    place = log.places[2]
    content = log.read(place.path)
    header = bytearray(content[place.position : place.body])
    header[4] = 9
    header[184:] = xxh3_64_intdigest(
        header[:184], int.from_bytes(content[40:48], "little")
    ).to_bytes(8, "little")
    log.overwrite(place.path, place.position, bytes(header))
    flip_batch(log, 0, 300)
    before = image(log.storage)

    done = repair(storage=log.storage)

    assert "version 9" in done.refused[0].reason
    assert before == {
        path: data for path, data in image(log.storage).items() if "repair-" not in path
    }


def test_a_segment_that_newer_versions_alone_write_is_not_touched(log: DamagedLog) -> None:
    path = log.places[2].path
    header = bytearray(log.read(path)[:128])
    header[16] = 4
    header[120:] = xxh3_64_intdigest(header[:120]).to_bytes(8, "little")
    log.overwrite(path, 0, bytes(header))
    flip_batch(log, 0, 300)

    assert "newer versions may write" in repair(storage=log.storage).refused[0].reason


# --- a repair that is cut off ------------------------------------------------------------------

DAMAGES: dict[str, tuple[Callable[[DamagedLog], object], list[tuple[int, int]]]] = {
    "rotten sealed": (lambda log: flip_batch(log, 1, 40), [(4, 8)]),
    "rotten active": (lambda log: flip_batch(log, 4, 300), [(16, 20)]),
    "header": (lambda log: flip(log, segment(log, 1), 30), []),
    "missing": (lambda log: remove(log, 1), [(8, 16)]),
    "last missing": (lambda log: remove(log, 2), [(16, 24)]),
    "all missing": (lambda log: remove(log, 0, 1, 2), [(0, 24)]),
    "two": (lambda log: (flip_batch(log, 0, 20), flip_batch(log, 5, 20)), [(0, 4), (20, 24)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_crash_at_each_step_of_a_repair(damage: str) -> None:
    apply, lost = DAMAGES[damage]

    def damaged() -> DamagedLog:
        log = make()
        apply(log)
        log.storage = log.storage.crash(keep="all")
        return log

    assert crash_everywhere_in_repair(damaged, lost, end=24, every=EVERY) > 5
