"""Calls that are wrong are UsageErrors that say what is, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream
from millstream import MillstreamError, Store, UnknownTopicError, UsageError


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as store:
        store.create_topic("t", partitions=2)
        store.create_topic("ids", partitions=2, dedup="1h")
        yield store


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.append("t", "text"), "must be bytes or None, not str"),
        (lambda s: s.append("t", b"x", key="k"), "key must be bytes or None, not str"),
        (lambda s: s.append("t", b"x", key=5, durability="os"), "key must be bytes or None, not"),
        (
            lambda s: s.append("t", b"x", partition=True),
            "a partition must be a whole number, not T",
        ),
        (
            lambda s: s.append("t", b"x", partition="0"),
            "a partition must be a whole number, not '0",
        ),
        (lambda s: s.append("t", b"x", partition=1.0, durability="os"), "a whole number, not 1.0"),
        (lambda s: s.append_many("t", [b"x"], partition=True), "partition must be a whole number"),
        (lambda s: s.read(["t"]), "'t'.* is not the name of a topic: give a str, one topic"),
        (lambda s: s.queue(["t"]), "is not the name of a topic"),
        (lambda s: s.latest({}, b"k"), "{} is not the name of a topic"),
        (lambda s: s.create_topic(1.5), "1.5 is not a topic name"),
        (lambda s: s.reader("t"), "takes the offset of each partition"),
        (lambda s: s.trim("t", 5), r"takes the offset of each partition, \{0: 5\} say"),
        (lambda s: s.queue("t").ack([]), r"\[\] is not a job: .*ack\(\*jobs\)"),
        (lambda s: s.queue("t").nack([], delay=1), "is not a job: give"),
        (lambda s: s.queue("t").extend([]), "is not a job"),
        (lambda s: s.queue("t").reject(None), "None is not a job"),
        (lambda s: s.queue("t").get(timeout="1s"), "a timeout is a number of seconds"),
        (lambda s: s.queue("t").get(timeout=float("nan")), "seconds, or None, not nan"),
        (lambda s: s.queue("t").get_many("5"), "count must be a whole number"),
        (lambda s: s.queue("t", max_deliveries="3", dead_letter="d"), "max_deliveries must be"),
        (lambda s: s.redrive("t", limit="3"), "limit must be a whole number"),
        (lambda s: s.consumer("t").poll("1s"), "seconds, or None, not '1s'"),
        (lambda s: s.consumer("t").poll(0, "5"), "max_records must be a whole number"),
        (lambda s: s.producer(batch_bytes="1MB"), "batch_bytes must be a whole number"),
        (lambda s: s.producer(buffer_bytes=1e9), "buffer_bytes must be a whole number"),
        (lambda s: s.own(3), "3 is not a name to own"),
        (lambda s: s.own("\udc80"), "udc80' is not a name to own"),
        (lambda s: s.append("t", b"x", timestamp_ms=1.5), "int of UTC milliseconds"),
        (lambda s: s.append("t", b"x", headers={"a": b"b"}), r"\(name, value\) pairs"),
        (lambda s: s.append("t", b"x", durability="synced"), "'synced'; choose sync, interval, os"),
        (lambda s: s.append_many("t", [b"x"], durability="none"), "'none'; choose sync"),
        (lambda s: s.append_many("t", [b"a"], [b"a", b"b"]), "headers must be of equal length"),
        (lambda s: s.append_many("t", [b"a"], [b"a"], [1, 2]), "of equal length"),
        (lambda s: s.append_many("t", (b"x" for _ in "a")), "sequences, such as lists"),
        (lambda s: s.append_many("t", [b"a"], ["k"]), "keys must be bytes or None"),
        (lambda s: s.producer(durability="x"), "'x'; choose sync"),
        (lambda s: s.producer(linger_ms="5"), "linger_ms must be 0 to 1000000000000, not '5'"),
        (
            lambda s: s.producer(linger_ms=float("nan")),
            "linger_ms must be 0 to 1000000000000, not nan",
        ),
        (lambda s: s.append("ids", b"x", headers=[("record-id", "7")]), "must be bytes, not str"),
    ],
)
def test_a_wrong_call_is_told_and_appends_nothing(
    store: Store, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(store)
    assert list(store.read("t", isolation="uncommitted")) == []
    assert {offsets.end for offsets in store.offsets("t").values()} == {0}


def test_a_wrong_durability_does_not_open_a_store() -> None:
    with pytest.raises(UsageError, match="choose sync, interval, os"):
        millstream.open(durability="fsync")  # type: ignore[arg-type]  # the point


def test_an_empty_path_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"the current directory is '\.'"):
        millstream.open("")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["a\0b", "a\udcff", None, 5, b"a"])
def test_what_is_no_path_is_told_and_makes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        millstream.open,
        millstream.plan_repair,
        millstream.repair,
        millstream.diagnose,
        millstream.dump_segment,
        millstream.UserDatabase,
        store.backup,
        lambda path: millstream.restore(path, "new"),
        lambda path: millstream.restore(tmp_path, path),
    ):
        with pytest.raises(UsageError, match=r"NUL byte|not UTF-8|is no path"):
            call(path)
    assert [] == list(tmp_path.iterdir())


def test_a_backup_that_would_be_none_is_refused(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store") as store:
        (tmp_path / "link").symlink_to(tmp_path / "store")
        for inside in ("store/b", "link/b", "store/topics/b.tar.zst"):
            with pytest.raises(UsageError, match="is inside the store, and would be lost with it"):
                store.backup(tmp_path / inside)
        for name in ("b.tar.gz", "b.zst", "b.zip", "b.tar"):
            with pytest.raises(UsageError, match=r"one file ends in \.tar\.zst or \.tzst"):
                store.backup(tmp_path / name)
    assert ["link", "store"] == sorted(each.name for each in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "error", "message"),
    [
        ({0: 1, 1: -1}, UsageError, "is -1; give a whole number .*partition 1"),
        ({0: 1, 1: "latest"}, UsageError, "'latest'; give a whole number"),
        ({0: 1, 1: True}, UsageError, "True; give a whole number"),
        ({0: 1, 9: 1}, UnknownTopicError, "partitions 0 to"),
    ],
)
def test_a_wrong_trim_is_told_and_trims_nothing(
    store: Store, before: dict[int, Any], error: type[MillstreamError], message: str
) -> None:
    store.append("t", b"x", partition=0)
    with pytest.raises(error, match=message):
        store.trim("t", before)
    assert {offsets.start for offsets in store.offsets("t").values()} == {0}
