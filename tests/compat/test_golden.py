"""Stores written by every released format version open and read the same, for ever."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

import millstream

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def content(store: millstream.Store) -> dict[str, object]:
    """Everything a user can see, as JSON would keep it."""
    return {
        "topics": {
            info.name: {
                "partitions": info.partitions,
                "offsets": {str(n): list(each) for n, each in store.offsets(info.name).items()},
                "records": [
                    [
                        record.partition,
                        record.offset,
                        record.timestamp_ms,
                        text(record.key),
                        text(record.value),
                        [[name, text(value)] for name, value in record.headers],
                    ]
                    for record in store.read(info.name)
                ],
            }
            for info in store.topics()
        },
        "checkpoint": text(store.checkpoint("golden")),
        "lag": [
            [lag.topic, lag.partition, lag.committed, lag.log_end]
            for lag in store.group_lag("readers")
        ],
    }


def new_value(info: millstream.TopicInfo) -> bytes:
    """One more value for a topic of a golden store."""
    if info.config.schema is None:
        return b"new"
    if "auction" in info.schema.names:
        return b'{"auction":1,"price":2.0,"ts":"2013-01-01T00:00:00Z","channel":null,"tags":null}'
    row = {field.name: None if field.nullable else 0 for field in info.schema}
    return json.dumps(row, separators=(",", ":")).encode()


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """A copy of a golden store, and what it must say."""
    source = GOLDEN / request.param
    shutil.copytree(source, tmp_path / "store")
    return tmp_path / "store", json.loads((GOLDEN / f"{request.param}.json").read_text())


def test_there_is_a_golden_store_of_this_version() -> None:
    assert "v1" in VERSIONS


def test_golden_store_reads_the_same(golden: tuple[Path, dict[str, object]]) -> None:
    path, expected = golden
    with millstream.open(path) as store:
        assert content(store) == expected
        assert store.verify(deep=True).ok


def test_golden_store_reads_the_same_without_writing(
    golden: tuple[Path, dict[str, object]],
) -> None:
    path, expected = golden
    before = {file: file.read_bytes() for file in path.rglob("*.segment")}
    with millstream.open(path, read_only=True) as store:
        assert content(store) == expected
    assert {file: file.read_bytes() for file in path.rglob("*.segment")} == before


def test_golden_store_takes_appends(golden: tuple[Path, dict[str, object]]) -> None:
    path, _ = golden
    with millstream.open(path) as store:
        ends = {info.name: store.offsets(info.name)[0].end for info in store.topics()}
        values = {info.name: new_value(info) for info in store.topics()}
        assert {
            name: store.append(name, values[name], key=b"k", partition=0).offset for name in ends
        } == ends
    with millstream.open(path) as store:
        found = {name: next(iter(store.read(name, "-1", partition=0))).value for name in ends}
        assert found == values
        assert store.verify(deep=True).ok
