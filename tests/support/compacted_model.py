"""What a compacted partition was given, as a list and a dictionary, and the check that it kept it.

Compaction may have run or not, to the end or not: whatever it left must be some of the records that
were written, as they were written, and of each key the last one. A tombstone may be gone once its
horizon has passed, but then so is everything it deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pyarrow as pa
from simulated_stores import log_of

from millstream import Record, Store
from millstream.compactor import Compactor

SCHEMA = pa.schema([("content", pa.binary())])


def as_row(value: bytes | None) -> bytes | None:
    """Any value as a row of a topic with SCHEMA, as it is read from there; None is a tombstone."""
    return None if value is None else msgspec.json.encode({"content": value})


@dataclass(slots=True)
class CompactedModel:
    """The records of partition 0 of a topic, by offset."""

    topic: str = "t"
    written: dict[int, Record] = field(default_factory=dict)
    """Everything a committed reader may see, by offset."""
    acknowledged: int = 0
    """Records below are durable."""
    start: int = 0

    def append(self, store: Store, key: bytes, value: bytes | None) -> int:
        """Append one record durably."""
        offset = max(store.offsets(self.topic)[0].end, self.acknowledged)
        timestamp_ms = store._engine.clock.now_ms()
        self.written[offset] = Record(self.topic, 0, offset, timestamp_ms, key, value, ())
        assert offset == store.append(self.topic, value, key=key).offset
        self.acknowledged = offset + 1
        return offset

    def append_many(self, store: Store, rows: list[tuple[bytes, bytes | None]]) -> None:
        """Append a batch durably."""
        base = max(store.offsets(self.topic)[0].end, self.acknowledged)
        now_ms = store._engine.clock.now_ms()
        for number, (key, value) in enumerate(rows):
            self.written[base + number] = Record(
                self.topic, 0, base + number, now_ms, key, value, ()
            )
        store.append_many(self.topic, [value for _, value in rows], [key for key, _ in rows])
        self.acknowledged = base + len(rows)

    def latest(self, end: int) -> dict[bytes | None, Record]:
        """The last record of each key below `end`."""
        return {
            record.key: record
            for offset, record in sorted(self.written.items())
            if self.start <= offset < end
        }

    def check(self, store: Store, *, compacted: bool = False) -> list[Record]:
        """Compare; with `compacted`, nothing may be left that was replaced. What was found."""
        end = store.offsets(self.topic)[0].end
        found = list(store.read(self.topic))
        offsets = [record.offset for record in found]

        assert end >= self.acknowledged
        assert sorted(set(offsets)) == offsets
        assert [self.written[offset] for offset in offsets] == found
        latest = self.latest(end)
        kept = {record.key: record for record in found}
        gone = {key: record for key, record in latest.items() if key not in kept}
        assert {key: latest[key] for key in kept} == kept
        assert all(record.value is None for record in gone.values()), gone
        if compacted:
            assert len(kept) == len(found)
        report = store.verify(deep=True)
        assert report.ok, report.findings
        return found

    def settle(self, store: Store) -> None:
        """After a crash: what has survived is the truth, and nothing else will come back."""
        end = store.offsets(self.topic)[0].end
        self.written = {offset: record for offset, record in self.written.items() if offset < end}
        self.acknowledged = end


def fill(store: Store, model: CompactedModel, count: int = 60, keys: int = 7) -> None:
    """Append records of several keys in turn."""
    for number in range(count):
        model.append(store, b"key-%d" % (number % keys), b"%d " % number * 40)


def compactor(store: Store, **options: int) -> Compactor:
    """A compactor of the partition that takes no more steps than it is told to."""
    engine = store._engine
    return Compactor(engine.components, engine.transactions, log_of(store), **options)
