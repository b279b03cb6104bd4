"""Joins held against models of one row at a time that keep everything for ever.

Random rows of two topics in one order, random disorder, bounds and kinds, cuts into steps, crashes
and restarts: results and late rows must be equal one by one, in order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from hypothesis import given, strategies as st
from pipeline_runs import Run

from millstream import Record
from millstream.processor import KeyedStream, Pipeline
from millstream.processor.testkit import in_batches

Event = tuple[str, int, str, int]
"""Topic ("l", "r"), time, key, number."""
Said = tuple[int, str, Any]
"""Time, key, value of a result."""
NEVER = -(10**30)

events = st.lists(
    st.tuples(st.sampled_from("lr"), st.integers(0, 20), st.sampled_from("ab")), max_size=40
).map(
    lambda rows: [(side, time + place, key, place) for place, (side, time, key) in enumerate(rows)]
)
cuts = st.tuples(st.integers(1, 6), st.integers(0, 3))


class Clock:
    """W of two topics: the least of both."""

    def __init__(self, disorder: int) -> None:
        self.disorder = disorder
        self.tops = {"l": NEVER, "r": NEVER}

    @property
    def level(self) -> int:
        return min(self.tops.values()) - self.disorder if min(self.tops.values()) > NEVER else NEVER

    def see(self, topic: str, time: int) -> None:
        self.tops[topic] = max(self.tops[topic], time)


def run(
    pipeline: Pipeline, rows: Sequence[Event], cut: tuple[int, int]
) -> tuple[list[Said], list[Said]]:
    """Results and late rows of a run in pieces, with crashes."""
    places = {"l": 0, "r": 0}
    records = []
    for topic, time, key, number in rows:
        value = json.dumps({"t": time, "k": key, "n": number}).encode()
        records.append(Record(topic, 0, places[topic], time, None, value, ()))
        places[topic] += 1
    running = Run(pipeline)
    for number, batches in enumerate(in_batches([(record, None) for record in records], cut[0]), 1):
        running.topology.process(batches)
        running.commit(sweep=number % 3 == 0)
        if cut[1] and number % cut[1] == 0:
            held = [each.live_count for each in running.topology.stateful.values()]
            running.crash()
            assert held == [each.live_count for each in running.topology.stateful.values()]
    running.topology.flush()
    running.commit()
    return tuple(  # type: ignore[return-value]  # two of them
        [
            (each.timestamp_ms, (each.key or b"").decode(), json.loads(each.value or b"null"))
            for each in running.out[topic]
        ]
        for topic in ("out", "late")
    )


def sides(pipeline: Pipeline, disorder: int) -> tuple[KeyedStream[str, Any], KeyedStream[str, Any]]:
    left, right = (
        pipeline.source(topic, time="t", disorder=disorder).key_by("k") for topic in "lr"
    )
    return left, right  # type: ignore[return-value]  # keys are str


def value(row: Event | None) -> Any:
    return None if row is None else {"t": row[1], "k": row[2], "n": row[3]}


def pair(left: Event | None, right: Event | None) -> Any:
    return {"left": value(left), "right": value(right)}


# --- intervals -----------------------------------------------------------------------------------


class Intervals:
    """Every row with what can still become of it."""

    def __init__(self, lower: int, upper: int, how: str) -> None:
        self.ahead = {"l": upper, "r": -lower}
        self.lower, self.upper = lower, upper
        self.kept = {"inner": "", "left": "l", "right": "r", "outer": "lr"}[how]
        self.held: dict[str, list[Event]] = {"l": [], "r": []}
        self.matched: set[int] = set()
        self.out: list[Said] = []
        self.late: list[Said] = []

    def alone(self, row: Event) -> Said:
        return row[1], row[2], pair(row, None) if row[0] == "l" else pair(None, row)

    def take(self, row: Event, level: int) -> None:
        side, time, key, number = row
        last = time + self.ahead[side]
        if max(time, last) < level:
            self.late.append((time, key, value(row)))
            return
        other = "r" if side == "l" else "l"
        found = []
        for each in self.held[other]:
            left, right = (row, each) if side == "l" else (each, row)
            if each[2] == key and left[1] + self.lower <= right[1] <= left[1] + self.upper:
                found.append((each[1], each[3], left, right))
        for _, _, left, right in sorted(found, key=lambda each: each[:2]):
            self.out.append((max(left[1], right[1]), key, pair(left, right)))
            self.matched |= {left[3], right[3]}
        if last >= level:
            self.held[side].append(row)
        elif side in self.kept and number not in self.matched:
            self.out.append(self.alone(row))

    def let_go(self, level: float) -> None:
        gone = []
        for order, side in enumerate("lr"):
            for row in list(self.held[side]):
                last = row[1] + self.ahead[side]
                if last < level:
                    self.held[side].remove(row)
                    if side in self.kept and row[3] not in self.matched:
                        gone.append((last, order, row[3], row))
        self.out += [self.alone(row) for *_, row in sorted(gone)]


bounds = st.tuples(st.integers(-30, 15), st.integers(0, 40)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
hows = st.sampled_from(["inner", "left", "right", "outer"])


@given(events, bounds, hows, st.integers(0, 10), cuts)
def test_interval_joins_are_those_of_the_model(
    rows: list[Event],
    bounds: tuple[int, int],
    how: Literal["inner"],
    disorder: int,
    cut: tuple[int, int],
) -> None:
    pipeline = Pipeline("p")
    left, right = sides(pipeline, disorder)
    joined = left.join(right, lower=bounds[0], upper=bounds[1], how=how)
    joined.to("out")
    joined.late.to("late")
    model, clock = Intervals(*bounds, how), Clock(disorder)
    for row in rows:
        model.take(row, clock.level)
        clock.see(row[0], row[1])
        model.let_go(clock.level)
    model.let_go(float("inf"))
    assert (model.out, model.late) == run(pipeline, rows, cut)


@given(events, bounds, hows, st.integers(0, 10), cuts)
def test_e56_a_self_join_is_one_of_both_sides_at_once(
    rows: list[Event],
    bounds: tuple[int, int],
    how: Literal["inner"],
    disorder: int,
    cut: tuple[int, int],
) -> None:
    pipeline = Pipeline("p")
    stream = pipeline.source("l", time="t", disorder=disorder).key_by("k")
    joined = stream.join(stream, lower=bounds[0], upper=bounds[1], how=how)
    joined.to("out")
    joined.late.to("late")
    model, level = Intervals(*bounds, how), NEVER
    rows = [("l", *row[1:]) for row in rows]
    for side, time, key, number in rows:
        model.take((side, time, key, number), level)
        model.take(("r", time, key, number + 1_000_000), level)
        level = max(level, time - disorder)
        model.let_go(level)
    model.let_go(float("inf"))
    out, late = run(pipeline, rows, cut)

    def numbered(row: Any) -> Any:
        return None if row is None else (row["t"], row["n"] % 1_000_000)

    def plain(results: list[Said]) -> list[Any]:
        return [
            (time, key, numbered(each["left"]), numbered(each["right"]))
            for time, key, each in results
        ]

    assert plain(model.out) == plain(out)
    assert [numbered(row) for *_, row in model.late] == [numbered(row) for *_, row in late]


# --- as of ---------------------------------------------------------------------------------------


class Asof:
    """Every right row that came in time, and every left row that waits."""

    def __init__(self, direction: str, within: int | None, how: str) -> None:
        self.direction, self.how = direction, how
        self.within = 10**9 if within is None else within
        self.wait = 0 if direction == "backward" else self.within
        self.rights: list[Event] = []
        self.waiting: list[Event] = []
        self.out: list[Said] = []
        self.late: list[Said] = []

    def take(self, row: Event, level: int) -> None:
        side, time, key, _ = row
        if side == "l":
            if time + self.wait < level:
                self.late.append((time, key, value(row)))
            else:
                self.waiting.append(row)
            return
        reach = 0 if self.direction == "forward" else self.within
        useless = time + reach + self.wait < level
        if self.direction == "backward":
            newer = [each for each in self.rights if each[2] == key and time < each[1] <= level]
            useless = useless or bool(newer)
        if useless:
            self.late.append((time, key, value(row)))
        else:
            self.rights.append(row)

    def match(self, row: Event) -> Event | None:
        mine = [each for each in self.rights if each[2] == row[2]]
        before = [each for each in mine if 0 <= row[1] - each[1] <= self.within]
        after = [each for each in mine if 0 <= each[1] - row[1] <= self.within]
        past = max(before, key=lambda each: (each[1], each[3]), default=None)
        coming = min(after, key=lambda each: (each[1], each[3]), default=None)
        if self.direction == "backward":
            return past
        if self.direction == "forward":
            return coming
        if past is None or coming is None:
            return past or coming
        return coming if coming[1] - row[1] < row[1] - past[1] else past

    def let_go(self, level: float) -> None:
        for row in sorted(self.waiting, key=lambda each: (each[1], each[3])):
            if row[1] + self.wait < level:
                self.waiting.remove(row)
                found = self.match(row)
                if found is not None or self.how == "left":
                    self.out.append((row[1], row[2], pair(row, found)))


asofs = st.sampled_from(["backward", "forward", "nearest"]).flatmap(
    lambda direction: st.tuples(
        st.just(direction),
        st.integers(0, 20) | (st.none() if direction == "backward" else st.nothing()),
    )
)


@given(events, asofs, st.sampled_from(["inner", "left"]), st.integers(0, 10), cuts)
def test_as_of_joins_are_those_of_the_model(
    rows: list[Event],
    asof: tuple[Literal["backward"], int | None],
    how: Literal["inner"],
    disorder: int,
    cut: tuple[int, int],
) -> None:
    pipeline = Pipeline("p")
    left, right = sides(pipeline, disorder)
    joined = left.join_asof(right, direction=asof[0], within=asof[1], how=how)
    joined.to("out")
    joined.late.to("late")
    model, clock = Asof(*asof, how), Clock(disorder)
    for row in rows:
        model.take(row, clock.level)
        clock.see(row[0], row[1])
        model.let_go(clock.level)
    model.let_go(float("inf"))
    assert (model.out, model.late) == run(pipeline, rows, cut)


# --- tables --------------------------------------------------------------------------------------

table_kinds = st.tuples(st.sampled_from(["inner", "left"]), st.none() | st.integers(1, 30))


def declare_table_join(
    kind: tuple[Literal["inner"], int | None], disorder: int, *, versioned: bool
) -> Pipeline:
    """Every third row of the table deletes its key. Where it has no versions, it spills."""
    pipeline = Pipeline("p", state="memory" if versioned else "sqlite")
    left = pipeline.source("l", time="t", disorder=disorder).key_by("k")
    table = pipeline.table(
        "r", key="k", time="t", disorder=disorder, ttl=kind[1], versioned=versioned
    )
    joined = left.join_table(table.filter(lambda row: row["n"] % 3 > 0), how=kind[0])
    joined.to("out")
    joined.late.to("late")
    return pipeline


@given(events, table_kinds, st.integers(0, 10), cuts)
def test_joins_with_versioned_tables_are_as_of_joins(
    rows: list[Event],
    kind: tuple[Literal["inner"], int | None],
    disorder: int,
    cut: tuple[int, int],
) -> None:
    how, ttl = kind
    model, clock = Asof("backward", None if ttl is None else ttl - 1, "left"), Clock(disorder)
    for row in rows:
        model.take(row, clock.level)
        clock.see(row[0], row[1])
        model.let_go(clock.level)
    model.let_go(float("inf"))

    def there(row: Any) -> Any:
        deleted = row is not None and rows[row["n"]][0] == "r" and row["n"] % 3 == 0
        return None if deleted else row

    out = [
        (time, key, {"left": both["left"], "right": there(both["right"])})
        for time, key, both in model.out
        if how == "left" or there(both["right"]) is not None
    ]
    late = [(time, key, there(row)) for time, key, row in model.late]
    assert (out, late) == run(declare_table_join(kind, disorder, versioned=True), rows, cut)


@given(events, table_kinds, st.integers(0, 10), cuts)
def test_table_joins_see_what_is_there(
    rows: list[Event],
    kind: tuple[Literal["inner"], int | None],
    disorder: int,
    cut: tuple[int, int],
) -> None:
    how, ttl = kind[0], kind[1] or 10**9
    held: dict[str, tuple[int, Event]] = {}
    level = NEVER
    out: list[Said] = []
    for row in rows:
        side, time, key, number = row
        if side == "l":
            newest, found = held.get(key, (NEVER, None))
            if newest + ttl <= max(level, time):
                found = None
            if found is not None or how == "left":
                out.append((time, key, pair(row, found)))
            level = max(level, time - disorder)
            held = {each: kept for each, kept in held.items() if kept[0] + ttl > level}
        elif number % 3 == 0:
            held.pop(key, None)
        else:
            held[key] = (max(time, held.get(key, (time,))[0]), row)
    assert (out, []) == run(declare_table_join(kind, disorder, versioned=False), rows, cut)
