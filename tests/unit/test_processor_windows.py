"""Windows and watermarks: pure arithmetic, held against the plain definition."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from millstream import DataError, UsageError
from millstream.processor import FixedWindows, Pipeline, agg, hopping, tumbling
from millstream.processor.nodes import WindowNode
from millstream.processor.state import StateEntry
from millstream.processor.watermark import BEFORE_TIME, Watermark
from millstream.processor.windowing import WindowOperator

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

times = st.integers(INT64_MIN, INT64_MAX)
small = st.integers(1, 40)


@given(st.integers(-200, 200), small, small, st.integers(-100, 100))
def test_ends_are_those_of_the_windows_that_hold_the_time(
    time: int, size: int, slide: int, offset: int
) -> None:
    expected = [
        offset + k * slide + size
        for k in range(-700, 701)
        if offset + k * slide <= time < offset + k * slide + size
    ]
    assert FixedWindows(size, slide, offset).ends(time) == expected


@given(times, st.integers(1, 10**12), st.integers(-(10**12), 10**12))
def test_a_time_lies_in_the_tumbling_window_of_its_next_end(
    time: int, size: int, offset: int
) -> None:
    windows = FixedWindows(size, size, offset)
    end = windows.next_end(time)
    assert end - size <= time < end
    assert (end - size - offset) % size == 0
    assert windows.ends(time) == [end]


@given(times, st.integers(1, 10**4), st.integers(1, 10**6), st.integers(-(10**6), 10**6))
def test_closed_end_is_the_last_end_not_after_the_progress(
    progress: int, size: int, slide: int, offset: int
) -> None:
    windows = FixedWindows(size, slide, offset)
    closed = windows.closed_end(progress)
    assert closed <= progress < closed + slide == windows.next_end(progress)


def test_windows_are_half_open_e19_e20() -> None:
    windows = tumbling("1m")
    assert windows.ends(60_000) == [120_000]
    assert windows.ends(59_999) == [60_000]


@pytest.mark.parametrize(("offset", "end"), [(15, 115), (-15, 85), (1015, 115), (-985, 115)])
def test_an_offset_of_any_sign_and_size_shifts_the_windows_e22(offset: int, end: int) -> None:
    assert tumbling(100, offset=offset).ends(50) == [end]


def test_negative_times_use_floor_division_e12() -> None:
    assert tumbling("1m").ends(-1) == [0]
    assert tumbling("1m").ends(-60_000) == [0]
    assert tumbling("1m").ends(-60_001) == [-60_000]


def test_one_millisecond_is_a_window_e30() -> None:
    assert tumbling(1).ends(7) == [8]


def test_a_size_need_not_be_a_multiple_of_the_slide_e31() -> None:
    assert hopping(10, 4).ends(9) == [10, 14, 18]


def test_a_slide_longer_than_the_size_leaves_gaps_e32() -> None:
    windows = hopping(2, 5)
    assert [windows.ends(time) for time in range(6)] == [[2], [2], [], [], [], [7]]


def test_durations_come_as_text_timedelta_or_milliseconds() -> None:
    assert tumbling("90s") == tumbling(timedelta(seconds=90)) == tumbling(90_000)
    assert tumbling("1d", offset="6h") == tumbling("1d", offset=timedelta(hours=6))


@pytest.mark.parametrize("size", [0, -5, "soon"])
def test_a_size_that_is_no_duration_is_refused(size: int | str) -> None:
    with pytest.raises(UsageError):
        tumbling(size)


def test_an_absurd_number_of_windows_per_row_is_refused() -> None:
    with pytest.raises(UsageError, match="86400000 windows"):
        hopping("1d", 1)


def test_the_watermark_follows_the_greatest_time_and_never_falls() -> None:
    watermark = Watermark(disorder_ms=5)
    assert watermark.advance(0, range(4), [100, 98, 103, 50]) == ([0, 2], [95, 98])
    assert watermark.level == 98
    assert watermark.maxima == {0: 103}


def test_the_watermark_is_the_least_of_the_partitions_with_rows_e5() -> None:
    watermark = Watermark(disorder_ms=0)
    watermark.advance(0, range(1), [100])
    watermark.advance(1, range(1), [10])
    assert watermark.level == 100, "a partition that comes later does not pull W back (E4)"
    assert watermark.advance(0, range(1), [200]) == ([], [])
    assert watermark.advance(1, range(3), [120, 150, 300]) == ([0, 1, 2], [120, 150, 200])


def test_a_watermark_from_a_checkpoint_goes_on_where_it_was_e4() -> None:
    before = Watermark(3)
    before.advance(0, range(2), [50, 70])
    after = Watermark(3, before.maxima, before.level)
    assert after.advance(0, range(2), [60, 71]) == ([1], [68])


def test_rows_before_the_first_one_have_no_watermark_e1() -> None:
    watermark = Watermark(disorder_ms=10**9)
    assert watermark.level == BEFORE_TIME < INT64_MIN - 10**9


def test_times_at_the_limits_of_int64_do_not_overflow_e13() -> None:
    watermark = Watermark(disorder_ms=10_000)
    least = INT64_MIN + 10_000
    times = [INT64_MIN, least - 1, least, INT64_MAX]
    assert watermark.advance(0, range(4), times) == ([2, 3], [INT64_MIN, INT64_MAX - 10_000])
    watermark = Watermark(disorder_ms=10_000)
    assert watermark.advance(0, range(1), [least - 1]) == ([], [])
    watermark.mark_idle([0])
    watermark.wake(0)
    assert watermark.level == BEFORE_TIME, "below all times it is none: nothing could hold it"


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=40),
    st.integers(0, 10),
    st.integers(1, 5),
)
def test_the_watermark_is_the_same_for_any_cut(
    rows: list[tuple[int, int]], disorder: int, step: int
) -> None:
    maxima: dict[int, int] = {}
    level = BEFORE_TIME
    expected = []
    for partition, time in rows:
        maxima[partition] = max(maxima.get(partition, time), time)
        level = max(level, min(maxima.values()) - disorder)
        expected.append(level)

    watermark = Watermark(disorder)
    got = []
    for start in range(0, len(rows), step):
        for partition, time in rows[start : start + step]:
            watermark.advance(partition, [0], [time])
            got.append(watermark.level)
    assert got == expected


def test_a_jump_comes_to_where_row_by_row_comes() -> None:
    rows, times = range(4), [5, 9, 7, 3]
    exact, jumping = Watermark(2, {1: 6}), Watermark(2, {1: 6})
    exact.advance(0, rows, times)
    assert ([3], [4]) == jumping.jump(0, rows, times)
    assert (exact.level, exact.maxima) == (jumping.level, jumping.maxima)
    assert ([], []) == jumping.jump(0, range(0), [])
    assert ([], []) == jumping.jump(0, range(1), [1])


def window_node() -> WindowNode:
    pipeline = Pipeline("p")
    pipeline.source("in").key_by("user").window(tumbling("1m")).agg(n=agg.count()).to("out")
    (node,) = pipeline.plan.stateful()
    assert isinstance(node, WindowNode)
    return node


def test_windows_are_restored_alike_however_their_records_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(3)
    expected: dict[int, dict[str, list[int]]] = {}
    entries = []
    for number in range(3000):
        end, key = 60_000 * (number // 700 + rng.choice((1, 1, 1, 2))), f"k{rng.randrange(80)}"
        way = rng.random() if number % 1000 > 400 else 1.0
        if way < 0.01:
            entries.append(StateEntry((end,), None))
            expected.pop(end, None)
        elif way < 0.1:
            entries.append(StateEntry((end, key), None))
            expected.get(end, {}).pop(key, None)
        else:
            entries.append(StateEntry((end, key), [number]))
            expected.setdefault(end, {})[key] = [number]
    node = window_node()
    for size in (1, 7, 5_000):
        monkeypatch.setattr("millstream.processor.state._PIECE_RECORDS", size)
        operator = WindowOperator(node, 0)
        operator.restore(entries)
        found: dict[int, dict[str, list[int]]] = {}
        for end, window in operator._open.items():
            keys = window.key_list()
            found[end] = dict(zip(keys, map(list, window.accumulators(keys)), strict=True))
        assert {end: content for end, content in expected.items() if content} == found


@pytest.mark.parametrize("path", [(), ("60", "a"), (60, "a", "b")])
def test_foreign_state_of_windows_is_a_data_error(path: tuple[object, ...]) -> None:
    node = window_node()
    with pytest.raises(DataError, match="not the state of windows"):
        WindowOperator(node, 0).restore([StateEntry((60, "a"), [1]), StateEntry(path, [1])])
