"""segment_list.py: what a handle remembers of segments is what it would find if it looked again."""

from __future__ import annotations

from random import Random

import pytest
from simulated_stores import abandon, kill, log_of, open_quietly

from millstream import Store, segment_list
from millstream.segment_list import SegmentList
from millstream.testing import ManualClock, MemoryStorage

START_MS = 1_700_000_000_000


def look_again(store: Store) -> SegmentList:
    log = log_of(store)
    return SegmentList(store._engine.storage, log.directory, lambda: log.slot)


def assert_up_to_date(store: Store) -> None:
    fresh = look_again(store)
    headers = fresh.headers()
    # From the headers alone, whatever a chain file says.
    assert segment_list._sealed_infos(headers) == store.segments("t", 0)[:-1]
    assert fresh.infos() == store.segments("t", 0)
    assert fresh.bases() == log_of(store).files.bases()


class Life:
    """Two handles of a store, and what may happen to them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.storage = MemoryStorage()
        self.clock = ManualClock(START_MS)
        self.stores = [self.open(), self.open()]
        self.stores[0].create_topic("t", compact=True, segment_bytes=4096)

    def open(self) -> Store:
        return open_quietly(self.storage, self.clock)

    def step(self) -> None:
        self.clock.advance(self.random.randrange(1000))
        steps = [self.append, self.roll, self.trim, self.compact, self.look, self.kill, self.crash]
        (step,) = self.random.choices(steps, [5, 5, 2, 2, 3, 1, 1])
        step(self.random.choice(self.stores))

    def append(self, store: Store) -> None:
        keys = [b"%d" % self.random.randrange(9) for _ in range(self.random.randrange(1, 20))]
        store.append_many("t", [b"v" * 100] * len(keys), keys=keys)

    def roll(self, store: Store) -> None:
        store.roll("t", 0)

    def trim(self, store: Store) -> None:
        start, end = store.offsets("t")[0]
        store.trim("t", {0: start + (end - start) // 3})

    def compact(self, store: Store) -> None:
        store.compact("t")

    def look(self, store: Store) -> None:
        assert_up_to_date(store)

    def kill(self, store: Store) -> None:
        kill(store)
        self.stores[self.stores.index(store)] = self.open()

    def crash(self, _: Store) -> None:
        for store in self.stores:
            abandon(store)
        self.storage = self.storage.crash(self.random.randrange(99), "none")
        self.stores = [self.open(), self.open()]


@pytest.mark.parametrize("unsaved", [1, segment_list.UNSAVED_MIN])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_remembered_is_what_is_there(
    seed: int, unsaved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rolls, retention, compaction, kills and power failures, by two handles in any order."""
    monkeypatch.setattr(segment_list, "UNSAVED_MIN", unsaved)
    life = Life(seed)
    for _ in range(60):
        life.step()
    for store in life.stores:
        assert_up_to_date(store)
        assert store.verify(deep=True).ok
        abandon(store)


def test_lists_that_were_handed_out_do_not_change() -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t")
        store.append("t", b"1")
        before, infos = log_of(store).files.bases(), store.segments("t", 0)
        assert ([0], 1) == (before, len(infos))
        store.roll("t", 0)
        store.append("t", b"2")
        assert [0, 1] == log_of(store).files.bases()
        assert ([0], 1) == (before, len(infos))
        assert [True, False] == [info.sealed for info in store.segments("t", 0)]


class Overtaken(SegmentList):
    """Others seal and compact what was the active segment, right after it was looked at."""

    def __init__(self, store: Store) -> None:
        log = log_of(store)
        super().__init__(store._engine.storage, log.directory, lambda: log.slot)
        self._store = store
        self._done = False

    def _catch_up(self) -> segment_list._Known:
        known = super()._catch_up()
        if not self._done:
            self._done = True
            self._store.compact("t")
            self._store.append("t", b"new", key=b"k")
        return known


def test_a_segment_that_was_active_a_moment_ago_may_be_gone() -> None:
    with open_quietly(MemoryStorage()) as store:
        store.create_topic("t", compact=True)
        store.append("t", b"old", key=b"k")
        store.roll("t", 0)
        store.append("t", b"newer", key=b"k")
        before = log_of(store).files.bases()[-1]
        infos = Overtaken(store).infos()
        assert infos == store.segments("t", 0)
        assert before not in [info.base_offset for info in infos]
