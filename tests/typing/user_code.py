"""User code that must type-check under `mypy --strict`, and lines that must not.

Checked by `make check`, never run. A `type: ignore` here says that the line is wrong and that the
type checker must notice: `warn_unused_ignores` complains when it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, assert_type

import msgspec

import millstream
from millstream import Record
from millstream.processor import (
    Aggregate,
    Aggregated,
    AnyAggregate,
    CalendarWindows,
    ChangedPlanError,
    Context,
    DedupStream,
    DeliveryKind,
    Expression,
    FixedWindows,
    Joined,
    JoinResults,
    KeyedDedupStream,
    KeyedStream,
    Migration,
    Pipeline,
    Plan,
    Retry,
    Sink,
    Source,
    SourceBatch,
    SourceStream,
    SourceTable,
    Stream,
    Table,
    Timer,
    Windowed,
    WindowResults,
    agg,
    col,
    from_iterable,
    jsonl_files,
    lit,
    nodes,
    parse_expression,
    sqlite_rows,
    to_callable,
    to_csv,
    to_jsonl,
    to_sqlite,
    to_stdout,
    tumbling,
    when,
)


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
    either: SourceStream[Any] = pipeline.source("either", type=Order | Payment)
    assert_type(either.map(str), Stream[str])
    pipeline.table("prices", type=Order | Payment).filter(bool)
    amounts = orders.map(lambda order: order.amount)
    assert_type(amounts, Stream[float])
    orders.map(lambda order: order.price)  # type: ignore[attr-defined]
    assert_type(orders.filter(lambda order: order.amount > 0).map(str), Stream[str])
    assert_type(orders.flat_map(lambda order: [order.user]), Stream[str])
    keyed = orders.key_by(lambda order: order.user)
    assert_type(keyed, KeyedStream[str, Order])
    windows = keyed.window(tumbling("1m"))
    assert_type(windows.count(), WindowResults[str, Order, int])
    assert_type(windows.reduce(lambda left, right: left), WindowResults[str, Order, Order])
    sums = windows.fold(float, lambda total, order: total + order.amount)
    assert_type(sums, WindowResults[str, Order, float])
    orders.window(tumbling("1m"))  # type: ignore[attr-defined]
    windows.to("totals")  # type: ignore[attr-defined]
    totals = windows.agg(n=agg.count(), total=agg.sum("amount"))
    totals.to("totals")
    totals.late.to("orders.late")


def shown(row: Windowed[str, object]) -> str:
    return f"{row.key}: {row['n']}"


def joined_users(pair: Joined[Order, Order | None]) -> str:
    return pair.left.user


def a_function_of_results_may_ask_for_less_than_there_is() -> None:
    orders = Pipeline("revenue").source("orders", type=Order, time="ts").key_by(lambda o: o.user)
    windows = orders.window(tumbling("1m"))
    assert_type(
        windows.agg(n=agg.count(), total=agg.mean("amount")).map(shown), KeyedStream[str, str]
    )
    assert_type(windows.count().map(shown), KeyedStream[str, str])
    assert_type(orders.join(orders, within="1m").map(joined_users), KeyedStream[str, str])


def aggregates_know_what_they_take_and_give() -> None:
    assert_type(agg.sum("amount"), Aggregate[object, float, float])
    assert_type(agg.mean("amount").result([2, 3.0]), float | None)
    assert_type(agg.variance("amount").result([0, 0.0, 0.0]), float | None)
    assert_type(agg.stddev("amount", population=True).result([0, 0.0, 0.0]), float | None)
    assert_type(agg.quantile(0.99, "amount").result([{}, {}, {}]), float | None)
    assert_type(agg.distinct("user").result({}), int)
    assert_type(agg.max(_amount), Aggregate[Order, float, float])
    assert_type(agg.first(_user, by="ts"), Aggregate[Order, Any, str])
    assert_type(agg.last(_user), Aggregate[Order, Any, str])
    assert_type(agg.collect(_user, limit=10), Aggregate[Order, list[str], list[str]])
    assert_type(agg.top_k(3, _user, by="amount"), Aggregate[Order, list[Any], list[str]])
    assert_type(agg.reduce(_larger, _amount), Aggregate[Order, float | None, float])
    assert_type(agg.fold(int, _count), Aggregate[Order, int, int])
    assert_type(agg.fold(int, _count, result=str), Aggregate[Order, int, str])
    assert_type(agg.fold(float, _plus, "amount"), Aggregate[object, float, float])
    assert_type(agg.fold(float, _plus, _amount), Aggregate[Order, float, float])
    assert_type(agg.fold(float, _plus, _amount, result=str), Aggregate[Order, float, str])
    assert_type(agg.fold(float, _plus, col("amount") * 2).init(), float)
    agg.collect("user")  # type: ignore[call-overload]
    agg.top_k("user")  # type: ignore[call-overload]
    agg.fold(str, _count)  # type: ignore[misc]
    agg.fold(float, _plus, _user)  # type: ignore[misc]
    agg.fold(float, _plus, 5)  # type: ignore[call-overload]


def results_of_aggregates_have_their_types() -> None:
    rows = Pipeline("p").source("orders", type=Order).key_by(_user)
    windows = rows.window(tumbling("1m"))
    assert_type(windows.agg(n=agg.min(_amount)), WindowResults[str, Order, float])
    assert_type(windows.agg(n=agg.max(_user)), WindowResults[str, Order, str])
    assert_type(windows.agg(n=agg.collect(_user, limit=3)), WindowResults[str, Order, list[str]])
    assert_type(windows.agg(n=agg.top_k(3, _user)), WindowResults[str, Order, list[str]])
    assert_type(windows.agg(n=agg.reduce(_larger, _amount)), WindowResults[str, Order, float])
    assert_type(windows.agg(n=agg.fold(int, _count)), WindowResults[str, Order, int])
    assert_type(windows.agg(n=agg.fold(int, _count, result=str)), WindowResults[str, Order, str])
    assert_type(windows.agg(n=agg.quantile(0.5, _amount)), WindowResults[str, Order, float | None])
    assert_type(rows.agg(n=agg.max(_amount)), Table[str, Aggregated[str, float]])
    grouped = rows.reduce(_newer).group_by(_user).agg(n=agg.fold(int, _count))
    assert_type(grouped, Table[str, Aggregated[str, int]])
    shouted = windows.agg(n=agg.max(_user)).map(lambda row: row["n"].upper())
    assert_type(shouted, KeyedStream[str, str])
    windows.agg(n=agg.max(_amount)).map(lambda row: row["n"].upper())  # type: ignore[attr-defined]
    windows.agg(n=agg.sum(len_of_text))  # type: ignore[arg-type]
    windows.agg(n=5)  # type: ignore[arg-type]
    either: AnyAggregate[Order, float] = agg.max(_amount)
    assert_type(windows.agg(n=either), WindowResults[str, Order, float])


def _newer(left: Order, right: Order) -> Order:
    return right


def len_of_text(text: str) -> int:
    return len(text)


def _user(order: Order) -> str:
    return order.user


def _plus(so_far: float, more: float) -> float:
    return so_far + more


def _amount(order: Order) -> float:
    return order.amount


def _larger(left: float, right: float) -> float:
    return max(left, right)


def _count(count: int, order: Order) -> int:
    return count + 1


def expressions_stand_where_functions_do() -> None:
    large = (col("amount") > 50) & (col("user") == "u1") & ~col("user").is_null()
    assert_type(large, Expression)
    assert_type(col("amount") == lit(1), Expression)
    assert_type(1 - col("amount") * 2.5, Expression)
    assert_type(when(large).then("large").otherwise("small"), Expression)
    assert_type(parse_expression("amount > 50"), Expression)
    orders = Pipeline("p").source("orders", type=Order)
    assert_type(orders.filter(large), SourceStream[Order])
    orders.key_by(col("user").lower()).window(tumbling("1m")).agg(
        total=agg.sum(col("amount") * 2), top=agg.top_k(3, col("user"), by=col("amount"))
    )
    col(5)  # type: ignore[arg-type]
    col("amount").cast("decimal")  # type: ignore[arg-type]


def tables_know_their_keys_and_values() -> None:
    pipeline = Pipeline("tables")
    keyed = pipeline.source("orders", type=Order).key_by(lambda order: order.user)
    assert_type(keyed.count(ttl="1h"), Table[str, int])
    assert_type(keyed.reduce(lambda left, right: right), Table[str, Order])
    assert_type(keyed.fold(lambda: 0.0, lambda total, row: total + row.amount), Table[str, float])
    assert_type(keyed.count().updates(), KeyedStream[str, int])
    assert_type(keyed.count().updates(deletions=True), KeyedStream[str, int | None])
    assert_type(keyed.count().map(str).filter(lambda text: len(text) > 1), Table[str, str])
    named = keyed.agg(n=agg.count(), last=agg.last("note"))
    named.updates().map(lambda row: row.key.upper())
    named.updates().map(lambda row: row.key.price)  # type: ignore[attr-defined]
    assert_type(pipeline.table("prices", type=float), SourceTable[str, float])
    assert_type(pipeline.table("stock", type=Order, key_type=int), SourceTable[int, Order])
    assert_type(
        pipeline.table("users", type=Order).group_by(len_of).agg(n=agg.count()),
        Table[int, Aggregated[int, int]],
    )


def deduplication_keeps_types() -> None:
    orders = Pipeline("once").source("orders", type=Order)
    assert_type(orders.dedup("user", within="1m"), DedupStream[Order])
    assert_type(orders.dedup(lambda order: order.user, within="1m").late, Stream[Order])
    keyed = orders.key_by(lambda order: order.user).dedup("ts", within=5)
    assert_type(keyed, KeyedDedupStream[str, Order])
    assert_type(keyed.late, KeyedStream[str, Order])


class Payment(msgspec.Struct):
    user: str
    cents: int


def joins_know_both_sides() -> None:
    pipeline = Pipeline("joins")
    orders = pipeline.source("orders", type=Order).key_by(lambda order: order.user)
    payments = pipeline.source("payments", type=Payment).key_by(lambda payment: payment.user)
    inner = orders.join(payments, within="5m")
    assert_type(inner, JoinResults[str, Joined[Order, Payment], Order | Payment])
    assert_type(inner.late, KeyedStream[str, Order | Payment])
    outer = orders.join(payments, lower="-5m", upper=0, how="outer")
    assert_type(outer, JoinResults[str, Joined[Order | None, Payment | None], Order | Payment])
    cents = orders.join(payments, within=5, into=lambda order, payment: payment.cents)
    assert_type(cents, JoinResults[str, int, Order | Payment])
    orders.join(payments, within=5, how="left", into=lambda order, payment: payment.cents)  # type: ignore[call-overload]
    orders.join(payments, after=5)  # type: ignore[call-overload]
    table = pipeline.table("rates", type=float)
    assert_type(
        orders.join_table(table, how="left"),
        JoinResults[str, Joined[Order, float | None], Order | float],
    )
    assert_type(
        orders.join_table(table, into=lambda order, rate: order.amount * rate),
        JoinResults[str, float, Order | float],
    )
    assert_type(
        orders.join_asof(payments, direction="forward", within="1h"),
        JoinResults[str, Joined[Order, Payment], Order | Payment],
    )


def len_of(order: Order) -> int:
    return len(order.user)


class Squares(Source):
    name = "squares"

    def partitions(self) -> Sequence[str]:
        return ["all"]

    def open(self, partition: str, position: int | None) -> Iterator[SourceBatch | None]:
        for number in range(position or 0, 3):
            yield SourceBatch([b"%d" % number**2], position=number + 1)


class Collected(Sink):
    name = "collected"
    delivery: DeliveryKind = "at_least_once"

    def open(self, outbox: str) -> Collected:
        return self

    def position(self) -> None:
        return None

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        assert following - first >= len(records)

    def close(self) -> None:
        pass


def sources_and_sinks_outside_the_store() -> None:
    pipeline = Pipeline("outside")
    orders = pipeline.source(jsonl_files("in/*.jsonl", follow=True), type=Order, time="ts")
    assert_type(orders, SourceStream[Order])
    assert_type(pipeline.source(from_iterable([{"n": 1}])), SourceStream[dict[str, Any]])
    assert_type(pipeline.source(Squares(), type=int), SourceStream[int])
    table = pipeline.table(sqlite_rows("app.db", "users"), type=Order, key="user")
    assert_type(table, SourceTable[str, Order])
    orders.to(to_sqlite("app.db", "orders"), dead_letters="refused", retry=Retry(attempts=3))
    orders.to(to_jsonl("out")).to(to_csv("csv", ["user"])).to(to_stdout()).to(Collected())
    orders.to(to_callable(lambda record: record.value))
    orders.to(to_callable(lambda records: records[0].value, batches=True))
    orders.to(to_callable(lambda record: record.value, batches=True))  # type: ignore[call-overload]
    orders.dead_letters.to(to_jsonl("bad"))


class Visits(msgspec.Struct):
    count: int = 0


def greet(context: Context[str, Visits], order: Order) -> Iterator[str]:
    context.state.count += 1
    yield f"{context.key}: {context.state.count}"


def remind(context: Context[str, Visits], timer: Timer) -> Iterator[str]:
    yield f"{context.key} at {timer.at_ms}"


def keys_named_by_a_field_go_with_every_key() -> None:
    pipeline = Pipeline("keys")
    orders = pipeline.source("orders", type=Order, time="ts")
    users = pipeline.table("users")
    named = orders.key_by("user")
    assert_type(named.process(greet, state=Visits, on_timer=remind), KeyedStream[Any, str])
    named.join_table(users).to("joined")
    users.group_by("country").agg(n=agg.count()).to("countries")

    def amount_of(order: Order) -> int:
        return int(order.amount)

    computed = orders.key_by(amount_of)
    computed.process(greet, state=Visits)  # type: ignore[arg-type]
    computed.join_table(users)  # type: ignore[arg-type]


def plans_are_walked(plan: Plan) -> list[str]:
    said: list[str] = []
    for node in plan.nodes:
        assert_type(node, nodes.Node)
        if isinstance(node, nodes.WindowNode):
            assert_type(node.windows, FixedWindows | CalendarWindows)
            values: list[object] = [one.result(one.init()) for _, one in node.aggregates]
            assert_type(node.result_type("ann", 0, 1, *values), Windowed[Any, Any])
        elif isinstance(node, nodes.JoinNode):
            assert_type(node.how, Literal["inner", "left", "right", "outer"])
        elif isinstance(node, nodes.PortNode):
            said.append(node.topic)  # type: ignore[attr-defined]
    return said


def state_is_migrated(store: millstream.Store) -> None:
    pipeline = Pipeline("orders")
    found = pipeline.migrate(store, rename={"a": "b"}, drop=["c"], dry_run=True)
    assert_type(found, Migration)
    assert_type(found.steps[0].action, Literal["keep", "carry", "begin", "drop", "refuse"])
    try:
        pipeline.run(store, until="end")
    except ChangedPlanError as error:
        pipeline.migrate(store, rename=error.rename, drop=error.drop)
