"""Batches under random input: records come back, and bytes from disk raise typed errors only."""

from __future__ import annotations

import tracemalloc
from typing import NamedTuple

from hypothesis import given, settings, strategies as st
from xxhash import xxh3_64_intdigest

from millstream.batch import (
    BatchPlacement,
    RecordBatch,
    buffers,
    decode_batch,
    encode_batch,
    parse_header,
    seal,
)
from millstream.columns import decode_binary, decode_bitmap, encode_binary, encode_bitmap
from millstream.compression import decompress
from millstream.errors import DataError
from millstream.format import (
    BATCH_FIELDS,
    INT64_MAX,
    INT64_MIN,
    NO_TIMESTAMP,
    parse_segment_header,
)
from millstream.index import SparseIndex
from millstream.record import Headers
from millstream.retained_batch import encode_retained

UID = 0xDEAD_BEEF
PLACEMENT = BatchPlacement(
    segment_uid=UID,
    partition_uid=7,
    base_offset=1 << 40,
    append_timestamp_ms=123,
    previous_hash=5,
    durable_offset=900,
    sequence=4,
    transaction_id=0,
    prior_max_timestamp_ms=NO_TIMESTAMP,
)


class Columns(NamedTuple):
    values: list[bytes | None]
    keys: list[bytes | None] | None
    timestamps_ms: list[int] | None
    headers: list[Headers] | None


entries = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.sampled_from([b"", b"same", b"long " * 40]),
)
timestamps = st.one_of(
    st.integers(INT64_MIN + 1, INT64_MAX), st.integers(0, 3), st.just(1_700_000_000_000)
)
pairs = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), entries), max_size=3
)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    """Any columns a caller may pass."""
    count = draw(st.one_of(st.integers(1, 10), st.integers(30, 140)))

    def column(element: st.SearchStrategy[object]) -> list[object]:
        if draw(st.booleans()):
            return [draw(element)] * count
        return draw(st.lists(element, min_size=count, max_size=count))

    return Columns(
        column(entries),  # type: ignore[arg-type]
        column(entries) if draw(st.booleans()) else None,  # type: ignore[arg-type]
        column(timestamps) if draw(st.booleans()) else None,  # type: ignore[arg-type]
        column(pairs) if draw(st.booleans()) else None,  # type: ignore[arg-type]
    )


codecs = st.sampled_from([0, 1, 2])


def on_disk(given_columns: Columns, codec: int) -> bytes:
    encoded = encode_batch(*given_columns, codec=codec)
    return b"".join(buffers(encoded, seal(encoded, PLACEMENT)[0]))


def read(content: bytes) -> RecordBatch:
    header = parse_header(content, 0, UID)
    return decode_batch("t", 0, header, content[192 : header.total_bytes])


def rows(batch: RecordBatch) -> list[tuple[object, ...]]:
    return [
        (record.offset, record.timestamp_ms, record.key, record.value, record.headers)
        for record in batch.records()
    ]


@given(columns(), codecs)
@settings(max_examples=120)
def test_any_records_come_back(given_columns: Columns, codec: int) -> None:
    batch = read(on_disk(given_columns, codec))

    values, keys, stamps, headers = given_columns
    count = len(values)
    assert batch.values == values
    assert batch.keys == (keys or [None] * count)
    assert batch.timestamps_ms == (stamps or [123] * count)
    assert batch.headers == [tuple(each) for each in headers or [()] * count]
    assert batch.header.min_timestamp_ms == min(batch.timestamps_ms)
    assert batch.header.max_timestamp_ms == max(batch.timestamps_ms)
    assert rows(batch) == list(
        zip(batch.offsets, batch.timestamps_ms, batch.keys, values, batch.headers, strict=True)
    )


@given(columns(), codecs, st.data())
@settings(max_examples=100)
def test_any_slice_of_any_slice_is_the_slice_of_the_list(
    given_columns: Columns, codec: int, data: st.DataObject
) -> None:
    batch = read(on_disk(given_columns, codec))
    expected = rows(batch)
    for _ in range(3):
        start = data.draw(st.integers(0, len(expected)))
        stop = data.draw(st.integers(start, len(expected)))
        batch, expected = batch.slice(start, stop), expected[start:stop]
        assert rows(batch) == expected


@given(columns(), codecs, st.data())
@settings(max_examples=70)
def test_any_retained_records_keep_all_but_their_neighbours(
    given_columns: Columns, codec: int, data: st.DataObject
) -> None:
    original = read(on_disk(given_columns, codec))
    keep = sorted(data.draw(st.sets(st.integers(0, original.record_count - 1))))

    encoded = encode_retained(original, keep, codec=codec)
    batch = read(b"".join(buffers(encoded, seal(encoded, PLACEMENT)[0])))

    expected = rows(original)
    assert rows(batch) == [expected[index] for index in keep]
    assert (batch.base_offset, batch.last_offset) == (original.base_offset, original.last_offset)


