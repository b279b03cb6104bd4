"""Operators without state that split, join and watch streams, and what becomes of bad rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import msgspec
import pytest

from millstream import RecordError, UsageError
from millstream.processor import Pipeline, Row, agg, tumbling
from millstream.processor.watermark import BEFORE_TIME, Progress, least


def test_a_branch_sends_each_row_to_the_first_that_holds() -> None:
    pipeline = Pipeline("p")
    parts = pipeline.source("in").branch(small=lambda x: x["n"] < 5, even=lambda x: not x["n"] % 2)
    assert ["small", "even", "rest"] == list(parts)
    for name, part in parts.items():
        part.map(lambda x: x["n"]).to(name)
    out = pipeline.test({"in": [{"n": n} for n in (1, 9, 6, 4, 8)]})
    assert {"small": [1, 4], "even": [6, 8], "rest": [9]} == out


def test_values_are_written_as_if_each_were_encoded_by_itself() -> None:
    values = [{"a": "x\ny"}, "\n", 1, msgspec.Raw(b'{\n"b": 2\n}'), [], 1.5]
    pipeline = Pipeline("p")
    pipeline.source("in", type=int).map(values.__getitem__).to("out")
    records = pipeline.test({"in": list(range(len(values)))}).records("out")
    assert [msgspec.json.encode(value) for value in values] == [each.value for each in records]


def test_a_value_that_is_no_json_is_named_among_many() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=int).map(lambda n: object() if n == 3 else {"n": n}).to("out")
    with pytest.raises(RecordError, match="object is unsupported") as caught:
        pipeline.test({"in": list(range(5))})
    assert caught.value.offset == 3


def test_a_row_behind_several_filters_is_named_by_its_record() -> None:
    pipeline = Pipeline("p")
    numbers = pipeline.source("in", type=int)
    some = numbers.filter(lambda n: n % 2 == 0).map(lambda n: n // 2).filter(lambda n: n % 2 == 1)
    some.map(lambda n: 1 // (n - 5)).to("out")
    with pytest.raises(RecordError, match="ZeroDivisionError") as caught:
        pipeline.test({"in": list(range(20))}, batch_records=16)
    assert 10 == caught.value.offset


def test_rows_that_nobody_needs_are_let_go_before_the_next_operator() -> None:
    class Order(msgspec.Struct, weakref=True):
        n: int

    seen: list[weakref.ref[Order]] = []
    alive: list[int] = []

    def is_even(order: Order) -> bool:
        seen.append(weakref.ref(order))
        return order.n % 2 == 0

    def count_alive(n: int) -> int:
        alive.append(sum(each() is not None for each in seen))
        return n

    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order).filter(is_even)
    orders.map(lambda order: order.n).map(count_alive).to("out")
    assert [0, 2, 4] == pipeline.test({"in": [{"n": n} for n in range(6)]}, batch_records=6)["out"]
    assert (6, [0, 0, 0]) == (len(seen), alive)


def test_a_merge_keeps_the_order_of_the_input() -> None:
    pipeline = Pipeline("p")
    numbers = pipeline.source("in", type=int)
    odd = numbers.filter(lambda n: n % 2 == 1).map(lambda n: f"odd {n}")
    odd.merge(numbers.map(str)).to("out")
    expected = ["odd 1", "1", "2", "odd 3", "3"]
    for size in (1, 2, 3):
        assert expected == pipeline.test({"in": [1, 2, 3]}, batch_records=size)["out"]


def test_e16_the_slower_of_two_merged_sources_rules() -> None:
    pipeline = Pipeline("p")
    left, right = pipeline.source("left", time="ts"), pipeline.source("right", time="ts")
    windows = left.merge(right).key_by("k").window(tumbling(10))
    windows.agg(n=agg.count()).to("out")
    rows = {
        "left": [{"k": "a", "ts": 1}, {"k": "a", "ts": 25}],
        "right": [{"k": "a", "ts": 2}, {"k": "a", "ts": 12}],
    }
    out = pipeline.test(rows, on_end="hold")["out"]
    assert [(0, 2)] == [(row["window_start"], row["n"]) for row in out]


def test_a_source_without_rows_holds_w_back() -> None:
    before = Progress(BEFORE_TIME, [], [])
    assert before == least([Progress(5, [0], [10]), before], BEFORE_TIME)


def test_the_least_of_two_moves_where_the_slower_moves() -> None:
    fast, slow = Progress(3, [1, 4], [6, 8]), Progress(5, [2, 3], [7, 20])
    assert Progress(3, [1, 2, 4], [5, 6, 8]) == least([fast, slow], 3)
    assert Progress(0, [0], [9]) == least([Progress(0, [0], [9]), Progress(2, [0], [30])], 0)


def test_map_batch_gives_one_result_for_each_row() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=int).map_batch(lambda many: [2 * one for one in many]).to("out")
    assert [2, 4, 6] == pipeline.test({"in": [1, 2, 3]}, batch_records=2)["out"]
    short = Pipeline("p")
    short.source("in", type=int).map_batch(lambda many: many[1:]).to("out")
    with pytest.raises(RecordError, match="1 values for 2"):
        short.test({"in": [1, 2]})


def test_peek_sees_every_row_and_changes_none(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    pipeline = Pipeline("p")
    pipeline.source("in", type=int).peek(seen.append).print("row").to("out")
    assert [1, 2] == pipeline.test({"in": [1, 2]})["out"] == seen
    assert "row 1\nrow 2\n" == capsys.readouterr().out


@pytest.mark.parametrize("kind", ["map", "filter", "flat_map"])
def test_a_row_a_function_raises_on_can_be_a_dead_letter(kind: str) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", type=int)
    results: dict[str, Callable[[int], object]] = {
        "map": lambda n: 6 // n,
        "filter": lambda n: 6 // n,
        "flat_map": lambda n: [6 // n],
    }
    getattr(source, kind)(results[kind], on_error="dead_letter").to("out")
    with pytest.raises(RecordError, match="ZeroDivisionError"):
        pipeline.test({"in": [1, 0, 2]})
    source.dead_letters.to("dead")
    out = pipeline.test({"in": [1, 0, 2]})
    assert 2 == len(out["out"])
    (letter,) = out.records("dead")
    assert (b"0", "error") == (letter.value, letter.headers[0][0])
    assert b"ZeroDivisionError" in letter.headers[0][1]


def test_dead_letters_of_merged_streams_go_to_their_own_source() -> None:
    pipeline = Pipeline("p")
    left, right = pipeline.source("left"), pipeline.source("right")
    left.merge(right).key_by("k").to("out")
    left.dead_letters.to("left.dead")
    right.dead_letters.to("right.dead")
    out = pipeline.test({"left": [{"k": 1}, {"x": 1}], "right": [{"y": 2}, {"k": 2}]})
    assert [{"x": 1}] == out["left.dead"]
    assert [{"y": 2}] == out["right.dead"]
    assert [{"k": 1}, {"k": 2}] == out["out"]


def test_streams_of_other_pipelines_are_refused() -> None:
    stream = Pipeline("one").source("in")
    with pytest.raises(UsageError, match="belongs to pipeline 'two'"):
        stream.merge(Pipeline("two").source("in"))
    with pytest.raises(UsageError, match="merges with keyed streams"):
        stream.key_by("k").merge(stream)
    with pytest.raises(UsageError, match="named predicates"):
        stream.branch()
    with pytest.raises(UsageError, match="on_error"):
        stream.map(str, on_error="skip")  # type: ignore[call-overload]  # what is tested


def test_late_rows_of_a_branch_are_rows_of_the_input() -> None:
    pipeline = Pipeline("p")
    big = pipeline.source("in", time="ts").branch(big=lambda x: x["n"] > 1)["big"]
    counts = big.key_by("k").window(tumbling(10)).agg(n=agg.count())
    counts.to("out")
    counts.late.to("late")
    rows = [{"k": 1, "n": 2, "ts": 5}, {"k": 1, "n": 1, "ts": 50}, {"k": 1, "n": 3, "ts": 6}]
    assert [rows[2]] == pipeline.test({"in": [Row(row) for row in rows]})["late"]
