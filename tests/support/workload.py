"""A random but repeatable life of a store: appends of all kinds, transactions, rolls, trims.

`run` works on a storage until it is done or the machine dies, and tells a `Model` what it does.
The same seed takes the same steps, so that it can be crashed at each of its operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import msgspec
from interrupted_process import Killed
from log_model import CHECKPOINT, GROUP, Model, Row, Transaction
from simulated_stores import START_MS, abandon, kill, log_of, open_quietly

from millstream import Store, TopicPartition, partition_of
from millstream.config import Compression, Durability
from millstream.errors import MillstreamError
from millstream.storage_protocols import Storage
from millstream.testing import ManualClock, SimulatedCrash

TOPICS = {"orders": 2, "totals": 1}
MODES: tuple[Durability, ...] = ("sync", "sync", "os", "interval")


class Text(msgspec.Struct):
    """A row of a topic of columns."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What to do, and how often."""

    seed: int
    steps: int = 14
    compression: Compression = "none"
    segment_bytes: int = 4096
    """With values of some hundred bytes this makes several segments; 64 MiB makes one."""
    value_bytes_max: int = 1200
    processes: int = 1
    """So many stores are open and take steps in turn, as several processes would."""
    columns: bool = False
    """Values are rows of `Text`, stored as columns."""

    def run(self, storage: Storage, model: Model) -> None:
        """Open a store, take the steps, close it.

        Raises:
            SimulatedCrash: The machine died.
            Killed: The process died, and its locks are free.
        """
        stores: list[Store] = []
        try:
            clock = ManualClock(START_MS)
            stores.extend(open_quietly(storage, clock) for _ in range(self.processes))
            self.create_topics(stores[0])
            driver = Driver(stores[0], model, clock, self)
            for _ in range(self.steps):
                if self.processes > 1:
                    driver.store = driver.random.choice(stores)
                driver.step()
            for store in stores:
                store.close()
            model.synced()
        except SimulatedCrash:
            for store in stores:
                abandon(store)
            raise
        except Killed:
            for store in stores:
                kill(store)
            raise

    def create_topics(self, store: Store) -> None:
        """Create the topics that are missing."""
        for topic, partitions in TOPICS.items():
            store.create_topic(
                topic,
                partitions=partitions,
                exist_ok=True,
                compression=self.compression,
                segment_bytes=self.segment_bytes,
                schema=Text if self.columns else None,
            )


