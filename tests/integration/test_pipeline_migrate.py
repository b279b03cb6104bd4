"""Live state and a changed plan: what is refused, what is carried over, and crashes on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import DataError, LockedError, Store, UsageError
from millstream.processor import (
    ChangedPlanError,
    Context,
    Migration,
    Pipeline,
    agg,
    counting,
    session,
    tumbling,
)
from millstream.processor.state_log import read_checkpoint
from millstream.testing import MemoryStorage, crash_cases


def lines(count: int, seed: int = 7, first: int = 0) -> list[bytes]:
    chance = random.Random(seed)
    return [
        b'{"k":"k%d","t":%d,"x":%d}' % (chance.randrange(4), first + number, chance.randrange(9))
        for number in range(count)
    ]


def shop(
    windows: str = "orders.window", kept: str = "orders.agg", *, dedup: bool = True
) -> Pipeline:
    """Windows, a table and, until it is removed, a dedup beside them."""
    pipeline = Pipeline("shop")
    keyed = pipeline.source("orders", time="t").key_by("k")
    keyed.window(tumbling(100), name=windows).agg(n=agg.count(), x=agg.sum("x")).to("windows")
    keyed.agg(name=kept, n=agg.count(), x=agg.sum("x")).to("table")
    if dedup:
        keyed.dedup("x", within=10_000).to("firsts")
    return pipeline


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        opened.create_topic("orders")
        yield opened


def values(store: Store, topic: str) -> list[tuple[bytes | None, bytes | None, int]]:
    return [(each.key, each.value, each.timestamp_ms) for each in store.read(topic)]


def feed(store: Store, pipeline: Pipeline, rows: list[bytes]) -> None:
    store.append_many("orders", rows)
    pipeline.run(store, until="end", batch_records=7, epoch_ms=0)


def actions(migration: Migration) -> list[tuple[str, str]]:
    return [(each.operator, each.action) for each in migration.steps]


# --- refusing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "function", "differs"),
    [
        ("x", agg.sum("x"), "+ source orders; key_by 'x'; window tumbling 100ms, "),
        ("k", agg.mean("x"), "; agg total=mean('x')"),
        ("k", agg.sum("t"), "; agg total=sum('t')"),
    ],
    ids=["key_by", "aggregate", "field"],
)
def test_e63_another_key_or_aggregate_over_live_state_is_refused_and_shown(
    store: Store, key: str, function: Any, differs: str
) -> None:
    def summed(key: str, function: Any) -> Pipeline:
        pipeline = Pipeline("p")
        keyed = pipeline.source("orders", time="t").key_by(key)
        keyed.window(tumbling(100)).agg(total=function).to("out")
        return pipeline

    feed(store, summed("k", agg.sum("x")), lines(50))
    with pytest.raises(UsageError) as caught:
        summed(key, function).run(store, until="end")
    assert "- source orders; key_by 'k'; window tumbling 100ms, " in str(caught.value)
    assert "; agg total=sum('x')" in str(caught.value)
    assert differs in str(caught.value)
    assert 0 == summed("k", agg.sum("x")).run(store, until="end").epochs, "nothing was changed"


def test_e63_the_refusal_says_the_command_that_goes_on(store: Store) -> None:
    feed(store, shop(), lines(50))
    with pytest.raises(ChangedPlanError) as caught:
        shop("hourly", dedup=False).run(store, until="end")
    assert {"orders.window": "hourly"} == caught.value.rename
    assert ["orders.dedup"] == caught.value.drop
    text = str(caught.value)
    assert "    + (no such operator)" in text
    assert (
        "\n  millstream state migrate MODULE:PIPELINE --rename orders.window=hourly"
        " --drop orders.dedup\n"
    ) in text
    assert "migrate(store, rename={'orders.window': 'hourly'}, drop=['orders.dedup'])" in text
    told = str(caught.value.told_for("app:shop"))
    assert "state migrate app:shop --rename" in told

    shop("hourly", dedup=False).migrate(store, rename=caught.value.rename, drop=caught.value.drop)
    shop("hourly", dedup=False).run(store, until="end")


def test_state_that_means_something_else_is_refused_until_it_is_dropped(store: Store) -> None:
    feed(store, shop(), lines(50))
    changed = Pipeline("shop")
    keyed = changed.source("orders", time="t").key_by("k")
    keyed.window(session(100), name="orders.window").agg(n=agg.count(), x=agg.sum("x")).to("out")
    before = store.checkpoint("pipeline/shop")

    found = changed.migrate(store, dry_run=True)
    assert [
        ("orders.window", "refuse"),
        ("orders.agg", "refuse"),
        ("orders.dedup", "refuse"),
    ] == actions(found)
    assert "means something else to 'orders.window' (was: source orders;" in found.refused[0].reason
    assert "the plan has no operator 'orders.agg'" in found.refused[1].reason
    with pytest.raises(UsageError, match=r"'orders.agg'.*'orders.dedup'.*drop"):
        changed.migrate(store, drop=["orders.window"])
    with pytest.raises(UsageError, match="means something else"):
        changed.migrate(
            store, rename={"orders.agg": "orders.window"}, drop=["orders.window", "orders.dedup"]
        )
    assert before == store.checkpoint("pipeline/shop")

    done = changed.migrate(store, drop=["orders.window", "orders.agg", "orders.dedup"])
    assert [
        ("orders.window", "drop"),
        ("orders.agg", "drop"),
        ("orders.dedup", "drop"),
        ("orders.window", "begin"),
    ] == actions(done)
    assert done.done
    feed(store, changed, lines(3, first=50))
    assert 3 == sum(item.value[3] for item in changed.query(store, "orders.window"))


def test_names_that_do_not_fit_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="has never run here"):
        shop().migrate(store)
    feed(store, shop(), lines(5))
    with pytest.raises(UsageError, match=r"has no operator 'orders\.windov' to carry"):
        shop().migrate(store, rename={"orders.window": "orders.windov"})
    with pytest.raises(UsageError, match="two operators cannot be renamed to one"):
        shop("a").migrate(store, rename={"orders.window": "a", "orders.agg": "a"})
    assert ("x",) == shop().migrate(store, drop=["x"]).unknown
    with store.own("pipeline/shop"), pytest.raises(LockedError, match="is run by process"):
        shop("a").migrate(store, rename={"orders.window": "a"})


def test_a_dry_run_writes_nothing_and_reads_a_pipeline_that_runs(store: Store) -> None:
    feed(store, shop(), lines(50))
    before = store.checkpoint("pipeline/shop"), [each.name for each in store.topics(internal=True)]
    with store.own("pipeline/shop"):
        found = shop("w").migrate(store, rename={"orders.window": "w"}, dry_run=True)
    assert [("w", "carry"), ("orders.agg", "keep"), ("orders.dedup", "keep")] == actions(found)
    assert not found.done
    after = store.checkpoint("pipeline/shop"), [each.name for each in store.topics(internal=True)]
    assert before == after


# --- carrying over -----------------------------------------------------------------------------


def test_renamed_state_goes_on_as_if_nothing_had_happened(store: Store) -> None:
    rows = lines(400)
    feed(store, shop(), rows[:250])
    renamed = shop("w", "t")
    done = renamed.migrate(store, rename={"orders.window": "w", "orders.agg": "t"})
    assert [("w", "carry"), ("t", "carry"), ("orders.dedup", "keep")] == actions(done)
    feed(store, renamed, rows[250:])

    with millstream.open(":memory:") as other:
        other.create_topic("orders")
        feed(other, shop(), rows)
        for topic in ("windows", "table", "firsts"):
            assert values(other, topic) == values(store, topic)
    states = {each.name for each in store.topics(internal=True) if each.name.startswith("@state")}
    assert {"@state/shop/w", "@state/shop/t", "@state/shop/orders.dedup"} == states


def test_two_operators_can_change_their_names(store: Store) -> None:
    def pair(first: str, second: str) -> Pipeline:
        pipeline = Pipeline("pair")
        keyed = pipeline.source("orders", time="t").key_by("k")
        keyed.agg(name=first, n=agg.count()).to("counts")
        keyed.agg(name=second, x=agg.sum("x")).to("sums")
        return pipeline

    rows = lines(100)
    feed(store, pair("a", "b"), rows[:50])
    swap = {"a": "b", "b": "a"}
    pair("b", "a").migrate(store, rename=swap)
    assert not pair("b", "a").migrate(store, rename=swap).changes
    feed(store, pair("b", "a"), rows[50:])

    with millstream.open(":memory:") as other:
        other.create_topic("orders")
        feed(other, pair("a", "b"), rows)
        assert values(other, "counts") == values(store, "counts")
        assert values(other, "sums") == values(store, "sums")


def test_a_second_migration_does_nothing(store: Store) -> None:
    rename, drop = {"orders.window": "w"}, ["orders.dedup"]
    changed = shop("w", dedup=False)
    feed(store, shop(), lines(50))
    first = changed.migrate(store, rename=rename, drop=drop)
    before = store.checkpoint("pipeline/shop")
    second = changed.migrate(store, rename=rename, drop=drop)

    assert (True, False) == (first.changes, second.changes)
    assert ("orders.window", "orders.dedup") == second.unknown
    assert before == store.checkpoint("pipeline/shop")
    feed(store, changed, lines(50, first=50))
    assert not changed.migrate(store, rename=rename, drop=drop).changes


def test_an_operator_put_before_one_that_is_the_same_takes_its_name_not_its_state(
    store: Store,
) -> None:
    """The names count up, so the old operator has a new one, and the new operator has its own."""

    def counts(*topics: str) -> Pipeline:
        pipeline = Pipeline("counts")
        source = pipeline.source("orders", time="t")
        for topic in topics:
            source.key_by("k").count().to(topic)
        return pipeline

    feed(store, counts("old"), lines(30))
    rename = {"orders.count": "orders.count-2"}
    changed = counts("new", "old")
    assert [("orders.count-2", "carry"), ("orders.count", "begin")] == actions(
        changed.migrate(store, rename=rename)
    )
    feed(store, changed, lines(30, first=30))
    assert not changed.migrate(store, rename=rename).changes
    assert 60 == sum(item.value[0] for item in changed.query(store, "orders.count-2"))
    assert 30 == sum(item.value[0] for item in changed.query(store, "orders.count"))


def remember(context: Context[str, dict[str, int]], row: dict[str, Any]) -> Iterator[int]:
    context.state["n"] = context.state.get("n", 0) + 1
    yield context.state["n"]


def every_kind(suffix: str, result: str = "n") -> Pipeline:
    """An operator of every kind with state, with names of its own."""
    pipeline = Pipeline("every")
    rows = pipeline.source("orders", time="t")
    keyed = rows.key_by("k")
    other = pipeline.source("others", time="t").key_by("k")
    count = {result: agg.count(), "x": agg.sum("x")}
    keyed.window(tumbling(100), name=f"w{suffix}").agg(**count).to("out")
    updates = keyed.window(tumbling(100), name=f"u{suffix}").agg(**count).emit("update", every=2)
    updates.to("out")
    keyed.window(session(30), name=f"s{suffix}").agg(**count).to("out")
    keyed.window(counting(7), name=f"c{suffix}").agg(**count).to("out")
    keyed.agg(name=f"a{suffix}", **count).to("out")
    keyed.dedup("x", within=1000, name=f"d{suffix}").to("out")
    keyed.process(remember, state=dict, name=f"p{suffix}").to("out")
    keyed.join(other, within=50, name=f"j{suffix}").to("out")
    keyed.join_asof(other, name=f"n{suffix}").to("out")
    table = pipeline.table("prices", time="t")
    keyed.join_table(table, name=f"t{suffix}").to("out")
    table.group_by(lambda price: price["k"], name=f"g{suffix}").agg(**count).to("out")
    return pipeline


def live(store: Store, pipeline: Pipeline, first: int) -> None:
    for number, line in enumerate(lines(60, seed=first, first=first)):
        store.append(("orders", "others", "prices")[number % 3], line, key=b"k%d" % (number % 4))
    pipeline.run(store, until="end", batch_records=5, epoch_ms=0)


def test_state_of_every_kind_of_operator_is_carried_over() -> None:
    found = []
    for migrating in (True, False):
        with millstream.open(":memory:") as store:
            for topic in ("orders", "others", "prices"):
                store.create_topic(topic)
            live(store, every_kind(""), 0)
            if migrating:
                renamed = every_kind("-2")
                plan = renamed.plan
                rename = {name.removesuffix("-2"): name for name in plan.identities()}
                done = renamed.migrate(store, rename=rename)
                assert {"carry"} == {step.action for step in done.steps}
                assert 11 == len(done.steps)
                live(store, renamed, 60)
            else:
                live(store, every_kind(""), 60)
            found.append(values(store, "out"))
    assert found[0] == found[1]
    assert len(found[0]) > 300


def test_results_may_get_other_names() -> None:
    with millstream.open(":memory:") as store:
        for topic in ("orders", "others", "prices"):
            store.create_topic(topic)
        live(store, every_kind(""), 0)
        changed = every_kind("", "many")
        with pytest.raises(ChangedPlanError, match=r"migrate\(store\)"):
            changed.run(store, until="end")
        done = changed.migrate(store)
        carried = [step.operator for step in done.steps if step.action == "carry"]
        assert ["w", "u", "s", "c", "a", "g"] == carried
        assert "results of other names" == done.steps[0].reason
        end = store.offsets("out")[0].end
        live(store, changed, 60)
        after = [record.value or b"" for record in store.read("out", end)]
        assert [] == [value for value in after if b'"n":' in value]
        assert any(b'"many":' in value for value in after)


def test_sources_that_come_and_go_are_told(store: Store) -> None:
    store.create_topic("refunds")
    feed(store, shop(), lines(10))

    def changed() -> Pipeline:
        pipeline = Pipeline("shop")
        pipeline.source("refunds", time="t").key_by("k").count().to("refunded")
        return pipeline

    store.append("refunds", lines(1)[0])
    drop = ["orders.window", "orders.agg", "orders.dedup"]
    done = changed().migrate(store, drop=drop)
    assert (("refunds",), ("orders",)) == (done.new_inputs, done.left_inputs)
    changed().run(store, until="end")
    assert 1 == len(values(store, "refunded"))


# --- what is gone stays gone -------------------------------------------------------------------


def test_state_that_was_dropped_does_not_come_back_with_the_operator(store: Store) -> None:
    feed(store, shop(), lines(50))
    shop(dedup=False).migrate(store, drop=["orders.dedup"])
    feed(store, shop(dedup=False), lines(10, first=50))
    firsts = len(values(store, "firsts"))
    feed(store, shop(), lines(20, first=60))
    again = values(store, "firsts")[firsts:]
    keys = [key for key, _, _ in again]
    assert set(keys) == {b"k0", b"k1", b"k2", b"k3"}, "each key has a first one again"


def test_dead_state_of_another_kind_of_operator_is_never_read_again(store: Store) -> None:
    """A plan may change over dead state; its records are still in the topic of that name."""

    def either(windows: Any) -> Pipeline:
        pipeline = Pipeline("either")
        keyed = pipeline.source("orders", time="t").key_by("k")
        keyed.window(windows, name="w").agg(n=agg.count()).to("out")
        return pipeline

    store.append_many("orders", lines(250))
    either(tumbling(100)).run(store, until="end", epoch_ms=0, batch_records=40)
    either(tumbling(100)).run(store, until="end", on_end="flush")
    for first in (1000, 1010, 1020):
        feed(store, either(session(500)), lines(10, first=first))
    assert 30 == sum(item.value[3] for item in either(session(500)).query(store, "w"))


def test_state_whose_topic_was_deleted_is_not_carried_over(store: Store) -> None:
    feed(store, shop(), lines(50))
    store.delete_topic("@state/shop/orders.window")
    store.create_topic("@state/shop/orders.window")
    with pytest.raises(DataError, match="was deleted with its topic") as caught:
        shop("w").migrate(store, rename={"orders.window": "w"})
    assert "@state/shop/orders.window" == caught.value.topic


# --- crashes -----------------------------------------------------------------------------------


@pytest.mark.crash
def test_a_power_failure_at_any_operation_leaves_the_one_or_the_other() -> None:
    rows = lines(20) + lines(10, first=95)  # those close the windows of the first ones
    rename, drop = {"orders.window": "w", "orders.agg": "t"}, ["orders.dedup"]
    before = MemoryStorage()
    with open_quietly(before) as store:
        store.create_topic("orders")
        feed(store, shop(), rows[:20])

    def start() -> MemoryStorage:
        return before.crash(keep="all")

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            shop("w", "t", dedup=False).migrate(store, rename=rename, drop=drop)
        finally:
            abandon(store) if storage.is_dead else store.close()

    def outcome(store: Store) -> list[Any]:
        changed = shop("w", "t", dedup=False)
        changed.migrate(store, rename=rename, drop=drop)
        store.append_many("orders", rows[20:])
        changed.run(store, until="end")
        states = sorted(
            each.name for each in store.topics(internal=True) if each.name.startswith("@state")
        )
        return [values(store, topic) for topic in ("windows", "table", "firsts")] + [states]

    with open_quietly(start()) as store:
        expected = outcome(store)
    assert ["@state/shop/t", "@state/shop/w"] == expected[-1]
    assert 4 == len(expected[0])
    seen = set()
    for case in crash_cases(work, start=start, seeds=(1,)):
        with open_quietly(case.storage) as store:
            operators = frozenset(read_checkpoint(store, "shop").operators)
            seen.add(operators)
            if "w" not in operators:
                shop().run(store, until="end")  # the former code goes on
            assert expected == outcome(store), case
    assert {
        frozenset({"orders.window", "orders.agg", "orders.dedup"}),
        frozenset({"w", "t"}),
    } == seen


# --- aggregates in another order ---------------------------------------------------------------


def two_aggregates(order: int, state: Any) -> Pipeline:
    """All operators with aggregates, of which one began later than the other."""
    pipeline = Pipeline("shop", state=state)
    rows = pipeline.source("orders", time="t")
    keyed = rows.key_by("k")
    both = {"x": agg.sum("x"), "y": agg.sum("x"), "n": agg.count()}
    aggregates: dict[str, Any] = dict(list(both.items())[::order])
    keyed.window(tumbling(40), name="w").agg(**aggregates).to("w")
    keyed.window(session(9), name="s").agg(**aggregates).to("s")
    keyed.window(counting(7), name="c").agg(**aggregates).to("c")
    keyed.agg(name="a", ttl=1000, **aggregates).to("a")
    table = keyed.reduce(lambda _, row: row)
    table.group_by("x", name="g").agg(**aggregates).to("g")
    return pipeline


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_e63_aggregates_in_another_order_go_on_under_their_names(state: str) -> None:
    rows = lines(60)
    found = []
    for order in (1, -1):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            store.append_many("orders", rows[:30])
            two_aggregates(1, state).run(store, until="end", epoch_ms=0, batch_records=4)
            changed = two_aggregates(order, state)
            if order < 0:
                with pytest.raises(ChangedPlanError, match=r"migrate\(store\)") as caught:
                    changed.run(store, until="end")
                assert ({}, [], []) == (caught.value.rename, caught.value.same, caught.value.drop)
                done = changed.migrate(store)
                assert {("carry", "results in another order")} == {
                    (each.action, each.reason) for each in done.steps if each.operator in "wscag"
                }
                assert not changed.migrate(store).changes
            store.append_many("orders", rows[30:])
            changed.run(store, until="end", on_end="flush", epoch_ms=0, batch_records=4)
            found.append(
                {
                    topic: [msgspec.json.decode(each.value or b"{}") for each in store.read(topic)]
                    for topic in "wscag"
                }
            )
    assert found[0] == found[1]
    assert all(map(len, found[0].values()))


def test_e63_of_equal_aggregates_in_another_order_each_keeps_what_it_has(store: Store) -> None:
    """One began later than the other: their names tell them apart, not their places."""

    def counted(*names: str) -> Pipeline:
        pipeline = Pipeline("shop")
        keyed = pipeline.source("orders", time="t").key_by("k")
        keyed.agg(name="a", **{name: agg.count() for name in names}).to("out")
        return pipeline

    for number, names in enumerate((["all"], ["all", "later"], ["later", "all"])):
        if number:
            counted(*names).migrate(store)
        store.append("orders", b'{"k":"a","t":%d}' % number)
        counted(*names).run(store, until="end")
    counts = [msgspec.json.decode(each.value or b"") for each in store.read("out")]
    assert [(1, None), (2, 1), (3, 2)] == [(each["all"], each.get("later")) for each in counts]


def test_a_result_that_took_the_place_of_an_equal_one_does_not_take_its_number(
    store: Store,
) -> None:
    def counting_rows(**aggregates: Any) -> Pipeline:
        pipeline = Pipeline("shop")
        pipeline.source("orders").key_by("k").agg(name="a", **aggregates).to("a")
        return pipeline

    count, total = agg.count(), agg.sum("x")
    store.append_many("orders", lines(5))
    counting_rows(n=count, m=count, t=total).run(store, until="end")
    changed = counting_rows(m=count, k=count, t=total)
    assert ["refuse"] == [each.action for each in changed.migrate(store, dry_run=True).steps]
    with pytest.raises(ChangedPlanError) as caught:
        changed.run(store, until="end")
    assert ["a"] == caught.value.drop
    for names in ("kmt", "kjt", "nmx", "tmn"):
        given = dict(zip(names, (count, count, total), strict=True))
        done = counting_rows(**given).migrate(store, dry_run=True)
        assert [("carry", "results of other names")] == [(e.action, e.reason) for e in done.steps]
