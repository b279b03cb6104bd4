"""Headers: what is written is read back, and nothing damaged, newer or impossible is let in."""

from __future__ import annotations

import struct

import pytest
from xxhash import xxh3_64_intdigest

from millstream.errors import CorruptBatchError, CorruptSegmentError, FormatVersionError
from millstream.format import (
    APPEND_TIME,
    BATCH_FIELDS,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    BATCH_MAGIC_BYTES,
    BOUNDS,
    CLEANED,
    CODEC_LZ4,
    COLUMNS,
    CONTROL,
    HAS_HEADERS,
    HAS_KEYS,
    NO_TIMESTAMP,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_DELTAS,
    RECORD_COUNT_MAX,
    REWRITTEN,
    SECTION_RAW_BYTES_MAX,
    SEGMENT_MAGIC,
    TOMBSTONES,
    UNIFORM_TIMESTAMP,
    Rewrite,
    SegmentHeader,
    encode_header,
    encode_rewrite,
    encode_segment_header,
    parse_header,
    parse_segment_header,
)

UID = 0xFEED_FACE_CAFE_BEEF
SEGMENT = SegmentHeader(
    store_uid=b"0123456789abcdef",
    segment_uid=UID,
    partition_uid=(1 << 64) - 1,
    base_offset=12_345,
    created_ms=1_700_000_000_000,
    previous_segment_uid=3,
    previous_hash=4,
    previous_bytes=5,
    prior_max_timestamp_ms=-6,
)


def rehashed_segment(**changes: object) -> bytes:
    """A segment header with impossible fields and a right hash."""
    return encode_segment_header(SEGMENT._replace(**changes))[0]  # type: ignore[arg-type]


# --- segment header ------------------------------------------------------------------------------


def test_segment_header_is_read_back() -> None:
    encoded, header_hash = encode_segment_header(SEGMENT)

    assert len(encoded) == 128
    assert parse_segment_header(encoded) == SEGMENT._replace(header_hash=header_hash)
    assert parse_segment_header(memoryview(encoded + b"batches follow")).base_offset == 12_345


def test_every_flipped_bit_of_a_segment_header_is_damage() -> None:
    encoded, _ = encode_segment_header(SEGMENT)
    for bit in range(len(encoded) * 8):
        broken = bytearray(encoded)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSegmentError):
            parse_segment_header(broken)


def test_every_cut_of_a_segment_header_is_damage() -> None:
    encoded, _ = encode_segment_header(SEGMENT)
    for length in range(128):
        with pytest.raises(CorruptSegmentError, match="cut"):
            parse_segment_header(encoded[:length])


def test_zeros_are_not_a_segment() -> None:
    with pytest.raises(CorruptSegmentError, match="magic"):
        parse_segment_header(bytes(128))


def test_newer_major_is_reported_as_newer_not_as_damage() -> None:
    with pytest.raises(FormatVersionError, match=r"2\.7"):
        parse_segment_header(rehashed_segment(major=2, minor=7))


def test_newer_minor_and_compatible_features_are_read() -> None:
    header = parse_segment_header(rehashed_segment(minor=9, compatible=0xFFFF))

    assert (header.minor, header.compatible) == (9, 0xFFFF)


def test_incompatible_feature_stops_readers() -> None:
    with pytest.raises(FormatVersionError, match="0x10"):
        parse_segment_header(rehashed_segment(incompatible=16))


def test_read_only_compatible_feature_stops_no_reader() -> None:
    assert 4 == parse_segment_header(rehashed_segment(read_only_compatible=4)).read_only_compatible


def test_segment_header_with_right_hash_and_impossible_values_is_damage() -> None:
    with pytest.raises(CorruptSegmentError, match="impossible"):
        parse_segment_header(rehashed_segment(base_offset=1 << 63))
    body = bytearray(encode_segment_header(SEGMENT)[0][:120])
    body[110] = 1  # reserved
    with pytest.raises(CorruptSegmentError, match="impossible"):
        parse_segment_header(body + struct.pack("<Q", xxh3_64_intdigest(bytes(body))))
    body[104:120] = bytes(16)
    body[40:48] = bytes(8)  # segment_uid
    with pytest.raises(CorruptSegmentError, match="impossible"):
        parse_segment_header(body + struct.pack("<Q", xxh3_64_intdigest(bytes(body))))


REWRITE = Rewrite(
    end_offset=20_000,
    data_bytes=4096,
    last_hash=7,
    last_sequence=8,
    replaced_uid=9,
    replaced_hash=10,
    rewritten_ms=11,
    cleaned_ms=12,
    record_count=13,
)


def rewritten_segment(**changes: int) -> bytes:
    """Both headers of a rewritten segment, with right hashes."""
    header = encode_segment_header(SEGMENT._replace(incompatible=REWRITTEN))[0]
    return header + encode_rewrite(REWRITE._replace(**changes), UID)


