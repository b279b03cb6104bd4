"""Expressions: conditions and values computed from the fields of a row, as values themselves.

    orders.filter(col("amount") > 50).key_by(col("user").lower())
    millstream consume orders --where 'amount > 50 and user == "u1"'

An expression stands wherever a function of a row does, and says more than one: it can be printed,
read back, compared and looked through, and computes many rows at a time. Null is None, and
spreads as in SQL; docs/expressions.md has the rules. This module is the way to write them; the
tree is in expression_tree.py, the text in expression_parser.py.

Conditions are put together with `&`, `|` and `~`, each side in parentheses:
`(col("a") > 1) & ~(col("b") == "x")`. Python's `and`, `or` and `not` cannot be taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn, TypeAlias

from millstream import FieldFacts, UsageError

from .expression_bounds import may_be_true
from .expression_calls import call
from .expression_columns import Batch, only_type, vector
from .expression_parser import parse
from .expression_scalar import scalar
from .expression_text import text_of
from .expression_tree import (
    TYPES,
    Arithmetic,
    Case,
    Cast,
    Column,
    Comparison,
    FillNull,
    IsNull,
    Literal,
    Member,
    Negate,
    Not,
    Operation,
    Tree,
    TypeName,
    column_names,
    comparison,
    conjunction,
    literal,
    membership,
    require_shallow,
)
from .expression_types import require_types, type_of_tree
from .fields import ComputedField

Operand: TypeAlias = "Expression | str | float | datetime | timedelta | None"
"""What can stand beside an expression: another, or a constant. Text is text, not a field's name."""

_UTC: Final = "UTC"


