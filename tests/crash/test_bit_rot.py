"""Scenarios 16 to 25: bytes have changed that nobody wrote. docs/robustness.md has the list.

What is read is what was written, always. Damage to what was synced is a typed error that says
where (E); damage above the durable watermark is a torn write (P).
"""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from damaged_log import (
    AFTER,
    DIRECTORY,
    DamagedLog,
    Place,
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
from xxhash import xxh3_64_intdigest

from millstream import DataError, TopicPartition
from millstream.batch import decode_batch
from millstream.config import Compression
from millstream.errors import CorruptBatchError, CorruptSegmentError, FormatVersionError
from millstream.format import BATCH_FIELDS, SEGMENT_HEADER_BYTES
from millstream.recovery import examine
from millstream.segment import scan_headers
from millstream.segment_chain import PartitionFacts
from millstream.storage import File, Storage
from millstream.store import open_store
from millstream.testing import MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

SEGMENT_UID_AT = 40
T0 = TopicPartition("t", 0)


@pytest.fixture
def log(any_cell: Cell) -> DamagedLog:
    """Seven batches in one segment, or in two sealed ones and the active; the last not durable."""
    return seven_batches(any_cell)


@pytest.fixture
def sealed_log(any_cell: Cell) -> DamagedLog:
    """One or three sealed segments and an active one; only the last batch is not durable."""
    return prepare_sealed(any_cell)


def seven_batches(cell: Cell) -> DamagedLog:
    return prepare_cell(cell, durable=6 - 2 * cell.sealed, unsynced=1)


def prepare_sealed(cell: Cell) -> DamagedLog:
    return prepare(
        codec=cell.codec,
        sealed=cell.segments,
        durable=2,
        unsynced=1,
        columns=cell.columns,
        restarts=cell.restarts,
    )


def reseal(log: DamagedLog, place: Place, changes: dict[int, tuple[str, int]]) -> None:
    """Change fields of a batch header and make its hash right again, as no accident would."""
    content = bytearray(log.read(place.path))
    header = content[place.position : place.body]
    for position, (layout, value) in changes.items():
        struct.pack_into(f"<{layout}", header, position, value)
    segment_uid = int.from_bytes(content[SEGMENT_UID_AT : SEGMENT_UID_AT + 8], "little")
    digest = xxh3_64_intdigest(header[: BATCH_FIELDS.size], segment_uid)
    header[BATCH_FIELDS.size :] = digest.to_bytes(8, "little")
    log.overwrite(place.path, place.position, bytes(header))


def reseal_segment(log: DamagedLog, path: str, changes: dict[int, tuple[str, int]]) -> None:
    """The same for a segment header."""
    header = bytearray(log.read(path)[:SEGMENT_HEADER_BYTES])
    for position, (layout, value) in changes.items():
        struct.pack_into(f"<{layout}", header, position, value)
    header[120:] = xxh3_64_intdigest(header[:120]).to_bytes(8, "little")
    log.overwrite(path, 0, bytes(header))


# --- 16: every bit -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_scenario_16_every_bit_of_a_log_of_three_batches(codec: Compression) -> None:
    """What recovery decides and what can be read then; one batch is known to be durable."""
    whole = prepare(codec=codec, durable=1, unsynced=2, value_bytes=24, records=3)
    with using(whole.copy().storage) as store:
        facts = replace(log_of(store).facts(), durable_offset=3)
    content = whole.read(whole.active)
    storage = MemoryStorage(crashable=False)
    storage.make_directory(DIRECTORY)
    flipped = contextlib.closing(storage.open(whole.active, "x"))
    with flipped as file:
        file.write([content], 0)
        assert 9 == read_what_recovery_keeps(storage, file, facts, whole.records(3))
        for bit in range(len(content) * 8):
            position, shift = divmod(bit, 8)
            file.write([bytes([content[position] ^ 1 << shift])], position)
            try:
                kept = read_what_recovery_keeps(storage, file, facts, whole.records(3))
            except DataError:
                assert position < whole.places[0].end, bit
            else:
                assert position >= whole.places[0].end, bit
                assert kept == (3 if position < whole.places[1].end else 6), bit
            file.write([content[position : position + 1]], position)


def read_what_recovery_keeps(
    storage: Storage, file: File, facts: PartitionFacts, written: list[bytes | None]
) -> int:
    """Number of records that can be read; each of them is checked."""
    found = examine(storage, facts)
    ((_, segment),) = found.segments
    values: list[bytes | None] = []
    start, end = SEGMENT_HEADER_BYTES, found.end.position
    for position, header in scan_headers(file, start, end, segment.segment_uid):
        body = file.read(header.body_bytes, position + header.header_bytes)
        values += decode_batch("t", 0, header, body).values
    assert written[: len(values)] == values
    return len(values)


@pytest.mark.slow
@pytest.mark.cells(count=3)
def test_scenario_16_bits_all_over_as_a_reader_meets_them(cell: Cell) -> None:
    """Some of the same, with all of the store in between, in the active segment."""
    whole = prepare_cell(cell, value_bytes=24, records=3)
    sealed = 2 * cell.sealed
    durable, unsynced = whole.places[sealed : sealed + 2]
    content = whole.read(whole.active)
    for bit in range(0, len(content) * 8, 61):
        log = whole.copy()
        position, shift = divmod(bit, 8)
        log.overwrite(log.active, position, bytes([content[position] ^ 1 << shift]))
        if position < durable.end:
            # A reader finds a body; a header is found as soon as the partition is opened.
            assert_refused(log, DataError, readable=sealed if position >= durable.body else 0)
        else:
            kept = sealed + (1 if position < unsynced.end else 2)
            for _ in range(cell.restarts):
                with using(log.storage) as store:
                    assert log.records(kept) == read_all(store), bit
                log.storage = log.storage.crash(keep="none")


# --- 17 and 18: fields of headers --------------------------------------------------------------

SIZES = {"body": 32, "stored A": 128, "raw A": 132, "stored B": 144, "raw B": 148, "raw C": 164}


@pytest.mark.parametrize("value", [0, 1, 64, 1 << 20, 0x7FFF_FFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("sealed", [True, False], ids=["hash right", "hash wrong"])
def test_scenario_17_a_length_is_wrong(
    log: DamagedLog, field: str, value: int, sealed: bool
) -> None:
    place = log.places[4]
    change = {SIZES[field]: ("I", value)}
    was = struct.unpack_from("<I", log.read(place.path), place.position + SIZES[field])[0]
    if was == value:
        return
    if sealed:
        reseal(log, place, change)
    else:
        log.overwrite(place.path, place.position + SIZES[field], struct.pack("<I", value))
    tracemalloc.start()
    try:
        error = assert_refused(log, DataError, readable=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert place.path == error.path
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("position", "layout", "value"),
    [
        (8, "Q", 1),
        (16, "Q", 0),
        (16, "Q", 1 << 62),
        (16, "Q", (1 << 64) - 1),
        (24, "I", 0xFFFF_FFFF),
        (28, "I", 3),
        (28, "I", 5),
        (96, "Q", 1),
        (104, "Q", 0),
        (56, "q", -1),
    ],
)
def test_scenario_18_a_field_is_changed(
    any_cell: Cell, position: int, layout: str, value: int
) -> None:
    log, torn = seven_batches(any_cell), seven_batches(any_cell)
    place = log.places[4]
    log.overwrite(place.path, place.position + position, struct.pack(f"<{layout}", value))

    error = assert_refused(log)

    assert (place.path, place.position) == (error.path, error.position)
    unsynced = torn.places[6]
    torn.overwrite(unsynced.path, unsynced.position + position, struct.pack(f"<{layout}", value))
    assert_prefix(torn, 6)


# --- 19: sealed segments -----------------------------------------------------------------------


@pytest.mark.parametrize("offset_in_batch", [20, 192, 1000])
def test_scenario_19_a_sealed_segment_is_damaged(
    sealed_log: DamagedLog, offset_in_batch: int
) -> None:
    log = sealed_log
    place, written = log.places[1], log.records(len(log.places))
    close(log)
    flip(log, place.path, place.position + offset_in_batch)

    error = assert_refused(log, readable=1)

    assert (place.path, place.position) == (error.path, error.position)
    assert place.header.base_offset == error.offset
    with using(log.storage) as store:
        assert len(written) == store.append("t", AFTER).offset
        with store.reader({T0: log.places[2].header.base_offset}) as reader:
            rest = [value for batch in reader.poll() for value in batch.values]
        assert [*written[8:], AFTER] == rest
        (finding,) = store.verify(deep=True).findings
        assert (place.path, place.position) == (finding.path, finding.position)


def test_scenario_19_the_header_of_a_sealed_segment_is_damaged(sealed_log: DamagedLog) -> None:
    log = sealed_log
    close(log)
    flip(log, log.places[0].path, 30)

    error = assert_refused(log, CorruptSegmentError)

    assert (log.places[0].path, 0) == (error.path, error.position)


def close(log: DamagedLog) -> None:
    """Open and close the store, so that all is durable and there is a checkpoint at the end."""
    with open_quietly(log.storage) as store:
        log_of(store)
    log.storage = log.storage.crash(keep="none")


def flip(log: DamagedLog, path: str, position: int) -> None:
    """Change one bit."""
    log.overwrite(path, position, bytes([log.read(path)[position] ^ 4]))


# --- 20 to 23: whole batches in the wrong place ------------------------------------------------


def part(log: DamagedLog, place: Place) -> bytes:
    return log.read(place.path)[place.position : place.end]


@pytest.mark.parametrize("closed", [False, True], ids=["after a crash", "after a close"])
def test_scenario_20_two_batches_are_exchanged(log: DamagedLog, closed: bool) -> None:
    if closed:
        close(log)
    first, second = log.places[4:6]
    content = part(log, second) + part(log, first)
    log.overwrite(first.path, first.position, content)

    error = assert_refused(log, readable=4 if closed else 0)

    assert (first.path, first.position) == (error.path, error.position)


def insert_again(log: DamagedLog, number: int) -> int:
    """Put a copy of a batch before the last one; where it is."""
    place, last = log.places[number], log.places[6]
    copy = part(log, place)
    log.change(place.path, lambda file: file.__setitem__(slice(last.position, last.position), copy))
    return last.position


@pytest.mark.parametrize("number", [4, 5])
def test_scenario_21_a_batch_is_there_twice(log: DamagedLog, number: int) -> None:
    insert_again(log, number)

    assert_prefix(log, 6)


@pytest.mark.parametrize("number", [4, 5])
def test_scenario_21_a_batch_is_there_twice_before_a_checkpoint(
    log: DamagedLog, number: int
) -> None:
    """What lies before the checkpoint is judged when it is read, the rest is a torn tail."""
    close(log)
    position = insert_again(log, number)
    found: list[bytes | None] = []
    with using(log.storage) as store, pytest.raises(CorruptBatchError) as caught:
        found.extend(record.value for record in store.read("t"))

    assert log.records(6) == found
    assert (log.places[6].path, position) == (caught.value.path, caught.value.position)
    assert quarantined(log.storage.crash(keep="all"))


@pytest.mark.parametrize("closed", [False, True], ids=["after a crash", "after a close"])
def test_scenario_22_a_batch_in_the_middle_is_missing(log: DamagedLog, closed: bool) -> None:
    if closed:
        close(log)
    first = log.places[4]
    log.change(first.path, lambda file: file.__delitem__(slice(first.position, first.end)))

    assert first.path == assert_refused(log, DataError).path


def test_scenario_22_a_batch_of_a_sealed_segment_is_missing(sealed_log: DamagedLog) -> None:
    """As long as before, so that only the chain shows it."""
    log = sealed_log
    close(log)
    first, second = log.places[0:2]
    content = part(log, second)
    hole = bytes(second.end - first.position - len(content))
    log.overwrite(first.path, first.position, content + hole)

    error = assert_refused(log, readable=0)

    assert (first.path, first.position) == (error.path, error.position)


@pytest.mark.parametrize("number", [1, 5, 6])
def test_scenario_23_a_batch_of_another_partition(any_cell: Cell, number: int) -> None:
    log, other = seven_batches(any_cell), seven_batches(any_cell)
    place = log.places[number]
    log.overwrite(place.path, place.position, part(other, other.places[number]))
    if number == 6:
        assert_prefix(log, 6)
    else:
        # A sealed segment is not looked at before somebody reads it.
        error = assert_refused(log, readable=1 if number == 1 and any_cell.sealed else 0)
        assert (place.path, place.position) == (error.path, error.position)


def test_scenario_23_a_segment_of_another_partition(cell: Cell) -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t", partitions=2, compression=cell.codec)
        for partition in range(2):
            for number in range(cell.segments):
                if number:
                    store.roll("t", partition)
                store.append("t", b"%d" % partition, partition=partition)
    content = {path: data for path, data in image(storage).items() if path.endswith(".segment")}
    paths = sorted(content)
    first, second = paths[0], paths[cell.segments]
    with contextlib.closing(storage.open(first, "rw")) as file:
        file.truncate(0)
        file.write([content[second]], 0)

    for _ in range(cell.restarts):
        storage = storage.crash(keep="all")
        with (
            using(storage) as store,
            pytest.raises(CorruptSegmentError, match="another partition") as caught,
        ):
            list(store.read("t", partition=0))
        assert first == caught.value.path


# --- 24 and 25: what a newer version, or a bug, could have written -----------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({4: ("B", 2)}, FormatVersionError),
        ({5: ("B", 3)}, FormatVersionError),
        ({36: ("I", 0x8000_0000)}, FormatVersionError),
        ({84: ("I", 1)}, CorruptBatchError),
        ({176: ("Q", 1)}, CorruptBatchError),
    ],
    ids=["version", "codec", "flag", "a number of no producer", "reserved"],
)
@pytest.mark.parametrize("number", [0, 4])
def test_scenario_24_a_batch_of_a_newer_version(
    log: DamagedLog,
    changes: dict[int, tuple[str, int]],
    error: type[DataError],
    number: int,
) -> None:
    place = log.places[number]
    close(log)
    reseal(log, place, changes)

    found = assert_refused(log, error, readable=number, match="unknown|reserved|producer")

    assert (place.path, place.position) == (found.path, found.position)


@pytest.mark.parametrize("number", [5, 6])
def test_scenario_24_a_newer_version_is_not_taken_for_a_torn_write(
    log: DamagedLog, number: int
) -> None:
    reseal(log, log.places[number], {36: ("I", 0x8000_0000)})

    assert_refused(log, FormatVersionError, match="unknown flags")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({8: ("H", 2)}, FormatVersionError),
        ({12: ("I", 2)}, FormatVersionError),
        ({104: ("Q", 1)}, CorruptSegmentError),
        ({56: ("Q", 3)}, CorruptSegmentError),
        ({40: ("Q", 0)}, CorruptSegmentError),
        ({40: ("Q", 5)}, CorruptSegmentError),
        ({24: ("Q", 5)}, CorruptSegmentError),
        ({72: ("Q", 5)}, CorruptSegmentError),
    ],
    ids=["major", "feature", "reserved", "base", "no uid", "uid", "store", "previous"],
)
@pytest.mark.parametrize("number", [2, -1])
def test_scenario_24_a_segment_header_that_is_not_ours(
    sealed_log: DamagedLog,
    changes: dict[int, tuple[str, int]],
    error: type[DataError],
    number: int,
) -> None:
    log = sealed_log
    path = log.places[number].path
    close(log)
    reseal_segment(log, path, changes)

    assert "segment" in str(assert_refused(log, error))


