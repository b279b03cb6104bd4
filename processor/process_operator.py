"""The operator of process functions: one row of one key at a time, with state and timers.

What happens at one input row, in this order: the function is called with W as it was before the
row; timers it set for times W has reached already are called; then the row moves W; then the timers
that W has reached are called, in the order of (time, bytes of the key, name), as rows caused by
this input row. A tick calls the timers of the wall clock after those of event time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final

from millstream import DataError, UsageError

from .aggregating import Results
from .columns import Chunk, MicroBatch
from .detached import detached
from .errors import fail, several
from .fields import label
from .key_groups import Filed, GroupedOperator, Path, Places, Wake
from .keyed_state import IN_MEMORY, States
from .nodes import ProcessNode
from .process import Context, Timer
from .row_codec import RowCodec
from .state import StateEntry, StateRecords
from .stateful import MAIN, Step
from .timers import PREFIX as TIMER_PREFIX, Timers
from .watermark import BEFORE_TIME

_STATE_PREFIX: Final = "s"
_PARTS: Final = {_STATE_PREFIX: 2, TIMER_PREFIX: 5}
"""How many parts the paths of each kind have; the last is the key."""
_CONSTANT_STATE: Final = (None, bool, int, float, str, bytes)


class ProcessOperator(GroupedOperator):
    """Runs a process function. Not thread-safe.

    Args:
        node: The function and what it keeps.
        delay_ms: How far behind W its rows may lie.
        states: Makes its state.
    """

    def __init__(self, node: ProcessNode, delay_ms: int, states: States = IN_MEMORY) -> None:
        super().__init__(node, delay_ms)
        self.node = node
        codec = RowCodec(node.state_type, f"the state of {node.name!r}")
        self._state = states.make(node.name, codec, prefix=(_STATE_PREFIX,), ttl_ms=node.ttl_ms)
        self._shared = node.state_type not in _CONSTANT_STATE
        """Whether a result may be a part of state that a later call changes."""
        self._timers = Timers(node.name)
        self._out = Results()
        self._level = BEFORE_TIME
        self._level_before = BEFORE_TIME
        """W before it moved to where it is, as long as that is being worked off."""
        self._in_timer: Timer | None = None
        self._context: Context[Any, Any] = Context(
            self._fresh_state, self._set_timer, self._timers.cancel, wall_clock=node.wall_clock
        )

    def _fresh_state(self) -> Any:
        make: Any = self.node.state_type
        if make is None:
            raise UsageError("process(..., state=TYPE) gives a function something to keep")
        return make()

    def _set_timer(self, timer: Timer, key: object) -> None:
        if self.node.on_timer is None:
            raise UsageError("a timer calls on_timer: declare process(..., on_timer=function)")
        if timer.clock == "wall" and not self.node.wall_clock:
            raise UsageError("process(..., wall_clock=True) allows timers of the wall clock")
        now = self._in_timer
        if now is not None and now.clock == timer.clock and timer.at_ms <= now.at_ms:
            # Called at once it could set itself again for ever.
            self._timers.postpone(timer, key)
        else:
            self._timers.set(timer, key, by_row=now is None)

    @property
    def keyed_only(self) -> bool:  # type: ignore[override]  # here it depends on the node
        """Whether there are no timers."""
        return self.node.on_timer is None

    @property
    def live_count(self) -> int:
        """Keys with state, and timers."""
        return len(self._state) + len(self._timers)

    @property
    def required_level(self) -> int | None:
        """The W that calls every timer a row has set; None when there is none."""
        return self._timers.last_by_row_ms()

    @property
    def required_wall_ms(self) -> int | None:
        """The time of the first timer of the wall clock."""
        return self._timers.first_ms("wall")

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> dict[str, Chunk]:
        """Call the function for each row, and the timers that are due.

        Raises:
            RecordError: The function raised.
        """
        (chunk,), progress, batch = step.chunks, step.progress, step.batch
        if self.node.wall_clock:
            self._context._wall_ms = step.now_ms  # noqa: SLF001 - the context is this operator's
        self._level = self._level_before = progress.start - self.delay_ms
        self._state.view(chunk.keys or ())
        done = 0
        for row, reached in zip(progress.rows, progress.levels, strict=True):
            stop = bisect_right(chunk.rows, row, done)
            self._rows(chunk, done, stop, batch)
            self._level, done = reached - self.delay_ms, stop
            self._advance(row, batch)
            self._level_before = self._level
        self._rows(chunk, done, len(chunk.rows), batch)
        if step.ticked:
            self._timers.release("wall")
            self._call_due("wall", step.now_ms, 0, batch)
            # What those have set for a time that W has come to is due before any later row.
            self._call_due("event", self._level, 0, batch)
        return {MAIN: self._out.take()}

    def _rows(self, chunk: Chunk, start: int, stop: int, batch: MicroBatch) -> None:
        """Call the function for rows among which W does not move."""
        function, keys = self.node.function, chunk.keys
        assert keys is not None
        level, timers = self._level, self._timers
        for index in range(start, stop):
            row = chunk.rows[index]
            call = partial(function, self._context, chunk.values[index])
            self._call(call, keys[index], chunk.times[index], row, batch)
            first = timers.first_ms("event")
            if first is not None and first <= level:
                self._call_due("event", level, row, batch)

    def _advance(self, row: int, batch: MicroBatch) -> None:
        """W has moved with input `row`."""
        self._timers.release("event")
        self._call_due("event", self._level, row, batch)
        if self.node.ttl_ms is not None:
            self._state.expire(self._level)

    def _call_due(self, clock: str, until_ms: int, row: int, batch: MicroBatch) -> None:
        on_timer = self.node.on_timer
        while (due := self._timers.pop_due(clock, until_ms)) is not None:
            timer, key = due
            assert on_timer is not None
            time_ms = timer.at_ms if clock == "event" else max(self._level, 0)
            self._in_timer = timer
            self._call(partial(on_timer, self._context, timer), key, time_ms, row, batch)
            self._in_timer = None

    def _call(
        self, function: Callable[[], Any], key: object, time_ms: int, row: int, batch: MicroBatch
    ) -> None:
        """Call one function with the context set up, and take in what it did.

        A timer sees the state of when it was due, also if W has moved past the end of that in one
        step: otherwise rows of other keys would decide what it is told.
        """
        context, state, level = self._context, self._state, self._level
        shared = self._shared
        context.key = key
        context.time_ms = time_ms
        context.watermark_ms = None if level <= BEFORE_TIME else level
        timer = self._in_timer
        by = level
        if timer is None:
            by = max(time_ms, level)  # over by W, or because this row itself comes so much later
        elif timer.clock == "event":
            by = max(timer.at_ms, self._level_before)
        context._state = state.get(key, by)  # noqa: SLF001 - the context is this operator's
        context._touched = False  # noqa: SLF001
        context._random = None  # noqa: SLF001
        context._seed = partial(self._seed, key, time_ms, row, batch)  # noqa: SLF001
        try:
            results = function()
            if results is not None:
                for result in several(results):
                    self._out.add(row, time_ms, detached(result) if shared else result, key)
        except Exception as error:
            fail(self._called(key), error, batch, row)
        if context._touched:  # noqa: SLF001
            kept = context._state  # noqa: SLF001
            if kept is None:
                state.pop(key)
            else:
                state.put(key, kept, time_ms)

    def _called(self, key: object) -> str:
        """What has been called, for messages: the record at hand need not be of the timer's key."""
        if self._in_timer is None:
            return self.node.label
        on_timer: Any = self.node.on_timer
        return f"{self.node.label}, {label('on_timer', on_timer)} of key {key!r}"

    def _seed(self, key: object, time_ms: int, row: int, batch: MicroBatch) -> str:
        """What the numbers of a call depend on: the record, and the timer if it is one."""
        place = batch.place(row)
        return repr((self.name, place, self._in_timer, key, time_ms))

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call, and take it for written.

        Raises:
            UsageError: A state cannot be kept.
        """
        records = self._state.changes()
        records.extend(self._timers.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All state and timers, in pieces.

        Raises:
            UsageError: A state cannot be kept.
        """
        yield from self._state.sweep()
        yield from self._timers.sweep()

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take state from records in the order they were written.

        Raises:
            DataError: Not the state of a process function.
        """
        timers: list[StateEntry] = []
        self._state.restore(self._without_timers(entries, timers))
        self._timers.restore(timers)

    def _without_timers(
        self, entries: Iterable[StateEntry], timers: list[StateEntry]
    ) -> Iterator[StateEntry]:
        """The entries of the state; those of timers are put aside."""
        for entry in entries:
            if entry.path[0] == _STATE_PREFIX:
                yield entry
            elif entry.path[0] == TIMER_PREFIX:
                timers.append(entry)
            else:
                raise DataError(f"not the state of {self.name!r}: {entry.path!r}")

    # --- groups --------------------------------------------------------------------------------

    @property
    def divisible(self) -> bool:
        """No: a function sees how far W has come."""
        return False

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        if _PARTS.get(path[0]) == len(path):
            return Filed(path[-1], None)
        raise DataError(f"not the state of {self.name!r}: {path!r}")

    def placed(self, paths: Sequence[Path]) -> Places:
        """See `GroupedOperator`."""
        kinds = set(zip(map(itemgetter(0), paths), map(len, paths), strict=True))
        if kinds <= _PARTS.items():
            return list(map(itemgetter(-1), paths)), None
        return super().placed(paths)  # says which is wrong

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        records = self._state.records(keys)
        records.extend(self._timers.records(keys))
        return records

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        self._state.take({path[1]: value for path, value in entries if path[0] == _STATE_PREFIX})
        self._timers.take(entry for entry in entries if entry.path[0] == TIMER_PREFIX)

    def wakes(self, keys: Sequence[object]) -> Iterator[Wake | None]:
        """See `GroupedOperator`: timers wait, and state to be over."""
        timers = self._timers.wakes(set(keys))
        for key in keys:
            wake, over = timers.get(key), self._state.over_ms(key)
            if over is not None:
                known = wake or Wake(None, None)
                wake = known._replace(due=over if known.due is None else min(over, known.due))
            yield wake

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        return set(self._timers.changed() | self._state.changed_keys)

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return len(self._state.changed_keys) + self._timers.changed_count

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        self._state.forget(keys)
        self._timers.forget(set(keys))


def process_operator(node: ProcessNode, delay_ms: int, states: States) -> ProcessOperator:
    """The operator of a process function. With timers, state is in groups with them."""
    return ProcessOperator(node, delay_ms, states if node.on_timer is None else IN_MEMORY)
