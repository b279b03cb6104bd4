"""The column lane: what runs in it, what leaves it, and that both ends of it are columns."""

from __future__ import annotations

import random
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import msgspec
import polars
import pyarrow as pa
import pytest

import millstream
from millstream import RecordError, Store
from millstream.processor import Pipeline, agg, col, daily, hopping, lanes, tumbling
from millstream.processor.frame_keys import KeyNumbers
from millstream.processor.frame_objects import Objects
from millstream.processor.frame_windowing import ArrayWindow, FrameWindowOperator
from millstream.processor.frames import FrameChunk, plain_fields
from millstream.processor.operators import FilterOperator, KeyByOperator, MapOperator
from millstream.processor.windowing import WindowOperator

HOUR_MS = 3_600_000
DAY = timedelta(days=1)


class Event(msgspec.Struct):
    user: str
    amount: float
    ts: int
    size: int | None = None


TOTALS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("window_start", pa.int64(), nullable=False),
        pa.field("window_end", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("total", pa.float64()),
    ]
)


@pytest.fixture
def store() -> Store:
    with millstream.open() as store:
        store.create_topic("events", schema=Event)
        store.append_arrow("events", events(2_000))
        yield store


def events(count: int) -> pa.Table:
    return pa.table(
        {
            "user": [f"u{number % 17}" for number in range(count)],
            "amount": [number / 8 for number in range(count)],
            "ts": [number * 500 - number % 7 * 100 for number in range(count)],
            "size": [None if number % 3 else number for number in range(count)],
        }
    )


def totals(job: Pipeline, windows: Any = None) -> None:
    (
        job.source("events", type=Event, time="ts", disorder="1s")
        .filter((col("amount") > 3) & ~col("user").starts_with("u13"))
        .with_columns(double=col("amount") * 2)
        .key_by("user")
        .window(windows or tumbling("1m"), grace="1s")
        .agg(n=agg.count(), total=agg.sum("double"))
        .to("totals")
    )


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("rows were looked at")


def forbid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for operator in (FilterOperator, MapOperator, KeyByOperator):
        monkeypatch.setattr(operator, "process", never)
    monkeypatch.setattr(WindowOperator, "_add", never)
    monkeypatch.setattr(FrameChunk, "as_chunk", never)


# --- what stays in columns -----------------------------------------------------------------------


@pytest.mark.parametrize("windows", [tumbling("1m"), hopping("2m", "30s")], ids=str)
def test_from_a_topic_to_a_topic_no_row_becomes_an_object(
    store: Store, monkeypatch: pytest.MonkeyPatch, windows: Any
) -> None:
    forbid_rows(monkeypatch)
    store.create_topic("totals", schema=TOTALS)
    job = Pipeline("job")
    totals(job, windows)

    metrics = job.run(store, until="end")

    assert 17 < metrics.records_out == store.offsets("totals")[0].end


