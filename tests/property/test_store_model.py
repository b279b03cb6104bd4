"""Scenario 81: any sequence of operations, on several handles, with crashes, against plain lists.

The operations and what must come of them are those of `support/workload.py` and `log_model.py`,
which the crash tests use with random choices; here hypothesis chooses, and shrinks what fails.
Beside them a group consumes, and a topic is compacted, each with a model of its own.
"""

from __future__ import annotations

import contextlib
import os
from random import Random

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from log_model import expected
from restarts import LATER_MS
from simulated_stores import START_MS, abandon, kill, make_visible, open_quietly
from workload import Driver, Workload, fresh_model

from millstream import Record, Store, TopicPartition
from millstream.positions import Position
from millstream.testing import Keep, ManualClock, MemoryStorage

EXAMPLES = int(os.environ.get("MILLSTREAM_MODEL_EXAMPLES", "12"))
READERS = "readers"
KEYED = "keyed"
HANDLES_MAX = 3

seeds = st.integers(0, 1 << 16)
handles = st.integers(0, HANDLES_MAX - 1)


class StoreMachine(RuleBasedStateMachine):
    """Several handles of one store, a machine that may lose power, and what should be there."""

    @initialize(
        codec=st.sampled_from(["none", "lz4", "zstd"]),
        segment_bytes=st.sampled_from([4096, 1 << 26]),
    )
    def open(self, codec: str, segment_bytes: int) -> None:
        self.storage = MemoryStorage()
        self.model = fresh_model()
        self.clock = ManualClock(START_MS)
        self.workload = Workload(
            seed=0,
            compression=codec,
            segment_bytes=segment_bytes,
            value_bytes_max=300,
            processes=2,
        )
        self.stores: list[Store] = []
        self.consumed: dict[TopicPartition, int] = {}
        self.keyed: list[tuple[bytes, bytes | None]] = []
        self._open_another()
        self.driver = Driver(self.stores[0], self.model, self.clock, self.workload)

    def _open_another(self) -> Store:
        store = open_quietly(self.storage, self.clock)
        self.workload.create_topics(store)
        store.create_topic(
            KEYED, compact=True, exist_ok=True, segment_bytes=self.workload.segment_bytes
        )
        self.stores.append(store)
        return store

    def _use(self, handle: int, seed: int) -> Driver:
        self.driver.store = self.stores[handle % len(self.stores)]
        self.driver.random = Random(seed)
        self.clock.advance(seed % 3)
        return self.driver

    # --- what users do ---------------------------------------------------------------------------

    @rule(handle=handles, seed=seeds)
    def append(self, handle: int, seed: int) -> None:
        self._use(handle, seed).append()

    @rule(handle=handles, seed=seeds)
    def append_many(self, handle: int, seed: int) -> None:
        self._use(handle, seed).append_many()

    @rule(handle=handles, seed=seeds)
    def transaction(self, handle: int, seed: int) -> None:
        self._use(handle, seed).transaction()

    @rule(handle=handles, seed=seeds)
    def roll_or_trim(self, handle: int, seed: int) -> None:
        driver = self._use(handle, seed)
        driver.random.choice((driver.roll, driver.trim, driver.zero_fill, driver.sync))()

    @rule(handle=handles, seed=seeds)
    def append_keyed(self, handle: int, seed: int) -> None:
        random = self._use(handle, seed).random
        rows = [
            (b"%d" % random.randrange(4), None if random.random() < 0.2 else random.randbytes(9))
            for _ in range(random.randrange(1, 9))
        ]
        keys, values = [key for key, _ in rows], [value for _, value in rows]
        (written,) = self.driver.store.append_many(KEYED, values, keys)
        assert written.base_offset == len(self.keyed)
        self.keyed += rows

    @rule(handle=handles)
    def compact(self, handle: int) -> None:
        self._use(handle, 0).store.compact(KEYED)
        self._check_keyed(self.driver.store)

    @rule(handle=handles, count=st.integers(1, 9))
    def consume(self, handle: int, count: int) -> None:
        """As a member of a group, which goes on where the last one stopped."""
        store = self._use(handle, 0).store
        topics = list(self.model.topics)
        with store.consumer(topics, group=READERS, start="earliest", follow=False) as consumer:
            for record in consumer.poll(timeout=0, max_records=count):
                partition = TopicPartition(record.topic, record.partition)
                start = self.model.partitions[partition].start
                assert record.offset >= max(self.consumed.get(partition, 0), start)
                assert [record] == [each for each in self._readable(partition) if each == record]
            consumer.commit()
            positions = consumer.position()
        self.consumed |= positions
        self.model.seen |= positions

    # --- what goes wrong -------------------------------------------------------------------------

    @precondition(lambda self: len(self.stores) < HANDLES_MAX)
    @rule()
    def open_another(self) -> None:
        self._open_another()

    @precondition(lambda self: len(self.stores) > 1)
    @rule(handle=handles)
    def close_one(self, handle: int) -> None:
        self.stores.pop(handle % len(self.stores)).close()

    @rule(handle=handles)
    def kill_one(self, handle: int) -> None:
        kill(self.stores.pop(handle % len(self.stores)))
        store = self.stores[0] if self.stores else self._open_another()
        for partition in self.model.partitions:
            make_visible(store, *partition)
        self.model.check(store, "acknowledged")
        self._check_keyed(store)

    @rule(keep=st.sampled_from(["none", "random", "all"]), seed=seeds)
    def lose_power(self, keep: Keep, seed: int) -> None:
        storage = self.storage.crash(seed, keep)
        for store in self.stores:
            abandon(store)
        self.storage, self.stores = storage, []
        store = self._open_another()
        self.model.check(store, "acknowledged" if keep == "all" else "durable")
        self._check_keyed(store)

    # --- what is there ---------------------------------------------------------------------------

    @rule(handle=handles)
    def read_all(self, handle: int) -> None:
        self.model._check_committed(self._use(handle, 0).store)

    @rule(handle=handles, partition=st.integers(0, 2), place=st.floats(0, 1))
    def seek(self, handle: int, partition: int, place: float) -> None:
        """By offset and by time, in one partition."""
        store = self._use(handle, 0).store
        key = list(self.model.partitions)[partition]
        start, end = store.offsets(key.topic)[key.partition]
        offset = start + int(place * (end - start))
        rows = self._readable(key)
        found = list(store.read(key.topic, start=offset, partition=key.partition))
        assert [record for record in rows if record.offset >= offset] == found
        everything = self._written(key)
        time_ms = int(place * LATER_MS)
        later = (record.offset for record in everything if record.timestamp_ms >= time_ms)
        assert next(later, end) == store.offset_at(
            key.topic, key.partition, Position("timestamp", time_ms)
        )

    @rule(handle=handles, deep=st.booleans())
    def verify(self, handle: int, deep: bool) -> None:
        assert [] == self._use(handle, 0).store.verify(deep=deep).findings

    def _written(self, partition: TopicPartition) -> list[Record]:
        model = self.model.partitions[partition]
        return expected(partition, model.batches, model.start)

    def _readable(self, partition: TopicPartition) -> list[Record]:
        model = self.model.partitions[partition]
        batches = [
            batch
            for batch in model.batches
            if batch.transaction is None or batch.transaction.state == "committed"
        ]
        return expected(partition, batches, model.start)

    def _check_keyed(self, store: Store) -> None:
        """Of each key the last record; of the others only what was written."""
        last: dict[bytes, int] = {key: offset for offset, (key, _) in enumerate(self.keyed)}
        found = list(store.read(KEYED))
        assert all(self.keyed[each.offset] == (each.key, each.value) for each in found)
        assert set(last.values()) <= {each.offset for each in found} | self._tombstones()
        for key, offset in last.items():
            record = store.latest(KEYED, key)
            value = self.keyed[offset][1]
            assert (record.value if record else None) == value

    def _tombstones(self) -> set[int]:
        return {offset for offset, (_, value) in enumerate(self.keyed) if value is None}

    def teardown(self) -> None:
        for store in getattr(self, "stores", ()):
            with contextlib.suppress(Exception):
                abandon(store)


def test_scenario_81_any_sequence_of_operations_against_plain_lists() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
