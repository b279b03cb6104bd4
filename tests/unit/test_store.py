"""The store as its users see it: appends in every form, durability, what a handle refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_stores import START_MS, log_of, open_quietly

import millstream
from millstream import (
    RecordMetadata,
    Store,
    StoreClosedError,
    TopicPartition,
    UsageError,
    partition_of,
)
from millstream.tail import Slot
from millstream.testing import ManualClock, MemoryStorage

T0 = TopicPartition("t", 0)


def test_a_record_comes_back_as_it_was_written() -> None:
    with open_quietly(MemoryStorage(), ManualClock(START_MS)) as store:
        store.create_topic("t")
        first = store.append(
            "t", b"v", key=b"k", timestamp_ms=7, headers=[("a", b"1"), ("a", None)]
        )
        store.append("t", None, key=b"")
        assert RecordMetadata("t", 0, 0, 7) == first
        one, two = store.read("t")
        assert (b"k", b"v", 7) == (one.key, one.value, one.timestamp_ms)
        assert (("a", b"1"), ("a", None)) == tuple(one.headers)
        assert (b"", None, START_MS) == (two.key, two.value, two.timestamp_ms)


def test_keys_decide_the_partition_and_the_rest_takes_turns() -> None:
    with millstream.open() as store:
        store.create_topic("t", partitions=4)
        for key in (b"", b"a", b"u1", b"x" * 1000):
            assert partition_of(key, 4) == store.append("t", b"v", key=key).partition
        assert {0, 1, 2, 3} == {store.append("t", b"v").partition for _ in range(4)}
        keys = [b"a", None, b"b", b"a"]
        written = store.append_many("t", [b"1", b"2", b"3", b"4"], keys)
        assert 4 == sum(entry.record_count for entry in written)
        of_a = [record.partition for record in store.read("t") if record.key == b"a"]
        assert [partition_of(b"a", 4)] * 3 == of_a


def test_an_empty_append_writes_nothing() -> None:
    with millstream.open() as store:
        store.create_topic("t")
        assert [] == store.append_many("t", [])
        assert 0 == store.offsets("t")[0].end


@pytest.mark.parametrize(
    ("values", "keys", "stamps"),
    [
        ([b"a", "b"], None, None),
        ([b"a"], [b"k", b"l"], None),
        ([b"a"], None, [1.5]),
        ([b"a"], ["k"], None),
        ([b"a"], None, [1, 2]),
        ([bytearray(70 << 20), bytearray(70 << 20)], None, None),
    ],
    ids=["value", "keys", "stamp", "key", "stamps", "size"],
)
def test_a_wrong_column_is_refused_as_a_whole(
    values: list[bytes], keys: list[bytes] | None, stamps: list[int] | None
) -> None:
    with millstream.open() as store:
        store.create_topic("t", partitions=2)
        with pytest.raises(UsageError):
            store.append_many("t", values, keys, stamps)
        assert [0, 0] == [each.end for each in store.offsets("t").values()]


@pytest.mark.parametrize("durability", ["sync", "interval", "os"])
def test_what_is_acknowledged_is_visible_and_in_time_durable(
    tmp_path: Path, durability: millstream.Durability
) -> None:
    with millstream.open(tmp_path / "store", durability=durability) as store:
        store.create_topic("t")
        store.append("t", b"v")
        assert 1 == store.offsets("t")[0].end
        slot = log_of(store).slot
        if durability == "interval":
            wait_until_durable(store, 1)
        assert (durability != "os") == (slot[Slot.DURABLE_OFFSET] == 1)
        store.sync()
        assert 1 == slot[Slot.DURABLE_OFFSET]


def test_a_segment_sealed_in_mode_os_is_synced_in_the_background(tmp_path: Path) -> None:
    with millstream.open(tmp_path / "store", durability="os") as store:
        store.create_topic("t", segment_bytes=4096)
        while len(store.segments("t", 0)) < 2:
            store.append("t", b"x" * 1000)
        wait_until_durable(store, 3)


def wait_until_durable(store: Store, end: int) -> None:
    """The background thread syncs some time soon."""
    slot, seen = log_of(store).slot, 0
    for _ in range(1000):
        if slot[Slot.DURABLE_OFFSET] >= end:
            return
        seen = store._engine.wait(seen, 0.02)
    pytest.fail("nobody synced")


def test_a_closed_store_refuses_and_closes_twice() -> None:
    store = millstream.open()
    store.create_topic("t")
    scan, reader = store.read("t"), store.reader({T0: 0})
    store.close()
    store.close()
    assert store.closed
    assert "closed" in repr(store)
    attempts: list[Callable[[], object]] = [
        lambda: store.append("t", b"x"),
        lambda: list(scan),
        reader.poll,
        store.topics,
        lambda: store.offsets("t"),
        lambda: store.checkpoint("c"),
        store.verify,
        lambda: store.transaction().__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises(StoreClosedError):
            attempt()


def test_a_read_only_handle_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(millstream.MillstreamError):
        millstream.open(path, read_only=True)
    with millstream.open(path) as store:
        store.create_topic("t", retention="1h")
        store.append("t", b"v")
        with millstream.open(path, read_only=True) as reader:
            attempts: list[Callable[[Store], object]] = [
                lambda handle: handle.append("t", b"x"),
                lambda handle: handle.create_topic("u"),
                lambda handle: handle.delete_topic("t"),
                lambda handle: handle.roll("t", 0),
                lambda handle: handle.trim("t", {0: 1}),
                lambda handle: handle.apply_retention(),
                lambda handle: handle.transaction().__enter__(),
                lambda handle: handle.own("p"),
                lambda handle: handle.sync(),
            ]
            for attempt in attempts:
                with pytest.raises(UsageError, match="read-only"):
                    attempt(reader)
            assert [b"v"] == [record.value for record in reader.read("t")]
            store.append("t", b"w")
            assert [b"v", b"w"] == [record.value for record in reader.read("t")]
            assert reader.verify().ok


@pytest.mark.parametrize("durability", ["", "fsync", None])
def test_an_unknown_durability_is_refused(durability: str) -> None:
    with pytest.raises(UsageError, match="choose sync, interval"):
        millstream.open(durability=durability)


@pytest.mark.parametrize("place", ["files", ":memory:"])
def test_a_program_that_never_closes_its_store_ends(tmp_path: Path, place: str) -> None:
    """Also by an error of its own: closing waits for threads, which must still be there."""
    program = (
        "import millstream, sys\n"
        "store = millstream.open(sys.argv[1])\n"
        "store.create_topic('t')\n"
        "store.append('t', b'v')\n"
        "raise SystemExit(7)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, place],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (7, "") == (ended.returncode, ended.stdout)
    assert "ResourceWarning: unclosed store" in ended.stderr


def test_a_store_that_is_forgotten_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = millstream.open(tmp_path / "store")
    store.create_topic("t")
    store.append("t", b"v", durability="os")
    with pytest.warns(ResourceWarning, match="unclosed store"):
        del store
    with millstream.open(tmp_path / "store") as store:
        assert [b"v"] == [record.value for record in store.read("t")]
