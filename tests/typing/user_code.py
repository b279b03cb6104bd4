"""User code that must type-check under `mypy --strict`, and lines that must not.

Checked by `make check`, never run. A `type: ignore` here says that the line is wrong and that the
type checker must notice: `warn_unused_ignores` complains when it does not.
"""

from __future__ import annotations

from typing import assert_type

import msgspec

import millstream
from millstream.processor import KeyedStream, Pipeline, SourceStream, Stream, agg, tumbling


class Order(msgspec.Struct):
    user: str
    amount: float
    ts: int


def records_have_typed_fields(store: millstream.Store) -> None:
    for record in store.read("orders"):
        assert_type(record, millstream.Record)
        assert_type(record.value, bytes | None)
    for batch in store.read("orders", start="-10").batches():
        assert_type(batch.values, list[bytes | None])


def appends_say_where(store: millstream.Store) -> None:
    assert_type(store.append("orders", b"x"), millstream.RecordMetadata)
    assert_type(store.append_many("orders", [b"x", None]), list[millstream.AppendMetadata])
    store.append("orders", "text")  # type: ignore[arg-type]


def futures_and_offsets(store: millstream.Store) -> None:
    with store.producer(linger_ms=5) as producer:
        future = producer.send("orders", b"x", key=b"u1")
    assert_type(future.result(), millstream.RecordMetadata)
    with store.consumer("orders", group="billing") as consumer:
        for record in consumer:
            assert_type(record, millstream.Record)
        consumer.commit()
    with store.transaction() as transaction:
        transaction.append("orders", b"x")
        transaction.commit_offsets("billing", {millstream.TopicPartition("orders", 0): 1})


def types_flow_through_a_pipeline() -> None:
    pipeline = Pipeline("revenue")
    orders = pipeline.source("orders", type=Order, time="ts", disorder="10s")
    assert_type(orders, SourceStream[Order])
    amounts = orders.map(lambda order: order.amount)
    assert_type(amounts, Stream[float])
    orders.map(lambda order: order.price)  # type: ignore[attr-defined]
    assert_type(orders.filter(lambda order: order.amount > 0).map(str), Stream[str])
    assert_type(orders.flat_map(lambda order: [order.user]), Stream[str])
    keyed = orders.key_by(lambda order: order.user)
    assert_type(keyed, KeyedStream[str, Order])
    totals = keyed.window(tumbling("1m")).agg(n=agg.count(), total=agg.sum("amount"))
    totals.to("totals")
    totals.late.to("orders.late")
