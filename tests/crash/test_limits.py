"""Scenarios 77 to 80 and 83: queries by time, the largest and smallest, versions, determinism."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest
from log_model import Model
from simulated_stores import abandon, open_quietly
from workload import TOPICS, Workload

import millstream
from millstream import FormatVersionError, Store, UsageError
from millstream.compression import _zstandard
from millstream.config import Compression
from millstream.format import OFFSET_MAX, RECORD_COUNT_MAX
from millstream.positions import Position
from millstream.storage import OpenMode, PosixFile, PosixStorage
from millstream.testing import MemoryStorage

CODECS: tuple[Compression, ...] = ("none", "lz4", "zstd")
SEGMENTS = int(os.environ.get("MILLSTREAM_SEGMENTS", "200"))

# --- 77: by time -------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [0, 1, 2])
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_scenario_77_times_before_between_and_after_in_any_order(
    codec: Compression, segments: int, restarts: int
) -> None:
    random = Random(segments)
    storage = MemoryStorage()
    stamps: list[int] = []
    with open_quietly(storage) as store:
        store.create_topic("t", compression=codec)
        for number in range(30):
            batch = [number * 100 + random.randrange(-300, 300) for _ in range(5)]
            if number % 7 == 0:
                batch = [batch[0]] * 5
            stamps += batch
            store.append_many("t", [b"x" * 400] * 5, timestamps_ms=batch)
            if segments == 3 and number in {10, 20}:
                store.roll("t", 0)
        ask_for_times(store, stamps)
    for _ in range(restarts):
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


@pytest.mark.slow
def test_scenario_78_many_segments_cost_a_look_at_each_header_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in files that are opened, which a slow machine does not change."""
    path = tmp_path / "store"
    with millstream.open(path, durability="os") as store:
        store.create_topic("t", segment_bytes="4KiB")
        for number in range(SEGMENTS):
            store.append("t", b"%d" % number + b"." * 3900)
    opened: list[str] = []
    original = PosixStorage.open

    def counting(storage: PosixStorage, name: str, mode: OpenMode) -> PosixFile:
        opened.append(name)
        return original(storage, name, mode)

    monkeypatch.setattr(PosixStorage, "open", counting)
    with millstream.open(path) as store:
        assert 0 == len(opened)
        assert SEGMENTS == store.append("t", b"next").offset
        assert len(opened) <= SEGMENTS + 8  # each header once, for the links
        opened.clear()
        middle = SEGMENTS // 2
        (record,) = store.read("t", start=middle, stop=middle + 1)
        assert (record.value or b"").startswith(b"%d." % middle)
        assert SEGMENTS + 1 == len(store.segments("t", 0))
    monkeypatch.undo()
    with millstream.open(path, read_only=True) as store:
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
