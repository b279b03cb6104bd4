"""What belongs to its process: it says what it is, and cannot be copied."""

from __future__ import annotations

import copy
import gc

import pytest

import millstream
from millstream import Store


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
