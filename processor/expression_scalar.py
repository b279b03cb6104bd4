"""What an expression is for one row: the meaning that all other ways to compute it must keep. Pure.

A tree becomes functions of a row, composed once. Null is None. It spreads through arithmetic,
comparisons and functions; `and` and `or` know it as "unknown" and stop at what decides; `when` and
`fill_null` compute only what they choose. So a part that would raise does so only where its
value is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from .expression_calls import bound
from .expression_functions import CASTS, FUNCTIONS, OPERATORS
from .expression_tree import (
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
)

Row: TypeAlias = Any
Scalar: TypeAlias = Callable[[Row], Any]

NO_OBJECTS: Final = (str, bytes, bool, int, float, list, tuple)
"""Types of values that have no fields."""
_TYPES_REMEMBERED: Final = 1024
_HASHED: Final = frozenset({str, int, float, bool, bytes})
"""Types whose values have a hash; what else there is, a list say, is compared one by one."""


def scalar(tree: Tree) -> Scalar:  # noqa: PLR0911 - a case for each kind of node
    """The function that computes a tree for one row."""
    match tree:
        case Column(name):
            return lambda row: read(row, name)
        case Literal(value):
            return lambda _row: value
        case Member(operand, name):
            one = scalar(operand)
            return lambda row: read(one(row), name)
        case Operation(operator, left, right):
            return _strict_two(OPERATORS[operator], scalar(left), scalar(right))
        case Logic(operator, operands):
            return _logic(operator == "or", tuple(map(scalar, operands)))
        case Case(branches, otherwise):
            pairs = tuple((scalar(condition), scalar(value)) for condition, value in branches)
            return _case(pairs, scalar(otherwise))
        case FillNull(operand, default):
            return _fill(scalar(operand), scalar(default))
        case IsNull(operand):
            one = scalar(operand)
            return lambda row: one(row) is None
        case Call():
            return _call(tree)
        case _:
            return _strict(single(tree), scalar(tree.operand))


def single(tree: Negate | Not | IsIn | Cast) -> Callable[[Any], Any]:
    """What a node with one operand computes where that is not null."""
    match tree:
        case Negate():
            return negative
        case Not():
            return lambda value: not condition_of(value)
        case IsIn(_, values):
            return is_in(values)
        case Cast(name, _):
            return CASTS[name]


def read(row: Row, name: str) -> Any:
    """A field of a row or object: null where a dict or a null has none.

    Raises:
        TypeError: It is a number, text or list, which have no fields.
        AttributeError: An object without it.
    """
    if type(row) is dict:
        return row.get(name)
    kind = _kind(type(row))
    if kind == "items":
        return row.get(name)
    if kind == "attributes":
        return getattr(row, name)
    if row is None:
        return None
    raise TypeError(f"a value of type {type(row).__name__} has no field {name!r}")


def _kind_of(row_type: type) -> str:
    if issubclass(row_type, Mapping):
        return "items"
    return "nothing" if issubclass(row_type, (*NO_OBJECTS, type(None))) else "attributes"


_kind: Final[Callable[[Any], str]] = lru_cache(_TYPES_REMEMBERED)(_kind_of)
"""How fields of a type are read. Remembered: asking a type whether it is a Mapping is slow."""


def negative(value: Any) -> Any:
    """The number with the other sign."""
    return -value


def condition_of(value: Any) -> bool:
    """A condition that is not null.

    Raises:
        TypeError: It is neither true nor false. No number, text or list stands for one.
    """
    if value is True or value is False:
        return value is True
    raise TypeError(f"a condition is true, false or null, not {value!r:.60}")


def is_in(values: tuple[Literal, ...]) -> Callable[[Any], bool]:
    """Whether a value equals one of some constants."""
    constants = tuple(one.value for one in values)
    known = frozenset(constants)

    def inside(value: Any) -> bool:
        return value in known if type(value) in _HASHED else value in constants

    return inside


def _strict(function: Callable[[Any], Any], operand: Scalar) -> Scalar:
    def compute(row: Row) -> Any:
        value = operand(row)
        return None if value is None else function(value)

    return compute


def _strict_two(function: Callable[[Any, Any], Any], left: Scalar, right: Scalar) -> Scalar:
    def compute(row: Row) -> Any:
        one, other = left(row), right(row)
        return None if one is None or other is None else function(one, other)

    return compute


def _call(node: Call) -> Scalar:
    definition = FUNCTIONS[node.function]
    first = scalar(node.operands[0])
    if definition.apply is None:
        return _strict(bound(node), first)
    if len(node.operands) == 1:
        return _strict(definition.apply, first)
    apply = definition.apply
    operands = tuple(map(scalar, node.operands))

    def compute(row: Row) -> Any:
        values = [operand(row) for operand in operands]
        # By identity: a value may have its own idea of what equals None.
        return None if any(value is None for value in values) else apply(*values)

    return compute


def _logic(decisive: bool, operands: tuple[Scalar, ...]) -> Scalar:
    """`or` ends at the first true, `and` at the first false; null is neither."""

    def compute(row: Row) -> bool | None:
        unknown = False
        for operand in operands:
            value = operand(row)
            if value is None:
                unknown = True
            elif condition_of(value) is decisive:
                return decisive
        return None if unknown else not decisive

    return compute


def _case(branches: tuple[tuple[Scalar, Scalar], ...], otherwise: Scalar) -> Scalar:
    def compute(row: Row) -> Any:
        for condition, value in branches:
            chosen = condition(row)
            if chosen is not None and condition_of(chosen):
                return value(row)
        return otherwise(row)

    return compute


def _fill(operand: Scalar, default: Scalar) -> Scalar:
    def compute(row: Row) -> Any:
        value = operand(row)
        return default(row) if value is None else value

    return compute
