"""Send single records; they are collected into batches and appended in the background.

This is the handle users hold: it checks a record and puts it into an open batch in memory. Sealing,
writing and completing are in sender.py. What "acknowledged" means per durability is in
docs/guarantees.md.

Order: the records of one partition are written in the order of their `send()` calls. A failed
batch does not stop those behind it: its futures raise the error, and so does the next `flush()` or
`close()`, which is where a program that keeps no futures learns of it.
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from .config import MIB, Durability, check_durability, whole_number
from .engine import Engine
from .errors import MillstreamError, UsageError, missing_key, not_bytes
from .gathered import TIMESTAMPS
from .handle import Handle
from .outgoing import Extras, Lane, SendFuture
from .record import Headers
from .record_ids import record_id
from .sender import Sender, SendLimits

RECORD_OVERHEAD_BYTES: Final = 32
"""Counted per record beside key and value: columns on disk, and so that empty records count too."""

HEADER_OVERHEAD_BYTES: Final = 16

BATCH_BYTES_MAX: Final = 32 * MIB
LINGER_MS_MAX: Final = 10**12


class Producer(Handle):
    """Sends records in the background; batches them by time and size. Thread-safe.

    Made by `Store.producer()`. Use it as a context manager: leaving it flushes and closes, also
    after an exception (what was sent stays sent).

    Args:
        engine: The open store.
        linger_ms: How long a record waits for company before it is written.
        batch_bytes: A batch is written when it holds this much (32 bytes are added per record).
        buffer_bytes: Bound on all that is collected and not yet acknowledged; `send` waits at it.
        durability: When a record counts as acknowledged; None takes the store's.
        timeout: Seconds `send` waits at the bound before BackpressureTimeoutError; None for ever.

    >>> import millstream
    >>> with millstream.open(":memory:") as store:
    ...     info = store.create_topic("clicks")
    ...     with store.producer() as producer:
    ...         futures = [producer.send("clicks", b"%d" % number) for number in range(1000)]
    ...     futures[-1].result().offset
    999
    """

    def __init__(
        self,
        engine: Engine,
        *,
        linger_ms: float = 5,
        batch_bytes: int = MIB,
        buffer_bytes: int = 64 * MIB,
        durability: Durability | None = None,
        timeout: float | None = 60.0,
    ) -> None:
        if not isinstance(linger_ms, (int, float)) or not 0 <= linger_ms <= LINGER_MS_MAX:
            raise UsageError(f"linger_ms must be 0 to {LINGER_MS_MAX}, not {linger_ms!r:.60}")
        if not 0 < whole_number(batch_bytes, "batch_bytes") <= BATCH_BYTES_MAX:
            raise UsageError(f"batch_bytes must be 1 to {BATCH_BYTES_MAX}, not {batch_bytes}")
        if whole_number(buffer_bytes, "buffer_bytes") < batch_bytes:
            raise UsageError(f"buffer_bytes ({buffer_bytes}) is below batch_bytes ({batch_bytes})")
        check_durability(durability or engine.durability)
        if not _has_global_lock():
            raise UsageError("producers need CPython's global lock; start Python with -X gil=1")
        limits = SendLimits(linger_ms, batch_bytes, buffer_bytes)
        self._root = engine.storage.root
        self._sender = self._make_sender(engine, limits, durability, timeout)
        self._lanes = self._sender.lanes
        # An interpreter that exits kills the thread; what was sent is written before.
        self._at_exit = weakref.finalize(self, Sender.close, self._sender)
        _watch_forks()
        _producers.add(self)

    def __repr__(self) -> str:
        return f"<Producer {self._root}{' closed' if self.closed else ''}>"

    def _make_sender(
        self,
        engine: Engine,
        limits: SendLimits,
        durability: Durability | None,
        timeout: float | None,
    ) -> Sender:
        return Sender(engine, limits, durability=durability, timeout=timeout)

    def send(  # noqa: C901, PLR0912 - the hot path: a call to a part of it would cost 60 ns
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> SendFuture:
        """Queue one record and return a future of its place in the log.

        Args:
            topic: An existing topic.
            value: The payload; None is a tombstone for `key`.
            key: Chooses the partition (xxh3_64 modulo their number); records without one go to
                the partitions in turn, a batch to each.
            timestamp_ms: UTC milliseconds; None takes the time of the append.
            headers: (name, value) pairs.
            partition: Overrides the choice by key.

        Raises:
            UnknownTopicError: There is no such topic.
            MissingKeyError: The topic is compacted.
            UsageError: A wrong type or size. Nothing was queued; its neighbours are unharmed.
            BackpressureTimeoutError: `buffer_bytes` stayed full for the whole timeout.
            StoreClosedError: The producer is closed, or was made before a fork.
        """
        size = RECORD_OVERHEAD_BYTES
        if value is not None:
            if type(value) is not bytes:
                value = _checked_bytes("value", value)
            size += len(value)
        if key is not None:
            if type(key) is not bytes:
                key = _checked_bytes("key", key)
            size += len(key)
        slot: bytes | Extras | None = key
        if timestamp_ms is not None or headers:
            slot, extra_bytes = _checked_extras(key, timestamp_ms, headers)
            size += extra_bytes
        try:
            lane = self._lanes[topic]
        except (KeyError, TypeError):  # a list cannot even be looked for, and is told
            lane = self._sender.add_lane(topic)
        if key is None and (lane.needs_key or lane.by_id):
            partition = _without_key(lane, headers, partition)
        if partition is not None:
            number = checked_partition(lane, partition)
        elif key is None or lane.partitions == 1:
            number = -1
        else:
            number = xxh3_64_intdigest(key) % lane.partitions  # as append.partition_of
        batch = lane.open[number]
        if batch is None or (room := batch.room - size) < 0:
            return self._sender.add(lane, number, size, value, slot)
        # From here on as sender.py says: no lock, and in this order.
        if slot is not key:
            batch.has_extras = True
        batch.room = room
        entries = batch.entries
        entries += (value, slot)
        future = SendFuture(batch, len(entries))
        if batch.sealed and not self._sender.has(future, entries):
            return self._sender.add(lane, number, size, value, slot)
        return future

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything sent so far is acknowledged and its callbacks have run.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            TimeoutError: Not done within `timeout`. Nothing is lost; flush again.
            MillstreamError: The first error since the last flush. Its notes say how many records
                failed; their futures carry it too. The producer stays usable.
        """
        self._sender.flush(timeout)

    def hurry(self) -> None:
        """End the linger of what was sent so far, and do not wait: it is written at once."""
        self._sender.hurry()

    @property
    def timeout(self) -> float | None:
        """Seconds `send` waits for room; may be changed at any time."""
        return self._sender.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._sender.timeout = seconds

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Wait until a `send` would find room under `buffer_bytes`; False after `timeout` s."""
        return self._sender.wait_for_room(timeout)

    def close(self) -> None:
        """Flush and stop. Further sends raise StoreClosedError; closing again does nothing.

        Raises:
            MillstreamError: As `flush`; the producer is closed all the same.
        """
        self._at_exit.detach()
        self._sender.close()

    @property
    def closed(self) -> bool:
        """Whether records are refused: after `close`, and in a forked child."""
        return self._sender.closing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except MillstreamError as failure:
            if error is None:
                raise
            # The caller's own exception is the news; ours must not hide it, nor be lost.
            error.add_note(f"the producer also failed: {failure}")

    def __del__(self) -> None:
        sender = getattr(self, "_sender", None)
        if sender is None or sender.closing:
            return
        said = f"unclosed {self!r}"
        self._at_exit.detach()
        # Only asked to finish: waiting here could deadlock, since the collector runs anywhere.
        sender.stop()
        warnings.warn(said, ResourceWarning, stacklevel=2, source=self)

    def _after_fork(self) -> None:
        self._at_exit.detach()
        self._sender.abandon()


def _has_global_lock() -> bool:
    """False only in a free-threaded interpreter, where `send` would lose records (sender.py)."""
    enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or enabled()


def _checked_bytes(name: str, value: object) -> bytes:
    """A copy of a buffer (it may change before it is written); anything else is refused."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise not_bytes(name, value)


