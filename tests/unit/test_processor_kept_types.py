"""Whatever a user declares or returns comes back from state as it was, or a test refuses it.

Each way to say what rows are, and each kind of value, goes through operators that keep rows, in
runs that crash after every step; the types of what comes out are looked at, not only its JSON.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import pytest
from pipeline_runs import run_in_pieces

from millstream import MillstreamError, UsageError
from millstream.processor import (
    Aggregated,
    Context,
    Joined,
    KeyedStream,
    Pipeline,
    Timer,
    Windowed,
    agg,
    col,
    tumbling,
)
from millstream.processor.row_codec import RowCodec
from millstream.processor.row_types import returned_type

if TYPE_CHECKING:
    from typing import Any as Imported

UTC = datetime.UTC
NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=5)))
T = TypeVar("T")


class Order(msgspec.Struct, rename="camel", omit_defaults=True):
    at_time: datetime.datetime
    amount: Decimal = Decimal(0)


class Click(msgspec.Struct, tag=True, array_like=True, frozen=True):
    at: datetime.datetime


class View(msgspec.Struct, tag=True, array_like=True, frozen=True):
    id: uuid.UUID


class Box(msgspec.Struct, Generic[T]):
    content: T


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    days: tuple[datetime.date, ...]


class Pair(NamedTuple):
    left: Decimal
    right: Place


class Item(TypedDict, total=False):
    age: datetime.timedelta


class Size(StrEnum):
    SMALL = "s"


class Level(IntEnum):
    LOW = 1


Scalars = tuple[Level, Literal["a", 1], int | str, float, bool, datetime.datetime, datetime.time]

KINDS: list[tuple[Any, object]] = [
    (Order, Order(NOON, Decimal("1.50"))),
    (Click | View, View(uuid.UUID(int=1))),
    (Box[list[Order]], Box([Order(NOON)])),
    (Box[datetime.datetime], Box(NOON)),
    (Place, Place((datetime.date(2024, 5, 1),))),
    (Pair, Pair(Decimal("0.10"), Place(()))),
    (Item, {"age": datetime.timedelta(microseconds=5)}),
    (tuple[int, tuple[str, ...]], (1, ("a",))),
    (dict[str, frozenset[int]], {"a": frozenset({1, 2})}),
    (list[bytes], [b"\xff"]),
    (Size | None, Size.SMALL),
    (Scalars, (Level.LOW, "a", 2**70, -0.0, True, datetime.datetime(2024, 5, 1), NOON.time())),  # noqa: DTZ001 - a naive one
]


def shown(row: Any) -> str:
    """A row with all types there are in it."""
    if isinstance(row, Windowed | Aggregated | Joined):
        fields = [getattr(row, name) for name in row.__struct_fields__]
        return f"{type(row).__name__}({', '.join(map(shown, fields))})"
    if isinstance(row, list):
        return f"[{', '.join(map(shown, row))}]"
    return repr(row)


def annotated(made: object, value: object) -> Callable[[Any], Any]:
    def make(_: object) -> Any:
        return value

    make.__annotations__["return"] = made
    return make


def keyed(pipeline: Pipeline, topic: str = "in") -> KeyedStream[Any, dict[str, Any]]:
    source = pipeline.source(topic, time="t", disorder="5s")
    return source.key_by(lambda _: ("k", ("n", 1)))


ROWS = [{"t": second * 1000, "n": second} for second in (1, 2, 4, 11, 12, 30)]


def same_after_crashes(declare: Callable[[Pipeline], KeyedStream[Any, Any]]) -> list[Any]:
    def made() -> Pipeline:
        pipeline = Pipeline("p")
        declare(pipeline).map(shown).to("out")
        return pipeline

    inputs = dict.fromkeys(made().plan.input_names(), ROWS)
    expected = made().test(inputs)["out"]
    found = run_in_pieces(made(), inputs, batch_records=2, crash_every=1)["out"]
    assert expected
    assert sorted(expected) == sorted(json.loads(each.value or b"null") for each in found)
    return expected


@pytest.mark.parametrize(("made", "value"), KINDS)
def test_rows_of_any_type_come_back_as_they_were(made: Any, value: object) -> None:
    """From aggregates, of which windows, joins and tables are made; keys are tuples."""

    def declare(pipeline: Pipeline) -> KeyedStream[Any, Any]:
        rows = keyed(pipeline).map(annotated(made, value))
        windows = rows.window(tumbling("5s")).agg(first=agg.first(), all=agg.collect(limit=2))
        both = windows.join(windows, within="10s", how="outer", name="j")
        table = rows.reduce(lambda left, _: left)
        again = both.join_table(table, how="left").window(tumbling("1m"), name="again")
        return again.reduce(lambda left, _: left).agg(last=agg.last("value")).updates()

    assert shown(value) in same_after_crashes(declare)[-1]


def order(_: object) -> Order:
    return Order(NOON)


def click(_: object) -> Click:
    return Click(NOON)


def view(_: object) -> View:
    return View(uuid.UUID(int=1))


def imported(_: Imported) -> Order:
    return Order(NOON)


class Maker:
    def __call__(self, _: object) -> Order:
        return Order(NOON)


def several(_: object) -> list[Order] | tuple[Order, Order] | None:
    return [Order(NOON)]


def processed(context: Context[Any, None], _: object) -> Iterable[Order] | None:
    context.set_timer(context.time_ms)
    return [Order(NOON)]


def silent(context: Context[Any, None], _: object) -> None:
    context.set_timer(context.time_ms)


def timed(_: Context[Any, None], timer: Timer) -> Iterator[Order]:
    yield Order(NOON, Decimal(timer.at_ms))


def clicked(_: Context[Any, None], __: Timer) -> Generator[Click, None, None]:
    yield Click(NOON)


def viewed(context: Context[Any, None], _: object) -> list[View]:
    context.set_timer(context.time_ms)
    return [View(uuid.UUID(int=1))]


SAYERS: dict[str, Callable[[Pipeline], KeyedStream[Any, Any]]] = {
    "partial": lambda p: keyed(p).map(functools.partial(order)),
    "object": lambda p: keyed(p).map(Maker()),
    "imported": lambda p: keyed(p).map(imported),
    "flat_map": lambda p: keyed(p).flat_map(several),  # type: ignore[arg-type]
    "process": lambda p: keyed(p).process(processed, on_timer=lambda _, __: []),
    "timer": lambda p: keyed(p).process(silent, on_timer=timed),
    "both": lambda p: keyed(p).process(viewed, on_timer=clicked),
    "merge": lambda p: keyed(p).map(click).merge(keyed(p, "in2").map(view)),
    "select": lambda p: keyed(p).map(order).select("amount", at=col("at_time"), n=col("amount")),
    "with_columns": lambda p: keyed(p).map(order).with_columns(more=col("amount")),
    "field": lambda p: (
        keyed(p)
        .map(annotated(Box[Order], Box(Order(NOON))))
        .agg(last=agg.last("content"))
        .updates()
    ),
    "side": lambda p: (
        keyed(p)
        .map(order)
        .join(keyed(p, "in2").map(order), within=0)
        .agg(last=agg.last("left"))
        .updates()
    ),
    "fold": lambda p: keyed(p).map(order).fold(list, gathered).updates(),
    "folds": lambda p: keyed(p).map(order).agg(all=agg.fold(list, gathered)).updates(),
}


def gathered(orders: list[Order], one: Order) -> list[Order]:
    return [*orders, one]


@pytest.mark.parametrize("way", SAYERS)
def test_a_type_is_known_however_it_is_said(way: str) -> None:
    same_after_crashes(
        lambda pipeline: SAYERS[way](pipeline).reduce(lambda left, _: left).updates()
    )


def test_a_class_of_a_function_is_found_by_its_name() -> None:
    class Local(msgspec.Struct):
        n: int

    def make(_: object) -> Local:
        return Local(1)

    assert returned_type(make) is Local

    class Around(msgspec.Struct):
        inner: Local

    with pytest.raises(UsageError, match=r"name 'Local' is not defined; .* define it there"):
        Pipeline("p").source("in", type=Around)


class Spot(NamedTuple):
    x: int
    y: int


class SubStr(str):
    __slots__ = ()


@pytest.mark.parametrize("key", [Spot(1, 2), SubStr("a"), (1, Spot(1, 2))])
def test_keys_that_would_come_back_as_others_are_refused(key: Any) -> None:
    pipeline = Pipeline("p")
    pipeline.source("in").key_by(lambda _: key).count().to("out")
    with pytest.raises(MillstreamError, match="a key cannot be a"):
        pipeline.test({"in": ROWS})


def test_an_enum_as_key_is_its_value_before_a_restart_as_well() -> None:
    def declare(pipeline: Pipeline) -> KeyedStream[Any, Any]:
        rows = pipeline.source("in", time="t").key_by(lambda _: (Size.SMALL, Level.LOW))
        return rows.window(tumbling("5s")).count()

    assert "Windowed(('s', 1), 0, 5000, 3)" in same_after_crashes(declare)[0]


def test_a_named_tuple_can_be_what_tells_rows_apart() -> None:
    pipeline = Pipeline("p")
    rows = pipeline.source("in", time="t")
    rows.dedup(lambda _: Spot(1, Level.LOW), within="1h").to("out")
    assert ROWS[:1] == pipeline.test({"in": ROWS})["out"]


@pytest.mark.parametrize(
    "value",
    [
        Counter("a"),
        defaultdict(int),
        Size.SMALL,
        [Level.LOW],
        {"a": (1,)},
        NOON,
        [{"a": {1: Size.SMALL}}],
    ],
)
@pytest.mark.parametrize("windowed", [True, False])
def test_what_only_equals_what_comes_back_is_refused(value: object, windowed: bool) -> None:
    """A Counter equals a dict; but a dict has no default."""
    pipeline = Pipeline("p")
    rows = keyed(pipeline)
    if windowed:
        rows.window(tumbling("5s")).fold(lambda: value, lambda kept, _: kept).to("out")
    else:
        rows.agg(value=agg.fold(lambda: value, lambda kept, _: kept)).to("out")
    with pytest.raises(UsageError, match=r"the state of 'in\.\w+'.*(would|cannot)"):
        pipeline.test({"in": ROWS})


def test_times_of_zones_and_signalling_nans_are_refused() -> None:
    """Of a zone the offset would come back alone: a day later it may be another."""
    berlin = NOON.astimezone(ZoneInfo("Europe/Berlin"))
    codec = RowCodec(list[datetime.datetime], "rows")
    with pytest.raises(UsageError, match=r"of the zone Europe/Berlin .* make the time UTC"):
        codec.pack([[NOON, berlin]])
    codec.pack([[NOON, NOON.astimezone(ZoneInfo("UTC"))]])
    with pytest.raises(UsageError, match="cannot be kept"):
        RowCodec(Decimal, "rows").pack([Decimal("sNaN")])


def test_merged_structs_without_tags_are_refused_with_what_to_do() -> None:
    pipeline = Pipeline("p")
    rows = keyed(pipeline)
    rows.map(order).merge(rows.map(annotated(Box[int], Box(1)))).reduce(lambda a, _: a).to("out")
    with pytest.raises(UsageError, match=r"it has a Order, .* told apart by tags"):
        pipeline.test({"in": ROWS})
