"""State that spills is state in memory: the same records, values and order, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import millstream
from millstream import Store
from millstream.processor import keyed_state, spill_tables, spilled_state
from millstream.processor.keyed_state import KeyedState, StateMark
from millstream.processor.spilled_states import SpilledStates
from millstream.processor.state import StateEntry, StateRecords, decode_entry

KEYS = ["a", "b", 1, ("a", 2), b"\x00", 2.5, "", *map(str, range(20))]
TTL_MS = 10

keys = st.sampled_from(KEYS)
puts = st.tuples(st.just("put"), keys, st.integers(0, 40))
pops = st.tuples(st.just("pop"), keys, st.just(0))
gets = st.tuples(st.just("get"), keys, st.integers(0, 60))
edits = st.tuples(st.just("edit"), st.lists(keys, max_size=6), st.integers(0, 9))
expiries = st.tuples(st.just("expire"), st.just(""), st.integers(0, 60))
rest = st.sampled_from(
    [(name, "", 0) for name in ("commit", "step", "sweep", "write", "crash", "lose_file")]
)


class Log:
    """A state topic: records from an offset on, and a sweep that may be under way."""

    def __init__(self) -> None:
        self.start = 0
        self.records: list[tuple[bytes, bytes | None]] = []
        self.sweep: Iterator[StateRecords] | None = None
        self.swept_from = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def begin_sweep(self, sweep: Iterator[StateRecords]) -> None:
        self.sweep, self.swept_from = sweep, self.end

    def write(self, records: StateRecords) -> None:
        """Changes, with a piece of the sweep; when that has ended, what was before it goes."""
        self.records += zip(*records, strict=True)
        if self.sweep is None:
            return
        piece = next(self.sweep, None)
        if piece is not None:
            self.records += zip(*piece, strict=True)
        else:
            del self.records[: self.swept_from - self.start]
            self.start, self.sweep = self.swept_from, None

    def entries(self, start: int) -> Iterator[StateEntry]:
        return (decode_entry(*each) for each in self.records[start - self.start :])


class Both:
    """A state that spills and one in memory, each with its log."""

    def __init__(self, store: Store, cache_bytes: int, ttl_ms: int | None) -> None:
        self.store, self.cache_bytes, self.ttl_ms = store, cache_bytes, ttl_ms
        self.logs = Log(), Log()
        self.epoch = 0
        self.open()

    def open(self) -> None:
        """A restart. The spilled one needs what its file does not have, or everything."""
        memory_log, log = self.logs
        memory_log.sweep = log.sweep = None
        self.memory = KeyedState[int]("op", ttl_ms=self.ttl_ms)
        self.memory.restore(memory_log.entries(memory_log.start))
        self.epoch += 1
        self.states = SpilledStates(self.store.cache_database("p"), self.cache_bytes, self.epoch)
        self.spilled = self.states.make("op", ttl_ms=self.ttl_ms)
        with self.states.restoring("op", self.mark(), whole=True) as start:
            self.spilled.restore(log.entries(start))

    def mark(self) -> StateMark:
        return StateMark("identity", 7, self.logs[1].start, self.logs[1].end)

    def put(self, key: object, time_ms: int) -> None:
        for state in (self.memory, self.spilled):
            state.put(key, time_ms, time_ms)

    def pop(self, key: object, _: int) -> None:
        assert self.memory.pop(key) == self.spilled.pop(key)

    def get(self, key: object, level: int) -> None:
        assert self.memory.get(key, level) == self.spilled.get(key, level)
        assert (key in self.memory) == (key in self.spilled)

    def edit(self, keys: list[object], value: int) -> None:
        if self.ttl_ms is not None:
            return
        for state in (self.memory, self.spilled):
            cells = state.edit(keys, 100 if value % 2 else None)
            for key in keys:
                if value < 3:
                    cells.pop(key, None)
                else:
                    cells[key] = cells.get(key, 0) + value
        seen = self.memory.view(KEYS), self.spilled.view(KEYS)
        assert list(map(seen[0].get, KEYS)) == list(map(seen[1].get, KEYS))

    def expire(self, _: object, level: int) -> None:
        assert self.memory.expire(level) == self.spilled.expire(level)

    def step(self, *_: object) -> None:
        self.states.trim()

    def commit(self, *_: object) -> None:
        assert len(self.memory) == len(self.spilled)
        self.states.changing()
        changes = self.memory.changes(), self.spilled.changes()
        assert changes[0] == changes[1]
        for log, records in zip(self.logs, changes, strict=True):
            log.write(records)
        self.states.committed({"op": self.mark()})

    def sweep(self, *_: object) -> None:
        for log, state in zip(self.logs, (self.memory, self.spilled), strict=True):
            if log.sweep is None:
                log.begin_sweep(state.sweep())
        self.commit()

    def write(self, *_: object) -> None:
        self.commit()
        self.states.write()

    def crash(self, *_: object) -> None:
        """Only what was committed is left; of the file, what was written."""
        self.close()
        self.open()

    def lose_file(self, *_: object) -> None:
        self.close()
        self.store.remove_cache("p")
        self.open()

    def close(self) -> None:
        self.states.__exit__(InterruptedError, None, None)

    def contents(self, log: Log) -> dict[object, object]:
        """What a restart from this log finds."""
        found: dict[object, object] = {}
        for path, content in log.entries(log.start):
            found.pop(path, None)
            if content is not None:
                found[path] = content
        return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(keyed_state, "SWEEP_RECORDS", 3)
    monkeypatch.setattr(spilled_state, "SWEEP_RECORDS", 3)
    monkeypatch.setattr(spill_tables, "SWEEP_RECORDS", 3)
    with millstream.open(tmp_path, durability="os") as store:
        yield store


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ttl_ms=st.sampled_from([None, TTL_MS]),
    cache_bytes=st.sampled_from([500, 5_000, 1 << 20]),
    steps=st.lists(
        st.one_of(puts, puts, gets, pops, edits, expiries, rest), min_size=5, max_size=60
    ),
)
def test_spilled_state_is_state_in_memory(
    store: Store, ttl_ms: int | None, cache_bytes: int, steps: list[tuple[str, object, int]]
) -> None:
    store.remove_cache("p")
    both = Both(store, cache_bytes, ttl_ms)
    for name, *arguments in steps:
        getattr(both, name)(*arguments)
    both.commit()
    assert both.memory.ordered() == both.spilled.ordered()
    memory_log, log = both.logs
    assert both.contents(memory_log) == both.contents(log)
    while memory_log.sweep or log.sweep:
        both.commit()
    both.sweep()
    while memory_log.sweep or log.sweep:
        both.commit()
    assert len(both.memory) == memory_log.end - memory_log.start
    assert both.contents(memory_log) == both.contents(log)
    both.close()
