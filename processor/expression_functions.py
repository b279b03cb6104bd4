"""What the operators and functions of expressions compute, for values that are not null. Pure.

Each takes plain values and raises on those it has no meaning for: text is never multiplied, a
number never searched. Times are UTC milliseconds, or anything `parse_time` reads as such.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Final

from millstream import UsageError, parse_duration_ms

from .calendar_windows import DAY_MS, time_zone
from .event_time import to_ms
from .serde import INT64_MAX, INT64_MIN

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INT: Final = re.compile(r"[+-]?[0-9]{1,19}")
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_NUMBERS: Final = (str, bytes, list, tuple)


def times(left: Any, right: Any) -> Any:
    """A product of numbers. Python would repeat text."""
    _refuse_text("*", left, right)
    return left * right


def modulo(left: Any, right: Any) -> Any:
    """The remainder that has the sign of the divisor. Python would format text."""
    _refuse_text("%", left, right)
    return left % right


def _refuse_text(sign: str, left: object, right: object) -> None:
    for value in (left, right):
        if isinstance(value, _NO_NUMBERS):
            raise TypeError(f"{sign} takes numbers, not {type(value).__name__}")


OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": times,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": modulo,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def to_int(value: Any) -> int:
    """Towards zero for floats; text must be digits."""
    if isinstance(value, str):
        if not _INT.fullmatch(value):
            raise ValueError(f"{value[:40]!r} is no integer")
    elif not isinstance(value, int | float):
        raise TypeError(f"int() takes numbers, bool and text, not {type(value).__name__}")
    number = int(value)
    if not INT64_MIN <= number <= INT64_MAX:
        raise ValueError(f"{number} does not fit into 64 bits")
    return number


def to_float(value: Any) -> float:
    """The nearest float; text must be a decimal number."""
    if isinstance(value, str):
        if not _FLOAT.fullmatch(value):
            raise ValueError(f"{value[:40]!r} is no number")
    elif not isinstance(value, int | float):
        raise TypeError(f"float() takes numbers, bool and text, not {type(value).__name__}")
    return float(value)


def to_str(value: Any) -> str:
    """Text as in JSON: the shortest that reads back as the same number, true, false."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"str() takes numbers, bool and text, not {type(value).__name__}")


def to_bool(value: Any) -> bool:
    """Whether a number is not zero; text must be true or false."""
    if isinstance(value, int | float):
        return value != 0
    if not isinstance(value, str):
        raise TypeError(f"bool() takes numbers, bool and text, not {type(value).__name__}")
    if value not in {"true", "false"}:
        raise ValueError(f"{value[:40]!r} is neither true nor false")
    return value == "true"


CASTS: Final[dict[str, Callable[[Any], Any]]] = {
    "int": to_int,
    "float": to_float,
    "str": to_str,
    "bool": to_bool,
}


def _length(value: Any) -> int:
    if not isinstance(value, str | bytes | list):
        raise TypeError(f"length() takes text, bytes or a list, not {type(value).__name__}")
    return len(value)


def _contains(value: Any, part: Any) -> bool:
    if isinstance(value, list) or (isinstance(value, str) and isinstance(part, str)):
        return part in value
    raise TypeError(f"contains() takes text or a list, not {type(value).__name__}")


def _slice(value: Any, start: Any, length: Any = None) -> Any:
    if not isinstance(value, str | bytes | list):
        raise TypeError(f"slice() takes text, bytes or a list, not {type(value).__name__}")
    if length is not None and length < 0:
        raise ValueError(f"slice() takes a length of at least 0, not {length}")
    first = max(start + len(value), 0) if start < 0 else start
    return value[first:] if length is None else value[first : first + length]


def _absolute(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"abs() takes numbers, not {type(value).__name__}")
    return abs(value)


# --- functions whose further operands are constants, looked at once ----------------------------


def _bind_matches(pattern: object) -> Callable[[Any], bool]:
    if not isinstance(pattern, str):
        raise UsageError(f"matches() takes a pattern, not {pattern!r}")
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UsageError(f"matches(): {pattern!r} is no regular expression: {error}") from error
    return lambda value: search(value) is not None


