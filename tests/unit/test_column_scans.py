"""Scans of column topics: only what is asked for is read, and frames take a scan as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pytest

import millstream
from millstream import CorruptBatchError, Store, UsageError
from millstream.storage import PosixFile

COLUMNS = [f"c{number}" for number in range(10)]
SCHEMA = pa.schema([pa.field(name, pa.int64()) for name in COLUMNS])
ROWS = 20_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t", schema=SCHEMA, partitions=2)
        for partition in (0, 1, 0):
            data = {name: range(n, n + ROWS) for n, name in enumerate(COLUMNS)}
            store.append_columns("t", data, partition=partition)
        yield store


def test_a_scan_of_one_column_reads_little_more_than_its_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    whole = PosixFile.read

    def counted(self: PosixFile, length: int, position: int) -> bytes:
        nonlocal read
        content = whole(self, length, position)
        read += len(content)
        return content

    monkeypatch.setattr(PosixFile, "read", counted)

    table = store.read("t", columns=["c3"]).arrow().read_all()

    assert table.to_pydict() == {"c3": [*range(3, 3 + ROWS)] * 3}
    assert 3 * 8 * ROWS <= read < 1.3 * 3 * 8 * ROWS


def test_columns_come_in_the_order_asked_for_also_of_a_part(store: Store) -> None:
    scan = store.read("t", start=5, stop=8, partition=1)

    table = scan.arrow(["_offset", "c9", "c0", "c8"]).read_all()

    assert table.to_pydict() == {
        "_offset": [5, 6, 7],
        "c9": [14, 15, 16],
        "c0": [5, 6, 7],
        "c8": [13, 14, 15],
    }
    assert store.read("t", columns=["_offset"]).arrow().read_all().num_rows == 3 * ROWS


def test_frames_take_a_scan(store: Store) -> None:
    scan = store.read("t", columns=["c1", "c2"])

    frame = polars.DataFrame(scan)
    relation = duckdb.from_arrow(scan.arrow())

    assert frame.shape == (3 * ROWS, 2)
    assert frame["c2"].sum() == 3 * sum(range(2, 2 + ROWS))
    total = relation.aggregate("sum(c1), count(*)").fetchall()
    assert total == [(3 * sum(range(1, 1 + ROWS)), 3 * ROWS)]
    assert pa.table(scan).num_rows == 3 * ROWS


def test_a_frame_is_appended_as_it_is(store: Store) -> None:
    store.create_topic("copy", schema=SCHEMA)
    store.append_arrow("copy", polars.DataFrame(store.read("t")))
    store.append_arrow("copy", duckdb.sql("select 1::bigint as c0, null::bigint as c5"))

    copied = polars.DataFrame(store.read("copy"))

    assert copied[:-1].equals(polars.DataFrame(store.read("t")))
    assert copied[-1].row(0) == (1, *[None] * 9)


def test_what_was_not_read_is_refused_not_guessed(store: Store) -> None:
    (first, *_) = store.read("t", columns=["c1"]).batches()

    with pytest.raises(UsageError, match="name it in columns="):
        first.arrow(["c2"])
    with pytest.raises(UsageError, match="read without columns="):
        list(first)
    with pytest.raises(UsageError, match="no column 'x'"):
        store.read("t", columns=["x"])
    with pytest.raises(UsageError, match="has no end"):
        store.read("t", stop=None).arrow()
    store.create_topic("plain")
    with pytest.raises(UsageError, match="create it with schema="):
        store.read("plain").arrow()
    with pytest.raises(UsageError, match="create it with schema="):
        store.read("plain", columns=["x"])


def test_damage_is_met_by_those_who_read_the_column(store: Store, tmp_path: Path) -> None:
    store.close()
    (path,) = (tmp_path / "store" / "topics" / "t" / "1").glob("*.segment")
    content = bytearray(path.read_bytes())
    position = content.rindex((9 + 1000).to_bytes(8, "little"))  # in the last column
    content[position] ^= 1
    path.write_bytes(content)

    with millstream.open(tmp_path / "store", read_only=True) as damaged:
        assert damaged.read("t", columns=["c0"]).arrow().read_all().num_rows == 3 * ROWS
        with pytest.raises(CorruptBatchError, match="a column of the batch") as caught:
            list(damaged.read("t", columns=["c9"]).batches())
        assert (caught.value.topic, caught.value.partition) == ("t", 1)
        assert caught.value.offset == 0
        assert not damaged.verify(deep=True).ok
