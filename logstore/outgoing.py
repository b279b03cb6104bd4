"""Records between `Producer.send` and the log: their batches, and the futures users hold. No I/O.

A batch collects the records of one partition, is sealed, encoded, appended and acknowledged; what
moves it from state to state, and under which lock, is in sender.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeAlias

import msgspec

from .batch import EncodedBatch
from .column_batch import declared_times, encode_values
from .config import TopicConfig
from .errors import UsageError
from .record import DuplicateMetadata, Headers, RecordMetadata

ENTRY_FIELDS: Final = 2

_logger = logging.getLogger("millstream")


PlaceOfRow: TypeAlias = tuple[int, int, bool]
"""Offset, append time, and whether it is that of an earlier record with the same id."""


class BatchOwner(Protocol):
    """What a batch and its futures need from the sender."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Guards the batch."""
        ...

    def wait_for(self, batch: Batch, timeout: float | None) -> None:
        """Return when the batch is done; TimeoutError after `timeout` seconds."""
        ...


class Lane:
    """The open batches of one topic: at most one per partition, and once more for unkeyed records.

    `open[-1]` is the batch of the partition whose turn it is; records without a key fill it. When
    it is sealed it is the next partition's turn.
    """

    __slots__ = ("by_id", "needs_key", "open", "partitions", "topic", "turn")

    def __init__(
        self, topic: str, partitions: int, *, needs_key: bool = False, by_id: bool = False
    ) -> None:
        self.topic = topic
        self.partitions = partitions
        self.needs_key = needs_key
        """The topic is compacted; one that becomes so later refuses the whole batch."""
        self.by_id = by_id
        """Records without a key belong to the partitions of their ids."""
        self.open: list[Batch | None] = [None] * (partitions + 1)
        self.turn = 0

    def opened(self, batch: Batch) -> None:
        """Take `batch` as the open one of its partition."""
        self.open[batch.partition] = batch
        self.open[-1] = self.open[self.turn]

    def sealed(self, batch: Batch) -> None:
        """Forget `batch`, and pass the turn on if it was its partition's."""
        if self.open[batch.partition] is batch:
            self.open[batch.partition] = None
        if batch.partition == self.turn:
            self.turn = (self.turn + 1) % self.partitions
        self.open[-1] = self.open[self.turn]


class Extras(msgspec.Struct, gc=False):
    """Stands in the place of a key when a record has more than a key."""

    key: bytes | None
    timestamp_ms: int | None
    headers: Headers


class Batch:
    """Records on their way to one partition, and what became of them.

    `entries` is flat: value and key (or Extras) of the first record, then of the second, and so
    on. One `+=` adds a whole record.
    """

    __slots__ = (
        "base_offset",
        "callbacks",
        "claimed",
        "count",
        "deadline",
        "done",
        "duplicate",
        "encoded",
        "entries",
        "error",
        "granted",
        "has_extras",
        "lane",
        "last_sequence",
        "partition",
        "places",
        "room",
        "sealed",
        "sender",
        "taken",
        "taken_id",
        "timestamps_ms",
    )

    def __init__(self, sender: BatchOwner, lane: Lane, partition: int, deadline: float) -> None:
        self.sender = sender
        self.lane = lane
        self.partition = partition
        self.deadline = deadline
        self.entries: list[object] = []
        self.has_extras = False
        self.granted = 0
        """Bytes of the buffer this batch was given; `room` of them are not used yet."""
        self.room = 0
        self.sealed = False
        self.count = -1
        """Number of records, once no more can come in."""
        self.taken: list[object] = []
        self.taken_id = 0
        self.claimed = False
        """A sender is encoding it; the thread leaves it alone until then."""
        self.encoded: EncodedBatch | None = None
        self.done = False
        self.duplicate = False
        """Its one record was in the log already."""
        self.last_sequence = -1
        """Of a named producer: the number of the last record, if whoever sends gives numbers."""
        self.error: BaseException | None = None
        self.base_offset = -1
        self.places: Sequence[PlaceOfRow] | None = None
        """Of each record, where some were in the log already."""
        self.timestamps_ms: int | list[int] = 0
        self.callbacks: list[PendingCall] = []

    def take(self) -> None:
        """Count the entries: what is added from now on is not part of the batch. Lock held."""
        if self.count < 0:
            taken = self.entries
            taken_id, count = id(taken), len(taken) // ENTRY_FIELDS
            # Without a call in between: an interrupt leaves all of it done, or nothing.
            self.taken, self.taken_id, self.count = taken, taken_id, count
            # Who came late added to the old list (then it is still alive, and its id its own) or
            # to the new one.
            self.entries = []

    def includes(self, entries: list[object], end: int) -> bool:
        """Whether what a sender added to `entries`, making them `end` long, is in. Lock held."""
        if self.count < 0:
            return True
        return id(entries) == self.taken_id and end <= self.count * ENTRY_FIELDS

    def encode(self, now_ms: int, config: TopicConfig, partitions: int) -> None:
        """Make the bytes to append. Records without a timestamp beside some with get `now_ms`."""
        stop = self.count * ENTRY_FIELDS
        values: list[bytes | None] = self.taken[0:stop:ENTRY_FIELDS]  # type: ignore[assignment]  # by send
        slots = self.taken[1:stop:ENTRY_FIELDS]
        keys: list[bytes | None] = slots  # type: ignore[assignment]  # by send
        stamps: list[int] | None = None
        headers: list[Headers] | None = None
        if self.has_extras:
            rows = [
                slot if isinstance(slot, Extras) else Extras(slot, None, ())  # type: ignore[arg-type]  # by send
                for slot in slots
            ]
            keys, headers = [row.key for row in rows], [row.headers for row in rows]
            given = [row.timestamp_ms for row in rows]
            if given.count(None) < len(given):
                stamps = [now_ms if stamp is None else stamp for stamp in given]
        if config.key_column is not None and partitions > 1 and None in keys:
            raise UsageError(
                f"send the key: a producer does not take it from the column {config.key_column!r}"
            )
        if config.time_column is not None and stamps is None:
            times = declared_times(config, values)
            stamps = [now_ms if time is None else time for time in times]
        if stamps is not None:
            self.timestamps_ms = stamps
        headers = headers if headers and any(headers) else None
        self.encoded = encode_values(config, values, keys, stamps, headers)


