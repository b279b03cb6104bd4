"""Scenarios 77 to 80 and 83: queries by time, the largest and smallest, versions, determinism."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from log_model import Model
from many_segments import STEP_MS, value_of, write_segments
from simulated_stores import START_MS, abandon, open_quietly
from workload import TOPICS, Workload

import millstream
from millstream import FormatVersionError, Store, TopicPartition, UsageError
from millstream.compression import _zstandard
from millstream.config import Compression
from millstream.format import OFFSET_MAX, RECORD_COUNT_MAX
from millstream.positions import Position
from millstream.segment_list import UNSAVED_MIN
from millstream.storage import OpenMode, PosixFile, PosixStorage
from millstream.testing import ManualClock, MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

CODECS: tuple[Compression, ...] = ("none", "lz4", "zstd")
SEGMENTS = int(os.environ.get("MILLSTREAM_SEGMENTS", "1000"))
TOPICS_COUNT = int(os.environ.get("MILLSTREAM_TOPICS", "100"))

# --- 77: by time -------------------------------------------------------------------------------


def test_scenario_77_times_before_between_and_after_in_any_order(cell: Cell) -> None:
    random = Random(cell.segments)
    storage = MemoryStorage()
    stamps: list[int] = []
    with open_quietly(storage) as store:
        store.create_topic("t", compression=cell.codec)
        for number in range(30):
            batch = [number * 100 + random.randrange(-300, 300) for _ in range(5)]
            if number % 7 == 0:
                batch = [batch[0]] * 5
            stamps += batch
            store.append_many("t", [b"x" * 400] * 5, timestamps_ms=batch)
            if cell.sealed and number in {10, 20}:
                store.roll("t", 0)
        ask_for_times(store, stamps)
    for _ in range(cell.restarts):
        storage = storage.crash(keep="none")
        with open_quietly(storage) as store:
            ask_for_times(store, stamps)
            stamps.append(50)
            store.append("t", b"late", timestamp_ms=50)
            ask_for_times(store, stamps)


def ask_for_times(store: Store, stamps: list[int]) -> None:
    """Before the first, each of some, between two, the last and after it."""
    some = stamps[::11]
    asked = {min(stamps) - 1, *some, *(each + 1 for each in some), max(stamps), max(stamps) + 1}
    for time_ms in asked:
        found = (offset for offset, stamp in enumerate(stamps) if stamp >= time_ms)
        expected = next(found, len(stamps))
        assert expected == store.offset_at("t", 0, Position("timestamp", time_ms)), time_ms


# --- 78: sizes and counts ----------------------------------------------------------------------


@pytest.mark.slow
def test_scenario_78_the_largest_record_and_one_byte_more(tmp_path: Path) -> None:
    largest = (128 << 20) - 8
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t")
        with pytest.raises(UsageError, match="134217728"):
            store.append("t", bytes(largest + 1))
        assert 0 == store.append("t", bytes(largest)).offset
        assert 1 == store.append("t", b"after").offset
    with millstream.open(tmp_path / "store") as store:
        first, second = store.read("t")
        assert (largest, b"after") == (len(first.value or b""), second.value)
        assert store.verify(deep=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_scenario_78_a_million_empty_records_and_no_records(codec: Compression) -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t", compression=codec)
        assert [] == store.append_many("t", [])
        store.append_many("t", [b""] * 1_000_000)
        store.append("t", b"", key=b"")
    with open_quietly(storage.crash(keep="none")) as store:
        assert (0, 1_000_001) == store.offsets("t")[0]
        (*_, before, last) = store.read("t", start=999_990)
        assert (999_999, b"", None) == (before.offset, before.value, before.key)
        assert (1_000_000, b"", b"") == (last.offset, last.value, last.key)
        report = store.verify(deep=True)
        assert (True, 1_000_001) == (report.ok, report.records)


def test_scenario_78_more_records_than_a_batch_holds_are_refused() -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        with pytest.raises(UsageError, match=str(RECORD_COUNT_MAX)):
            store.append_many("t", [b""] * (RECORD_COUNT_MAX + 1))
        assert (0, 0) == store.offsets("t")[0]


@pytest.mark.parametrize(
    ("call", "limit"),
    [
        (lambda store: store.create_topic("x" * 201), "1 to 200"),
        (lambda store: store.create_topic("u", partitions=4097), "4096"),
        (lambda store: store.create_topic("u", segment_bytes=4095), "4096"),
        (lambda store: store.create_topic("u", segment_bytes=(2 << 30) + 1), "2 GiB"),
        (lambda store: store.consumer("t", group="g" * 201), "1 to 200"),
        (lambda store: store.append("t", b"", timestamp_ms=1 << 63), "timestamp"),
        (lambda store: store.append("t", b"", timestamp_ms=-(1 << 63)), "timestamp"),
        (lambda store: store.append("t", b"", key=bytes((128 << 20) + 1)), "134217728"),
        (lambda store: store.append("t", b"", headers=[("h", bytes(128 << 20))]), "134217728"),
        (lambda store: store.append_many("t", [bytes(1 << 20)] * 128), "134217728"),
        (lambda store: store.producer(batch_bytes=(32 << 20) + 1), "33554432"),
    ],
    ids=[
        "topic name",
        "partitions",
        "small segment",
        "large segment",
        "group name",
        "late timestamp",
        "early timestamp",
        "key",
        "header",
        "batch",
        "producer",
    ],
)
def test_scenario_78_beyond_a_limit_is_an_error_that_names_it(
    call: Callable[[Store], object], limit: str
) -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        with pytest.raises(UsageError, match=limit):
            call(store)
        assert (0, 0) == store.offsets("t")[0]
        assert ["t"] == [info.name for info in store.topics()]


class CountingStorage(PosixStorage):
    """Counts what a slow machine does not change."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened = 0
        self.listed = 0

    def open(self, path: str, mode: OpenMode) -> PosixFile:
        self.opened += 1
        return super().open(path, mode)

    def list(self, path: str) -> list[str]:
        self.listed += 1
        return super().list(path)

    def since(self) -> tuple[int, int]:
        """Files opened and directories listed since the last call."""
        counts = self.opened, self.listed
        self.opened = self.listed = 0
        return counts