def test_rewrite_header_is_read_back() -> None:
    header = parse_segment_header(rewritten_segment())

    assert (REWRITE, 256, 9) == (header.rewrite, header.data_start, header.link_uid)
    plain = parse_segment_header(encode_segment_header(SEGMENT)[0])
    assert (None, 128, UID) == (plain.rewrite, plain.data_start, plain.link_uid)


def test_any_bit_flipped_in_the_rewrite_header_is_found() -> None:
    encoded = rewritten_segment()

    for bit in range(8 * 128, 8 * 256):
        broken = bytearray(encoded)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSegmentError):
            parse_segment_header(broken)


def test_a_rewrite_header_that_is_cut_or_impossible_is_damage() -> None:
    for length in range(128, 256):
        with pytest.raises(CorruptSegmentError, match="cut"):
            parse_segment_header(rewritten_segment()[:length])
    for changes in (
        {"end_offset": 12_345},
        {"end_offset": 1 << 63},
        {"data_bytes": 384},
        {"data_bytes": 4097},
        {"replaced_uid": 0},
    ):
        with pytest.raises(CorruptSegmentError, match="impossible"):
            parse_segment_header(rewritten_segment(**changes))


# --- batch header --------------------------------------------------------------------------------

GOOD: dict[str, int] = {
    "magic": BATCH_MAGIC,
    "version": 1,
    "codec": 0,
    "header_bytes": 192,
    "partition_uid": 7,
    "base_offset": 100,
    "last_offset_delta": 2,
    "record_count": 3,
    "body_bytes": 64,
    "flags": UNIFORM_TIMESTAMP,
    "min_timestamp_ms": 5,
    "max_timestamp_ms": 5,
    "append_timestamp_ms": 6,
    "producer_id": 1,
    "producer_epoch": 2,
    "producer_sequence": 1 << 31,
    "schema_id": 4,
    "producer_sequence_high": 0,
    "previous_hash": 8,
    "durable_offset": 90,
    "sequence": 9,
    "transaction_id": 10,
    "prior_max_timestamp_ms": NO_TIMESTAMP,
    "a_stored": 0,
    "a_raw": 0,
    "a_hash": 1,
    "b_stored": 24,
    "b_raw": 24,
    "b_hash": 2,
    "c_stored": 0,
    "c_raw": 0,
    "c_hash": 3,
    "cleaned_ms": 0,
}


def batch_header(**changes: int) -> bytes:
    """A batch header with the given fields and a right hash."""
    fields = BATCH_FIELDS.pack(*(GOOD | changes).values())
    return fields + struct.pack("<Q", xxh3_64_intdigest(fields, UID))


def refused(reason: str, **changes: int) -> None:
    with pytest.raises(CorruptBatchError, match=reason):
        parse_header(batch_header(**changes), 0, UID)


def test_batch_header_is_read_back_field_by_field() -> None:
    header = parse_header(b"before" + batch_header() + b"behind", 6, UID)

    for name, value in header._asdict().items():
        if name not in {"sections", "header_hash"}:
            assert (name, value) == (name, GOOD[name])
    assert header.sections == ((0, 0, 1), (24, 24, 2), (0, 0, 3))
    assert (header.last_offset, header.next_offset, header.total_bytes) == (102, 103, 256)
    assert header.running_max_timestamp_ms == 5


def test_batch_magic_is_never_zero_and_sits_first() -> None:
    assert batch_header()[:4] == BATCH_MAGIC_BYTES
    assert b"\0" not in BATCH_MAGIC_BYTES
    assert SEGMENT_MAGIC[:4] != BATCH_MAGIC_BYTES


def test_every_flipped_bit_of_a_batch_header_is_damage() -> None:
    encoded = batch_header()
    for bit in range(len(encoded) * 8):
        broken = bytearray(encoded)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatchError):
            parse_header(broken, 0, UID)


def test_every_cut_of_a_batch_header_is_damage() -> None:
    encoded = batch_header()
    for length in range(BATCH_HEADER_BYTES):
        with pytest.raises(CorruptBatchError, match="cut"):
            parse_header(encoded[:length], 0, UID)
    with pytest.raises(CorruptBatchError, match="cut at 0"):
        parse_header(encoded, 1000, UID)


def test_batch_of_another_segment_is_not_a_batch_here() -> None:
    with pytest.raises(CorruptBatchError, match="checksum"):
        parse_header(batch_header(), 0, UID + 1)


def test_zeros_are_not_a_batch() -> None:
    with pytest.raises(CorruptBatchError, match="magic"):
        parse_header(bytes(4096), 64, UID)


def test_intact_batch_of_a_newer_version_is_reported_as_newer() -> None:
    longer = BATCH_FIELDS.pack(*(GOOD | {"version": 2, "header_bytes": 256}).values()) + bytes(64)
    longer += struct.pack("<Q", xxh3_64_intdigest(longer, UID))

    with pytest.raises(FormatVersionError, match="version 2"):
        parse_header(longer, 0, UID)
    with pytest.raises(FormatVersionError, match="version 3"):
        parse_header(batch_header(version=3), 0, UID)


