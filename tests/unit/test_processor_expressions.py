"""Expressions: what each part means, how it is written, and what is refused. See the docs page."""

from __future__ import annotations

import math
import pickle  # noqa: TID251 - another engine may, not we
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import msgspec
import pytest

from millstream import RecordError, UsageError
from millstream.processor import (
    Expression,
    Pipeline,
    agg,
    col,
    lit,
    parse_expression,
    tumbling,
    when,
)
from millstream.processor.errors import REJECTED, convert
from millstream.processor.expression_columns import Batch, only_type, vector
from millstream.processor.expression_functions import FUNCTIONS
from millstream.processor.expression_tree import DEPTH_MAX, children, walk
from millstream.processor.fields import describe, field_names

BIG = 2**53
DAY_MS = 86_400_000


def value_of(text: str, **row: object) -> Any:
    """The value of an expression for one row, which must be that of many at once as well."""
    expression = parse_expression(text)
    value = expression(row)
    assert repr([value] * 3) == repr(expression.evaluate([row] * 3))
    return value


MEANINGS: list[tuple[str, object]] = [
    # null
    ("a is null", True),
    ("a is not null", False),
    ("missing is null", True),
    ("a > 1", None),
    ("a + 1", None),
    ("lower(a)", None),
    ("-a", None),
    ("not a is null", False),
    ("not (a > 1)", None),
    ("a > 1 and false", False),
    ("a > 1 and true", None),
    ("a > 1 or true", True),
    ("a > 1 or false", None),
    ("fill_null(a, 5)", 5),
    ("fill_null(i, 5)", 7),
    ("a in (1, 2)", None),
    ("i in ()", False),
    ("when(a > 1, 1, 2)", 2),
    ("a == a", None),
    ("o.x", 1),
    ("o.y", None),
    ("a.x", None),
    # numbers
    ("7 / 2", 3.5),
    ("6 / 2", 3.0),
    ("7 // 2", 3),
    ("-7 // 2", -4),
    ("-7 % 3", 2),
    ("7 % -3", -2),
    ("7.5 // 2", 3.0),
    ("1 == 1.0", True),
    ("9007199254740993 == 9007199254740992.0", False),
    ("9223372036854775807 + 1", 2**63),
    ("2 + 3 * 4", 14),
    ("(2 + 3) * 4", 20),
    ("7 - 2 - 1", 4),
    ("-i", -7),
    ("--i", 7),
    ("abs(-2.5)", 2.5),
    ("nan == nan", False),
    ("nan < 1", False),
    ("inf > 1", True),
    ("0.1 + 0.2", 0.1 + 0.2),
    ("true + 1", 2),
    (".5e1", 5.0),
    # text
    ('"a" < "b"', True),
    ('"Z" < "a"', True),
    ('"\uffff" < "\U0001f600"', True),
    ('"1" == 1', False),
    ('"a" + "b"', "ab"),
    ('lower("\u00c4B")', "\u00e4b"),
    ('upper("stra\u00dfe")', "STRASSE"),
    ('length("\U0001f600")', 1),
    ("strip(' x ')", "x"),
    ('contains(s, "bc")', True),
    ('contains(tags, "x")', True),
    ('starts_with(s, "ab")', True),
    ('ends_with(s, "ab")', False),
    ('replace(s, "b", "--")', "a--cd"),
    ("slice(s, 1)", "bcd"),
    ("slice(s, 1, 2)", "bc"),
    ("slice(s, -3, 2)", "bc"),
    ("slice(s, -9, 2)", "ab"),
    ("slice(s, 9)", ""),
    ('matches(s, "^a.c")', True),
    ('matches(s, "x$")', False),
    ("contains(s, a)", None),
    ("replace(s, a, s)", None),
    # conditions
    ("true and not false", True),
    ("false or true and false", False),
    ("not true == false", True),
    ("i in (1, 7)", True),
    ("i not in (1, 7)", False),
    ("i in (7.0)", True),
    ('tags in ("x", "y")', False),
    ("when(i > 9, 'many', i > 1, 'few', 'one')", "few"),
    ("when(i != 0, 1 / i, 0)", 1 / 7),
    ("when(z != 0, 1 / z, 0)", 0),
    ("z == 0 or 1 / z > 1", True),
    ("z != 0 and 1 / z > 1", False),
    ("fill_null(i, 1 / z)", 7),
    # types
    ("int(2.9)", 2),
    ("int(-2.9)", -2),
    ('int("-42")', -42),
    ("int(true)", 1),
    ('float("1e3")', 1000.0),
    ("float(3)", 3.0),
    ("str(1.0)", "1.0"),
    ("str(true)", "true"),
    ("str(7)", "7"),
    ("bool(0.0)", False),
    ('bool("true")', True),
    ("int(a)", None),
    ("str(a)", None),
    # time
    ('parse_time("1970-01-01T00:00:01Z")', 1000),
    ('parse_time("1970-01-01T01:00:00.5+01:00")', 500),
    ("parse_time(5)", 5),
    ('truncate(t, "1h")', 1_711_846_800_000),
    ('truncate(-1, "1m")', -60_000),
    ('year("2024-03-31T23:30:00Z")', 2024),
    ("month(t)", 3),
    ("day(t)", 31),
    ("hour(t)", 1),
    ('hour(t, "Europe/Berlin")', 3),
    ("minute(t)", 30),
    ("second(t + 5000)", 5),
    ("weekday(t)", 7),
    ('weekday(t, "Asia/Tokyo")', 7),
    ("weekday(0)", 4),
    ("hour(-1)", 23),
    ("date(t)", "2024-03-31"),
    ('date(0, "America/New_York")', "1969-12-31"),
]