class Expression(ComputedField):
    """A value computed from a row: a dict, Struct, dataclass or other object with attributes.

    Immutable, hashable by what it computes, and safe to use from several threads. Comparing two
    with `==` makes a third; whether two are the same is `left.tree == right.tree`.

    >>> large = (col("amount") > 50) & (col("user") == "u1")
    >>> large
    <Expression amount > 50 and user == "u1">
    >>> large({"amount": 51, "user": "u1"})
    True
    >>> large.evaluate([{"amount": 51, "user": "u1"}, {"user": "u1"}, {"user": "u2"}])
    [True, None, False]
    """

    __slots__ = ("_scalar", "_vector", "tree")

    def __init__(self, tree: Tree) -> None:
        self._scalar: Any = None
        self._vector: Any = None
        self.tree = tree
        """What it computes, as plain nodes; see expression_tree.py."""

    # --- computing -----------------------------------------------------------------------------

    def __call__(self, value: object) -> Any:
        """Its value for one row.

        Raises:
            TypeError: An operand has a type the operation has no meaning for.
            ValueError: A value it has no meaning for: text that is no number.
            ZeroDivisionError: A division by zero.
            AttributeError: An object lacks a field. (A dict that does has null.)
        """
        if self._scalar is None:
            self._compose()
        return self._scalar(value)

    def evaluate(self, values: Sequence[object]) -> list[Any]:
        """Its values for many rows, in order; much faster than one by one.

        Raises:
            Exception: What the first row in error raises by itself.
        """
        if self._vector is None:
            self._compose()
        try:
            results: list[Any] = self._vector(Batch(values, only_type(values)))
            if len(results) == len(values):
                return results
        except Exception:  # noqa: S110 - not swallowed: what is really wrong is raised below
            # By columns all of an expression is computed, also what `when` or `|` would not have
            # asked of a row. So the rows decide, one by one, and the first in error raises.
            pass
        one = self._scalar
        return [one(value) for value in values]

    def may_be_true(self, fields: Callable[[str], FieldFacts]) -> bool:
        """Whether it may be true, or an error, for a row of which bounds of fields are known.

        >>> (col("price") > 9).may_be_true(lambda name: FieldFacts("number", 1.5, 9.0))
        False

        Args:
            fields: What is known of a field of that name.
        """
        require_shallow(self.tree)
        return may_be_true(self.tree, fields)

    def _compose(self) -> None:
        require_shallow(self.tree)
        self._scalar = scalar(self.tree)
        self._vector = vector(self.tree)

    # --- being looked at -----------------------------------------------------------------------

    def __str__(self) -> str:
        """As text that `parse_expression` reads back."""
        return text_of(self.tree)

    def __repr__(self) -> str:
        return f"<Expression {self}>"

    def describe(self) -> str:
        """Its text; part of the plan's identity."""
        return str(self)

    def columns(self) -> list[str]:
        """The fields it reads, each once."""
        return column_names(self.tree)

    def require_types(self, value_type: object, what: str) -> None:
        """See `ComputedField.require_types`."""
        require_types(self.tree, value_type, what)

    def result_type(self, value_type: object) -> object:
        """See `ComputedField.result_type`."""
        return type_of_tree(self.tree, value_type)

    def __hash__(self) -> int:
        return hash(self.tree)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "an expression has no truth before it has a row: write & | ~ for and, or, not, each"
            " side in parentheses, and x.is_in([...]) for `x in [...]`"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tree,)

    # --- operators -----------------------------------------------------------------------------

    def __add__(self, other: Operand) -> Expression:
        return _operation("+", self, other)

    def __radd__(self, other: Operand) -> Expression:
        return _operation("+", other, self)

    def __sub__(self, other: Operand) -> Expression:
        return _operation("-", self, other)

    def __rsub__(self, other: Operand) -> Expression:
        return _operation("-", other, self)

    def __mul__(self, other: Operand) -> Expression:
        return _operation("*", self, other)

    def __rmul__(self, other: Operand) -> Expression:
        return _operation("*", other, self)

    def __truediv__(self, other: Operand) -> Expression:
        return _operation("/", self, other)

    def __rtruediv__(self, other: Operand) -> Expression:
        return _operation("/", other, self)

    def __floordiv__(self, other: Operand) -> Expression:
        return _operation("//", self, other)

    def __rfloordiv__(self, other: Operand) -> Expression:
        return _operation("//", other, self)

    def __mod__(self, other: Operand) -> Expression:
        return _operation("%", self, other)

    def __rmod__(self, other: Operand) -> Expression:
        return _operation("%", other, self)

    def __neg__(self) -> Expression:
        return Expression(Negate(self.tree))

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]  # a condition
        return _comparison("==", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]  # a condition
        return _comparison("!=", self, other)

    def __lt__(self, other: Operand) -> Expression:
        return _comparison("<", self, other)

    def __le__(self, other: Operand) -> Expression:
        return _comparison("<=", self, other)

    def __gt__(self, other: Operand) -> Expression:
        return _comparison(">", self, other)

    def __ge__(self, other: Operand) -> Expression:
        return _comparison(">=", self, other)

    def __and__(self, other: Expression | bool) -> Expression:
        return Expression(conjunction("and", (self.tree, _tree(other))))

    def __rand__(self, other: bool) -> Expression:
        return Expression(conjunction("and", (_tree(other), self.tree)))

    def __or__(self, other: Expression | bool) -> Expression:
        return Expression(conjunction("or", (self.tree, _tree(other))))

    def __ror__(self, other: bool) -> Expression:
        return Expression(conjunction("or", (_tree(other), self.tree)))

    def __invert__(self) -> Expression:
        return Expression(Not(self.tree))

    # --- null, objects, types ------------------------------------------------------------------

    def is_null(self) -> Expression:
        """Whether it is null. Never null itself."""
        return Expression(IsNull(self.tree))

    def is_not_null(self) -> Expression:
        """Whether it is not null. Never null itself."""
        return Expression(Not(IsNull(self.tree)))

    def fill_null(self, default: Operand) -> Expression:
        """It, or `default` where it is null."""
        return Expression(FillNull(self.tree, _tree(default)))

    def is_in(self, values: Iterable[str | float | datetime | timedelta]) -> Expression:
        """Whether it equals one of some constants; null where it is null."""
        return Expression(membership(self.tree, tuple(map(literal, values))))

    def field(self, name: str) -> Expression:
        """A field of a value that is an object itself; null where it has none."""
        return Expression(Member(self.tree, _field_name(name)))

    def cast(self, to: TypeName) -> Expression:
        """It as "int", "float", "str" or "bool"; an error where that cannot be."""
        if to not in TYPES:
            raise UsageError(f"cast() takes 'int', 'float', 'str' or 'bool', not {to!r}")
        return Expression(Cast(to, self.tree))

    def abs(self) -> Expression:
        """The number without its sign."""
        return _call("abs", self)

    # --- text ----------------------------------------------------------------------------------

    def lower(self) -> Expression:
        """Text in lower case."""
        return _call("lower", self)

    def upper(self) -> Expression:
        """Text in upper case."""
        return _call("upper", self)

    def strip(self) -> Expression:
        """Text without white space around it."""
        return _call("strip", self)

    def length(self) -> Expression:
        """Number of characters of text, of bytes, or of members of a list."""
        return _call("length", self)

    def contains(self, part: Operand) -> Expression:
        """Whether text has a part, or a list a member."""
        return _call("contains", self, part)

    def starts_with(self, part: Operand) -> Expression:
        """Whether text begins so."""
        return _call("starts_with", self, part)

    def ends_with(self, part: Operand) -> Expression:
        """Whether text ends so."""
        return _call("ends_with", self, part)

    def replace(self, part: Operand, by: Operand) -> Expression:
        """Text with `by` for every `part`."""
        return _call("replace", self, part, by)

    def slice(self, start: Operand, length: Operand = None) -> Expression:
        """Text from character `start`, counted from 0 (or back from the end), so many of them."""
        return _call("slice", self, start, *(() if length is None else (length,)))

    def matches(self, pattern: str) -> Expression:
        """Whether a regular expression of Python's `re` is found somewhere in text."""
        return _call("matches", self, pattern)

    # --- time: UTC milliseconds ----------------------------------------------------------------

    def parse_time(self) -> Expression:
        """A time as UTC milliseconds: of RFC 3339 text, of an aware datetime, or as it is."""
        return _call("parse_time", self)

    def truncate(self, duration: str | int) -> Expression:
        """A time rounded down to a multiple of a duration since 1970 UTC: "1h"."""
        return _call("truncate", self, duration)

    def year(self, tz: str = _UTC) -> Expression:
        """The year of a time, in a time zone."""
        return _call_zoned("year", self, tz)

    def month(self, tz: str = _UTC) -> Expression:
        """The month of a time, 1 to 12, in a time zone."""
        return _call_zoned("month", self, tz)

    def day(self, tz: str = _UTC) -> Expression:
        """The day of the month of a time, 1 to 31, in a time zone."""
        return _call_zoned("day", self, tz)

    def hour(self, tz: str = _UTC) -> Expression:
        """The hour of a time, 0 to 23, in a time zone."""
        return _call_zoned("hour", self, tz)

    def minute(self, tz: str = _UTC) -> Expression:
        """The minute of a time, 0 to 59, in a time zone."""
        return _call_zoned("minute", self, tz)

    def second(self, tz: str = _UTC) -> Expression:
        """The second of a time, 0 to 59, in a time zone."""
        return _call_zoned("second", self, tz)

    def weekday(self, tz: str = _UTC) -> Expression:
        """The day of the week of a time, Monday is 1 and Sunday 7, in a time zone."""
        return _call_zoned("weekday", self, tz)

    def date(self, tz: str = _UTC) -> Expression:
        """The date of a time in a time zone, as text: 2013-01-31."""
        return _call_zoned("date", self, tz)


