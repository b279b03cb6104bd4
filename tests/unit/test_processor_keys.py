"""Rows that cannot be grouped: dead letters when somebody takes them, else an error."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum, StrEnum
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest

from millstream import RecordError, UsageError
from millstream.processor import (
    Pipeline,
    Row,
    Stream,
    TestOutput,
    agg,
    col,
    counting,
    session,
    tumbling,
)

Json = dict[str, object]


def grouped(key: str | Callable[[Json], object], *, dead: bool = True) -> Pipeline:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    if dead:
        source.dead_letters.to("dead")
    source.key_by(key).window(tumbling(10)).agg(n=agg.count()).to("out")
    return pipeline


def reasons(output: TestOutput) -> list[bytes | None]:
    return [dict(record.headers)["error"] for record in output.records("dead")]


class Size(StrEnum):
    SMALL = "s"
    WIDE = "\u00e4"


@pytest.mark.parametrize(
    "keys", [["s", Size.SMALL, "t"], [Size.WIDE, "\u00e4", "t"], [Size.SMALL, b"s", 7]]
)
def test_keys_of_any_kind_of_text_are_written_as_text(keys: list[object]) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", type=int)
    source.key_by(keys.__getitem__).count().to("out")
    records = pipeline.test({"in": [0, 1, 2, 0]}).records("out")
    encoded = [each if isinstance(each, bytes) else str(each).encode() for each in keys]
    assert [*encoded, encoded[0]] == [each.key for each in records]
    rows = [*keys, keys[0]]
    counts = [rows[:n].count(key) for n, key in enumerate(rows, 1)]
    assert [str(each).encode() for each in counts] == [each.value for each in records]


class Color(Enum):
    RED = "r"


class Point(NamedTuple):
    x: int
    y: int


class Place(TypedDict):
    city: str


class Visit(msgspec.Struct):
    id: uuid.UUID
    at: datetime | None
    color: Color
    point: Point
    parts: tuple[int, date]
    names: list[str]
    place: Place
    size: Size
    key: int | uuid.UUID
    any: Any


def day(visit: Visit) -> date:
    return date.min


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("id", r"'id' is a UUID, which is no key: .* such as lambda row: str\(row.id\)"),
        ("at", "'at' is a datetime"),
        (col("at"), "at is a datetime"),
        ("color", "'color' is a Color, .* lambda row: row.color.value"),
        ("point", r"'point' is a Point, .* lambda row: tuple\(row.point\)"),
        ("parts", "'parts' is a tuple"),
        ("names", r"'names' is a list, .* tuple\(row.names\)"),
        ("place", "'place' is a Place, .* such as one of its fields"),
        (day, "day is a date"),
    ],
)
def test_fields_whose_values_are_never_keys_are_refused_where_they_are_declared(
    key: Any, message: str
) -> None:
    pipeline = Pipeline("p")
    visits = pipeline.source("in", type=Visit)
    for declare in (
        visits.key_by,
        lambda key: visits.dedup(key, within=1),
        lambda key: pipeline.table("table", type=Visit).group_by(key).agg(n=agg.count()),
        lambda key: pipeline.table("by", type=Visit, key=key),
    ):
        with pytest.raises(UsageError, match=message):
            declare(key)


@pytest.mark.parametrize("key", ["size", "key", "any", lambda visit: visit.id])
def test_fields_whose_values_may_be_keys_are_left_to_the_rows(key: Any) -> None:
    Pipeline("p").source("in", type=Visit).key_by(key)


UNGROUPABLE = [
    ({"t": 1}, "key_by 'k': KeyError: 'k'"),
    ({"t": 1, "k": None}, "key_by 'k': the key is None"),
    ({"t": 1, "k": [1]}, "key_by 'k': a key cannot be a list"),
    ({"t": 1, "k": {"a": 1}}, "key_by 'k': a key cannot be a dict"),
    ({"t": 1, "k": 2**63}, "key_by 'k': the key 9223372036854775808 does not fit into 64 bits"),
]


@pytest.mark.parametrize(("row", "why"), UNGROUPABLE)
def test_e27_a_row_that_cannot_be_grouped_is_a_dead_letter(row: Json, why: str) -> None:
    good = [{"t": 1, "k": "a"}, {"t": 2, "k": "b"}, {"t": 3, "k": "a"}]
    output = grouped("k").test({"in": [good[0], row, good[1], Row(row, key=b"2nd"), good[2]]})
    assert [(each["key"], each["n"]) for each in output["out"]] == [("a", 2), ("b", 1)]
    assert output["dead"] == [row, row]
    assert [record.key for record in output.records("dead")] == [None, b"2nd"]
    assert all((reason or b"").startswith(why.encode()) for reason in reasons(output))


KEYED: dict[str, Callable[[Any], Any]] = {
    "window": lambda keyed: keyed.window(tumbling(10)).agg(n=agg.count()),
    "session": lambda keyed: keyed.window(session(2)).agg(n=agg.count()),
    "counting": lambda keyed: keyed.window(counting(2)).agg(n=agg.count()),
    "update": lambda keyed: keyed.window(tumbling(10)).agg(n=agg.count()).emit("update"),
    "count": lambda keyed: keyed.count(),
    "reduce": lambda keyed: keyed.reduce(lambda _, row: row),
    "fold": lambda keyed: keyed.fold(list, lambda seen, row: [*seen, row["t"]]),
    "agg": lambda keyed: keyed.agg(n=agg.count(), ttl=5),
    "dedup": lambda keyed: keyed.dedup("t", within=5),
    "process": lambda keyed: keyed.process(lambda context, row: [[context.key, row["t"]]]),
    "join": lambda keyed: keyed.join(keyed, within=2, how="outer"),
    "join_asof": lambda keyed: keyed.join_asof(keyed, how="left"),
    "join_table": lambda keyed: keyed.join_table(keyed.count(), how="left"),
}


@pytest.mark.parametrize("declare", KEYED.values(), ids=KEYED)
def test_e27_no_keyed_operator_gets_a_row_without_a_key(declare: Callable[[Any], Any]) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.dead_letters.to("dead")
    declare(source.key_by("k")).to("out")
    good = [{"t": time, "k": "ab"[time % 2]} for time in range(6)]
    bad: list[Json] = [{"t": 3, "k": None}, {"t": 3}, {"t": 3, "k": ["a", None]}]
    output = pipeline.test({"in": [*good[:3], *bad, *good[3:]]})
    assert bad == output["dead"]
    assert output["out"] == pipeline.test({"in": good})["out"]
    assert output["out"]


@pytest.mark.parametrize(("row", "why"), UNGROUPABLE)
def test_without_a_taker_the_same_row_is_an_error(row: Json, why: str) -> None:
    with pytest.raises(RecordError) as caught:
        grouped("k", dead=False).test({"in": [{"t": 1, "k": "a"}, row]})
    assert str(caught.value).startswith(why)
    assert caught.value.offset == 1


def test_a_key_function_that_raises_rejects_its_row_alone() -> None:
    rows = [{"t": time, "k": "a", "x": time - 3} for time in range(1, 6)]
    output = grouped(lambda row: 12 // row["x"]).test({"in": rows})  # type: ignore[operator]  # an int
    assert output["dead"] == [rows[2]]
    assert [each["n"] for each in output["out"]] == [1, 1, 1, 1]
    (reason,) = reasons(output)
    assert b"ZeroDivisionError" in (reason or b"")


def test_a_row_that_several_operators_reject_is_one_dead_letter() -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.dead_letters.to("dead")
    both: Stream[Json] = source.flat_map(lambda row: [row, row])
    both.key_by("k").to("keys")
    source.key_by("l").to("others")
    output = pipeline.test({"in": [{"t": 1}, {"t": 2, "l": 5}, {"t": 3, "k": 1, "l": 1}]})
    assert [row["t"] for row in output["dead"]] == [1, 2]
    assert [row["t"] for row in output["keys"]] == [3, 3]
    assert [row["t"] for row in output["others"]] == [2, 3]


def test_late_rows_that_cannot_be_grouped_are_dead_letters_too() -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.dead_letters.to("dead")
    results = source.key_by("k").window(tumbling(10)).agg(n=agg.count())
    results.to("out")
    results.late.key_by("l").to("late")
    rows = [{"t": 25, "k": 1}, {"t": 1, "k": 1}, {"t": 2, "k": 1, "l": 1}]
    output = pipeline.test({"in": rows})
    assert output["dead"] == [rows[1]]
    assert output["late"] == [rows[2]]


def test_below_a_window_a_bad_key_is_an_error_of_the_pipeline() -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.dead_letters.to("dead")
    results = source.key_by("k").window(tumbling(10)).agg(n=agg.count())
    results.key_by(lambda result: None).to("out")
    with pytest.raises(RecordError, match=r"key_by lambda\(\).*: the key is None"):
        pipeline.test({"in": [{"t": 1, "k": 1}]})
