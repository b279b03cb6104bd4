"""The join with a table on columns: the pairs of rows, with the stream left in columns."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import numpy as np
import pytest

import millstream
from millstream import Store
from millstream.processor import Joined, Pipeline, agg, col, tumbling
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