def _bind_truncate(duration: object) -> Callable[[Any], int]:
    if not isinstance(duration, str | int) or isinstance(duration, bool):
        raise UsageError(f"truncate() takes a duration such as '1h', not {duration!r}")
    step_ms = parse_duration_ms(duration)
    if step_ms < 1:
        raise UsageError(f"truncate() takes a duration of at least 1 ms, not {duration!r}")
    return OfTimes(lambda times: [time - time % step_ms for time in times])


class OfTimes:
    """A function of a time that is plain arithmetic, so that it can take many at once."""

    def __init__(self, of_ints: Callable[[Sequence[int]], list[int]]) -> None:
        self._of_ints = of_ints

    def __call__(self, value: Any) -> int:
        """Of one time."""
        return self._of_ints((value if type(value) is int else to_ms(value),))[0]

    def many(self, values: Sequence[Any]) -> list[int] | None:
        """Of many, or None when they are not all ints."""
        if list(map(type, values)).count(int) != len(values):
            return None
        return self._of_ints(values)


def _bind_time_of_day(unit_ms: int, count: int, name: str, zone: object) -> Callable[[Any], int]:
    if zone == "UTC":
        return OfTimes(lambda times: [time // unit_ms % count for time in times])
    return _bind_part(name, zone)


def _bind_part(name: str, zone: object) -> Callable[[Any], int]:
    rules, part = _zone(zone), operator.attrgetter(name)
    return lambda value: part(_local(value, rules))


def _bind_weekday(zone: object) -> Callable[[Any], int]:
    if zone == "UTC":
        # The first of January 1970 was a Thursday.
        return OfTimes(lambda times: [(time // DAY_MS + 3) % 7 + 1 for time in times])
    rules = _zone(zone)
    return lambda value: _local(value, rules).isoweekday()


def _bind_date(zone: object) -> Callable[[Any], str]:
    rules = _zone(zone)
    return lambda value: date.isoformat(_local(value, rules))


def _zone(zone: object) -> tzinfo:
    if not isinstance(zone, str):
        raise UsageError(f"a time zone is a name such as 'Europe/Berlin', not {zone!r}")
    return time_zone(zone)


def _local(value: Any, zone: tzinfo) -> datetime:
    time_ms = value if type(value) is int else to_ms(value)
    return (_EPOCH + timedelta(milliseconds=time_ms)).astimezone(zone)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of expressions. All its operands but the first may be left to a default."""

    apply: Callable[..., Any] | None = None
    """Takes the values; raises on None as a first one. None when `bind` makes it."""
    bind: Callable[..., Callable[[Any], Any]] | None = None
    """Takes the constants behind the first operand, returns a function of the first alone."""
    further: int = 0
    """How many operands there are behind the first."""
    defaults: tuple[object, ...] = ()
    """For the last of those."""
    boolean: bool = False
    """Whether it is true or false."""


def _of_time(bind: Callable[..., Callable[[Any], Any]]) -> Function:
    return Function(bind=bind, further=1, defaults=("UTC",))


_clock: Final = partial(partial, _bind_time_of_day)

FUNCTIONS: Final[dict[str, Function]] = {
    "abs": Function(_absolute),
    "contains": Function(_contains, further=1, boolean=True),
    "date": _of_time(_bind_date),
    "day": _of_time(partial(_bind_part, "day")),
    "ends_with": Function(str.endswith, further=1, boolean=True),
    "hour": _of_time(_clock(3_600_000, 24, "hour")),
    "length": Function(_length),
    "lower": Function(str.lower),
    "matches": Function(bind=_bind_matches, further=1, boolean=True),
    "minute": _of_time(_clock(60_000, 60, "minute")),
    "month": _of_time(partial(_bind_part, "month")),
    "parse_time": Function(to_ms),
    "replace": Function(str.replace, further=2),
    "second": _of_time(_clock(1000, 60, "second")),
    "slice": Function(_slice, further=2, defaults=(None,)),
    "starts_with": Function(str.startswith, further=1, boolean=True),
    "strip": Function(str.strip),
    "truncate": Function(bind=_bind_truncate, further=1),
    "upper": Function(str.upper),
    "weekday": _of_time(_bind_weekday),
    "year": _of_time(partial(_bind_part, "year")),
}
"""By name; what each does is said with the methods of `Expression`."""
