"""Process functions: state, timers, time to live, the clock, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from pipeline_runs import Run, run_in_pieces

from millstream import DataError, Record, RecordError, UsageError
from millstream.processor import Context, Pipeline, Timer, agg, tumbling
from millstream.processor.holding import StatePlace
from millstream.processor.process_operator import ProcessOperator
from millstream.processor.state import StateEntry
from millstream.processor.testkit import as_batches
from millstream.processor.ticks import Tick

Row = dict[str, Any]


class Seen(msgspec.Struct):
    count: int = 0
    times: list[int] = []


def count(context: Context[str, Seen], row: Row) -> list[Row]:
    context.state.count += 1
    context.state.times.append(context.time_ms)
    return [{"n": context.state.count, "times": list(context.state.times)}]


def source(pipeline: Pipeline, **options: Any) -> Any:
    return pipeline.source("in", time="t", **options).key_by("k")


def rows(*times: int, key: str = "a") -> list[Row]:
    return [{"k": key, "t": time} for time in times]


def values(records: list[Record]) -> list[Any]:
    return [json.loads(record.value or b"null") for record in records]


def test_state_is_kept_for_each_key() -> None:
    pipeline = Pipeline("p")
    source(pipeline).process(count, state=Seen).to("out")
    inputs = {"in": [*rows(1), *rows(2, key="b"), *rows(3)]}
    for crash_every in (0, 1):
        out = run_in_pieces(pipeline, inputs, batch_records=1, crash_every=crash_every)["out"]
        assert [(b"a", 1), (b"b", 2), (b"a", 3)] == [(one.key, one.timestamp_ms) for one in out]
        assert [1, 1, 2] == [one["n"] for one in values(out)]
        assert [1, 3] == values(out)[-1]["times"]


@dataclasses.dataclass
class Kept:
    best: float = 0.0


@pytest.mark.parametrize("state", [dict, list, int, Kept, Seen])
def test_state_of_many_types_comes_back(state: type[Any]) -> None:
    def touch(context: Context[str, Any], row: Row) -> list[str]:
        kept = context.state
        if isinstance(kept, dict):
            kept[str(row["t"])] = 1.5
        elif isinstance(kept, list):
            kept.append(row["t"])
        elif isinstance(kept, int):
            context.state = kept + 1
        elif isinstance(kept, Kept):
            kept.best += 1
        else:
            kept.count += 1
        return [repr(context.state)]

    pipeline = Pipeline("p")
    source(pipeline).process(touch, state=state).to("out")
    whole = run_in_pieces(pipeline, {"in": rows(1, 2, 3)})
    assert whole == run_in_pieces(pipeline, {"in": rows(1, 2, 3)}, batch_records=1, crash_every=1)


def remind(context: Context[str, dict[str, int]], row: Row) -> Iterator[str]:
    context.set_timer(row["t"] + 10, row.get("name", ""))
    yield f"row {row['t']} at {context.watermark_ms}"


def reminded(context: Context[str, dict[str, int]], timer: Timer) -> Iterator[str]:
    yield f"timer {timer.at_ms}{timer.name} of {context.key} at {context.watermark_ms}"


def test_timers_fire_when_w_reaches_them_in_order_before_later_rows() -> None:
    pipeline = Pipeline("p")
    source(pipeline, disorder=5).process(remind, state=dict, on_timer=reminded).to("out")
    inputs = {
        "in": [
            *rows(1, key="b"),
            {"k": "a", "t": 1, "name": "y"},
            {"k": "a", "t": 1, "name": "x"},
            *rows(0, key="a"),
            *rows(16),
            *rows(30),
        ]
    }
    expected = [
        "row 1 at None",
        "row 1 at -4",
        "row 1 at -4",
        "row 0 at -4",
        "row 16 at -4",
        "timer 10 of a at 11",
        "timer 11x of a at 11",
        "timer 11y of a at 11",
        "timer 11 of b at 11",
        "row 30 at 11",
    ]
    for size in (1, 2, 10):
        out = run_in_pieces(pipeline, inputs, batch_records=size, crash_every=1, flush=False)
        assert expected == values(out["out"])
    out = run_in_pieces(pipeline, inputs)
    assert ["timer 26 of a at 40", "timer 40 of a at 40"] == values(out["out"])[-2:]
    assert [26, 40] == [record.timestamp_ms for record in out["out"]][-2:]


def test_e61_a_timer_in_the_past_fires_at_once_after_the_row() -> None:
    def late(context: Context[str, dict[str, int]], row: Row) -> Iterator[str]:
        if row["t"] == 5:
            context.set_timer(3)
        yield f"row {row['t']}"

    pipeline = Pipeline("p")
    source(pipeline).process(late, state=dict, on_timer=reminded).to("out")
    out = run_in_pieces(pipeline, {"in": rows(4, 5, 6)}, flush=False)["out"]
    assert ["row 4", "row 5", "timer 3 of a at 4", "row 6"] == values(out)


def test_e61_a_timer_that_sets_itself_again_for_its_own_time_does_not_loop() -> None:
    def start(context: Context[str, dict[str, int]], row: Row) -> None:
        if row["t"] == 0:
            context.set_timer(3)

    def again(context: Context[str, dict[str, int]], timer: Timer) -> Iterator[str]:
        context.set_timer(timer.at_ms)
        yield f"at {context.watermark_ms}"

    pipeline = Pipeline("p")
    source(pipeline).process(start, state=dict, on_timer=again).to("out")
    for size, crash_every in [(9, 0), (1, 1), (2, 1)]:
        out = run_in_pieces(
            pipeline, {"in": rows(0, 5, 5, 7)}, batch_records=size, crash_every=crash_every
        )["out"]
        assert ["at 5", "at 7"] == values(out)


def test_a_timer_that_always_sets_itself_ahead_ends_with_the_input() -> None:
    def start(context: Context[str, dict[str, int]], row: Row) -> None:
        context.set_timer(row["t"] + 10)

    def again(context: Context[str, dict[str, int]], timer: Timer) -> Iterator[int]:
        context.set_timer(timer.at_ms + 10)
        yield timer.at_ms

    pipeline = Pipeline("p")
    source(pipeline).process(start, state=dict, on_timer=again).to("out")
    assert [11, 21, 31] == pipeline.test({"in": rows(1, 21)})["out"][:3]


def test_a_timer_can_be_cancelled() -> None:
    def toggle(context: Context[str, dict[str, int]], row: Row) -> None:
        context.cancel_timer(20) if row["t"] == 2 else context.set_timer(20)

    pipeline = Pipeline("p")
    source(pipeline).process(toggle, state=dict, on_timer=reminded).to("out")
    assert [] == run_in_pieces(pipeline, {"in": rows(1, 2)}, batch_records=1, crash_every=1)["out"]
    assert 1 == len(pipeline.test({"in": rows(1, 1)})["out"])


def test_state_with_a_time_to_live_is_forgotten_by_event_time() -> None:
    pipeline = Pipeline("p")
    source(pipeline).process(count, state=Seen, ttl=10).to("out")
    inputs = {"in": [*rows(1, 5), *rows(14, key="b"), *rows(15, key="b"), *rows(15)]}
    for size, crash_every in [(9, 0), (1, 1)]:
        out = run_in_pieces(pipeline, inputs, batch_records=size, crash_every=crash_every)["out"]
        assert [1, 2, 1, 2, 1] == [one["n"] for one in values(out)]


@pytest.mark.parametrize("between", [range(1, 100), range(9, 10), ()])
def test_a_timer_sees_the_state_of_when_it_was_due_however_far_time_jumps(
    between: Sequence[int],
) -> None:
    def see(context: Context[str, Seen], row: Row) -> None:
        context.state.count += 1
        context.set_timer(context.time_ms + 8)
        context.set_timer(context.time_ms + 30)

    def tell(context: Context[str, Seen], timer: Timer) -> list[tuple[str, int, int]]:
        return [(context.key, timer.at_ms, context.state.count)]

    pipeline = Pipeline("p")
    source(pipeline).process(see, state=Seen, on_timer=tell, ttl=10).to("out")
    steps = [*rows(0), *rows(*between, 200, key="b"), *rows(200)]
    for size in (1, 500):
        told = values(run_in_pieces(pipeline, {"in": steps}, batch_records=size)["out"])
        due = [[at, n] for key, at, n in told if key == "a"]
        assert [[8, 1], [30, 0], [208, 1], [230, 0]] == due


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_a_row_that_comes_after_the_time_to_live_of_its_key_begins_anew(state: StatePlace) -> None:
    """Whether other keys have moved W by then or not, as in a table."""
    pipeline = Pipeline("p", state=state)
    keyed = source(pipeline, disorder=100)
    keyed.process(count, state=Seen, ttl=10).map(lambda row: row["n"]).to("out")
    keyed.count(ttl=10).to("table")
    out = pipeline.test({"in": [*rows(0, 9, 19), *rows(40, key="b"), *rows(28, 39, 30)]})
    assert out["table"] == out["out"] == [1, 2, 1, 1, 2, 1, 2]


def test_random_numbers_depend_on_the_record_alone() -> None:
    def draw(context: Context[str, None], row: Row) -> list[float]:
        return [context.random.random(), context.random.random()]

    pipeline = Pipeline("p")
    source(pipeline).process(draw).to("out")
    first = run_in_pieces(pipeline, {"in": rows(1, 1, 1)})["out"]
    assert first == run_in_pieces(pipeline, {"in": rows(1, 1, 1)}, batch_records=1)["out"]
    assert 6 == len(set(values(first)))


def test_the_wall_clock_comes_from_ticks_and_calls_timers() -> None:
    def ask(context: Context[str, None], row: Row) -> list[str]:
        context.set_timer(context.now_ms + 100, clock="wall")
        return [f"row at {context.now_ms}"]

    def wake(context: Context[str, None], timer: Timer) -> list[str]:
        return [f"{timer.clock} {timer.at_ms} at {context.now_ms}, time {context.time_ms}"]

    pipeline = Pipeline("p")
    source(pipeline).process(ask, on_timer=wake, wall_clock=True).to("out")
    assert pipeline.plan.needs_ticks()
    run = Run(pipeline)
    run.topology.tick(Tick(1000))
    for batches in as_batches({"in": rows(7)}, None):
        run.topology.process(batches)
    run.commit()
    run.crash()
    assert run.topology.waits_until(1100)
    assert not run.topology.waits_until(1099)
    run.topology.tick(Tick(1099))
    run.topology.tick(Tick(1150))
    run.commit()
    assert ["row at 1000", "wall 1100 at 1150, time 7"] == values(run.out["out"])


def test_a_timer_that_the_wall_clock_sets_for_a_time_that_has_come_is_due_before_any_row() -> None:
    def ask(context: Context[str, None], row: Row) -> list[str]:
        context.set_timer(0, "w", clock="wall")
        return [f"row {row['t']}"]

    def wake(context: Context[str, None], timer: Timer) -> list[str]:
        if timer.clock == "wall":
            context.set_timer(3, "e")
            context.set_timer(0, "w2", clock="wall")  # not before the clock is looked at again
        return [f"{timer.name} at {timer.at_ms}"]

    pipeline = Pipeline("p")
    source(pipeline).process(ask, on_timer=wake, wall_clock=True).to("out")
    run = Run(pipeline)
    for time in (7, 8):
        (batches,) = as_batches({"in": rows(time)}, None)
        run.topology.process(batches)
        run.topology.tick(Tick(time))
    run.commit()
    assert ["row 7", "w at 0", "e at 3", "row 8", "w at 0", "w2 at 0", "e at 3"] == values(
        run.out["out"]
    )


def test_what_is_put_out_goes_on_with_its_key_and_time() -> None:
    pipeline = Pipeline("p")
    counts = source(pipeline).process(remind, state=dict, on_timer=reminded)
    counts.window(tumbling(100)).agg(n=agg.count()).to("out")
    assert [{"key": "a", "window_start": 0, "window_end": 100, "n": 4}] == pipeline.test(
        {"in": rows(1, 2)}
    )["out"]


def test_errors_name_the_function_and_the_record() -> None:
    def broken(context: Context[str, None], row: Row) -> Iterator[int]:
        yield 1 // row["t"]

    pipeline = Pipeline("p")
    source(pipeline).process(broken).to("out")
    with pytest.raises(RecordError, match=r"process .*broken: ZeroDivisionError") as caught:
        pipeline.test({"in": rows(1, 0)})
    assert 1 == caught.value.offset


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (lambda context: context.now_ms, "wall_clock=True"),
        (lambda context: context.state, "state=TYPE"),
        (lambda context: context.set_timer(5), "on_timer"),
        (lambda context: context.set_timer("soon"), "RFC 3339"),
    ],
)
def test_what_was_not_declared_cannot_be_used(use: Any, problem: str) -> None:
    pipeline = Pipeline("p")
    source(pipeline).process(lambda context, _: use(context)).to("out")
    with pytest.raises(RecordError, match=problem):
        pipeline.test({"in": rows(1)})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ttl": "1m"}, "needs state"),
        ({"state": 5}, "takes a type"),
        ({"state": dict, "ttl": 0}, "at least 1 ms"),
        ({"state": threading.Thread}, "cannot be kept in state"),
        ({"on_timer": 5}, "takes a function"),
    ],
)
def test_bad_declarations_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        source(Pipeline("p")).process(count, **options)


def test_foreign_state_is_refused() -> None:
    pipeline = Pipeline("p")
    stream = source(pipeline).process(remind, state=dict, on_timer=reminded)
    stream.to("out")
    (node,) = pipeline.plan.stateful()
    for path, value in [
        (("x", "a"), [1]),
        (("t", "event", 5), [True]),
        (("t", "event", 5, "", "a"), [5]),
        (("t", "sun", 5, "", "a"), [True]),
        (("s", "a"), [{}, 1]),
    ]:
        operator = ProcessOperator(node, 0)  # type: ignore[arg-type]  # the only stateful one
        with pytest.raises(DataError):
            operator.restore([StateEntry(path, value)])


Step = tuple[str, int, int]
"""Key, time, and how far ahead to set a timer (0: none)."""


def model(steps: list[Step], disorder: int) -> list[Any]:
    """One row at a time, with a list of timers that is looked through whenever W moves."""
    level, newest = None, None
    state: dict[str, int] = {}
    waiting: set[tuple[int, str]] = set()
    out: list[Any] = []

    def fire() -> None:
        while due := sorted(one for one in waiting if level is not None and one[0] <= level):
            at, key = due[0]
            waiting.remove(due[0])
            state[key] = state.get(key, 0) + 100
            out.append([key, state[key], at])

    for key, time, ahead in steps:
        state[key] = state.get(key, 0) + 1
        out.append([key, state[key], time])
        if ahead:
            waiting.add((time + ahead - 10, key))
        fire()
        newest = time if newest is None else max(newest, time)
        if level is None or newest - disorder > level:
            level = newest - disorder
            fire()
    return out


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.integers(0, 30)), max_size=25
    ),
    st.integers(0, 15),
    st.integers(1, 6),
    st.integers(0, 3),
    st.sampled_from(["memory", "sqlite"]),
)
def test_random_rows_and_timers_do_as_a_model_does(
    steps: list[Step], disorder: int, batch_records: int, crash_every: int, place: StatePlace
) -> None:
    def row(context: Context[str, int], value: list[Any]) -> list[Any]:
        context.state += 1
        if value[2]:
            context.set_timer(value[1] + value[2] - 10)
        return [[context.key, context.state, context.time_ms]]

    def timer(context: Context[str, int], _: Timer) -> list[Any]:
        context.state += 100
        return [[context.key, context.state, context.time_ms]]

    pipeline = Pipeline("p", state=place)
    rows = pipeline.source("in", type=list, time=lambda value: value[1], disorder=disorder)
    keyed = rows.key_by(lambda value: value[0])
    keyed.process(row, state=int, on_timer=timer).to("out")
    out = run_in_pieces(
        pipeline,
        {"in": [list(step) for step in steps]},
        batch_records=batch_records,
        crash_every=crash_every,
        flush=False,
    )
    assert model(steps, disorder) == values(out["out"])


def keep_all(context: Context[str, Seen], row: Row) -> Iterator[object]:
    """Puts out its state, and parts of it, and goes on changing it."""
    context.state.count += 1
    context.state.times.append(row["t"])
    yield context.state
    yield {"times": context.state.times}


def keep_last(context: Context[str, dict[str, Row]], row: Row) -> Iterator[Row]:
    """Changes a row that it has put out."""
    if "last" in context.state:
        context.state["last"]["t"] = 0
    context.state["last"] = row
    yield row


def test_results_that_share_the_state_stay_as_they_were() -> None:
    """However many rows are in a step."""
    inputs = [{"k": "a", "t": t} for t in (1, 2, 3)]
    for function, state in ((keep_all, Seen), (keep_last, dict[str, Row])):
        pipeline = Pipeline("p")
        source(pipeline).process(function, state=state).to("out")
        whole = pipeline.test({"in": inputs})["out"]
        assert whole == pipeline.test({"in": inputs}, batch_records=1)["out"]
        assert len(whole) == len({repr(each) for each in whole})