@pytest.mark.parametrize("header_bytes", [0, 8, 191, 193, 4097, 65535])
def test_header_length_is_bounded_before_it_is_used(header_bytes: int) -> None:
    refused("checksum", header_bytes=header_bytes)


def test_unknown_codec_and_flag_are_reported_as_newer() -> None:
    with pytest.raises(FormatVersionError, match="codec 3"):
        parse_header(batch_header(codec=3), 0, UID)
    with pytest.raises(FormatVersionError, match="flags 0x1000"):
        parse_header(batch_header(flags=4096 | UNIFORM_TIMESTAMP), 0, UID)


def test_what_belongs_to_columns_needs_them() -> None:
    refused("flags of columns", flags=UNIFORM_TIMESTAMP | BOUNDS)
    refused("flags of columns", flags=UNIFORM_TIMESTAMP | TOMBSTONES)
    refused("flags of columns", flags=UNIFORM_TIMESTAMP | COLUMNS | NULL_VALUES)


def test_numbers_of_a_producer_must_make_sense() -> None:
    refused("no producer", producer_id=0, producer_epoch=0)
    refused("no producer", producer_id=0, producer_sequence=0)
    refused("no producer", producer_id=0, producer_epoch=0, producer_sequence_high=1)
    refused("number of a producer", producer_sequence=1)  # three records end at 2 or later
    refused("number of a producer", producer_sequence_high=1 << 31)


def test_a_producer_counts_beyond_32_bits() -> None:
    header = parse_header(batch_header(producer_sequence_high=7), 0, UID)

    assert (7 << 32) + (1 << 31) == header.producer_sequence
    assert batch_header(producer_sequence_high=7) == encode_header(header, UID)[0]


def test_the_time_of_a_cleaning_needs_its_flag() -> None:
    refused("cleaning", cleaned_ms=1)
    refused("cleaning", flags=UNIFORM_TIMESTAMP | CLEANED)
    cleaned = batch_header(flags=UNIFORM_TIMESTAMP | CLEANED, cleaned_ms=1)
    assert parse_header(cleaned, 0, UID).cleaned_ms == 1


def test_counts_and_offsets_must_agree() -> None:
    refused("last offset", record_count=2)
    refused("last offset", last_offset_delta=3)
    refused("no records", record_count=0)
    refused("more records than offsets", flags=OFFSET_DELTAS, record_count=4)
    refused("16777217 records", record_count=RECORD_COUNT_MAX + 1)
    refused("offsets over", base_offset=(1 << 63) - 3)
    last = parse_header(batch_header(base_offset=(1 << 63) - 4), 0, UID)
    assert last.last_offset == (1 << 63) - 2


def test_timestamps_must_agree() -> None:
    refused("minimum", min_timestamp_ms=6)
    refused("two timestamps", min_timestamp_ms=4)


def test_control_batch_holds_nothing() -> None:
    gap = {
        "flags": CONTROL,
        "record_count": 0,
        "body_bytes": 0,
        "b_stored": 0,
        "b_raw": 0,
        "min_timestamp_ms": NO_TIMESTAMP,
        "max_timestamp_ms": NO_TIMESTAMP,
    }
    assert parse_header(batch_header(**gap), 0, UID).next_offset == 103
    refused("control", **gap | {"record_count": 1})
    refused("control", **gap | {"flags": CONTROL | APPEND_TIME})
    refused("control", **gap | {"max_timestamp_ms": 5})
    refused("control", **gap | {"body_bytes": 64, "b_stored": 1, "b_raw": 1})


def test_sizes_must_agree_and_stay_below_their_limits() -> None:
    refused("body size", body_bytes=128)
    refused("body size", body_bytes=63)
    refused("body size", body_bytes=0)
    refused("stored and raw", b_stored=25)
    refused("stored and raw", b_raw=25)  # smaller than raw, but no codec
    huge = SECTION_RAW_BYTES_MAX + 8
    refused("section of", codec=CODEC_LZ4, b_raw=huge)
    refused("section of", b_raw=0xFFFF_FFFF, b_stored=0xFFFF_FFFF, body_bytes=0xFFFF_FFC0)
    half = SECTION_RAW_BYTES_MAX
    two = {"a_stored": half, "a_raw": half, "b_stored": half, "b_raw": half}
    refused("body of", body_bytes=2 * half, **two)


def test_more_records_than_bytes_can_hold_are_refused() -> None:
    many = {"record_count": 1 << 20, "last_offset_delta": (1 << 20) - 1}
    refused("more records than bytes", **many)
    refused("more records than bytes", flags=UNIFORM_TIMESTAMP | HAS_KEYS, a_raw=8, a_stored=8)


def test_flags_and_sections_must_agree() -> None:
    refused("headers", flags=UNIFORM_TIMESTAMP | HAS_HEADERS)
    refused("headers", c_stored=8, c_raw=8)
    refused("null keys", flags=UNIFORM_TIMESTAMP | NULL_KEYS)
