"""Random pipelines over a topic with a schema, run on columns, on rows, and on both in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

import msgspec

import millstream
from millstream import MillstreamError, Store
from millstream.processor import (
    Pipeline,
    agg,
    col,
    counting,
    daily,
    hopping,
    lit,
    session,
    tumbling,
)
from millstream.processor.count_windows import CountWindows
from millstream.processor.lanes import runs_on_columns

EPOCH_MS = 1_700_000_000_000


class Row(msgspec.Struct):
    user: str
    group: int
    good: bool
    amount: float
    count: int
    ts: int
    note: str | None = None
    weight: float | None = None
    size: int | None = None


TEXTS = ("", "a", "b", "ab", "\u00e4", "z" * 20, "\u65e5\u672c", '"quoted"\n', "\x00")
FLOATS = (0.0, -0.0, 0.1, 0.2, -1.5, 1e300, -1e300, 5e-324, 1e16, 3.0)
INTS = (0, 1, -1, 7, 2**53, 2**53 + 1, -(2**53) - 1, 2**62, -(2**62), 2**63 - 1, -(2**63))


def rows(rng: random.Random, count: int) -> list[Row]:
    """Rows in some disorder; most are ordinary, some are at the edge of something."""
    odd = rng.random() < 0.4
    users = [f"u{number}" for number in range(rng.choice((1, 3, 40)))] + (list(TEXTS) * odd)

    def number() -> int:
        return rng.choice(INTS) if odd and rng.random() < 0.05 else rng.randrange(-50, 50)

    def fraction() -> float:
        return rng.choice(FLOATS) if odd and rng.random() < 0.05 else rng.randrange(999) / 8 + 0.1

    def perhaps(value: Any) -> Any:
        return None if rng.random() < 0.3 else value

    step = rng.choice((0, 1, 7, 400, 3_000, 70_000_000))
    return [
        Row(
            rng.choice(users),
            number() if odd else rng.randrange(5),
            rng.random() < 0.5,
            fraction(),
            number(),
            EPOCH_MS + index * step - rng.randrange(3_000),
            perhaps(rng.choice(TEXTS)),
            perhaps(fraction()),
            perhaps(number()),
        )
        for index in range(count)
    ]


CONDITIONS: tuple[Callable[[], Any], ...] = (
    lambda: col("count") > 3,
    lambda: col("amount") * 2 < col("amount") + 60,
    lambda: (col("good") & (col("group") != 2)) | (col("user") == "u1"),
    lambda: col("weight").is_null() | (col("weight") > 20.5),
    lambda: col("size") >= col("count"),
    lambda: col("note").is_in(["a", "\u00e4", ""]),
    lambda: col("user").starts_with("u1"),
    lambda: col("good"),
)
FIELDS: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("amount", lambda: col("amount") * 1.5),
    ("count", lambda: col("count") + 1),
    ("size", lambda: col("size") - col("count")),
    ("good", lambda: col("count") < 10),
    ("weight", lambda: col("weight").fill_null(0.5)),
    ("more", lambda: lit(4)),
)
KEYS: tuple[Callable[[], Any], ...] = (
    lambda: "user",
    lambda: "user",
    lambda: "group",
    lambda: "good",
    lambda: "note",  # may be None: dead letters
    lambda: "weight",
    lambda: col("group") + 1,
    lambda: lambda row: 1,
)
WINDOWS = (
    tumbling("1s"),
    tumbling("10s", offset=-300),
    hopping("10s", "3s"),
    hopping("2s", "5s"),
    tumbling("1h"),
    daily(tz="Europe/Berlin"),
    daily(tz="America/New_York", offset="6h"),
    counting(1),
    counting(3),
    counting(20),
    session("1s"),
    session("4s"),
    session("1m"),
)
AGGREGATES: tuple[Callable[[], Any], ...] = (
    agg.count,
    lambda: agg.count("note"),
    lambda: agg.sum("count"),
    lambda: agg.sum("amount"),
    lambda: agg.sum("weight"),
    lambda: agg.sum("size"),
    lambda: agg.mean("amount"),
    lambda: agg.mean("count"),
    lambda: agg.mean("size"),
    lambda: agg.min("amount"),
    lambda: agg.max("weight"),
    lambda: agg.min("size"),
    lambda: agg.max("count"),
    lambda: agg.max("note"),
    lambda: agg.first("user"),
    lambda: agg.last("note"),
    lambda: agg.distinct("group"),
    lambda: agg.distinct("note"),
    lambda: agg.distinct("weight"),
    lambda: agg.collect("count", limit=5),
    lambda: agg.collect("note", limit=2),
    lambda: agg.top_k(3, "size"),
    lambda: agg.top_k(2, "note"),
    lambda: agg.top_k(2, "weight"),
    lambda: agg.top_k(2, "user", by="size"),
    lambda: agg.first("note", by="amount"),
    lambda: agg.last("count", by=col("weight") * 2),
    lambda: agg.first("size", by="note"),
    lambda: agg.quantile(0.5, "amount"),
    lambda: agg.quantile(0.9, "size", error=0.1),
    lambda: agg.min("note"),
    lambda: agg.min("good"),
    lambda: agg.first("good"),
    lambda: agg.stddev("amount"),
    lambda: agg.variance("size", population=True),
    lambda: agg.variance("count"),
    lambda: agg.first("size"),
    lambda: agg.last("amount"),
    lambda: agg.first("weight"),
    lambda: agg.last("count"),
    lambda: agg.sum(col("count") * 2),
    lambda: agg.max("good"),
    lambda: agg.min(lambda row: row["count"] if isinstance(row, dict) else row.count),
)


def pipeline(rng: random.Random) -> Pipeline:
    """A random one over the topic `rows`."""
    job = Pipeline("job")
    time = rng.choice(("ts", None, col("ts") + 5))
    source_type = rng.choice((Row, dict))
    source = job.source("rows", type=source_type, time=time, disorder="2s")
    source.dead_letters.to("dead")
    stream: Any = source
    if rng.random() < 0.15:
        stream = stream.merge(job.source("more", type=source_type, time=time, disorder="3s"))
    for _ in range(rng.randrange(4)):
        stream = another(stream, rng)
    if rng.random() < 0.2:
        stream = joined(job, stream, rng)
        if rng.random() < 0.4:
            stream.to("out")
            return job
    if rng.random() < 0.2:
        running(stream, rng)
        return job
    if rng.random() < 0.15:
        stream.select("user", "count", more=col("amount") + col("count")).to("out")
        return job
    windowed(stream, rng)
    return job


def another(stream: Any, rng: random.Random) -> Any:
    """A stream with one more operator of those without results of their own."""
    turn = rng.random()
    if turn < 0.45:
        return stream.filter(rng.choice(CONDITIONS)())
    if turn < 0.75:
        chosen = rng.sample(FIELDS, rng.randrange(1, 4))
        return stream.with_columns(**{name: make() for name, make in chosen})
    if turn < 0.79:
        return stream.map(lambda row: row)
    if turn < 0.84:
        return merged(stream, rng)
    if turn < 0.91:
        return stream.dedup(rng.choice(KEYS)(), within=rng.choice(("1s", "1m")))
    stream.filter(rng.choice(CONDITIONS)()).to("side")
    return stream


def merged(stream: Any, rng: random.Random) -> Any:
    """A stream with parts of itself, of which some rows are others."""
    parts = [stream.filter(rng.choice(CONDITIONS)()) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.5:
        chosen = rng.choice(FIELDS)
        parts[0] = parts[0].with_columns(**{chosen[0]: chosen[1]()})
    return parts[0].merge(stream, *parts[1:])


RUNNING: tuple[Callable[[], Any], ...] = (
    agg.count,
    lambda: agg.count("note"),
    lambda: agg.sum("count"),
    lambda: agg.sum("amount"),
    lambda: agg.sum("weight"),
    lambda: agg.sum("size"),
    lambda: agg.mean("amount"),
    lambda: agg.mean("size"),
    lambda: agg.min("amount"),
    lambda: agg.max("weight"),
    lambda: agg.min("size"),
    lambda: agg.max("count"),
    lambda: agg.first("size"),
    lambda: agg.last("amount"),
    lambda: agg.first("weight"),
    lambda: agg.last("count"),
    lambda: agg.distinct("group"),
    lambda: agg.distinct("note"),
    lambda: agg.distinct("weight"),
    lambda: agg.first("note"),
    lambda: agg.last("note"),
    lambda: agg.first("good"),
    lambda: agg.first("note", by="amount"),
    lambda: agg.last("note", by="size"),
    lambda: agg.last("user", by="ts"),
    lambda: agg.first("weight", by="count"),
    lambda: agg.min("note"),
    lambda: agg.max("good"),
    lambda: agg.variance("amount"),
    lambda: agg.stddev("size", population=True),
    lambda: agg.quantile(0.5, "weight"),
)


def running(stream: Any, rng: random.Random) -> None:
    """Let aggregates of all rows so far be written, after each row."""
    chosen = rng.sample(RUNNING, rng.randrange(1, 4))
    if rng.random() < 0.1:
        chosen.append(rng.choice(AGGREGATES))
    made = {f"a{number}": make() for number, make in enumerate(chosen)}
    keyed = stream.key_by(rng.choice(KEYS)())
    table = keyed.count() if rng.random() < 0.1 else keyed.agg(**made)
    table.to("out")
    if rng.random() < 0.3:
        table.to("running")


def windowed(stream: Any, rng: random.Random) -> None:
    """Let windows of the rows of a stream be written."""
    aggregates = {
        f"a{number}": make()
        for number, make in enumerate(rng.sample(AGGREGATES, rng.randrange(1, 5)))
    }
    keyed = stream.key_by(rng.choice(KEYS)())
    windows = rng.choice(WINDOWS)
    grace = "0s" if isinstance(windows, CountWindows) else rng.choice(("0s", "2s"))
    results = keyed.window(windows, grace=grace).agg(**aggregates)
    results.late.to("late")
    if rng.random() < 0.3:
        results = results.filter(col("a0").is_not_null())
    if rng.random() < 0.2:
        results = results.key_by("end").window(tumbling("1h")).agg(n=agg.count())
    results.to("out")


class Known(msgspec.Struct):
    """What a table knows of a key."""

    name: str
    level: int
    share: float | None = None


SELECTED: tuple[Callable[[], Any], ...] = (
    lambda: col("left").field("amount"),
    lambda: col("right").field("level") + col("left").field("group"),
    lambda: col("right").field("name"),
    lambda: col("right").field("share").fill_null(0.25),
    lambda: col("right").field("level").is_null() | col("left").field("good"),
    lambda: col("left").field("note"),
)


def joined(job: Pipeline, stream: Any, rng: random.Random) -> Any:
    """The rows of a stream with what a table knows of them."""
    keyed, how = stream.key_by("user"), rng.choice(("inner", "left"))
    versioned: dict[str, Any] = {}
    if rng.random() < 0.3:
        versioned = {"versioned": True, "disorder": rng.choice(("0s", "3s"))}
    table = job.table("known", type=rng.choice((Known, dict)), key_type=str, **versioned)
    if rng.random() < 0.3:
        table = table.filter(lambda known: len(str(known)) % 3)
    if rng.random() < 0.5:
        pairs = keyed.join_table(table, how=how)
    else:
        direction = rng.choice(("backward", "forward", "nearest"))
        within = rng.choice(("1s", "10s", None if direction == "backward" else "1ms"))
        pairs = keyed.join_asof(table.updates(), direction=direction, within=within, how=how)
        pairs.late.to("late-joins")
    if rng.random() < 0.3:
        pairs = pairs.filter(col("left").field("count") < 20)
    if rng.random() < 0.2:
        pairs = pairs.filter(col("right").is_not_null())
    columns = {name: col("left").field(name) for name in Row.__struct_fields__}
    chosen = {f"x{n}": make() for n, make in enumerate(rng.sample(SELECTED, 2))}
    return pairs.select(**columns, **chosen)


class Stored(Row, kw_only=True):
    """What topics with rows of any of these pipelines store as columns."""

    more: int | None = None


def create_stored(store: Store, rng: random.Random) -> None:
    """Make topics that rows are written to store columns, or not."""
    for topic in ("side", "late"):
        if rng.random() < 0.7:
            store.create_topic(topic, schema=Stored, partitions=rng.choice((1, 1, 3)))


def update(store: Store, data: Sequence[Row], rng: random.Random) -> None:
    """Let the table know something, or nothing any more, of users of these rows and of others."""
    users = [*(rng.choice(data).user for _ in range(rng.randrange(6))), "u1", "nobody"]
    rng.shuffle(users)
    for user in users[: rng.randrange(len(users))]:
        known = Known(rng.choice(TEXTS), rng.randrange(9), rng.choice((None, 0.5)))
        value = None if rng.random() < 0.2 else msgspec.json.encode(known)
        time = rng.choice(data).ts + rng.randrange(-3000, 3000)
        store.append("known", value, key=user.encode(), timestamp_ms=time)


def append(store: Store, topic: str, rows: Sequence[Row]) -> None:
    """Put rows into a topic as JSON."""
    values = [msgspec.json.encode(row) for row in rows]
    store.append_many(topic, values, timestamps_ms=[row.ts for row in rows])


class Outcome(NamedTuple):
    """What came of a run."""

    records: dict[str, list[tuple[Any, ...]]]
    """By topic; empty if it failed."""
    error: str | None


def outcome(
    seed: int, data: Sequence[Row], columns: Callable[[int], bool], *, columnar: bool = True
) -> Outcome:
    """Run the pipeline of a seed over rows, in several runs that go on where the last stopped.

    Args:
        seed: Of the pipeline, and of where runs end and steps are cut.
        data: The rows.
        columns: Whether the run of a number may work on columns.
        columnar: Whether the topic stores columns, or JSON with the same schema.
    """
    job, rng = pipeline(random.Random(seed)), random.Random(seed)
    values = "columns" if columnar else "json"
    with millstream.open() as store:
        given = job.plan.input_topics()
        for topic in given:
            schema = {} if topic == "known" else {"schema": Row, "values": values}
            store.create_topic(topic, **schema)
        create_stored(store, rng)
        parts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        for number, (start, stop) in enumerate(pairwise([0, *parts, len(data)])):
            chosen = data[start:stop]
            while chosen:
                count = rng.randrange(1, len(chosen) + 1)
                some, chosen = chosen[:count], chosen[count:]
                if "known" in given:
                    update(store, some, rng)
                append(store, "rows", some)
                if "more" in given:
                    append(store, "more", some[::3])
            last = stop == len(data)
            allowed = runs_on_columns if columns(number) else (lambda _plan, _topics: frozenset())
            try:
                with mock.patch("millstream.processor.topology.runs_on_columns", allowed):
                    job.run(
                        store,
                        until="end",
                        on_end="flush" if last else "hold",
                        batch_records=rng.choice((7, 100, None)),
                        epoch_ms=0,
                    )
            except MillstreamError as error:
                return Outcome({}, str(error))
        topics = [topic.name for topic in store.topics() if topic.name not in given]
        return Outcome({topic: _records(store, topic) for topic in topics}, None)


def _records(store: Store, topic: str) -> list[tuple[Any, ...]]:
    return [
        (each.partition, each.timestamp_ms, each.key, each.value, each.headers)
        for each in store.read(topic)
    ]
