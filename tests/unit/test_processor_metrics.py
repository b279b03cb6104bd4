"""What a run tells of each operator: records, lateness, and how far event time is behind."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import msgspec
import pytest

import millstream
from millstream.processor import Metrics, OperatorMetrics, Pipeline, agg, hopping, tumbling
from millstream.processor.holding import StatePlace
from millstream.testing import ManualClock


class Seen(msgspec.Struct):
    k: str
    t: int


def told(metrics: Metrics) -> dict[str, OperatorMetrics]:
    return {each.label.split(",")[0].split(":")[0]: each for each in metrics.operators}


def counted(metrics: Metrics) -> dict[str, tuple[int, int]]:
    return {label: (each.records_in, each.records_out) for label, each in told(metrics).items()}


def pipeline() -> Pipeline:
    made = Pipeline("p")
    rows = made.source("in", time="t", disorder=10)
    windows = rows.key_by("k").window(tumbling(100)).agg(n=agg.count())
    windows.to("out")
    windows.late.to("late")
    rows.dead_letters.to("bad")
    return made


def test_each_record_is_counted_where_it_goes() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        times = [5, 150, 20, 30, 40, 250]  # three come after their window has closed
        store.append_many("in", [b'{"k":"a","t":%d}' % time for time in times])
        store.append_many("in", [b"bad", b'{"t":260}', b'{"k":"a"}'])
        metrics = pipeline().run(store, until="end")
    assert {
        "source in": (9, 7),
        "key_by 'k'": (7, 6),
        "window tumbling 100ms": (6, 2),
        "to out": (2, 0),
        "late rows": (3, 3),
        "to late": (3, 0),
        "dead letters": (3, 3),
        "to bad": (3, 0),
    } == counted(metrics)
    assert 3 == told(metrics)["window tumbling 100ms"].late


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_e32_rows_in_gaps_and_duplicates_are_skipped_and_not_late(
    state: StatePlace, columns: bool
) -> None:
    made = Pipeline("p", state=state)
    rows = made.source("in", type=Seen, time="t", disorder=100)
    keyed = rows.key_by("k")
    keyed.window(hopping(2, 5)).agg(n=agg.count()).to("out")
    keyed.window(hopping(2, 5)).agg(n=agg.count()).emit("update").to("out")
    rows.dedup("k", within=1000).to("out")
    with millstream.open(":memory:") as store:
        store.create_topic("in", **({"schema": Seen} if columns else {}))
        store.append_many("in", [b'{"k":"a","t":%d}' % time for time in range(7)])
        metrics = made.run(store, until="end")
    said = [(each.skipped, each.late) for each in metrics.operators]
    assert [(3, 0), (3, 0), (6, 0)] == sorted(each for each in said if each != (0, 0))


def test_each_operator_says_how_far_its_event_time_is_behind() -> None:
    made = Pipeline("p")
    slow = made.source("slow", time="t", disorder=10)
    fast = made.source("fast", time="t", disorder=20)
    fast.map(lambda row: row).to("copy")
    both = slow.merge(fast).key_by("k").window(tumbling(100)).agg(n=agg.count())
    both.to("out")

    with millstream.open(":memory:") as store:
        for topic in ("slow", "fast"):
            store.create_topic(topic)
        before = made.run(store, until="end")
        store.append("slow", b'{"k":"a","t":300}')
        store.append("fast", b'{"k":"a","t":1000}')
        metrics = made.run(store, until="end")

    def times(each: Metrics) -> dict[str, Any]:
        return {
            label: (one.watermark_ms, one.watermark_lag_ms) for label, one in told(each).items()
        }

    assert {(None, None)} == set(times(before).values())
    behind = (290, 710)
    assert {
        "source slow": (290, 10),
        "source fast": (980, 20),
        "map lambda()": (980, 20),
        "to copy": (980, 20),
        "merge": behind,
        "key_by 'k'": behind,
        "window tumbling 100ms": behind,
        "to out": behind,
    } == {label.split(" at ")[0]: each for label, each in times(metrics).items()}


def test_a_source_that_is_idle_holds_no_operator_back() -> None:
    made = Pipeline("p")
    slow = made.source("slow", time="t", idle=500)
    fast = made.source("fast", time="t")
    slow.merge(fast).key_by("k").window(tumbling(5000)).agg(n=agg.count()).to("out")
    clock = ManualClock(1_000)
    with millstream.open(":memory:", clock=clock) as store:
        for topic, time in (("slow", 300), ("fast", 1000)):
            store.create_topic(topic)
            store.append(topic, b'{"k":"a","t":%d}' % time)
        assert (300, 700) == window_time(made.run(store, until="end"))
        clock.advance(2_000)
        store.append("fast", b'{"k":"a","t":1200}')
        assert (1200, 0) == window_time(made.run(store, until="end", tick_ms=1))


def window_time(metrics: Metrics) -> tuple[int | None, int | None]:
    found = told(metrics)["window tumbling 5s"]
    return found.watermark_ms, found.watermark_lag_ms


def test_metrics_are_a_dict_that_becomes_json() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b'{"k":"a","t":1}')
        found = json.loads(json.dumps(asdict(pipeline().run(store, until="end"))))
    assert 1 == found["records_in"]
    assert "source in" == found["operators"][0]["label"].split(":")[0]
