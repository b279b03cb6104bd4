"""Tables of many batches: they are compressed piece by piece, or refused as a whole."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

import millstream
from millstream import Store, UsageError
from millstream.append import partition_of


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        yield opened


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_large_table_is_encoded_in_pieces_and_comes_back_in_order(
    store: Store, compression: str, partitions: int
) -> None:
    rng = random.Random(partitions)
    count = 300_000
    noise = pa.array([rng.random() for _ in range(count)])
    rows = pa.table({"n": range(count), **dict.fromkeys("abcd", noise)})
    store.create_topic("t", schema=rows.schema, compression=compression, partitions=partitions)
    keys = None if partitions == 1 else [b"%d" % (n % 7) for n in range(count)]
    pieces = list(store._columns.encode("t", rows, None, keys))
    assert len(pieces) > 1
    assert all(sum(each.total_bytes for _, each in piece) >= 4 << 20 for piece in pieces[:-1])
    done = store.append_arrow("t", rows, keys=keys)
    assert [each.record_count for each in done] == [
        batch.record_count for piece in pieces for _, batch in piece
    ]
    found = pa.concat_tables(
        store.read("t", partition=number).arrow().read_all() for number in range(partitions)
    )
    assert found.sort_by("n") == rows
    assert all(
        store.read("t", partition=number).arrow().read_all()["n"].to_pylist()
        == [n for n in range(count) if keys is None or partition_of(keys[n], 3) == number]
        for number in range(partitions)
    )


def test_no_thread_is_left_of_an_append_that_ends_between_its_pieces(store: Store) -> None:
    rows = pa.table({"n": range(400_000), "text": [f"some text {n}" for n in range(400_000)]})
    store.create_topic("t", schema=rows.schema, compression="lz4")
    others = threading.enumerate()
    pieces = store._columns.encode("t", rows, None)
    next(pieces)
    own = [each for each in threading.enumerate() if each not in others]
    assert own
    pieces.close()
    assert not any(each.is_alive() for each in own)


def test_rows_too_large_for_a_batch_are_refused_before_the_first_is_written(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([("text", pa.string())]))
    rows = pa.table({"text": ["a"] * 200_000 + ["b" * (121 << 20)]})
    with pytest.raises(UsageError, match="columns of one batch exceed 125829120 bytes"):
        store.append_arrow("t", rows)
    assert store.offsets("t")[0].end == 0
