"""The queue of a named producer: as `Sender`, and every record has a number. Opens no file.

Per partition the numbers rise, and the log refuses what is not above the last one; so after a batch
that failed no later one may be written, or what failed would look like a duplicate when it is sent
again. A partition in which a batch failed therefore accepts nothing more from this producer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .batch import EncodedBatch
from .config import Durability, TopicInfo
from .errors import FencedError, SequenceGapError, UnavailableError, UsageError
from .format import APPEND_TIME
from .log import Log
from .numbered_append import NumberedBatch, OpenProducer, append_numbered
from .outgoing import Batch, Extras, Lane, PendingCall, SendFuture
from .producer_states import NOTHING, ProducerState
from .sender import Sender, SendLimits
from .tail import Slot


class Track:
    """How far one partition is."""

    __slots__ = ("acknowledged", "log", "sent", "state", "written")

    def __init__(self, log: Log, state: ProducerState | None) -> None:
        self.log = log
        self.state = state
        """As the log had it when it was last asked."""
        last = NOTHING if state is None else state.last_sequence
        self.sent = last
        """Number of the last record that was queued."""
        self.written = last
        self.acknowledged = last


class NamedLane(Lane):
    """The open batches of one topic, and how far its partitions are."""

    __slots__ = ("errors", "numbering", "previous", "tracks")

    def __init__(self, topic: str, partitions: int, *, needs_key: bool = False) -> None:
        super().__init__(topic, partitions, needs_key=needs_key)
        self.tracks: dict[int, Track] = {}
        self.errors: dict[int, BaseException] = {}
        """By partition: why nothing more is accepted."""
        self.numbering: Literal["counted", "given"] | None = None
        self.previous = NOTHING
        """The last number given, to whatever partition."""


class NamedSender(Sender):
    """See the module docstring, and `NamedProducer` for the arguments."""

    def __init__(
        self,
        limits: SendLimits,
        producer: OpenProducer,
        *,
        durability: Durability | None,
        timeout: float | None,
    ) -> None:
        super().__init__(producer.engine, limits, durability=durability, timeout=timeout)
        self.producer = producer

    def _make_lane(self, info: TopicInfo) -> Lane:
        return NamedLane(info.name, info.partitions, needs_key=info.config.compact)

    def track(self, lane: NamedLane, number: int) -> Track:
        """How far a partition is, looked up at the first use."""
        track = lane.tracks.get(number)
        if track is None:
            log = self.engine.log(lane.topic, number)
            state = self.producer.state(log)
            if state is not None:
                # A duplicate is acknowledged at once, so what it repeats has to be durable.
                end = log.slot[Slot.LOG_END]
                self.engine.acknowledge([(log, end)], self.durability)
            with self.lock:
                track = lane.tracks.setdefault(number, Track(log, state))
        return track

    # --- sending -------------------------------------------------------------------------------

    def choose_numbering(self, lane: NamedLane, numbering: Literal["counted", "given"]) -> None:
        """Settle for one of the two ways; UsageError if it was the other before."""
        if lane.numbering == numbering:
            return
        if numbering == "given":
            tracks = [self.track(lane, number) for number in range(lane.partitions)]
            lane.previous = max(track.sent for track in tracks)
        with self.lock:
            if lane.numbering is None:
                lane.numbering = numbering
        if lane.numbering != numbering:
            raise UsageError(
                "give a sequence with every record of a topic, or with none", topic=lane.topic
            )

    def add_numbered(
        self,
        lane: NamedLane,
        number: int,
        size: int,
        record: tuple[bytes | None, bytes | Extras | None],
        sequence: int,
    ) -> SendFuture:
        """Add a record whose number is given, unless it is in the log already."""
        track = self.track(lane, number)
        full: Batch | None = None
        future: SendFuture | None = None
        try:
            with self.lock:
                self._check(lane, number, sequence)
                if sequence > track.sent:
                    batch, full = self._admit(lane, number, size)
                    if full is not None:
                        full.claimed = True
                    # Another thread may have come first while this one waited for room.
                    self._check(lane, number, sequence, above=track.sent)
                    if isinstance(record[1], Extras):
                        batch.has_extras = True
                    batch.room -= size
                    # As sender.py says, without a call in between.
                    batch.entries += record
                    batch.last_sequence = sequence
                    track.sent = sequence
                    lane.previous = sequence
                    future = SendFuture(batch, len(batch.entries))
                    if batch.granted - batch.room >= self.limits.batch_bytes:
                        self._hurry()
            if full is not None:
                self._encode(full)
        except BaseException:
            if full is not None:
                full.claimed = False
                self._unclaim(full)
            raise
        if future is None:
            future = self._duplicate(lane, number, record[1], sequence)
        return future

    def _check(self, lane: NamedLane, number: int, sequence: int, *, above: int = NOTHING) -> None:
        error = lane.errors.get(number)
        if error is not None:
            raise _after(error, self.producer.name)
        if sequence > lane.previous + 1 and not self.producer.gaps:
            raise _gap(lane, sequence)
        if sequence <= above:
            raise UsageError(f"sequence {sequence} does not rise", topic=lane.topic)

    def _duplicate(
        self, lane: NamedLane, number: int, slot: bytes | Extras | None, sequence: int
    ) -> SendFuture:
        """A future that is done, of a record that is there already."""
        track = lane.tracks[number]
        if sequence > track.acknowledged:
            self.flush(None)  # it was queued by this very producer
        if track.state is None or track.state.last_sequence < sequence:
            track.state = self.producer.state(track.log)
        assert track.state is not None
        batch = Batch(self, lane, number, 0.0)
        batch.base_offset, batch.timestamps_ms = track.state.find(sequence)
        if isinstance(slot, Extras) and slot.timestamp_ms is not None:
            batch.timestamps_ms = slot.timestamp_ms
        batch.done = batch.duplicate = batch.sealed = True
        lane.previous = sequence
        return SendFuture(batch, 2)

    # --- the thread ----------------------------------------------------------------------------

    def _deliver(self, batches: list[Batch]) -> None:
        live: list[Batch] = []
        for batch in batches:
            errors = _named(batch.lane).errors
            error = errors.get(batch.partition)
            if error is not None:
                batch.error = batch.error or _after(error, self.producer.name)
                continue
            if batch.encoded is None and batch.error is None:
                self._encode(batch)
            if batch.error is not None:
                errors[batch.partition] = batch.error
            else:
                live.append(batch)
        super()._deliver(live)

    def _append(self, log: Log, pairs: list[tuple[Batch, EncodedBatch]]) -> int:
        """Write the batches of one partition, each record once; the offset behind them."""
        lane = _named(pairs[0][0].lane)
        track = self.track(lane, log.partition)
        numbered: list[NumberedBatch] = []
        previous = track.written
        for batch, encoded in pairs:
            last = batch.last_sequence
            if lane.numbering == "counted":
                last = previous + encoded.record_count
            numbered.append(NumberedBatch(encoded, previous, last))
            previous = last
        written = append_numbered(self.engine, self.producer, log, numbered)
        end = 0
        for (batch, encoded), place in zip(pairs, written, strict=True):
            batch.base_offset = place.last_offset - encoded.last_offset_delta
            if encoded.flags & APPEND_TIME:
                batch.timestamps_ms = place.append_ms
            end = place.last_offset + 1
        for (batch, _), each in zip(pairs, numbered, strict=True):
            batch.last_sequence = each.last
        track.written = previous
        return end

    def _finish(self, batches: Sequence[Batch]) -> list[PendingCall]:
        for batch in batches:
            lane = _named(batch.lane)
            if batch.error is not None:
                lane.errors.setdefault(batch.partition, batch.error)
            elif batch.encoded is not None:
                track = lane.tracks[batch.partition]
                track.acknowledged = max(track.acknowledged, batch.last_sequence)
        return super()._finish(batches)

    def _forget_lane(self, lane: Lane) -> None:
        """Keep it: in a new one the error would be forgotten too."""


def _named(lane: Lane) -> NamedLane:
    assert isinstance(lane, NamedLane)
    return lane


def _after(error: BaseException, name: str) -> BaseException:
    """The error of a record that comes behind one that failed."""
    if isinstance(error, FencedError):
        return error
    failure = UnavailableError(
        f"records before it were not written: {error}. Open producer {name!r} again and go on"
        " behind last_sequence()"
    )
    failure.__cause__ = error
    return failure


def _gap(lane: NamedLane, sequence: int) -> SequenceGapError:
    expected = lane.previous + 1
    found = f"its last record has sequence {lane.previous}" if expected else "it has no record yet"
    return SequenceGapError(
        f"expected sequence {expected}, not {sequence}: {found}. Send those in between first, or"
        " open the producer with gaps=True",
        expected=expected,
        topic=lane.topic,
    )
