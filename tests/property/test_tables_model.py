"""Tables held against models of one row at a time, over cuts, crashes and restarts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, strategies as st
from pipeline_runs import run_in_pieces

from millstream import Record
from millstream.processor import KeyedStream, Pipeline, Row, Table, agg
from millstream.processor.holding import StatePlace

Event = tuple[int, int, str, int]
"""Partition, time, key, amount."""
NEVER = -(10**30)

events = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 40), st.sampled_from(["a", "b", "c"]), st.integers(-5, 5)
    ),
    max_size=30,
)
cuts = st.tuples(st.integers(1, 6), st.integers(0, 3))
ttls = st.none() | st.integers(1, 25)
places: st.SearchStrategy[StatePlace] = st.sampled_from(["memory", "sqlite"])


def written(records: Sequence[Record]) -> list[tuple[str, int, Any]]:
    """(key, time, value) of what a table wrote."""
    return [
        (
            (record.key or b"").decode(),
            record.timestamp_ms,
            None if record.value is None else json.loads(record.value),
        )
        for record in records
    ]


def living(
    rows: Sequence[Event], disorder: int, ttl: int | None
) -> list[tuple[str, int, list[int]]]:
    """For each row its key, its time, and the amounts of the key since it was last forgotten."""
    maxima: dict[int, int] = {}
    level = NEVER
    held: dict[str, list[tuple[int, int]]] = {}
    found = []
    for partition, time, key, amount in rows:
        seen = held.setdefault(key, [])
        newest = max((each for each, _ in seen), default=NEVER)
        if ttl is not None and newest + ttl <= max(level, time):
            seen.clear()
        seen.append((time, amount))
        found.append((key, time, [each for _, each in seen]))
        maxima[partition] = max(maxima.get(partition, NEVER), time)
        level = max(level, min(maxima.values()) - disorder)
    return found


def declared(kind: str, keyed: KeyedStream[str, Any], ttl: int | None) -> Table[str, Any]:
    amounts = keyed.map(lambda row: row["x"])
    if kind == "count":
        return keyed.count(ttl=ttl)
    if kind == "reduce":
        return amounts.reduce(lambda left, right: left * 3 + right, ttl=ttl)
    if kind == "fold":
        return amounts.fold(list, lambda seen, x: [*seen, x], ttl=ttl)
    return amounts.agg(ttl=ttl, n=agg.count(), top=agg.max(), last=agg.last())


def expected(kind: str, key: str, amounts: Sequence[int]) -> Any:
    if kind == "count":
        return len(amounts)
    if kind == "reduce":
        value = amounts[0]
        for amount in amounts[1:]:
            value = value * 3 + amount
        return value
    if kind == "fold":
        return list(amounts)
    return {"key": key, "n": len(amounts), "top": max(amounts), "last": amounts[-1]}


@given(
    events,
    st.integers(0, 15),
    ttls,
    st.sampled_from(["count", "reduce", "fold", "agg"]),
    cuts,
    places,
)
def test_a_table_says_what_its_key_has_become(
    rows: list[Event],
    disorder: int,
    ttl: int | None,
    kind: str,
    cut: tuple[int, int],
    place: StatePlace,
) -> None:
    pipeline = Pipeline("p", state=place)
    source = pipeline.source("in", time="t", disorder=disorder)
    declared(kind, source.key_by("k"), ttl).to("out")
    inputs = [
        Record("in", p, 0, 0, None, json.dumps({"t": t, "k": k, "x": x}).encode(), ())
        for p, t, k, x in rows
    ]
    out = run_in_pieces(pipeline, {"in": inputs}, batch_records=cut[0], crash_every=cut[1])
    assert [
        (key, time, expected(kind, key, amounts))
        for key, time, amounts in living(rows, disorder, ttl)
    ] == written(out["out"])


changes = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.none() | st.tuples(st.sampled_from(["x", "y", "z"]), st.integers(-9, 9)),
    ),
    max_size=25,
)


def grouped(updates: Sequence[tuple[str, tuple[str, int] | None]]) -> list[tuple[str, int, Any]]:
    """What each update makes of the groups, computed from the whole table each time."""
    table: dict[str, tuple[str, int]] = {}
    found: list[tuple[str, int, Any]] = []
    for time, (key, value) in enumerate(updates):
        touched = [table.pop(key)[0]] if key in table else []
        if value is not None:
            table[key] = value
            touched += [value[0]]
        for group in dict.fromkeys(touched):
            amounts = [amount for each, amount in table.values() if each == group]
            said = {"key": group, "n": len(amounts), "total": sum(amounts)} if amounts else None
            found.append((group, time, said))
    return found


@given(changes, cuts, places)
def test_groups_of_a_table_are_what_its_rows_say(
    updates: list[tuple[str, tuple[str, int] | None]], cut: tuple[int, int], place: StatePlace
) -> None:
    pipeline = Pipeline("p", state=place)
    table = pipeline.table("in", type=tuple[str, int])
    groups = table.group_by(lambda row: row[0])
    groups.agg(n=agg.count(), total=agg.sum(lambda row: row[1])).to("out")
    inputs = [Row(value, time, key.encode()) for time, (key, value) in enumerate(updates)]
    out = run_in_pieces(pipeline, {"in": inputs}, batch_records=cut[0], crash_every=cut[1])
    assert grouped(updates) == written(out["out"])
