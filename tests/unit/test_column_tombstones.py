"""Tombstones in topics with a schema: a record without a value, and no row where rows are asked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from pyarrow.compute import field

import millstream
from millstream import Record, Store, UsageError, sql
from millstream.format import COLUMNS, NULL_VALUES, TOMBSTONES
from millstream.processor import Pipeline
from millstream.testing import ManualClock

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), ("text", pa.string())])
DAY = 86_400_000


class Row(msgspec.Struct):
    n: int
    text: str | None = None


def row(n: int) -> bytes:
    return b'{"n":%d,"text":null}' % n


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000_000)


@pytest.fixture
def store(clock: ManualClock) -> Store:
    with millstream.open(clock=clock) as store:
        yield store


def filled(store: Store, compression: str = "none", values: str = "columns") -> list[Record]:
    """Mixed, none and nothing but tombstones, in three batches."""
    store.create_topic("t", schema=SCHEMA, compression=compression, values=values, compact=True)
    store.append_many("t", [row(0), None, row(2), None], [b"a", b"b", b"c", b"a"])
    store.append_many("t", [row(4), row(5)], [b"b", b"d"], headers=[(), (("h", b"1"),)])
    store.append("t", None, key=b"d")
    return list(store.read("t"))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("values", ["columns", "json"])
def test_a_tombstone_is_a_record_and_no_row(store: Store, compression: str, values: str) -> None:
    records = filled(store, compression, values)

    assert [record.value for record in records] == [
        *(row(0), None, row(2), None),
        *(row(4), row(5)),
        None,
    ]
    table = store.read("t").arrow(["_offset", "_key", "n"]).read_all()
    assert table.to_pydict() == {
        "_offset": [0, 2, 4, 5],
        "_key": [b"a", b"c", b"b", b"d"],
        "n": [0, 2, 4, 5],
    }
    some = store.read("t").arrow(["n"], where=field("n") > 1).read_all()
    assert some["n"].to_pylist() == [2, 4, 5]
    assert store.latest("t", b"a") is None
    assert store.latest("t", b"c") == records[2]
    with sql.query(store, "select count(*)::int, sum(n)::int from t") as found:
        assert list(found.rows()) == [(4, 11)]
    with sql.query(store, 'select "offset"::int from bytes.t where value is null') as found:
        assert [offset for (offset,) in found.rows()] == [1, 3, 6]
    assert store.verify(deep=True).ok


def test_parts_of_a_batch_have_their_rows(store: Store) -> None:
    filled(store)
    (batch, *_) = store.read("t").batches()
    assert batch.has_tombstones
    rows = {
        (start, stop): batch.slice(start, stop).arrow() for start in range(5) for stop in range(5)
    }
    for (start, stop), found in rows.items():
        assert found["n"].to_pylist() == [n for n in (0, 2) if start <= n < stop]
    assert store.read("t", start=1, stop=3).arrow(["n"]).read_all()["n"].to_pylist() == [2]


def test_only_batches_that_hold_both_need_a_newer_reader(store: Store) -> None:
    filled(store)
    flags = [batch.header.flags for batch in store.read("t").batches()]
    asked = COLUMNS | NULL_VALUES | TOMBSTONES
    assert [each & asked for each in flags] == [COLUMNS | TOMBSTONES, COLUMNS, NULL_VALUES]


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_compaction_forgets_what_was_deleted_and_then_the_tombstones(
    store: Store, clock: ManualClock, compression: str
) -> None:
    records = filled(store, compression)

    store.compact("t")
    kept = [records[n] for n in (2, 3, 4, 6)]
    assert list(store.read("t")) == kept
    assert store.read("t").arrow(["n"]).read_all()["n"].to_pylist() == [2, 4]
    assert store.verify(deep=True).ok

    clock.advance(2 * DAY)
    store.append("t", row(9), key=b"e")
    store.compact("t")
    assert [record.offset for record in store.read("t")] == [2, 4, 7]
    assert [store.latest("t", key) is None for key in (b"a", b"b", b"c", b"d")] == [
        *(True, False, False, True)
    ]
    assert {batch.header.flags & TOMBSTONES for batch in store.read("t").batches()} == {0}
    assert store.verify(deep=True).ok


def test_a_key_that_is_declared_is_given_with_a_tombstone(store: Store) -> None:
    store.create_topic("t", schema=SCHEMA, key="n", compact=True, partitions=3)
    store.append_many("t", [row(7), row(8)])
    with pytest.raises(millstream.MissingKeyError):
        store.append("t", None)
    store.append("t", None, key=b"7")
    store.append_many("t", [row(9), None], [None, b"8"])

    assert [store.latest("t", key) is None for key in (b"7", b"8", b"9")] == [True, True, False]
    partitions = {record.key: record.partition for record in store.read("t")}
    assert partitions == {
        record.key: record.partition for record in store.read("t") if record.value is not None
    }


def test_a_tombstone_has_no_declared_time(store: Store, clock: ManualClock) -> None:
    times = pa.schema([pa.field("ts", pa.int64(), nullable=False)])
    store.create_topic("t", schema=times, time="ts")
    store.append_many("t", [b'{"ts":5}'])
    with pytest.raises(UsageError, match=r"values\[1\] is a tombstone, which has no 'ts'"):
        store.append_many("t", [b'{"ts":6}', None], [b"a", b"a"])
    store.append_many("t", [b'{"ts":6}', None], [b"a", b"a"], [6, 7])
    store.append("t", None, key=b"a")
    with store.producer() as producer:
        producer.send("t", b'{"ts":8}', key=b"a")
        producer.send("t", None, key=b"a")

    now_ms = clock.now_ms()
    assert [record.timestamp_ms for record in store.read("t")] == [5, 6, 7, now_ms, 8, now_ms]


def test_what_does_not_fit_beside_a_tombstone_is_named(store: Store) -> None:
    store.create_topic("t", schema=SCHEMA)
    with pytest.raises(UsageError, match=r"values\[2\] does not fit"):
        store.append_many("t", [None, row(1), b"{}"], [b"a", b"b", b"c"])
    assert store.offsets("t")[0].end == 0


def test_pipelines_meet_tombstones_as_in_topics_of_rows(store: Store) -> None:
    """A table forgets the key; a stream calls it an error, and goes on behind dead letters."""
    filled(store)
    store.create_topic("rows", compact=True)
    for record in store.read("t"):
        store.append("rows", record.value, key=record.key)
    results = {}
    for topic in ("t", "rows"):
        pipeline = Pipeline(f"of-{topic}")
        source = pipeline.source(topic, type=Row)
        source.select("n").to(f"{topic}-out")
        source.dead_letters.to(f"{topic}-errors")
        pipeline.run(store, until="end", on_end="flush")
        results[topic] = (
            [record.value for record in store.read(f"{topic}-out")],
            [record.key for record in store.read(f"{topic}-errors")],
        )
    assert results["t"] == results["rows"]
    assert results["t"] == ([b'{"n":0}', b'{"n":2}', b'{"n":4}', b'{"n":5}'], [b"b", b"a", b"d"])


def test_a_store_with_tombstones_is_backed_up_and_exported(store: Store, tmp_path: Path) -> None:
    records = filled(store, "lz4")
    store.backup(tmp_path / "copy.tar.zst")
    millstream.restore(tmp_path / "copy.tar.zst", tmp_path / "again")
    with millstream.open(tmp_path / "again", read_only=True) as again:
        assert list(again.read("t")) == records
        assert again.verify(deep=True).ok
