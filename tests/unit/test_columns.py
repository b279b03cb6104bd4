"""Columns: the raw buffers of Arrow's Binary type, and nothing outside its section is touched."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, strategies as st

from millstream.columns import (
    decode_binary,
    decode_bitmap,
    decode_joined,
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


def test_entries_put_together_come_with_where_they_begin() -> None:
    section, _ = encode_binary([b"a", b"bcd", b"ef"], "values")

    assert (b"abcdef", [0, 1, 4, 6]) == _joined(section, 3)


@pytest.mark.parametrize("entries", [[b""], [b"a", b"", b"b"], [b"a", b""], [b"", b"a"]])
def test_entries_are_not_put_together_where_one_is_empty(entries: list[bytes]) -> None:
    section, _ = encode_binary(entries, "values")

    assert decode_joined(section, len(entries)) is None


# Steps of every size, forwards and backwards, those included that only just fit an int32.
places = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.integers(0, 3), st.sampled_from([2**31 - 2, 2**31 - 1])
)


@given(st.lists(places, min_size=1, max_size=6), st.booleans())
def test_whatever_the_offsets_say_they_are_checked(offsets: list[int], rise: bool) -> None:
    offsets = [0, *(sorted(offsets) if rise else offsets)]
    count = len(offsets) - 1
    section = pack(f"<{count + 1}i", *offsets) + bytes(-4 * (count + 1) & 7) + b"12345678"
    if offsets != sorted(offsets) or not 0 < offsets[-1] <= 8:
        with pytest.raises(CorruptBatchError):
            decode_joined(section, count)
    elif len(set(offsets)) < len(offsets):
        assert decode_joined(section, count) is None
    else:
        assert (b"12345678"[: offsets[-1]], offsets) == _joined(section, count)


def _joined(section: bytes, count: int) -> tuple[bytes, list[int]] | None:
    found = decode_joined(section, count)
    return None if found is None else (found[0], [*found[1]])
