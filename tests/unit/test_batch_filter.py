"""Conditions on columns: rows are filtered exactly, and batches without such rows are not read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.compute import field, scalar

import millstream
from millstream import Store, UsageError, sql
from millstream.chunk_reader import ChunkReader

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 1000
BATCHES = 10


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        yield opened


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each batch of which more than the directory was read."""
    read: list[object] = []
    project = ChunkReader.project

    def counted(self: ChunkReader, *arguments: Any) -> Any:
        read.append(self)
        return project(self, *arguments)

    monkeypatch.setattr(ChunkReader, "project", counted)
    return read


def rows(number: int) -> pa.Table:
    """`n` and the times rise from batch to batch; `maybe` is null in some, in all of batch 3."""
    first = number * ROWS
    counts = range(first, first + ROWS)
    return pa.table(
        {
            "n": pa.array(counts, pa.int64()),
            "small": pa.array([number] * ROWS, pa.int16()),
            "price": pa.array([n / 8 for n in counts], pa.float32()),
            "at": pa.array(
                [START + timedelta(seconds=n) for n in counts], pa.timestamp("ms", "UTC")
            ),
            "day": pa.array([date(2024, 1, 1 + number)] * ROWS, pa.date32()),
            "maybe": pa.array(
                [None if number == 3 or (number > 6 and n % 7 == 0) else n for n in counts],
                pa.int64(),
            ),
            "text": pa.array([f"t{n % 5}" for n in counts], pa.string()),
            "name": pa.array([f"{'long' * 20}-{number}-{n:05}" for n in counts], pa.string()),
            "code": pa.array([bytes([number, n % 1000 // 4]) for n in counts], pa.binary()),
            "big": pa.array([(number << 60) + n for n in counts], pa.uint64()),
        }
    )


def filled(store: Store, compression: str = "none", partitions: int = 1) -> pa.Table:
    schema = rows(0).schema
    store.create_topic(
        "t",
        schema=schema.set(3, schema.field("at").with_nullable(False)),
        time="at",
        compression=compression,
        partitions=partitions,
    )
    for number in range(BATCHES):
        store.append_arrow("t", rows(number), partition=number % partitions)
    return pa.concat_tables([rows(number) for number in range(BATCHES)])


@pytest.mark.parametrize(
    ("where", "batches"),
    [
        (field("n") < 0, 0),
        (field("n") == 4500, 1),
        ((field("n") >= 1999) & (field("n") < 3000), 2),
        ((field("n") == 10) | (field("n") == 9999), 2),
        (field("n").isin([10, 5000, 77_000]), 2),
        (~(field("n") < 9000), 1),
        (field("n") != 3, 10),
        (field("small") == 7, 1),
        (field("small") * 2 == 14, 10),
        (field("price") > 1125.0, 1),
        (field("at") >= START + timedelta(seconds=9000), 1),
        (field("day") == date(2024, 1, 2), 1),
        (field("_timestamp_ms") < 1000 * ROWS + int(START.timestamp() * 1000), 1),
        (field("_offset") >= 9999, 1),
        (field("_partition") == 1, 0),
        (field("maybe").is_null(), 4),
        (field("maybe") == 3500, 0),
        (field("maybe") >= 9000, 1),
        (field("maybe") < 9000, 8),
        ((field("maybe") < 7100) & (field("n") > 6500), 2),
        (field("text") == "t3", 10),
        (field("name") == "a", 0),
        (field("name") > "longlong", 10),
        (field("name") >= "m", 0),
        (field("code") == b"\x04\x07", 1),
        (field("code") > b"\x08", 2),
        (field("code").isin([b"\x01", b"\x01\x80"]), 1),
        (field("big") >= pa.scalar((9 << 60) + 9500, pa.uint64()), 1),
        (field("big") < pa.scalar(1 << 60, pa.uint64()), 1),
        ((field("text") == "t3") & (field("n") < 500), 1),
        (scalar(False), 10),
    ],
)
def test_a_condition_keeps_its_rows_and_reads_the_batches_that_may_have_them(
    store: Store, chunks_of: list[object], where: Any, batches: int
) -> None:
    filled(store)
    beside = ["_offset", "_partition", "_timestamp_ms"]
    names = [*rows(0).column_names, *beside]
    expected = store.read("t").arrow(names).read_all().filter(where)
    chunks_of.clear()

    found = store.read("t").arrow(["n", "text"], where=where).read_all()

    assert found.equals(expected.select(["n", "text"]))
    if str(where) != "false":  # it is about no column, and nobody says what it costs
        assert len(chunks_of) == batches


def test_random_conditions_keep_what_a_filter_of_all_rows_keeps(store: Store) -> None:
    everything = filled(store, "lz4", partitions=3)
    rng = random.Random(5)
    names = ["n", "small", "price", "maybe"]

    def condition(depth: int) -> Any:
        kind = rng.randrange(6 if depth else 4)
        column = field(rng.choice(names))
        limit = rng.choice([-1, 0, 3, 7, 999, 1000, 3500, 7000, 9999, 10_000])
        match kind:
            case 0:
                return column < limit
            case 1:
                return column >= limit
            case 2:
                return column == limit
            case 3:
                return rng.choice([column.is_null(), column.is_valid()])
            case 4:
                return ~condition(depth - 1)
            case _:
                left, right = condition(depth - 1), condition(depth - 1)
                return rng.choice([left & right, left | right])

    for _ in range(150):
        where = condition(3)
        found = store.read("t").arrow(["n"], where=where).read_all()
        expected = everything.filter(where).select(["n"])
        assert sorted(found["n"].to_pylist()) == expected["n"].to_pylist(), str(where)


def test_columns_added_and_widened_since_are_judged_as_they_are_now(
    store: Store, chunks_of: list[object]
) -> None:
    store.create_topic("t", schema=pa.schema([("n", pa.int32())]))
    store.append_arrow("t", pa.table({"n": pa.array(range(ROWS), pa.int32())}))
    wider = pa.schema([("n", pa.float64()), ("more", pa.int64())])
    store.configure_topic("t", schema=wider)
    store.append_arrow("t", pa.table({"n": [0.5] * ROWS, "more": [1] * ROWS}, schema=wider))

    def found(where: Any) -> tuple[int, int]:
        chunks_of.clear()
        count = store.read("t").arrow(["n"], where=where).read_all().num_rows
        return count, len(chunks_of)

    assert found(field("more") == 1) == (ROWS, 1)
    assert found(field("more").is_null()) == (ROWS, 1)
    assert found(field("n") == 0.5) == (ROWS, 2)
    assert found(field("n") > 998.5) == (1, 1)


def test_a_range_of_offsets_or_times_reads_only_its_batches(
    store: Store, chunks_of: list[object]
) -> None:
    filled(store)
    assert store.read("t", start=4500, stop=5500).arrow(["n"]).read_all().num_rows == 1000
    assert len(chunks_of) == 2
    chunks_of.clear()
    where = field("n") < 4600
    assert store.read("t", start=4500, stop=5500).arrow(["n"], where).read_all().num_rows == 100
    assert len(chunks_of) == 1


def test_sql_pushes_comparisons_and_columns_down(store: Store, chunks_of: list[object]) -> None:
    filled(store)

    def ask(text: str) -> tuple[list[tuple[Any, ...]], int]:
        chunks_of.clear()
        with sql.query(store, text) as found:
            return list(found.rows()), len(chunks_of)

    assert ask("select count(*)::int from t where n between 2500 and 3499") == ([(1000,)], 2)
    assert ask("select text from t where n = 9999") == ([("t4",)], 1)
    assert ask("select n from t where \"at\" < timestamptz '2024-01-01 00:00:02Z' order by n") == (
        [(0,), (1,)],
        1,
    )
    assert ask("select count(*)::int from t where n > 8999 and text = 't0'") == ([(200,)], 1)


@pytest.mark.parametrize("where", ["n > 1", True, field("nowhere") > 1, field("n") == "x"])
def test_what_is_no_condition_on_the_columns_is_refused_at_once(store: Store, where: Any) -> None:
    filled(store)
    with pytest.raises(UsageError, match="where"):
        store.read("t").arrow(where=where)


def test_a_condition_without_a_value_for_a_row_says_so(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([("u", pa.uint64())]))
    store.append_columns("t", {"u": [(1 << 63) + n for n in range(ROWS)]})
    with pytest.raises(UsageError, match=r"where=\(u == 7\) has no value for a row"):
        store.read("t").arrow(where=field("u") == 7).read_all()
    seven = pa.scalar(7, pa.uint64())  # else Arrow makes int64 of the column
    assert store.read("t").arrow(where=field("u") == seven).read_all().num_rows == 0


def test_not_below_nan_is_no_row_left_out(store: Store, chunks_of: list[object]) -> None:
    store.create_topic("t", schema=pa.schema([("x", pa.float64())]))
    store.append_columns("t", {"x": [0.5] * ROWS})
    where = ~(field("x") < scalar(float("nan")))
    assert store.read("t").arrow(where=where).read_all().num_rows == ROWS
    assert len(chunks_of) == 1


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_texts_have_bounds_where_they_rise_or_fall_all_in_all(
    store: Store, chunks_of: list[object], compression: str
) -> None:
    rng = random.Random(7)
    numbers = range(2000)
    columns = {
        "rising": [n + rng.randrange(500) for n in numbers],
        "falling": [9000 - n - rng.randrange(500) for n in numbers],
        "same": [7] * 2000,
        "cycle": [n % 50 for n in numbers],
        "random": [rng.randrange(5000) for n in numbers],
    }
    texts = {name: [f"t{n:09}" for n in column] for name, column in columns.items()}
    fields = [pa.field(name, pa.string()) for name in texts]
    store.create_topic("t", schema=pa.schema(fields), compression=compression)
    store.append_columns("t", texts)
    read = []
    for name in texts:
        chunks_of.clear()
        assert store.read("t").arrow(where=field(name) > "u").read_all().num_rows == 0
        read += [name] * len(chunks_of)
    # Compressed, few values are a dictionary, whose bounds are those of its entries.
    assert read == (["cycle", "random"] if compression == "none" else ["random"])


def test_texts_with_nulls_have_bounds_of_the_others(store: Store, chunks_of: list[object]) -> None:
    texts = [None if n % 3 else f"t{n:09}" for n in range(ROWS)]
    store.create_topic("t", schema=pa.schema([("text", pa.string())]))
    store.append_columns("t", {"text": texts})
    store.append_columns("t", {"text": [None] * ROWS})
    for where, rows, batches in ((field("text") > "u", 0, 0), (field("text") >= "t", 334, 1)):
        chunks_of.clear()
        assert store.read("t").arrow(where=where).read_all().num_rows == rows
        assert len(chunks_of) == batches