@pytest.mark.slow
def test_scenario_78_many_segments_are_looked_at_once(tmp_path: Path) -> None:
    """In the order a store is used; each step opens files and lists directories so many times."""
    root = tmp_path / "store"
    write_segments(root, SEGMENTS, newest_ms=START_MS)
    with millstream.open(root) as store:  # walks all of it once, as there is no checkpoint
        assert (0, SEGMENTS) == store.offsets("t")[0]
    storage = CountingStorage(root)
    with open_quietly(storage, ManualClock(START_MS + STEP_MS)) as store:
        assert ["t"] == [info.name for info in store.topics()]
        opened, _ = storage.since()
        assert opened == 0
        assert (0, SEGMENTS) == store.offsets("t")[0]
        opened, listed = storage.since()
        # Not each header: the names, which are compared, and the chain file.
        assert opened <= 8 if SEGMENTS > 2 * UNSAVED_MIN else opened <= SEGMENTS + 8
        assert listed <= 3

        assert SEGMENTS == len(store.segments("t", 0))
        assert SEGMENTS - 1 == store.segments("t", 0)[-2].end_offset
        opened, listed = storage.since()
        assert (opened, listed) <= (6, 1)
        rolls = 20
        for number in range(rolls):
            assert SEGMENTS + number == store.append("t", b"more").offset
            store.roll("t", 0)
        assert SEGMENTS + rolls == len(store.segments("t", 0))
        opened, listed = storage.since()
        assert opened <= 10 * rolls
        assert listed <= 2
        middle = SEGMENTS // 2
        time_ms = START_MS - STEP_MS * (SEGMENTS - 1 - middle)
        assert middle == store.offset_at("t", 0, Position("timestamp", time_ms))
        (record,) = store.read("t", start=middle, stop=middle + 1)
        assert value_of(middle) == record.value
        opened, _ = storage.since()
        assert opened <= 40  # a search by halves

        report = store.trim("t", {0: middle})
        assert middle == len(report.removed)
        assert [middle, SEGMENTS + rolls] == [
            store.offsets("t")[0].start,
            store.offsets("t")[0].end,
        ]
        assert SEGMENTS + rolls - middle == len(store.segments("t", 0))
        opened, listed = storage.since()
        assert opened <= middle + 8
        assert listed <= 3
    with millstream.open(root, read_only=True) as store:
        assert store.verify().ok


