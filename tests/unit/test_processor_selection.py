"""`select` and `with_columns`: rows made of fields and expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from millstream import RecordError, UsageError
from millstream.processor import Pipeline, Row, agg, col, lit, when


class Order(msgspec.Struct):
    user: str
    price: float
    count: int = 1


@dataclass
class Point:
    x: int
    y: int


def selected(rows: list[object], **fields: Any) -> list[Any]:
    pipeline = Pipeline("p")
    pipeline.source("in").select(**fields).to("out")
    return pipeline.test({"in": rows})["out"]


def test_fields_come_in_the_order_asked_for() -> None:
    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order)
    orders.select("count", "user", total=col("price") * col("count")).to("out")
    out = pipeline.test({"in": [{"user": "u", "price": 2.5, "count": 2}]})["out"]
    assert [[("count", 2), ("user", "u"), ("total", 5.0)]] == [list(row.items()) for row in out]


def test_expressions_see_the_row_as_it_was() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").with_columns(a=col("b"), b=col("a"), c=lit(1)).to("out")
    out = pipeline.test({"in": [{"a": 1, "b": 2, "z": None}]})["out"]
    assert [{"a": 2, "b": 1, "z": None, "c": 1}] == out
    assert ["a", "b", "z", "c"] == list(out[0])


@pytest.mark.parametrize(
    ("row_type", "row"), [(Order, {"user": "u", "price": 1.5}), (Point, {"x": 1, "y": 2})]
)
def test_the_fields_of_any_row_may_be_kept(row_type: type, row: dict[str, Any]) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=row_type).with_columns(more=lit("m")).to("out")
    (out,) = pipeline.test({"in": [row]})["out"]
    assert {**row, "more": "m"}.items() <= out.items()


def test_the_key_and_the_event_time_stay() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t").key_by("k")
    rows.with_columns(t=lit(0)).select("t").agg(n=agg.count()).to("out")
    records = pipeline.test({"in": [{"k": "a", "t": 7}, {"k": "a", "t": 9}]}).records("out")
    assert [(b"a", 7), (b"a", 9)] == [(record.key, record.timestamp_ms) for record in records]


def test_one_row_by_itself_gives_the_same_as_many() -> None:
    rows: list[object] = [{"x": x, "s": str(x)} for x in range(50)]
    doubled = when(col("x") > 20).then(col("x") * 2).otherwise(None)
    fields = {"y": doubled, "s": col("s").upper()}
    assert [row for each in rows for row in selected([each], **fields)] == selected(rows, **fields)


def test_a_row_without_the_field_is_named() -> None:
    with pytest.raises(RecordError, match=r"select double=.*x") as raised:
        selected([{"x": 1}, {"x": "text"}], double=col("x") * 2)
    assert ("in", 0, 1) == (raised.value.topic, raised.value.partition, raised.value.offset)


def test_rows_without_fields_have_none_to_keep() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=bytes).with_columns(a=lit(1)).to("out")
    with pytest.raises(RecordError, match=r"a bytes has no fields to keep: use select"):
        pipeline.test({"in": [Row(b"x")]})


@pytest.mark.parametrize(
    ("names", "fields", "problem"),
    [
        ((), {}, "at least one field"),
        (("user", "user"), {}, "'user' twice"),
        (("user",), {"user": col("price")}, "'user' twice"),
        ((), {"total": 3}, "takes an expression"),
        ((), {"total": len}, "functions go to map"),
        ((3,), {}, "takes names"),
        (("missing",), {}, "missing"),
        ((), {"total": col("missing")}, "missing"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    names: tuple[Any, ...], fields: dict[str, Any], problem: str
) -> None:
    orders = Pipeline("p").source("in", type=Order)
    with pytest.raises(UsageError, match=problem):
        orders.select(*names, **fields)


def test_the_plan_says_what_is_selected() -> None:
    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order).with_columns(total=col("price") * col("count"))
    orders.select("user", "total").to("out")
    assert "with_columns total=" in pipeline.explain()
    assert "select user, total" in pipeline.explain()
