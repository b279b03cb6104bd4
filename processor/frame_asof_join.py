"""The as-of join on columns: what asof_join.py does, with the left rows in columns.

Left rows wait in columns until W has passed them; all that a step settles are looked up together.
The right rows are those of `Versions`, one by one: they are few beside the left ones. A left row
that W settles within a step must not meet a right row that came after that: the nearest of all is
looked for first, and only where that came too late those that were there.

Where columns cannot be had, left rows wait as those of `AsofJoinOperator`, and turn back into
columns once as many rows have come as wait. State is the same records.

This module needs the extra `arrow`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .asof_join import WAITING, AsofJoinOperator, Waiting
from .columns import Chunk, Rows
from .frame_errors import NotInColumnsError
from .frame_levels import HOLD_MAX, TIME_MAX, clipped, levels_before
from .frame_pairs import PairFrame, plain_column
from .frames import ColumnFrame, FrameChunk, Ints, Mask, concatenated, join_frames, to_list
from .join_nodes import AsofJoinNode
from .nodes import LATE
from .operators import merged
from .state import StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step
from .windowing import pick


@dataclass(frozen=True, slots=True)
class _Pool:
    """Left rows that wait, in the order they came."""

    chunk: FrameChunk
    numbers: Ints
    """Which name them in state, rising."""

    def pick(self, mask: Mask) -> _Pool:
        """Those whose flag is true."""
        return _Pool(self.chunk.pick(mask), self.numbers[mask])


class FrameAsofJoinOperator(AsofJoinOperator):
    """Finds the match of each left row, the left rows in columns. Not thread-safe."""

    def __init__(self, node: AsofJoinNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._pool: _Pool | None = None
        """None while those that wait are in `AsofJoinOperator`."""
        self._written = 0
        """State holds the rows of the pool up to this number."""
        self._rows_left = 0
        """How many rows to take as such before columns are tried again."""

    @property
    def live_count(self) -> int:
        """Number of rows of both sides."""
        return super().live_count + (0 if self._pool is None else len(self._pool.numbers))

    @property
    def required_level(self) -> int | None:
        """The W that settles every left row; None when none waits."""
        if self._pool is None or not len(self._pool.numbers):
            return super().required_level
        return int(self._pool.chunk.times.max()) + self._wait_ms

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Take in rows of both sides; see `AsofJoinOperator.process`."""
        left, right = step.chunks
        step = step._replace(chunks=[left, right.as_chunk()])
        if isinstance(left, FrameChunk) and left.row_count and self._rows_left <= 0:
            try:
                pool, late = self._arrived(left, step)
            except NotInColumnsError:
                self._rows_left = self.live_count
            else:
                return self._process_pool(pool, left.pick(late) if late.any() else None, step)
        elif self._pool is not None and not left.row_count:
            return self._process_pool(self._pool, None, step)
        self._to_rows()
        self._rows_left -= left.row_count
        return super().process(step._replace(chunks=[left.as_chunk(), right.as_chunk()]))

    def _arrived(self, left: FrameChunk, step: Step) -> tuple[_Pool, Mask]:
        """All left rows that wait now, and which of the new ones are late.

        Raises:
            NotInColumnsError: Only rows can say; nothing has changed.
        """
        times = left.times
        if int(times.max()) > TIME_MAX or int(times.min()) < -TIME_MAX:
            raise NotInColumnsError("times at the end of time")
        if self._wait_ms + self.delay_ms > HOLD_MAX:
            raise NotInColumnsError("rows that wait for ever")
        late: Mask = times + self._wait_ms <= levels_before(step.progress, left.rows, self.delay_ms)
        new = left.pick(~late)
        new.frame.require(new.frame.names)  # state keeps whole rows
        numbers = np.arange(self._numbers + 1, self._numbers + 1 + new.row_count)
        before = self._pool or self._as_pool(left)
        if before is None:
            return _Pool(new, numbers), late
        chunk = join_frames([before.chunk, new])
        if chunk is None:
            raise NotInColumnsError("columns of several types")
        return _Pool(chunk, np.concatenate([before.numbers, numbers])), late

    def _process_pool(self, pool: _Pool, late: FrameChunk | None, step: Step) -> dict[str, Rows]:
        """Take in right rows, and settle what W has passed of the left ones."""
        self._drop_rows()
        self._numbers = max(self._numbers, int(pool.numbers.max(initial=0)))
        came, late_right = self._add_versions(step)
        levels = clipped(step.progress.levels) - self.delay_ms
        due = self._dues(pool)
        settled = due <= levels[-1] if len(levels) else np.zeros(len(due), np.bool_)
        results: Rows = Chunk([], [], [], [])
        if settled.any():
            at = np.flatnonzero(settled)
            moves = np.searchsorted(levels, due[at])
            order = np.lexsort((at, due[at], moves))
            moved = np.asarray(step.progress.rows, np.int64)[moves[order]]
            results = self._pairs(pool.chunk, at[order], moved, came)
            gone = self._persisted.intersection(due[at].tolist())
            self._persisted -= gone
            self._settled += sorted(gone)
            pool = pool.pick(~settled)
        self._pool = _Pool(_kept(pool.chunk), pool.numbers)
        self._versions.prune(step.progress.end - self.delay_ms)
        late_left: Rows = Chunk([], [], [], []) if late is None else late
        self.late_count += late_left.row_count + late_right.row_count
        if late_right.row_count:
            late_left = merged([late_left.as_chunk(), late_right], keyed=True)
        return {MAIN: results, LATE: late_left}

    def _add_versions(self, step: Step) -> tuple[Ints, Chunk]:
        """Take in right rows.

        Returns:
            For each that is new the input row it came with, after those of earlier steps; and the
            late ones.
        """
        _, right = step.chunks
        came, late = [], []
        levels = step.progress.before(right.rows)
        given = zip(right.rows, right.times, right.keys, right.values, levels, strict=True)
        for index, (row, time, key, value, level) in enumerate(given):
            if self._versions.add(key, time, value, level - self.delay_ms):
                came.append(row)
            else:
                late.append(index)
        return np.array(came, np.int64), pick(right, late)

    def _pairs(self, chunk: FrameChunk, places: Ints, moved: Ints, came: Ints) -> FrameChunk:
        """The results of left rows at `places`, settled by the input rows `moved`."""
        assert chunk.keys is not None
        keys, times = chunk.keys.take(pa.array(places)), chunk.times[places]
        found, matches = self._match(keys, times, moved, came)
        frame = PairFrame(chunk.frame.take(places), found, matches)
        pairs = FrameChunk(moved, times, frame, keys)
        return pairs.pick(matches >= 0) if self._node.how == "inner" else pairs

    def _match(self, keys: Any, times: Ints, moved: Ints, came: Ints) -> tuple[Sequence[Any], Ints]:
        """Right rows, and which of them each left row has for its match; -1 for none."""
        encoded = keys.dictionary_encode()
        versions = list(map(self._versions.of, to_list(encoded.dictionary)))
        key_of = encoded.indices.to_numpy().astype(np.int64)
        counts = np.array([len(lane) for lane, _ in versions], np.int64)
        rows = [row for _, lane in versions for row in lane]
        version_times = np.array([time for lane, _ in versions for time in lane], np.int64)
        best = _nearest(version_times, counts, key_of, times, self._node)
        # What came in this step is there for those alone that W let go later.
        first = self._versions.last_number - len(came)
        numbers = np.array([number for number, _ in rows], np.int64) - first - 1
        arrival = np.full(len(rows), -1, np.int64)
        arrival[numbers >= 0] = came[numbers[numbers >= 0]]
        stops = np.cumsum(counts)
        for side in best:
            _skip_unseen(side.places, side.step, arrival, moved, (stops - counts, stops, key_of))
        chosen = _nearer([side.places for side in best], version_times, times, self._node)
        used, matches = np.unique(chosen, return_inverse=True)
        found = [None if each < 0 else rows[each][1] for each in used.tolist()]
        there = np.array([each is not None for each in found], np.bool_)
        return found, np.where(there[matches], matches, -1)

    # --- rows and columns ----------------------------------------------------------------------

    def _as_pool(self, left: FrameChunk) -> _Pool | None:
        """The left rows of `AsofJoinOperator` in columns like those of `left`; None if none wait.

        Raises:
            NotInColumnsError: They cannot be.
        """
        rows = sorted(each for many in self._waiting.values() for each in many)
        if not rows:
            return None
        names, kind = left.frame.names, left.frame.kind
        values = [each.value for each in rows]
        if set(map(type, values)) != {kind}:
            raise NotInColumnsError("rows of several types")
        if kind is dict:
            if set(map(tuple, values)) != {names}:
                raise NotInColumnsError("rows of several fields")
            columns = {name: plain_column([value[name] for value in values]) for name in names}
        else:
            columns = {name: plain_column([getattr(v, name) for v in values]) for name in names}
        times = np.array([each.time for each in rows], np.int64)
        if int(times.max()) > TIME_MAX or int(times.min()) < -TIME_MAX:
            raise NotInColumnsError("times at the end of time")
        frame = ColumnFrame(len(rows), names, kind, columns.__getitem__)
        keys = plain_column([each.key for each in rows])
        chunk = FrameChunk(np.zeros(len(rows), np.int64), times, frame, keys)
        return _Pool(chunk, np.array([each.number for each in rows], np.int64))

    def _drop_rows(self) -> None:
        """What waited as rows is in the pool now."""
        if self._pool is None:
            fresh = [each.number for many in self._fresh.values() for each in many]
            self._written = min(fresh, default=self._numbers + 1) - 1
            self._waiting, self._due, self._fresh = {}, [], {}

    def _to_rows(self) -> None:
        """All left rows that wait as those of `AsofJoinOperator`."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        rows = pool.chunk.as_chunk()
        assert rows.keys is not None
        columns = (pool.numbers.tolist(), rows.times, rows.keys, rows.values)
        for row in map(Waiting, *columns):
            due = row.time + self._wait_ms
            self._waiting.setdefault(due, []).append(row)
            if row.number > self._written:
                self._fresh.setdefault(due, []).append(row)
        self._due = list(self._waiting)
        heapq.heapify(self._due)

    def _dues(self, pool: _Pool) -> Ints:
        """The W that rows wait for."""
        return pool.chunk.times + self._wait_ms

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call; see `AsofJoinOperator.changes`."""
        pool = self._pool
        if pool is None:
            return super().changes()
        records = encode_removed((WAITING, due) for due in self._settled)
        fresh = pool.pick(pool.numbers > self._written)
        records.extend(self._pool_entries(fresh))
        self._persisted.update(self._dues(fresh).tolist())
        self._settled, self._written = [], self._numbers
        records.extend(self._versions.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows of both sides; those that wait may turn into columns or back in between."""
        pool = self._pool
        dues = sorted(self._waiting) if pool is None else np.unique(self._dues(pool)).tolist()
        for start in range(0, len(dues), SWEEP_RECORDS):
            piece = dues[start : start + SWEEP_RECORDS]
            pool = self._pool
            if pool is None:
                there = [due for due in piece if due in self._waiting]
                yield self._entries({due: self._waiting[due] for due in there})
            else:
                yield self._pool_entries(pool.pick(np.isin(self._dues(pool), piece)))
        yield from self._versions.sweep()

    def _pool_entries(self, pool: _Pool) -> StateRecords:
        rows = pool.chunk.as_chunk()
        assert rows.keys is not None
        due = self._dues(pool).tolist()
        paths = [
            (WAITING, *path) for path in zip(due, rows.keys, pool.numbers.tolist(), strict=True)
        ]
        values = list(zip(rows.times, self._codec.pack(rows.values), strict=True))
        return encode_entries(self.name, paths, values, proven=True)


class _Side(NamedTuple):
    """For each row the version of its key that is nearest on one side of its time; -1 for none."""

    places: Ints
    step: int
    """To the next one on that side."""


def _nearest(
    version_times: Ints, counts: Ints, key_of: Ints, times: Ints, node: AsofJoinNode
) -> list[_Side]:
    """The nearest versions on the sides that a join looks at: up to the time, or from it on."""
    stops = np.cumsum(counts)
    # Times as ranks leave room for the key in front of them.
    ranks = np.unique(np.concatenate([version_times, times]), return_inverse=True)[1]
    span = len(ranks) + 1
    version_keys = np.repeat(np.arange(len(counts)), counts)
    versions = version_keys * span + ranks[: len(version_times)]
    wanted = key_of * span + ranks[len(version_times) :]
    best = []
    if node.direction != "forward":
        before = np.searchsorted(versions, wanted, side="right") - 1
        best.append(_Side(np.where(before >= (stops - counts)[key_of], before, -1), -1))
    if node.direction != "backward":
        after = np.searchsorted(versions, wanted, side="left")
        best.append(_Side(np.where(after < stops[key_of], after, -1), 1))
    return best


def _skip_unseen(
    places: Ints, step: int, arrival: Ints, moved: Ints, lanes: tuple[Ints, Ints, Ints]
) -> None:
    """Go on from versions that came after their row was settled, to the first that had not.

    Args:
        places: Of the version of each row; changed in place.
        step: To the next.
        arrival: The input row that each version came with.
        moved: The one that settled each row.
        lanes: Where the versions of each key begin and end, and the key of each row.
    """
    starts, stops, key_of = lanes
    open_rows = np.flatnonzero(places >= 0)
    while True:
        open_rows = open_rows[arrival[places[open_rows]] > moved[open_rows]]
        if not len(open_rows):
            return
        following = places[open_rows] + step
        keys = key_of[open_rows]
        inside = (following >= starts[keys]) & (following < stops[keys])
        places[open_rows] = np.where(inside, following, -1)
        open_rows = open_rows[inside]


def _nearer(best: Sequence[Ints], version_times: Ints, times: Ints, node: AsofJoinNode) -> Ints:
    """Which of the versions found is the match of each row; -1 for none."""
    if not len(version_times):
        return np.full(len(times), -1, np.int64)
    chosen = best[0].copy()
    if len(best) > 1:
        before, after = best
        closer = version_times[after] - times < times - version_times[before]
        use = (before < 0) | ((after >= 0) & closer)
        chosen[use] = after[use]
    if node.within_ms is not None:
        chosen[np.abs(version_times[chosen] - times) > node.within_ms] = -1
    return chosen


def _kept(chunk: FrameChunk) -> FrameChunk:
    """Rows in columns of their own, which keep nothing else in memory."""
    frame = chunk.frame
    columns = {name: concatenated([frame.column(name)], name) for name in frame.names}
    kept = ColumnFrame(frame.row_count, frame.names, frame.kind, columns.__getitem__)
    return FrameChunk(np.zeros(frame.row_count, np.int64), chunk.times, kept, chunk.keys)
