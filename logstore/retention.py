"""Decide which segments retention may remove. Pure: numbers in, a count out; log.py removes them.

Retention works on whole sealed segments from the front of a partition; it never touches the active
segment and never makes a hole. Age is judged by the time of the append, not by the producer's
timestamps: a producer that sends old history must not have it removed on arrival, and one that
sends timestamps of the next century must not keep it for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SegmentInfo(NamedTuple):
    """One segment of a partition, as retention and `millstream dump` see it."""

    base_offset: int
    end_offset: int
    """One past the last offset: the segment holds [base_offset, end_offset)."""
    size_bytes: int
    """Bytes of data, without the zeros an active segment is filled with ahead of the writer."""
    max_timestamp_ms: int
    """Newest append time in the segment; `created_ms` when it is empty."""
    created_ms: int
    sealed: bool
    """False for the active segment, the last one."""


def expired(
    segments: Sequence[SegmentInfo],
    *,
    now_ms: int,
    retention_ms: int | None,
    retention_bytes: int | None,
) -> int:
    """How many leading segments of one partition may be removed.

    A segment goes when it is too old or when the partition is too large without it:

    - age: its newest append is more than `retention_ms` before `now_ms`. An append time ahead of
      `now_ms` (the clock was set back) counts as now: when clocks are wrong, data stays too long
      rather than goes too early. The first segment young enough ends the search, whatever
      follows it.
    - bytes: what remains after the removal is still at least `retention_bytes`. So a partition
      keeps at least that much, and at most one segment more.

    None switches a rule off. The active segment stays always.

    >>> sealed = SegmentInfo(0, 10, 100, 1_000, 1_000, sealed=True)
    >>> active = SegmentInfo(10, 12, 20, 9_000, 9_000, sealed=False)
    >>> expired([sealed, active], now_ms=9_000, retention_ms=5_000, retention_bytes=None)
    1
    """
    remaining_bytes = sum(segment.size_bytes for segment in segments)
    count = 0
    for segment in segments:
        if not segment.sealed:
            break
        remaining_bytes -= segment.size_bytes
        too_old = (
            retention_ms is not None
            and now_ms - min(segment.max_timestamp_ms, now_ms) > retention_ms
        )
        too_much = retention_bytes is not None and remaining_bytes >= retention_bytes
        if not too_old and not too_much:
            break
        count += 1
    return count
