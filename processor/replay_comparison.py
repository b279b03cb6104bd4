"""What a pipeline has written, held against what a replay of it gives, record for record.

Only topics are compared here; what sinks outside the store hold is in sink_replay.py.
"""

from __future__ import annotations

from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import msgspec

from millstream import Record, Store, TopicConfig, TopicPartition

from .checkpoint import Checkpoint
from .outputs import OutputBatch, same_record
from .sink_replay import SinkReplays, record_text


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


class Compacted:
    """A partition of a topic that is compacted, held against what a replay gives.

    Compaction removes what later records of the same key replace, and in time tombstones. So what
    is there must come in the order of the replay, and of each key the last must be there.

    Args:
        written: What is there, up to `end`.
        later: The keys of what was written since.
        same: Whether a record that is there and one of the replay say the same.
    """

    def __init__(
        self,
        written: Iterator[Record],
        later: Callable[[], set[bytes | None]],
        same: Callable[[Record, Record], bool] = same_record,
    ) -> None:
        self.records_compared = 0
        self._written = written
        self._later = later
        self._same = same
        self._next = next(written, None)
        self._found: dict[bytes | None, Record] = {}
        self._absent: dict[bytes | None, Record] = {}
        """The last the replay gives of keys of which that is not there."""
        self._last: dict[bytes | None, Record] | None = None
        """The last the replay gives of each key, once something was passed over."""

    def pass_over(self) -> None:
        """Take it that the replay has given what is not to be compared.

        Nobody knows how much of that is still there, so of what comes now only the last of each
        key is compared, with the last that is there.
        """
        self._last = {}

    def add(self, given: Record) -> None:
        """Take the next record of the replay."""
        key, found = given.key, self._next
        if self._last is not None:
            self._last[key] = given
        elif found is not None and self._same(found, given):
            self.records_compared += 1
            self._found[key] = found
            self._absent.pop(key, None)
            self._next = next(self._written, None)
        elif (before := self._found.get(key)) is not None and self._same(before, given):
            # Two that say the same: the one that is there may be either.
            self._absent.pop(key, None)
        else:
            self._absent[key] = given

    def difference(self) -> tuple[Record | None, Record | None] | None:
        """What is there that is not in its place in the replay, or else what should be there."""
        if self._last is not None:
            return self._differing_last(self._last)
        if self._next is not None:
            given = self._absent.get(self._next.key)
            in_place = given is None or not self._same(self._next, given)
            return self._next, given if in_place else None
        missing = {key: each for key, each in self._absent.items() if each.value is not None}
        if missing:
            later = self._later()
            for key, given in missing.items():
                if key not in later:
                    return None, given
        return None

    def _differing_last(
        self, given: Mapping[bytes | None, Record]
    ) -> tuple[Record | None, Record | None] | None:
        rest = [] if self._next is None else chain([self._next], self._written)
        found = {each.key: each for each in rest if each.key in given}
        differing = []
        for key, each in given.items():
            there = found.get(key)
            if there is not None and self._same(there, each):
                self.records_compared += 1
            elif there is not None or each.value is not None:
                differing.append((there, each))
        later = self._later() if differing else set()
        return next((pair for pair in differing if pair[1].key not in later), None)


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
        """Output partitions that are not compared, because records of them were removed."""
        self._store = store
        self._sinks = sinks
        self._start = start.output_ends()
        self._readers: dict[TopicPartition, Iterator[Record]] = {}
        self._differing: set[TopicPartition] = set()
        self._configs: dict[str, TopicConfig] = {}
        self._compacted: dict[TopicPartition, Compacted] = {}
        self._end = {place: at for place, at in end.output_ends().items() if place not in sinks}
        for place in self._end:
            if store.offsets(place.topic)[place.partition].start > self._start.get(place, 0):
                self._differing.add(place)
                self.skipped.append(place)
            elif self._config(place.topic).compact:
                self._compacted[place] = Compacted(
                    self._reader(place), partial(self._keys_behind, place), self._same(place.topic)
                )

    def compare(self, outputs: Iterable[tuple[TopicPartition, OutputBatch]]) -> None:
        """Hold what one step gives against what was written."""
        for place, batch in outputs:
            if place in self._sinks:
                self._sinks.add(place, batch, passed=False)
                continue
            if place in self._differing:
                continue
            declared = self._config(place.topic).key_column
            replayed = [
                Record(*place, 0, time, key, value, headers)
                if key is not None or declared is None
                else Record(*place, 0, time, self._declared_key(place.topic, value), value, headers)
                for time, key, value, headers in batch.rows()
            ]
            if (compacted := self._compacted.get(place)) is not None:
                for each in replayed:
                    compacted.add(each)
                continue
            written = list(islice(self._reader(place), len(replayed)))
            self.records_compared += len(written)
            same = self._same(place.topic)
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
            elif place in self._compacted:
                self._compacted[place].pass_over()
            elif place not in self._differing:
                count = sum(1 for _ in batch.rows())
                deque(islice(self._reader(place), count), 0)

    def finish(self) -> None:
        """Note what was written that no step gave."""
        for place in self._end:
            compacted = self._compacted.get(place)
            if compacted is not None:
                difference = compacted.difference()
                self.records_compared += compacted.records_compared
                if difference is not None:
                    self._differ(place, *difference)
            elif place not in self._differing:
                left = next(self._reader(place), None)
                if left is not None:
                    self._differ(place, left, None)

    def _differ(self, place: TopicPartition, found: Record | None, given: Record | None) -> None:
        offset = None if found is None else found.offset
        self._differing.add(place)
        self.differences.append(Difference(*place, offset, found, given))

    def _config(self, topic: str) -> TopicConfig:
        if topic not in self._configs:
            self._configs[topic] = self._store.topic(topic).config
        return self._configs[topic]

    def _same(self, topic: str) -> Callable[[Record, Record], bool]:
        return _same_row if self._config(topic).columnar else same_record

    def _declared_key(self, topic: str, value: bytes | None) -> bytes | None:
        """The key that a row appended without one gets from the field declared for it."""
        row = None if value is None else msgspec.json.decode(value)
        name = self._config(topic).key_column
        key = row.get(name) if isinstance(row, dict) else None
        if key is None:
            return None
        binary = str(self._store.topic(topic).schema.field(name).type) == "binary"
        return b64decode(key) if binary else str(key).encode()

    def _keys_behind(self, place: TopicPartition) -> set[bytes | None]:
        records = self._store.read(place.topic, self._end[place], partition=place.partition)
        return {record.key for record in records}

    def _reader(self, place: TopicPartition) -> Iterator[Record]:
        if place not in self._readers:
            end = self._end.get(place, 0)
            start = self._start.get(place, 0)
            records = self._store.read(place.topic, start, end, partition=place.partition)
            self._readers[place] = iter(records if start < end else ())
        return self._readers[place]


def _same_row(written: Record, given: Record) -> bool:
    """The same for a topic of columns: rows come in the order of its fields, nulls among them."""
    if written.value is None or given.value is None:
        return same_record(written, given)
    row, value = msgspec.json.decode(written.value), msgspec.json.decode(given.value)
    if not isinstance(value, dict) or not isinstance(row, dict):
        return False
    told = {name: part for name, part in value.items() if part is not None}
    kept = {name: part for name, part in row.items() if part is not None}
    return (written.timestamp_ms, written.key, kept) == (given.timestamp_ms, given.key, told)
