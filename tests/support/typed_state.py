"""A pipeline whose state holds values of declared types, for the golden store of such state.

What is here must stay: the store was written by it, and goes on with it.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import uuid
from typing import Any

import msgspec

import millstream
from millstream.processor import Pipeline, agg, session, tumbling
from millstream.processor.holding import StatePlace


class Order(msgspec.Struct):
    user: str
    at: datetime.datetime
    amount: decimal.Decimal
    id: uuid.UUID
    pair: tuple[int, str]


@dataclasses.dataclass
class Seen:
    orders: int = 0
    days: set[datetime.date] = dataclasses.field(default_factory=set)


ROWS: list[dict[str, Any]] = [
    {
        "user": "ab"[second % 2],
        "at": f"2024-05-01T00:00:{second:02}Z",
        "amount": f"{second % 5}.10",
        "id": str(uuid.UUID(int=second % 3)),
        "pair": [second, "x"],
    }
    for second in (1, 2, 13, 9, 4, 12, 3, 14, 30, 11, 31, 32, 33, 45)
]
WRITTEN = 8
"""So many of the rows were processed when the store was written."""


def greater(left: Order, right: Order) -> Order:
    return max(left, right, key=lambda order: order.amount)


def see(seen: Seen, order: Order) -> Seen:
    return Seen(seen.orders + 1, seen.days | {order.at.date()})


def together(left: Seen, right: Seen) -> Seen:
    return Seen(left.orders + right.orders, left.days | right.days)


def typed_pipeline(state: StatePlace = "memory") -> Pipeline:
    pipeline = Pipeline("typed", state=state)
    orders = pipeline.source("in", type=Order, time="at", disorder="5s").key_by("user")
    aggregates: dict[str, Any] = {
        "first": agg.first(),
        "last": agg.last("at", by="pair"),
        "least": agg.min("amount"),
        "total": agg.sum("amount"),
        "mean": agg.mean("amount"),
        "ids": agg.distinct("id"),
        "all": agg.collect("at", limit=3),
        "top": agg.top_k(2, by="amount"),
        "greatest": agg.reduce(greater),
        "seen": agg.fold(Seen, see, merge=together),
    }
    orders.window(tumbling("20s"), name="tumbling").agg(**aggregates).to("windows")
    orders.window(session("8s"), name="session").agg(**aggregates).to("sessions")
    orders.agg(name="running", **aggregates).to("running")
    orders.reduce(greater, name="reduce").to("reduced")
    return pipeline


def write_typed_state(store: millstream.Store) -> None:
    """What the golden store holds."""
    store.create_topic("in")
    store.append_many("in", [json.dumps(row).encode() for row in ROWS[:WRITTEN]])
    typed_pipeline().run(store, until="end")
