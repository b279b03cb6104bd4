"""Topics with a schema: columns on disk, rows and Arrow for readers, strict at the door."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pytest

import millstream
from millstream import (
    CorruptBatchError,
    MissingExtraError,
    MissingKeyError,
    RecordError,
    Store,
    TopicExistsError,
    UsageError,
    partition_of,
)
from millstream.arrow_batch import section_columns
from millstream.arrow_columns import encode_columns
from millstream.column_section import (
    DICTIONARY,
    PLAIN,
    Chunk,
    check_section,
    encode_section,
    open_directory,
    pack,
    recompress,
)
from millstream.format import CODEC_BY_NAME, CODEC_NONE

START = datetime(2024, 1, 1, tzinfo=UTC)


class Place(msgspec.Struct):
    city: str
    zip_code: int | None


class Bid(msgspec.Struct):
    auction: int
    price: float
    ts: datetime
    channel: str | None = None
    raw: bytes | None = None
    day: date | None = None
    tags: list[str] | None = None
    place: Place | None = None


def bids(count: int, seed: int = 1) -> pa.Table:
    rng = random.Random(seed)
    return pa.table(
        {
            "auction": [rng.randrange(40) for _ in range(count)],
            "price": [rng.uniform(-5, 5) for _ in range(count)],
            "ts": [START + timedelta(milliseconds=n) for n in range(count)],
            "channel": [rng.choice(["web", "app", None]) for _ in range(count)],
            "raw": [rng.choice([b"\x00\xff", b"", None]) for _ in range(count)],
            "day": [rng.choice([date(2024, 2, 29), None]) for _ in range(count)],
            "tags": [rng.choice([["a", ""], [], None]) for _ in range(count)],
            "place": [rng.choice([{"city": "X", "zip_code": None}, None]) for _ in range(count)],
        }
    )


@pytest.fixture
def store() -> Store:
    with millstream.open() as store:
        yield store


def table_of(store: Store, topic: str, columns: list[str] | None = None) -> pa.Table:
    return pa.Table.from_batches([batch.arrow(columns) for batch in store.read(topic).batches()])


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("count", [1, 5, 1024, 5000])
def test_arrow_comes_back_as_it_was(store: Store, compression: str, count: int) -> None:
    info = store.create_topic("bids", schema=Bid, compression=compression)
    data = bids(count).cast(info.schema)

    (written,) = store.append_arrow("bids", data)

    assert written.record_count == count
    assert table_of(store, "bids").equals(data)
    assert store.verify(deep=True).ok


def test_rows_are_the_json_of_the_columns_and_the_other_way_round(store: Store) -> None:
    store.create_topic("one", schema=Bid, key="auction", time="ts")
    store.create_topic("two", schema=Bid, key="auction", time="ts")
    store.append_arrow("one", bids(300))
    records = list(store.read("one"))
    decoded = [msgspec.json.decode(record.value or b"", type=Bid) for record in records]
    first = bids(300).to_pylist()[0]
    assert (first["auction"], first["price"], first["ts"]) == (
        decoded[0].auction,
        decoded[0].price,
        decoded[0].ts,
    )

    store.append_many("two", [record.value for record in records])

    assert table_of(store, "two").equals(table_of(store, "one"))
    assert [record.value for record in store.read("two")] == [record.value for record in records]
    assert [record.key for record in records] == [str(row.auction).encode() for row in decoded]
    assert [record.timestamp_ms for record in store.read("two")] == [
        round(row.ts.timestamp() * 1000) for row in decoded
    ]


def test_slices_and_record_columns(store: Store) -> None:
    store.create_topic("bids", schema=Bid, key="auction", time="ts")
    store.append_arrow("bids", bids(100))

    (batch,) = store.read("bids", start=10, stop=13).batches()
    found = batch.arrow(["_offset", "auction", "_key", "_timestamp_ms", "_partition"])

    records = list(store.read("bids", start=10, stop=13))
    assert found.to_pylist() == [
        {
            "_offset": record.offset,
            "auction": msgspec.json.decode(record.value or b"")["auction"],
            "_key": record.key,
            "_timestamp_ms": record.timestamp_ms,
            "_partition": 0,
        }
        for record in records
    ]
    with pytest.raises(UsageError, match="no column 'nowhere'; there are auction, price"):
        batch.arrow(["nowhere"])


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_text_of_few_values_takes_a_dictionary_and_reads_the_same(
    store: Store, compression: str
) -> None:
    schema = pa.schema([("text", pa.string())])
    store.create_topic("few", schema=schema, compression=compression)
    expected: list[str] = []
    for distinct in (1, 100, 127, 128, 5000):
        texts = [f"a text of some length {n % distinct}" for n in range(80_000)]
        store.append_arrow("few", pa.table({"text": texts}))
        expected += texts
        section = encode_columns(pa.record_batch({"text": texts}), CODEC_BY_NAME[compression])
        (entry,) = open_directory(section.stored, section.hash).entries
        assert (entry.encoding == DICTIONARY) is (distinct < 1000)
    assert table_of(store, "few")["text"].to_pylist() == expected


def test_without_compression_buffers_go_to_the_disk_as_they_are_in_memory() -> None:
    batch = bids(20_000).to_batches()[0]
    section = encode_columns(batch, CODEC_NONE)
    own = [
        buffer.address
        for column in batch.columns
        for buffer in column.buffers()
        if buffer is not None and buffer.size > 8192
    ]
    written = {pa.py_buffer(part).address for part in section.parts}
    assert len(own) > 8
    assert set(own) <= written
    for entry in open_directory(section.stored, section.hash).entries:
        assert entry.encoding == PLAIN


@pytest.mark.parametrize("rows", [1, 3, 200_000])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_arrow_compresses_as_a_compaction_does_without_it(compression: str, rows: int) -> None:
    rng = random.Random(rows)
    batch = pa.record_batch(
        {
            "rising": pa.array(range(rows)),
            "noise": pa.array([rng.random() for _ in range(rows)]),
            "text": [f"{rng.randrange(10**9)} of some length" for _ in range(rows)],
        }
    )
    codec = CODEC_BY_NAME[compression]
    plain = encode_columns(batch, CODEC_NONE)
    expected = recompress(plain.stored, plain.hash, codec)
    section = encode_columns(batch, codec)
    check_section(section.stored, section.hash)
    before = open_directory(expected.stored, expected.hash).entries
    after = open_directory(section.stored, section.hash).entries
    assert [(each.codec, each.raw_bytes) for each in before] == [
        (each.codec, each.raw_bytes) for each in after
    ]
    columns = section_columns(section.stored, section.hash, rows)
    assert [columns.column(field) for field in batch.schema] == batch.columns


@pytest.mark.parametrize("start", [0, 1, 8, 13])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_large_slices_come_back_as_they_were(store: Store, start: int, compression: str) -> None:
    rows = bids(40_000)
    store.create_topic("bids", schema=Bid, compression=compression)
    store.append_arrow("bids", rows.slice(start, 30_000))
    assert table_of(store, "bids").to_pylist() == rows.slice(start, 30_000).to_pylist()
    found = section_limits(store, "bids")
    prices = rows["price"].slice(start, 30_000).to_pylist()
    assert found["price"] == (min(prices), max(prices))


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("nan"), None], [None, None]])
def test_bounds_are_not_kept_of_columns_with_a_nan_or_without_values(
    store: Store, values: list[float | None]
) -> None:
    rows = pa.table({"price": pa.array(values, pa.float64())})
    store.create_topic("t", schema=rows.schema)
    store.append_arrow("t", rows)
    assert "price" not in section_limits(store, "t")


def section_limits(store: Store, topic: str) -> dict[str, tuple[int | float, int | float]]:
    """Of the one batch of a topic."""
    (batch,) = store.read(topic).batches(max_bytes=1 << 30)
    section = encode_columns(batch.arrow(), CODEC_NONE)
    return section_columns(section.stored, section.hash, batch.record_count).limits()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{}", "missing required field"),
        (b"[]", "Expected `object`"),
        (b"not json", "malformed"),
        (b'{"auction":1,"price":1,"ts":"2024-01-01T00:00:00Z","new":1}', "unknown field"),
        (b'{"auction":1.5,"price":1,"ts":"2024-01-01T00:00:00Z"}', r"Expected `int`"),
        (b'{"auction":99999999999999999999,"price":1,"ts":"2024-01-01T00:00:00Z"}', "auction"),
        (b'{"auction":1,"price":1,"ts":"2024-01-01T00:00:00"}', "timezone"),
    ],
)
def test_a_value_that_does_not_fit_is_named_and_nothing_is_appended(
    store: Store, value: bytes | None, reason: str
) -> None:
    store.create_topic("bids", schema=Bid)
    store.create_topic("spread", partitions=2, schema=Bid)
    assert partition_of(b"u1", 2) != partition_of(b"", 2)
    good = b'{"auction":1,"price":1,"ts":"2024-01-01T00:00:00Z"}'

    for append in (
        lambda: store.append_many("bids", [good, value]),
        lambda: store.append_many("spread", [good, value], [b"u1", b""]),
    ):
        with pytest.raises(UsageError, match=rf"values\[1\] does not fit.*{reason}") as caught:
            append()
        assert caught.value.topic in {"bids", "spread"}
    with pytest.raises(UsageError, match=r"values\[0\]"):
        store.append("bids", value)

    assert list(store.read("bids")) == []


def test_data_that_does_not_fit_is_refused_with_all_reasons(store: Store) -> None:
    store.create_topic("bids", schema=Bid)
    data = pa.table({"auction": ["x"], "price": [1.0], "extra": [1]})

    with pytest.raises(UsageError) as caught:
        store.append_arrow("bids", data)

    text = str(caught.value)
    assert "- extra: int64 (no such column)" in text
    assert "~ auction: string is not int64" in text
    assert "~ ts: it is missing" in text
    assert store.offsets("bids")[0].end == 0
    with pytest.raises(UsageError, match="1 nulls in a column that is not nullable"):
        store.append_columns("bids", {"auction": [None], "price": [1.0], "ts": [START]})
    with pytest.raises(UsageError, match="different lengths"):
        store.append_columns("bids", {"auction": [1, 2], "price": [1.0]})
    store.create_topic("plain")
    with pytest.raises(UsageError, match="create it with schema="):
        store.append_columns("plain", {"a": [1]})
    with pytest.raises(UsageError, match="data is a list; give a pyarrow Table"):
        store.append_arrow("bids", [1])
    store.append("plain", b"1")
    (batch,) = store.read("plain").batches()
    with pytest.raises(UsageError, match="has no schema"):
        batch.arrow()


def test_keys_choose_the_partition_however_a_row_comes(store: Store) -> None:
    store.create_topic("bids", schema=Bid, key="auction", partitions=4)
    store.append_arrow("bids", bids(500))
    store.append("bids", b'{"auction":7,"price":1,"ts":"2024-01-01T00:00:00Z"}')
    store.append_many("bids", [b'{"auction":8,"price":1,"ts":"2024-01-01T00:00:00Z"}'])

    records = list(store.read("bids"))

    assert len(records) == 502
    for record in records:
        assert record.key is not None
        assert record.partition == millstream.partition_of(record.key, 4)
    producer = store.producer()
    future = producer.send("bids", b'{"auction":7,"price":1,"ts":"2024-01-01T00:00:00Z"}')
    with pytest.raises(UsageError, match="send the key"):
        future.result()
    with pytest.raises(UsageError, match="send the key"):
        producer.close()


def test_producers_and_transactions_write_columns(store: Store) -> None:
    store.create_topic("bids", schema=Bid, key="auction", time="ts")
    row = b'{"auction":7,"price":1.5,"ts":"2024-01-01T00:00:00Z"}'
    with store.producer() as producer:
        future = producer.send("bids", row)
    with store.transaction() as transaction:
        told = transaction.append("bids", row)

    batches = list(store.read("bids").batches())

    assert [batch.columnar for batch in batches] == [True, True]
    assert [record.key for batch in batches for record in batch] == [b"7", b"7"]
    assert {1_704_067_200_000} == {
        *(stamp for batch in batches for stamp in batch.timestamps_ms),
        future.result().timestamp_ms,
        told.timestamp_ms,
    }


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_declared_times_are_rounded_down(store: Store, unit: str) -> None:
    schema = pa.schema([pa.field("ts", pa.timestamp(unit), nullable=False)])
    store.create_topic("t", schema=schema, time="ts")
    per_ms = {"s": 0.001, "ms": 1, "us": 1000}[unit]
    raw = [-1500, -1000, -999, -1, 0, 1, 999, 1000, 1500]
    store.append_arrow("t", pa.table({"ts": pa.array(raw, pa.int64()).cast(schema[0].type)}))

    expected = [int(n // per_ms) if unit != "s" else n * 1000 for n in raw]
    assert [record.timestamp_ms for record in store.read("t")] == expected


def test_compaction_of_columns_keeps_the_last_of_each_key(store: Store) -> None:
    store.create_topic("bids", schema=Bid, key="auction", compact=True, recompress="zstd")
    store.create_topic("unkeyed", schema=Bid, compact=True)
    with pytest.raises(MissingKeyError):
        store.append_arrow("unkeyed", bids(1))
    for seed in range(4):
        store.append_arrow("bids", bids(30, seed))
    last = {record.key: record.value for record in store.read("bids")}
    store.roll("bids", 0)

    store.compact("bids")

    records = list(store.read("bids"))
    assert {record.key: record.value for record in records} == last
    assert len(records) == len(last)
    assert all(batch.columnar for batch in store.read("bids").batches())
    assert table_of(store, "bids", ["_key"])["_key"].to_pylist() == [r.key for r in records]
    assert store.verify(deep=True).ok
    assert store.latest("bids", b"3").value == last[b"3"]


def test_schemas_evolve_by_nullable_columns_and_wider_types(store: Store) -> None:
    before = pa.schema([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.float32())])
    after = pa.schema(
        [
            pa.field("c", pa.string()),
            pa.field("a", pa.int64(), nullable=False),
            pa.field("b", pa.float64()),
        ]
    )
    store.create_topic("t", schema=before)
    store.append_columns("t", {"a": [1], "b": [0.5]})

    store.configure_topic("t", schema=after)
    store.append_columns("t", {"a": [1 << 40], "c": ["x"]})

    assert table_of(store, "t").to_pylist() == [
        {"c": None, "a": 1, "b": 0.5},
        {"c": "x", "a": 1 << 40, "b": None},
    ]
    with pytest.raises(UsageError) as caught:
        store.configure_topic("t", schema=pa.schema([("a", pa.int16()), ("d", pa.int8())]))
    text = str(caught.value)
    assert "- c: string" in text
    assert "~ a: int64 -> int16" in text
    assert store.topic("t").schema.equals(after)
    added = after.append(pa.field("d", pa.int8(), nullable=False))
    with pytest.raises(UsageError, match=r"\+ d: int8 not null"):
        store.configure_topic("t", schema=added)


def test_json_topics_keep_their_bytes_and_are_parsed(store: Store) -> None:
    store.create_topic("t", schema=Bid, values="json")
    value = b'{ "price": 2, "auction": 1, "ts": "2024-01-01T00:00:00Z" }'
    store.append("t", value)

    (batch,) = store.read("t").batches()

    assert batch.values == [value]
    assert batch.arrow(["auction", "price", "tags"]).to_pylist() == [
        {"auction": 1, "price": 2.0, "tags": None}
    ]


def test_a_stored_value_that_does_not_fit_names_its_offset(store: Store) -> None:
    store.create_topic("t")
    store.append_many("t", [b'{"a": 1}', b'{"a": "x"}'])
    config = store.topic("t").config
    with_schema = millstream.topics.with_schema(
        config, pa.schema([("a", pa.int64())]), values="json"
    )
    store._engine.catalog.set_topic_config("t", with_schema)
    store._engine.tail.bump("topics_version")

    with pytest.raises(RecordError, match="does not fit the schema") as caught:
        next(store.read("t").batches()).arrow()
    assert (caught.value.topic, caught.value.offset) == ("t", 1)


@dataclass
class Point:
    x: float
    labels: dict[str, int]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Point, "Point.labels: DictType has no column"),
        (int, "is not a msgspec Struct"),
        ("text", "give a msgspec Struct"),
        (pa.schema([("a", pa.timestamp("ns"))]), "nanoseconds"),
        (pa.schema([("a", pa.timestamp("us", "Europe/Berlin"))]), "UTC"),
        (pa.schema([("a", pa.list_(pa.duration("s")))]), r"field a\[\]"),
        (pa.schema([("_a", pa.int8())]), "do not start with _"),
        (pa.schema([("a", pa.int8()), ("a", pa.int8())]), "unique"),
        (pa.schema([]), "1 to 4096"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(store: Store, schema: object, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        store.create_topic("t", schema=schema)


def test_what_belongs_to_a_schema_is_refused_without(store: Store) -> None:
    with pytest.raises(UsageError, match="need a schema"):
        store.create_topic("t", key="a")
    with pytest.raises(UsageError, match="no such field"):
        store.create_topic("t", schema=Bid, key="nowhere")
    with pytest.raises(UsageError, match="take a timestamp"):
        store.create_topic("t", schema=Bid, time="channel")
    store.create_topic("t", schema=Bid)
    with pytest.raises(TopicExistsError, match="another schema"):
        store.create_topic("t", exist_ok=True)
    store.create_topic("t", schema=Bid, exist_ok=True)
    store.create_topic("plain")
    with pytest.raises(UsageError, match="without a schema"):
        store.configure_topic("plain", schema=Bid)


def test_limits_are_those_of_the_values(store: Store) -> None:
    schema = pa.schema(
        [("i", pa.int64()), ("f", pa.float64()), ("u", pa.uint64()), ("s", pa.string())]
    )
    store.create_topic("t", schema=schema)
    store.append_columns("t", {"i": [3, None, -7], "f": [0.5, -1.5, None], "u": [1, 2, 1 << 63]})
    store.append_columns("t", {"i": [None], "f": [float("nan")]})

    first, second = store.read("t").batches()

    assert first.limits() == {"i": (-7, 3), "f": (-1.5, 0.5), "u": (1, 1 << 63)}
    assert second.limits() == {}


def test_without_the_extra_the_error_says_what_to_install(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_topic("t", schema=Bid, compression="zstd")
    store.append("t", b'{"auction":1,"price":1,"ts":"2024-01-01T00:00:00Z"}')
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    for call in (
        lambda: store.create_topic("u", schema=Bid),
        lambda: store.append("t", b"{}"),
        lambda: list(store.read("t")),
        lambda: next(store.read("t").batches()).arrow(),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'millstream\[arrow\]'"):
            call()
    assert store.verify(deep=True).ok
    assert [info.name for info in store.topics()] == ["t"]
    store.create_topic("plain")
    assert store.append("plain", b"x").offset == 0


def test_chunks_that_are_not_arrow_are_damage(store: Store) -> None:
    schema = pa.schema([("a", pa.int64())])
    section = encode_section(bytes(schema.serialize()), [pack(Chunk([b"not a message" * 9], 0), 0)])
    open_directory(section.stored, section.hash)
    with pytest.raises(CorruptBatchError, match="column 'a' does not decode"):
        section_columns(section.stored, section.hash, 3).column(schema.field("a"))


# --- keys and timestamps beside the rows ---------------------------------------------------------


def test_keys_and_timestamps_may_be_given_beside_the_rows(store: Store) -> None:
    schema = pa.schema([("n", pa.int64())])
    store.create_topic("t", schema=schema, partitions=3)

    keys = pa.array(["a", None, "b", "a"])
    store.append_arrow("t", pa.table({"n": [1, 2, 3, 4]}), keys=keys, timestamps_ms=[5, 6, 7, 8])

    found = sorted((each.value, each.key, each.timestamp_ms) for each in store.read("t"))
    assert [
        (b'{"n":1}', b"a", 5),
        (b'{"n":2}', None, 6),
        (b'{"n":3}', b"b", 7),
        (b'{"n":4}', b"a", 8),
    ] == found
    places = {each.key: each.partition for each in store.read("t")}
    assert places[b"a"] == millstream.partition_of(b"a", 3)
    assert places[b"b"] == millstream.partition_of(b"b", 3)
    assert places[None] == 0


@pytest.mark.parametrize("values", ["columns", "json"])
def test_a_key_that_is_not_given_is_the_declared_one(store: Store, values: str) -> None:
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    store.create_topic("t", schema=schema, key="n", time="n", values=values)

    store.append_arrow("t", pa.table({"n": [1, 2]}), keys=[None, b"x"])

    assert [(b"1", 1), (b"x", 2)] == [(each.key, each.timestamp_ms) for each in store.read("t")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": [b"a"]}, "keys has 1 entries for 2 rows"),
        ({"timestamps_ms": [1, None]}, "timestamps_ms has a null"),
        ({"timestamps_ms": [1, -(2**63)]}, "timestamps_ms has a null"),
        ({"timestamps_ms": ["x", "y"]}, "timestamps_ms must be int64"),
        ({"keys": [1.5, 2.5]}, "keys must be binary"),
    ],
)
def test_keys_and_timestamps_must_fit(store: Store, given: dict[str, object], message: str) -> None:
    store.create_topic("t", schema=pa.schema([("n", pa.int64())]))

    with pytest.raises(UsageError, match=message):
        store.append_arrow("t", pa.table({"n": [1, 2]}), **given)

    assert 0 == store.offsets("t")[0].end


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key": "m"}, "key='n', not 'm'"),
        ({"key": None}, "key='n', not None"),
        ({"time": "n"}, "time=None, not 'n'"),
        ({"values": "json"}, "values='columns', not 'json'"),
    ],
)
def test_a_topic_that_is_there_has_the_same_key_time_and_values(
    store: Store, given: dict[str, Any], message: str
) -> None:
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False), ("m", pa.int64())])
    declared: dict[str, Any] = {"schema": schema, "key": "n"}
    created = store.create_topic("t", **declared)

    assert created == store.create_topic("t", **declared, exist_ok=True)
    with pytest.raises(TopicExistsError, match=message):
        store.create_topic("t", **(declared | given), exist_ok=True)
