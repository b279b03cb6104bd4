"""Which windows a row belongs to, and when they close. Pure: integers in, integers out.

A window is half-open, [start, end). All windows here have one fixed size and start every `slide`
milliseconds from `offset`; `slide == size` is a tumbling window. A window is known by its end: ends
are what event time passes, and they are the same grid for every key.

The rule a window closes by (W >= end + grace) is here; how W moves is in watermark.py, and what
happens at a close in windowing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from millstream import UsageError, parse_duration_ms

WINDOWS_PER_ROW_MAX = 10_000
"""Each row is kept in size / slide windows at once; beyond this it is surely a mistake of units."""

_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))


@dataclass(frozen=True, slots=True)
class FixedWindows:
    """Windows [offset + k * slide, offset + k * slide + size) for every integer k. All in ms.

    >>> FixedWindows(60_000, 60_000, 0).ends(59_999)
    [60000]
    >>> FixedWindows(10, 5, 0).ends(12)
    [15, 20]
    """

    size_ms: int
    slide_ms: int
    offset_ms: int

    def __post_init__(self) -> None:
        if self.size_ms < 1 or self.slide_ms < 1:
            raise UsageError(
                f"a window needs a size and a slide of at least 1 ms,"
                f" not {self.size_ms} and {self.slide_ms}"
            )
        if self.size_ms > self.slide_ms * WINDOWS_PER_ROW_MAX:
            raise UsageError(
                f"every row would be in {self.size_ms // self.slide_ms} windows"
                f" (size {self.size_ms} ms, slide {self.slide_ms} ms);"
                f" at most {WINDOWS_PER_ROW_MAX} are supported"
            )

    @property
    def overlapping(self) -> bool:
        """Whether a row can be in several windows, or in none."""
        return self.size_ms != self.slide_ms

    def next_end(self, time_ms: int) -> int:
        """The smallest window end greater than `time_ms`.

        For tumbling windows this is the end of the window `time_ms` lies in.
        """
        return time_ms - (time_ms - self.offset_ms - self.size_ms) % self.slide_ms + self.slide_ms

    def ends(self, time_ms: int) -> list[int]:
        """Ends of the windows `time_ms` lies in, rising; empty in a gap between windows."""
        first = self.next_end(time_ms)
        return list(range(first, time_ms + self.size_ms + 1, self.slide_ms))

    def closed_end(self, progress_ms: int) -> int:
        """The greatest window end at or before `progress_ms`: it and all before it are past."""
        return self.next_end(progress_ms) - self.slide_ms

    def start_of(self, end_ms: int) -> int:
        """The start of the window that ends at `end_ms`. May lie before int64."""
        return end_ms - self.size_ms

    def __str__(self) -> str:
        text = f"tumbling {duration_text(self.size_ms)}"
        if self.overlapping:
            size, slide = duration_text(self.size_ms), duration_text(self.slide_ms)
            text = f"hopping {size} every {slide}"
        return f"{text} offset {duration_text(self.offset_ms)}" if self.offset_ms else text


def tumbling(size: str | int | timedelta, *, offset: str | int | timedelta = 0) -> FixedWindows:
    """Windows that follow each other without gap or overlap.

    Args:
        size: Length of a window: "1m", a timedelta, or milliseconds.
        offset: Shifts all windows; may be negative when given in milliseconds. A day that starts
            at 06:00 UTC is `tumbling("1d", offset="6h")`.

    >>> tumbling("1m").ends(0)
    [60000]
    """
    size_ms = parse_duration_ms(size)
    return FixedWindows(size_ms, size_ms, duration_ms(offset))


def hopping(
    size: str | int | timedelta,
    slide: str | int | timedelta,
    *,
    offset: str | int | timedelta = 0,
) -> FixedWindows:
    """Windows of `size` that start every `slide`.

    They overlap when slide < size (a row is in several), and leave gaps when slide > size (a row
    in a gap is in none: it is counted, but it is not late). Size need not be a multiple of slide.

    >>> hopping("10s", "4s").ends(9000)
    [10000, 14000, 18000]
    """
    return FixedWindows(parse_duration_ms(size), parse_duration_ms(slide), duration_ms(offset))


def duration_ms(value: str | int | timedelta) -> int:
    """A duration in ms that may be negative when it is not given as text."""
    if isinstance(value, timedelta):
        return value // timedelta(milliseconds=1)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return parse_duration_ms(value)


def duration_text(value_ms: int) -> str:
    """A duration in the largest unit that divides it.

    >>> duration_text(90_000), duration_text(86_400_000), duration_text(0)
    ('90s', '1d', '0s')
    """
    for unit, scale in _UNITS:
        if value_ms and value_ms % scale == 0:
            return f"{value_ms // scale}{unit}"
    return f"{value_ms}ms" if value_ms else "0s"
