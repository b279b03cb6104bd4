"""Decide which segments retention may remove. Pure: numbers in, a count out; trimming.py acts.

Retention works on whole sealed segments from the front of a partition; it never touches the active
segment and never makes a hole. Age is judged by the time of the append, not by the producer's
timestamps: a producer that sends old history must not have it removed on arrival, and one that
sends timestamps of the next century must not keep it for ever.

Groups may hold segments back that they have not read. A limit in bytes, if there is one, ends that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class RetentionBlocker(NamedTuple):
    """A group that keeps segments from going which are old or too much otherwise."""

    topic: str
    partition: int
    group: str
    offset: int
    """What it has not done begins here; the log start if it has not begun."""
    held_bytes: int
    """Of the segments that would go if this group alone were done."""


class RetentionRules(NamedTuple):
    """What the configuration of a topic says about removing records."""

    retention_ms: int | None
    retention_bytes: int | None
    limit_bytes: int | None
    """More than this is not kept for any group."""


class Removal(NamedTuple):
    """What goes, and what is held back."""

    leading: int
    """So many segments from the oldest on go."""
    held_bytes: dict[str, int]
    """By group: bytes of segments that it holds back."""


def removable(
    segments: Sequence[SegmentInfo],
    rules: RetentionRules,
    done_below: Mapping[str, int],
    *,
    now_ms: int,
) -> Removal:
    """Decide for one partition.

    Age and bytes say what may go, or, if neither is given and groups are, all that is sealed may.
    Of that, what every group has done goes. Then, while the partition is larger than the limit,
    its oldest sealed segment goes, whoever has not read it.

    Args:
        segments: All of the partition, oldest first.
        rules: Of the topic.
        done_below: Per group that is waited for: below this offset it needs nothing.
        now_ms: Wall clock.

    >>> segments = [
    ...     SegmentInfo(0, 10, 100, 0, 0, sealed=True),
    ...     SegmentInfo(10, 20, 100, 0, 0, sealed=True),
    ... ]
    >>> removable(segments, RetentionRules(None, None, None), {"billing": 10}, now_ms=0)
    Removal(leading=1, held_bytes={'billing': 100})
    """
    sealed = next((n for n, each in enumerate(segments) if not each.sealed), len(segments))
    wanted = sealed if done_below else 0
    if rules.retention_ms is not None or rules.retention_bytes is not None:
        wanted = expired(
            segments,
            now_ms=now_ms,
            retention_ms=rules.retention_ms,
            retention_bytes=rules.retention_bytes,
        )
    slowest = min(done_below.values(), default=None)
    done = sum(slowest is None or each.end_offset <= slowest for each in segments[:wanted])
    count = max(done, _over_limit(segments[:sealed], segments[sealed:], rules.limit_bytes))
    held = {
        group: sum(each.size_bytes for each in segments[count:wanted] if each.end_offset > offset)
        for group, offset in done_below.items()
    }
    return Removal(count, {group: size for group, size in held.items() if size})


def _over_limit(
    sealed: Sequence[SegmentInfo], rest: Sequence[SegmentInfo], limit_bytes: int | None
) -> int:
    if limit_bytes is None:
        return 0
    total = sum(each.size_bytes for each in (*sealed, *rest))
    for count, each in enumerate(sealed):
        if total <= limit_bytes:
            return count
        total -= each.size_bytes
    return len(sealed)
