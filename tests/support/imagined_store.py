"""A store that answers what a `Model` expects: what a workload would have done, without doing it.

A parent that killed its child knows how many steps were finished. Taking the same steps here gives
the model of them, and one more step that may or may not have happened.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from workload import Driver

from millstream import AppendMetadata, RecordMetadata, TopicPartition, partition_of
from millstream.testing import ManualClock

if TYPE_CHECKING:
    from log_model import Model
    from workload import Workload

    from millstream import Store


class ImaginedStore:
    """Answers as a store would that keeps what the model is told."""

    def __init__(self, model: Model, clock: ManualClock) -> None:
        self._model = model
        self._clock = clock

    def append(
        self, topic: str, value: bytes, *, partition: int, timestamp_ms: int | None, **_: object
    ) -> RecordMetadata:
        batch = self._model.partitions[TopicPartition(topic, partition)].batches[-1]
        now_ms = self._clock.now_ms()
        written_ms = now_ms if timestamp_ms is None else timestamp_ms
        return RecordMetadata(topic, partition, batch.base, written_ms)

    def append_many(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes],
        stamps: object,
        partition: int | None,
        **_: object,
    ) -> list[AppendMetadata]:
        count = self._model.topics[topic]
        numbers = {partition_of(key, count) for key in keys} if partition is None else {partition}
        found = []
        for number in sorted(numbers):
            batch = self._model.partitions[TopicPartition(topic, number)].batches[-1]
            found.append(AppendMetadata(topic, number, batch.base, len(batch.rows)))
        return found

    @contextlib.contextmanager
    def transaction(self) -> Iterator[ImaginedStore]:
        yield self

    def commit_offsets(self, group: str, offsets: object) -> None:
        """Nothing to keep: the model knows."""

    def put_checkpoint(self, name: str, data: bytes) -> None:
        """Nothing to keep."""

    def roll(self, topic: str, partition: int) -> None:
        """Nothing to do."""

    def trim(self, topic: str, before: object) -> None:
        """Nothing to do."""

    def sync(self) -> None:
        """Nothing to do."""


class ImaginedDriver(Driver):
    """Takes the same steps as a `Driver` with the same plan."""

    def zero_fill(self) -> None:
        self.partition()


def imagine(workload: Workload, model: Model, clock: ManualClock, finished: int) -> None:
    """Tell `model` about `finished` steps, and about one more that was under way."""
    store = cast("Store", ImaginedStore(model, clock))
    driver = ImaginedDriver(store, model, clock, workload)
    for _ in range(finished):
        driver.step()
    before = copy.deepcopy(model)
    driver.step()
    for partition, now in model.partitions.items():
        was = before.partitions[partition]
        now.durable, now.acknowledged, now.start = was.durable, was.acknowledged, was.start
    number = len(before.transactions)
    for transaction in model.transactions[number:]:
        transaction.state = "committing" if transaction.state == "committed" else "open"
    if model.committed and model.committed.number > number:
        former = before.committed
        model.committed = model.transactions[former.number - 1] if former else None
