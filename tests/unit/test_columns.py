"""Columns: the raw buffers of Arrow's Binary type, and nothing outside its section is touched."""

from __future__ import annotations

from struct import pack

import pytest

from millstream.columns import (
    JoinedBytes,
    decode_binary,
    decode_bitmap,
    decode_offsets,
    encode_binary,
    encode_bitmap,
    padded,
    rising,
)
from millstream.errors import CorruptBatchError, UsageError


def test_column_is_offsets_then_bytes_each_padded_to_eight() -> None:
    section, has_bitmap = encode_binary([b"abc", b"", b"de"], "values")

    assert section == pack("<4i", 0, 3, 3, 5) + b"abcde\0\0\0"
    assert not has_bitmap


def test_nulls_add_a_bitmap_with_the_lowest_bit_first() -> None:
    section, has_bitmap = encode_binary([b"a", None, b"b"], "values")

    assert section == pack("<4i", 0, 1, 1, 2) + b"ab" + bytes(6) + b"\x05" + bytes(7)
    assert has_bitmap


def test_bitmap_can_be_asked_for() -> None:
    section, has_bitmap = encode_binary([b"a", b"b"], "values", bitmap=True)

    assert section[-8:] == b"\x03" + bytes(7)
    assert has_bitmap
    assert encode_binary([], "values", bitmap=True) == (bytes(8), False)


def test_column_can_stand_behind_other_buffers() -> None:
    section, _ = encode_binary([b"a", None], "values", b"8 before")

    values, end = decode_binary(section, 8, 2, nullable=True)

    assert (values, end) == ([b"a", None], len(section))


def test_empty_column_is_one_offset() -> None:
    assert decode_binary(bytes(8), 0, 0, nullable=False) == ([], 8)
    assert decode_binary(bytes(8), 0, 0, nullable=True) == ([], 8)


def test_column_that_ends_behind_its_section_is_damage() -> None:
    section, _ = encode_binary([b"abcdefgh"], "values")

    for length in range(len(section)):
        with pytest.raises(CorruptBatchError, match=r"section"):
            decode_binary(section[:length], 0, 1, nullable=False)
    with pytest.raises(CorruptBatchError, match="bitmap"):
        decode_binary(section, 0, 1, nullable=True)


def test_offsets_are_checked() -> None:
    assert decode_offsets(pack("<2i", 0, 7), 0, 1) == ((0, 7), 8)
    for wrong in ((1, 7), (0, -1), (-1, 0)):
        with pytest.raises(CorruptBatchError, match="zero"):
            decode_offsets(pack("<2i", *wrong), 0, 1)
    with pytest.raises(CorruptBatchError, match="past"):
        decode_offsets(bytes(8), 0, 2)
    with pytest.raises(CorruptBatchError, match="past"):
        decode_offsets(bytes(8), 0, 1 << 24)


def test_offsets_that_fall_are_damage() -> None:
    assert rising((0, 1, 1, 2)) == [0, 1, 1, 2]
    with pytest.raises(CorruptBatchError, match="fall"):
        rising((0, 2, 1, 2))


def test_bits_behind_the_last_entry_are_ignored() -> None:
    assert decode_bitmap(b"\xfd" + bytes(7), 0, 3) == b"\1\0\1"
    assert encode_bitmap(b"") == b""


def test_unreadable_buffer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"values\[0\]"):
        encode_binary([memoryview(b"abcd")[::2]], "values")  # type: ignore[list-item]


def test_padding_is_to_the_next_eight() -> None:
    assert [padded(length) for length in (0, 1, 7, 8, 9)] == [0, 8, 8, 8, 16]


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"bcd"], [b"wide"] * 40, [b""] * 40])
@pytest.mark.parametrize("bitmap", [False, True])
def test_joined_bytes_are_encoded_as_a_list_of_them_is(values: list[bytes], bitmap: bool) -> None:
    half = len(values) // 2
    joined = JoinedBytes(values[:half])
    joined.extend(values[half:])

    expected = encode_binary(values, "values", b"8 before", bitmap=bitmap)
    assert expected == encode_binary(joined, "values", b"8 before", bitmap=bitmap)
    assert values == list(joined)


def test_joined_bytes_can_be_indexed_in_any_order_and_cut() -> None:
    values = [b"a", b"", b"bcd", b"ef"]
    joined = JoinedBytes(values)

    assert values[::-1] == [joined[index] for index in (3, 2, 1, 0)]
    assert values[-1] == joined[-1]
    with pytest.raises(IndexError):
        joined[4]
    for start in range(5):
        for stop in range(5):
            part = joined[start:stop]
            assert values[start:stop] == list(part)
            assert sum(map(len, values[start:stop])) == part.size_bytes
    with pytest.raises(ValueError, match="step 1"):
        joined[::2]


def test_joined_bytes_know_what_is_in_them() -> None:
    joined = JoinedBytes([b"a", b"bc"])

    assert b"bc" in joined
    assert b"ab" not in joined
    assert None not in joined


@pytest.mark.parametrize("wrong", [None, "text", 7, memoryview(pack("<2i", 1, 2)).cast("i")])
def test_joined_bytes_refuse_all_of_what_is_no_bytes_in_part(wrong: object) -> None:
    joined = JoinedBytes([b"a"])

    with pytest.raises(TypeError):
        joined.extend([b"b", wrong])  # type: ignore[list-item]

    assert (1, [b"a"], 1) == (len(joined), list(joined), joined.size_bytes)