def test_scenario_24_a_segment_that_newer_versions_alone_write_is_read(log: DamagedLog) -> None:
    close(log)
    path = log.places[-1].path
    reseal_segment(log, path, {16: ("I", 4)})
    before = image(log.storage)

    for _ in range(log.restarts):
        with using(log.storage) as store:
            with pytest.raises(FormatVersionError, match="newer versions may write") as caught:
                store.append("t", AFTER)
            assert ("t", 0, path) == (caught.value.topic, caught.value.partition, caught.value.path)
        with open_store(storage=log.storage.read_only_view(), read_only=True) as store:
            assert log.records(len(log.values)) == read_all(store)
        log.storage = log.storage.crash(keep="none")
    assert before == image(log.storage)


@pytest.mark.parametrize(
    "changes",
    [
        {28: ("I", 5), 24: ("I", 4)},
        {28: ("I", 3), 24: ("I", 2)},
        {28: ("I", 1 << 24), 24: ("I", (1 << 24) - 1)},
        {28: ("I", 0xFFFF_FFFF), 24: ("I", 0xFFFF_FFFE)},
    ],
    ids=["more", "fewer", "most", "too many"],
)
def test_scenario_25_the_record_count_is_wrong(
    log: DamagedLog, changes: dict[int, tuple[str, int]]
) -> None:
    close(log)
    reseal(log, log.places[5], changes)

    assert_refused(log, CorruptBatchError, readable=5, placed=False)


@pytest.mark.parametrize("raw_bytes", [2000, 100 << 20, 1 << 30])
def test_scenario_25_a_section_lies_about_its_size(cell: Cell, raw_bytes: int) -> None:
    """A bomb: what is said to be small, or large, is not what comes out."""
    log = prepare_cell(cell, durable=2, unsynced=0, value_bytes=4000)
    close(log)
    place = log.places[-1]
    reseal(log, place, {148: ("I", raw_bytes)})
    tracemalloc.start()
    try:
        assert_refused(log, CorruptBatchError, readable=len(log.places) - 1, placed=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20
