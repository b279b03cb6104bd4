"""What a replay gives for sinks outside the store, and the comparison of the sinks with it.

A replay gives the records of an outbox, without their offsets; the outbox itself holds only what
was not delivered yet, or not trimmed. So the records of the replay wait in a temporary database
until their number is known: the last ones must be those in the outbox, and the sink must hold those
before its position. How a sink does that is its own business; see `ComparableSink`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, Self, TypeAlias, cast

import msgspec
import xxhash

from millstream import (
    CacheDatabase,
    Headers,
    OffsetOutOfRangeError,
    Record,
    Store,
    SystemClock,
    TopicPartition,
)

from .checkpoint import Checkpoint
from .connectors import NotComparable, Sink, SinkDifference
from .deliver import outbox_name, sink_position
from .errors import connector_errors
from .nodes import SinkNode
from .outputs import OutputBatch, same_record
from .plan import Plan

_PAGE_RECORDS: Final = 256

_TEXT_LENGTH: Final = 200
"""Characters shown of a key or value that differs."""

_decode_headers: Final = msgspec.msgpack.Decoder(tuple[tuple[str, bytes | None], ...]).decode


def record_text(record: Record) -> str:
    """What is compared of a record."""
    parts = [f"key {_short(record.key)}", f"value {_short(record.value)}"]
    parts += [f"headers {list(record.headers)!r}"] * bool(record.headers)
    return f"{', '.join(parts)} at time {record.timestamp_ms}"


def _short(data: bytes | None) -> str:
    """Bytes as text where they are text, so that one reads what differs."""
    if data is None:
        return "none"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = repr(data)
    text = text if text.isprintable() else repr(data)
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH]}... ({len(data)} bytes)"


@dataclass(frozen=True, slots=True)
class SinkComparison:
    """What came of comparing one sink."""

    sink: str
    """Its name."""
    records_compared: int
    """Of the replay, that the sink should hold or the outbox still holds."""
    difference: SinkDifference | None
    """The first; None if there is none."""
    skipped: str | None
    """Why what the sink holds was not compared; None if it was."""


class SinkReplays:
    """What a replay gives for the sinks of a plan. Not thread-safe; a context manager.

    Args:
        store: Where the outboxes are.
        plan: Says which sinks there are.
        start: Where the replay starts.
        end: Where it ends.
    """

    def __init__(self, store: Store, plan: Plan, start: Checkpoint, end: Checkpoint) -> None:
        self._database = CacheDatabase("", clock=SystemClock())
        starts, ends = start.output_ends(), end.output_ends()
        topics = {info.name for info in store.topics(internal=True)}
        self._replays: dict[TopicPartition, _SinkReplay] = {}
        for node in plan.sinks():
            place = TopicPartition(node.topic, 0)
            if node.sink is not None and place not in self._replays:
                refused = _Refused(store, node) if node.dead_letters in topics else None
                given = _Given(self._database, f"given{len(self._replays)}", refused)
                span = starts.get(place, 0), ends.get(place, 0)
                replay = _SinkReplay(store, plan.name, node, given, span)
                replay.exists = node.topic in topics
                self._replays[place] = replay

    def __contains__(self, place: object) -> bool:
        return place in self._replays

    def add(self, place: TopicPartition, batch: OutputBatch, *, passed: bool) -> None:
        """Take in what one step gives for an outbox; of what is passed over, only the number."""
        self._replays[place].given.add(batch.rows(), passed=passed)

    def compare(self) -> list[SinkComparison]:
        """Compare all sinks, when the replay is at its end."""
        return [replay.compare() for replay in self._replays.values()]

    def close(self) -> None:
        """Let go of it all. Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Refused:
    """The dead letters of a sink: records that it has refused."""

    def __init__(self, store: Store, node: SinkNode) -> None:
        assert node.sink is not None
        assert node.dead_letters is not None
        self.topic = node.dead_letters
        self.begins_at = max(held.start for held in store.offsets(self.topic).values())
        """Where they begin; not at 0 if the first are gone."""
        self._left: Counter[bytes] = Counter()
        own = ("sink", node.sink.name.encode())
        for record in store.read(self.topic):
            if record.headers and record.headers[-1] == own:
                self._left[_digest(record.timestamp_ms, record.key, record.value)] += 1

    def takes(self, time: int, key: bytes | None, value: bytes | None) -> bool:
        """Whether a record was refused: once for each dead letter that is equal."""
        digest = _digest(time, key, value) if self._left else b""
        if digest not in self._left:
            return False
        self._left[digest] -= 1
        if not self._left[digest]:
            del self._left[digest]
        return True


