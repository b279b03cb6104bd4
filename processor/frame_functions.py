"""Functions of expressions on columns, as far as Arrow's mean what expression_functions.py says.

Text is compared byte by byte and counted in code points, as in Python. Letters change case alike
only in ASCII. Times are UTC milliseconds.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millstream import parse_duration_ms

from .calendar_windows import DAY_MS
from .frame_errors import NotInColumnsError

Value: TypeAlias = Any
"""A pyarrow.Array, or a pyarrow.Scalar that stands for the same value in every row."""

_INT, _FLOAT, _TEXT = pa.int64(), pa.float64(), pa.string()
_YEAR_1000_MS: Final = -30_610_224_000_000
_YEAR_10000_MS: Final = 253_402_300_800_000


def is_null(value: Value) -> bool:
    """Whether it is of the type that has no value but null."""
    return bool(pa.types.is_null(value.type))


def require(value: Value, *kinds: Any) -> Value:
    """The value, which is of one of these types.

    Raises:
        NotInColumnsError: It is of another.
    """
    if value.type not in kinds:
        raise NotInColumnsError(f"{value.type} where {' or '.join(map(str, kinds))} goes")
    return value


def finite(value: Value) -> Value:
    """The value, which has no infinity or NaN.

    Raises:
        NotInColumnsError: It has.
    """
    if value.type == _FLOAT:
        if isinstance(value, pa.Scalar):
            good = value.as_py() is None or np.isfinite(value.as_py())
        else:
            numbers = value.fill_null(0.0) if value.null_count else value
            numbers = numbers.to_numpy(zero_copy_only=False)
            with np.errstate(all="ignore"):
                # The sum is finite only if all are; where it is not, it may have overflowed.
                good = np.isfinite(numbers.sum()) or np.isfinite(numbers).all()
        if not good:
            raise NotInColumnsError("infinity or NaN")
    return value


def on_ints(compute: Callable[..., Any], *values: Value) -> Value:
    """What NumPy computes of columns of ints; null where one is.

    Args:
        compute: Of arrays or numbers, of which one is an array. It sees 1 in the place of null.
        *values: Int64.
    """
    if all(isinstance(value, pa.Scalar) for value in values):
        raise NotInColumnsError("constants alone")
    if any(isinstance(value, pa.Scalar) and not value.is_valid for value in values):
        raise NotInColumnsError("a constant that is null")
    valid = None
    for value in values:
        if isinstance(value, pa.Array) and value.null_count:
            known = value.is_valid()
            valid = known if valid is None else pc.and_(valid, known)
    numbers = [
        value.as_py()
        if isinstance(value, pa.Scalar)
        else (value.fill_null(1) if value.null_count else value).to_numpy()
        for value in values
    ]
    result = pa.array(compute(*numbers))
    return result if valid is None else pc.if_else(valid, result, pa.scalar(None, result.type))


def _text(value: Value) -> Value:
    return require(value, _TEXT)


def _pattern(value: Value) -> str:
    """Text that is the same for all rows."""
    if not isinstance(value, pa.Scalar) or value.type != _TEXT:
        raise NotInColumnsError("a pattern that is no constant")
    return str(value.as_py())


def _number(value: Value) -> int:
    if not isinstance(value, pa.Scalar) or value.type != _INT:
        raise NotInColumnsError("a position that is no constant")
    return int(value.as_py())


def _ascii(value: Value) -> Value:
    """Text of ASCII alone."""
    good = pc.string_is_ascii(_text(value))
    if not (good.as_py() if isinstance(good, pa.Scalar) else pc.all(good).as_py() is not False):
        raise NotInColumnsError("letters beyond ASCII")
    return value


def _absolute(value: Value) -> Value:
    return pc.abs_checked(require(value, _INT, _FLOAT))


def _length(value: Value) -> Value:
    return pc.utf8_length(_text(value)).cast(_INT)


def _contains(value: Value, part: Value) -> Value:
    return pc.match_substring(_text(value), _pattern(part))


def _starts_with(value: Value, part: Value) -> Value:
    return pc.starts_with(_text(value), _pattern(part))


def _ends_with(value: Value, part: Value) -> Value:
    return pc.ends_with(_text(value), _pattern(part))


def _replace(value: Value, part: Value, other: Value) -> Value:
    pattern = _pattern(part)
    if not pattern:
        raise NotInColumnsError("nothing is replaced")
    return pc.replace_substring(_text(value), pattern, _pattern(other))


def _slice(value: Value, start: Value, *length: Value) -> Value:
    first = _number(start)
    count = _number(length[0]) if length else None
    if first < 0 or (count is not None and count < 0):
        raise NotInColumnsError("a position from the end")
    stop = None if count is None else first + count
    return pc.utf8_slice_codeunits(_text(value), first, stop)


def _truncate(value: Value, duration: Value) -> Value:
    step_ms = parse_duration_ms(duration.as_py())
    lowest = -(2**63) + step_ms

    def compute(times: Any) -> Any:
        if len(times) and times.min() < lowest:
            raise NotInColumnsError("a time at the end of time")
        return times - times % step_ms

    return on_ints(compute, require(value, _INT))


def _of_day(unit_ms: int, count: int) -> Callable[..., Value]:
    def function(value: Value, *_utc: Value) -> Value:
        return on_ints(lambda times: times // unit_ms % count, require(value, _INT))

    return function


def _weekday(value: Value, *_utc: Value) -> Value:
    # The first of January 1970 was a Thursday.
    return on_ints(lambda times: (times // DAY_MS + 3) % 7 + 1, require(value, _INT))


def _of_date(part: Callable[[Value], Value]) -> Callable[..., Value]:
    def function(value: Value, *_utc: Value) -> Value:
        require(value, _INT)
        if isinstance(value, pa.Scalar):
            raise NotInColumnsError("constants alone")
        found = pc.min_max(value)
        low, high = found["min"].as_py(), found["max"].as_py()
        if low is not None and not _YEAR_1000_MS <= low <= high < _YEAR_10000_MS:
            raise NotInColumnsError("years of less or more than four digits")
        return part(value.cast(pa.timestamp("ms")))

    return function


FUNCTIONS: Final[Mapping[str, Callable[..., Value]]] = {
    "abs": _absolute,
    "contains": _contains,
    "date": _of_date(lambda times: pc.strftime(times, "%Y-%m-%d")),
    "day": _of_date(pc.day),
    "ends_with": _ends_with,
    "hour": _of_day(3_600_000, 24),
    "length": _length,
    "lower": lambda value: pc.ascii_lower(_ascii(value)),
    "minute": _of_day(60_000, 60),
    "month": _of_date(pc.month),
    "replace": _replace,
    "second": _of_day(1000, 60),
    "slice": _slice,
    "starts_with": _starts_with,
    "truncate": _truncate,
    "upper": lambda value: pc.ascii_upper(_ascii(value)),
    "weekday": _weekday,
    "year": _of_date(pc.year),
}
"""By name; what is missing works on rows."""
