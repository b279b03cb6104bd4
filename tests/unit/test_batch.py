"""Batches: columns in, the same columns out; damage and nonsense never pass."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from itertools import pairwise
from struct import pack

import pytest
from xxhash import xxh3_64_intdigest

from millstream import batch as batch_module
from millstream.batch import (
    BatchHeader,
    BatchPlacement,
    EncodedBatch,
    RecordBatch,
    buffers,
    decode_batch,
    encode_batch,
    encode_gap,
    parse_header,
    seal,
    verify_body,
)
from millstream.errors import CorruptBatchError, UsageError
from millstream.format import (
    APPEND_TIME,
    CODEC_LZ4,
    CODEC_NONE,
    CODEC_ZSTD,
    CONTROL,
    HAS_HEADERS,
    HAS_KEYS,
    INT64_MAX,
    INT64_MIN,
    NO_TIMESTAMP,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_DELTAS,
    UNIFORM_TIMESTAMP,
)
from millstream.record import Headers, Record
from millstream.retained_batch import encode_retained

UID = 99
PLACEMENT = BatchPlacement(
    segment_uid=UID,
    partition_uid=7,
    base_offset=1000,
    append_timestamp_ms=123,
    previous_hash=5,
    durable_offset=900,
    sequence=4,
    transaction_id=0,
    prior_max_timestamp_ms=NO_TIMESTAMP,
)
codecs = pytest.mark.parametrize("codec", [CODEC_NONE, CODEC_LZ4, CODEC_ZSTD])


def place(
    encoded: EncodedBatch, placement: BatchPlacement = PLACEMENT
) -> tuple[BatchHeader, bytes]:
    """Header and body as they come back from disk."""
    sealed, header_hash = seal(encoded, placement)
    content = b"".join(buffers(encoded, sealed))
    assert len(content) == encoded.total_bytes
    header = parse_header(content, 0, placement.segment_uid)
    assert header.header_hash == header_hash
    return header, content[192:]


def written(encoded: EncodedBatch, placement: BatchPlacement = PLACEMENT) -> RecordBatch:
    return decode_batch("orders", 3, *place(encoded, placement))


# --- round trips ---------------------------------------------------------------------------------


@codecs
def test_columns_come_back(codec: int) -> None:
    rng = random.Random(codec)
    values = [rng.randbytes(3) * rng.randrange(60) for _ in range(1000)]
    keys = [b"key-%d" % rng.randrange(9) for _ in range(1000)]
    timestamps = [rng.randrange(-(10**12), 10**12) for _ in range(1000)]

    batch = written(encode_batch(values, keys, timestamps, codec=codec))

    assert batch.values == values
    assert batch.keys == keys
    assert batch.timestamps_ms == timestamps
    assert list(batch.offsets) == list(range(1000, 2000))
    assert batch.headers == [()] * 1000
    assert batch.header.codec == codec
    assert (batch.header.min_timestamp_ms, batch.header.max_timestamp_ms) == (
        min(timestamps),
        max(timestamps),
    )


def test_records_carry_topic_partition_offset_and_columns() -> None:
    headers: list[Headers] = [(), [("h", b"1"), ("h", None), ("\u00e9", b"")]]
    batch = written(encode_batch([b"a", None], [None, b""], [7, 5], headers))

    assert batch.records() == [
        Record("orders", 3, 1000, 7, None, b"a", ()),
        Record("orders", 3, 1001, 5, b"", None, (("h", b"1"), ("h", None), ("\u00e9", b""))),
    ]
    assert all(type(record) is Record for record in batch.records())
    assert batch.header.flags == HAS_KEYS | NULL_KEYS | NULL_VALUES | HAS_HEADERS


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("width", [0, 1, 16, 100])
def test_entries_of_equal_length_come_back(count: int, width: int) -> None:
    values = [random.Random(index).randbytes(width) for index in range(count)]

    assert written(encode_batch(values)).values == values


def test_one_odd_entry_among_equal_lengths_comes_back() -> None:
    for odd in (0, 50, 99):
        values = [b"0123456789"] * 100
        values[odd] = b"01234"
        values[odd - 1] = b"012345678901234"  # the sum is that of equal lengths

        assert written(encode_batch(values)).values == values


def test_more_equal_entries_than_the_fast_way_takes_come_back() -> None:
    values = [b"ab"] * ((1 << 16) + 1)

    assert written(encode_batch(values)).values == values


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_nulls_come_back_at_every_place(count: int) -> None:
    for null in range(count):
        values: list[bytes | None] = [b"v%d" % index for index in range(count)]
        values[null] = None

        batch = written(encode_batch(values, keys=values))

        assert batch.values == values
        assert batch.keys == values


def test_null_and_empty_differ() -> None:
    assert written(encode_batch([None, b"", None, b""])).values == [None, b"", None, b""]
    assert written(encode_batch([None])).values == [None]
    assert written(encode_batch([b""])).values == [b""]


def test_batch_without_keys_has_no_key_buffers() -> None:
    for keys in (None, [None] * 2):
        encoded = encode_batch([b"a", b"b"], keys)

        assert encoded.flags == UNIFORM_TIMESTAMP | APPEND_TIME
        assert encoded.sections[0] == b""
        assert written(encoded).keys == [None, None]


def test_missing_timestamps_are_the_time_of_the_append() -> None:
    encoded = encode_batch([b"a", b"b"])

    assert written(encoded).timestamps_ms == [123, 123]
    later = written(encoded, PLACEMENT._replace(append_timestamp_ms=456))
    assert later.header.max_timestamp_ms == 456
    assert [record.timestamp_ms for record in later.records()] == [456, 456]


def test_equal_timestamps_take_no_column() -> None:
    encoded = encode_batch([b"a", b"b"], timestamps_ms=[9, 9])

    assert encoded.flags == UNIFORM_TIMESTAMP
    assert written(encoded).timestamps_ms == [9, 9]


def test_extreme_timestamps_come_back() -> None:
    timestamps = [INT64_MIN + 1, INT64_MAX, 0]

    assert written(encode_batch([b""] * 3, timestamps_ms=timestamps)).timestamps_ms == timestamps


def test_headers_without_any_pair_take_no_section() -> None:
    encoded = encode_batch([b"a", b"b"], headers=[(), []])

    assert encoded.flags & HAS_HEADERS == 0
    assert written(encoded).headers == [(), ()]


def test_any_sequence_and_any_buffer_is_taken() -> None:
    values = (bytearray(b"one"), memoryview(b"two"), b"three")
    timestamps = array("q", [1, 2, 3])

    batch = written(encode_batch(values, timestamps_ms=timestamps))  # type: ignore[arg-type]

    assert batch.values == [b"one", b"two", b"three"]
    assert all(type(value) is bytes for value in batch.values)
    assert batch.timestamps_ms == [1, 2, 3]


def test_body_may_be_a_view() -> None:
    header, body = place(encode_batch([b"a", b"bc"], [b"k", None], [1, 2]))

    assert decode_batch("t", 0, header, memoryview(body)).values == [b"a", b"bc"]
    assert decode_batch("t", 0, header, bytearray(body)).keys == [b"k", None]


def test_batch_that_does_not_shrink_names_no_codec() -> None:
    encoded = encode_batch([random.Random(1).randbytes(500)], codec=CODEC_ZSTD)

    assert encoded.codec == CODEC_NONE


def test_only_sections_that_shrink_are_compressed() -> None:
    noise = [random.Random(index).randbytes(100) for index in range(100)]
    encoded = encode_batch(noise, keys=[b"the same key"] * 100, codec=CODEC_LZ4)

    (a_stored, a_raw, _), (b_stored, b_raw, _), _ = encoded.section_meta
    assert a_stored < a_raw
    assert b_stored == b_raw
    assert written(encoded).values == noise


def test_batch_can_be_sealed_again_elsewhere() -> None:
    encoded = encode_batch([b"a"])
    first = written(encoded)

    second = written(encoded, PLACEMENT._replace(segment_uid=100, base_offset=5, sequence=9))

    assert first.records()[0].offset == 1000
    assert second.records()[0].offset == 5
    assert second.sequence == 9


def test_buffers_are_aligned_and_leave_out_what_is_empty() -> None:
    encoded = encode_batch([b"abc"])
    sealed, _ = seal(encoded, PLACEMENT)

    parts = buffers(encoded, sealed)

    assert [len(part) for part in parts] == [192, 16, 48]
    assert encoded.total_bytes == 256


# --- refused input -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["text", 5, 1.5, [b"a"], object(), array("H", [1, 2])])
def test_wrong_value_is_named_by_its_index(wrong: object) -> None:
    for column in ([b"a", wrong], [None, wrong], [b"a", wrong, None]):
        at = column.index(wrong)
        with pytest.raises(UsageError, match=rf"values\[{at}\] must be bytes or None"):
            encode_batch(column)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"keys\[{at}\]"):
            encode_batch([b""] * len(column), keys=column)  # type: ignore[arg-type]


def test_text_or_bytes_instead_of_a_column_are_refused() -> None:
    for wrong in ("abc", b"abc"):
        with pytest.raises(UsageError, match=r"values\[0\]"):
            encode_batch(wrong)  # type: ignore[arg-type]


def test_iterator_instead_of_a_column_is_refused() -> None:
    with pytest.raises(UsageError, match="sequences"):
        encode_batch(iter([b"a"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 1.5, "1", INT64_MAX + 1, INT64_MIN, INT64_MIN - 1])
def test_wrong_timestamp_is_named_by_its_index(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"timestamps_ms\[1\] must be an int"):
        encode_batch([b"a", b"b"], timestamps_ms=[1, wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("wrong", [None, 5, [b"a"], [("a",)], [(b"a", b"b")], [("\ud800", b"")]])
def test_wrong_headers_are_named_by_their_index(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"headers\[1\] must be"):
        encode_batch([b"a", b"b"], headers=[[("h", b"")], wrong])  # type: ignore[list-item]


def test_wrong_header_value_is_refused() -> None:
    with pytest.raises(UsageError, match=r"header values\[0\]"):
        encode_batch([b"a"], headers=[[("h", "text")]])  # type: ignore[list-item]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="1 keys for 2 values"):
        encode_batch([b"a", b"b"], keys=[b"k"])
    with pytest.raises(UsageError, match="3 timestamps for 2 values"):
        encode_batch([b"a", b"b"], timestamps_ms=[1, 2, 3])
    with pytest.raises(UsageError, match="headers of 0 records for 2 values"):
        encode_batch([b"a", b"b"], headers=[])


def test_no_records_are_no_batch() -> None:
    with pytest.raises(UsageError, match="not 0"):
        encode_batch([])


def test_too_many_records_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "RECORD_COUNT_MAX", 10)

    encode_batch([b""] * 10)
    with pytest.raises(UsageError, match="not 11"):
        encode_batch([b""] * 11)


def test_batch_over_the_limit_is_refused_before_it_is_built() -> None:
    mebibyte = bytes(1 << 20)

    with pytest.raises(UsageError, match="values of one batch exceed"):
        encode_batch([mebibyte] * 129)
    with pytest.raises(UsageError, match="values of one batch exceed"):
        encode_batch([mebibyte] * 5000)  # over what an int32 offset can say


def test_sections_together_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BATCH_RAW_BYTES_MAX", 1000)

    with pytest.raises(UsageError, match="records of one batch exceed 1000 bytes"):
        encode_batch([bytes(600)], keys=[bytes(600)], codec=CODEC_LZ4)


# --- damage --------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_body_is_damage() -> None:
    header, body = place(encode_batch([b"a", None], [b"k", b""], [1, 2], [[("h", b"v")], ()]))
    verify_body(header, body)
    for bit in range(len(body) * 8):
        broken = bytearray(body)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatchError):
            decode_batch("t", 0, header, broken)


def test_body_of_the_wrong_length_is_damage() -> None:
    header, body = place(encode_batch([b"abc"]))
    for wrong in (b"", body[:-1], body + bytes(64)):
        with pytest.raises(CorruptBatchError, match="cut"):
            verify_body(header, wrong)


def test_padding_must_be_zero() -> None:
    header, body = place(encode_batch([b"abc"]))
    with pytest.raises(CorruptBatchError, match="padding"):
        verify_body(header, body[:-1] + b"\1")


def test_verified_bytes_are_not_verified_again() -> None:
    header, body = place(encode_batch([b"abc"]))
    broken = body[:8] + b"xyz" + body[11:]

    assert decode_batch("t", 0, header, broken, verified=True).values == [b"xyz"]


def forged(values: bytes, count: int, **changes: int) -> RecordBatch:
    """A batch whose hashes are right although section B is `values`."""
    encoded = encode_batch([b""] * count)
    encoded.flags |= changes.get("flags", 0)
    a = changes.get("a", 0).to_bytes(8, "little") if "a" in changes else b""
    encoded.sections = (a, values, b"")
    encoded.section_meta = tuple(  # type: ignore[assignment]
        (len(part), len(part), xxh3_64_intdigest(part)) for part in encoded.sections
    )
    encoded.body_bytes = -(-(len(a) + len(values)) // 64) * 64
    encoded.total_bytes = 192 + encoded.body_bytes
    return written(encoded)


@pytest.mark.parametrize(
    ("offsets", "content"),
    [
        ((1, 2, 3), b"abc"),  # not from zero
        ((0, 3, 2), b"ab"),  # falls
        ((0, -1, 2), b"ab"),  # negative
        ((0, 1, -1), b""),  # negative end
        ((0, 1, 9), b"abc"),  # past the section
        ((0, 1, 2), b"ab" + bytes(8)),  # bytes left over
        ((0, 1, 0x7FFFFFFF), b"ab"),
    ],
)
def test_offsets_that_make_no_sense_are_damage(offsets: Sequence[int], content: bytes) -> None:
    section = pack("<3i4x", *offsets) + content + bytes(-len(content) % 8)
    with pytest.raises(CorruptBatchError, match=r"column|section"):
        _ = forged(section, 2).values


def test_falling_offsets_that_add_up_are_damage() -> None:
    offsets = [index * 2 for index in range(101)]
    offsets[40], offsets[41] = offsets[41], offsets[40]
    with pytest.raises(CorruptBatchError, match="fall"):
        _ = forged(pack("<101i4x", *offsets) + bytes(200), 100).values


def test_column_cut_short_is_damage() -> None:
    with pytest.raises(CorruptBatchError, match="bitmap"):
        _ = forged(pack("<3i4x", 0, 1, 2) + b"ab" + bytes(6), 2, flags=NULL_VALUES).values
    with pytest.raises(CorruptBatchError, match="column"):
        _ = forged(pack("<3i4x", 0, 0, 0), 2, flags=OFFSET_DELTAS).offsets


def test_section_left_over_or_missing_is_damage() -> None:
    good = pack("<3i4x", 0, 1, 2) + b"ab" + bytes(6)
    assert forged(good, 2).values == [b"a", b"b"]
    with pytest.raises(CorruptBatchError, match="section"):
        _ = forged(good, 2, a=1).timestamps_ms


@pytest.mark.parametrize("deltas", [(1, 0), (1, 1), (0, 2)])
def test_offset_deltas_that_make_no_sense_are_damage(deltas: tuple[int, int]) -> None:
    good = pack("<3i4x", 0, 1, 2) + b"ab" + bytes(6)
    both = deltas[0] | deltas[1] << 32
    with pytest.raises(CorruptBatchError, match="deltas"):
        _ = forged(good, 2, a=both, flags=OFFSET_DELTAS).offsets


def test_header_name_that_is_not_text_is_damage() -> None:
    encoded = encode_batch([b"a"], headers=[[("hh", b"v")]])
    a, b, c = encoded.sections
    encoded.sections = (a, b, c.replace(b"hh", b"\xff\xff"))
    encoded.section_meta = tuple(  # type: ignore[assignment]
        (len(part), len(part), xxh3_64_intdigest(part)) for part in encoded.sections
    )
    with pytest.raises(CorruptBatchError, match="UTF-8"):
        _ = written(encoded).headers


# --- control batches and compaction --------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 1 << 32])
def test_gap_covers_offsets_without_records(count: int) -> None:
    encoded = encode_gap(count)
    batch = written(encoded)

    assert encoded.total_bytes == 192
    assert batch.header.flags == CONTROL
    assert (batch.base_offset, batch.last_offset) == (1000, 999 + count)
    assert batch.header.running_max_timestamp_ms == NO_TIMESTAMP
    assert batch.records() == []
    assert [*batch.offsets, *batch.keys, *batch.values, *batch.timestamps_ms] == []
    assert batch.slice(0).last_offset == 999 + count


@pytest.mark.parametrize("count", [0, -1, (1 << 32) + 1])
def test_gap_of_impossible_length_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match="gap"):
        encode_gap(count)


def test_retained_records_keep_offsets_timestamps_and_the_range() -> None:
    original = written(
        encode_batch([b"a", None, b"c", b"d"], [b"1", b"2", None, b"4"], [4, 3, 2, 1])
    )

    batch = written(encode_retained(original, [1, 2], codec=CODEC_ZSTD))

    assert batch.header.flags & OFFSET_DELTAS
    assert [(r.offset, r.timestamp_ms, r.key, r.value) for r in batch.records()] == [
        (1001, 3, b"2", None),
        (1002, 2, None, b"c"),
    ]
    assert (batch.base_offset, batch.last_offset) == (1000, 1003)
    again = written(encode_retained(batch, [1]))
    assert [(r.offset, r.value) for r in again.records()] == [(1002, b"c")]
    assert again.last_offset == 1003


def test_retaining_all_is_the_original_and_retaining_none_is_a_gap() -> None:
    original = written(encode_batch([b"a", b"b"], headers=[[("h", b"v")], ()]))

    assert written(encode_retained(original, [0, 1])).records() == original.records()
    gap = written(encode_retained(original, []))
    assert (gap.record_count, gap.last_offset) == (0, 1001)
    assert written(encode_retained(gap, [])).last_offset == 1001


def test_retained_append_time_stays_the_append_time() -> None:
    original = written(encode_batch([b"a", b"b", b"c"]))

    batch = written(encode_retained(original, [0, 2]))

    assert batch.header.flags & APPEND_TIME
    assert batch.timestamps_ms == [123, 123]


# --- slices --------------------------------------------------------------------------------------


def test_slice_is_a_list_slice_of_every_column() -> None:
    count = 10
    values = [b"v%d" % index for index in range(count)]
    headers: list[Headers] = [[("h", value)] for value in values]
    batch = written(encode_batch(values, values, list(range(count)), headers))
    records = batch.records()
    for start in range(count + 1):
        for stop in range(start, count + 2):
            part = batch.slice(start, stop)

            assert part.records() == records[start:stop]
            assert part.values == part.keys == values[start:stop]
            assert part.timestamps_ms == list(range(count))[start:stop]
            assert list(part.offsets) == [record.offset for record in records[start:stop]]
            assert part.record_count == len(records[start:stop])
            assert part.slice(1).records() == records[start:stop][1:]
            if part.record_count:
                assert part.base_offset == 1000 + start


def test_slice_covers_the_offsets_of_its_records_and_the_last_one_the_rest() -> None:
    original = written(encode_batch([b"a", b"b", b"c", b"d"]))
    batch = written(encode_retained(original, [1, 2]))

    first, last, none = batch.slice(0, 1), batch.slice(1), batch.slice(2)

    assert (first.base_offset, first.last_offset) == (1000, 1001)
    assert (last.base_offset, last.last_offset) == (1002, 1003)
    assert (none.record_count, none.last_offset) == (0, 1003)
    assert batch.slice(0, 0).last_offset == 999


def test_slices_know_the_running_maximum_before_them() -> None:
    placement = PLACEMENT._replace(prior_max_timestamp_ms=5)
    batch = written(encode_batch([b""] * 4, timestamps_ms=[3, 9, 1, 7]), placement)

    assert [batch.slice(start).prior_max_timestamp_ms for start in range(5)] == [5, 5, 9, 9, 9]
    uniform = written(encode_batch([b""] * 4, timestamps_ms=[6] * 4), placement)
    assert [uniform.slice(start).prior_max_timestamp_ms for start in range(3)] == [5, 6, 6]


def test_reading_from_an_offset_skips_what_is_before() -> None:
    original = written(encode_batch([b"a", b"b", b"c", b"d"]))
    batch = written(encode_retained(original, [1, 3]))

    assert [original.index_of(1000 + n) for n in range(-1, 6)] == [0, 0, 1, 2, 3, 4, 4]
    assert [batch.index_of(1000 + n) for n in range(6)] == [0, 0, 1, 1, 2, 2]
    assert batch.from_offset(1000) is batch
    assert [r.offset for r in batch.from_offset(1002).records()] == [1003]
    assert batch.from_offset(1004).records() == []
    assert original.from_offset(1002).from_offset(1003).values == [b"d"]


def test_columns_are_decoded_once_and_shared_by_slices() -> None:
    batch = written(encode_batch([b"a", b"b"]))

    assert batch.values is batch.values
    assert batch.slice(1).values[0] is batch.values[1]


def test_repr_names_the_place() -> None:
    batch = written(encode_batch([b"a", b"b"]))

    assert repr(batch) == "<RecordBatch orders/3 offsets [1000, 1002) records 2>"


def test_values_put_together_are_those_of_the_slice() -> None:
    values = [b"a", b"bcd", b"ef"]
    batch = written(encode_batch(values))
    for start in range(4):
        for stop in range(start, 4):
            joined = batch.slice(start, stop).joined_values
            assert joined is not None
            data, bounds = joined
            assert values[start:stop] == [data[one:end] for one, end in pairwise(bounds)]


@pytest.mark.parametrize(("keys", "expected"), [(None, False), ([None, b"k"], True)])
def test_a_batch_knows_whether_a_record_may_have_a_key(
    keys: list[bytes | None] | None, expected: bool
) -> None:
    batch = written(encode_batch([b"a", b"b"], keys))
    assert expected == batch.has_keys == batch.slice(0, 1).has_keys


@pytest.mark.parametrize("values", [[b"a", None], [b"a", b""]])
def test_values_are_not_put_together_where_one_is_empty_or_a_tombstone(
    values: list[bytes | None],
) -> None:
    assert written(encode_batch(values)).joined_values is None
