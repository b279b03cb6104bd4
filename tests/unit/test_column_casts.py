"""Columns of other types than the schema has are taken where no value becomes another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest

import millstream
from millstream import Store, UsageError
from millstream.column_casts import cast_exactly

NOON = datetime(2024, 5, 1, 12, 0, 0, 123_456, UTC)
MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
UTC_US, NO_ZONE = pa.timestamp("us", "UTC"), pa.timestamp("us")
REQUIRED = pa.field("item", pa.int64(), nullable=False)
LOOSE, STRICT = pa.struct([("a", pa.int64())]), pa.struct([REQUIRED.with_name("a")])
TWO = pa.struct([("a", pa.string()), ("b", pa.int64())])
UNSIGNED, DAY = pa.struct([("a", pa.uint64())]), date(2024, 5, 1)
LOOSER = pa.struct([("a", pa.list_(pa.int8()))])
DEEP = pa.list_(pa.struct([("a", pa.list_(REQUIRED))]))


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open() as opened:
        yield opened


def created(store: Store, kind: Any) -> Store:
    store.create_topic("t", schema=pa.schema([("x", kind)]))
    return store


def read(store: Store) -> list[Any]:
    return store.read("t").arrow(["x"]).read_all()["x"].to_pylist()  # type: ignore[no-any-return]


def of(*values: Any, kind: Any = None) -> Any:
    return pa.array(values, kind)


LOST: list[tuple[Any, Any, str]] = [
    (of(2, 0, None), pa.bool_(), "values would become others"),
    (of(0.5), pa.bool_(), "values would become others"),
    (of(1.5), pa.int64(), "truncated"),
    (of(1 << 40), pa.int32(), "not in range"),
    (of((1 << 53) + 1), pa.float64(), "not in range"),
    (of(1e300, None), pa.float32(), "values would become others"),
    (of(Decimal("1.5")), pa.int64(), "data loss"),
    (of(NOON, None), pa.date32(), "values would become others"),
    (of(NOON), pa.timestamp("ms", "UTC"), "would lose data"),
    (of(NOON), NO_ZONE, "its zone would be lost"),
    (of(NAIVE), UTC_US, "times without a zone; say which it is"),
    (of(date(2024, 5, 1)), UTC_US, "times without a zone"),
    (of(NOON), pa.int64(), "its unit would be lost"),
    (of(date(2024, 5, 1)), pa.int32(), "its unit would be lost"),
    (of(timedelta(1)), pa.int64(), "its unit would be lost"),
    (of(time(1)), pa.int64(), "its unit would be lost"),
    (of({"a": 1, "b": 2}), LOOSE, "no such field: 'b'"),
    (
        of([[1], None], [[2]], kind=pa.list_(pa.list_view(pa.int64()))),
        pa.list_(pa.list_(pa.int64())),
        "view of lists",
    ),
    (of([1, None]), pa.list_(REQUIRED), "nulls inside"),
    (of([1, None], kind=pa.list_(REQUIRED)), pa.list_(REQUIRED), "nulls inside"),
    (of({"a": None}, None, kind=LOOSE), STRICT, "nulls"),
    (of({"a": None}, kind=STRICT), STRICT, "nulls inside"),
    (of([{"a": [None]}], kind=DEEP), DEEP, "nulls inside"),
    (of(b"\xff"), pa.string(), "UTF8"),
]


@pytest.mark.parametrize(
    ("array", "kind", "reason"), LOST, ids=[str(number) for number in range(len(LOST))]
)
def test_what_would_be_lost_is_refused(store: Store, array: Any, kind: Any, reason: str) -> None:
    created(store, kind)
    with pytest.raises(UsageError, match=rf"~ x: .* is not .*{reason}"):
        store.append_arrow("t", pa.table({"x": array}))
    assert [] == read(store)


def test_what_would_be_lost_inside_is_refused() -> None:
    for array, kind, reason in LOST:
        offsets = pa.array([0, len(array)], pa.int32())
        inside = [
            (pa.ListArray.from_arrays(offsets, array), pa.list_(kind)),
            (pa.StructArray.from_arrays([array], ["f"]), pa.struct([("f", kind)])),
        ]
        if not pa.types.is_nested(array.type):
            inside.append((array.dictionary_encode(), kind))
        for given, wanted in inside:
            with pytest.raises((ValueError, pa.ArrowException), match=reason):
                cast_exactly(pa.chunked_array([given]), wanted)


KEPT: list[tuple[Any, Any, list[Any]]] = [
    (of(1, 0, None), pa.bool_(), [True, False, None]),
    (of(1.0, None), pa.int64(), [1, None]),
    (of(Decimal("2.00")), pa.int8(), [2]),
    (of(0.5, float("inf"), None), pa.float32(), [0.5, float("inf"), None]),
    (of(0.1), pa.float32(), [float(np.float32(0.1))]),
    (of(MIDNIGHT, None), pa.date32(), [date(2024, 5, 1), None]),
    (of(NOON, kind=pa.timestamp("us", "Asia/Tokyo")), UTC_US, [NOON]),
    (of(NOON, kind=pa.timestamp("ns", "UTC")), UTC_US, [NOON]),
    (of(1_714_564_800_000), pa.timestamp("ms", "UTC"), [NOON.replace(microsecond=0)]),
    (of(date(2024, 5, 1)), NO_ZONE, [MIDNIGHT.replace(tzinfo=None)]),
    (of("2024-05-01T14:00:00.123456+02:00"), UTC_US, [NOON]),
    (of("a", None, kind=pa.string_view()), pa.string(), ["a", None]),
    (of("a", None, "a").dictionary_encode(), pa.large_string(), ["a", None, "a"]),
    (pa.RunEndEncodedArray.from_arrays(of(2, 3), of("a", None)), pa.string(), ["a", "a", None]),
    (of([1, None], None, kind=pa.list_(pa.int8(), 2)), pa.list_(pa.int64()), [[1, None], None]),
    (of([1], None, []), pa.list_(REQUIRED), [[1], None, []]),
    (
        of({"b": 1}, None),
        pa.struct([("a", pa.string()), ("b", pa.int64())]),
        [{"a": None, "b": 1}, None],
    ),
    (of({"a": 1}, None, kind=STRICT), STRICT, [{"a": 1}, None]),
    (of({"a": 1}, None, {"a": 2}, kind=LOOSE)[1:], STRICT, [None, {"a": 2}]),
    (
        of([None, {"a": [1]}], None, [], kind=pa.large_list(LOOSER)),
        DEEP,
        [[None, {"a": [1]}], None, []],
    ),
    (of([], [{"a": [1]}], None, kind=pa.list_(LOOSER))[1:], DEEP, [[{"a": [1]}], None]),
]


@pytest.mark.parametrize(
    ("array", "kind", "expected"), KEPT, ids=[str(number) for number in range(len(KEPT))]
)
def test_what_stays_what_it_is_is_taken(
    store: Store, array: Any, kind: Any, expected: list[Any]
) -> None:
    created(store, kind).append_arrow("t", pa.table({"x": array}))
    assert expected == read(store)


@pytest.mark.parametrize(
    ("column", "kind", "reason"),
    [
        ([1, 1.5], pa.int64(), "truncated"),
        ((None, 2.5), pa.int8(), "truncated"),
        ([[1, 1.5]], pa.list_(pa.int64()), "truncated"),
        ([{"a": 1, "b": 2}], LOOSE, "no such field: 'b'"),
        ([1e300], pa.float32(), "values would become others"),
        ([NOON], pa.timestamp("ms", "UTC"), "would lose data"),
        ([NOON], pa.date32(), "values would become others"),
        ([NAIVE], UTC_US, "times without a zone"),
        ([NOON, NAIVE], UTC_US, "values of several types"),
        ([DAY, NAIVE], pa.timestamp("us"), "values of several types"),
        ([DAY, NAIVE], pa.date32(), "values of several types"),
        ([[DAY], None, [NAIVE]], pa.list_(pa.date32()), "values of several types"),
        ([{"a": [NOON, NAIVE]}], pa.struct([("a", pa.list_(UTC_US))]), "values of several types"),
        ([1 << 63, 1.5], pa.uint64(), "values of several types"),
        ([{"a": 1 << 63}, {"a": 1.5}], UNSIGNED, "values of several types"),
        ([{"a": 1 << 63, "b": 1}], UNSIGNED, "values of several types"),
        (np.array([NAIVE], "datetime64[us]"), UTC_US, "times without a zone"),
        (["1"], pa.int64(), "column 'x' does not fit its type int64"),
        ([True], pa.int64(), "column 'x' does not fit its type int64"),
        ("12", pa.string(), "a str is no list of values"),
        ({"1": 2}, pa.string(), "a dict is no list of values"),
    ],
)
def test_columns_by_name_lose_nothing_either(
    store: Store, column: Any, kind: Any, reason: str
) -> None:
    """Arrow makes 1 of 1.5 where it is told that these are ints."""
    created(store, kind)
    with pytest.raises(UsageError, match=reason):
        store.append_columns("t", {"x": column})
    assert [] == read(store)


def test_columns_by_name_are_taken_in_many_forms(store: Store) -> None:
    created(store, pa.uint64())
    columns = [
        [(1 << 64) - 1, None],
        (1.0, 2.0),
        range(2),
        np.array([3.0]),
        polars.Series([4, None]),
        pa.array([5]),
        pa.chunked_array([[6], [7]]),
        np.ma.array([8, 9], mask=[False, True]),
        [],
        iter([10, 1 << 63]),
    ]
    for column in columns:
        store.append_columns("t", {"x": column})
    assert [(1 << 64) - 1, None, 1, 2, 0, 1, 3, 4, None, 5, 6, 7, 8, None, 10, 1 << 63] == read(
        store
    )


def test_categories_of_frames_are_texts(store: Store) -> None:
    created(store, pa.string())
    for kind in (polars.Categorical, polars.Enum(["a", "b"])):
        store.append_arrow("t", polars.DataFrame({"x": ["a", None, "b"]}, schema={"x": kind}))
    store.append_arrow("t", duckdb.sql("select 'b'::enum('a', 'b') as x"))
    assert ["a", None, "b"] * 2 + ["b"] == read(store)


@pytest.mark.parametrize(
    "data", [polars.Series("x", [1]), polars.DataFrame({"x": [1]}, schema={"x": polars.Int128})]
)
def test_what_is_no_table_is_told_what_it_is(store: Store, data: Any) -> None:
    created(store, pa.int64())
    with pytest.raises(UsageError, match=r"data is a \w+ that is no table .*\(topic t\)"):
        store.append_arrow("t", data)


def test_times_are_no_milliseconds_by_themselves(store: Store) -> None:
    """Of a time in microseconds the number was taken for milliseconds."""
    created(store, pa.int64())
    rows = pa.table({"x": [1]})
    for times in (of(NOON), [NOON]):
        with pytest.raises(
            UsageError, match=r"timestamps_ms must be int64: its unit would be lost"
        ):
            store.append_arrow("t", rows, timestamps_ms=times)
    store.append_arrow("t", rows, timestamps_ms=[7], keys=of("k").dictionary_encode())
    assert [(7, b"k")] == [(each.timestamp_ms, each.key) for each in store.read("t")]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.float32(), "%s"),
        (pa.list_(pa.float32()), "[null, %s]"),
        (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float32()))]), '{"b": [%s]}'),
    ],
)
def test_a_number_of_json_beyond_a_float32_is_refused(store: Store, kind: Any, text: str) -> None:
    """It became infinity, which rows say as null."""
    created(store, kind)
    values = [b'{"x":%s}' % (text % number).encode() for number in ("3e38", "-1", "-1e39", "1e39")]
    with pytest.raises(UsageError, match=r"values\[2\] does not fit .* beyond what a float32 can"):
        store.append_many("t", values)
    with pytest.raises(UsageError, match=r"values\[0\] does not fit"):
        store.append("t", values[3])
    store.append_many("t", [*values[:2], b"{}"])
    assert 3 == len(read(store))