ROW: dict[str, object] = {
    "a": None,
    "i": 7,
    "z": 0,
    "s": "abcd",
    "o": {"x": 1},
    "tags": ["x", "y"],
    "t": 1_711_848_600_000,  # 2024-03-31T01:30:00Z
}


@pytest.mark.parametrize(("text", "expected"), MEANINGS, ids=[text for text, _ in MEANINGS])
def test_an_expression_means(text: str, expected: object) -> None:
    value = value_of(text, **ROW)
    assert expected == value
    assert type(expected) is type(value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / z", ZeroDivisionError),
        ("1 % z", ZeroDivisionError),
        ("s > 1", TypeError),
        ("s + 1", TypeError),
        ("s * 2", TypeError),
        ("2 * s", TypeError),
        ("s % 2", TypeError),
        ("tags * 2", TypeError),
        ("i and true", TypeError),
        ("not i", TypeError),
        ("not s", TypeError),
        ("when(i, 1, 2)", TypeError),
        ("lower(i)", TypeError),
        ("length(i)", TypeError),
        ("contains(i, 1)", TypeError),
        ("abs(s)", TypeError),
        ("s.x", TypeError),
        ("i.x", TypeError),
        ("slice(s, 0, -1)", ValueError),
        ("slice(i, 0)", TypeError),
        ('int("1_0")', ValueError),
        ('int(" 1")', ValueError),
        ("int(nan)", ValueError),
        ("int(inf)", OverflowError),
        ("int(1e30)", ValueError),
        ("int(tags)", TypeError),
        ('float("x")', ValueError),
        ("float(tags)", TypeError),
        ('bool("yes")', ValueError),
        ("bool(tags)", TypeError),
        ("str(tags)", TypeError),
        ("parse_time(s)", ValueError),
        ("hour(true)", ValueError),
        ("year(9223372036854775807)", OverflowError),
        ('matches(i, "x")', TypeError),
    ],
)
def test_there_is_no_value_for(text: str, error: type[Exception]) -> None:
    expression = parse_expression(text)
    with pytest.raises(error):
        expression(ROW)
    with pytest.raises(error):
        expression.evaluate([ROW, ROW])


