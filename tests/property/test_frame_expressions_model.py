"""Expressions on columns held against the meaning for one row: the same value of the same type.

Random trees over columns with values at the edge of everything. Columns may leave a batch to the
rows, but never say something else; and what people write every day they must not leave.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from millstream import UsageError
from millstream.processor import col, lit, parse_expression, when
from millstream.processor.expression_scalar import scalar
from millstream.processor.expression_tree import (
    ARITHMETIC,
    COMPARISONS,
    Call,
    Case,
    Cast,
    Column,
    FillNull,
    IsIn,
    IsNull,
    Literal,
    Logic,
    Negate,
    Not,
    Operation,
    Tree,
)
from millstream.processor.frame_errors import NotInColumnsError
from millstream.processor.frame_expressions import compile_columns, condition_mask
from millstream.processor.frames import to_list
from millstream.processor.serde import same_plain

ODD_INTS = [0, 1, -1, 2, 3, 60_000, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
ODD_FLOATS = [0.0, -0.0, 0.1, 0.5, -2.5, 3.0, 2.0**53, 1e300, -1e300, 5e-324, 1e19]
ODD_FLOATS += [2.0**63, -(2.0**63)]
ODD_TEXTS = ["", "a", "A", "ab", "\u00c4B", "\u00df", "\u65e5\u672c", "\x1f x ", "true", "12"]
ODD_TEXTS += ["\U0001f600", "z" * 50]
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "i": (pa.int64(), ODD_INTS),
    "j": (pa.int64(), [0, 1, 2, 3, -7, 1_700_000_000_000, 1_709_251_199_999]),
    "f": (pa.float64(), ODD_FLOATS),
    "g": (pa.float64(), [0.25, 1.0, 2.0, -3.5]),
    "t": (pa.string(), ODD_TEXTS),
    "b": (pa.bool_(), [True, False]),
    "n": (pa.null(), [None]),
}
KIND_COLUMNS = {"int": ["i", "j"], "float": ["f", "g"], "text": ["t"], "bool": ["b"]}
CONSTANTS: dict[str, list[Any]] = {
    "int": ODD_INTS,
    "float": ODD_FLOATS,
    "text": ODD_TEXTS,
    "bool": [True, False],
}
KINDS = sorted(CONSTANTS)
OF_TEXT = ["length", "lower", "upper", "strip"]
OF_TIME = ["hour", "minute", "second", "weekday", "year", "month", "day", "date"]


class Fields:
    """Rows as the lane gives them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.row_count = len(rows)
        self._rows = rows

    def column(self, name: str) -> Any:
        return pa.array([row[name] for row in self._rows], COLUMNS[name][0])