def test_days_of_a_zone_are_those_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two years of rows, with days of 23 and 25 hours, and rows that come late."""

    def declared() -> Pipeline:
        job = Pipeline("job")
        keyed = job.source("events", type=Event, time="ts", disorder="8h").key_by("user")
        days = keyed.window(daily(tz="America/New_York", offset="2h"))
        results = days.agg(n=agg.count(), total=agg.sum("amount"))
        results.late.to("late")
        results.to("totals")
        return job

    rows = events(6_000).set_column(
        2, "ts", pa.array([n * 3 * HOUR_MS - n % 5 * 7 * HOUR_MS for n in range(6_000)])
    )
    with millstream.open() as store:
        store.create_topic("events", schema=Event)
        store.append_arrow("events", rows)
        monkeypatch.setattr(WindowOperator, "_add", never)
        declared().run(store, until="end", on_end="flush")
        monkeypatch.undo()
        found = {topic: [r.value for r in store.read(topic)] for topic in ("totals", "late")}
    expected = declared().test({"events": rows.to_pylist()}, on_end="flush")

    assert {topic: [r.value for r in expected.records(topic)] for topic in found} == found
    lengths = [row["window_end"] - row["window_start"] for row in expected["totals"]]
    assert {23, 24, 25} == {length // HOUR_MS for length in lengths}
    assert found["late"]


def test_columns_that_are_written_are_those_of_the_rows(store: Store) -> None:
    store.create_topic("totals", schema=TOTALS, partitions=3)
    job = Pipeline("job")
    totals(job)
    job.run(store, until="end", on_end="flush")
    columns = [(each.partition, each.key, each.value) for each in store.read("totals")]

    with millstream.open() as other:
        other.create_topic("events")
        other.create_topic("totals", schema=TOTALS, partitions=3)
        other.append_many("events", [each.value for each in store.read("events")])
        again = Pipeline("job")
        totals(again)
        again.run(other, until="end", on_end="flush")
        rows = [(each.partition, each.key, each.value) for each in other.read("totals")]

    assert len(columns) > 17
    # Within a partition the order is the same; between them an epoch decides.
    assert sorted(columns, key=lambda each: each[0]) == sorted(rows, key=lambda each: each[0])


def test_verify_runs_on_rows_and_holds_them_against_the_columns(store: Store) -> None:
    # Other fields than the results have, and in another order.
    store.create_topic("totals", schema=pa.schema([*list(TOTALS)[::-1], ("more", pa.int64())]))
    job = Pipeline("job")
    totals(job)
    job.run(store, until="end")

    found = job.verify(store)

    assert [] == list(found.differences)
    assert store.offsets("totals")[0].end == found.records_compared > 17


def test_rows_of_a_column_topic_are_made_without_json(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [msgspec.json.decode(each.value, type=Event) for each in store.read("events")]
    monkeypatch.setattr("millstream.batch_columns.to_json", never)
    seen: list[Event] = []
    job = Pipeline("job")
    job.source("events", type=Event, time="ts").peek(seen.append).to("out")
    job.run(store, until="end")

    assert expected == seen


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_batches_of_json_are_parsed_together(compression: str) -> None:
    class Some(msgspec.Struct):
        n: int
        text: str | None = None

    rows = [Some(n, None if n % 3 else f"{{{n}}}") for n in range(100)]
    values = list(map(msgspec.json.encode, rows))
    with millstream.open() as store:
        store.create_topic("some", schema=Some, values="json", compression=compression)
        for start, stop in ((0, 40), (40, 41), (41, 100)):
            store.append_many("some", values[start:stop])
        first, second, third = store.read("some").batches()
        parts = [first.slice(10, 20), first.slice(20), second, third]
        millstream.RecordBatch.parse_together(parts)
        parsed = [part._columns.parsed for part in parts]
        found = [row for part in parts for row in part.arrow().to_pylist()]

    assert [40, 40, 1, 59] == [each.num_rows for each in parsed]
    assert [msgspec.to_builtins(row) for row in rows[10:]] == found


def test_only_what_is_asked_for_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = millstream.RecordBatch.arrow

    def arrow(batch: Any, columns: Any = None) -> Any:
        read.extend(columns)
        return original(batch, columns)

    monkeypatch.setattr(millstream.RecordBatch, "arrow", arrow)
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.key_by("user").window(tumbling("1m")).agg(n=agg.count()).to("counts")
    job.run(store, until="end")

    assert {"user", "ts"} == set(read)


def test_a_pipeline_says_where_it_leaves_the_lane_and_why(store: Store) -> None:
    store.create_topic("large", schema=Event)
    store.create_topic("plain")
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.filter(col("amount") > 3).to("large")
    named = source.filter(col("amount") > 1).map(lambda row: row, name="same")
    named.key_by("user").count().to("counts")
    plain = job.source("plain", type=Event, time="ts")
    plain.filter(col("size") > 3).to("small")

    assert """\
