"""Live state over other sources, functions that are called otherwise, and aggregates added."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import Store, UsageError
from millstream.processor import (
    Aggregate,
    ChangedPlanError,
    Context,
    Pipeline,
    agg,
    col,
    counting,
    session,
    tumbling,
)
from millstream.processor.state_log import read_checkpoint
from millstream.testing import MemoryStorage, crash_cases

Row = dict[str, Any]


def line(time: int, key: str = "a", x: int = 1) -> bytes:
    return b'{"k":"%s","t":%d,"x":%d}' % (key.encode(), time, x)


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        for topic in ("orders", "refunds", "purchases"):
            opened.create_topic(topic)
        yield opened


def over(*topics: str, name: str = "w") -> Pipeline:
    """Windows over some topics, and a count beside them that stays as it is."""
    pipeline = Pipeline("shop")
    first, *others = [pipeline.source(topic, time="t") for topic in topics]
    both = first.merge(*others) if others else first
    both.key_by("k").window(tumbling(10), name=name).agg(n=agg.count(), x=agg.sum("x")).to("out")
    return pipeline


def results(store: Store, topic: str = "out") -> list[tuple[int, int, int]]:
    rows = [msgspec.json.decode(each.value or b"") for each in store.read(topic)]
    return [(row["window_start"], row["n"], row["x"]) for row in rows]


# --- sources -----------------------------------------------------------------------------------


def test_e63_a_source_that_is_added_needs_a_word(store: Store) -> None:
    store.append_many("orders", [line(1), line(12)])
    over("orders").run(store, until="end")
    assert [(0, 1, 1)] == results(store)
    store.append_many("refunds", [line(5, x=-1), line(15, x=-1), line(25, x=-1)])
    changed = over("orders", "refunds")

    with pytest.raises(ChangedPlanError, match=r"in source: orders -> orders \+ refunds") as caught:
        changed.run(store, until="end")
    assert (["w"], {}, []) == (caught.value.same, caught.value.rename, caught.value.drop)
    assert "state migrate MODULE:PIPELINE --same w\n" in str(caught.value)
    assert "migrate(store, same=['w'])" in str(caught.value)
    with pytest.raises(UsageError, match="sources or functions of 'w' read differently"):
        changed.migrate(store)

    done = changed.migrate(store, same=["w"])
    assert [("w", "carry")] == [(each.operator, each.action) for each in done.steps]
    assert ("refunds",) == done.new_inputs
    assert not changed.migrate(store, same=["w"]).changes
    store.append("orders", line(31))
    changed.run(store, until="end")
    # The first window has closed: its row of the other source is late, and it opens no second time.
    assert [(0, 1, 1), (10, 2, 0)] == results(store)


def test_a_source_that_is_removed_holds_nothing_back_any_more(store: Store) -> None:
    store.append_many("orders", [line(1), line(12), line(25)])
    store.append_many("refunds", [line(2, x=-1)])
    over("orders", "refunds").run(store, until="end")
    assert [] == results(store)
    done = over("orders").migrate(store, same=["w"])
    assert ("refunds",) == done.left_inputs
    store.append("orders", line(26))
    over("orders").run(store, until="end", on_end="flush")
    assert [(0, 2, 0), (10, 1, 1), (20, 2, 2)] == results(store)


def test_a_source_that_is_renamed_goes_on_with_its_time(store: Store) -> None:
    store.append_many("orders", [line(1), line(12), line(13)])
    over("orders", name="old").run(store, until="end")
    renamed = over("purchases", name="new")
    with pytest.raises(ChangedPlanError) as caught:
        renamed.run(store, until="end")
    assert ({"old": "new"}, ["new"]) == (caught.value.rename, caught.value.same)
    renamed.migrate(store, rename=caught.value.rename, same=caught.value.same)
    store.append_many("purchases", [line(3), line(14), line(20)])
    renamed.run(store, until="end")
    assert [(0, 1, 1), (10, 3, 3)] == results(store)
    with pytest.raises(UsageError, match="has no operator 'old'"):
        renamed.migrate(store, same=["old"])


def test_what_has_closed_does_not_open_again_by_a_source_that_is_behind(store: Store) -> None:
    def two(first: str, second: str) -> Pipeline:
        pipeline = Pipeline("shop")
        for topic, name in ((first, "w"), (second, "v")):
            keyed = pipeline.source(topic, time="t").key_by("k")
            keyed.window(tumbling(10), name=name).agg(n=agg.count(), x=agg.sum("x")).to(name)
        return pipeline

    store.append_many("orders", [line(1), line(50)])
    store.append_many("refunds", [line(2), line(12)])
    two("orders", "refunds").run(store, until="end")
    swapped = two("refunds", "orders")
    found = swapped.migrate(store, same=["w", "v"], dry_run=True)
    (refused,) = found.refused
    assert "w" == refused.operator
    assert "it has come to W 50, and refunds is at 12" in refused.reason
    with pytest.raises(UsageError, match="what has closed would open again"):
        swapped.migrate(store, same=["w", "v"])

    store.append("refunds", line(50))
    two("orders", "refunds").run(store, until="end")
    swapped.migrate(store, same=["w", "v"])
    store.append_many("orders", [line(60)])
    store.append_many("refunds", [line(61)])
    swapped.run(store, until="end")
    assert [(0, 1, 1), (50, 1, 1)] == results(store, "w")


def test_e64_a_topic_created_again_with_more_partitions_goes_on_if_one_says_so(
    store: Store,
) -> None:
    store.append_many("orders", [line(1), line(12), line(13, "b")])
    over("orders").run(store, until="end")
    store.delete_topic("orders")
    store.create_topic("orders", partitions=3)
    for partition, time in enumerate((3, 14, 15)):
        store.append("orders", line(time), partition=partition)
    with pytest.raises(UsageError, match=r"migrate\(store, same=\['orders'\]\)"):
        over("orders").run(store, until="end")
    assert not over("orders").migrate(store).changes
    found = over("orders").migrate(store, same=["orders"], dry_run=True)
    assert (True, ("orders",)) == (found.changes, found.recreated)
    over("orders").migrate(store, same=["orders"])
    assert not over("orders").migrate(store, same=["orders"]).changes
    over("orders").run(store, until="end", on_end="flush")
    assert [(0, 1, 1), (10, 3, 3), (10, 1, 1)] == results(store)


@pytest.mark.parametrize("batch_records", [1, None])
def test_e64_with_more_partitions_each_key_goes_on_with_its_state_and_in_its_order(
    store: Store, batch_records: int | None
) -> None:
    def gathered() -> Pipeline:
        pipeline = Pipeline("shop")
        keyed = pipeline.source("orders", time="t").key_by("k")
        keyed.agg(seen=agg.collect("x", limit=99)).to("out")
        return pipeline

    store.create_topic("out", partitions=3)
    expected: dict[str, list[int]] = {}

    def add(partitions: int) -> None:
        for _ in range(12):
            x = sum(map(len, expected.values()))
            key = "abcd"[x % 4]
            expected.setdefault(key, []).append(x)
            store.append("orders", line(x, key, x), partition=x // 2 % partitions)

    add(1)
    gathered().run(store, until="end", batch_records=batch_records)
    store.delete_topic("orders")
    store.create_topic("orders", partitions=3)
    add(3)
    gathered().migrate(store, same=["orders"])
    gathered().run(store, until="end", batch_records=batch_records, epoch_ms=0)
    places: dict[str, set[int]] = {}
    said: dict[str, list[list[int]]] = {}
    for record in store.read("out"):
        row = msgspec.json.decode(record.value or b"")
        places.setdefault(row["key"], set()).add(record.partition)
        said.setdefault(row["key"], []).append(row["seen"])
    assert {key: [xs[: n + 1] for n in range(6)] for key, xs in expected.items()} == said
    assert {1} == set(map(len, places.values())), "each key has its partition of the output"


# --- functions ---------------------------------------------------------------------------------


def key_of(row: Row) -> str:
    return str(row["k"])


def amount(row: Row) -> int:
    return int(row["x"])


def gather(seen: list[int], value: Any) -> list[int]:
    return [*seen, value]


def remember(context: Context[str, dict[str, int]], _: Row) -> Iterator[int]:
    context.state["n"] = context.state.get("n", 0) + 1
    yield context.state["n"]


def recall(context: Context[str, dict[str, int]], row: Row) -> Iterator[int]:
    yield from remember(context, row)


def every_function(
    key: Any, field: Any, step: Callable[[list[int], Any], list[int]], process: Any
) -> Pipeline:
    """All operators whose state is known by functions."""
    pipeline = Pipeline("shop")
    rows = pipeline.source("orders", time="t")
    keyed = rows.key_by(key)
    more = {"last": agg.last(field, by=field), "seen": agg.fold(list, step, field)}
    keyed.window(tumbling(100), name="w").agg(n=agg.count(), x=agg.sum(field), **more).to("out")
    keyed.agg(name="a", x=agg.max(field), **more).to("out")
    keyed.dedup(field, within=1000, name="d").to("out")
    keyed.process(process, state=dict, name="p").to("out")
    keyed.join(rows.key_by(key), within=5, name="j").to("out")
    table = pipeline.table("purchases", key=field, key_type=int, time="t")
    table.group_by(key, name="g").agg(x=agg.sum(field)).to("out")
    return pipeline


NAMED = (key_of, amount, gather, remember)
OTHERS = {
    "lambdas": (
        lambda row: row["k"],
        lambda row: row["x"],
        lambda seen, value: [*seen, value],
        lambda context, row: [*remember(context, row)],
    ),
    "fields": ("k", "x", lambda seen, value: [*seen, value], recall),
    "expressions": (col("k"), col("x"), lambda seen, value: [*seen, value], recall),
}


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("back", [False, True], ids=["from names", "to names"])
def test_functions_that_are_called_otherwise_go_on(others: str, back: bool) -> None:
    before, after = (OTHERS[others], NAMED) if back else (NAMED, OTHERS[others])
    rows = [line(number, "ab"[number % 2], number % 5) for number in range(60)]
    found = []
    for second in (before, after):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            store.create_topic("purchases")
            for topic in ("orders", "purchases"):
                store.append_many(topic, rows[:30])
            every_function(*before).run(store, until="end", epoch_ms=0)
            if second is after:
                with pytest.raises(ChangedPlanError) as caught:
                    every_function(*second).run(store, until="end")
                assert ({}, []) == (caught.value.rename, caught.value.drop)
                assert {"w", "a", "d", "p", "j", "g"} == set(caught.value.same)
                every_function(*second).migrate(store, same=caught.value.same)
            for topic in ("orders", "purchases"):
                store.append_many(topic, rows[30:])
            every_function(*second).run(store, until="end", on_end="flush")
            found.append([(each.key, each.value) for each in store.read("out")])
    assert found[0] == found[1]
    assert len(found[0]) > 150


@pytest.mark.parametrize(
    "changed",
    [
        lambda keyed: keyed.window(tumbling(20), name="w").agg(n=agg.count(), x=agg.sum("x")),
        lambda keyed: keyed.window(session(10), name="w").agg(n=agg.count(), x=agg.sum("x")),
        lambda keyed: keyed.window(tumbling(10), name="w").agg(n=agg.count(), x=agg.max("x")),
        lambda keyed: keyed.window(tumbling(10), name="w").agg(n=agg.count(), x=agg.sum("y")),
        lambda keyed: keyed.window(tumbling(10), name="w").agg(x=agg.sum("x")),
        lambda keyed: keyed.window(tumbling(10), name="w").agg(
            n=agg.count(), y=agg.max("y"), x=agg.sum(amount)
        ),
    ],
    ids=["size", "kind", "aggregate", "another field", "one less", "one more, one changed"],
)
def test_what_cannot_be_the_same_is_refused_whatever_one_says(store: Store, changed: Any) -> None:
    store.append_many("orders", [line(1)])
    over("orders").run(store, until="end")
    pipeline = Pipeline("shop")
    changed(pipeline.source("orders", time="t").key_by("k")).to("out")
    with pytest.raises(ChangedPlanError) as caught:
        pipeline.run(store, until="end")
    assert ([], ["w"]) == (caught.value.same, caught.value.drop)
    with pytest.raises(UsageError, match="means something else"):
        pipeline.migrate(store, same=["w"])


# --- aggregates --------------------------------------------------------------------------------


def every_aggregate(*, more: bool, state: Any = "memory") -> Pipeline:
    """All operators that aggregates can be added to."""
    pipeline = Pipeline("shop", state=state)
    keyed = pipeline.source("orders", time="t").key_by("k")
    aggregates: dict[str, Any] = {"n": agg.count(), "x": agg.sum("x")}
    if more:
        aggregates = {"most": agg.max("x"), **aggregates, "seen": agg.collect("x", limit=99)}
    keyed.window(tumbling(40), name="w").agg(**aggregates).to("w")
    keyed.window(tumbling(40), name="u").agg(**aggregates).emit("update", every=3).to("u")
    keyed.window(session(9), name="s").agg(**aggregates).to("s")
    keyed.window(counting(7), name="c").agg(**aggregates).to("c")
    keyed.agg(name="a", ttl=1000, **aggregates).to("a")
    return pipeline


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_e63_an_aggregate_that_is_added_begins_empty_and_says_so(state: str) -> None:
    rows = [line(number, "ab"[number % 2], number) for number in range(60)]
    found = []
    for more in (False, True):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            store.append_many("orders", rows[:30])
            every_aggregate(more=False, state=state).run(
                store, until="end", epoch_ms=0, batch_records=4
            )
            if more:
                changed = every_aggregate(more=True, state=state)
                with pytest.raises(ChangedPlanError, match=r"migrate\(store\)") as caught:
                    changed.run(store, until="end")
                assert ({}, [], []) == (caught.value.rename, caught.value.same, caught.value.drop)
                done = changed.migrate(store)
                assert {("carry", "most, seen begin empty")} == {
                    (each.action, each.reason) for each in done.steps
                }
                assert not changed.migrate(store).changes
            marks = {topic: store.offsets(topic)[0].end for topic in "wusca"}
            store.append_many("orders", rows[30:])
            every_aggregate(more=more, state=state).run(
                store, until="end", on_end="flush", epoch_ms=0, batch_records=4
            )
            found.append(
                {
                    topic: [
                        msgspec.json.decode(each.value or b"") for each in store.read(topic, mark)
                    ]
                    for topic, mark in marks.items()
                }
            )
    former, extended = found
    assert all(map(len, former.values()))
    for topic, results in extended.items():
        plain = [{k: v for k, v in row.items() if k not in {"most", "seen"}} for row in results]
        assert former[topic] == plain, topic
        for row in results:
            assert min(row["seen"], default=30) >= 30, "rows from before are not in it"
            assert row["most"] == max(row["seen"], default=None)
        assert any(row["n"] > len(row["seen"]) for row in results), topic


def test_an_aggregate_is_added_to_an_operator_that_is_renamed(store: Store) -> None:
    store.append_many("orders", [line(1), line(2)])
    over("orders").run(store, until="end")
    pipeline = Pipeline("shop")
    keyed = pipeline.source("orders", time="t").key_by("k")
    windows = keyed.window(tumbling(10), name="v")
    windows.agg(n=agg.count(), x=agg.sum("x"), y=agg.max("x")).to("out")
    (step,) = pipeline.migrate(store, rename={"w": "v"}).carried
    assert ("v", "y begins empty") == (step.operator, step.reason)
    assert [[2, 2, None]] == [each.value for each in pipeline.query(store, "v")]


class Squares(Aggregate[dict[str, Any], int, int]):
    """The sum of squares, as a user writes it."""

    def init(self) -> int:
        return 0

    def add(self, accumulator: int, value: dict[str, Any]) -> int:
        return accumulator + value["x"] ** 2

    def remove(self, accumulator: int, value: dict[str, Any]) -> int:
        return accumulator - value["x"] ** 2

    def result(self, accumulator: int) -> int:
        return accumulator


def groups(*, state: Any = "memory", **more: Any) -> Pipeline:
    """A table by the key of its records, grouped by a field of its rows."""
    pipeline = Pipeline("shop", state=state, state_cache_bytes="1MiB")
    table = pipeline.table("orders", time="t")
    table.group_by(key_of, name="g").agg(**{"n": agg.count(), "x": agg.sum("x"), **more}).to("out")
    return pipeline


def feed_table(store: Store, first: int, last: int, *, keys: int = 20, padding: str = "") -> None:
    """Rows that come, change, move to other groups and go."""
    chance = random.Random(first)
    for number in range(first, last):
        row = {"k": "abcdefgh"[chance.randrange(8)], "t": number, "x": chance.randrange(-9, 9)}
        gone = chance.random() < 0.2
        value = None if gone else msgspec.json.encode(row | {"padding": padding})
        store.append("orders", value, key=b"%d" % chance.randrange(keys), timestamp_ms=number)


ADDED: dict[str, Any] = {
    "mean": agg.mean("x"),
    "median": agg.quantile(0.5, "x"),
    "squares": Squares(),
    "some": agg.count("x"),
}


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_e63_an_aggregate_added_to_a_grouped_table_is_made_of_its_rows(state: str) -> None:
    """From the migration on results are those of a pipeline that always had it."""
    found = []
    for migrating in (True, False):
        with millstream.open(":memory:") as store:
            store.create_topic("orders")
            feed_table(store, 0, 300)
            begun = groups(state=state, **({} if migrating else ADDED))
            begun.run(store, until="end", batch_records=7, epoch_ms=0)
            changed = groups(state=state, **ADDED)
            if migrating:
                with pytest.raises(ChangedPlanError, match=r"migrate\(store\)"):
                    changed.run(store, until="end")
                reason = "mean, median, squares, some are made of the rows of the table"
                for dry_run in (True, False):
                    (step,) = changed.migrate(store, dry_run=dry_run).steps
                    assert ("g", "carry", reason) == (step.operator, step.action, step.reason)
                assert not changed.migrate(store).changes
            mark = store.offsets("out")[0].end
            feed_table(store, 300, 500)
            changed.run(store, until="end", batch_records=7, epoch_ms=0)
            kept = {each.path: each.value for each in changed.query(store, "g")}
            rows = store.read("out", mark)
            found.append(([(each.key, each.value, each.timestamp_ms) for each in rows], kept))
    assert found[0] == found[1]
    assert len(found[0][0]) > 150


def test_a_grouped_table_larger_than_memory_is_extended(store: Store) -> None:
    feed_table(store, 0, 3_000, keys=2_000, padding="x" * 1_000)
    groups(state="sqlite").run(store, until="end")
    changed = groups(state="sqlite", mean=agg.mean("x"))
    assert changed.migrate(store).changes
    sums: dict[str, list[int]] = {}
    for item in changed.query(store, "g"):
        if item.path[0] == "row":
            sums.setdefault(item.value[0][0], []).append(item.value[0][1]["x"])
    held = {
        item.path[1]: item.value[0]
        for item in changed.query(store, "g", None)
        if item.path[0] == "group"
    }
    assert {
        group: [len(xs), len(xs), sum(xs), [len(xs), sum(xs)]] for group, xs in sums.items()
    } == held


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"y": agg.sum("y")}, r"y cannot be made .* of that of key '1': TypeError: 0.5 cannot be"),
        ({"y": agg.mean("z")}, r"y cannot be made .* of that of key '1': KeyError: 'z'"),
    ],
)
def test_an_aggregate_that_rows_cannot_make_exactly_is_refused(
    store: Store, more: dict[str, Any], reason: str
) -> None:
    store.append("orders", b'{"k":"a","t":1,"x":1,"y":0.5}', key=b"1")
    groups().run(store, until="end")
    changed = groups(**more)
    (step,) = changed.migrate(store, dry_run=True).refused
    assert re.search(reason, step.reason)
    with pytest.raises(UsageError, match=reason):
        changed.migrate(store)
    assert 0 == groups().run(store, until="end").epochs
    changed.migrate(store, drop=["g"])


# --- crashes -----------------------------------------------------------------------------------


@pytest.mark.crash
def test_a_power_failure_on_the_way_leaves_the_one_or_the_other() -> None:
    def changed() -> Pipeline:
        pipeline = Pipeline("shop")
        orders = pipeline.source("orders", time="t")
        both = orders.merge(pipeline.source("refunds", time="t")).key_by(key_of)
        windows = both.window(tumbling(10), name="windows")
        windows.agg(n=agg.count(), x=agg.sum(amount)).to("out")
        return pipeline

    before = MemoryStorage()
    with open_quietly(before) as store:
        store.create_topic("orders")
        store.create_topic("refunds")
        store.append_many("orders", [line(1), line(12)])
        over("orders").run(store, until="end")
        store.append_many("refunds", [line(5, x=-1), line(15, x=-1), line(25, x=-1)])

    def start() -> MemoryStorage:
        return before.crash(keep="all")

    def migrate(store: Store) -> None:
        changed().migrate(store, rename={"w": "windows"}, same=["windows"])

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            migrate(store)
        finally:
            abandon(store) if storage.is_dead else store.close()

    seen = set()
    for case in crash_cases(work, start=start, seeds=(1,)):
        with open_quietly(case.storage) as store:
            checkpoint = read_checkpoint(store, "shop")
            (operator,) = checkpoint.operators
            seen.add(operator)
            assert {"w": {}, "windows": {"orders + refunds": 12}}[operator] == checkpoint.shared
            if operator == "w":
                over("orders").run(store, until="end")  # the former code goes on
            migrate(store)
            store.append("orders", line(31))
            changed().run(store, until="end")
            assert [(0, 1, 1), (10, 2, 0)] == results(store), case
    assert {"w", "windows"} == seen
