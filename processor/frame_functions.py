"""Functions of expressions on columns, as far as Arrow's mean what expression_functions.py says.

Text is compared byte by byte and counted in code points, as in Python. Letters change case alike
only in ASCII. Times are UTC milliseconds.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millstream import parse_duration_ms

from .calendar_windows import DAY_MS
from .frame_errors import NotInColumnsError
from .frames import all_finite

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
            good = all_finite(value)
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


def room(count: int, kind: Any) -> Any:
    """An array for a result, in memory of Arrow.

    Arrow keeps what is freed for the next batch. NumPy gives large arrays back to the system and
    gets them page by page, which takes longer than the arithmetic.
    """
    return np.frombuffer(pa.allocate_buffer(count * 8), kind)


def quotient(numbers: Any, divisor: Any) -> Any:
    """Ints divided, rounded down."""
    count = len(numbers) if isinstance(divisor, int) else len(divisor)
    return np.floor_divide(numbers, divisor, out=room(count, np.int64))


def remainder(numbers: Any, divisor: Any) -> Any:
    """The remainder of ints, with the sign of the divisor.

    NumPy divides by one number by multiplying, but only for the quotient: that is several times
    as fast as its own remainder. What may wrap around in between comes back in the difference.
    """
    if not isinstance(divisor, int):
        return np.remainder(numbers, divisor)
    result = quotient(numbers, divisor)
    result *= divisor
    return np.subtract(numbers, result, out=result)


def _truncate(value: Value, duration: Value) -> Value:
    step_ms = parse_duration_ms(duration.as_py())
    lowest = -(2**63) + step_ms

    def compute(times: Any) -> Any:
        if len(times) and times.min() < lowest:
            raise NotInColumnsError("a time at the end of time")
        result = quotient(times, step_ms)
        result *= step_ms
        return result

    return on_ints(compute, require(value, _INT))


def _require_utc(zone: Sequence[Value]) -> None:
    """Refuse other time zones: their rules may be others in Arrow."""
    if zone and _pattern(zone[0]) != "UTC":
        raise NotInColumnsError("a time zone")


def _of_day(unit_ms: int, count: int) -> Callable[..., Value]:
    def function(value: Value, *zone: Value) -> Value:
        _require_utc(zone)
        return on_ints(
            lambda times: remainder(quotient(times, unit_ms), count), require(value, _INT)
        )

    return function


def _weekday(value: Value, *zone: Value) -> Value:
    _require_utc(zone)

    def compute(times: Any) -> Any:
        days = quotient(times, DAY_MS)
        days += 3  # the first of January 1970 was a Thursday
        result = remainder(days, 7)
        result += 1
        return result

    return on_ints(compute, require(value, _INT))


def _of_date(part: Callable[[Value], Value]) -> Callable[..., Value]:
    def function(value: Value, *zone: Value) -> Value:
        _require_utc(zone)
        require(value, _INT)
        if isinstance(value, pa.Scalar):
            raise NotInColumnsError("constants alone")
        found = pc.min_max(value)
        low, high = found["min"].as_py(), found["max"].as_py()
        if low is not None and not _YEAR_1000_MS <= low <= high < _YEAR_10000_MS:
            raise NotInColumnsError("years of less or more than four digits")
        return part(value)

    return function


def _of_timestamp(part: Callable[[Value], Value]) -> Callable[..., Value]:
    return _of_date(lambda times: part(times.cast(pa.timestamp("ms"))))


def _as_date(times: Value) -> Value:
    """The text of dates, each made once: rows of a batch are of few days."""
    days = on_ints(lambda numbers: quotient(numbers, DAY_MS), times).dictionary_encode()
    texts = days.dictionary.cast(pa.int32()).cast(pa.date32()).cast(_TEXT)
    return texts.take(days.indices)


FUNCTIONS: Final[Mapping[str, Callable[..., Value]]] = {
    "abs": _absolute,
    "contains": _contains,
    "date": _of_date(_as_date),
    "day": _of_timestamp(pc.day),
    "ends_with": _ends_with,
    "hour": _of_day(3_600_000, 24),
    "length": _length,
    "lower": lambda value: pc.ascii_lower(_ascii(value)),
    "minute": _of_day(60_000, 60),
    "month": _of_timestamp(pc.month),
    "replace": _replace,
    "second": _of_day(1000, 60),
    "slice": _slice,
    "starts_with": _starts_with,
    "truncate": _truncate,
    "upper": lambda value: pc.ascii_upper(_ascii(value)),
    "weekday": _weekday,
    "year": _of_timestamp(pc.year),
}
"""By name; what is missing works on rows."""
