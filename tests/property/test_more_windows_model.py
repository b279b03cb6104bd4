"""Sessions, updates, corrections and counted windows held against models of one row at a time.

Random rows, disorder, cuts into steps and restarts; records must be equal one by one, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pipeline_runs import run_in_pieces

from millstream.processor import (
    CountWindows,
    FixedWindows,
    Pipeline,
    SessionWindows,
    agg,
    counting,
    session,
    tumbling,
)

Event = tuple[int, str, int]
"""Time, key, amount."""
Result = dict[str, Any]
NEVER = -(10**30)

events = st.lists(
    st.tuples(st.integers(0, 120), st.sampled_from("ab"), st.integers(-5, 5)), max_size=30
).map(lambda rows: [(time + 4 * place, key, x) for place, (time, key, x) in enumerate(rows)])
cuts = st.tuples(st.integers(1, 6), st.integers(0, 3))


def result(key: str, start: int, end: int, rows: Sequence[Event], status: str | None) -> Result:
    value = {"key": key, "window_start": start, "window_end": end}
    value |= {"n": len(rows), "total": sum(row[2] for row in rows), "xs": [row[2] for row in rows]}
    return value if status is None else value | {"status": status}


def run(
    windows: FixedWindows | SessionWindows | CountWindows,
    rows: Sequence[Event],
    cut: tuple[int, int],
    options: dict[str, Any],
    emit: dict[str, Any] | None = None,
) -> tuple[list[Result], list[Event]]:
    pipeline = Pipeline("p")
    source = pipeline.source("in", type=list, time=lambda row: row[0], disorder=10)
    keyed = source.key_by(lambda row: row[1]).window(windows, **options)
    results = keyed.agg(
        n=agg.count(),
        total=agg.sum(lambda row: row[2]),
        xs=agg.collect(lambda row: row[2], limit=100),
    )
    if emit is not None:
        results = results.emit("update", **emit)
    results.to("out")
    results.late.to("late")
    inputs = {"in": [list(row) for row in rows]}
    out = run_in_pieces(pipeline, inputs, batch_records=cut[0], crash_every=cut[1], flush=False)
    late = [tuple(json.loads(record.value or b"")) for record in out["late"]]
    values = [json.loads(record.value or b"") for record in out["out"]]
    for record, value in zip(out["out"], values, strict=True):
        assert (value["key"].encode(), value["window_end"] - 1) == (record.key, record.timestamp_ms)
    return values, late  # type: ignore[return-value]  # three parts each


class SessionModel:
    """Every session is the list of its rows; nothing is kept that could be wrong."""

    def __init__(self, gap: int, grace: int, every: int | None) -> None:
        self.gap, self.grace, self.every = gap, grace, every
        self.open: list[dict[str, Any]] = []
        self.out: list[Result] = []
        self.late: list[Event] = []

    def bounds(self, rows: Sequence[Event]) -> tuple[int, int]:
        return min(row[0] for row in rows), max(row[0] for row in rows) + self.gap

    def say(self, one: dict[str, Any], status: str) -> None:
        shown = status if self.every else None
        self.out.append(result(one["key"], *self.bounds(one["spans"]), one["rows"], shown))

    def take(self, row: Event, level: int) -> None:
        time, key, _ = row
        near = [
            one
            for one in self.open
            if one["key"] == key and any(abs(time - other[0]) < self.gap for other in one["spans"])
        ]
        spans = [row, *(other for one in near for other in one["spans"])]
        if self.bounds(spans)[1] + self.grace <= level:
            self.late.append(row)
            return
        near.sort(key=lambda one: self.bounds(one["spans"])[0])
        moved = len(near) > 1 or (near and time < self.bounds(near[0]["spans"])[0])
        said = False
        if self.every and moved:
            for one in near:
                if one["said"]:
                    self.say(one, "retracted")
                    said = True
        merged = {
            "key": key,
            "spans": spans,
            "rows": [other for one in near for other in one["rows"]] + [row],
            "since": sum(one["since"] for one in near) + 1,
            "said": False if said or len(near) != 1 else near[0]["said"],
        }
        if said and self.every:
            merged["since"] = max(merged["since"], self.every)
        self.open = [one for one in self.open if one not in near] + [merged]
        if self.every and merged["since"] >= self.every:
            merged["since"], merged["said"] = 0, True
            self.say(merged, "update")

    def close(self, level: int) -> None:
        due = [one for one in self.open if self.bounds(one["spans"])[1] + self.grace <= level]
        self.open = [one for one in self.open if one not in due]
        for one in sorted(due, key=lambda one: (*self.bounds(one["spans"])[::-1], one["key"])):
            self.say(one, "final")


def drive(
    rows: Sequence[Event], take: Callable[[Event, int], None], close: Callable[[int], None]
) -> None:
    level = NEVER
    for row in rows:
        take(row, level)
        level = max(level, row[0] - 10)
        close(level)


@given(events, cuts, st.integers(1, 25), st.integers(0, 15), st.sampled_from([None, 1, 2, 3]))
def test_sessions(
    rows: list[Event], cut: tuple[int, int], gap: int, grace: int, every: int | None
) -> None:
    model = SessionModel(gap, grace, every)
    drive(rows, model.take, model.close)
    emit = None if every is None else {"every": every}
    assert (model.out, model.late) == run(session(gap), rows, cut, {"grace": grace}, emit)


@given(events, cuts, st.integers(1, 4))
def test_windows_by_count(rows: list[Event], cut: tuple[int, int], size: int) -> None:
    held: dict[str, list[Event]] = {}
    expected: list[Result] = []
    for row in rows:
        window = held.setdefault(row[1], [])
        window.append(row)
        if len(window) == size:
            del held[row[1]]
            times = [one[0] for one in window]
            expected.append(result(row[1], min(times), max(times) + 1, window, None))
    assert (expected, []) == run(counting(size), rows, cut, {})


class UpdateModel:
    """Fixed windows with a list of rows for each key."""

    def __init__(self, size: int, slide: int, grace: int, mode: tuple[str, int]) -> None:
        self.size, self.slide, self.grace, self.mode = size, slide, grace, mode
        self.hold = grace + (mode[1] if mode[0] == "corrections" else 0)
        self.open: dict[tuple[int, str], dict[str, Any]] = {}
        self.out: list[Result] = []
        self.late: list[Event] = []
        self.level = NEVER

    def say(self, place: tuple[int, str], status: str) -> None:
        end, key = place
        self.open[place]["since"] = 0
        self.out.append(result(key, end - self.size, end, self.open[place]["rows"], status))

    def take(self, row: Event, level: int) -> None:
        time, key, _ = row
        ends = [
            e for e in range(time + 1, time + self.size + 1) if (e - self.size) % self.slide == 0
        ]
        alive = [end for end in ends if end + self.hold > level]
        if ends and not alive:
            self.late.append(row)
        for end in alive:
            window = self.open.setdefault((end, key), {"rows": [], "since": 0})
            window["rows"].append(row)
            window["since"] += 1
            kind, number = self.mode
            if (kind == "corrections" and end + self.grace <= level) or (
                kind == "rows" and window["since"] >= number
            ):
                self.say((end, key), "update")

    def close(self, level: int) -> None:
        kind, number = self.mode
        before, self.level = self.level, level
        for place in sorted(self.open):
            if kind == "corrections" and before < place[0] + self.grace <= level:
                self.say(place, "update")
        if kind == "ms" and before // number != level // number:
            for place in sorted(self.open):
                if self.open[place]["since"]:
                    self.say(place, "update")
        for place in sorted(self.open):
            if place[0] + self.hold <= level:
                self.say(place, "final")
                del self.open[place]


modes = st.one_of(
    st.tuples(st.just("rows"), st.integers(1, 3)),
    st.tuples(st.just("ms"), st.sampled_from([7, 20])),
    st.tuples(st.just("corrections"), st.integers(1, 40)),
)


@given(events, cuts, st.integers(1, 30), st.integers(1, 30), st.integers(0, 12), modes)
def test_e38_updates_and_corrections_of_fixed_windows(
    rows: list[Event],
    cut: tuple[int, int],
    size: int,
    slide: int,
    grace: int,
    mode: tuple[str, int],
) -> None:
    model = UpdateModel(size, slide, grace, mode)
    drive(rows, model.take, model.close)
    options: dict[str, Any] = {"grace": grace}
    emit: dict[str, Any] | None = {"every": mode[1] if mode[0] == "rows" else f"{mode[1]}ms"}
    if mode[0] == "corrections":
        options, emit = options | {"corrections": mode[1]}, None
    windows = FixedWindows(size, slide, 0)
    found = run(windows, rows, cut, options, emit)
    assert (model.out, model.late) == found
    if mode[0] != "corrections":
        # The last word on each window is what it says without updates.
        final = [one for one in found[0] if one.pop("status") == "final"]
        assert run(windows, rows, cut, options)[0] == final


@pytest.mark.parametrize("windows", [tumbling(10), session(10), counting(2)])
def test_one_row_in_each_step_gives_what_all_at_once_give(
    windows: FixedWindows | SessionWindows | CountWindows,
) -> None:
    rows = [(place * 7 % 90, "abc"[place % 3], place) for place in range(60)]
    assert run(windows, rows, (60, 0), {}) == run(windows, rows, (1, 1), {})
