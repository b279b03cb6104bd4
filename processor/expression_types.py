"""The types of what expressions make of fields with declared types, as far as they are known. Pure.

Most results are plain: nothing has to be known of them, to be kept in state. What is not comes
from a field as it is, or is computed of Decimals.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from types import NoneType
from typing import Any, Final, get_args

from millstream import UsageError

from .expression_text import text_of
from .expression_tree import (
    ARITHMETIC,
    Case,
    Cast,
    Column,
    FillNull,
    IsIn,
    Literal,
    Member,
    Negate,
    Operation,
    Tree,
    require_shallow,
    walk,
)
from .row_types import field_type, members, union_of

_CASTS: Final[dict[str, Any]] = {"int": int, "float": float, "str": str, "bool": bool}
_EXACT: Final = frozenset({Decimal, int, bool, NoneType})
"""What may be beside a Decimal; to Python a float may not."""


def type_of_tree(  # noqa: PLR0911 - a case for each kind of node
    tree: Tree, row_type: object
) -> Any:
    """The type of its values for rows of a type; None if that is not known.

    >>> type_of_tree(Negate(Cast("int", Column("n"))), dict)
    >>> type_of_tree(Cast("int", Column("n")), dict)
    int | None
    """
    match tree:
        case Column(name):
            return field_type(row_type, name)
        case Member(operand, name):
            return field_type(type_of_tree(operand, row_type), name)
        case Cast(kind):
            return _CASTS[kind] | None
        case Literal(value):
            return type(value)
        case Negate(operand):
            return _of_decimals(operand, row_type=row_type)
        case Operation(sign, left, right) if sign in ARITHMETIC:
            return _of_decimals(left, right, row_type=row_type)
        case FillNull(operand, default):
            return _one_of(operand, default, row_type=row_type)
        case Case(branches, otherwise):
            return _one_of(*(value for _, value in branches), otherwise, row_type=row_type)
    return None


def _of_decimals(*operands: Tree, row_type: object) -> Any:
    """The type of what is computed of Decimals, or of Decimals and ints; None of others."""
    kinds = [set(members(type_of_tree(each, row_type))) for each in operands]
    if not all(kinds) or not _EXACT.issuperset(set().union(*kinds)):
        return None
    if not any(Decimal in each for each in kinds):
        return None
    surely = any(each <= {Decimal, NoneType} for each in kinds)
    return Decimal | None if surely else Decimal | int | None


def _one_of(*operands: Tree, row_type: object) -> Any:
    """The type of what is the value of one of them, where all are numbers that go with Decimals."""
    found = union_of([type_of_tree(each, row_type) for each in operands])
    return found if found is not None and _EXACT.issuperset(members(found)) else None


def require_types(tree: Tree, row_type: object, what: str) -> None:
    """Refuse what is an error, or false, whatever the rows are.

    Raises:
        UsageError: A datetime beside a constant, which it could never equal; a Decimal computed
            with a float. Or it is nested too deeply.
    """
    require_shallow(tree)
    for node in walk(tree):
        name = _beside_constants(node)
        if name is not None and _is_datetime(field_type(row_type, name)):
            raise UsageError(
                f"{what}: {text_of(node)}: {name!r} is a datetime, and a constant time is UTC"
                f" milliseconds; write col({name!r}).parse_time()"
            )
        if isinstance(node, Operation) and node.operator in ARITHMETIC:
            kinds = [_alone(type_of_tree(each, row_type)) for each in (node.left, node.right)]
            if kinds in ([Decimal, float], [float, Decimal]):
                raise UsageError(
                    f"{what}: {text_of(node)}: Python does not compute a Decimal with a float;"
                    " use ints (x * 119 / 100), or a function of the row"
                )


def _alone(declared: object) -> object:
    """The one type of values that are not null; None if there are several."""
    kinds = set(members(declared)) - {NoneType}
    return kinds.pop() if len(kinds) == 1 else None


def _beside_constants(node: Tree) -> str | None:
    """The field that an operator computes with a constant, or compares with some."""
    match node:
        case (
            Operation(_, Column(name), Literal())
            | Operation(_, Literal(), Column(name))
            | IsIn(Column(name), _)
        ):
            return name
    return None


def _is_datetime(declared: object) -> bool:
    """Whether a field of that type holds times as datetimes, if anything."""
    return declared is datetime or datetime in get_args(declared)
