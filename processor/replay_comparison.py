"""What a pipeline has written, held against what a replay of it gives, record for record.

Only topics are compared here; what sinks outside the store hold is in sink_replay.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from millstream import Record, Store, TopicPartition

from .checkpoint import Checkpoint
from .outputs import OutputBatch
from .sink_replay import SinkReplays, record_text, same_record


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a replay gives something else."""

    topic: str
    partition: int
    offset: int | None
    """Of the record that was written; None where there is none."""
    written: Record | None
    """What the topic holds; None when it ends before."""
    replayed: Record | None
    """What the replay gives (its offset means nothing); None when it gives nothing more."""

    def __str__(self) -> str:
        place = f"{self.topic}/{self.partition}"
        if self.written is None:
            assert self.replayed is not None
            given = record_text(self.replayed)
            return f"{place}: nothing was written where the replay gives {given}"
        if self.replayed is None:
            return (
                f"{place}: offset {self.offset} holds {record_text(self.written)}, the replay gives"
                " nothing more"
            )
        return (
            f"{place}: offset {self.offset} holds {record_text(self.written)}, the replay gives"
            f" {record_text(self.replayed)}"
        )


class Written:
    """What a pipeline has written, read beside the replay. Not thread-safe.

    Args:
        store: Where it is.
        sinks: Take what goes to them.
        start: With which the replay begins.
        end: Up to which it goes.
    """

    def __init__(
        self,
        store: Store,
        sinks: SinkReplays,
        start: Checkpoint,
        end: Checkpoint,
    ) -> None:
        self.records_compared = 0
        self.differences: list[Difference] = []
        """The first of each output partition that differs."""
        self.skipped: list[TopicPartition] = []
        """Output partitions that are not compared, because their first records were removed."""
        self._store = store
        self._sinks = sinks
        self._start = start.output_ends()
        self._readers: dict[TopicPartition, Iterator[Record]] = {}
        self._differing: set[TopicPartition] = set()
        self._columnar: dict[str, bool] = {}
        self._end = {place: at for place, at in end.output_ends().items() if place not in sinks}
        for place in self._end:
            if store.offsets(place.topic)[place.partition].start > self._start.get(place, 0):
                self._differing.add(place)
                self.skipped.append(place)

    def compare(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Hold what one step gives against what was written."""
        for place, batch in outputs:
            if place in self._sinks:
                self._sinks.add(place, batch, passed=False)
                continue
            if place in self._differing:
                continue
            replayed = [
                Record(place.topic, place.partition, 0, time, key, value, headers)
                for time, key, value, headers in batch.rows()
            ]
            written = list(islice(self._reader(place), len(replayed)))
            self.records_compared += len(written)
            same = _same_row if self._stores_columns(place.topic) else same_record
            for number, each in enumerate(replayed):
                found = written[number] if number < len(written) else None
                if found is None or not same(found, each):
                    self._differ(place, found, each)
                    break

    def skip(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Pass over what one step gives: as many records were written."""
        for place, batch in outputs:
            if place in self._sinks:
                self._sinks.add(place, batch, passed=True)
            elif place not in self._differing:
                count = sum(1 for _ in batch.rows())
                deque(islice(self._reader(place), count), 0)

    def finish(self) -> None:
        """Note what was written that no step gave."""
        for place in self._end:
            if place not in self._differing:
                left = next(self._reader(place), None)
                if left is not None:
                    self._differ(place, left, None)

    def _differ(self, place: TopicPartition, found: Record | None, given: Record | None) -> None:
        offset = None if found is None else found.offset
        self._differing.add(place)
        self.differences.append(Difference(*place, offset, found, given))

    def _stores_columns(self, topic: str) -> bool:
        if topic not in self._columnar:
            self._columnar[topic] = self._store.topic(topic).config.columnar
        return self._columnar[topic]

    def _reader(self, place: TopicPartition) -> Iterator[Record]:
        if place not in self._readers:
            end = self._end.get(place, 0)
            start = self._start.get(place, 0)
            records = self._store.read(place.topic, start, end, partition=place.partition)
            self._readers[place] = iter(records if start < end else ())
        return self._readers[place]


def _same_row(written: Record, given: Record) -> bool:
    """The same for a topic of columns: rows come in the order of its fields, nulls among them."""
    value = None if given.value is None else msgspec.json.decode(given.value)
    row = None if written.value is None else msgspec.json.decode(written.value)
    if not isinstance(value, dict) or not isinstance(row, dict):
        return False
    key = written.key if given.key is None else given.key  # the declared one
    told = {name: part for name, part in value.items() if part is not None}
    kept = {name: part for name, part in row.items() if part is not None}
    return (written.timestamp_ms, written.key, kept) == (given.timestamp_ms, key, told)
