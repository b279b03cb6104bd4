"""Reading a field of a frame: by name or by an expression. What fields are is in fields.py.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable

from .expressions import Expression
from .fields import Field
from .frame_expressions import compile_columns
from .frames import Array, Frame


def column_of(field: Field) -> Callable[[Frame], Array]:
    """The function that reads a name or expression of all values of a frame.

    It raises NotInColumnsError where rows have to say.
    """
    if isinstance(field, Expression):
        return compile_columns(field.tree)
    assert isinstance(field, str)
    return lambda frame: frame.column(field)
