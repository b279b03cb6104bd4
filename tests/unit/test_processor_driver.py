"""The driver for users' tests, and the fixtures that come with the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from millstream import Record, Store, UsageError
from millstream.processor import Driver, Pipeline, Row, agg, tumbling
from millstream.testing import ManualClock

Value = dict[str, int | str]


def counts(**options: str) -> Pipeline:
    pipeline = Pipeline("counts")
    rows = pipeline.source("in", type=dict, time="t", **options)  # type: ignore[call-overload]  # any
    rows.key_by("k").window(tumbling(10)).agg(n=agg.count()).to("out")
    return pipeline


def row(time: int, key: str = "a") -> Value:
    return {"k": key, "t": time}


def test_rows_are_what_came_since_the_last_look() -> None:
    with counts().driver() as driver:
        driver.send_all("in", [row(1), row(2), row(10)])
        assert [2] == [one["n"] for one in driver.rows("out")]
        assert [] == driver.rows("out")
        driver.send("in", row(20))
        (record,) = driver.records("out")
        assert (b"a", 19, 1) == (record.key, record.timestamp_ms, record.offset)


def test_a_crash_changes_nothing() -> None:
    with counts().driver() as driver:
        driver.send_all("in", [row(1), row(2)])
        driver.crash()
        with pytest.raises(UsageError, match="call restore"):
            driver.rows("out")
        driver.restore()
        driver.restore()
        driver.send("in", row(10))
        assert [2] == [one["n"] for one in driver.rows("out")]
        driver.crash()
        driver.restore()
        assert [] == driver.rows("out")


def test_the_wall_clock_and_w_are_in_the_hand_of_the_test() -> None:
    with counts(idle="1s").driver(start_ms=5_000, partitions=2) as driver:
        driver.send("in", row(1), partition=0)
        driver.send("in", row(2), partition=1)
        driver.send("in", row(25), partition=0)
        assert [] == driver.rows("out")
        driver.advance("2s")
        driver.send("in", row(26), partition=0)
        assert [2] == [one["n"] for one in driver.rows("out")]
        driver.advance(watermark=30)
        assert [2] == [one["n"] for one in driver.rows("out")]
        assert 7_000 == driver.clock.now_ms()


def test_state_can_be_looked_at_and_the_end_closes_everything() -> None:
    with counts().driver() as driver:
        assert [] == driver.state("in.window"), "there is nothing yet"
        driver.send_all("in", [row(1), row(2, "b")])
        assert [((10, "b"), [1])] == driver.state("in.window", "b")
        assert 2 == len(driver.state("in.window"))
        with pytest.raises(UsageError, match=r"no state called 'window'; it has in\.window"):
            driver.state("window")
        driver.end()
        assert 2 == len(driver.rows("out"))


@pytest.mark.parametrize(
    "value",
    [
        [row(1), row(2)],
        (row(1), 5),
        [],
        iter([row(1)]),
        Row(row(1)),
        Record("in", 0, 0, 0, None, b"", ()),
    ],
)
def test_send_takes_one_value_and_says_what_takes_several(value: object) -> None:
    with counts().driver() as driver:
        with pytest.raises(UsageError, match=r"send_all\('in', \[\.\.\.\]\)"):
            driver.send("in", value)
        assert 0 == driver.store.offsets("in")[0].end


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_list_is_no_text(kind: type) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=kind).to("out")
    with pipeline.driver() as driver, pytest.raises(UsageError, match="text and bytes"):
        driver.send("in", ["a", "b"])


def test_a_list_is_sent_where_it_is_one_value_and_to_any_other_topic() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in", type=list).map(sum).to("out")
    with pipeline.driver() as driver:
        driver.store.create_topic("others")
        driver.send("others", ["a"])
        driver.send("in", [1, 2])
        driver.send("in", (3,))
        assert [3, 3] == driver.rows("out")


def test_what_is_no_json_is_refused_before_anything_is_appended() -> None:
    with counts().driver() as driver:
        with pytest.raises(UsageError, match="cannot write a object as JSON"):
            driver.send("in", object())
        assert 0 == driver.store.offsets("in")[0].end


@pytest.mark.parametrize("values", ["abc", b"ab", row(1)])
def test_send_all_takes_a_list(values: str | bytes | Value) -> None:
    with counts().driver() as driver, pytest.raises(UsageError, match=r"send\('in', value\)"):
        driver.send_all("in", values)


def test_send_all_takes_what_says_more_of_a_record() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").to("out")
    with pipeline.driver(partitions=2) as driver:
        first = Row(row(1), timestamp_ms=7, key=b"k", partition=1, headers=(("h", b"1"),))
        driver.send_all("in", [first, Record("any", 0, 99, 8, b"l", b'{"k": "b", "t": 2}', ())])
        found = [
            (each.partition, each.offset, each.timestamp_ms, each.key, each.value)
            for each in driver.store.read("in")
        ]
    assert [
        (1, 0, 7, b"k", b'{"k":"a","t":1}'),
        (0, 0, 8, b"l", b'{"k": "b", "t": 2}'),
    ] == sorted(found, reverse=True)


def test_the_fixtures_of_the_package(
    millstream_store: Store,
    millstream_clock: ManualClock,
    drive: Callable[[Pipeline], Driver],
) -> None:
    millstream_store.create_topic("t")
    millstream_clock.advance(5)
    now_ms = millstream_clock.now_ms()
    assert now_ms == millstream_store.append("t", b"x").timestamp_ms
    driver = drive(counts())
    driver.send("in", row(1))
    assert 1 == driver.run().records_in
    with pytest.raises(UsageError, match=r"drive\(\) takes a pipeline, not <function counts"):
        drive(counts)  # type: ignore[arg-type]  # the point


def test_a_topic_that_there_is_not_is_told_with_those_there_are() -> None:
    pipeline = Pipeline("p")
    pipeline.source("orders").merge(pipeline.source("refunds")).to("out")
    with pipeline.driver() as driver:
        with pytest.raises(UsageError, match="'p' reads no 'order'; it reads orders, refunds"):
            driver.send("order", {})
        with pytest.raises(UsageError, match="'p' writes no 'ot'; it writes out"):
            driver.rows("ot")
        driver.send("orders", {"n": 1})
        assert [{"n": 1}] == driver.rows("out")
        assert 1 == len(list(driver.store.read("orders")))