def _digest(time: int, key: bytes | None, value: bytes | None) -> bytes:
    return xxhash.xxh3_128_digest(msgspec.msgpack.encode((time, key, value)))


_Row: TypeAlias = tuple[int, bytes | None, bytes | None, Headers]
"""Timestamp, key, value and headers of a record."""


class _Given:
    """The records that a replay gives for one outbox, numbered from 0."""

    def __init__(self, database: CacheDatabase, table: str, refused: _Refused | None) -> None:
        self.count = 0
        self.passed = 0
        """So many of the first are passed over."""
        self.refused = refused
        self._database = database
        self._table = table
        with database.transaction("make room for a replay"):
            database.query(
                f"CREATE TABLE {table} (number INTEGER PRIMARY KEY, time INTEGER, key BLOB,"
                " value BLOB, headers BLOB, refused INTEGER)"
            )

    def add(self, records: Iterable[_Row], *, passed: bool = False) -> None:
        """Take in records behind those that are there."""
        rows = []
        for number, (time, key, value, headers) in enumerate(records, self.count):
            refused = self.refused is not None and self.refused.takes(time, key, value)
            encoded = msgspec.msgpack.encode(headers) if headers else None
            rows.append((number, time, key, value, encoded, int(refused)))
        with self._database.transaction("keep what a replay gives"):
            self._database.execute_many(
                f"INSERT INTO {self._table} VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - ours
                rows,
            )
        self.count += len(rows)
        self.passed += len(rows) * passed

    def records(self, begin: int, stop: int, *, refused: bool = False) -> Iterator[Record]:
        """Those numbered [begin, stop), their numbers as offsets; those refused only if wanted."""
        condition = "" if refused else " AND NOT refused"
        while begin < stop:
            rows = self._database.query(
                f"SELECT number, time, key, value, headers FROM {self._table} WHERE number >= ?"  # noqa: S608 - ours
                f" AND number < ?{condition} ORDER BY number LIMIT {_PAGE_RECORDS}",
                (begin, stop),
            )
            for row in rows:
                yield _record(*row)
            if not rows:
                return
            begin = cast("int", rows[-1][0]) + 1

    def number_of(self, nth: int) -> int:
        """The number of the nth record that was not refused; `count` if there are not so many."""
        rows = self._database.query(
            f"SELECT number FROM {self._table} WHERE NOT refused ORDER BY number LIMIT 1 OFFSET ?",  # noqa: S608 - ours
            (nth,),
        )
        return cast("int", rows[0][0]) if rows else self.count

    def delivered(self, begin: int, stop: int) -> int:
        """How many of those numbered [begin, stop) were not refused."""
        rows = self._database.query(
            f"SELECT count(*) FROM {self._table} WHERE number >= ? AND number < ? AND NOT refused",  # noqa: S608 - ours
            (begin, stop),
        )
        return cast("int", rows[0][0])


def _record(number: Any, time: Any, key: Any, value: Any, headers: Any) -> Record:
    """A record from its row."""
    return Record("", 0, number, time, key, value, _decode_headers(headers) if headers else ())


