"""What aggregates keep of rows of a declared type comes back from state as it was."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from typing import Any, TypedDict

import msgspec
import pytest
from pipeline_runs import run_in_pieces

import millstream
from millstream import Record, UsageError
from millstream.processor import (
    AnyAggregate,
    Pipeline,
    Windowed,
    agg,
    col,
    counting,
    hopping,
    session,
    tumbling,
    when,
)
from millstream.processor.holding import StatePlace


class Order(msgspec.Struct):
    user: str
    at: datetime.datetime
    amount: decimal.Decimal
    id: uuid.UUID
    pair: tuple[int, str] = (0, "")
    note: str | None = None


@dataclasses.dataclass
class Seen:
    orders: int = 0
    days: set[datetime.date] = dataclasses.field(default_factory=set)


ROWS = [
    {
        "user": "ab"[second % 2],
        "at": f"2024-05-01T00:00:{second:02}Z",
        "amount": f"{second % 5}.10",
        "id": str(uuid.UUID(int=second % 3)),
        "pair": [second, "x"],
        "note": "n" if second % 3 else None,
    }
    for second in (1, 2, 3, 9, 4, 12, 13, 14, 30, 11, 31, 32, 33, 45)
]


def greater(left: Order, right: Order) -> Order:
    return max(left, right, key=lambda order: order.amount)


def see(seen: Seen, order: Order) -> Seen:
    return Seen(seen.orders + 1, seen.days | {order.at.date()})


def together(left: Seen, right: Seen) -> Seen:
    return Seen(left.orders + right.orders, left.days | right.days)


def all_there_are() -> dict[str, AnyAggregate[Any, Any]]:
    return {
        "n": agg.count(),
        "first": agg.first(),
        "last": agg.last("at"),
        "least": agg.min("amount"),
        "latest": agg.max(col("at")),
        "total": agg.sum("amount"),
        "none": agg.sum("note_length"),
        "mean": agg.mean("amount"),
        "ids": agg.distinct("id"),
        "all": agg.collect(limit=3),
        "pairs": agg.collect("pair", limit=2),
        "top": agg.top_k(2, "at"),
        "dearest": agg.top_k(2, by="amount"),
        "dear_id": agg.last("id", by="amount"),
        "early": agg.first("note", by="at"),
        "day": agg.reduce(min, _day),
        "greatest": agg.reduce(greater),
        "seen": agg.fold(Seen, see, merge=together),
    }


def _day(order: Order) -> datetime.date:
    return order.at.date()


class LongOrder(Order):
    @property
    def note_length(self) -> int | None:
        return None


WINDOWS = {
    "tumbling": lambda keyed: keyed.window(tumbling("10s")).agg(**all_there_are()),
    "hopping": lambda keyed: keyed.window(hopping("10s", "5s")).agg(**all_there_are()),
    "session": lambda keyed: keyed.window(session("4s")).agg(**all_there_are()),
    "counting": lambda keyed: keyed.window(counting(3)).agg(**all_there_are()),
    "updates": lambda keyed: (
        keyed.window(tumbling("10s")).agg(**all_there_are()).emit("update", every="3s")
    ),
    "corrections": lambda keyed: keyed.window(tumbling("10s"), corrections="5s").agg(
        **all_there_are()
    ),
    "session updates": lambda keyed: (
        keyed.window(session("4s")).agg(**all_there_are()).emit("update")
    ),
    "running": lambda keyed: keyed.agg(**all_there_are()),
    "mortal": lambda keyed: keyed.agg(ttl="20s", **all_there_are()),
    "short": lambda keyed: keyed.window(tumbling("10s")).reduce(greater),
}


def values(records: list[Record]) -> list[Any]:
    return [json.loads(record.value or b"null") for record in records]


SPILLED = [("tumbling", "sqlite"), ("session", "sqlite"), ("updates", "sqlite")]


@pytest.mark.parametrize(("kind", "state"), [*((kind, "memory") for kind in WINDOWS), *SPILLED])
def test_rows_of_a_struct_and_their_fields_are_kept(kind: str, state: StatePlace) -> None:
    def pipeline(where: StatePlace) -> Pipeline:
        made = Pipeline("p", state=where)
        orders = made.source("in", type=LongOrder, time="at", disorder="5s")
        WINDOWS[kind](orders.key_by("user")).to("out")
        return made

    expected = pipeline("memory").test({"in": ROWS})["out"]
    assert len(expected) > 3
    found = run_in_pieces(pipeline(state), {"in": ROWS}, batch_records=2, crash_every=1)
    assert expected == values(found["out"])


def test_results_go_on_with_the_types_of_what_they_hold() -> None:
    def latest(row: Windowed[str, Any]) -> datetime.datetime:
        moment: datetime.datetime = row["latest"]
        return moment

    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=LongOrder, time="at", disorder="5s").key_by("user")
    windows = orders.window(tumbling("4s")).agg(**all_there_are())
    windows.window(tumbling("20s"), name="again").agg(
        all=agg.collect(limit=9), latest=agg.max("latest"), least=agg.min(latest)
    ).to("again")
    windows.join(orders, within="2s").to("joined")
    table = orders.agg(**all_there_are())
    windows.join_table(table).to("looked")
    table.group_by(lambda row: row["n"] % 2).agg(n=agg.count()).to("grouped")
    table.updates().window(session("5s"), name="s").agg(last=agg.last()).to("last")

    expected = pipeline.test({"in": ROWS})
    found = run_in_pieces(pipeline, {"in": ROWS}, batch_records=2, crash_every=1)
    for topic, rows in expected.items():
        assert len(rows) > 1
        assert rows == values(found[topic])


class Note(TypedDict, total=False):
    user: str
    at: datetime.datetime
    text: str


def test_fields_that_may_be_missing_are_kept_as_such() -> None:
    pipeline = Pipeline("p")
    notes = pipeline.source("in", type=Note, time="at")
    chosen = notes.select("user", "at", "text")
    for name, some in (
        ("all", notes.with_columns(who=col("user"))),
        ("some", chosen),
        ("merged", chosen.merge(notes.filter(col("user") != "a").select("user", "at", "text"))),
    ):
        keyed = some.key_by("user")
        keyed.join(keyed, within="1s", name=name).to(name)
    rows = [
        {"user": "a", "at": f"2024-05-01T00:00:0{second}Z", **({"text": "x"} if second % 2 else {})}
        for second in range(4)
    ]
    expected = pipeline.test({"in": rows})
    assert [10, 10, 10] == list(map(len, expected.values()))
    found = run_in_pieces(pipeline, {"in": rows}, batch_records=2, crash_every=1)
    assert all(rows == values(found[topic]) for topic, rows in expected.items())


class Offer(msgspec.Struct):
    user: str
    at: int
    price: decimal.Decimal
    rebate: decimal.Decimal | None = None
    count: int = 2


def test_what_is_computed_of_decimals_is_kept_as_such() -> None:
    pipeline = Pipeline("p")
    offers = pipeline.source("in", type=Offer, time="at")
    paid = col("price") * col("count") - col("rebate").fill_null(0)
    offers.key_by("user").window(tumbling("3ms")).agg(
        paid=agg.sum(paid),
        least=agg.min(-(col("price") / 3)),
        last=agg.last(when(col("count") > 2).then(0).otherwise(col("price")), by="at"),
    ).to("windows")
    offers.select("user", paid=paid).key_by("user").agg(last=agg.last("paid")).to("last")
    rows = [
        {"user": "a", "at": at, "price": f"{at}.10", "count": at, "rebate": ["0.5", None][at % 2]}
        for at in range(6)
    ]
    expected = pipeline.test({"in": rows})
    assert all(map(len, expected.values()))
    found = run_in_pieces(pipeline, {"in": rows}, batch_records=1, crash_every=1)
    assert all(rows == values(found[topic]) for topic, rows in expected.items())


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 4


class Graded(msgspec.Struct):
    user: str
    at: int
    grade: Grade
    some: int | decimal.Decimal


def test_means_of_what_counts_as_ints_are_floats() -> None:
    pipeline = Pipeline("p")
    windows = (
        pipeline.source("in", type=Graded, time="at")
        .key_by("user")
        .window(tumbling("3ms"))
        .agg(grade=agg.mean("grade"), some=agg.mean("some"))
    )
    windows.key_by("key").agg(last=agg.last("grade"), all=agg.collect(limit=9)).to("out")
    rows = [{"user": "a", "at": at, "grade": 1 + 3 * (at % 2), "some": at % 2} for at in range(9)]
    expected = pipeline.test({"in": rows})["out"]
    assert [2.0, 3.0, 2.0] == [row["last"] for row in expected]
    found = run_in_pieces(pipeline, {"in": rows}, batch_records=2, crash_every=1)
    assert expected == values(found["out"])


def test_what_is_declared_and_is_not_there_is_refused_by_name() -> None:
    def day(order: Order) -> datetime.date:
        return str(order.at)  # type: ignore[return-value]  # as wrong as code can be

    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order, time="at")
    orders.key_by("user").window(tumbling("10s")).agg(day=agg.last(day)).to("out")
    with pytest.raises(UsageError, match=r"state of 'in.window', agg day: .* as date"):
        pipeline.test({"in": ROWS})


def test_an_aggregate_that_is_added_begins_empty_and_of_its_type() -> None:
    def pipeline(**more: AnyAggregate[Any, Any]) -> Pipeline:
        made = Pipeline("p")
        orders = made.source("in", type=Order, time="at")
        keyed = orders.key_by("user")
        keyed.window(tumbling("1m")).agg(n=agg.count(), first=agg.first("at"), **more).to("out")
        return made

    lines = [json.dumps(row).encode() for row in ROWS]
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append_many("in", lines[:4])
        pipeline().run(store, until="end")
        more = {"seen": agg.fold(Seen, see), "last": agg.last()}
        pipeline(**more).migrate(store)
        store.append_many("in", lines[4:6])
        pipeline(**more).run(store, until="end", on_end="flush")
        left, right = values(list(store.read("out")))
    assert ("a", 3, 2) == (left["key"], left["n"], left["seen"]["orders"])
    assert left["last"]["at"] == ROWS[5]["at"]
    assert ("b", 3, 0) == (right["key"], right["n"], right["seen"]["orders"])
    assert right["last"] is None
    assert right["first"] == ROWS[0]["at"]
