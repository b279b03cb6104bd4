"""Rows in state: what comes back as it was is kept, anything else is refused."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, strategies as st

from millstream import DataError, UsageError
from millstream.processor import Windowed
from millstream.processor.row_codec import RowCodec
from millstream.processor.row_shapes import aggregated_type
from millstream.processor.state import decode_entry, encode_entries


class Colour(enum.Enum):
    RED = "red"


class Order(msgspec.Struct):
    user: str
    amount: float
    note: str | None = None


class Bare(msgspec.Struct, eq=False):
    amount: float


class Anything(msgspec.Struct):
    payload: Any


class Result(Windowed[Any, Any], frozen=True, gc=False):
    values: object


class Tree(msgspec.Struct):
    children: list[Tree]


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


class Pair(NamedTuple):
    left: Order
    right: Order | None


class Foreign:
    """Nothing that msgspec knows."""


def round_trip(row_type: object, row: object) -> object:
    """Through the bytes of a state record and back."""
    codec = RowCodec(row_type, "rows")
    records = encode_entries("op", [("k",)], [(codec.pack([row])[0],)], proven=True)
    entry = decode_entry(records.keys[0], records.values[0])
    assert entry.value is not None
    return codec.unpack(entry.value[0])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
def test_plain_rows_come_back(row: object) -> None:
    assert repr(row) == repr(round_trip(None, row))


@pytest.mark.parametrize(
    ("row_type", "row"),
    [
        (Order, Order("u1", 2.5)),
        (Order, Order("u1", math.nan)),
        (Bare, Bare(math.inf)),
        (Point, Point(3, {"b", "a", "c", "\u00e9"})),
        (Pair, Pair(Order("u1", 1.0), None)),
        (Order | None, None),
        (Order, None),
        (tuple[int, str], (1, "a")),
        (tuple[int, str], (2**64, "a")),
        (dict[int, str], {-(2**63) - 1: "b", 1: "a"}),
        (set[int], {2**70, 3, -(2**64)}),
        (None, {"a": [2**70]}),
        (Anything, Anything({"a": 2**64})),
        (list[datetime | int], [datetime(2024, 2, 29, 1, tzinfo=UTC), 2**64]),
        (None, {"a": {1: 2, (None, (b"x", 2.5)): True}}),
        (dict[int, str], {2: "b", 1: "a"}),
        (Decimal, Decimal("1.50")),
        (Colour, Colour.RED),
        (UUID, UUID(int=5)),
        (bytes, b"\xff"),
        (Tree, Tree([Tree([]), Tree([])])),
        (Anything, Anything({"a": [1, None]})),
        (Result, Result(("a", (1, b"x")), 0, 10, [1])),
        (aggregated_type(("n",), None), aggregated_type(("n",), None)(("a", 1), 5)),
        (datetime, datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=2)))),
        (list[datetime], [datetime(2024, 2, 29), datetime(2024, 2, 29, tzinfo=UTC)]),  # noqa: DTZ001
    ],
)
def test_rows_of_a_known_type_come_back(row_type: object, row: object) -> None:
    assert repr(row) == repr(round_trip(row_type, row)) or row == round_trip(row_type, row)


@given(st.lists(st.builds(Order, st.text(), st.floats(), st.none() | st.text())))
def test_many_rows_come_back_in_order(rows: list[Order]) -> None:
    codec = RowCodec(Order, "rows")
    restored = [codec.unpack(msgspec.msgpack.decode(each)) for each in codec.pack(rows)]
    assert repr(rows) == repr(restored)


@pytest.mark.parametrize(
    ("row_type", "row"),
    [
        (None, (1, 2)),
        (None, {"a": (1,)}),
        (None, {"a": {frozenset({1}): 2}}),
        (None, {Colour.RED: 2}),
        (None, {3}),
        (None, Order("u1", 2.5)),
        (None, OrderedDict(a=1)),
        (None, {"a": defaultdict(int)}),
        (None, Colour.RED),
        (None, [datetime(2024, 1, 1)]),  # noqa: DTZ001
        (dict, {"a": Decimal(1)}),
        (Order, Order("u1", 2)),
        (Order, {"user": "u1", "amount": 2.0}),
        (Anything, Anything((1, 2))),
        (Anything, Anything((1, 2**64))),
        (Anything, Anything(Order("u1", 2.5))),
        (Anything, Anything(datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))))),
        (Point, Point("3", set())),  # type: ignore[arg-type]  # that is the point
        (tuple[int, ...], [1, 2]),
    ],
)
def test_what_would_come_back_otherwise_is_refused(row_type: object, row: object) -> None:
    codec = RowCodec(row_type, "left rows")
    with pytest.raises(UsageError, match=r"left rows: .* cannot be kept in state.*type="):
        codec.pack([row])


def test_nesting_without_end_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="cannot be kept in state"):
        RowCodec(None, "rows").pack([endless])


@pytest.mark.parametrize(
    "row_type", [Foreign, list[Foreign], Order | Point, type("Local", (), {"x": 1})]
)
def test_types_that_never_come_back_are_refused_at_once(row_type: object) -> None:
    with pytest.raises(UsageError, match=r"rows of .* cannot be kept in state"):
        RowCodec(row_type, "left rows")


@pytest.mark.parametrize("packed", [3, {"user": 1}, {"user": "u"}, [None]])
def test_state_that_is_no_row_is_a_data_error(packed: object) -> None:
    with pytest.raises(DataError, match="left rows: not a row of Order"):
        RowCodec(Order, "left rows").unpack(packed)