class SendFuture(msgspec.Struct, eq=False, gc=False):
    """What will become of one sent record. Cheap: the metadata is made when asked for. Thread-safe.

    Futures of one `batch` complete together; `end` is where the record's entry ends in it. (A
    msgspec Struct is made three times faster than a Python object. It can do without garbage
    collector tracking: the only cycle it can be part of, through callbacks, is cut when the batch
    completes.)
    """

    batch: Batch
    end: int

    def __repr__(self) -> str:
        error = self.batch.error
        state = repr(error) if error else "acknowledged" if self.done() else "waiting"
        return f"<SendFuture {state}>"

    def done(self) -> bool:
        """Whether the record is acknowledged or has failed."""
        return self.batch.done

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Wait until the record is acknowledged and say where it is.

        Waiting ends the linger of what is collected so far: it is written at once.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            TimeoutError: Not acknowledged within `timeout`; it may still be.
            MillstreamError: The batch of this record could not be written.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        batch, index = self.batch, self.end // ENTRY_FIELDS - 1
        stamps = batch.timestamps_ms
        timestamp_ms = stamps if isinstance(stamps, int) else stamps[index]
        offset, duplicate = batch.base_offset + index, batch.duplicate
        if batch.places is not None:
            offset, append_ms, duplicate = batch.places[index]
            timestamp_ms = append_ms if duplicate else timestamp_ms
        if duplicate:
            return DuplicateMetadata(batch.lane.topic, batch.partition, offset, timestamp_ms)
        return RecordMetadata(batch.lane.topic, batch.partition, offset, timestamp_ms)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait like `result`, and return the error or None."""
        if not self.batch.done:
            self.batch.sender.wait_for(self.batch, timeout)
        return self.batch.error

    def add_done_callback(self, callback: Callable[[SendFuture], object]) -> None:
        """Call `callback(self)` once done: in the sender thread, or at once if done already.

        It must not wait for this producer. An exception it raises is logged ("millstream").
        """
        batch = self.batch
        with batch.sender.lock:
            if not batch.done:
                batch.callbacks.append((callback, self))
                return
        _call_back(callback, self)


PendingCall: TypeAlias = tuple[Callable[[SendFuture], object], SendFuture]


def call_back_all(calls: list[PendingCall]) -> None:
    """Run callbacks one after another; what they raise is logged."""
    for callback, future in calls:
        _call_back(callback, future)


def _call_back(callback: Callable[[SendFuture], object], future: SendFuture) -> None:
    try:
        callback(future)
    except Exception:
        _logger.exception("a callback of a sent record failed")
