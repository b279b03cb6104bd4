"""A plan taken elsewhere: what is sent to other processes arrives there as it was."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - another engine may, not we
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millstream import UsageError
from millstream.processor import (
    Context,
    Pipeline,
    Plan,
    Stream,
    Timer,
    agg,
    col,
    counting,
    session,
    to_jsonl,
    tumbling,
)


class Sale(msgspec.Struct):
    user: str
    amount: int
    ts: int
    price: Decimal = Decimal(1)
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Seen:
    rows: int = 0


def amount_of(sale: Sale) -> int:
    return sale.amount


def most(sale: Sale, other: Sale) -> Sale:
    return max(sale, other, key=amount_of)


def counted(context: Context[str, Seen], sale: Sale) -> list[str]:
    context.state.rows += 1
    context.set_timer(sale.ts + 1000)
    return [f"{context.key} {context.state.rows}"]


def reminded(context: Context[str, Seen], timer: Timer) -> list[str]:
    return [f"{context.key} at {timer.at_ms}"]


def total_of(row: Any) -> int:
    total: int = row["total"]
    return total


def windows(sales: Stream[Sale]) -> None:
    keyed = sales.key_by("user")
    totals = keyed.window(tumbling("1m")).agg(total=agg.sum("amount"), dear=agg.max("price"))
    totals.late.to("late")
    # Rows of windows are kept in state again: their type is a parameter of the second operator.
    totals.key_by(total_of).window(session("5m")).agg(last=agg.last()).to("last")
    keyed.window(counting(2)).agg(n=agg.count()).emit("final").to("pairs")
    keyed.window(tumbling("1m")).agg(n=agg.count()).emit("update").to("updates")


def tables(sales: Stream[Sale]) -> None:
    keyed = sales.key_by("user")
    totals = keyed.agg(n=agg.count(), total=agg.sum("amount"))
    totals.group_by("n").agg(total=agg.sum("total")).to("groups")
    keyed.reduce(most).filter(col("amount") > 2).map(amount_of).to("most")
    keyed.join_table(totals, how="left").to("joined")


def joins(sales: Stream[Sale]) -> None:
    keyed = sales.key_by("user")
    totals = keyed.window(tumbling("1m")).agg(dear=agg.max("price"))
    pairs = keyed.join(totals, within="1m", how="left")
    pairs.join_asof(keyed.select("ts", "at").dedup("ts", within="1m"), how="left").to("pairs")
    pairs.reduce(first_of).to("last")


def first_of(pair: Any, _: Any) -> Any:
    return pair


def processes(sales: Stream[Sale]) -> None:
    keyed = sales.key_by("user")
    keyed.process(counted, state=Seen, on_timer=reminded).print("seen").to("seen")


SHAPES = [windows, tables, joins, processes]
SALES = [
    {"user": f"u{n % 3}", "amount": n % 5, "ts": 1_000 * (n * 37 % 400), "price": f"{n}.5"}
    for n in range(60)
]


def declared(shape: Callable[[Stream[Sale]], None]) -> Pipeline:
    pipeline = Pipeline(shape.__name__)
    shape(pipeline.source("sales", type=Sale, time="ts", disorder="1m"))
    return pipeline


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "taken",
    [lambda pipeline: pickle.loads(pickle.dumps(pipeline)), copy.copy, copy.deepcopy],
    ids=["pickled", "copied", "copied deeply"],
)
def test_a_pipeline_can_be_copied_and_sent(
    shape: Callable[[Stream[Sale]], None], taken: Callable[[Pipeline], Pipeline]
) -> None:
    pipeline = declared(shape)

    again = taken(pipeline)

    assert again.plan == pipeline.plan
    assert again.explain() == pipeline.explain()
    assert again.test({"sales": SALES}) == pipeline.test({"sales": SALES})


def test_a_copy_of_a_pipeline_goes_its_own_way() -> None:
    pipeline = declared(processes)
    before = pipeline.explain()

    other = copy.copy(pipeline)
    other.source("more").to("most")

    assert pipeline.explain() == before
    assert "to most" in other.explain()


def test_rows_of_windows_and_tables_can_be_sent() -> None:
    rows: list[Any] = []
    pipeline = Pipeline("rows")
    keyed = pipeline.source("sales", type=Sale, time="ts").key_by("user")
    keyed.window(tumbling("1m")).agg(n=agg.count(), dear=agg.max("price")).peek(rows.append)
    table = keyed.agg(first=agg.first("at"), n=agg.count())
    table.updates().peek(rows.append)
    table.group_by("n").agg(keys=agg.count()).updates().peek(rows.append)
    pipeline.test({"sales": SALES})

    again = pickle.loads(pickle.dumps(rows))

    assert rows
    assert again == rows
    assert set(map(type, again)) == set(map(type, rows))


_ROOT = str(Path(__file__).parents[__name__.count(".")])
"""Where the other process finds this module under the name that it has here."""


def test_another_process_makes_the_same_of_it() -> None:
    """Types that are made for rows are in no module: they have to be made there again."""
    pipelines = [declared(shape) for shape in SHAPES]
    program = (
        "import pickle, sys; pipelines, sales = pickle.load(sys.stdin.buffer)\n"
        "results = [dict(pipeline.test({'sales': sales})) for pipeline in pipelines]\n"
        "print(pickle.dumps(results).hex())"
    )
    sent = pickle.dumps((pipelines, SALES))

    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {[*sys.path, _ROOT]!r}\n{program}"],
        input=sent,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr.decode()) == (0, "")
    *_, last = done.stdout.decode().splitlines()
    assert pickle.loads(bytes.fromhex(last)) == [
        dict(pipeline.test({"sales": SALES})) for pipeline in pipelines
    ]


def other(sale: Sale) -> int:
    return -sale.amount


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (agg.count(), agg.count("user")),
        (agg.sum(amount_of), agg.sum(other)),
        (agg.sum(col("amount") * 2), agg.sum(col("amount") * 3)),
        (agg.first("user", by="ts"), agg.first("user", by="amount")),
        (agg.top_k(3, "amount"), agg.top_k(2, "amount")),
        (agg.variance("amount"), agg.variance("amount", population=True)),
        (agg.variance("amount"), agg.stddev("amount")),
        (agg.fold(int, most), agg.fold(int, most, merge=most)),
    ],
    ids=repr,
)
def test_aggregates_are_equal_if_they_do_the_same(one: object, another: object) -> None:
    again = pickle.loads(pickle.dumps(one))

    assert (again, hash(again)) == (one, hash(one))
    assert one != another


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (lambda sales: sales.filter(col("n") > 1), lambda sales: sales.filter(col("n") > 2)),
        (lambda sales: sales.select(n=col("m")), lambda sales: sales.select(n=col("k"))),
        (lambda sales: sales.branch(a=col("n") > 1), lambda sales: sales.branch(a=col("m") > 1)),
        (lambda sales: sales.print("a"), lambda sales: sales.print("b")),
        (
            lambda sales: sales.key_by(itemgetter("n")).dedup(attrgetter("m"), within="1s"),
            lambda sales: sales.key_by(itemgetter("n")).dedup(attrgetter("k"), within="1s"),
        ),
        (
            lambda sales: sales.to(to_jsonl("here", name="files")),
            lambda sales: sales.to(to_jsonl("there", name="files")),
        ),
    ],
    ids=["filter", "select", "branch", "print", "getters", "sink"],
)
def test_plans_are_equal_if_they_do_the_same(
    one: Callable[[Any], object], another: Callable[[Any], object]
) -> None:
    def plan(declare: Callable[[Any], object]) -> Plan:
        pipeline = Pipeline("sales")
        declare(pipeline.source("sales"))
        return pipeline.plan

    assert plan(one) == plan(one)
    assert plan(one) == pickle.loads(pickle.dumps(plan(one)))
    assert hash(plan(one)) == hash(plan(one))
    assert plan(one) != plan(another)


class Unequal:
    """Like an array, whose `==` has no truth."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __eq__(self, other: object) -> bool:
        raise self.error

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_refuses_to_be_compared_is_not_equal(error: type[Exception]) -> None:
    pipeline = Pipeline("sales")
    pipeline.source("sales").map(partial(most, other=[Unequal(error)])).to("most")

    assert pipeline.plan == copy.copy(pipeline).plan
    assert pipeline.plan != pickle.loads(pickle.dumps(pipeline.plan))


def test_true_is_not_one_in_what_is_equal() -> None:
    assert agg.fold(partial(int, 1), most) == agg.fold(partial(int, 1), most)
    assert agg.fold(partial(int, 1), most) != agg.fold(partial(int, True), most)


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    pipeline = Pipeline("sales")
    sales = pipeline.source("sales").filter(col("amount") > 1)
    pipeline.plan.check_portable(pickle.dumps)

    with (tmp_path / "out").open("w") as file:
        sales.peek(partial(print, file=file), name="into a file")
        with pytest.raises(UsageError, match=r"'sales' cannot be sent .* 'into a file': .*cannot"):
            pipeline.plan.check_portable(pickle.dumps)


def test_a_lambda_that_cannot_be_sent_is_named_by_its_line() -> None:
    pipeline = Pipeline("sales")
    pipeline.source("sales").key_by(lambda sale: sale["user"]).count().to("counts")

    with pytest.raises(UsageError, match=r"lambda\('user'\) at test_processor_elsewhere.py:\d+"):
        pipeline.plan.check_portable(pickle.dumps)
