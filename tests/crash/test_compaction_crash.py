"""Compaction dies at every operation: the machine, or the process beside others. Scenarios 70, 71.

Whatever it leaves, the records are those that were written, of each key the last one is there, and
what comes next, appends, a second crash, another compaction, finds a whole log.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from compacted_model import SCHEMA, CompactedModel, as_row
from interrupted_process import Killed, ProcessStorage
from matrix import CELLS
from restarts import explained, unexpected_files
from simulated_stores import START_MS, abandon, kill, log_of, open_quietly
from store_children import hear, say, spawn

import millstream
from millstream import CompactionResult, LockedError, Store, TopicPartition
from millstream.config import Compression
from millstream.storage_protocols import Storage
from millstream.testing import ManualClock, MemoryStorage, SimulatedCrash, crash_cases

if TYPE_CHECKING:
    from matrix import Cell

DAY = 86_400_000
T0 = TopicPartition("t", 0)
EVERY = 1 if "MILLSTREAM_SEED" in os.environ else 5
"""`make crash` tries every operation, other runs every fifth."""


class Life:
    """Appends, compactions and a trim; the same for the same seed."""

    def __init__(
        self, seed: int, compression: Compression, segment_bytes: int, *, columns: bool = False
    ) -> None:
        self.columns = columns
        self.seed = seed
        self.compression: Compression = compression
        self.segment_bytes = segment_bytes

    def run(self, storage: Storage, model: CompactedModel) -> None:
        store: Store | None = None
        try:
            clock = ManualClock(START_MS)
            store = open_quietly(storage, clock)
            self.create(store)
            self.live(store, model, clock)
            store.close()
        except SimulatedCrash:
            if store is not None:
                abandon(store)
            raise
        except Killed:
            if store is not None:
                kill(store)
            raise

    def create(self, store: Store) -> None:
        store.create_topic(
            "t",
            exist_ok=True,
            compact=True,
            compression=self.compression,
            segment_bytes=self.segment_bytes,
            schema=SCHEMA if self.columns else None,
        )

    def stored(self, value: bytes | None) -> bytes | None:
        """A value as the topic has it."""
        return as_row(value) if self.columns else value

    def live(self, store: Store, model: CompactedModel, clock: ManualClock) -> None:
        random = Random(self.seed)
        for number in range(3):
            for _ in range(5):
                rows = [self.row(random) for _ in range(random.randrange(1, 7))]
                model.append_many(store, rows)
                if random.random() < 0.4:
                    store.roll("t", 0)
            store.compact("t")
            clock.advance(DAY if number else 1)
        before = random.randrange(model.acknowledged)
        model.start = before
        store.trim("t", {0: before})
        model.append(store, *self.row(random))

    def row(self, random: Random) -> tuple[bytes, bytes | None]:
        letters = b"ab" if random.random() < 0.5 else bytes(range(256))
        value = bytes(random.choices(letters, k=random.randrange(500)))
        stored = self.stored(None if random.random() < 0.2 else value)
        return b"key-%d" % random.randrange(6), stored

    def go_on(self, storage: MemoryStorage, model: CompactedModel, restarts: int = 2) -> None:
        """Restart that often on what a crash has left."""
        asked = model.start
        for number in range(restarts):
            store = open_quietly(storage, ManualClock(START_MS + 10 * DAY))
            self.create(store)
            model.start = store.offsets("t")[0].start
            assert model.start in (0, asked)
            model.check(store)
            model.settle(store)
            model.append(store, b"key-%d" % number, self.stored(b"after the crash"))
            if number == restarts - 1:
                store.compact("t")
                model.check(store, compacted=True)
                store.close()
            else:
                abandon(store)
                storage = storage.crash(keep="none")
        assert [] == unexpected_files(storage)


LIVES = pytest.mark.parametrize(
    "life",
    [
        Life(1, "none", 4096),
        Life(2, "lz4", 4096),
        Life(3, "zstd", 1 << 26),
        Life(4, "none", 1 << 26),
        Life(5, "none", 4096, columns=True),
        Life(6, "lz4", 1 << 26, columns=True),
    ],
    ids=["none-4K", "lz4-4K", "zstd-64M", "none-64M", "columns-4K", "columns-lz4-64M"],
)


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=4)
@pytest.mark.parametrize("columns", [False, True])
def test_scenario_71_power_fails_at_any_operation_of_compactions(cell: Cell, columns: bool) -> None:
    life = Life(1 + CELLS.index(cell), cell.codec, cell.segment_bytes, columns=columns)
    model = CompactedModel()

    def work(storage: MemoryStorage) -> None:
        nonlocal model
        model = CompactedModel()
        life.run(storage, model)

    kinds: Counter[str] = Counter()
    for case in crash_cases(work, seeds=(life.seed,), every=EVERY):
        with explained(str(case)):
            life.go_on(case.storage, copy.deepcopy(model), cell.restarts)
        kinds[case.kind] += 1
    assert kinds["rename"] >= 10 // EVERY
    assert kinds["sync_directory"] >= 10 // EVERY


@pytest.mark.slow
@pytest.mark.crash
@LIVES
def test_a_process_is_killed_at_any_operation_of_compactions(life: Life) -> None:
    index, finished = 0, False
    while not finished:
        storage, model = MemoryStorage(), CompactedModel()
        survivor = open_quietly(storage, ManualClock(START_MS + 10 * DAY))
        life.create(survivor)
        process = ProcessStorage(storage)
        process.interrupt(Killed(), at=index, after=bool(index % 2))
        with contextlib.suppress(Killed), explained(f"killed at operation {index}"):
            life.run(process, model)
        with explained(f"{life.seed=}: after a kill at operation {index}"):
            _survive(survivor, model, life.stored(b"after the kill"))
            reader = survivor.reader({T0: model.start})
            seen = [record for batch in reader.poll(3) for record in batch]
            survivor.compact("t")
            left = model.check(survivor, compacted=True)
            while found := reader.poll(3):
                seen += [record for batch in found for record in batch]
            reader.close()
            assert set(left) <= set(seen) <= set(model.written.values())
        abandon(survivor)
        finished = process.operations <= index
        index += EVERY


def _survive(survivor: Store, model: CompactedModel, value: bytes | None) -> None:
    with survivor._engine.append_lock:
        pass  # whoever takes the lock recovers what was interrupted
    log = log_of(survivor)
    log.wait_durable(log.end_locked().next_offset)
    asked = model.start
    model.start = survivor.offsets("t")[0].start
    assert model.start in (0, asked)
    model.check(survivor)
    model.settle(survivor)
    model.append(survivor, b"key-0", value)


SWAP_POINTS = {
    1: ("write", 0, "while the new segment is written"),
    2: ("rename", 0, "when it is written and synced, but under its temporary name"),
    3: ("sync_directory", 0, "when it has the name of the first old one, not yet for good"),
    4: ("remove", 0, "when it has its name for good, and the others are still there"),
    5: ("remove", 3, "when some of the others are removed"),
    6: ("sync_directory", 1, "when all of the others are removed, not yet for good"),
}
"""Kind of operation, which of its kind within the swap, and what has been done before it."""


@pytest.mark.cells(segments=3)
@pytest.mark.parametrize("point", SWAP_POINTS)
@pytest.mark.parametrize("keep", ["none", "all"])
def test_scenario_70_the_six_points_of_a_swap(cell: Cell, point: int, keep: str) -> None:
    kind, nth, what = SWAP_POINTS[point]
    storage, model = MemoryStorage(), CompactedModel()
    store = open_quietly(storage)
    store.create_topic("t", compact=True, compression=cell.codec, segment_bytes=1 << 20)
    for number in range(12):
        model.append(store, b"key-%d" % (number % 5), b"%d" % number)
        if number % 3 == 2:
            store.roll("t", 0)
    trace = list(storage.trace)
    twin = storage.crash(keep="all")
    steps = [*_operations(twin), None]
    first_write = next(n for n, step in enumerate(steps) if step == "write")
    places = [n for n in range(first_write, len(steps)) if steps[n] == kind]

    with explained(what):
        storage.faults.crash_at = len(trace) + places[nth]
        with pytest.raises(SimulatedCrash):
            store.compact("t")
        abandon(store)
        after = storage.crash(keep=keep)  # type: ignore[arg-type] # one of the two
        for _ in range(cell.restarts):
            with open_quietly(after) as again:
                found = {record.key: record.value for record in model.check(again)}
                assert {b"key-%d" % (n % 5): b"%d" % n for n in range(7, 12)} == found
                again.compact("t")
                model.check(again, compacted=True)
            assert [] == unexpected_files(after)
            after = after.crash(keep="none")


def _operations(storage: MemoryStorage) -> list[str]:
    """The kinds of operations of a compaction on a copy that was opened already."""
    store = open_quietly(storage)
    log_of(store)
    before = len(storage.trace)
    store.compact("t")
    kinds = [kind for kind, _ in storage.trace[before:]]
    store.close()
    return kinds


# --- real processes ------------------------------------------------------------------------------

KEYS = 5
KILLS = 15 if "MILLSTREAM_SEED" in os.environ else 5


class Reader:
    """Follows the topic from its beginning, and knows what every writer may have written."""

    def __init__(self, store: Store) -> None:
        self.reader = store.reader({T0: 0})
        self.latest: dict[bytes, int] = {}
        self.offset = -1

    def read(self) -> None:
        while batches := self.reader.poll():
            for batch in batches:
                for record in batch:
                    assert record.key is not None
                    assert record.value is not None
                    number = int(record.value)
                    assert record.offset > self.offset
                    assert number % KEYS == int(record.key.rpartition(b"-")[2])
                    assert number > self.latest.get(record.key, -1)
                    self.latest[record.key] = number
                    self.offset = record.offset


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.cells(count=3)
def test_scenario_75_processes_are_killed_that_compact_while_others_append_and_read(
    tmp_path: Path, cell: Cell
) -> None:
    random = Random(int(os.environ.get("MILLSTREAM_SEED", "1")))
    path = tmp_path / "store"
    with millstream.open(path, durability="os") as store, contextlib.ExitStack() as children:
        store.create_topic(
            "t", compact=True, compression=cell.codec, segment_bytes=cell.segment_bytes
        )
        writers = [children.enter_context(spawn("update", path, name, KEYS)) for name in "ab"]
        acknowledged = [0, 0]
        for writer in writers:
            assert b"r" == hear(writer)
        early = Reader(store)
        for kill_number in range(KILLS):
            with explained(f"{kill_number=}"), spawn("compact", path) as compactor:
                assert b"r" == hear(compactor), compactor.stderr and compactor.stderr.read()
                wanted = [random.randrange(1, 60) for _ in writers]
                for count, writer in zip(wanted, writers, strict=True):
                    say(writer, b"." * count)
                hear(compactor, random.randrange(3))
                early.read()
                compactor.kill()
                compactor.wait()
                for number, writer in enumerate(writers):
                    acknowledged[number] += len(hear(writer, wanted[number]))
                late = Reader(store)
                late.read()
                for number, name in enumerate((b"a", b"b")):
                    _check_acknowledged(late.latest, name, acknowledged[number])
        result = _compact(store)
        early.read()
        late = Reader(store)
        late.read()
        assert early.latest == late.latest
        assert 2 * KEYS == len(list(store.read("t"))) == len(list(store.latest_all("t")))
        for number, name in enumerate((b"a", b"b")):
            _check_acknowledged(late.latest, name, acknowledged[number])
        assert result.end_offset >= sum(acknowledged)
    for _ in range(cell.restarts):
        with millstream.open(path) as store:
            report = store.verify(deep=True)
            assert report.ok, report.findings
            assert 2 * KEYS == report.records
    assert not list(path.rglob("*.tmp"))


def _compact(store: Store) -> CompactionResult:
    """Once nobody else does: the stores of the writers compact in the background, too."""
    while True:
        with contextlib.suppress(LockedError):
            (result,) = store.compact("t")
            return result


def _check_acknowledged(latest: dict[bytes, int], name: bytes, count: int) -> None:
    """The last of the first `count` records of a writer is there for each key, or a later one."""
    for number in range(max(0, count - KEYS), count):
        assert latest[b"%s-%d" % (name, number % KEYS)] >= number
