"""Threads of one store that open partitions, create topics and append at once."""

from __future__ import annotations

from threading import Thread

from simulated_stores import open_quietly

from millstream.testing import MemoryStorage

TIMEOUT = 30


def test_opening_a_partition_does_not_lock_out_an_append_that_refreshes_topics() -> None:
    """The append holds the append lock, and needs what the other thread holds while it waits."""
    store = open_quietly(MemoryStorage())
    store.create_topic("t")
    engine = store._engine
    opening = Thread(target=engine.log, args=("t", 0), daemon=True)

    def append() -> None:
        with engine.append_lock:
            opening.start()
            for _ in range(2_000):
                engine.topics()

    appending = Thread(target=append, daemon=True)
    appending.start()
    appending.join(TIMEOUT)
    opening.join(TIMEOUT)
    assert not appending.is_alive()
    assert not opening.is_alive()
    store.close()


def test_topics_are_created_and_filled_while_others_append() -> None:
    store = open_quietly(MemoryStorage())
    store.create_topic("base")

    def create(thread: int) -> None:
        for number in range(50):
            topic = f"t-{thread}-{number}"
            store.create_topic(topic, partitions=2)
            for partition in range(2):
                store.append(topic, b"x", partition=partition)
                store.append("base", b"x")

    threads = [Thread(target=create, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert store.offsets("base")[0].end == 4 * 50 * 2
    store.close()
