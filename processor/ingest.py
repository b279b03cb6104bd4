"""Take a source in: copy its records into an internal topic, with its position, in transactions.

What was copied is a log like any other: totally ordered, read again after a crash, the same for
ever. The position of a partition is a checkpoint of the store, changed by the transaction that
appends its records, so that a process killed at any moment has taken each record in exactly once.
What becomes of the records is the pipeline's business, and so are dead letters: what is no record
is kept in its place in the topic, with a header that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import compress
from operator import itemgetter
from typing import Final, Self

import msgspec

from millstream import (
    Headers,
    Ownership,
    RecordError,
    Store,
    TopicExistsError,
    TopicInfo,
    UsageError,
)

from .connectors import Position, Rejected, Source, SourceBatch, check_connector_name
from .errors import REJECTED, connector_errors, convert, reason
from .serde import StoredForm

PUMP_BYTES: Final = 1 << 20
PUMP_RECORDS: Final = 1 << 16
PUMP_S: Final = 0.1
"""A transaction takes in about that much, whichever comes first."""

POSITION_VERSION: Final = b"\x01"

REJECTED_HEADER: Final = "millstream.rejected"
"""Header of what is no record; its value is the reason."""

Check = Callable[[bytes], object]
"""Raises on the bytes of a value that cannot be used."""


class _Stored(msgspec.Struct, frozen=True):
    """What the store keeps about a partition of a source."""

    topic_id: int
    """The topic its records went to: one made anew has another."""
    position: Position


_FORM: Final = StoredForm(_Stored, POSITION_VERSION)


SOURCE_TOPICS: Final = "@source/"
"""What the names of the internal topics begin with that sources are copied into."""


def source_topic(pipeline: str, source: str) -> str:
    """The internal topic a source is copied into."""
    return f"{SOURCE_TOPICS}{pipeline}/{source}"


def is_source_of_another(topic: str, pipeline: str) -> bool:
    """Whether a topic holds what another pipeline has taken in."""
    return topic.startswith(SOURCE_TOPICS) and not topic.startswith(source_topic(pipeline, ""))


def position_prefix(pipeline: str, source: str) -> str:
    """What the names of the checkpoints begin with that hold the positions of a source."""
    return f"source/{pipeline}/{source}/"


def moved_position(data: bytes, topic_id: int) -> bytes:
    """The same position of a source, as that of what was copied into another topic.

    Raises:
        DataError: It is no position.
        FormatVersionError: Written by a newer version.
    """
    stored = msgspec.structs.replace(_decode_position("of a source", data), topic_id=topic_id)
    return _FORM.encode(stored)


def _decode_position(name: str, data: bytes) -> _Stored:
    return _FORM.decode(data, f"the position {name!r}")


def rejection(headers: Headers) -> str | None:
    """Why a record of the topic is none, with its place in the source; None if it is one."""
    found = dict(headers)
    reason = found.get(REJECTED_HEADER)
    if reason is None:
        return None
    file, line, item = found.get("file"), found.get("line"), found.get("item")
    place = [f"file {file.decode(errors='replace')}"] if file else []
    place += [f"line {line.decode(errors='replace')}"] if line else []
    place += [f"item {item.decode(errors='replace')}"] if item else []
    return reason.decode(errors="replace") + (f" ({', '.join(place)})" if place else "")


def ensure_topic(store: Store, topic: str, partitions: int = 1) -> TopicInfo:
    """The topic, created if it is missing."""
    try:
        return store.create_topic(topic, partitions=partitions, exist_ok=True)
    except TopicExistsError:
        return store.topic(topic)  # with more partitions, or a configuration of the user's


class Ingestor:
    """Takes one source into its topic, step by step. Used by one thread; a context manager.

    Args:
        store: Where the topic is; created if it is missing.
        pipeline: Name of the pipeline it is for.
        source: What to take in.
        keep_rejected: Whether a row that cannot be used is appended all the same, with a header
            `millstream.rejected`, and `file`, `line`, `item` where it has them. Otherwise it is an
            error, and nothing from there on is taken in.
        check: Raises on the bytes of a value that cannot be used.

    Raises:
        LockedError: A live process takes it in.
        UsageError: The name is not one; the topic was deleted and created again.

    >>> import millstream
    >>> from millstream.processor.sources import from_iterable
    >>> with (
    ...     millstream.open(":memory:") as store,
    ...     Ingestor(store, "p", from_iterable([{"n": 1}, {"n": 2}])) as ingestor,
    ... ):
    ...     print(ingestor.drain())
    ...     print([record.value for record in store.read(ingestor.topic)])
    2
    [b'{"n":1}', b'{"n":2}']
    """

    def __init__(
        self,
        store: Store,
        pipeline: str,
        source: Source,
        *,
        keep_rejected: bool = False,
        check: Check | None = None,
    ) -> None:
        name = check_connector_name(source.name, "source")
        self.topic = source_topic(pipeline, name)
        """Where the records go."""
        self.exhausted = False
        """Whether all partitions have come to their end; while there is none, one may come."""
        self.records = 0
        """Taken in by this object, rejected ones included."""
        self.rejected = 0
        self._store = store
        self._pipeline = pipeline
        self._source = source
        self._check = check
        self._keep_rejected = keep_rejected
        self._owner_name = f"source/{pipeline}/{name}"
        self._failure: Exception | None = None
        self._ownership: Ownership = store.own(self._owner_name)
        try:
            self._count = getattr(source, "topic_partitions", 1)
            self._topic_id = self._open_topic()
            self._parts: list[_Part] = []
            self._turn = 0
            self._list_partitions()
        except BaseException:
            self.close()
            raise

    def pump(self) -> bool:
        """Take in what there is, at most about 1 MiB or 0.1 s of it, in one transaction.

        Returns:
            Whether there was anything. If not, there is nothing now; see `exhausted`.

        Raises:
            RecordError: A row cannot be used, naming file and line. Nothing behind it was taken in.
            ConnectorError: The source raised something.
            MillstreamError: What the source or the store raised. After any error use another
                `Ingestor` to go on.
        """
        if self._failure is not None:
            raise self._failure
        # Until it is committed, the source is ahead of what the store knows.
        self._failure = UsageError(
            f"source {self._source.name!r} was interrupted: use another Ingestor", topic=self.topic
        )
        failure: Exception | None = None
        gathered = _Gathered(self._count)
        try:
            self._gather(gathered)
            if not gathered.records and not self.exhausted and self._list_partitions():
                self._gather(gathered)
        except Exception as error:
            failure = error
        if gathered.positions:
            self._commit(gathered)  # what came before a failure is good; the next call raises
        elif failure is not None:
            self._failure = failure
            raise failure
        self._failure = failure
        return bool(gathered.positions)

    @property
    def behind_bytes(self) -> int | None:
        """Bytes still to be taken in of what was found; None if the source does not say."""
        ask = getattr(self._source, "behind_bytes", None)
        if ask is None:
            return None
        found = [ask(part.name, part.position) for part in self._parts if not part.ended]
        return None if None in found else sum(found)

    def drain(self) -> int:
        """Take in everything there is now; how many rows. Errors as `pump`."""
        before = self.records
        while self.pump():
            pass
        return self.records - before

    def close(self) -> None:
        """Let go of the source. Idempotent."""
        for part in getattr(self, "_parts", ()):
            part.close()
        self._ownership.close()

    def __repr__(self) -> str:
        return f"<Ingestor {self.topic}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_topic(self) -> int:
        topic = ensure_topic(self._store, self.topic, self._count)
        if topic.partitions != self._count:
            raise UsageError(
                f"source {self._source.name!r} has topic_partitions {self._count}, its topic was"
                f" made with {topic.partitions}",
                topic=self.topic,
            )
        return topic.id

    # --- reading the source --------------------------------------------------------------------

    def _list_partitions(self) -> bool:
        """Find partitions that are new, and begin them where they stand; whether there are any."""
        before = len(self._parts)
        known = {part.name for part in self._parts}
        with self._telling("while listing its partitions"):
            names = list(self._source.partitions())
        for name in names:
            if name not in known:
                known.add(name)
                position = self._stored_position(name)
                with self._telling(f"at the start of partition {name!r}"):
                    batches = iter(self._source.open(name, position))
                number = len(self._parts) % self._count
                self._parts.append(_Part(name, number, position, batches))
        self._note_end()
        return len(self._parts) > before

    def _note_end(self) -> None:
        self.exhausted = bool(self._parts) and all(part.ended for part in self._parts)

    def _stored_position(self, partition: str) -> Position:
        name = self._checkpoint_name(partition)
        data = self._store.checkpoint(name)
        if data is None:
            return None
        stored = _decode_position(name, data)
        if stored.topic_id != self._topic_id:
            raise UsageError(
                f"the topic was deleted and created again since {partition!r} was taken in: give"
                " the source another name to take it in once more",
                topic=self.topic,
            )
        return stored.position

    def _checkpoint_name(self, partition: str) -> str:
        return position_prefix(self._pipeline, self._source.name) + partition

    def _gather(self, gathered: _Gathered) -> None:
        """Read on, each partition until it has nothing now, or until it is enough."""
        clock = self._store.clock
        until = clock.monotonic() + PUMP_S
        dry = 0
        while dry < len(self._parts) and not gathered.full and clock.monotonic() < until:
            part = self._parts[self._turn]
            batch = None
            if not part.ended:
                with self._telling(f"in partition {part.name!r}"):
                    batch = part.next_batch()
            if batch is None:
                dry += 1
                self._turn = (self._turn + 1) % len(self._parts)
                continue
            gathered.add(part, self._checked(batch), clock.now_ms())
        self._note_end()

    def _checked(self, batch: SourceBatch) -> SourceBatch:
        """The batch without values that cannot be used, which it then has as rejected.

        Raises:
            UsageError: Its columns are not equally long.
            RecordError: It has rejected some, and they go nowhere.
        """
        columns = (batch.keys, batch.timestamps_ms, batch.headers, batch.lines)
        if any(column is not None and len(column) != len(batch.values) for column in columns):
            raise UsageError(
                f"source {self._source.name!r} gave columns that are not equally long",
                topic=self.topic,
            )
        if self._check is not None:
            batch = _check_values(batch, self._check)
        if batch.rejected and not self._keep_rejected:
            first = min(batch.rejected, key=lambda each: each.line or 0)
            why = rejection(_rejected_headers(first, batch.path))
            message = f"source {self._source.name!r}: {why}"
            raise RecordError(message, topic=self.topic, path=batch.path)
        return batch

    def _telling(self, where: str) -> AbstractContextManager[None]:
        """What the source raises, with its name and where it was."""
        name = self._source.name
        what = f"source {name!r} of pipeline {self._pipeline!r} failed {where}"
        return connector_errors(name, self.topic, what)

    # --- writing -------------------------------------------------------------------------------

    def _commit(self, gathered: _Gathered) -> None:
        """Append and note the positions, all at once.

        Raises:
            FencedError: Another process has taken over; nothing was made visible.
        """
        positions = {
            self._checkpoint_name(name): self._encoded(name, position)
            for name, position in gathered.positions.items()
        }
        with self._store.transaction(owner=self._ownership) as transaction:
            for number, columns in enumerate(gathered.columns):
                if columns.values:
                    transaction.append_many(
                        self.topic,
                        columns.values,
                        columns.keys,
                        columns.timestamps_ms,
                        number,
                        headers=columns.headers,
                    )
            for name, data in positions.items():
                transaction.put_checkpoint(name, data)
        for part in self._parts:
            part.position = gathered.positions.get(part.name, part.position)
        self.records += gathered.records
        self.rejected += gathered.rejected

    def _encoded(self, partition: str, position: Position) -> bytes:
        try:
            return _FORM.encode(_Stored(self._topic_id, position))
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"source {self._source.name!r}: the position of {partition!r} is not plain data:"
                f" {error}"
            ) from error


def _rejected_headers(rejected: Rejected, path: str | None) -> Headers:
    number = None if rejected.line is None else str(rejected.line)
    named = [(REJECTED_HEADER, rejected.reason), ("file", path)]
    named.append(("line" if path is not None else "item", number))
    return tuple((name, text.encode(errors="replace")) for name, text in named if text is not None)


def _check_values(batch: SourceBatch, check: Check) -> SourceBatch:
    rejected: list[Rejected] = []

    def reject(index: int, error: Exception) -> None:
        value = batch.values[index]
        line = batch.lines[index] if batch.lines is not None else None
        rejected.append(Rejected(value or b"", reason(error), line))

    results = convert(batch.values, check, reject)  # type: ignore[arg-type]  # a null is refused
    if not rejected:
        return batch
    good = [result is not REJECTED for result in results]
    return SourceBatch(
        list(compress(batch.values, good)),
        batch.position,
        batch.keys and list(compress(batch.keys, good)),
        batch.timestamps_ms and list(compress(batch.timestamps_ms, good)),
        batch.headers and list(compress(batch.headers, good)),
        [*batch.rejected, *rejected],
        batch.path,
        batch.lines and list(compress(batch.lines, good)),
    )


def _with_rejected(batch: SourceBatch, now_ms: int) -> SourceBatch:
    """The batch with what was rejected among its records, in the order of their lines."""
    count = len(batch.values)
    rows = list(
        zip(
            batch.lines if batch.lines is not None else [0] * count,
            batch.values,
            batch.keys if batch.keys is not None else [None] * count,
            batch.timestamps_ms if batch.timestamps_ms is not None else [now_ms] * count,
            batch.headers if batch.headers is not None else [()] * count,
            strict=True,
        )
    )
    for each in batch.rejected:
        headers = _rejected_headers(each, batch.path)
        rows.append((each.line or 0, each.value, None, now_ms, headers))
    rows.sort(key=itemgetter(0))  # stable: without lines the rejected come last
    _, values, keys, times, headers_of_rows = map(list, zip(*rows, strict=True))
    return replace(
        batch,
        values=values,
        keys=keys,
        timestamps_ms=times,
        headers=headers_of_rows,
        rejected=(),
        lines=None,
    )


class _Part:
    """One partition of a source, opened."""

    def __init__(
        self, name: str, number: int, position: Position, batches: Iterator[SourceBatch | None]
    ) -> None:
        self.name = name
        self.number = number
        """Partition of the topic its records go to."""
        self.position = position
        """Up to where it has been taken in."""
        self.ended = False
        self._batches = batches

    def next_batch(self) -> SourceBatch | None:
        """The next batch; None if there is nothing now, or never again."""
        try:
            return next(self._batches)
        except StopIteration:
            self.ended = True
            return None

    def close(self) -> None:
        """End a generator."""
        if (close := getattr(self._batches, "close", None)) is not None:
            close()


class _Columns:
    """Records for one partition of the topic."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] | None = None
        self.timestamps_ms: list[int] | None = None
        self.headers: list[Headers] | None = None