@dataclass
class Driver:
    """Takes random steps on one open store."""

    store: Store
    model: Model
    clock: ManualClock
    plan: Workload
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.plan.seed)

    def step(self) -> None:
        """Do one thing."""
        self.clock.advance(self.random.randrange(3))
        steps: list[tuple[Callable[[], None], int]] = [
            (self.append, 6),
            (self.append_many, 4),
            (self.transaction, 4),
            (self.transaction_of_one_batch, 3),
            (self.roll, 1),
            (self.trim, 1),
            (self.zero_fill, 1),
            (self.sync, 1),
        ]
        choose = self.random.choices([step for step, _ in steps], [weight for _, weight in steps])
        choose[0]()

    def rows(self, count: int) -> list[Row]:
        """Random records, all with the time of the append or all with times of their own."""
        random = self.random
        stamped = random.random() < 0.5
        rows = []
        for _ in range(count):
            size = random.choice((0, 5, random.randrange(self.plan.value_bytes_max)))
            letters = b"abcdefgh" if random.random() < 0.5 else bytes(range(256))
            value = bytes(random.choices(letters, k=size))
            rows.append(
                Row(
                    random.randrange(10_000) if stamped else self.clock.now_ms(),
                    random.choice((None, b"", b"k%d" % random.randrange(5))),
                    self.fitting(None if random.random() < 0.1 else value),
                    (("h", None), ("i", b"x")) if random.random() < 0.1 else (),
                )
            )
        return rows

    def fitting(self, value: bytes | None) -> bytes | None:
        """The value, or a row with it: a topic of columns has no tombstones."""
        if not self.plan.columns:
            return value
        return msgspec.json.encode(Text((value or b"").decode("latin-1")))

    def partition(self) -> TopicPartition:
        return self.random.choice(list(self.model.partitions))

    def append(self) -> None:
        """One record."""
        (row,) = self.rows(1)
        partition = self.partition()
        mode = self.random.choice(MODES)
        batch = self.model.writing(partition, [row])
        where = self.store.append(
            partition.topic,
            row.value,
            key=row.key,
            timestamp_ms=self.stamp(row),
            headers=row.headers,
            partition=partition.partition,
            durability=mode,
        )
        assert (*partition, batch.base, row.timestamp_ms) == where
        self.model.acknowledged(partition, durable=mode == "sync")

    def stamp(self, row: Row) -> int | None:
        return None if row.timestamp_ms == self.clock.now_ms() else row.timestamp_ms

    def append_many(self) -> None:
        """Several records, by key over all partitions of a topic, or to one partition."""
        mode = self.random.choice(MODES)
        self._append_many(mode, None)

    def _append_many(
        self, mode: Durability, transaction: Transaction | None, *, whole: bool = False
    ) -> None:
        rows = self.rows(self.random.randrange(1, 9))
        topic, count = self.random.choice(list(TOPICS.items()))
        spread = not whole and self.random.random() < 0.5
        one = None if spread else self.random.randrange(count)
        if one is None:
            rows = [row._replace(key=row.key or b"") for row in rows]
        parts: dict[int, list[Row]] = {}
        for row in rows:
            number = partition_of(row.key or b"", count) if one is None else one
            parts.setdefault(number, []).append(row)
        written = [
            (number, self.model.writing(TopicPartition(topic, number), parts[number], transaction))
            for number in sorted(parts)
        ]
        stamps = None if self.stamp(rows[0]) is None else [row.timestamp_ms for row in rows]
        arguments = (topic, [row.value for row in rows], [row.key for row in rows], stamps, one)
        headers = [row.headers for row in rows]
        if self.open_transaction is not None:
            found = self.open_transaction.append_many(*arguments, headers=headers)
        else:
            found = self.store.append_many(*arguments, headers=headers, durability=mode)
        assert [(topic, number, batch.base, len(batch.rows)) for number, batch in written] == found
        if transaction is None:
            for number, _ in written:
                self.model.acknowledged(TopicPartition(topic, number), durable=mode == "sync")

    open_transaction = None

    def transaction(self) -> None:
        """A transaction over several partitions, committed or aborted."""
        state = self.model.begin()
        commits = self.random.random() < 0.7
        calls = self.random.randrange(1, 4)
        with contextlib.suppress(_AbortError), self.store.transaction() as transaction:
            self.open_transaction = transaction
            try:
                for _ in range(calls):
                    self._append_many("sync", state)
                if not commits:
                    raise _AbortError("on purpose")
                partition = self.partition()
                position = self.random.randrange(self.model.partitions[partition].acknowledged + 1)
                before = self.model.committed
                state.offsets = {**(before.offsets if before else {}), partition: position}
                transaction.commit_offsets(GROUP, {partition: position})
                transaction.put_checkpoint(CHECKPOINT, state.checkpoint)
                state.state = "committing"
            finally:
                self.open_transaction = None
        self.model.decided(state, committed=commits)

    def transaction_of_one_batch(self) -> None:
        """A transaction that is decided while it is synced, committed or aborted."""
        state = self.model.begin(alone=True)
        commits = self.random.random() < 0.8
        with contextlib.suppress(_AbortError), self.store.transaction() as transaction:
            self.open_transaction = transaction
            try:
                self._append_many("sync", state, whole=True)
                if not commits:
                    raise _AbortError("on purpose")
                state.state = "committing"
            finally:
                self.open_transaction = None
        self.model.decided(state, committed=commits)

    def roll(self) -> None:
        """Start a new segment."""
        self.store.roll(*self.partition())

    def trim(self) -> None:
        """Forget the oldest records of a partition."""
        partition = self.partition()
        model = self.model.partitions[partition]
        # Not beyond the end: what is undecided or unacknowledged is not seen, nor removed.
        before = self.random.randrange(model.start, model.acknowledged + 1)
        model.start_asked = before
        self.store.trim(partition.topic, {partition.partition: before})
        model.start = before

    def zero_fill(self) -> None:
        """What the background thread does now and then."""
        log_of(self.store, *self.partition()).zero_fill()

    def sync(self) -> None:
        """Make everything durable that was appended through this store."""
        self.store.sync()
        if self.plan.processes == 1:
            self.model.synced()


class _AbortError(MillstreamError):
    """Ends a transaction without a commit."""


def fresh_model() -> Model:
    return Model(TOPICS)
