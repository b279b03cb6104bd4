"""Results for every row, and merged streams, on columns: the same as row by row."""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import millstream
from millstream import Store
from millstream.processor import Aggregate, Pipeline, agg, col, counting, session, tumbling
from millstream.processor.columns import MicroBatch
from millstream.processor.frame_running import FrameRunningOperator
from millstream.processor.frame_turns import Turns
from millstream.processor.frames import FrameChunk
from millstream.processor.running import RunningOperator


class Event(msgspec.Struct):
    user: str
    amount: float
    ts: int
    size: int | None = None


class Running(msgspec.Struct):
    key: str
    n: int
    total: float
    sizes: int
    most: int | None
    last: int | None
    who: str
    named: str


class Own(Aggregate[int, int, int]):
    """Nobody knows what columns it would need."""

    field = "size"

    def init(self) -> int:
        return 0

    def add(self, accumulator: int, value: int) -> int:
        return accumulator + value

    def result(self, accumulator: int) -> int:
        return accumulator


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("rows were looked at")


def events(count: int, *, users: int = 13) -> list[Event]:
    rng = random.Random(5)
    return [
        Event(f"u{rng.randrange(users)}", rng.random(), n, rng.choice((None, rng.randrange(9))))
        for n in range(count)
    ]


def filled(rows: list[Event], *topics: str) -> Store:
    store = millstream.open()
    for topic in topics or ("events",):
        store.create_topic(topic, schema=Event)
    append(store, rows, *topics)
    return store


def append(store: Store, rows: list[Event], *topics: str) -> None:
    for topic in topics or ("events",):
        store.append_many(topic, list(map(msgspec.json.encode, rows)))


def running(**more: Any) -> Pipeline:
    job = Pipeline("job")
    totals = {
        "n": agg.count(),
        "total": agg.sum("amount"),
        "sizes": agg.distinct("size"),
        "most": agg.max("size"),
        "last": agg.last("size"),
        "who": agg.last("user", by="amount"),
        "named": agg.first("user"),
    }
    job.source("events", type=Event, time="ts").key_by("user").agg(**totals, **more).to("running")
    return job


def written(store: Store, topic: str = "running") -> list[tuple[bytes | None, bytes | None, int]]:
    return [(each.key, each.value, each.timestamp_ms) for each in store.read(topic)]


def said(rows: list[Event], job: Pipeline) -> list[tuple[bytes | None, bytes | None, int]]:
    """What rows say."""
    with millstream.open() as store:
        store.create_topic("events")
        append(store, rows)
        job.run(store, until="end")
        return written(store)


def test_rows_that_are_filtered_and_selected_take_no_call_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FrameChunk, "as_chunk", never)
    monkeypatch.setattr(MicroBatch, "keys", never)
    job = Pipeline("job")
    kept = job.source("events", type=Event, time="ts").filter(col("amount") > 0.1)
    kept.select("user", double=col("amount") * 2).to("kept")
    calls: Counter[int] = Counter()
    for count in (2_000, 40_000):
        with filled(events(count)) as store:
            store.create_topic("kept", schema=pa.schema({"user": "string", "double": "float64"}))
            sys.setprofile(lambda *_, count=count: calls.update([count]))
            try:
                job.run(store, until="end")
            finally:
                sys.setprofile(None)
            assert store.offsets("kept")[0].end > count / 2
    assert calls[40_000] < calls[2_000] + 5_000


# --- aggregates of every row ---------------------------------------------------------------------


def test_no_row_becomes_an_object_where_each_has_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events(3_000)
    expected = said(rows, running())
    monkeypatch.setattr(RunningOperator, "process", never)
    monkeypatch.setattr(FrameChunk, "as_chunk", never)
    with filled(rows) as store:
        store.create_topic("running", schema=Running)
        running().run(store, until="end")
        assert expected == written(store)


@pytest.mark.parametrize("users", [1, 40, 3_000])
def test_results_are_the_same_wherever_runs_end(users: int) -> None:
    rows = events(3_000, users=users)
    with filled(rows[:700]) as store:
        running().run(store, until="end", batch_records=100)
        for start, stop in ((700, 701), (701, 2_000), (2_000, 3_000)):
            append(store, rows[start:stop])
            running().run(store, until="end")
        assert said(rows, running()) == written(store)


def test_rows_are_counted_without_looking_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What state a count leaves is the same in both lanes, so they may take turns."""
    rows = events(3_000)
    job = Pipeline("job")
    job.source("events", type=Event, time="ts").key_by("user").count().to("running")
    expected = said(rows, job)
    with filled(rows[:700]) as store:
        with monkeypatch.context() as patch:
            patch.setattr(FrameChunk, "as_chunk", never)
            patch.setattr(RunningOperator, "process", never)
            job.run(store, until="end", batch_records=100)
        append(store, rows[700:1_500])
        with monkeypatch.context() as patch:
            patch.setattr(
                "millstream.processor.topology.runs_on_columns", lambda *_: frozenset[int]()
            )
            job.run(store, until="end")
        append(store, rows[1_500:])
        monkeypatch.setattr(FrameChunk, "as_chunk", never)
        job.run(store, until="end")
        assert expected == written(store)


def test_what_columns_cannot_say_turns_to_rows_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum that leaves 64 bits, and a sum of no floats yet, which is an int."""
    lanes: list[bool] = []
    process = FrameRunningOperator.process

    def noted(self: FrameRunningOperator, step: Any) -> Any:
        made = process(self, step)
        lanes.append(self._arrays is not None)
        return made

    monkeypatch.setattr(FrameRunningOperator, "process", noted)
    rows = events(400)
    rows[150].size, rows[160].size = 2**62, 2**62
    more: dict[str, Any] = {"all": agg.sum("size"), "half": agg.sum(col("size") / 2)}
    with filled([]) as store:
        for start in range(0, 400, 20):
            append(store, rows[start : start + 20])
            running(**more).run(store, until="end")
        assert said(rows, running(**more)) == written(store)
    assert {True, False} == set(lanes)