class _Gathered:
    """What one transaction is going to take in."""

    def __init__(self, partitions: int) -> None:
        self.columns = [_Columns() for _ in range(partitions)]
        self.rejected = 0
        self.positions: dict[str, Position] = {}
        self.records = 0
        self._size_bytes = 0

    @property
    def full(self) -> bool:
        """Whether it is enough for one transaction."""
        return self._size_bytes >= PUMP_BYTES or self.records >= PUMP_RECORDS

    def add(self, part: _Part, batch: SourceBatch, now_ms: int) -> None:
        """Take in a batch; records without a timestamp get `now_ms` beside those with one."""
        if batch.rejected:
            self.rejected += len(batch.rejected)
            batch = _with_rejected(batch, now_ms)
        into = self.columns[part.number]
        before, count = len(into.values), len(batch.values)
        if into.keys is not None or batch.keys is not None:
            into.keys = into.keys if into.keys is not None else [None] * before
            into.keys += batch.keys if batch.keys is not None else [None] * count
        if into.timestamps_ms is not None or batch.timestamps_ms is not None:
            times = into.timestamps_ms if into.timestamps_ms is not None else [now_ms] * before
            times += batch.timestamps_ms if batch.timestamps_ms is not None else [now_ms] * count
            into.timestamps_ms = times
        if into.headers is not None or batch.headers is not None:
            into.headers = into.headers if into.headers is not None else [()] * before
            into.headers += batch.headers if batch.headers is not None else [()] * count
        into.values += batch.values
        self.positions[part.name] = batch.position
        self.records += count
        self._size_bytes += sum(map(len, filter(None, batch.values)))
