"""An expression over many rows at a time, in passes that Python does in C. Pure.

A tree becomes functions of a batch of rows, composed once; each gives a column, and a field that is
named twice is read once. Everything is computed for all rows first, also what `and`, `or`, `when`
and `fill_null` may not need. Whatever raises there is no error yet: the rows are then computed one
by one as expression_scalar.py does, which decides. So both give the same, and no batch pays
for a rule it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from operator import and_, attrgetter, itemgetter, mod, mul, or_
from typing import Any, Final, TypeAlias

from .expression_calls import bound
from .expression_functions import FUNCTIONS, OPERATORS, OfTimes
from .expression_scalar import NO_OBJECTS, condition_of, read, single
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
    Not,
    Operation,
    Tree,
)

Values: TypeAlias = list[Any]

_NOT: Final = {True: False, False: True, None: None}
_TRUTHS: Final = frozenset({bool, type(None)})
_NUMBERS: Final = frozenset({int, float})
_READ_ONE_BY_ONE: Final = (Mapping, type(None), *NO_OBJECTS)
_WORTH_ALL: Final = 0.2
"""Where `and` or `or` needs its next operand for more than this part of the rows, it is computed
for all: picking rows out costs more than a comparison."""
_UNCHECKED: Final = {"*": mul, "%": mod}
"""What stands for an operator when all operands are known to be numbers."""


def only_type(values: Sequence[Any]) -> type | None:
    """The type of all values, if they have one."""
    if not values:
        return None
    kind = type(values[0])
    # Counting goes by identity, which is much faster than a set of types.
    return kind if list(map(type, values)).count(kind) == len(values) else None


class Batch:
    """Some rows, and their fields as far as they have been read."""

    __slots__ = ("_columns", "_kind", "rows")

    def __init__(self, rows: Sequence[Any], kind: type | None) -> None:
        self.rows = rows
        self._kind = kind
        """The type of all rows, if there is one."""
        self._columns: dict[str, Values] = {}

    def part(self, needed: Values) -> Batch:
        """The rows for which `needed` is true."""
        return Batch(list(compress(self.rows, needed)), self._kind)

    def column(self, name: str) -> Values:
        """A field of every row."""
        values = self._columns.get(name)
        if values is None:
            values = self._columns[name] = self._read(name)
        return values

    def _read(self, name: str) -> Values:
        kind = self._kind
        if kind is dict:
            try:
                return list(map(itemgetter(name), self.rows))
            except KeyError:
                return [row.get(name) for row in self.rows]
        # A dot would mean a field of a field to attrgetter.
        if kind is not None and not issubclass(kind, _READ_ONE_BY_ONE) and "." not in name:
            return list(map(attrgetter(name), self.rows))
        return [read(row, name) for row in self.rows]


Vector: TypeAlias = Callable[[Batch], Values]


def vector(tree: Tree) -> Vector:  # noqa: C901, PLR0911 - a case for each kind of node
    """The function that computes a tree for a batch. It raises where a row may be in error."""
    match tree:
        case Column(name):
            return lambda batch: batch.column(name)
        case Literal(value):
            return lambda batch: [value] * len(batch.rows)
        case Member(operand, name):
            objects = vector(operand)
            return lambda batch: [read(value, name) for value in objects(batch)]
        case Operation(operator, left, right):
            return _operation(operator, left, right)
        case Not(operand):
            conditions = _conditions(operand)
            return lambda batch: list(map(_NOT.__getitem__, conditions(batch)))
        case Logic(operator, operands):
            return _logic(operator == "or", [_conditions(one) for one in operands])
        case IsNull(operand):
            values = vector(operand)
            return lambda batch: [value is None for value in values(batch)]
        case FillNull(operand, default):
            return _fill(vector(operand), vector(default))
        case Case(branches, otherwise):
            pairs = [(_conditions(condition), vector(value)) for condition, value in branches]
            return _case(pairs, vector(otherwise))
        case Call():
            return _call(tree)
        case _:
            return _strict(single(tree), vector(tree.operand))


def is_condition(tree: Tree) -> bool:  # noqa: PLR0911 - a case for each kind of node
    """Whether a tree can be nothing but true, false or null."""
    match tree:
        case Operation(operator, _, _):
            return operator in COMPARISONS
        case Literal(value):
            return value is None or isinstance(value, bool)
        case Cast(name, _):
            return name == "bool"
        case Call(name, _):
            return FUNCTIONS[name].boolean
        case FillNull(operand, default):
            return is_condition(operand) and is_condition(default)
        case Case(branches, otherwise):
            return is_condition(otherwise) and all(is_condition(value) for _, value in branches)
        case _:
            return isinstance(tree, Not | Logic | IsNull | IsIn)


def _conditions(tree: Tree) -> Vector:
    """A column of conditions; anything else in it raises."""
    values = vector(tree)
    if is_condition(tree):
        return values

    def checked(batch: Batch) -> Values:
        column = values(batch)
        if not set(map(type, column)) <= _TRUTHS:
            for value in column:
                if value is not None:
                    condition_of(value)
        return column

    return checked


def _operation(operator: str, left: Tree, right: Tree) -> Vector:
    function = OPERATORS[operator]
    first = vector(left)
    if operator in _UNCHECKED:
        return _arithmetic(operator, first, right)
    if isinstance(right, Literal) and right.value is not None:
        if operator in {"==", "!="}:
            return _equal_to(right.value, first, negative=operator == "!=")
        if operator in COMPARISONS and type(right.value) is int:
            return _compared_to_int(function, first, right.value)
        return _strict_constant(function, first, right.value)
    second = vector(right)
    if operator in {"==", "!="}:
        # These do not raise on None.
        return lambda batch: _pairs(function, first(batch), second(batch))

    def compute(batch: Batch) -> Values:
        ones, others = first(batch), second(batch)
        try:
            return list(map(function, ones, others))
        except TypeError:
            return _pairs(function, ones, others)

    return compute


def _arithmetic(operator: str, first: Vector, right: Tree) -> Vector:
    """An operator that Python gives another meaning for text."""
    checked, unchecked = OPERATORS[operator], _UNCHECKED[operator]
    second = vector(right)
    number = right.value if isinstance(right, Literal) else None
    constant = repeat(number) if type(number) in _NUMBERS else None

    def compute(batch: Batch) -> Values:
        ones = first(batch)
        if only_type(ones) not in _NUMBERS:
            return _pairs(checked, ones, second(batch))
        if constant is not None:
            return list(map(unchecked, ones, constant))
        others = second(batch)
        if only_type(others) not in _NUMBERS:
            return _pairs(checked, ones, others)
        return list(map(unchecked, ones, others))

    return compute


def _compared_to_int(function: Callable[[Any, Any], Any], operand: Vector, constant: int) -> Vector:
    """A comparison with an int, which Python compares to floats slowly. Both are exact."""
    as_float = float(constant) if abs(constant) <= 1 << 53 else constant

    def compute(batch: Batch) -> Values:
        column = operand(batch)
        floats = column and type(column[0]) is float
        return _with_constant(function, column, as_float if floats else constant)

    return compute


def _pairs(function: Callable[[Any, Any], Any], ones: Values, others: Values) -> Values:
    return [
        None if one is None or other is None else function(one, other)
        for one, other in zip(ones, others, strict=True)
    ]


def _equal_to(constant: Any, operand: Vector, *, negative: bool) -> Vector:
    if negative:
        return lambda batch: [
            None if value is None else value != constant for value in operand(batch)
        ]
    return lambda batch: [None if value is None else value == constant for value in operand(batch)]


def _strict_constant(function: Callable[[Any, Any], Any], operand: Vector, constant: Any) -> Vector:
    """A function of a column and a constant that is not null."""
    return lambda batch: _with_constant(function, operand(batch), constant)


def _with_constant(function: Callable[[Any, Any], Any], column: Values, constant: Any) -> Values:
    try:
        return list(map(function, column, repeat(constant)))
    except TypeError:
        return [None if value is None else function(value, constant) for value in column]


def _strict(function: Callable[[Any], Any], operand: Vector) -> Vector:
    return lambda batch: [None if value is None else function(value) for value in operand(batch)]


def _strict_bound(function: Callable[[Any], Any], operand: Vector) -> Vector:
    if not isinstance(function, OfTimes):
        return _strict(function, operand)

    def compute(batch: Batch) -> Values:
        column = operand(batch)
        many = function.many(column)
        if many is not None:
            return many
        return [None if value is None else function(value) for value in column]

    return compute


def _call(node: Call) -> Vector:
    definition = FUNCTIONS[node.function]
    first = vector(node.operands[0])
    if definition.apply is None:
        return _strict_bound(bound(node), first)
    apply, further = definition.apply, node.operands[1:]
    if not further:
        return _strict(apply, first)
    if len(further) == 1 and isinstance(further[0], Literal) and further[0].value is not None:
        return _strict_constant(apply, first, further[0].value)
    columns = [vector(operand) for operand in node.operands]

    def compute(batch: Batch) -> Values:
        return [
            None if any(value is None for value in values) else apply(*values)
            for values in zip(*(column(batch) for column in columns), strict=True)
        ]

    return compute


def _logic(decisive: bool, operands: list[Vector]) -> Vector:
    def compute(batch: Batch) -> Values:
        column = operands[0](batch)
        for operand in operands[1:]:
            undecided = len(column) - column.count(decisive)
            if undecided > len(column) * _WORTH_ALL:
                column = _both(decisive, column, operand(batch))
            elif undecided:
                column = _where_undecided(decisive, column, operand, batch)
        return column

    return compute


def _both(decisive: bool, ones: Values, others: Values) -> Values:
    try:
        return list(map(or_ if decisive else and_, ones, others))
    except TypeError:
        return [_known(decisive, one, other) for one, other in zip(ones, others, strict=True)]


def _where_undecided(decisive: bool, column: Values, operand: Vector, batch: Batch) -> Values:
    """Compute another operand for those rows alone that need it."""
    unknown = None in column
    simple = not decisive and not unknown
    needed = column if simple else [value is not decisive for value in column]
    results = list(column)
    others = operand(batch.part(needed))
    places = compress(range(len(column)), needed)
    if unknown:
        for place, other in zip(places, others, strict=True):
            results[place] = _known(decisive, results[place], other)
    else:
        for place, other in zip(places, others, strict=True):
            results[place] = other
    return results


def _known(decisive: bool, one: bool | None, other: bool | None) -> bool | None:
    """`or` or `and` of two, where null is unknown."""
    if one is decisive or other is decisive:
        return decisive
    return None if one is None or other is None else not decisive


def _fill(operand: Vector, default: Vector) -> Vector:
    return lambda batch: [
        other if value is None else value
        for value, other in zip(operand(batch), default(batch), strict=True)
    ]


def _case(branches: list[tuple[Vector, Vector]], otherwise: Vector) -> Vector:
    def compute(batch: Batch) -> Values:
        column = otherwise(batch)
        for conditions, values in reversed(branches):
            column = [
                value if condition else other
                for condition, value, other in zip(
                    conditions(batch), values(batch), column, strict=True
                )
            ]
        return column

    return compute
