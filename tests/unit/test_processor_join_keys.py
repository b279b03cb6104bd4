"""Joins whose sides have keys that are never equal: refused where that is declared, else told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NewType, TypedDict

import msgspec
import pytest

from millstream import UsageError
from millstream.processor import KeyedStream, Pipeline, Row, Table, agg, col
from millstream.processor.join_keys import may_equal

Id = NewType("Id", int)


class Order(msgspec.Struct):
    id: int
    user: str
    code: int | str | None = None

    @property
    def shop(self) -> str:
        return self.user[:1]


@dataclass
class Payment:
    order: Id
    by: str


class Note(TypedDict):
    order: float
    text: str


def order_id(order: Order) -> int:
    return order.id


def place(order: Order) -> tuple[str, int]:
    return order.user, order.id


def names(order: Order) -> tuple[str, str]:
    return order.user, order.user


Declare = Callable[[Pipeline], KeyedStream[Any, Any]]


def orders_by(key: Any) -> Declare:
    return lambda pipeline: pipeline.source("orders", type=Order, time="id").key_by(key)


def payments_by(key: Any) -> Declare:
    return lambda pipeline: pipeline.source("payments", type=Payment).key_by(key)


def notes_by(key: Any) -> Declare:
    return lambda pipeline: pipeline.source("notes", type=Note).key_by(key)


def rows_by(key: Any) -> Declare:
    return lambda pipeline: pipeline.source("rows").key_by(key)


@pytest.mark.parametrize(
    ("left", "right", "types"),
    [
        (orders_by("id"), payments_by("by"), "int, the right side of str"),
        (orders_by(order_id), payments_by("by"), "int, the right side of str"),
        (orders_by("shop"), payments_by("order"), "str, the right side of Id"),
        (orders_by(col("user")), notes_by("order"), "str, the right side of float"),
        (orders_by(col("user").cast("int")), notes_by("text"), "int, the right side of str"),
        (orders_by(str), rows_by(int), "str, the right side of int"),
        (orders_by(place), payments_by("by"), r"tuple\[str, int\], the right side of str"),
        (
            orders_by(place),
            lambda pipeline: pipeline.source("more", type=Order).key_by(names),
            r"tuple\[str, int\], the right side of tuple\[str, str\]",
        ),
        (
            lambda pipeline: orders_by("id")(pipeline).map(lambda order: order.user).filter(len),
            payments_by("by"),
            "int, the right side of str",
        ),
        (
            lambda pipeline: orders_by("id")(pipeline).count().updates(),
            payments_by("by"),
            "int, the right side of str",
        ),
        (
            lambda pipeline: orders_by("id")(pipeline).merge(notes_by("order")(pipeline)),
            payments_by("by"),
            r"int \| float, the right side of str",
        ),
        (
            lambda pipeline: (
                pipeline.table("users", type=Order).group_by("id").agg(n=agg.count()).updates()
            ),
            payments_by("by"),
            "int, the right side of str",
        ),
    ],
    ids=count(),
)
def test_keys_declared_to_be_never_equal_are_refused(
    left: Declare, right: Declare, types: str
) -> None:
    for join in (
        lambda one, other: one.join(other, within=5),
        lambda one, other: one.join_asof(other),
    ):
        pipeline = Pipeline("p")
        with pytest.raises(UsageError, match=rf"join.*\(\): the left side has keys of {types}"):
            join(left(pipeline), right(pipeline))


def test_a_table_with_keys_of_another_type_is_refused_and_its_key_type_named() -> None:
    for versioned in (False, True):
        pipeline = Pipeline("p")
        table: Table[Any, Any] = pipeline.table("users", versioned=versioned)
        with pytest.raises(UsageError, match="a table are of its key_type, str by default"):
            orders_by("id")(pipeline).join_table(table)
    pipeline = Pipeline("p")
    orders_by("id")(pipeline).join_table(pipeline.table("users", key_type=int))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (orders_by("id"), payments_by("order")),
        (orders_by("id"), notes_by("order")),
        (orders_by("code"), payments_by("by")),
        (orders_by("code"), notes_by("order")),
        (orders_by(lambda order: order.id), payments_by("by")),
        (orders_by("id"), rows_by("by")),
        (orders_by(col("id") + 1), payments_by("by")),
        (orders_by(place), payments_by(lambda payment: (payment.by, payment.order))),
        (
            lambda pipeline: orders_by("id")(pipeline).merge(rows_by("x")(pipeline)),
            payments_by("by"),
        ),
    ],
    ids=count(),
)
def test_keys_that_may_be_equal_are_joined(left: Declare, right: Declare) -> None:
    pipeline = Pipeline("p")
    left(pipeline).join(right(pipeline), within=5)


def test_types_are_alike_when_values_of_them_may_be_equal() -> None:
    alike: list[tuple[object, object]] = [
        (Literal["a", 1], float),
        (tuple[int, ...], tuple[str, str]),
        (tuple, tuple[int, int]),
        (dict, str),
        (int | None, bool),
        (None, str),
        (type(None), str),
    ]
    for left, right in alike:
        assert may_equal(left, right), (left, right)
        assert may_equal(right, left), (left, right)
    for left, right in [(Literal["a"], float), (bytes, str), (tuple[int], tuple[int, int])]:
        assert not may_equal(left, right)
        assert not may_equal(right, left)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


JOINS: list[Callable[[KeyedStream[Any, Any], KeyedStream[Any, Any]], KeyedStream[Any, Any]]] = [
    lambda left, right: left.join(right, within=5),
    lambda left, right: left.join_asof(right, how="left"),
]


@pytest.mark.parametrize("join", JOINS, ids=count())
def test_keys_that_turn_out_never_to_be_equal_are_told_once(
    join: Callable[..., KeyedStream[Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline("p")
    left = pipeline.source("l").key_by("k")
    join(left, pipeline.source("r").key_by("k")).to("out")
    inputs = {"l": [{"k": 1}, {"k": 2.5}, {"k": True}], "r": [{"k": "1"}] * 3}
    pipeline.test(inputs, batch_records=2)
    (message,) = told(caplog)
    assert "join 'l.join' of pipeline 'p'" in message
    assert "its left side are" in message
    assert "int" in message
    assert "right side str: none can be equal" in message


def test_a_table_of_which_no_key_is_ever_found_is_told(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline("p")
    users = pipeline.table("users")
    pipeline.source("l").key_by("k").join_table(users).to("out")
    pipeline.test({"users": [Row({"a": 1}, key=b"1")], "l": [{"k": 1}]})
    (message,) = told(caplog)
    assert "or declare the key_type of the table" in message


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1], []),
        ([], ["a"]),
        ([1], [1.0]),
        ([True], [0]),
        (["a"], ["b"]),
        (["a", 1], [2]),
        ([(1, 2)], [("a",)]),
    ],
    ids=count(),
)
def test_nothing_is_told_of_keys_that_could_be_equal(
    left: list[Any], right: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def key(row: dict[str, Any]) -> Any:
        return tuple(row["k"]) if isinstance(row["k"], list) else row["k"]

    pipeline = Pipeline("p")
    ours = pipeline.source("l").key_by(key)
    ours.join(pipeline.source("r").key_by(key), within=5).to("out")
    pipeline.test({"l": [{"k": each} for each in left], "r": [{"k": each} for each in right]})
    assert told(caplog) == []
