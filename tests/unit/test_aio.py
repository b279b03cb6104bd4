"""The awaited handles: nothing blocks the loop, and cancelling loses nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import millstream
from millstream import (
    BackpressureTimeoutError,
    Record,
    StorageError,
    Store,
    StoreClosedError,
    TopicPartition,
    UnknownTopicError,
    UsageError,
    aio,
)
from millstream.aio import AsyncConsumer
from millstream.outgoing import SendFuture
from millstream.testing import FaultPlan, MemoryStorage

FOR_EVER_MS = 1e9
SOON_SECONDS = 20.0
PLACE = TopicPartition("t", 0)


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as store:
        store.create_topic("t")
        yield store


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), SOON_SECONDS))


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


# --- producer --------------------------------------------------------------------------------


def test_a_producer_is_closed_once_and_for_all(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store) as producer:
            producer.send_nowait("t", b"a")
            await producer.close()
            await producer.close()
        for refused in (producer.flush, lambda: producer.send("t", b"b")):
            with pytest.raises(StoreClosedError, match="the producer is closed"):
                await refused()

    run(main)
    assert [b"a"] == values(list(store.read("t")))


def test_send_gives_the_place_of_the_record(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, linger_ms=FOR_EVER_MS) as producer:
            first = await producer.send("t", b"a", key=b"k", timestamp_ms=5)
            assert ("t", 0, 0, 5) == first
            assert (await producer.send("t", b"b", headers=[("h", b"")])).offset == 1

    run(main)
    assert [b"a", b"b"] == values(list(store.read("t")))


def test_tasks_that_send_at_once_share_batches_and_keep_their_order(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store) as producer:
            places = await asyncio.gather(*(producer.send("t", b"%d" % n) for n in range(1000)))
            assert list(range(1000)) == [place.offset for place in places]

    run(main)
    assert [b"%d" % n for n in range(1000)] == values(list(store.read("t")))
    assert len(list(store.read("t").batches())) < 100


def test_send_nowait_completes_with_the_batch_and_by_flush(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, linger_ms=FOR_EVER_MS) as producer:
            futures = [producer.send_nowait("t", b"a") for _ in range(10)]
            assert not any(future.done() for future in futures)
            await producer.flush()
            assert list(range(10)) == [future.result().offset for future in futures]

    run(main)


def test_a_full_buffer_makes_tasks_wait_and_not_the_loop(store: Store) -> None:
    async def main() -> None:
        small = aio.producer(store, linger_ms=FOR_EVER_MS, batch_bytes=200, buffer_bytes=400)
        async with small as producer:
            stuck, opened = threading.Event(), threading.Event()

            def block(_: SendFuture) -> None:
                stuck.set()
                opened.wait(SOON_SECONDS)

            producer._producer.send("t", b"first").add_done_callback(block)
            producer._producer.hurry()
            assert stuck.wait(SOON_SECONDS)
            for _ in range(4):
                producer.send_nowait("t", b"x" * 50)
            with pytest.raises(BackpressureTimeoutError):
                producer.send_nowait("t", b"x" * 50)
            waiting = asyncio.ensure_future(producer.send("t", b"waited"))
            given_up = asyncio.ensure_future(producer.send("t", b"never"))
            await asyncio.sleep(0)
            assert not waiting.done()
            given_up.cancel()
            opened.set()
            await waiting

    run(main)
    found = values(list(store.read("t")))
    assert b"waited" in found
    assert b"never" not in found


def test_errors_reach_the_task_that_sent(store: Store) -> None:
    storage = MemoryStorage()
    with millstream.open(storage=storage) as faulty:
        faulty.create_topic("t")
        faulty.append("t", b"first")

        async def main() -> None:
            producer = aio.producer(faulty)
            with pytest.raises(UnknownTopicError):
                await producer.send("nowhere", b"")
            with pytest.raises(UsageError):
                await producer.send("t", "text")  # type: ignore[arg-type]
            storage.faults = FaultPlan(fail={"write": errno.EIO})
            with pytest.raises(StorageError):
                await producer.send("t", b"lost")
            with pytest.raises(StorageError):
                await producer.flush()
            storage.faults = FaultPlan()
            assert (await producer.send("t", b"kept")).offset == 1
            await producer.close()
            with pytest.raises(StoreClosedError):
                await producer.send("t", b"late")

        run(main)


def test_a_cancelled_future_does_not_disturb_its_batch(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, linger_ms=FOR_EVER_MS) as producer:
            first, second = producer.send_nowait("t", b"a"), producer.send_nowait("t", b"b")
            first.cancel()
            await producer.flush()
            assert (await second).offset == 1

    run(main)


def test_leaving_by_an_exception_keeps_what_was_sent(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, linger_ms=FOR_EVER_MS) as producer:
            producer.send_nowait("t", b"kept")
            raise KeyError

    with pytest.raises(KeyError):
        run(main)
    assert [b"kept"] == values(list(store.read("t")))


def test_a_loop_that_ended_early_does_not_stop_the_thread(store: Store) -> None:
    futures: list[SendFuture] = []

    async def main() -> None:
        producer = aio.producer(store, linger_ms=FOR_EVER_MS)
        producer.send_nowait("t", b"a").cancel()
        futures.append(producer._producer.send("t", b"b"))
        handles.append(producer)

    handles: list[aio.AsyncProducer] = []
    run(main)
    assert futures[0].result(SOON_SECONDS).offset == 1
    handles[0]._producer.close()


# --- consumer --------------------------------------------------------------------------------


def test_iteration_reads_to_the_end_and_goes_on_later(store: Store) -> None:
    store.append_many("t", [b"a", b"b"])

    async def main() -> None:
        async with aio.consumer(store, "t") as consumer:
            assert [b"a", b"b"] == [record.value async for record in consumer]
            store.append("t", b"c")
            assert [b"c"] == [record.value async for record in consumer]
            assert (PLACE,) == await consumer.assignment()

    run(main)


def test_following_waits_for_what_comes(store: Store) -> None:
    async def main() -> None:
        async with aio.consumer(store, "t", follow=True) as consumer:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, store.append, "t", b"a")
            async for record in consumer:
                assert record.value == b"a"
                break

    run(main)


def test_commit_counts_what_was_delivered_and_no_more(store: Store) -> None:
    store.append_many("t", [b"%d" % number for number in range(10)])

    async def main() -> None:
        async with aio.consumer(store, "t", group="g") as consumer:
            iterator = aiter(consumer)
            for _ in range(3):
                await anext(iterator)
            assert {PLACE: 3} == await consumer.position()
            assert {PLACE: 7} == await consumer.lag()
            await consumer.commit()
        async with aio.consumer(store, "t", group="g") as consumer:
            assert [b"3", b"4"] == values(await consumer.poll(max_records=2))
            await consumer.commit({PLACE: 4})
        async with aio.consumer(store, "t", group="g") as consumer:
            assert (await anext(aiter(consumer))).offset == 4

    run(main)


def test_a_cancelled_poll_loses_no_record_and_commits_none(store: Store) -> None:
    async def main() -> None:
        async with aio.consumer(store, "t", group="g", follow=True) as consumer:
            await consumer.poll()
            polling = asyncio.ensure_future(consumer.poll(timeout=None))
            await asyncio.sleep(0.01)
            polling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await polling
            store.append("t", b"a")
            assert consumer._fetching is not None
            await consumer.commit()
            assert {PLACE: 0} == await consumer.position()
            assert [b"a"] == values(await consumer.poll(timeout=SOON_SECONDS))
            await consumer.commit()
            assert {PLACE: 1} == await consumer.position()

    run(main)


def test_a_consumer_whose_close_is_cancelled_leaves_its_group(store: Store) -> None:
    async def main() -> None:
        consumer = aio.consumer(store, "t", group="g", follow=True)
        await consumer.poll()
        polling = asyncio.ensure_future(consumer.poll(timeout=None))
        await asyncio.sleep(0.01)
        polling.cancel()  # the worker goes on with it for some time
        closing = asyncio.ensure_future(consumer.close())
        await asyncio.sleep(0)
        closing.cancel()
        while store.group("g").members:
            await asyncio.sleep(0.01)

    run(main)


def test_a_commit_that_is_cancelled_counts_nothing_that_is_delivered_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_many("t", [b"a", b"b"])
    go, commit = threading.Event(), AsyncConsumer._commit

    def late(*arguments: Any) -> None:
        assert go.wait(SOON_SECONDS)
        commit(*arguments)

    monkeypatch.setattr(AsyncConsumer, "_commit", late)

    async def main() -> None:
        async with aio.consumer(store, "t", group="g") as consumer:
            assert (await anext(consumer)).value == b"a"
            committing = asyncio.ensure_future(consumer.commit())
            await asyncio.sleep(0.01)
            committing.cancel()
            await asyncio.wait([committing])
            assert (await anext(consumer)).value == b"b"
            go.set()
        async with aio.consumer(store, "t", group="g") as consumer:
            assert (await anext(consumer)).value == b"b"

    run(main)


def test_seek_drops_what_was_fetched_of_the_partition(store: Store) -> None:
    store.append_many("t", [b"a", b"b", b"c"])

    async def main() -> None:
        async with aio.consumer(store, "t") as consumer:
            assert (await anext(aiter(consumer))).value == b"a"
            await consumer.seek(PLACE, "-1")
            assert [b"c"] == values(await consumer.poll())

    run(main)


def test_a_seek_that_is_cancelled_takes_place_with_all_that_belongs_to_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_many("t", [b"a", b"b", b"c"])
    go, seek = threading.Event(), millstream.Consumer.seek

    def late(*arguments: Any) -> None:
        assert go.wait(SOON_SECONDS)
        seek(*arguments)

    monkeypatch.setattr(millstream.Consumer, "seek", late)

    async def main() -> None:
        async with aio.consumer(store, "t") as consumer:
            assert (await anext(aiter(consumer))).value == b"a"
            seeking = asyncio.ensure_future(consumer.seek(PLACE, "-1"))
            await asyncio.sleep(0.01)
            seeking.cancel()
            await asyncio.wait([seeking])
            assert seeking.cancelled()
            go.set()
            await consumer.lag()  # the worker has done what came before
            assert [b"c"] == values(await consumer.poll())

    run(main)


def test_poll_gives_up_after_its_timeout(store: Store) -> None:
    async def main() -> None:
        async with aio.consumer(store, "t", follow=True) as consumer:
            assert [] == await consumer.poll()
            assert [] == await consumer.poll(timeout=0.01)

    run(main)


def test_errors_come_at_the_first_use(store: Store) -> None:
    async def main() -> None:
        nowhere = aio.consumer(store, "nowhere")
        with pytest.raises(UnknownTopicError):
            await nowhere.poll()
        await nowhere.close()
        with pytest.raises(StoreClosedError):
            await nowhere.poll()
        with pytest.raises(StoreClosedError):
            await nowhere.commit()

    run(main)


def test_a_forgotten_consumer_warns(store: Store) -> None:
    consumer: list[AsyncConsumer] = [aio.consumer(store, "t")]
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - either may end it
        consumer.clear()
        gc.collect()
