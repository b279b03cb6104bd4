"""Reading a field of a frame: by name or by an expression. What fields are is in fields.py.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable

from .expressions import Expression
from .fields import Field, FieldPair
from .frame_accumulators import Inputs
from .frame_expressions import compile_columns
from .frames import Array, Frame, normal


def column_of(field: Field) -> Callable[[Frame], Array]:
    """The function that reads a name or expression of all values of a frame.

    It raises NotInColumnsError where rows have to say.
    """
    if isinstance(field, Expression):
        return compile_columns(field.tree)
    assert isinstance(field, str)
    return lambda frame: frame.column(field)


def inputs_of(field: Field) -> Callable[[Frame], Inputs]:
    """The function that gives what an aggregate of a field adds of all values of a frame.

    It raises NotInColumnsError where rows have to say.
    """
    if field is None:
        return lambda _: Inputs(None)
    if isinstance(field, FieldPair):
        order, kept = column_of(field.first), column_of(field.second)
        return lambda frame: Inputs(
            normal(kept(frame), "a field"), normal(order(frame), "an order")
        )
    read = column_of(field)
    return lambda frame: Inputs(normal(read(frame), "a field"))
