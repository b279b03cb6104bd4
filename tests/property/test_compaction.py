"""Random lives of a compacted partition against a dictionary: nothing lost, nothing twice."""

from __future__ import annotations

import msgspec
import pytest
from compacted_model import SCHEMA, CompactedModel, as_row
from hypothesis import given, settings, strategies as st
from simulated_stores import START_MS, abandon, log_of, open_quietly

from millstream import LogReader, Record, Store, TopicPartition
from millstream.compactor import Compactor
from millstream.testing import ManualClock, MemoryStorage

DAY = 86_400_000
T0 = TopicPartition("t", 0)

keys = st.sampled_from([b"", b"a", b"b", b"c" * 80, b"d"])
values = st.one_of(st.none(), st.binary(max_size=300))
rows = st.lists(st.tuples(keys, values), min_size=1, max_size=8)
operations = st.one_of(
    st.tuples(st.just("append"), rows),
    st.tuples(st.just("transaction"), rows, st.booleans()),
    st.tuples(st.just("compact"), st.sampled_from([300, 2000, 1 << 20])),
    st.tuples(st.just("part"), st.integers(1, 12)),
    st.tuples(st.just("trim"), st.integers(0, 100)),
    st.tuples(st.just("roll")),
    st.tuples(st.just("wait"), st.sampled_from([1, DAY // 2, DAY])),
    st.tuples(st.just("read"), st.integers(1, 9)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("crash")),
)


class Content(msgspec.Struct):
    content: bytes


class Follower:
    """A reader that is never far behind, and remembers what it has been given."""

    def __init__(self, store: Store, position: int) -> None:
        self.reader: LogReader = store.reader({T0: position})
        self.seen: list[Record] = []

    def read(self, count: int | None) -> None:
        self.seen += [record for batch in self.reader.poll(count) for record in batch]

    @property
    def position(self) -> int:
        return self.reader.positions[T0]


class Life:
    """A store, its model and a follower.

    Args:
        columns: The topic has a schema, and rows as values.
    """

    def __init__(self, *, columns: bool) -> None:
        self.columns = columns
        self.storage = MemoryStorage()
        self.clock = ManualClock(START_MS)
        self.model = CompactedModel()
        self.store = self.open()
        self.follower = Follower(self.store, 0)

    def open(self) -> Store:
        store = open_quietly(self.storage, self.clock)
        schema = SCHEMA if self.columns else None
        store.create_topic("t", exist_ok=True, compact=True, segment_bytes=4096, schema=schema)
        return store

    def _stored(
        self, given_rows: list[tuple[bytes, bytes | None]]
    ) -> list[tuple[bytes, bytes | None]]:
        if not self.columns:
            return given_rows
        return [(key, as_row(value)) for key, value in given_rows]

    def append(self, given_rows: list[tuple[bytes, bytes | None]]) -> None:
        given_rows = self._stored(given_rows)
        self.model.append_many(self.store, given_rows)

    def transaction(self, given_rows: list[tuple[bytes, bytes | None]], commits: bool) -> None:
        given_rows = self._stored(given_rows)
        base = self.store.offsets("t")[0].end
        with self.store.transaction() as transaction:
            for key, value in given_rows:
                transaction.append("t", value, key=key)
            if not commits:
                transaction.abort()
        self.store.sync()  # what was aborted is durable too, and its offsets stay taken
        if commits:
            now_ms = self.clock.now_ms()
            for number, (key, value) in enumerate(given_rows):
                offset = base + number
                self.model.written[offset] = Record("t", 0, offset, now_ms, key, value, ())
        self.model.acknowledged = base + len(given_rows)

    def compactor(self, map_bytes: int) -> Compactor:
        engine = self.store._engine
        log = log_of(self.store)
        return Compactor(engine.components, engine.transactions, log, map_bytes=map_bytes)

    def compact(self, map_bytes: int) -> None:
        self.store.roll("t", 0)
        for _ in self.compactor(map_bytes).run():
            pass
        self.model.check(self.store, compacted=True)

    def part(self, steps: int) -> None:
        running = self.compactor(1 << 20).run()
        for _ in zip(range(steps), running, strict=False):
            pass
        running.close()

    def trim(self, percent: int) -> None:
        self.model.start += (self.model.acknowledged - self.model.start) * percent // 200
        self.store.trim("t", {0: self.model.start})

    def roll(self) -> None:
        self.store.roll("t", 0)

    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    def read(self, count: int) -> None:
        if self.follower.position >= self.model.start:
            self.follower.read(count)

    def reopen(self) -> None:
        self.store.close()
        self._begin()

    def crash(self) -> None:
        abandon(self.store)
        self.storage = self.storage.crash(keep="none")
        self._begin()

    def _begin(self) -> None:
        position, seen = self.follower.position, self.follower.seen
        self.follower.reader.close()
        self.store = self.open()
        self.follower = Follower(self.store, max(position, self.model.start))
        self.follower.seen = seen

    def check(self) -> None:
        self.model.check(self.store)
        if self.columns:
            self.check_columns()
        seen = self.follower.seen
        offsets = [record.offset for record in seen]
        assert sorted(set(offsets)) == offsets
        assert [self.model.written[offset] for offset in offsets] == seen

    def check_columns(self) -> None:
        """As columns there are the same records but the tombstones, in the same order."""
        names = ["_offset", "_key", "_timestamp_ms", "content"]
        found = self.store.read("t").arrow(names).read_all().to_pylist()
        records = [record for record in self.store.read("t") if record.value is not None]
        assert found == [
            {
                "_offset": record.offset,
                "_key": record.key,
                "_timestamp_ms": record.timestamp_ms,
                "content": msgspec.json.decode(record.value or b"", type=Content).content,
            }
            for record in records
        ]

    def check_follower(self) -> None:
        """Who was never behind the horizon, and has read to the end, knows the dictionary."""
        end = self.store.offsets("t")[0].end
        while self.model.start <= self.follower.position < end:
            self.follower.read(None)
        last = {record.key: record for record in self.follower.seen}
        for key, record in self.model.latest(end).items():
            if record.value is not None and self.follower.position == end:
                assert record == last[key]


@pytest.mark.parametrize("columns", [False, True])
@given(steps=st.lists(operations, max_size=25))
@settings(max_examples=60, deadline=None)
def test_any_life_of_a_compacted_topic_is_that_of_a_dictionary(
    columns: bool, steps: list[tuple[str, *tuple[object, ...]]]
) -> None:
    life = Life(columns=columns)
    try:
        for name, *arguments in steps:
            getattr(life, name)(*arguments)
            life.check()
        life.check_follower()
        life.store.close()
    finally:
        abandon(life.store)
