"""Checking columns says the same as decoding them, whatever the bytes are."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st

from millstream.batch import (
    BatchPlacement,
    buffers,
    decode_batch,
    encode_batch,
    encode_gap,
    parse_header,
    seal,
    verify_body,
)
from millstream.column_checks import check_columns
from millstream.errors import CorruptBatchError, DataError
from millstream.format import CODEC_BY_NAME, NO_TIMESTAMP, BatchHeader, Section
from millstream.retained_batch import encode_retained

UID = 99
PLACEMENT = BatchPlacement(UID, 1, 0, 5, 0, 0, 1, 0, NO_TIMESTAMP)

entries = st.one_of(st.none(), st.binary(max_size=9), st.sampled_from([b"", b"even", b"w" * 70]))
times = st.integers(-(1 << 63) + 1, (1 << 63) - 1) | st.integers(1_700_000_000_000, 1 << 41)
names = st.sampled_from(["", "name", "n\u00e4m\u00e9", "\u65e5"])


def sealed(encoded: Any) -> tuple[BatchHeader, bytes]:
    header, _ = seal(encoded, PLACEMENT)
    content = b"".join(buffers(encoded, header))
    return parse_header(content, 0, UID), content[192:]


@st.composite
def batches(draw: st.DrawFn) -> tuple[BatchHeader, bytes]:
    count = draw(st.integers(1, 9))

    def column(element: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(element, min_size=count, max_size=count))

    encoded = encode_batch(
        column(entries),
        column(entries) if draw(st.booleans()) else None,
        column(times) if draw(st.booleans()) else None,
        column(st.lists(st.tuples(names, entries), max_size=2)) if draw(st.booleans()) else None,
        codec=draw(st.sampled_from(sorted(CODEC_BY_NAME.values()))),
    )
    if draw(st.booleans()):
        header, body = sealed(encoded)
        keep = draw(st.lists(st.integers(0, count - 1), unique=True))
        encoded = encode_retained(decode_batch("t", 0, header, body), sorted(keep))
    return sealed(encoded)


def decoded(header: BatchHeader, body: bytes) -> bool:
    """Whether every record of the batch can be read, with the timestamps its header says."""
    try:
        batch = decode_batch("t", 0, header, body, verified=True)
        times_ms = batch.timestamps_ms  # a section of which nothing is needed is looked at too
        batch.records()
    except DataError:
        return False
    return all(
        header.min_timestamp_ms <= time_ms <= header.max_timestamp_ms for time_ms in times_ms
    )


def checked(header: BatchHeader, body: bytes) -> bool:
    try:
        check_columns(header, body)
    except DataError:
        return False
    return True


@given(batches())
def test_what_was_encoded_passes(batch: tuple[BatchHeader, bytes]) -> None:
    verify_body(*batch)
    assert checked(*batch)
    assert decoded(*batch)


@settings(max_examples=100)
@given(batches(), st.data())
def test_changed_bytes_pass_if_and_only_if_they_decode(
    batch: tuple[BatchHeader, bytes], data: st.DataObject
) -> None:
    """As if a writer had made them: with hashes that are right."""
    header, body = batch
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        if changed:
            position = data.draw(st.integers(0, len(changed) - 1))
            changed[position] = data.draw(st.integers(0, 255))
    assert decoded(header, bytes(changed)) == checked(header, bytes(changed))


@settings(max_examples=100)
@given(batches(), st.data())
def test_changed_sizes_pass_if_and_only_if_they_decode(
    batch: tuple[BatchHeader, bytes], data: st.DataObject
) -> None:
    header, body = batch
    assume(header.record_count)
    number = data.draw(st.integers(0, 2))
    section = header.sections[number]
    stored = max(0, section.stored_bytes + data.draw(st.integers(-9, 9)))
    raw = stored if section.stored_bytes == section.raw_bytes else section.raw_bytes
    sections = list(header.sections)
    sections[number] = Section(stored, raw, 0)
    count = max(1, header.record_count + data.draw(st.integers(-2, 2)))
    a, b, c = sections
    changed = header._replace(sections=(a, b, c), record_count=count)
    assert decoded(changed, body) == checked(changed, body)


def test_a_gap_has_no_columns() -> None:
    assert checked(*sealed(encode_gap(7)))


@pytest.mark.parametrize("count", [16_383, 16_384, 16_385, 40_000])
def test_long_columns_are_checked_to_their_end(count: int) -> None:
    random = Random(count)
    header, body = sealed(
        encode_batch(
            [b"v" * random.randrange(3) for _ in range(count)],
            timestamps_ms=[random.randrange(10, 1 << 40) for _ in range(count)],
        )
    )
    assert checked(header, body)
    a, b, _ = header.sections
    places = [0, 16_382, 16_383, 16_384, count - 1, count]
    for entry in (each for each in places if each <= count):
        changed = bytearray(body)
        position = a.stored_bytes + 4 * entry
        low = int.from_bytes(changed[position - 4 : position], "little") if entry else 0
        changed[position : position + 4] = (low - 1 & 0xFFFF_FFFF).to_bytes(4, "little")
        with pytest.raises(CorruptBatchError):
            check_columns(header, bytes(changed))
        for wrong in (header.min_timestamp_ms - 1, header.max_timestamp_ms + 1, -1, 1 << 62):
            if entry < count:
                changed = bytearray(body)
                changed[8 * entry : 8 * entry + 8] = wrong.to_bytes(8, "little", signed=True)
                with pytest.raises(CorruptBatchError, match="timestamps"):
                    check_columns(header, bytes(changed))
    assert b.stored_bytes > 4 * count


def test_a_name_is_cut_inside_a_character() -> None:
    """The column as a whole is UTF-8, its entries are not."""
    header, body = sealed(encode_batch([b""], headers=[(("\u00e4", b""), ("", b""))]))
    changed = bytearray(body)
    at = bytes(changed).index((2).to_bytes(4, "little") * 2)
    changed[at : at + 4] = (1).to_bytes(4, "little")
    assert not decoded(header, bytes(changed))
    assert not checked(header, bytes(changed))
