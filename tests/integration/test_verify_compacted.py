"""`verify` where topics are compacted: what is gone is no difference, what is wrong is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import millstream
from millstream import Record, Store
from millstream.processor import Pipeline, agg, keep_checkpoint
from millstream.processor.replay_comparison import Compacted


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        opened.create_topic("orders")
        opened.create_topic("totals", compact=True)
        yield opened


def build(*, factor: int = 1, least: int = 0) -> Pipeline:
    pipeline = Pipeline("totals")
    orders = pipeline.source("orders").key_by("user").map(lambda order: order["n"] * factor)
    totals = orders.reduce(lambda so_far, n: so_far + n)
    totals.filter(lambda total: total > least).to("totals")
    return pipeline


def run(store: Store, *orders: tuple[str, int]) -> None:
    store.append_many("orders", [b'{"user":"%s","n":%d}' % (u.encode(), n) for u, n in orders])
    build().run(store, until="end")


def test_what_compaction_has_removed_is_no_difference(store: Store) -> None:
    run(store, ("ann", 1), ("bob", 2), ("ann", 3), ("ann", -4), ("cid", 5), ("cid", 1))
    assert build().verify(store).records_compared == 6
    store.compact("totals")
    found = build().verify(store)
    assert (found.ok, found.differences, found.skipped) == (True, [], [])
    assert found.records_compared == 3

    run(store, ("bob", 1), ("dan", 1))
    store.compact("totals")
    assert build().verify(store).ok


def test_what_is_replaced_while_verify_runs_is_no_difference(store: Store) -> None:
    run(store, ("ann", 1), ("bob", 2))
    store.append("totals", b"7", key=b"ann")  # behind what the pipeline has committed
    store.compact("totals")
    assert build().verify(store).ok


class Total(msgspec.Struct):
    user: str
    n: int


@pytest.mark.parametrize("values", ["columns", "json"])
@pytest.mark.parametrize("compact", [True, False])
def test_rows_of_a_declared_type_and_tombstones_are_no_difference(
    values: str, compact: bool
) -> None:
    def typed() -> Pipeline:
        pipeline = Pipeline("typed")
        orders = pipeline.source("orders").key_by("user")
        totals = orders.agg(n=agg.sum("n")).filter(lambda total: total.n > 0)
        totals.map(lambda total: {"user": total.key, "n": total.n}).to("rows")
        return pipeline

    with millstream.open(":memory:") as store:
        store.create_topic("orders")
        store.create_topic("rows", schema=Total, key="user", values=values, compact=compact)
        for user, n in [("ann", 1), ("bob", 2), ("ann", 3), ("ann", -4), ("cid", 5), ("cid", 1)]:
            store.append("orders", b'{"user":"%s","n":%d}' % (user.encode(), n))
        typed().run(store, until="end")
        assert typed().verify(store).ok
        if compact:
            store.compact("rows")
        found = typed().verify(store)
        assert (found.ok, found.differences, found.skipped) == (True, [], [])
        assert found.records_compared == (3 if compact else 6)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("kind", [str, int, bytes])
@pytest.mark.parametrize("values", ["columns", "json"])
def test_the_key_of_rows_without_one_is_that_of_the_declared_field(
    compact: bool, kind: Any, values: str
) -> None:
    def copied() -> Pipeline:
        pipeline = Pipeline("copied")
        pipeline.source("in").to("rows")
        return pipeline

    with millstream.open(":memory:") as store:
        store.create_topic("in")
        schema = msgspec.defstruct("Keyed", [("k", kind), ("n", int)])
        store.create_topic("rows", schema=schema, key="k", values=values, compact=compact)
        for n in range(6):
            key = b"%d" % (n % 2) if kind is bytes else kind(n % 2)
            store.append("in", msgspec.json.encode({"k": key, "n": n}))
        copied().run(store, until="end")
        if compact:
            store.compact("rows")
        found = copied().verify(store)
        assert (found.ok, found.records_compared) == (True, 2 if compact else 6)


def test_records_that_differ_are_found_in_a_topic_that_is_compacted(store: Store) -> None:
    run(store, ("ann", 1), ("bob", 2), ("ann", 3))
    store.compact("totals")

    found = build(factor=2).verify(store)
    assert not found.ok
    assert str(found.differences[0]) == (
        "totals/0: offset 1 holds key bob, value 2 at time"
        f" {found.differences[0].written.timestamp_ms}, the replay gives key bob, value 4 at time"  # type: ignore[union-attr]
        f" {found.differences[0].replayed.timestamp_ms}"  # type: ignore[union-attr]
    )


@pytest.mark.parametrize(
    ("written", "replayed", "later", "difference"),
    [
        ("b2 a3", "a1 b2 a3", "", None),
        ("b2", "a1 b2 a3", "", (None, "a3")),
        ("b2", "a1 b2 a3", "a", None),
        ("a1 b2", "a1 b2 a3", "", (None, "a3")),
        ("b2", "a1 b2 a-", "", None),
        ("b2 a1", "a1 b2 a1", "", None),  # two that say the same
        ("a1 b2", "a1 b2 a1", "", None),
        ("a1", "a1 b2 b- a1", "", None),
        ("a3 b2", "a1 b2 a3", "", ("b2", None)),
        ("b2 c9 a3", "a1 b2 a3", "", ("c9", None)),
    ],
)
def test_what_is_left_is_in_order_and_the_last_of_each_key_is_there(
    written: str, replayed: str, later: str, difference: object
) -> None:
    def records(text: str) -> Iterator[Record]:
        for at, each in enumerate(text.split()):
            value = None if each[1] == "-" else each[1].encode()
            yield Record("t", 0, at, 0, each[:1].encode(), value, ())

    def name(record: Record | None) -> str | None:
        return (
            None
            if record is None
            else (record.key or b"").decode() + (record.value or b"").decode()
        )

    compacted = Compacted(records(written), lambda: {later.encode()})
    for given in records(replayed):
        compacted.add(given)
    found = compacted.difference()
    assert difference == (found and (name(found[0]), name(found[1])))


def test_input_that_was_compacted_is_named_where_results_differ(store: Store) -> None:
    store.create_topic("prices", compact=True)

    def dear() -> Pipeline:
        pipeline = Pipeline("dear")
        pipeline.table("prices", type=int).filter(lambda price: price > 10).to("dear")
        return pipeline

    store.append_many("prices", [b"11", b"12"], keys=[b"tea", b"tea"])
    dear().run(store, until="end")
    epoch = keep_checkpoint(store, "dear")
    assert dear().verify(store).ok
    store.compact("prices")
    found = dear().verify(store)
    assert not found.ok
    assert "the input prices is compacted" in found.hint
    assert dear().verify(store, since=epoch).ok


def test_behind_a_position_the_last_of_each_key_is_compared(store: Store) -> None:
    run(store, ("ann", 1), ("bob", 2), ("cid", 1))
    run(store, ("ann", 2), ("dan", 4), ("dan", 1))
    store.append("totals", b"7", key=b"ann")  # behind what the pipeline has committed
    store.compact("totals")
    found = build().verify(store, start=3)
    assert (found.ok, found.skipped, found.records_compared) == (True, [], 1)
    assert build().verify(store, start=0).records_compared == 3

    found = build(factor=2).verify(store, start=3)
    (difference,) = found.differences
    assert (difference.written, difference.replayed) != (None, None)
    assert (difference.offset, difference.replayed and difference.replayed.value) == (5, b"10")
    assert build(least=2).verify(store, start=3).ok, "what is before may differ"
    assert not build(least=9).verify(store, start=0).ok


def test_behind_a_position_a_deleted_key_and_one_that_is_missing_are_told(store: Store) -> None:
    def deleting(last: int | None) -> Pipeline:
        pipeline = Pipeline("p")
        orders = pipeline.source("orders").key_by("user")
        orders.map(lambda order: order["n"] or last).to("totals")
        return pipeline

    for user, n in (("ann", 1), ("ann", 2), ("bob", 0)):
        store.append("orders", b'{"user":"%s","n":%d}' % (user.encode(), n))
    deleting(None).run(store, until="end")
    found = deleting(None).verify(store, start=1)
    assert (found.ok, found.records_compared) == (True, 2)
    found = deleting(3).verify(store, start=1)
    assert "holds key bob, value none" in str(found.differences[0])
