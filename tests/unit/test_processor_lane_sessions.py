"""Sessions on columns: the same ones as row by row, without a look at rows, and back to rows."""

from __future__ import annotations

import random
from typing import Any, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import millstream
from millstream import RecordError, Store
from millstream.processor import Pipeline, agg, session
from millstream.processor.frame_errors import NotInColumnsError
from millstream.processor.frame_levels import TIME_MAX
from millstream.processor.frame_session_windowing import FrameSessionOperator
from millstream.processor.frame_sessions import SessionSlots
from millstream.processor.frames import FrameChunk
from millstream.processor.session_windowing import SessionOperator
from millstream.processor.sessions import OpenSessions

GAP_MS, GRACE_MS = 10, 5


class Event(msgspec.Struct):
    user: str
    amount: float
    ts: int
    size: int | None = None


VISITS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("window_start", pa.int64(), nullable=False),
        pa.field("window_end", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("total", pa.float64()),
        pa.field("mean", pa.float64()),
        pa.field("most", pa.int64()),
    ]
)


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("rows were looked at")


def events(count: int, *, users: int = 17, seed: int = 1) -> list[Event]:
    rng = random.Random(seed)
    return [
        Event(
            f"u{rng.randrange(users)}",
            rng.randrange(1000) / 7,
            number * 500 - rng.randrange(30_000 if rng.random() < 0.1 else 3_000),
            rng.choice((None, number)),
        )
        for number in range(count)
    ]


def visits(gap: str = "5s", **more: Any) -> Pipeline:
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts", disorder="2s")
    found = source.key_by("user").window(session(gap), grace="1s")
    counts = {"n": agg.count(), "total": agg.sum("amount"), "mean": agg.mean("size")}
    results = found.agg(**counts, most=agg.max("size"), **more)
    results.late.to("late")
    results.to("visits")
    return job


def filled(rows: list[Event]) -> Store:
    store = millstream.open()
    store.create_topic("events", schema=Event)
    store.append_many("events", list(map(msgspec.json.encode, rows)))
    return store


def read(store: Store, topic: str) -> list[Any]:
    return [(each.key, each.timestamp_ms, each.value) for each in store.read(topic)]


def on_rows(rows: list[Event], job: Pipeline) -> dict[str, list[Any]]:
    with millstream.open() as store:
        store.create_topic("events")
        store.append_many("events", list(map(msgspec.json.encode, rows)))
        job.run(store, until="end", on_end="flush")
        return {topic: read(store, topic) for topic in ("visits", "late")}


def test_from_a_topic_to_a_topic_no_row_becomes_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events(3_000)
    with filled(rows) as store:
        store.create_topic("visits", schema=VISITS)
        store.create_topic("late", schema=Event)
        monkeypatch.setattr(SessionOperator, "_take", never)
        monkeypatch.setattr(FrameChunk, "as_chunk", never)
        visits().run(store, until="end", batch_records=700)
        monkeypatch.undo()
        visits().run(store, until="end", on_end="flush")
        found = {topic: read(store, topic) for topic in ("visits", "late")}

    expected = on_rows(rows, visits())
    assert expected == found
    assert len(expected["visits"]) > 300
    assert len(expected["late"]) > 30


@pytest.mark.parametrize("seed", range(6))
def test_sessions_are_those_found_row_by_row(seed: int) -> None:
    """Few keys and many rows out of order: sessions grow at both ends and join each other."""
    rng = random.Random(seed)
    slots, model = SessionSlots(GAP_MS, GRACE_MS), OpenSessions[int](GAP_MS, GRACE_MS)
    held: dict[int, list[int]] = {}
    level, now, merged, odd = -1000, 0, 0, 0
    for step in range(120):
        count = rng.randrange(1, 60)
        keys = [rng.randrange(rng.choice((2, 12))) for _ in range(count)]
        times, levels = [], []
        for _ in keys:
            now += rng.choice((0, 0, 1, 3, 40 if rng.random() < 0.05 else 0))
            times.append(now - rng.randrange(rng.choice((1, 8, 60))))
            level = max(level, now - 20 if rng.random() < 0.3 else level)
            levels.append(level)
        plan = slots.plan(
            np.array(keys, np.int32),
            np.array(times, np.int64),
            np.array(levels, np.int64) - GAP_MS - GRACE_MS,
        )
        places = slots.apply(plan)
        phases = plan.phases if plan.phases is not None else np.zeros(count, np.int64)
        odd += plan.phases is not None
        for phase in range(len(plan.merges) + 1):
            for row in np.flatnonzero((phases == phase) & (plan.of_row >= 0)).tolist():
                held.setdefault(int(places[plan.of_row[row]]), []).append(100 * step + row)
            for merge in plan.merges[phase] if phase < len(plan.merges) else ():
                left, right = int(places[merge.left]), int(places[merge.right])
                held[left] = held[left] + held.pop(right)
                merged += 1
        slots.release(places[[one.right for phase in plan.merges for one in phase]])
        for row, (key, time, reached) in enumerate(zip(keys, times, levels, strict=True)):
            taken = model.take(key, time, reached)
            assert (taken is None) == (plan.of_row[row] < 0)
            if taken is not None:
                if taken.before is None:
                    taken.session.content = []
                for other in taken.absorbed:
                    taken.session.content += other.content
                taken.session.content.append(100 * step + row)
        due = slots.due(level)
        closed = {
            (int(slots.keys[one]), int(slots.first[one]), int(slots.last[one]), *held.pop(int(one)))
            for one in due
        }
        slots.release(due)
        assert closed == {
            (one.key, one.first_ms, one.last_ms, *one.content) for one in model.close(level)
        }
        assert slots.count == model.count
        assert slots.last_deadline == model.last_deadline
    assert merged > 3
    assert odd > 10


