"""Batches that are joined or compressed anew hold what they held, in the order of the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random

import pyarrow as pa
import pytest
from compacted_model import CompactedModel
from simulated_stores import START_MS, log_of, open_quietly

from millstream import Record, RecordBatch, Store, TopicPartition, UsageError
from millstream.format import CLEANED, CODEC_BY_NAME, CODEC_ZSTD, OFFSET_DELTAS, TOMBSTONES
from millstream.merge import COLUMNS_MERGED_BYTES, MERGED_BYTES
from millstream.testing import ManualClock, MemoryStorage

DAY = 86_400_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with open_quietly(MemoryStorage(), clock) as opened:
        yield opened


def batches(store: Store, topic: str = "t") -> list[RecordBatch]:
    with store.reader({TopicPartition(topic, 0): store.offsets(topic)[0].start}) as reader:
        found = []
        while more := reader.poll():
            found += more
        return found


def json(number: int) -> bytes:
    return b'{"user": "u%d", "amount": %d, "currency": "EUR", "status": "paid"}' % (number, number)


def test_single_records_that_stay_become_one_batch(store: Store, clock: ManualClock) -> None:
    store.create_topic("t", compact=True)
    model = CompactedModel()
    for number in range(60):
        clock.advance(number % 3)
        model.append(store, b"%d" % (number % 40), json(number))

    (result,) = store.compact("t")

    model.check(store, compacted=True)
    (batch,) = batches(store)
    assert (20, 59, 40, 20) == (
        batch.base_offset,
        batch.last_offset,
        batch.record_count,
        result.removed_records,
    )
    for offset in range(60):
        assert max(offset, 20) == next(iter(store.read("t", offset))).offset


def test_every_reader_sees_the_order_of_the_store_as_before(store: Store) -> None:
    """Batches of other partitions lie between some of these, and keep their place."""
    random = Random(4)
    store.create_topic("t", compact=True)
    store.create_topic("u", partitions=2)
    for number in range(200):
        topic = random.choice("ttttu")
        store.append(topic, b"%d" % number, key=b"%d" % random.randrange(60))
    places = [TopicPartition("t", 0), TopicPartition("u", 0), TopicPartition("u", 1)]

    def merged() -> list[Record]:
        with store.reader(dict.fromkeys(places, 0)) as reader:
            found: list[Record] = []
            while more := reader.poll():
                found += [record for batch in more for record in batch]
            return found

    before = merged()
    store.compact("t")
    after = merged()

    kept = set(after)
    assert [record for record in before if record in kept] == after
    assert len(batches(store)) < sum(record.topic == "t" for record in after)
    values = [int(record.value or b"") for record in after]
    assert sorted(values) == values


def test_a_record_in_the_middle_finds_the_running_maximum_it_found(store: Store) -> None:
    random = Random(5)
    store.create_topic("t", compact=True)
    stamps = [random.randrange(1000) for _ in range(200)]
    for stamp in stamps:
        store.append("t", b"v", key=b"%d" % random.randrange(90), timestamp_ms=stamp)

    store.compact("t")

    for batch in batches(store):
        for row, offset in enumerate(batch.offsets):
            assert batch.slice(row).prior_max_timestamp_ms == max(
                stamps[:offset], default=-(1 << 63)
            )


def test_tombstones_cleaned_at_different_times_keep_their_horizons(
    store: Store, clock: ManualClock
) -> None:
    store.create_topic("t", compact=True)
    store.append("t", None, key=b"first")
    store.append("t", b"v", key=b"a")
    store.compact("t")
    clock.advance(DAY // 2)
    store.append("t", None, key=b"second")
    store.append("t", b"w", key=b"b")
    store.compact("t")
    marks = [batch.header.cleaned_ms for batch in batches(store) if batch.header.flags & CLEANED]
    assert [START_MS, START_MS + DAY // 2] == marks

    clock.advance(DAY // 2)
    store.compact("t")
    assert [b"a", b"second", b"b"] == [record.key for record in store.read("t")]
    clock.advance(DAY // 2)
    store.compact("t")
    assert [b"a", b"b"] == [record.key for record in store.read("t")]


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("compact", [True, False])
def test_sealed_segments_are_compressed_anew_in_larger_batches(
    store: Store, compression: str, compact: bool
) -> None:
    store.create_topic(
        "t", recompress="zstd", compression=compression, compact=compact, segment_bytes=65536
    )
    for start in range(0, 3000, 20):
        numbers = range(start, start + 20)
        store.append_many("t", [json(n) for n in numbers], [b"%d" % n for n in numbers])
    before = list(store.read("t"))

    (result,) = store.compact("t")

    assert before == list(store.read("t"))
    assert result.bytes_after < result.bytes_before // 3
    assert {CODEC_ZSTD} == {batch.header.codec for batch in batches(store)}
    assert len(batches(store)) < 10
    assert all(
        sum(section.raw_bytes for section in batch.header.sections) <= MERGED_BYTES
        for batch in batches(store)
    )
    assert store.verify(deep=True).ok
    store.compact("t")  # what has become small becomes one segment
    assert before == list(store.read("t"))
    uids = [header.segment_uid for header in log_of(store).files.headers()]
    store.compact("t")
    assert uids == [header.segment_uid for header in log_of(store).files.headers()]


def test_what_does_not_shrink_stays_as_it_is(store: Store) -> None:
    random = Random(1)
    store.create_topic("t", recompress="zstd", segment_bytes=4096)
    for _ in range(5):
        store.append_many("t", [random.randbytes(900) for _ in range(4)])
    uids = [header.segment_uid for header in log_of(store).files.headers()]

    (result,) = store.compact("t")

    assert result.bytes_before == result.bytes_after
    assert uids == [header.segment_uid for header in log_of(store).files.headers()][: len(uids)]


def test_records_without_keys_are_compressed_and_aborted_ones_dropped(store: Store) -> None:
    store.create_topic("t", recompress="zstd")
    store.append_many("t", [json(number) for number in range(50)])
    with store.transaction() as transaction:
        transaction.append("t", b"never")
        transaction.abort()
    store.append_many("t", [None, json(1), b""], headers=[(), [("h", b"v")], ()])
    before = list(store.read("t"))

    store.compact("t")

    assert before == list(store.read("t")) == list(store.read("t", isolation="uncommitted"))


def test_a_topic_that_is_compacted_later_is_compacted_from_its_beginning(store: Store) -> None:
    store.create_topic("t", recompress="zstd")
    for number in range(30):
        store.append("t", json(number), key=b"%d" % (number % 3))
    store.compact("t")
    assert 30 == len(list(store.read("t")))

    store.configure_topic("t", compact=True)
    store.compact("t")
    assert [27, 28, 29] == [record.offset for record in store.read("t")]
    assert any(batch.header.flags & OFFSET_DELTAS or batch.record_count for batch in batches(store))


def test_an_unknown_codec_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="zstd"):
        store.create_topic("t", recompress="lz4")


# --- columns -------------------------------------------------------------------------------------

WIDE = pa.schema([pa.field("n", pa.int64(), nullable=False), ("text", pa.string())])


def row(n: int) -> bytes:
    return b'{"n":%d,"text":"t%d"}' % (n, n % 3)


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("recompress", [None, "zstd"])
def test_small_batches_of_columns_become_large_ones(
    store: Store, compression: str, recompress: str | None
) -> None:
    store.create_topic(
        "t", schema=WIDE, compression=compression, recompress=recompress, compact=not recompress
    )
    for n in range(2000):
        store.append("t", row(n), key=b"%d" % (n % 1000), headers=[("n", b"%d" % n)])
    before = list(store.read("t"))
    kept = before if recompress else before[1000:]

    store.compact("t")

    assert kept == list(store.read("t"))
    table = store.read("t").arrow(["_offset", "_key", "n"]).read_all()
    assert table["_offset"].to_pylist() == [record.offset for record in kept]
    assert table["_key"].to_pylist() == [record.key for record in kept]
    assert table["n"].to_pylist() == [record.offset for record in kept]
    (merged,) = [batch for batch in batches(store) if batch.record_count]
    assert merged.columnar
    assert merged.limits()["n"] == (kept[0].offset, 1999)
    packed = "zstd" if recompress else compression
    assert merged.header.codec == CODEC_BY_NAME[packed]
    assert store.verify(deep=True).ok


def test_tombstones_between_columns_are_joined_with_them(store: Store, clock: ManualClock) -> None:
    store.create_topic("t", schema=WIDE, compact=True)
    for n in range(300):
        store.append("t", None if n % 3 == 0 else row(n), key=b"%d" % n)
    before = list(store.read("t"))

    store.compact("t")

    assert before == list(store.read("t"))
    (merged,) = [batch for batch in batches(store) if batch.record_count]
    assert merged.header.flags & TOMBSTONES
    assert merged.arrow(["n"])["n"].to_pylist() == [n for n in range(300) if n % 3]
    store.roll("t", 0)
    clock.advance(2 * DAY)
    store.compact("t")
    assert [record for record in before if record.value is not None] == list(store.read("t"))
    assert store.verify(deep=True).ok


def test_columns_of_different_schemas_and_large_batches_stay_apart(store: Store) -> None:
    store.create_topic("t", schema=WIDE, compact=True)
    wider = WIDE.append(pa.field("more", pa.float64()))
    for n in range(40):
        if n == 20:
            store.configure_topic("t", schema=wider)
        store.append("t", row(n), key=b"%d" % n)
    many = pa.table({"n": range(60_000), "text": ["x" * 20] * 60_000, "more": [0.5] * 60_000})
    store.append_arrow("t", many.cast(wider), keys=[b"k%d" % n for n in range(60_000)])
    for n in range(40, 50):
        store.append("t", row(n), key=b"%d" % n)
    before = store.read("t").arrow(["_offset", "_key", *wider.names]).read_all()[1:]
    store.append("t", row(0), key=b"0")

    store.compact("t")

    found = store.read("t").arrow(["_offset", "_key", *wider.names]).read_all()
    assert found[:-1].equals(before)
    counts = [batch.record_count for batch in batches(store) if batch.record_count]
    assert counts == [19, 20, 60_000, 11]
    assert store.verify(deep=True).ok


def test_a_large_batch_of_columns_is_compressed_anew_by_itself(store: Store) -> None:
    store.create_topic("t", schema=WIDE, recompress="zstd")
    store.append_columns("t", {"n": range(60_000), "text": ["x" * 20] * 60_000})
    before = store.read("t").arrow().read_all()
    (result,) = store.compact("t")
    assert result.bytes_after < result.bytes_before // 3
    (batch,) = batches(store)
    assert batch.header.codec == CODEC_ZSTD
    assert batch.limits()["n"] == (0, 59_999)
    assert store.read("t").arrow().read_all().equals(before)


def test_merged_batches_of_columns_stay_bounded(store: Store) -> None:
    store.create_topic("t", schema=WIDE, compact=True)
    text = "x" * 1000
    for start in range(0, 9000, 100):
        numbers = range(start, start + 100)
        rows = pa.table({"n": numbers, "text": [text] * 100}).cast(WIDE)
        store.append_arrow("t", rows, keys=[b"%d" % n for n in numbers])
    store.append("t", row(9000), key=b"0")
    store.compact("t")
    sizes = [sum(part.raw_bytes for part in batch.header.sections) for batch in batches(store)]
    assert max(sizes) <= COLUMNS_MERGED_BYTES
    assert len(sizes) == 3
    assert store.read("t").arrow(["n"]).read_all()["n"].to_pylist() == list(range(1, 9001))


def test_without_pyarrow_batches_of_columns_stay_as_they_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_topic("t", schema=WIDE, compact=True)
    for n in range(20):
        store.append("t", row(n), key=b"%d" % (n % 15))
    before = list(store.read("t"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    store.compact("t")
    monkeypatch.undo()
    assert before[5:] == list(store.read("t"))
    assert store.verify(deep=True).ok
