"""What each operator does, said by brute force: one input row at a time, everything kept for ever.

Nothing here is the engine's, and nothing is fast. A model gets the rows that one input row causes,
W before that row and W after it, and says what comes out. W is that of its rows: what operators
above hold back is taken off already. Values are dicts {"t", "k", "x", "ids"}; results are what
random_plans.py makes of the engine's: sums in "x", and in "ids" the numbers of the last input rows
that are in them, so that a row too many, too few or in another place shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NEVER = -(1 << 80)
IDS = 6
"""So many ids a value keeps, the last ones."""
STATUSES = ("", "update", "final", "retracted")

Value = dict[str, Any]


class Row(NamedTuple):
    """A row of a stream."""

    time: int
    key: Any
    """None where the stream has no keys."""
    value: Any
    """None for a deletion in a table."""


def key_bytes(key: object) -> bytes:
    """What keys are ordered by, and written as."""
    return key.encode() if isinstance(key, str) else json.dumps(key, separators=(",", ":")).encode()


def changed(value: Value, **parts: Any) -> Value:
    """The value with some parts changed; of the ids the last few."""
    made = value | parts
    return made | {"ids": made["ids"][-IDS:]}


def summed(key: object, values: Sequence[Value], time: int, status: str = "") -> Value:
    """The result of an aggregate over values."""
    ids = [number for value in values for number in value["ids"]]
    x = sum(value["x"] for value in values) + STATUSES.index(status)
    return changed({"t": time, "k": str(key), "x": x, "ids": ids})


@dataclass
class Model:
    """An operator with state. `late` has the late rows of the last step."""

    late: list[Row] = field(default_factory=list, init=False)
    delay: int = field(default=0, init=False)
    """How far behind W its results may be."""
    now: int = field(default=0, init=False)
    """The wall clock at the last tick."""
    ticked: bool = field(default=False, init=False)
    """Whether this step is a tick: it has no rows."""

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        """What one input row makes of it; `before` == `after` when W does not move."""
        raise NotImplementedError

    def required(self) -> int | None:
        """The W at which nothing waits any more."""
        return None


# --- tables --------------------------------------------------------------------------------------


@dataclass
class RunningModel(Model):
    """What each key has become. `say` makes it of the values; None deletes the key."""

    say: Callable[[Any, list[Value]], Value | None]
    ttl: int | None
    held: dict[Any, tuple[int, list[Value]]] = field(default_factory=dict)

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out = []
        for row in inputs[0]:
            newest, values = self.held.get(row.key, (NEVER, []))
            if self.ttl is not None and newest + self.ttl <= max(before, row.time):
                newest, values = NEVER, []
            values = [*values, row.value]
            self.held[row.key] = max(newest, row.time), values
            said = self.say(row.key, values)
            if said is None:
                del self.held[row.key]
            out.append(Row(row.time, row.key, said))
        return out


@dataclass
class GroupModel(Model):
    """Sums over the rows of a table by another key, computed from the whole table each time."""

    group: Callable[[Value], Any]
    table: dict[Any, Value] = field(default_factory=dict)

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out = []
        for row in inputs[0]:
            former = self.table.pop(row.key, None)
            if row.value is not None:
                self.table[row.key] = row.value
            touched = [self.group(each) for each in (former, row.value) if each is not None]
            for group in dict.fromkeys(touched):
                xs = [each["x"] for each in self.table.values() if self.group(each) == group]
                said = {"t": len(xs), "k": str(group), "x": sum(xs), "ids": []} if xs else None
                out.append(Row(row.time, group, said))
        return out


@dataclass
class TableJoinModel(Model):
    """Each row with what the table has for its key now."""

    left: bool
    ttl: int | None
    held: dict[Any, tuple[int, Value]] = field(default_factory=dict)

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out = []
        for row in inputs[1]:
            newest = self.held.pop(row.key, (NEVER, None))[0]
            if row.value is not None:
                self.held[row.key] = max(newest, row.time), row.value
        for row in inputs[0]:
            newest, found = self.held.get(row.key, (NEVER, None))
            if self.ttl is not None and newest + self.ttl <= max(before, row.time):
                found = None
            if found is not None or self.left:
                out.append(Row(row.time, row.key, paired(row.value, found)))
        if self.ttl is not None:
            self.held = {k: each for k, each in self.held.items() if each[0] + self.ttl > after}
        return out


def paired(left: Value | None, right: Value | None) -> Value:
    """The result of a join."""
    some = left or right
    assert some is not None
    x = (left["x"] if left else 500) - 2 * (right["x"] if right else 700)
    ids = (left["ids"][-3:] if left else []) + (right["ids"][-3:] if right else [])
    return some | {"x": x, "ids": ids}


# --- joins of streams ----------------------------------------------------------------------------


@dataclass
class IntervalModel(Model):
    """Every row with what it can still match."""

    lower: int
    upper: int
    how: str
    held: tuple[list[list[Any]], list[list[Any]]] = field(default_factory=lambda: ([], []))
    """For each side [row, whether it has matched], in the order of arrival."""

    def __post_init__(self) -> None:
        self.delay = max(self.upper, -self.lower, 0)
        self.ahead = self.upper, -self.lower
        self.kept = self.how in ("left", "outer"), self.how in ("right", "outer")

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out: list[Row] = []
        late: tuple[list[Row], list[Row]] = [], []
        for side in (0, 1):
            for row in inputs[side]:
                if max(row.time, row.time + self.ahead[side]) < before:
                    late[side].append(row)
                else:
                    self.take(side, row, before, out)
        self.late = late[0] + late[1]
        gone = []
        for side in (0, 1):
            for number, (row, matched) in enumerate(self.held[side]):
                last = row.time + self.ahead[side]
                if last < after and not matched and self.kept[side]:
                    gone.append((last, side, number, row))
            self.held[side][:] = [
                each for each in self.held[side] if each[0].time + self.ahead[side] >= after
            ]
        return out + [
            self.alone(side, row) for _, side, _, row in sorted(gone, key=lambda e: e[:3])
        ]

    def alone(self, side: int, row: Row) -> Row:
        pair = (row.value, None) if side == 0 else (None, row.value)
        return Row(row.time, row.key, paired(*pair))

    def take(self, side: int, row: Row, level: int, out: list[Row]) -> None:
        found = []
        for number, each in enumerate(self.held[1 - side]):
            left, right = (row, each[0]) if side == 0 else (each[0], row)
            if row.key == each[0].key and self.lower <= right.time - left.time <= self.upper:
                found.append((each[0].time, number, each))
        for _, _, each in sorted(found, key=lambda one: one[:2]):
            each[1] = True
            left, right = (row, each[0]) if side == 0 else (each[0], row)
            value = paired(left.value, right.value)
            out.append(Row(max(left.time, right.time), row.key, value))
        if row.time + self.ahead[side] >= level:
            self.held[side].append([row, bool(found)])
        elif self.kept[side] and not found:
            out.append(self.alone(side, row))

    def required(self) -> int | None:
        lasts = [
            row.time + self.ahead[side]
            for side in (0, 1)
            for row, matched in self.held[side]
            if self.kept[side] and not matched
        ]
        return max(lasts) + 1 if lasts else None


@dataclass
class AsofModel(Model):
    """Every right row that came in time, and every left row that waits.

    A right row without a value, of a table, matches and says that there is nothing.
    """

    direction: str
    within: int | None
    left: bool
    rights: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.far = 1 << 70 if self.within is None else self.within
        self.delay = 0 if self.direction == "backward" else self.far

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        lefts, rights = inputs
        late_left, late_right = [], []
        for row in rights:
            reach = 0 if self.direction == "forward" else self.far
            useless = row.time + reach + self.delay < before
            if self.direction == "backward":
                same = [each for each in self.rights if each.key == row.key]
                useless = useless or any(row.time < each.time <= before for each in same)
            (late_right if useless else self.rights).append(row)
        for row in lefts:
            (late_left if row.time + self.delay < before else self.waiting).append(row)
        self.late = late_left + late_right
        due = [row for row in self.waiting if row.time + self.delay < after]
        self.waiting = [row for row in self.waiting if row.time + self.delay >= after]
        out = []
        for row in sorted(due, key=lambda each: each.time):
            found = self.match(row)
            if found is not None or self.left:
                out.append(Row(row.time, row.key, paired(row.value, found)))
        return out

    def match(self, row: Row) -> Value | None:
        mine = [
            (abs(each.time - row.time), each.time <= row.time, number, each)
            for number, each in enumerate(self.rights)
            if each.key == row.key and abs(each.time - row.time) <= self.far
        ]
        past = [each for each in mine if each[3].time <= row.time]
        coming = [each for each in mine if each[3].time >= row.time]
        last = min(past, key=lambda each: (each[0], -each[2]), default=None)
        first = min(coming, key=lambda each: (each[0], each[2]), default=None)
        chosen = last if self.direction == "backward" else first
        if self.direction == "nearest":
            both = [each for each in (last, first) if each is not None]
            chosen = min(both, key=lambda each: each[0], default=None)
        return None if chosen is None else chosen[3].value

    def required(self) -> int | None:
        return max((row.time + self.delay + 1 for row in self.waiting), default=None)


# --- the rest ------------------------------------------------------------------------------------


@dataclass
class DedupModel(Model):
    """The first of rows that say the same, `within` apart."""

    identity: Callable[[Value], Any]
    within: int
    keyed: bool
    """Whether only rows of one key can be duplicates."""
    passed: dict[Any, list[int]] = field(default_factory=dict)

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out = []
        self.late = []
        for row in inputs[0]:
            of = self.keyed and row.key, self.identity(row.value)
            seen = self.passed.setdefault(of, [])
            if row.time + self.within <= before:
                self.late.append(row)
            elif all(abs(row.time - time) >= self.within for time in seen):
                seen.append(row.time)
                out.append(row)
        return out


@dataclass
class Call:
    """What a process function is given, in the model: what `Context` has, and no more."""

    key: Any
    time_ms: int
    watermark_ms: int | None
    now_ms: int
    state: list[int]
    timers: list[tuple[str, int, str]] = field(default_factory=list)
    """Set in this call; `cancelled` likewise."""
    cancelled: list[tuple[str, int, str]] = field(default_factory=list)

    def set_timer(self, at: int, name: str, *, clock: str = "event") -> None:
        self.timers.append((clock, at, name))

    def cancel_timer(self, at: int, name: str, *, clock: str = "event") -> None:
        self.cancelled.append((clock, at, name))


class Set(NamedTuple):
    """A timer."""

    clock: str
    time: int
    key: Any
    name: str


@dataclass
class ProcessModel(Model):
    """Functions with state and timers; the same functions run in the engine.

    They cancel before they set.
    """

    function: Callable[[Any, Any], Iterable[Any]]
    on_timer: Callable[[Any, Any], Iterable[Any]]
    ttl: int | None
    state: dict[Any, tuple[int, list[int]]] = field(default_factory=dict)
    timers: dict[Set, str] = field(default_factory=dict)
    """With who set each: "row", "timer"; or "later": not before its clock moves."""

    def step(self, inputs: Sequence[list[Row]], before: int, after: int) -> list[Row]:
        out: list[Row] = []
        for row in inputs[0]:
            self.call(
                row.time, row.key, before, lambda call, v=row.value: self.function(call, v), out
            )  # type: ignore[misc]
            self.call_due("event", before, before, out)
        if after > before:
            self.release("event")
            self.call_due("event", after, after, out, before)
        if self.ticked:
            self.release("wall")
            self.call_due("wall", self.now, after, out)
            self.call_due("event", after, after, out)
        return out

    def release(self, clock: str) -> None:
        for timer, who in self.timers.items():
            if timer.clock == clock and who == "later":
                self.timers[timer] = "timer"

    def call_due(
        self, clock: str, until: int, level: int, out: list[Row], before: int | None = None
    ) -> None:
        while True:
            due = [
                timer
                for timer, who in self.timers.items()
                if timer.clock == clock and timer.time <= until and who != "later"
            ]
            if not due:
                return
            first = min(due, key=lambda each: (each.time, key_bytes(each.key), each.name))
            del self.timers[first]
            # Results of the wall clock have the event time that has come.
            time = first.time if clock == "event" else max(level, 0)
            call = lambda call, name=first.name: self.on_timer(call, name)  # noqa: E731
            # What is kept is that of when it was due, as far as that is later than W was before.
            kept_by = level if before is None else max(before, first.time)
            self.call(time, first.key, level, call, out, (first, kept_by))

    def call(
        self,
        time: int,
        key: Any,
        level: int,
        function: Callable[[Call], Iterable[Any]],
        out: list[Row],
        due: tuple[Set, int] | None = None,
    ) -> None:
        timer, kept_by = due or (None, max(level, time))
        newest, held = self.state.get(key, (NEVER, []))
        if self.ttl is not None and newest + self.ttl <= kept_by:
            newest, held = NEVER, []
        call = Call(key, time, None if level <= NEVER else level, self.now, list(held))
        out += [Row(time, key, value) for value in function(call)]
        self.state[key] = max(newest, time), call.state
        for clock, at, name in call.cancelled:
            self.timers.pop(Set(clock, at, key, name), None)
        for clock, at, name in call.timers:
            later = timer is not None and clock == timer.clock and at <= timer.time
            who = "later" if later else "row" if timer is None else "timer"
            self.timers.setdefault(Set(clock, at, key, name), who)

    def required(self) -> int | None:
        return max(
            (
                timer.time
                for timer, who in self.timers.items()
                if who == "row" and timer.clock == "event"
            ),
            default=None,
        )
