"""Deliver to a sink outside the store, from the outbox: the internal topic its records wait in.

The outbox is written by the commits of the pipeline, exactly once. From there a delivery takes the
records of whole epochs to the sink, in order, and notes how far it has come: in the sink itself if
that is transactional, and in the store. What a sink is says connectors.py.

A delivery that fails is tried again after a pause, which doubles. Records that a sink refuses
become dead letters, durably, before the others are delivered without them: so none is lost, and
none comes twice, whenever the process dies.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from millstream import (
    ConnectorError,
    DataError,
    FencedError,
    LogReader,
    OffsetOutOfRangeError,
    Ownership,
    Record,
    RecordBatch,
    RecordError,
    Store,
    TopicPartition,
    UsageError,
)

from .connectors import DEFAULT_RETRY, RefusedRecords, Retry, Sink, SinkWriter, check_connector_name
from .errors import connector_errors, reason
from .ingest import ensure_topic
from .serde import StoredForm

DELIVERY_BYTES: Final = 4 << 20
"""A delivery ends with the epoch in which it gets this large."""

TRIM_BYTES: Final = 8 << 20
"""The outbox is trimmed whenever so much of it was delivered, and when a delivery is closed."""

OUTBOX_SEGMENT_BYTES: Final = 8 << 20
"""Files of the outbox: small, for they go when they have been delivered."""

POSITION_VERSION: Final = b"\x01"

_logger = logging.getLogger("millstream")


class _Stored(msgspec.Struct, frozen=True):
    """What the store keeps about a sink."""

    topic_id: int
    position: int
    """Everything before this offset of the outbox has been delivered."""
    following: int | None = None
    """Where the delivery ends that has been begun; it must end there when it is done again."""
    refused: list[int] = []
    """Offsets of that delivery which are dead letters already."""


_FORM: Final = StoredForm(_Stored, POSITION_VERSION)


def sink_topic(pipeline: str, sink: str) -> str:
    """The outbox of a sink."""
    return f"@sink/{pipeline}/{sink}"


def ensure_outbox(store: Store, pipeline: str, sink: str) -> str:
    """Create the outbox of a sink if it is missing; its topic."""
    topic = sink_topic(pipeline, sink)
    if topic not in {info.name for info in store.topics(internal=True)}:
        store.create_topic(topic, exist_ok=True, segment_bytes=OUTBOX_SEGMENT_BYTES)
    return topic


def outbox_name(store: Store, topic: str) -> str:
    """What an outbox is called among those of all stores, for ever; see `Sink.open`."""
    return f"{store.uid}/{topic}/{store.topic(topic).id}"


def sink_position(store: Store, pipeline: str, sink: str) -> int:
    """The offset of the outbox up to which a sink was delivered to, as the store knows."""
    return _stored(store, sink_topic(pipeline, sink), _owner_name(pipeline, sink)).position


def sink_lag(store: Store, pipeline: str, sink: str) -> int:
    """How many offsets of the outbox are still to be delivered.

    Raises:
        UnknownTopicError: The pipeline has not written to such a sink.
    """
    (held,) = store.offsets(sink_topic(pipeline, sink)).values()
    return held.end - max(held.start, sink_position(store, pipeline, sink))


def _owner_name(pipeline: str, sink: str) -> str:
    return f"sink/{pipeline}/{sink}"


def _stored(store: Store, topic: str, name: str) -> _Stored:
    data = store.checkpoint(name)
    topic_id = store.topic(topic).id
    if data is None:
        return _Stored(topic_id, 0)
    stored = _FORM.decode(data, f"the position {name!r}")
    # An outbox made anew has nothing to do with what was delivered from the one before.
    return stored if stored.topic_id == topic_id else _Stored(topic_id, 0)


@dataclass(slots=True)
class _Delivery:
    """Records of whole epochs, in the offsets [first, following)."""

    records: Sequence[Record]
    first: int
    following: int
    size_bytes: int
    planned: bool
    """The store knows where it ends."""
    failures: int = 0
    """Since it last came further."""
    failed_at: int = -1
    """The last offset that a failure was about: what came before has been tried with success."""


def _why(error: Exception, offset: int) -> str:
    """Why a delivery failed, at the record of an offset."""
    return error.reasons[offset] if isinstance(error, RefusedRecords) else reason(error)


def refusal(pipeline: str, sink: Sink, error: RefusedRecords) -> RecordError:
    """The error of records that a sink refuses, where dead letters go nowhere."""
    first = min(error.reasons)
    return RecordError(
        f"sink {sink.name!r} of pipeline {pipeline!r} cannot take the record:"
        f" {error.reasons[first]}",
        topic=sink_topic(pipeline, sink.name),
        partition=0,
        offset=first,
    )


class Deliverer:
    """Delivers one sink's outbox, step by step. Used by one thread; a context manager.

    Args:
        store: Where the outbox is; created if it is missing.
        pipeline: Name of the pipeline it is for.
        sink: Where the records go.
        dead_letters: Topic for records that the sink refuses, with headers `error` and `sink`;
            created if it is missing. None: they are errors. A sink that cannot be reached refuses
            no record: that stops in either case.
        retry: How often a delivery is tried.

    Raises:
        LockedError: A live process delivers to it.
        OffsetOutOfRangeError: The sink is older than the outbox, or ahead of it.

    >>> import millstream
    >>> from millstream.processor.sinks import to_callable
    >>> got = []
    >>> with millstream.open(":memory:") as store:
    ...     with Deliverer(store, "p", to_callable(got.append, name="list")) as deliverer:
    ...         metadata = store.append(deliverer.topic, b"hello")
    ...         print(deliverer.drain(), [record.value for record in got], deliverer.lag)
    1 [b'hello'] 0
    """

    def __init__(
        self,
        store: Store,
        pipeline: str,
        sink: Sink,
        *,
        dead_letters: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        name = check_connector_name(sink.name, "sink")
        self.topic = ensure_outbox(store, pipeline, name)
        """The outbox."""
        self.dead_letters = dead_letters
        """Where refused records go; None if they are errors."""
        self.delivered = 0
        """Records delivered by this object."""
        self.refused = 0
        """Records that became dead letters."""
        self._store = store
        self._pipeline = pipeline
        self._sink = sink
        self._retry = retry or DEFAULT_RETRY
        self._owner_name = _owner_name(pipeline, name)
        self._ownership: Ownership = store.own(self._owner_name)
        self._writer: SinkWriter | None = None
        self._reader: LogReader | None = None
        self._ahead: deque[RecordBatch] = deque()
        self._delivery: _Delivery | None = None
        self._due_ms = 0
        """When to try again, on the monotonic clock; 0 if nothing has failed."""
        self._untrimmed_bytes = 0
        self._noted = 0
        """The position as the store knows it, or a sink that keeps its own."""
        self._last_transaction = 0
        """Id of the transaction of the last batch taken."""
        try:
            if dead_letters is not None:
                ensure_topic(store, dead_letters)
            self._open()
        except BaseException:
            self.close()
            raise
        if sink.delivery == "at_least_once":
            _logger.warning(
                "sink %r of pipeline %r gets its records at least once: after a crash some come"
                " again",
                name,
                pipeline,
            )

    @property
    def position(self) -> int:
        """Everything before this offset of the outbox has been delivered."""
        return self._stored.position

    @property
    def lag(self) -> int:
        """How many offsets of the outbox are still to be delivered."""
        return self._store.offsets(self.topic)[0].end - self.position

    @property
    def pause_s(self) -> float:
        """Seconds until a delivery that failed is tried again; 0 if none did."""
        return max(0, self._due_ms - self._now_ms()) / 1000 if self._due_ms else 0.0

    @property
    def retries(self) -> bool:
        """Whether a delivery that failed is to be tried again, now or later."""
        return self._delivery is not None and self._delivery.failures > 0

    def _now_ms(self) -> int:
        return round(self._store.clock.monotonic() * 1000)

    def pump(self) -> bool:
        """Try one delivery, if there is something to deliver and no pause is on.

        Returns:
            Whether there was something to do. If not, see `pause_s`.

        Raises:
            ConnectorError: The last attempt failed; `offset` is that of the first record that was
                not delivered. Another call begins to try again.
            RecordError: The sink refuses a record, which goes nowhere. Nothing was delivered.
            FencedError: Another process delivers now.
        """
        if self.pause_s > 0:
            return False
        if self._delivery is None:
            self._delivery = self._next_delivery()
        delivery = self._delivery
        if delivery is None:
            return False
        if self._sink.delivery == "idempotent" and not delivery.planned:
            self._note(self._planned(delivery))
        try:
            self._write(delivery)
        except RefusedRecords as error:
            self._refuse(delivery, error)
            return True
        except (DataError, UsageError, FencedError) as error:
            error.at(topic=self.topic, partition=0, offset=delivery.first)
            raise
        except Exception as error:
            self._failed(delivery, error, delivery.first)
            return True
        self._delivery = None
        count = len(delivery.records) - len(self._stored.refused)
        self._advance(delivery)
        self.delivered += count
        return True

    def drain(self) -> int:
        """Deliver all there is now, waiting through pauses; how many records. Errors as `pump`."""
        end = self._store.offsets(self.topic)[0].end
        before = self.delivered
        while self.position < end:
            if self.pause_s > 0:
                self._store.clock.sleep(self.pause_s)
            if not self.pump() and not self.retries:
                break  # what is left holds no records
        return self.delivered - before

    def close(self) -> None:
        """Let go of the sink and the outbox. Idempotent."""
        try:
            if self._untrimmed_bytes and not self._store.closed:
                self._trim()
        finally:
            if self._writer is not None:
                self._writer.close()
            if self._reader is not None:
                self._reader.close()
            self._ownership.close()

    def __repr__(self) -> str:
        return f"<Deliverer {self.topic}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- where it stands -----------------------------------------------------------------------

    def _open(self) -> None:
        """Find out where to go on, from the sink itself if it knows."""
        store, sink = self._store, self._sink
        topic_id = store.topic(self.topic).id
        self._writer = self._opened(outbox_name(store, self.topic))
        self._stored = _stored(store, self.topic, self._owner_name)
        position = self._stored.position
        if sink.delivery == "transactional":
            position = self._writer.position() or 0
            if position != self._stored.position:
                # The store notes it last, and what was planned has been done or undone with it.
                refused = [at for at in self._stored.refused if at >= position]
                self._stored = _Stored(topic_id, position, self._stored.following, refused)
        held = store.offsets(self.topic)[0]
        if not held.start <= position <= held.end:
            raise OffsetOutOfRangeError(
                f"sink {sink.name!r} of pipeline {self._pipeline!r} stands at offset {position} of"
                f" its outbox, which holds {held.start} to {held.end}: the sink or the store is an"
                " older copy. Run the pipeline under another name, into an empty sink",
                topic=self.topic,
                partition=0,
                offset=position,
            )
        self._noted = position
        self._reader = store.reader({TopicPartition(self.topic, 0): position})

    def _opened(self, outbox: str) -> SinkWriter:
        name = self._sink.name
        what = f"sink {name!r} of pipeline {self._pipeline!r} cannot be opened"
        with connector_errors(name, self.topic, what):
            return self._sink.open(outbox)

    def _note(self, stored: _Stored, dead: Sequence[tuple[Record, str]] = ()) -> None:
        """Keep where it stands in the store, together with new dead letters."""
        with self._store.transaction(owner=self._ownership) as transaction:
            if dead:
                assert self.dead_letters is not None
                own = ("sink", self._sink.name.encode())
                transaction.append_many(
                    self.dead_letters,
                    [record.value for record, _ in dead],
                    [record.key for record, _ in dead],
                    [record.timestamp_ms for record, _ in dead],
                    0,
                    headers=[
                        (*record.headers, ("error", why.encode(errors="replace")), own)
                        for record, why in dead
                    ],
                )
            data = _FORM.encode(stored)
            transaction.put_checkpoint(self._owner_name, data)
        self._stored = stored
        self._noted = stored.position

    def _planned(self, delivery: _Delivery) -> _Stored:
        delivery.planned = True
        return msgspec.structs.replace(self._stored, following=delivery.following)

    def _advance(self, delivery: _Delivery) -> None:
        """Note that a delivery is done and, where that matters, which is the next one."""
        self._untrimmed_bytes += delivery.size_bytes
        stored = _Stored(self._stored.topic_id, delivery.following)
        self._stored = stored  # the next delivery begins here
        if self._sink.delivery == "idempotent":
            self._delivery = self._next_delivery()
            if self._delivery is not None:
                stored = self._planned(self._delivery)
        self._note(stored)
        if self._untrimmed_bytes >= TRIM_BYTES:
            self._trim()

    def _trim(self) -> None:
        # Not up to where it stands if that could not be noted: it would be begun from there again.
        self._store.trim(self.topic, {0: self._noted})
        self._untrimmed_bytes = 0

    # --- one delivery --------------------------------------------------------------------------

    def _next_delivery(self) -> _Delivery | None:
        """The next whole epochs, up to the end of the delivery that was begun, if one was."""
        assert self._reader is not None
        following = self._stored.following
        first = self._stored.position
        if following is not None and following <= first:
            following = None
        records: list[Record] = []
        end, size_bytes = first, 0
        while batch := self._peek():
            if following is not None and batch.base_offset >= following:
                break
            if following is None and size_bytes >= DELIVERY_BYTES and not self._goes_on(batch):
                break
            self._ahead.popleft()
            self._last_transaction = batch.header.transaction_id
            records += batch
            size_bytes += batch.header.total_bytes
            end = batch.last_offset + 1
        if following not in {None, end}:
            raise DataError(
                f"a delivery to {self._sink.name!r} was begun up to offset {following}, and the"
                f" outbox ends at {end}",
                topic=self.topic,
                partition=0,
                offset=first,
            )
        if end == first:
            return None
        return _Delivery(records, first, end, size_bytes, planned=following is not None)

    def _peek(self) -> RecordBatch | None:
        assert self._reader is not None
        if not self._ahead:
            self._ahead.extend(self._reader.poll())
        return self._ahead[0] if self._ahead else None

    def _goes_on(self, batch: RecordBatch) -> bool:
        """Whether the batch belongs to the epoch of the one before."""
        return batch.header.transaction_id == self._last_transaction != 0

    def _write(self, delivery: _Delivery) -> None:
        assert self._writer is not None
        records = delivery.records
        if self._stored.refused:
            refused = set(self._stored.refused)
            records = [record for record in records if record.offset not in refused]
        self._writer.write(records, delivery.first, delivery.following)

    def _failed(self, delivery: _Delivery, error: Exception, offset: int) -> None:
        """Note a failure and when to try again.

        Raises:
            ConnectorError: It was tried often enough.
        """
        delivery.failures += 1
        retry = self._retry
        if delivery.failures >= retry.attempts:
            attempts, delivery.failures = delivery.failures, 0
            raise ConnectorError(
                f"sink {self._sink.name!r} of pipeline {self._pipeline!r} failed {attempts} times:"
                f" {_why(error, offset)}",
                connector=self._sink.name,
                topic=self.topic,
                partition=0,
                offset=offset,
            ) from error
        pause_ms = retry.pause_after(delivery.failures)
        self._due_ms = self._now_ms() + pause_ms
        _logger.warning(
            "sink %r of pipeline %r failed at offset %d, trying again in %d ms: %s",
            self._sink.name,
            self._pipeline,
            offset,
            pause_ms,
            _why(error, offset),
        )

    def _refuse(self, delivery: _Delivery, error: RefusedRecords) -> None:
        """Make dead letters of what the sink refused, so that the rest can be delivered.

        Raises:
            RecordError, ConnectorError: Dead letters go nowhere.
        """
        by_offset = {record.offset: record for record in delivery.records}
        unknown = sorted(set(error.reasons) - set(by_offset))
        if unknown or not error.reasons:
            raise UsageError(f"sink {self._sink.name!r} refused what it was not given: {unknown}")
        first = min(error.reasons)
        if first > delivery.failed_at:
            delivery.failures, delivery.failed_at = 0, first
        if error.retry and (
            self.dead_letters is None or delivery.failures + 1 < self._retry.attempts
        ):
            self._failed(delivery, error, first)
            return
        if self.dead_letters is None:
            raise refusal(self._pipeline, self._sink, error)
        dead = [(by_offset[offset], why) for offset, why in sorted(error.reasons.items())]
        refused = sorted({*self._stored.refused, *error.reasons})
        delivery.planned, delivery.failures = True, 0
        self._note(
            msgspec.structs.replace(self._stored, following=delivery.following, refused=refused),
            dead,
        )
        self.refused += len(dead)
