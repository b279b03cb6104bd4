"""Windows by count on columns: the same ones as row by row, and back to rows."""

from __future__ import annotations

import random
from typing import Any, NoReturn

import msgspec
import pytest

import millstream
from millstream import RecordError, Store
from millstream.processor import Pipeline, agg, counting
from millstream.processor.count_windowing import CountOperator
from millstream.processor.frame_count_windowing import FrameCountOperator
from millstream.processor.frames import FrameChunk


class Event(msgspec.Struct):
    user: str
    amount: float
    ts: int
    size: int | None = None


class Counted(msgspec.Struct):
    key: str
    window_start: int
    window_end: int
    n: int
    total: float
    most: int | None


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("rows were looked at")


def events(count: int, *, users: int = 13) -> list[Event]:
    rng = random.Random(3)
    return [
        Event(
            f"u{rng.randrange(users)}",
            rng.randrange(1000) / 7,
            number * 10 - rng.randrange(500),
            rng.choice((None, number)),
        )
        for number in range(count)
    ]


def counted(size: int, **more: Any) -> Pipeline:
    job = Pipeline("job")
    keyed = job.source("events", type=Event, time="ts", disorder="1s").key_by("user")
    total = {"n": agg.count(), "total": agg.sum("amount"), "most": agg.max("size")}
    keyed.window(counting(size)).agg(**total, **more).to("counted")
    return job


def filled(rows: list[Event], *, schema: bool = True) -> Store:
    store = millstream.open()
    store.create_topic("events", schema=Event if schema else None)
    store.append_many("events", list(map(msgspec.json.encode, rows)))
    return store


def read(store: Store) -> list[Any]:
    return [(each.key, each.timestamp_ms, each.value) for each in store.read("counted")]


def on_rows(rows: list[Event], job: Pipeline) -> list[Any]:
    with filled(rows, schema=False) as store:
        job.run(store, until="end")
        return read(store)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("batch_records", [None, 90])
def test_no_row_becomes_an_object(
    monkeypatch: pytest.MonkeyPatch, size: int, batch_records: int | None
) -> None:
    rows = events(3_000)
    expected = on_rows(rows, counted(size))
    monkeypatch.setattr(CountOperator, "_entries", never)
    monkeypatch.setattr(FrameChunk, "as_chunk", never)
    with filled(rows) as store:
        store.create_topic("counted", schema=Counted)
        counted(size).run(store, until="end", batch_records=batch_records)
        assert expected == read(store)
    assert abs(len(expected) - 3_000 // size) <= 13


def test_restarts_go_on_with_windows_that_are_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events(1_000)
    expected = on_rows(rows, counted(9))
    with filled(rows[:1]) as store:
        for start in range(1, 1_000, 111):
            counted(9).run(store, until="end", batch_records=40)
            some = rows[start : start + 111]
            store.append_many("events", list(map(msgspec.json.encode, some)))
        monkeypatch.setattr("millstream.processor.topology.runs_on_columns", lambda *_: frozenset())
        counted(9).run(store, until="end")
        assert expected == read(store)


def test_what_arrays_cannot_add_turns_all_windows_into_rows_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = events(2_000)
    rows[700].amount = -0.0
    rows[701].amount = 1e308
    turned: list[bool] = []
    to_rows = FrameCountOperator._to_rows

    def watched(operator: FrameCountOperator) -> None:
        turned.append(operator._arrays is not None)
        to_rows(operator)

    monkeypatch.setattr(FrameCountOperator, "_to_rows", watched)
    more = {"least": agg.min("amount"), "some": agg.collect("size", limit=2)}
    with filled(rows) as store:
        counted(7, **more).run(store, until="end", batch_records=100)
        assert on_rows(rows, counted(7, **more)) == read(store)
    assert [True] == [each for each in turned if each]
    assert len(turned) < 5


def test_keys_without_windows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.processor.frame_count_windowing._TABLE_KEYS_MIN", 20)
    sizes: list[int] = []
    compact = FrameCountOperator._compact_table

    def watched(operator: FrameCountOperator, arrays: Any) -> None:
        compact(operator, arrays)
        sizes.append(len(operator._table))

    monkeypatch.setattr(FrameCountOperator, "_compact_table", watched)
    rows = [Event(f"u{number // 5 * (number % 5 > 0)}", 1.5, number) for number in range(3_000)]
    with filled(rows) as store:
        counted(4).run(store, until="end", batch_records=100, epoch_ms=0)
        assert on_rows(rows, counted(4)) == read(store)
    assert max(sizes) < 80


def test_an_aggregate_that_raises_names_the_record() -> None:
    def step(held: int, value: float) -> int:
        if value == 13:
            raise ValueError("unlucky")
        return held + 1

    rows = [Event("a", float(number), number) for number in range(20)]
    with filled(rows) as store:
        with pytest.raises(RecordError, match="agg lucky: ValueError: unlucky") as caught:
            counted(5, lucky=agg.fold(int, step, "amount")).run(store, until="end")
        assert 13 == caught.value.offset


def test_explain_says_that_they_are_columns() -> None:
    with filled([]) as store:
        assert "[state events.window]  [columns]" in counted(3).explain(store)
