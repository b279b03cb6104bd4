"""Bounds of columns: no value is ever outside of them, whatever it is made of."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings, strategies as st
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

# Characters of one to four bytes, and those at the ends of each length and of all.
CHARACTERS = st.sampled_from("a\x00z\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff")
TEXTS = st.text(CHARACTERS, max_size=90)
BINARIES = st.lists(st.sampled_from([b"\xff", b"\x00", b"a", b"\xff" * 59]), max_size=70).map(
    b"".join
)


@given(TEXTS, st.text(CHARACTERS, max_size=3))
@example("\U0010ffff" * 30, "")
@example("\ud7ff" * 30, "")
def test_bounds_of_a_text_are_texts_around_it_and_all_that_begins_alike(
    text: str, more: str
) -> None:
    value = text.encode()
    low, high = lower_bound(value, text=True), upper_bound(value, text=True)
    assert low.decode() <= text
    assert len(low) <= BOUND_BYTES_MAX
    if high is None:
        assert set(low.decode()) == {"\U0010ffff"}
        return
    assert high.decode() >= text
    assert len(high) <= BOUND_BYTES_MAX
    if len(value) <= BOUND_BYTES_MAX:
        assert low == high == value
    else:
        assert high > value + more.encode()


@given(BINARIES)
@example(b"\xff" * 80)
def test_bounds_of_bytes_are_around_them(value: bytes) -> None:
    low, high = lower_bound(value, text=False), upper_bound(value, text=False)
    assert low <= value
    assert len(low) <= BOUND_BYTES_MAX
    assert high is None or (high >= value and len(high) <= BOUND_BYTES_MAX)
    assert high is not None or not low.strip(b"\xff")


def header(rows: int, flags: int) -> BatchHeader:
    """Of a batch of which only this is looked at."""
    blank = BatchHeader._make([0] * len(BatchHeader._fields))
    return blank._replace(last_offset_delta=rows - 1, record_count=rows, flags=flags)


def directory_of(section: ColumnSection) -> Directory:
    return open_directory(section.stored, section.hash)


FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324]),
    st.floats(width=32),
)
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.binary(), BINARIES),
    (pa.large_binary(), BINARIES),
    (pa.uint64(), st.integers(0, (1 << 64) - 1)),
    (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    (pa.float64(), FLOATS),
    (pa.float32(), FLOATS),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind[0]))
@pytest.mark.parametrize("compression", ["none", "lz4"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_batch_is_left_out_only_if_no_row_of_it_is_wanted(
    kind: tuple[Any, st.SearchStrategy[Any]], compression: str, data: st.DataObject
) -> None:
    arrow_type, values = kind
    few = data.draw(st.lists(st.one_of(st.none(), values), min_size=1, max_size=6))
    times = 2000 if compression == "lz4" else 300  # as many as a dictionary needs
    column = pa.array([few[n % len(few)] for n in range(times)], arrow_type)
    batch = pa.record_batch({"x": column})
    section = encode_columns(batch, CODEC_BY_NAME[compression])
    directory = directory_of(section)
    found = read_column(directory, 0, stored(section, directory), times)
    assert repr(found.to_pylist()) == repr(column.to_pylist())
    asked = pa.scalar(
        data.draw(st.one_of(st.sampled_from(few), values).filter(present)), arrow_type
    )
    x = field("x")
    conditions = [x == asked, x != asked, x < asked, x <= asked, x > asked, x >= asked]
    more = [x.is_null(), x.is_valid(), x.isin(pa.array([asked.as_py()], arrow_type)), ~(x < asked)]
    for where in [*conditions, *more]:
        rows = batch.filter(where).num_rows
        wanted = BatchFilter(where, batch.schema).may_hold(
            BatchFacts("t", 0, header(times, 0), None, directory)
        )
        assert wanted or not rows, str(where)


def present(value: object) -> bool:
    return value is not None


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