@pytest.mark.parametrize(
    ("canonical", "text"),
    [
        ('amount > 50 and user == "u1"', "amount>50 AND user = 'u1'"),
        ("a != 1", "(a <> 1)"),
        ("a and b and c", "((a and b) and c)"),
        ("a and (b and c)", "a and (b and c)"),
        ("(a or b) and not c", "(a or b) and not c"),
        ("a + b * c - (d - e)", "a+b*c-(d-e)"),
        ("(a + b) * -c", "(a + b) * -c"),
        ("-(a * b)", "-(a * b)"),
        ("-5 + a", "- 5 + a"),
        ("-(5)", "-(5)"),
        ("(5).x", "(5).x"),
        ("`select me`.`x``y` == null_", "`select me`.`x``y` == null_"),
        ("`null` is null", "`null` IS NULL"),
        ("a is not null", "not (a is null)"),
        ('a not in (1, "x")', "not a in (1, 'x')"),
        ("not not a", "not (not a)"),
        ("(a == b) == c", "(a == b) == c"),
        ("when(a, 1, b, 2, null)", "when(a, 1, b, 2, null)"),
        ('"tab\\t quote\\" \\\\ \\u0000"', '"tab\\t quote\\" \\\\ \\u0000"'),
        ("1e+100 + 0.1 + nan - inf - -inf", "1e100 + .1 + nan - inf - -inf"),
        ("int(a) + fill_null(b, 0)", "int(a)+fill_null(b,0)"),
    ],
)
def test_text_is_written_one_way(canonical: str, text: str) -> None:
    expression = parse_expression(text)
    assert canonical == str(expression)
    assert expression.tree == parse_expression(canonical).tree