pipeline job
  source events: Event, time 'ts', disorder 0s  [columns]
    filter amount > 3  [columns]
      to large  [columns]
    filter amount > 1  [columns]
      same  [rows: a Python function]
        key_by 'user'  [rows: it gets rows]
          count()  [state events.count]  [rows: it gets rows]
            to counts  [rows: the topic stores no columns]
  source plain: Event, time 'ts', disorder 0s  [rows: the topic has no schema]
    filter size > 3  [rows: it gets rows]
      to small  [rows: the topic stores no columns]""" == job.explain(store)
    assert "columns" not in job.explain()


def test_without_the_extra_everything_runs_on_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "columns_installed", lambda: False)
    job = Pipeline("job")
    totals(job)

    assert lanes.NO_COLUMNS == lanes.column_topics(store, job.plan)
    assert "[rows: the extra arrow is not installed]" in job.explain(store)


def test_dedup_keeps_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def declared() -> Pipeline:
        job = Pipeline("job")
        source = job.source("events", type=Event, time="ts", disorder="1s")
        users = source.dedup("user", within="1h").key_by("user").dedup(col("ts") // 100, within=9)
        users.to("seen")
        return job

    expected = declared().test({"events": events(2_000).to_pylist()})
    store.create_topic("seen", schema=Event)
    forbid_rows(monkeypatch)
    monkeypatch.setattr("millstream.processor.columns.Chunk.kept", never)
    declared().run(store, until="end")
    monkeypatch.undo()

    assert expected["seen"] == [msgspec.json.decode(each.value) for each in store.read("seen")]
    assert 17 == len(expected["seen"])


def doubled(rows: pa.RecordBatch) -> Any:
    """Polars code of a user."""
    return polars.from_arrow(rows).with_columns(
        double=polars.col("amount") * 2, name=polars.col("user") + "!"
    )


def test_code_of_the_user_keeps_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def declared() -> Pipeline:
        job = Pipeline("job")
        source = job.source("events", type=Event, time="ts")
        named = source.map_batch(doubled, columns=True).filter(col("double") > 100)
        windows = named.key_by("name").window(tumbling("1m"))
        windows.agg(n=agg.count(), total=agg.sum("double")).to("totals")
        return job

    expected = declared().test({"events": events(2_000).to_pylist()})["totals"]
    store.create_topic("totals", schema=TOTALS)
    forbid_rows(monkeypatch)
    declared().run(store, until="end")
    monkeypatch.undo()
    declared().run(store, until="end", on_end="flush")

    assert expected == [msgspec.json.decode(each.value) for each in store.read("totals")]
    assert len(expected) > 17


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rows: rows.slice(1), "1999 rows for 2000"),
        (lambda rows: [1] * rows.num_rows, "return Arrow data"),
        (lambda rows: rows["missing"], "KeyError"),
    ],
)
def test_what_is_no_row_for_each_row_is_an_error(store: Store, function: Any, message: str) -> None:
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.map_batch(function, columns=True, name="mine").to("out")

    with pytest.raises(RecordError, match=f"mine: .*{message}"):
        job.run(store, until="end", batch_records=2_000)


def test_columns_that_the_lane_does_not_know_become_rows(store: Store) -> None:
    def with_lists(rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.append_column("list", pa.array([[1]] * rows.num_rows))

    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.map_batch(with_lists, columns=True).filter(col("amount") < 1).to("out")
    job.run(store, until="end")

    assert [[1]] * 8 == [msgspec.json.decode(each.value)["list"] for each in store.read("out")]


class Stay(msgspec.Struct):
    page: str
    n: int
    at: datetime


def test_fields_that_are_no_columns_are_kept_beside_new_ones() -> None:
    """Times of JSON keep their zone, which a column would not."""
    values = [
        b'{"page":"a","n":1,"at":"2024-05-01T12:00:03+02:00"}',
        b'{"page":"b","n":2,"at":"2024-05-01T12:00:03Z"}',
    ]
    with millstream.open() as store:
        store.create_topic("stays", schema=Stay, values="json")
        store.append_many("stays", values)
        job = Pipeline("job")
        job.source("stays", type=Stay).with_columns(more=col("n") + 1).to("out")
        job.run(store, until="end")
        found = [each.value for each in store.read("out")]

    assert [
        b'{"page":"a","n":1,"at":"2024-05-01T12:00:03+02:00","more":2}',
        b'{"page":"b","n":2,"at":"2024-05-01T12:00:03Z","more":3}',
    ] == found


class Visit(msgspec.Struct):
    page: str
    at: datetime
    left: datetime | None = None


def test_times_are_columns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def declared() -> Pipeline:
        job = Pipeline("job")
        visits = job.source("visits", type=Visit, time="at").filter(col("left").is_not_null())
        visits.to("kept")
        visits.peek(lambda visit: zones.add(visit.at.tzinfo)).to("seen")
        first = visits.key_by("page").window(tumbling("1h")).agg(first=agg.min("at"), n=agg.count())
        first.to("first")
        return job

    at = [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) + each * DAY for each in range(5)]
    left = [None, *(each + DAY / 7 for each in at[1:])]
    zones: set[Any] = set()
    with millstream.open() as store:
        store.create_topic("visits", schema=Visit)
        store.create_topic("kept", schema=Visit)
        store.append_columns("visits", {"page": list("abaab"), "at": at, "left": left})
        rows = [msgspec.json.decode(each.value, type=Visit) for each in store.read("visits")]
        monkeypatch.setattr("millstream.batch_columns.to_json", never)
        declared().run(store, until="end", on_end="flush")
        monkeypatch.undo()
        found = {
            topic: [(each.timestamp_ms, each.key, each.value) for each in store.read(topic)]
            for topic in ("kept", "seen", "first")
        }
    expected = declared().test({"visits": rows})

    assert {UTC} == zones
    assert found == {
        topic: [(each.timestamp_ms, each.key, each.value) for each in expected.records(topic)]
        for topic in found
    }
    assert -1 + 86_400_000 == found["kept"][0][0], "rounded down, also before 1970"


# --- what leaves it ------------------------------------------------------------------------------


def test_an_error_names_the_record_it_comes_from(store: Store) -> None:
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.filter(1 / (col("amount") - 25) > 0).to("out")

    with pytest.raises(RecordError, match="ZeroDivisionError") as caught:
        job.run(store, until="end")

    assert ("events", 0, 200) == (caught.value.topic, caught.value.partition, caught.value.offset)


def test_rows_without_a_key_are_dead_letters(store: Store) -> None:
    job = Pipeline("job")
    source = job.source("events", type=Event, time="ts")
    source.dead_letters.to("dead")
    source.key_by("size").window(tumbling("1h")).agg(n=agg.count()).to("out")
    job.run(store, until="end", on_end="flush")

    missing = sum(event["size"] is None for event in events(2_000).to_pylist())
    assert missing == store.offsets("dead")[0].end
    assert 2_000 - missing == sum(
        msgspec.json.decode(each.value)["n"] for each in store.read("out")
    )


def test_an_aggregate_that_raises_names_itself_and_the_record(store: Store) -> None:
    job = Pipeline("job")
    keyed = job.source("events", type=Event, time="ts").key_by("user")

    def add(total: int, size: int | None) -> int:
        return total + size  # type: ignore[operator]  # some are None

    keyed.window(tumbling("1h")).agg(n=agg.fold(lambda: 0, add, "size")).to("o")

    with pytest.raises(RecordError, match="agg n") as caught:
        job.run(store, until="end")

    assert 1 == caught.value.offset


def test_sums_beyond_64_bits_are_exact(store: Store) -> None:
    class Large(msgspec.Struct):
        n: int
        ts: int

    store.create_topic("large", schema=Large)
    store.append_columns("large", {"n": [2**62, 2**62, 5, -7], "ts": [0, 1, 2, HOUR_MS]})
    job = Pipeline("job")
    keyed = job.source("large", type=Large, time="ts").key_by(col("ts") // HOUR_MS)
    keyed.window(tumbling("1h")).agg(total=agg.sum("n"), mean=agg.mean("n")).to("out")
    job.run(store, until="end", on_end="flush", epoch_ms=10_000)

    found = [msgspec.json.decode(each.value) for each in store.read("out")]
    assert [2**63 + 5, -7] == [each["total"] for each in found]
    assert [(2**63 + 5) / 3, -7.0] == [each["mean"] for each in found]


@pytest.mark.parametrize("wide", [0, 100, 1 << 20])
def test_keys_that_have_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    monkeypatch.setattr("millstream.processor.frame_windowing._WIDE_CELLS_MAX", wide)
    monkeypatch.setattr("millstream.processor.frame_windowing._TABLE_KEYS_MIN", 50)
    with millstream.open() as store:
        store.create_topic("events", schema=Event)
        for number in range(30):
            table = {
                "user": [f"{number}-{user}" for user in range(20)] * 2,
                "amount": [0.5] * 40,
                "ts": [number * 60_000 + place for place in range(40)],
                "size": [1] * 40,
            }
            store.append_columns("events", table)
        sizes: list[int] = []
        original = KeyNumbers.numbers_of

        def numbers_of(table: KeyNumbers, keys: Any) -> Any:
            sizes.append(len(table))
            return original(table, keys)

        monkeypatch.setattr(KeyNumbers, "numbers_of", numbers_of)
        job = Pipeline("job")
        keyed = job.source("events", type=Event, time="ts").key_by("user")
        keyed.window(tumbling("1m")).agg(n=agg.sum("size")).to("out")
        job.run(store, until="end", on_end="flush", batch_records=40)

        values = [msgspec.json.decode(each.value) for each in store.read("out")]
    assert max(sizes) <= 120, "20 keys are alive at a time"
    assert 600 == len(values)
    assert {2} == {each["n"] for each in values}


@pytest.mark.parametrize("epoch_ms", [0, 10_000])
def test_windows_with_slots_for_all_keys_make_room_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch, epoch_ms: int
) -> None:
    """First more and more keys come to a window, then most are forgotten while it is open."""
    monkeypatch.setattr("millstream.processor.frame_windowing._WIDE_KEYS_MIN", 0)
    monkeypatch.setattr("millstream.processor.frame_windowing._TABLE_KEYS_MIN", 50)
    packed: list[tuple[str, bool]] = []
    original = ArrayWindow._pack

    def pack(window: ArrayWindow) -> None:
        if window._keys_max:
            packed.append((sys._getframe(1).f_code.co_name, window.persisted))
        original(window)

    monkeypatch.setattr(ArrayWindow, "_pack", pack)
    rng = random.Random(5)
    steps = [(10, [f"{step}-{user}" for user in range(20)] * 2) for step in range(12)]
    steps += [(14, ["late", "0-0"] * 20), (10, ["11-7"] * 40), (22, ["9-9"] * 40)]
    steps += [(14, ["late"] * 40)]
    expected: Counter[tuple[int, str]] = Counter()
    with millstream.open() as store:
        store.create_topic("events", schema=Event)
        for minute, users in steps:
            sizes = [rng.randrange(9) for _ in users]
            times = [minute * 60_000 + rng.randrange(60_000) for _ in users]
            table = {"user": users, "amount": [0.5] * len(users), "ts": times, "size": sizes}
            store.append_columns("events", table)
            for user, size in zip(users, sizes, strict=True):
                expected[minute * 60_000, user] += size
        job = Pipeline("job")
        source = job.source("events", type=Event, time="ts", disorder="10m")
        windows = source.key_by("user").window(tumbling("1m"))
        windows.agg(n=agg.sum("size"), most=agg.max("size"), mean=agg.mean("size")).to("out")
        job.run(store, until="end", on_end="flush", batch_records=40, epoch_ms=epoch_ms)

        values = [msgspec.json.decode(each.value) for each in store.read("out")]
    found = {(each["window_start"], each["key"]): each["n"] for each in values}
    assert expected == found
    assert len(expected) == len(values)
    assert {("_slots", not epoch_ms), ("renumber", not epoch_ms)} <= set(packed)


def test_many_open_windows_do_not_take_memory_for_every_key(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.processor.frame_windowing._CELLS_MAX", 100)
    kept: list[int] = []
    original = FrameWindowOperator._add_columns

    def add(operator: FrameWindowOperator, *args: Any) -> None:
        original(operator, *args)
        kept.append(len(operator._arrays))

    monkeypatch.setattr(FrameWindowOperator, "_add_columns", add)
    job = Pipeline("job")
    totals(job, hopping("10m", "1m"))
    job.run(store, until="end", on_end="flush")

    assert 0 < max(kept) <= 100 // 16
    # One key has been filtered out.
    assert 16 <= store.offsets("totals")[0].end


# --- pieces --------------------------------------------------------------------------------------


def test_fields_are_plain_only_if_every_value_is_of_the_declared_type() -> None:
    class Plain(msgspec.Struct):
        a: int
        b: str | None = None
        c: str | None = "x"

    class Odd(msgspec.Struct):
        a: float = 1  # an int where a float is declared

    class Nested(msgspec.Struct):
        a: list[int]

    assert {
        "a": (pa.int64(), False, False),
        "b": (pa.string(), True, True),
        "c": (pa.string(), True, False),
    } == plain_fields(Plain)
    assert plain_fields(Odd) is None
    assert plain_fields(Nested) is None
    assert plain_fields(dict) is None


def test_keys_are_ordered_by_their_bytes() -> None:
    table = KeyNumbers()
    numbers = table.numbers_of(pa.array([10, 9, -1, 100]))

    assert [2, 0, 3, 1] == table.ordered(numbers).tolist()
    table.clear()
    numbers = table.numbers_of(pa.array(["b", "\u00e9", "a", "\u65e5"]))
    assert [2, 0, 1, 3] == table.ordered(numbers).tolist()


def test_any_aggregate_takes_part() -> None:
    held = Objects(agg.distinct("user"))

    held.grow(2)

    assert [0, 0] == held.results(pa.array([0, 1]).to_numpy()).to_pylist()
