"""What named producers have written to one partition, as its batch headers say it. Pure.

Kept per producer: its epoch, the number of its last record, and its last batches, so that a record
sent again can be told where it is. The rules and the bytes of a snapshot are in docs/log-format.md,
"Producers"; where the headers come from is `producer_log.py`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .errors import DataError, FencedError, FormatVersionError, SequenceGapError, UsageError
from .format import INT64_MAX, BatchHeader

BATCHES_KEPT: Final = 5
"""Per producer: of records in these a duplicate is told its offset."""
PRODUCERS_MAX: Final = 65_536
"""Per partition."""
NOTHING: Final = -1
"""As a sequence: the producer has written nothing."""
UNKNOWN_OFFSET: Final = -1
"""Of a duplicate: it is in the log, but where is not remembered any more."""

_MAGIC: Final = b"\x93MSP\r\n\x1a\n"
_VERSION: Final = 1
_HEADER: Final = Struct("<8sIIQQq8s")
_PRODUCER: Final = Struct("<QIIQ8s")
_BATCH: Final = Struct("<QQIIq8s")
_RESERVED: Final = bytes(8)
_U64: Final = Struct("<Q")


class ProducedBatch(NamedTuple):
    """One batch of a producer."""

    last_sequence: int
    base_offset: int
    last_offset_delta: int
    dense: bool
    """Whether its records have consecutive numbers, so that each tells its offset."""
    append_timestamp_ms: int


class ProducerState(NamedTuple):
    """What is remembered of one producer in one partition."""

    epoch: int
    last_sequence: int
    batches: tuple[ProducedBatch, ...]
    """Its last ones, oldest first."""

    def find(self, sequence: int) -> tuple[int, int]:
        """Offset and append time of the record with that number.

        UNKNOWN_OFFSET if it is older than the batches kept, or its batch has holes.
        """
        for batch in self.batches:
            if sequence <= batch.last_sequence:
                back = batch.last_sequence - sequence
                if sequence != batch.last_sequence and (
                    not batch.dense or back > batch.last_offset_delta
                ):
                    break
                offset = batch.base_offset + batch.last_offset_delta - back
                return offset, batch.append_timestamp_ms
        return UNKNOWN_OFFSET, 0


class Numbering(NamedTuple):
    """What a producer says about a batch it wants to append."""

    producer_id: int
    epoch: int
    previous: int
    """Number of the record before it, as the producer knows the partition; NOTHING if none."""
    last: int
    """Number of its last record."""


class ProducerStates:
    """The producers of one partition up to an offset. Not thread-safe.

    Args:
        next_offset: Every batch below has been taken in.
        lost_below: Headers below this offset were gone when all was made anew; 0: none were.
        lost_before_ms: When that was.
    """

    def __init__(self, next_offset: int = 0, lost_below: int = 0, lost_before_ms: int = 0) -> None:
        self.next_offset = next_offset
        self.lost_below = lost_below
        self.lost_before_ms = lost_before_ms
        self.producers: dict[int, ProducerState] = {}

    def take(self, header: BatchHeader) -> None:
        """Take in the next batch of the log; one that was taken in before changes nothing."""
        if header.next_offset <= self.next_offset:
            return
        if header.producer_id:
            self.appended(
                Numbering(header.producer_id, header.producer_epoch, 0, header.producer_sequence),
                header.base_offset,
                header.last_offset_delta,
                header.append_timestamp_ms,
            )
        self.next_offset = header.next_offset

    def appended(
        self, numbering: Numbering, base_offset: int, last_offset_delta: int, now_ms: int
    ) -> None:
        """Remember a batch that was appended behind `next_offset`, without others in between."""
        state = self.producers.get(numbering.producer_id)
        before = NOTHING if state is None else state.last_sequence
        batch = ProducedBatch(
            numbering.last,
            base_offset,
            last_offset_delta,
            numbering.last - before == last_offset_delta + 1,
            now_ms,
        )
        kept = (batch,) if state is None else (*state.batches[1 - BATCHES_KEPT :], batch)
        self.producers[numbering.producer_id] = ProducerState(numbering.epoch, numbering.last, kept)
        self.next_offset = base_offset + last_offset_delta + 1

    def check(self, numbering: Numbering, count: int) -> bool:
        """Whether a batch of `count` records is to be appended; False: it is there already.

        Raises:
            FencedError: The producer has written in a newer epoch.
            SequenceGapError: Records before it are missing.
            UsageError: Some of its records are there already and some are not, or there are too
                many producers.
        """
        state = self.producers.get(numbering.producer_id)
        if state is None:
            if len(self.producers) >= PRODUCERS_MAX:
                raise UsageError(
                    f"{PRODUCERS_MAX} producers have written here: forget some with"
                    " forget_producer()"
                )
            state = ProducerState(0, NOTHING, ())
        if state.epoch > numbering.epoch:
            raise FencedError("the producer was opened again: a newer one has written here")
        if not NOTHING < numbering.last <= INT64_MAX:
            raise UsageError(f"sequence {numbering.last} is not 0 to 2**63 - 1")
        if numbering.last <= state.last_sequence:
            return False
        if numbering.previous < state.last_sequence:
            first = numbering.last - count + 1
            raise UsageError(
                f"records up to sequence {state.last_sequence} are there already, but the batch"
                f" begins at {first}: send what is above"
            )
        if numbering.previous > state.last_sequence:
            raise SequenceGapError(
                f"records {state.last_sequence + 1} to {numbering.previous} of the producer are"
                " missing: send them first",
                expected=state.last_sequence + 1,
            )
        return True

    # --- snapshots ---------------------------------------------------------------------------

    def encode(self, partition_uid: int) -> bytes:
        """The bytes of a snapshot."""
        parts = [
            _HEADER.pack(
                _MAGIC,
                _VERSION,
                len(self.producers),
                self.next_offset,
                self.lost_below,
                self.lost_before_ms,
                _RESERVED,
            )
        ]
        for producer_id, state in sorted(self.producers.items()):
            sizes = state.epoch, len(state.batches), state.last_sequence
            parts.append(_PRODUCER.pack(producer_id, *sizes, _RESERVED))
            parts += [_BATCH.pack(*batch, _RESERVED) for batch in state.batches]
        content = b"".join(parts)
        return content + _U64.pack(xxh3_64_intdigest(content, partition_uid))

    @classmethod
    def decode(cls, data: bytes, partition_uid: int, log_end: int) -> ProducerStates:
        """Read a snapshot.

        Raises:
            FormatVersionError: Intact, but of a newer version of the format.
            DataError: Damaged, of another partition, or of a log that was longer.
        """
        if len(data) < _HEADER.size + _U64.size:
            raise DataError(f"a snapshot of producers is cut at {len(data)} bytes")
        content = memoryview(data)[: -_U64.size]
        stored = _U64.unpack_from(data, len(content))[0]
        if xxh3_64_intdigest(content, partition_uid) != stored:
            raise DataError("a snapshot of producers fails its checksum")
        magic, version, count, next_offset, lost_below, lost_ms, reserved = _HEADER.unpack_from(
            content
        )
        if magic != _MAGIC:
            raise DataError("a snapshot of producers has a wrong magic")
        if version != _VERSION:
            raise FormatVersionError(f"version {version} of a snapshot of producers is unknown")
        states = cls(next_offset, lost_below, lost_ms)
        position = _HEADER.size
        for _ in range(count):
            position = states._decode_producer(content, position)
        if next_offset > log_end:
            raise DataError(f"a snapshot of producers is of a log that ended at {next_offset}")
        if position != len(content) or reserved != _RESERVED or count != len(states.producers):
            raise DataError("a snapshot of producers holds impossible values")
        return states

    def _decode_producer(self, content: memoryview, position: int) -> int:
        if position + _PRODUCER.size > len(content):
            raise DataError("a snapshot of producers is cut")
        producer_id, epoch, count, last, _ = _PRODUCER.unpack_from(content, position)
        position += _PRODUCER.size
        end: int = position + count * _BATCH.size
        if not 1 <= count <= BATCHES_KEPT or end > len(content):
            raise DataError("a snapshot of producers is cut")
        batches = tuple(
            ProducedBatch(last_sequence, base, delta, bool(dense), append_ms)
            for last_sequence, base, delta, dense, append_ms, _ in _BATCH.iter_unpack(
                content[position:end]
            )
        )
        self.producers[producer_id] = ProducerState(epoch, last, batches)
        return end
