"""What a store was asked to keep, as plain lists, and the check that it kept it.

A workload tells the model before each call what it is going to write and after it what was
acknowledged. After a crash `check` compares a store with the model:

- per partition the records are a prefix of what was written, in whole batches, at their offsets,
  with their content, and nothing else;
- the prefix covers everything acknowledged as durable;
- the records of a transaction are visible if it committed and invisible if not, all of them in
  every partition, together with its offsets and its checkpoint;
- several partitions are read in the order of their appends.

`rebase` then makes what has survived the new truth, so that the same can go on after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from millstream import Record, Store, TopicPartition
from millstream.group_catalog import GroupCatalog
from millstream.record import Headers

Reach: TypeAlias = Literal["durable", "acknowledged"]
"""What must be there: after a power failure what was durable, after a kill all acknowledged."""

GROUP = "g"
CHECKPOINT = "state"


class Row(NamedTuple):
    """One record as it was written."""

    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def __deepcopy__(self, _: object) -> Row:
        """Nothing in it changes, and models of thousands of rows are copied all the time."""
        return self


@dataclass(slots=True)
class Transaction:
    """A transaction of the workload."""

    number: int
    state: Literal["open", "committing", "committed", "aborted"] = "open"
    alone: bool = False
    """Whether one batch is all there is of it: no offsets and no checkpoint."""
    offsets: dict[TopicPartition, int] = field(default_factory=dict)

    @property
    def checkpoint(self) -> bytes:
        """What it stores under `CHECKPOINT`."""
        return b"transaction %d" % self.number


@dataclass(slots=True)
class Batch:
    """The records that one call wrote to one partition."""

    base: int
    rows: list[Row]
    order: int
    """Place among all batches of the store."""
    transaction: Transaction | None = None

    @property
    def end(self) -> int:
        """Offset after the last record."""
        return self.base + len(self.rows)


@dataclass(slots=True)
class PartitionModel:
    """What one partition should hold."""

    batches: list[Batch] = field(default_factory=list)
    durable: int = 0
    """Records below survive everything."""
    acknowledged: int = 0
    """Records below survive the end of the process."""
    start: int = 0
    skipped_to: int = 0
    """Offsets below are not given out, though their records were lost."""
    start_asked: int = 0
    """A trim up to here was asked for; it may have happened."""

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return max(self.batches[-1].end if self.batches else 0, self.skipped_to)


class Model:
    """All partitions of a store, its transactions and what they committed."""

    def __init__(self, topics: Mapping[str, int]) -> None:
        self.topics = dict(topics)
        self.partitions = {
            TopicPartition(topic, number): PartitionModel()
            for topic, count in topics.items()
            for number in range(count)
        }
        self.transactions: list[Transaction] = []
        self.committed: Transaction | None = None
        """The last committed transaction: its offsets and checkpoint are in force."""
        self.seen: dict[TopicPartition, int] = {}
        """What other groups have committed."""
        self._order = 0

    # --- what the workload tells ---------------------------------------------------------------

    def writing(
        self, partition: TopicPartition, rows: list[Row], transaction: Transaction | None = None
    ) -> Batch:
        """A batch is about to be written."""
        self._order += 1
        model = self.partitions[partition]
        batch = Batch(model.end, rows, self._order, transaction)
        model.batches.append(batch)
        return batch

    def acknowledged(self, partition: TopicPartition, *, durable: bool) -> None:
        """Everything written to the partition so far was acknowledged."""
        model = self.partitions[partition]
        model.acknowledged = model.end
        if durable:
            model.durable = model.end

    def synced(self) -> None:
        """Everything written so far is durable."""
        for partition in self.partitions:
            self.acknowledged(partition, durable=True)

    def begin(self, *, alone: bool = False) -> Transaction:
        """A transaction has begun."""
        transaction = Transaction(len(self.transactions) + 1, alone=alone)
        self.transactions.append(transaction)
        return transaction

    def decided(self, transaction: Transaction, *, committed: bool) -> None:
        """A transaction has committed or aborted."""
        transaction.state = "committed" if committed else "aborted"
        if committed:
            if not transaction.alone:
                self.committed = transaction
            for partition, model in self.partitions.items():
                if any(batch.transaction is transaction for batch in model.batches):
                    self.acknowledged(partition, durable=True)

    # --- another process goes on ---------------------------------------------------------------

    def summary(self) -> str:
        """What a process needs to know that goes on where this model is; JSON."""
        offsets = self.committed.offsets if self.committed else {}
        return json.dumps(
            {
                "topics": self.topics,
                "partitions": [
                    (*key, model.end, model.start) for key, model in self.partitions.items()
                ],
                "transactions": len(self.transactions),
                "offsets": [(*key, offset) for key, offset in offsets.items()],
            }
        )

    @classmethod
    def resume(cls, summary: str) -> Model:
        """A model without the records, that goes on from a summary."""
        stored = json.loads(summary)
        model = cls(stored["topics"])
        for topic, number, end, start in stored["partitions"]:
            model.partitions[TopicPartition(topic, number)] = PartitionModel(
                [], end, end, start, end, start
            )
        model.transactions = [
            Transaction(number + 1, "aborted") for number in range(stored["transactions"])
        ]
        offsets = {TopicPartition(*key): offset for *key, offset in stored["offsets"]}
        if offsets:
            model.committed = Transaction(0, "committed", offsets=offsets)
        return model

    # --- what a crash left ---------------------------------------------------------------------

    def check(self, store: Store, reach: Reach) -> None:
        """Compare the store with the model, settle what was undecided, and rebase on the rest."""
        self._settle_commit(store)
        for partition, model in self.partitions.items():
            self._check_partition(store, partition, model, reach)
        for transaction in self.transactions:
            if transaction.state == "open":
                transaction.state = "aborted"
        self._check_committed(store)

    def _check_partition(
        self, store: Store, partition: TopicPartition, model: PartitionModel, reach: Reach
    ) -> None:
        start, end = store.offsets(partition.topic)[partition.partition]
        found = list(
            store.read(
                partition.topic,
                partition=partition.partition,
                isolation="uncommitted",
            )
        )
        seen = self.committed.offsets.get(partition, 0) if self.committed else 0
        seen = max(seen, self.seen.get(partition, 0))
        must = model.durable if reach == "durable" else model.acknowledged
        kept_end = found[-1].offset + 1 if found else start
        kept = [batch for batch in model.batches if batch.end <= kept_end]

        assert start in (model.start, model.start_asked), (partition, start)
        # Offsets that were trimmed away, or read by a group, are not given out again even if their
        # records are lost.
        assert end == max(kept_end, seen), (partition, end, kept_end, seen)
        assert max(kept_end, model.skipped_to) >= must, (partition, kept_end, must)
        assert expected(partition, kept, start) == found, partition
        model.batches = kept
        model.start = model.start_asked = start
        # Whoever has opened the store has made durable what it found.
        model.durable = model.acknowledged = model.skipped_to = end

    def _settle_commit(self, store: Store) -> None:
        groups = GroupCatalog(store._engine.catalog)
        offsets = {key: offset for key, (offset, _) in groups.group_offsets(GROUP).items()}
        checkpoint = store.checkpoint(CHECKPOINT)
        for transaction in self.transactions:
            if transaction.state == "committing" and transaction.alone:
                shown = self._shown(store, transaction)
                transaction.state = "committed" if shown else "aborted"
            elif transaction.state == "committing":
                happened = checkpoint == transaction.checkpoint
                transaction.state = "committed" if happened else "aborted"
                self.committed = transaction if happened else self.committed
        in_force = self.committed

        assert (in_force.checkpoint if in_force else None) == checkpoint
        assert (in_force.offsets if in_force else {}) == offsets

    def _shown(self, store: Store, transaction: Transaction) -> bool:
        """Whether the last record of a transaction of one batch is seen; then all have to be."""
        return any(
            batch.end - 1 in {record.offset for record in store.read(topic, partition=number)}
            for (topic, number), model in self.partitions.items()
            for batch in model.batches
            if batch.transaction is transaction
        )

    def _check_committed(self, store: Store) -> None:
        for topic, count in self.topics.items():
            batches = [
                (batch, TopicPartition(topic, number))
                for number in range(count)
                for batch in self.partitions[TopicPartition(topic, number)].batches
                if batch.transaction is None or batch.transaction.state == "committed"
            ]
            batches.sort(key=lambda item: item[0].order)
            merged = [
                record
                for batch, partition in batches
                for record in expected(partition, [batch], self.partitions[partition].start)
            ]

            assert merged == list(store.read(topic)), topic


def expected(partition: TopicPartition, batches: list[Batch], start: int) -> list[Record]:
    """The records of these batches at `start` and after."""
    return [
        Record(*partition, batch.base + number, *row)
        for batch in batches
        for number, row in enumerate(batch.rows)
        if batch.base + number >= start
    ]
