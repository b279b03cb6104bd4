"""The plan as a value: walked from outside, shipped elsewhere, named for state."""

from __future__ import annotations

import pickle  # noqa: TID251 - that a plan can be shipped is what is tested
from collections.abc import Callable

import pytest

from millstream import UsageError
from millstream.processor import Pipeline, Plan, agg, hopping, tumbling
from millstream.processor.nodes import FilterNode, KeyByNode, SinkNode, SourceNode, WindowNode
from millstream.processor.testkit import run_over_lists
from millstream.processor.windows import duration_text


def is_big(order: dict[str, int]) -> bool:
    return order["amount"] > 10


def user_of(order: dict[str, int]) -> int:
    return order["user"]


def shop() -> Pipeline:
    pipeline = Pipeline("shop")
    orders = pipeline.source("orders", time="ts", disorder="10s")
    big = orders.filter(is_big, name="big orders").key_by(user_of)
    big.window(tumbling("1m"), grace="5s").agg(n=agg.count()).to("totals")
    big.window(hopping("1h", "5m")).agg(most=agg.max("amount")).to("hourly")
    return pipeline


def test_the_plan_can_be_walked_from_outside() -> None:
    plan = shop().plan
    (source,) = plan.sources()
    assert isinstance(source, SourceNode)
    assert (source.topic, source.time, source.disorder_ms) == ("orders", "ts", 10_000)
    (big,) = plan.children(source.id)
    assert isinstance(big, FilterNode)
    assert (big.predicate, big.label) == (is_big, "big orders")
    (keyed,) = plan.children(big.id)
    assert isinstance(keyed, KeyByNode)
    assert keyed.key is user_of
    windows = [node for node in plan.children(keyed.id) if isinstance(node, WindowNode)]
    assert [(node.name, node.windows.size_ms, node.grace_ms) for node in windows] == [
        ("orders.window", 60_000, 5_000),
        ("orders.window-2", 3_600_000, 0),
    ]
    assert [node.topic for node in plan.sinks() if isinstance(node, SinkNode)] == [
        "totals",
        "hourly",
    ]


def test_the_plan_can_be_shipped_and_runs_there() -> None:
    plan = pickle.loads(pickle.dumps(shop().plan))
    assert isinstance(plan, Plan)
    assert plan.explain() == shop().explain()
    rows = [{"user": 1, "amount": amount, "ts": 5} for amount in (5, 20, 30)]
    assert run_over_lists(plan, {"orders": rows}) == shop().test({"orders": rows})


def test_identities_say_what_state_depends_on() -> None:
    assert shop().plan.identities() == {
        "orders.window": "source orders; key_by user_of; window tumbling 1m, grace 5s; agg"
        " n=count()",
        "orders.window-2": "source orders; key_by user_of; window hopping 1h every 5m, grace 0s;"
        " agg most=max('amount')",
    }


def test_a_lambda_is_known_by_the_names_it_uses() -> None:
    def identity_of(key: object) -> str:
        pipeline = Pipeline("p")
        keyed = pipeline.source("in").key_by(key)  # type: ignore[call-overload]  # any function
        keyed.window(tumbling(1)).agg(n=agg.count()).to("out")
        (identity,) = pipeline.plan.identities().values()
        return identity

    assert "key_by lambda(user)" in identity_of(lambda order: order.user)
    assert identity_of(lambda a: a.user) == identity_of(lambda b: b.user)
    assert identity_of(lambda a: a.user) != identity_of(lambda a: a.country)
    assert identity_of(lambda a: a["user"]) != identity_of(lambda a: a["country"])
    assert identity_of(lambda a: [a[k] for k in ("u", "v")]) != identity_of(
        lambda a: [a[k] for k in ("u", "w")]
    )

    def reads(field: str) -> Callable[[dict[str, str]], str]:
        return lambda row: row[field]

    assert identity_of(reads("user")) == identity_of(reads("user"))
    assert identity_of(reads("user")) != identity_of(reads("country"))


def test_a_flowchart_shows_labels_as_they_are() -> None:
    """Labels are HTML where Mermaid draws them, and its lines are those of a program."""
    pipeline = Pipeline("p")
    pipeline.source("in").filter(is_big, name='a "b" <i> & #1;\nc').to("out")
    assert pipeline.mermaid().splitlines() == [
        "flowchart TD",
        '  n0(["source in: dict, time record timestamp, disorder 0s"])',
        '  n1["a #quot;b#quot; #lt;i#gt; #amp; #35;1;<br/>c"]',
        "  n0 --> n1",
        '  n2(["to out"])',
        "  n1 --> n2",
    ]


def test_state_may_be_named() -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in").key_by("k")
    keyed.window(tumbling(1), name="mine").agg(n=agg.count()).to("out")
    assert list(pipeline.plan.identities()) == ["mine"]
    with pytest.raises(UsageError, match="two operators of 'p' are called 'mine'"):
        keyed.window(tumbling(1), name="mine").agg(n=agg.count())
    with pytest.raises(UsageError, match="a state name is"):
        keyed.window(tumbling(1), name="a/b").agg(n=agg.count())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0s"), (1, "1ms"), (1500, "1500ms"), (60_000, "1m"), (-3_600_000, "-1h")],
)
def test_durations_are_told_in_the_largest_whole_unit(value: int, text: str) -> None:
    assert duration_text(value) == text