@given(columns(), codecs, st.data())
@settings(max_examples=150)
def test_any_flipped_bit_is_found(given_columns: Columns, codec: int, data: st.DataObject) -> None:
    content = bytearray(on_disk(given_columns, codec))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8

    try:
        read(bytes(content))
    except DataError:
        return
    raise AssertionError(f"flipped bit {bit} was not found")


@given(columns(), codecs, st.data())
@settings(max_examples=70)
def test_any_cut_is_found(given_columns: Columns, codec: int, data: st.DataObject) -> None:
    content = on_disk(given_columns, codec)
    length = data.draw(st.integers(0, len(content) - 1))

    try:
        read(content[:length])
    except DataError:
        return
    raise AssertionError(f"cut at {length} was not found")


@given(st.binary(max_size=600), st.integers(0, 600))
@settings(max_examples=200)
def test_random_bytes_raise_typed_errors_only(content: bytes, position: int) -> None:
    for parse in (
        lambda: parse_header(content, position, UID),
        lambda: parse_segment_header(content),
        lambda: SparseIndex.decode(content, UID),
        lambda: decompress(1, content, position),
        lambda: decompress(2, content, position),
    ):
        try:
            parse()
        except DataError:
            continue


def read_everything(content: bytes) -> None:
    """Decode all there is, although no hash of a section was verified."""
    header = parse_header(content, 0, UID)
    batch = decode_batch("t", 0, header, content[192 : header.total_bytes], verified=True)
    assert len(batch.records()) == batch.record_count
    assert len(batch.offsets) == len(batch.headers) == batch.record_count


hostile = st.sampled_from([0, 1, 2, 3, 8, 64, 128, 192, 255, 1 << 16, (1 << 31) - 1, 1 << 31])


@given(columns(), codecs, st.dictionaries(st.integers(1, 32), hostile, min_size=1, max_size=3))
@settings(max_examples=200)
def test_any_header_of_a_mad_writer_raises_typed_errors_only(
    given_columns: Columns, codec: int, changes: dict[int, int]
) -> None:
    """Some fields hold anything, and the hash is right."""
    content = on_disk(given_columns, codec)
    fields = list(BATCH_FIELDS.unpack_from(content))
    for number, value in changes.items():
        fields[number] = value % 256 if number < 3 else value % 65536 if number == 3 else value
    packed = BATCH_FIELDS.pack(*fields)
    seal_bytes = xxh3_64_intdigest(packed, UID).to_bytes(8, "little")
    try:
        read_everything(packed + seal_bytes + content[192:])
    except DataError:
        return


@given(columns(), codecs, st.data())
@settings(max_examples=200)
def test_any_body_of_a_mad_writer_raises_typed_errors_only(
    given_columns: Columns, codec: int, data: st.DataObject
) -> None:
    """Some bytes hold anything, and nobody compares hashes."""
    content = bytearray(on_disk(given_columns, codec))
    if len(content) > 192:
        for _ in range(data.draw(st.integers(1, 4))):
            # The small integers at the start of a column are where it hurts.
            position = data.draw(st.integers(192, min(len(content) - 1, 260)))
            content[position] = data.draw(st.sampled_from([0, 1, 2, 7, 127, 128, 255]))
    try:
        read_everything(bytes(content))
    except DataError:
        return


@given(
    st.binary(max_size=128),
    st.integers(0, 20).map(lambda words: 8 * words),
    st.sampled_from([0, 1, 2, 3, 15, 32, 1000, 1 << 24]),
    st.booleans(),
)
@settings(max_examples=200)
def test_any_column_is_decoded_whole_or_refused(
    section: bytes, position: int, count: int, nullable: bool
) -> None:
    tracemalloc.start()
    try:
        decoded, end = decode_binary(section, position, count, nullable=nullable)
    except DataError:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20
    assert len(decoded) == count
    assert end <= len(section)
    again, _ = encode_binary(decoded, "values", section[:position], bitmap=nullable)
    if None not in decoded:
        # Only padding and unused bits of the bitmap may differ.
        assert decode_binary(again, position, count, nullable=nullable) == (decoded, end)


@given(st.lists(st.integers(0, 1), max_size=100))
def test_any_bitmap_comes_back(bits: list[int]) -> None:
    valid = bytes(bits)
    bitmap = encode_bitmap(valid)

    assert len(bitmap) == -(-len(bits) // 8)
    assert [bitmap[index // 8] >> index % 8 & 1 for index in range(len(bits))] == bits
    assert decode_bitmap(bitmap + bytes(-len(bitmap) % 8), 0, len(bits)) == valid