def checked_record(
    value: bytes | None, key: bytes | None, timestamp_ms: int | None, headers: Headers
) -> tuple[bytes | None, bytes | Extras | None, int]:
    """The value, the slot beside it in a batch, and their size, as `Producer.send` has them."""
    size = RECORD_OVERHEAD_BYTES
    if value is not None:
        value = _checked_bytes("value", value)
        size += len(value)
    if key is not None:
        key = _checked_bytes("key", key)
        size += len(key)
    if timestamp_ms is None and not headers:
        return value, key, size
    slot, extra_bytes = _checked_extras(key, timestamp_ms, headers)
    return value, slot, size + extra_bytes


def _checked_extras(
    key: bytes | None, timestamp_ms: object, headers: Headers
) -> tuple[Extras, int]:
    """Timestamp and headers, which nobody can change any more, and the bytes they take."""
    if timestamp_ms is not None and (
        not isinstance(timestamp_ms, int) or not -(1 << 63) < timestamp_ms < 1 << 63
    ):
        raise UsageError(
            f"timestamp_ms must be an int of UTC milliseconds, {TIMESTAMPS}, not"
            f" {timestamp_ms!r:.50}"
        )
    if not headers:
        return Extras(key, timestamp_ms, ()), 0
    size = 0
    checked: list[tuple[str, bytes | None]] = []
    try:
        for name, content in headers:
            value = None if content is None else _checked_bytes("a header value", content)
            size += HEADER_OVERHEAD_BYTES + len(name.encode()) + len(value or b"")
            checked.append((name, value))
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"headers must be (str, bytes or None) pairs: {error}") from error
    return Extras(key, timestamp_ms, tuple(checked)), size


def _without_key(lane: Lane, headers: Headers, partition: int | None) -> int | None:
    """The partition of a record without a key, in a topic that minds."""
    if lane.needs_key:
        raise missing_key(lane.topic)
    found = record_id(headers) if headers and partition is None else None
    return partition if found is None else xxh3_64_intdigest(found) % lane.partitions


def checked_partition(lane: Lane, partition: object) -> int:
    """`partition` if the topic has it, else UsageError."""
    number = whole_number(partition, "a partition")
    if not 0 <= number < lane.partitions:
        raise UsageError(
            f"partition must be 0 to {lane.partitions - 1}, not {number}", topic=lane.topic
        )
    return number


_producers: Final[weakref.WeakSet[Producer]] = weakref.WeakSet()


@cache  # registered once, and not before there is a producer
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_close_in_child)


def _close_in_child() -> None:
    """A queue cannot be shared with the parent: the records in it would be written twice."""
    for producer in list(_producers):
        producer._after_fork()  # noqa: SLF001 - the same module
