"""Expressions held against a model that walks the tree for one row at a time.

Random trees, random rows with nulls, missing fields and wrong types: many rows at once, one by one
and the model must give the same values or the same kind of error, and text must read back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings, strategies as st

from millstream.processor import Expression, parse_expression
from millstream.processor.expression_tree import (
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
    Member,
    Negate,
    Not,
    Operation,
    Tree,
    conjunction,
)
from millstream.processor.serde import same_plain

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def no_value() -> Any:
    raise TypeError


CALLS: dict[str, Callable[[Any], Any]] = {
    "lower": lambda text: text.lower(),
    "abs": lambda number: abs(number + 0),
    "length": len,
    "hour": lambda time: time // 3_600_000 % 24 if type(time) is int else no_value(),
}


def condition(value: Any) -> Any:
    if not isinstance(value, bool | None):
        raise TypeError
    return value


def model(tree: Tree, row: Any) -> Any:  # noqa: C901 - a case for each kind of node
    """The value of a tree for a row; raises where there is none."""
    match tree:
        case Column(name):
            return row.get(name) if isinstance(row, dict) else getattr(row, name)
        case Literal(value):
            return value
        case Member(operand, name):
            value = model(operand, row)
            if value is not None and not isinstance(value, dict):
                raise TypeError
            return None if value is None else value.get(name)
        case Logic("and", operands):
            known = [condition(model(operands[0], row))]
            for one in operands[1:]:
                if known[-1] is False:
                    break
                known.append(condition(model(one, row)))
            return False if False in known else None if None in known else True
        case Logic("or", operands):
            # De Morgan: what `and` is for the opposites.
            value = model(Logic("and", tuple(map(Not, operands))), row)
            return None if value is None else not value
        case Not(operand):
            value = condition(model(operand, row))
            return None if value is None else not value
        case IsNull(operand):
            return model(operand, row) is None
        case FillNull(operand, default):
            value = model(operand, row)
            return model(default, row) if value is None else value
        case Case(branches, otherwise):
            for test, result in branches:
                if condition(model(test, row)):
                    return model(result, row)
            return model(otherwise, row)
        case Operation(sign, left, right):
            one, other = model(left, row), model(right, row)
            if one is None or other is None:
                return None
            if sign in {"*", "%"} and str in {type(one), type(other)}:
                raise TypeError
            return OPERATORS[sign](one, other)
        case _:
            operand = tree.operands[0] if isinstance(tree, Call) else tree.operand
            value = model(operand, row)
            return None if value is None else model_of_one(tree, value)


def model_of_one(tree: Tree, value: Any) -> Any:
    match tree:
        case Negate():
            return -value
        case IsIn(_, values):
            return any(value == one.value for one in values)
        case Cast("bool", _):
            if isinstance(value, str):
                return {"true": True, "false": False}[value]
            return value != 0 if isinstance(value, int | float) else no_value()
        case Cast("str", _):
            if isinstance(value, dict):
                no_value()
            return str(value).lower() if isinstance(value, bool) else str(value)
        case Call(name, _):
            if name == "length" and not isinstance(value, str):
                raise TypeError
            return CALLS[name](value)
    raise AssertionError(tree)


COLUMNS = {
    "condition": ["a", "is", "_key"],
    "number": ["b", "two words", "nan"],
    "text": ["c", "x`y", "null"],
    "object": ["end", "at"],
}
names = st.sampled_from(sum(COLUMNS.values(), []))  # noqa: RUF017 - a handful
texts = st.sampled_from(
    ["", "u1", "A", 'say "so"', "back\\slash", "\n\t\x00\x7f", "\ud800", "true"]
)
small = st.integers(-3, 3)
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "condition": st.booleans(),
    "number": small | st.sampled_from([0.5, -2.0]),
    "text": texts,
    "object": st.dictionaries(names, small | texts | st.none(), max_size=3),
}
CONSTANTS: dict[str, st.SearchStrategy[Any]] = {
    "condition": st.booleans(),
    "number": st.one_of(
        small, st.integers(-(2**63), 2**63 - 1), st.floats(), st.sampled_from([0.0, -0.0, 1e100])
    ),
    "text": texts | st.just("\U0001f600"),
}
KINDS = st.sampled_from(["condition", "condition", "number", "text"])


@st.composite
def some_tree(  # noqa: C901 - a function for each kind of node
    draw: st.DrawFn, kind: str = "condition", depth: int = 4
) -> Tree:
    """A tree that could have been written by hand, nearly always of operands that fit."""

    def below(of: str = kind) -> Tree:
        # Now and then another kind: errors must agree as well.
        of = draw(KINDS) if draw(st.integers(0, 19)) == 0 else of
        return draw(some_tree(of, depth - 1))

    def leaf() -> Tree:
        if draw(st.booleans()):
            return Column(draw(st.sampled_from(COLUMNS[kind])))
        return Literal(None if draw(st.integers(0, 9)) == 0 else draw(CONSTANTS[kind]))

    def comparable() -> Tree:
        of = draw(KINDS)
        operands = below(of), below(of)
        if Literal(None) in operands:
            return IsNull(operands[0])  # a comparison with null is refused
        return Operation(draw(st.sampled_from(sorted(COMPARISONS))), *operands)  # type: ignore[arg-type]

    def logic() -> Tree:
        operands = tuple(below() for _ in range(draw(st.integers(2, 3))))
        return conjunction(draw(st.sampled_from(["and", "or"])), operands)

    def inside() -> Tree:
        of = draw(KINDS)
        listed = CONSTANTS[of].filter(lambda value: value == value)
        return IsIn(below(of), tuple(map(Literal, draw(st.lists(listed, max_size=3)))))

    def choice() -> Tree:
        pairs = [(below("condition"), below()) for _ in range(draw(st.integers(1, 2)))]
        return Case(tuple(pairs), below())

    def member() -> Tree:
        return Member(Column(draw(st.sampled_from(COLUMNS["object"]))), draw(names))

    makers: dict[str, list[Callable[[], Tree]]] = {
        "condition": [
            comparable,
            comparable,
            logic,
            logic,
            inside,
            lambda: Not(below()),
            lambda: IsNull(below(draw(KINDS))),
            lambda: Cast("bool", below(draw(KINDS))),
        ],
        "number": [
            lambda: Operation(
                draw(st.sampled_from(["+", "-", "*", "/", "//", "%"])), below(), below()
            ),
            lambda: Negate(below()),
            lambda: Call("abs", (below(),)),
            lambda: Call("length", (below("text"),)),
            lambda: Call("hour", (below(),)),
        ],
        "text": [
            lambda: Operation("+", below(), below()),
            lambda: Call("lower", (below(),)),
            lambda: Cast("str", below(draw(KINDS))),
        ],
    }
    every: list[Callable[[], Tree]] = [choice, lambda: FillNull(below(), below()), member]
    if not depth or draw(st.integers(0, 3)) == 0:
        return leaf()
    return draw(st.sampled_from(makers[kind] * 2 + every))()


@st.composite
def some_row(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for kind, columns in COLUMNS.items():
        for column in columns:
            fate = draw(st.integers(0, 15))
            if fate == 0:
                row[column] = draw(CELLS[draw(st.sampled_from(sorted(CELLS)))])
            elif fate == 1:
                row[column] = None
            elif fate > 2:
                row[column] = draw(CELLS[kind])
    return row


trees = KINDS.flatmap(some_tree)
rows = st.lists(some_row(), max_size=8)


def outcome(function: Callable[[], Any]) -> Any:
    """A value, or that there is none. (Which error it is depends on the words of each type.)"""
    try:
        return function()
    except (ArithmeticError, TypeError, ValueError, LookupError, AttributeError):
        return "error"


@settings(max_examples=120)
@given(trees)
def test_the_text_of_an_expression_reads_back_as_the_same_tree(tree: Tree) -> None:
    text = str(Expression(tree))
    again = parse_expression(text)
    assert tree == again.tree
    assert text == str(again)


@settings(max_examples=120)
@given(trees, rows)
def test_one_row_is_what_the_model_says(tree: Tree, rows: list[Any]) -> None:
    expression = Expression(tree)
    for row in rows:
        expected = outcome(lambda: model(tree, row))  # noqa: B023 - called at once
        assert same_plain(expected, outcome(lambda: expression(row)))  # noqa: B023


@settings(max_examples=120)
@given(trees, rows)
def test_many_rows_at_once_are_rows_one_by_one(tree: Tree, rows: list[Any]) -> None:
    expression = Expression(tree)
    expected = outcome(lambda: [expression(row) for row in rows])
    assert same_plain(expected, outcome(lambda: expression.evaluate(rows)))


class Row(SimpleNamespace):
    """An object with an attribute for every field."""


@settings(max_examples=80)
@given(trees, rows, st.data())
def test_objects_and_dicts_may_be_mixed(
    tree: Tree, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    everything = sum(COLUMNS.values(), [])  # noqa: RUF017 - a handful
    dicts = [{name: row.get(name) for name in everything} for row in rows]
    objects = [Row(**row) for row in dicts]
    mixed = [data.draw(st.sampled_from(pair)) for pair in zip(dicts, objects, strict=True)]
    expression = Expression(tree)
    expected = outcome(lambda: expression.evaluate(dicts))
    assert same_plain(expected, outcome(lambda: expression.evaluate(objects)))
    assert same_plain(expected, outcome(lambda: expression.evaluate(mixed)))
