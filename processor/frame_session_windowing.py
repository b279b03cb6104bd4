"""The session operator on columns: what session_windowing.py does, with accumulators in arrays.

Which rows form which session is found in frame_sessions.py. Rows that come as columns are added to
arrays; as soon as something comes that arrays cannot hold exactly, all sessions turn into those of
`SessionOperator`, and back once as many rows have come as there are sessions: so what turning costs
is spread over rows. State is the same records for both, so a restart may go on in either lane.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np

from .aggregating import SlottedAggregates
from .columns import Chunk, MicroBatch, Rows
from .frame_accumulators import Accumulators, Inputs
from .frame_aggregates import accumulators_for
from .frame_errors import NotInColumnsError
from .frame_folding import Closed, Folding, as_slots
from .frame_keys import KeyNumbers
from .frame_levels import HOLD_MAX, TIME_MAX, clipped, levels_before
from .frame_operators import TurningOperator
from .frame_sessions import SessionPlan, SessionSlots
from .frames import FrameChunk, Ints, to_list
from .nodes import LATE, SessionNode
from .session_windowing import Content, SessionOperator
from .sessions import OpenSessions
from .state import StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step

_UNWRITTEN: Final = -(1 << 63)
"""Stands for the first time of a session that state does not hold."""
_TABLE_KEYS_MIN: Final = 1 << 16
"""A table with fewer keys is not made anew."""


class _Prepared(NamedTuple):
    """Rows of a step, as arrays."""

    chunk: FrameChunk
    inputs: Sequence[Inputs]
    """What each aggregate adds."""


class _Arrays:
    """The open sessions in arrays.

    Args:
        sessions: Which there are.
        accumulators: Of each aggregate.
    """

    def __init__(self, sessions: SessionSlots, accumulators: Sequence[Accumulators]) -> None:
        self.sessions = sessions
        self.accumulators = accumulators
        self.changed = np.zeros(0, np.bool_)
        """By slot: whether state does not hold it as it is."""
        self.written = np.full(0, _UNWRITTEN, np.int64)
        """By slot: the first time under which state holds it."""

    def grow(self) -> None:
        """Have room for all slots."""
        missing = len(self.sessions.last) - len(self.changed)
        if missing > 0:
            self.changed = np.concatenate([self.changed, np.zeros(missing, np.bool_)])
            more = np.full(missing, _UNWRITTEN, np.int64)
            self.written = np.concatenate([self.written, more])
            for each in self.accumulators:
                each.grow(len(self.sessions.last))

    def release(self, slots: Ints) -> None:
        """Take out sessions, which state no longer has to hold."""
        self.sessions.release(slots)
        self.changed[slots] = False
        self.written[slots] = _UNWRITTEN
        for each in self.accumulators:
            each.reset(slots.astype(np.int32))

    def states(self, slots: Ints) -> list[tuple[Any, ...]]:
        """What state keeps of sessions."""
        of_slots = slots.astype(np.int32)
        held = [each.state(of_slots) for each in self.accumulators]
        last = self.sessions.last[slots].tolist()
        return list(zip(last, repeat(0), repeat(False), *held))


class FrameSessionOperator(SessionOperator, TurningOperator):
    """Sessions with one result each, on columns as far as possible. Not thread-safe."""

    def __init__(self, node: SessionNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._hold_ms = node.windows.gap_ms + node.grace_ms
        self._folding = Folding(node)
        self._table = KeyNumbers()
        self._arrays: _Arrays | None = None
        """None while the sessions are those of `SessionOperator`."""

    @property
    def live_count(self) -> int:
        """Number of open sessions."""
        return super().live_count if self._arrays is None else self._arrays.sessions.count

    @property
    def required_level(self) -> int | None:
        """The W that closes every session; None when none is open."""
        if self._arrays is None:
            return super().required_level
        return self._arrays.sessions.last_deadline

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Put rows into sessions and close those that are complete; see `SessionOperator`."""
        (chunk,) = step.chunks
        if self._arrays is not None and not chunk.row_count:
            with np.errstate(all="ignore"):
                return {MAIN: self._close_arrays(self._arrays, step), LATE: chunk}
        found = self._try_columns(chunk, lambda chunk: self._process_columns(chunk, step))
        if found is not None:
            return found
        return super().process(step._replace(chunks=[chunk.as_chunk()]))

    def _process_columns(self, chunk: FrameChunk, step: Step) -> dict[str, Rows]:
        """Take rows as columns.

        Raises:
            NotInColumnsError: Only rows can say; nothing has changed.
        """
        if self._hold_ms + self.delay_ms > HOLD_MAX:
            raise NotInColumnsError("sessions that never end")
        inputs = self._folding.inputs(chunk.frame, chunk.times)
        arrays = self._arrays or self._as_arrays(chunk, inputs)
        assert chunk.keys is not None
        self._compact_table(arrays)
        numbers = self._table.numbers_of(chunk.keys)
        closed = levels_before(step.progress, chunk.rows, self.delay_ms) - self._hold_ms
        plan = arrays.sessions.plan(numbers, chunk.times, closed)
        merging = plan.merging.astype(np.int32)
        for each, one in zip(arrays.accumulators, inputs, strict=True):
            if not each.accepts(one) or not each.can_merge(merging, one):
                raise NotInColumnsError("a value that arrays cannot add")
        self._follow(arrays, plan, _Prepared(chunk, inputs), step.batch)
        late = plan.of_row < 0
        self.late_count += int(np.count_nonzero(late))
        results = self._close_arrays(arrays, step)
        return {MAIN: results, LATE: chunk.pick(late) if late.any() else chunk.cut(0, 0)}

    def _follow(
        self, arrays: _Arrays, plan: SessionPlan, prepared: _Prepared, batch: MicroBatch
    ) -> None:
        """Do what a plan says."""
        slots = arrays.sessions.apply(plan)
        arrays.grow()
        self._add_rows(arrays, plan, slots, prepared, batch)
        touched = np.zeros(len(slots) + 1, np.bool_)
        touched[plan.of_row] = True
        touched[-1] = False
        arrays.changed[slots[touched[:-1]]] = True
        absorbed = [one.right for phase in plan.merges for one in phase]
        if absorbed:
            self._release(arrays, slots[absorbed])

    def _add_rows(
        self,
        arrays: _Arrays,
        plan: SessionPlan,
        slots: Ints,
        prepared: _Prepared,
        batch: MicroBatch,
    ) -> None:
        of_row, rows = plan.of_row, prepared.chunk.rows
        for phase in range(len(plan.merges) + 1):
            wanted = of_row >= 0
            if plan.phases is not None:
                wanted &= plan.phases == phase
            places = np.flatnonzero(wanted)
            inputs = prepared.inputs
            if len(places) < len(of_row):
                inputs = [each.at(places) for each in inputs]
            where = as_slots(slots[of_row[places]])
            self._folding.add(
                arrays.accumulators,
                where,
                inputs,
                batch,
                partial(_row_at, rows, places),
            )
            if phase < len(plan.merges):
                merges = plan.merges[phase]
                left, right = (as_slots(slots[[each[side] for each in merges]]) for side in (0, 1))
                self._folding.merge(
                    arrays.accumulators,
                    left,
                    right,
                    batch,
                    partial(_row_at, rows, [each.row for each in merges]),
                )

    # --- closing -------------------------------------------------------------------------------

    def _close_arrays(self, arrays: _Arrays, step: Step) -> Rows:
        """The results of the sessions that W has passed."""
        progress, sessions = step.progress, arrays.sessions
        levels = clipped(progress.levels) - self.delay_ms
        slots = sessions.due(int(levels[-1])) if len(levels) else _NO_SLOTS
        if not len(slots):
            return Chunk([], [], [], [])
        moves = np.searchsorted(levels, sessions.last[slots] + sessions.hold_ms)
        order = self._closing_order(arrays, slots, moves)
        slots, moves = slots[order], moves[order]
        rows = np.asarray(progress.rows, np.int64)[moves]
        keys = self._table.keys_of(sessions.keys[slots])
        start, end = sessions.first[slots], sessions.last[slots] + self._gap_ms
        closed = Closed(as_slots(slots), rows, keys, start, end)
        results = self._folding.results(arrays.accumulators, closed, step.batch)
        self._release(arrays, slots)
        return results

    def _closing_order(self, arrays: _Arrays, slots: Ints, moves: Ints) -> Ints:
        """The order in which sessions close: by input row, end, start, and bytes of the key."""
        first, last = arrays.sessions.first[slots], arrays.sessions.last[slots]
        order = np.lexsort((first, last, moves))
        columns = [column[order] for column in (moves, last, first)]
        same = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
        if same.any():
            numbers = np.unique(arrays.sessions.keys[slots]).astype(np.int32)
            rank = np.zeros(int(numbers[-1]) + 1, np.int64)
            rank[numbers[self._table.ordered(numbers)]] = np.arange(len(numbers))
            order = np.lexsort((rank[arrays.sessions.keys[slots]], first, last, moves))
        return order

    def _release(self, arrays: _Arrays, slots: Ints) -> None:
        """Take out sessions; state is not to hold them any more."""
        self._forget_written(arrays, slots)
        arrays.release(slots)

    def _forget_written(self, arrays: _Arrays, slots: Ints) -> None:
        """Have what state holds of sessions removed."""
        held = slots[arrays.written[slots] != _UNWRITTEN]
        if len(held):
            keys = self._keys_at(arrays, held)
            paths = zip(keys, arrays.written[held].tolist(), strict=True)
            self._removed.update(dict.fromkeys(paths))

    def _keys_at(self, arrays: _Arrays, slots: Ints) -> list[Any]:
        return to_list(self._table.keys_of(arrays.sessions.keys[slots]))

    # --- lists and arrays ----------------------------------------------------------------------

    def _as_arrays(self, chunk: FrameChunk, inputs: Sequence[Inputs]) -> _Arrays:
        """All sessions in arrays; those of `SessionOperator` are gone then.

        Raises:
            NotInColumnsError: They cannot be; nothing has changed.
        """
        pairs = zip(self.node.aggregates, inputs, strict=True)
        made = [accumulators_for(aggregate, one) for (_, aggregate), one in pairs]
        arrays = _Arrays(SessionSlots(self._gap_ms, self.node.grace_ms), made)
        self._table.clear()
        open_now = list(self._sessions)
        keys = [one.key for one in open_now]
        if open_now:
            self._table.begin(keys)
            held = self._aggregates.accumulators([one.content.slot for one in open_now])
            for each, column in zip(made, zip(*held, strict=True), strict=True):
                each.restore(column)
            first = np.array([one.first_ms for one in open_now], np.int64)
            last = np.array([one.last_ms for one in open_now], np.int64)
            if int(last.max()) > TIME_MAX or int(first.min()) < -TIME_MAX:
                raise NotInColumnsError("times at the end of time")
            arrays.sessions.restore(self._table.numbers_of_list(keys), first, last)
            arrays.grow()
            arrays.changed[: len(keys)] = [id(one) in self._changed for one in open_now]
            is_written = [(one.key, one.first_ms) in self._written for one in open_now]
            arrays.written[: len(keys)] = np.where(is_written, first, _UNWRITTEN)
        assert chunk.keys is not None
        self._table.numbers_of(chunk.keys)
        self._sessions = OpenSessions(self._gap_ms, self.node.grace_ms)
        self._aggregates = SlottedAggregates(f"window {self.node.name}", self.node.aggregates)
        self._changed, self._written = {}, {}
        self._arrays = arrays
        return arrays

    def _to_rows(self) -> None:
        """All sessions as those of `SessionOperator`."""
        arrays, self._arrays = self._arrays, None
        if arrays is None:
            return
        sessions, slots = arrays.sessions, arrays.sessions.open_slots
        moved = arrays.written[slots] != sessions.first[slots]
        self._forget_written(arrays, slots[moved])
        columns = (
            self._keys_at(arrays, slots),
            sessions.first[slots].tolist(),
            sessions.last[slots].tolist(),
            arrays.changed[slots].tolist(),
            moved.tolist(),
            [state[3:] for state in arrays.states(slots)],
        )
        for key, first, last, changed, is_moved, held in zip(*columns, strict=True):
            content = Content(self._aggregates.open())
            self._aggregates.put(content.slot, held)
            session = self._sessions.restore(key, first, last, content)
            if changed:
                self._changed[id(session)] = session
            if not is_moved:
                self._written[key, first] = None
        self._table.clear()

    def _compact_table(self, arrays: _Arrays) -> None:
        """Forget keys without sessions, once they are the most of the table."""
        known = len(self._table)
        if known < _TABLE_KEYS_MIN or known < 4 * arrays.sessions.count:
            return
        keys = self._table.keys_of(arrays.sessions.keys[arrays.sessions.open_slots])
        self._table.clear()
        arrays.sessions.renumber(self._table.numbers_of(keys))

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call; see `SessionOperator.changes`."""
        arrays = self._arrays
        if arrays is None:
            return super().changes()
        slots = np.flatnonzero(arrays.changed)
        first = arrays.sessions.first[slots]
        self._forget_written(arrays, slots[arrays.written[slots] != first])
        records = encode_removed(self._removed)
        records.extend(self._array_entries(arrays, slots))
        arrays.written[slots] = first
        arrays.changed[slots] = False
        self._removed = {}
        return records

    def _array_entries(self, arrays: _Arrays, slots: Ints) -> StateRecords:
        keys, first = self._keys_at(arrays, slots), arrays.sessions.first[slots].tolist()
        paths = list(zip(keys, first, strict=True))
        return encode_entries(self.name, paths, arrays.states(slots))

    def sweep(self) -> Iterator[StateRecords]:
        """All sessions of the keys that have some now, as long as they have.

        Between two pieces they may turn into arrays or back, so keys are what it goes by.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        if self._arrays is None:
            keys = list(dict.fromkeys(one.key for one in self._sessions))
        else:
            slots = self._arrays.sessions.open_slots
            keys = list(dict.fromkeys(self._keys_at(self._arrays, slots)))
        for start in range(0, len(keys), SWEEP_RECORDS):
            piece = keys[start : start + SWEEP_RECORDS]
            arrays = self._arrays
            if arrays is None:
                yield self._entries([one for key in piece for one in self._sessions.of(key)])
            else:
                numbers = self._table.numbers_of_list(piece)
                slots = arrays.sessions.open_slots
                ours = np.isin(arrays.sessions.keys[slots], numbers)
                yield self._array_entries(arrays, slots[ours])


_NO_SLOTS: Final = np.zeros(0, np.int64)


def _row_at(rows: Any, places: Any, index: int) -> int:
    """The input row at one of some places."""
    return int(rows[int(places[index])])
