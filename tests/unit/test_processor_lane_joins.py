"""Joins with tables and as of a time, on columns: the pairs of rows, with the stream in columns."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pytest

import millstream
from millstream import Store
from millstream.processor import Joined, Pipeline, agg, col, tumbling
from millstream.processor.asof_join import AsofJoinOperator
from millstream.processor.frame_asof_join import FrameAsofJoinOperator
from millstream.processor.frame_pairs import latest
from millstream.processor.frames import FrameChunk
from millstream.processor.table_join import TableJoinOperator


class Order(msgspec.Struct):
    user: str
    amount: float
    ts: int


class User(msgspec.Struct):
    name: str
    level: int
    share: float | None = None


class Told(msgspec.Struct):
    user: str
    name: str | None
    worth: float | None


LEFT, RIGHT = col("left"), col("right")


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("rows were looked at")


def forbid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TableJoinOperator, "_look_up", never)
    monkeypatch.setattr(FrameChunk, "as_chunk", never)


def fill(store: Store, *, schema: bool) -> None:
    """Orders of users, who are known, unknown and known again in between."""
    rng = random.Random(4)
    store.create_topic("orders", schema=Order if schema else None)
    store.create_topic("users")
    store.create_topic("told", schema=Told if schema else None)
    for start in range(0, 1200, 40):
        for _ in range(rng.randrange(4)):
            user = User(rng.choice("xyz"), rng.randrange(5), rng.choice((None, 0.5)))
            value = None if rng.random() < 0.3 else msgspec.json.encode(user)
            store.append("users", value, key=b"u%d" % rng.randrange(9))
        rows = [Order(f"u{rng.randrange(9)}", n / 8, n * 100) for n in range(start, start + 40)]
        store.append_many("orders", list(map(msgspec.json.encode, rows)))


def told(how: Any = "inner", **options: Any) -> Pipeline:
    job = Pipeline("job", **options)
    users = job.table("users", type=User, key_type=str)
    orders = job.source("orders", type=Order, time="ts").filter(col("amount") > 1)
    pairs = orders.key_by("user").join_table(users, how=how)
    worth = LEFT.field("amount") * RIGHT.field("share").fill_null(1.0)
    pairs.select(user=LEFT.field("user"), name=RIGHT.field("name"), worth=worth).to("told")
    return job


def run(declared: Callable[[], Pipeline], *, schema: bool = True, **options: Any) -> list[Any]:
    with millstream.open() as store:
        fill(store, schema=schema)
        declared().run(store, until="end", on_end="flush", **options)
        return [(each.key, each.timestamp_ms, each.value) for each in store.read("told")]


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("batch_records", [None, 37])
def test_no_order_becomes_an_object(
    monkeypatch: pytest.MonkeyPatch, how: str, batch_records: int | None
) -> None:
    expected = run(lambda: told(how), schema=False)
    forbid_rows(monkeypatch)
    assert expected == run(lambda: told(how), batch_records=batch_records)
    known = [row for _, _, row in expected if b'"name":null' not in row]
    assert (how == "inner") == (len(known) == len(expected))
    assert 300 < len(known) < 1191


def test_a_table_that_spills_is_looked_up_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    expected = run(told, schema=False)
    forbid_rows(monkeypatch)
    with millstream.open(tmp_path / "store") as store:
        fill(store, schema=True)
        told(state="sqlite").run(store, until="end", batch_records=100)
        assert expected == [(r.key, r.timestamp_ms, r.value) for r in store.read("told")]


def test_windows_over_pairs_stay_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def declared() -> Pipeline:
        job = Pipeline("job")
        users = job.table("users", type=User, key_type=str)
        orders = job.source("orders", type=Order, time="ts").key_by("user")
        pairs = orders.join_table(users).filter(RIGHT.field("level") > 1)
        by_name = pairs.key_by(RIGHT.field("name")).window(tumbling("10s"))
        by_name.agg(total=agg.sum(LEFT.field("amount")), n=agg.count()).to("totals")
        return job

    def totals(*, schema: bool) -> list[bytes | None]:
        with millstream.open() as store:
            fill(store, schema=schema)
            job = declared()
            job.run(store, until="end")
            if schema:
                text = job.explain(store)
                assert text.count("[rows") == 3  # the table's source, its keys, and the sink
            return [each.value for each in store.read("totals")]

    expected = totals(schema=False)
    monkeypatch.setattr(TableJoinOperator, "_look_up", never)
    assert expected == totals(schema=True)
    assert len(expected) > 10


def test_rows_of_a_table_that_are_no_columns_are_rows() -> None:
    """Of several types, or pairs that are written as they are."""

    def declared() -> Pipeline:
        job = Pipeline("job")
        users = job.table("users", type=dict, key_type=str)
        mixed = users.map(lambda user: {**user, "name": user["name"] if user["level"] else 7})
        orders = job.source("orders", type=Order, time="ts").key_by("user")
        pairs = orders.join_table(mixed)
        pairs.select(name=RIGHT.field("name"), n=LEFT.field("ts")).to("names")
        pairs.to("pairs")
        return job

    def found(*, schema: bool) -> dict[str, list[bytes | None]]:
        with millstream.open() as store:
            fill(store, schema=schema)
            declared().run(store, until="end")
            return {topic: [r.value for r in store.read(topic)] for topic in ("names", "pairs")}

    expected = found(schema=False)
    assert expected == found(schema=True)
    assert {True, False} == {b'"name":7' in (value or b"") for value in expected["names"]}
    assert expected["pairs"][0] == msgspec.json.encode(
        msgspec.json.decode(expected["pairs"][0] or b"", type=Joined[Order, dict[str, Any]])
    )


def test_a_row_meets_the_last_update_that_came_before_it() -> None:
    found = latest(
        np.array([0, 1, 0, 0, 2, 0]),
        np.array([0, 1, 2, 5, 5, 9]),
        np.array([0, 0, 1, 0]),
        np.array([2, 5, 5, 5]),
    )
    assert [-1, -1, 0, 3, -1, 3] == found.tolist()


def test_explain_says_why_a_join_is_on_rows() -> None:
    job = Pipeline("job")
    orders = job.source("orders", type=Order, time="ts").key_by("user")
    users = job.table("users", type=User, key_type=str)
    orders.join_table(users, into=lambda order, user: (order, user), name="a").to("a")
    mortal = job.table("others", type=User, key_type=str, time="level", ttl="1h")
    orders.join_table(mortal, name="b").to("b")
    orders.filter(col("user").field("name") == "x").to("c")
    with millstream.open() as store:
        fill(store, schema=True)
        text = job.explain(store)
        assert "table join, inner  [state a]  [rows: into is a Python function]" in text
        assert "table join, ttl 1h, inner  [state b]  [rows: a table with a time to live]" in text
        assert "[rows: it reads name of an object]" in text
        assert text.count("[columns]") == 2  # source and key_by


# --- as of a time --------------------------------------------------------------------------------


class Rate(msgspec.Struct):
    user: str
    rate: float
    ts: int


class Rated(msgspec.Struct):
    user: str
    ts: int
    rate: float | None


def fill_rates(store: Store, *, schema: bool, start: int = 0, stop: int = 1500) -> None:
    """Orders and rates out of order, some rates long after the orders they would have been for."""
    rng = random.Random(start)
    if not start:
        store.create_topic("orders", schema=Order if schema else None)
        store.create_topic("rates")
        store.create_topic("rated", schema=Rated if schema else None)
    for first in range(start, stop, 30):
        orders = [
            Order(f"u{rng.randrange(5)}", 1.5, n * 100 - rng.randrange(2_000))
            for n in range(first, first + 30)
        ]
        rates = [
            Rate(f"u{rng.randrange(6)}", n / 8, first * 100 + rng.randrange(-9_000, 3_000))
            for n in range(rng.randrange(6))
        ]
        for topic, rows in (("orders", orders), ("rates", rates)):
            some = list(map(msgspec.json.encode, rows))
            store.append_many(topic, some[: len(some) // 2])
            store.append_many(topic, some[len(some) // 2 :])


def rated(direction: Any, within: str | None, how: Any) -> Pipeline:
    job = Pipeline("job")
    orders = job.source("orders", type=Order, time="ts", disorder="2s").key_by("user")
    rates = job.source("rates", type=Rate, time="ts", disorder="1s").key_by("user")
    pairs = orders.join_asof(rates, direction=direction, within=within, how=how)
    pairs.late.to("late")
    rate = RIGHT.field("rate")
    pairs.select(user=LEFT.field("user"), ts=LEFT.field("ts"), rate=rate).to("rated")
    return job


def results(store: Store) -> dict[str, list[Any]]:
    return {
        topic: [(each.key, each.timestamp_ms, each.value) for each in store.read(topic)]
        for topic in ("rated", "late")
    }


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize(
    ("direction", "within"),
    [("backward", None), ("backward", "2s"), ("forward", "2s"), ("nearest", "1s")],
)
def test_the_nearest_in_time_is_that_of_rows(
    monkeypatch: pytest.MonkeyPatch, direction: str, within: str | None, how: str
) -> None:
    with millstream.open() as store:
        fill_rates(store, schema=False)
        rated(direction, within, how).run(store, until="end", on_end="flush")
        expected = results(store)
    monkeypatch.setattr(AsofJoinOperator, "_wait", never)
    for batch_records in (None, 41):
        with millstream.open() as store:
            fill_rates(store, schema=True)
            job = rated(direction, within, how)
            assert f"{how}  [state orders.join]  [columns]" in job.explain(store)
            job.run(store, until="end", on_end="flush", batch_records=batch_records)
            assert expected == results(store)
    assert len(expected["rated"]) > 100
    assert expected["late"]


def test_a_right_row_that_came_too_late_is_not_met_in_the_step_it_came_with() -> None:
    """The order at 10 s is settled by that at 20 s; the better rate comes behind both."""

    def found(*, schema: bool) -> list[bytes | None]:
        with millstream.open() as store:
            fill_rates(store, schema=schema, stop=0)
            for topic, rows in (
                ("rates", [Rate("u", 1.0, 1_000), Rate("u", 3.0, 30_000)]),
                ("orders", [Order("u", 1.0, 10_000), Order("u", 1.0, 20_000)]),
                ("rates", [Rate("u", 2.0, 19_500)]),
                ("orders", [Order("u", 1.0, 30_000)]),
            ):
                store.append_many(topic, list(map(msgspec.json.encode, rows)))
            job = Pipeline("job")
            orders = job.source("orders", type=Order, time="ts").key_by("user")
            rates = job.source("rates", type=Rate, time="ts", disorder="30s").key_by("user")
            rates.to("seen")
            pairs = orders.join_asof(rates, direction="nearest", within="1m")
            pairs.select(ts=LEFT.field("ts"), rate=RIGHT.field("rate")).to("out")
            job.run(store, until="end", on_end="flush")
            return [each.value for each in store.read("out")]

    assert found(schema=False) == found(schema=True) != []


def test_rows_that_wait_are_columns_again_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(*, schema: bool) -> dict[str, list[Any]]:
        with millstream.open() as store:
            fill_rates(store, schema=schema, stop=300)
            rated("nearest", "2s", "left").run(store, until="end")
            fill_rates(store, schema=schema, start=300, stop=600)
            if schema:
                monkeypatch.setattr(AsofJoinOperator, "_wait", never)
            rated("nearest", "2s", "left").run(store, until="end", on_end="flush")
            return results(store)

    assert outcome(schema=False) == outcome(schema=True)


def test_rows_that_are_no_columns_wait_as_rows_and_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A field that is an int, then a float, which are columns beside each other, then a list."""

    def odd(rows: Any) -> Any:
        value = (1, 1.5, 1, 1.5, [1])[rows["ts"][0].as_py() // 10_000 % 5]
        return rows.append_column("odd", pa.array([value] * rows.num_rows))

    def outcome(*, schema: bool) -> dict[str, list[Any]]:
        with millstream.open() as store:
            fill_rates(store, schema=schema)
            job = Pipeline("job")
            orders = job.source("orders", type=Order, time="ts", disorder="2s")
            keyed = orders.map_batch(odd, columns=True).key_by("user")
            rates = job.source("rates", type=Rate, time="ts", disorder="1s").key_by("user")
            pairs = keyed.join_asof(rates, direction="nearest", within="1s")
            pairs.late.to("late")
            pairs.select(odd=LEFT.field("odd"), rate=RIGHT.field("rate")).to("rated")
            store.delete_topic("rated")
            store.create_topic("rated")
            job.run(store, until="end", on_end="flush", batch_records=60)
            return results(store)

    turned = []
    to_rows = FrameAsofJoinOperator._to_rows

    def counted(operator: FrameAsofJoinOperator) -> None:
        turned.append(operator._pool is not None)
        to_rows(operator)

    monkeypatch.setattr(FrameAsofJoinOperator, "_to_rows", counted)
    assert outcome(schema=False) == outcome(schema=True)
    assert sum(turned) > 1


def test_a_versioned_table_is_looked_up_as_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(*, schema: bool) -> list[Any]:
        with millstream.open() as store:
            fill_rates(store, schema=schema)
            job = Pipeline("job")
            orders = job.source("orders", type=Order, time="ts", disorder="2s").key_by("user")
            rates = job.table(
                "rates", type=Rate, key="user", key_type=str, time="ts", versioned=True
            )
            pairs = orders.join_table(rates, how="left")
            rate = RIGHT.field("rate")
            pairs.select(user=LEFT.field("user"), ts=LEFT.field("ts"), rate=rate).to("rated")
            job.run(store, until="end", on_end="flush")
            return [each.value for each in store.read("rated")]

    expected = outcome(schema=False)
    monkeypatch.setattr(AsofJoinOperator, "_wait", never)
    assert expected == outcome(schema=True)
    assert len({value for value in expected if b"null" not in value}) > 100
