"""Event-time progress: how far a stream is, judged row by row. Pure.

The watermark W of a source says: no more rows with a time before W are expected. Each partition
reaches `max(time so far) - disorder`; W is the least of the partitions that have had a row, and it
never falls. It moves by rows in the order of the log and by nothing else: not by the wall clock,
not by where a batch was cut. That is why results are the same for any batch size and any restart.
Where it would be below the least time there can be, it is none, as before the first row.

A partition that has never had a row does not hold W back, also one added later: there is nothing
in it to wait for, and its first rows are judged like any others. Neither does a partition that is
marked idle, until its next row. Marks, and what the wall clock adds, come in ticks: facts that the
run loop takes from outside and writes into the pipeline's journal beside its results (ticks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

BEFORE_TIME: Final = -(1 << 80)
"""W before the first row. Below every int64 minus any disorder, so that nothing is late."""

LEVEL_MAX: Final = (1 << 64) - 1
"""The greatest W that a checkpoint can hold."""

_LEAST: Final = -(1 << 63)
"""The least time there can be."""

IDLE: Final = 1 << 80
"""What an idle source contributes to the W of an operator it shares: it holds nothing back."""


_NEVER: Final = 1 << 62
"""After every row."""


class Progress(NamedTuple):
    """How W moved while one micro-batch was read: a step function over its row numbers.

    After row `rows[i]` W is `levels[i]`; both rise strictly. Most rows move nothing, so this is
    short, and where W passes a value is found by bisection.
    """

    start: int
    """W before the first row."""
    rows: list[int]
    levels: list[int]

    @property
    def end(self) -> int:
        """W after the last row."""
        return self.levels[-1] if self.levels else self.start

    def before(self, rows: Iterable[int]) -> list[int]:
        """W before each of `rows`, whose numbers never fall: what a row is judged against.

        >>> Progress(5, [0, 2], [10, 20]).before([0, 1, 2, 2, 3])
        [5, 10, 10, 10, 20]
        """
        level, moves = self.start, zip(self.rows, self.levels, strict=True)
        moved, reached = next(moves, (_NEVER, level))
        levels: list[int] = []
        for row in rows:
            while moved < row:
                level = reached
                moved, reached = next(moves, (_NEVER, level))
            levels.append(level)
        return levels


def least(contributions: Sequence[Progress], floor: int) -> Progress:
    """The W of an operator that several sources reach: the least of theirs, row by row.

    A source that has had no row yet holds it back, unlike a partition without rows: a topic that
    waits to be filled is a common start, and its first rows must not all be late. A source that
    is `IDLE` holds nothing back; while all are, W stays where it is.

    Args:
        contributions: What each source has reached; unlike a W these may fall, from IDLE.
        floor: The operator's W so far: it never falls.

    >>> least([Progress(5, [0, 2], [10, 20]), Progress(7, [1], [30])], 5)
    Progress(start=5, rows=[0, 1, 2], levels=[7, 10, 20])
    """
    now = [progress.start for progress in contributions]
    level = _not_below(floor, min(now))
    # A source has become idle between the steps: that lets W move before the first row.
    rows, levels = ([0], [level]) if level > floor else ([], [])
    moves = sorted(
        (row, number, reached)
        for number, progress in enumerate(contributions)
        for row, reached in zip(progress.rows, progress.levels, strict=True)
    )
    for row, number, reached in moves:
        now[number] = reached
        risen = _not_below(level, min(now))
        if risen > level:
            level = risen
            if rows and rows[-1] == row:
                levels[-1] = level
            else:
                rows.append(row)
                levels.append(level)
    return Progress(floor, rows, levels)


def _not_below(level: int, reached: int) -> int:
    return level if reached == IDLE else max(level, reached)


class Watermark:
    """W of one source. Not thread-safe.

    >>> watermark = Watermark(disorder_ms=5)
    >>> watermark.advance(0, [10, 11, 12], [100, 98, 103])
    ([10, 12], [95, 98])
    >>> watermark.level
    98
    """

    def __init__(
        self,
        disorder_ms: int,
        maxima: Mapping[int, int] | None = None,
        level: int = BEFORE_TIME,
        idle: Iterable[int] = (),
    ) -> None:
        self.disorder_ms = disorder_ms
        self.maxima: dict[int, int] = dict(maxima or {})
        """Greatest time of each partition that has had a row."""
        self.level = level
        self.idle: set[int] = set(idle)
        """Partitions that hold nothing back until their next row."""

    def advance(
        self, partition: int, rows: Iterable[int], times: Iterable[int]
    ) -> tuple[list[int], list[int]]:
        """Take in rows of one partition, in offset order.

        Args:
            partition: Where the rows come from.
            rows: Their numbers in the micro-batch, rising.
            times: Their event times, UTC ms.

        Returns:
            The rows after which W was higher than before, and W after them.
        """
        others = [top for each, top in self._active() if each != partition]
        cap = min(others) if others else None
        top = self.maxima.get(partition, BEFORE_TIME)
        # What is below all times is no W: it judges nothing, and no checkpoint could hold it.
        level, disorder_ms = max(self.level, _LEAST - 1), self.disorder_ms
        moved_rows: list[int] = []
        levels: list[int] = []
        for row, time in zip(rows, times, strict=True):
            if time > top:
                top = time
                reached = (time if cap is None or time < cap else cap) - disorder_ms
                if reached > level:
                    level = reached
                    moved_rows.append(row)
                    levels.append(level)
        if top != BEFORE_TIME:
            self.maxima[partition] = top
        if levels:
            self.level = level
        return moved_rows, levels

    def jump(
        self,
        partition: int,
        rows: Sequence[int],
        times: Sequence[int],
        newest: int | None = None,
    ) -> tuple[list[int], list[int]]:
        """As `advance`, for rows that nobody judges one by one: W moves with the last of them.

        Args:
            partition: See `advance`.
            rows: See `advance`.
            times: See `advance`.
            newest: The greatest of `times`, if that is known.
        """
        if not times:
            return [], []
        before = self.level
        last = len(rows) - 1
        self.advance(partition, rows[last:], [max(times) if newest is None else newest])
        return ([rows[last]], [self.level]) if self.level > before else ([], [])

    def _active(self) -> Iterable[tuple[int, int]]:
        """The partitions that hold W back, with their greatest times."""
        if not self.idle:
            return self.maxima.items()
        return [(each, top) for each, top in self.maxima.items() if each not in self.idle]

    def wake(self, partition: int) -> bool:
        """Take note that an idle partition has a row again; whether W has risen by that.

        While all partitions are idle W stays where it was, maybe behind the one that wakes first.

        >>> watermark = Watermark(0, {0: 10, 1: 44}, level=10, idle=[0, 1])
        >>> watermark.wake(1), watermark.level
        (True, 44)
        """
        self.idle.discard(partition)
        before, tops = self.level, [top for _, top in self._active()]
        if tops:
            self.raise_to(min(tops) - self.disorder_ms)
        return self.level > before

    def mark_idle(self, partitions: Iterable[int]) -> None:
        """Let W rise to the least of the other partitions; where all are idle it stays."""
        self.idle.update(partitions)
        tops = [top for _, top in self._active()]
        if tops:
            self.raise_to(min(tops) - self.disorder_ms)

    def raise_to(self, level: int) -> None:
        """Let W rise by decree, at the end of bounded input; it never falls."""
        if level >= _LEAST:
            self.level = max(self.level, level)
