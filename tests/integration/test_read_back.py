"""Column topics read back: without a copy, in frames, by time, while another process writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pytest
from pyarrow.compute import field

import millstream
from millstream import Store
from millstream.storage import PosixFile

SCHEMA = pa.schema(
    [
        pa.field("n", pa.int64(), nullable=False),
        pa.field("ts", pa.timestamp("ms", "UTC"), nullable=False),
        ("price", pa.float64()),
        ("text", pa.string()),
    ]
)
START_MS = 1_700_000_000_000
ROWS = 10_000


def rows(first: int) -> pa.Table:
    numbers = range(first, first + ROWS)
    return pa.table(
        {
            "n": numbers,
            "ts": pa.array([START_MS + 1000 * n for n in numbers], pa.timestamp("ms", "UTC")),
            "price": [None if n % 3 == 0 else n / 4 for n in numbers],
            "text": [f"text {n % 100}" for n in numbers],
        },
        schema=SCHEMA,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t", schema=SCHEMA, time="ts")
        for number in range(10):
            store.append_arrow("t", rows(number * ROWS))
        yield store


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a file gave."""
    sizes: list[int] = []
    whole = PosixFile.read

    def counted(self: PosixFile, length: int, position: int) -> bytes:
        content = whole(self, length, position)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(PosixFile, "read", counted)
    return sizes


def test_a_range_of_time_reads_the_batches_it_touches(store: Store, read_bytes: list[int]) -> None:
    """`start=` and `stop=` look into the index; a condition on the time at the bounds."""
    first_ms, last_ms = START_MS + 1000 * 45_000, START_MS + 1000 * 46_000
    store.roll("t", 0)
    expected = list(range(45_000, 46_000))

    def asked(scan: millstream.Scan, where: object = None) -> int:
        read_bytes.clear()
        assert scan.arrow(["n"], where).read_all()["n"].to_pylist() == expected
        return sum(read_bytes)

    everything = store.read("t").arrow(["n"])
    read_bytes.clear()
    assert everything.read_all().num_rows == 10 * ROWS
    whole = sum(read_bytes)
    times = pa.scalar(first_ms, pa.int64()), pa.scalar(last_ms, pa.int64())
    by_record = (field("_timestamp_ms") >= times[0]) & (field("_timestamp_ms") < times[1])
    low, high = (pa.scalar(ms, pa.timestamp("ms", "UTC")) for ms in (first_ms, last_ms))
    by_field = (field("ts") >= low) & (field("ts") < high)
    a_batch = 8 * ROWS
    assert asked(store.read("t", start=f"@{first_ms}", stop=f"@{last_ms}")) < whole / 5
    assert a_batch < asked(store.read("t"), by_record) < whole / 2
    assert a_batch < asked(store.read("t"), by_field) < whole / 2


def test_uncompressed_columns_are_where_the_bytes_of_the_batch_are(store: Store) -> None:
    (batch, *_) = store.read("t").batches()
    body = pa.py_buffer(batch._columns._body)
    inside = range(body.address, body.address + body.size)

    for column in batch.arrow().columns:
        for buffer in column.buffers():
            assert buffer is None or buffer.address in inside
            assert buffer is None or buffer.address + buffer.size <= inside.stop
    part = batch.slice(100, 200).arrow(["n", "text"])
    assert part["n"].buffers()[1].address in inside
    assert part["text"].buffers()[2].address in inside


def test_frames_share_the_memory_of_the_batch(store: Store) -> None:
    (batch, *_) = store.read("t").batches()
    arrow = batch.arrow(["n", "price"])
    series = polars.DataFrame(arrow)["n"]
    assert series.to_arrow().buffers()[1].address == arrow["n"].buffers()[1].address
    numbers = arrow["n"].to_numpy(zero_copy_only=True)
    assert numbers.__array_interface__["data"][0] == arrow["n"].buffers()[1].address
    assert not numbers.flags.writeable


def test_polars_and_duckdb_take_scans_as_they_are(store: Store) -> None:
    scan = store.read("t", columns=["n", "text"])
    frame = polars.DataFrame(scan)
    assert frame.height == 10 * ROWS
    assert polars.DataFrame(scan).equals(frame)  # a scan can be read again
    with duckdb.connect() as connection:
        connection.register("t", scan.arrow())
        text = "select text, count(*) as c from t group by 1 order by 1 limit 1"
        found = connection.sql(text).fetchall()
    assert found == [("text 0", 1000)]
    assert pa.table(scan)["n"].to_pylist() == frame["n"].to_list()


def test_pandas_takes_a_scan(store: Store) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency of the tests")
    frame = store.read("t", columns=["n", "price", "text", "ts"]).arrow().read_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 10 * ROWS
    assert frame["n"].sum() == sum(range(10 * ROWS))
    assert frame["price"].isna().sum() == sum(n % 3 == 0 for n in range(10 * ROWS))
    typed = store.read("t").arrow().read_all().to_pandas(types_mapper=pandas.ArrowDtype)
    assert str(typed.dtypes["text"]) == "string[pyarrow]"
    again = millstream.open()
    again.create_topic("t", schema=SCHEMA)
    again.append_arrow("t", typed)  # pandas speaks the Arrow interface, too
    assert again.read("t").arrow().read_all().equals(store.read("t").arrow().read_all())
    again.close()


WRITER = """
import sys
import millstream
with millstream.open(sys.argv[1]) as store:
    n = int(sys.argv[2])
    print("up", flush=True)
    while True:
        store.append_columns("t", {"n": [n, n + 1], "ts": [n, n + 1], "text": ["x", "y"]})
        n += 2
        print(n, flush=True)
"""


def test_frames_of_a_store_that_another_process_writes(store: Store, tmp_path: Path) -> None:
    """Whole batches, in order, and more of them each time."""
    store.close()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(10 * ROWS)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with millstream.open(tmp_path / "store", read_only=True) as seen:
            heights = []
            for _ in range(5):
                written = int(child.stdout.readline())
                frame = polars.DataFrame(seen.read("t", columns=["n"]))
                t = duckdb.from_arrow(seen.read("t", columns=["n"]).arrow())
                ((counted,),) = t.aggregate("count(n)").fetchall()
                assert frame["n"].to_list() == list(range(frame.height))
                assert written <= frame.height <= counted
                heights.append(frame.height)
            assert heights == sorted(heights)
            assert heights[0] < heights[-1]
    finally:
        child.kill()
        child.communicate()