class _SinkReplay:
    """What a replay gives for one sink; is its `Replayed`."""

    def __init__(
        self, store: Store, pipeline: str, node: SinkNode, given: _Given, span: tuple[int, int]
    ) -> None:
        assert node.sink is not None
        self.given = given
        self.exists = True
        """Whether there is an outbox."""
        self.start, self._end = span
        self.position = 0
        self._sink: Sink = node.sink
        self._store = store
        self._pipeline = pipeline
        self._topic = node.topic

    @property
    def passed(self) -> int:
        """See `Replayed`."""
        return self.given.delivered(0, min(self.given.passed, self._stop(self.position)))

    def records(self, position: int | None = None, *, begin: int = 0) -> Iterator[Record]:
        """See `Replayed`."""
        stop = self._stop(self.position if position is None else position)
        return self.given.records(self.given.number_of(begin), stop)

    def _stop(self, position: int) -> int:
        """The number of the first record of the replay that is not before a position."""
        if not self.exists:
            return self.given.count  # nothing was written, and so nothing should be given
        held = self._store.offsets(self._topic)[0]
        if not min(held.start, self._end) <= position <= held.end:
            raise OffsetOutOfRangeError(
                f"it stands at offset {position} of its outbox, which holds {held.start} to"
                f" {held.end}: the sink or the store is an older copy",
                topic=self._topic,
                partition=0,
                offset=position,
            )
        if position > self._end:
            # Written and delivered since the replay began.
            if held.start > self._end:
                raise NotComparable(
                    f"it was delivered to from offset {self._end} to {position} meanwhile, and the"
                    " outbox was trimmed: verify again, or stop the pipeline"
                )
            self.given.add(map(_row, self._rest(self._end, position)))
            self._end = position
        return max(0, self.given.count - sum(1 for _ in self._rest(position, self._end)))

    def _rest(self, begin: int, end: int) -> Iterator[Record]:
        """The records of the outbox between two offsets."""
        return iter(self._store.read(self._topic, begin, end, partition=0) if begin < end else ())

    # --- comparing -----------------------------------------------------------------------------

    def compare(self) -> SinkComparison:
        """Compare what the outbox still holds, and what the sink has got."""
        waiting, difference = self._compare_outbox() if self.exists else (0, None)
        skipped = None
        try:
            difference = self._compare_sink() or difference
        except NotComparable as error:
            skipped = str(error)
        except OffsetOutOfRangeError as error:
            difference = SinkDifference(f"sink {self._sink.name!r}", "another place", str(error))
        given = self.given
        count = given.delivered(given.passed, given.count) if skipped is None else waiting
        return SinkComparison(self._sink.name, count, difference, skipped)

    def _compare_sink(self) -> SinkDifference | None:
        compare = getattr(self._sink, "compare", None)
        if compare is None:
            raise NotComparable("what it was given cannot be read back")
        refused = self.given.refused
        if refused is not None and refused.begins_at:
            raise NotComparable(
                f"which records it has refused is not known: the first of topic {refused.topic!r},"
                f" up to offset {refused.begins_at}, are gone"
            )
        if self.exists:
            position = sink_position(self._store, self._pipeline, self._sink.name)
            self.position = min(position, self._end)
        name = self._sink.name
        what = f"sink {name!r} of pipeline {self._pipeline!r} cannot be compared"
        with connector_errors(name, self._topic, what):
            found: SinkDifference | None = compare(outbox_name(self._store, self._topic), self)
            return found

    def _compare_outbox(self) -> tuple[int, SinkDifference | None]:
        """Compare what is still in the outbox: how many records, and the first difference."""
        begin = self.start
        while True:
            try:
                begin = max(begin, self._store.offsets(self._topic)[0].start)
                return self._compare_rest(begin)
            except OffsetOutOfRangeError:
                if self._store.offsets(self._topic)[0].start <= begin:
                    raise  # it was not trimmed meanwhile

    def _compare_rest(self, begin: int) -> tuple[int, SinkDifference | None]:
        """The records of the outbox from an offset on must be the last of the replay."""
        count = sum(1 for _ in self._rest(begin, self._end))
        given = self.given
        # If it was never trimmed, they are all there is.
        first = 0 if begin == self.start else max(0, given.count - count)
        pairs = zip_longest(
            given.records(first, given.count, refused=True), self._rest(begin, self._end)
        )
        for number, (replayed, found) in enumerate(pairs, first):
            if number < given.passed:
                continue
            if replayed is None or found is None or not same_record(found, replayed):
                at = "its end" if found is None else f"offset {found.offset}"
                expected = None if replayed is None else record_text(replayed)
                text = None if found is None else record_text(found)
                return count, SinkDifference(f"{self._topic}, {at}", expected, text)
        return min(count, given.count - given.passed), None


def _row(record: Record) -> _Row:
    return record.timestamp_ms, record.key, record.value, record.headers