class Conditional(Expression):
    """`when(a).then(b)`, which is null where `a` is not true, unless it goes on."""

    __slots__ = ()

    def when(self, condition: Expression | bool) -> Condition:
        """Another condition, for rows where none so far is true."""
        return Condition(self._branches(), _tree(condition))

    def otherwise(self, value: Operand) -> Expression:
        """The value where no condition is true."""
        return Expression(Case(self._branches(), _tree(value)))

    def _branches(self) -> tuple[tuple[Tree, Tree], ...]:
        assert isinstance(self.tree, Case)
        return self.tree.branches


class Condition:
    """`when(a)`, which waits for `then(b)`."""

    __slots__ = ("_before", "_condition")

    def __init__(self, before: tuple[tuple[Tree, Tree], ...], condition: Tree) -> None:
        self._before = before
        self._condition = condition

    def __repr__(self) -> str:
        return f"<Condition {text_of(self._condition)}>"

    def then(self, value: Operand) -> Conditional:
        """The value of rows for which the condition is true."""
        return Conditional(Case((*self._before, (self._condition, _tree(value))), Literal(None)))


def col(name: str) -> Expression:
    """A field of the row: an item of a dict, an attribute of anything else.

    A dict without it has null there; an object without it is an error.

    >>> (col("price") * col("count"))({"price": 3, "count": 2})
    6
    """
    return Expression(Column(_field_name(name)))


def lit(value: Operand) -> Expression:
    """A constant: None, bool, int (64 bits), float, str, aware datetime or timedelta.

    A datetime becomes UTC milliseconds and a timedelta milliseconds.

    Raises:
        UsageError: Something else.

    >>> print(col("at").parse_time() + timedelta(minutes=1))
    parse_time(at) + 60000
    """
    return Expression(_tree(value))


def when(condition: Expression | bool) -> Condition:
    """A choice: `when(col("n") > 9).then("many").when(col("n") > 1).then("few").otherwise("one")`.

    The first condition that is true decides; only its value is computed.

    >>> size = when(col("n") > 9).then("many").when(col("n") > 1).then("few").otherwise("one")
    >>> size.evaluate([{"n": 10}, {"n": 2}, {"n": None}])
    ['many', 'few', 'one']
    """
    return Condition((), _tree(condition))


def parse_expression(text: str) -> Expression:
    """An expression from text, as the command line takes it: `amount > 50 and user == "u1"`.

    Raises:
        UsageError: It is none; the message shows where, and what was expected there.

    >>> parse_expression("not a < 1").tree == (~(col("a") < 1)).tree
    True
    """
    return Expression(parse(text))


def _tree(value: object) -> Tree:
    return value.tree if isinstance(value, Expression) else literal(value)


def _operation(operator: Arithmetic, left: object, right: object) -> Expression:
    return Expression(Operation(operator, _tree(left), _tree(right)))


def _comparison(operator: Comparison, left: object, right: object) -> Expression:
    return Expression(comparison(operator, _tree(left), _tree(right)))


def _call(name: str, *operands: object) -> Expression:
    return Expression(call(name, tuple(map(_tree, operands))))


def _call_zoned(name: str, operand: Expression, tz: str) -> Expression:
    return _call(name, operand) if tz == _UTC else _call(name, operand, tz)


def _field_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise UsageError(f"a field is named by text, not {name!r}")
    return name
