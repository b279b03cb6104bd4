"""Scenario 16 once more: any bit of any file of a small store, as every kind of reader meets it.

The store has a segment that compaction has rewritten, a sealed one with index and key file, and an
active one. By default some bits are flipped, by the seed; `MILLSTREAM_FLIPS=all` flips each of
segments and indexes, and some thousand of the key files, which are padded.
"""

from __future__ import annotations

import contextlib
import os
from random import Random

import msgspec
import pytest
from simulated_stores import START_MS, abandon, open_quietly

from millstream import DataError, Store
from millstream.config import Compression
from millstream.positions import Position
from millstream.simulated_disk import walk
from millstream.testing import ManualClock, MemoryStorage

FLIPS = os.environ.get("MILLSTREAM_FLIPS", "80")
SEED = int(os.environ.get("MILLSTREAM_SEED", "1"))
KEYS = [b"a", b"b", b"c", b"nowhere"]
STEP_MS = 1000


class Row(msgspec.Struct):
    text: str
    number: int | None = None


def small_store(codec: Compression, *, columns: bool = False) -> MemoryStorage:
    storage = MemoryStorage()
    clock = ManualClock(START_MS)
    with open_quietly(storage, clock) as store:
        store.create_topic("t", compact=True, compression=codec, schema=Row if columns else None)
        for number in range(9):
            clock.advance(STEP_MS)
            keys = KEYS[: 1 + number % 3]
            values = [b"%d" % number * 30] * len(keys)
            if columns:
                values = [b'{"text":"%s","number":%d}' % (value, number) for value in values]
            store.append_many("t", values, keys=keys)
            if number == 3:
                store.compact("t")
            if number == 6:
                store.roll("t", 0)
        assert store.latest("t", b"nowhere") is None  # looks into every segment
        assert 3 == len(store.segments("t", 0))
    storage.remove("tail")  # or a reader takes the ends from it, and looks at less
    return storage


def answers(store: Store) -> dict[str, object]:
    """What each kind of reader finds."""
    times = [START_MS + STEP_MS // 2 + STEP_MS * number for number in (-1, 0, 3, 7, 9)]
    return {
        "records": list(store.read("t")),
        "latest": [store.latest("t", key) for key in KEYS],
        "all": sorted(store.latest_all("t"), key=lambda record: record.offset),
        "times": [store.offset_at("t", 0, Position("timestamp", each)) for each in times],
        "middle": list(store.read("t", start=11, stop=14)),
        "segments": store.segments("t", 0),
        "ends": store.offsets("t"),
    }


def files(storage: MemoryStorage) -> dict[str, bytes]:
    return {
        f"{directory}/{name}": bytes(inode.data)
        for directory, name, inode in walk(storage.machine.names.entries)
        if directory.startswith("topics/") and inode.data
    }


def flipped(content: bytes, bit: int) -> tuple[int, bytes]:
    position, shift = divmod(bit, 8)
    return position, bytes([content[position] ^ 1 << shift])


def overwrite(storage: MemoryStorage, path: str, position: int, content: bytes) -> None:
    with contextlib.closing(storage.open(path, "rw")) as file:
        file.write([content], position)


def bits(contents: dict[str, bytes]) -> list[tuple[str, int]]:
    """All there are, or of each file about as many."""
    if FLIPS == "all":
        return [
            (path, bit)
            for path, content in contents.items()
            for bit in range(0, len(content) * 8, 31 if path.endswith(".keys") else 1)
        ]
    random = Random(SEED)
    count = int(FLIPS) // len(contents)
    return [
        (path, bit)
        for path, content in contents.items()
        for bit in random.sample(range(len(content) * 8), min(count, len(content) * 8))
    ]


def reading(storage: MemoryStorage) -> tuple[str | None, dict[str, object] | None]:
    """What the error names and what is found; one of them is None."""
    try:
        with open_quietly(storage, read_only=True) as store:
            return None, answers(store)
    except DataError as error:
        return error.topic, None


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_scenario_16_any_bit_of_any_file_of_a_store(codec: Compression, columns: bool) -> None:
    storage = small_store(codec, columns=columns)
    with open_quietly(storage, read_only=True) as store:
        expected = answers(store)
    contents = files(storage)
    kinds = {path.rpartition(".")[2] for path in contents}
    assert {"segment", "index", "keys"} == kinds
    refused = 0
    for path, bit in bits(contents):
        content = contents[path]
        position, changed = flipped(content, bit)
        overwrite(storage, path, position, changed)
        topic, found = reading(storage)
        if path.endswith(".segment"):
            refused += 1
            assert ("t", None) == (topic, found), (path, bit)
        else:
            assert expected == found, (path, bit)
        overwrite(storage, path, position, content[position : position + 1])
    assert refused


@pytest.mark.slow
def test_scenario_16_any_bit_as_a_writer_meets_it_and_verify_finds_it() -> None:
    """A writer may mend what is derived; it goes on after the last record, or not at all."""
    whole = small_store("lz4")
    with open_quietly(whole, read_only=True) as store:
        expected = answers(store)
    contents = files(whole)
    count = len(bits(contents))
    for path, bit in bits(contents)[:: max(1, count // 120)]:
        storage = whole.crash(keep="all")
        position, changed = flipped(contents[path], bit)
        overwrite(storage, path, position, changed)
        store = open_quietly(storage, ManualClock(START_MS))
        try:
            damaged = path.endswith(".segment")
            findings = {each.path for each in store.verify(deep=True).findings}
            assert not damaged or path in findings, (path, bit)
            assert expected == answers(store), (path, bit)
            assert not damaged, (path, bit)
            end = store.offsets("t")[0].end
            assert end == store.append("t", b"more", key=b"d").offset
        except DataError:
            assert damaged, (path, bit)
        finally:
            abandon(store)
