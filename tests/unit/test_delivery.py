from collections.abc import Iterator

import pytest

from millstream.batch import BatchPlacement, buffers, decode_batch, encode_batch, seal
from millstream.delivery import Delivery
from millstream.errors import CorruptBatchError
from millstream.format import parse_header
from millstream.record import Record, TopicPartition
from millstream.record_batch import RecordBatch

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def batch(partition: TopicPartition, base: int, count: int) -> RecordBatch:
    encoded = encode_batch([b"%d" % (base + n) for n in range(count)])
    placement = BatchPlacement(1, 1, base, 0, 0, 0, 1, 0, 0)
    header, _ = seal(encoded, placement)
    data = b"".join(buffers(encoded, header))
    return decode_batch(*partition, parse_header(data, 0, 1), data[len(header) :])


def delivery(*batches: RecordBatch) -> Delivery:
    delivery = Delivery()
    delivery.extend(batches)
    return delivery


def places(records: list[Record]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in records]


def test_nothing_waits_at_first() -> None:
    empty = Delivery()

    assert not empty
    assert empty.take(5) == []
    assert empty.take_batch() is None
    assert empty.chunk(5) is None
    assert empty.undelivered() == {}


def test_taking_records_goes_over_batches_and_stops_within() -> None:
    waiting = delivery(batch(A, 0, 2), batch(B, 7, 3))

    assert places(waiting.take(3)) == [(0, 0), (0, 1), (1, 7)]

    assert waiting.undelivered() == {B: 8}
    assert places(waiting.take(9)) == [(1, 8), (1, 9)]
    assert waiting.undelivered() == {}


def test_an_iterator_knows_how_far_the_user_has_come() -> None:
    waiting = delivery(batch(A, 0, 5), batch(A, 5, 5))
    chunk = waiting.chunk(3)
    assert chunk is not None

    seen = [waiting.undelivered()[A] for _ in chunk]

    assert seen == [1, 2, 3]


def test_what_an_iterator_has_not_returned_waits_again() -> None:
    waiting = delivery(batch(A, 0, 5))
    chunk = waiting.chunk(4)
    assert chunk is not None
    next(chunk)

    assert places(waiting.take(2)) == [(0, 1), (0, 2)]

    assert list(chunk) == []
    assert waiting.undelivered() == {A: 3}


def test_a_batch_begun_by_records_is_given_out_from_there() -> None:
    waiting = delivery(batch(A, 0, 5), batch(B, 0, 2))
    waiting.take(2)

    first, second = waiting.take_batch(), waiting.take_batch()

    assert first is not None
    assert second is not None
    assert list(first.offsets) == [2, 3, 4]
    assert list(second.offsets) == [0, 1]
    assert waiting.take_batch() is None


def test_a_dropped_partition_is_not_seen_any_more() -> None:
    waiting = delivery(batch(A, 0, 5), batch(B, 0, 1), batch(A, 5, 1), batch(B, 1, 1))
    chunk = waiting.chunk(4)
    assert chunk is not None
    next(chunk)

    waiting.drop([A])

    assert list(chunk) == []
    assert waiting.undelivered() == {B: 0}
    assert places(waiting.take(9)) == [(1, 0), (1, 1)]


class Undecodable(RecordBatch):
    def __iter__(self) -> Iterator[Record]:
        raise CorruptBatchError("for the test")

    def slice(self, start: int, stop: int | None = None) -> RecordBatch:
        return self


def test_records_before_one_that_cannot_be_decoded_are_given_out_first() -> None:
    good = batch(B, 0, 1)
    bad = Undecodable("t", 1, good._columns, 0, 1)
    waiting = delivery(batch(A, 0, 2), bad)

    assert places(waiting.take(9)) == [(0, 0), (0, 1)]

    for _ in range(2):
        with pytest.raises(CorruptBatchError):
            waiting.take(9)
        with pytest.raises(CorruptBatchError):
            waiting.chunk(9)
        assert waiting.undelivered() == {B: 0}


def test_dropping_another_partition_keeps_the_place() -> None:
    waiting = delivery(batch(A, 0, 5), batch(B, 0, 1))
    chunk = waiting.chunk(4)
    assert chunk is not None
    next(chunk)

    waiting.drop([B])

    assert waiting.undelivered() == {A: 1}
    assert len(waiting.take(9)) == 4
