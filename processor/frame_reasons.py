"""What of an expression columns cannot compute, as far as the expression alone shows. Pure.

What else they leave to rows depends on the data: see frame_expressions.py.
"""

from __future__ import annotations

from typing import Final

from .expression_tree import Call, Column, Literal, Member, Tree, walk

UTC_ONLY: Final = frozenset({"date", "day", "hour", "minute", "month", "second", "weekday", "year"})
"""Functions of times: other zones have rules that may be others in Arrow."""

ROWS_ONLY: Final = frozenset({"matches", "parse_time", "strip"})
"""Functions that Arrow has with another meaning, or not at all."""


def why_not(tree: Tree, *, pairs: bool = False) -> str | None:
    """Why an expression is computed on rows, in a few words; None if columns can do it.

    Args:
        tree: The expression.
        pairs: Whether rows are the pairs of a join, whose sides have fields.
    """
    for node in walk(tree):
        if isinstance(node, Member) and not (pairs and isinstance(node.operand, Column)):
            return f"it reads {node.name} of an object"
        if not isinstance(node, Call):
            continue
        if node.function in ROWS_ONLY:
            return f"{node.function}() works on rows"
        if node.function in UTC_ONLY and node.operands[1:] not in {(), (Literal("UTC"),)}:
            return f"{node.function}() in a time zone works on rows"
    return None
