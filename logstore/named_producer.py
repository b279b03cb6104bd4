"""A producer with a name: what it sends is in the log once, however often it is sent.

The queue is `named_sender.py`, the numbers are checked by `numbered_append.py`, and what they are
on disk is in docs/log-format.md, "Producers". What to do after a restart is the user's: send again
from `resume_from` on, or from the beginning.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_intdigest

from .config import MIB, Durability
from .engine import Engine
from .errors import UsageError, missing_key
from .format import INT64_MAX
from .named_sender import NamedLane, NamedSender
from .numbered_append import OpenProducer
from .outgoing import SendFuture
from .producer import Producer, checked_partition, checked_record
from .record import Headers
from .sender import Sender, SendLimits

_DEFAULT_TIMEOUT_SECONDS: Final = 60.0


class NamedProducer(Producer):
    """A `Producer` whose records are numbered, so that none is written twice. Thread-safe.

    Made by `Store.producer(name=...)`. Opening the name again, in whatever process, fences this
    one: what it sends after that fails with FencedError.

    A record that could not be written stops its partition: those behind it fail too, because they
    would make it look like a duplicate later. Open the name again and send from there on.

    Args:
        producer: The name, opened.
        linger_ms, batch_bytes, buffer_bytes, durability, timeout: As `Producer`.
    """

    def __init__(
        self,
        producer: OpenProducer,
        *,
        linger_ms: float = 5,
        batch_bytes: int = MIB,
        buffer_bytes: int = 64 * MIB,
        durability: Durability | None = None,
        timeout: float | None = _DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._open = producer
        super().__init__(
            producer.engine,
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            durability=durability,
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"<NamedProducer {self.name!r} {self._root}{' closed' if self.closed else ''}>"

    def _make_sender(
        self,
        engine: Engine,
        limits: SendLimits,
        durability: Durability | None,
        timeout: float | None,
    ) -> Sender:
        del engine
        self._named = NamedSender(limits, self._open, durability=durability, timeout=timeout)
        return self._named

    @property
    def name(self) -> str:
        """Its name."""
        return self._open.name

    @property
    def epoch(self) -> int:
        """How often the name has been opened."""
        return self._open.row.epoch

    def send(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
        sequence: int | None = None,
    ) -> SendFuture:
        """As `Producer.send`, and each record once.

        Args:
            topic: As there.
            value: As there.
            key: As there.
            timestamp_ms: As there.
            headers: As there.
            partition: As there.
            sequence: Number of the record in its source, such as its line: 0, 1, 2, ... over all
                partitions of the topic. A record whose number is not above the last one in its
                partition is there already: it is acknowledged and not written. Without a key and
                partition the number chooses the partition. None: records are counted per
                partition.

        Raises:
            SequenceGapError: `sequence` leaves records out, and `gaps` was not said.
            UsageError: Also: some records of the topic with a sequence and some without.
            UnavailableError: An earlier record of the partition could not be written.
            FencedError: The name was opened again.
            UnknownTopicError, BackpressureTimeoutError, StoreClosedError: As there.
        """
        lane = self._lane(topic)
        if sequence is None:
            self._named.choose_numbering(lane, "counted")
            return super().send(
                topic,
                value,
                key=key,
                timestamp_ms=timestamp_ms,
                headers=headers,
                partition=partition,
            )
        if (
            not isinstance(sequence, int)
            or isinstance(sequence, bool)
            or not 0 <= sequence <= INT64_MAX
        ):
            raise UsageError(f"sequence must be 0 to 2**63 - 1, not {sequence!r}")
        if key is None and lane.needs_key:
            raise missing_key(topic)
        value, slot, size = checked_record(value, key, timestamp_ms, headers)
        self._named.choose_numbering(lane, "given")
        if partition is not None:
            number = checked_partition(lane, partition)
        elif key is None:
            number = sequence % lane.partitions
        else:
            number = xxh3_64_intdigest(key) % lane.partitions  # as append.partition_of
        return self._named.add_numbered(lane, number, size, (value, slot), sequence)

    def last_sequence(self, topic: str, partition: int = 0) -> int:
        """Number of the last record of this name in a partition, by whichever process; -1: none.

        Counted records are numbered 0, 1, 2, ... per partition, so then it is their count less one.
        """
        lane = self._lane(topic)
        track = self._named.track(lane, checked_partition(lane, partition))
        return track.acknowledged

    def resume_from(self, topic: str) -> int:
        """The sequence to go on with after a restart: all records before it are in the topic.

        For records sent with a sequence. Sending from an earlier one does no harm.
        """
        lane = self._lane(topic)
        tracks = [self._named.track(lane, number) for number in range(lane.partitions)]
        return min(track.acknowledged for track in tracks) + 1

    def _lane(self, topic: str) -> NamedLane:
        try:
            lane = self._lanes[topic]
        except (KeyError, TypeError):  # a list cannot even be looked for, and is told
            lane = self._named.add_lane(topic)
        assert isinstance(lane, NamedLane)
        return lane
