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

from .asof_join import WAITING, AsofJoinOperator, Waiting
from .columns import Chunk, Rows, join_chunks
from .frame_errors import NotInColumnsError
from .frame_levels import HOLD_MAX, TIME_MAX, clipped, levels_before
from .frame_operators import TurningOperator
from .frame_pairs import PairFrame
from .frames import ColumnFrame, Frame, FrameChunk, Ints, Mask, join_frames, plain_column, to_list
from .join_nodes import AsofJoinNode
from .nodes import LATE
from .operators import merged
from .row_shapes import Joined
from .state import StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step
from .watermark import Progress
from .windowing import pick


@dataclass(frozen=True, slots=True)
class _Piece:
    """Left rows that came together, in their order, and which of them still wait."""

    chunk: FrameChunk
    numbers: Ints
    """Which name them in state, rising."""
    dues: Ints
    """The W that each waits for."""
    waits: Mask

    @property
    def count(self) -> int:
        """How many wait."""
        return int(np.count_nonzero(self.waits))

    def pick(self, mask: Mask) -> _Piece:
        """Those that wait and whose flag is true."""
        chosen = mask & self.waits
        return _Piece(
            self.chunk.pick(chosen), self.numbers[chosen], self.dues[chosen], self.waits[chosen]
        )

    def compact(self) -> _Piece:
        """Those that wait, in columns of their own, which keep nothing else in memory."""
        left = self.pick(self.waits)
        frame = left.chunk.frame
        columns = {name: frame.column(name) for name in frame.names}
        kept = ColumnFrame(frame.row_count, frame.names, frame.kind, columns.__getitem__)
        rows = np.zeros(frame.row_count, np.int64)
        chunk = FrameChunk(rows, left.chunk.times, kept, left.chunk.keys)
        return _Piece(chunk, left.numbers, left.dues, left.waits)