@pytest.mark.parametrize("windows", [tumbling("1s"), session("1s"), counting(2)], ids=str)
def test_plan_says_that_windows_of_lists_give_rows(windows: Any) -> None:
    job = Pipeline("job")
    keyed = job.source("events", type=Event, time="ts").key_by("user")
    keyed.window(windows).agg(top=agg.top_k(2, "size")).filter(col("key") > "").to("lists")
    keyed.window(windows, name="n").agg(n=agg.count()).filter(col("key") > "").to("numbers")
    with filled([]) as store:
        told = [line.rpartition("  ")[2] for line in str(job.explain(store)).splitlines()[3:]]
    sink = "[rows: the topic stores no columns]"
    assert ["[columns]", "[rows: it gets rows]", sink, "[columns]", "[columns]", sink] == told


def test_plan_says_why_aggregates_of_every_row_need_rows() -> None:
    job = Pipeline("job")
    keyed = job.source("events", type=Event, time="ts").key_by("user")
    keyed.agg(n=agg.count(), name="columns").to("a")
    keyed.agg(n=agg.top_k(3, "size"), name="top").to("b")
    keyed.agg(n=agg.sum(lambda row: row.size), name="function").to("c")
    keyed.agg(n=agg.count(), ttl="1h", name="mortal").to("d")
    keyed.count(name="single").to("e")
    keyed.agg(n=agg.quantile(0.5, "size"), v=agg.variance("size"), name="more").to("f")
    keyed.agg(n=Own(), name="own").to("g")
    with filled([]) as store:
        store.create_topic("e", schema=Event)
        explained = str(job.explain(store))
    assert "to e  [rows: it gets rows]" in explained
    lines = [line for line in explained.splitlines() if "[state" in line]
    assert [
        "[columns]",
        "[rows: top_k() of every row: lists are no columns]",
        "[rows: a Python function]",
        "[rows: a table with a time to live]",
        "[columns]",
        "[columns]",
        "[rows: Own('size') of every row: an aggregate of your own]",
    ] == [line[line.rindex("  [") + 2 :] for line in lines]


@pytest.mark.parametrize("groups", [1, 3, 500])
def test_rows_are_folded_one_after_the_other(groups: int) -> None:
    """Floats added in another order would be others."""
    rng = np.random.default_rng(groups)
    slots = rng.integers(0, groups, 3_000).astype(np.int32)
    numbers = rng.random(3_000) * 10.0 ** rng.integers(-9, 9, 3_000)
    held = rng.random(groups)
    turns = Turns(slots)

    found = turns.in_row_order(turns.folded(np.add, turns.sorted(numbers), held[turns.slots]))

    for slot, number, sum_then in zip(slots, numbers, found, strict=True):
        held[slot] += number
        assert held[slot] == sum_then


# --- merged streams ------------------------------------------------------------------------------


def merged() -> Pipeline:
    job = Pipeline("job")
    first = job.source("first", type=Event, time="ts")
    second = job.source("second", type=Event, time="ts")
    both = first.filter(col("size").is_not_null()).merge(second, first)
    both.filter(col("amount") < 0.9).to("merged")
    return job


def test_streams_are_merged_in_the_order_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events(2_000)
    outcomes = []
    for schema in (None, Event):
        with millstream.open() as store:
            for topic in ("first", "second", "merged"):
                store.create_topic(topic, schema=schema)
            for start in range(0, 2_000, 300):
                append(store, rows[start : start + 300], ("first", "second")[start // 300 % 2])
            if schema is not None:
                monkeypatch.setattr(FrameChunk, "as_chunk", never)
            merged().run(store, until="end")
            outcomes.append(written(store, "merged"))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) > 2_000


def test_plan_says_that_rows_of_several_types_are_merged_as_rows() -> None:
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.merge(source.select("user", "ts")).to("merged")
    source.merge(source.filter(col("amount") > 1)).to("merged")
    with filled([]) as store:
        explained = str(job.explain(store))
    lines = [line for line in explained.splitlines() if "merge" in line and "to merged" not in line]
    assert "rows: its streams have rows of several types" in lines[0]
    assert "[columns]" in lines[-1]


def test_plan_says_why_the_values_of_a_table_need_rows() -> None:
    """Expressions are no Python functions, although a function stands around them."""
    job = Pipeline("job")
    table = job.source("events", type=Event, time="ts").key_by("user").agg(n=agg.sum("size"))
    table.filter(col("n") > 3).to("a")
    table.filter(lambda row: row.n > 3).to("b")
    table.map(lambda row: row.n).to("c")
    with filled([]) as store:
        explained = str(job.explain(store))
    lines = [line.strip() for line in explained.splitlines()]
    assert "filter n > 3  [rows: the values of a table are rows]" in lines
    assert 2 == sum("[rows: a Python function]" in line for line in lines)
