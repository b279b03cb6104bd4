"""`consume --where` does not read batches that can have no such record, and goes on behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import millstream
from millstream import TopicPartition, partition_cursor
from millstream.cli.main import main

ROWS = 300
BATCHES = 8


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`n` and the timestamps rise from batch to batch, in columns and in JSON without a schema."""
    path = str(tmp_path / "store")
    monkeypatch.setenv("MILLSTREAM_DIR", path)
    with millstream.open(path, durability="os") as store:
        schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
        store.create_topic("columns", schema=schema, compression="lz4")
        store.create_topic("rows")
        for first in range(0, ROWS * BATCHES, ROWS):
            numbers = range(first, first + ROWS)
            values = [b'{"n":%d,"text":"t%d"}' % (n, n % 7) for n in numbers]
            for topic in ("columns", "rows"):
                store.append_many(topic, values, timestamps_ms=list(numbers))
    return path


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First offsets of the batches of which more than header and directory was read."""
    read: list[int] = []
    decode = partition_cursor.decode_batch

    def counted(topic: str, partition: int, header: Any, *more: Any, **options: Any) -> Any:
        read.append(header.base_offset)
        return decode(topic, partition, header, *more, **options)

    monkeypatch.setattr(partition_cursor, "decode_batch", counted)
    return read


def found(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    assert main(["consume", "-f", "%o\\n", "-e", *arguments]) == 0
    return list(map(int, capfd.readouterr().out.split()))


@pytest.mark.parametrize(
    ("topic", "where", "expected", "batches"),
    [
        ("columns", "n == 1000", [1000], 1),
        ("columns", "n < 2 or _offset == 2399", [0, 1, 2399], 2),
        ("columns", "_timestamp >= 2398", [2398, 2399], 1),
        ("columns", "n > 5000", [], 0),
        ("columns", 'n > 2397 and text < "t5"', [2398], 1),
        ("columns", "added is not null", [], 0),
        ("rows", "_timestamp >= 2398", [2398, 2399], 1),
        ("rows", "_offset < 1", [0], 1),
        ("rows", '_topic == "columns"', [], 0),
        ("rows", "n == 1000", [1000], BATCHES),
        ("rows", "n == 1000 and _offset < 1500", [1000], BATCHES),  # a value may be no JSON
    ],
)
def test_batches_that_can_have_no_such_record_are_not_read(
    path: str,
    capfd: pytest.CaptureFixture[str],
    bodies: list[int],
    topic: str,
    where: str,
    expected: list[int],
    batches: int,
) -> None:
    assert found(capfd, topic, "--where", where) == expected
    assert len(set(bodies)) == batches


@pytest.mark.parametrize("commit", ["auto", "batch"])
def test_a_group_has_read_what_it_passed_over(
    path: str, capfd: pytest.CaptureFixture[str], bodies: list[int], commit: str
) -> None:
    options = ("columns", "-g", "billing", "--commit", commit, "--where")
    assert found(capfd, *options, "n == 1000") == [1000]
    assert set(bodies) == {900}
    with millstream.open(path) as store:
        with store.consumer("columns", group="billing") as consumer:
            assert consumer.position() == {TopicPartition("columns", 0): ROWS * BATCHES}
        store.append("columns", b'{"n":1000,"text":"again"}')
    assert found(capfd, *options, "n == 1000") == [ROWS * BATCHES]


def test_a_group_that_found_nothing_has_read_all(
    path: str, capfd: pytest.CaptureFixture[str], bodies: list[int]
) -> None:
    assert found(capfd, "columns", "-g", "billing", "--where", "n < 0") == []
    assert bodies == []
    with millstream.open(path) as store, store.consumer("columns", group="billing") as consumer:
        assert consumer.committed() == {TopicPartition("columns", 0): ROWS * BATCHES}


def test_a_field_of_batches_passed_over_is_not_called_unknown(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["consume", "columns", "-e", "--where", "n < 0"]) == 0
    assert capfd.readouterr().err == ""
    assert main(["consume", "columns", "-e", "--where", "nn < 0"]) == 0
    assert "no record had a field nn" in capfd.readouterr().err


def test_a_consumer_stands_behind_what_it_passed_over_and_before_what_it_has_to_deliver(
    path: str,
) -> None:
    with (
        millstream.open(path) as store,
        store.consumer(
            "columns", may_hold=lambda batch: batch.offsets[0] in {600, 1200}
        ) as consumer,
    ):
        place = TopicPartition("columns", 0)
        first = consumer.poll(max_records=ROWS)
        assert [record.offset for record in first] == list(range(600, 900))
        assert consumer.position() == {place: 1200}
        second = consumer.poll(max_records=ROWS)
        assert [record.offset for record in second] == list(range(1200, 1500))
        assert consumer.position() == {place: ROWS * BATCHES}
        assert consumer.poll() == []
        assert consumer.lag() == {place: 0}
