"""Topics created where there are files already: left by a deletion, or of a lost catalog."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import DataError, Store
from millstream.testing import MemoryStorage, crash_cases


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


def test_a_topic_can_be_created_again_wherever_its_deletion_was_cut_off() -> None:
    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            store.create_topic("t", partitions=2)
            store.append("t", b"old", partition=0)
            store.roll("t", 0)
            store.append("t", b"old", partition=0)
            store.append("t", b"old", partition=1)
            store.delete_topic("t")
            store.create_topic("t")
            store.append("t", b"new")
        finally:
            abandon(store)

    for case in crash_cases(work, seeds=(0, 1)):
        with open_quietly(case.storage) as store:
            if "t" not in {topic.name for topic in store.topics()}:
                store.create_topic("t")
            before = values(store)
            assert set(before) <= {b"old"} or before == [b"new"], case
            store.append("t", b"newer", partition=0)
            assert sorted([*before, b"newer"], key=repr) == sorted(values(store), key=repr), case
        if case.finished:
            assert [b"new"] == before, case


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_topics_without_their_catalog_are_refused_and_kept(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as store:
        store.create_topic("t")
        store.append("t", b"a")
    saved = tmp_path / "catalog.db"
    saved.rename(tmp_path / "saved")
    kept = files(tmp_path / "topics")

    for _ in range(2):
        with pytest.raises(DataError, match=r"catalog\.db was missing"):
            millstream.open(tmp_path)
    assert kept == files(tmp_path / "topics")

    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    (tmp_path / "saved").rename(saved)
    with millstream.open(tmp_path) as store:
        assert [b"a"] == values(store)


def test_a_topic_is_not_created_over_records_the_catalog_does_not_know(tmp_path: Path) -> None:
    """Of another store, or of this one and the catalog is from before them."""
    for name in ("one", "two"):
        with millstream.open(tmp_path / name) as store:
            store.create_topic("t" if name == "one" else "u")
            store.append("t" if name == "one" else "u", b"a")
    shutil.copytree(tmp_path / "one/topics/t", tmp_path / "two/topics/t")
    kept = files(tmp_path / "two/topics")

    with millstream.open(tmp_path / "two") as store:
        with pytest.raises(DataError, match="does not know"):
            store.create_topic("t")
        assert ["u"] == [topic.name for topic in store.topics()]
    assert kept == files(tmp_path / "two/topics")


def test_a_damaged_topic_can_be_deleted(tmp_path: Path) -> None:
    with millstream.open(tmp_path) as store:
        store.create_topic("t", partitions=2)
        store.append("t", b"a", partition=1)
    (segment,) = (tmp_path / "topics/t/1").glob("*.segment")
    segment.write_bytes(b"x" + segment.read_bytes()[1:])

    with millstream.open(tmp_path) as store:
        with pytest.raises(DataError):
            store.offsets("t")
        store.delete_topic("t")
        assert not (tmp_path / "topics/t").exists()
        store.create_topic("t")
        store.append("t", b"b")
        assert [b"b"] == values(store)