class FrameAsofJoinOperator(AsofJoinOperator, TurningOperator):
    """Finds the match of each left row, the left rows in columns. Not thread-safe."""

    def __init__(self, node: AsofJoinNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._pool: list[_Piece] | None = None
        """In the order they came; None while those that wait are in `AsofJoinOperator`."""
        self._written = 0
        """State holds the rows of the pool up to this number."""

    @property
    def live_count(self) -> int:
        """Number of rows of both sides."""
        return super().live_count + sum(piece.count for piece in self._pool or ())

    @property
    def required_level(self) -> int | None:
        """The W that settles every left row; None when none waits."""
        if self._pool is None:
            return super().required_level
        waiting = [int(piece.dues[piece.waits].max()) for piece in self._pool if piece.count]
        return max(waiting, default=None)

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Take in rows of both sides; see `AsofJoinOperator.process`."""
        left, right = step.chunks
        step = step._replace(chunks=[left, right.as_chunk()])
        if self._pool is not None and not left.row_count:
            return self._process_pool(self._pool, None, step)
        arrived = self._try_columns(left, lambda left: self._arrived(left, step))
        if arrived is not None:
            return self._process_pool(*arrived, step)
        return super().process(step._replace(chunks=[left.as_chunk(), right.as_chunk()]))

    def _arrived(self, left: FrameChunk, step: Step) -> tuple[list[_Piece], FrameChunk | None]:
        """All left rows that wait now, and those of the new ones that are late, if any are.

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
        pool = self._as_pool(left.frame) if self._pool is None else [*self._pool]
        return [*pool, self._piece(new, numbers)], left.pick(late) if late.any() else None

    def _piece(self, chunk: FrameChunk, numbers: Ints) -> _Piece:
        waits = np.ones(len(numbers), np.bool_)
        return _Piece(chunk, numbers, chunk.times + self._wait_ms, waits)

    def _process_pool(
        self, pool: list[_Piece], late: FrameChunk | None, step: Step
    ) -> dict[str, Rows]:
        """Take in right rows, and settle what W has passed of the left ones."""
        self._drop_rows()
        self._numbers = max([self._numbers, *(int(one.numbers.max(initial=0)) for one in pool)])
        came, late_right = self._add_versions(step)
        levels = clipped(step.progress.levels) - self.delay_ms
        results: Rows = Chunk([], [], [], [])
        if len(levels):
            settled = [np.flatnonzero(one.waits & (one.dues <= levels[-1])) for one in pool]
            if any(map(len, settled)):
                results = self._settled_rows(pool, settled, levels, step.progress, came)
        self._pool = _tidied(pool)
        self._versions.prune(step.progress.end - self.delay_ms)
        late_left: Rows = Chunk([], [], [], []) if late is None else late
        self.late_count += late_left.row_count + late_right.row_count
        if late_right.row_count:
            late_left = merged([late_left.as_chunk(), late_right], keyed=True)
        return {MAIN: results, LATE: late_left}

    def _settled_rows(
        self,
        pool: list[_Piece],
        settled: list[Ints],
        levels: Ints,
        progress: Progress,
        came: Ints,
    ) -> Rows:
        """The results of left rows that W has passed, which wait no more."""
        parts = [(one, at) for one, at in zip(pool, settled, strict=True) if len(at)]
        dues = np.concatenate([one.dues[at] for one, at in parts])
        gone = self._persisted.intersection(dues.tolist())
        self._persisted -= gone
        self._settled += sorted(gone)
        moves = np.searchsorted(levels, dues)
        moved = np.asarray(progress.rows, np.int64)[moves]
        # Rows are in the order of their numbers.
        order = np.lexsort((np.arange(len(dues)), dues, moves))
        found: list[Any] = []
        lefts, places, done = [], [], 0
        for one, at in parts:
            one.waits[at] = False
            left = one.chunk.take(at)
            more, matches = self._match(left, moved[done : done + len(at)], came)
            places.append(np.where(matches < 0, -1, matches + len(found)))
            found += more
            lefts.append(left)
            done += len(at)
        matches = np.concatenate(places)[order]
        return self._pairs(lefts, order, moved[order], found, matches)

    def _pairs(
        self,
        lefts: list[FrameChunk],
        order: Ints,
        moved: Ints,
        found: list[Any],
        matches: Ints,
    ) -> Rows:
        """Left rows in an order, with their matches."""
        joined = join_frames(lefts)
        inner = self._node.how == "inner"
        if joined is not None:
            left = joined.take(order)
            frame = PairFrame(left.frame, found, matches)
            pairs = FrameChunk(moved, left.times, frame, left.keys)
            return pairs.pick(matches >= 0) if inner else pairs
        # They came as columns of several types.
        rows = join_chunks([each.as_chunk() for each in lefts], keyed=True)
        assert rows.keys is not None
        chosen = zip(order.tolist(), moved.tolist(), matches.tolist(), strict=True)
        kept = [each for each in chosen if not inner or each[2] >= 0]
        return Chunk(
            [row for _, row, _ in kept],
            [rows.times[index] for index, _, _ in kept],
            [Joined(rows.values[i], None if m < 0 else found[m]) for i, _, m in kept],
            [rows.keys[index] for index, _, _ in kept],
        )

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

    def _match(self, left: FrameChunk, moved: Ints, came: Ints) -> tuple[Sequence[Any], Ints]:
        """Right rows, and which of them each left row has for its match; -1 for none.

        Args:
            left: The left rows.
            moved: The input rows that settle them.
            came: See `_add_versions`.
        """
        assert left.keys is not None
        times, encoded = left.times, left.keys.dictionary_encode()
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

    def _as_pool(self, like: Frame) -> list[_Piece]:
        """The left rows of `AsofJoinOperator` in columns of the same names.

        Raises:
            NotInColumnsError: They cannot be.
        """
        rows = sorted(each for many in self._waiting.values() for each in many)
        if not rows:
            return []
        names, kind = like.names, like.kind
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
        return [self._piece(chunk, np.array([each.number for each in rows], np.int64))]

    def _drop_rows(self) -> None:
        """What waited as rows is in the pool now."""
        if self._pool is None:
            fresh = [each.number for many in self._fresh.values() for each in many]
            self._written = min(fresh, default=self._numbers + 1) - 1
            self._waiting, self._due, self._fresh = {}, [], {}

    def _to_rows(self) -> None:
        """All left rows that wait as those of `AsofJoinOperator`."""
        pool, self._pool = self._pool, None
        for piece in pool or ():
            left = piece.pick(piece.waits)
            rows = left.chunk.as_chunk()
            assert rows.keys is not None
            columns = (left.numbers.tolist(), rows.times, rows.keys, rows.values)
            for row in map(Waiting, *columns):
                due = row.time + self._wait_ms
                self._waiting.setdefault(due, []).append(row)
                if row.number > self._written:
                    self._fresh.setdefault(due, []).append(row)
        if pool is None:
            return
        self._due = list(self._waiting)
        heapq.heapify(self._due)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call; see `AsofJoinOperator.changes`."""
        pool = self._pool
        if pool is None:
            return super().changes()
        records = encode_removed((WAITING, due) for due in self._settled)
        for piece in pool:
            fresh = piece.pick(piece.numbers > self._written)
            records.extend(self._piece_entries(fresh))
            self._persisted.update(fresh.dues.tolist())
        self._settled, self._written = [], self._numbers
        records.extend(self._versions.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows of both sides; those that wait may turn into columns or back in between."""
        dues = sorted(self._waiting)
        if self._pool is not None:
            waiting = [piece.dues[piece.waits] for piece in self._pool]
            dues = np.unique(np.concatenate(waiting)).tolist() if waiting else []
        for start in range(0, len(dues), SWEEP_RECORDS):
            some = dues[start : start + SWEEP_RECORDS]
            if self._pool is None:
                there = [due for due in some if due in self._waiting]
                yield self._entries({due: self._waiting[due] for due in there})
            else:
                for piece in self._pool:
                    yield self._piece_entries(piece.pick(np.isin(piece.dues, some)))
        yield from self._versions.sweep()

    def _piece_entries(self, piece: _Piece) -> StateRecords:
        rows = piece.chunk.as_chunk()
        assert rows.keys is not None
        columns = (piece.dues.tolist(), rows.keys, piece.numbers.tolist())
        paths = [(WAITING, *path) for path in zip(*columns, strict=True)]
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


def _tidied(pool: Sequence[_Piece]) -> list[_Piece]:
    """The rows that wait, in few pieces, of which each is larger than the next.

    So a row is copied seldom, however many wait and however few come at a time.
    """
    tidied: list[_Piece] = []
    for piece in pool:
        count = piece.count
        if not count:
            continue
        # The last piece is new, in columns that others may use.
        worn = 2 * count < len(piece.waits) or piece is pool[-1]
        tidied.append(piece.compact() if worn else piece)
        while len(tidied) > 1 and len(tidied[-2].waits) <= 2 * len(tidied[-1].waits):
            one = _joined(tidied[-2], tidied[-1])
            if one is None:
                break
            tidied[-2:] = [one]
    return tidied


def _joined(first: _Piece, second: _Piece) -> _Piece | None:
    """The rows of both that wait; None if they are of several types."""
    parts = [piece.pick(piece.waits) for piece in (first, second)]
    chunk = join_frames([part.chunk for part in parts])
    if chunk is None:
        return None
    columns = ([getattr(part, name) for part in parts] for name in ("numbers", "dues", "waits"))
    return _Piece(chunk, *map(np.concatenate, columns)).compact()
