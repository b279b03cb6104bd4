"""Whether an expression can be true of a row of which only bounds of its fields are known. Pure.

Each node of a tree gets the set of what it may be: numbers and texts in a range, true, false, null,
an error, or anything. The sets are never too small, so "it cannot be true, nor an error" is sure;
that it can need not mean that there is such a row. The meaning is that of expression_scalar.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import inf, isfinite, isnan
from typing import Any, Final, NamedTuple, TypeAlias

from millstream import FieldFacts

from .expression_calls import bound
from .expression_functions import FUNCTIONS, OPERATORS
from .expression_scalar import scalar
from .expression_tree import (
    COMPARISONS,
    Call,
    Case,
    Column,
    FillNull,
    IsIn,
    IsNull,
    Literal,
    Logic,
    Negate,
    Not,
    Operation,
    Tree,
    children,
    column_names,
)

Numbers: TypeAlias = tuple[float, float]
Text: TypeAlias = tuple[int, str]
"""A text as (0, text), and what is above all texts as (1, "")."""
Texts: TypeAlias = tuple[Text, Text]
Fields: TypeAlias = Callable[[str], FieldFacts]

_ABOVE: Final[Text] = (1, "")
_BOTH: Final = frozenset((False, True))
_MONOTONE: Final = frozenset({"parse_time", "truncate", "year", "date"})
"""Functions of a time that never fall as it rises, in UTC."""


class Outcomes(NamedTuple):
    """What a node may be for a row."""

    numbers: Numbers | None = None
    texts: Texts | None = None
    times_ms: tuple[int, int] | None = None
    """What `parse_time` makes of the texts."""
    bools: frozenset[bool] = frozenset()
    null: bool = False
    error: bool = False
    anything: bool = False

    @property
    def only_null(self) -> bool:
        """Whether it is null wherever it is no error."""
        return self._replace(error=False) == _NULL

    @property
    def condition_error(self) -> bool:
        """Whether it may be an error where a condition is wanted."""
        return self.error or self.numbers is not None or self.texts is not None

    @property
    def as_numbers(self) -> Numbers | None:
        """Numbers, of which true is 1 and false 0."""
        ends = [*(self.numbers or ()), *map(int, self.bools)]
        return (min(ends), max(ends)) if ends else None


_NULL: Final = Outcomes(null=True)
_ANYTHING: Final = Outcomes(null=True, error=True, anything=True, bools=_BOTH)


def may_be_true(tree: Tree, fields: Fields) -> bool:
    """Whether it may be true, or an error, for a row whose fields are within bounds.

    Args:
        tree: A condition.
        fields: What is known of a field.
    """
    found = outcomes(tree, fields)
    return found.anything or found.error or True in found.bools


def outcomes(tree: Tree, fields: Fields) -> Outcomes:  # noqa: PLR0911 - a case for each kind of node
    """All that a tree may be for a row whose fields are within bounds."""
    match tree:
        case Literal(value):
            return _constant(value)
        case Column(name):
            return _of_facts(fields(name))
        case Logic(kind, operands):
            return _logic(kind == "or", operands, fields)
        case Case(branches, otherwise):
            return _case(branches, otherwise, fields)
        case FillNull(operand, default):
            found = outcomes(operand, fields)
            return _either(found._replace(null=False), outcomes(default, fields), found.null)
        case IsNull(operand):
            return _is_null(outcomes(operand, fields))
        case _:
            return _strict(tree, fields)


def _strict(tree: Tree, fields: Fields) -> Outcomes:
    """Nodes that are null where an operand is."""
    if not column_names(tree):
        return _folded(tree)
    operands = [outcomes(each, fields) for each in children(tree)]
    if any(each.only_null for each in operands):
        return _NULL._replace(error=any(each.error for each in operands))
    if any(each.anything for each in operands):
        return _ANYTHING
    found = _computed(tree, operands)
    return found._replace(
        null=found.null or any(each.null for each in operands),
        error=found.error or any(each.error for each in operands),
    )


def _computed(  # noqa: PLR0911 - a case for each kind of node
    tree: Tree, operands: list[Outcomes]
) -> Outcomes:
    """What a node is where its operands are not null."""
    first = operands[0]
    match tree:
        case Operation(sign) if sign in COMPARISONS:
            return _compared(sign, first, operands[1])
        case Operation(sign):
            return _arithmetic(sign, first, operands[1])
        case Not():
            flipped = frozenset(not each for each in first.bools)
            return Outcomes(bools=flipped, error=first.condition_error)
        case Negate():
            return _arithmetic("-", Outcomes(numbers=(0, 0)), first)
        case IsIn(_, values):
            return _is_in(first, values)
        case Call("starts_with", (_, Literal(str(part)))):
            return _starts_with(first, part)
        case Call(name) if name in _MONOTONE and (name == "truncate" or len(operands) == 1):
            return _of_time(tree, first)
        case _:
            return _ANYTHING


def _constant(value: Any) -> Outcomes:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return Outcomes(bools=frozenset((value,)))
    if isinstance(value, str):
        return Outcomes(texts=((0, value), (0, value)))
    if isinstance(value, int | float) and not isnan(value):
        return Outcomes(numbers=(value, value))
    return _ANYTHING


def _folded(tree: Tree) -> Outcomes:
    """Of a tree without fields: its value."""
    try:
        return _constant(scalar(tree)({}))
    except Exception:  # whatever it is, each row that computes this raises it
        return Outcomes(error=True)


def _of_facts(facts: FieldFacts) -> Outcomes:
    low, high = facts.low, facts.high
    match facts.kind:
        case "nothing":
            return _NULL
        case "bool":
            return Outcomes(bools=_BOTH, null=facts.nulls)
        case "number":
            assert not isinstance(low, str)
            assert not isinstance(high, str)
            numbers = (-inf if low is None else low, inf if high is None else high)
            return Outcomes(numbers=numbers, null=facts.nulls)
        case "text":
            assert low is None or isinstance(low, str)
            assert high is None or isinstance(high, str)
            texts = ((0, low or ""), _ABOVE if high is None else (0, high))
            return Outcomes(texts=texts, times_ms=facts.times_ms, null=facts.nulls)
        case _:
            return _ANYTHING


# --- conditions ----------------------------------------------------------------------------------


def _logic(decisive: bool, operands: tuple[Tree, ...], fields: Fields) -> Outcomes:
    """From the left until one decides, as rows do."""
    null = error = decided = False
    passed = True
    for operand in operands:
        found = outcomes(operand, fields)
        error |= found.condition_error
        decided |= decisive in found.bools
        passed &= (not decisive) in found.bools
        if not found.null and (not decisive) not in found.bools:
            null = False
            break  # it decides, or is an error: none behind it is computed
        null |= found.null
    bools = frozenset(value for value, may in ((decisive, decided), (not decisive, passed)) if may)
    return Outcomes(bools=bools, null=null, error=error)


def _case(branches: tuple[tuple[Tree, Tree], ...], otherwise: Tree, fields: Fields) -> Outcomes:
    found = Outcomes()
    for condition, value in branches:
        asked = outcomes(condition, fields)
        found = found._replace(error=found.error or asked.condition_error)
        found = _either(found, outcomes(value, fields), True in asked.bools)
        if not (asked.null or False in asked.bools):
            return found
    return _either(found, outcomes(otherwise, fields), True)


def _either(one: Outcomes, other: Outcomes, reached: bool) -> Outcomes:
    """What is one of both, the second only if it is reached."""
    if not reached:
        return one
    if one.anything or other.anything:
        return _ANYTHING
    ends = [*(one.numbers or ()), *(other.numbers or ())]
    if len({type(end) for end in ends if isfinite(end)}) > 1:
        return _ANYTHING  # of ints beside floats the largest need not give the largest sum
    texts = [*(one.texts or ()), *(other.texts or ())]
    same = one.times_ms if one.texts == other.texts and one.times_ms == other.times_ms else None
    return Outcomes(
        numbers=(min(ends), max(ends)) if ends else None,
        texts=(min(texts), max(texts)) if texts else None,
        times_ms=same,
        bools=one.bools | other.bools,
        null=one.null or other.null,
        error=one.error or other.error,
    )


def _is_null(found: Outcomes) -> Outcomes:
    if found.anything:
        return Outcomes(bools=_BOTH, error=True)
    present = found.numbers is not None or found.texts is not None or bool(found.bools)
    bools = frozenset(value for value, may in ((True, found.null), (False, present)) if may)
    return Outcomes(bools=bools, error=found.error)


def _is_in(found: Outcomes, values: tuple[Literal, ...]) -> Outcomes:
    same = [_compared("==", found, _constant(each.value)) for each in values]
    return Outcomes(bools=frozenset((False,)).union(*(each.bools for each in same)))


# --- values --------------------------------------------------------------------------------------


def _compared(sign: str, left: Outcomes, right: Outcomes) -> Outcomes:
    if left.anything or right.anything:
        return _ANYTHING
    one, other = left.as_numbers, right.as_numbers
    bools: frozenset[bool] = frozenset()
    if one is not None and other is not None:
        bools |= _order(sign, one, other)
    if left.texts is not None and right.texts is not None:
        bools |= _order(sign, left.texts, right.texts)
    mixed = (one is not None and right.texts is not None) or (
        left.texts is not None and other is not None
    )
    if mixed and sign in {"==", "!="}:
        bools |= {sign == "!="}
    return Outcomes(bools=bools, error=mixed and sign not in {"==", "!="})


def _order(sign: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> frozenset[bool]:
    """What a comparison of a value in one range with a value in another may be."""
    (low, high), (least, most) = one, other
    match sign:
        case "<":
            may, may_not = low < most, high >= least
        case "<=":
            may, may_not = low <= most, high > least
        case ">":
            may, may_not = high > least, low <= most
        case ">=":
            may, may_not = high >= least, low < most
        case _:
            may, may_not = low <= most and least <= high, not low == high == least == most
            if sign == "!=":
                may, may_not = may_not, may
    return frozenset(value for value, holds in ((True, may), (False, may_not)) if holds)


def _arithmetic(sign: str, left: Outcomes, right: Outcomes) -> Outcomes:
    """Sums, products and quotients rise and fall with their operands, rounded or not."""
    one, other = left.as_numbers, right.as_numbers
    unknown = left.texts is not None or right.texts is not None or sign not in {"+", "-", "*", "/"}
    if unknown or one is None or other is None or (sign == "/" and other[0] <= 0 <= other[1]):
        return _ANYTHING
    try:
        corners = [OPERATORS[sign](*pair) for pair in product(one, other)]
    except OverflowError:
        return _ANYTHING
    if not all(map(isfinite, corners)):
        return _ANYTHING  # a NaN may be among them, which is in no range
    return Outcomes(numbers=(min(corners), max(corners)))


def _starts_with(found: Outcomes, part: str) -> Outcomes:
    if found.texts is None or found.as_numbers is not None:
        return _ANYTHING
    (_, low), high = found.texts
    # Texts that begin so are those from the part itself on, as long as they do.
    may = high >= (0, part) and (low <= part or low.startswith(part))
    return Outcomes(bools=_BOTH if may else frozenset((False,)))


def _of_time(tree: Call, found: Outcomes) -> Outcomes:
    times = found.times_ms if found.numbers is None else found.numbers
    alone = (found.numbers is None) != (found.texts is None) and not found.bools
    if not alone or times is None or not all(type(time) is int for time in times):
        return _ANYTHING
    function = FUNCTIONS[tree.function].apply or bound(tree)
    try:
        low, high = map(function, times)
    except Exception:  # no time that has a year: rows in between may have one
        return _ANYTHING
    if isinstance(low, str):
        return Outcomes(texts=((0, low), (0, high)))
    return Outcomes(numbers=(low, high))
