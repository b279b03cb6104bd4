"""What a pipeline means: the cases of the specification, run over lists.

Every case runs in one step and one row at a time; both must give the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pytest

from millstream import Record, RecordError, UsageError
from millstream.processor import (
    Aggregate,
    FixedWindows,
    Pipeline,
    Row,
    TestOutput,
    Windowed,
    agg,
    hopping,
    tumbling,
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def run(pipeline: Pipeline, rows: Iterable[object], on_end: str = "flush") -> TestOutput:
    rows = list(rows)
    whole = pipeline.test({"in": rows}, on_end=on_end)  # type: ignore[arg-type]  # a literal
    single = pipeline.test({"in": rows}, on_end=on_end, batch_records=1)  # type: ignore[arg-type]  # a literal
    for topic in whole:
        assert whole.records(topic) == single.records(topic)
    return whole


def counting(
    windows: FixedWindows | None = None, *, disorder: int | str = 0, grace: int | str = 0
) -> Pipeline:
    """Counts rows {"k": ..., "t": ...} per key and window."""
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", disorder=disorder)
    results = rows.key_by("k").window(windows or tumbling(10), grace=grace).agg(n=agg.count())
    results.to("out")
    results.late.to("late")
    return pipeline


def at(*times: int, key: object = "a") -> list[dict[str, object]]:
    return [{"k": key, "t": time} for time in times]


def counts(output: TestOutput) -> list[tuple[object, int, int]]:
    """(key, window start, n) of each result."""
    return [(row["key"], row["window_start"], row["n"]) for row in output["out"]]


def late_times(output: TestOutput) -> list[int]:
    return [row["t"] for row in output["late"]]


# --- time --------------------------------------------------------------------------------------


def test_e1_rows_before_the_first_watermark_are_never_late() -> None:
    output = run(counting(disorder=0), at(-(10**15)))
    assert late_times(output) == []
    assert len(output["out"]) == 1


def test_e2_a_time_equal_to_the_watermark_is_on_time() -> None:
    output = run(counting(tumbling(1), disorder=5), at(105, 100))
    assert late_times(output) == []
    output = run(counting(tumbling(1), disorder=5), at(105, 99))
    assert late_times(output) == [99]


def test_e3_disorder_that_is_declared_changes_nothing() -> None:
    times = [5, 1, 12, 8, 14, 10, 25, 21, 30]
    disordered = run(counting(disorder=4), at(*times))
    ordered = run(counting(disorder=4), at(*sorted(times)))
    assert late_times(disordered) == []
    assert disordered["out"] == ordered["out"]


def test_e4_e5_the_slowest_partition_holds_the_watermark() -> None:
    def rows(*pairs: tuple[int, int]) -> list[Row]:
        return [Row({"k": "a", "t": t}, partition=p) for p, t in pairs]

    held = run(counting(), rows((1, 1), (0, 2), (0, 50), (1, 3)), on_end="hold")
    assert held["out"] == []
    assert held["late"] == []
    moved = run(counting(), rows((1, 1), (0, 2), (0, 50), (1, 40), (1, 3)), on_end="hold")
    assert counts(moved) == [("a", 0, 2)]
    assert late_times(moved) == [3]


def test_e4_a_partition_without_rows_does_not_hold_the_watermark() -> None:
    rows = [Row({"k": "a", "t": t}, partition=p) for p, t in [(0, 1), (0, 50), (1, 3)]]
    output = run(counting(), rows, on_end="hold")
    assert counts(output) == [("a", 0, 1)]
    assert late_times(output) == [3], "and its first row is judged like any other"


def test_e12_times_before_1970() -> None:
    output = run(counting(tumbling(10)), at(-25, -21, -11, -1, 0))
    assert counts(output) == [("a", -30, 2), ("a", -20, 1), ("a", -10, 1), ("a", 0, 1)]


def test_e13_times_at_the_limits_of_int64() -> None:
    pipeline = counting(tumbling("1m"), disorder="10s", grace="1h")
    output = run(pipeline, at(INT64_MIN + 1, 0, INT64_MAX))
    assert [row["n"] for row in output["out"]] == [1, 1, 1]
    for record in output.records("out"):
        assert INT64_MIN <= record.timestamp_ms <= INT64_MAX
    for beyond in (INT64_MAX + 1, INT64_MIN):
        with pytest.raises(RecordError, match="64 bits"):
            pipeline.test({"in": [{"k": "a", "t": beyond}]})


def test_e15_rows_a_filter_drops_move_the_watermark() -> None:
    pipeline = Pipeline("p")
    kept = pipeline.source("in", time="t").filter(lambda row: row["k"] == "a")
    kept.key_by("k").window(tumbling(10)).agg(n=agg.count()).to("out")
    output = run(pipeline, [*at(1), *at(10, key="b")], on_end="hold")
    assert counts(output) == [("a", 0, 1)]


def test_e17_without_disorder_an_older_row_of_a_closed_window_is_late() -> None:
    output = run(counting(), at(1, 9, 10, 9))
    assert counts(output) == [("a", 0, 2), ("a", 10, 1)]
    assert late_times(output) == [9]


def test_e18_hold_keeps_windows_open_and_flush_closes_them() -> None:
    assert run(counting(), at(1, 12), on_end="hold")["out"] == [
        {"key": "a", "window_start": 0, "window_end": 10, "n": 1}
    ]
    assert counts(run(counting(), at(1, 12))) == [("a", 0, 1), ("a", 10, 1)]


# --- windows -----------------------------------------------------------------------------------


def test_e19_e20_windows_are_half_open() -> None:
    assert counts(run(counting(), at(0, 9, 10))) == [("a", 0, 2), ("a", 10, 1)]


def test_e21_a_row_late_for_old_windows_is_accepted_by_newer_ones() -> None:
    output = run(counting(hopping(10, 5)), at(3, 12, 8))
    assert counts(output) == [("a", -5, 1), ("a", 0, 1), ("a", 5, 2), ("a", 10, 1)]
    assert late_times(output) == []
    output = run(counting(hopping(10, 5)), at(3, 22, 8))
    assert late_times(output) == [8], "late for all of its windows: once, and whole"


@pytest.mark.parametrize("offset", [3, -7, 13, -27])
def test_e22_windows_may_be_shifted(offset: int) -> None:
    output = run(counting(tumbling(10, offset=offset)), at(2, 3, 12, 13))
    assert counts(output) == [("a", -7, 1), ("a", 3, 2), ("a", 13, 1)]


def test_e24_a_jump_over_many_windows_emits_all_of_them() -> None:
    pipeline = counting(disorder=25)
    output = run(pipeline, at(0, 11, 22, 10**12), on_end="hold")
    assert counts(output) == [("a", 0, 1), ("a", 10, 1), ("a", 20, 1)]


def test_e25_windows_without_rows_emit_nothing() -> None:
    assert counts(run(counting(), at(0, 95))) == [("a", 0, 1), ("a", 90, 1)]


def test_e28_windows_and_keys_that_close_together_come_in_order() -> None:
    rows = [*at(12, key="b"), *at(3, key="b"), *at(12, key="a"), *at(4, key="\u00e9")]
    rows += [*at(5, key="a"), *at(6, key="z"), *at(90)]
    output = run(counting(disorder=15), rows, on_end="hold")
    assert counts(output) == [
        ("a", 0, 1),
        ("b", 0, 1),
        ("z", 0, 1),
        ("\u00e9", 0, 1),
        ("a", 10, 1),
        ("b", 10, 1),
    ]


def test_e29_one_row() -> None:
    output = run(counting(), at(5))
    assert output["out"] == [{"key": "a", "window_start": 0, "window_end": 10, "n": 1}]
    assert output.records("out") == [
        Record("out", 0, 0, 9, b"a", b'{"key":"a","window_start":0,"window_end":10,"n":1}', ())
    ]


def test_e30_windows_of_one_millisecond() -> None:
    output = run(counting(tumbling(1), disorder=2), at(5, 6, 5, 4, 9, 7))
    assert counts(output) == [("a", 4, 1), ("a", 5, 2), ("a", 6, 1), ("a", 7, 1), ("a", 9, 1)]


def test_e31_e32_gaps_and_odd_overlaps() -> None:
    output = run(counting(hopping(2, 5)), at(0, 1, 2, 3, 4, 5))
    assert counts(output) == [("a", 0, 2), ("a", 5, 1)]
    assert late_times(output) == [], "rows in gaps are in no window, but not late"
    output = run(counting(hopping(10, 4)), at(9))
    assert counts(output) == [("a", 0, 1), ("a", 4, 1), ("a", 8, 1)]


def test_e33_grace_keeps_a_window_open_to_the_millisecond() -> None:
    assert counts(run(counting(grace=5), at(1, 14, 9), on_end="hold")) == []
    output = run(counting(grace=5), at(1, 14, 9, 15, 9))
    assert counts(output) == [("a", 0, 2), ("a", 10, 2)]
    assert late_times(output) == [9]


def test_e36_sums_of_floats_do_not_depend_on_batches() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t")
    rows.key_by("k").window(tumbling(100)).agg(s=agg.sum("x"), m=agg.mean("x")).to("out")
    values = [1e16, 1.0, -1e16, 0.1, 0.2, 0.3, 1e-9] * 5
    output = run(pipeline, [{"k": "a", "t": i, "x": x} for i, x in enumerate(values)])
    expected = 0.0
    for value in values:
        expected += value
    assert output["out"][0]["s"] == expected
    assert output["out"][0]["m"] == expected / len(values)


def test_e37_the_mean_of_ints_is_exact() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t")
    rows.key_by("k").window(tumbling(100)).agg(m=agg.mean("x"), s=agg.sum("x")).to("out")
    output = run(pipeline, [{"k": "a", "t": 1, "x": 2**62 + i} for i in range(3)])
    assert output["out"][0]["s"] == 3 * 2**62 + 3
    assert output["out"][0]["m"] == float(2**62 + 1)


# --- keys, bad rows, errors --------------------------------------------------------------------


def test_e27_a_row_without_a_key_stops_the_pipeline_or_is_a_dead_letter() -> None:
    rows: list[object] = [*at(1), Row({"k": None, "t": 2}, 7, b"key"), *at(3)]
    with pytest.raises(RecordError, match=r"key_by 'k': the key is None .*offset 1") as caught:
        counting().test({"in": rows})
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("in", 0, 1)

    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.key_by("k").window(tumbling(10)).agg(n=agg.count()).to("out")
    source.dead_letters.to("dead")
    output = run(pipeline, rows)
    assert counts(output) == [("a", 0, 2)]
    (dead,) = output.records("dead")
    assert dead == Record("dead", 0, 0, 7, b"key", b'{"k":null,"t":2}', dead.headers)
    assert dict(dead.headers)["error"] == b"key_by 'k': the key is None"


BAD = [
    (b"not json", "cannot decode the value"),
    (b'{"k":"a"}', "cannot read the event time: KeyError: 't'"),
    (b'{"k":"a","t":null}', "event time is missing"),
    (b'{"k":"a","t":"soon"}', "not RFC 3339"),
    (b'{"k":"a","t":"2026-01-01T00:00:00"}', "no zone"),
    (b'{"k":"a","t":1.5}', "event time is a float"),
    (b'{"k":"a","t":true}', "event time is a bool"),
    (b'{"k":"a","t":99999999999999999999}', "64 bits"),
    (b"[1]", "cannot decode the value"),
    (b'{"k":"a","t":1}{"k":"a","t":1}', "trailing"),
    (b'{"k":"\xff","t":1}', "cannot decode the value"),
    (b"", "cannot decode the value"),
    (None, "no value"),
]


@pytest.mark.parametrize(("value", "problem"), BAD)
def test_e14_e26_a_bad_record_is_an_error_that_names_it(value: bytes | None, problem: str) -> None:
    with pytest.raises(RecordError, match=r"topic in, partition 3, offset 0") as caught:
        counting().test({"in": [Row(value, partition=3)]})
    assert problem in str(caught.value)


def test_e14_bad_records_go_to_the_dead_letters_and_do_not_move_the_watermark() -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.dead_letters.to("dead")
    results = source.key_by("k").window(tumbling(10)).agg(n=agg.count())
    results.to("out")
    results.late.to("late")
    rows: list[object] = [*at(1)]
    for value, _ in BAD:
        rows += [Row(value, headers=(("h", b"1"),)), *at(2)]
    output = run(pipeline, rows)
    assert counts(output) == [("a", 0, 1 + len(BAD))]
    assert [record.value for record in output.records("dead")] == [value for value, _ in BAD]
    for record, (_, problem) in zip(output.records("dead"), BAD, strict=True):
        assert record.headers[0] == ("h", b"1")
        assert problem in (record.headers[1][1] or b"").decode()


def fail_on_three(row: dict[str, int]) -> dict[str, int]:
    if row["t"] == 3:
        raise ZeroDivisionError("three")
    return row


def stop_on_three(row: dict[str, int]) -> dict[str, int]:
    if row["t"] == 3:
        raise StopIteration
    return row


def lines_of(row: dict[str, int]) -> Iterable[dict[str, int]]:
    yield row
    yield fail_on_three(row)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda s: s.map(fail_on_three), "map fail_on_three: ZeroDivisionError: three"),
        (lambda s: s.map(stop_on_three), "map stop_on_three: RuntimeError"),
        (lambda s: s.filter(fail_on_three), "filter fail_on_three: ZeroDivisionError"),
        (lambda s: s.flat_map(lines_of), "flat_map lines_of: ZeroDivisionError"),
        (lambda s: s.flat_map(lambda row: row["t"]), "flat_map lambda.*must return an iterable"),
        (lambda s: s.key_by(lambda row: fail_on_three(row)["t"]), "key_by lambda.*fail_on_three"),
        (lambda s: s.key_by("other"), "key_by 'other': KeyError: 'other'"),
        (lambda s: s.map(lambda row: {1, row["t"]}.difference), "to out: TypeError"),
    ],
)
def test_an_error_of_a_user_function_names_operator_and_record(
    declare: object, message: str
) -> None:
    pipeline = Pipeline("p")
    declare(pipeline.source("in", time="t")).to("out")  # type: ignore[operator]  # a function
    with pytest.raises(RecordError, match=message) as caught:
        pipeline.test({"in": at(3)})
    assert caught.value.offset == 0
    assert caught.value.__cause__ is not None
    if "fail_on_three" in message:
        with pytest.raises(RecordError) as caught:
            pipeline.test({"in": at(1, 2, 3, 4)})
        assert caught.value.offset == 2


@pytest.mark.parametrize("field", ["x", lambda row: row["x"]])
def test_an_error_in_an_aggregate_names_it_and_the_record(field: object) -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k")
    keyed.window(tumbling(10)).agg(n=agg.count(), total=agg.sum(field)).to("out")  # type: ignore[call-overload]  # either
    good = {"k": "a", "t": 1, "x": 1}
    for bad in ({"k": "a", "t": 13}, {"k": "a", "t": 13, "x": "2"}, {"k": "a", "t": 25}):
        with pytest.raises(RecordError, match=r"window in\.window, agg total: ") as caught:
            pipeline.test({"in": [good, {**good, "t": 11}, good | {"t": 12}, bad, good]})
        assert caught.value.offset == 3


def test_a_key_that_cannot_group_is_an_error() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", time="t").key_by(lambda row: [row["k"]]).to("out")
    with pytest.raises(RecordError, match="a key cannot be a list"):
        pipeline.test({"in": at(1)})


def test_keys_of_any_kind_group_and_are_written() -> None:
    rows = [{"k": key, "t": 1} for key in ("a", 1, True, 2.5, "a", "1")]
    output = run(counting(), rows)
    assert counts(output) == [(1, 0, 2), ("1", 0, 1), (2.5, 0, 1), ("a", 0, 2)]
    assert [record.key for record in output.records("out")] == [b"1", b"1", b"2.5", b"a"]
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by(lambda row: (row["k"], b"x"))
    keyed.window(tumbling(10)).agg(n=agg.count()).to("out")
    assert run(pipeline, at(1, 2)).records("out")[0].key == b'["a","eA=="]'


# --- streams -----------------------------------------------------------------------------------


class Order(msgspec.Struct):
    user: str
    amount: float
    at: datetime


@dataclass
class Click:
    user: str
    t: int


def test_map_filter_and_flat_map_keep_time_and_input_key() -> None:
    pipeline = Pipeline("p")
    words = pipeline.source("in", type=str)
    words.flat_map(str.split).filter(lambda w: w != "b").map(str.upper).to("out")
    output = run(pipeline, [Row(b"a b", 5, b"k1"), Row(b"", 6), Row(b"c d", 7)])
    assert [(r.value, r.timestamp_ms, r.key) for r in output.records("out")] == [
        (b'"A"', 5, b"k1"),
        (b'"C"', 7, None),
        (b'"D"', 7, None),
    ]


def test_operators_behind_a_key_keep_it() -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", time="t").key_by("k")
    doubled = keyed.filter(lambda row: row["t"] > 0).flat_map(lambda row: [row["t"]] * 2)
    doubled.map(lambda t: t + 1).window(tumbling(10)).agg(s=agg.sum()).to("out")
    doubled.to("plain")
    output = run(pipeline, [*at(0, 1), *at(2, key=7)])
    assert output["out"] == [
        {"key": 7, "window_start": 0, "window_end": 10, "s": 6},
        {"key": "a", "window_start": 0, "window_end": 10, "s": 4},
    ]
    assert [record.key for record in output.records("plain")] == [b"a", b"a", b"7", b"7"]


def test_bytes_and_none_pass_through_to_a_topic() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=bytes).map(lambda v: None if v == b"x" else v).to("out")
    output = run(pipeline, [b"\xff", b"x"])
    assert [record.value for record in output.records("out")] == [b"\xff", None]


@pytest.mark.parametrize("kind", [Order, dict])
def test_event_time_may_be_a_datetime_or_text(kind: type) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", type=kind, time="at")
    source.key_by("user").window(tumbling("1m")).agg(total=agg.sum("amount")).to("out")
    when = datetime(2026, 1, 1, 0, 0, 59, 999_999, tzinfo=UTC)
    output = run(pipeline, [Order("u", 2.5, when)])
    start = 1_767_225_600_000
    assert output["out"] == [
        {"key": "u", "window_start": start, "window_end": start + 60_000, "total": 2.5}
    ]


def test_event_time_may_be_a_function_or_the_record_timestamp() -> None:
    by_function = Pipeline("p")
    clicks = by_function.source("in", type=Click, time=lambda click: click.t * 1000)
    clicks.key_by("user").window(tumbling("1s")).agg(n=agg.count()).to("out")
    assert run(by_function, [Click("u", 5)])["out"][0]["window_start"] == 5000
    by_record = Pipeline("p")
    clicks = by_record.source("in", type=Click)
    clicks.key_by(lambda click: click.user).window(tumbling(10)).agg(n=agg.count()).to("out")
    assert run(by_record, [(Click("u", 5), 27)])["out"][0]["window_start"] == 20


class Last(Aggregate[object, list[object], object]):
    field = "t"

    def init(self) -> list[object]:
        return []

    def add(self, accumulator: list[object], value: object) -> list[object]:
        return [value]

    def result(self, accumulator: list[object]) -> object:
        return accumulator[0]


def test_an_aggregate_of_ones_own_runs_like_the_built_in_ones() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t", disorder=5)
    rows.key_by("k").window(tumbling(10)).agg(last=Last(), n=agg.count()).to("out")
    assert run(pipeline, at(1, 5, 3))["out"] == [
        {"key": "a", "window_start": 0, "window_end": 10, "last": 3, "n": 3}
    ]


def chained(name: str = "p") -> Pipeline:
    """Windows over the results of windows, with all streams in one topic."""
    pipeline = Pipeline(name)
    rows = pipeline.source("in", time="t", disorder=3)
    first = rows.key_by("k").window(tumbling(10), grace=2).agg(n=agg.count())
    first.to("out")
    first.late.to("out")
    second = first.key_by(lambda r: "all").window(tumbling(30), grace=1).agg(n=agg.sum("n"))
    second.to("out")
    rows.map(lambda row: row["t"]).to("out")
    return pipeline


def test_results_of_windows_are_never_late_for_the_windows_behind_them() -> None:
    output = run(chained(), [*at(1, 12, 25, 27), *at(26, key="b"), *at(34, 48, 99)])
    assert [row for row in output["out"] if isinstance(row, dict) and row.get("key") == "all"] == [
        {"key": "all", "window_start": 0, "window_end": 30, "n": 5},
        {"key": "all", "window_start": 30, "window_end": 60, "n": 2},
        {"key": "all", "window_start": 90, "window_end": 120, "n": 1},
    ]


def test_what_one_row_causes_is_written_before_what_the_next_one_causes() -> None:
    output = run(chained(), at(1, 14, 15, 2, 46))
    assert output["out"] == [
        1,
        14,
        {"key": "a", "window_start": 0, "window_end": 10, "n": 1},
        15,
        {"k": "a", "t": 2},
        2,
        {"key": "a", "window_start": 10, "window_end": 20, "n": 2},
        {"key": "all", "window_start": 0, "window_end": 30, "n": 3},
        46,
        {"key": "a", "window_start": 40, "window_end": 50, "n": 1},
        {"key": "all", "window_start": 30, "window_end": 60, "n": 1},
    ]


def test_two_sources_have_watermarks_of_their_own() -> None:
    pipeline = Pipeline("p")
    for name in ("left", "right"):
        rows = pipeline.source(name, time="t")
        rows.key_by("k").window(tumbling(10)).agg(n=agg.count()).to(f"{name}.out")
    output = pipeline.test({"left": at(1, 50), "right": at(2)}, on_end="hold")
    assert len(output["left.out"]) == 1
    assert output["right.out"] == []


def test_results_are_typed_values_before_they_are_json() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t").key_by("k")
    results = rows.window(tumbling(10)).agg(n=agg.count(), top=agg.max("t"))

    def tell(result: Windowed[object, float | None]) -> Mapping[str, object]:
        return {"at": [result.start, result.end], "key": result.key, "n": result["n"]}

    results.map(tell).to("out")
    assert run(pipeline, at(1, 2))["out"] == [{"at": [0, 10], "key": "a", "n": 2}]


# --- declaring ---------------------------------------------------------------------------------


def test_explain_tells_the_plan_as_a_tree() -> None:
    pipeline = chained("shop")
    here, line = "test_processor_pipeline.py", chained.__code__.co_firstlineno
    assert pipeline.explain().splitlines() == [
        "pipeline shop",
        "  source in: dict, time 't', disorder 3ms",
        "    key_by 'k'",
        "      window tumbling 10ms, grace 2ms, agg n=count()  [state in.window]",
        "        to out",
        "        late rows",
        "          to out",
        f"        key_by lambda('all') at {here}:{line + 7}",
        "          window tumbling 30ms, grace 1ms, agg n=sum('n')  [state in.window-2]",
        "            to out",
        f"    map lambda('t') at {here}:{line + 9}",
        "      to out",
    ]


def test_what_cannot_work_is_refused_when_it_is_declared() -> None:
    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order, time="at")
    with pytest.raises(UsageError, match="no field 'when'; it has user, amount, at"):
        Pipeline("q").source("in", type=Order, time="when")
    with pytest.raises(UsageError, match="no field 'usr'"):
        orders.key_by("usr")
    with pytest.raises(UsageError, match="agg total: Order has no field 'amnt'"):
        orders.key_by("user").window(tumbling(1)).agg(total=agg.sum("amnt"))
    with pytest.raises(UsageError, match="at least one aggregate"):
        orders.key_by("user").window(tumbling(1)).agg()
    with pytest.raises(UsageError, match="cannot be called 'key'"):
        orders.key_by("user").window(tumbling(1)).agg(key=agg.count())
    with pytest.raises(UsageError, match="reads 'in' already"):
        pipeline.source("in")
    with pytest.raises(UsageError, match="use 'final', or 'update'"):
        orders.key_by("user").window(tumbling(1)).agg(n=agg.count()).emit("soon")  # type: ignore[arg-type]  # the point
    with pytest.raises(UsageError, match="1 to 100 of"):
        Pipeline("a/b")
    with pytest.raises(UsageError, match=r"writes nothing: add .to\(topic\) or .print\(\)"):
        pipeline.test({})
    with pytest.raises(UsageError, match="reads nothing"):
        Pipeline("p").test({})
    orders.to("in")
    with pytest.raises(UsageError, match="reads what it writes"):
        pipeline.test({})


def test_inputs_of_a_test_must_be_sources() -> None:
    with pytest.raises(UsageError, match="does not read \\['inn'\\]; it reads \\['in'\\]"):
        counting().test({"inn": []})


def test_a_record_read_from_a_log_can_be_test_input() -> None:
    record = Record("elsewhere", 2, 7, 5, b"k", b'{"k":"a","t":1}', ())
    assert counts(run(counting(), [record])) == [("a", 0, 1)]
