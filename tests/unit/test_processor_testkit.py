"""What `pipeline.test` finds on lists, before a real run or another window would."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import pytest

from millstream import RecordError, UsageError
from millstream.processor import (
    Pipeline,
    Sink,
    Stream,
    agg,
    hopping,
    to_callable,
    to_csv,
    to_jsonl,
    to_sqlite,
    tumbling,
)

UPSERT = to_sqlite("no/such.db", "t", mode="upsert", key=["a"])
APPEND = to_sqlite("no/such.db", "t", name="t")
CSV = to_csv("no/such", columns=["a"], name="t")
LINES = to_jsonl("no/such", name="t")
FOLDERS = to_jsonl("no/such", folders=["a"], name="t")


@pytest.mark.parametrize(
    ("sink", "bad", "message"),
    [
        (CSV, {"b": 1}, r"there are no columns \['b'\]; there are \['a'\]"),
        (CSV, [1], "the value is no JSON object"),
        (LINES, b"no json", "JSON is malformed"),
        (FOLDERS, 7, "the value is no JSON object"),
        (APPEND, {"a": 2**63}, "does not fit into the 64 bits"),
        (UPSERT, {"b": 1}, r"there are no fields \['a'\], which are the key"),
        (UPSERT, {"a": None}, r"a field of the key \['a'\] is null"),
    ],
)
def test_what_no_sink_of_the_kind_could_take_is_found(sink: Sink, bad: Any, message: str) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=int).map([{"a": 1}, bad].__getitem__).to(sink)
    assert [{"a": 1}] == pipeline.test({"in": [0]})["t"]
    with pytest.raises(RecordError, match=f"sink 't' of pipeline 'p'.*{message}") as caught:
        pipeline.test({"in": [0, 1]})
    assert ("@sink/p/t", 1) == (caught.value.topic, caught.value.offset)


def test_what_a_sink_refuses_into_dead_letters_and_sinks_that_say_nothing_are_left() -> None:
    pipeline = Pipeline("p")
    values = pipeline.source("in", type=int)
    values.to(CSV, dead_letters="refused")
    values.to(to_callable(int, name="function"))
    assert {"t": [5], "function": [5]} == pipeline.test({"in": [5]})


class Total(msgspec.Struct):
    user: str
    n: int
    at: int = 0


def into_the_value(so_far: Total, value: Total) -> Total:
    value.n += so_far.n
    return value


def into_so_far(so_far: Total, value: Total) -> Total:
    so_far.n += value.n
    return so_far


def new(so_far: Total, value: Total) -> Total:
    return Total(so_far.user, so_far.n + value.n)


def counting(count: int, value: Total) -> int:
    value.at = 0
    return count + 1


ROWS = [{"user": "a", "n": n, "at": n} for n in (1, 2, 3)]
CHANGING: list[Callable[[Stream[Total]], Any]] = [
    lambda rows: rows.key_by("user").reduce(into_the_value),
    lambda rows: rows.key_by("user").fold(int, counting),
    lambda rows: rows.key_by("user").window(tumbling("1s")).reduce(into_the_value),
    lambda rows: rows.key_by("user").window(hopping("2s", "1s")).agg(n=agg.fold(int, counting)),
]


@pytest.mark.parametrize("declare", CHANGING, ids=count())
def test_a_function_that_changes_the_row_it_is_given_is_found(
    declare: Callable[[Stream[Total]], Any],
) -> None:
    pipeline = Pipeline("p")
    declare(pipeline.source("in", type=Total, time="at")).to("out")
    with pytest.raises(RecordError, match=r"the function changed Total\(user='a'.* so far, or"):
        pipeline.test({"in": ROWS})


@pytest.mark.parametrize("function", [into_so_far, new])
def test_what_there_is_so_far_may_be_changed(function: Callable[[Total, Total], Total]) -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", type=Total, time="at").key_by("user")
    keyed.reduce(function).to("running")
    keyed.window(tumbling("1s")).reduce(function).to("windows")
    output = pipeline.test({"in": ROWS})
    assert [1, 3, 6] == [row["n"] for row in output["running"]]
    assert [6] == [row["value"]["n"] for row in output["windows"]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([{"n": 1}], r"by its name, such as \{'in': \[...\]\}, not list"),
        ({"in": {"n": 1}}, r"a list of rows of 'in', not one: \{'n': 1\}"),
        ({"in": "ab"}, "a list of rows of 'in', not one: 'ab'"),
        ({"in": 5}, "a list of rows of 'in', not one: 5"),
    ],
)
def test_rows_that_are_no_lists_by_name_are_refused(inputs: Any, message: str) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").to("out")
    with pytest.raises(UsageError, match=message):
        pipeline.test(inputs)
