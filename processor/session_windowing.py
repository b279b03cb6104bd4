"""The session operator: rows in, one row per closed session out, and before that if asked for.

Which rows form a session is decided in sessions.py. What happens at one input row, in this order:
the row is judged against W as it was before the row, late or put into its session; then the row
moves W; then the sessions that W has passed close, in the order of (end, start, bytes of the key).
State is filed under [key, first time].
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from millstream import DataError

from .accumulator_codec import AccumulatorCodec
from .aggregating import FINAL_RESULT, RETRACTED, UPDATE, Results, SlottedAggregates
from .columns import Chunk, MicroBatch, Rows
from .key_groups import Filed, GroupedOperator, Path, Wake
from .nodes import LATE, SessionNode
from .serde import INT64_MAX, ordered_keys
from .sessions import OpenSessions, Session, Taken
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step
from .watermark import BEFORE_TIME
from .windowing import pick


class Content:
    """What an open session holds."""

    __slots__ = ("said", "slot", "unsaid")

    def __init__(self, slot: int, unsaid: int = 0, said: bool = False) -> None:
        self.slot = slot
        """Of its accumulators."""
        self.unsaid = unsaid
        """Rows since the last result before the final one."""
        self.said = said
        """Whether there has been a result under the session's present start."""


class SessionOperator(GroupedOperator):
    """Sessions with aggregates. Not thread-safe.

    Args:
        node: What to compute.
        delay_ms: How far behind W its rows may lie.
    """

    def __init__(self, node: SessionNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self.node = node
        self._gap_ms = node.windows.gap_ms
        self._aggregates = SlottedAggregates(f"window {node.name}", node.aggregates)
        self._codec = AccumulatorCodec(
            f"the state of {node.name!r}", node.aggregates, node.row_type
        )
        self._kept_count = len(node.aggregates)
        self._sessions = OpenSessions[object](self._gap_ms, node.grace_ms)
        self._every = node.emission.every_rows
        self._every_ms = node.emission.every_ms
        self._dirty: dict[int, Session[object]] = {}
        """Sessions that have changed since they were said, when W says when that is."""
        self._changed: dict[int, Session[object]] = {}
        """Sessions to write, by identity: a session has no other name that stays."""
        self._removed: dict[tuple[object, int], None] = {}
        """Paths that state holds and nothing alive has any more."""
        self._written: dict[tuple[object, int], None] = {}
        """Paths that state holds."""
        self._make = node.result_type
        self._out = Results()
        """Rows out, where there are results before the final ones."""
        self._updating = node.emission.updating
        self._level = BEFORE_TIME
        """W after the last step."""
        self._closed: list[tuple[int, Session[object]]] = []
        """Sessions that have closed in the step, with the input rows that closed them."""

    @property
    def live_count(self) -> int:
        """Number of open sessions."""
        return self._sessions.count

    @property
    def required_level(self) -> int | None:
        """The W that closes every session; None when none is open."""
        return self._sessions.last_deadline

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Rows]:
        """Put rows into sessions and close those that are complete.

        Raises:
            RecordError: An aggregate or its field raised.
        """
        (chunk,), progress, batch = step.chunks, step.progress, step.batch
        assert chunk.keys is not None
        self._aggregates.begin(chunk, batch)
        late: list[int] = []
        level, done = progress.start - self.delay_ms, 0
        moves = [*zip(progress.rows, progress.levels, strict=True), (None, 0)]
        for row, reached in moves:
            stop = len(chunk.rows)
            if row is not None:
                stop = bisect_right(chunk.rows, row, done)
            if stop > done:
                late += self._take(chunk, range(done, stop), level, batch)
            done = stop
            if row is not None:
                before, level = level, reached - self.delay_ms
                if self._every_ms and before // self._every_ms != level // self._every_ms:
                    self._update_dirty(row, batch)
                if level >= self._sessions.next_deadline:
                    self._close(level, row, batch)
        self._level = level
        self._aggregates.flush(batch)
        self.late_count += len(late)
        out = self._out.take() if self._updating else self._say_closed(batch)
        return {MAIN: out, LATE: pick(chunk, late)}

    def _take(self, chunk: Chunk, indexes: range, level: int, batch: MicroBatch) -> list[int]:
        """Put rows among which W does not move into their sessions; returns those that are late."""
        keys, times, extend = chunk.keys, chunk.times, self._sessions.extend
        assert keys is not None
        noted, noted_indexes = self._aggregates.slots, self._aggregates.indexes
        late: list[int] = []
        for index in indexes:
            key, time = keys[index], times[index]
            session = extend(key, time, level)
            if session is None:
                taken = self._sessions.take(key, time, level)
                if taken is None:
                    late.append(index)
                    continue
                session = taken.session
                if taken.before is None:
                    session.content = Content(self._aggregates.open())
                else:
                    self._join(taken, taken.before, chunk.rows[index], batch)
                    # A merge has added what was noted.
                    noted, noted_indexes = self._aggregates.slots, self._aggregates.indexes
            self._changed[id(session)] = session
            if self._updating:
                self._add(session, index, chunk.rows[index], batch)
            else:
                noted.append(session.content.slot)
                noted_indexes.append(index)
        return late

    def _join(
        self, taken: Taken[object], before: tuple[int, int], row: int, batch: MicroBatch
    ) -> None:
        """Note what a row did to its session, which was `before`, and merge those it joined."""
        session = taken.session
        first_ms, last_ms = before
        if not taken.absorbed and first_ms == session.first_ms:
            return
        if self._updating:
            self._retract(taken, first_ms, last_ms, row, batch)
        self._forget(session.key, first_ms)
        for other in taken.absorbed:
            self._forget(other.key, other.first_ms)
            self._changed.pop(id(other), None)
            session.content.unsaid += other.content.unsaid
            self._aggregates.merge(session.content.slot, other.content.slot, batch, row)

    def _retract(
        self, taken: Taken[object], first_ms: int, last_ms: int, row: int, batch: MicroBatch
    ) -> None:
        """Take back what was said of the parts: it does not hold any more."""
        session = taken.session
        parts = [(session, first_ms, last_ms)]
        parts += [(other, other.first_ms, other.last_ms) for other in taken.absorbed]
        for part, first, last in parts:
            if part.content.said:
                self._say(part, first, last, RETRACTED, row, batch)
                # The row that follows says at once what holds now.
                session.content.unsaid = max(session.content.unsaid, (self._every or 1) - 1)
                session.content.said = False

    def _add(self, session: Session[object], index: int, row: int, batch: MicroBatch) -> None:
        """Add a row to its session, and say that if its turn has come."""
        content: Content = session.content
        self._aggregates.add_one(content.slot, index, batch)
        content.unsaid += 1
        if self._every is None:
            self._dirty[id(session)] = session
        elif content.unsaid >= self._every:
            self._update(session, row, batch)

    def _update(self, session: Session[object], row: int, batch: MicroBatch) -> None:
        session.content.unsaid, session.content.said = 0, True
        self._say(session, session.first_ms, session.last_ms, UPDATE, row, batch)

    def _update_dirty(self, row: int, batch: MicroBatch) -> None:
        """Say what has changed since W passed the last multiple of the interval."""
        dirty = [one for one in self._dirty.values() if one.open and one.content.unsaid]
        rank = {key: number for number, key in enumerate(ordered_keys([one.key for one in dirty]))}
        for one in sorted(dirty, key=lambda one: (one.last_ms, one.first_ms, rank[one.key])):
            self._update(one, row, batch)
            self._changed[id(one)] = one
        self._dirty = {}

    def _close(self, level: int, row: int, batch: MicroBatch) -> None:
        for session in self._sessions.close(level):
            self._changed.pop(id(session), None)
            self._forget(session.key, session.first_ms)
            if self._updating:
                self._say(session, session.first_ms, session.last_ms, FINAL_RESULT, row, batch)
                self._aggregates.close([session.content.slot])
            else:
                self._closed.append((row, session))

    def _say_closed(self, batch: MicroBatch) -> Chunk:
        """The results of the sessions that have closed in the step."""
        if not self._closed:
            return Chunk([], [], [], [])
        rows, sessions = map(list, zip(*self._closed, strict=True))
        self._closed = []
        slots = [one.content.slot for one in sessions]
        columns = self._aggregates.result_columns(slots, batch, rows)
        self._aggregates.close(slots)
        keys = [one.key for one in sessions]
        ends = [one.last_ms + self._gap_ms for one in sessions]
        values = list(map(self._make, keys, [one.first_ms for one in sessions], ends, *columns))
        # The window of the last row of time ends beyond int64, its result must not.
        times = [min(end - 1, INT64_MAX) for end in ends]
        return Chunk(rows, times, values, keys)

    def _say(
        self,
        session: Session[object],
        first_ms: int,
        last_ms: int,
        status: str,
        row: int,
        batch: MicroBatch,
    ) -> None:
        """Emit what a session holds, as a result caused by input `row`."""
        results = self._aggregates.results(session.content.slot, batch, row)
        end_ms = last_ms + self._gap_ms
        value = self._make(session.key, first_ms, end_ms, *results, status)  # type: ignore[call-arg]  # its fields follow
        # The window of the last row of time ends beyond int64, its result must not.
        self._out.add(row, min(end_ms - 1, INT64_MAX), value, session.key)

    # --- state ---------------------------------------------------------------------------------

    def _forget(self, key: object, first_ms: int) -> None:
        if self._written.pop((key, first_ms), _ABSENT) is not _ABSENT:
            self._removed[key, first_ms] = None

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        changed = list(self._changed.values())
        records = encode_removed(self._removed)
        records.extend(self._entries(changed))
        self._written.update(((one.key, one.first_ms), None) for one in changed)
        self._changed, self._removed = {}, {}
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All sessions that are open now, as long as they are.

        Raises:
            UsageError: An accumulator cannot be kept in state.
        """
        sessions = iter(list(self._sessions))
        while piece := list(islice(sessions, SWEEP_RECORDS)):
            yield self._entries([one for one in piece if one.open])

    def _entries(self, sessions: list[Session[object]]) -> StateRecords:
        paths = [(one.key, one.first_ms) for one in sessions]
        held = self._aggregates.accumulators([one.content.slot for one in sessions])
        if self._codec.typed:
            held = self._codec.pack(held)
        values = [
            (one.last_ms, one.content.unsaid, one.content.said, *accumulators)
            for one, accumulators in zip(sessions, held, strict=True)
        ]
        return encode_entries(self.name, paths, values, proven=self._codec.typed)

    # --- groups --------------------------------------------------------------------------------

    @property
    def divisible(self) -> bool:
        """Not where what is said depends on how far W has risen at once."""
        return self._every_ms is None

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        match path:
            case (key, int()):
                return Filed(key, None)
        raise DataError(f"not the state of sessions: {path!r}")

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        return self._entries([one for key in keys for one in self._sessions.of(key)])

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        for path, value in entries:
            key, first_ms = path
            match value:
                case [int(last_ms), int(unsaid), bool(said), *held] if (
                    len(held) == self._kept_count
                ):
                    content = Content(self._aggregates.open(), unsaid, said)
                    if self._codec.typed:
                        held = self._codec.unpack(held)
                    self._aggregates.put(content.slot, held)
                    one = self._sessions.restore(key, first_ms, last_ms, content)
                case _:
                    raise DataError(f"not the state of a session: {value!r}")
            if unsaid and self._every_ms is not None:
                self._dirty[id(one)] = one
            self._written[key, first_ms] = None

    def wakes(self, keys: Sequence[object]) -> Iterator[Wake | None]:
        """See `GroupedOperator`: sessions wait to close, and to be said."""
        hold_ms, every_ms = self._gap_ms + self.node.grace_ms, self._every_ms
        for key in keys:
            sessions = self._sessions.of(key)
            if not sessions:
                yield None
                continue
            due = sessions[0].last_ms + hold_ms
            if every_ms is not None and any(one.content.unsaid for one in sessions):
                due = min(due, (self._level // every_ms + 1) * every_ms)
            yield Wake(due, sessions[-1].last_ms + hold_ms)

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        return {one.key for one in self._changed.values()} | {key for key, _ in self._removed}

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return len(self._changed) + len(self._removed)

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        gone = self._sessions.forget(keys)
        for one in gone:
            self._dirty.pop(id(one), None)
            self._written.pop((one.key, one.first_ms), None)
        self._aggregates.close([one.content.slot for one in gone])


_ABSENT: Final = object()
