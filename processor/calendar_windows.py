"""Days as people mean them: from midnight to midnight in a time zone, 23, 24 or 25 hours long.

The interface is that of `FixedWindows`: a window is half-open and known by its end, and the ends
are the same for every key. The rules of the zone are those of the time zone database of the
machine (`zoneinfo`), looked up when a zone is first named. Rules of the future change: a day that
has not come yet may end an hour later after an update of the database.

Beyond the years a `datetime` can hold, the Gregorian calendar repeats itself every 400 years, to
the weekday; so do the rules of a zone before its first change and after its last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from typing import Final

from millstream import UsageError

from .windows import duration_ms, duration_text

DAY_MS: Final = 86_400_000

_CYCLE_DAYS: Final = 146_097
"""Days in 400 years: a whole number of weeks."""
_EARLY_DAY: Final = -573_000
"""In the year 401. No zone had rules then: all days before it are like those one cycle later."""
_LATE_DAY: Final = 157_000
"""In the year 2399. All rules listed by year end before 2038; days after it repeat by cycle."""
_NEAR_DAYS: Final = 3
"""A zone is less than two days from UTC, offset included, and a day was left out once."""
_DAYS_REMEMBERED: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL: Final = 719_163
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class CalendarWindows:
    """Days of a time zone, each from `offset_ms` after midnight to the same time of the next day.

    The offset is a time on the clock on the wall: 6 h is 06:00 also where the clock was changed at
    02:00. Where that time is skipped, the day starts as much later; where it comes twice, at its
    first. A day that a zone left out altogether is no window.

    >>> windows = CalendarWindows("Europe/Berlin", 0)
    >>> end = windows.ends(1_711_846_800_000)[0]  # 2024-03-31 03:00 in Berlin
    >>> (end - windows.start_of(end)) / 3_600_000
    23.0
    """

    zone: str
    offset_ms: int

    def __post_init__(self) -> None:
        time_zone(self.zone)
        if not -DAY_MS < self.offset_ms < DAY_MS:
            raise UsageError(
                f"a day is offset by less than 24 hours, not by {duration_text(self.offset_ms)}"
            )

    @property
    def overlapping(self) -> bool:
        """Whether a row can be in several windows, or in none: never."""
        return False

    def next_end(self, time_ms: int) -> int:
        """The smallest window end greater than `time_ms`: that of the day it lies in."""
        for edge in _edges(self.zone, self.offset_ms, time_ms // DAY_MS):
            if edge > time_ms:
                return edge
        raise AssertionError("no day ends within three days")

    def edges_near(self, utc_day: int) -> tuple[int, ...]:
        """Where windows end around a day of UTC, rising: all that matter to times of that day."""
        return _edges(self.zone, self.offset_ms, utc_day)

    def ends(self, time_ms: int) -> list[int]:
        """The end of the window `time_ms` lies in."""
        return [self.next_end(time_ms)]

    def closed_end(self, progress_ms: int) -> int:
        """The greatest window end at or before `progress_ms`: it and all before it are past."""
        edges = _edges(self.zone, self.offset_ms, progress_ms // DAY_MS)
        return max(edge for edge in edges if edge <= progress_ms)

    def start_of(self, end_ms: int) -> int:
        """The start of the window that ends at `end_ms`."""
        return self.closed_end(end_ms - 1)

    def __str__(self) -> str:
        text = f"daily {self.zone}"
        return f"{text} offset {duration_text(self.offset_ms)}" if self.offset_ms else text


def daily(tz: str = "UTC", *, offset: str | int | timedelta = 0) -> CalendarWindows:
    """Windows of one calendar day in a time zone. With daylight saving some have 23 or 25 hours.

    Args:
        tz: Name of the zone in the time zone database: "Europe/Berlin".
        offset: When the day starts, on the clock on the wall: "6h" is 06:00; may be negative when
            given in milliseconds.

    Raises:
        UsageError: The machine knows no such zone, or the offset is 24 hours or more.
    """
    return CalendarWindows(tz, duration_ms(offset))


@cache
def time_zone(name: str) -> tzinfo:
    """The rules of a zone.

    Raises:
        UsageError: The machine knows no such zone.
    """
    import zoneinfo  # noqa: PLC0415 - few pipelines need it, and it reads the database

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise UsageError(
            f"the time zone {name!r} is not known here; names are like 'Europe/Berlin'. Where even"
            " that is missing, install the package tzdata"
        ) from error


@lru_cache(_DAYS_REMEMBERED)
def _edges(zone: str, offset_ms: int, utc_day: int) -> tuple[int, ...]:
    """Where days start around a day of UTC, rising, each once: some before it and some after."""
    edge = _edge_function(time_zone(zone), offset_ms)
    near = range(utc_day - _NEAR_DAYS, utc_day + _NEAR_DAYS + 2)
    return tuple(sorted({edge(day) for day in near}))


def _edge_function(zone: tzinfo, offset_ms: int) -> Callable[[int], int]:
    offset = timedelta(milliseconds=offset_ms)

    def edge(day: int) -> int:
        """The instant, UTC ms, at which local day number `day` since 1970-01-01 starts."""
        cycles = 0
        if day < _EARLY_DAY:
            cycles = (day - _EARLY_DAY) // _CYCLE_DAYS
        elif day >= _LATE_DAY + _CYCLE_DAYS:
            cycles = (day - _LATE_DAY) // _CYCLE_DAYS
        ordinal = day - cycles * _CYCLE_DAYS + _EPOCH_ORDINAL
        local = datetime.fromordinal(ordinal) + offset
        instant = (local.replace(tzinfo=zone) - _EPOCH) // _MILLISECOND
        return instant + cycles * _CYCLE_DAYS * DAY_MS

    return edge
