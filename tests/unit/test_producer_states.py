"""What is remembered of named producers: duplicates, gaps, epochs, and its snapshot."""

from __future__ import annotations

import pytest
from xxhash import xxh3_64_intdigest

from millstream.errors import (
    DataError,
    FencedError,
    FormatVersionError,
    SequenceGapError,
    UsageError,
)
from millstream.producer_states import (
    BATCHES_KEPT,
    NOTHING,
    PRODUCERS_MAX,
    UNKNOWN_OFFSET,
    Numbering,
    ProducerState,
    ProducerStates,
)

UID = 77


def written(*sizes: int, epoch: int = 1, producer: int = 5) -> ProducerStates:
    """The state after batches of so many records, all of one producer."""
    states = ProducerStates()
    for size in sizes:
        known = states.producers.get(producer)
        before = NOTHING if known is None else known.last_sequence
        numbering = Numbering(producer, epoch, before, before + size)
        assert states.check(numbering, size)
        states.appended(numbering, states.next_offset, size - 1, 1000 + states.next_offset)
    return states


def state(states: ProducerStates, producer: int = 5) -> ProducerState:
    return states.producers[producer]


def test_each_record_of_the_last_batches_tells_its_offset() -> None:
    states = written(3, 1, 2)

    assert [0, 1, 2, 3, 4, 5] == [state(states).find(number)[0] for number in range(6)]
    assert (4, 1004) == state(states).find(4)
    assert 5 == state(states).last_sequence


def test_at_least_the_last_five_batches_are_remembered() -> None:
    states = written(*[10] * (BATCHES_KEPT + 1))

    assert BATCHES_KEPT >= 5
    assert UNKNOWN_OFFSET == state(states).find(9)[0]
    assert 10 == state(states).find(10)[0]


def test_a_batch_with_holes_in_its_numbers_tells_only_its_last_offset() -> None:
    states = written(3)
    states.appended(Numbering(5, 1, 2, 9), 3, 1, 7)  # two records: 9 and one of 3 to 8

    assert (4, 7) == state(states).find(9)
    assert [UNKNOWN_OFFSET] * 6 == [state(states).find(number)[0] for number in range(3, 9)]
    assert [0, 1, 2] == [state(states).find(number)[0] for number in range(3)]


def test_what_was_written_is_not_to_be_written_again() -> None:
    states = written(3, 3)

    assert not states.check(Numbering(5, 1, 2, 5), 3)
    assert not states.check(Numbering(5, 2, -1, 0), 1), "whatever the epoch"
    assert states.check(Numbering(5, 1, 5, 6), 1)


def test_a_batch_that_is_there_in_part_is_refused() -> None:
    with pytest.raises(UsageError, match="up to sequence 5 are there already"):
        written(3, 3).check(Numbering(5, 1, 3, 7), 4)


def test_records_that_are_missing_are_named() -> None:
    with pytest.raises(SequenceGapError, match=r"records 6 to 8 .* missing") as caught:
        written(6).check(Numbering(5, 1, 8, 9), 1)
    assert 6 == caught.value.expected


def test_an_older_epoch_is_fenced() -> None:
    states = written(1, epoch=2)

    with pytest.raises(FencedError, match="a newer one"):
        states.check(Numbering(5, 1, 0, 1), 1)
    assert states.check(Numbering(5, 3, 0, 1), 1)


def test_numbers_end_below_2_to_the_63() -> None:
    states = ProducerStates()
    states.appended(Numbering(5, 1, NOTHING, 2**63 - 2), 0, 0, 0)

    assert states.check(Numbering(5, 1, 2**63 - 2, 2**63 - 1), 1)
    with pytest.raises(UsageError, match=r"2\*\*63"):
        states.check(Numbering(5, 1, 2**63 - 1, 2**63), 1)


def test_producers_per_partition_are_bounded() -> None:
    states = ProducerStates()
    states.producers = dict.fromkeys(range(1, PRODUCERS_MAX + 1), ProducerState(1, 0, ()))

    assert states.check(Numbering(5, 1, 0, 1), 1)
    with pytest.raises(UsageError, match="forget_producer"):
        states.check(Numbering(PRODUCERS_MAX + 1, 1, NOTHING, 0), 1)


def test_a_snapshot_is_read_back() -> None:
    states = written(3, 1, 2)
    states.appended(Numbering(3, 9, NOTHING, 1 << 40), states.next_offset, 4, -1)
    states.lost_below, states.lost_before_ms = 11, 12

    again = ProducerStates.decode(states.encode(UID), UID, states.next_offset)

    assert states.producers == again.producers
    assert (11, 11, 12) == (again.next_offset, again.lost_below, again.lost_before_ms)


def test_a_snapshot_that_is_cut_or_changed_anywhere_is_damage() -> None:
    data = written(2, 2).encode(UID)
    for length in range(len(data)):
        with pytest.raises(DataError):
            ProducerStates.decode(data[:length], UID, 4)
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            ProducerStates.decode(bytes(broken), UID, 4)
    with pytest.raises(DataError, match="checksum"):
        ProducerStates.decode(data, UID + 1, 4)
    with pytest.raises(DataError, match="ended at 4"):
        ProducerStates.decode(data, UID, 3)


def test_a_snapshot_with_a_right_hash_is_not_trusted_further() -> None:
    def sealed(content: bytes) -> bytes:
        return content + xxh3_64_intdigest(content, UID).to_bytes(8, "little")

    data = written(2, 2).encode(UID)[:-8]
    for position, value in ((12, 2), (12, 0), (12, 255), (60, 0), (60, 3), (60, 255), (40, 1)):
        broken = bytearray(data)
        broken[position] = value
        with pytest.raises(DataError):
            ProducerStates.decode(sealed(bytes(broken)), UID, 4)
    with pytest.raises(DataError, match="cut"):
        ProducerStates.decode(sealed(data[:-1]), UID, 4)
    newer = bytearray(data)
    newer[8] = 2
    with pytest.raises(FormatVersionError, match="version 2"):
        ProducerStates.decode(sealed(bytes(newer)), UID, 4)
