"""Producers whose sender is interrupted by Ctrl-C, at any call `send` makes."""

from __future__ import annotations

import itertools

from interrupted_calls import InterruptAt

import millstream
from millstream import Store
from millstream.outgoing import SendFuture
from millstream.testing import MemoryStorage

FOR_EVER_MS = 1e9
SOON_SECONDS = 20.0


def open_store() -> Store:
    store = millstream.open(storage=MemoryStorage(crashable=False), durability="os")
    store.create_topic("t")
    return store


def check(store: Store, accepted: dict[bytes, SendFuture]) -> None:
    """Every accepted record is where its future says, and none is there twice."""
    found = [record.value for record in store.read("t")]
    assert len(found) == len(set(found))
    assert all(found[future.result(0).offset] == value for value, future in accepted.items())


def test_a_sender_interrupted_at_any_call_leaves_nothing_half_done() -> None:
    """Batches fill, are sealed, encoded and written: an interrupt at each call, one at a time."""
    for call in itertools.count(1):
        interrupt = InterruptAt(call)
        accepted: dict[bytes, SendFuture] = {}

        with open_store() as store:
            with store.producer(linger_ms=FOR_EVER_MS, batch_bytes=150) as producer:
                producer.send("t", b"first").result()
                for number in range(6):
                    value = b"%d" % number * 40

                    def send(value: bytes = value) -> None:
                        accepted[value] = producer.send("t", value)  # noqa: B023 - called at once

                    interrupt.run(send)
                producer.flush(SOON_SECONDS)
            check(store, accepted)
        if interrupt.remaining > 0:
            break
        assert len(accepted) >= 5
    assert call > 100
