"""The tree an expression is: a few kinds of frozen nodes, plain data that anybody may walk.

What the nodes mean is written down in docs/expressions.md; expression_scalar.py computes it for
one row and is the reference, expression_columns.py for many rows. Here are the kinds, what lies
below a node, and the limits of a tree. Two trees are equal when they are written the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal as OneOf, TypeAlias

from millstream import UsageError

from .event_time import to_ms
from .serde import INT64_MAX, INT64_MIN

DEPTH_MAX: Final = 50
"""How deep a tree may be nested: what recursion follows safely, the parser's above all. A chain of
`and` or `or` is one level."""

Constant: TypeAlias = bool | int | float | str | None

Arithmetic: TypeAlias = OneOf["+", "-", "*", "/", "//", "%"]
Comparison: TypeAlias = OneOf["==", "!=", "<", "<=", ">", ">="]
TypeName: TypeAlias = OneOf["int", "float", "str", "bool"]

ARITHMETIC: Final = frozenset({"+", "-", "*", "/", "//", "%"})
COMPARISONS: Final = frozenset({"==", "!=", "<", "<=", ">", ">="})
TYPES: Final = ("int", "float", "str", "bool")


@dataclass(frozen=True, slots=True)
class Column:
    """A field of the row."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """A constant: null, true or false, a 64-bit int, a float, or text."""

    value: Constant

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and true are different constants, and so are 0.0 and -0.0; NaN is one.
        return isinstance(other, Literal) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[type, str]:
        return type(self.value), repr(self.value)


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a value that is itself an object."""

    operand: Tree
    name: str


@dataclass(frozen=True, slots=True)
class Negate:
    """Minus."""

    operand: Tree


@dataclass(frozen=True, slots=True)
class Operation:
    """Arithmetic or a comparison of two values; null when one is."""

    operator: Arithmetic | Comparison
    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True)
class Not:
    """False for true, true for false, null for null."""

    operand: Tree


@dataclass(frozen=True, slots=True)
class Logic:
    """`and` or `or` of two or more conditions, from the left until one decides."""

    operator: OneOf["and", "or"]
    operands: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether a value is null; itself never null."""

    operand: Tree


@dataclass(frozen=True, slots=True)
class IsIn:
    """Whether a value equals one of several constants, none of which is null or NaN."""

    operand: Tree
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class FillNull:
    """A value, or another where the first is null."""

    operand: Tree
    default: Tree


@dataclass(frozen=True, slots=True)
class Cast:
    """A value as another type, or an error."""

    type: TypeName
    operand: Tree


@dataclass(frozen=True, slots=True)
class Case:
    """The value behind the first condition that is true, or the last value."""

    branches: tuple[tuple[Tree, Tree], ...]
    otherwise: Tree


@dataclass(frozen=True, slots=True)
class Call:
    """A function by its name; null when one of its operands is."""

    function: str
    operands: tuple[Tree, ...]


Tree: TypeAlias = (
    Column
    | Literal
    | Member
    | Negate
    | Operation
    | Not
    | Logic
    | IsNull
    | IsIn
    | FillNull
    | Cast
    | Case
    | Call
)


def children(tree: Tree) -> tuple[Tree, ...]:  # noqa: PLR0911 - a case for each kind of node
    """The nodes right below a node, in the order they are written."""
    match tree:
        case Column() | Literal():
            return ()
        case Operation(_, left, right):
            return (left, right)
        case Logic(_, operands) | Call(_, operands):
            return operands
        case IsIn(operand, values):
            return (operand, *values)
        case FillNull(operand, default):
            return (operand, default)
        case Case(branches, otherwise):
            return (*(one for branch in branches for one in branch), otherwise)
        case _:
            return (tree.operand,)


def walk(tree: Tree) -> Iterator[Tree]:
    """A node and all below it, each before what is below it."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(children(node)))


def column_names(tree: Tree) -> list[str]:
    """The fields of the row that a tree reads, each once, in the order they are written."""
    return list(dict.fromkeys(node.name for node in walk(tree) if isinstance(node, Column)))


def require_shallow(tree: Tree) -> None:
    """Refuse a tree that no recursion could follow.

    Raises:
        UsageError: It is nested too deeply.
    """
    level: list[Tree] = [tree]
    for _ in range(DEPTH_MAX):
        level = [below for node in level for below in children(node)]
        if not level:
            return
    raise UsageError(f"an expression may be nested {DEPTH_MAX} deep; x.is_in([...]) saves many")


def conjunction(operator: OneOf["and", "or"], operands: tuple[Tree, ...]) -> Logic:
    """`and` or `or`; a first operand of the same kind is continued, so chains stay flat."""
    first, *others = operands
    if isinstance(first, Logic) and first.operator == operator:
        return Logic(operator, (*first.operands, *others))
    return Logic(operator, operands)


def comparison(operator: Comparison, left: Tree, right: Tree) -> Operation:
    """A comparison.

    Raises:
        UsageError: One side is the constant null, so that it would always be null.
    """
    if Literal(None) in (left, right):
        raise UsageError(
            f"{operator} with null is never true: test with is_null(), or `is null` in text"
        )
    return Operation(operator, left, right)


def membership(operand: Tree, values: tuple[Literal, ...]) -> IsIn:
    """A test for being one of several constants.

    Raises:
        UsageError: One of them is null or NaN, which equals nothing.
    """
    for one in values:
        if one.value is None or one.value != one.value:
            raise UsageError(f"a value is never equal to {one.value}, so it cannot be in a list")
    return IsIn(operand, values)


def literal(value: object) -> Literal:
    """A constant. An aware datetime becomes UTC milliseconds, a timedelta milliseconds.

    Raises:
        UsageError: A value that no expression can hold.
    """
    if isinstance(value, timedelta):
        value = value // timedelta(milliseconds=1)
    elif isinstance(value, datetime):
        try:
            value = to_ms(value)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if isinstance(value, bool | float) or value is None:
        return Literal(value)
    if type(value) is int:
        if not INT64_MIN <= value <= INT64_MAX:
            raise UsageError(f"{value} does not fit into 64 bits")
        return Literal(value)
    if type(value) is str:
        return Literal(value)
    raise UsageError(
        f"an expression cannot hold {value!r}: constants are None, bool, int, float, str,"
        " datetime and timedelta; fields are col(name)"
    )