def test_what_arrays_cannot_add_turns_all_sessions_into_rows_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = events(2_000)
    for number in (700, 701):
        rows[number].size = 2**62
    turned: list[int] = []
    to_rows = FrameSessionOperator._to_rows

    def counted(operator: FrameSessionOperator) -> None:
        turned.append(operator._arrays is not None)
        to_rows(operator)

    monkeypatch.setattr(FrameSessionOperator, "_to_rows", counted)
    with filled(rows) as store:
        visits().run(store, until="end", on_end="flush", batch_records=100)
        found = {topic: read(store, topic) for topic in ("visits", "late")}

    assert on_rows(rows, visits()) == found
    assert sum(turned) >= 1
    assert 0 < len(turned) < 10  # of twenty steps


def test_results_that_are_no_columns_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = events(1_000)
    monkeypatch.setattr(SessionOperator, "_take", never)
    more = {"some": agg.collect("size", limit=3), "first": agg.first("amount")}
    with filled(rows) as store:
        visits(**more).run(store, until="end", batch_records=300, on_end="flush")
        found = {topic: read(store, topic) for topic in ("visits", "late")}
    monkeypatch.undo()

    assert on_rows(rows, visits(**more)) == found


def test_an_aggregate_that_raises_names_the_record() -> None:
    def step(held: int, value: float) -> int:
        if value == 13:
            raise ValueError("unlucky")
        return held + 1

    rows = [Event("a", float(number), number) for number in range(20)]
    lucky = agg.fold(int, step, "amount", merge=lambda left, right: left + right)
    with filled(rows) as store:
        with pytest.raises(RecordError, match="agg lucky: ValueError: unlucky") as caught:
            visits(lucky=lucky).run(store, until="end")
        assert 13 == caught.value.offset


def test_a_result_that_raises_names_the_record_that_closed_the_session() -> None:
    def refuse(held: list[float]) -> NoReturn:
        raise ValueError("never")

    rows = [Event("a", 1.0, 0), Event("b", 1.0, 1), Event("c", 1.0, 60_000)]
    bad = agg.fold(list, lambda held, _: held, "amount", merge=lambda left, _: left, result=refuse)
    with filled(rows) as store:
        with pytest.raises(RecordError, match="result of bad: ValueError: never") as caught:
            visits(bad=bad).run(store, until="end")
        assert 2 == caught.value.offset


def test_keys_without_sessions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.processor.frame_session_windowing._TABLE_KEYS_MIN", 50)
    sizes: list[int] = []
    compact = FrameSessionOperator._compact_table

    def watched(operator: FrameSessionOperator, arrays: Any) -> None:
        compact(operator, arrays)
        sizes.append(len(operator._table))

    monkeypatch.setattr(FrameSessionOperator, "_compact_table", watched)
    rows = [Event(f"user {number // 3}", 1.5, number * 300) for number in range(6_000)]
    with filled(rows) as store:
        visits().run(store, until="end", on_end="flush", batch_records=100)
        found = {topic: read(store, topic) for topic in ("visits", "late")}

    assert on_rows(rows, visits()) == found
    assert max(sizes) < 200 < 2_000 == len(found["visits"])


def test_times_too_far_apart_are_refused() -> None:
    slots = SessionSlots(GAP_MS, GRACE_MS)
    numbers = np.array([0, 1, 0], np.int32)
    times = np.array([-TIME_MAX, 0, TIME_MAX], np.int64)
    with pytest.raises(NotInColumnsError):
        slots.plan(numbers, times, np.full(3, -TIME_MAX - 1, np.int64))


def test_explain_says_which_sessions_are_on_rows() -> None:
    updating = Pipeline("updating")
    keyed = updating.source("events", type=Event, time="ts").key_by("user")
    results = keyed.window(session("5s")).agg(n=agg.count()).emit("update", every=2)
    results.to("visits")
    with filled([]) as store:
        assert "[state events.window]  [columns]" in visits().explain(store)
        assert "[rows: updates before the final result]" in updating.explain(store)