PYTHON: list[tuple[str, Callable[[], Expression]]] = [
    ('a > 50 and b == "x"', lambda: (col("a") > 50) & (col("b") == "x")),
    ("not (a or b)", lambda: ~(col("a") | col("b"))),
    ("true and a or false", lambda: (True & col("a")) | False),
    ("1 - a + 2 * a / 3 // a % 4", lambda: 1 - col("a") + 2 * col("a") / 3 // col("a") % 4),
    ("-a", lambda: -col("a")),
    ("2 / a + 2 // a + 2 % a", lambda: 2 / col("a") + 2 // col("a") + 2 % col("a")),
    ("a < 1 or a <= 1 or a >= 1", lambda: (col("a") < 1) | (col("a") <= 1) | (col("a") >= 1)),
    ("a != b", lambda: col("a") != col("b")),
    ("a > 1", lambda: 1 < col("a")),
    ("false or a", lambda: False | col("a")),
    ("a is null or a is not null", lambda: col("a").is_null() | col("a").is_not_null()),
    ("fill_null(a, 0) in (1, 2)", lambda: col("a").fill_null(0).is_in([1, 2])),
    ("a.b.c", lambda: col("a").field("b").field("c")),
    ("int(a)", lambda: col("a").cast("int")),
    ("abs(length(a))", lambda: col("a").length().abs()),
    ("lower(upper(strip(a)))", lambda: col("a").strip().upper().lower()),
    ('contains(a, "x")', lambda: col("a").contains("x")),
    ("starts_with(a, b)", lambda: col("a").starts_with(col("b"))),
    ('ends_with(a, "x")', lambda: col("a").ends_with("x")),
    ('replace(a, "x", "y")', lambda: col("a").replace("x", "y")),
    ("slice(a, 1)", lambda: col("a").slice(1)),
    ("slice(a, 1, 2)", lambda: col("a").slice(1, 2)),
    ('matches(a, "x+")', lambda: col("a").matches("x+")),
    ("parse_time(a)", lambda: col("a").parse_time()),
    ('truncate(a, "1h")', lambda: col("a").truncate("1h")),
    ("year(a)", lambda: col("a").year()),
    ('month(a, "Asia/Tokyo")', lambda: col("a").month("Asia/Tokyo")),
    ("day(a)", lambda: col("a").day()),
    ("hour(a)", lambda: col("a").hour()),
    ("minute(a)", lambda: col("a").minute()),
    ("second(a)", lambda: col("a").second()),
    ("weekday(a)", lambda: col("a").weekday()),
    ("date(a)", lambda: col("a").date()),
    ("when(a, 1, null)", lambda: when(col("a")).then(1)),
    (
        'when(a, 1, b, "x", c)',
        lambda: when(col("a")).then(1).when(col("b")).then("x").otherwise(col("c")),
    ),
    ("a >= 1000", lambda: col("a") >= datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
    ("a - b < 1500", lambda: col("a") - col("b") < timedelta(seconds=1.5)),
    ("null", lambda: lit(None)),
]


@pytest.mark.parametrize(("text", "build"), PYTHON, ids=[text for text, _ in PYTHON])
def test_python_writes_the_same_trees(text: str, build: Callable[[], Expression]) -> None:
    expression = build()
    assert text == str(expression)
    assert parse_expression(text).tree == expression.tree


def test_every_function_is_a_method() -> None:
    assert [] == [name for name in FUNCTIONS if not callable(getattr(Expression, name, None))]


MISTAKES = [
    ("", 1, "expected a value, found the end"),
    ("a >", 4, "expected a value, found the end"),
    ("amount > )", 10, "expected a value, found ')'"),
    ("a b", 3, "expected an operator or the end, found 'b'"),
    ("a < b < c", 7, "comparisons do not chain"),
    ("a == b in (1)", 8, "expected an operator"),
    ("(a", 3, "expected `)`, found the end"),
    ("a is 5", 6, "expected `null`, found '5'"),
    ("a not 5", 7, "expected `in`"),
    ("a in (b)", 7, "expected a constant"),
    ("a in (1 2)", 9, "expected `,`"),
    ("a in (null)", 3, "never equal to None"),
    ("a in (nan)", 3, "never equal to nan"),
    ("a == null", 3, "is null"),
    ("a && b", 3, "write and"),
    ("a | b", 3, "write or"),
    ("!a", 1, "write not"),
    ('a == "x', 6, "a closing quote"),
    ("a == 'it\\z'", 9, "no escape"),
    ('"\\U00110000"', 2, "no character"),
    ("a ; b", 3, "';' means nothing here"),
    ("a.5", 2, "expected an operator"),
    ("a.", 3, "expected a name"),
    ("`a", 1, "means nothing here"),
    ("frobnicate(a)", 1, "no function 'frobnicate'; there are abs"),
    ("loower(a)", 1, "is it lower()?"),
    ("lower()", 1, "lower() takes 1 operand, not 0"),
    ("slice(a)", 1, "slice() takes 2 to 3 operands, not 1"),
    ("int(a, b)", 1, "int() takes 1 operand, not 2"),
    ("when(a, b)", 1, "odd number"),
    ("1 + when(a)", 5, "odd number"),
    ('matches(a, "(")', 1, "no regular expression"),
    ("matches(a, b)", 1, "takes a constant"),
    ("matches(a, 5)", 1, "takes a pattern"),
    ('truncate(a, "1 parsec")', 1, "parsec"),
    ('truncate(a, "0s")', 1, "at least 1 ms"),
    ("truncate(a, true)", 1, "takes a duration"),
    ('hour(a, "Mars/Olympus")', 1, "time zone"),
    ("hour(a, 5)", 1, "a time zone is a name"),
    ("99999999999999999999", 1, "64 bits"),
    ("9223372036854775808", 1, "64 bits"),
    ("1e999", 1, "too large"),
    ("(" * 51 + "a" + ")" * 51, 51, "nested 50 deep"),
    ("not " * 51 + "a", 205, "nested 50 deep"),
    ("a" + " + a" * 60, 205, "nested 50 deep"),
    ("a" + ".b" * 60, 103, "nested 50 deep"),
    ("-" * 60 + "a", 52, "nested 50 deep"),
]


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    MISTAKES,
    ids=[one[0][:30] + f"~{n}" for n, one in enumerate(MISTAKES)],
)
def test_a_mistake_is_shown_where_it_is(text: str, position: int, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_expression(text)
    message = str(caught.value)
    assert message.startswith(f"position {position} of the expression: ")
    assert problem in message


def test_a_mistake_is_pointed_at() -> None:
    with pytest.raises(UsageError) as caught:
        parse_expression('amount > 50 and user =* "u1"')
    assert str(caught.value).splitlines()[1:] == [
        '  amount > 50 and user =* "u1"',
        "                        ^",
    ]


def test_length_and_depth_are_bounded() -> None:
    with pytest.raises(UsageError, match="at most 10000 characters"):
        parse_expression("a" * 10_001)
    flat = " or ".join(f"a == {n}" for n in range(600))
    assert parse_expression(flat)({"a": 599}) is True
    deep = col("a")
    for _ in range(DEPTH_MAX):
        deep = deep + 1
    for use in (str, lambda one: one({"a": 1})):
        with pytest.raises(UsageError, match="nested 50 deep"):
            use(deep)
    exactly = deep.tree.left  # type: ignore[union-attr]  # an addition
    assert parse_expression(str(Expression(exactly))).tree == exactly


REFUSED: dict[str, Callable[[], object]] = {
    "== None": lambda: col("a") == None,  # noqa: E711
    "in None": lambda: col("a").is_in([None]),  # type: ignore[list-item]
    "a list": lambda: col("a") - [1],  # type: ignore[operator]
    "large": lambda: lit(2**63),
    "naive": lambda: lit(datetime(2024, 1, 1)),  # noqa: DTZ001
    "no name": lambda: col(""),
    "name of bytes": lambda: col(b"a"),  # type: ignore[arg-type]
    "no type": lambda: col("a").cast("decimal"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_expression_can_hold_is_refused(case: str) -> None:
    with pytest.raises(UsageError):
        REFUSED[case]()


def test_an_expression_has_no_truth() -> None:
    with pytest.raises(TypeError, match=r"write & \| ~"):
        bool(col("a") > 1)
    with pytest.raises(TypeError, match="is_in"):
        col("a") in [1]  # noqa: B015, FURB171


def test_an_aware_datetime_is_utc_milliseconds() -> None:
    zone = timezone(timedelta(hours=1))
    assert (lit(datetime(1970, 1, 1, 1, tzinfo=zone))).tree == lit(0).tree


def test_constants_of_different_types_are_different_trees() -> None:
    trees = [lit(value).tree for value in (1, 1.0, True, "1", None, 0.0, -0.0, math.nan)]
    assert len(set(trees)) == len(trees)
    assert lit(math.nan).tree == lit(math.nan).tree


def test_a_tree_can_be_walked() -> None:
    expression = parse_expression("when(a.b > 1, lower(c), d in (1), fill_null(-c, e), not f)")
    assert ["a", "c", "d", "e", "f"] == expression.columns()
    kinds = {type(node).__name__ for node in walk(expression.tree)}
    assert {"Case", "Member", "Operation", "Call", "IsIn", "FillNull", "Negate", "Not"} <= kinds
    assert 5 == len(children(expression.tree))


@pytest.mark.parametrize("used", [False, True])
def test_an_expression_can_be_pickled(used: bool) -> None:
    expression = when(col("a") > 1).then("x")
    if used:
        expression({"a": 2})
    again = pickle.loads(pickle.dumps(expression))
    assert again.tree == expression.tree
    assert again.otherwise("y").evaluate([{"a": 2}, {}]) == ["x", "y"]


class Trade(msgspec.Struct):
    user: str
    amount: float


@dataclass
class Quote:
    user: str
    amount: float


class Color(StrEnum):
    RED = "red"


def test_rows_of_any_kind_are_read() -> None:
    expression = parse_expression('amount > 50 and user == "u1"')
    rows: list[object] = [Trade("u1", 60), Quote("u1", 70), {"user": "u1", "amount": 80}, None]
    assert [True, True, True, None] == expression.evaluate(rows)
    for row in rows[:3]:
        assert [True] * 9 == expression.evaluate([row] * 9)
    assert [] == expression.evaluate([])


def test_an_object_without_the_field_is_an_error_unlike_a_dict() -> None:
    with pytest.raises(AttributeError):
        col("price").evaluate([Trade("u1", 1.0)] * 2)
    assert [None, 1] == col("price").evaluate([{}, {"price": 1}])


def test_names_of_methods_and_names_with_dots_are_plain_fields() -> None:
    rows: list[object] = [Trade("u1", 1.0), {"items": 5, "a.b": 6, "amount": 1.0}]
    assert [None, 5] == col("items").evaluate([{}, rows[1]])
    assert 6 == col("a.b")(rows[1])
    with pytest.raises(AttributeError):
        col("items").evaluate(rows)
    with pytest.raises(AttributeError):
        col("user.real").evaluate([Trade("u1", 1.0)] * 2)
    with pytest.raises(AttributeError):
        col("amount.real").evaluate([Trade("u1", 1.0)] * 2)


def test_an_enum_equals_its_value() -> None:
    row = {"color": Color.RED}
    assert value_of('color == "red"', **row) is True
    assert value_of('color != "red"', **row) is False
    assert value_of('color in ("red", "blue")', **row) is True


def test_an_int_is_compared_to_a_float_exactly() -> None:
    floats = [{"x": float(BIG)}] * 3
    assert [False] * 3 == (col("x") > BIG).evaluate(floats)
    assert [True] * 3 == (col("x") < BIG + 1).evaluate(floats)
    assert [True, True, None] == (col("x") < BIG + 1).evaluate([{"x": BIG}, floats[0], {}])


@pytest.mark.parametrize("text", ["a and b", "a or b", "not a or b and a"])
@pytest.mark.parametrize("rare", [True, False, None])
def test_logic_over_many_rows_is_computed_for_those_that_need_it(
    text: str, rare: bool | None
) -> None:
    rows: list[dict[str, object]] = [{"a": text != "a and b", "b": n % 3 == 0} for n in range(40)]
    rows[7] = {"a": rare, "b": None}
    rows[8] = {"a": rare, "b": True}
    rows[9] = {"a": None, "b": False}
    rows[10] = {"a": None, "b": True}
    expression = parse_expression(text)
    # The column form itself, which evaluate() would replace if it raised.
    columns = vector(expression.tree)(Batch(rows, only_type(rows)))
    assert [expression(row) for row in rows] == columns


def test_text_among_numbers_is_never_repeated() -> None:
    rows: list[object] = [{"n": 2}, {"n": "ab"}]
    for expression in (col("n") * 2, 2 * col("n"), col("n") * col("n"), col("n") % 2):
        with pytest.raises(TypeError):
            expression.evaluate(rows)
        with pytest.raises(TypeError):
            expression.evaluate(rows[1:])


def test_an_expression_stands_for_a_function_in_a_pipeline() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t")
    results = (
        rows.filter((col("amount") > 1) & col("user").is_not_null())
        .key_by(col("user").lower())
        .window(tumbling(10))
        .agg(total=agg.sum(col("amount") * 2), n=agg.count(col("note")))
    )
    results.to("out")
    rows.map(when(col("amount") > 2).then("large").otherwise("small")).to("sizes")
    inputs: list[object] = [
        {"t": 1, "user": "A", "amount": 2},
        {"t": 2, "user": "a", "amount": 3, "note": "x"},
        {"t": 3, "user": None, "amount": 9},
        {"t": 4, "user": "b", "amount": 1},
    ]
    output = pipeline.test({"in": inputs})
    assert output["out"] == [{"key": "a", "window_start": 0, "window_end": 10, "total": 10, "n": 1}]
    assert output["sizes"] == ["small", "large", "large", "small"]


def test_a_row_in_error_is_named() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", time="t").filter(col("amount") > 1).to("out")
    with pytest.raises(RecordError, match=r"filter amount > 1.*TypeError") as caught:
        pipeline.test({"in": [{"t": 1, "amount": 2}, {"t": 2, "amount": "x"}]})
    assert 1 == caught.value.offset


def test_values_an_expression_raises_on_are_rejected_one_by_one() -> None:
    rejected: list[tuple[int, str]] = []
    rows: list[object] = [{"n": 1}, {"n": "x"}, {}, {"n": 0}, {"n": 4}]

    def reject(index: int, error: Exception) -> None:
        rejected.append((index, type(error).__name__))

    results = convert(rows, 8 // col("n"), reject)
    assert [8, REJECTED, None, REJECTED, 2] == results
    assert [(1, "TypeError"), (3, "ZeroDivisionError")] == rejected


def test_a_plan_knows_an_expression_by_its_text() -> None:
    assert "amount > 1" == describe(col("amount") > 1)
    assert "sum(amount * 2)" == agg.sum(col("amount") * 2).describe()
    assert "first(lower(a), by=b)" == agg.first(col("a").lower(), by=col("b")).describe()
    assert ["b", "a"] == field_names(agg.first(col("a"), by=col("b")).field)
