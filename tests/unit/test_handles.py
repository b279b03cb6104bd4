"""What belongs to its process: it says what it is, and cannot be copied."""

from __future__ import annotations

import asyncio
import copy
import gc
import re
from pathlib import Path
from typing import Any

import pytest

import millstream
from millstream import Store, TopicPartition, aio
from millstream.storage import PosixStorage
from millstream.testing import ManualClock, MemoryStorage


def handles(store: Store) -> dict[str, object]:
    """One of each, by what it says of itself."""
    store.create_topic("t", partitions=4)
    store.append("t", b"x", partition=1)
    queue = store.queue("t")
    consumer = store.consumer("t", group="g")
    consumer.close()
    return {
        "<Store :memory: sync>": store,
        "<Producer :memory:>": store.producer(),
        "<NamedProducer 'import' :memory:>": store.producer(name="import"),
        "<Consumer t>": store.consumer("t"),
        "<Consumer t group 'g' closed>": consumer,
        "<Queue t group 'workers'>": queue,
        "<Job t/1 offset 0 delivery 1 leased>": queue.get(0),
    }


def awaited(store: Store) -> dict[str, Any]:
    """One of each handle to await."""
    return {
        "<AsyncProducer of <Producer :memory:>>": aio.producer(store),
        "<AsyncNamedProducer of <NamedProducer 'out' :memory:>>": aio.producer(store, name="out"),
        "<AsyncConsumer t, u group 'g'>": aio.consumer(store, ["t", "u"], group="g"),
        "<AsyncConsumer t>": aio.consumer(store, "t"),
        "<AsyncQueue t group 'workers'>": aio.queue(store, "t"),
    }


async def look_at(handles: dict[str, Any]) -> None:
    for text, handle in handles.items():
        async with handle:
            assert text == repr(handle)
            with pytest.raises(TypeError, match="Open the store by its path where"):
                copy.copy(handle)
        assert "closed>" in repr(handle)


def test_readers_and_clocks_say_what_they_are() -> None:
    with millstream.open() as store:
        store.create_topic("t")
        with store.reader({TopicPartition("t", 0): 0}) as reader:
            assert ("<LogReader t/0>", "<ManualClock 5 ms>") == (repr(reader), repr(ManualClock(5)))


def close(handles: dict[str, object]) -> None:
    for handle in reversed(handles.values()):
        if not isinstance(handle, millstream.Job):
            handle.close()  # type: ignore[attr-defined]  # all others have it


def test_handles_say_what_they_are_and_are_not_copied() -> None:
    made = handles(millstream.open())
    for text, handle in made.items():
        assert text == repr(handle)
        for way in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="Open the store by its path where") as caught:
                way(handle)
            assert text in str(caught.value)
    gc.collect()
    close(made)


def test_awaited_handles_say_what_they_are_and_are_not_copied() -> None:
    with millstream.open() as store:
        for topic in ("t", "u"):
            store.create_topic(topic)
        asyncio.run(look_at(awaited(store)))


def test_a_transaction_says_what_became_of_it_and_an_owner_what_it_owns() -> None:
    with millstream.open() as store, store.own("billing") as owner:
        with store.transaction(owner=owner) as transaction:
            assert "<Transaction open>" == repr(transaction)
        assert "<Transaction committed>" == repr(transaction)
        assert "<Ownership 'billing' epoch 1>" == repr(owner)
        with pytest.raises(TypeError, match="<Transaction committed>: it is of this process"):
            copy.copy(transaction)


def test_metrics_of_a_store_say_what_there_is_in_a_line() -> None:
    with millstream.open() as store:
        store.create_topic("t", partitions=4)
        store.append_many("t", [b"x", b"y"])
        assert repr(store.metrics()).startswith("<StoreMetrics partitions 4, records 2, data_bytes")


def test_a_scan_and_a_future_say_what_they_are() -> None:
    with millstream.open() as store, store.producer() as producer:
        store.create_topic("t", partitions=4)
        store.create_topic("one")
        future = producer.send("one", b"x")
        future.result()
        assert "<SendFuture acknowledged>" == repr(future)
        assert "<Scan one/0 [0, 1)>" == repr(store.read("one"))
        several = "<Scan t/0 [0, 0), t/1 [0, 0), t/2 [0, 0) and 1 more>"
        assert several == repr(store.read("t"))


@pytest.mark.parametrize(
    ("key", "partitions", "told"),
    [
        ("u1", 4, "'u1'.encode()"),
        (None, 4, "in turn"),
        (7, 4, "int"),
        (b"", 0, "not 0"),
    ],
)
def test_what_has_no_partition_is_refused(key: bytes, partitions: int, told: str) -> None:
    with pytest.raises(millstream.UsageError, match=re.escape(told)):
        millstream.partition_of(key, partitions)


def test_storages_say_what_they_are(tmp_path: Path) -> None:
    memory = MemoryStorage()
    millstream.open(storage=memory).close()
    assert re.fullmatch(r"<MemoryStorage [1-9]\d* files>", repr(memory))
    path = str(tmp_path / "store")
    assert f"<PosixStorage {path}>" == repr(PosixStorage(path))
    assert f"<PosixStorage {path} read-only>" == repr(PosixStorage(path, read_only=True))


def test_a_transaction_without_its_block_says_how_it_begins() -> None:
    with millstream.open() as store:
        begun = store.transaction()
        assert "<Transaction not begun>" == repr(begun)
        with pytest.raises(AttributeError, match=r"`with store.transaction\(\) as txn:`"):
            begun.append("t", b"x")  # type: ignore[attr-defined]
        assert not hasattr(begun, "__len__")


@pytest.mark.parametrize("wrong", ["/tmp", MemoryStorage, ManualClock, object()])
def test_what_is_no_storage_or_clock_is_refused(wrong: object) -> None:
    for part in ("storage", "clock"):
        with pytest.raises(millstream.UsageError, match=f"{part}=.* is no {part.title()}"):
            millstream.open(**{part: wrong})  # type: ignore[arg-type]  # what is wrong
