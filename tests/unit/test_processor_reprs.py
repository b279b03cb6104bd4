"""What is looked at in a notebook or a debugger says what it is, in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import millstream
from millstream.processor import (
    Context,
    Deliverer,
    Ingestor,
    Pipeline,
    agg,
    col,
    from_iterable,
    jsonl_files,
    to_jsonl,
    to_stdout,
    tumbling,
    when,
)

if TYPE_CHECKING:
    import pytest


def shop() -> Pipeline:
    pipeline = Pipeline("shop")
    orders = pipeline.source("orders", time="ts")
    totals = orders.key_by("user").window(tumbling("1m")).agg(total=agg.sum("amount"))
    totals.to("totals")
    totals.late.to("late")
    return pipeline


def test_streams_and_tables_say_where_they_are_in_the_plan() -> None:
    pipeline = Pipeline("shop")
    orders = pipeline.source("orders", time="ts")
    keyed = orders.key_by("user")
    rates = pipeline.table("rates", key="from")

    assert [
        "<SourceStream source orders: dict, time 'ts', disorder 0s>",
        "<DeadLetters of source orders: dict, time 'ts', disorder 0s>",
        "<WindowedStream key_by 'user', tumbling 1m>",
        "<Table count()>",
        "<SourceTable table by 'from'>",
        "<GroupedTable table by 'from', group_by 'to'>",
    ] == [
        repr(each)
        for each in (
            orders,
            orders.dead_letters,
            keyed.window(tumbling("1m")),
            keyed.count(),
            rates,
            rates.group_by("to"),
        )
    ]


def test_a_condition_that_waits_says_what_it_is() -> None:
    assert repr(when(col("n") > 1)) == "<Condition n > 1>"


def test_a_plan_says_what_it_reads_and_writes() -> None:
    assert repr(shop().plan) == "<Plan shop: orders -> totals, late>"


def test_metrics_of_a_run_are_a_line_and_those_of_operators_are_in_a_field() -> None:
    with millstream.open() as store:
        store.create_topic("orders")
        metrics = shop().run(store, until="end")

    assert repr(metrics).startswith("Metrics(epochs=0, records_in=0, records_out=0, late=0,")
    assert "OperatorMetrics" not in repr(metrics)
    assert metrics.operators[2].label.startswith("window tumbling 1m")


def test_a_driver_says_whose_it_is_and_whether_it_has_crashed() -> None:
    with shop().driver(start_ms=5) as driver:
        assert repr(driver) == "<Driver shop, wall clock 5 ms>"
        driver.crash()
        assert repr(driver) == "<Driver shop, wall clock 5 ms crashed>"


def test_a_process_function_can_print_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    def show(context: Context[str, list[int]], order: dict[str, Any]) -> None:
        context.state.append(order["ts"])
        print(context)  # noqa: T201 - what users do

    pipeline = Pipeline("shop")
    keyed = pipeline.source("orders", time="ts").key_by("user")
    keyed.process(show, state=list).to("nothing")
    pipeline.test({"orders": [{"user": "ann", "ts": 7}]})

    expected = "<Context key='ann', time_ms=7, watermark_ms=None, state=[7]>\n"
    assert expected == capsys.readouterr().out


def test_sources_and_sinks_show_what_they_were_given_alone() -> None:
    source, sink = jsonl_files("in/*.jsonl"), to_jsonl("out")
    with millstream.open() as store:
        with Ingestor(store, "shop", from_iterable([1], name="numbers")) as ingestor:
            assert repr(ingestor) == f"<Ingestor {ingestor.topic}>"
        with Deliverer(store, "shop", to_stdout()) as deliverer:
            assert repr(deliverer) == f"<Deliverer {deliverer.topic}>"

    assert " object at 0x" not in repr(source) + repr(sink)