@pytest.mark.slow
def test_scenario_78_many_topics(tmp_path: Path) -> None:
    names = [f"topic-{number:04d}" for number in range(TOPICS_COUNT)]
    with millstream.open(tmp_path / "store", durability="os") as store:
        for name in names:
            store.create_topic(name)
        for name in names:
            assert 0 == store.append(name, name.encode()).offset
    storage = CountingStorage(tmp_path / "store")
    with open_quietly(storage) as store:
        assert names == [info.name for info in store.topics()]
        assert 0 == storage.opened
        with store.reader({TopicPartition(name, 0): 0 for name in names}) as reader:
            found: list[bytes | None] = []
            while batches := reader.poll():
                found += [value for batch in batches for value in batch.values]
        assert names == [(value or b"").decode() for value in found]
        assert storage.opened <= 4 * len(names)
        assert store.verify().ok


# --- 79: the end of the offsets ----------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_scenario_79_the_last_offsets_of_all(codec: Compression) -> None:
    storage = MemoryStorage()
    first = OFFSET_MAX - 6
    store = open_quietly(storage)
    store.create_topic("t", compression=codec)
    database = store._engine.catalog.database
    with database.transaction("begin near the end"):
        database.query("UPDATE partitions SET start_offset = ?", (first,))
    with pytest.raises(UsageError, match="full"):
        store.append_many("t", [b"x"] * 8)
    store.append_many("t", [b"a", b"b", b"c"], keys=[b"k"] * 3)
    store.roll("t", 0)
    store.append_many("t", [b"d", b"e", b"f", b"g"])
    for _ in range(2):
        with pytest.raises(UsageError, match="full"):
            store.append("t", b"no")
        abandon(store)
        storage = storage.crash(keep="none")
        store = open_quietly(storage)
        found = [(record.offset, record.value) for record in store.read("t")]
        assert [(first + number, b"abcdefg"[number : number + 1]) for number in range(7)] == found
        assert (first, OFFSET_MAX + 1) == store.offsets("t")[0]
    with pytest.raises(UsageError, match="full"), store.transaction() as transaction:
        transaction.append("t", b"no")
    store.create_topic("u")
    assert 0 == store.append("u", b"others go on").offset
    store.roll("t", 0)
    assert [b"g"] == [record.value for record in store.read("t", start="-1")]
    assert store.verify(deep=True).ok
    store.close()


# --- 80: codecs that are not there -------------------------------------------------------------


def test_scenario_80_a_codec_without_its_library_is_an_error_and_no_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t", compression="zstd")
        store.append("t", b"a" * 4000)
        store.append("t", b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    _zstandard.cache_clear()
    with open_quietly(storage.crash(keep="none")) as store:
        with pytest.raises(FormatVersionError, match="zstandard") as caught:
            list(store.read("t"))
        assert ("t", 0) == (caught.value.topic, caught.value.partition)
        (record,) = store.read("t", start=1)
        assert b"" == record.value
    monkeypatch.undo()
    with open_quietly(storage.crash(keep="none")) as store:
        assert [b"a" * 4000, b""] == [record.value for record in store.read("t")]


# --- 83: the same seed, the same life ----------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3])
def test_scenario_83_one_seed_gives_one_trace(processes: int) -> None:
    """Else no failure of the crash tests could be tried again."""

    def trace(seed: int) -> list[tuple[str, str]]:
        storage = MemoryStorage()
        workload = Workload(seed=seed, steps=25, processes=processes, compression="lz4")
        workload.run(storage, Model(TOPICS))
        # Locks have random names.
        return [
            (kind, path.partition("/")[0]) if "lock" in path else (kind, path)
            for kind, path in storage.trace
        ]

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)