@st.composite
def trees(draw: st.DrawFn, kind: str, depth: int = 3) -> Tree:  # noqa: C901
    if draw(st.integers(0, 24)) == 0:
        kind = draw(st.sampled_from(KINDS))  # errors must agree as well

    def below(of: str) -> Tree:
        return draw(trees(of, depth - 1))

    def number() -> str:
        return draw(st.sampled_from(["int", "float"]))

    if depth == 0 or draw(st.integers(0, 4)) == 0:
        choice = draw(st.integers(0, 11))
        if choice == 0:
            return draw(st.sampled_from([Column("n"), Literal(None)]))
        if choice < 8:
            return Column(draw(st.sampled_from(KIND_COLUMNS[kind])))
        return Literal(draw(st.sampled_from(CONSTANTS[kind])))
    way = draw(st.integers(0, 9))
    if way == 0:
        return FillNull(below(kind), below(kind))
    if way == 1:
        pairs = draw(st.integers(1, 2))
        return Case(tuple((below("bool"), below(kind)) for _ in range(pairs)), below(kind))
    if kind == "bool":
        of = draw(st.sampled_from(KINDS))
        if way < 5:
            other = number() if of in {"int", "float"} else of
            return Operation(draw(st.sampled_from(sorted(COMPARISONS))), below(of), below(other))  # type: ignore[arg-type]
        if way == 5:
            return Logic(draw(st.sampled_from(["and", "or"])), (below("bool"), below("bool")))
        if way == 6:
            return draw(st.sampled_from([Not(below("bool")), IsNull(below(of))]))
        if way == 7:
            values = draw(st.lists(st.sampled_from(CONSTANTS[of]), max_size=3))
            return IsIn(below(of), tuple(map(Literal, values)))
        if way == 8:
            name = draw(st.sampled_from(["starts_with", "ends_with", "contains"]))
            return Call(name, (below("text"), Literal(draw(st.sampled_from(ODD_TEXTS)))))
        return Cast("bool", below(of))
    if kind == "text":
        if way < 4:
            return Operation("+", below("text"), below("text"))
        if way < 6:
            return Call(draw(st.sampled_from(OF_TEXT[1:])), (below("text"),))
        if way == 6:
            start, size = draw(st.integers(-1, 3)), draw(st.sampled_from([None, -1, 0, 1, 2]))
            further = (Literal(start),) if size is None else (Literal(start), Literal(size))
            return Call("slice", (below("text"), *further))
        if way == 7:
            part, other = (Literal(draw(st.sampled_from(ODD_TEXTS))) for _ in range(2))
            return Call("replace", (below("text"), part, other))
        if way == 8:
            zone = draw(st.sampled_from([(), ("UTC",), ("America/New_York",)]))
            return Call("date", (below("int"), *map(Literal, zone)))
        return Cast("str", below(draw(st.sampled_from(KINDS))))
    if way < 6:
        of = "int" if kind == "int" else number()
        return Operation(draw(st.sampled_from(sorted(ARITHMETIC))), below(of), below(kind))  # type: ignore[arg-type]
    if way == 6:
        return draw(st.sampled_from([Negate(below(kind)), Call("abs", (below(kind),))]))
    if kind == "int" and way == 7:
        if draw(st.booleans()):
            return Call("length", (below("text"),))
        zone = draw(st.sampled_from([(), ("UTC",), ("Asia/Tokyo",)]))
        name = draw(st.sampled_from(OF_TIME[:-1]))
        return Call(name, (below("int"), *map(Literal, zone)))
    if kind == "int" and way == 8:
        return Call("truncate", (below("int"), Literal(draw(st.sampled_from(["1m", "7ms", "1d"])))))
    return Cast("int" if kind == "int" else "float", below(draw(st.sampled_from(KINDS))))


@st.composite
def some_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    nulls, odd = draw(st.sampled_from([0.0, 0.3])), draw(st.booleans())

    def value(name: str) -> Any:
        choices = COLUMNS[name][1]
        if not odd and name != "n":
            choices = choices[:3] if name == "t" else [1, 2, 3] if name == "i" else choices
            choices = [0.5, 1.0] if name == "f" else choices
        return None if rng.random() < nulls else rng.choice(choices)

    return [{name: value(name) for name in COLUMNS} for _ in range(draw(st.integers(1, 5)))]


@settings(deadline=None, max_examples=int(os.environ.get("MILLSTREAM_FUZZ_EXAMPLES", "300")))
@given(st.data(), some_rows())
def test_columns_say_what_each_row_says_or_leave_it_to_rows(
    data: st.DataObject, rows: list[dict[str, Any]]
) -> None:
    tree = data.draw(trees(data.draw(st.sampled_from(KINDS))))
    try:
        found = compile_columns(tree)(Fields(rows))
    except NotInColumnsError:
        return
    compute = scalar(tree)
    expected = [compute(row) for row in rows]  # and none of them raises
    values = to_list(found)
    assert all(map(same_plain, expected, values)), (expected, values)
    assert list(map(repr, expected)) == list(map(repr, values)), "0.0 is not -0.0"


