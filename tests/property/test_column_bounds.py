"""Bounds of columns: no value is ever outside of them, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.compute import field

import millstream
from millstream import CorruptBatchError
from millstream.arrow_columns import encode_columns, read_column
from millstream.batch_facts import BatchFacts
from millstream.batch_filter import BatchFilter
from millstream.column_bounds import BOUND_BYTES_MAX, lower_bound, upper_bound
from millstream.column_section import (
    Chunk,
    ColumnSection,
    Directory,
    encode_section,
    open_directory,
    pack,
    recompress,
)
from millstream.format import BOUNDS, CODEC_BY_NAME, BatchHeader

# Of one to four bytes, and those at the ends of each length and of all.
CHARACTERS = "a\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
LAST = "\U0010ffff"


def long_texts() -> Iterator[str]:
    """Texts that are cut at each byte of each character, behind and before each other."""
    for before, one, other, fill in product(range(4), CHARACTERS, CHARACTERS, f"z{LAST}"):
        for width in (0, 52, 56):
            yield "x" * before + one * (width // len(one.encode())) + other * 3 + fill * 20


def test_long_texts_are_cut_between_characters() -> None:
    for text in long_texts():
        value = text.encode()
        assert len(value) > BOUND_BYTES_MAX or lower_bound(value, text=True) == value
        if len(value) > BOUND_BYTES_MAX:
            assert lower_bound(value, text=True) == value[:60].decode(errors="ignore").encode()


def test_the_upper_bound_of_a_long_text_is_the_next_text_that_begins_otherwise() -> None:
    for text in long_texts():
        value = text.encode()
        high = upper_bound(value, text=True)
        if len(value) <= BOUND_BYTES_MAX:
            assert high == value
            continue
        low = lower_bound(value, text=True).decode()
        if high is None:
            assert set(low) == {LAST}
            continue
        assert len(high) <= BOUND_BYTES_MAX
        raised = high.decode()
        before = 0xD7FF if raised[-1] == "\ue000" else ord(raised[-1]) - 1
        assert low.rstrip(LAST) == raised[:-1] + chr(before)


@pytest.mark.parametrize("text", [True, False])
def test_values_of_up_to_64_bytes_are_their_own_bounds(*, text: bool) -> None:
    for bytes_ in (0, 1, 59, 60, 61, 63, 64):
        value = b"x" * bytes_
        assert lower_bound(value, text=text) == upper_bound(value, text=text) == value
    assert lower_bound(b"x" * 65, text=text) == b"x" * 60
    assert upper_bound(b"x" * 65, text=text) == b"x" * 59 + b"y"
    assert lower_bound(LAST.encode() * 30, text=True) == LAST.encode() * 15
    assert upper_bound(LAST.encode() * 30, text=True) is None
    assert lower_bound(b"\x80" * 65, text=False) == b"\x80" * 60


def test_bounds_of_bytes_are_the_next_that_begin_otherwise() -> None:
    for lead, last, ends in product((b"", b"\x00", b"\x80", b"\xfe"), range(256), range(59)):
        value = (lead + bytes([last]) + b"\xff" * ends).ljust(66, b"\xff")
        low, high = lower_bound(value, text=False), upper_bound(value, text=False)
        assert low == value[:60]
        kept = low.rstrip(b"\xff")
        assert high == (kept[:-1] + bytes([kept[-1] + 1]) if kept else None)


def header(rows: int, flags: int) -> BatchHeader:
    """Of a batch of which only this is looked at."""
    blank = BatchHeader._make([0] * len(BatchHeader._fields))
    return blank._replace(last_offset_delta=rows - 1, record_count=rows, flags=flags)


def directory_of(section: ColumnSection) -> Directory:
    return open_directory(section.stored, section.hash)


INF, NAN = float("inf"), float("nan")
LONG = "\u00e9" * 31
KINDS: list[tuple[Any, list[Any]]] = [  # what is below all, two values, what is above them
    (pa.string(), ["", "a", "b\ud7ff", LAST]),
    (pa.string(), ["\u00e9" * 29, LONG + "aaa", LONG + "bbb", "\u00e9" * 29 + "\u00eb"]),
    (pa.large_string(), ["a" * 59, "a" * 65, "a" * 58 + "zz" * 9, "b"]),
    (pa.binary(), [b"\x00", b"\xff" * 59 + b"\x00" * 9, b"\xff" * 64, b"\xff" * 80]),
    (pa.large_binary(), [b"", b"\x00", b"\x00" * 80, b"\x01"]),
    (pa.uint64(), [0, (1 << 53) + 1, (1 << 63) + 1, (1 << 64) - 1]),
    (pa.int64(), [-(1 << 63), -(1 << 53) - 1, (1 << 53) + 1, (1 << 63) - 1]),
    (pa.float64(), [-INF, -0.0, 5e-324, INF]),
    (pa.float32(), [-INF, -1.5, 0.0, INF]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_batch_is_left_out_only_if_no_row_of_it_is_wanted(
    kind: tuple[Any, list[Any]], compression: str
) -> None:
    arrow_type, (below, low, high, above) = kind
    for few in ([low, high], [high], [low, None]):
        x, (may_hold, bounded) = field("x"), judge(few, arrow_type, compression)
        # Of texts without a dictionary there may be no bounds.
        plain = compression == "none" or "large" in str(arrow_type)
        assert bounded or (plain and not isinstance(low, int | float))
        present = [value for value in few if value is not None]
        assert may_hold(x.is_valid())
        assert may_hold(x.is_null()) == (None in few or not bounded)
        for value in present:
            asked = pa.scalar(value, arrow_type)
            assert all(map(may_hold, [x == asked, x <= asked, x >= asked, x.isin([asked])]))
        first, last = (pa.scalar(value, arrow_type) for value in (present[0], present[-1]))
        assert may_hold(x < last) or len(present) == 1
        assert may_hold(x > first) or len(present) == 1
        under, over = (pa.scalar(value, arrow_type) for value in (below, above))
        assert all(map(may_hold, [x > under, x < over, x != under, ~(x < under)]))
        outside = [x < under, x <= under, x == under, x > over, x == over]
        assert not any(map(may_hold, outside)) or not bounded


def test_a_batch_with_nan_has_no_bounds() -> None:
    may_hold, bounded = judge([1.0, NAN], pa.float64(), "none")
    assert not bounded
    assert all(map(may_hold, [field("x") < 0.0, field("x") > 2.0, ~(field("x") < 2.0)]))


def judge(few: list[Any], arrow_type: Any, compression: str) -> tuple[Callable[[Any], bool], bool]:
    """What is said of conditions about a batch of these values, and whether it has bounds."""
    times = 2000 if compression == "lz4" else 300  # as many as a dictionary needs
    column = pa.array([few[n % len(few)] for n in range(times)], arrow_type)
    batch = pa.record_batch({"x": column})
    section = encode_columns(batch, CODEC_BY_NAME[compression])
    directory = directory_of(section)
    found = read_column(directory, 0, stored(section, directory), times)
    assert repr(found.to_pylist()) == repr(column.to_pylist())
    facts = BatchFacts("t", 0, header(times, 0), None, directory)
    bounded = directory.limits(0) is not None
    return lambda where: BatchFilter(where, batch.schema).may_hold(facts), bounded


def stored(section: ColumnSection, directory: Directory) -> bytes:
    entry = directory.entries[0]
    return section.stored[entry.position : entry.position + entry.stored_bytes]


@pytest.mark.parametrize("codec", [0, 1, 2])
def test_bounds_stay_when_a_batch_is_compressed_anew(codec: int) -> None:
    batch = pa.record_batch(
        {
            "long": ["\u00e9" * 40 + f"{n:03}" for n in range(300)],
            "big": pa.array([(1 << 63) + n for n in range(300)], pa.uint64()),
            "n": range(300),
        }
    )
    section = encode_columns(batch, 0)
    again = recompress(section.stored, section.hash, codec)
    assert section.flags == again.flags == BOUNDS
    limits = [directory_of(section).limits(number) for number in range(3)]
    assert limits == [directory_of(again).limits(number) for number in range(3)]
    low = "\u00e9" * 30
    assert limits[0] == (low.encode(), (low[:-1] + "\u00ea").encode())
    assert limits[1:] == [(1 << 63, (1 << 63) + 299), (0, 299)]


def test_small_batches_and_numbers_alone_need_no_newer_reader() -> None:
    batch = pa.record_batch(
        {"text": ["a"] * 255, "small": pa.array([1] * 255, pa.uint64()), "f": [1.5] * 255}
    )
    section = encode_columns(batch, 0)
    assert section.flags == 0
    assert [directory_of(section).limits(n) for n in range(3)] == [None, (1, 1), (1.5, 1.5)]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ((b"b", b"a"), "impossible bounds"),
        ((b"", b"a" * 65), "impossible bounds"),
    ],
)
def test_bounds_that_cannot_be_are_damage(limits: tuple[bytes, bytes], reason: str) -> None:
    section = encode_section(b"schema", [pack(Chunk((b"chunk",), 0, limits), 0)])
    with pytest.raises(CorruptBatchError, match=reason):
        directory_of(section)


def test_bounds_that_are_no_text_are_damage_to_who_looks_at_them() -> None:
    schema = pa.schema([("x", pa.string())])
    section = encode_section(
        bytes(schema.serialize()), [pack(Chunk((b"chunk",), 0, (b"\xff", b"\xff")), 0)]
    )
    where = BatchFilter(field("x") == "a", schema)
    with pytest.raises(CorruptBatchError, match="bounds of column 'x'"):
        where.may_hold(BatchFacts("t", 0, header(300, BOUNDS), None, directory_of(section)))


def test_the_flag_is_on_disk_where_newer_bounds_are() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("t", schema=pa.schema([("text", pa.string())]))
        store.append_columns("t", {"text": ["a"] * 300})
        store.append_columns("t", {"text": ["a"]})
        flags = [batch.header.flags & BOUNDS for batch in store.read("t").batches()]
    assert flags == [BOUNDS, 0]
