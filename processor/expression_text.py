"""An expression as text, with as few parentheses as it needs; expression_parser.py reads it back.

The text of a tree is its identity: equal trees have equal text, in every version that has the
tree. Names that are no plain words stand in backticks, text in double quotes.
"""

from __future__ import annotations

import re
from typing import Final

from .expression_tree import (
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
    require_shallow,
)

OR, AND, NOT, COMPARISON, SUM, PRODUCT, UNARY, POSTFIX, ATOM = range(1, 10)
"""How tightly each kind of text binds."""

KEYWORDS: Final = frozenset({"and", "or", "not", "is", "in", "null", "true", "false"})
"""In any case. `nan` and `inf` are words of their own, too, but in lower case alone."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONSTANTS: Final = {None: "null", True: "true", False: "false"}
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text_of(tree: Tree) -> str:
    """The tree as text.

    Raises:
        UsageError: It is nested too deeply.
    """
    require_shallow(tree)
    return _text(tree)


def is_plain_name(name: str) -> bool:
    """Whether a name needs no backticks."""
    reserved = name.lower() in KEYWORDS or name in {"nan", "inf"}
    return _PLAIN_NAME.fullmatch(name) is not None and not reserved


def _text(tree: Tree) -> str:  # noqa: PLR0911 - a case for each kind of node
    match tree:
        case Column(name):
            return _name(name)
        case Literal(value):
            return _constant(value)
        case Member(operand, name):
            return f"{_at(operand, POSTFIX)}.{_name(name)}"
        case Case(branches, otherwise):
            parts = [_text(one) for branch in branches for one in branch]
            return f"when({', '.join([*parts, _text(otherwise)])})"
        case FillNull(operand, default):
            return f"fill_null({_text(operand)}, {_text(default)})"
        case Cast(name, operand):
            return f"{name}({_text(operand)})"
        case Call(name, operands):
            return f"{name}({', '.join(map(_text, operands))})"
        case _:
            return _operator_text(tree)


def _operator_text(  # noqa: PLR0911 - a case for each kind of node
    tree: Negate | Operation | Not | Logic | IsNull | IsIn,
) -> str:
    match tree:
        case Negate(operand):
            # In parentheses, or it would be a negative constant.
            bare = not isinstance(operand, Literal)
            return f"-{_at(operand, UNARY)}" if bare else f"-({_text(operand)})"
        case Operation(operator, left, right):
            level = precedence(tree)
            # Sums and products go on from the left; comparisons do not go on at all.
            least = level + 1 if level == COMPARISON else level
            return f"{_at(left, least)} {operator} {_at(right, level + 1)}"
        case Not(IsNull(operand)):
            return f"{_at(operand, SUM)} is not null"
        case Not(IsIn(operand, values)):
            return f"{_at(operand, SUM)} not in ({', '.join(map(_text, values))})"
        case Not(operand):
            return f"not {_at(operand, NOT)}"
        case Logic(operator, operands):
            level = precedence(tree)
            return f" {operator} ".join(_at(one, level + 1) for one in operands)
        case IsNull(operand):
            return f"{_at(operand, SUM)} is null"
        case IsIn(operand, values):
            return f"{_at(operand, SUM)} in ({', '.join(map(_text, values))})"


def precedence(tree: Tree) -> int:  # noqa: PLR0911 - a case for each kind of node
    """How tightly the text of a tree binds."""
    match tree:
        case Logic(operator, _):
            return OR if operator == "or" else AND
        case Not(IsNull()) | Not(IsIn()) | IsNull() | IsIn():
            return COMPARISON
        case Not():
            return NOT
        case Operation(operator, _, _):
            if operator in COMPARISONS:
                return COMPARISON
            return SUM if operator in {"+", "-"} else PRODUCT
        case Negate():
            return UNARY
        case Literal(value):
            # A dot behind a number would be its decimal point: (1).x
            return UNARY if type(value) in {int, float} else ATOM
        case Member():
            return POSTFIX
        case _:
            return ATOM


def _at(tree: Tree, level: int) -> str:
    text = _text(tree)
    return text if precedence(tree) >= level else f"({text})"


def _name(name: str) -> str:
    return name if is_plain_name(name) else f"`{name.replace('`', '``')}`"


def _constant(value: object) -> str:
    if isinstance(value, str):
        return f'"{"".join(map(_character, value))}"'
    if value is None or isinstance(value, bool):
        return _CONSTANTS[value]
    return repr(value)


def _character(character: str) -> str:
    if character.isprintable() and character not in _ESCAPES:
        return character
    code = ord(character)
    return _ESCAPES.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
