"""The event time of a value: UTC milliseconds from an int, an aware datetime or RFC 3339 text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from .serde import INT64_MAX, INT64_MIN

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

EVENT_TIME_MIN: Final = INT64_MIN + 1
"""The least int64 stands for "none" in the log, so a result could not be written with it."""


class EventTimeError(ValueError):
    """A value has no event time, or one that names no instant."""


def to_ms(value: object) -> int:
    """UTC milliseconds of one time, rounded down.

    Raises:
        EventTimeError: Neither int, aware datetime nor RFC 3339 text; or outside int64.

    >>> to_ms("1970-01-01T01:00:00.5+01:00"), to_ms(7)
    (500, 7)
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise EventTimeError(f"event time {value!r} is not RFC 3339 text") from error
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise EventTimeError(f"event time {value.isoformat()} has no zone")
        return (value - _EPOCH) // _MILLISECOND
    if value is None:
        raise EventTimeError("event time is missing")
    if not isinstance(value, int) or isinstance(value, bool):
        raise EventTimeError(
            f"event time is a {type(value).__name__}; use int milliseconds, an aware datetime"
            " or RFC 3339 text"
        )
    if not EVENT_TIME_MIN <= value <= INT64_MAX:
        raise EventTimeError(f"event time {value} does not fit into the 64 bits of a record")
    return value


def newest_ms(
    column: Sequence[object], *, ints: bool = False, unsigned: bool = False
) -> int | None:
    """The greatest time of a column of good milliseconds, found without a loop in Python.

    Args:
        column: Of any values.
        ints: Whether they are known to be ints.
        unsigned: Whether those are known not to be negative.

    Returns:
        None if the column is empty, or one of it is not good milliseconds already.

    >>> newest_ms([3, -9]), newest_ms([3, "1970-01-01T00:00Z"]), newest_ms([2**63])
    (3, None, None)
    """
    if not column or (not ints and set(map(type, column)) != {int}):
        return None
    newest: int = max(column)  # type: ignore[type-var,assignment]  # all are int
    if newest > INT64_MAX or (not (ints and unsigned) and min(column) < EVENT_TIME_MIN):  # type: ignore[type-var,operator]  # all are int
        return None
    return newest