ORDINARY = [
    {
        "i": number,
        "j": 1_700_000_000_000 + number,
        "f": number / 8,
        "g": None if number % 3 == 0 else number / 3,
        "t": f"user-{number % 7}",
        "b": number % 2 == 0,
        "n": None,
    }
    for number in range(100)
]
EVERY_DAY = [
    col("f") > 50,
    col("f") * 1.2 + 3,
    col("i") * 2 - col("j"),
    col("i") / 4,
    col("i") // 7 % 3,
    -col("f"),
    (col("f") > 1) & (col("t") == "user-3") | ~col("b"),
    col("i") == 4.0,
    col("f") <= col("i"),
    col("g").is_null(),
    col("g").is_not_null() & (col("g") < 3.5),
    col("g").fill_null(0.0) + 1,
    col("t").is_in(["user-1", "user-2"]),
    col("i").is_in([1, 2, 3]),
    col("f").is_in([0.5, 1.0]),
    col("t").starts_with("user"),
    col("t").contains("r-1"),
    col("t").ends_with("3"),
    col("t") + "-" + col("t"),
    col("t").upper(),
    col("t").lower(),
    col("t").length(),
    col("t").replace("user", "u"),
    col("t").slice(5),
    col("j").truncate("1m"),
    col("j").hour(),
    col("j").date(),
    col("j").weekday(),
    col("j").year(),
    when(col("f") > 3).then("high").when(col("f") > 1).then("middle").otherwise("low"),
    col("i").cast("float") * 0.5,
    col("i").cast("str"),
    col("f").cast("int"),
    lit(7) + col("i"),
    abs(col("f")) if hasattr(type(col("f")), "__abs__") else col("f").abs(),
    parse_expression("f * 2 > 5 and t != 'user-1' or b"),
]


@pytest.mark.parametrize("expression", EVERY_DAY, ids=str)
def test_what_is_written_every_day_is_computed_on_columns(expression: Any) -> None:
    found = compile_columns(expression.tree)(Fields(ORDINARY))

    assert [expression(row) for row in ORDINARY] == to_list(found)
    assert len(ORDINARY) == len(found)


def test_constants_search_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow looks for one that need not be installed, each time that it has to find a type."""

    class Searched:
        def find_spec(self, name: str, *_: object) -> None:
            names.append(name)

    names: list[str] = []
    compute = compile_columns((col("i") + 1 > 2.5).tree)
    compute(Fields(ORDINARY))  # what is imported once
    monkeypatch.setattr(sys, "meta_path", [Searched(), *sys.meta_path])
    compute(Fields(ORDINARY))
    assert [] == names


def test_a_condition_that_is_null_is_not_fulfilled() -> None:
    mask = condition_mask(pa.array([True, None, False]))

    assert [True, False, False] == mask.tolist()
    assert [False, False] == condition_mask(pa.nulls(2)).tolist()
    with pytest.raises(NotInColumnsError):
        condition_mask(pa.array([1, 0]))


@pytest.mark.parametrize("name", OF_TIME)
def test_other_time_zones_are_left_to_rows(name: str) -> None:
    rows = [{**ORDINARY[0], "j": 1_700_000_000_000}]

    with pytest.raises(NotInColumnsError, match="zone"):
        compile_columns(getattr(col("j"), name)("Asia/Tokyo").tree)(Fields(rows))
    utc = getattr(col("j"), name)("UTC")
    assert [utc(rows[0])] == to_list(compile_columns(utc.tree)(Fields(rows)))


def test_dates_of_many_days_nulls_and_times_before_1970_are_those_of_rows() -> None:
    times = [None, -1, 0, 86_399_999, 86_400_000, *range(-(10**12), 10**12, 7_777_777_777), -1]
    rows = [{**ORDINARY[0], "j": time} for time in times]

    for name in OF_TIME:
        expression = getattr(col("j"), name)()
        found = compile_columns(expression.tree)(Fields(rows))
        assert [expression(row) for row in rows] == to_list(found), name


def test_an_expression_nested_too_deeply_is_refused() -> None:
    deep = col("i")
    for _ in range(3000):
        deep = -deep

    with pytest.raises(UsageError, match="nested"):
        compile_columns(deep.tree)


@pytest.mark.parametrize("expression", EVERY_DAY, ids=str)
def test_no_rows_are_no_values(expression: Any) -> None:
    assert [] == to_list(compile_columns(expression.tree)(Fields([])))
