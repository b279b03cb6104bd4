"""An expression on columns: the meaning of expression_scalar.py, computed by Arrow.

Everything is computed for all rows first, also what `and`, `when` or `fill_null` may not need.
Wherever the rows might say something else - an int leaves 64 bits, a division by zero, a type that
has no such operator, infinity - the whole batch is left to them. So a wrong result is impossible as
long as each rule here is right, and an error is always theirs.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .expression_tree import (
    ARITHMETIC,
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
from .frame_errors import NotInColumnsError
from .frame_functions import (
    FUNCTIONS,
    Value,
    finite,
    is_null,
    on_ints,
    quotient,
    remainder,
    require,
)

Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"

_KERNELS: Final[dict[str, Callable[..., Value]]] = {
    "+": pc.add_checked,
    "-": pc.subtract_checked,
    "*": pc.multiply_checked,
    "/": pc.divide,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()
_TYPES: Final = {int: _INT, float: _FLOAT, str: _TEXT, bool: _BOOL}
_INT_END: Final = 2.0**63
_FEW: Final = 8
"""So many constants a float is compared with one by one."""


class Fields(Protocol):
    """Rows whose fields are columns; see `Frame`."""

    @property
    def row_count(self) -> int:
        """Number of rows."""
        ...

    def column(self, name: str) -> Any:
        """A field of all rows: int64, float64, bool, string or null, floats finite.

        Raises:
            NotInColumnsError: It is none of those.
        """
        ...

    def member(self, name: str, field: str) -> Any:
        """A field of the objects that a field holds; see `column`."""
        ...


def compile_columns(tree: Tree) -> Callable[[Fields], Any]:
    """The function that computes a tree for many rows, as a pyarrow.Array.

    It raises NotInColumnsError where rows have to say.

    Raises:
        UsageError: The tree is nested too deeply.
    """
    require_shallow(tree)
    compute = _compiled(tree)

    def whole(fields: Fields) -> Any:
        try:
            value = compute(fields)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise NotInColumnsError(str(error)) from None
        return pa.repeat(value, fields.row_count) if isinstance(value, pa.Scalar) else value

    return whole


def condition_mask(condition: Any) -> Mask:
    """Where a condition is true; null is not.

    Raises:
        NotInColumnsError: It is no condition.
    """
    if is_null(condition):
        return np.zeros(len(condition), np.bool_)
    require(condition, _BOOL)
    known = condition.fill_null(False) if condition.null_count else condition
    mask: Mask = known.to_numpy(zero_copy_only=False)
    return mask


def _compiled(tree: Tree) -> Callable[[Fields], Value]:  # noqa: PLR0911 - a case for each kind
    match tree:
        case Column(name):
            return lambda fields: fields.column(name)
        case Literal(value):
            return lambda _fields: _constant(value)
        case Operation(operator, left, right):
            one, other = _compiled(left), _compiled(right)
            return lambda fields: _operation(operator, one(fields), other(fields))
        case Logic(operator, operands):
            kernel = pc.or_kleene if operator == "or" else pc.and_kleene
            parts = tuple(map(_compiled, operands))
            return lambda fields: reduce(kernel, [_condition(part(fields)) for part in parts])
        case IsIn(operand, values):
            one, constants = _compiled(operand), [each.value for each in values]
            return lambda fields: _is_in(one(fields), constants)
        case FillNull(operand, default):
            one, other = _compiled(operand), _compiled(default)
            return lambda fields: _fill(one(fields), other(fields))
        case Case(branches, otherwise):
            pairs = [(_compiled(test), _compiled(value)) for test, value in branches]
            last = _compiled(otherwise)
            return lambda fields: _case(pairs, last, fields)
        case Call(name, operands):
            parts = tuple(map(_compiled, operands))
            return lambda fields: _call(name, [part(fields) for part in parts])
        case Member():
            return _member(tree)
        case _:
            one = _compiled(tree.operand)
            return lambda fields: _single(tree, one(fields))


def _member(tree: Member) -> Callable[[Fields], Value]:
    if isinstance(tree.operand, Column):
        name, field = tree.operand.name, tree.name
        return lambda fields: fields.member(name, field)
    return _refuse


def _refuse(_fields: Fields) -> Value:
    raise NotInColumnsError("a field of an object")


def _constant(value: object) -> Value:
    # Without a type Arrow looks for one, and for an installed dateutil each time.
    made = pa.scalar(value, _TYPES.get(type(value)))
    if made.type == _FLOAT and not np.isfinite(value):  # type: ignore[call-overload]  # a float
        raise NotInColumnsError("a constant that is not finite")
    return made


def _single(tree: Negate | Not | IsNull | Cast, value: Value) -> Value:
    """A node with one operand."""
    if isinstance(tree, IsNull):
        return pc.is_null(value)
    if is_null(value):
        return value
    if isinstance(tree, Not):
        return pc.invert(_condition(value))
    if isinstance(tree, Cast):
        return _cast(tree.type, value)
    require(value, _INT, _FLOAT)
    return pc.negate_checked(value)


def _condition(value: Value) -> Value:
    if is_null(value):
        return value.cast(_BOOL)
    return require(value, _BOOL)


def _operation(operator: str, left: Value, right: Value) -> Value:
    """Arithmetic or a comparison; null where one side is."""
    if is_null(left) or is_null(right):
        return _null_like(left, right)
    kinds = {left.type, right.type}
    if operator not in ARITHMETIC:
        if kinds == {_BOOL} and operator not in {"==", "!="}:
            raise NotInColumnsError("an order of conditions")
        return _KERNELS[operator](*_same_type(left, right))
    if kinds == {_TEXT} and operator == "+":
        return pc.binary_join_element_wise(left, right, "")
    require(left, _INT, _FLOAT)
    require(right, _INT, _FLOAT)
    if operator in {"//", "%"}:
        return _floored(operator, left, right)
    if operator == "/":
        left, right = _as_float(left), _as_float(right)
    return finite(_KERNELS[operator](*_same_type(left, right)))


def _same_type(left: Value, right: Value) -> tuple[Value, Value]:
    """Two values of one type; an int beside a float becomes one, if it is one exactly.

    Raises:
        NotInColumnsError: They are of different types otherwise.
    """
    if left.type == right.type:
        return left, right
    if {left.type, right.type} != {_INT, _FLOAT}:
        raise NotInColumnsError(f"{left.type} beside {right.type}")
    return _as_float(left), _as_float(right)


def _as_float(value: Value) -> Value:
    """Numbers as floats, none of them rounded."""
    return value if value.type == _FLOAT else pc.cast(value, _FLOAT, safe=True)


def _null_like(left: Value, right: Value) -> Value:
    """Nulls, as many as there are rows."""
    for value in (left, right):
        if not isinstance(value, pa.Scalar):
            return pa.nulls(len(value))
    return pa.scalar(None)


def _floored(operator: str, left: Value, right: Value) -> Value:
    """Quotient and remainder of ints, rounded down as Python does."""
    require(left, _INT)
    require(right, _INT)
    function = quotient if operator == "//" else remainder

    def compute(one: Any, other: Any) -> Any:
        if np.any(other == 0) or np.any(other == -1):
            raise NotInColumnsError("a division by 0, or by -1, which may overflow")
        return function(one, other)

    return on_ints(compute, left, right)


def _is_in(value: Value, constants: Sequence[Any]) -> Value:
    """Whether a value equals one of some constants."""
    if is_null(value):
        return value
    if value.type == _TEXT:
        constants = [each for each in constants if isinstance(each, str)]
    wanted = {_TEXT: str, _INT: int, _FLOAT: float}.get(value.type)
    if any(type(each) is not wanted for each in constants):
        raise NotInColumnsError("constants of several types")
    if value.type == _FLOAT:
        # A set would tell 0.0 from -0.0.
        if len(constants) > _FEW or not constants:
            raise NotInColumnsError("many floats")
        return reduce(pc.or_, [pc.equal(value, each) for each in constants])
    found = pc.is_in(value, value_set=pa.array(constants, value.type))
    if isinstance(value, pa.Array) and not value.null_count:
        return found
    return pc.if_else(pc.is_valid(value), found, pa.scalar(None, _BOOL))


def _fill(value: Value, default: Value) -> Value:
    """A value, or another where it is null."""
    if is_null(value) or value.type == default.type:
        return default if is_null(value) else pc.coalesce(value, default)
    if is_null(default) or (isinstance(value, pa.Array) and not value.null_count):
        return value
    raise NotInColumnsError("a default of another type")


def _cast(name: str, value: Value) -> Value:
    """A value as another type."""
    kind = value.type
    wanted = {"int": _INT, "float": _FLOAT, "str": _TEXT, "bool": _BOOL}[name]
    if kind == wanted:
        return value
    if name == "float":
        return pc.cast(require(value, _INT, _BOOL), _FLOAT, safe=True)
    if name == "str":
        return pc.cast(require(value, _INT, _BOOL), _TEXT)
    if name == "bool":
        require(value, _INT, _FLOAT)
        return pc.not_equal(value, pa.scalar(0, kind))
    require(value, _FLOAT, _BOOL)
    if kind == _BOOL:
        return pc.cast(value, _INT)
    # Arrow compares with what it has cast, and 2**63 may have become 2**63 - 1, which is equal.
    numbers = pc.fill_null(value, 0.0)
    most = numbers.as_py() if isinstance(value, pa.Scalar) else np.max(numbers, initial=0.0)
    if most >= _INT_END:
        raise NotInColumnsError("a float that leaves 64 bits")
    return pc.cast(pc.trunc(value), _INT, safe=True)


def _case(
    branches: Sequence[tuple[Callable[[Fields], Value], Callable[[Fields], Value]]],
    otherwise: Callable[[Fields], Value],
    fields: Fields,
) -> Value:
    """The value behind the first condition that is true."""
    values = [value(fields) for _, value in branches]
    result = otherwise(fields)
    kinds = {each.type for each in (*values, result) if not is_null(each)}
    if len(kinds) > 1:
        raise NotInColumnsError("branches of several types")
    kind = kinds.pop() if kinds else pa.null()
    result = result.cast(kind)
    for (test, _), value in reversed(list(zip(branches, values, strict=True))):
        chosen = pc.fill_null(_condition(test(fields)), False)
        result = pc.if_else(chosen, value.cast(kind), result)
    return result


def _call(name: str, operands: Sequence[Value]) -> Value:
    """A function; null where one of its operands is."""
    function = FUNCTIONS.get(name)
    if function is None:
        raise NotInColumnsError(f"{name}() works on rows")
    if any(map(is_null, operands)):
        raise NotInColumnsError("a function of null")
    return function(*operands)
