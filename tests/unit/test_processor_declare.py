"""What cannot work is refused where it is declared, by the words of the mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec
import pytest

import millstream
from millstream import MissingExtraError, UsageError
from millstream.processor import (
    ChangedPlanError,
    Pipeline,
    SourceStream,
    agg,
    col,
    tumbling,
)


class Order(msgspec.Struct):
    user: str
    amount: float
    at: datetime
    until: datetime | None = None
    price: Decimal | None = None


START = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda s: s.map("upper"), r"map\(\) takes a function, not 'upper'"),
        (lambda s: s.flat_map(None), r"flat_map\(\) takes a function"),
        (lambda s: s.filter(True), r"filter\(\) takes a function, not True"),
        (lambda s: s.key_by("k").map(1), r"map\(\) takes a function, not 1"),
        (lambda s: s.key_by(["a", "b"]), r"a field name or a function, .* as a tuple"),
        (lambda s: s.key_by(None), r"key_by\(\) takes a field name or a function"),
        (
            lambda s: s.key_by("k").window("1m"),
            r"window\(\) takes tumbling\(...\), .* or counting\(...\), not '1m'",
        ),
        (
            lambda s: s.key_by("k").window(tumbling(1)).agg(n=agg.count),
            r"n must be an aggregate such as agg.count\(\)",
        ),
        (
            lambda s: s.key_by("k").window(tumbling(1)).agg(agg.count()),  # type: ignore[arg-type]  # the point
            r"agg\(\) takes aggregates by name, such as n=agg.count\(\); <Aggregate count\(\)> has",
        ),
        (lambda s: s.key_by("k").agg({"n": agg.count()}), r"by name, .*; \{'n': .*\} has no name"),  # type: ignore[arg-type]  # the point
        (
            lambda s: s.key_by("k").count().group_by("k").agg(agg.count(), n=agg.count()),  # type: ignore[arg-type]  # the point
            r"agg\(\) takes aggregates by name",
        ),
        (lambda s: s.with_columns(col("a") + 1), r"with_columns\(\) takes expressions by name"),  # type: ignore[arg-type]  # the point
        (lambda s: s.key_by("k").with_columns("a"), r"expressions by name, .*; 'a' has no name"),  # type: ignore[arg-type]  # the point
        (
            lambda s: s.branch(bool),
            r"branch\(\) takes predicates by name, such as branch\(big=...\)",
        ),  # type: ignore[arg-type]  # the point
        (
            lambda s: s.key_by("a", "b"),
            r"one field or function, and got \('a', 'b'\): .* as a tuple",
        ),  # type: ignore[call-overload]  # the point
        (
            lambda s: s.key_by("k").window(tumbling(1)).agg(n=agg.Sum(5)),  # type: ignore[arg-type]  # the point
            "agg n takes a field name or a function, not 5",
        ),
        (lambda s: s.to("two words"), "'two words' is not a topic name"),
        (lambda s: s.filter(col("amnt") > 5), r"filter: Order has no field 'amnt'; it has user, a"),
        (lambda s: s.map(col("amnt") * 2), "map: Order has no field 'amnt'"),
        (lambda s: s.key_by(col("usr").upper()), "key_by: Order has no field 'usr'"),
        (lambda s: s.branch(big=col("amnt") > 5), "branch big: Order has no field 'amnt'"),
        (lambda s: s.dedup(col("id"), within=1), "dedup: Order has no field 'id'"),
        (
            lambda s: s.key_by("user").agg(top=agg.max("amount"), t=agg.sum(col("amnt") + 1)),
            "agg t: Order has no field 'amnt'",
        ),
        (
            lambda s: s.filter(col("at") == START),
            r"filter: at == 0: 'at' is a datetime, .* write col\('at'\).parse_time\(\)",
        ),
        (lambda s: s.key_by(1000 < col("until")), "key_by: until > 1000: 'until' is a datetime"),
        (
            lambda s: s.with_columns(b=col("at") - timedelta(days=1)),
            "with_columns b: at - 86400000: 'at' is a datetime",
        ),
        (
            lambda s: s.filter((col("user") == "a") & col("until").is_in([START])),
            r"filter: until in \(0\): 'until' is a datetime",
        ),
        (
            lambda s: s.select(gross=col("price") * 1.19),
            r"select gross: price \* 1.19: Python does not compute a Decimal with a float",
        ),
        (
            lambda s: s.map(col("amount") - col("price")),
            r"map: amount - price: Python does not compute a Decimal",
        ),
        (lambda s: s.to("@state/p/in.window"), "is not a topic name"),
        (lambda s: s.dead_letters.to(""), "'' is not a topic name"),
    ],
)
def test_a_mistake_is_told_at_once(
    declare: Callable[[SourceStream[Any]], object], message: str
) -> None:
    kind: Any = (
        Order if "Order" in message or "datetime" in message or "Decimal" in message else dict
    )
    source = Pipeline("p").source("in", type=kind)
    with pytest.raises(UsageError, match=message):
        declare(source)


def test_what_a_stream_lacks_is_said_with_what_comes_before_it() -> None:
    source = Pipeline("p").source("in", type=Order)
    for name in ("window", "count", "reduce", "fold", "agg", "process", "join", "join_table"):
        assert hasattr(source.key_by("user"), name)
        with pytest.raises(
            AttributeError, match=rf"'SourceStream' .* call key_by\(\) before {name}"
        ):
            getattr(source, name)
    windowed = source.key_by("user").window(tumbling("1m"))
    for name in ("to", "emit", "late", "map"):
        with pytest.raises(AttributeError, match=rf"call agg\(\) before {name}\(\)"):
            getattr(windowed, name)
    for each in (source, source.key_by("user"), windowed):
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
            getattr(each, "nothing")  # noqa: B009 - the point
    assert "<WindowedStream key_by 'user', tumbling 1m>" == repr(windowed)
    assert "<Aggregate sum('amount')>" == repr(agg.sum("amount"))


def test_a_source_takes_a_topic_and_a_way_to_the_time() -> None:
    with pytest.raises(UsageError, match="'a/b' is not a topic name"):
        Pipeline("p").source("a/b")
    with pytest.raises(UsageError, match="source in: time takes a field name or a function"):
        Pipeline("p").source("in", time=5)  # type: ignore[call-overload]  # the point


def test_times_are_compared_with_constants_as_milliseconds() -> None:
    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order)
    orders.filter(col("at").parse_time() > START).select("user", same=col("at") == col("until")).to(
        "out"
    )
    rows = [Order("a", 1, START), Order("b", 2, START + timedelta(seconds=1), START)]
    assert [{"user": "b", "same": False}] == pipeline.test({"in": rows})["out"]


@pytest.mark.parametrize(
    ("package", "extra", "declare"),
    [
        ("ddsketch", "quantile", lambda _: agg.quantile(0.5, "amount", error=0.0625)),
        ("pyarrow", "arrow", lambda s: s.map_batch(list, columns=True)),
        ("numpy", "arrow", lambda s: s.map_batch(list, columns=True)),
    ],
)
def test_a_missing_extra_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    declare: Callable[[SourceStream[Any]], object],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    told = rf"needs the package {package}: pip install 'millstream\[{extra}\]'"
    with pytest.raises(MissingExtraError, match=told):
        declare(Pipeline("p").source("in"))


def scaled(row: dict[str, int], field: str, by: float = 1, then: object = None) -> float:
    return row[field] * by


def summing(function: Callable[[Any], float]) -> Pipeline:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t")
    rows.key_by("k").window(tumbling("1m")).agg(s=agg.sum(function)).to("out")
    return pipeline


def test_partials_are_called_by_what_they_were_given_but_by_nothing_that_changes() -> None:
    given = partial(scaled, field="a", by=2.5, then=(scaled, [Order, object()]))
    text = summing(given).explain()
    assert "s=sum(partial(scaled, by=2.5, field='a', then=(scaled, (Order, object))))" in text
    assert (
        text
        == summing(partial(scaled, then=(scaled, [Order, object()]), by=2.5, field="a")).explain()
    )


def test_state_of_another_partial_is_refused_until_it_is_said_to_mean_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b'{"k":"x","t":1,"a":1,"b":5}')
        with monkeypatch.context() as early:
            early.setattr("millstream.processor.fields.partial", type("Never", (), {}))
            summing(partial(scaled, field="a")).run(store, until="end")
        with pytest.raises(
            ChangedPlanError, match=r"sum\(partial\(scaled, field='a'\)\)"
        ) as caught:
            summing(partial(scaled, field="a")).run(store, until="end")
        assert ["in.window"] == caught.value.same
        summing(partial(scaled, field="a")).migrate(store, same=["in.window"])
        summing(partial(scaled, field="a")).run(store, until="end")

        with pytest.raises(ChangedPlanError, match=r"partial\(scaled, field='b'\)"):
            summing(partial(scaled, field="b")).run(store, until="end")
